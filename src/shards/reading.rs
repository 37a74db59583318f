//! One shard while it is read: what it waits for, how much has come, and whether anybody still wants it.
//!
//! The threads and tasks that read a shard share one [`Reading`] with whoever asked for it. The reader tells its activity, the
//! operator's view shows it, and [`Reading::stop`] ends every wait of the reader, wherever it is.

use super::index::Stamp;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// What a reader is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Activity {
    /// Opening the file, or waiting for the server's answer.
    Opening,
    /// Waiting before another attempt at a server that failed.
    Retrying,
    /// Waiting for bytes, or working on them.
    Reading,
    /// Ahead of its consumer: waiting for room.
    Ahead,
    /// At the end of the shard.
    Done,
}

impl Activity {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Opening, Self::Retrying, Self::Reading, Self::Ahead, Self::Done];

    /// In words, as part of "shard X is ...".
    pub fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Retrying => "waiting to try again",
            Self::Reading => "reading",
            Self::Ahead => "ahead",
            Self::Done => "done",
        }
    }
}

/// The shared state of one shard that is being read.
#[derive(Debug)]
pub struct Reading {
    /// The shard's name.
    pub shard: Arc<str>,
    activity: AtomicU8,
    bytes: AtomicU64,
    second_requests: AtomicU64,
    stopped: watch::Sender<bool>,
    position: AtomicU64,
    stamp: OnceLock<Stamp>,
}

impl Reading {
    /// Before the first byte.
    pub fn new(shard: Arc<str>) -> Arc<Self> {
        let activity = AtomicU8::new(Activity::Opening as u8);
        Arc::new(Self {
            shard,
            activity,
            bytes: AtomicU64::new(0),
            second_requests: AtomicU64::new(0),
            stopped: watch::Sender::new(false),
            position: AtomicU64::new(0),
            stamp: OnceLock::new(),
        })
    }

    /// What the reader is doing.
    pub fn activity(&self) -> Activity {
        let all = [Activity::Opening, Activity::Retrying, Activity::Reading, Activity::Ahead, Activity::Done];
        all[usize::from(self.activity.load(Ordering::Relaxed)).min(all.len() - 1)]
    }

    /// Bytes that came from the file or the server, still compressed.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Requests for bytes that were late, beside the ones that were under way.
    pub fn second_requests(&self) -> u64 {
        self.second_requests.load(Ordering::Relaxed)
    }

    /// The byte of the uncompressed tar at which the reader ended.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Which version of the shard is read, once it is open.
    pub fn stamp(&self) -> Option<&Stamp> {
        self.stamp.get()
    }

    /// Tells the reader to end as soon as it can.
    pub fn stop(&self) {
        self.stopped.send_replace(true);
    }

    /// Whether [`Reading::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Waits for [`Reading::stop`].
    pub async fn stopped(&self) {
        let mut receiver = self.stopped.subscribe();
        // the sender lives as long as `self`, so that the wait ends only by a stop
        let _ = receiver.wait_for(|&stopped| stopped).await;
    }

    pub(crate) fn set(&self, activity: Activity) {
        self.activity.store(activity as u8, Ordering::Relaxed);
    }

    pub(crate) fn end_at(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
    }

    pub(crate) fn is_of(&self, stamp: Stamp) {
        // a shard that is opened again is the same one: its reader sees to that
        let _ = self.stamp.set(stamp);
    }

    pub(super) fn asks_again(&self) {
        self.second_requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_bytes(&self, count: usize) {
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
    }
}
