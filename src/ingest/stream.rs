//! The stream itself: passes one after the other, each sample with the cursor behind it.
//!
//! In: a list, a plan, a cursor. Out: an asynchronous stream of [`RawSample`]s that ends with an error where the ledger says that
//! too much is lost, where a whole pass gives nothing, or where the cursor does not fit the list. Needs a tokio
//! runtime. Dropping the stream ends its threads and connections.

use super::cursor::{Checkpoint, Cursor};
use super::lane::Shared;
use super::pass::{Pass, Rules, Waiter};
use super::progress::Progress;
use super::{RawSample, SampleMeta};
use crate::config::{FetchPlan, StreamPlan};
use crate::error::{Error, Result};
use crate::shards::source::Fetcher;
use crate::shards::{Ledger, Notice, SampleId, ShardList, ShardSample};
use futures_util::Stream;
use std::sync::Arc;

/// Samples between two checkpoints: more make going on slower, fewer make the stream copy its state more often.
const CHECKPOINT_EVERY: u64 = 1_000;

/// How often the list is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Without end, each pass in an order of its own; the list is read again at the end of each.
    Endless,
    /// Once, in the order of the list, unshuffled: for evaluation.
    Once,
}

/// The samples of a list, from a cursor on. The ledger hears of what is lost, `progress` of what is going on.
pub fn stream(
    list: ShardList,
    plan: &StreamPlan,
    fetch: &FetchPlan,
    passes: Passes,
    start: Cursor,
    ledger: Arc<Ledger>,
    progress: Arc<Progress>,
) -> impl Stream<Item = Result<RawSample>> + Send + use<> {
    let feed = Feed {
        rules: Rules::new(plan, passes, ledger),
        list,
        plan: plan.clone(),
        fetch: fetch.clone(),
        passes,
        progress,
        checkpoint_every: CHECKPOINT_EVERY,
    };
    run(feed, start)
}

/// As [`stream`], from its parts.
pub(super) fn run(feed: Feed, start: Cursor) -> impl Stream<Item = Result<RawSample>> + Send + use<> {
    async_stream::try_stream! {
        let mut running = feed.start(start).await?;
        while let Some(sample) = running.next().await? {
            yield sample;
        }
    }
}

/// What a stream is made from.
#[derive(Debug)]
pub(super) struct Feed {
    pub rules: Rules,
    pub list: ShardList,
    pub plan: StreamPlan,
    pub fetch: FetchPlan,
    pub passes: Passes,
    pub progress: Arc<Progress>,
    pub checkpoint_every: u64,
}

/// A stream under way.
struct Running {
    feed: Feed,
    shared: Arc<Shared>,
    pass: Pass,
    checkpoint: Arc<Checkpoint>,
    /// Samples that left since the checkpoint.
    since: u64,
}

impl Feed {
    fn shared(&self) -> Result<Arc<Shared>> {
        let fetcher = Fetcher::new(&self.list.shards, &self.fetch)?;
        Ok(Shared::new(fetcher, Arc::clone(&self.progress), &self.plan, self.rules.lanes + 1))
    }

    async fn start(self, start: Cursor) -> Result<Running> {
        let shared = self.shared()?;
        let pass = match &start.checkpoint {
            Some(checkpoint) => {
                let shards = checkpoint.shards_in(&self.list, self.rules.seed)?;
                Pass::resume(checkpoint, shards, self.rules.clone(), Arc::clone(&shared)).await?
            }
            None => Pass::begin(0, self.list.shards.clone(), self.rules.clone(), Arc::clone(&shared))?,
        };
        let checkpoint = start.checkpoint.unwrap_or_else(|| Arc::new(pass.checkpoint()));
        let mut running = Running { feed: self, shared, pass, checkpoint, since: start.skip };
        for _ in 0..start.skip {
            running.pass.leave().await?;
        }
        Ok(running)
    }
}

impl Running {
    async fn next(&mut self) -> Result<Option<RawSample>> {
        loop {
            if self.since >= self.feed.checkpoint_every {
                self.take_checkpoint();
            }
            match self.pass.leave().await? {
                Some(Waiter { place, sample }) => {
                    self.since += 1;
                    if let Some(sample) = sample {
                        return Ok(Some(self.raw_sample(place.shard, sample)));
                    }
                }
                None if self.pass.draws == 0 => {
                    let count = self.pass.shards.len();
                    return Err(self
                        .feed
                        .rules
                        .ledger
                        .nothing_works(&format!("no sample in any of the {count} shards")));
                }
                None if self.feed.passes == Passes::Once => return Ok(None),
                None => self.begin_next_pass().await?,
            }
        }
    }

    fn take_checkpoint(&mut self) {
        self.checkpoint = Arc::new(self.pass.checkpoint());
        self.since = 0;
    }

    async fn begin_next_pass(&mut self) -> Result<()> {
        // folders and stores may be large, and a list may be far away
        let list = self.feed.list.clone();
        let reloaded = tokio::task::spawn_blocking(move || list.reload()).await;
        let reloaded = reloaded.map_err(|error| Error::Stage { stage: "ingest", what: error.to_string() })?;
        match reloaded {
            Ok(list) if list.fingerprint() != self.feed.list.fingerprint() => {
                self.feed.list = list;
                self.shared = self.feed.shared()?;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "the list of shards cannot be read again: going on with the old one");
                self.feed.rules.ledger.notice(Notice::StaleList, 1);
            }
        }
        let number = self.pass.number + 1;
        let shards = self.feed.list.shards.clone();
        self.pass = Pass::begin(number, shards, self.feed.rules.clone(), Arc::clone(&self.shared))?;
        self.take_checkpoint();
        Ok(())
    }

    fn raw_sample(&self, shard: usize, sample: ShardSample) -> RawSample {
        let shard = Arc::clone(self.pass.shards[shard].name());
        self.feed.progress.gave_sample(self.pass.number);
        RawSample {
            meta: SampleMeta {
                id: SampleId::of(&shard, sample.offset),
                key: sample.key,
                shard,
                offset: sample.offset,
                pass: self.pass.number,
                class: sample.class,
            },
            image: sample.image,
            cursor: Cursor { checkpoint: Some(Arc::clone(&self.checkpoint)), skip: self.since },
        }
    }
}
