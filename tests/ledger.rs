//! What the ledger proves: every shard accounted for, also after kill -9; what was lost tried again; and the index that a
//! run leaves behind, against a walk of another hand.

use crate::run::{SMALL, binary, records, root, start, steps};
use crate::server::{Answer, Server};
use futures_util::StreamExt;
use serde_json::Value;
use shoal::config::{FetchPlan, StreamPlan};
use shoal::ingest::{Cursor, Opening, Passes, RawSample, stream};
use shoal::shards::audit::{Judge, audit};
use shoal::shards::index::{Index, Row, RowVerdict};
use shoal::shards::ledger::{self, Entry};
use shoal::shards::replay::{Outcome, Retried, by_shard, replay};
use shoal::shards::{Ledger, Loss, Reason, ShardList};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn plan() -> StreamPlan {
    StreamPlan { lanes: 2, shuffle: 8, max_loss_rate: 1.0, ..StreamPlan::default() }
}

fn fetch() -> FetchPlan {
    FetchPlan { timeout_s: 2.0, retries: 1, ..FetchPlan::default() }
}

fn list(specs: &[String]) -> ShardList {
    ShardList::parse(specs).unwrap()
}

fn repository(name: &str) -> PathBuf {
    root().join("shards").join(name)
}

/// A tar of samples `0`, `1`, ...; those that `has_image` refuses are a text alone.
fn shard(count: usize, has_image: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for i in 0..count {
        let (name, data) = match has_image(i) {
            true => (format!("{i}.jpg"), [b"\xff\xd8\xff\xe0", i.to_string().repeat(300).as_bytes()].concat()),
            false => (format!("{i}.txt"), b"a caption".to_vec()),
        };
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Samples of a list from a cursor on, and the ledger in `folder`.
async fn read(specs: &[String], passes: Passes, start: Cursor, count: usize, ledger: Arc<Ledger>) -> Vec<RawSample> {
    let samples = stream(Opening { start, ..Opening::new(list(specs), &plan(), &fetch(), passes, ledger) });
    pin!(samples).take(count).map(Result::unwrap).collect().await
}

/// Lines of a kind, without their time, in no order.
fn lines(path: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut lines: Vec<_> = lines.filter(|line| line["kind"] == kind).collect();
    for line in &mut lines {
        assert!(line["time"].as_f64() > Some(1e9), "{line}");
        line["time"] = Value::Null;
    }
    lines.sort_by_key(ToString::to_string);
    lines
}

#[tokio::test]
async fn each_kind_of_damage_has_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let names = ["damage.tar", "damage-truncated.tar", "damage-cut-at-boundary.tar", "damage-garbage-header.tar"];
    let mut specs: Vec<_> = names.iter().map(|name| repository(name).display().to_string()).collect();
    fs::write(folder.path().join("page.tar"), "<html>Sign in</html>".repeat(50)).unwrap();
    fs::write(folder.path().join("empty.tar"), vec![0; 1_024]).unwrap();
    specs.push(folder.path().join("{page,empty,gone}.tar").display().to_string());
    let ledger = Arc::new(Ledger::open(&path, &plan()).unwrap());
    let samples = read(&specs, Passes::Once, Cursor::default(), usize::MAX, ledger).await;

    let mut given: BTreeMap<String, u64> = BTreeMap::new();
    for sample in &samples {
        *given.entry(sample.meta.shard.to_string()).or_default() += 1;
    }
    let ends = lines(&path, "shard");
    assert_eq!(ends.len(), 7);
    for end in &ends {
        let shard = end["shard"].as_str().unwrap();
        let name = shard.rsplit('/').next().unwrap();
        let bytes = fs::metadata(shard).map_or(0, |file| file.len());
        let (verdict, read) = match name {
            "damage-truncated.tar" | "damage-cut-at-boundary.tar" => ("truncated", bytes),
            "page.tar" | "gone.tar" => ("failed", 0),
            _ => ("complete", bytes),
        };
        assert_eq!((end["verdict"].as_str(), end["bytes"].as_u64()), (Some(verdict), Some(read)), "{end}");
        assert_eq!(end["samples"].as_u64().unwrap(), given.get(shard).copied().unwrap_or(0), "{end}");
        let of_shard = lines(&path, "loss").into_iter().filter(|loss| loss["shard"] == end["shard"]);
        let mut losses: BTreeMap<String, u64> = BTreeMap::new();
        for loss in of_shard {
            *losses.entry(loss["reason"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        assert_eq!(end["losses"], serde_json::to_value(losses).unwrap(), "{end}");
    }
}

#[tokio::test]
async fn a_shard_that_loses_too_much_is_given_up_at_the_same_sample_from_every_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    // three of five have no image: 60 of the first 100 samples are lost, and the next one, with which the shard is given up
    fs::write(folder.path().join("dirty.tar"), shard(300, |i| i % 5 > 2)).unwrap();
    fs::write(folder.path().join("fine.tar"), shard(150, |_| true)).unwrap();
    let specs = [folder.path().join("{dirty,fine}.tar").display().to_string()];
    let ledger = Arc::new(Ledger::open(&path, &plan()).unwrap());
    let undisturbed = read(&specs, Passes::Endless, Cursor::default(), 400, Arc::clone(&ledger)).await;
    let of_dirty = |sample: &&RawSample| sample.meta.shard.ends_with("dirty.tar") && sample.meta.pass == 0;
    assert_eq!(undisturbed.iter().filter(of_dirty).count(), 40);
    let before = (lines(&path, "shard"), lines(&path, "loss"));
    let end = before.0.iter().find(|end| end["pass"] == 0 && end["verdict"] == "quarantined").expect("a quarantine");
    assert_eq!(end["losses"], serde_json::json!({"no_image": 61, "quarantined": 1}));

    for at in [0, 30, 85, 199] {
        let text = serde_json::to_string(&undisturbed[at].cursor).unwrap();
        let cursor = serde_json::from_str(&text).unwrap();
        let resumed = read(&specs, Passes::Endless, cursor, 150, Arc::clone(&ledger)).await;
        for (resumed, expected) in resumed.iter().zip(&undisturbed[at + 1..]) {
            assert_eq!((resumed.meta.id, &resumed.cursor), (expected.meta.id, &expected.cursor));
        }
    }
    let of_first_pass = |lines: Vec<Value>| lines.into_iter().filter(|line| line["pass"] == 0).collect::<Vec<_>>();
    assert_eq!(of_first_pass(lines(&path, "shard")), of_first_pass(before.0), "no line is written twice");
    assert_eq!(of_first_pass(lines(&path, "loss")), of_first_pass(before.1));

    // what was passed over is tried again from where the shard was given up
    let retried = retry(&list(&specs), &path, Arc::new(|_| Ok(Vec::new()))).await;
    let quarantined: Vec<_> = retried.iter().filter(|retried| retried.loss.reason == Reason::Quarantined).collect();
    assert_eq!(quarantined.len(), 1);
    assert_eq!(quarantined[0].outcome, Outcome::Recovered(80));
    let still = |outcome: fn(&Outcome) -> bool| retried.iter().filter(|retried| outcome(&retried.outcome)).count();
    assert_eq!(still(|outcome| matches!(outcome, Outcome::StillLost(_))), 61);
    assert_eq!(still(|outcome| matches!(outcome, Outcome::NewlyLost(_))), 119);
}

fn losses_in(path: &Path) -> BTreeMap<String, Vec<Loss>> {
    let losses = ledger::read(path).unwrap().into_iter().filter_map(|entry| match entry {
        Entry::Loss(loss) => Some(loss),
        Entry::Shard(_) | Entry::Sum(_) => None,
    });
    by_shard(losses)
}

async fn retry(list: &ShardList, path: &Path, judge: Arc<Judge>) -> Vec<Retried> {
    let shards: Vec<_> =
        replay(list, losses_in(path), &plan(), &fetch(), judge).unwrap().map(Result::unwrap).collect().await;
    shards.concat()
}

#[tokio::test]
async fn a_mended_server_gives_back_what_it_lost_and_no_secret_is_told() {
    let page = b"<html>Sign in</html>".repeat(99);
    let server = Server::start([("/a.tar", vec![Answer::Whole(page), Answer::Whole(shard(40, |_| true))])]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let list = list(&[server.url("/a.tar")]);
    let judge: Arc<Judge> = Arc::new(|_| Ok(Vec::new()));
    let ledger = Arc::new(Ledger::open(&path, &plan()).unwrap());
    let reports: Vec<_> = audit(&list, &plan(), &fetch(), ledger, Arc::clone(&judge)).unwrap().collect().await;
    assert_eq!(reports.len(), 1);
    assert!(!fs::read_to_string(&path).unwrap().contains("secret"));

    let retried = retry(&list, &path, judge).await;
    assert_eq!(retried.len(), 1);
    assert_eq!((retried[0].loss.reason, &retried[0].outcome), (Reason::NotAnArchive, &Outcome::Recovered(40)));
}

/// The program's exit code, stdout and stderr.
fn shoal(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(binary()).current_dir(root()).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Offset, bytes and size of each JPEG in a tar, as the `tar` and `image` crates tell.
fn walk(bytes: &[u8]) -> Vec<(u64, u32, u32, u32)> {
    let mut found = Vec::new();
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let entry = entry.unwrap();
        if entry.path().unwrap().extension().is_none_or(|extension| extension != "jpg") {
            continue;
        }
        let (header, data, size) = (entry.raw_header_position(), entry.raw_file_position(), entry.size());
        let data = &bytes[data as usize..(data + size) as usize];
        let reader = image::ImageReader::new(std::io::Cursor::new(data)).with_guessed_format().unwrap();
        let (width, height) = reader.into_dimensions().unwrap_or_default();
        found.push((header, size as u32, width, height));
    }
    found
}

#[test]
fn damage_that_was_mended_is_recovered_and_other_damage_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let whole = fs::read(repository("photos-000002.tar")).unwrap();
    let (offset, ..) = walk(&whole)[7];
    let mut bad_image = whole.clone();
    bad_image[offset as usize + 512..][..64].fill(b'x');
    let mut bad_header = whole.clone();
    bad_header[offset as usize..][..512].fill(b'y');
    let broken = [
        ("a-image.tar", bad_image),
        ("b-header.tar", bad_header),
        ("c-cut.tar", whole[..whole.len() / 2].to_vec()),
        ("d-page.tar", b"<html>".repeat(200)),
        ("e-trailing.tar", [&whole[..], &whole[..3_000]].concat()),
    ];
    for (name, bytes) in &broken {
        fs::write(at(name), bytes).unwrap();
    }
    let list = at("");
    let (ledger, still) = (at("ledger.jsonl"), at("still.jsonl"));
    assert_eq!(shoal(&["shards", "check", &list, "--ledger", &ledger]).0, Some(3));
    let count = lines(ledger.as_ref(), "loss").len();
    let again = |more: &[&str]| {
        let (code, out, err) =
            shoal(&[&["shards", "check", &list, "--replay", &ledger, "--json", "--jobs", "1"], more].concat());
        let shown: Vec<Value> = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
        (code, shown)
    };

    let (code, shown) = again(&["--out", &still]);
    assert_eq!((code, shown.len()), (Some(3), count));
    assert!(shown.iter().all(|line| line["outcome"] == "still_lost"), "{shown:#?}");
    let keys = |path: &str| -> BTreeSet<_> {
        let lines = lines(path.as_ref(), "loss").into_iter();
        lines.map(|line| (line["shard"].to_string(), line["offset"].to_string(), line["reason"].to_string())).collect()
    };
    assert_eq!(keys(&still), keys(&ledger));

    for (name, _) in &broken[..3] {
        fs::write(at(name), &whole).unwrap();
    }
    fs::write(at("d-page.tar"), &whole[..whole.len() / 2]).unwrap();
    let (code, shown) = again(&[]);
    assert_eq!(code, Some(3));
    for line in &shown {
        let shard = line["shard"].as_str().unwrap();
        let expected = match (shard.rsplit('/').next().unwrap(), line["reason"].as_str().unwrap()) {
            ("d-page.tar", "not_an_archive") => "other_reason",
            ("d-page.tar", _) => "newly_lost",
            ("e-trailing.tar", _) => "still_lost",
            _ => "recovered",
        };
        assert_eq!(line["outcome"], expected, "{line}");
    }

    for (name, _) in &broken {
        fs::write(at(name), &whole).unwrap();
    }
    let (code, shown) = again(&[]);
    assert_eq!((code, shown.len()), (Some(0), count));
    let page = shown.iter().find(|line| line["reason"] == "not_an_archive").unwrap();
    assert_eq!(page["samples"], 225);

    let (code, out, _) = shoal(&["shards", "check", &at("a-image.tar"), "--replay", &ledger]);
    assert_eq!(code, Some(3));
    assert!(out.contains("d-page.tar at byte 0, not_an_archive: not in list"), "{out}");
}

#[test]
fn an_index_says_what_another_walk_finds() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("index").display().to_string();
    let shards = ["shards/photos-000001.tar", "shards/damage.tar", "shards/damage-truncated.tar"];
    let (code, said, _) = shoal(&[&["shards", "index"], &shards[..], &["--out", &out]].concat());
    assert_eq!(code, Some(3));
    assert!(said.starts_with("shards/damage-truncated.tar: truncated_shard"), "{said}");
    let index = Index::new(&out);
    assert_eq!(index.samples(shards[2]).unwrap(), None, "what is not whole has no index");

    let found = index.shard(shards[0]).unwrap().unwrap();
    let rows = |row: &Row| (row.offset, row.bytes, u32::from(row.width), u32::from(row.height));
    let expected = walk(&fs::read(root().join(shards[0])).unwrap());
    assert_eq!(found.rows.iter().map(rows).collect::<Vec<_>>(), expected);
    assert!(found.rows.iter().all(|row| row.verdict == RowVerdict::Usable && row.format == "jpeg"));
    assert_eq!(index.samples(shards[0]).unwrap(), Some(225));

    let damaged = index.shard(shards[1]).unwrap().unwrap();
    let expected = [(Reason::NoImage, 2), (Reason::EmptyImage, 1), (Reason::NotAnImage, 2), (Reason::TooManyPixels, 4)];
    assert_eq!(damaged.losses(), BTreeMap::from(expected));
    assert_eq!((damaged.rows.len(), damaged.samples), (29, 27));

    let (code, totals, _) = shoal(&[&["shards", "list"], &shards[..], &["--index", &out, "--json"]].concat());
    let totals: Value = serde_json::from_str(&totals).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!((totals["indexed"].as_u64(), totals["samples"].as_u64()), (Some(2), Some(252)));
    assert_eq!(totals["losses"]["too_many_pixels"], 4);

    let (_, _, err) = shoal(&["shards", "index", shards[0], "--out", &out]);
    assert!(err.contains("0 shards indexed, 1 were there"), "{err}");
}

const MIXED: &str = "stream.shards=shards/photos-000000.tar::shards/damage.tar::shards/damage-truncated.tar";

fn finish(pipeline: &Path, run: &Path, more: &[&str]) {
    let status = start(pipeline, run, more).wait().unwrap();
    assert!(status.success(), "{status}");
}

/// The lines of the passes that every run of the tests below has ended for certain.
fn settled(run: &Path, kind: &str) -> Vec<Value> {
    let lines = lines(&run.join("ledger.jsonl"), kind);
    lines.into_iter().filter(|line| line["pass"].as_u64() < Some(2)).collect()
}

#[test]
fn a_run_that_was_killed_has_the_lines_and_the_index_of_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = folder.path().join("small.toml");
    fs::write(&pipeline, SMALL).unwrap();
    let [undisturbed, unindexed, killed] = ["undisturbed", "unindexed", "killed"].map(|name| folder.path().join(name));
    let mixed = ["--set", MIXED];
    finish(&pipeline, &undisturbed, &mixed);
    finish(&pipeline, &unindexed, &[&mixed[..], &["--set", "stream.index=off"]].concat());
    for moment in [3, 12, 20, 33] {
        let mut child = start(&pipeline, &killed, &mixed);
        let started = Instant::now();
        while steps(&killed).last().is_none_or(|step| step.0 < moment) {
            assert!(child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(120));
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    finish(&pipeline, &killed, &mixed);

    assert_eq!(steps(&undisturbed), steps(&unindexed), "the stream does not know of an index");
    assert_eq!(steps(&undisturbed), steps(&killed));
    let ends = settled(&undisturbed, "shard");
    assert_eq!(ends.len(), 6, "three shards in two passes");
    assert_eq!(settled(&killed, "shard"), ends);
    assert_eq!(settled(&killed, "loss"), settled(&undisturbed, "loss"));
    assert!(!unindexed.join("index").exists());
    let [expected, found] = [&undisturbed, &killed].map(|run| Index::new(run.join("index")));
    for shard in ["shards/photos-000000.tar", "shards/damage.tar"] {
        let index = expected.shard(shard).unwrap().expect("it was read completely");
        assert_eq!(found.shard(shard).unwrap(), Some(index));
    }
    assert_eq!(expected.samples("shards/damage-truncated.tar").unwrap(), None);

    let (code, shown, _) = shoal(&["inspect", undisturbed.to_str().unwrap(), "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, &shown["index"]), (Some(0), &serde_json::json!({"shards": 2, "samples": 252})));
    assert_eq!(shown["shards"]["0"], serde_json::json!({"complete": 2, "truncated": 1}));
}

#[test]
fn each_encoding_of_the_list_has_lines_of_its_own_also_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = folder.path().join("small.toml");
    fs::write(&pipeline, SMALL).unwrap();
    let [undisturbed, killed] = ["undisturbed", "killed"].map(|name| folder.path().join(name));
    let full = ["--set", MIXED, "--set", "cluster.refresh=full", "--set", "bank.capacity=400"];
    finish(&pipeline, &undisturbed, &full);
    let mut child = start(&pipeline, &killed, &full);
    let started = Instant::now();
    while steps(&killed).last().is_none_or(|step| step.0 < 20) {
        assert!(child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    finish(&pipeline, &killed, &full);

    // lines of encodings by their step, without what tells them from those of another step
    let by_step = |kind: &str| {
        let mut found: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
        for mut line in lines(&undisturbed.join("ledger.jsonl"), kind) {
            if let Some(step) = line["encoding"].take().as_u64() {
                line["pass"] = Value::Null;
                found.entry(step).or_default().push(line);
            }
        }
        found
    };
    let cycles = records(&undisturbed, "cycle");
    let cycles: Vec<u64> = cycles.iter().map(|record| record["step"].as_u64().unwrap()).collect();
    for (kind, least) in [("shard", 3), ("loss", 2)] {
        let encodings = by_step(kind);
        assert_eq!(encodings.keys().copied().collect::<Vec<_>>(), cycles, "{kind}");
        let first = &encodings[&cycles[0]];
        assert!(first.len() >= least && encodings.values().all(|lines| lines == first), "{encodings:#?}");
        assert_eq!(settled(&killed, kind), settled(&undisturbed, kind), "{kind}");
    }
    let of_training = lines(&undisturbed.join("ledger.jsonl"), "shard").into_iter();
    let of_first_pass = of_training.filter(|line| line["encoding"].is_null() && line["pass"] == 0);
    assert_eq!(of_first_pass.count(), 3, "a pass of training has its own lines beside");
}
