//! Helpers: a small run of the real program on the photographs of the repository.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// The program, in the root of the repository, so that `shards/` is found.
pub fn shoal() -> Command {
    let mut command = Command::new(binary());
    command.current_dir(root());
    // Tests run at once: threads of one that wait spinning would take the processor from the others.
    command.env("OMP_WAIT_POLICY", "PASSIVE");
    command
}

/// The program's file.
pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_shoal"))
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A pipeline for one CPU thread that takes seconds: one shard of photographs at 32 pixels, a pass every 15 steps or so.
pub const SMALL: &str = r#"
[stream]
shards = ["shards/photos-000000.tar"]
lanes = 2
shuffle = 40
[views]
size = 32
resize = 36
[model]
arch = "small"
[bank]
capacity = 128
[cluster]
every_steps = 9
k = 8
pca = 16
iterations = 5
[train]
batch_size = 16
steps = 48
lr = 0.02
[snapshot]
every_steps = 7
every_minutes = 0
[observe]
every_steps = 1
[device]
kind = "cpu"
threads = 1
decode_threads = 1
"#;

/// Writes [`SMALL`] into `folder`; its path.
pub fn small_pipeline(folder: &Path) -> PathBuf {
    let path = folder.join("small.toml");
    fs::write(&path, SMALL).expect("a temporary folder can be written");
    path
}

/// Starts `shoal pretrain` in the background.
pub fn start(pipeline: &Path, run: &Path, more: &[&str]) -> Child {
    std::process::Command::new(binary())
        .current_dir(root())
        .args(["pretrain", "--no-bar"])
        .arg(pipeline)
        .arg("--run")
        .arg(run)
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}

/// Runs `shoal pretrain` to its end, with settings such as `train.steps=9`.
pub fn pretrain(pipeline: &Path, run: &Path, settings: &[impl AsRef<str>]) {
    let settings = settings.iter().flat_map(|setting| ["--set", setting.as_ref()]);
    let done = std::process::Command::new(binary())
        .current_dir(root())
        .args(["pretrain", "--no-bar"])
        .arg(pipeline)
        .arg("--run")
        .arg(run)
        .args(settings)
        .output()
        .expect("the program starts");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// The records of one kind in `metrics.jsonl`, as they stand. A line in flight is left out.
pub fn records(run: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.filter(|record| record["kind"] == kind).collect()
}

/// For each step: its number, the bits of its loss, and the digest of the ids trained on.
pub fn steps(run: &Path) -> Vec<(u64, u64, String)> {
    let step = |record: &Value| {
        let loss = record["loss"].as_f64().expect("a loss");
        let ids = record["ids"].as_str().expect("a digest").to_owned();
        (record["step"].as_u64().expect("a step"), loss.to_bits(), ids)
    };
    records(run, "step").iter().map(step).collect()
}
