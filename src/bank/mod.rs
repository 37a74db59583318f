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
//!
//! Several ranks hold one bank: each knows of every row whose it is, and keeps the features of every so-many-th slot (slot `s` lies with
//! rank `s % ranks`). A push is one of all ranks, with what each has read; features travel to the rank that keeps them. Slots are those
//! that one rank alone would give, so a bank may be read again by any number of ranks.

mod capture;
mod entries;
mod projection;
#[cfg(test)]
pub(crate) mod tests;

pub use capture::Capture;
pub use entries::Entries;
pub use projection::Projection;

use crate::error::{Error, Result};
use crate::shards::SampleId;
use crate::table::{Block, Table};
use crate::world::World;
use arrow::array::{Array, Int64Array, UInt32Array, UInt64Array};
use arrow::datatypes::Float16Type;
use capture::Writing;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tch::{Device, Kind, Tensor};

/// Largest finite f16.
const F16_MAX: f64 = 65_504.0;

/// The rolling features of a run.
#[derive(Debug)]
pub struct Bank {
    /// A row for each slot of this rank, of which those of slots below `len` are written.
    features: Tensor,
    world: World,
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
    /// `[N, D]`, any float kind; of several ranks those of this one, row `n` with rank `n % ranks`.
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
        Self::shared(capacity, dim, &World::alone())
    }

    /// An empty bank that all ranks of `world` hold together.
    pub fn shared(capacity: usize, dim: usize, world: &World) -> Result<Self> {
        if capacity == 0 || dim == 0 {
            return Err(Error::usage(format!("a bank of {capacity} rows of {dim} entries holds nothing"))
                .with_hint("set bank.capacity to a few times cluster.k or more"));
        }
        Ok(Self {
            features: Tensor::f_empty([own_rows(capacity, world), dim as i64], (Kind::Half, Device::Cpu))?,
            world: world.clone(),
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

    /// Takes features `[B, D]`, made at `step`, of this rank's samples among `entries`: a call of all ranks.
    ///
    /// Labels are the clusters that the present clustering gives; without, a sample that comes again keeps the label it has. Of a sample
    /// that stands twice in the batch, the later row is kept.
    pub fn push(&mut self, entries: &Entries, features: &Tensor, step: u64) -> Result<()> {
        let shape = features.size();
        let own = entries.readers.iter().filter(|(reader, _)| *reader == self.world.rank()).count();
        if shape != [own as i64, self.dim as i64] {
            return Err(Error::data(format!(
                "the bank takes rows of {} entries, one for each of {own} samples; got {shape:?}",
                self.dim
            )));
        }
        let features = features.f_detach()?;
        if !bool::try_from(features.f_isfinite()?.f_all()?)? {
            return Err(Error::data(format!("features of step {step} are not finite"))
                .with_hint("training has diverged: go back to the last snapshot with a lower train.lr"));
        }

        let mut rows_by_slot = BTreeMap::new();
        for (row, &id) in entries.ids.iter().enumerate() {
            let slot = self.slot_for(id);
            self.steps[slot] = step;
            self.classes[slot] = entries.classes[row];
            if let Some(labels) = &entries.labels {
                self.labels[slot] = Some(labels[row]);
            }
            rows_by_slot.insert(slot, entries.readers[row]);
        }
        self.bring_home(&rows_by_slot, &features)
    }

    /// Writes rows of a batch, each given by its reader and its number there, where their slots lie.
    fn bring_home(&mut self, rows_by_slot: &BTreeMap<usize, (usize, usize)>, features: &Tensor) -> Result<()> {
        let (rank, size) = (self.world.rank(), self.world.size());
        let (mut sends, mut takes) = (vec![Vec::new(); size], vec![Vec::new(); size]);
        for (&slot, &(reader, row)) in rows_by_slot {
            let keeper = slot % size;
            if reader == rank {
                sends[keeper].push(row as i64);
            }
            if keeper == rank {
                takes[reader].push((slot / size) as i64);
            }
        }
        let counts = |lists: &[Vec<i64>]| lists.iter().map(|list| list.len() as i64).collect::<Vec<_>>();
        let rows = Tensor::f_from_slice(&sends.concat())?.f_to_device(features.device())?;
        let kept = features.f_index_select(0, &rows)?.f_to_kind(Kind::Float)?.f_clamp(-F16_MAX, F16_MAX)?;
        let kept = kept.f_to_kind(Kind::Half)?.f_to_device(Device::Cpu)?;
        let taken = self.world.exchange(&kept, &counts(&sends), &counts(&takes))?;
        self.write_rows(takes.concat(), &taken)
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

    /// The rows, `[N, D]` of f16 in slot order, of several ranks those of this one: a view that later pushes change.
    pub fn rows(&self) -> Result<Tensor> {
        Ok(self.features.f_narrow(0, 0, own_rows(self.len(), &self.world))?)
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
        let features = self.rows()?;
        let writing = Arc::new(Mutex::new(Writing::new(features.size2()?.0 as usize)));
        self.writing = Arc::downgrade(&writing);
        let (rank, size) = (self.world.rank(), self.world.size());
        Ok(Capture {
            writing,
            features,
            dim: self.dim,
            capacity: self.capacity,
            next: self.next,
            rank,
            size,
            rows: self.len(),
            ids: own(&self.ids, rank, size),
            steps: own(&self.steps, rank, size),
            classes: own(&self.classes, rank, size),
            labels: own(&self.labels, rank, size),
        })
    }

    /// Reads what [`Capture::write`] wrote on each rank, in the order of ranks, for the ranks of `world`, however many they are: with the
    /// same `capacity` the very same bank, slot for slot; with a smaller one the newest entries, with a larger one all.
    pub fn read(paths: &[PathBuf], capacity: usize, world: &World) -> Result<Self> {
        let first = paths.first().ok_or_else(|| Error::data("a bank without a file"))?;
        let table = Table::open(first)?;
        let whole = Facts::of(&table, first, 0, paths.len())?;
        let kept = whole.rows.min(capacity);
        let same_places = capacity == whole.capacity;
        let oldest = if whole.rows == whole.capacity { whole.next } else { 0 };
        let place = |old_slot: usize| -> Option<usize> {
            if same_places {
                return Some(old_slot);
            }
            let rank_by_age = (old_slot + whole.rows - oldest) % whole.rows;
            rank_by_age.checked_sub(whole.rows - kept)
        };

        let mut bank = Self::shared(capacity, table.width("feature")?, world)?;
        bank.ids = vec![SampleId(0); kept];
        bank.steps = vec![0; kept];
        bank.classes = vec![None; kept];
        bank.labels = vec![None; kept];
        bank.next = if same_places { whole.next } else { kept % capacity };
        let mut rows = 0;
        for (rank, path) in paths.iter().enumerate() {
            let table = Table::open(path)?;
            if Facts::of(&table, path, rank, paths.len())? != whole {
                return Err(Error::data(format!("{} and {} are not of one bank", first.display(), path.display())));
            }
            let mut old_slot = rank;
            for block in table {
                let block = block?;
                let slots = (0..block.rows()).map(|row| old_slot + row * paths.len());
                bank.fill(&block, &slots.map(place).collect::<Vec<_>>())?;
                old_slot += block.rows() * paths.len();
                rows += block.rows();
            }
        }
        if rows != whole.rows {
            return Err(Error::data(format!("{}: {rows} rows of {} are there", first.display(), whole.rows)));
        }
        if bank.slots.len() != kept {
            return Err(Error::data(format!("{} holds a sample twice", first.display())));
        }
        Ok(bank)
    }

    /// Puts the rows of a block into their places, features only into those of this rank; rows without a place are left out.
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
            if slot % self.world.size() == self.world.rank() {
                slots.push((slot / self.world.size()) as i64);
                rows.push(row as i64);
            }
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
        if slots.is_empty() {
            return Ok(());
        }
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

/// What the file of one rank says of the whole bank.
#[derive(Debug, PartialEq)]
struct Facts {
    capacity: usize,
    next: usize,
    rows: usize,
}

impl Facts {
    /// Of the file of `rank` among `size`.
    fn of(file: &Table, path: &Path, rank: usize, size: usize) -> Result<Self> {
        let fact = |key: &str| file.fact(key).and_then(|text| text.parse::<usize>().ok());
        let needed = |key: &str| {
            fact(key).ok_or_else(|| {
                Error::data(format!("{} does not say its `{key}`", path.display()))
                    .with_hint("it is not the bank of a snapshot")
            })
        };
        let (found_rank, found_size) = (fact("rank").unwrap_or(0), fact("ranks").unwrap_or(1));
        if (found_rank, found_size) != (rank, size) {
            return Err(Error::data(format!(
                "{} is of rank {found_rank} of {found_size}, and read as that of rank {rank} of {size}",
                path.display()
            )));
        }
        let (capacity, next) = (needed("capacity")?, needed("next")?);
        let rows = match fact("rows") {
            Some(rows) => rows,
            None => file.count_rows()?,
        };
        if rows > capacity || next >= capacity || (rows < capacity && next != rows) {
            return Err(Error::data(format!(
                "{}: {rows} rows do not fit a capacity of {capacity} with {next} as the next slot",
                path.display()
            )));
        }
        Ok(Self { capacity, next, rows })
    }
}

/// Of so many slots, those of this rank.
fn own_rows(slots: usize, world: &World) -> i64 {
    (slots.saturating_sub(world.rank())).div_ceil(world.size()) as i64
}

/// Of entries of slots, those of one rank.
fn own<T: Clone>(entries: &[T], rank: usize, size: usize) -> Vec<T> {
    entries.iter().skip(rank).step_by(size).cloned().collect()
}
