//! Several processes train one run: the losses of one, the same samples once each, and an end with a name when one of them is lost.

use crate::interop;
use crate::page::Served;
use crate::resume::steps_done;
use crate::run::{SMALL, binary, pretrain, records, root, steps};
use serde_json::Value;
use shoal::bank::Bank;
use shoal::shards::index::{Index, ShardIndex};
use shoal::shards::ledger;
use shoal::world::World;
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const TOO_LONG: Duration = Duration::from_secs(180);

/// [`SMALL`] in an order in which every so-many-th sample of the shard is the next of a rank, with one batch norm for all.
fn in_step(folder: &Path, more: &str) -> PathBuf {
    let path = folder.join("ranks.toml");
    let text = SMALL.replace("lanes = 2", "lanes = 1").replace("shuffle = 40", "shuffle = 1");
    let text = text.replace("arch = \"small\"", "arch = \"small\"\ndropout = 0.0");
    fs::write(&path, format!("{text}\n[ranks]\nsync_batch_norm = true\n{more}\n")).expect("a pipeline");
    path
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

/// The processes of a run; those that are still there are killed at the end of a test.
struct Ranks {
    children: Vec<Child>,
    logs: PathBuf,
}

/// How a rank is started.
struct Start<'a> {
    pipeline: &'a Path,
    run: &'a Path,
    size: usize,
    port: u16,
    more: &'a [&'a str],
}

impl Start<'_> {
    fn command(&self, rank: usize) -> Command {
        let mut command = Command::new(binary());
        command.current_dir(root()).args(["pretrain", "--no-bar"]).arg(self.pipeline).arg("--run").arg(self.run);
        command.args(self.more.iter().flat_map(|setting| ["--set", setting]));
        self.tell(&mut command, rank);
        command
    }

    /// Says in the environment which rank it is.
    fn tell(&self, command: &mut Command, rank: usize) {
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", self.size.to_string());
        command.env("LOCAL_RANK", rank.to_string()).env("LOCAL_WORLD_SIZE", self.size.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", self.port.to_string());
        command.env("OMP_WAIT_POLICY", "PASSIVE");
    }
}

fn start(pipeline: &Path, run: &Path, size: usize, more: &[&str]) -> Ranks {
    let all = Start { pipeline, run, size, port: free_port(), more };
    Ranks::of(run, (0..size).map(|rank| all.command(rank)))
}

impl Ranks {
    /// Starts them; what they say goes to files beside the run.
    fn of(run: &Path, commands: impl Iterator<Item = Command>) -> Self {
        let logs = run.with_extension("logs");
        fs::create_dir_all(&logs).expect("a folder");
        let mut ranks = Self { children: Vec::new(), logs };
        commands.for_each(|command| ranks.add(command));
        ranks
    }

    fn add(&mut self, mut command: Command) {
        let log = File::create(self.logs.join(self.children.len().to_string())).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.children.push(command.spawn().expect("the program starts"));
    }

    fn log(&self, rank: usize) -> String {
        fs::read_to_string(self.logs.join(rank.to_string())).unwrap_or_default()
    }

