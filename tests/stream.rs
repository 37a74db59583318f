//! Streaming from folders and from web servers, good and bad, through the public interface.

use crate::server::{Answer, Server};
use futures_util::StreamExt;
use shoal::config::{FetchPlan, StreamPlan};
use shoal::ingest::{Cursor, Opening, Passes, Progress, RawSample, stream};
use shoal::shards::archive::Archive;
use shoal::shards::audit::{audit, glance};
use shoal::shards::pack::{PackOptions, pack};
use shoal::shards::source::Fetcher;
use shoal::shards::{Ledger, Notice, Reading, Reason, ShardList, ShardUrl, Trouble, Verdict};
use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

fn image(text: &str) -> Vec<u8> {
    [b"\xff\xd8\xff\xe0", text.as_bytes()].concat()
}

/// A tar of samples `NAME0`, `NAME1`, ... of about 2 kB each.
fn shard(name: &str, count: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for i in 0..count {
        let data = image(&format!("{name}{i}").repeat(400));
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("{name}{i}.jpg"), data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn plan() -> StreamPlan {
    StreamPlan { lanes: 2, shuffle: 8, max_loss_rate: 1.0, ..StreamPlan::default() }
}

fn list(specs: &[String]) -> ShardList {
    ShardList::parse(specs).unwrap()
}

fn fetch() -> FetchPlan {
    FetchPlan { timeout_s: 2.0, retries: 2, max_pause_s: 0.1, ..FetchPlan::default() }
}

/// One pass over these shards, in the order of the list.
fn once(specs: &[String], plan: &StreamPlan, fetch: &FetchPlan, ledger: &Arc<Ledger>) -> Opening {
    Opening::new(list(specs), plan, fetch, Passes::Once, Arc::clone(ledger))
}

/// One pass in the order of the list: keys, and the losses.
async fn read_once(specs: &[String]) -> (Vec<String>, BTreeMap<Reason, u64>) {
    let ledger = Arc::new(Ledger::in_memory(&plan()));
    let samples = stream(once(specs, &plan(), &fetch(), &ledger));
    let keys = samples.map(|sample| sample.unwrap().meta.key).collect().await;
    (keys, ledger.losses())
}

fn keys(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{name}{i}")).collect()
}

#[tokio::test]
async fn shards_come_over_http() {
    let server = Server::start([
        ("/a.tar", vec![Answer::Whole(shard("a", 3))]),
        ("/b.tar", vec![Answer::Status(503), Answer::Status(429), Answer::Whole(shard("b", 2))]),
    ])
    .await;
    let (got, losses) = read_once(&[server.url("/{a,b}.tar")]).await;
    assert_eq!(got, [keys("a", 3), keys("b", 2)].concat());
    assert_eq!((losses, server.requests("/b.tar")), (BTreeMap::new(), 3));
}

#[tokio::test]
async fn a_list_of_files_may_gain_a_shard_on_a_server() {
    let server = Server::start([("/a.tar", vec![Answer::Whole(shard("a", 1))])]).await;
    let (fetcher, url) = (Fetcher::new(&[], &fetch()).unwrap(), ShardUrl::remote(&server.url("/a.tar")));
    let open = move || Archive::open(&url, &fetcher, &Reading::new(Arc::clone(url.name()))).map(drop);
    tokio::task::spawn_blocking(open).await.unwrap().unwrap();
}

#[tokio::test]
async fn bad_servers_cost_their_shards_and_are_named_without_secrets() {
    let whole = shard("c", 40);
    let server = Server::start([
        ("/ok.tar", vec![Answer::Whole(shard("ok", 2))]),
        ("/busy.tar", vec![Answer::Status(503)]),
        ("/private.tar", vec![Answer::Status(403)]),
        ("/login.tar", vec![Answer::Whole(b"<html>Sign in</html>".repeat(99))]),
        ("/cut.tar", vec![Answer::Cut(whole.clone(), 30_000)]),
        ("/stall.tar", vec![Answer::Stall(whole.clone(), 30_000)]),
    ])
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let ledger = Arc::new(Ledger::open(&path, &plan()).unwrap());
    let specs = [server.url("/{missing,busy,private,login,cut,stall,ok}.tar"), "http://127.0.0.1:1/x.tar".to_owned()];
    let samples = stream(once(&specs, &plan(), &fetch(), &ledger));
    let got: Vec<String> = samples.map(|sample| sample.unwrap().meta.key).collect().await;

    let header_and_data = |i: usize| 512 + (4 + format!("c{i}").len() * 400_usize).next_multiple_of(512);
    let mut end = 0;
    // a sample is whole for certain once the next header has come
    let before_cut = (0..40)
        .take_while(|&i| {
            end += header_and_data(i);
            end + 512 <= 30_000
        })
        .count();
    assert!(before_cut > 10);
    assert_eq!(got, [keys("c", before_cut), keys("c", before_cut), keys("ok", 2)].concat());
    // a broken connection costs the sample under way, and is itself recorded
    let expected = BTreeMap::from([
        (Reason::NotFound, 1),
        (Reason::HttpStatus, 1),
        (Reason::Forbidden, 1),
        (Reason::NotAnArchive, 1),
        (Reason::ConnectionLost, 4),
        (Reason::Unreachable, 1),
    ]);
    assert_eq!(ledger.losses(), expected);
    assert_eq!(
        (server.requests("/missing.tar"), server.requests("/private.tar"), server.requests("/busy.tar")),
        (1, 1, 3)
    );
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("/cut.tar") && text.contains("<html>Sign in") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_reader_that_rests_longer_than_the_patience_with_servers_loses_nothing() {
    let count = 5_000; // more than sockets and channels hold
    let server = Server::start([("/a.tar", vec![Answer::Whole(shard("a", count))])]).await;
    let plan = StreamPlan { buffer_mib: 1, ..plan() };
    let fetch = FetchPlan { timeout_s: 0.3, ..fetch() };
    let ledger = Arc::new(Ledger::in_memory(&plan));
    let mut samples = pin!(stream(once(&[server.url("/a.tar")], &plan, &fetch, &ledger)));
    let mut got = Vec::new();
    while let Some(sample) = samples.next().await {
        got.push(sample.unwrap().meta.key);
        if got.len() == 10 {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await; // a clustering, say
        }
    }
    assert_eq!((got, ledger.losses()), (keys("a", count), BTreeMap::new()));
}

/// Takes so many samples of an endless stream.
async fn take(specs: &[String], start: Cursor, count: usize) -> Vec<RawSample> {
    let ledger = Arc::new(Ledger::in_memory(&plan()));
    let opening = Opening::new(list(specs), &plan(), &fetch(), Passes::Endless, ledger);
    let samples = stream(Opening { start, ..opening });
    pin!(samples).take(count).map(Result::unwrap).collect().await
}

#[tokio::test]
async fn a_remote_stream_goes_on_from_a_cursor_with_and_without_ranges() {
    // larger than what is read rather than jumped
    let (a, b) = (shard("a", 900), shard("b", 300));
    for make in [Answer::Whole, Answer::NoRanges] {
        let server = Server::start([("/a.tar", vec![make(a.clone())]), ("/b.tar", vec![make(b.clone())])]).await;
        let specs = [server.url("/{a,b}.tar")];
        let undisturbed = take(&specs, Cursor::default(), 1_250).await;
        for at in [0, 500, 1_100, 1_199] {
            let text = serde_json::to_string(&undisturbed[at].cursor).unwrap();
            assert!(!text.contains("secret"));
            let resumed = take(&specs, serde_json::from_str(&text).unwrap(), 40).await;
            for (resumed, expected) in resumed.iter().zip(&undisturbed[at + 1..]) {
                assert_eq!(
                    (&resumed.meta.key, &resumed.image, resumed.meta.id),
                    (&expected.meta.key, &expected.image, expected.meta.id)
                );
                assert_eq!(resumed.cursor, expected.cursor);
            }
        }
    }
}

#[tokio::test]
async fn dropping_a_stream_leaves_a_silent_server_at_once() {
    let server = Server::start([("/stall.tar", vec![Answer::Stall(shard("c", 40), 9_000)])]).await;
    let progress = Arc::new(Progress::default());
    let fetch = FetchPlan { timeout_s: 3_600.0, ..fetch() };
    let ledger = Arc::new(Ledger::in_memory(&plan()));
    let opening = once(&[server.url("/stall.tar")], &plan(), &fetch, &ledger);
    let mut samples = Box::pin(stream(Opening { progress: Arc::clone(&progress), ..opening }));
    assert!(samples.next().await.is_some());
    let waiting = loop {
        // polls the stream until it waits for the server
        let _ = tokio::time::timeout(std::time::Duration::from_millis(20), samples.next()).await;
        let Some(waiting) = progress.waiting() else { continue };
        break waiting;
    };
    assert!(waiting.shard.ends_with("/stall.tar"), "{waiting:?}");
    let readings: Vec<_> = progress.open().iter().map(Arc::downgrade).collect();
    drop((samples, waiting));
    let gone = async {
        while readings.iter().any(|reading| reading.strong_count() > 0) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), gone).await.expect("its threads and tasks end");
}

/// Measures a process of its own: the peak of this one belongs to all tests.
#[test]
fn a_huge_member_is_passed_over_without_memory() {
    const INSIDE: &str = "SHOAL_TEST_HUGE_MEMBER";
    if std::env::var_os(INSIDE).is_some() {
        tokio::runtime::Runtime::new().unwrap().block_on(pass_over_huge_members());
        return;
    }
    let test = ["--exact", "stream::a_huge_member_is_passed_over_without_memory"];
    let output =
        std::process::Command::new(std::env::current_exe().unwrap()).args(test).env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

async fn pass_over_huge_members() {
    let folder = tempfile::tempdir().unwrap();
    // 3 GiB of zeros that the disk does not hold, between two samples
    let size: u64 = 3 << 30;
    let mut header = tar::Header::new_gnu();
    header.set_path("b.jpg").unwrap();
    header.set_size(size);
    header.set_cksum();
    let (before, after) = (shard("a", 1), shard("c", 1));
    let begin = before.len() as u64 - 1_024;
    let write = |name: &str, parts: &[(&[u8], u64)]| {
        let file = std::fs::File::create(folder.path().join(name)).unwrap();
        for (bytes, offset) in parts {
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, *offset).unwrap();
        }
        folder.path().join(name).display().to_string()
    };
    let whole = write("huge.tar", &[(&before, 0), (header.as_bytes(), begin), (&after, begin + 512 + size)]);
    // says that it is as large, and ends
    let bluff = write("bluff.tar", &[(&before, 0), (header.as_bytes(), begin), (&[1; 2_000], begin + 512)]);
    let peak_before = peak_memory();
    let (got, losses) = read_once(&[whole, bluff]).await;
    assert_eq!(got, ["a0", "c0", "a0"]);
    // the sample of the bluff is lost for its own size, whether the rest comes or not; its shard for the end that is missing
    assert_eq!(losses, BTreeMap::from([(Reason::MemberTooLarge, 2), (Reason::TruncatedShard, 1)]));
    assert!(peak_memory() - peak_before < 50 << 20);
}

/// Largest resident size of this process so far, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn photos(folder: &Path, count: usize) {
    for class in ["cat", "dog"] {
        std::fs::create_dir_all(folder.join(class)).unwrap();
        for i in 0..count {
            std::fs::write(folder.join(format!("{class}/{i:02}.jpg")), image(&format!("{class}{i}"))).unwrap();
        }
    }
}

#[tokio::test]
async fn what_was_packed_comes_back() {
    let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    photos(folder.path(), 9);
    let options = PackOptions { max_samples: 5, ..PackOptions::default() };
    let packed = pack(folder.path(), &out.path().join("pets.tar.zst"), &options).unwrap();
    assert_eq!((packed.shards.len(), packed.samples), (4, 18));
    let ledger = Arc::new(Ledger::in_memory(&plan()));
    let specs = [out.path().display().to_string()];
    let samples = stream(once(&specs, &plan(), &fetch(), &ledger));
    let mut count = 0;
    for sample in samples.collect::<Vec<_>>().await {
        let sample = sample.unwrap();
        let original = std::fs::read(folder.path().join(format!("{}.jpg", sample.meta.key))).unwrap();
        assert_eq!(sample.image, original);
        assert_eq!(sample.meta.class, Some(i64::from(sample.meta.key.starts_with("dog"))));
        count += 1;
    }
    assert_eq!(count, 18);
}

#[tokio::test]
async fn an_audit_accounts_for_every_shard() {
    let folder = tempfile::tempdir().unwrap();
    let whole = shard("a", 4);
    std::fs::write(folder.path().join("0.tar"), &whole).unwrap();
    std::fs::write(folder.path().join("1.tar"), &whole[..whole.len() - 2_000]).unwrap();
    std::fs::write(folder.path().join("2.tar"), "no tar").unwrap();
    let list = list(&[folder.path().display().to_string()]);
    let ledger = Arc::new(Ledger::in_memory(&plan()));
    let judge = |sample: &shoal::shards::ShardSample| match sample.key.as_str() {
        "a1" => Err(Trouble::new(Reason::DecodeFailed, "as the test wants it").into()),
        _ => Ok(vec![Notice::Rotated]),
    };
    let reports: Vec<_> = audit(&list, &plan(), &fetch(), Arc::clone(&ledger), Arc::new(judge))
        .unwrap()
        .map(Result::unwrap)
        .collect()
        .await;
    let shown: Vec<_> = reports.iter().map(|report| (report.ending.verdict, report.samples)).collect();
    let cut = whole.len() as u64 - 2_000;
    assert_eq!(
        shown,
        [(Verdict::Complete, 3), (Verdict::TruncatedAt(cut), 2), (Verdict::Failed(Reason::NotAnArchive), 0)]
    );
    assert_eq!(reports[0].bytes, whole.len() as u64);
    assert_eq!(reports[1].losses, BTreeMap::from([(Reason::DecodeFailed, 1), (Reason::TruncatedShard, 2)]));
    assert_eq!(ledger.losses().values().sum::<u64>(), 5);
    assert_eq!(ledger.notices(), BTreeMap::from([(Notice::Rotated, 5)]));

    let glances: Vec<_> = glance(&list, &plan(), &fetch()).unwrap().map(Result::unwrap).collect().await;
    assert_eq!(glances[0].beginning.as_ref().unwrap().first_key.as_deref(), Some("a0"));
    assert_eq!(glances[0].beginning.as_ref().unwrap().stored_bytes, Some(whole.len() as u64));
    assert_eq!(glances[2].beginning.as_ref().unwrap_err().reason, Reason::NotAnArchive);
}
