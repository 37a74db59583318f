//! The whole drawing, joined: shards → ingest → decode → batch → train ⇄ cluster, with snapshots and observers beside.
//!
//! [`pretrain`] opens or resumes a run (`start.rs`) and has it go its steps (`run.rs`). The trainer runs on the calling thread; everything left
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
mod start;
pub mod stop;
pub mod used;
mod watchers;

pub use ranks::Ranks;

use crate::config::Plan;
use crate::error::{Error, Result};
use crate::observe::console::say;
use crate::observe::{Baseline, Summary};
use crate::snapshot::Store;
use crate::torch::device::{Placement, place_among, set_threads};
use crate::world::World;
use start::Start;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use stop::Stop;
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
    let runtime = start_runtime()?;
    let stop = if world.is_alone() { Stop::default() } else { Stop::launched() };
    stop.on_signals(runtime.handle())?;
    if world.is_first() {
        tracing::info!("device {:?}: {}", placement.device, placement.reason);
    }
    let (plan, list) = start::settle(world, plan, folder, &runtime, &stop)?;
    let start = Start { world, plan: &plan, folder, placement, runtime: &runtime, list, stop };
    let mut run = start.open(store, bar)?;
    let (losses, filtered) = run.hear_ranks()?;
    let progress = run.trainer.progress();
    let baseline = Baseline { step: progress.step, images: progress.images, losses, filtered };
    let watchers = match world.is_first() {
        true => Watchers::start(&plan, folder, &run.list, &run.live, baseline, &mut run.observer)?,
        false => Watchers::default(),
    };
    run.meters = watchers.meters.clone();
    let outcome = guard::guard("train", || run.go());
    let last = match &outcome {
        Ok(()) | Err(Error::Interrupted { .. }) => None,
        Err(error) => {
            world.fail(error);
            drop(run.saving.take()); // it may be the last good one
            run.last_snapshot()
        }
    };
    let observer = run.into_observer();
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
