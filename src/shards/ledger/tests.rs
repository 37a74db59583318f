//! Tests of the ledger.

use super::*;
use crate::shards::archive::{Ending, Verdict};
use crate::shards::reason::Trouble;
use std::fs::OpenOptions;
use std::io::Write;

fn plan(max_loss_rate: f64, loss_window: usize) -> StreamPlan {
    StreamPlan { max_loss_rate, loss_window, ..StreamPlan::default() }
}

fn loss(pass: u64, offset: u64) -> Loss {
    Loss {
        pass,
        shard: "a.tar".to_owned(),
        key: Some("k".to_owned()),
        offset,
        reason: Reason::NotAnImage,
        detail: "begins with \"<html>\"".to_owned(),
        encoding: None,
    }
}

#[test]
fn what_decoding_loses_counts_against_what_is_decoded() {
    // 1,000 samples were read long before; of 1,000 images 3 % are lost, then 30 %
    for (lost_of_100, stops) in [(3, false), (30, true)] {
        let ledger = Ledger::in_memory(&plan(0.1, 1_000));
        ledger.seen(1_000);
        for image in 0..1_000 {
            ledger.decoded((image % 100 < lost_of_100).then(|| loss(0, image)));
        }
        assert_eq!(ledger.check().is_err(), stops, "{lost_of_100} %");
    }
}

#[test]
fn a_loss_is_written_once_even_across_restarts_and_torn_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let ledger = Ledger::open(&path, &plan(0.1, 10)).unwrap();
    for offset in [0, 512, 0] {
        ledger.lose(loss(0, offset));
    }
    drop(ledger);
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"time\": 17").unwrap();

    let ledger = Ledger::open(&path, &plan(0.1, 10)).unwrap();
    for (pass, offset) in [(0, 512), (1, 512), (0, 1024)] {
        ledger.lose(loss(pass, offset));
    }
    assert_eq!(ledger.losses(), BTreeMap::from([(Reason::NotAnImage, 4)]));
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let at: Vec<_> = lines.iter().map(|line| (line["pass"].as_u64(), line["offset"].as_u64())).collect();
    assert_eq!(at, [(0, 0), (0, 512), (1, 512), (0, 1024)].map(|(pass, offset)| (Some(pass), Some(offset))));
    assert_eq!((&lines[0]["reason"], &lines[0]["shard"]), (&"not_an_image".into(), &"a.tar".into()));
    assert!(lines[0]["time"].as_f64().unwrap() > 1e9);
}

#[test]
fn nothing_is_written_behind_a_line_that_could_not_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let ledger = Ledger::open(&path, &plan(1.0, 10)).unwrap();
    ledger.lose(loss(0, 0));
    // the disk was full in the middle of a line
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"time\": 17").unwrap();
    ledger.state().write_failure = Some("cannot write".to_owned());
    ledger.lose(loss(0, 512));
    assert!(ledger.check().is_err());
    assert_eq!(read(&path).unwrap(), [Entry::Loss(loss(0, 0))]);
}

#[test]
fn something_else_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    std::fs::write(&path, "my notes\n").unwrap();
    assert!(Ledger::open(&path, &plan(0.1, 10)).unwrap_err().to_string().contains("line 1"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "my notes\n");
}

