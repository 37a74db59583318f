//! Streaming from servers whose answers are not what they say, and from ones that do everything wrong in turn.
//!
//! No sample is made of bytes of another place or another version: either the right ones come with a later request, or the shard
//! ends before them, with the reason.

use crate::faults::{assert_loses, assert_recovers, fetch, names, plan, shard, take};
use crate::server::{Reply, Request, Server, Then};
use bytes::Bytes;
use proptest::prelude::*;
use shoal::config::FetchPlan;
use shoal::ingest::Cursor;
use shoal::shards::Reason;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ways to answer a request for a range with something else.
fn lies() -> Vec<fn(&Request, &Bytes) -> Reply> {
    fn honest(request: &Request, object: &Bytes) -> (Reply, usize, usize) {
        let (first, last) = request.range.unwrap();
        (request.honest(object, Some("\"1\"")), first, last.unwrap().min(object.len() - 1))
    }
    vec![
        |request, object| {
            let (reply, first, last) = honest(request, object);
            reply.with("content-range", format!("bytes {}-{last}/{}", first + 1, object.len()))
        },
        |request, object| {
            let (reply, first, last) = honest(request, object);
            reply.with("content-range", format!("bytes {first}-{}/{}", last + 1, object.len() + 5_000))
        },
        |request, object| {
            let (reply, first, last) = honest(request, object);
            reply.with("content-range", format!("bytes {first}-{last}/*"))
        },
        |request, object| {
            let (reply, first, _) = honest(request, object);
            reply.with("content-range", format!("bytes {first}-{first}/{}", object.len()))
        },
        |request, object| {
            let (mut reply, ..) = honest(request, object);
            reply.headers.retain(|(name, _)| *name != "content-range");
            reply.with("content-type", "multipart/byteranges; boundary=x")
        },
        |request, object| {
            let (mut reply, ..) = honest(request, object);
            reply.body = [b"more", &*reply.body].concat().into();
            reply.length = Some(reply.body.len());
            reply
        },
    ]
}

