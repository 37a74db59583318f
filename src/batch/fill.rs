//! The stage between the stream and the trainer: samples in, full batches out, in stream order.
//!
//! One plain thread takes as many samples as the slot at hand still lacks, and a private pool decodes them, one row
//! each. Rows of images that were rejected are closed up and the next samples fill the end, so a batch is the first B
//! decodable samples of the stream, less those passed over on purpose, whatever the number of threads. Nothing inside the pool waits: it starts with all of
//! its samples there, and its end is the batch.
//!
//! Duplicates are told by the thread itself, sample by sample, once a chunk is decoded ([`Sieve`]): what went before decides,
//! not which thread was faster.
//!
//! The last batch of a finite stream may be short. An error from the stream is passed on and ends the stage; rows
//! decoded since the last full batch are dropped, since the cursor of that batch brings them back.

use super::{Batch, BatchEnd, Entry, Queue, Queues, Ring, Sieve, Slot};
use crate::decode::{Decoded, Decoder};
use crate::error::{Error, Result};
use crate::ingest::{Cursor, RawSample, SampleMeta};
use crate::shards::{FilteredCounts, Rejection};
use crate::torch::HostBuffer;
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use tokio::sync::mpsc::Receiver;

/// What the stage needs beside its two channels.
#[derive(Debug)]
pub struct Filling {
    /// Where slots come from: sizes and wanted views are the ring's.
    pub ring: Ring,
    /// What turns bytes into rows. Its views must have the ring's size.
    pub decoder: Decoder,
    /// Decoding threads, at least 1.
    pub threads: usize,
    /// What is decided in stream order.
    pub sieve: Sieve,
    /// Counts of the two channels.
    pub queues: Arc<Queues>,
}

/// Runs until the stream ends, the trainer hangs up, or the ring is closed. Blocks: give it a thread of its own.
///
/// `note` hears of every sample, in stream order: what it became or why it is lost. When it answers with an error (too
/// many losses) the stage ends as it does on an error of the stream.
///
/// # Errors
///
/// When views and ring differ in size, or when the system has no more threads. Errors of the stream and of `note` go to
/// `out` instead.
pub fn fill(
    filling: Filling,
    mut samples: Receiver<Result<RawSample>>,
    mut note: impl FnMut(&RawSample, &Result<Decoded, Rejection>) -> Result<()>,
    out: &SyncSender<Result<Batch>>,
) -> Result<()> {
    let Filling { ring, decoder, threads, mut sieve, queues } = filling;
    if ring.plan().center > 0 && decoder.centers() != ring.plan().center {
        let (views, slots) = (decoder.centers(), ring.plan().center);
        return Err(Error::Stage { stage: "decode", what: format!("{views} center views, slots for {slots}") });
    }
    if decoder.size() != ring.plan().size {
        let (views, slots) = (decoder.size(), ring.plan().size);
        return Err(Error::Stage { stage: "decode", what: format!("views of {views} pixels, slots for {slots}") });
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|index| format!("decode-{index}"))
        .build()
        .map_err(|error| Error::device(format!("cannot start {threads} decoding threads: {error}")))?;

    while let Some(slot) = ring.take() {
        let mut next = |count: usize| receive(&mut samples, count, &queues.samples);
        let Some(batch) = fill_slot(slot, &decoder, &pool, &mut next, &mut sieve, &mut note).transpose() else {
            return Ok(());
        };
        let last = batch.as_ref().map_or(true, |batch| batch.samples.len() < ring.plan().rows);
        let hung_up = out.send(batch).is_err();
        queues.batches.count_put();
        if last || hung_up {
            return Ok(());
        }
    }
    Ok(())
}

