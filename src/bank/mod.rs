//! The rolling bank: the newest features of the last `capacity` photographs, on the host.
//!
//! In go features `[B, D]` of any float kind and device, with the ids of their samples; out come rows `[N, D]` of f16 in
//! the order of their slots, without a copy. Memory is `capacity × D × 2` bytes, taken as the bank fills.
//!
//! A sample that comes again overwrites its own row, so no photograph counts twice, the bank holds a whole list once its
//! capacity suffices, and a refresh of all features keeps every row in its place with its label. A new sample takes the
//! next free slot, then that of the oldest entry. Features that are not finite are refused: one such row would spoil every
//! centroid. What lies beyond the range of f16 is cut to it.
//!
//! [`Bank::capture`] writes it to disk beside training, as it is at that moment.

mod capture;
mod projection;

pub use capture::Capture;
pub use projection::Projection;

use crate::error::{Error, Result};
use crate::shards::SampleId;
use crate::table::{Block, Table};
use arrow::array::{Array, Int64Array, UInt32Array, UInt64Array};
use arrow::datatypes::Float16Type;
use capture::Writing;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tch::{Device, Kind, Tensor};

/// Largest finite f16.
const F16_MAX: f64 = 65_504.0;

/// The rolling features of a run.
#[derive(Debug)]
pub struct Bank {
    /// `[capacity, D]`, of which the first `len` rows are written.
    features: Tensor,
    dim: usize,
    capacity: usize,
    /// The slot that the next new sample takes.
    next: usize,
    ids: Vec<SampleId>,
    steps: Vec<u64>,
    classes: Vec<Option<i64>>,
    labels: Vec<Option<u32>>,
    slots: HashMap<SampleId, usize>,
    /// The capture that is being written, if one is.
    writing: Weak<Mutex<Writing>>,
}

/// What clustering reads of a bank, or of a file of features: `N` rows and what is known of each.
#[derive(Debug)]
pub struct Rows<'a> {
    /// `[N, D]`, any float kind.
    pub features: Tensor,
    /// Whose they are.
    pub ids: &'a [SampleId],
    /// Their classes in the stream (`.cls`).
    pub classes: &'a [Option<i64>],
    /// Their clusters by the clustering before.
    pub labels: &'a [Option<u32>],
}

impl Bank {
    /// An empty bank of up to `capacity` rows of `dim` entries.
    pub fn new(capacity: usize, dim: usize) -> Result<Self> {
        if capacity == 0 || dim == 0 {
            return Err(Error::usage(format!("a bank of {capacity} rows of {dim} entries holds nothing"))
                .with_hint("set bank.capacity to a few times cluster.k or more"));
        }
        Ok(Self {
            features: Tensor::f_empty([capacity as i64, dim as i64], (Kind::Half, Device::Cpu))?,
            dim,
            capacity,
            next: 0,
            ids: Vec::new(),
            steps: Vec::new(),
            classes: Vec::new(),
            labels: Vec::new(),
            slots: HashMap::new(),
            writing: Weak::new(),
        })
    }

    /// Takes features `[B, D]` of the samples `ids`, made at `step`.
    ///
    /// `labels` are the clusters that the present clustering gives them; without, a sample that comes again keeps the label
    /// it has. Of a sample that stands twice in the batch, the later row is kept.
    pub fn push(
        &mut self,
        ids: &[SampleId],
        classes: &[Option<i64>],
        labels: Option<&[i64]>,
        features: &Tensor,
        step: u64,
    ) -> Result<()> {
        let shape = features.size();
        if shape != [ids.len() as i64, self.dim as i64] || classes.len() != ids.len() {
            return Err(Error::data(format!(
                "the bank takes rows of {} entries, one for each of {} samples with {} classes; got {shape:?}",
                self.dim,
                ids.len(),
                classes.len()
            )));
        }
        let labels = labels.map(checked_labels).transpose()?;
        if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != ids.len()) {
            return Err(Error::data(format!("{} labels for {} samples of the bank", labels.len(), ids.len())));
        }
        let features = features.f_detach()?;
        if !bool::try_from(features.f_isfinite()?.f_all()?)? {
            return Err(Error::data(format!("features of step {step} are not finite"))
                .with_hint("training has diverged: go back to the last snapshot with a lower train.lr"));
        }

