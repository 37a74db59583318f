//! The left half of the drawing, joined: a shard list in, batches out.
//!
//! tokio drives the stream of samples, which waits in one bounded channel for the decoding thread; decoded batches wait in
//! another. A panic in either stage arrives here as an error that names the stage. Dropping a feed stops both.

use super::guard::{guard, stage_error};
use super::stop::Stop;
use crate::batch::{Batch, Filling, Queues, Remembered, Ring, RingPlan, Sieve, fill};
use crate::config::{Duplicates, Labels, Plan};
use crate::decode::{CenterCrops, Decoded, Decoder, Filter};
use crate::error::{Error, Result};
use crate::ingest::{self, Cursor, Opening, Passes, Progress, RawSample, Share};
use crate::observe::Sources;
use crate::shards::index::{Row, RowVerdict};
use crate::shards::metadata::Licences;
use crate::shards::{Ledger, Rejection, ShardList};
use crate::torch::device::Placement;
use crate::train::upload::IN_FLIGHT;
use futures_util::{FutureExt, Stream, StreamExt};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tch::Device;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Batches that wait for the trainer.
const WAITING: usize = 1;
/// How often a waiting trainer looks whether somebody asked to stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a feed is to give.
#[derive(Clone, Debug)]
pub struct FeedPlan {
    /// Once in list order, or without end.
    pub passes: Passes,
    /// Where the stream starts.
    pub start: Cursor,
    /// Photographs a batch.
    pub batch_size: usize,
    /// What center views are; none where batches have none.
    pub center_views: Option<CenterCrops>,
    /// Whether batches have train views.
    pub train_views: bool,
    /// Batches that the trainer holds at once.
    pub held: usize,
    /// The part of the list that is read.
    pub share: Share,
    /// Which rules of `[filter]` hold, and with any of them `filter.licences` and that classes are needed where they are learnt.
    pub filters: Filters,
}

/// The center views that a run has a use for: to cluster, or for those rules of `[filter]` that look at their pixels.
pub fn wanted_center_views(plan: &Plan) -> Option<CenterCrops> {
    let filter = &plan.filter;
    let looks_at_pixels =
        filter.uniform > 0.0 || filter.duplicates != Duplicates::Off || !filter.placeholders.is_empty();
    (plan.train.labels == Labels::Clusters || looks_at_pixels).then_some(CenterCrops::Middle)
}

/// Which rules of `[filter]` hold.
#[derive(Clone, Debug)]
pub enum Filters {
    /// None: an evaluation wants every sample.
    None,
    /// Those that look at one sample alone, and so hold in any order.
    Alone,
    /// Those on duplicates as well, going on with what is remembered.
    All(Remembered),
}

/// A running feed.
#[derive(Debug)]
pub struct Feed {
    batches: Receiver<Result<Batch>>,
    ring: Ring,
    ingest: tokio::task::JoinHandle<()>,
    decode: Option<JoinHandle<()>>,
    sources: Sources,
}

/// What came of a short wait for a batch.
#[derive(Debug)]
pub enum Polled {
    /// A batch.
    Batch(Box<Batch>),
    /// A finite stream has ended.
    End,
    /// None yet.
    Nothing,
}

/// What came of waiting for a batch.
#[derive(Debug)]
pub enum Next {
    /// A batch.
    Batch(Box<Batch>),
    /// A finite stream has ended.
    End,
    /// Somebody asked to stop.
    Stopped,
}

impl Feed {
    /// Starts the stages left of the trainer on `runtime`.
    pub fn open(
        runtime: &Handle,
        plan: &Plan,
        placement: &Placement,
        list: ShardList,
        ledger: &Arc<Ledger>,
        feed: FeedPlan,
    ) -> Result<Self> {
        let ring = Ring::new(RingPlan {
            slots: feed.held + WAITING + IN_FLIGHT + 1,
            rows: feed.batch_size,
            size: plan.views.size,
            center: feed.center_views.map_or(0, CenterCrops::count),
            train: feed.train_views,
            pinned: placement.device != Device::Cpu,
        })?;
        let from_start = feed.start == Cursor::default();
        let progress = Arc::new(Progress::default());
        let stream = ingest::stream(Opening {
            start: feed.start,
            share: feed.share,
            progress: Arc::clone(&progress),
            ..Opening::new(list, &plan.stream, &plan.fetch, feed.passes, Arc::clone(ledger))
        });
        // Room for a batch: the next one gathers while the decoders are at work on this one.
        let (give_sample, samples) = mpsc::channel(feed.batch_size);
        let (give_batch, batches) = sync_channel(WAITING);
        let queues = Queues::new(feed.batch_size, WAITING);
        let queues = Arc::new(queues);
        let ingest = runtime.spawn(run_ingest(stream, give_sample, Arc::clone(&queues)));
        let decoder = Decoder::new(&plan.views, &plan.stream).with_centers(feed.center_views.unwrap_or_default());
        let decoders = Arc::clone(decoder.counters());
        let decoder = match feed.filters {
            Filters::None => decoder,
            Filters::Alone | Filters::All(_) => {
                let licences = Licences::open(&plan.filter)?;
                let decoder = decoder.with_filter(Filter::new(&plan.filter)).with_licences(licences);
                decoder.with_classes(plan.train.known_classes())
            }
        };
        let sieve = match feed.filters {
            Filters::None | Filters::Alone => Sieve::default(),
            Filters::All(remembered) => {
                Sieve::new(&plan.filter, &remembered, from_start).over_lists(plan.stream.weights.len())
            }
        };
        let filling = Filling {
            ring: ring.clone(),
            decoder,
            threads: placement.decode_threads,
            sieve,
            queues: Arc::clone(&queues),
        };
        let ledger = Arc::clone(ledger);
        let decode = thread::Builder::new()
            .name("batches".into())
            .spawn(move || run_decode(filling, samples, &ledger, &give_batch))
            .map_err(|error| Error::device(format!("cannot start the decoding thread: {error}")))?;
        Ok(Self { batches, ring, ingest, decode: Some(decode), sources: Sources { progress, decoders, queues } })
    }

