//! Lists that grow while they are read: each shard once, as it appears, and on from any cursor.

use super::*;
use crate::shards::ledger::Entry;
use std::time::Duration;

fn following() -> StreamPlan {
    StreamPlan { lanes: 2, shuffle: 4, follow: true, follow_every_s: 0.01, follow_settle_s: 0.0, ..plan() }
}

/// What the stream gives until it waits for new shards.
async fn drain(stream: &mut (impl Stream<Item = Result<RawSample>> + Unpin), progress: &Progress) -> Vec<RawSample> {
    let mut samples = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_millis(20), stream.next()).await {
            Ok(sample) => samples.push(sample.unwrap().unwrap()),
            Err(_) if progress.waiting_for_shards().is_some() => return samples,
            Err(_) => {}
        }
    }
}

#[test]
fn every_shard_comes_once_as_it_appears() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[5, 8]);
    for order in [Order::Exact, Order::Arrival] {
        let plan = StreamPlan { order, ..following() };
        let (progress, ledger) = (Arc::new(Progress::default()), ledger());
        let opening = opening(&list, &plan, &ledger, Cursor::default());
        let mut stream = Box::pin(stream(Opening { progress: Arc::clone(&progress), ..opening }));
        let got = block_on(async {
            let mut got = drain(&mut stream, &progress).await;
            assert_eq!(sorted_keys(&got), keys_of(&[5, 8]));
            for (number, size) in [(2, 6), (3, 1)] {
                std::fs::write(folder.path().join(format!("new-{number}.tar.part")), "half").unwrap();
                let path = folder.path().join(format!("new-{number}.tar"));
                std::fs::write(path, samples(&format!("s{number}"), size)).unwrap();
                let new = loop {
                    let new = drain(&mut stream, &progress).await;
                    if !new.is_empty() {
                        break new;
                    }
                };
                assert_eq!(new.len(), size);
                got.extend(new);
            }
            got
        });
        assert_eq!(sorted_keys(&got), keys_of(&[5, 8, 6, 1]));
        assert!(got.iter().all(|sample| sample.meta.pass == 0) && ledger.losses().is_empty());
        drop(stream);
        let now = list.reload().unwrap();
        for at in [0, 4, 12, 13, 15, 18, 19] {
            let cursor: Cursor = serde_json::from_str(&serde_json::to_string(&got[at].cursor).unwrap()).unwrap();
            let rest = block_on(take(run(&now, &plan, &ledger, 3, cursor), 19 - at));
            assert_eq!(sorted_keys(got[..=at].iter().chain(&rest)), keys_of(&[5, 8, 6, 1]), "after {at}");
        }
        for number in 2..4 {
            std::fs::remove_file(folder.path().join(format!("new-{number}.tar"))).unwrap();
        }
    }
}

#[test]
fn a_shard_that_vanishes_before_it_is_read_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[5, 5, 5, 5]);
    let plan = StreamPlan { lanes: 1, shuffle: 0, ..following() };
    let first = block_on(take(run(&list, &plan, &ledger(), 100, Cursor::default()), 2));
    // the stream reads one shard and has opened the next
    let name_of = |shard: &str| Path::new(shard).file_name().unwrap().to_owned();
    let reading = name_of(&first[0].meta.shard);
    let mut others: Vec<_> =
        ["000.tar", "001.tar.zst", "002.tar.gz", "003.tar"].into_iter().filter(|name| **name != *reading).collect();
    let gone = others.pop().unwrap();
    std::fs::remove_file(folder.path().join(gone)).unwrap();
    let ledger = ledger();
    let rest = block_on(take(run(&list.reload().unwrap(), &plan, &ledger, 100, first[1].cursor.clone()), 13));
    assert_eq!(sorted_keys(first.iter().chain(&rest)).len(), 15);
    let list = list.reload().unwrap();
    // a stream of endless waiting is asked no further than it has samples
    let progress = Arc::new(Progress::default());
    let opening = opening(&list, &plan, &ledger, rest[12].cursor.clone());
    let mut stream = Box::pin(stream(Opening { progress: Arc::clone(&progress), ..opening }));
    assert!(block_on(drain(&mut stream, &progress)).is_empty());
    assert_eq!(ledger.losses().into_iter().collect::<Vec<_>>(), [(Reason::NotFound, 1)]);
}

