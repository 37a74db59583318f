//! The files of `ops/deploy`: what can be known of them without a cluster, a daemon or a network. That they parse, say what they must,
//! and name nothing that is not there; and that the script for Slurm queues itself again when it should, with a Slurm of a few lines.

use crate::commands::text;
use crate::interop::python;
use crate::run::{binary, root, shoal};
use object_store::aws::AmazonS3ConfigKey;
use serde_json::Value;
use shoal::config::Plan;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The user that the image is made for.
const USER: u64 = 10_001;

/// Variables that belong to other programs, and to these files themselves.
const FOREIGN: &[&str] = &[
    // systemd's, of address families
    "AF_INET",
    "AF_INET6",
    "AF_NETLINK",
    "AF_UNIX",
    // Slurm's and Kubernetes'
    "JOB_COMPLETION_INDEX",
    "SLURM_CPUS_PER_TASK",
    // of the loader, of the driver, of MinIO and of Grafana
    "LD_LIBRARY_PATH",
    "NVIDIA_DRIVER_CAPABILITIES",
    "MINIO_ROOT_PASSWORD",
    "MINIO_ROOT_USER",
    "GF_ANALYTICS_REPORTING_ENABLED",
    "GF_SECURITY_ADMIN_PASSWORD",
    // of whoever starts compose.yaml or slurm.sh
    "GRAFANA_PASSWORD",
    "MAX_RESTARTS",
    "STORE_PASSWORD",
    "STORE_USER",
];

fn folder() -> PathBuf {
    root().join("ops/deploy")
}

fn read(name: &str) -> String {
    let path = folder().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names and texts of all of them.
fn files() -> Vec<(String, String)> {
    let all = glob::glob(text(&folder().join("**/*"))).expect("a pattern").map(|path| path.expect("readable"));
    let names = all.filter(|path| path.is_file()).map(|path| {
        let name = path.strip_prefix(folder()).expect("below the folder").display().to_string();
        let text = read(&name);
        (name, text)
    });
    names.collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Says past the capture of the test runner that a part of a test is left out.
fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "skipped {what}");
}

/// Whether a program can be started.
fn has(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

// ---- names ----

#[test]
fn every_variable_is_one_that_somebody_reads() {
    let mut sources = String::new();
    for path in glob::glob(text(&root().join("src/**/*.rs"))).expect("a pattern") {
        sources += &fs::read_to_string(path.expect("readable")).expect("a source");
    }
    let known: BTreeSet<&str> =
        sources.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').collect();
    for (name, text) in files() {
        for word in text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_') {
            let is_variable = word.contains('_')
                && word.starts_with(|letter: char| letter.is_ascii_uppercase())
                && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
            let is_of_a_store = || word.to_lowercase().parse::<AmazonS3ConfigKey>().is_ok();
            assert!(
                !is_variable || FOREIGN.contains(&word) || known.contains(word) || is_of_a_store(),
                "{name}: nothing in src/ reads {word}"
            );
        }
    }
}

#[test]
fn every_pipeline_key_is_one() {
    let reference = fs::read_to_string(root().join("pipelines/reference.toml")).expect("the reference");
    let reference: toml::Table = reference.parse().expect("TOML");
    let mut found = 0;
    for (name, text) in files() {
        for (section, keys) in &reference {
            for (at, _) in text.match_indices(&format!("{section}.")) {
                let is_part = |letter: char| letter.is_ascii_alphanumeric() || "-_/.".contains(letter);
                let rest = &text[at + section.len() + 1..];
                let end = rest.find(|letter: char| !letter.is_ascii_lowercase() && letter != '_').unwrap_or(rest.len());
                if text[..at].ends_with(is_part) || end == 0 {
                    continue;
                }
                let key = &rest[..end];
                assert!(keys.get(key).is_some(), "{name}: there is no key {section}.{key}");
                found += 1;
            }
        }
    }
    assert!(found > 10, "only {found} keys were found");
}

