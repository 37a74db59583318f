//! Photographs as single objects of a store, below prefixes as YFCC100M's bucket has them.

use crate::faults::{fetch, plan};
use crate::run::shoal;
use crate::s3::Store;
use bytes::Bytes;
use futures_util::StreamExt;
use shoal::config::{Anonymous, FetchPlan, StreamPlan};
use shoal::ingest::{Cursor, Opening, Passes, RawSample, stream};
use shoal::shards::{Ledger, Reason, ShardList};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

const SPEC: &str = "images:s3://multimedia-commons/data/images/";

/// Keys as the bucket has them: hashes of 16 bytes printed without padding, below six of their digits.
fn keys(count: u64) -> Vec<String> {
    let hash = |i: u64| -> String {
        xxhash_rust::xxh3::xxh3_128(&i.to_le_bytes()).to_le_bytes().iter().map(|byte| format!("{byte:x}")).collect()
    };
    // few prefixes, so that each has some objects
    (0..count).map(|i| format!("{:03x}/{:03x}/{}.jpg", i % 5, i % 7, hash(i))).collect()
}

fn photo(key: &str) -> Bytes {
    [b"\xff\xd8\xff\xe0", key.repeat(40).as_bytes()].concat().into()
}

async fn store(keys: &[String]) -> Store {
    let objects = keys.iter().map(|key| (format!("multimedia-commons/data/images/{key}"), photo(key)));
    let more = ["000/readme.txt", "000/.hidden.jpg", ".trash/x.jpg"]
        .map(|name| format!("multimedia-commons/data/images/{name}"));
    let more = more.into_iter().chain(["multimedia-commons/data/other.jpg".to_owned()]);
    let objects: Vec<_> = objects.chain(more.map(|path| (path, photo("none")))).collect();
    Store::start(&objects.iter().map(|(path, bytes)| (path.as_str(), bytes.clone())).collect::<Vec<_>>()).await
}

fn at(store: &Store) -> FetchPlan {
    FetchPlan { endpoint: store.endpoint(), anonymous: Anonymous::Always, connections: 12, ..fetch() }
}

fn list(fetch: &FetchPlan) -> ShardList {
    ShardList::parse_with(&[SPEC.to_owned()], fetch).unwrap()
}

async fn take(fetch: &FetchPlan, plan: &StreamPlan, start: Cursor, count: usize) -> (Vec<RawSample>, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::in_memory(plan));
    let opening = Opening::new(list(fetch), plan, fetch, Passes::Endless, Arc::clone(&ledger));
    let samples = pin!(stream(Opening { start, ..opening }));
    (samples.take(count).map(Result::unwrap).collect().await, ledger)
}

