//! The live page: what it shows of a run under way, who may look and who may act, and that nobody can slow the run down.

use crate::commands::{finished_run, output, text};
use crate::interop::python;
use crate::run::{binary, records, root, small_pipeline};
use serde_json::Value;
use shoal::observe::METRICS;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A page that a child serves; dropping it ends the child.
pub struct Served {
    child: Child,
    address: SocketAddr,
    token: String,
}

impl Served {
    /// Starts what serves it, and waits until it says where.
    pub fn start(command: &mut Command) -> Self {
        let command = command.current_dir(root()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.env("OMP_WAIT_POLICY", "PASSIVE").spawn().expect("the program starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut said = String::new();
        let url = loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).expect("readable") > 0, "no page was told of: {said}");
            if let Some((_, url)) = line.split_once("page: http://") {
                break url.trim().to_owned();
            }
            said += &line;
        };
        let url = url.split(' ').next().unwrap_or_default();
        let (address, token) = url.split_once("/").expect("a path");
        let token = token.strip_prefix("#token=").unwrap_or_default().to_owned();
        // what nobody reads would fill the pipe, and the child would wait
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self { child, address: address.parse().expect("an address"), token }
    }

    /// A run of the small pipeline with these settings.
    fn pretrain(folder: &Path, settings: &[&str]) -> (Self, PathBuf) {
        let run = folder.join("run");
        let mut command = Command::new(binary());
        command.args(["pretrain", "--no-bar", text(&small_pipeline(folder)), "--run", text(&run)]);
        command.args(["--set", "observe.page=127.0.0.1:0"]);
        settings.iter().for_each(|setting| _ = command.args(["--set", setting]));
        (Self::start(&mut command), run)
    }

    fn serve(run: &Path) -> Self {
        Self::start(Command::new(binary()).args(["serve", text(run), "--address", "127.0.0.1:0"]))
    }

    /// Status and body of a request with these headers besides `Host`.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, Vec<u8>) {
        ask(self.address, &self.address.to_string(), method, path, headers).expect("an answer")
    }

    /// The body of an answer that is well.
    pub fn get(&self, path: &str) -> Vec<u8> {
        let (status, body) = self.ask("GET", path, &[]);
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        body
    }

    /// The same as JSON.
    pub fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.get(path)).expect("JSON")
    }

    /// Does what a button of the page does.
    pub fn act(&self, action: &str) -> (u16, String) {
        let (origin, bearer) = (format!("http://{}", self.address), format!("Bearer {}", self.token));
        let headers = [("Origin", origin.as_str()), ("Authorization", bearer.as_str())];
        let (status, body) = self.ask("POST", &format!("/api/actions/{action}"), &headers);
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// How the child ends.
    pub fn end(&mut self) -> ExitStatus {
        self.child.wait().expect("it is a child")
    }

    /// Asks for the state until something is so.
    pub fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let state = self.json("/api/state");
            if is_so(&state) {
                return state;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "{what}: {state}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask(
    address: SocketAddr,
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let status = String::from_utf8_lossy(&answer[9..12]).parse().expect("a status");
    Ok((status, answer[head + 4..].to_vec()))
}

fn step(state: &Value) -> u64 {
    state["step"].as_u64().expect("a step")
}

#[test]
fn a_run_under_way_shows_what_moves() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (page, run) = Served::pretrain(folder.path(), &["train.steps=0"]);
    assert_eq!(page.get("/healthz"), b"ok\n");
    let early = page.until("steps", |state| step(state) > 20);
    let late = page.until("more steps", |state| step(state) > step(&early) + 20);
    assert!(late["live"] == true && late["ended"] == false && late["images"].as_u64() > early["images"].as_u64());
    assert_eq!(page.get("/readyz"), b"ready\n");
    let names: Vec<&str> =
        late["stages"].as_array().expect("stages").iter().filter_map(|s| s["name"].as_str()).collect();
    assert_eq!(names, ["read", "shuffle", "decode", "train", "cluster"]);
    assert!(late["waits_for"].as_str().is_some_and(|words| words.len() > 10), "{late}");
    assert!(late["next"]["cycle_s"].is_number() && late["next"]["snapshot_s"].is_number(), "{late}");

    let curves = page.json("/api/curves");
    let loss = curves.as_array().expect("curves").iter().find(|curve| curve["name"] == "loss").expect("a loss");
    assert!(loss["series"][0]["points"].as_array().expect("points").len() > 20);

    let clusters = page.json("/api/clusters?count=3");
    assert_eq!(clusters["clusters"].as_array().expect("clusters").len(), 3);
    let first = &clusters["clusters"][0];
    let sizes: Vec<u64> =
        clusters["clusters"].as_array().expect("clusters").iter().filter_map(|c| c["size"].as_u64()).collect();
    assert!(sizes.is_sorted_by(|one, next| one >= next), "{sizes:?}");
    let nearest = page.json(&format!("/api/clusters/{}", first["cluster"]));
    let distances: Vec<f64> =
        nearest.as_array().expect("members").iter().filter_map(|m| m["distance"].as_f64()).collect();
    assert!(!distances.is_empty() && distances.is_sorted(), "{distances:?}");
    let ids: Vec<&str> = nearest.as_array().expect("members").iter().filter_map(|m| m["id"].as_str()).take(5).collect();
    let thumbnails = page.json(&format!("/api/thumbnails?ids={}", ids.join(",")));
    for id in ids {
        let src = thumbnails[id]["src"].as_str().expect("each is found: the list is small");
        assert!(src.starts_with("data:image/jpeg;base64,/9j/") && src.len() > 1_000, "{src}");
    }

    let drawn = run.join("pictures/curves.svg");
    crate::commands::ok(&["show", "curves", text(&run), "--out", text(&drawn)]);
    assert_eq!(page.json("/api/pictures"), serde_json::json!(["curves.svg"]));
    assert_eq!(page.get("/pictures/curves.svg"), fs::read(&drawn).expect("an SVG"));

    let state = page.until("a snapshot", |state| state["last_snapshot"].is_u64());
    assert!(state["snapshots"].as_u64() > Some(0));
    assert!(page.get("/filters.png").starts_with(b"\x89PNG"));
    assert_eq!(page.get("/pipeline.toml"), fs::read(run.join("pipeline.toml")).expect("a pipeline"));
}

