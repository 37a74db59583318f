//! The whole drawing, joined: shards → ingest → decode → batch → train ⇄ cluster, with snapshots and observers beside.
//!
//! [`pretrain`] opens or resumes a run; the loop over its steps is in `run.rs`. The trainer runs on the calling thread; everything left
//! of it runs in [`feed::Feed`]. Of several ranks each does all of this, with its part of the stream and of the bank (`ranks.rs`).
//!
//! What can go wrong: everything that a stage reports; the first error ends the run, and what the last snapshot holds is
//! kept.

mod classes;
pub mod encode;
pub mod feed;
pub mod find;
pub mod gather;
mod guard;
pub mod probing;
mod ranks;
mod run;
pub mod run_folder;
mod saving;
pub mod stop;
pub mod used;
mod watchers;

pub use ranks::Ranks;

use crate::batch::Standing;
use crate::config::{Indexing, Plan, Precision};
use crate::error::{Error, Result};
use crate::ingest::{Opening, Passes};
use crate::observe::console::say;
use crate::observe::{Baseline, CollapseWatch, Controls, Hardware, Live, Observer, Summary};
use crate::shards::index::{Collector, Index};
use crate::shards::{Ledger, ShardList};
use crate::snapshot::Store;
use crate::torch::device::{Placement, place_among, set_threads};
use crate::train::Trainer;
use crate::train::upload::Uploader;
use crate::world::World;
use feed::{Feed, FeedPlan, Filters};
use run::Run;
use saving::Writer;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use stop::Stop;
use tch::Device;
use tokio::runtime::Runtime;
use watchers::Watchers;

/// Starts the run in `folder`, or goes on with the one that is there, until it is done or asked to stop.
///
/// `bar` shows a progress bar where stderr is a terminal. `ranks` says who trains together, if anybody does: then every rank calls this,
/// and rank 0 alone speaks.
///
/// # Errors
/// [`Error::Interrupted`] after Ctrl-C or SIGTERM, with the snapshot that was written; what other ranks have met, with their number.
pub fn pretrain(plan: &Plan, folder: &Path, bar: bool, ranks: Option<&Ranks>) -> Result<Summary> {
    let placement = place_among(&plan.device, ranks.map_or(1, |ranks| ranks.launch.local_size))?;
    set_threads(&placement);
    let world = match ranks {
        Some(ranks) => ranks.join(plan, placement.device)?,
        None => World::alone(),
    };
    let outcome = pretrain_in(&world, plan, folder, bar, &placement);
    world.part(outcome.as_ref().map(|_| ()));
    outcome
}