    /// Waits until a rank has ended.
    fn end_of(&mut self, rank: usize) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.children[rank].try_wait().expect("a child") {
                return status;
            }
            assert!(started.elapsed() < TOO_LONG, "rank {rank} does not end: {}", self.log(rank));
            sleep(Duration::from_millis(20));
        }
    }

    /// Exit code and last words of each.
    fn ends(&mut self) -> Vec<(Option<i32>, String)> {
        (0..self.children.len()).map(|rank| (self.end_of(rank).code(), self.log(rank))).collect()
    }

    fn succeed(mut self) {
        for (rank, (code, log)) in self.ends().into_iter().enumerate() {
            assert_eq!(code, Some(0), "rank {rank}: {log}");
        }
    }

    /// Waits for a moment, while all are alive.
    fn wait_for(&mut self, moment: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !moment(self) {
            for rank in 0..self.children.len() {
                let ended = self.children[rank].try_wait().expect("a child");
                assert!(ended.is_none(), "rank {rank} ended: {}", self.log(rank));
            }
            assert!(started.elapsed() < TOO_LONG, "the moment does not come: {}", self.log(0));
            sleep(Duration::from_millis(1));
        }
    }

    fn signal(&self, rank: usize, signal: &str) {
        let status = Command::new("kill").arg(signal).arg(self.children[rank].id().to_string()).status();
        assert!(status.expect("kill starts").success());
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Losses and objectives are the same but for rounding, and the very same samples were trained on.
fn assert_same_run(one: &Path, other: &Path, steps_done: usize) {
    let (left, right) = (records(one, "step"), records(other, "step"));
    assert_eq!((left.len(), right.len()), (steps_done, steps_done));
    let number = |record: &serde_json::Value, key: &str| record[key].as_f64().unwrap_or(f64::NAN);
    for (left, right) in left.iter().zip(&right) {
        let (found, expected) = (number(right, "loss"), number(left, "loss"));
        assert!((found / expected - 1.0).abs() < 1e-4, "step {}: {found}, alone {expected}", left["step"]);
        for key in ["ids", "images", "pass", "label_entropy"] {
            assert_eq!(left[key], right[key], "step {}: {key}", left["step"]);
        }
    }
    let (left, right) = (records(one, "cycle"), records(other, "cycle"));
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(&right) {
        assert!((number(left, "objective") / number(right, "objective") - 1.0).abs() < 1e-4, "{left} {right}");
        assert_eq!(left["sizes"], right["sizes"]);
    }
}

/// What a run has learnt of the samples of each shard that was read to its end.
fn indices(run: &Path) -> Vec<ShardIndex> {
    let index = Index::new(run.join("index"));
    let shards = ["shards/photos-000000.tar", "shards/fashion-test.tar.zst"];
    shards.iter().filter_map(|shard| index.shard(shard).expect("a readable index")).collect()
}

#[test]
fn two_and_four_ranks_have_the_losses_of_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = in_step(folder.path(), "");
    for (name, settings, sizes) in [
        ("refill", &["train.steps=24"][..], &[2, 4][..]),
        ("rolling", &["train.steps=20", "cluster.refresh=rolling", "bank.encoder=student"], &[2]),
        ("full", &["train.steps=20", "cluster.refresh=full", "bank.capacity=400", "cluster.k=5"], &[2]),
        ("overlap", &["train.steps=24", "cluster.overlap=true", "cluster.overlap_steps=3"], &[2]),
        (
            "classes",
            &["train.steps=20", "train.labels=classes", "stream.shards=[\"shards/fashion-test.tar.zst\"]"],
            &[2],
        ),
    ] {
        let alone = folder.path().join(name);
        pretrain(&pipeline, &alone, settings);
        let steps = if name == "refill" || name == "overlap" { 24 } else { 20 };
        for &size in sizes {
            let together = folder.path().join(format!("{name}-{size}"));
            start(&pipeline, &together, size, settings).succeed();
            assert_same_run(&alone, &together, steps);
            let [expected, found] = [&alone, &together].map(|run| indices(run));
            assert_eq!(found, expected, "{name}: {size} ranks know of the samples what one does");
            assert_eq!(expected.is_empty(), name == "classes", "that shard is longer than the run");
        }
    }
}

#[test]
fn ranks_killed_at_any_moment_and_started_again_train_on_every_sample_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Each rank has lanes and a shuffle buffer of its own here.
    let pipeline = crate::run::small_pipeline(folder.path());
    let undisturbed = folder.path().join("undisturbed");
    start(&pipeline, &undisturbed, 2, &[]).succeed();
    let run = folder.path().join("disturbed");
    type Moment = fn(&Path) -> bool;
    let moments: [(usize, Moment); 4] = [
        (1, |run| steps_done(run) >= 5),
        (0, |run| run.join("snapshots").read_dir().is_ok_and(|mut found| found.any(|entry| is_hidden(&entry)))),
        (1, |run| steps_done(run) >= 19),
        (0, |run| records(run, "cycle").len() >= 5),
    ];
    for (victim, moment) in moments {
        let mut ranks = start(&pipeline, &run, 2, &["ranks.timeout_s=20"]);
        ranks.wait_for(|_| moment(&run));
        ranks.children[victim].kill().expect("kill -9");
        let survivor = 1 - victim;
        let code = ranks.end_of(survivor).code();
        let log = ranks.log(survivor);
        assert!(code == Some(4) && log.contains(&format!("rank {victim}")), "{code:?}: {log}");
        assert!(log.contains("start all ranks again"), "{log}");
    }
    start(&pipeline, &run, 2, &[]).succeed();
    let ids = |run: &Path| steps(run).into_iter().map(|(step, _, ids)| (step, ids)).collect::<Vec<_>>();
    assert_eq!(ids(&run), ids(&undisturbed));
    assert_eq!(ids(&run).len(), 48);
}