#[test]
fn every_path_of_the_repository_is_there() {
    let exists = |path: &Path| glob::glob(text(path)).expect("a pattern").any(|found| found.is_ok());
    let mut found = 0;
    for (name, text) in files() {
        let words = text.split(|letter: char| letter.is_whitespace() || "\"'`,;()".contains(letter));
        for word in words.map(|word| word.trim_end_matches(['.', ':'])) {
            let of_root = ["ops/", "pipelines/", "shards/", "src/", "tests/"].iter().any(|top| word.starts_with(top));
            let of_folder = name.ends_with("ml") && (word.starts_with("./") || word.starts_with("../"));
            let path = match (of_root, of_folder) {
                (true, _) => root().join(word),
                (_, true) => folder().join(word.split(':').next().unwrap_or_default()),
                _ => continue,
            };
            assert!(exists(&path), "{name}: there is no {word}");
            found += 1;
        }
    }
    assert!(found > 20, "only {found} paths were found");
}

// ---- Slurm ----

/// A folder with an `srun`, an `scontrol` and an `scancel` that write down how they are called. The step ends with the code in
/// `FAKE_CODE`; with none it goes on until `scancel`, writes a snapshot and ends with 130.
struct Slurm {
    folder: tempfile::TempDir,
}

impl Slurm {
    fn new() -> Self {
        let slurm = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        let programs = [
            (
                "srun",
                r#"echo "srun $*" >>"$FAKE/calls"
if [[ -z ${FAKE_CODE:-} ]]; then
  trap 'ln -sfn snapshots/step-000000007 "$FAKE/run/latest"; exit 130' USR2
  echo $$ >"$FAKE/step.new"
  mv "$FAKE/step.new" "$FAKE/step"
  for _ in {1..600}; do sleep 0.1; done
fi
exit "${FAKE_CODE:-1}""#,
            ),
            ("scontrol", r#"echo "scontrol $*" >>"$FAKE/calls""#),
            (
                "scancel",
                r#"echo "scancel $*" >>"$FAKE/calls"
kill -USR2 "$(<"$FAKE/step")""#,
            ),
        ];
        for (name, text) in programs {
            let path = slurm.path(name);
            fs::write(&path, format!("#!/usr/bin/env bash\nset -euo pipefail\n{text}\n")).expect("a program");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
        }
        slurm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, code: Option<i32>) -> Command {
        let _ = fs::remove_file(self.path("calls"));
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command.arg(folder().join("slurm.sh")).arg("demo").arg(self.path("run")).args(["--set", "train.lr=0.02"]);
        command.env("PATH", format!("{}:{path}", self.folder.path().display())).env("FAKE", self.folder.path());
        command.env("SLURM_JOB_ID", "42").env("SLURM_CPUS_PER_TASK", "12").env("MAX_RESTARTS", "3").env_remove("SHOAL");
        command.envs(code.map(|code| ("FAKE_CODE", code.to_string())));
        command
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    /// Runs the script over a step that ends with `code`; its own exit code, and whether it went back into the queue.
    fn ends_with(&self, code: i32) -> (Option<i32>, bool) {
        let output = self.script(Some(code)).output().expect("bash starts");
        assert!(self.calls().contains("srun "), "{}", said(&output));
        (output.status.code(), self.calls().contains("scontrol requeue 42\n"))
    }

    /// The script over a step that goes on, with a signal; its exit code and what it said.
    fn signalled(&self, signal: &str) -> (Option<i32>, String) {
        let mut command = self.script(None);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("bash starts");
        let started = Instant::now();
        while !self.path("step").is_file() {
            assert!(started.elapsed() < Duration::from_secs(60), "no step starts: {}", self.calls());
            std::thread::sleep(Duration::from_millis(10));
        }
        send(&child, signal);
        let output = child.wait_with_output().expect("a child");
        (output.status.code(), said(&output))
    }
}

fn send(child: &Child, signal: &str) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(status.expect("kill starts").success());
}

#[test]
fn slurm_queues_a_run_again_where_another_start_helps() {
    let slurm = Slurm::new();
    let checked = Command::new("bash").arg("-n").arg(folder().join("slurm.sh")).output().expect("bash starts");
    assert!(checked.status.success(), "{}", said(&checked));

    for code in [130, 4, 137] {
        assert_eq!(slurm.ends_with(code), (Some(0), true), "{code}");
        let _ = fs::remove_file(slurm.path("run/slurm-restarts"));
    }
    for code in [0, 1, 2, 3] {
        assert_eq!(slurm.ends_with(code), (Some(code), false));
    }
    let run = slurm.path("run");
    let expected = format!("shoal pretrain demo --run {} --no-bar --set train.lr=0.02\n", run.display());
    let calls = slurm.calls();
    assert!(calls.contains(" --kill-on-bad-exit=1 ") && calls.contains(" --cpus-per-task=12 "), "{calls}");
    assert!(calls.ends_with(&expected), "{calls}");
    let text = read("slurm.sh");
    assert!(text.contains("\n#SBATCH --requeue\n") && text.contains("\n#SBATCH --signal=B:USR1@"));
}

#[test]
fn slurm_gives_up_a_run_that_is_lost_again_and_again() {
    let slurm = Slurm::new();
    for _ in 0..3 {
        assert_eq!(slurm.ends_with(4), (Some(0), true));
    }
    assert_eq!(slurm.ends_with(4), (Some(4), false), "the fourth in a row without a snapshot");
    // Who starts it by hand means it, and a snapshot is progress.
    for _ in 0..3 {
        assert_eq!(slurm.ends_with(4), (Some(0), true));
    }
    let (code, said) = slurm.signalled("-USR1");
    assert!(code == Some(0) && slurm.calls().contains("scontrol requeue 42"), "{code:?}: {said}");
    for _ in 0..2 {
        assert_eq!(slurm.ends_with(4), (Some(0), true));
    }
}

#[test]
fn slurm_has_a_snapshot_written_before_the_time_is_up_and_when_it_is_cancelled() {
    let slurm = Slurm::new();
    let (code, said) = slurm.signalled("-USR1");
    assert!(code == Some(0) && said.contains("nearly up"), "{code:?}: {said}");
    assert!(slurm.calls().ends_with("scancel --signal=TERM 42\nscontrol requeue 42\n"), "{}", slurm.calls());

    let slurm = Slurm::new();
    let (code, said) = slurm.signalled("-TERM");
    assert!(code == Some(130) && said.contains("cancelled"), "{code:?}: {said}");
    assert!(slurm.calls().ends_with("scancel --signal=TERM 42\n"), "{}", slurm.calls());
}

// ---- the image ----

#[test]
fn the_image_is_made_of_what_is_there() {
    let (dockerfile, ignored) = (read("Dockerfile"), fs::read_to_string(root().join(".dockerignore")).expect("a list"));
    let ignored: Vec<&str> = ignored.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    for name in [".git", "target", ".libtorch", ".peers", "runs"] {
        assert!(ignored.contains(&name), ".dockerignore lets {name} through");
    }
    let mut sources = 0;
    for line in dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (_, from) = words.split_last().expect("a target");
        if from[0].starts_with("--from=build") {
            continue;
        }
        for source in from {
            let is_there = glob::glob(text(&root().join(source))).expect("a pattern").any(|found| found.is_ok());
            assert!(is_there && !ignored.contains(source), "COPY {source}");
            sources += 1;
        }
    }
    assert!(sources >= 4, "only {sources} sources were found");

