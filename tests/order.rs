//! The order of arrival and lists that grow, as a user meets them: servers that are late, and files that come while a run goes on.

use crate::run::{root, small_pipeline, start, steps};
use futures_util::StreamExt;
use shoal::config::{FetchPlan, Order, StreamPlan};
use shoal::ingest::{Cursor, Opening, Passes, RawSample, stream};
use shoal::shards::{Ledger, ShardList};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const SHARDS: usize = 6;
const SAMPLES: usize = 40;

/// A tar of samples `NAME-0`, `NAME-1`, ....
fn shard(name: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for i in 0..SAMPLES {
        let data = [b"\xff\xd8\xff\xe0".to_vec(), vec![b'x'; 300 + 70 * i]].concat();
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("{name}-{i:02}.jpg"), data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Serves `/0.tar` to `/5.tar`; those of `late` not before the gate opens.
async fn serve(late: &'static [usize], gate: watch::Receiver<bool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(answer(socket, late, gate.clone()));
        }
    });
    format!("http://{address}/{{0..{}}}.tar", SHARDS - 1)
}

/// Answers one request, for a range or the whole. A client that leaves early is no failure.
async fn answer(mut socket: TcpStream, late: &[usize], mut gate: watch::Receiver<bool>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = socket.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let name: usize = head.split(['/', '.']).nth(1).unwrap().parse().unwrap();
    if late.contains(&name) && gate.wait_for(|is_open| *is_open).await.is_err() {
        return;
    }
    let body = shard(name);
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
    let (status, from, to) = match range {
        Some((from, to)) => (206, from.parse().unwrap(), to.parse().unwrap_or(body.len() - 1).min(body.len() - 1)),
        None => (200, 0, body.len() - 1),
    };
    let range = match status {
        206 => format!("content-range: bytes {from}-{to}/{}\r\n", body.len()),
        _ => String::new(),
    };
    let length = to + 1 - from;
    let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n{range}connection: close\r\n\r\n");
    let _ = socket.write_all(head.as_bytes()).await;
    let _ = socket.write_all(&body[from..=to]).await;
}

fn opening(spec: &str, start: Cursor) -> Opening {
    let plan = StreamPlan { lanes: 2, shuffle: 12, order: Order::Arrival, ..StreamPlan::default() };
    let fetch = FetchPlan { timeout_s: 600.0, ..FetchPlan::default() };
    let list = ShardList::parse(&[spec.to_owned()]).unwrap();
    let ledger = Arc::new(Ledger::in_memory(&plan));
    Opening { start, ..Opening::new(list, &plan, &fetch, Passes::Endless, ledger) }
}

async fn take(opening: Opening, count: usize) -> Vec<RawSample> {
    pin!(stream(opening)).take(count).map(Result::unwrap).collect().await
}

fn sorted<'a>(samples: impl Iterator<Item = &'a RawSample>) -> Vec<&'a str> {
    let mut keys: Vec<&str> = samples.map(|sample| sample.meta.key.as_str()).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_shards_hold_up_no_other_and_come_later() {
    let all: Vec<String> = (0..SHARDS).flat_map(|name| (0..SAMPLES).map(move |i| format!("{name}-{i:02}"))).collect();
    for late in [&[3][..], &[0, 5]] {
        let (gate, is_open) = watch::channel(false);
        let spec = serve(late, is_open).await;
        let on_time = (SHARDS - late.len()) * SAMPLES;
        let mut running = Box::pin(stream(opening(&spec, Cursor::default())));
        let mut got = Vec::new();
        while got.len() < on_time {
            got.push(running.next().await.unwrap().unwrap());
        }
        let is_late = |sample: &RawSample| late.iter().any(|name| sample.meta.key.starts_with(&name.to_string()));
        assert!(!got.iter().any(is_late), "the gate is shut");

        // killed while it is shut, and again after it has opened
        let resumed = take(opening(&spec, got[99].cursor.clone()), 30).await;
        gate.send_replace(true);
        let rest = take(opening(&spec, resumed[29].cursor.clone()), all.len() - 130).await;
        assert_eq!(sorted(got[..100].iter().chain(&resumed).chain(&rest)), all);
        for at in [0, 57, on_time - 1] {
            let rest = take(opening(&spec, got[at].cursor.clone()), all.len() - at - 1).await;
            assert_eq!(sorted(got[..=at].iter().chain(&rest)), all, "late {late:?}, after {at}");
        }
        while got.len() < all.len() {
            got.push(running.next().await.unwrap().unwrap());
        }
        assert_eq!(sorted(got.iter()), all);
    }
}

fn add_photographs(folder: &Path, number: usize) {
    let name = format!("photos-{number:06}.tar");
    let partial = folder.join(format!("{name}.part"));
    std::fs::copy(root().join("shards").join(&name), &partial).unwrap();
    std::fs::rename(partial, folder.join(name)).unwrap();
}

#[test]
fn a_run_waits_for_the_photographs_that_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let photographs = folder.path().join("photographs");
    std::fs::create_dir(&photographs).unwrap();
    add_photographs(&photographs, 0);
    let shards = format!("stream.shards={}", photographs.display());
    let settings =
        [&*shards, "stream.follow=true", "stream.follow_every_s=0.05", "stream.follow_settle_s=0", "train.steps=9"];
    let more: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let run = folder.path().join("run");
    let mut child = start(&small_pipeline(folder.path()), &run, &more);
    // 225 photographs are 128 for the bank and six batches of 16
    let begun = Instant::now();
    while steps(&run).len() < 6 {
        assert!(child.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(5));
    }
    add_photographs(&photographs, 1);
    assert!(child.wait().unwrap().success());
    assert_eq!(steps(&run).len(), 9);
}
