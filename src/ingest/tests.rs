//! The stream against its promises: every sample once a pass, in an order of the seed's, and on from any cursor.

mod again;
mod arrival;
mod follow;
mod mix;
mod ranks;

use super::stream::stream_with;
use super::*;
use crate::config::{Order, StreamPlan};
use crate::error::Result;
use crate::shards::testing::{fetch, gzip, ledger, list_of, plan, samples, zstd};
use crate::shards::{Ledger, Reason, ShardList};
use futures_util::{Stream, StreamExt};
use proptest::prelude::*;
use std::path::Path;
use std::pin::pin;

/// An endless stream of a list.
fn opening(list: &ShardList, plan: &StreamPlan, ledger: &Arc<Ledger>, start: Cursor) -> Opening {
    Opening { start, ..Opening::new(list.clone(), plan, &fetch(), Passes::Endless, Arc::clone(ledger)) }
}

/// The same, that takes a checkpoint every so many samples.
fn run(
    list: &ShardList,
    plan: &StreamPlan,
    ledger: &Arc<Ledger>,
    every: u64,
    start: Cursor,
) -> impl Stream<Item = Result<RawSample>> + Send + use<> {
    stream_with(opening(list, plan, ledger, start), every)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}

async fn take(stream: impl Stream<Item = Result<RawSample>>, count: usize) -> Vec<RawSample> {
    pin!(stream).take(count).map(Result::unwrap).collect().await
}

/// What must be the same after a restart.
fn identity(sample: &RawSample) -> (u64, String, Bytes, Option<i64>, Cursor) {
    (sample.meta.pass, sample.meta.key.clone(), sample.image.clone(), sample.meta.class, sample.cursor.clone())
}

/// Shards of these sizes, each wrapped in another way.
fn mixed(folder: &Path, sizes: &[usize]) -> ShardList {
    let shards = sizes.iter().enumerate().map(|(i, &size)| {
        let tar = samples(&format!("s{i}"), size);
        match i % 3 {
            0 => (format!("{i:03}.tar"), tar),
            1 => (format!("{i:03}.tar.zst"), zstd(&tar)),
            _ => (format!("{i:03}.tar.gz"), gzip(&tar)),
        }
    });
    list_of(folder, &shards.collect::<Vec<_>>())
}

/// The keys of shards as [`mixed`] makes them, sorted.
fn keys_of(sizes: &[usize]) -> Vec<String> {
    let keys = sizes.iter().enumerate().flat_map(|(i, &size)| (0..size).map(move |k| format!("s{i}/{k}")));
    let mut keys: Vec<String> = keys.collect();
    keys.sort();
    keys
}

fn sorted_keys<'a>(samples: impl IntoIterator<Item = &'a RawSample>) -> Vec<String> {
    let mut keys: Vec<String> = samples.into_iter().map(|sample| sample.meta.key.clone()).collect();
    keys.sort();
    keys
}

/// A stream's samples up to the end of a pass.
async fn take_passes(stream: impl Stream<Item = Result<RawSample>>, last: u64) -> Vec<RawSample> {
    let samples = stream.map(Result::unwrap).take_while(|sample| std::future::ready(sample.meta.pass <= last));
    pin!(samples).collect().await
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn every_sample_comes_once_a_pass(
        sizes in prop::collection::vec(1_usize..30, 1..9),
        lanes in 1_usize..6,
        shuffle in 0_usize..40,
        by_arrival: bool,
        world in prop_oneof![Just(1_u32), 2_u32..5],
        seed: u64,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let list = mixed(folder.path(), &sizes);
        let order = if by_arrival { Order::Arrival } else { Order::Exact };
        let plan = StreamPlan { seed, lanes, shuffle, order, ..plan() };
        let ledger = ledger();
        let mut got = Vec::new();
        for rank in 0..world {
            let share = Share::new(rank, world).unwrap();
            let stream = stream(Opening { share, ..opening(&list, &plan, &ledger, Cursor::default()) });
            got.extend(block_on(take_passes(stream, 1)));
        }
        for pass in 0..2 {
            prop_assert_eq!(sorted_keys(got.iter().filter(|sample| sample.meta.pass == pass)), keys_of(&sizes));
        }
        let mut classes = got.iter().map(|sample| (&sample.meta.key, format!("/{}", sample.meta.class.unwrap())));
        prop_assert!(classes.all(|(key, class)| key.ends_with(&class)));
        prop_assert!(ledger.losses().is_empty());
    }
}

