//! Streaming from servers that cut, stall, lie, refuse and change their minds.
//!
//! Whatever can be recovered from, the stream is that of an undisturbed server: every sample once, in the same order. What cannot
//! costs exactly the bytes after it, is named by its reason, and no sample is made of two versions of a shard.

use crate::server::{Answer, Reply, Request, Server, Then};
use bytes::Bytes;
use futures_util::StreamExt;
use shoal::config::{FetchPlan, StreamPlan};
use shoal::ingest::{Cursor, Opening, Passes, Progress, RawSample, stream};
use shoal::shards::{Activity, Ledger, Reason, ShardList};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A tar of samples `NAME0`, `NAME1`, ... of some 2 kB each.
pub fn shard(name: &str, count: usize) -> Bytes {
    let mut builder = tar::Builder::new(Vec::new());
    for i in 0..count {
        let data = [b"\xff\xd8\xff\xe0", format!("{name}{i:03}").repeat(300 + i % 90).as_bytes()].concat();
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("{name}{i:03}.jpg"), data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap().into()
}

/// Small ranges and short pauses.
pub fn fetch() -> FetchPlan {
    FetchPlan {
        timeout_s: 1.0,
        retries: 4,
        max_pause_s: 0.005,
        outage_minutes: 0.0,
        min_kib_per_s: 0.0,
        range_mib: 1.0 / 64.0,
        ranges: 3,
        buffer_mib: 1,
        connections: 32,
        ..FetchPlan::default()
    }
}

pub fn plan() -> StreamPlan {
    StreamPlan { lanes: 4, shuffle: 16, max_loss_rate: 1.0, ..StreamPlan::default() }
}

/// What came of a list.
#[derive(Debug)]
pub struct Outcome {
    pub samples: Vec<(String, Bytes)>,
    pub losses: BTreeMap<Reason, u64>,
    pub ledger: String,
}

/// One pass in the order of the list.
async fn read(urls: &[String], fetch: &FetchPlan) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let ledger = Arc::new(Ledger::open(&path, &plan()).unwrap());
    let list = ShardList::parse(urls).unwrap();
    let samples = stream(Opening::new(list, &plan(), fetch, Passes::Once, Arc::clone(&ledger)));
    // where nothing works at all, the stream ends with an error
    let samples = samples.filter_map(|sample| async { sample.ok() });
    let samples = samples.map(|sample| (sample.meta.key, sample.image)).collect().await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("secret") && !text.contains("signature="), "{text}");
    Outcome { samples, losses: ledger.losses(), ledger: text }
}

/// What an undisturbed server gives of this shard.
async fn undisturbed(object: &Bytes) -> Vec<(String, Bytes)> {
    let server = Server::start([("/a.tar", vec![Answer::Whole(object.to_vec())])]).await;
    let outcome = read(&[server.url("/a.tar")], &FetchPlan::default()).await;
    assert_eq!(outcome.losses, BTreeMap::new());
    outcome.samples
}