#[test]
fn actions_take_the_token_and_the_page_itself() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = ["train.steps=0", "snapshot.every_steps=0"];
    let (mut page, run) = Served::pretrain(folder.path(), &settings);
    page.until("steps", |state| step(state) > 5);
    let origin = format!("http://{}", page.address);
    let bearer = format!("Bearer {}", page.token);
    let stop = |headers: &[(&str, &str)]| page.ask("POST", "/api/actions/stop", headers).0;
    assert_eq!(stop(&[("Origin", &origin)]), 401, "no token");
    assert_eq!(stop(&[("Origin", &origin), ("Authorization", "Bearer 00000000000000000000000000000000")]), 401);
    assert_eq!(stop(&[("Origin", "http://evil.example"), ("Authorization", &bearer)]), 403, "from another page");
    assert_eq!(stop(&[("Authorization", &bearer)]), 403, "from no page");
    let (status, _) = ask(page.address, "evil.example", "GET", "/api/state", &[]).expect("an answer");
    assert_eq!(status, 403, "by a name that somebody pointed here");
    assert_eq!(page.act("dance").0, 404);

    assert_eq!(page.act("snapshot").0, 200);
    page.until("a snapshot", |state| state["snapshots"] == 1);
    assert_eq!(page.act("pause").0, 200);
    let stood = page.until("a pause", |state| state["stage"]["stage"] == "pause");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(step(&page.json("/api/state")), step(&stood), "it stands still");
    let before = stood["snapshots"].as_u64().expect("a number");
    if stood["last_snapshot"].as_u64() < Some(step(&stood)) {
        assert_eq!(page.act("snapshot").0, 200, "also while it stands");
        let state = page.until("another snapshot", |state| state["snapshots"].as_u64() > Some(before));
        assert_eq!((step(&state), state["last_snapshot"].as_u64()), (step(&stood), Some(step(&stood))));
    }
    assert_eq!(page.act("resume").0, 200);
    page.until("more steps", |state| step(state) > step(&stood) + 3);
    assert_eq!(page.act("stop"), (200, "it stops after this step, with a snapshot".to_owned()));
    let status = page.child.wait().expect("a child");
    assert_eq!(status.code(), Some(130), "interrupted, with a snapshot");
    assert!(run.join("latest/manifest.json").is_file());
}

