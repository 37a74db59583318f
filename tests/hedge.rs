//! Ranges that are late, and the second requests for them.
//!
//! A server is quick until enough is known of it, then one range (or all of them) is late. Connections are never given up for
//! their silence here: a stream that waited for the late answer would not end.

use crate::faults::{fetch, plan, shard};
use crate::server::{Reply, Request, Server, Then};
use bytes::Bytes;
use futures_util::StreamExt;
use shoal::config::{FetchPlan, StreamPlan};
use shoal::ingest::{Opening, Passes, Progress, stream};
use shoal::shards::{Ledger, ShardList};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The request that is late: by then there is a usual time, and a second request is in the budget.
const LATE: usize = 40;
const NEVER: Duration = Duration::from_secs(3_600);

fn patient() -> FetchPlan {
    FetchPlan { timeout_s: NEVER.as_secs_f64(), ..fetch() }
}

/// One pass over `/a.tar` of a server that answers like this: the samples, and how many second requests there were.
async fn read(
    fetch: &FetchPlan,
    handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> (Vec<(String, Bytes)>, u64) {
    let server = Server::with(handler).await;
    let ledger = Arc::new(Ledger::in_memory(&plan()));
    let list = ShardList::parse(&[server.url("/a.tar")]).unwrap();
    let progress: Arc<Progress> = Arc::default();
    let opening = Opening::new(list, &plan(), fetch, Passes::Once, Arc::clone(&ledger));
    let samples = stream(Opening { progress: Arc::clone(&progress), ..opening });
    let samples = samples.map(Result::unwrap).map(|sample| (sample.meta.key, sample.image)).collect().await;
    assert_eq!(ledger.losses(), BTreeMap::new());
    (samples, progress.second_requests())
}

async fn undisturbed(object: &Bytes) -> Vec<(String, Bytes)> {
    let served = object.clone();
    read(&patient(), move |request| request.honest(&served, Some("\"1\""))).await.0
}

#[tokio::test]
async fn one_range_that_stalls_is_not_waited_for() {
    let object = shard("a", 600);
    let expected = undisturbed(&object).await;
    assert_eq!(expected.len(), 600);
    for sent in [None, Some(0), Some(5_000)] {
        let served = object.clone();
        let (samples, second_requests) = read(&patient(), move |request| {
            let reply = request.honest(&served, Some("\"1\""));
            match (request.number == LATE, sent) {
                (false, _) => reply,
                (true, None) => Reply { delay: NEVER, ..reply },
                (true, Some(sent)) => reply.cut(sent, Then::Silence),
            }
        })
        .await;
        assert!(samples == expected, "{} of {} samples, {sent:?}", samples.len(), expected.len());
        assert_eq!(second_requests, 1, "{sent:?}");
    }
}

#[tokio::test]
async fn a_second_answer_of_another_version_is_never_spliced_in() {
    let (object, other) = (shard("a", 600), shard("b", 600));
    assert_eq!(object.len(), other.len());
    let expected = undisturbed(&object).await;
    for heeds_if_range in [true, false] {
        let (served, other) = (object.clone(), other.clone());
        let (late, seconds) = (Arc::new(OnceLock::new()), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&seconds);
        let (samples, second_requests) = read(&patient(), move |request| {
            let (first, last) = request.range.unwrap();
            if request.number == LATE {
                late.set((first, last.unwrap())).unwrap();
                let reply = request.honest(&served, Some("\"1\""));
                return Reply { trickle: Some((1_000, Duration::from_millis(200))), ..reply };
            }
            let is_second = late.get().is_some_and(|&(from, to)| (from..=to).contains(&first));
            if !is_second {
                return request.honest(&served, Some("\"1\""));
            }
            count.fetch_add(1, Ordering::Relaxed);
            let known = request.if_range.clone().filter(|_| heeds_if_range);
            Request { if_range: known, ..request.clone() }.honest(&other, Some("\"2\""))
        })
        .await;
        assert!(samples == expected, "samples of another version");
        assert_eq!((seconds.load(Ordering::Relaxed), second_requests), (1, 1), "asked once, and ignored");
    }
}

#[tokio::test]
async fn a_server_that_is_slow_with_everything_is_not_asked_twice_for_everything() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let objects: BTreeMap<String, Bytes> =
        names.iter().map(|name| (format!("/{name}.tar"), shard(name, 100))).collect();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    let server = Server::with(move |request| {
        // quick at first, so that all eight readers then find their ranges late at once
        let is_late = count.fetch_add(1, Ordering::Relaxed) >= 2 * LATE;
        let delay = if is_late { Duration::from_millis(900) } else { Duration::ZERO };
        Reply { delay, ..request.honest(&objects[&request.path], Some("\"1\"")) }
    })
    .await;
    let plan = StreamPlan { lanes: 8, ..plan() };
    let list = ShardList::parse(&[server.url("/{a,b,c,d,e,f,g,h}.tar")]).unwrap();
    let progress: Arc<Progress> = Arc::default();
    let opening = Opening::new(list, &plan, &patient(), Passes::Endless, Arc::new(Ledger::in_memory(&plan)));
    let samples = stream(Opening { progress: Arc::clone(&progress), ..opening });
    let mut keys: Vec<String> = pin!(samples).take(800).map(|sample| sample.unwrap().meta.key).collect().await;
    keys.sort();
    let expected = names.iter().flat_map(|name| (0..100).map(move |i| format!("{name}{i:03}")));
    assert!(keys.into_iter().eq(expected));
    let (requests, second_requests) = (requests.load(Ordering::Relaxed) as u64, progress.second_requests());
    assert!(second_requests * 20 <= requests, "{second_requests} of {requests} requests");
}

#[tokio::test]
async fn without_a_version_or_where_it_is_forbidden_nothing_is_asked_twice() {
    let object = shard("a", 600);
    let expected = undisturbed(&object).await;
    let forbidden = FetchPlan { hedge: false, ..patient() };
    for (fetch, etag) in [(patient(), None), (forbidden, Some("\"1\""))] {
        let served = object.clone();
        let (samples, second_requests) = read(&fetch, move |request| {
            let delay = if request.number == LATE { Duration::from_millis(1_500) } else { Duration::ZERO };
            Reply { delay, ..request.honest(&served, etag) }
        })
        .await;
        assert!(samples == expected);
        assert_eq!(second_requests, 0, "{etag:?}");
    }
}
