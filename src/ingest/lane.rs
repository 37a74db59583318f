//! One open shard: a thread that reads it, and the bounded channel through which its samples come.
//!
//! Samples of a shared shard that belong to other ranks end in the thread. So does a loss among them: of the ranks that share a
//! shard one reports it, the one whose sample would have come next.
//!
//! The thread runs ahead of the stream until the channel holds its share of `stream.buffer_mib`. Each reader has a share of
//! its own: with one budget for all, the reader whose turn it is could wait for room that the others hold. Dropping a
//! [`Reader`] ends its thread and its connection at once.

use super::account::Account;
use super::cursor::Spot;
use super::progress::Progress;
use super::share::Portion;
use crate::config::StreamPlan;
use crate::error::{Error, Result};
use crate::shards::archive::Archive;
use crate::shards::index::{Index, Stamp};
use crate::shards::sample::{Samples, Step};
use crate::shards::source::Fetcher;
use crate::shards::{Activity, Ending, Reading, Reason, ShardSample, ShardUrl, Trouble};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

const MIB: u64 = 1024 * 1024;
/// Samples in a channel, where bytes do not bound it first.
const SAMPLES_AHEAD: usize = 256;
/// The unit of a reader's room.
const ROOM_UNIT: u64 = 1024;
/// In the order of arrival a lane that gives nothing for so long gives its place to another shard.
const LATE_AFTER: Duration = Duration::from_secs(1);

/// What all readers of a pass share.
#[derive(Debug)]
pub(super) struct Shared {
    pub fetcher: Arc<Fetcher>,
    pub progress: Arc<Progress>,
    /// Bytes of the largest member read.
    most: u64,
    /// Room of each reader, in units.
    room: u32,
    /// Whether it was said that files were touched.
    told_of_touched: AtomicBool,
    /// What was learnt of the shards before.
    index: Option<Index>,
}

impl Shared {
    /// For `readers` shards open at once.
    pub(super) fn new(fetcher: Arc<Fetcher>, progress: Arc<Progress>, plan: &StreamPlan, readers: usize) -> Self {
        let share = plan.buffer_mib as u64 * MIB / ROOM_UNIT / readers as u64;
        let room =
            u32::try_from(share).unwrap_or(u32::MAX).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize) as u32);
        let most = plan.max_member_mib as u64 * MIB;
        Self { fetcher, progress, most, room, told_of_touched: AtomicBool::new(false), index: None }
    }

    /// Uses what an index knows.
    #[must_use]
    pub(super) fn with_index(self, index: Option<Index>) -> Self {
        Self { index, ..self }
    }
}

/// A portion in use.
#[derive(Debug)]
pub(super) struct Lane {
    /// Its number in the order of the pass.
    pub number: u32,
    /// What is left of it.
    pub rest: Portion,
    pub reader: Reader,
    /// What its shard has given.
    pub account: Account,
    /// The same up to the last sample, where something was lost since then: a restart goes on behind that sample.
    pub account_before: Option<Account>,
    /// The byte from which on this process reads it.
    pub opened_at: u64,
    /// Where the samples begin that it gave or lost, if there is an index to hear of them.
    pub offsets: BTreeSet<u64>,
    /// Since when its next sample has been looked for in vain.
    pub empty_since: Option<Instant>,
    /// The version of the shard that was read before a restart.
    pub version_before: Option<Stamp>,
    /// How it ends, where the shard is another one since a restart whose way is still gone over.
    pub changed: Option<Ending>,
    /// Gaps that it gave then.
    pub gaps: u64,
}

impl Lane {
    /// Starts to read a portion, of the version of the shard that was read before, if it is known.
    ///
    /// # Errors
    /// The system has no more threads.
    pub(super) fn open(
        number: u32,
        rest: Portion,
        url: &ShardUrl,
        version_before: Option<Stamp>,
        shared: &Arc<Shared>,
    ) -> Result<Self> {
        let account = Account { from_byte: rest.offset, ..Account::default() };
        let (reader, opened_at) = (Reader::open(url, rest, version_before.clone(), shared)?, rest.offset);
        let (account_before, empty_since, changed) = (None, None, None);
        Ok(Self {
            number,
            rest,
            reader,
            account,
            account_before,
            opened_at,
            offsets: BTreeSet::new(),
            empty_since,
            version_before,
            changed,
            gaps: 0,
        })
    }