    let manifest: toml::Table =
        fs::read_to_string(root().join("Cargo.toml")).expect("a manifest").parse().expect("TOML");
    let rust = manifest["package"]["rust-version"].as_str().expect("a version");
    for line in [&format!("FROM rust:{rust}-bookworm AS build"), "STOPSIGNAL SIGTERM", &format!("USER {USER}:{USER}")] {
        assert!(dockerfile.lines().any(|found| found == line), "{line}");
    }
    assert!(!dockerfile.lines().any(|line| line.starts_with("HEALTHCHECK")), "a run without a page would be ill");
    assert!(fs::read_to_string(root().join("ops/build.rs")).expect("a source").contains("libshoal_nccl.so"));
}

#[test]
fn the_probe_asks_the_page_of_rank_0_and_no_other() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port().to_string();
    let served = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for stream in listener.incoming().take(2) {
            let mut stream = stream.expect("a connection");
            let mut reader = BufReader::new(stream.try_clone().expect("another handle"));
            let mut lines = Vec::new();
            while lines.last().is_none_or(|line| line != "\r\n") {
                let mut line = String::new();
                reader.read_line(&mut line).expect("a line");
                lines.push(line);
            }
            let status = if lines[0].contains("/healthz") { "200 OK" } else { "503 Service Unavailable" };
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 3\r\n\r\nok\n").expect("an answer");
            asked.push(lines.remove(0));
        }
        asked
    });
    let probe = |path: &str, variables: &[(&str, &str)]| {
        let mut command = Command::new(folder().join("probe.sh"));
        command.args([path, &port]).env_remove("RANK").env_remove("PET_NODE_RANK").envs(variables.iter().copied());
        command.output().expect("bash starts").status.success()
    };
    assert!(probe("/healthz", &[("RANK", "0")]));
    assert!(!probe("/readyz", &[]));
    assert_eq!(served.join().expect("served"), ["GET /healthz HTTP/1.1\r\n", "GET /readyz HTTP/1.1\r\n"]);
    // Nobody listens now.
    assert!(!probe("/healthz", &[("PET_NODE_RANK", "0")]));
    assert!(probe("/healthz", &[("RANK", "1")]) && probe("/healthz", &[("PET_NODE_RANK", "3")]));
}

