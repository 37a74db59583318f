//! The ledger: one line for each thing lost, with the reason; counts by reason; and the point at which a run must stop.
//!
//! Every stage that loses something says so here, and goes on. Lines go to `ledger.jsonl` as they come. After a restart the
//! stream reads some of its way again: what is already in the file for the same pass, shard, offset and reason is neither
//! written nor counted twice.
//!
//! A run stops when the share of samples lost passes a limit over a full window, when that share of *shards* fails, or when
//! nothing works at all; never for a single loss. [`Ledger::check`] says which, and why.

use super::reason::{Filtered, FilteredCounts, Notice, Reason};
use crate::config::StreamPlan;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shards over which the share of failed ones is taken.
const SHARD_WINDOW: usize = 100;
/// If none of so many first shards can be read, the rest are not tried.
const FIRST_SHARDS: u64 = 32;

/// Something lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Which pass over the list, from 0.
    pub pass: u64,
    /// Shard, without credentials.
    pub shard: String,
    /// WebDataset key, where there is one.
    pub key: Option<String>,
    /// Byte offset in the uncompressed shard.
    pub offset: u64,
    /// Why.
    pub reason: Reason,
    /// Particulars, for the operator.
    pub detail: String,
}

/// A line of `ledger.jsonl`.
#[derive(Serialize, Deserialize)]
struct Line {
    /// Seconds since 1970, UTC.
    time: f64,
    #[serde(flatten)]
    loss: Loss,
}

/// Counts what is lost, from any thread.
#[derive(Debug)]
pub struct Ledger {
    max_loss_rate: f64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: Option<(PathBuf, File)>,
    write_failure: Option<String>,
    known: HashSet<u64>,
    losses: BTreeMap<Reason, u64>,
    notices: BTreeMap<Notice, u64>,
    filtered: FilteredCounts,
    samples: Window,
    images: Window,
    shards: Window,
    shards_that_worked: u64,
    last: Option<Loss>,
}

/// Losses over the last so many events.
#[derive(Debug)]
struct Window {
    length: usize,
    lost: VecDeque<u32>,
    sum: u32,
    total: u64,
}

impl Ledger {
    /// A ledger that is kept in memory alone.
    pub fn in_memory(plan: &StreamPlan) -> Self {
        let state = State {
            file: None,
            write_failure: None,
            known: HashSet::new(),
            losses: BTreeMap::new(),
            notices: BTreeMap::new(),
            filtered: FilteredCounts::new(),
            samples: Window::of(plan.loss_window),
            images: Window::of(plan.loss_window),
            shards: Window::of(SHARD_WINDOW),
            shards_that_worked: 0,
            last: None,
        };
        Self { max_loss_rate: plan.max_loss_rate, state: Mutex::new(state) }
    }

