//! One open shard: a thread that reads it, and the bounded channel through which its samples come.
//!
//! The thread runs ahead of the stream until the channel holds its share of `stream.buffer_mib`. Each reader has a share of
//! its own: with one budget for all, the reader whose turn it is could wait for room that the others hold. Dropping a
//! [`Reader`] ends its thread and its connection at once.

use super::account::Account;
use super::cursor::Place;
use super::progress::Progress;
use crate::config::StreamPlan;
use crate::error::{Error, Result};
use crate::shards::archive::Archive;
use crate::shards::index::Stamp;
use crate::shards::sample::{Samples, Step};
use crate::shards::source::Fetcher;
use crate::shards::{Activity, Ending, Reading, Reason, ShardSample, ShardUrl, Trouble};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

const MIB: u64 = 1024 * 1024;
/// Samples in a channel, where bytes do not bound it first.
const SAMPLES_AHEAD: usize = 256;
/// The unit of a reader's room.
const ROOM_UNIT: u64 = 1024;

/// What all readers of a pass share.
#[derive(Debug)]
pub(super) struct Shared {
    pub fetcher: Arc<Fetcher>,
    pub progress: Arc<Progress>,
    /// Bytes of the largest member read.
    most: u64,
    /// Room of each reader, in units.
    room: u32,
}

impl Shared {
    /// For `readers` shards open at once.
    pub(super) fn new(fetcher: Arc<Fetcher>, progress: Arc<Progress>, plan: &StreamPlan, readers: usize) -> Arc<Self> {
        let share = plan.buffer_mib as u64 * MIB / ROOM_UNIT / readers as u64;
        let room =
            u32::try_from(share).unwrap_or(u32::MAX).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize) as u32);
        Arc::new(Self { fetcher, progress, most: plan.max_member_mib as u64 * MIB, room })
    }
}

/// A shard in use, and where its next sample begins.
#[derive(Debug)]
pub(super) struct Lane {
    pub next: Place,
    pub reader: Reader,
    pub account: Account,
}

/// The consuming end of a shard's thread.
#[derive(Debug)]
pub(super) struct Reader {
    steps: mpsc::Receiver<(Step, Option<OwnedSemaphorePermit>)>,
    room: Arc<Semaphore>,
    reading: Arc<Reading>,
    progress: Arc<Progress>,
}

impl Reader {
    /// Starts to read a shard at the offset or end of a sample.
    ///
    /// # Errors
    /// The system has no more threads.
    pub(super) fn open(url: &ShardUrl, offset: u64, shared: &Arc<Shared>) -> Result<Self> {
        let reading = Reading::new(Arc::clone(url.name()));
        let room = Arc::new(Semaphore::new(shared.room as usize));
        let (sender, steps) = mpsc::channel(SAMPLES_AHEAD);
        let thread = ReaderThread {
            url: url.clone(),
            offset,
            shared: Arc::clone(shared),
            reading: Arc::clone(&reading),
            room: Arc::clone(&room),
            steps: sender,
        };
        start_thread(move || thread.run())?;
        shared.progress.opened(&reading);
        Ok(Self { steps, room, reading, progress: Arc::clone(&shared.progress) })
    }

    /// The shard being read.
    pub(super) fn reading(&self) -> &Reading {
        &self.reading
    }

    /// What comes next in the shard.
    ///
    /// # Errors
    /// The thread panicked.
    pub(super) async fn step(&mut self) -> Result<Step> {
        let received = match self.steps.try_recv() {
            Ok(received) => Some(received),
            Err(_) => {
                let _waiting = self.progress.wait_for(&self.reading);
                self.steps.recv().await
            }
        };
        let Some((step, _room)) = received else {
            return Err(Error::Stage {
                stage: "ingest",
                what: format!("the reader of {} panicked", self.reading.shard),
            });
        };
        Ok(step)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.reading.stop();
        self.room.close();
        self.progress.closed(&self.reading);
    }
}

fn start_thread(body: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().name("shoal-shard".to_owned()).spawn(body);
    started.map(drop).map_err(|error| {
        Error::data(format!("cannot start a thread to read a shard: {error}")).with_hint("lower stream.lanes")
    })
}

/// What the thread of a shard owns.
struct ReaderThread {
    url: ShardUrl,
    offset: u64,
    shared: Arc<Shared>,
    reading: Arc<Reading>,
    room: Arc<Semaphore>,
    steps: mpsc::Sender<(Step, Option<OwnedSemaphorePermit>)>,
}

impl ReaderThread {
    /// Sends every step of the shard, the end included, unless nobody wants them any more.
    fn run(self) {
        let mut samples = match self.open() {
            Ok(samples) => samples,
            Err(trouble) => {
                self.send(Step::End(Ending::failed(trouble)));
                return;
            }
        };
        loop {
            let step = samples.step();
            let is_last = matches!(step, Step::End(_));
            if is_last {
                self.reading.end_at(samples.archive().position());
                self.reading.set(Activity::Done);
            }
            if !self.send(step) || is_last {
                return;
            }
        }
    }