// ---- YAML ----

/// The documents of a file; none, with a line, where there is no Python that reads YAML.
fn yaml(test: &str, name: &str) -> Option<Vec<Value>> {
    let python = python(test)?;
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let output = Command::new(python).args(["-c", script]).arg(folder().join(name)).output().expect("python starts");
    if said(&output).contains("No module named 'yaml'") {
        skipped(&format!("{test}: PyYAML is not in .peers, make it anew with ops/peers.sh"));
        return None;
    }
    assert!(output.status.success(), "{name}: {}", said(&output));
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn words(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("{list} is no list"));
    list.iter().map(|word| word.as_str().expect("a word").to_owned()).collect()
}

/// The plan of a rank's command line, if it is one.
fn plan(arguments: &Value) -> Plan {
    let arguments = words(arguments);
    assert_eq!(arguments[0], "pretrain");
    let help =
        String::from_utf8(shoal().args(["pretrain", "--help"]).output().expect("it starts").stdout).expect("text");
    let mut settings = Vec::new();
    for option in &arguments[2..] {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        assert!(help.contains(name), "shoal pretrain has no {name}");
        if name == "--set" {
            settings.push(value.to_owned());
        }
    }
    let path = root().join("pipelines").join(&arguments[1]).with_added_extension("toml");
    Plan::load(&path, &settings).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

#[test]
fn compose_has_two_ranks_of_one_run_and_what_they_need() {
    let test = "compose_has_two_ranks_of_one_run_and_what_they_need";
    let Some(documents) = yaml(test, "compose.yaml") else { return };
    let services = &documents[0]["services"];
    let ranks = [&services["rank-0"], &services["rank-1"]];
    assert_eq!(ranks[0]["command"], ranks[1]["command"]);
    for (number, rank) in ranks.iter().enumerate() {
        let variables = &rank["environment"];
        let number = number.to_string();
        let (own, all) = (["RANK", "LOCAL_RANK"], ["WORLD_SIZE", "LOCAL_WORLD_SIZE"]);
        assert!(own.iter().all(|name| variables[name] == *number) && all.iter().all(|name| variables[name] == "2"));
        assert_eq!(variables["MASTER_ADDR"], "rank-0");
        let token = variables["SHOAL_PAGE_TOKEN"].as_str().expect("a token");
        assert_eq!(documents[0]["configs"]["token"]["content"], token, "Prometheus has the page's");
        let default = token.strip_prefix("${SHOAL_PAGE_TOKEN:-").and_then(|rest| rest.strip_suffix('}'));
        assert!(default.is_some_and(|default| default.len() >= 16), "{token}");
        assert_eq!(rank["volumes"], serde_json::json!(["runs:/runs"]));
        let dockerfile = folder().join(rank["build"]["context"].as_str().expect("a folder"));
        assert!(dockerfile.join(rank["build"]["dockerfile"].as_str().expect("a name")).is_file());
    }
    let plan = plan(&ranks[0]["command"]);
    assert!(plan.train.batch_size.is_multiple_of(2) && plan.bank.capacity.is_multiple_of(2));
    assert_eq!((plan.observe.page.as_str(), plan.fetch.endpoint.as_str()), ("0.0.0.0:7878", "http://store:9000"));
    let bucket = plan.stream.shards[0].strip_prefix("s3://").and_then(|rest| rest.split_once('/')).expect("a bucket").0;
    let upload = services["upload"]["command"].to_string();
    assert!(upload.contains(&format!("store/{bucket}")) && upload.contains("/shards/photos-*.tar"), "{upload}");
    // No password but a default that can be set, and nothing that others can reach.
    for (name, service) in services.as_object().expect("services") {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().is_some_and(|port| port.starts_with("127.0.0.1:")), "{name}: {port}");
        }
        for (variable, value) in service["environment"].as_object().into_iter().flatten() {
            let is_secret = ["PASSWORD", "SECRET", "TOKEN"].iter().any(|word| variable.contains(word));
            assert!(!is_secret || value.as_str().is_some_and(|value| value.starts_with("${")), "{name}: {variable}");
        }
    }
    // Grafana finds the dashboard where its provider looks, and Prometheus under the name of the source.
    let Some(providers) = yaml(test, "grafana/dashboards.yml") else { return };
    let place = providers[0]["providers"][0]["options"]["path"].as_str().expect("a folder");
    let mounts = words(&services["grafana"]["volumes"]);
    assert!(
        mounts.iter().any(|mount| mount.starts_with(&format!("../monitoring/dashboard.json:{place}/"))),
        "{mounts:?}"
    );
    let Some(sources) = yaml(test, "grafana/datasources.yml") else { return };
    assert_eq!(sources[0]["datasources"][0]["url"], "http://prometheus:9090");
}