fn is_hidden(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(".step"))
}

#[test]
fn torchrun_starts_them_again_when_one_is_killed() {
    let Some(python) = interop::python("torchrun_starts_them_again_when_one_is_killed") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = in_step(folder.path(), "");
    let (alone, run) = (folder.path().join("alone"), folder.path().join("run"));
    pretrain(&pipeline, &alone, &["train.steps=40"]);
    let mut command = Command::new(python.with_file_name("torchrun"));
    command.current_dir(root()).env_remove("LD_LIBRARY_PATH").env_remove("PYTHONPATH");
    command.args(["--no-python", "--nproc-per-node", "2", "--max-restarts", "2", "--"]).arg(binary());
    command.args(["pretrain", "--no-bar"]).arg(&pipeline).arg("--run").arg(&run).args(["--steps", "40"]);
    let mut torchrun = Ranks::of(&run, std::iter::once(command));
    torchrun.wait_for(|_| steps_done(&run) >= 12);
    let workers = workers_of(torchrun.children[0].id());
    assert_eq!(workers.len(), 2);
    let killed = Command::new("kill").args(["-9", &workers[1].to_string()]).status().expect("kill starts");
    assert!(killed.success());
    torchrun.succeed();
    assert_same_run(&alone, &run, 40);
}

#[test]
fn windows_of_ranks_are_balanced_and_their_clock_is_that_of_rank_0() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = crate::run::small_pipeline(folder.path());
    let run = folder.path().join("run");
    let balanced = ["train.balance=sample", "train.balance_window=4", "train.steps=40", "snapshot.every_steps=0"];
    start(&pipeline, &run, 2, &[&balanced[..], &["snapshot.every_minutes=0.02"]].concat()).succeed();
    assert_eq!(steps_done(&run), 40);
    // One at the end, and some while it went on.
    assert!(records(&run, "snapshot").len() >= 2, "{:?}", records(&run, "snapshot"));
}

#[test]
fn a_rank_that_fails_is_named_with_its_reason_and_one_that_hangs_with_where_it_was() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = in_step(folder.path(), "");
    let run = folder.path().join("failing");
    fs::create_dir_all(run.join("ledger.rank-1.jsonl")).expect("a folder in the way");
    let ends = start(&pipeline, &run, 3, &["train.batch_size=18"]).ends();
    assert_eq!(ends.iter().map(|(code, _)| *code).collect::<Vec<_>>(), [Some(4), Some(3), Some(4)], "{ends:?}");
    for rank in [0, 2] {
        let log = &ends[rank].1;
        assert!(log.contains("rank 1 ") && log.contains("ended by an error") && log.contains("ledger.rank-1"), "{log}");
    }

    // Whoever reads this never comes to its end.
    let run = folder.path().join("hanging");
    fs::create_dir_all(&run).expect("a folder");
    let pipe = run.join("ledger.rank-1.jsonl");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo starts").success());
    let ends = start(&pipeline, &run, 3, &["train.batch_size=18", "ranks.timeout_s=4"]).ends();
    for (rank, (code, log)) in ends.into_iter().enumerate() {
        assert!(code == Some(4) && log.contains("rank 1 did not come to a call"), "rank {rank}, {code:?}: {log}");
    }
}

/// The processes that a process has started.
fn workers_of(parent: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).expect("a process");
    children.split_whitespace().map(|id| id.parse().expect("a number")).collect()
}

#[test]
fn four_ranks_go_on_as_two_and_as_three_and_lose_and_repeat_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = crate::run::small_pipeline(folder.path());
    let run = folder.path().join("run");
    let settings = ["train.batch_size=12", "bank.capacity=400", "cluster.refresh=rolling", "cluster.every_steps=500"];
    let with_steps = |size: usize, steps: u64| {
        let steps = format!("train.steps={steps}");
        start(&pipeline, &run, size, &[&settings[..], &[&steps]].concat()).succeed();
    };
    // The bank is filled by the first pass; training begins with the second, and the bank knows when it met each sample last.
    with_steps(4, 5);
    with_steps(2, 9);
    let trained_at = |size: usize| -> Vec<u64> {
        let name = |rank: usize| if rank == 0 { "bank.arrow".into() } else { format!("bank.rank-{rank}.arrow") };
        let paths: Vec<PathBuf> = (0..size).map(|rank| run.join("latest").join(name(rank))).collect();
        let bank = Bank::read(&paths, 400, &World::alone()).expect("a bank");
        bank.steps().to_vec()
    };
    let after_two = trained_at(2);
    let photographs = after_two.len();
    with_steps(3, 13);
    let last = records(&run, "step").pop().expect("steps");
    assert_eq!((last["step"].as_u64(), last["images"].as_u64()), (Some(13), Some(13 * 12)));
    // A batch of each step: twelve rows of the bank are of that step, unless some of them came again.
    let all = trained_at(3);
    assert_eq!(all.len(), photographs);
    for step in 1..13 {
        assert_eq!(all.iter().filter(|&&at| at == step).count(), 12, "step {step}: {all:?}");
    }
    // To the end of the pass and a little further: every photograph was met.
    with_steps(2, (photographs as u64).div_ceil(12) + 2);
    let met = trained_at(2).iter().filter(|&&at| at > 0).count();
    assert!(met + 12 >= photographs, "{met} of {photographs}");
}

