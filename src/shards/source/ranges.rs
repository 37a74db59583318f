//! The bytes of one remote shard, in order, for the blocking thread that reads it.
//!
//! In: a [`Remote`]. Out: a blocking [`Read`]. The shard is asked for in ranges, each received into memory by a task of its
//! own (`stretch.rs`, and `race.rs` where the one that is read is late); `fetch.ranges` of them are in flight or waiting to be read. A reader that rests asks for no more, so
//! that no answer waits in a socket. A shard may always hold one range, the one that is read; those after it need room in
//! the budget that all shards share, and are simply not asked for yet where there is none: nobody ever waits for room that
//! another holds. After a jump the first range is small and alone, since few bytes may be wanted there; the ones after it
//! double in size. From a server that ignores ranges the shard comes in one piece, a few chunks ahead of its reader.

use super::super::reading::{Activity, Reading};
use super::super::reason::{Reason, Trouble};
use super::Fetcher;
use super::race::{self, Outlet, Watch};
use super::remote::Remote;
use super::stretch::{Arrived, Piece, Stretch, Version};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// Bytes of the first range after a jump.
const FIRST_RANGE: u64 = 256 * 1024;
/// Chunks (of some 10 to 100 kB) ahead of the reader of a shard that comes in one piece.
const CHUNKS_AHEAD: usize = 16;
/// The unit of the budget.
const ROOM_UNIT: u64 = 1024;

/// The blocking end of one remote shard.
#[derive(Debug)]
pub(super) struct RemoteReader {
    remote: Arc<dyn Remote>,
    fetcher: Arc<Fetcher>,
    reading: Arc<Reading>,
    version: Version,
    /// What was asked for, in order; the first is being read.
    asked: VecDeque<Asked>,
    /// The first byte that was not asked for.
    unasked: u64,
    /// Length of the next range.
    range: u64,
    /// Bytes read since the last jump.
    since_jump: u64,
    /// The next byte to be read.
    position: u64,
    current: Bytes,
}

#[derive(Debug)]
struct Asked {
    pieces: mpsc::Receiver<Piece>,
    /// Hears that the reader waits for it.
    watch: Arc<Watch>,
    end: Option<u64>,
    /// None for the range being read.
    room: Option<OwnedSemaphorePermit>,
}

impl RemoteReader {
    /// Asks for the first range, and waits for the head of the answer.
    pub(super) fn open(
        remote: Arc<dyn Remote>,
        fetcher: &Arc<Fetcher>,
        reading: &Arc<Reading>,
    ) -> Result<Self, Trouble> {
        let range = first_range(fetcher);
        let (stretch, arrived) = first_answer(&remote, fetcher, reading, range)?;
        let (end, version) = stretch.known();
        let version = version.cloned().ok_or_else(stopped)?;
        let mut reader = Self {
            remote,
            fetcher: Arc::clone(fetcher),
            reading: Arc::clone(reading),
            version,
            asked: VecDeque::new(),
            unasked: end.unwrap_or(u64::MAX),
            range: range.saturating_mul(2).min(fetcher.rules.range),
            since_jump: 0,
            position: 0,
            current: Bytes::new(),
        };
        reader.deliver(stretch, Some(arrived), None);
        Ok(reader)
    }

    /// What the server says of the shard.
    pub(super) fn version(&self) -> &Version {
        &self.version
    }

    /// Whether the server honours ranges.
    pub(super) fn can_jump(&self) -> bool {
        self.version.ranges
    }

    /// Goes to a byte of the shard; from a server that ignores ranges all bytes up to there are read.
    pub(super) fn go_to(&mut self, byte: u64) -> Result<(), Trouble> {
        let is_asked_for = self.position <= byte && (byte <= self.unasked || !self.version.ranges);
        if !is_asked_for {
            self.begin_at(if self.version.ranges { byte } else { 0 });
        }
        while let Some(end) = self.asked.front().and_then(|front| front.end).filter(|&end| end <= byte) {
            self.leave_front();
            (self.position, self.current) = (end, Bytes::new());
        }
        while self.position < byte {
            if !self.have_bytes()? {
                break;
            }
            self.take((byte - self.position).min(self.current.len() as u64) as usize);
        }
        Ok(())
    }

    /// Forgets what was asked for.
    fn begin_at(&mut self, byte: u64) {
        self.asked.clear();
        self.current = Bytes::new();
        (self.position, self.unasked, self.since_jump) = (byte, byte, 0);
        self.range = first_range(&self.fetcher);
    }