#[test]
fn slow_and_dead_clients_do_not_hold_up_a_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut page, run) = Served::pretrain(folder.path(), &["train.steps=200", "snapshot.keep_last=100"]);
    page.until("a snapshot", |state| state["last_snapshot"].is_u64());
    let snapshots = page.json("/api/snapshots");
    let name = snapshots[0]["name"].as_str().expect("a name");
    // some say nothing, some half a question, some never read their answer, which is too large for any buffer; in all more than there
    // are places
    let download = format!("GET /snapshots/{name}/model.safetensors HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let mut dead = Vec::new();
    for number in 0..300 {
        let Ok(mut stream) = TcpStream::connect_timeout(&page.address, Duration::from_secs(5)) else { break };
        let question = ["", "GET /api/state HTTP/1.1\r\nHo", &download][number % 3];
        stream.write_all(question.as_bytes()).expect("a question");
        dead.push(stream);
    }
    assert!(dead.len() > 200, "{} connections", dead.len());
    assert!(page.child.wait().expect("a child").success(), "it came to its end");
    assert_eq!(records(&run, "step").len(), 200);
    drop(dead);
}

#[test]
fn a_finished_run_is_served_from_its_files() {
    let page = Served::serve(finished_run());
    let state = page.json("/api/state");
    assert!(state["live"] == false && state["ended"] == true && step(&state) == 48, "{state}");
    assert!(page.json("/api/clusters")["count"].as_u64() > Some(1));
    assert_eq!(page.ask("GET", "/metrics", &[]).0, 404);
    assert_eq!(page.act("stop").0, 503, "there is nothing to stop");
    let snapshots = page.json("/api/snapshots");
    let newest = snapshots[0]["name"].as_str().expect("a name");
    let file = format!("snapshots/{newest}/model.safetensors");
    assert_eq!(page.get(&format!("/{file}")), fs::read(finished_run().join(&file)).expect("a file"));
    for path in ["../../pipeline.toml", "..%2f..%2fpipeline.toml", "%2e%2e/pipeline.toml", "nothing.safetensors"] {
        assert_eq!(page.ask("GET", &format!("/snapshots/{newest}/{path}"), &[]).0, 404, "{path}");
    }
    assert_eq!(page.json("/api/pictures"), serde_json::json!([]));
    assert_eq!(page.ask("GET", "/pictures/..%2flatest%2fmanifest.json", &[]).0, 404);
    assert_eq!(page.ask("GET", "/api/thumbnails?ids=zz", &[]).0, 400);
    assert_eq!(page.ask("GET", "/api/clusters/999999", &[]).0, 404);
    let (code, _, err) = output(&["serve", "shards"]);
    assert!(code == 3 && err.contains("shards is not the folder of a run"), "{err}");
}

#[test]
fn an_address_that_others_reach_takes_a_token_for_everything() {
    let run = text(finished_run());
    let (code, _, err) = output(&["serve", run, "--address", "0.0.0.0:0"]);
    assert!(code == 2 && err.contains("SHOAL_PAGE_TOKEN"), "{err}");
    let token = "a-token-of-some-length";
    let mut command = Command::new(binary());
    let page = Served::start(command.args(["serve", run, "--address", "0.0.0.0:0"]).env("SHOAL_PAGE_TOKEN", token));
    let address = SocketAddr::from(([127, 0, 0, 1], page.address.port()));
    assert!(page.token.is_empty(), "a token that somebody chose stands in no log");
    let status = |path: &str, headers: &[(&str, &str)]| ask(address, "box", "GET", path, headers).expect("an answer").0;
    assert_eq!((status("/", &[]), status("/healthz", &[]), status("/api/state", &[])), (200, 200, 401));
    assert_eq!(status("/api/state", &[("Authorization", &format!("Bearer {token}"))]), 200);
    assert_eq!(status("/filters.png", &[("Cookie", &format!("shoal-token-80={token}"))]), 200);
    assert_eq!(status("/filters.png", &[("Cookie", "shoal-token-80=another-token-of-length")]), 401);
}

#[test]
fn a_busy_address_is_an_error_with_a_way_out() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = held.local_addr().expect("an address").to_string();
    let (code, _, err) = output(&["serve", text(finished_run()), "--address", &address]);
    assert!(code == 2 && err.contains(&address) && err.contains("127.0.0.1:0"), "{err}");
    let (code, _, err) = output(&["serve", text(finished_run()), "--address", "localhost:7878"]);
    assert!(code == 2 && err.contains("127.0.0.1:7878"), "{err}");
}

#[test]
fn prometheus_takes_the_numbers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (page, _) = Served::pretrain(folder.path(), &["train.steps=0"]);
    page.until("a snapshot and a cycle", |state| state["last_snapshot"].is_u64() && step(state) > 20);
    let text = String::from_utf8(page.get("/metrics")).expect("text");
    for name in ["shoal_steps_total", "shoal_step_seconds_bucket", "shoal_cycle_nmi_previous", "shoal_snapshot_bytes"] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} in\n{text}");
    }
    drop(page);
    let Some(python) = python("page::prometheus_takes_the_numbers") else { return };
    let reader = "import sys\nfrom prometheus_client.parser import text_string_to_metric_families as read\n\
                  print(len(list(read(sys.stdin.read()))))";
    let families = piped(Command::new(&python).args(["-c", reader]), &text);
    assert!(families.trim().parse::<usize>().expect("a number") > 30, "{families}");
    let Some(promtool) = promtool(&python) else { return };
    piped(Command::new(promtool).args(["check", "metrics"]), &text);
}