#[test]
fn sigterm_on_one_rank_has_all_of_them_snapshot_and_end() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = in_step(folder.path(), "");
    let run = folder.path().join("run");
    let mut ranks = start(&pipeline, &run, 3, &["train.batch_size=18", "train.steps=5000", "snapshot.every_steps=0"]);
    ranks.wait_for(|_| steps_done(&run) >= 10);
    ranks.signal(2, "-TERM");
    for (rank, (code, log)) in ranks.ends().into_iter().enumerate() {
        assert_eq!(code, Some(130), "rank {rank}: {log}");
        assert!(log.contains("snapshot written to"), "rank {rank}: {log}");
    }
    let snapshot = run.join("latest");
    for name in ["bank.arrow", "bank.rank-1.arrow", "bank.rank-2.arrow", "cursor.rank-2.json", "model.safetensors"] {
        assert!(snapshot.join(name).is_file(), "{name}");
    }
    let manifest = fs::read_to_string(snapshot.join("manifest.json")).expect("a manifest");
    assert!(manifest.contains("bank.rank-2.arrow"), "{manifest}");
}

#[test]
fn the_page_of_rank_0_shows_all_ranks_and_its_buttons_reach_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = in_step(folder.path(), "");
    let run = folder.path().join("run");
    // With two lanes the ranks share each of two shards, and what is lost in it.
    let more = [
        "observe.page=127.0.0.1:0",
        "stream.lanes=2",
        "stream.shards=[\"shards/photos-000000.tar\", \"shards/damage.tar\"]",
        "train.steps=50000",
        "snapshot.every_steps=0",
    ];
    let all = Start { pipeline: &pipeline, run: &run, size: 2, port: free_port(), more: &more };
    let mut other = Ranks::of(&run, std::iter::once(all.command(1)));
    let mut page = Served::start(&mut all.command(0));
    let state = page.until("two ranks, and a clustering", |state| {
        let ranks = state["slowest_ranks"].as_array();
        let decodes = |rank: &Value| rank["images_per_s"].as_f64().is_some_and(|rate| rate > 0.0);
        state["pass"].as_u64() >= Some(2) && ranks.is_some_and(|ranks| ranks.len() == 2 && ranks.iter().all(decodes))
    });
    assert_eq!(state["ranks"], 2);
    let numbers = String::from_utf8(page.get("/metrics")).expect("text");
    assert!(numbers.lines().any(|line| line == "shoal_ranks 2"), "{numbers}");
    // Where each rank had half of a shard, the photographs of both are found.
    let clusters = page.json("/api/clusters?from=0&count=8");
    let members = clusters["clusters"].as_array().expect("clusters").iter().flat_map(|one| one["members"].as_array());
    let ids: Vec<&str> = members.flatten().filter_map(|member| member["id"].as_str()).collect();
    let found = page.json(&format!("/api/thumbnails?ids={}", ids.join(",")));
    assert_eq!(found.as_object().map(|found| found.len() > 10), Some(true), "{found}");
    let lost: usize = page.json("/api/ledger").as_array().map_or(0, Vec::len);
    let of_both = [run.join("ledger.jsonl"), run.join("ledger.rank-1.jsonl")].map(|path| ledger::read(&path));
    let of_both = of_both.map(|entries| entries.expect("a ledger").len());
    assert!(of_both.iter().all(|&count| count > 0) && lost > 0, "{of_both:?}, {lost}");

    assert_eq!(page.act("pause").0, 200);
    page.until("a pause", |state| state["stage"]["stage"] == "pause");
    let before = steps_done(&run);
    sleep(Duration::from_millis(500));
    assert_eq!(steps_done(&run), before);
    assert_eq!(page.act("resume").0, 200);
    page.until("further steps", |_| steps_done(&run) > before);
    assert_eq!(page.act("stop").0, 200);
    assert_eq!((page.end().code(), other.end_of(0).code()), (Some(130), Some(130)));
    assert!(other.log(0).contains("snapshot written to"), "{}", other.log(0));
}