#[test]
fn it_goes_on_from_every_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[7, 3, 12, 1, 9]);
    for (lanes, shuffle, every) in [(3, 10, 4), (2, 0, 1), (4, 64, 7), (1, 5, 1_000)] {
        let plan = StreamPlan { lanes, shuffle, ..plan() };
        let start = |cursor| run(&list, &plan, &ledger(), every, cursor);
        // two passes and a piece of the third
        let undisturbed = block_on(take(start(Cursor::default()), 75));
        block_on(async {
            for (i, sample) in undisturbed.iter().enumerate().take(70) {
                let text = serde_json::to_string(&sample.cursor).unwrap();
                let cursor: Cursor = serde_json::from_str(&text).unwrap();
                assert_eq!(cursor, sample.cursor);
                let rest = &undisturbed[i + 1..(i + 40).min(75)];
                let resumed = take(start(cursor), rest.len()).await;
                for (resumed, expected) in resumed.iter().zip(rest) {
                    assert_eq!(
                        identity(resumed),
                        identity(expected),
                        "lanes {lanes}, shuffle {shuffle}, after sample {i}"
                    );
                }
            }
        });
    }
}

#[test]
fn the_shuffle_buffer_is_bounded_by_bytes_too() {
    let folder = tempfile::tempdir().unwrap();
    let image = |i: usize| crate::shards::testing::image(&"x".repeat(60_000 + 1_000 * i));
    let shards: Vec<_> = (0..3)
        .map(|shard| {
            let names: Vec<String> = (0..20).map(|i| format!("s{shard}/{i}.jpg")).collect();
            let members: Vec<(&str, Vec<u8>)> = names.iter().enumerate().map(|(i, name)| (&**name, image(i))).collect();
            (format!("{shard}.tar"), crate::shards::testing::tar_of(&members))
        })
        .collect();
    let list = list_of(folder.path(), &shards);
    let plan = StreamPlan { lanes: 2, shuffle: 1_000, shuffle_mib: 1, ..plan() };
    let progress = Arc::new(Progress::default());
    let opening = Opening { progress: Arc::clone(&progress), ..opening(&list, &plan, &ledger(), Cursor::default()) };
    let (undisturbed, most) = block_on(async {
        let mut stream = pin!(stream_with(opening, 7));
        let (mut samples, mut most) = (Vec::new(), 0);
        while samples.len() < 120 {
            samples.push(stream.next().await.unwrap().unwrap());
            most = most.max(progress.shuffle_bytes());
            assert!(progress.shuffle_samples() < 20);
        }
        (samples, most)
    });
    // the bound, and the sample that passed it
    assert!((900_000..(1 << 20) + 80_004).contains(&most), "{most}");
    assert_eq!(sorted_keys(&undisturbed[..60]), keys_of(&[20, 20, 20]));
    for at in [0, 8, 33, 59, 70] {
        let rest = block_on(take(run(&list, &plan, &ledger(), 7, undisturbed[at].cursor.clone()), 40));
        for (resumed, expected) in rest.iter().zip(&undisturbed[at + 1..]) {
            assert_eq!(identity(resumed), identity(expected));
        }
    }
}

#[test]
fn the_order_knows_the_seed_and_nothing_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[20, 20, 20, 20, 20, 20]);
    let keys = |seed, buffer_mib, workers| {
        let plan = StreamPlan { seed, buffer_mib, lanes: 4, shuffle: 16, ..plan() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap();
        let got = runtime.block_on(take(run(&list, &plan, &ledger(), 1_000, Cursor::default()), 240));
        got.into_iter().map(|sample| sample.meta.key).collect::<Vec<_>>()
    };
    let one = keys(1, 256, 1);
    assert_eq!(one, keys(1, 256, 4));
    assert_eq!(one, keys(1, 0, 2), "readers with room for one sample each");
    assert_ne!(one, keys(2, 256, 1));
    assert_ne!(one[..120], one[120..], "the second pass has an order of its own");
}

