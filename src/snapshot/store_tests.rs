//! A kill is simulated at every stage of writing by making the state of the disk that it leaves.

use super::*;
use crate::snapshot::MANIFEST;
use serde_json::json;
use tempfile::TempDir;

fn run() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn store(run: &TempDir) -> Result<Store> {
    Store::open(run.path(), &SnapshotPlan { keep_last: 2, keep_every: 0, ..SnapshotPlan::default() })
}

fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(folder.join(name), text).map_err(|e| Error::file("write", folder, &e))
}

/// A snapshot of two files.
fn write(store: &Store, step: u64) -> Result<SnapshotInfo> {
    store.write(step, json!({ "pass": 1 }), |folder| {
        put(folder, "model.safetensors", &format!("weights of step {step}"))?;
        put(folder, "cursor.json", "{}")?;
        Ok(Vec::new())
    })
}

fn latest_step(store: &Store) -> Result<Option<u64>> {
    Ok(store.latest()?.map(|snapshot| snapshot.step()))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder is readable");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_snapshot_is_found_under_every_name_it_has() -> Result<()> {
    let run = run();
    let store = store(&run)?;
    assert_eq!(store.latest()?, None);
    let info = write(&store, 500)?;
    assert_eq!(info.relative, "snapshots/step-000000500");
    assert_eq!(info.bytes, "weights of step 500{}".len() as u64);
    assert_eq!(fs::read_link(run.path().join("latest")).expect("a link"), Path::new(&info.relative));

    let by_run = Snapshot::open(run.path())?;
    assert_eq!(by_run, Snapshot::open(&info.path)?);
    assert_eq!(by_run.manifest.extra, json!({ "pass": 1 }));
    assert_eq!(Snapshot::open(&run.path().join("latest"))?.step(), 500);
    let model = fs::read_to_string(by_run.file("model.safetensors")?).expect("the file");
    assert_eq!(model, "weights of step 500");
    assert!(by_run.file("optimizer.safetensors").is_err());
    Ok(())
}

#[test]
fn damage_of_any_kind_falls_back_to_the_older_one() -> Result<()> {
    type Damage = fn(&Path) -> io::Result<()>;
    let damages: [(&str, Damage); 6] = [
        ("no manifest", |folder| fs::remove_file(folder.join(MANIFEST))),
        ("half a manifest", |folder| {
            let text = fs::read(folder.join(MANIFEST))?;
            fs::write(folder.join(MANIFEST), &text[..text.len() / 2])
        }),
        ("a file cut short", |folder| fs::write(folder.join("model.safetensors"), "weights of")),
        ("one flipped bit", |folder| fs::write(folder.join("model.safetensors"), "weights of step 201")),
        ("a file missing", |folder| fs::remove_file(folder.join("cursor.json"))),
        ("an empty folder", |folder| {
            fs::remove_dir_all(folder)?;
            fs::create_dir(folder)
        }),
    ];
    for (name, damage) in damages {
        let run = run();
        let store = store(&run)?;
        write(&store, 100)?;
        let newest = write(&store, 200)?;
        damage(&newest.path).expect("the damage is done");
        assert_eq!(latest_step(&store)?, Some(100), "{name}");
        let link = fs::read_link(run.path().join("latest")).expect("a link");
        assert_eq!(link, Path::new("snapshots/step-000000100"), "{name}");
        assert!(Snapshot::open(&newest.path).is_err(), "{name}");

        write(&store, 200)?;
        assert_eq!(latest_step(&store)?, Some(200), "the damaged one is replaced after {name}");
    }
    Ok(())
}

#[test]
fn a_run_whose_snapshots_are_all_damaged_does_not_begin_anew() -> Result<()> {
    let run = run();
    let store = store(&run)?;
    let info = write(&store, 100)?;
    fs::remove_file(info.path.join(MANIFEST)).expect("the manifest is there");
    let error = store.latest().expect_err("there are snapshots, but none is whole");
    assert!(error.to_string().contains("no snapshot in"), "{error}");
    assert!(Snapshot::open(run.path()).is_err());
    Ok(())
}

