//! The bank as it was at one moment, written while it goes on.
//!
//! Nothing of the features is copied in advance: whoever overwrites a row that is not on disk yet spares it first, so memory grows by
//! what is overwritten meanwhile. Out comes Arrow IPC with zstd: columns `id`, `step`, `class`, `label`, `feature`, in slot order;
//! of several ranks each writes its own slots.

use crate::error::Result;
use crate::shards::SampleId;
use crate::table::{self, TableWriter};
use arrow::array::{ArrayRef, Int64Array, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Float16Type};
use half::f16;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tch::Tensor;

/// A bank at one moment.
#[derive(Debug)]
pub struct Capture {
    pub(super) writing: Arc<Mutex<Writing>>,
    /// `[N, D]`, shared with the bank: what is true of them is in `writing`.
    pub(super) features: Tensor,
    pub(super) dim: usize,
    pub(super) capacity: usize,
    pub(super) next: usize,
    /// Whose part of the bank it is, of how many.
    pub(super) rank: usize,
    pub(super) size: usize,
    /// Rows of all ranks.
    pub(super) rows: usize,
    /// What is known of the rows of this rank.
    pub(super) ids: Vec<SampleId>,
    pub(super) steps: Vec<u64>,
    pub(super) classes: Vec<Option<i64>>,
    pub(super) labels: Vec<Option<u32>>,
}

/// How far a capture is written.
#[derive(Debug)]
pub(super) struct Writing {
    /// Rows of the capture.
    rows: usize,
    /// Rows before this one are safe.
    done: usize,
    /// Rows that were overwritten before they were safe, as they were.
    spared: HashMap<usize, Vec<f16>>,
}

impl Writing {
    pub(super) fn new(rows: usize) -> Self {
        Self { rows, done: 0, spared: HashMap::new() }
    }

    /// Keeps what is about to be overwritten.
    pub(super) fn spare(&mut self, features: &Tensor, slots: &[i64]) -> Result<()> {
        for &slot in slots {
            let at = slot as usize;
            if (self.done..self.rows).contains(&at) && !self.spared.contains_key(&at) {
                self.spared.insert(at, Vec::<f16>::try_from(features.f_select(0, slot)?)?);
            }
        }
        Ok(())
    }

    /// The entries of the next `count` rows, which are safe from here on.
    fn take(&mut self, features: &Tensor, count: usize) -> Result<Vec<f16>> {
        let first = self.done;
        let block = features.f_narrow(0, first as i64, count as i64)?.f_reshape([-1])?;
        let mut entries = Vec::<f16>::try_from(&block)?;
        let dim = entries.len() / count.max(1);
        for row in 0..count {
            if let Some(spared) = self.spared.remove(&(first + row)) {
                entries[row * dim..][..dim].copy_from_slice(&spared);
            }
        }
        self.done = first + count;
        Ok(entries)
    }
}

impl Capture {
    /// Writes everything.
    pub fn write(self, path: &Path) -> Result<()> {
        let mut file = TableWriter::create(
            path,
            vec![
                Field::new("id", DataType::UInt64, false),
                Field::new("step", DataType::UInt64, false),
                Field::new("class", DataType::Int64, true),
                Field::new("label", DataType::UInt32, true),
                table::matrix_field::<Float16Type>("feature", self.dim),
            ],
        )?;
        let rows = self.ids.len();
        let batch = table::rows_per_batch(self.dim * size_of::<f16>());
        for start in (0..rows).step_by(batch) {
            let range = start..rows.min(start + batch);
            let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let features = writing.take(&self.features, range.len())?;
            drop(writing); // whoever trains goes on while this is compressed
            let columns: Vec<ArrayRef> = vec![
                Arc::new(UInt64Array::from_iter_values(self.ids[range.clone()].iter().map(|id| id.0))),
                Arc::new(UInt64Array::from(self.steps[range.clone()].to_vec())),
                Arc::new(Int64Array::from(self.classes[range.clone()].to_vec())),
                Arc::new(UInt32Array::from(self.labels[range].to_vec())),
                table::matrix_column::<Float16Type>(features, self.dim)?,
            ];
            file.write(columns)?;
        }
        file.note("capacity", self.capacity);
        file.note("next", self.next);
        if self.size > 1 {
            file.note("rows", self.rows);
            file.note("rank", self.rank);
            file.note("ranks", self.size);
        }
        file.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Bank;
    use super::*;
    use crate::cluster::samples::normal;

    fn push(bank: &mut Bank, ids: std::ops::Range<u64>, seed: u64) -> Result<()> {
        let entries = crate::bank::tests::entries_of(&ids.collect::<Vec<_>>(), None);
        bank.push(&entries, &normal(seed, entries.len() as i64, bank.dim() as i64), seed)
    }

    fn read(path: &Path) -> Result<Bank> {
        Bank::read(&[path.to_path_buf()], 6_000, &crate::world::World::alone())
    }

    #[test]
    fn rows_overwritten_meanwhile_are_given_as_they_were() -> Result<()> {
        let mut bank = Bank::new(3_000, 200)?;
        push(&mut bank, 0..2_900, 1)?;
        let expected = Vec::<f16>::try_from(bank.rows()?.reshape([-1]))?;
        let capture = bank.capture()?;
        assert!(bank.capture().is_err(), "one at a time");
        push(&mut bank, 5..9, 2)?;
        push(&mut bank, 5..9, 3)?;
        let take = |count| capture.writing.lock().expect("a lock").take(&capture.features, count);
        let mut found = take(2_000)?;
        push(&mut bank, 1_998..2_003, 4)?;
        push(&mut bank, 5_000..5_300, 5)?;
        let held: Vec<usize> = capture.writing.lock().expect("a lock").spared.keys().copied().collect();
        assert!(held.len() == 3 && held.iter().all(|slot| (2_000..2_003).contains(slot)), "{held:?}");
        found.extend(take(900)?);
        assert_eq!(found, expected);
        assert_ne!(Vec::<f16>::try_from(bank.rows()?.narrow(0, 0, 2_900).reshape([-1]))?, expected);
        Ok(())
    }

    #[test]
    fn a_file_written_beside_pushes_is_of_the_moment_of_its_capture() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (now, later) = (folder.path().join("now.arrow"), folder.path().join("later.arrow"));
        let mut bank = Bank::new(6_000, 2_000)?;
        push(&mut bank, 0..6_000, 1)?;
        bank.capture()?.write(&now)?;
        let capture = bank.capture()?;
        let path = later.clone();
        let writer = std::thread::spawn(move || capture.write(&path));
        for round in 0..40 {
            push(&mut bank, round * 137..round * 137 + 64, round)?;
        }
        writer.join().expect("a thread")?;
        let (left, right) = (read(&now)?, read(&later)?);
        assert_eq!((left.rows()?, left.ids(), left.steps()), (right.rows()?, right.ids(), right.steps()));
        assert_ne!(bank.rows()?, left.rows()?);
        Ok(())
    }
}