#[test]
fn losses_are_recorded_once_though_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let whole = samples("s0", 10);
    let shards = [
        ("0.tar".to_owned(), whole.clone()),
        ("1.tar".to_owned(), samples("s1", 10)[..5_000].to_vec()),
        ("2.tar".to_owned(), b"<html>".repeat(200)),
    ];
    let list = list_of(folder.path(), &shards);
    let path = folder.path().join("ledger.jsonl");
    let plan = StreamPlan { lanes: 2, shuffle: 4, max_loss_rate: 1.0, ..plan() };
    let open = || Arc::new(Ledger::open(&path, &plan).unwrap());
    let ledger = open();
    let undisturbed = block_on(take(run(&list, &plan, &ledger, 3, Cursor::default()), 60));
    let losses = ledger.losses();
    assert_eq!(losses.keys().copied().collect::<Vec<_>>(), [Reason::NotAnArchive, Reason::TruncatedShard]);
    for sample in &undisturbed[..20] {
        let rest = block_on(take(run(&list, &plan, &open(), 3, sample.cursor.clone()), 5));
        assert_eq!(rest.len(), 5);
    }
    assert_eq!(open().losses(), losses);
}

#[test]
fn a_list_may_grow_but_not_shrink() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[5, 5, 5]);
    let plan = StreamPlan { lanes: 2, shuffle: 4, ..plan() };
    let ledger = ledger();
    let (first, grown) = block_on(async {
        let mut stream = pin!(run(&list, &plan, &ledger, 2, Cursor::default()));
        let mut first = Vec::new();
        while first.len() < 8 {
            first.push(stream.next().await.unwrap().unwrap());
        }
        std::fs::write(folder.path().join("003.tar"), samples("s3", 5)).unwrap();
        let rest: Vec<RawSample> = stream.take(7 + 20).map(Result::unwrap).collect().await;
        (first, rest)
    });
    let of_new = |samples: &[RawSample]| samples.iter().filter(|sample| sample.meta.key.starts_with("s3/")).count();
    assert_eq!((of_new(&grown[..7]), of_new(&grown[7..])), (0, 5), "new shards come with the next pass");

    let cursor = first[7].cursor.clone();
    let resumed = block_on(take(run(&list.reload().unwrap(), &plan, &ledger, 2, cursor.clone()), 27));
    assert_eq!(resumed.iter().map(identity).collect::<Vec<_>>(), grown.iter().map(identity).collect::<Vec<_>>());

    let refused = |list: &ShardList, plan: &StreamPlan| {
        let stream = run(list, plan, &ledger, 2, cursor.clone());
        block_on(async { pin!(stream).next().await.unwrap().unwrap_err().to_string() })
    };
    assert!(refused(&list, &StreamPlan { seed: 32, ..plan.clone() }).contains("stream.seed is 32"));
    std::fs::remove_file(folder.path().join("001.tar.zst")).unwrap();
    let message = refused(&list.reload().unwrap(), &plan);
    assert!(message.contains("1 of the 3 shards") && message.contains("001.tar.zst"), "{message}");
}

#[test]
fn a_shard_that_changed_costs_its_own_samples_alone() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[12, 12, 12, 12]);
    let plan = StreamPlan { lanes: 4, shuffle: 24, ..plan() };
    let undisturbed = block_on(take(run(&list, &plan, &ledger(), 5, Cursor::default()), 48));
    let cursor = undisturbed[19].cursor.clone();
    let at_the_end = block_on(take(run(&list, &plan, &ledger(), 1_000, Cursor::default()), 46)).pop().unwrap().cursor;
    std::fs::write(folder.path().join("000.tar"), samples("changed", 0)).unwrap();
    let mut expected: Vec<&str> = undisturbed[20..].iter().map(|sample| sample.meta.key.as_str()).collect();
    expected.retain(|key| !key.starts_with("s0/"));
    expected.sort_unstable();
    assert!((10..28).contains(&expected.len()));

    let ledger = ledger();
    let rest = block_on(take(run(&list, &plan, &ledger, 5, cursor), 30));
    let mut got: Vec<&str> =
        rest.iter().filter(|sample| sample.meta.pass == 0).map(|sample| sample.meta.key.as_str()).collect();
    got.sort_unstable();
    assert_eq!(got, expected);
    assert!(ledger.losses()[&Reason::ShardChanged] > 1, "{:?}", ledger.losses());

    // a way of a whole pass behind the checkpoint: what had left is not given again, what had not still comes
    let next = block_on(take(run(&list, &plan, &ledger, 1_000, at_the_end), 5));
    let of_pass = next.iter().filter(|sample| sample.meta.pass == 0).map(|sample| &sample.meta.key);
    let left = undisturbed[46..].iter().map(|sample| &sample.meta.key).filter(|key| !key.starts_with("s0/"));
    assert_eq!(of_pass.collect::<Vec<_>>(), left.collect::<Vec<_>>());
}

