//! What evaluations found, kept with the run that they measured: `RUN/evaluations.jsonl`.
//!
//! In: a report as JSON, the command that made it, the step of the snapshot. Out: a line at the end of the file; all lines again for the page of a
//! run. Nothing is ever overwritten: whoever measures twice has both. What can go wrong: the folder cannot be written; a line that is none.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// One evaluation of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Which: `knn`, `linear`, `probes`, `voc07`, ...
    pub protocol: String,
    /// Steps of training behind the snapshot, where it tells.
    pub step: Option<u64>,
    /// When, in seconds since 1970.
    pub unix_s: u64,
    /// What the command gave with `--json`.
    pub report: Value,
}

impl Evaluation {
    /// Made now.
    pub fn now(protocol: &str, step: Option<u64>, report: &impl Serialize) -> Result<Self> {
        let report = serde_json::to_value(report)
            .map_err(|error| Error::data(format!("the report of {protocol} is no JSON: {error}")))?;
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Ok(Self { protocol: protocol.to_owned(), step, unix_s, report })
    }

    /// Adds it to those of a run.
    pub fn keep(&self, run: &Path) -> Result<()> {
        let path = file(run);
        let line = serde_json::to_string(self)
            .map_err(|error| Error::data(format!("the report of {} is no JSON: {error}", self.protocol)))?;
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(&path);
        opened
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|error| Error::file("write", &path, &error))
    }
}

/// Those of a run in the order they were made; none where there is no file.
pub fn read(run: &Path) -> Result<Vec<Evaluation>> {
    let path = file(run);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", &path, &error)),
    };
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|error| Error::data(format!("{}, line {}: {error}", path.display(), number + 1)))
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

fn file(run: &Path) -> PathBuf {
    run.join("evaluations.jsonl")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_that_was_measured_is_kept_in_order() -> Result<()> {
        let run = tempfile::tempdir().expect("a temporary folder");
        assert!(read(run.path())?.is_empty());
        let first = Evaluation::now("knn", Some(50), &json!({"accuracy": 0.5}))?;
        let second = Evaluation::now("knn", None, &json!({"accuracy": 0.75}))?;
        first.keep(run.path())?;
        second.keep(run.path())?;
        assert_eq!(read(run.path())?, [first, second]);
        std::fs::write(file(run.path()), "{\"protocol\": 3}\n").expect("a file");
        let error = read(run.path()).expect_err("no evaluation").to_string();
        assert!(error.contains("evaluations.jsonl, line 1"), "{error}");
        Ok(())
    }
}