#[test]
fn the_rate_stops_a_run_only_over_a_full_window() {
    let ledger = Ledger::in_memory(&plan(0.1, 100));
    for offset in 0..99 {
        ledger.seen(1);
        ledger.lose(loss(0, offset));
        assert!(ledger.check().is_ok());
    }
    ledger.seen(1);
    let error = ledger.check().unwrap_err();
    assert_eq!(error.exit_code(), 3);
    for part in ["99.0 %", "last 100 samples", "not_an_image (99 times)", "a.tar at byte 98"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    ledger.seen(90);
    assert!(ledger.check().is_ok(), "nine losses among the last hundred are within a tenth");
}

#[test]
fn what_is_passed_over_is_counted_and_no_loss() {
    let ledger = Ledger::in_memory(&plan(0.1, 10));
    for image in 0..100 {
        ledger.pass_over(Filtered::TooSmall);
        ledger.decoded((image == 50).then(|| loss(0, image)));
    }
    assert!(ledger.check().is_ok());
    assert_eq!(ledger.filtered(), FilteredCounts::from([(Filtered::TooSmall, 100)]));
    assert_eq!(ledger.losses(), BTreeMap::from([(Reason::NotAnImage, 1)]));
}

fn end(worked: bool) -> ShardEnd {
    let verdict = if worked { Verdict::Complete } else { Verdict::Failed(Reason::NotFound) };
    ShardEnd::new(0, "a.tar", &Ending { verdict, trouble: None }, 1_024)
}

#[test]
fn failing_shards_stop_a_run() {
    let ledger = Ledger::in_memory(&plan(0.1, 1_000));
    for _ in 0..FIRST_SHARDS {
        assert!(ledger.check().is_ok());
        ledger.shard_done(end(false));
    }
    assert!(ledger.check().unwrap_err().to_string().contains("none of the first 32 shards"));

    let ledger = Ledger::in_memory(&plan(0.1, 1_000));
    for shard in 0..SHARD_WINDOW {
        assert!(ledger.check().is_ok());
        ledger.shard_done(end(shard % 5 > 0));
    }
    assert!(ledger.check().unwrap_err().to_string().contains("20.0 % of the last 100 shards"));
}

#[test]
fn the_names_of_reasons_are_distinct() {
    let names: HashSet<_> = Reason::ALL
        .iter()
        .map(|reason| reason.name())
        .chain(Notice::ALL.iter().map(|notice| notice.name()))
        .chain(Filtered::ALL.iter().map(|filtered| filtered.name()))
        .collect();
    assert_eq!(names.len(), Reason::ALL.len() + Notice::ALL.len() + Filtered::ALL.len());
}

fn kinds(path: &Path) -> Vec<(String, u64)> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|line| (line["kind"].as_str().unwrap().to_owned(), line["pass"].as_u64().unwrap_or(99))).collect()
}

#[test]
fn the_end_of_a_shard_is_written_once_and_again_only_where_it_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let quarantined = Ending::failed(Trouble::new(Reason::Quarantined, "too much of it"));
    for _ in 0..2 {
        let ledger = Ledger::open(&path, &plan(0.1, 10)).unwrap();
        ledger.shard_done(end(true));
        ledger.shard_done(end(true));
        ledger.shard_done(ShardEnd { pass: 1, samples: 7, ..end(true) });
        ledger.shard_done(ShardEnd::new(1, "a.tar", &quarantined, 512));
    }
    let shard = |pass| ("shard".to_owned(), pass);
    assert_eq!(kinds(&path), [shard(0), shard(1), shard(1)]);
    let entries = read(&path).unwrap();
    assert!(matches!(&entries[2], Entry::Shard(end) if end.verdict == ShardVerdict::Quarantined && !end.worked()));
}

#[test]
fn lines_without_a_kind_are_losses() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let line = r#"{"time":1.5,"pass":0,"shard":"a.tar","key":null,"offset":512,"reason":"not_an_image","detail":""}"#;
    std::fs::write(&path, format!("{line}\n")).unwrap();
    let ledger = Ledger::open(&path, &plan(0.1, 10)).unwrap();
    ledger.lose(loss(0, 512));
    assert_eq!(ledger.losses(), BTreeMap::from([(Reason::NotAnImage, 1)]));
}

#[test]
fn old_passes_are_folded_together_and_every_loss_stays_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let ledger = Ledger::open_folding(&path, &plan(1.0, 10), 1_000).unwrap();
    for pass in 0..6 {
        for offset in 0..5 {
            ledger.lose(loss(pass, offset));
        }
        ledger.shard_done(ShardEnd { pass, samples: 11, ..end(true) });
    }
    ledger.ensure_written().unwrap();
    drop(ledger);
    let ledger = Ledger::open_folding(&path, &plan(1.0, 10), 1_000).unwrap();
    assert_eq!(ledger.losses(), BTreeMap::from([(Reason::NotAnImage, 30)]));
    let entries = read(&path).unwrap();
    let Entry::Sum(sum) = &entries[0] else { panic!("{:?}", entries[0]) };
    assert_eq!((sum.through_pass, sum.shards, sum.samples), (3, 4, 44));
    assert_eq!(entries[1..].iter().map(Entry::pass).collect::<Vec<_>>(), [[4; 6], [5; 6]].concat());
    assert!(!path.with_extension("jsonl.new").exists());
}