/// Reads `/a.tar` from a server that answers like this.
async fn read_from(
    fetch: &FetchPlan,
    handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> (Outcome, Server) {
    let server = Server::with(handler).await;
    let outcome = read(&[server.url("/a.tar")], fetch).await;
    (outcome, server)
}

/// All samples of a shard come, though the server answers like this.
pub async fn assert_recovers(
    fetch: &FetchPlan,
    object: &Bytes,
    handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) {
    let expected = undisturbed(object).await;
    let (outcome, _) = read_from(fetch, handler).await;
    assert_eq!(outcome.losses, BTreeMap::new(), "{}", outcome.ledger);
    assert!(outcome.samples == expected, "{} samples of {}", outcome.samples.len(), expected.len());
}

/// Some first samples of a shard come, and the loss of all others has this reason alone.
pub async fn assert_loses(
    reason: Reason,
    object: &Bytes,
    handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> Outcome {
    let expected = undisturbed(object).await;
    let (outcome, _) = read_from(&fetch(), handler).await;
    assert_eq!(outcome.losses.keys().copied().collect::<Vec<_>>(), [reason], "{}", outcome.ledger);
    assert!(outcome.samples.len() < expected.len());
    assert!(outcome.samples == expected[..outcome.samples.len()], "samples that were never in this version");
    outcome
}

#[tokio::test]
async fn cuts_anywhere_cost_nothing() {
    let object = shard("a", 60);
    for length in [777, 4_096, 16_384, 50_000] {
        let served = object.clone();
        assert_recovers(&fetch(), &object, move |request| {
            let reply = request.honest(&served, Some("\"1\""));
            reply.cut(length, Then::Close)
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_without_etags_is_resumed_by_its_length() {
    let object = shard("a", 60);
    let served = object.clone();
    assert_recovers(&fetch(), &object, move |request| request.honest(&served, None).cut(5_000, Then::Close)).await;
}

#[tokio::test]
async fn cuts_of_a_server_without_ranges_cost_nothing() {
    let object = shard("a", 60);
    for chunked in [false, true] {
        let served = object.clone();
        assert_recovers(&fetch(), &object, move |request| {
            let reply = Reply::new(200, served.clone()).cut(9_999 * (request.number + 1), Then::Close);
            match (chunked, reply.body.len() == served.len()) {
                (false, _) => reply,
                (true, false) => reply.chunked(),
                (true, true) => Reply { then: Then::KeepOpen, ..reply }.chunked(),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn stalls_and_trickles_are_left_for_another_connection() {
    let object = shard("a", 40);
    let served = object.clone();
    let impatient = FetchPlan { timeout_s: 0.1, ..fetch() };
    assert_recovers(&impatient, &object, move |request| {
        let reply = request.honest(&served, Some("\"1\""));
        if request.number % 4 == 1 { reply.cut(3_000, Then::Silence) } else { reply }
    })
    .await;
    let served = object.clone();
    let pace = FetchPlan { min_kib_per_s: 200.0, ..impatient };
    let (outcome, server) = read_from(&pace, move |request| {
        let mut reply = request.honest(&served, Some("\"1\""));
        if request.number % 4 == 1 {
            reply.trickle = Some((100, Duration::from_millis(20)));
        }
        reply
    })
    .await;
    assert!(outcome.samples == undisturbed(&object).await && outcome.losses.is_empty());
    let ranges = object.len().div_ceil(16 * 1024);
    assert!(server.requests("/a.tar") > ranges, "a trickling answer is asked for again");
}

#[tokio::test]
async fn a_busy_server_is_given_the_time_it_asks_for() {
    let object = shard("a", 20);
    let served = object.clone();
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = Arc::clone(&times);
    let patient = FetchPlan { max_pause_s: 5.0, ranges: 1, ..fetch() };
    assert_recovers(&patient, &object, move |request| {
        seen.lock().unwrap().push(Instant::now());
        match request.number {
            0 => Reply::status(503).with("retry-after", "1"),
            1 => Reply::status(429).with("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
            _ => request.honest(&served, None),
        }
    })
    .await;
    let times = times.lock().unwrap();
    assert!(times[1] - times[0] >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_host_that_names_a_time_is_asked_by_nobody_until_then() {
    const REFUSED: usize = 5;
    let paths = ["/a.tar", "/b.tar", "/c.tar"];
    let objects: BTreeMap<&str, Bytes> = paths.iter().map(|path| (*path, shard(&path[1..2], 60))).collect();
    let arrivals: Arc<Mutex<Vec<(Instant, String)>>> = Arc::default();
    let seen = Arc::clone(&arrivals);
    let server = Server::with(move |request| {
        let mut seen = seen.lock().unwrap();
        seen.push((Instant::now(), request.path.clone()));
        match objects.get(request.path.as_str()) {
            _ if seen.len() == REFUSED + 1 => Reply::status(503).with("retry-after", "1"),
            Some(object) => request.honest(object, Some("\"1\"")),
            None => Reply::new(200, Bytes::from_static(b"one.tar")),
        }
    })
    .await;
    // with one connection nothing else is under way when the server refuses
    let patient = FetchPlan { max_pause_s: 5.0, connections: 1, ..fetch() };
    let shards = ShardList::parse(&[server.url("/{a,b,c}.tar")]).unwrap();
    let progress: Arc<Progress> = Arc::default();
    let opening = Opening::new(shards, &plan(), &patient, Passes::Endless, Arc::new(Ledger::in_memory(&plan())));
    let samples = stream(Opening { progress: Arc::clone(&progress), ..opening }).take(180).collect::<Vec<_>>();
    let address = format!("@{}", server.url("/list.txt"));
    let list = async {
        while !progress.lanes().contains_key(&Activity::Retrying) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::task::spawn_blocking(move || ShardList::parse_with(&[address], &patient)).await.unwrap().unwrap()
    };
    let (samples, list) = tokio::join!(samples, list);
    assert_eq!((samples.len(), list.shards.len()), (180, 1));
    let arrivals = arrivals.lock().unwrap();
    let (refused_at, _) = arrivals[REFUSED];
    for (arrived, path) in &arrivals[REFUSED + 1..] {
        assert!(*arrived - refused_at >= Duration::from_secs(1), "{path} within the pause");
    }
    let names: std::collections::BTreeSet<&str> = arrivals[REFUSED + 1..].iter().map(|(_, path)| &**path).collect();
    assert_eq!(names.len(), 4, "all shards and the list: {names:?}");
}

#[tokio::test]
async fn readers_that_wait_for_a_host_are_seen_and_leave_at_once() {
    let server = Server::with(|_| Reply::status(503).with("retry-after", "3600")).await;
    let patient = FetchPlan { max_pause_s: 3_600.0, connections: 1, ..fetch() };
    let list = ShardList::parse(&[server.url("/{a,b,c}.tar")]).unwrap();
    let progress: Arc<Progress> = Arc::default();
    let opening = Opening::new(list, &plan(), &patient, Passes::Endless, Arc::new(Ledger::in_memory(&plan())));
    let samples = stream(Opening { progress: Arc::clone(&progress), ..opening });
    let reading = tokio::spawn(async move { pin!(samples).next().await.is_some() });
    while progress.lanes().get(&Activity::Retrying) != Some(&3) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let asked: usize = ["/a.tar", "/b.tar", "/c.tar"].iter().map(|path| server.requests(path)).sum();
    assert_eq!(asked, 1, "the others wait without having asked");
    reading.abort();
    while !progress.open().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_storm_of_refusals_lowers_the_requests_in_flight() {
    const BEARS: usize = 3;
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let objects: BTreeMap<String, Bytes> = names.iter().map(|name| (format!("/{name}.tar"), shard(name, 60))).collect();
    let (total, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (all, storm) = (Arc::clone(&total), Arc::clone(&refused));
    let served = objects.clone();
    let server = Server::with(move |request| {
        all.fetch_add(1, Ordering::Relaxed);
        if request.in_flight > BEARS {
            storm.fetch_add(1, Ordering::Relaxed);
            return Reply::status(429);
        }
        Reply { delay: Duration::from_millis(2), ..request.honest(&served[&request.path], Some("\"1\"")) }
    })
    .await;
    let plan = StreamPlan { lanes: 8, ..plan() };
    let ledger = Arc::new(Ledger::in_memory(&plan));
    let patient = FetchPlan { retries: 8, max_pause_s: 0.05, ..fetch() };
    let list = ShardList::parse(&[server.url("/{a,b,c,d,e,f,g,h}.tar")]).unwrap();
    let samples = stream(Opening::new(list, &plan, &patient, Passes::Endless, Arc::clone(&ledger)));
    let mut keys: Vec<String> = pin!(samples).take(480).map(|sample| sample.unwrap().meta.key).collect().await;
    keys.sort();
    let expected: Vec<String> = names.iter().flat_map(|name| (0..60).map(move |i| format!("{name}{i:03}"))).collect();
    assert_eq!((keys, ledger.losses()), (expected, BTreeMap::new()));
    let (total, refused) = (total.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    assert!(refused > 0 && refused * 3 < total, "{refused} of {total} requests were refused");
}

#[tokio::test]
async fn credentials_that_expire_are_named_at_once() {
    let object = shard("a", 40);
    for (status, reason) in [(401, Reason::Forbidden), (403, Reason::Forbidden), (410, Reason::NotFound)] {
        let (served, late) = (object.clone(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&late);
        let outcome = assert_loses(reason, &object, move |request| match request.range.unwrap().0 {
            first if first > 40_000 => {
                count.fetch_add(1, Ordering::Relaxed);
                Reply::status(status)
            }
            _ => request.honest(&served, Some("\"1\"")),
        })
        .await;
        assert!(late.load(Ordering::Relaxed) <= 3, "one for each range in flight, and none again");
        assert_eq!(outcome.ledger.contains("have expired"), status != 410, "{}", outcome.ledger);
    }
}

#[tokio::test]
async fn a_redirect_is_followed_and_its_signature_kept() {
    let object = shard("a", 40);
    for breaks in [false, true] {
        let served = object.clone();
        let store = Server::with(move |request| {
            assert!(!request.head.contains("referer") && !request.head.contains("authorization"), "{}", request.head);
            match request.range.unwrap().0 {
                first if breaks && first > 40_000 => request.honest(&served, None).cut(0, Then::Close),
                _ => request.honest(&served, None),
            }
        })
        .await;
        let target = store.url("/real.tar");
        let handler = move |_: &Request| Reply::status(302).with("location", target.clone());
        match breaks {
            false => assert_recovers(&fetch(), &object, handler).await,
            true => _ = assert_loses(Reason::ConnectionLost, &object, handler).await,
        }
    }
    let around = |request: &Request| Reply::status(302).with("location", format!("{}?signature=secret", request.path));
    let (outcome, _) = read_from(&fetch(), around).await;
    assert_eq!(outcome.losses, BTreeMap::from([(Reason::HttpStatus, 1)]), "{}", outcome.ledger);
}

#[tokio::test]
async fn what_is_no_shard_is_told_by_its_first_bytes() {
    let page = Bytes::from(b"<html>Sign in, please</html>".repeat(99));
    let served = page.clone();
    let (outcome, _) = read_from(&fetch(), move |_| Reply::new(200, served.clone())).await;
    assert_eq!(outcome.losses, BTreeMap::from([(Reason::NotAnArchive, 1)]));
    assert!(outcome.ledger.contains("<html>Sign in"), "{}", outcome.ledger);
    for empty in [416, 200] {
        let (outcome, _) = read_from(&fetch(), move |_| Reply::status(empty)).await;
        assert_eq!(outcome.losses, BTreeMap::from([(Reason::EmptyShard, 1)]), "{}", outcome.ledger);
    }
}

#[tokio::test]
async fn chunks_without_a_length_are_a_shard_too() {
    let object = shard("a", 40);
    let served = object.clone();
    assert_recovers(&fetch(), &object, move |_| Reply::new(200, served.clone()).chunked()).await;
}

#[tokio::test]
async fn a_server_may_come_up_late() {
    let object = shard("a", 10);
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let patient = FetchPlan { retries: 60, max_pause_s: 0.1, ..fetch() };
    let urls = [format!("http://{free}/a.tar")];
    let late = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let served = object.clone();
        Server::at(free, move |request| request.honest(&served, None)).await
    };
    let (outcome, _server) = tokio::join!(read(&urls, &patient), late);
    assert!(outcome.samples == undisturbed(&object).await, "{}", outcome.ledger);
}

#[tokio::test]
async fn an_outage_of_everything_is_waited_for() {
    let object = shard("a", 40);
    let silent_to = 20;
    for (outage_minutes, survives) in [(5.0, true), (0.0, false)] {
        let served = object.clone();
        let handler = move |request: &Request| {
            let mut reply = request.honest(&served, Some("\"1\""));
            if (2..silent_to).contains(&request.number) {
                reply.delay = Duration::from_secs(60);
            }
            reply
        };
        let impatient = FetchPlan { timeout_s: 0.05, retries: 2, outage_minutes, ..fetch() };
        let (outcome, _) = read_from(&impatient, handler).await;
        match survives {
            true => assert!(outcome.samples == undisturbed(&object).await, "{}", outcome.ledger),
            false => assert_eq!(outcome.losses.keys().copied().collect::<Vec<_>>(), [Reason::Unreachable]),
        }
    }
}

/// Takes so many samples of an endless stream.
pub async fn take(
    urls: &[String],
    plan: &StreamPlan,
    fetch: &FetchPlan,
    start: Cursor,
    count: usize,
) -> Vec<RawSample> {
    let ledger = Arc::new(Ledger::in_memory(plan));
    let list = ShardList::parse(urls).unwrap();
    let samples = stream(Opening { start, ..Opening::new(list, plan, fetch, Passes::Endless, ledger) });
    pin!(samples).take(count).map(Result::unwrap).collect().await
}

pub fn names(samples: &[RawSample]) -> Vec<(String, Bytes)> {
    samples.iter().map(|sample| (sample.meta.key.clone(), sample.image.clone())).collect()
}

#[tokio::test]
async fn little_room_changes_nothing_but_the_pace() {
    let objects: Vec<Bytes> = ["a", "b", "c", "d", "e"].iter().map(|name| shard(name, 30)).collect();
    let paths = ["/a.tar", "/b.tar", "/c.tar", "/d.tar", "/e.tar"];
    for make in [Answer::Whole, Answer::NoRanges] {
        let answers = paths.iter().zip(&objects).map(|(path, object)| (*path, vec![make(object.to_vec())]));
        let server = Server::start(answers).await;
        let urls = [server.url("/{a,b,c,d,e}.tar")];
        let expected = names(&take(&urls, &plan(), &FetchPlan::default(), Cursor::default(), 250).await);
        for (buffer_mib, connections, ranges) in [(0, 32, 4), (1, 1, 4), (0, 1, 1), (64, 2, 64)] {
            let tight = FetchPlan { buffer_mib, connections, ranges, ..fetch() };
            let plan = StreamPlan { buffer_mib: 0, ..plan() };
            let got = names(&take(&urls, &plan, &tight, Cursor::default(), 250).await);
            assert!(got == expected, "{buffer_mib} MiB, {connections} connections, {ranges} ranges");
        }
    }
}

#[tokio::test]
async fn going_on_fetches_little_more_than_it_needs() {
    let object = shard("a", 3_000);
    let server = Server::start([("/a.tar", vec![Answer::Whole(object.to_vec())])]).await;
    let urls = [server.url("/a.tar")];
    let plan = StreamPlan { lanes: 1, shuffle: 4, buffer_mib: 1, ..plan() };
    let fetch = FetchPlan { range_mib: 0.25, ranges: 2, ..fetch() };
    let undisturbed = take(&urls, &plan, &fetch, Cursor::default(), 2_100).await;
    let before = server.bytes_sent();
    // soon after the checkpoint at 2,000
    let resumed = take(&urls, &plan, &fetch, undisturbed[2_004].cursor.clone(), 50).await;
    assert!(names(&resumed) == names(&undisturbed[2_005..2_055]));
    let fetched = server.bytes_sent() - before;
    assert!(fetched < object.len() / 2, "{fetched} of {} bytes, two thirds of which lie before", object.len());
}