#[test]
fn a_frozen_rank_is_named_and_does_not_come_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = in_step(folder.path(), "");
    let run = folder.path().join("run");
    let mut ranks = start(&pipeline, &run, 2, &["train.steps=5000", "ranks.timeout_s=5"]);
    ranks.wait_for(|_| steps_done(&run) >= 5);
    ranks.signal(1, "-STOP");
    let code = ranks.end_of(0).code();
    let log = ranks.log(0);
    assert!(code == Some(4) && log.contains("rank 1 ") && log.contains("no sign of life"), "{code:?}: {log}");
    ranks.signal(1, "-CONT");
    assert_eq!(ranks.end_of(1).code(), Some(4), "{}", ranks.log(1));
}

#[test]
fn a_late_rank_is_waited_for_by_name_and_a_missing_one_given_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = in_step(folder.path(), "");
    let run = folder.path().join("run");
    let all = Start { pipeline: &pipeline, run: &run, size: 2, port: free_port(), more: &["train.steps=3"] };
    let mut ranks = Ranks::of(&run, std::iter::once(all.command(0)));
    ranks.wait_for(|ranks| ranks.log(0).contains("waiting for rank 1 of 2"));
    ranks.add(all.command(1));
    ranks.succeed();

    // Rank 0 itself, to which the others want to speak.
    let run = folder.path().join("headless");
    let all = Start { run: &run, port: free_port(), ..all };
    let mut ranks = Ranks::of(&run, std::iter::once(all.command(1)));
    let place = format!("rank 1 has waited for 127.0.0.1:{}", all.port);
    ranks.wait_for(|ranks| ranks.log(0).contains(&place));
    ranks.add(all.command(0));
    ranks.succeed();

    let alone = Start { port: free_port(), size: 3, more: &["ranks.timeout_s=2", "train.batch_size=18"], ..all };
    let (code, log) = Ranks::of(&run, std::iter::once(alone.command(0))).ends().remove(0);
    assert!(code == Some(4) && log.contains("ranks 1 and 2 of 3 did not come within 2 s"), "{code:?}: {log}");
    let mut lost = alone.command(1);
    lost.env("MASTER_ADDR", "rank-0.invalid");
    let (code, log) = Ranks::of(&run, std::iter::once(lost)).ends().remove(0);
    assert!(code == Some(4) && log.contains("rank-0.invalid") && log.contains("does not reach"), "{code:?}: {log}");
}

#[test]
fn ranks_that_do_not_mean_the_same_run_are_told_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = in_step(folder.path(), "");
    let run = folder.path().join("run");
    let more = ["train.steps=3", "ranks.timeout_s=6"];
    let other_settings = ["train.steps=3", "ranks.timeout_s=6", "train.lr=0.5"];
    let elsewhere = folder.path().join("elsewhere");
    let all = || Start { pipeline: &pipeline, run: &run, size: 2, port: free_port(), more: &more };
    type Second<'a> = Box<dyn Fn(&Start<'_>) -> Command + 'a>;
    let cases: [(&str, Second<'_>); 3] = [
        ("same WORLD_SIZE", Box::new(|all| Start { size: 4, more: &more, ..*all }.command(1))),
        ("another program, pipeline", Box::new(|all| Start { more: &other_settings, ..*all }.command(1))),
        ("does not see the run folder of rank 0", Box::new(|all| Start { run: &elsewhere, ..*all }.command(1))),
    ];
    for (expected, second) in cases {
        let all = all();
        let mut ranks = Ranks::of(&run, [all.command(0), second(&all)].into_iter());
        let ends = ranks.ends();
        assert!(ends.iter().any(|(code, log)| *code == Some(2) && log.contains(expected)), "{expected}: {ends:?}");
        assert!(ends.iter().all(|(code, _)| matches!(code, Some(2 | 4))), "{expected}: {ends:?}");
    }
    let three = ["ranks.timeout_s=4", "train.batch_size=18"];
    let doubled = Start { size: 3, more: &three, ..all() };
    let mut ranks = Ranks::of(&run, [0, 1, 1].into_iter().map(|rank| doubled.command(rank)));
    let ends = ranks.ends();
    let is_refused = |(code, log): &(Option<i32>, String)| *code == Some(2) && log.contains("claim to be rank 1 of 3");
    assert!(ends.iter().any(is_refused), "{ends:?}");
    assert!(ends.iter().filter(|end| !is_refused(end)).all(|(code, log)| *code == Some(4) && log.contains("rank 2")));

    let busy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = busy.local_addr().expect("an address").port();
    let (code, log) = Ranks::of(&run, std::iter::once(Start { port, ..all() }.command(0))).ends().remove(0);
    assert!(code == Some(2) && log.contains(&format!(":{port}")) && log.contains("MASTER_PORT"), "{code:?}: {log}");
    let odd = Start { size: 3, ..all() };
    let (code, log) = Ranks::of(&run, std::iter::once(odd.command(0))).ends().remove(0);
    assert!(code == Some(2) && log.contains("train.batch_size = 16") && log.contains("3 ranks"), "{code:?}: {log}");
}

