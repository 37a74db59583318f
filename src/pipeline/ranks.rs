//! What several ranks that train one run settle between them.
//!
//! They must mean the same run (program, pipeline, folder), read disjoint parts of its stream, and do the same things in the same order:
//! whatever one of them alone wants or waits for goes into a [`Ballot`], and all act on what comes of it. So no rank trains while
//! another has no batch, and a request to stop on one rank stops all at the same step.

use crate::batch::Standing;
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::ingest::{Cursor, Opening, Share, redeal};
use crate::observe::Report;
use crate::shards::{Ledger, ShardList};
use crate::train::state::Restored;
use crate::train::upload::DeviceBatch;
use crate::world::{Launch, World};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tch::Device;
use tokio::runtime::Runtime;

/// How long a file of rank 0 may take to be seen by the others: network file systems remember what was not there.
const SEEN_WITHIN: Duration = Duration::from_secs(15);

/// Who trains together.
#[derive(Debug)]
pub struct Ranks {
    /// Which of them this is, and where they meet.
    pub launch: Launch,
    /// Ends this process because of another rank.
    pub end: fn(&Error),
}

impl Ranks {
    /// Meets the others, if the work can be divided.
    pub(super) fn join(&self, plan: &Plan, device: Device) -> Result<World> {
        let (size, batch) = (self.launch.size, plan.train.batch_size);
        if !batch.is_multiple_of(size) || batch == 0 {
            return Err(Error::usage(format!("train.batch_size = {batch} cannot be divided among {size} ranks"))
                .with_hint("it is the batch of all ranks together: choose a multiple of their number"));
        }
        let seen = (env!("CARGO_PKG_VERSION"), plan.to_toml()?, device != Device::Cpu);
        let agreed = format!("{:x?}", Sha256::digest(format!("{seen:?}")));
        World::join(&self.launch, &plan.ranks, device, &agreed, self.end)
    }
}

/// The part of a list that this rank reads.
pub(super) fn share_of(world: &World) -> Result<Share> {
    let number = |count: usize| u32::try_from(count).map_err(|_| Error::usage("too many ranks"));
    Share::new(number(world.rank())?, number(world.size())?)
}

/// Makes sure that every rank sees the folder of rank 0: each writes its part of snapshots there.
pub(super) fn see_one_folder(world: &World, folder: &Path) -> Result<()> {
    if world.is_alone() {
        return Ok(());
    }
    let path = folder.join(".ranks");
    if world.is_first() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let token = format!("{}-{now}", std::process::id());
        fs::write(&path, &token).map_err(|error| Error::file("write", &path, &error))?;
        world.post("folder", token.as_bytes())?;
    } else {
        let token = world.await_post("folder")?;
        let started = Instant::now();
        while fs::read(&path).ok().as_deref() != Some(&token) {
            if started.elapsed() > SEEN_WITHIN {
                let what =
                    format!("rank {} does not see the run folder of rank 0 at {}", world.rank(), folder.display());
                return Err(
                    Error::usage(what).with_hint("all ranks need the same --run, on storage that their machines share")
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    world.meet()?;
    if world.is_first() {
        let _ = fs::remove_file(&path); // it has served
    }
    Ok(())
}

/// Makes sure that every rank has the same list, unless it is one that grows: of that each may have seen another length.
///
/// # Errors
/// Some have another than rank 0.
pub(super) fn see_one_list(world: &World, plan: &Plan, list: &ShardList) -> Result<()> {
    if plan.stream.follow {
        return Ok(());
    }
    let others = world.at_odds(list.fingerprint().as_bytes())?;
    if others.is_empty() {
        return Ok(());
    }
    Err(Error::data(format!("ranks {others:?} find other shards in the list than rank 0"))
        .with_hint("stream.shards must mean the same on every machine: shared folders, or URLs"))
}

/// A number that rank 0 finds out, however long it takes, or why it did not.
pub(super) fn first_says(world: &World, what: &str, find: impl FnOnce() -> Result<usize>) -> Result<usize> {
    if world.is_alone() {
        return find();
    }
    let unclear = |error| Error::device(format!("rank 0 does not say the number of {what}: {error}"));
    if world.is_first() {
        let found = find();
        let told = match &found {
            Ok(number) => serde_json::json!({ "number": number }),
            Err(Error::Interrupted { .. }) => serde_json::json!({ "interrupted": true }),
            Err(error) => serde_json::json!({ "error": error.to_string() }),
        };
        world.post(what, told.to_string().as_bytes())?;
        return found;
    }
    let told: serde_json::Value = serde_json::from_slice(&world.await_post(what)?).map_err(unclear)?;
    if told["interrupted"] == true {
        return Err(Error::Interrupted { snapshot: None });
    }
    match told["number"].as_u64() {
        Some(number) => Ok(number as usize),
        None => Err(Error::device(format!("rank 0: {}", told["error"].as_str().unwrap_or("no reason given")))),
    }
}

/// Where this rank's stream goes on. Where there are more or fewer ranks than before, rank 0 deals what is left of the lists anew.
pub(super) fn deal_anew(world: &World, runtime: &Runtime, opening: &Opening, restored: Restored) -> Result<Standing> {
    let Restored { mut standing, to_deal, ranks } = restored;
    if ranks == world.size() {
        return Ok(standing);
    }
    let key = |rank: usize| format!("cursor-{rank}");
    let unclear = |error| Error::device(format!("a cursor that was dealt anew is none: {error}"));
    let Some(cursors) = to_deal else {
        let text = world.await_post(&key(world.rank()))?;
        standing.cursor = serde_json::from_slice::<Cursor>(&text).map_err(unclear)?;
        return Ok(standing);
    };
    tracing::info!("{ranks} ranks trained before, {} do now: the rest of the stream is dealt anew", world.size());
    let size = u32::try_from(world.size()).map_err(|_| Error::usage("too many ranks"))?;
    // What is lost on the way has been counted before.
    let ledger = Arc::new(Ledger::in_memory(&opening.plan));
    let dealt = runtime.block_on(redeal(&Opening { ledger, ..opening.clone() }, &cursors, size))?;
    for (rank, cursor) in dealt.into_iter().enumerate() {
        if rank == 0 {
            standing.cursor = cursor;
            continue;
        }
        world.post(&key(rank), &serde_json::to_vec(&cursor).map_err(unclear)?)?;
    }
    Ok(standing)
}

/// What every rank says of itself, in order.
pub(super) fn reports_of_all(world: &World, own: Report) -> Result<Vec<Report>> {
    if world.is_alone() {
        return Ok(vec![own]);
    }
    let text = serde_json::to_vec(&own).map_err(|error| Error::device(format!("counts cannot be sent: {error}")))?;
    let read = |sent: Vec<u8>| {
        serde_json::from_slice(&sent).map_err(|error| Error::device(format!("counts of a rank: {error}")))
    };
    world.gather_bytes(&text)?.into_iter().map(read).collect()
}

/// Counts of all ranks, added up by name.
pub(super) fn summed<'a>(all: impl Iterator<Item = &'a BTreeMap<String, u64>>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, count) in all.flatten() {
        *sums.entry(name.clone()).or_default() += count;
    }
    sums
}

/// What one rank wants, or all of them do: whatever any wants, all do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ballot {
    /// To stop.
    pub(super) stop: bool,
    /// To stand still.
    pub(super) pause: bool,
    /// A snapshot.
    pub(super) snapshot: bool,
    /// To wait for batches that have not come: whose, of several ranks one's.
    pub(super) waits_for: Option<usize>,
    /// It has not come to the end of its part of a list.
    pub(super) goes_on: bool,
    /// The passes of its samples.
    pub(super) passes: Passes,
}

