//! Which samples were used: nothing of that size is written down during a run, since its stream says it again.
//!
//! In: a run folder, or a list. Out: each sample without its pixels. What a run has used is what went into its batches up to the
//! last snapshot: its stream is read again from the beginning, decoded, and judged by its rules in the same order and the same
//! batches, so that what did not decode or was passed over is left out. A run past its first pass has used the whole pass. Where
//! the order cannot be gone over again (that of arrival, of several ranks, a list that is followed, or one that is another by now), the whole list
//! counts, judged sample by sample ([`Extent`] says so). Costs: the decoding of what was used, on all cores.

use super::feed::{Feed, FeedPlan, Filters, Next, wanted_center_views};
use super::start_runtime;
use super::stop::Stop;
use crate::batch::Standing;
use crate::config::{DeviceKind, DevicePlan, FetchPlan, Order, Plan, StreamPlan};
use crate::error::Result;
use crate::ingest::{self, Cursor, Opening, Passes, SampleMeta, Share};
use crate::shards::{Ledger, ShardList};
use crate::snapshot::Snapshot;
use crate::torch::device::place;
use crate::train::state::Position;
use futures_util::StreamExt;
use std::path::Path;
use std::sync::Arc;

/// How much of its list a run has used.
#[derive(Clone, Debug, PartialEq)]
pub enum Extent {
    /// Nothing yet.
    Nothing,
    /// What its stream gave up to this position.
    UpTo(Cursor),
    /// A whole pass.
    Pass,
    /// The list as it is today, since the order in which it was read is not known; duplicates, which depend on the order, are not
    /// left out.
    List,
}

/// What a run has used, to be read again.
#[derive(Debug)]
pub struct UsedByRun {
    plan: Plan,
    list: ShardList,
    extent: Extent,
}

impl UsedByRun {
    /// Reads the pipeline and the last snapshot of a run.
    ///
    /// # Errors
    /// The folder is no run or has no snapshot, or its list cannot be read.
    pub fn open(run: &Path) -> Result<Self> {
        let plan = Plan::load(&run.join("pipeline.toml"), &[])?;
        let position = Position::read(&Snapshot::open(run)?.path)?;
        let (end, ranks) = (position.cursor, position.ranks);
        let list = ShardList::parse_with(&plan.stream.shards, &plan.fetch)?;
        let is_same_list = match plan.stream.weights.is_empty() {
            true => end.is_of(std::slice::from_ref(&list)),
            false => end.is_of(&list.by_spec()?),
        };
        let extent = match end {
            end if end == Cursor::default() => Extent::Nothing,
            _ if ranks > 1 || plan.stream.order != Order::Exact || plan.stream.follow || !is_same_list => Extent::List,
            end if end.is_past_first_pass() => Extent::Pass,
            end => Extent::UpTo(end),
        };
        Ok(Self { plan, list, extent })
    }

    /// How much it is.
    pub fn extent(&self) -> &Extent {
        &self.extent
    }

    /// Tells `each` of every sample that was used, once.
    ///
    /// # Errors
    /// Nothing of the list can be read, or `each` fails.
    pub fn each(mut self, mut each: impl FnMut(&SampleMeta) -> Result<()>) -> Result<()> {
        if self.extent == Extent::Nothing {
            return Ok(());
        }
        // what was lost is told by the run's own ledger, and no reason to stop here
        self.plan.stream.max_loss_rate = 1.0;
        let in_order = self.extent != Extent::List;
        let feed_plan = FeedPlan {
            share: Share::whole(),
            passes: if in_order { Passes::Endless } else { Passes::Once },
            start: Cursor::default(),
            // as in the run, so that batches end where its batches ended, and see the damage that its batches saw
            batch_size: self.plan.train.batch_size,
            center_views: wanted_center_views(&self.plan),
            train_views: true,
            held: 1,
            filters: match in_order {
                true => Filters::All(Standing::new(&self.plan.filter).remembered),
                false => Filters::Alone,
            },
        };
        let runtime = start_runtime()?;
        let ledger = Arc::new(Ledger::in_memory(&self.plan.stream));
        let device = DevicePlan { kind: DeviceKind::Cpu, ..self.plan.device.clone() };
        let mut feed = Feed::open(runtime.handle(), &self.plan, &place(&device)?, self.list, &ledger, feed_plan)?;
        let never = Stop::default();
        while let Next::Batch(batch) = feed.next(&never)? {
            // of mixed lists one may come round again before the others have ended
            batch.samples.iter().filter(|sample| sample.pass == 0).try_for_each(&mut each)?;
            let cursor = &batch.end.cursor;
            let is_end = matches!(&self.extent, Extent::UpTo(end) if end == cursor);
            // shards that give other samples than they gave lead by other cursors: their pass ends all the same
            if is_end || (in_order && cursor.is_past_first_pass()) {
                break;
            }
        }
        Ok(())
    }
}

/// Tells `each` of every sample of a list.
///
/// # Errors
/// Nothing of the list can be read, or `each` fails.
pub fn by_list(specs: &[String], mut each: impl FnMut(&SampleMeta) -> Result<()>) -> Result<()> {
    let stream = StreamPlan { shards: specs.to_vec(), max_loss_rate: 1.0, ..StreamPlan::default() };
    let fetch = FetchPlan::default();
    let list = ShardList::parse_with(specs, &fetch)?;
    let ledger = Arc::new(Ledger::in_memory(&stream));
    start_runtime()?.block_on(async {
        let samples = ingest::stream(Opening::new(list, &stream, &fetch, Passes::Once, ledger));
        let mut samples = std::pin::pin!(samples);
        while let Some(sample) = samples.next().await {
            each(&sample?.meta)?;
        }
        Ok(())
    })
}