#[test]
fn encodings_of_the_list_are_readings_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    for _ in 0..2 {
        // the second time after a restart from before all of it
        let ledger = Ledger::open(&path, &plan(1.0, 10)).unwrap();
        ledger.reads_from_pass(3);
        ledger.lose(loss(3, 0));
        for step in [100, 200] {
            let encoding = ledger.for_encoding(3, step);
            encoding.reads_from_pass(0);
            encoding.lose(loss(0, 0));
            encoding.decoded(Some(loss(0, 512)));
            encoding.shard_done(ShardEnd { samples: 7, ..end(true) });
        }
        ledger.shard_done(ShardEnd { pass: 3, samples: 7, ..end(true) });
        assert_eq!(ledger.losses(), BTreeMap::from([(Reason::NotAnImage, 5)]));
        assert_eq!(ledger.state().known.keep_from, Some(2), "where training stands");
    }
    let found: Vec<_> = read(&path)
        .unwrap()
        .into_iter()
        .map(|entry| match entry {
            Entry::Loss(loss) => (loss.pass, loss.encoding, Some(loss.offset)),
            Entry::Shard(end) => (end.pass, end.encoding, None),
            Entry::Sum(sum) => panic!("{sum:?}"),
        })
        .collect();
    let of = |step: u64| [(3, Some(step), Some(0)), (3, Some(step), Some(512)), (3, Some(step), None)];
    let expected: Vec<_> =
        [(3, None, Some(0))].into_iter().chain(of(100)).chain(of(200)).chain([(3, None, None)]).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_is_past_is_folded_within_a_pass_that_never_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let open = || Ledger::open_folding(&path, &plan(1.0, 10), 2_000).unwrap();
    let ledger = open();
    ledger.reads_from_pass(0);
    let mut largest = 0;
    for number in 0..500 {
        let shard = format!("{number}.tar");
        for _ in 0..2 {
            ledger.lose(Loss { shard: shard.clone(), ..loss(0, 0) });
            ledger.shard_done(ShardEnd { shard: shard.clone(), samples: 3, ..end(true) });
        }
        let is_past = |entry: &Entry| match entry {
            Entry::Loss(loss) => loss.shard != shard,
            Entry::Shard(end) => end.shard != shard,
            Entry::Sum(_) => false,
        };
        ledger.settle(is_past);
        largest = largest.max(std::fs::metadata(&path).unwrap().len());
        assert!(ledger.state().known.count < 30, "what is folded is forgotten");
    }
    assert!(largest < 3_000, "{largest} bytes");
    drop(ledger);
    let ledger = open();
    ledger.lose(Loss { shard: "499.tar".to_owned(), ..loss(0, 0) });
    assert_eq!(ledger.losses(), BTreeMap::from([(Reason::NotAnImage, 500)]), "none forgotten, and none counted twice");
    let mut samples = 0;
    for (line, entry) in read(&path).unwrap().into_iter().enumerate() {
        match entry {
            Entry::Sum(sum) => {
                assert_eq!(line, 0, "one line for all that is past");
                samples += sum.samples;
            }
            Entry::Shard(end) => samples += end.samples,
            Entry::Loss(_) => {}
        }
    }
    assert_eq!(samples, 1_500);
}

#[test]
fn a_list_that_is_behind_keeps_its_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let ledger = Ledger::open_folding(&path, &plan(1.0, 10), 100).unwrap();
    for pass in 0..6 {
        ledger.reads_from_pass(if pass < 5 { 1 } else { 3 });
        ledger.lose(loss(pass, 0));
    }
    ledger.ensure_written().unwrap();
    let entries = read(&path).unwrap();
    assert!(matches!(&entries[0], Entry::Sum(sum) if sum.through_pass == 1));
    assert_eq!(entries[1..].iter().map(Entry::pass).collect::<Vec<_>>(), [2, 3, 4, 5]);
}

#[test]
fn what_is_remembered_is_bounded_by_two_passes() {
    let mut known = Known::default();
    let each = REMEMBERED as u64 / 2 + 1;
    for pass in 0..4 {
        for fingerprint in 0..each {
            assert!(known.insert(pass, fingerprint));
        }
    }
    assert_eq!(known.passes.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert_eq!(known.count as u64, 2 * each);
    assert!(!known.insert(3, 0) && !known.insert(2, 0));
}