    /// A ledger in a file, which is made or gone on with.
    ///
    /// # Errors
    /// The file cannot be read or written, or is no ledger.
    pub fn open(path: &Path, plan: &StreamPlan) -> Result<Self> {
        let ledger = Self::in_memory(plan);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|source| Error::file("open", path, &source))?;
        let whole = ledger.read_back(path, &mut file)?;
        // a line cut short by a crash
        file.set_len(whole).map_err(|source| Error::file("write", path, &source))?;
        file.seek(SeekFrom::End(0)).map_err(|source| Error::file("write", path, &source))?;
        ledger.state().file = Some((path.to_owned(), file));
        Ok(ledger)
    }

    /// Learns what is recorded already; gives the length of the file up to its last whole line.
    fn read_back(&self, path: &Path, file: &mut File) -> Result<u64> {
        let mut state = self.state();
        let mut reader = BufReader::new(file);
        let mut text = Vec::new();
        let (mut whole, mut number) = (0, 0);
        loop {
            text.clear();
            let length = reader.read_until(b'\n', &mut text).map_err(|source| Error::file("read", path, &source))?;
            if !text.ends_with(b"\n") {
                return Ok(whole);
            }
            whole += length as u64;
            number += 1;
            let line: Line = serde_json::from_slice(&text).map_err(|error| {
                Error::data(format!("{} line {number}: {error}", path.display()))
                    .with_hint("this is not a ledger of shoal: move it away and start again")
            })?;
            state.known.insert(line.loss.fingerprint());
            *state.losses.entry(line.loss.reason).or_default() += 1;
        }
    }

    /// Records something lost while reading, unless it is recorded already. Does not stop the run: see [`Ledger::check`].
    pub fn lose(&self, loss: Loss) {
        let mut state = self.state();
        if state.record(loss) {
            state.samples.lose();
        }
    }

    /// Counts an image that was decoded, or lost then.
    ///
    /// Decoding has a window of its own: what it loses was read a whole shuffle buffer earlier.
    pub fn decoded(&self, loss: Option<Loss>) {
        let mut state = self.state();
        state.images.advance();
        if let Some(loss) = loss
            && state.record(loss)
        {
            state.images.lose();
        }
    }

    /// Counts something odd about samples that were kept.
    pub fn notice(&self, notice: Notice, count: u64) {
        *self.state().notices.entry(notice).or_default() += count;
    }

    /// Counts a sample that a filter passed over. Neither lost nor seen by the windows over which losses are judged.
    pub fn pass_over(&self, filtered: Filtered) {
        *self.state().filtered.entry(filtered).or_default() += 1;
    }

    /// Counts samples that were met in the shards, whatever became of them.
    pub fn seen(&self, count: u64) {
        let mut state = self.state();
        for _ in 0..count {
            state.samples.advance();
        }
    }

    /// Counts a shard that was read to its end, or could not be.
    pub fn shard_done(&self, worked: bool) {
        let mut state = self.state();
        state.shards.advance();
        if worked {
            state.shards_that_worked += 1;
        } else {
            state.shards.lose();
        }
    }

    /// Losses by reason, since the ledger was begun.
    pub fn losses(&self) -> BTreeMap<Reason, u64> {
        self.state().losses.clone()
    }

    /// Oddities of samples that were kept, since the ledger was opened.
    pub fn notices(&self) -> BTreeMap<Notice, u64> {
        self.state().notices.clone()
    }

    /// Samples passed over by rule, since the ledger was opened.
    pub fn filtered(&self) -> FilteredCounts {
        self.state().filtered.clone()
    }

    /// Whether every loss so far is in the file.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn ensure_written(&self) -> Result<()> {
        match &self.state().write_failure {
            Some(failure) => Err(Error::data(failure.clone()).with_hint("is the disk full?")),
            None => Ok(()),
        }
    }

    /// Whether the run may go on.
    ///
    /// # Errors
    /// Too large a share of samples or shards was lost, or the ledger cannot be written.
    pub fn check(&self) -> Result<()> {
        self.ensure_written()?;
        let state = self.state();
        let limit = self.max_loss_rate;
        if state.shards_that_worked == 0 && state.samples.total == 0 && state.shards.total >= FIRST_SHARDS {
            let count = state.shards.total;
            return Err(state.stop(&format!("none of the first {count} shards can be read")));
        }
        for (window, what) in [(&state.samples, "samples"), (&state.images, "images"), (&state.shards, "shards")] {
            if window.is_full() && window.rate() > limit {
                let (percent, length) = (100.0 * window.rate(), window.length);
                return Err(state.stop(&format!(
                    "{percent:.1} % of the last {length} {what} were lost, stream.max_loss_rate allows {:.1} %",
                    100.0 * limit
                )));
            }
        }
        Ok(())
    }

    /// The error for a stream that gave nothing at all.
    pub fn nothing_works(&self, what: &str) -> Error {
        self.state().stop(what)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // counts stay true if another thread panicked while it held them
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Writes and counts a loss; false where it is recorded already.
    fn record(&mut self, loss: Loss) -> bool {
        if !self.known.insert(loss.fingerprint()) {
            return false;
        }
        *self.losses.entry(loss.reason).or_default() += 1;
        self.write(&loss);
        self.last = Some(loss);
        true
    }

    fn write(&mut self, loss: &Loss) {
        let Some((path, file)) = &mut self.file else {
            return;
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let line = Line { time: (now.as_secs_f64() * 1e3).round() / 1e3, loss: loss.clone() };
        let written = serde_json::to_string(&line).map_err(std::io::Error::from).and_then(|mut text| {
            text.push('\n');
            file.write_all(text.as_bytes())
        });
        if let Err(error) = written {
            self.write_failure = Some(format!("cannot write {}: {error}", path.display()));
        }
    }

    fn stop(&self, what: &str) -> Error {
        let main = self.losses.iter().max_by_key(|(_, count)| **count);
        let main = main.map_or_else(String::new, |(reason, count)| format!("; most often {reason} ({count} times)"));
        let last = self.last.as_ref().map_or_else(String::new, |loss| {
            format!("; last {} at byte {}: {} ({})", loss.shard, loss.offset, loss.reason, loss.detail)
        });
        let error = Error::data(format!("{what}{main}{last}"));
        match &self.file {
            Some((path, _)) => error.with_hint(format!(
                "{} lists every loss; mend the shards, or raise stream.max_loss_rate",
                path.display()
            )),
            None => error.with_hint("mend the shards, or raise stream.max_loss_rate"),
        }
    }
}

impl Loss {
    /// Names the loss across restarts.
    fn fingerprint(&self) -> u64 {
        let text = format!("{} {} {} {}", self.pass, self.offset, self.reason, self.shard);
        xxhash_rust::xxh3::xxh3_64(text.as_bytes())
    }
}

impl Window {
    fn of(length: usize) -> Self {
        Self { length: length.max(1), lost: VecDeque::new(), sum: 0, total: 0 }
    }

    /// Another event begins.
    fn advance(&mut self) {
        self.total += 1;
        if self.lost.len() == self.length {
            self.sum -= self.lost.pop_front().unwrap_or_default();
        }
        self.lost.push_back(0);
    }

    /// Something was lost at the current event.
    fn lose(&mut self) {
        self.sum += 1;
        match self.lost.back_mut() {
            Some(count) => *count += 1,
            None => self.lost.push_back(1),
        }
    }

    fn is_full(&self) -> bool {
        self.lost.len() == self.length
    }

    fn rate(&self) -> f64 {
        f64::from(self.sum) / self.length as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn failing_shards_stop_a_run() {
        let ledger = Ledger::in_memory(&plan(0.1, 1_000));
        for _ in 0..FIRST_SHARDS {
            assert!(ledger.check().is_ok());
            ledger.shard_done(false);
        }
        assert!(ledger.check().unwrap_err().to_string().contains("none of the first 32 shards"));

        let ledger = Ledger::in_memory(&plan(0.1, 1_000));
        for shard in 0..SHARD_WINDOW {
            assert!(ledger.check().is_ok());
            ledger.shard_done(shard % 5 > 0);
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
}
