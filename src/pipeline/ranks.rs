//! What several ranks that train one run settle between them.
//!
//! They must mean the same run (program, pipeline, folder), read disjoint parts of its stream, and do the same things in the same order:
//! whatever one of them alone wants or waits for goes into a [`Ballot`], and all act on what comes of it. So no rank trains while
//! another has no batch, and a request to stop on one rank stops all at the same step.

use crate::batch::Standing;
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::ingest::{Cursor, Opening, Share, redeal};
use crate::train::state::Restored;
use crate::world::{Launch, World};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
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
        let seen = (env!("CARGO_PKG_VERSION"), plan.to_toml()?);
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
    world.meet(&mut || Ok(()))?;
    if world.is_first() {
        let _ = fs::remove_file(&path); // it has served
    }
    Ok(())
}

/// A number that rank 0 finds out, however long it takes.
pub(super) fn first_says(world: &World, what: &str, find: impl FnOnce() -> Result<usize>) -> Result<usize> {
    if !world.is_first() {
        let text = world.await_post(what)?;
        let number = String::from_utf8_lossy(&text).parse();
        return number.map_err(|_| Error::device(format!("rank 0 does not say the number of {what}")));
    }
    let found = find()?;
    world.post(what, found.to_string().as_bytes())?;
    Ok(found)
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
    let dealt = runtime.block_on(redeal(opening, &cursors, size))?;
    for (rank, cursor) in dealt.into_iter().enumerate() {
        if rank == 0 {
            standing.cursor = cursor;
            continue;
        }
        world.post(&key(rank), &serde_json::to_vec(&cursor).map_err(unclear)?)?;
    }
    Ok(standing)
}

/// Counts of all ranks, added up by name.
pub(super) fn of_all_ranks(world: &World, own: BTreeMap<String, u64>) -> Result<BTreeMap<String, u64>> {
    if world.is_alone() {
        return Ok(own);
    }
    let text = serde_json::to_vec(&own).map_err(|error| Error::device(format!("counts cannot be sent: {error}")))?;
    let mut sums = BTreeMap::new();
    for sent in world.gather_bytes(&text)? {
        let counts: BTreeMap<String, u64> =
            serde_json::from_slice(&sent).map_err(|error| Error::device(format!("counts of a rank: {error}")))?;
        for (name, count) in counts {
            *sums.entry(name).or_default() += count;
        }
    }
    Ok(sums)
}

/// What one rank wants, or all of them do: whatever any wants, all do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ballot {
    /// To stop.
    pub(super) stop: bool,
    /// To stand still.
    pub(super) pause: bool,
    /// A snapshot.
    pub(super) snapshot: bool,
    /// To wait for its batches.
    pub(super) waiting: bool,
    /// It has not come to the end of its part of a list.
    pub(super) goes_on: bool,
    /// The highest pass of its batches.
    pub(super) pass: u64,
}

impl Ballot {
    /// What comes of the ballots of all ranks.
    pub(super) fn agree(self, world: &World) -> Result<Self> {
        let Self { stop, pause, snapshot, waiting, goes_on, pass } = self;
        let flags = [stop, pause, snapshot, waiting, goes_on].map(i64::from);
        let all = world.largest(&[flags.as_slice(), &[pass as i64]].concat())?;
        let [stop, pause, snapshot, waiting, goes_on, pass] = all[..] else {
            return Err(Error::device("a vote with another number of questions"));
        };
        let [stop, pause, snapshot, waiting, goes_on] = [stop, pause, snapshot, waiting, goes_on].map(|flag| flag > 0);
        Ok(Self { stop, pause, snapshot, waiting, goes_on, pass: pass as u64 })
    }
}