#[test]
fn nothing_at_all_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let shards: Vec<_> = (0..5).map(|i| (format!("{i}.tar"), b"<html>".repeat(200))).collect();
    let list = list_of(folder.path(), &shards);
    for passes in [Passes::Endless, Passes::Once] {
        let stream = stream(Opening::new(list.clone(), &plan(), &fetch(), passes, ledger()));
        let error = block_on(async { pin!(stream).next().await.unwrap().unwrap_err() });
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("no sample in any of the 5 shards"), "{error}");
        assert!(error.to_string().contains("not_an_archive (5 times)"), "{error}");
    }
}

#[test]
fn dropping_the_stream_ends_its_threads() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[400, 400, 400, 400, 400, 400]);
    // room for one sample each: every reader waits
    let plan = StreamPlan { lanes: 4, shuffle: 16, buffer_mib: 0, ..plan() };
    let progress = Arc::new(Progress::default());
    let open = block_on(async {
        let opening = opening(&list, &plan, &ledger(), Cursor::default());
        let stream = stream(Opening { progress: Arc::clone(&progress), ..opening });
        let mut stream = Box::pin(stream);
        for _ in 0..20 {
            stream.next().await.unwrap().unwrap();
        }
        let open: Vec<_> = progress.open().iter().map(Arc::downgrade).collect();
        assert_eq!(open.len(), 5, "four lanes and the shard after them");
        assert!(progress.bytes() > 0 && progress.samples() == 20 && progress.waiting().is_none());
        open
    });
    assert!(progress.open().is_empty());
    // a thread holds its reading for as long as it lives
    let begun = std::time::Instant::now();
    while open.iter().any(|reading| reading.strong_count() > 0) {
        assert!(begun.elapsed().as_secs() < 60, "a thread goes on without its stream");
        std::thread::yield_now();
    }
}

#[test]
fn once_is_in_the_order_of_the_list() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[3, 2, 4]);
    let stream = stream(Opening::new(list, &plan(), &fetch(), Passes::Once, ledger()));
    let keys: Vec<String> = block_on(take(stream, 100)).into_iter().map(|sample| sample.meta.key).collect();
    assert_eq!(keys, ["s0/0", "s0/1", "s0/2", "s1/0", "s1/1", "s2/0", "s2/1", "s2/2", "s2/3"]);
}

#[test]
fn a_damaged_cursor_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[3, 2, 4]);
    let sample = block_on(take(run(&list, &plan(), &ledger(), 1, Cursor::default()), 5)).pop().unwrap();
    let good = serde_json::to_value(&sample.cursor).unwrap();
    for (field, value) in [
        ("taken", 9.into()),
        ("turn", 40.into()),
        ("fingerprint", "0".into()),
        ("lanes", serde_json::json!([[7, 0, 0]])),
        ("waiting", serde_json::json!([[7, 0]])),
    ] {
        let mut bad = good.clone();
        bad["checkpoint"]["lists"][0][field] = value;
        let cursor: Cursor = serde_json::from_value(bad).unwrap();
        let stream = run(&list, &plan(), &ledger(), 1, cursor);
        let error = block_on(async { pin!(stream).next().await.unwrap().unwrap_err() });
        assert!(error.to_string().contains("cursor"), "{field}: {error}");
    }
}