#[tokio::test]
async fn a_lying_range_is_never_spliced_in() {
    let object = shard("a", 40);
    for lie in lies() {
        let served = object.clone();
        assert_recovers(&fetch(), &object, move |request| match request.number % 3 {
            1 => lie(request, &served),
            _ => request.honest(&served, Some("\"1\"")),
        })
        .await;
        let served = object.clone();
        let outcome = assert_loses(Reason::HttpStatus, &object, move |request| match request.range.unwrap().0 {
            first if first > 40_000 => lie(request, &served),
            _ => request.honest(&served, Some("\"1\"")),
        })
        .await;
        assert!(outcome.samples.len() > 10 && outcome.ledger.contains("after 5 attempts"), "{}", outcome.ledger);
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_its_range_is_not_believed() {
    let object = shard("a", 40);
    let served = object.clone();
    assert_loses(Reason::ConnectionLost, &object, move |request| {
        let mut reply = request.honest(&served, Some("\"1\"")).chunked();
        if request.range.unwrap().0 > 40_000 {
            reply.body = [&*reply.body, b"and more"].concat().into();
        }
        reply
    })
    .await;
    let served = object.clone();
    assert_recovers(&fetch(), &object, move |request| {
        let mut reply = request.honest(&served, Some("\"1\"")).chunked();
        reply.body.truncate(10_000);
        reply
    })
    .await;
}

#[tokio::test]
async fn a_server_may_send_less_than_it_is_asked_for() {
    let object = shard("a", 40);
    let served = object.clone();
    assert_recovers(&fetch(), &object, move |request| {
        let (first, last) = request.range.unwrap();
        let less = Request { range: Some((first, last.map(|last| last.min(first + 2_999)))), ..request.clone() };
        less.honest(&served, Some("\"1\""))
    })
    .await;
}

#[tokio::test]
async fn versions_are_never_mixed() {
    // the same names and sizes, other bytes
    let (old, new) = (shard("a", 40), shard("b", 40));
    assert_eq!(old.len(), new.len());
    let longer = shard("b", 41);
    let cases: [(Option<&str>, Option<&str>, &Bytes); 4] = [
        (Some("\"1\""), Some("\"2\""), &new),
        (Some("W/\"1\""), Some("W/\"2\""), &new),
        (None, None, &longer),
        (None, Some("\"2\""), &longer),
    ];
    for (old_tag, new_tag, new) in cases {
        let (before, after) = (old.clone(), new.clone());
        let outcome = assert_loses(Reason::ShardChanged, &old, move |request| match request.number {
            0..3 => request.honest(&before, old_tag),
            _ => request.honest(&after, new_tag),
        })
        .await;
        assert!(outcome.samples.len() > 10);
    }
    // without ranges and tags the bytes themselves tell
    let (before, after) = (old.clone(), new.clone());
    let outcome = assert_loses(Reason::ShardChanged, &old, move |request| match request.number {
        0 => Reply::new(200, before.clone()).cut(40_000, Then::Close),
        _ => Reply::new(200, after.clone()),
    })
    .await;
    assert!(outcome.samples.len() > 10 && outcome.ledger.contains("not what they were"), "{}", outcome.ledger);
}

#[tokio::test]
async fn a_whole_shard_in_place_of_a_range_needs_the_version_that_came_before() {
    let (old, new) = (shard("a", 40), shard("b", 40));
    for old_tag in [None, Some("W/\"1\""), Some("\"1\"")] {
        let (before, after) = (old.clone(), new.clone());
        let outcome = assert_loses(Reason::HttpStatus, &old, move |request| match request.number {
            0..3 => request.honest(&before, old_tag),
            _ => Reply::new(200, after.clone()),
        })
        .await;
        assert!(outcome.samples.len() > 10);
    }
    // a range of it needs one too, where there was one
    let (before, after) = (old.clone(), new);
    assert_loses(Reason::HttpStatus, &old, move |request| match request.number {
        0..3 => request.honest(&before, Some("W/\"1\"")),
        _ => request.honest(&after, None),
    })
    .await;
}

#[tokio::test]
async fn a_length_that_is_told_late_is_the_end() {
    let object = shard("a", 40);
    let served = object.clone();
    assert_recovers(&fetch(), &object, move |request| {
        let first = request.range.unwrap().0;
        let less = Request { range: Some((first, Some(first + 2_999))), ..request.clone() };
        match request.number {
            0 => Reply::new(200, served.clone()).with("etag", "\"1\"").chunked().cut(10_000, Then::Close),
            _ => less.honest(&served, Some("\"1\"")),
        }
    })
    .await;
}

#[tokio::test]
async fn what_lies_behind_bytes_that_never_came_is_not_jumped_to() {
    let large = [b"\xff\xd8\xff\xe0".as_slice(), &[7; 2 << 20]].concat();
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in [("a.jpg", &large[..900]), ("b.jpg", &large[..]), ("c.jpg", &large[..800])] {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, data).unwrap();
    }
    let object = Bytes::from(builder.into_inner().unwrap());
    let served = object.clone();
    let outcome = assert_loses(Reason::HttpStatus, &object, move |request| match request.range.unwrap().0 {
        40_000..2_000_000 => Reply::status(503),
        _ => request.honest(&served, Some("\"1\"")),
    })
    .await;
    assert_eq!(outcome.samples.len(), 1);
}

/// What a server does to one request.
#[derive(Clone, Debug)]
enum Fault {
    None,
    Cut(usize),
    Stall(usize),
    Status(u16),
    IgnoreRange,
    Lie(usize),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::None),
        3 => (0..20_000_usize).prop_map(Fault::Cut),
        1 => (0..20_000_usize).prop_map(Fault::Stall),
        1 => prop::sample::select(vec![408_u16, 429, 500, 503]).prop_map(Fault::Status),
        1 => Just(Fault::IgnoreRange),
        1 => (0..lies().len()).prop_map(Fault::Lie),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_passing_faults_leave_the_stream_as_it_is(mut faults in prop::collection::vec(fault(), 1..24), ranges in 1_usize..5) {
        // each passes at some time
        faults.extend([Fault::None, Fault::None]);
        let objects = BTreeMap::from([("/a.tar".to_owned(), shard("a", 30)), ("/b.tar".to_owned(), shard("b", 45))]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let (whole, served) = (objects.clone(), objects);
            let good = Server::with(move |request| request.honest(&whole[&request.path], Some("\"1\""))).await;
            let expected = take(&[good.url("/{a,b}.tar")], &plan(), &FetchPlan::default(), Cursor::default(), 100).await;
            let turn = AtomicUsize::new(0);
            let bad = Server::with(move |request| {
                let object = &served[&request.path];
                let reply = request.honest(object, Some("\"1\""));
                match &faults[turn.fetch_add(1, Ordering::Relaxed) % faults.len()] {
                    Fault::None => reply,
                    Fault::Cut(sent) => reply.cut(*sent, Then::Close),
                    Fault::Stall(sent) => reply.cut(*sent, Then::Silence),
                    Fault::Status(status) => Reply::status(*status),
                    Fault::IgnoreRange => Reply::new(200, object.clone()).with("etag", "\"1\""),
                    Fault::Lie(which) => lies()[*which](request, object),
                }
            })
            .await;
            let fetch = FetchPlan { timeout_s: 0.03, retries: 200, max_pause_s: 0.001, ranges, ..fetch() };
            let got = take(&[bad.url("/{a,b}.tar")], &plan(), &fetch, Cursor::default(), 100).await;
            assert!(names(&got) == names(&expected));
        });
    }
}