fn found(samples: &[RawSample]) -> BTreeSet<String> {
    samples.iter().map(|sample| format!("{}.jpg", sample.meta.key)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_object_comes_once_a_pass_and_goes_on_from_any_cursor() {
    let keys = keys(90);
    let store = store(&keys).await;
    let fetch = at(&store);
    let names: Vec<String> = list(&fetch).shards.iter().map(ToString::to_string).collect();
    assert_eq!(
        names,
        (0..5).map(|i| format!("images:s3://multimedia-commons/data/images/{i:03x}")).collect::<Vec<_>>()
    );

    store.state.lock().unwrap().busy = 4;
    let (samples, ledger) = take(&fetch, &plan(), Cursor::default(), 180).await;
    assert!(ledger.losses().is_empty(), "{:?}", ledger.losses());
    for pass in samples.chunks(90) {
        assert_eq!(found(pass), keys.iter().cloned().collect());
    }
    for sample in &samples {
        assert_eq!(sample.image, photo(&format!("{}.jpg", sample.meta.key)));
    }
    for at in [0, 17, 60, 89, 90, 140] {
        let text = serde_json::to_string(&samples[at].cursor).unwrap();
        let (rest, _) = take(&fetch, &plan(), serde_json::from_str(&text).unwrap(), 20).await;
        let ids = |samples: &[RawSample]| samples.iter().map(|sample| sample.meta.id).collect::<Vec<_>>();
        assert_eq!(ids(&rest), ids(&samples[at + 1..at + 21]), "after {at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_are_in_flight_and_no_more_than_a_host_is_allowed() {
    let keys = keys(90);
    let store = store(&keys).await;
    store.state.lock().unwrap().delay = Duration::from_millis(20);
    let one_lane = StreamPlan { lanes: 1, shuffle: 1, ..plan() };
    let (samples, _) = take(&at(&store), &one_lane, Cursor::default(), 90).await;
    assert_eq!(found(&samples).len(), 90);
    let most = store.state.lock().unwrap().most_in_flight;
    assert!((6..=12).contains(&most), "{most} at once, by one lane");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_cannot_be_had_is_lost_alone() {
    let keys = keys(60);
    let store = store(&keys).await;
    let path = |key: &str| format!("multimedia-commons/data/images/{key}");
    store.put(&path(&keys[7]), vec![0; 3 << 20].into());
    let fetch = at(&store);
    let plan = StreamPlan { max_member_mib: 2, lanes: 1, shuffle: 1, ..plan() };
    let ledger = Arc::new(Ledger::in_memory(&plan));
    let samples = stream(Opening::new(list(&fetch), &plan, &fetch, Passes::Once, Arc::clone(&ledger)));
    let mut samples = pin!(samples);
    let first = samples.next().await.unwrap().unwrap();
    // of the last folder, so that nobody has asked for it yet
    let emptied = keys.iter().rfind(|key| key.starts_with("004/")).unwrap();
    store.put(&path(emptied), Bytes::new());
    let mut rest = vec![first];
    while let Some(sample) = samples.next().await {
        rest.push(sample.unwrap());
    }
    let sent = store.bytes_sent();
    assert!(sent < 2 << 20, "what is too large is not received: {sent} bytes");
    let too_large: BTreeSet<String> = [keys[7].clone()].into();
    assert_eq!(&keys.iter().cloned().collect::<BTreeSet<_>>() - &found(&rest), too_large);
    assert_eq!(ledger.losses(), BTreeMap::from([(Reason::MemberTooLarge, 1)]));
    let empty = rest.iter().find(|sample| emptied.starts_with(&sample.meta.key)).unwrap();
    assert!(empty.image.is_empty(), "an empty object is a sample that decoding refuses");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_vanishes_after_it_was_listed_is_not_found() {
    let keys = keys(60);
    let store = store(&keys).await;
    let fetch = FetchPlan { connections: 1, ..at(&store) };
    let plan = StreamPlan { lanes: 1, shuffle: 1, buffer_mib: 1, ..plan() };
    let ledger = Arc::new(Ledger::in_memory(&plan));
    let samples = stream(Opening::new(list(&fetch), &plan, &fetch, Passes::Once, Arc::clone(&ledger)));
    let mut samples = pin!(samples);
    let mut rest = vec![samples.next().await.unwrap().unwrap()];
    // whatever has not been asked for yet
    keys.iter().for_each(|key| store.remove(&format!("multimedia-commons/data/images/{key}")));
    while let Some(sample) = samples.next().await {
        rest.push(sample.unwrap());
    }
    let losses = ledger.losses();
    let lost = losses.get(&Reason::NotFound).copied().unwrap_or(0);
    let empty = losses.get(&Reason::EmptyShard).copied().unwrap_or(0);
    assert!(lost + empty > 0 && losses.len() <= 2, "{losses:?}");
    assert!(found(&rest).len() as u64 + lost <= 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_read_prefixes_as_they_read_shards() {
    let keys = keys(20);
    let store = store(&keys).await;
    let run = |arguments: &[&str]| {
        let mut command = shoal();
        command
            .env_clear()
            .env("HOME", "/nonexistent")
            .env("PATH", std::env::var("PATH").unwrap())
            .env("AWS_ENDPOINT_URL", store.endpoint());
        command.args(arguments).assert()
    };
    tokio::task::block_in_place(|| {
        let listed = run(&["shards", "list", SPEC]).success();
        let text = String::from_utf8_lossy(&listed.get_output().stdout).into_owned();
        assert_eq!(text.matches("images:s3://multimedia-commons/data/images/00").count(), 5, "{text}");
        // the objects only begin like photographs
        let checked = run(&["shards", "check", SPEC]).code(3);
        let text = String::from_utf8_lossy(&checked.get_output().stdout).into_owned();
        assert_eq!(text.matches(": complete, 0 samples; lost: 4 decode_failed").count(), 5, "{text}");
        let refused = run(&["shards", "list", "images:s3://multimedia-commons/nothing/"]).failure();
        assert!(String::from_utf8_lossy(&refused.get_output().stderr).contains("there is nothing"));
        let refused = run(&["shards", "list", "images:ftp://host/x"]).code(2);
        assert!(String::from_utf8_lossy(&refused.get_output().stderr).contains("neither a folder nor a prefix"));
    });
}
