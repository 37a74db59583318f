//! Batches in reusable slots: uint8 pixels, channels last, as the decoders leave them.
//!
//! A [`Ring`] holds all the memory that batches ever use. [`fill`] takes a free [`Slot`], lets the decoders write into
//! its rows, and sends it on as a [`Batch`]; the trainer drops the batch when it is done with it, and the slot is free
//! again.

mod fill;
mod queues;
mod ring;
mod seen;
mod sieve;
mod standing;

pub use fill::{Filling, fill};
pub use queues::{Queue, Queues};
pub use ring::{Ring, RingPlan, Slot};
pub use seen::{Entry, Remembered};
pub use sieve::Sieve;
pub use standing::{BatchEnd, Standing};

use crate::error::{Error, Result};
use crate::ingest::SampleMeta;
use crate::torch::HostBuffer;
use tch::Tensor;

/// `samples.len()` decoded photographs, in stream order.
///
/// Tensors made from it share the memory of its slot: drop the batch only when they have been read, and when any copy
/// to a device that was started from them has ended.
#[derive(Debug)]
pub struct Batch {
    /// The pixels. Rows from `samples.len()` on hold anything.
    pub slot: Slot,
    /// What each row is.
    pub samples: Vec<SampleMeta>,
    /// What the stream comes to with it.
    pub end: BatchEnd,
}

impl Batch {
    /// The center views, `[B, S, S, 3]` uint8, where `B` is `samples.len()` times the number of center views of a photograph.
    ///
    /// # Errors
    ///
    /// When the ring was made without center views.
    pub fn center(&self) -> Result<Tensor> {
        self.view(self.slot.center.as_ref(), self.slot.centers(), "center")
    }

    /// The train views, `[B, S, S, 3]` uint8, where `B` is `samples.len()`.
    ///
    /// # Errors
    ///
    /// When the ring was made without train views.
    pub fn train(&self) -> Result<Tensor> {
        self.view(self.slot.train.as_ref(), 1, "train")
    }

    fn view(&self, buffer: Option<&HostBuffer>, views: usize, name: &str) -> Result<Tensor> {
        let buffer = buffer.ok_or_else(|| Error::device(format!("this batch was made without {name} views")))?;
        let side = i64::from(self.slot.size());
        buffer.tensor(&[(self.samples.len() * views) as i64, side, side, 3])
    }
}