    /// Asks for as much as may be held.
    fn ask_ahead(&mut self) {
        if !self.version.ranges {
            let end = self.version.length.unwrap_or(u64::MAX);
            if self.unasked < end {
                self.ask(self.version.length, None);
                self.unasked = end;
            }
            return;
        }
        let Some(length) = self.version.length else {
            return;
        };
        let is_one_enough = self.since_jump < first_range(&self.fetcher) / 2;
        let most = if is_one_enough { 1 } else { self.fetcher.rules.ranges };
        while self.asked.len() < most && self.unasked < length {
            let end = length.min(self.unasked.saturating_add(self.range));
            let mut room = None;
            if !self.asked.is_empty() {
                let units = u32::try_from((end - self.unasked).div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX);
                room = Arc::clone(&self.fetcher.room).try_acquire_many_owned(units).ok();
                if room.is_none() {
                    return;
                }
            }
            self.ask(Some(end), room);
            self.unasked = end;
            self.range = self.range.saturating_mul(2).min(self.fetcher.rules.range);
        }
    }

    fn ask(&mut self, end: Option<u64>, room: Option<OwnedSemaphorePermit>) {
        let place = (self.unasked, end);
        let stretch = Stretch::new(&self.remote, &self.fetcher, &self.reading, place, Some(self.version.clone()));
        self.deliver(stretch, None, room);
    }

    /// Starts the task that receives a stretch.
    fn deliver(&mut self, stretch: Stretch, first: Option<Arrived>, room: Option<OwnedSemaphorePermit>) {
        let (end, _) = stretch.known();
        let chunks = match end {
            // as many as it has bytes: a range is received whether it is read or not
            Some(end) if self.version.ranges => (end - self.position) as usize + 1,
            _ => CHUNKS_AHEAD,
        };
        let (sender, pieces) = mpsc::channel(chunks);
        let (outlet, watch) = (Outlet::new(sender, stretch.next()), Arc::clone(stretch.watch()));
        let wanted = Arc::clone(&self.reading);
        self.fetcher.runtime.spawn(async move {
            tokio::select! {
                () = race::deliver(stretch, first, &outlet) => {}
                () = wanted.stopped() => {}
                () = outlet.closed() => {}
            }
        });
        self.asked.push_back(Asked { pieces, watch, end, room });
    }

    /// Lets go of the range that was read.
    fn leave_front(&mut self) {
        self.asked.pop_front();
        if let Some(front) = self.asked.front_mut() {
            front.room = None;
        }
    }

    /// Waits until there is a byte to read; false at the end of the shard.
    fn have_bytes(&mut self) -> Result<bool, Trouble> {
        while self.current.is_empty() {
            self.ask_ahead();
            let Some(front) = self.asked.front_mut() else {
                return Ok(false);
            };
            if front.pieces.is_empty() {
                front.watch.reader_waits();
            }
            match front.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => {
                    self.current = bytes;
                    self.reading.set(Activity::Reading);
                }
                Some(Piece::End) => self.leave_front(),
                Some(Piece::Failed(trouble)) => {
                    self.begin_at(if self.version.ranges { self.position } else { 0 });
                    return Err(trouble);
                }
                None => return Err(Trouble::new(Reason::ConnectionLost, "stopped")),
            }
        }
        Ok(true)
    }

    fn take(&mut self, count: usize) -> Bytes {
        self.position += count as u64;
        self.since_jump += count as u64;
        self.current.split_to(count)
    }
}

impl Read for RemoteReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !self.have_bytes().map_err(io::Error::other)? {
            return Ok(0);
        }
        let count = into.len().min(self.current.len());
        into[..count].copy_from_slice(&self.take(count));
        Ok(count)
    }
}

/// What a server says of a shard, at the price of a request and next to no bytes. Blocks.
pub(super) fn version(
    remote: &Arc<dyn Remote>,
    fetcher: &Arc<Fetcher>,
    reading: &Arc<Reading>,
) -> Result<Version, Trouble> {
    let (stretch, _) = first_answer(remote, fetcher, reading, 1)?;
    stretch.known().1.cloned().ok_or_else(stopped)
}

/// Asks for the first bytes, and waits for the head of the answer.
fn first_answer(
    remote: &Arc<dyn Remote>,
    fetcher: &Arc<Fetcher>,
    reading: &Arc<Reading>,
    bytes: u64,
) -> Result<(Stretch, Arrived), Trouble> {
    let mut stretch = Stretch::new(remote, fetcher, reading, (0, Some(bytes)), None);
    let (head, opened) = oneshot::channel();
    let wanted = Arc::clone(reading);
    fetcher.runtime.spawn(async move {
        tokio::select! {
            answer = stretch.answer() => {
                let _ = head.send(answer.map(|arrived| (stretch, arrived)));
            }
            () = wanted.stopped() => {}
        }
    });
    opened.blocking_recv().map_err(|_| stopped())?
}

fn stopped() -> Trouble {
    Trouble::new(Reason::Unreachable, "stopped")
}

fn first_range(fetcher: &Fetcher) -> u64 {
    FIRST_RANGE.min(fetcher.rules.range)
}
