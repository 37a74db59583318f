//! From a plan to a run under way: what all ranks mean by it is settled, the last snapshot taken up, the stream opened where it stood.
//!
//! What can go wrong: a folder or a list that is not the same for all ranks, a plan that the run cannot go on with, a snapshot that is
//! damaged, a device without room.

use super::feed::{self, Feed, FeedPlan, Filters};
use super::run::Run;
use super::saving::Writer;
use super::stop::Stop;
use super::{classes, ranks, run_folder};
use crate::batch::Standing;
use crate::config::{Indexing, Plan, Precision};
use crate::error::Result;
use crate::ingest::{Opening, Passes};
use crate::observe::{CollapseWatch, Controls, Hardware, Live, Observer};
use crate::shards::index::{Collector, Index};
use crate::shards::{Ledger, ShardList};
use crate::snapshot::Store;
use crate::torch::device::Placement;
use crate::train::Trainer;
use crate::train::upload::Uploader;
use crate::world::World;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tch::Device;
use tokio::runtime::Runtime;

/// The plan of the run with all that it leaves open, kept in its folder, and its list.
pub(super) fn settle(
    world: &World,
    plan: &Plan,
    folder: &Path,
    runtime: &Runtime,
    stop: &Stop,
) -> Result<(Plan, ShardList)> {
    let counts_classes = classes::are_unknown(plan);
    let mut plan = match world.is_first() {
        true => classes::of_run(plan, folder)?,
        false => plan.clone(),
    };
    if world.is_first() {
        run_folder::settle_plan(&plan, folder)?;
    }
    let list = ShardList::parse_with(&plan.stream.shards, &plan.fetch)?;
    if list.duplicates > 0 && world.is_first() {
        tracing::warn!("{} shards are named more than once, and read once", list.duplicates);
    }
    ranks::see_one_list(world, &plan, &list)?;
    if !counts_classes {
        return Ok((plan, list));
    }
    plan.train.classes = ranks::first_says(world, "classes", || match plan.train.known_classes() {
        Some(of_run) => Ok(of_run),
        None => classes::count(&plan, &list, runtime, stop),
    })?;
    if world.is_first() {
        run_folder::settle_plan(&plan, folder)?;
    }
    Ok((plan, list))
}

/// A run that is settled and has not begun.
pub(super) struct Start<'a> {
    pub(super) world: &'a World,
    pub(super) plan: &'a Plan,
    pub(super) folder: &'a Path,
    pub(super) placement: &'a Placement,
    pub(super) runtime: &'a Runtime,
    pub(super) list: ShardList,
    pub(super) stop: Stop,
}

impl<'a> Start<'a> {
    /// The run as its last snapshot has it, or as it begins; rank 0 has the `store` of its snapshots.
    pub(super) fn open(self, store: Option<Store>, bar: bool) -> Result<Run<'a>> {
        let Self { world, plan, folder, placement, runtime, .. } = self;
        let ledger = Arc::new(self.ledger()?);
        let lost_before = match world.is_first() {
            true => run_folder::losses_of_former_ranks(folder, world.size(), &plan.stream)?,
            false => BTreeMap::new(),
        };
        let mut trainer = Trainer::new(plan, placement, world)?;
        let snapshots = Writer::new(world, store, folder);
        let resumed = match snapshots.newest()? {
            Some(path) => Some(trainer.restore(&path)?),
            None => None,
        };
        trainer.compare_weights()?;
        let mut observer = self.observer(&trainer, resumed.is_some(), bar)?;
        let standing = match resumed {
            Some(restored) => {
                let list = self.list.clone();
                let opening = Opening::new(list, &plan.stream, &plan.fetch, Passes::Endless, Arc::clone(&ledger));
                ranks::deal_anew(world, runtime, &opening, restored)?
            }
            None => Standing::new(&plan.filter),
        };
        let feed = self.feed(&trainer, &standing, &ledger)?;
        let hardware =
            Hardware { cuda: placement.device != Device::Cpu, bf16: plan.device.precision == Precision::Bf16 };
        let sources = feed.sources().clone();
        observer.runs_on(hardware, Arc::clone(&sources.decoders));
        let live = Live::new(sources, Controls::new(self.stop.flag()), hardware.cuda, plan.stream.shuffle);
        let live = Arc::new(live);
        let started_at = trainer.progress().step;
        let mut collapse =
            CollapseWatch::new(plan.train.batch_size, plan.cluster.every_steps, plan.observe.collapse_share);
        if let Some(clustering) = trainer.clustering() {
            collapse.clustered(&clustering.sizes);
        }
        Ok(Run {
            uploader: Uploader::new(placement.device),
            collapse,
            folder: folder.to_path_buf(),
            waited: Duration::ZERO,
            waited_for_own: Duration::ZERO,
            snapshot_step: started_at,
            kept: VecDeque::new(),
            plan,
            world: world.clone(),
            placement,
            list: self.list,
            runtime,
            stop: self.stop,
            ledger,
            lost_before,
            trainer,
            snapshots: Arc::new(snapshots),
            saving: None,
            feed,
            activity: Arc::clone(&live.activity),
            live,
            meters: None,
            standing,
            observer,
        })
    }

    fn ledger(&self) -> Result<Ledger> {
        let ledger = Ledger::open(&run_folder::ledger(self.folder, self.world.rank()), &self.plan.stream)?;
        Ok(match self.plan.stream.index {
            Indexing::Auto => ledger.with_index(Collector::new(Index::new(self.folder.join("index")))),
            Indexing::Off => ledger,
        })
    }

    /// Rank 0 alone speaks.
    fn observer(&self, trainer: &Trainer, is_resumed: bool, bar: bool) -> Result<Observer> {
        let progress = is_resumed.then(|| trainer.progress());
        if !self.world.is_first() {
            return Ok(Observer::silent(self.folder, self.plan, progress));
        }
        let observer = Observer::open(self.folder, self.plan, progress, bar)?;
        if let Some(progress) = progress {
            tracing::info!("{} goes on at step {}", self.folder.display(), progress.step);
        }
        Ok(observer)
    }

    fn feed(&self, trainer: &Trainer, standing: &Standing, ledger: &Arc<Ledger>) -> Result<Feed> {
        let feed_plan = FeedPlan {
            passes: Passes::Endless,
            start: standing.cursor.clone(),
            batch_size: trainer.own_batch(),
            center_views: feed::wanted_center_views(self.plan),
            train_views: true,
            held: trainer.block_len(),
            share: ranks::share_of(self.world)?,
            filters: Filters::All(standing.remembered.clone()),
        };
        Feed::open(self.runtime.handle(), self.plan, self.placement, self.list.clone(), ledger, feed_plan)
    }
}
