//! `metrics.jsonl`: every record as one line of JSON, appended.
//!
//! In: records, in the order of their steps. Out: a file whose every line has `kind` and `step`, and in which no step
//! appears twice, however often the run was killed and resumed: on opening, lines past the step the run goes on from
//! are cut off, and with them a last line that a kill tore in half. Each line is one `write`, so it reaches the kernel
//! whole; it is not synced, since a resumed run makes it again. What can go wrong: the disk.

use super::Record;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The metrics file of a run, open at its end.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    path: PathBuf,
}

/// All that cutting needs to know of a line.
#[derive(Deserialize)]
struct Position {
    step: u64,
    cycle: Option<u64>,
}

impl Metrics {
    /// Opens `path`, keeping the lines up to the step and the cycle that a run goes on from; without these the run starts
    /// anew and so does the file.
    pub fn open(path: &Path, resumed: Option<(u64, u64)>) -> Result<Self> {
        match resumed {
            Some((step, cycle)) if path.is_file() => cut_after(path, step, cycle)?,
            _ => drop(File::create(path).map_err(|e| Error::file("create", path, &e))?),
        }
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::file("open", path, &e))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Appends one record.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_string(record)
            .map_err(|e| Error::data(format!("cannot write {} as JSON: {e}", self.path.display())))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::file("append to", &self.path, &e))
    }
}

/// Keeps whole lines of steps up to `last_step` and of cycles up to `last_cycle`; the kept ones are written aside and renamed, so a kill loses none.
fn cut_after(path: &Path, last_step: u64, last_cycle: u64) -> Result<()> {
    let aside = path.with_extension("jsonl.cut");
    let source = File::open(path).map_err(|e| Error::file("read", path, &e))?;
    let target = File::create(&aside).map_err(|e| Error::file("create", &aside, &e))?;
    let mut reader = BufReader::new(source);
    let mut writer = BufWriter::new(target);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(|e| Error::file("read", path, &e))?;
        if read == 0 {
            break;
        }
        let is_whole = line.ends_with(b"\n");
        match serde_json::from_slice::<Position>(&line) {
            Ok(position) if position.step > last_step || position.cycle > Some(last_cycle) => {}
            Ok(_) if is_whole => writer.write_all(&line).map_err(|e| Error::file("write", &aside, &e))?,
            Ok(_) => tracing::debug!("the last line of {} has no end, dropped", path.display()),
            Err(error) if is_whole => tracing::warn!("a line of {} is no record, dropped: {error}", path.display()),
            Err(_) => tracing::debug!("the last line of {} is torn, dropped", path.display()),
        }
    }
    let target = writer.into_inner().map_err(|e| Error::file("write", &aside, e.error()))?;
    target.sync_all().map_err(|e| Error::file("sync", &aside, &e))?;
    fs::rename(&aside, path).map_err(|e| Error::file("rename", &aside, &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::AlarmRecord;

    fn alarm(step: u64) -> Record {
        Record::Alarm(AlarmRecord { step, alarm: "test".into(), message: format!("at {step}") })
    }

    fn steps(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).expect("the metrics are readable");
        text.lines().map(|line| serde_json::from_str::<Record>(line).expect("each line is a record").step()).collect()
    }

    #[test]
    fn a_resumed_run_repeats_no_step_and_drops_a_torn_line() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, None)?;
        for step in [10, 20, 20, 30, 40] {
            metrics.append(&alarm(step))?;
        }
        drop(metrics);
        let mut torn = OpenOptions::new().append(true).open(&path).expect("the metrics exist");
        torn.write_all(br#"{"kind":"alarm","step":15,"ala"#).expect("half a line");
        drop(torn);

        let mut metrics = Metrics::open(&path, Some((20, 9)))?;
        metrics.append(&alarm(30))?;
        assert_eq!(steps(&path), [10, 20, 20, 30]);
        assert!(!folder.path().join("metrics.jsonl.cut").exists());
        Ok(())
    }

    #[test]
    fn a_whole_record_without_its_newline_does_not_swallow_the_next() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, serde_json::to_string(&alarm(1)).expect("a record")).expect("a line without end");
        Metrics::open(&path, Some((5, 9)))?.append(&alarm(6))?;
        assert_eq!(steps(&path), [6]);
        Ok(())
    }

    #[test]
    fn a_run_that_starts_anew_starts_its_metrics_anew() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metrics.jsonl");
        Metrics::open(&path, None)?.append(&alarm(0))?;
        Metrics::open(&path, None)?.append(&alarm(1))?;
        assert_eq!(steps(&path), [1]);
        Ok(())
    }
}
