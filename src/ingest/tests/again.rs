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

/// Writes a shard anew in place of the one that was there.
fn rewrite(path: &Path, name: &str, count: usize) {
    let aside = path.with_extension("aside");
    std::fs::write(&aside, samples(name, count)).unwrap();
    std::fs::rename(&aside, path).unwrap();
}

#[test]
fn a_shard_rewritten_between_stop_and_restart_is_not_gone_on_with() {
    for (order, shuffle) in [(Order::Exact, 0), (Order::Exact, 9), (Order::Arrival, 9)] {
        for at in [3, 8, 15, 22] {
            let folder = tempfile::tempdir().unwrap();
            let shards: Vec<_> = (0..3).map(|i| (format!("{i}.tar"), samples(&format!("s{i}"), 12))).collect();
            let list = list_of(folder.path(), &shards);
            let plan = StreamPlan { lanes: 3, shuffle, order, ..plan() };
            let first = block_on(take(run(&list, &plan, &ledger(), 5, Cursor::default()), at + 1));
            let of_changed = |samples: &[RawSample]| samples.iter().filter(|s| s.meta.key.starts_with("s1/")).count();
            rewrite(&folder.path().join("1.tar"), "new", 60);
            let text = serde_json::to_string(&first[at].cursor).unwrap();
            let ledger_after = ledger();
            let resume = |cursor: &str| run(&list, &plan, &ledger_after, 5, serde_json::from_str(cursor).unwrap());
            let rest = block_on(take_passes(resume(&text), 0));

            let case = format!("{order:?}, shuffle {shuffle}, after {at}");
            // where samples come as they arrive the shard may not have begun: then it is read as it is by now, all of it
            let of_new = rest.iter().filter(|sample| sample.meta.key.starts_with("new/")).count();
            let may_be_new = order == Order::Arrival && of_changed(&first) == 0;
            assert!(of_new == 0 || (may_be_new && of_new == 60), "{case}: {of_new} of another version");
            assert_eq!(of_changed(&rest), 0, "{case}: what waited is gone with its shard");
            let kept = |samples: &[RawSample]| {
                let of_others = |key: &str| !key.starts_with("s1/") && !key.starts_with("new/");
                let kept = samples.iter().filter(|sample| of_others(&sample.meta.key)).cloned();
                kept.collect::<Vec<_>>()
            };
            let all = [kept(&first), kept(&rest)].concat();
            let others: Vec<String> =
                keys_of(&[12, 12, 12]).into_iter().filter(|key| !key.starts_with("s1/")).collect();
            assert_eq!(sorted_keys(&all), others, "{case}: of the others each once");
            if of_changed(&first) < 12 && of_new == 0 {
                assert!(
                    ledger_after.losses().contains_key(&Reason::ShardChanged),
                    "{case}: {:?}",
                    ledger_after.losses()
                );
            }

            // killed once more, it goes the same way
            for again in [0, rest.len() / 2] {
                let Some(sample) = rest.get(again) else { continue };
                let text = serde_json::to_string(&sample.cursor).unwrap();
                let last = block_on(take_passes(resume(&text), 0));
                let keys = |samples: &[RawSample]| samples.iter().map(|s| s.meta.key.clone()).collect::<Vec<_>>();
                if order == Order::Exact {
                    assert_eq!(keys(&last), keys(&rest[again + 1..]), "{case}, then after {again}");
                } else {
                    assert_eq!(sorted_keys(&last), sorted_keys(&rest[again + 1..]), "{case}, then after {again}");
                }
            }
        }
    }
}

#[test]
fn a_file_that_was_only_touched_is_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let list = list_of(folder.path(), &[("0.tar".to_owned(), samples("s0", 12))]);
    let plan = StreamPlan { lanes: 1, shuffle: 4, ..plan() };
    let whole = block_on(take(run(&list, &plan, &ledger(), 5, Cursor::default()), 24));
    rewrite(&folder.path().join("0.tar"), "s0", 12);
    let rest = block_on(take(run(&list, &plan, &ledger(), 5, whole[7].cursor.clone()), 16));
    let keys = |samples: &[RawSample]| samples.iter().map(|s| s.meta.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&rest), keys(&whole[8..]));
}