#[test]
fn prometheus_asks_rank_0_and_has_the_rules() {
    let test = "prometheus_asks_rank_0_and_has_the_rules";
    let Some(documents) = yaml(test, "prometheus.yml") else { return };
    let config = &documents[0];
    let job = &config["scrape_configs"][0];
    assert_eq!((&job["job_name"], &job["static_configs"][0]["targets"][0]), (&"shoal".into(), &"rank-0:7878".into()));
    let token = job["authorization"]["credentials_file"].as_str().expect("a file");
    for rules in words(&config["rule_files"]) {
        assert!(folder().join(&rules).is_file(), "{rules}");
    }
    // As in the container: the folders lie to each other as here, the token beside the file.
    let Some(promtool) = python(test).map(|python| python.with_file_name("promtool")).filter(|tool| tool.is_file())
    else {
        return skipped(&format!("promtool in {test}: it is not in .peers"));
    };
    let copy = tempfile::tempdir().expect("a temporary folder");
    for name in ["deploy/prometheus.yml", "monitoring/alerts.yml"] {
        let to = copy.path().join(name);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::copy(root().join("ops").join(name), &to).expect("a copy");
    }
    fs::write(copy.path().join("deploy").join(token), "0123456789abcdef").expect("a token");
    let config = copy.path().join("deploy/prometheus.yml");
    let checked = Command::new(promtool).args(["check", "config"]).arg(config).output().expect("promtool starts");
    assert!(checked.status.success(), "{}", said(&checked));
}

/// The only document of a kind, with this name where there are more.
fn document<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is_it = |document: &&Value| document["kind"] == kind && document["metadata"]["name"] == name;
    documents.iter().find(is_it).unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