fn pretrain_in(world: &World, plan: &Plan, folder: &Path, bar: bool, placement: &Placement) -> Result<Summary> {
    let store = match world.is_first() {
        true => Some(Store::open(folder, &plan.snapshot)?),
        false => None,
    };
    ranks::see_one_folder(world, folder)?;
    let counts_classes = classes::are_unknown(plan);
    let mut plan = match world.is_first() {
        true => classes::of_run(plan, folder)?,
        false => plan.clone(),
    };
    if world.is_first() {
        run_folder::settle_plan(&plan, folder)?;
        tracing::info!("device {:?}: {}", placement.device, placement.reason);
    }
    let list = ShardList::parse_with(&plan.stream.shards, &plan.fetch)?;
    if list.duplicates > 0 && world.is_first() {
        tracing::warn!("{} shards are named more than once, and read once", list.duplicates);
    }
    let runtime = start_runtime()?;
    let stop = if world.is_alone() { Stop::default() } else { Stop::launched() };
    stop.on_signals(runtime.handle())?;
    ranks::see_one_list(world, &plan, &list)?;
    if counts_classes {
        plan.train.classes = ranks::first_says(world, "classes", || match plan.train.known_classes() {
            Some(of_run) => Ok(of_run),
            None => classes::count(&plan, &list, &runtime, &stop),
        })?;
        if world.is_first() {
            run_folder::settle_plan(&plan, folder)?;
        }
    }
    let plan = &plan;

    let mut ledger = Ledger::open(&run_folder::ledger(folder, world.rank()), &plan.stream)?;
    if plan.stream.index == Indexing::Auto {
        ledger = ledger.with_index(Collector::new(Index::new(folder.join("index"))));
    }
    let ledger = Arc::new(ledger);
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
    let progress = resumed.is_some().then(|| trainer.progress());
    let mut observer = match world.is_first() {
        true => Observer::open(folder, plan, progress, bar)?,
        false => Observer::silent(folder, plan, progress),
    };
    if let Some(progress) = progress.filter(|_| world.is_first()) {
        tracing::info!("{} goes on at step {}", folder.display(), progress.step);
    }
    let standing = match resumed {
        Some(restored) => {
            let opening = Opening::new(list.clone(), &plan.stream, &plan.fetch, Passes::Endless, Arc::clone(&ledger));
            ranks::deal_anew(world, &runtime, &opening, restored)?
        }
        None => Standing::new(&plan.filter),
    };
    let feed_plan = FeedPlan {
        passes: Passes::Endless,
        start: standing.cursor.clone(),
        batch_size: trainer.own_batch(),
        center_views: feed::wanted_center_views(plan),
        train_views: true,
        held: trainer.block_len(),
        share: ranks::share_of(world)?,
        filters: Filters::All(standing.remembered.clone()),
    };
    let feed = Feed::open(runtime.handle(), plan, placement, list.clone(), &ledger, feed_plan)?;
    let hardware = Hardware { cuda: placement.device != Device::Cpu, bf16: plan.device.precision == Precision::Bf16 };
    let sources = feed.sources().clone();
    observer.runs_on(hardware, Arc::clone(&sources.decoders));
    let live = Live::new(sources, Controls::new(stop.flag()), hardware.cuda, plan.stream.shuffle);
    let live = Arc::new(live);
    let baseline = Baseline {
        step: trainer.progress().step,
        images: trainer.progress().images,
        losses: ranks::losses_of_all(world, &ledger, &lost_before)?,
        filtered: ranks::of_all_ranks(world, by_name(&standing.filtered))?,
    };
    let watchers = match world.is_first() {
        true => Watchers::start(plan, folder, &list, &live, baseline, &mut observer)?,
        false => Watchers::default(),
    };
    let started_at = trainer.progress().step;
    let mut collapse = CollapseWatch::new(plan.train.batch_size, plan.cluster.every_steps, plan.observe.collapse_share);
    if let Some(clustering) = trainer.clustering() {
        collapse.clustered(&clustering.sizes);
    }
    let mut run = Run {
        uploader: Uploader::new(placement.device),
        collapse,
        folder: folder.to_path_buf(),
        waited: Duration::ZERO,
        snapshot_step: started_at,
        kept: VecDeque::new(),
        plan,
        world: world.clone(),
        placement,
        list,
        runtime: &runtime,
        stop,
        ledger,
        lost_before,
        trainer,
        snapshots: Arc::new(snapshots),
        saving: None,
        feed,
        activity: Arc::clone(&live.activity),
        live,
        meters: watchers.meters.clone(),
        standing,
        observer: &mut observer,
    };
    let outcome = guard::guard("train", || run.go());
    let last = match &outcome {
        Ok(()) | Err(Error::Interrupted { .. }) => None,
        Err(error) => {
            world.fail(error);
            drop(run.saving.take()); // it may be the last good one
            run.last_snapshot()
        }
    };
    drop(run);
    match outcome {
        Ok(()) => Ok(observer.summary()),
        Err(error @ Error::Interrupted { .. }) => {
            if world.is_first() {
                say(&observer.summary().to_string());
            }
            Err(error)
        }
        Err(error) => Err(name_last_snapshot(error, last)),
    }
}

/// tokio moves bytes only: two threads are enough.
pub fn start_runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("bytes")
        .enable_all()
        .build()
        .map_err(|error| Error::device(format!("cannot start the I/O threads: {error}")))
}

fn name_last_snapshot(error: Error, last: Option<PathBuf>) -> Error {
    let Some(path) = last else { return error };
    let kept = format!("the last good snapshot is {}", path.display());
    let hint = error.hint().map_or_else(|| kept.clone(), |hint| format!("{hint}; {kept}"));
    error.with_hint(hint)
}

fn by_name<T: ToString>(counts: &BTreeMap<T, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(what, count)| (what.to_string(), *count)).collect()
}
