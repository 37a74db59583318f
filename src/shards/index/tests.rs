//! Tests of the index.

use super::*;
use crate::shards::archive::{Ending, Verdict};
use crate::shards::ledger::ShardEnd;

fn row(offset: u64, verdict: Option<Reason>) -> Row {
    let verdict = verdict.map_or(RowVerdict::Usable, RowVerdict::Lost);
    Row { offset, bytes: 700, width: 40, height: 30, format: "jpeg".into(), verdict }
}

fn stamp(version: &str) -> Stamp {
    Stamp { bytes: Some(4_096), version: Some(version.to_owned()) }
}

fn end(pass: u64, samples: u64) -> ShardEnd {
    let ending = Ending { verdict: Verdict::Complete, trouble: None };
    ShardEnd { samples, ..ShardEnd::new(pass, "a.tar", &ending, 4_096) }
}

#[test]
fn an_index_comes_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let index = Index::new(folder.path().join("index"));
    assert_eq!((index.shard("a.tar").unwrap(), index.totals().unwrap()), (None, (0, 0)));
    let small = Row::without_pixels(2_048, RowVerdict::Filtered(Filtered::TooSmall));
    let rows = vec![row(0, None), row(1_024, Some(Reason::TooManyPixels)), small];
    let written = ShardIndex { shard: "a.tar".into(), stamp: stamp("1"), samples: 3, rows };
    index.write(&written).unwrap();
    assert_eq!(index.shard("a.tar").unwrap(), Some(written.clone()));
    assert_eq!(index.samples("a.tar").unwrap(), Some(3));
    assert_eq!(written.losses(), BTreeMap::from([(Reason::TooManyPixels, 1)]));
    assert_eq!(index.samples("b.tar").unwrap(), None);
    assert_eq!(index.totals().unwrap(), (1, 3));
    index.remove("a.tar").unwrap();
    index.remove("a.tar").unwrap();
    assert_eq!(index.totals().unwrap(), (0, 0));
}

#[test]
fn a_shard_is_indexed_when_the_last_of_its_samples_was_heard_of() {
    let folder = tempfile::tempdir().unwrap();
    let index = Index::new(folder.path());
    let collector = Collector::new(index.clone());
    let shard: Arc<str> = "a.tar".into();
    // decoding hears of samples late and out of order, and a sample twice after a restart within the process
    for offset in [2_048, 0, 2_048] {
        collector.heard(0, &shard, row(offset, None));
    }
    collector.heard(0, &shard, row(1_024, Some(Reason::NoImage)));
    collector.ended(&shard, &end(0, 3), [0, 1_024, 2_048, 3_072].into(), Some(&stamp("1")), Part::WHOLE);
    assert_eq!(index.samples("a.tar").unwrap(), None, "one is still in the shuffle buffer");
    collector.heard(0, &shard, row(3_072, Some(Reason::DecodeFailed)));
    let found = index.shard("a.tar").unwrap().unwrap();
    assert_eq!(found.rows.iter().map(|row| row.offset).collect::<Vec<_>>(), [0, 1_024, 2_048, 3_072]);
    assert_eq!((found.samples, found.stamp), (3, stamp("1")));
    assert!(collector.state().pending.is_empty());
}

#[test]
fn what_was_read_in_part_waits_for_the_next_pass() {
    let folder = tempfile::tempdir().unwrap();
    let index = Index::new(folder.path());
    let collector = Collector::new(index.clone());
    let shard: Arc<str> = "a.tar".into();
    // the run went on in the middle of the shard: the first of two samples was heard of by the process before
    collector.heard(0, &shard, row(1_024, None));
    collector.ended(&shard, &end(0, 2), [0, 1_024].into(), Some(&stamp("1")), Part::WHOLE);
    collector.heard(1, &shard, row(0, None));
    collector.ended(&shard, &ShardEnd { from_byte: 512, ..end(1, 1) }, [0].into(), Some(&stamp("1")), Part::WHOLE);
    assert_eq!(index.samples("a.tar").unwrap(), None);
    for offset in [0, 1_024] {
        collector.heard(2, &shard, row(offset, None));
    }
    collector.ended(&shard, &end(2, 2), [0, 1_024].into(), Some(&stamp("1")), Part::WHOLE);
    assert_eq!(index.samples("a.tar").unwrap(), Some(2));
    // unreachable in the next pass: what is known stays
    collector.ended(&shard, &end(3, 0), [].into(), None, Part::WHOLE);
    assert_eq!(index.samples("a.tar").unwrap(), Some(2));
}

#[test]
fn a_shard_read_from_its_middle_on_is_not_indexed_though_all_its_samples_were_heard_of() {
    let folder = tempfile::tempdir().unwrap();
    let index = Index::new(folder.path());
    let collector = Collector::new(index.clone());
    let shard: Arc<str> = "a.tar".into();
    // they waited in the shuffle buffer; of what was lost before them nobody knows
    for offset in [1_024, 2_048] {
        collector.heard(0, &shard, row(offset, None));
    }
    collector.ended(&shard, &end(0, 2), [1_024, 2_048].into(), None, Part::WHOLE);
    assert_eq!(index.samples("a.tar").unwrap(), None);
}

/// As where a pass was dealt anew to fewer ranks, or lists are mixed.
#[test]
fn parts_of_one_shard_in_one_pass_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let index = Index::new(folder.path());
    let collector = Collector::new(index.clone());
    let shard: Arc<str> = "a.tar".into();
    let part = |member| Part { member, of: 2 };
    // the first part has two samples, and two of three that were heard of are the other's
    for offset in [1_024, 3_072, 0] {
        collector.heard(0, &shard, row(offset, None));
    }
    collector.ended(&shard, &end(0, 2), [0, 2_048].into(), Some(&stamp("1")), part(0));
    collector.ended(&shard, &end(0, 2), [1_024, 3_072].into(), Some(&stamp("1")), part(1));
    assert_eq!(index.shard("a.tar").unwrap(), None);
    collector.heard(0, &shard, row(2_048, None));
    let found = index.shard("a.tar").unwrap().unwrap();
    assert_eq!(found.rows.iter().map(|row| row.offset).collect::<Vec<_>>(), [0, 1_024, 2_048, 3_072]);
    assert!(collector.state().pending.is_empty());
}

#[test]
fn another_version_of_a_shard_has_no_index_until_it_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let index = Index::new(folder.path());
    let shard: Arc<str> = "a.tar".into();
    for (version, expected) in [("1", Some(1)), ("2", None), ("2", Some(1))] {
        let collector = Collector::new(index.clone());
        collector.heard(0, &shard, row(0, None));
        collector.ended(&shard, &end(0, 1), [0].into(), Some(&stamp(version)), Part::WHOLE);
        assert_eq!(index.samples("a.tar").unwrap(), expected, "version {version}");
    }
}
