//! Batches on the device, and when their slots are free again.
//!
//! On the CPU a device batch shares the memory of its slot and holds on to it. On CUDA the slot is pinned, and the copy is
//! queued on a stream of its own, so that it runs beside the steps that are queued already; only what is queued after it
//! waits for it. The slot goes home when the copy has ended. Memory on the device goes round as slots do: it is written
//! again after all work that was queued before its batch was dropped.

use crate::batch::{Batch, BatchEnd, Slot};
use crate::error::{Error, Result};
use crate::ingest::SampleMeta;
use crate::torch::cuda::{Event, SideStream, copy_without_waiting};
use std::collections::VecDeque;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Copies that may be under way at once: their slots are not free.
pub const IN_FLIGHT: usize = 2;

/// One batch where the network is. Fields drop in order: tensors before the memory that they share.
///
/// The tensors are good for work that is queued while the batch lives: afterwards their memory is written again.
#[derive(Debug)]
pub struct DeviceBatch {
    /// `[B, S, S, 3]` uint8: center views, where the stream gives them; where a photograph has ten, `[10 B, S, S, 3]`.
    pub center: Option<Tensor>,
    /// `[B, S, S, 3]` uint8: train views, where the stream gives them.
    pub train: Option<Tensor>,
    /// What each row is.
    pub samples: Vec<SampleMeta>,
    /// What the stream comes to with it.
    pub end: BatchEnd,
    _slot: Option<Slot>,
    _loan: Option<Arc<Loan>>,
}

/// Moves batches to the device.
#[derive(Debug)]
pub struct Uploader {
    device: Device,
    copying: VecDeque<(Event, Slot)>,
    lent: Vec<(Arc<Loan>, DeviceMemory)>,
    free: Vec<DeviceMemory>,
}

/// Held by a batch for as long as it uses its memory.
#[derive(Debug)]
struct Loan;

/// Room for the views of one batch on the device, `[rows, S, S, 3]` uint8 each.
#[derive(Debug)]
struct DeviceMemory {
    center: Option<Tensor>,
    train: Option<Tensor>,
    /// It may be written once this has passed.
    used_until: Event,
}

impl DeviceBatch {
    /// `[B, S, S, 3]` uint8: center views.
    ///
    /// # Errors
    /// The stream gives none.
    pub fn center_views(&self) -> Result<&Tensor> {
        self.center.as_ref().ok_or_else(|| Error::device("a batch to be encoded has no center views"))
    }

    /// `[B, S, S, 3]` uint8: train views.
    ///
    /// # Errors
    /// The stream gives none.
    pub fn train_views(&self) -> Result<&Tensor> {
        self.train.as_ref().ok_or_else(|| Error::device("a batch for training has no train views"))
    }
}

impl Uploader {
    /// Nothing is under way.
    pub fn new(device: Device) -> Self {
        Self { device, copying: VecDeque::new(), lent: Vec::new(), free: Vec::new() }
    }

    /// Brings a batch to the device; does not wait for the copy.
    pub fn upload(&mut self, batch: Batch) -> Result<DeviceBatch> {
        let center = if batch.slot.has_center() { Some(batch.center()?) } else { None };
        let train = if batch.slot.has_train() { Some(batch.train()?) } else { None };
        let Batch { slot, samples, end } = batch;
        if self.device == Device::Cpu {
            return Ok(DeviceBatch { center, train, samples, end, _slot: Some(slot), _loan: None });
        }
        let stream = SideStream::get()?;
        self.take_back()?;
        let memory = match self.free.pop() {
            Some(memory) => memory,
            None => DeviceMemory::new(&slot, self.device)?,
        };
        stream.wait_for(&memory.used_until)?;
        let copy = |view: &Tensor, room: &Tensor| -> Result<Tensor> {
            let room = room.f_narrow(0, 0, view.size()[0])?;
            copy_without_waiting(view, &room)?;
            Ok(room)
        };
        let copy_if_there = |view: &Option<Tensor>, room: &Option<Tensor>| {
            view.as_ref().zip(room.as_ref()).map(|(view, room)| copy(view, room)).transpose()
        };
        let (center, train) =
            stream.run(|| Ok((copy_if_there(&center, &memory.center)?, copy_if_there(&train, &memory.train)?)))?;
        let copied = stream.record()?;
        copied.hold_back_current()?;
        self.copying.push_back((copied, slot));
        self.send_slots_home()?;
        let loan = Arc::new(Loan);
        self.lent.push((Arc::clone(&loan), memory));
        Ok(DeviceBatch { center, train, samples, end, _slot: None, _loan: Some(loan) })
    }

    /// Finds the memory whose batches have been dropped: all work on it is queued by now.
    fn take_back(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.lent.len() {
            if Arc::strong_count(&self.lent[at].0) > 1 {
                at += 1;
                continue;
            }
            let (_, memory) = self.lent.swap_remove(at);
            self.free.push(DeviceMemory { used_until: Event::record()?, ..memory });
        }
        Ok(())
    }

    /// Drops the slots whose copies are done, and waits for the oldest copy where too many are under way.
    fn send_slots_home(&mut self) -> Result<()> {
        while let Some((event, _)) = self.copying.front() {
            if !event.has_passed()? {
                if self.copying.len() <= IN_FLIGHT {
                    return Ok(());
                }
                event.wait()?;
            }
            self.copying.pop_front();
        }
        Ok(())
    }
}

impl DeviceMemory {
    fn new(slot: &Slot, device: Device) -> Result<Self> {
        let side = i64::from(slot.size());
        let room = |views: usize| {
            let shape = [(slot.rows() * views) as i64, side, side, 3];
            (views > 0).then(|| Tensor::f_empty(shape, (Kind::Uint8, device))).transpose()
        };
        let (center, train) = (room(slot.centers())?, room(usize::from(slot.has_train()))?);
        // libtorch may give memory out again that work on its own stream still reads.
        Ok(Self { center, train, used_until: Event::record()? })
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        for (event, _) in &self.copying {
            // Memory must not go back while a copy reads it; where waiting fails, the device is lost and nothing reads.
            let _ = event.wait();
        }
    }
}
