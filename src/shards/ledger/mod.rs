//! The ledger: one line for each thing lost, with the reason, and one for the end of each shard; counts by reason; and the
//! point at which a run must stop.
//!
//! Every stage that loses something says so here, and goes on. Lines go to `ledger.jsonl` as they come. After a restart the
//! stream reads some of its way again: what is already in the file for the same pass, shard, offset and reason is neither
//! written nor counted twice. Memory for that: a dozen bytes for each line of the last two passes, and for older ones as
//! long as there are few; lines of a pass that no snapshot will read again are let go too ([`Ledger::settle`]).
//!
//! Beside the passes of training stand the encodings of a whole list for a clustering: each is a reading of its own, with
//! lines that name its step ([`Ledger::for_encoding`]). Counts are of everything that was read and lost, in passes and encodings: an
//! image that is lost in a pass and in two encodings is lost three times, and has three lines.
//!
//! A run stops when the share of samples lost passes a limit over a full window, when that share of *shards* fails, or when
//! nothing works at all; never for a single loss. [`Ledger::check`] says which, and why.

mod entry;
mod file;
mod window;
#[cfg(test)]
mod tests;

pub use self::entry::{Entry, Loss, ShardEnd, ShardVerdict, Sum, read};

use self::file::{FOLD_ABOVE, LedgerFile};
use self::window::Window;
use super::index::Collector;
use super::reason::{Filtered, FilteredCounts, Notice, Reason};
use crate::config::StreamPlan;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shards over which the share of failed ones is taken.
const SHARD_WINDOW: usize = 100;
/// If none of so many first shards can be read, the rest are not tried.
const FIRST_SHARDS: u64 = 32;
/// Lines remembered beyond those of the last two passes.
const REMEMBERED: usize = 1 << 20;

/// Counts what is lost, from any thread.
#[derive(Debug)]
pub struct Ledger {
    max_loss_rate: f64,
    state: Arc<Mutex<State>>,
    index: Option<Collector>,
    /// Whose losses come here, where that is not the stream of training.
    encoding: Option<Encoding>,
}

/// The reading of a whole list for one clustering.
#[derive(Clone, Copy, Debug)]
struct Encoding {
    /// The pass that training is in.
    pass: u64,
    step: u64,
}

#[derive(Debug)]
struct State {
    file: Option<LedgerFile>,
    write_failure: Option<String>,
    known: Known,
    losses: BTreeMap<Reason, u64>,
    notices: BTreeMap<Notice, u64>,
    filtered: FilteredCounts,
    samples: Window,
    images: Window,
    shards: Window,
    shards_that_worked: u64,
    last: Option<Loss>,
}

impl Ledger {
    /// A ledger that is kept in memory alone.
    pub fn in_memory(plan: &StreamPlan) -> Self {
        let state = State {
            file: None,
            write_failure: None,
            known: Known::default(),
            losses: BTreeMap::new(),
            notices: BTreeMap::new(),
            filtered: FilteredCounts::new(),
            samples: Window::of(plan.loss_window),
            images: Window::of(plan.loss_window),
            shards: Window::of(SHARD_WINDOW),
            shards_that_worked: 0,
            last: None,
        };
        Self { max_loss_rate: plan.max_loss_rate, state: Arc::new(Mutex::new(state)), index: None, encoding: None }
    }

    /// A ledger in a file, which is made or gone on with.
    ///
    /// # Errors
    /// The file cannot be read or written, or is no ledger.
    pub fn open(path: &Path, plan: &StreamPlan) -> Result<Self> {
        Self::open_folding(path, plan, FOLD_ABOVE)
    }

    fn open_folding(path: &Path, plan: &StreamPlan, fold_above: u64) -> Result<Self> {
        let ledger = Self::in_memory(plan);
        let mut state = ledger.state();
        let file = LedgerFile::open(path, fold_above, |entry| state.remember(entry))?;
        state.file = Some(file);
        drop(state);
        Ok(ledger)
    }

    /// Makes an index of the shards beside: it hears what the ledger hears.
    #[must_use]
    pub fn with_index(self, index: Collector) -> Self {
        Self { index: Some(index), ..self }
    }

    /// The same ledger for whoever encodes the whole list at this step, while training is in this pass. What is lost there is recorded
    /// apart from what training loses in the pass, once for each step. It makes no index: shards of training are under way in that.
    #[must_use]
    pub fn for_encoding(&self, pass: u64, step: u64) -> Self {
        let encoding = Some(Encoding { pass, step });
        Self { max_loss_rate: self.max_loss_rate, state: Arc::clone(&self.state), index: None, encoding }
    }

    /// What makes the index, where there is to be one.
    pub fn index(&self) -> Option<&Collector> {
        self.index.as_ref()
    }

    /// Records something lost while reading, unless it is recorded already. Does not stop the run: see [`Ledger::check`].
    pub fn lose(&self, loss: Loss) {
        let loss = self.place(loss);
        let mut state = self.state();
        if state.record(loss) {
            state.samples.lose();
        }
    }