/// From which pass to which samples are; of several ranks, also how far the one is that is farthest behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passes {
    pub(super) lowest: u64,
    pub(super) highest: u64,
    pub(super) highest_of_slowest: u64,
}

impl Passes {
    /// Those of no samples: they change nothing.
    const NONE: Self = Self { lowest: i64::MAX as u64, highest: 0, highest_of_slowest: i64::MAX as u64 };

    /// Those of these batches.
    pub(super) fn of(block: &[DeviceBatch]) -> Self {
        let passes = || block.iter().flat_map(|batch| &batch.samples).map(|sample| sample.pass);
        match (passes().min(), passes().max()) {
            (Some(lowest), Some(highest)) => Self { lowest, highest, highest_of_slowest: highest },
            _ => Self::NONE,
        }
    }
}

impl Default for Ballot {
    fn default() -> Self {
        Self { stop: false, pause: false, snapshot: false, waits_for: None, goes_on: false, passes: Passes::NONE }
    }
}

impl Ballot {
    /// What comes of the ballots of all ranks.
    pub(super) fn agree(self, world: &World) -> Result<Self> {
        if world.is_alone() {
            return Ok(self);
        }
        let Self { stop, pause, snapshot, waits_for, goes_on, passes } = self;
        let flags = [stop, pause, snapshot, goes_on].map(i64::from);
        // The lowest is the highest of what is below 0.
        let waits_for = waits_for.map_or(-1, |rank| rank as i64);
        let numbers = [waits_for, passes.highest as i64, -(passes.lowest as i64), -(passes.highest_of_slowest as i64)];
        let all = world.largest(&[flags.as_slice(), &numbers].concat())?;
        let [stop, pause, snapshot, goes_on, waits_for, highest, lowest, slowest] = all[..] else {
            return Err(Error::device("a vote with another number of questions"));
        };
        let [stop, pause, snapshot, goes_on] = [stop, pause, snapshot, goes_on].map(|flag| flag > 0);
        let waits_for = usize::try_from(waits_for).ok();
        let passes = Passes { lowest: -lowest as u64, highest: highest as u64, highest_of_slowest: -slowest as u64 };
        Ok(Self { stop, pause, snapshot, waits_for, goes_on, passes })
    }
}