    /// Waits for the next batch, or for somebody to ask for a stop.
    pub fn next(&mut self, stop: &Stop) -> Result<Next> {
        while !stop.is_requested() {
            match self.poll()? {
                Polled::Batch(batch) => return Ok(Next::Batch(batch)),
                Polled::End => return Ok(Next::End),
                Polled::Nothing => {}
            }
        }
        Ok(Next::Stopped)
    }

    /// Waits for the next batch, but not for long.
    pub fn poll(&mut self) -> Result<Polled> {
        match self.batches.recv_timeout(PATIENCE) {
            Ok(batch) => {
                self.sources.queues.batches.count_taken();
                batch.map(|batch| Polled::Batch(Box::new(batch)))
            }
            Err(RecvTimeoutError::Timeout) => Ok(Polled::Nothing),
            Err(RecvTimeoutError::Disconnected) => Ok(Polled::End),
        }
    }

    /// Its counters, for whoever watches.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.ingest.abort();
        self.ring.close();
        // The decoding thread may wait for room in the channel: take what is there until it hangs up.
        while self.batches.recv().is_ok() {}
        if let Some(decode) = self.decode.take() {
            let _ = decode.join(); // a panic has been passed on as an error already
        }
    }
}

async fn run_ingest(
    stream: impl Stream<Item = Result<RawSample>>,
    out: mpsc::Sender<Result<RawSample>>,
    queues: Arc<Queues>,
) {
    let pass_on = async {
        let mut samples = std::pin::pin!(stream);
        while let Some(sample) = samples.next().await {
            if out.send(sample).await.is_err() {
                return;
            }
            queues.samples.count_put();
        }
    };
    if let Err(panic) = AssertUnwindSafe(pass_on).catch_unwind().await {
        let _ = out.send(Err(stage_error("ingest", &*panic))).await;
    }
}

fn run_decode(
    filling: Filling,
    samples: mpsc::Receiver<Result<RawSample>>,
    ledger: &Ledger,
    out: &SyncSender<Result<Batch>>,
) {
    let note = |sample: &RawSample, outcome: &Result<Decoded, Rejection>| note(ledger, sample, outcome);
    if let Err(error) = guard("decode", || fill(filling, samples, note, out)) {
        let _ = out.send(Err(error)); // a trainer that has gone needs no errors
    }
}

/// Tells the ledger, and the index where there is one, what became of a sample.
fn note(ledger: &Ledger, sample: &RawSample, outcome: &Result<Decoded, Rejection>) -> Result<()> {
    if let Some(index) = ledger.index() {
        index.heard(sample.meta.pass, &sample.meta.shard, index_row(sample, outcome));
    }
    match outcome {
        Ok(decoded) => {
            ledger.decoded(None);
            for notice in decoded.notices() {
                ledger.notice(notice, 1);
            }
        }
        Err(Rejection::Lost(trouble)) => ledger.decoded(Some(sample.meta.loss(trouble.clone()))),
        Err(Rejection::Filtered(filtered)) => ledger.pass_over(*filtered),
    }
    ledger.check()
}

/// What the index keeps of a sample.
pub(crate) fn index_row(sample: &RawSample, outcome: &Result<Decoded, Rejection>) -> Row {
    let side = |pixels: u32| u16::try_from(pixels).unwrap_or(u16::MAX);
    let bytes = u32::try_from(sample.image.len()).unwrap_or(u32::MAX);
    let offset = sample.meta.offset;
    match outcome {
        Ok(decoded) => {
            let (width, height) = (side(decoded.size.0), side(decoded.size.1));
            Row { offset, bytes, width, height, format: decoded.format.name().into(), verdict: RowVerdict::Usable }
        }
        Err(Rejection::Lost(trouble)) => Row { bytes, ..Row::lost_at(offset, trouble.reason) },
        Err(Rejection::Filtered(filtered)) => {
            Row { bytes, ..Row::without_pixels(offset, RowVerdict::Filtered(*filtered)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_the_stream_arrives_as_an_error_that_names_it() {
        let runtime = super::super::start_runtime().expect("threads");
        let (give, mut take) = mpsc::channel(1);
        let broken =
            futures_util::stream::poll_fn(|_| -> std::task::Poll<Option<Result<RawSample>>> { panic!("no sample") });
        let queues = Queues::new(1, 1);
        runtime.spawn(run_ingest(broken, give, Arc::new(queues)));
        let error = take.blocking_recv().expect("an answer").expect_err("it panicked");
        assert_eq!(error.to_string(), "the ingest stage failed: no sample");
        assert!(take.blocking_recv().is_none(), "the stage has ended");
    }
}