    /// Counts an image that was decoded, or lost then.
    ///
    /// Decoding has a window of its own: what it loses was read a whole shuffle buffer earlier.
    pub fn decoded(&self, loss: Option<Loss>) {
        let loss = loss.map(|loss| self.place(loss));
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

    /// Records the end of a shard, unless it is recorded already.
    pub fn shard_done(&self, end: ShardEnd) {
        let end = match self.encoding {
            Some(Encoding { pass, step }) => ShardEnd { pass, encoding: Some(step), ..end },
            None => end,
        };
        let mut state = self.state();
        state.shards.advance();
        if end.worked() {
            state.shards_that_worked += 1;
        } else {
            state.shards.lose();
        }
        if state.known.insert(end.pass, end.fingerprint()) {
            state.write(&Entry::Shard(end));
        }
    }

    /// Says which is the least pass that a stream is in; of mixed lists each is in another. What the ledger holds of it, and of
    /// the one before, is kept line by line.
    pub fn reads_from_pass(&self, least: u64) {
        if self.encoding.is_some() {
            return; // where training stands says what may be folded
        }
        let mut state = self.state();
        let keep_from = least.saturating_sub(1);
        state.known.keep_from = Some(keep_from);
        if let Some(file) = &mut state.file {
            file.keep_from = Some(keep_from);
        }
    }

    /// Folds together the lines of what no snapshot will read again, and forgets them, once the file has grown large. A failure is
    /// told by [`Ledger::ensure_written`].
    pub fn settle(&self, is_past: impl Fn(&Entry) -> bool) {
        let mut state = self.state();
        let State { file: Some(file), write_failure: write_failure @ None, known, .. } = &mut *state else { return };
        if !file.is_large() {
            return;
        }
        let mut kept = Known { keep_from: known.keep_from, ..Known::default() };
        let folded = file.fold(is_past, |entry| {
            entry.fingerprint().into_iter().for_each(|fingerprint| _ = kept.insert(entry.pass(), fingerprint));
        });
        match folded {
            Ok(()) => *known = kept,
            Err(error) => *write_failure = Some(error.to_string()),
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

    fn place(&self, loss: Loss) -> Loss {
        match self.encoding {
            Some(Encoding { pass, step }) => Loss { pass, encoding: Some(step), ..loss },
            None => loss,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // counts stay true if another thread panicked while it held them
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Writes and counts a loss; false where it is recorded already.
    fn record(&mut self, loss: Loss) -> bool {
        if !self.known.insert(loss.pass, loss.fingerprint()) {
            return false;
        }
        *self.losses.entry(loss.reason).or_default() += 1;
        self.last = Some(loss.clone());
        self.write(&Entry::Loss(loss));
        true
    }

    /// Takes in what the file held already.
    fn remember(&mut self, entry: Entry) {
        match entry {
            Entry::Loss(loss) => {
                self.known.insert(loss.pass, loss.fingerprint());
                *self.losses.entry(loss.reason).or_default() += 1;
            }
            Entry::Shard(end) => {
                self.known.insert(end.pass, end.fingerprint());
            }
            Entry::Sum(sum) => {
                for (reason, count) in sum.losses {
                    *self.losses.entry(reason).or_default() += count;
                }
            }
        }
    }

    fn write(&mut self, entry: &Entry) {
        // a line behind one that was cut short would make the file unreadable
        let (Some(file), None) = (&mut self.file, &self.write_failure) else {
            return;
        };
        if let Err(error) = file.write(entry) {
            self.write_failure = Some(error.to_string());
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
            Some(file) => error.with_hint(format!(
                "{} lists every loss; mend the shards, or raise stream.max_loss_rate",
                file.path.display()
            )),
            None => error.with_hint("mend the shards, or raise stream.max_loss_rate"),
        }
    }
}

/// Fingerprints of what is recorded, by pass.
#[derive(Debug, Default)]
struct Known {
    passes: BTreeMap<u64, HashSet<u64>>,
    count: usize,
    /// Passes from which on nothing may be forgotten.
    keep_from: Option<u64>,
}

impl Known {
    /// False if it is known. Forgets the oldest passes where there is too much to remember: a run goes back to its last
    /// snapshot, not to its beginning.
    fn insert(&mut self, pass: u64, fingerprint: u64) -> bool {
        if !self.passes.entry(pass).or_default().insert(fingerprint) {
            return false;
        }
        self.count += 1;
        while self.count > REMEMBERED && self.passes.len() > 2 && self.may_forget_oldest() {
            self.count -= self.passes.pop_first().map_or(0, |(_, forgotten)| forgotten.len());
        }
        true
    }

    fn may_forget_oldest(&self) -> bool {
        let oldest = self.passes.first_key_value();
        oldest.is_some_and(|(oldest, _)| self.keep_from.is_none_or(|keep_from| *oldest < keep_from))
    }
}