    fn open(&self) -> Result<Samples, Trouble> {
        let samples = open_samples(&self.url, self.offset, &self.shared, &self.reading)?;
        self.reading.is_of(Stamp::of(&self.url, samples.archive()));
        Ok(samples)
    }

    /// False if nobody wants the step any more.
    fn send(&self, step: Step) -> bool {
        let bytes = match &step {
            Step::Sample(sample) => sample.image.len() as u64,
            Step::Lost(_) | Step::End(_) => 0,
        };
        let units = u32::try_from(bytes / ROOM_UNIT + 1).unwrap_or(u32::MAX).min(self.shared.room);
        let room = match Arc::clone(&self.room).try_acquire_many_owned(units) {
            Ok(room) => room,
            Err(_) => {
                let Some(room) = self.wait_for_room(units) else {
                    return false;
                };
                room
            }
        };
        self.steps.blocking_send((step, Some(room))).is_ok()
    }

    fn wait_for_room(&self, units: u32) -> Option<OwnedSemaphorePermit> {
        let activity = self.reading.activity();
        self.reading.set(Activity::Ahead);
        let room = self.shared.fetcher.block_on(Arc::clone(&self.room).acquire_many_owned(units)).ok();
        self.reading.set(activity);
        room
    }
}

fn open_samples(url: &ShardUrl, offset: u64, shared: &Shared, reading: &Arc<Reading>) -> Result<Samples, Trouble> {
    let mut samples = Samples::new(Archive::open(url, &shared.fetcher, reading)?, shared.most);
    if offset > 0 {
        samples.go_to(offset)?;
    }
    Ok(samples)
}

/// The samples of one shard that begin at these offsets (in ascending order), or why each is not there.
///
/// # Errors
/// The thread cannot start, or panicked.
pub(super) async fn fetch(
    url: ShardUrl,
    offsets: Vec<u64>,
    shared: Arc<Shared>,
) -> Result<BTreeMap<u64, Result<ShardSample, Trouble>>> {
    let shard = Arc::clone(url.name());
    let open = OpenForFetch { reading: Reading::new(Arc::clone(&shard)), progress: Arc::clone(&shared.progress) };
    open.progress.opened(&open.reading);
    let _waiting = open.progress.wait_for(&open.reading);
    let (sender, found) = tokio::sync::oneshot::channel();
    let reading = Arc::clone(&open.reading);
    start_thread(move || {
        let _ = sender.send(find(&url, &offsets, &shared, &reading));
    })?;
    found.await.map_err(|_| Error::Stage { stage: "ingest", what: format!("the reader of {shard} panicked") })
}

/// Ends the reading when nobody waits for it any more.
struct OpenForFetch {
    reading: Arc<Reading>,
    progress: Arc<Progress>,
}

impl Drop for OpenForFetch {
    fn drop(&mut self) {
        self.reading.stop();
        self.progress.closed(&self.reading);
    }
}

fn find(
    url: &ShardUrl,
    offsets: &[u64],
    shared: &Shared,
    reading: &Arc<Reading>,
) -> BTreeMap<u64, Result<ShardSample, Trouble>> {
    let all_lost = |trouble: &Trouble| offsets.iter().map(|&offset| (offset, Err(trouble.clone()))).collect();
    let Some(&first) = offsets.first() else {
        return BTreeMap::new();
    };
    let mut samples = match open_samples(url, first, shared, reading) {
        Ok(samples) => samples,
        Err(trouble) => return all_lost(&trouble),
    };
    let gone = Trouble::new(Reason::ShardChanged, "no sample begins where one did before");
    let mut found: BTreeMap<u64, Result<ShardSample, Trouble>> = all_lost(&gone);
    let mut last_met = None;
    for &offset in offsets {
        if samples.archive().can_jump()
            && let Err(trouble) = samples.go_to(offset)
        {
            give_up(&mut found, &trouble);
            return found;
        }
        while last_met.is_none_or(|met| met < offset) {
            match samples.step() {
                Step::Sample(sample) => {
                    last_met = Some(sample.offset);
                    if let Some(slot) = found.get_mut(&sample.offset) {
                        *slot = Ok(sample);
                    }
                }
                Step::Lost(_) => {}
                Step::End(ending) => {
                    if let Some(trouble) = &ending.trouble {
                        give_up(&mut found, trouble);
                    }
                    return found;
                }
            }
        }
    }
    found
}

fn give_up(found: &mut BTreeMap<u64, Result<ShardSample, Trouble>>, trouble: &Trouble) {
    for slot in found.values_mut().filter(|slot| slot.is_err()) {
        *slot = Err(trouble.clone());
    }
}