/// What holds for the pods of every rank, however they are started.
fn check_pod(pod: &Value, plan: &Plan) {
    let (container, security) = (&pod["containers"][0], &pod["securityContext"]);
    assert_eq!(pod["restartPolicy"], "Never");
    assert!(
        pod["terminationGracePeriodSeconds"].as_u64().is_some_and(|seconds| seconds >= 300),
        "no time for a snapshot"
    );
    assert_eq!((&security["runAsNonRoot"], &security["runAsUser"]), (&true.into(), &USER.into()));
    assert_eq!(
        (&security["fsGroup"], &container["securityContext"]["allowPrivilegeEscalation"]),
        (&USER.into(), &false.into())
    );
    let port = container["ports"].as_array().expect("ports").iter().find(|port| port["name"] == "page");
    let page = format!("0.0.0.0:{}", port.expect("a port of the page")["containerPort"]);
    assert_eq!(plan.observe.page, page);
    for (probe, path) in [("startupProbe", "/healthz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
        assert_eq!(container[probe]["exec"]["command"], serde_json::json!(["shoal-probe", path]), "{probe}");
    }
    let startup = &container["startupProbe"];
    let patience = startup["periodSeconds"].as_f64().zip(startup["failureThreshold"].as_f64());
    assert!(
        patience.is_some_and(|(period, times)| period * times > plan.ranks.timeout_s),
        "killed while it waits for others"
    );
    let token = container["env"].as_array().expect("variables").iter().find(|one| one["name"] == "SHOAL_PAGE_TOKEN");
    assert!(token.expect("a token")["valueFrom"]["secretKeyRef"]["name"].is_string(), "the token is no secret");
    let volumes: Vec<&Value> =
        pod["volumes"].as_array().expect("volumes").iter().map(|volume| &volume["name"]).collect();
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    assert!(mounts.iter().all(|mount| volumes.contains(&&mount["name"])), "{mounts:?}");
}

/// What holds for the documents around the pods.
fn check_surroundings(documents: &[Value], pod: &Value, arguments: &Value) {
    let claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"].as_str().expect("a claim");
    let claim = document(documents, "PersistentVolumeClaim", claim);
    assert_eq!(words(&claim["spec"]["accessModes"]), ["ReadWriteMany"]);
    let mount = pod["containers"][0]["volumeMounts"][0]["mountPath"].as_str().expect("a folder");
    assert!(words(arguments).iter().any(|word| word.starts_with(&format!("--run={mount}/"))), "{arguments}");
    let page = &document(documents, "Service", "shoal-page")["spec"];
    assert_eq!(page["selector"]["batch.kubernetes.io/job-completion-index"], "0");
    assert_eq!((&page["ports"][0]["targetPort"], &page["publishNotReadyAddresses"]), (&"page".into(), &true.into()));
    assert!(!documents.iter().any(|document| document["kind"] == "Secret"), "secrets are no files");
}

/// The exit codes at which a job is not tried again, by the name of the container.
fn final_codes(job: &Value, container: &str) -> Value {
    let rules = job["podFailurePolicy"]["rules"].as_array().expect("rules");
    let rule = rules.iter().find(|rule| rule["action"] == "FailJob").expect("a rule that fails the job");
    assert_eq!(
        (&rule["onExitCodes"]["containerName"], &rule["onExitCodes"]["operator"]),
        (&container.into(), &"In".into())
    );
    rule["onExitCodes"]["values"].clone()
}

#[test]
fn kubeflow_makes_all_pods_anew_when_one_is_lost() {
    let test = "kubeflow_makes_all_pods_anew_when_one_is_lost";
    let Some(documents) = yaml(test, "kubernetes.yaml") else { return };
    let job = &document(&documents, "TrainJob", "shoal")["spec"];
    let runtime = job["runtimeRef"]["name"].as_str().expect("a name");
    let runtime = &document(&documents, job["runtimeRef"]["kind"].as_str().expect("a kind"), runtime)["spec"];
    let (set, trainer) = (&runtime["template"]["spec"], &job["trainer"]);
    let plan = plan(&trainer["args"]);
    let nodes = trainer["numNodes"].as_u64().expect("a number");
    assert!(plan.train.batch_size.is_multiple_of(nodes as usize));
    assert_eq!((&runtime["mlPolicy"]["numNodes"], &trainer["numProcPerNode"]), (&nodes.into(), &1.into()));
    assert!(runtime["mlPolicy"]["torch"].is_object());
    assert_eq!(trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"], 1);
    assert!(set["failurePolicy"]["maxRestarts"].as_u64().is_some_and(|restarts| restarts > 0));
    let rule = &set["failurePolicy"]["rules"][0];
    assert_eq!((&rule["action"], &rule["onJobFailureReasons"][0]), (&"FailJobSet".into(), &"PodFailurePolicy".into()));

    let node = &set["replicatedJobs"][0];
    let labels = &node["template"]["metadata"]["labels"];
    assert_eq!(
        (&node["name"], &labels["trainer.kubeflow.org/trainjob-ancestor-step"]),
        (&"node".into(), &"trainer".into())
    );
    let job = &node["template"]["spec"];
    assert_eq!((&job["backoffLimit"], final_codes(job, "node")), (&0.into(), serde_json::json!([2, 3])));
    let pod = &job["template"]["spec"];
    assert_eq!(pod["containers"][0]["name"], "node");
    check_pod(pod, &plan);
    check_surroundings(&documents, pod, &trainer["args"]);
}

#[test]
fn a_plain_job_tells_every_pod_its_rank_and_where_to_meet() {
    let test = "a_plain_job_tells_every_pod_its_rank_and_where_to_meet";
    let Some(documents) = yaml(test, "kubernetes-job.yaml") else { return };
    let job = &document(&documents, "Job", "shoal")["spec"];
    let pod = &job["template"]["spec"];
    let container = &pod["containers"][0];
    let plan = plan(&container["args"]);
    let variable = |name: &str| {
        let all = container["env"].as_array().expect("variables");
        all.iter().find(|variable| variable["name"] == name).unwrap_or_else(|| panic!("there is no {name}"))
    };
    let size = job["completions"].as_u64().expect("a number");
    assert!(plan.train.batch_size.is_multiple_of(size as usize));
    assert_eq!((&job["completionMode"], &job["parallelism"]), (&"Indexed".into(), &size.into()));
    assert_eq!(variable("WORLD_SIZE")["value"], size.to_string());
    let index = "metadata.annotations['batch.kubernetes.io/job-completion-index']";
    assert_eq!(variable("RANK")["valueFrom"]["fieldRef"]["fieldPath"], index);
    let subdomain = pod["subdomain"].as_str().expect("a name");
    assert_eq!(variable("MASTER_ADDR")["value"], format!("shoal-0.{subdomain}"));
    let service = &document(&documents, "Service", subdomain)["spec"];
    assert_eq!((&service["clusterIP"], &service["publishNotReadyAddresses"]), (&"None".into(), &true.into()));
    assert_eq!(service["selector"]["batch.kubernetes.io/job-name"], "shoal");
    assert_eq!(variable("MASTER_PORT")["value"], service["ports"][0]["port"].to_string());
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], 1);

    assert_eq!(final_codes(job, "shoal"), serde_json::json!([2, 3]));
    assert!(job["backoffLimitPerIndex"].as_u64().is_some_and(|times| times > 0));
    assert_eq!((&job["maxFailedIndexes"], &job["podReplacementPolicy"]), (&0.into(), &"Failed".into()));
    // The Job's longest pause between two tries of a pod; the others must still be there when it comes.
    assert!(plan.ranks.timeout_s > 600.0);
    check_pod(pod, &plan);
    check_surroundings(&documents, pod, &container["args"]);
}

