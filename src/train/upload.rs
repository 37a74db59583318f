//! Batches on the device, and when their slots are free again.
//!
//! On the CPU a device batch shares the memory of its slot and holds on to it. On CUDA the slot is pinned, the copy is
//! queued without waiting, and the slot goes home when an event behind the copy has passed.

use crate::batch::{Batch, BatchEnd, Slot};
use crate::error::Result;
use crate::ingest::SampleMeta;
use crate::torch::cuda::Event;
use std::collections::VecDeque;
use tch::{Device, Kind, Tensor};

/// Copies that may be under way at once: their slots are not free.
pub const IN_FLIGHT: usize = 2;

/// One batch where the network is. Fields drop in order: tensors before the slot whose memory they share.
#[derive(Debug)]
pub struct DeviceBatch {
    /// `[B, S, S, 3]` uint8: center views.
    pub center: Tensor,
    /// `[B, S, S, 3]` uint8: train views, where the stream gives them.
    pub train: Option<Tensor>,
    /// What each row is.
    pub samples: Vec<SampleMeta>,
    /// What the stream comes to with it.
    pub end: BatchEnd,
    _slot: Option<Slot>,
}

/// Moves batches to the device.
#[derive(Debug)]
pub struct Uploader {
    device: Device,
    in_flight: VecDeque<(Event, Slot)>,
}

impl Uploader {
    /// Nothing is under way.
    pub fn new(device: Device) -> Self {
        Self { device, in_flight: VecDeque::new() }
    }

    /// Brings a batch to the device; does not wait for the copy.
    pub fn upload(&mut self, batch: Batch) -> Result<DeviceBatch> {
        let center = batch.center()?;
        let train = if batch.slot.has_train() { Some(batch.train()?) } else { None };
        let Batch { slot, samples, end } = batch;
        if self.device == Device::Cpu {
            return Ok(DeviceBatch { center, train, samples, end, _slot: Some(slot) });
        }
        let copy = |view: &Tensor| view.f_to_device_(self.device, Kind::Uint8, true, true);
        let center = copy(&center)?;
        let train = train.as_ref().map(copy).transpose()?;
        self.in_flight.push_back((Event::record()?, slot));
        self.send_slots_home()?;
        Ok(DeviceBatch { center, train, samples, end, _slot: None })
    }

    /// Drops the slots whose copies are done, and waits for the oldest copy where too many are under way.
    fn send_slots_home(&mut self) -> Result<()> {
        while let Some((event, _)) = self.in_flight.front() {
            if !event.has_passed()? {
                if self.in_flight.len() <= IN_FLIGHT {
                    return Ok(());
                }
                event.wait()?;
            }
            self.in_flight.pop_front();
        }
        Ok(())
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        for (event, _) in &self.in_flight {
            // Memory must not go back while a copy reads it; where waiting fails, the device is lost and nothing reads.
            let _ = event.wait();
        }
    }
}
