//! Killed at any moment and started again, a run is the run that was never killed: the same losses to the last bit, the
//! same samples in the same order.

use crate::run::{records, small_pipeline, start, steps};
use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

const TOO_LONG: Duration = Duration::from_secs(120);

/// Waits until `moment` has come or the run has ended by itself; whether it came.
pub fn wait_for(child: &mut Child, moment: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if moment() {
            return true;
        }
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        assert!(started.elapsed() < TOO_LONG, "the run stands still");
        sleep(Duration::from_micros(200));
    }
}

fn finish(pipeline: &Path, run: &Path, more: &[&str]) {
    let status = start(pipeline, run, more).wait().expect("a child");
    assert!(status.success(), "{status}");
}

fn undisturbed(folder: &Path, more: &[&str]) -> Vec<(u64, u64, String)> {
    let run = folder.join("undisturbed");
    finish(&small_pipeline(folder), &run, more);
    let steps = steps(&run);
    assert_eq!(steps.last().map(|step| step.0), Some(48));
    assert!(records(&run, "step").last().expect("steps")["pass"].as_u64() >= Some(2), "passes were crossed");
    steps
}

/// Kills the run at each of `moments`, restarts it, and lets it end; its steps.
fn disturbed(folder: &Path, more: &[&str], moments: &[&dyn Fn(&Path) -> bool]) -> Vec<(u64, u64, String)> {
    let pipeline = small_pipeline(folder);
    let run = folder.join("disturbed");
    for moment in moments {
        let mut child = start(&pipeline, &run, more);
        assert!(wait_for(&mut child, || moment(&run)), "the moment did not come");
        child.kill().expect("kill -9");
        child.wait().expect("a child");
    }
    finish(&pipeline, &run, more);
    steps(&run)
}

pub fn steps_done(run: &Path) -> u64 {
    steps(run).last().map_or(0, |step| step.0)
}

/// Whether a snapshot is being written: its hidden folder is there and not empty.
fn is_writing_snapshot(run: &Path) -> bool {
    let Ok(entries) = fs::read_dir(run.join("snapshots")) else { return false };
    entries.flatten().any(|entry| {
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        hidden && fs::read_dir(entry.path()).is_ok_and(|mut files| files.next().is_some())
    })
}

#[test]
fn killed_at_any_step_it_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let expected = undisturbed(folder.path(), &[]);
    // Before the first snapshot, just after one, inside the second pass, and late.
    let moments: [&dyn Fn(&Path) -> bool; 4] =
        [&|run| steps_done(run) >= 3, &|run| steps_done(run) >= 15, &|run| steps_done(run) >= 24, &|run| {
            steps_done(run) >= 41
        }];
    assert_eq!(disturbed(folder.path(), &[], &moments), expected);
}

#[test]
fn killed_while_it_writes_a_snapshot_it_goes_on_from_the_one_before() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let expected = undisturbed(folder.path(), &[]);
    let moments: [&dyn Fn(&Path) -> bool; 2] =
        [&is_writing_snapshot, &|run| steps_done(run) >= 20 && is_writing_snapshot(run)];
    assert_eq!(disturbed(folder.path(), &[], &moments), expected);
}

/// Killed after step 25 and started again, with each of these settings.
fn goes_on_with(variants: &[&[&str]]) {
    for more in variants {
        let more: Vec<&str> = more.iter().flat_map(|setting| ["--set", setting]).collect();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let expected = undisturbed(folder.path(), &more);
        let moment: &dyn Fn(&Path) -> bool = &|run| steps_done(run) >= 25;
        assert_eq!(disturbed(folder.path(), &more, &[moment]), expected, "{more:?}");
    }
}

#[test]
fn balanced_windows_and_full_refreshes_go_on_too() {
    goes_on_with(&[
        &["train.balance=sample", "train.balance_window=3"],
        &["cluster.refresh=full", "bank.capacity=400"],
        &["cluster.refresh=full", "bank.capacity=400", "cluster.every_steps=0"],
        &["train.head=match", "cluster.start=warm"],
        &["cluster.refresh=rolling", "bank.encoder=student"],
        &["cluster.refresh=rolling", "bank.encoder=train"],
    ]);
}

#[test]
fn every_way_of_clustering_goes_on_too() {
    goes_on_with(&[
        // From step 18 a clustering is under way when step 21 is kept.
        &["cluster.overlap=true", "cluster.overlap_steps=4"],
        &["cluster.overlap=true", "cluster.overlap_steps=4", "cluster.refresh=full", "bank.capacity=400"],
        &["cluster.method=pic", "cluster.neighbours=3"],
        &["train.head=centroids", "bank.projection=32", "cluster.spherical=true", "cluster.start=plusplus"],
        &["cluster.coarse=2", "cluster.empties=odc", "cluster.small=4"],
    ]);
}

#[test]
fn labels_of_a_clustering_beside_training_take_over_at_the_step_that_was_fixed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = folder.path().join("beside");
    let overlap =
        ["--set", "cluster.overlap=true", "--set", "cluster.overlap_steps=4", "--set", "cluster.balanced=true"];
    finish(&small_pipeline(folder.path()), &run, &overlap);
    let cycles = records(&run, "cycle");
    let at: Vec<_> = cycles.iter().map(|record| record["step"].as_u64().expect("a number")).collect();
    assert_eq!(at, [0, 13, 22, 31, 40], "every 9 steps one begins, but for the first");
    for record in &cycles[1..] {
        let (took, stood) = (record["seconds"].as_f64(), record["stood_s"].as_f64());
        assert!(stood > Some(0.0) && took >= stood, "{took:?} {stood:?}");
    }
}

#[test]
fn asked_to_stop_it_writes_a_snapshot_and_exits_with_130() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let expected = undisturbed(folder.path(), &[]);
    let pipeline = small_pipeline(folder.path());
    let run = folder.path().join("interrupted");
    let mut child = start(&pipeline, &run, &[]);
    assert!(wait_for(&mut child, || steps_done(&run) >= 11));
    let asked = std::process::Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
    assert!(asked.expect("kill").success());
    assert_eq!(child.wait().expect("a child").code(), Some(130));
    let kept = steps_done(&run);
    assert!(run.join(format!("snapshots/step-{kept:09}/manifest.json")).is_file(), "the snapshot of step {kept}");
    finish(&pipeline, &run, &[]);
    assert_eq!(steps(&run), expected);
}

#[test]
fn asked_to_stop_before_the_first_labels_it_keeps_what_there_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let expected = undisturbed(folder.path(), &[]);
    let pipeline = small_pipeline(folder.path());
    let run = folder.path().join("early");
    let mut child = start(&pipeline, &run, &[]);
    assert!(wait_for(&mut child, || run.join("metrics.jsonl").is_file()));
    let asked = std::process::Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
    assert!(asked.expect("kill").success());
    assert_eq!(child.wait().expect("a child").code(), Some(130));
    finish(&pipeline, &run, &[]);
    assert_eq!(steps(&run), expected);
    let cycles: Vec<_> = records(&run, "cycle").iter().map(|record| record["cycle"].as_u64()).collect();
    assert_eq!(cycles, (1..=6).map(Some).collect::<Vec<_>>(), "each once");
}