/// Two hosts on one machine: network namespaces with a cable between them.
struct Hosts {
    names: [String; 2],
}

impl Hosts {
    /// None, with a line, where this cannot be had.
    fn connect(test: &str) -> Option<Self> {
        let id = std::process::id();
        let hosts = Self { names: [format!("shoal-a{id}"), format!("shoal-b{id}")] };
        let [a, b] = &hosts.names;
        let (left, right) = (format!("sa{id}"), format!("sb{id}"));
        let made = ip(&["netns", "add", a])
            && ip(&["netns", "add", b])
            && ip(&["link", "add", &left, "netns", a, "type", "veth", "peer", "name", &right, "netns", b])
            && hosts.set_up(0, &left, "10.77.0.1/24")
            && hosts.set_up(1, &right, "10.77.0.2/24");
        if !made {
            // Past the capture of the test runner.
            let _ = writeln!(std::io::stderr(), "skipped {test}: no network namespaces (they take root and iproute2)");
            return None;
        }
        Some(hosts)
    }

    fn set_up(&self, host: usize, link: &str, address: &str) -> bool {
        let name = &self.names[host];
        ip(&["-n", name, "addr", "add", address, "dev", link])
            && ip(&["-n", name, "link", "set", link, "up"])
            && ip(&["-n", name, "link", "set", "lo", "up"])
    }

    /// The command, on one of the hosts.
    fn on(&self, host: usize, command: &Command) -> Command {
        let mut there = Command::new("ip");
        there.args(["netns", "exec", &self.names[host]]).arg(command.get_program()).args(command.get_args());
        there.current_dir(root());
        there.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        there
    }

    fn cut(&self) {
        let link = format!("sb{}", std::process::id());
        assert!(ip(&["-n", &self.names[1], "link", "set", &link, "down"]));
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.names.iter().for_each(|name| _ = ip(&["netns", "del", name]));
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[test]
fn two_hosts_train_together_and_a_cut_cable_ends_both_with_what_they_know() {
    let test = "two_hosts_train_together_and_a_cut_cable_ends_both_with_what_they_know";
    let Some(hosts) = Hosts::connect(test) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = in_step(folder.path(), "");
    let (alone, run) = (folder.path().join("alone"), folder.path().join("run"));
    let on_hosts = |more: &[&str], run: &Path| {
        let all = Start { pipeline: &pipeline, run, size: 2, port: 29_617, more };
        let commands = (0..2).map(|rank| {
            let mut command = all.command(rank);
            command.env("MASTER_ADDR", "10.77.0.1").env("LOCAL_RANK", "0").env("LOCAL_WORLD_SIZE", "1");
            hosts.on(rank, &command)
        });
        Ranks::of(run, commands)
    };
    pretrain(&pipeline, &alone, &["train.steps=12"]);
    on_hosts(&["train.steps=12"], &run).succeed();
    assert_same_run(&alone, &run, 12);

    let mut ranks = on_hosts(&["train.steps=5000", "ranks.timeout_s=6"], &run);
    ranks.wait_for(|_| steps_done(&run) >= 20);
    hosts.cut();
    let ends = ranks.ends();
    assert!(ends.iter().all(|(code, _)| *code == Some(4)), "{ends:?}");
    let names_rank_1 = |log: &str| log.lines().any(|line| line.starts_with("error:") && line.contains("rank 1"));
    assert!(ends.iter().all(|(_, log)| names_rank_1(log)), "{ends:?}");
}