#[test]
fn alerts_and_dashboard_name_numbers_that_exist_and_fire_as_they_should() {
    let folder = root().join("ops/monitoring");
    let read = |name: &str| fs::read_to_string(folder.join(name)).expect("a file of the repository");
    let known: BTreeSet<&str> = METRICS.iter().map(|(name, _, _)| *name).collect();
    for file in ["dashboard.json", "alerts.yml", "alerts_test.yml"] {
        let text = read(file);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let named: BTreeSet<&str> = words.filter(|word| word.starts_with("shoal_")).collect();
        assert!(named.len() > 5, "{file}");
        for name in named {
            let base =
                ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
            assert!(known.contains(base), "{file}: {name}");
        }
    }
    let Some(python) = python("page::alerts_and_dashboard_name_numbers_that_exist_and_fire_as_they_should") else {
        return;
    };
    let made = Command::new(&python).arg(folder.join("make_dashboard.py")).arg("--check").status().expect("python");
    assert!(made.success(), "dashboard.json is another than make_dashboard.py makes");
    let Some(promtool) = promtool(&python) else { return };
    let checked = Command::new(promtool).current_dir(folder).args(["test", "rules", "alerts_test.yml"]).output();
    let checked = checked.expect("promtool starts");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn tensorboard_reads_scalars_histograms_and_pictures() {
    let Some(python) = python("page::tensorboard_reads_scalars_histograms_and_pictures") else { return };
    let script = root().join("ops/interop/tensorboard_files.py");
    let read =
        Command::new(python).arg(script).arg(finished_run().join("tensorboard")).output().expect("python starts");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let found: Value = serde_json::from_slice(&read.stdout).expect("JSON");
    assert_eq!(found["scalars"]["train/loss"], 48, "{found}");
    assert_eq!(found["histograms"]["cycle/sizes"]["steps"], 6, "{found}");
    assert_eq!(found["histograms"]["cycle/sizes"]["values"], 8.0, "clusters");
    for tag in ["cycle/clusters", "snapshot/filters"] {
        let picture = &found["images"][tag];
        assert!(picture["steps"].as_u64() > Some(0) && picture["width"].as_u64() > Some(200), "{tag}: {found}");
        assert!(picture["colours"].as_u64() > Some(100), "{tag}: {found}");
    }
}

#[test]
fn a_browser_shows_the_page_and_what_moves() {
    let test = "page::a_browser_shows_the_page_and_what_moves";
    let Some(python) = python(test) else { return };
    if Command::new("chromium").arg("--version").stdout(Stdio::null()).status().is_err() {
        let _ = writeln!(std::io::stderr(), "skipped {test}: no chromium, which ops/peers.sh installs for root");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (page, _) = Served::pretrain(folder.path(), &["train.steps=0"]);
    page.until("clusters", |state| state["cycle"]["cycle"].as_u64() > Some(1));
    let script = root().join("ops/interop/page.py");
    let address = format!("http://{}/", page.address);
    let looked = Command::new(python)
        .arg(script)
        .args([&address, &page.token])
        .arg(folder.path())
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .expect("python starts");
    assert!(
        looked.status.success(),
        "{}{}",
        String::from_utf8_lossy(&looked.stdout),
        String::from_utf8_lossy(&looked.stderr)
    );
    for name in ["desktop.png", "phone.png"] {
        assert!(fs::metadata(folder.path().join(name)).expect("a picture").len() > 20_000, "{name}");
    }
}

/// promtool of the peers' environment, or a line that there is none.
fn promtool(python: &Path) -> Option<PathBuf> {
    let promtool = python.with_file_name("promtool");
    if promtool.is_file() {
        return Some(promtool);
    }
    let _ = writeln!(std::io::stderr(), "without promtool, which ops/peers.sh unpacks where apt-get is");
    None
}

/// Standard output of a command that must succeed, given this on standard input.
fn piped(command: &mut Command, input: &str) -> String {
    let command =
        command.env_remove("LD_LIBRARY_PATH").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it reads");
    let done = child.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{}{}", text(&done.stdout), text(&done.stderr));
    text(&done.stdout)
}