#[test]
fn a_kill_while_files_are_written_leaves_nothing_behind() -> Result<()> {
    let run = run();
    write(&store(&run)?, 100)?;
    let aside = run.path().join("snapshots/.step-000000200.tmp-4711");
    fs::create_dir(&aside).expect("a folder");
    put(&aside, "model.safetensors", "half of the wei")?;

    let store = store(&run)?;
    assert_eq!(latest_step(&store)?, Some(100));
    assert_eq!(names(&run.path().join("snapshots")), ["step-000000100"]);
    Ok(())
}

#[test]
fn a_kill_before_latest_moves_is_mended() -> Result<()> {
    let run = run();
    let store = store(&run)?;
    write(&store, 100)?;
    write(&store, 200)?;
    store.point_latest_to(100)?;
    std::os::unix::fs::symlink("nowhere", run.path().join(".latest.tmp")).expect("a link left over");
    assert_eq!(latest_step(&store)?, Some(200));
    assert_eq!(Snapshot::open(&run.path().join("latest"))?.step(), 200);
    Ok(())
}

#[test]
fn a_kill_while_a_snapshot_is_replaced_keeps_the_old_one() -> Result<()> {
    let run = run();
    let path = write(&store(&run)?, 100)?.path;
    fs::rename(&path, run.path().join("snapshots/.step-000000100.replaced-4711")).expect("renamed");
    assert_eq!(latest_step(&store(&run)?)?, Some(100));
    Ok(())
}

#[test]
fn a_kill_while_an_old_snapshot_is_deleted_is_finished_by_the_next() -> Result<()> {
    let run = run();
    let old = write(&store(&run)?, 100)?.path;
    write(&store(&run)?, 200)?;
    fs::rename(&old, run.path().join("snapshots/.step-000000100.deleted-4711")).expect("renamed");
    assert_eq!(latest_step(&store(&run)?)?, Some(200));
    assert_eq!(names(&run.path().join("snapshots")), ["step-000000200"]);
    Ok(())
}

#[test]
fn a_failed_write_leaves_the_older_snapshots_as_they_were() -> Result<()> {
    let run = run();
    let store = store(&run)?;
    write(&store, 100)?;
    let error = store.write(200, json!(null), |folder| {
        put(folder, "model.safetensors", "begun")?;
        Err(Error::data("the bank cannot be written"))
    });
    assert_eq!(error.expect_err("the closure failed").to_string(), "the bank cannot be written");
    let nested = store.write(200, json!(null), |folder| {
        fs::create_dir(folder.join("inner")).map_err(|e| Error::file("create", folder, &e))?;
        Ok(Vec::new())
    });
    assert!(nested.expect_err("folders are refused").to_string().contains("inner"));
    assert_eq!(names(&run.path().join("snapshots")), ["step-000000100"]);
    assert_eq!(latest_step(&store)?, Some(100));
    Ok(())
}

#[test]
fn a_full_disk_is_called_by_its_name() {
    let mib = 1 << 20;
    let explained =
        |free| explain(Error::data("cannot write bank.arrow"), Path::new("runs/a"), 10 * mib, 40 * mib, Some(free));
    let full = explained(3 * mib);
    assert!(full.to_string().contains("runs/a/snapshots"), "{full}");
    assert!(full.to_string().contains("at least 30.00 MiB more are needed, 3.00 MiB are free"), "{full}");
    assert!(full.hint().is_some_and(|hint| hint.contains("untouched")));
    assert_eq!(explained(90 * mib).to_string(), "cannot write bank.arrow");
}

#[test]
fn old_snapshots_go_but_never_the_newest() -> Result<()> {
    let run = run();
    let plan = SnapshotPlan { keep_last: 2, keep_every: 300, ..SnapshotPlan::default() };
    let store = Store::open(run.path(), &plan)?;
    for step in (100..=800).step_by(100) {
        write(&store, step)?;
    }
    let kept = ["step-000000300", "step-000000600", "step-000000700", "step-000000800"];
    assert_eq!(names(&run.path().join("snapshots")), kept);
    Ok(())
}

#[test]
fn two_processes_never_hold_the_same_run() -> Result<()> {
    let run = run();
    let first = store(&run)?;
    let error = store(&run).expect_err("the run is held");
    assert!(error.to_string().contains("in use by process"), "{error}");
    drop(first);
    store(&run)?;
    Ok(())
}