    /// Samples that it gave, and gaps in their place.
    pub(super) fn given(&self) -> u64 {
        self.account.samples + self.gaps
    }

    /// The version of the shard that its samples are of, if it is known.
    pub(super) fn stamp(&self) -> Option<&Stamp> {
        let stamp = self.version_before.as_ref().or(self.reader.reading.stamp());
        stamp.filter(|stamp| **stamp != Stamp::default())
    }

    pub(super) fn spot(&self) -> Spot {
        Spot { number: self.number, offset: self.rest.offset, ordinal: self.rest.ordinal }
    }

    /// What its shard has given up to its spot.
    pub(super) fn account_at_spot(&self) -> &Account {
        self.account_before.as_ref().unwrap_or(&self.account)
    }

    /// Whether others should not wait for it.
    pub(super) fn is_late(&self) -> bool {
        self.empty_since.is_some_and(|since| since.elapsed() >= LATE_AFTER) && self.reader.steps.is_empty()
    }
}

/// A step of a portion, how many samples of its shard came before, and the room that it takes.
type Sent = (Step, u64, OwnedSemaphorePermit);

/// The consuming end of a shard's thread.
#[derive(Debug)]
pub(super) struct Reader {
    steps: mpsc::Receiver<Sent>,
    room: Arc<Semaphore>,
    reading: Arc<Reading>,
    progress: Arc<Progress>,
}

impl Reader {
    fn open(url: &ShardUrl, portion: Portion, version_before: Option<Stamp>, shared: &Arc<Shared>) -> Result<Self> {
        let reading = Reading::new(Arc::clone(url.name()));
        let room = Arc::new(Semaphore::new(shared.room as usize));
        let (sender, steps) = mpsc::channel(SAMPLES_AHEAD);
        let thread = ReaderThread {
            url: url.clone(),
            portion,
            version_before,
            shared: Arc::clone(shared),
            reading: Arc::clone(&reading),
            room: Arc::clone(&room),
            steps: sender,
        };
        start_thread(move || thread.run())?;
        shared.progress.opened(&reading);
        Ok(Self { steps, room, reading, progress: Arc::clone(&shared.progress) })
    }

    /// What comes next in the portion, and how many samples of the shard came before.
    ///
    /// # Errors
    /// The thread panicked.
    pub(super) async fn step(&mut self) -> Result<(Step, u64)> {
        let received = match self.steps.try_recv() {
            Ok(received) => Some(received),
            Err(_) => {
                let _waiting = self.progress.wait_for(&self.reading);
                self.steps.recv().await
            }
        };
        self.opened(received)
    }

    /// As [`Reader::step`], if it is there already.
    pub(super) fn try_step(&mut self) -> Option<Result<(Step, u64)>> {
        match self.steps.try_recv() {
            Ok(received) => Some(self.opened(Some(received))),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => Some(self.opened(None)),
        }
    }

    /// Wakes the task when the next step is there.
    pub(super) fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Result<(Step, u64)>> {
        self.steps.poll_recv(context).map(|received| self.opened(received))
    }

    /// Gives the room of what was received back.
    fn opened(&self, received: Option<Sent>) -> Result<(Step, u64)> {
        match received {
            Some((step, ordinal, _room)) => Ok((step, ordinal)),
            None => {
                Err(Error::Stage { stage: "ingest", what: format!("the reader of {} panicked", self.reading.shard) })
            }
        }
    }