#[test]
fn what_lies_behind_a_cursor_is_never_heard_of_again() {
    let folder = tempfile::tempdir().unwrap();
    let shards: Vec<(String, Vec<u8>)> = (0..7)
        .map(|number| {
            let mut tar = samples(&format!("s{number}"), 5);
            if number % 2 == 0 {
                tar.truncate(tar.len() / 2);
            }
            (format!("{number}.tar"), tar)
        })
        .collect();
    let list = list_of(folder.path(), &shards);
    let drained = |ledger: &str, start: Cursor| {
        let path = folder.path().join(ledger);
        let ledger = Arc::new(Ledger::open(&path, &following()).unwrap());
        let progress = Arc::new(Progress::default());
        let opening = opening(&list, &following(), &ledger, start);
        let mut stream = Box::pin(stream_with(Opening { progress: Arc::clone(&progress), ..opening }, 3));
        (block_on(drain(&mut stream, &progress)), crate::shards::ledger::read(&path).unwrap())
    };
    let (got, all) = drained("all.jsonl", Cursor::default());
    assert!(all.len() > 7, "the ends of all shards, and why some of them are short");
    let mut most_held = 0;
    for (at, sample) in got.iter().enumerate() {
        let past = Past::of(&sample.cursor);
        let (rest, again) = drained(&format!("{at}.jsonl"), sample.cursor.clone());
        assert_eq!(rest.len(), got.len() - at - 1);
        for entry in again {
            assert!(!past.holds(&entry), "after {at} samples: {entry:?}");
        }
        let spoilt = Trouble::new(Reason::NotAnImage, "");
        for sample in &rest {
            assert!(!past.holds(&Entry::Loss(sample.meta.loss(spoilt.clone()))), "it may be lost in decoding yet");
        }
        most_held = most_held.max(all.iter().filter(|entry| past.holds(entry)).count());
    }
    assert!(most_held * 2 > all.len(), "most of it lies behind in the end: {most_held} of {}", all.len());
    assert!(!Past::of(&Cursor::default()).holds(&all[0]));
}

#[test]
fn all_ranks_share_what_appears() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[11, 7]);
    let mut got = Vec::new();
    for rank in 0..3 {
        let progress = Arc::new(Progress::default());
        let opening = opening(&list, &following(), &ledger(), Cursor::default());
        let share = Share::new(rank, 3).unwrap();
        let mut stream = Box::pin(stream(Opening { share, progress: Arc::clone(&progress), ..opening }));
        let part = block_on(drain(&mut stream, &progress));
        assert!((5..=7).contains(&part.len()));
        got.extend(part);
    }
    assert_eq!(sorted_keys(&got), keys_of(&[11, 7]));
}

#[test]
fn what_is_left_is_dealt_anew_though_not_every_rank_has_seen_the_new_shards() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[8, 6]);
    let of_rank = |list: &ShardList, rank, world, start| {
        let progress = Arc::new(Progress::default());
        let opening = opening(list, &following(), &ledger(), start);
        let share = Share::new(rank, world).unwrap();
        (Box::pin(stream(Opening { share, progress: Arc::clone(&progress), ..opening })), progress)
    };
    let (stream, _) = of_rank(&list, 1, 2, Cursor::default());
    let mut got = block_on(take(stream, 2));
    std::fs::write(folder.path().join("new.tar"), samples("s2", 9)).unwrap();
    // the other rank has read some of it
    let (stream, _) = of_rank(&list, 0, 2, Cursor::default());
    let ahead = block_on(take(stream, 9));
    let cursors = [ahead[8].cursor.clone(), got[1].cursor.clone()];
    got.extend(ahead);
    let list = list.reload().unwrap();
    let dealt = block_on(redeal(&opening(&list, &following(), &ledger(), Cursor::default()), &cursors, 3)).unwrap();
    for (rank, cursor) in (0..3).zip(dealt) {
        let (mut stream, progress) = of_rank(&list, rank, 3, cursor);
        got.extend(block_on(drain(&mut stream, &progress)));
    }
    assert_eq!(sorted_keys(&got), keys_of(&[8, 6, 9]));
}