/// A full batch, the short one at the end of the stream, or none after that.
fn fill_slot(
    slot: Slot,
    decoder: &Decoder,
    pool: &rayon::ThreadPool,
    next: &mut impl FnMut(usize) -> Result<Vec<RawSample>>,
    sieve: &mut Sieve,
    note: &mut impl FnMut(&RawSample, &Result<Decoded, Rejection>) -> Result<()>,
) -> Result<Option<Batch>> {
    let mut rows = Rows {
        samples: Vec::with_capacity(slot.rows()),
        slot,
        cursor: None,
        filtered: FilteredCounts::new(),
        added: Vec::new(),
    };
    loop {
        let lacking = rows.slot.rows() - rows.samples.len();
        let chunk = next(lacking)?;
        let ended = chunk.len() < lacking;
        let outcomes = pool.install(|| rows.decode(decoder, &chunk));
        rows.keep(chunk, outcomes, sieve, note)?;
        if ended || rows.samples.len() == rows.slot.rows() {
            return Ok(rows.into_batch());
        }
    }
}

/// The next `count` samples; fewer only where the stream ends.
fn receive(samples: &mut Receiver<Result<RawSample>>, count: usize, queue: &Queue) -> Result<Vec<RawSample>> {
    let mut chunk = Vec::with_capacity(count);
    while chunk.len() < count {
        let Some(sample) = samples.blocking_recv() else { break };
        queue.count_taken();
        chunk.push(sample?);
    }
    Ok(chunk)
}

/// A slot that is being filled: its first `samples.len()` rows are decoded.
struct Rows {
    slot: Slot,
    samples: Vec<SampleMeta>,
    cursor: Option<Cursor>,
    filtered: FilteredCounts,
    added: Vec<Entry>,
}

impl Rows {
    /// Decodes `chunk` into the rows after those that are filled; one outcome each.
    fn decode(&mut self, decoder: &Decoder, chunk: &[RawSample]) -> Vec<Result<Decoded, Rejection>> {
        let filled = self.samples.len();
        let rows = self.slot.rows();
        let center = free_rows(self.slot.center.as_mut(), rows, filled, chunk.len());
        let train = free_rows(self.slot.train.as_mut(), rows, filled, chunk.len());
        chunk
            .par_iter()
            .zip(center)
            .zip(train)
            .with_max_len(1)
            .map(|((sample, center), train)| decoder.decode_into(sample, center, train))
            .collect()
    }

    /// Closes up the rows of what was rejected and notes what the others are.
    fn keep(
        &mut self,
        chunk: Vec<RawSample>,
        outcomes: Vec<Result<Decoded, Rejection>>,
        sieve: &mut Sieve,
        note: &mut impl FnMut(&RawSample, &Result<Decoded, Rejection>) -> Result<()>,
    ) -> Result<()> {
        let first = self.samples.len();
        for (offset, (sample, outcome)) in chunk.into_iter().zip(outcomes).enumerate() {
            let outcome = sieve.judge(&sample.meta, outcome, &mut self.added)?;
            note(&sample, &outcome)?;
            match outcome {
                Ok(_) => {
                    self.move_row(first + offset, self.samples.len());
                    self.samples.push(sample.meta);
                }
                Err(Rejection::Filtered(filtered)) => *self.filtered.entry(filtered).or_default() += 1,
                Err(Rejection::Lost(_)) => {}
            }
            self.cursor = Some(sample.cursor);
        }
        Ok(())
    }

    fn move_row(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        let rows = self.slot.rows();
        for buffer in [&mut self.slot.center, &mut self.slot.train].into_iter().flatten() {
            let row_bytes = buffer.len() / rows;
            buffer.as_mut_slice().copy_within(from * row_bytes..(from + 1) * row_bytes, to * row_bytes);
        }
    }

    /// None where nothing was decoded.
    fn into_batch(self) -> Option<Batch> {
        if self.samples.is_empty() {
            return None;
        }
        let end = BatchEnd { cursor: self.cursor?, filtered: self.filtered, added: self.added };
        Some(Batch { slot: self.slot, samples: self.samples, end })
    }
}

/// Of a buffer of `rows` rows, `count` after the first `filled`; that many times none where the view is not wanted.
fn free_rows(buffer: Option<&mut HostBuffer>, rows: usize, filled: usize, count: usize) -> Vec<Option<&mut [u8]>> {
    let Some(buffer) = buffer else {
        return std::iter::repeat_with(|| None).take(count).collect();
    };
    let row_bytes = buffer.len() / rows;
    buffer.as_mut_slice().chunks_exact_mut(row_bytes).skip(filled).take(count).map(Some).collect()
}
