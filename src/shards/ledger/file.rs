//! The file of a ledger: lines are appended as they come, and old ones are folded together when it has grown large.
//!
//! A loss costs some 200 bytes. A stream of 1,000 images a second that loses one in a thousand writes 17 MB a day, half a
//! gigabyte a month. Beyond [`FOLD_ABOVE`] the lines of all passes but the current one and the one before (of mixed lists: those of
//! the list that is furthest behind) become a
//! single line with their counts whenever another pass begins, so that the file is bounded by the losses of two passes. A list that
//! is followed stays in one pass for good: there, and in any pass, what every snapshot is past is folded too (`Past` of
//! the stream's cursor says what that is). The new file is written aside, synced and renamed: a crash leaves the old one
//! or the new one.

use super::entry::{Entry, Sum, for_each};
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes from which on old passes are folded together.
pub(super) const FOLD_ABOVE: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct LedgerFile {
    pub path: PathBuf,
    file: File,
    bytes: u64,
    /// The latest pass of which there is a line.
    latest_pass: u64,
    fold_above: u64,
    /// Passes from which on lines stay, where a stream has said so: of mixed lists one may be far behind the latest pass.
    pub keep_from: Option<u64>,
    /// The passes before this one have been folded together.
    folded_below: u64,
    /// Bytes that the last folding left.
    left_by_folding: u64,
}

impl LedgerFile {
    /// Opens or makes a ledger, and hands `each` what is in it.
    pub(super) fn open(path: &Path, fold_above: u64, mut each: impl FnMut(Entry)) -> Result<Self> {
        let failed = |action: &'static str| move |source| Error::file(action, path, &source);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed("open"))?;
        let mut latest_pass = 0;
        let whole = for_each(path, BufReader::new(&mut file), |entry, _| {
            latest_pass = latest_pass.max(entry.pass());
            each(entry);
            Ok(())
        })?;
        // a line cut short by a crash
        file.set_len(whole).map_err(failed("write"))?;
        file.seek(SeekFrom::End(0)).map_err(failed("write"))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes: whole,
            latest_pass,
            fold_above,
            keep_from: None,
            folded_below: 0,
            left_by_folding: 0,
        })
    }

    /// Appends a line.
    pub(super) fn write(&mut self, entry: &Entry) -> Result<()> {
        if entry.pass() > self.latest_pass {
            self.latest_pass = entry.pass();
            let before_last = self.latest_pass - 1;
            let keep_from = self.keep_from.map_or(before_last, |keep_from| keep_from.min(before_last));
            if self.bytes > self.fold_above && keep_from > self.folded_below {
                self.fold(|entry| entry.pass() < keep_from, |_| ())?;
                self.folded_below = keep_from;
            }
        }
        let written = entry
            .to_line()
            .map_err(std::io::Error::from)
            .and_then(|text| self.file.write_all(text.as_bytes()).map(|()| text.len() as u64));
        self.bytes += written.map_err(|source| Error::file("write", &self.path, &source))?;
        Ok(())
    }

    /// Whether it has grown so much that folding may be worth reading all of it.
    pub(super) fn is_large(&self) -> bool {
        self.bytes > self.fold_above && self.bytes / 2 > self.left_by_folding
    }

    /// Makes one line of all that are old, and of the sum of older ones; hands `kept` those that stay.
    pub(super) fn fold(&mut self, is_old: impl Fn(&Entry) -> bool, mut kept: impl FnMut(&Entry)) -> Result<()> {
        let path = &self.path;
        let failed = |action: &'static str| move |source| Error::file(action, path, &source);
        let open = || File::open(path).map(BufReader::new).map_err(failed("read"));
        let is_old = |entry: &Entry| matches!(entry, Entry::Sum(_)) || is_old(entry);
        let mut sum = Sum::default();
        for_each(path, open()?, |entry, _| {
            if is_old(&entry) {
                sum.add(&entry);
            }
            Ok(())
        })?;
        let aside = path.with_extension("jsonl.new");
        let mut out = BufWriter::new(File::create(&aside).map_err(failed("write"))?);
        let first = Entry::Sum(sum).to_line().map_err(|error| failed("write")(error.into()))?;
        out.write_all(first.as_bytes()).map_err(failed("write"))?;
        for_each(path, open()?, |entry, line| {
            if is_old(&entry) {
                return Ok(());
            }
            kept(&entry);
            out.write_all(line).map_err(failed("write"))
        })?;
        let out = out.into_inner().map_err(|error| failed("write")(error.into_error()))?;
        out.sync_all().map_err(failed("write"))?;
        std::fs::rename(&aside, path).map_err(failed("write"))?;
        let file = OpenOptions::new().append(true).open(path).map_err(failed("open"))?;
        self.bytes = file.metadata().map_err(failed("read"))?.len();
        self.left_by_folding = self.bytes;
        self.file = file;
        Ok(())
    }
}

impl Sum {
    /// Counts another line in.
    fn add(&mut self, entry: &Entry) {
        self.through_pass = self.through_pass.max(entry.pass());
        match entry {
            Entry::Loss(loss) => *self.losses.entry(loss.reason).or_default() += 1,
            Entry::Shard(end) => {
                self.shards += 1;
                self.samples += end.samples;
            }
            Entry::Sum(older) => {
                for (&reason, count) in &older.losses {
                    *self.losses.entry(reason).or_default() += count;
                }
                self.shards += older.shards;
                self.samples += older.samples;
            }
        }
    }
}