    pub(super) fn reading(&self) -> &Arc<Reading> {
        &self.reading
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
    portion: Portion,
    version_before: Option<Stamp>,
    shared: Arc<Shared>,
    reading: Arc<Reading>,
    room: Arc<Semaphore>,
    steps: mpsc::Sender<Sent>,
}

impl ReaderThread {
    /// Sends every step of the portion, the end included, unless nobody wants them any more.
    fn run(self) {
        let _span = tracing::debug_span!("shard", shard = &*self.reading.shard).entered();
        let mut ordinal = self.portion.ordinal;
        let place = (self.portion.offset, self.version_before.as_ref());
        let mut samples = match open_samples(&self.url, place, &self.shared, &self.reading) {
            Ok(samples) => samples,
            Err(trouble) => {
                self.send(Step::End(Ending::failed(trouble)), ordinal);
                return;
            }
        };
        let spoilt = self.spoilt();
        loop {
            let mut step = samples.step();
            if let Step::Sample(sample) = &mut step
                && let Some(&reason) = spoilt.get(&sample.offset)
            {
                sample.known = Some(reason);
            }
            let is_ours = self.portion.takes(ordinal);
            match step {
                Step::End(_) => {
                    self.reading.end_at(samples.archive().position());
                    self.reading.set(Activity::Done);
                    self.send(step, ordinal);
                    return;
                }
                Step::Sample(_) => {
                    if is_ours && !self.send(step, ordinal) {
                        return;
                    }
                    ordinal += 1;
                }
                Step::Lost(_) => {
                    if is_ours && !self.send(step, ordinal) {
                        return;
                    }
                }
            }
        }
    }

    /// Images that an index knows to be of no use, where it is certain to be of this version of the shard.
    fn spoilt(&self) -> HashMap<u64, Reason> {
        let Some(index) = &self.shared.index else { return HashMap::new() };
        let known = index.shard(&self.reading.shard).ok().flatten();
        let known = known.filter(|known| known.stamp.version.is_some() && self.reading.stamp() == Some(&known.stamp));
        known.map(|known| known.spoilt()).unwrap_or_default()
    }

    /// False if nobody wants the step any more.
    fn send(&self, step: Step, ordinal: u64) -> bool {
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
        self.steps.blocking_send((step, ordinal, room)).is_ok()
    }

    fn wait_for_room(&self, units: u32) -> Option<OwnedSemaphorePermit> {
        let activity = self.reading.activity();
        self.reading.set(Activity::Ahead);
        let room = self.shared.fetcher.block_on(Arc::clone(&self.room).acquire_many_owned(units)).ok();
        self.reading.set(activity);
        room
    }
}

/// Opens a shard at an offset of the version that was read before, if that is known.
fn open_samples(
    url: &ShardUrl,
    (offset, version_before): (u64, Option<&Stamp>),
    shared: &Shared,
    reading: &Arc<Reading>,
) -> Result<Samples, Trouble> {
    let archive = Archive::open(url, &shared.fetcher, reading)?;
    let stamp = Stamp::of(url, &archive);
    if let Some(before) = version_before {
        if let Some(change) = before.change(&stamp, url) {
            return Err(change);
        }
        if *before != stamp && !shared.told_of_touched.swap(true, Ordering::Relaxed) {
            tracing::warn!(shard = %url, "was touched since the run read it (others may have been, too); its length is the same: gone on with");
        }
    }
    reading.is_of(stamp);
    let mut samples = Samples::new(archive, shared.most).with_class(url.class());
    if offset > 0 {
        samples.go_to(offset)?;
    }
    Ok(samples)
}

/// The samples of one shard that begin at these offsets (in ascending order) of the version that was read before, or why each is
/// not there.
///
/// # Errors
/// The thread cannot start, or panicked.
pub(super) async fn fetch(
    url: ShardUrl,
    offsets: Vec<u64>,
    version_before: Option<Stamp>,
    shared: Arc<Shared>,
) -> Result<BTreeMap<u64, Result<ShardSample, Trouble>>> {
    let shard = Arc::clone(url.name());
    let open = OpenForFetch { reading: Reading::new(Arc::clone(&shard)), progress: Arc::clone(&shared.progress) };
    open.progress.opened(&open.reading);
    let _waiting = open.progress.wait_for(&open.reading);
    let (sender, found) = tokio::sync::oneshot::channel();
    let reading = Arc::clone(&open.reading);
    start_thread(move || {
        let _ = sender.send(find(&url, &offsets, version_before.as_ref(), &shared, &reading));
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
    version_before: Option<&Stamp>,
    shared: &Shared,
    reading: &Arc<Reading>,
) -> BTreeMap<u64, Result<ShardSample, Trouble>> {
    let all_lost = |trouble: &Trouble| offsets.iter().map(|&offset| (offset, Err(trouble.clone()))).collect();
    let Some(&first) = offsets.first() else {
        return BTreeMap::new();
    };
    let mut samples = match open_samples(url, (first, version_before), shared, reading) {
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
