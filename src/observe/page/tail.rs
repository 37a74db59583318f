//! The records of a run as they are written: what `metrics.jsonl` holds, read as far as it has grown.
//!
//! The page reads the file and not the trainer, so that nothing it does can hold up a step, and so that a run that has ended looks as one
//! under way. A run for months has more records than a page can use: of steps and of cycles, the older half is thinned out by every second
//! one whenever there are too many, and of thousands of clusters only some sizes are kept.

use crate::error::{Error, Result};
use crate::train::record::Record;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom};
use std::mem::{Discriminant, discriminant};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Records of one kind that are held, at most.
const MOST: usize = 20_000;
/// Sizes of clusters that are held of a cycle, at most, spread evenly from the largest to the smallest.
const MOST_SIZES: usize = 500;

/// Records so far, and where the next begins.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    /// Device and number of the file that was read.
    file: Option<(u64, u64)>,
    offset: u64,
    records: Vec<Record>,
    /// How many of them are of each kind.
    counts: HashMap<Discriminant<Record>, usize>,
}

impl Tail {
    /// Nothing yet of the run in this folder.
    pub(super) fn of(run: &Path) -> Self {
        Self { path: run.join("metrics.jsonl"), file: None, offset: 0, records: Vec::new(), counts: HashMap::new() }
    }

    /// Reads what has come since; all anew where it is another file, as after a resumption, or shorter than before.
    pub(super) fn read_on(&mut self) -> Result<&[Record]> {
        let path = self.path.clone();
        let failed = |error: &std::io::Error| Error::file("read", &path, error);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(&self.records),
            Err(error) => return Err(failed(&error)),
        };
        let metadata = file.metadata().map_err(|error| failed(&error))?;
        let identity = Some((metadata.dev(), metadata.ino()));
        if self.file != identity || metadata.len() < self.offset {
            (self.file, self.offset) = (identity, 0);
            self.records.clear();
            self.counts.clear();
        }
        file.seek(SeekFrom::Start(self.offset)).map_err(|error| failed(&error))?;
        let mut reader = BufReader::new(file);
        let mut line = String::new();
        loop {
            line.clear();
            let read = reader.read_line(&mut line).map_err(|error| failed(&error))?;
            // a line that has no end yet is read when it has
            if read == 0 || !line.ends_with('\n') {
                break;
            }
            self.offset += read as u64;
            if let Ok(record) = serde_json::from_str(&line) {
                self.keep(lightened(record));
            }
        }
        Ok(&self.records)
    }

    /// Adds a record. Where there are too many of its kind, every second of the older half of them is left out.
    fn keep(&mut self, record: Record) {
        let kind = discriminant(&record);
        self.records.push(record);
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= MOST {
            return;
        }
        let (mut older, mut number) = (*count / 2, 0_usize);
        *count -= older.div_ceil(2);
        self.records.retain(|record| {
            if older == 0 || discriminant(record) != kind {
                return true;
            }
            older -= 1;
            number += 1;
            number.is_multiple_of(2)
        });
    }
}

/// A record with fewer sizes of clusters, where there are thousands.
fn lightened(record: Record) -> Record {
    let Record::Cycle(mut cycle) = record else { return record };
    let count = cycle.sizes.len();
    if count > MOST_SIZES {
        cycle.sizes = (0..MOST_SIZES).map(|at| cycle.sizes[at * (count - 1) / (MOST_SIZES - 1)]).collect();
    }
    Record::Cycle(cycle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    fn line(step: u64) -> String {
        json!({"kind": "alarm", "step": step, "alarm": "test", "message": ""}).to_string() + "\n"
    }

    fn steps(tail: &mut Tail) -> Vec<u64> {
        tail.read_on().expect("readable").iter().map(Record::step).collect()
    }

    #[test]
    fn what_is_added_is_read_once_it_is_whole() {
        let run = tempfile::tempdir().expect("a temporary folder");
        let mut tail = Tail::of(run.path());
        assert_eq!(steps(&mut tail), [0_u64; 0]);
        let path = run.path().join("metrics.jsonl");
        let third = line(30);
        fs::write(&path, line(10) + "not a record\n" + &line(20) + &third[..12]).expect("a file");
        assert_eq!(steps(&mut tail), [10, 20]);
        let mut file = OpenOptions::new().append(true).open(&path).expect("a file");
        file.write_all(&third.as_bytes()[12..]).expect("the rest");
        assert_eq!(steps(&mut tail), [10, 20, 30]);
        let aside = run.path().join("aside");
        let resumed: String = (0..9).map(line).collect();
        fs::write(&aside, resumed).expect("a longer file");
        fs::rename(&aside, &path).expect("a resumed run cuts its file");
        assert_eq!(steps(&mut tail), (0..9).collect::<Vec<u64>>());
    }

    #[test]
    fn a_long_run_keeps_its_newest_steps_whole() {
        let run = tempfile::tempdir().expect("a temporary folder");
        let step = |step: usize| {
            json!({"kind": "step", "step": step, "images": 1, "loss": 3.5, "lr": 0.1, "images_per_s": 64.0, "wait_data_s": 0.1,
            "assign_s": 0.1, "train_s": 0.2, "label_entropy": 1.5, "largest_share": 0.1, "losses": {}, "pass": 1, "ids": "",
            "next_cycle": null}).to_string() + "\n"
        };
        let lines: String = (0..=MOST).map(step).collect();
        fs::write(run.path().join("metrics.jsonl"), line(0) + &lines).expect("a file");
        let found = steps(&mut Tail::of(run.path()));
        assert_eq!(found.len(), 1 + MOST / 2 + 1 + MOST / 4);
        assert!(found.ends_with(&[19_998, 19_999, 20_000]));
    }

    #[test]
    fn of_thousands_of_clusters_some_sizes_are_kept() {
        let sizes: Vec<u64> = (0..10_000).rev().collect();
        let line = json!({"kind": "cycle", "step": 1, "cycle": 1, "rows": 6, "objective": 0.5, "nmi_prev": null, "nmi_labels": null,
            "reassigned": null, "empty": 0, "largest_share": 0.5, "entropy": 0.7, "sizes": sizes, "bank_age": 0.0, "iterations": 3,
            "seconds": 1.0});
        let Record::Cycle(cycle) = lightened(serde_json::from_value(line).expect("a record")) else {
            panic!("a cycle")
        };
        let (first, last) = (cycle.sizes[0], cycle.sizes[MOST_SIZES - 1]);
        assert_eq!((cycle.sizes.len(), first, last), (MOST_SIZES, 9_999, 0));
        let mean = cycle.sizes.iter().sum::<u64>() as f64 / MOST_SIZES as f64;
        assert!((mean / 4_999.5 - 1.0).abs() < 0.01, "{mean}");
    }
}