        let mut rows_by_slot = BTreeMap::new();
        for (row, &id) in ids.iter().enumerate() {
            let slot = self.slot_for(id);
            self.steps[slot] = step;
            self.classes[slot] = classes[row];
            if let Some(labels) = &labels {
                self.labels[slot] = Some(labels[row]);
            }
            rows_by_slot.insert(slot as i64, row as i64);
        }
        let rows: Vec<i64> = rows_by_slot.values().copied().collect();
        let rows = Tensor::f_from_slice(&rows)?.f_to_device(features.device())?;
        let kept = features.f_index_select(0, &rows)?.f_to_kind(Kind::Float)?.f_clamp(-F16_MAX, F16_MAX)?;
        self.write_rows(rows_by_slot.into_keys().collect(), &kept.f_to_kind(Kind::Half)?.f_to_device(Device::Cpu)?)
    }

    /// Replaces every label: `labels[row]` for the rows as [`Bank::rows`] gives them.
    pub fn relabel(&mut self, labels: &[u32]) -> Result<()> {
        if labels.len() != self.len() {
            return Err(Error::data(format!("{} labels for a bank of {} rows", labels.len(), self.len())));
        }
        for (old, &new) in self.labels.iter_mut().zip(labels) {
            *old = Some(new);
        }
        Ok(())
    }

    /// Forgets every row; the memory stays.
    pub fn clear(&mut self) {
        self.next = 0;
        self.ids.clear();
        self.steps.clear();
        self.classes.clear();
        self.labels.clear();
        self.slots.clear();
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Rows that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Entries of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The rows, `[N, D]` of f16 in slot order: a view that later pushes change.
    pub fn rows(&self) -> Result<Tensor> {
        Ok(self.features.f_narrow(0, 0, self.len() as i64)?)
    }

    /// The rows with all that clustering needs of them.
    pub fn view(&self) -> Result<Rows<'_>> {
        Ok(Rows { features: self.rows()?, ids: &self.ids, classes: &self.classes, labels: &self.labels })
    }

    /// The sample of each row.
    pub fn ids(&self) -> &[SampleId] {
        &self.ids
    }

    /// The step at which each row was made.
    pub fn steps(&self) -> &[u64] {
        &self.steps
    }

    /// The class of each row, where the stream has one.
    pub fn classes(&self) -> &[Option<i64>] {
        &self.classes
    }

    /// The cluster of each row by the present clustering; none before the first.
    pub fn labels(&self) -> &[Option<u32>] {
        &self.labels
    }

    /// Mean age of the rows in steps, at step `now`; 0 when empty.
    pub fn mean_age(&self, now: u64) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        let total: f64 = self.steps.iter().map(|&step| now.saturating_sub(step) as f64).sum();
        total / self.len() as f64
    }

    /// Everything as it is now, to be written while the bank goes on: one capture at a time.
    pub fn capture(&mut self) -> Result<Capture> {
        if self.writing.strong_count() > 0 {
            return Err(Error::device("the bank is being written already"));
        }
        let writing = Arc::new(Mutex::new(Writing::new(self.len())));
        self.writing = Arc::downgrade(&writing);
        Ok(Capture {
            writing,
            features: self.rows()?,
            dim: self.dim,
            capacity: self.capacity,
            next: self.next,
            ids: self.ids.clone(),
            steps: self.steps.clone(),
            classes: self.classes.clone(),
            labels: self.labels.clone(),
        })
    }

    /// Reads what [`Capture::write`] wrote: with the same `capacity` the very same bank, slot for slot; with a smaller one the
    /// newest entries, with a larger one all.
    pub fn read(path: &Path, capacity: usize) -> Result<Self> {
        let file = Table::open(path)?;
        let fact = |key: &str| -> Result<usize> {
            file.fact(key).and_then(|text| text.parse().ok()).ok_or_else(|| {
                Error::data(format!("{} does not say its `{key}`", path.display()))
                    .with_hint("it is not the bank of a snapshot")
            })
        };
        let (old_capacity, old_next) = (fact("capacity")?, fact("next")?);
        let old_len = file.count_rows()?;
        if old_len > old_capacity || old_next >= old_capacity || (old_len < old_capacity && old_next != old_len) {
            return Err(Error::data(format!(
                "{}: {old_len} rows do not fit a capacity of {old_capacity} with {old_next} as the next slot",
                path.display()
            )));
        }
        let kept = old_len.min(capacity);
        let same_places = capacity == old_capacity;
        let oldest = if old_len == old_capacity { old_next } else { 0 };
        let place = |old_slot: usize| -> Option<usize> {
            if same_places {
                return Some(old_slot);
            }
            let rank_by_age = (old_slot + old_len - oldest) % old_len;
            rank_by_age.checked_sub(old_len - kept)
        };

        let mut bank = Self::new(capacity, file.width("feature")?)?;
        bank.ids = vec![SampleId(0); kept];
        bank.steps = vec![0; kept];
        bank.classes = vec![None; kept];
        bank.labels = vec![None; kept];
        bank.next = if same_places { old_next } else { kept % capacity };
        let mut old_slot = 0;
        for block in file {
            let block = block?;
            let places: Vec<Option<usize>> = (old_slot..old_slot + block.rows()).map(place).collect();
            bank.fill(&block, &places)?;
            old_slot += block.rows();
        }
        if bank.slots.len() != kept {
            return Err(Error::data(format!("{} holds a sample twice", path.display())));
        }
        Ok(bank)
    }

    /// Puts the rows of a block into their places; those without a place are left out.
    fn fill(&mut self, block: &Block, places: &[Option<usize>]) -> Result<()> {
        let ids = block.column::<UInt64Array>("id")?;
        let steps = block.column::<UInt64Array>("step")?;
        let classes = block.column::<Int64Array>("class")?;
        let labels = block.column::<UInt32Array>("label")?;
        let entries = block.matrix::<Float16Type>("feature")?;
        let mut slots = Vec::with_capacity(places.len());
        let mut rows = Vec::with_capacity(places.len());
        for (row, slot) in places.iter().enumerate() {
            let Some(slot) = *slot else { continue };
            self.ids[slot] = SampleId(ids.value(row));
            self.steps[slot] = steps.value(row);
            self.classes[slot] = classes.is_valid(row).then(|| classes.value(row));
            self.labels[slot] = labels.is_valid(row).then(|| labels.value(row));
            self.slots.insert(self.ids[slot], slot);
            slots.push(slot as i64);
            rows.push(row as i64);
        }
        let features = Tensor::f_from_slice(entries)?.f_view([places.len() as i64, self.dim as i64])?;
        let kept = features.f_index_select(0, &Tensor::f_from_slice(&rows)?)?;
        self.write_rows(slots, &kept)
    }

    /// The slot of a sample: its own, or a new one.
    fn slot_for(&mut self, id: SampleId) -> usize {
        if let Some(&slot) = self.slots.get(&id) {
            return slot;
        }
        let slot = self.next;
        if slot == self.ids.len() {
            self.ids.push(id);
            self.steps.push(0);
            self.classes.push(None);
            self.labels.push(None);
        } else {
            self.slots.remove(&self.ids[slot]);
            self.ids[slot] = id;
            self.labels[slot] = None;
        }
        self.slots.insert(id, slot);
        self.next = (slot + 1) % self.capacity;
        slot
    }

    fn write_rows(&mut self, slots: Vec<i64>, rows: &Tensor) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let index = Tensor::f_from_slice(&slots)?;
        let Some(writing) = self.writing.upgrade() else {
            let _ = self.features.f_index_copy_(0, &index, rows)?;
            return Ok(());
        };
        let mut writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.spare(&self.features, &slots)?;
        let _ = self.features.f_index_copy_(0, &index, rows)?;
        Ok(())
    }
}