/// Reads every document as the model of its kind, and names what the model does not know.
const MODELS: &str = r#"
import sys, yaml
try:
    from kubeflow_trainer_api import models
except ImportError:
    sys.exit("no models")
KINDS = {
    "Job": models.IoK8sApiBatchV1Job,
    "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
    "Service": models.IoK8sApiCoreV1Service,
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
}

def unknown(written, understood, place):
    if isinstance(written, dict):
        for key, value in written.items():
            if not isinstance(understood, dict) or key not in understood:
                yield f"{place}.{key}"
            else:
                yield from unknown(value, understood[key], f"{place}.{key}")
    elif isinstance(written, list):
        for number, (one, other) in enumerate(zip(written, understood, strict=True)):
            yield from unknown(one, other, f"{place}[{number}]")

for path in sys.argv[1:]:
    for document in yaml.safe_load_all(open(path)):
        kind = document["kind"]
        found = list(unknown(document, KINDS[kind].from_dict(document).to_dict(), kind))
        assert not found, f"{path}: {found}"
"#;

#[test]
fn kubernetes_and_kubeflow_know_every_field() {
    let test = "kubernetes_and_kubeflow_know_every_field";
    let Some(python) = python(test) else { return };
    let paths = ["kubernetes.yaml", "kubernetes-job.yaml"].map(|name| folder().join(name));
    let output = Command::new(python).args(["-c", MODELS]).args(paths).output().expect("python starts");
    if said(&output).contains("No module named 'yaml'") || said(&output).contains("no models") {
        return skipped(&format!("{test}: kubeflow-trainer-api is not in .peers, make it anew with ops/peers.sh"));
    }
    assert!(output.status.success(), "{}", said(&output));
}

// ---- systemd ----

#[test]
fn systemd_takes_the_unit_and_a_wanted_stop_for_a_success() {
    let unit = read("shoal@.service");
    for line in [
        "KillMode=mixed",
        "KillSignal=SIGTERM",
        "Restart=on-failure",
        "RestartPreventExitStatus=2 3",
        "StateDirectory=shoal",
        "SuccessExitStatus=130",
        "TimeoutStopSec=10min",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    if !has("systemd-analyze") {
        return skipped("systemd-analyze verify: it is not here");
    }
    // It looks for the program, which is not installed here.
    let installed = "/opt/shoal/target/release/shoal pretrain /etc";
    assert!(unit.contains(&format!("\nExecStart={installed}")));
    let copy = tempfile::tempdir().expect("a temporary folder");
    let path = copy.path().join("shoal@.service");
    fs::write(&path, unit.replace(installed, &format!("{} pretrain /etc", binary().display()))).expect("a unit");
    let checked = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(path).output();
    let checked = checked.expect("systemd-analyze starts");
    assert!(checked.status.success() && checked.stderr.is_empty(), "{}", said(&checked));
}
