//! What changes between a run and its restart: shards that fail for a while, addresses that are signed anew.

use super::*;

/// Three shards of 12 samples; the first comes from a command, and fails in its third sample while there is a file `down`.
fn with_a_failing_one(folder: &Path) -> ShardList {
    let path = |name: &str| folder.join(name).display().to_string();
    for shard in 0..3 {
        std::fs::write(path(&format!("{shard}.tar")), samples(&format!("s{shard}"), 12)).unwrap();
    }
    let (tar, down) = (path("0.tar"), path("down"));
    let command = format!("pipe:head -c 6000 {tar}; test -e {down} && exit 1; tail -c +6001 {tar}");
    ShardList::parse(&[command, path("1.tar"), path("2.tar")]).unwrap()
}

#[test]
fn a_shard_that_works_again_after_a_restart_moves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let list = with_a_failing_one(folder.path());
    let down = folder.path().join("down");
    for order in [Order::Exact, Order::Arrival] {
        let plan = StreamPlan { lanes: 2, shuffle: 6, order, ..plan() };
        std::fs::write(&down, "").unwrap();
        let first = block_on(take_passes(run(&list, &plan, &ledger(), 1_000, Cursor::default()), 0));
        let of_failing = |samples: &[RawSample]| samples.iter().filter(|s| s.meta.key.starts_with("s0/")).count();
        assert_eq!((first.len(), of_failing(&first)), (26, 2));
        std::fs::remove_file(&down).unwrap();
        for at in 0..first.len() {
            let rest = block_on(take_passes(run(&list, &plan, &ledger(), 1_000, first[at].cursor.clone()), 0));
            let keys = sorted_keys(first[..=at].iter().chain(&rest));
            let expected = if of_failing(&rest) + of_failing(&first[..=at]) > 2 { [12, 12, 12] } else { [2, 12, 12] };
            assert_eq!(keys, keys_of(&expected), "{order:?}, after {at}");
        }
    }
}

#[test]
fn a_shard_that_fails_in_what_was_there_before_stops_the_restart() {
    let folder = tempfile::tempdir().unwrap();
    let list = with_a_failing_one(folder.path());
    for order in [Order::Exact, Order::Arrival] {
        let plan = StreamPlan { lanes: 3, shuffle: 0, order, ..plan() };
        let first = block_on(take(run(&list, &plan, &ledger(), 1_000, Cursor::default()), 30));
        std::fs::write(folder.path().join("down"), "").unwrap();
        let stream = run(&list, &plan, &ledger(), 1_000, first[29].cursor.clone());
        let error = block_on(async { pin!(stream).next().await.unwrap().unwrap_err() });
        assert!(error.to_string().contains("cannot go on where the run was"), "{error}");
        std::fs::remove_file(folder.path().join("down")).unwrap();
        let rest = block_on(take_passes(run(&list, &plan, &ledger(), 1_000, first[29].cursor.clone()), 0));
        assert_eq!(sorted_keys(first.iter().chain(&rest)), keys_of(&[12, 12, 12]));
    }
}

#[test]
fn addresses_signed_anew_are_taken_with_the_next_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let sign = |token: &str| {
        let command = format!("pipe:TOKEN={token} ; cat {}/$TOKEN.tar", folder.path().display());
        std::fs::write(path("list.txt"), command).unwrap();
    };
    for name in ["old", "new"] {
        std::fs::write(path(&format!("{name}.tar")), samples(name, 4)).unwrap();
    }
    sign("old");
    let list = ShardList::parse(&[format!("@{}", path("list.txt"))]).unwrap();
    sign("new");
    assert_eq!(list.reload().unwrap().fingerprint(), list.fingerprint(), "the name is the same");
    let got = block_on(take(run(&list, &plan(), &ledger(), 1_000, Cursor::default()), 8));
    assert!(got[..4].iter().all(|sample| sample.meta.key.starts_with("old/")));
    assert!(got[4..].iter().all(|sample| sample.meta.key.starts_with("new/")));
}