fn checked_labels(labels: &[i64]) -> Result<Vec<u32>> {
    let checked = labels.iter().map(|&label| u32::try_from(label));
    checked.collect::<Result<_, _>>().map_err(|_| Error::data("a cluster label below 0 or beyond 32 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A row whose entries tell its id and its step.
    fn feature(id: u64, step: u64) -> [f32; 3] {
        [id as f32, step as f32, -0.5]
    }

    fn push(bank: &mut Bank, ids: &[u64], step: u64) -> Result<()> {
        let entries: Vec<f32> = ids.iter().flat_map(|&id| feature(id, step)).collect();
        let features = Tensor::from_slice(&entries).view([-1, 3]);
        let classes: Vec<Option<i64>> = ids.iter().map(|&id| (id % 2 == 0).then_some(id as i64)).collect();
        let ids: Vec<SampleId> = ids.iter().copied().map(SampleId).collect();
        bank.push(&ids, &classes, None, &features, step)
    }

    fn entries(bank: &Bank) -> Result<Vec<f32>> {
        Ok(Vec::<f32>::try_from(bank.rows()?.reshape([-1]))?)
    }

    fn assert_same(left: &Bank, right: &Bank) -> Result<()> {
        assert_eq!(entries(left)?, entries(right)?);
        assert_eq!((left.next, left.ids(), left.steps()), (right.next, right.ids(), right.steps()));
        assert_eq!((left.classes(), left.labels()), (right.classes(), right.labels()));
        assert_eq!(left.slots, right.slots);
        Ok(())
    }

    #[test]
    fn the_oldest_sample_makes_room_and_a_known_one_keeps_its_place_and_label() -> Result<()> {
        let mut bank = Bank::new(3, 3)?;
        push(&mut bank, &[1, 2, 3], 0)?;
        bank.relabel(&[7, 8, 9])?;
        push(&mut bank, &[4, 2], 5)?;
        assert_eq!(bank.ids(), [4, 2, 3].map(SampleId));
        assert_eq!(bank.steps(), [5, 5, 0]);
        assert_eq!(bank.labels(), [None, Some(8), Some(9)]);
        assert_eq!(bank.classes(), [Some(4), Some(2), None]);
        assert_eq!(entries(&bank)?, [feature(4, 5), feature(2, 5), feature(3, 0)].concat());
        assert_eq!(bank.mean_age(6), (1.0 + 1.0 + 6.0) / 3.0);
        Ok(())
    }

    #[test]
    fn what_cannot_be_clustered_is_refused_or_cut() -> Result<()> {
        let mut bank = Bank::new(2, 1)?;
        let push_value = |bank: &mut Bank, value: f64| {
            let value = Tensor::from_slice(&[value]).view([1, 1]).to_kind(Kind::BFloat16);
            bank.push(&[SampleId(1)], &[None], None, &value, 3)
        };
        assert!(push_value(&mut bank, f64::NAN).is_err());
        assert!(push_value(&mut bank, f64::INFINITY).is_err());
        push_value(&mut bank, -1e6)?;
        assert_eq!(entries(&bank)?, [-65_504.0]);
        assert!(
            bank.push(&[SampleId(1)], &[None], None, &Tensor::zeros([1, 2], (Kind::Float, Device::Cpu)), 3).is_err()
        );
        assert!(
            bank.push(&[SampleId(1)], &[None], Some(&[-1]), &Tensor::zeros([1, 1], (Kind::Float, Device::Cpu)), 3)
                .is_err()
        );
        Ok(())
    }

    #[test]
    fn a_bank_of_another_capacity_takes_the_newest_entries() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("bank.arrow");
        let mut bank = Bank::new(4, 3)?;
        push(&mut bank, &[1, 2, 3, 4, 5, 6], 0)?;
        bank.capture()?.write(&path)?;
        let mut smaller = Bank::read(&path, 2)?;
        assert_eq!(smaller.ids(), [5, 6].map(SampleId));
        push(&mut smaller, &[7], 1)?;
        assert_eq!(smaller.ids(), [7, 6].map(SampleId));
        let mut larger = Bank::read(&path, 5)?;
        assert_eq!(larger.ids(), [3, 4, 5, 6].map(SampleId));
        push(&mut larger, &[7, 8], 1)?;
        assert_eq!(larger.ids(), [8, 4, 5, 6, 7].map(SampleId));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Against a plain list that follows the same rules; and written and read, the bank goes on as if nothing had been.
        #[test]
        fn a_bank_is_a_ring_of_distinct_samples(
            capacity in 1_usize..6,
            batches in prop::collection::vec(prop::collection::vec(0_u64..9, 1..8), 1..8),
        ) {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = folder.path().join("bank.arrow");
            let mut bank = Bank::new(capacity, 3).expect("a bank");
            let mut oldest_first: Vec<(u64, u64)> = Vec::new();
            for (step, batch) in batches.iter().enumerate() {
                push(&mut bank, batch, step as u64).expect("a push");
                for &id in batch {
                    if let Some(entry) = oldest_first.iter_mut().find(|entry| entry.0 == id) {
                        entry.1 = step as u64;
                        continue;
                    }
                    if oldest_first.len() == capacity {
                        oldest_first.remove(0);
                    }
                    oldest_first.push((id, step as u64));
                }
                let start = if bank.len() == capacity { bank.next } else { 0 };
                let entries = entries(&bank).expect("rows");
                for (rank, &(id, step)) in oldest_first.iter().enumerate() {
                    let slot = (start + rank) % bank.len();
                    prop_assert_eq!((bank.ids()[slot], bank.steps()[slot]), (SampleId(id), step));
                    prop_assert_eq!(&entries[slot * 3..slot * 3 + 3], &feature(id, step));
                }
                bank.capture().and_then(|capture| capture.write(&path)).expect("a file");
                let copy = Bank::read(&path, capacity).expect("the same bank");
                assert_same(&bank, &copy).expect("rows");
                bank = copy;
            }
        }
    }
}
