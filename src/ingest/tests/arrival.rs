//! The order of arrival: killed anywhere, nothing is lost and nothing comes twice.

use super::*;

#[test]
fn killed_anywhere_nothing_is_lost_and_nothing_comes_twice() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = [7, 3, 12, 1, 9, 20, 5];
    let total: usize = sizes.iter().sum();
    let list = mixed(folder.path(), &sizes);
    for (lanes, shuffle, every) in [(3, 10, 4), (2, 0, 1), (4, 64, 9), (1, 5, 1_000), (7, 16, 1_000)] {
        let plan = StreamPlan { lanes, shuffle, order: Order::Arrival, ..plan() };
        let first = block_on(take(run(&list, &plan, &ledger(), every, Cursor::default()), total + 5));
        for at in (0..total + 5).step_by(3) {
            let text = serde_json::to_string(&first[at].cursor).unwrap();
            let cursor: Cursor = serde_json::from_str(&text).unwrap();
            assert_eq!(cursor, first[at].cursor);
            // killed a second time, soon after
            let second = block_on(take(run(&list, &plan, &ledger(), every, cursor), 6));
            let rest = block_on(take_passes(run(&list, &plan, &ledger(), every, second[5].cursor.clone()), 1));
            for pass in 0..2 {
                let all = first[..=at].iter().chain(&second).chain(&rest).filter(|sample| sample.meta.pass == pass);
                assert_eq!(sorted_keys(all), keys_of(&sizes), "lanes {lanes}, shuffle {shuffle}, after {at}");
            }
        }
    }
}

#[test]
fn a_cursor_without_its_trail_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[9, 9]);
    let plan = StreamPlan { shuffle: 4, order: Order::Arrival, ..plan() };
    let sample = block_on(take(run(&list, &plan, &ledger(), 100, Cursor::default()), 5)).pop().unwrap();
    let good = serde_json::to_value(&sample.cursor).unwrap();
    let trail = good["trail"].as_array().unwrap();
    let portion_missing = [serde_json::json!(77)].iter().chain(trail).cloned().collect::<Vec<_>>();
    for bad_trail in [Vec::new(), trail[..2].to_vec(), [&trail[..], &trail[..2]].concat(), portion_missing] {
        let mut bad = good.clone();
        bad["trail"] = bad_trail.into();
        let cursor: Cursor = serde_json::from_value(bad).unwrap();
        let error =
            block_on(async { pin!(run(&list, &plan, &ledger(), 100, cursor)).next().await.unwrap().unwrap_err() });
        assert!(error.to_string().contains("cursor"), "{error}");
    }
}

#[test]
fn a_shard_that_changed_leaves_gaps_and_the_rest_comes() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[12, 12, 12, 12]);
    let plan = StreamPlan { lanes: 4, shuffle: 8, order: Order::Arrival, ..plan() };
    // chance says which shards give first; one that gave nothing before it changed is simply a new one
    let first = loop {
        let first = block_on(take(run(&list, &plan, &ledger(), 1_000, Cursor::default()), 20));
        if first.iter().any(|sample| sample.meta.key.starts_with("s0/")) {
            break first;
        }
    };
    std::fs::write(folder.path().join("000.tar"), samples("changed", 0)).unwrap();
    let ledger = ledger();
    let rest = block_on(take_passes(run(&list, &plan, &ledger, 1_000, first[19].cursor.clone()), 0));
    let all = first.iter().chain(&rest).filter(|sample| !sample.meta.key.starts_with("s0/"));
    assert_eq!(sorted_keys(all), keys_of(&[12, 12, 12, 12])[12..]);
    assert!(rest.iter().all(|sample| !sample.meta.key.starts_with("s0/")));
    assert!(!ledger.losses().is_empty());

    // killed once more while gaps wait; the shard is back, and nothing of it comes a second time
    let second = block_on(take(run(&list, &plan, &ledger, 1, first[19].cursor.clone()), 2));
    std::fs::write(folder.path().join("000.tar"), samples("s0", 12)).unwrap();
    let third = block_on(take_passes(run(&list, &plan, &ledger, 1, second[1].cursor.clone()), 0));
    assert!(third.iter().all(|sample| !sample.meta.key.starts_with("s0/")));
    let all = first.iter().chain(&second).chain(&third).filter(|sample| !sample.meta.key.starts_with("s0/"));
    assert_eq!(sorted_keys(all), keys_of(&[12, 12, 12, 12])[12..]);
}
