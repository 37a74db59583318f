//! Runs the body of a test in a process of its own, with so much memory and no more.
//!
//! The limit is on address space: an allocation beyond it fails, which ends the process, whether or not the memory would have
//! been touched.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::process::Command;

const INSIDE: &str = "SHOAL_TEST_SMALL_PROCESS";

/// Runs `body`, which is the test called `name`, with `room` bytes beyond what the program and its libraries take.
pub fn run(name: &str, room: u64, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        let limit = Rlimit { current: Some(address_space() + room), maximum: getrlimit(Resource::As).maximum };
        setrlimit(Resource::As, limit).unwrap();
        return body();
    }
    let itself = std::env::current_exe().unwrap();
    // one arena, since each reserves addresses that nobody uses
    let output = Command::new(itself)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .env("MALLOC_ARENA_MAX", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    let end = complained.char_indices().rev().nth(3_000).map_or(0, |(at, _)| at);
    assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}\n{}", output.status, &complained[end..]);
}

fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
