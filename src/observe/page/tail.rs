//! The records of a run as they are written: what `metrics.jsonl` holds, read as far as it has grown.
//!
//! The page reads the file and not the trainer, so that nothing it does can hold up a step, and so that a run that has ended looks as one
//! under way. A run for months has more records than a page can use: of steps, the older half is thinned out by every second one whenever
//! there are too many.

use crate::error::{Error, Result};
use crate::train::record::Record;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Records of steps that are held, at most.
const MOST_STEPS: usize = 20_000;

/// Records so far, and where the next begins.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    offset: u64,
    records: Vec<Record>,
    steps: usize,
}

impl Tail {
    /// Nothing yet of the run in this folder.
    pub(super) fn of(run: &Path) -> Self {
        Self { path: run.join("metrics.jsonl"), offset: 0, records: Vec::new(), steps: 0 }
    }

    /// Reads what has come since; all anew where the file is shorter than before, as after a resumption.
    pub(super) fn read_on(&mut self) -> Result<&[Record]> {
        let failed = |error: &std::io::Error| Error::file("read", &self.path, error);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(&self.records),
            Err(error) => return Err(failed(&error)),
        };
        if file.metadata().map_err(|error| failed(&error))?.len() < self.offset {
            (self.offset, self.steps) = (0, 0);
            self.records.clear();
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
                self.steps += usize::from(matches!(record, Record::Step(_)));
                self.records.push(record);
            }
        }
        if self.steps > MOST_STEPS {
            self.thin();
        }
        Ok(&self.records)
    }

    /// Leaves out every second record of a step in the older half.
    fn thin(&mut self) {
        let (mut older, mut number) = (self.steps / 2, 0_usize);
        self.records.retain(|record| {
            if older == 0 || !matches!(record, Record::Step(_)) {
                return true;
            }
            older -= 1;
            number += 1;
            number.is_multiple_of(2)
        });
        self.steps = self.records.iter().filter(|record| matches!(record, Record::Step(_))).count();
    }
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
        file.write_all(third[12..].as_bytes()).expect("the rest");
        assert_eq!(steps(&mut tail), [10, 20, 30]);
        fs::write(&path, line(10)).expect("a resumed run cuts its file");
        assert_eq!(steps(&mut tail), [10]);
    }

    #[test]
    fn a_long_run_keeps_its_newest_steps_whole() {
        let run = tempfile::tempdir().expect("a temporary folder");
        let step = |step: usize| {
            json!({"kind": "step", "step": step, "images": 1, "loss": 3.5, "lr": 0.1, "images_per_s": 64.0, "wait_data_s": 0.1,
            "assign_s": 0.1, "train_s": 0.2, "label_entropy": 1.5, "largest_share": 0.1, "losses": {}, "pass": 1, "ids": "",
            "next_cycle": null}).to_string() + "\n"
        };
        let lines: String = (0..=MOST_STEPS).map(step).collect();
        fs::write(run.path().join("metrics.jsonl"), line(0) + &lines).expect("a file");
        let found = steps(&mut Tail::of(run.path()));
        assert_eq!(found.len(), 1 + MOST_STEPS / 2 + 1 + MOST_STEPS / 4);
        assert!(found.ends_with(&[19_998, 19_999, 20_000]));
    }
}
