//! What the stream is doing, for whoever watches a run: counters, open shards, and what it waits for.

use crate::shards::{Activity, Reading};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Shared by the stream and its watchers. Cheap to read at any time.
#[derive(Debug, Default)]
pub struct Progress {
    samples: AtomicU64,
    pass: AtomicU64,
    /// Samples that left in the pass.
    pass_left: AtomicU64,
    /// A pass, and the samples in it, once that is known.
    counted: Mutex<Option<(u64, u64)>>,
    shuffle_samples: AtomicU64,
    shuffle_bytes: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Vec<Weak<Reading>>,
    bytes_of_closed: u64,
    second_requests_of_closed: u64,
    waiting: Option<(Arc<Reading>, Instant)>,
    waiting_for_shards: Option<Instant>,
}

/// What the stream waits for.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The shard whose next sample is due.
    pub shard: Arc<str>,
    /// What its reader is doing.
    pub activity: Activity,
    /// Since when.
    pub time: Duration,
}

impl Progress {
    /// Samples given since the stream began or went on.
    pub fn samples(&self) -> u64 {
        self.samples.load(Ordering::Relaxed)
    }

    /// The pass over the list, from 0.
    pub fn pass(&self) -> u64 {
        self.pass.load(Ordering::Relaxed)
    }

    /// How much of this pass has been given, while the stream is in it, and where it is known how many samples it has.
    pub fn share_of(&self, pass: u64) -> Option<f64> {
        let left = self.pass_left.load(Ordering::Relaxed);
        let counted = *self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, samples) = counted.filter(|(counted, samples)| *counted == pass && *samples > 0)?;
        (self.pass() == pass).then(|| (left as f64 / samples as f64).min(1.0))
    }

    /// Bytes that came from files and servers.
    pub fn bytes(&self) -> u64 {
        let state = self.state();
        state.bytes_of_closed + state.sum_of_open(Reading::bytes)
    }

    /// Requests for bytes that were late, beside the ones that were under way.
    pub fn second_requests(&self) -> u64 {
        let state = self.state();
        state.second_requests_of_closed + state.sum_of_open(Reading::second_requests)
    }

    /// The shards being read.
    pub fn open(&self) -> Vec<Arc<Reading>> {
        self.state().open.iter().filter_map(Weak::upgrade).collect()
    }

    /// How many of the shards being read are at what.
    pub fn lanes(&self) -> BTreeMap<Activity, usize> {
        let mut lanes = BTreeMap::new();
        for reading in self.open() {
            *lanes.entry(reading.activity()).or_default() += 1;
        }
        lanes
    }

    /// [`Progress::lanes`] in words: "3 reading, 1 ahead"; empty where no shard is open.
    pub fn lane_words(&self) -> String {
        let words = self.lanes().into_iter().map(|(activity, count)| format!("{count} {}", activity.name()));
        words.collect::<Vec<String>>().join(", ")
    }

    /// Samples in the shuffle buffer.
    pub fn shuffle_samples(&self) -> u64 {
        self.shuffle_samples.load(Ordering::Relaxed)
    }

    /// Bytes of the images in the shuffle buffer.
    pub fn shuffle_bytes(&self) -> u64 {
        self.shuffle_bytes.load(Ordering::Relaxed)
    }

    /// For how long a stream that follows its list has had nothing left to read.
    pub fn waiting_for_shards(&self) -> Option<Duration> {
        self.state().waiting_for_shards.map(|since| since.elapsed())
    }

    /// What the stream waits for; none while its consumer is the slower one.
    pub fn waiting(&self) -> Option<Waiting> {
        let state = self.state();
        let (reading, since) = state.waiting.as_ref()?;
        Some(Waiting { shard: Arc::clone(&reading.shard), activity: reading.activity(), time: since.elapsed() })
    }

    pub(super) fn opened(&self, reading: &Arc<Reading>) {
        self.state().open.push(Arc::downgrade(reading));
    }

    pub(super) fn closed(&self, closed: &Arc<Reading>) {
        let mut state = self.state();
        state.bytes_of_closed += closed.bytes();
        state.second_requests_of_closed += closed.second_requests();
        state.open.retain(|reading| !std::ptr::eq(reading.as_ptr(), Arc::as_ptr(closed)));
    }

    /// Says what the stream waits for, until the guard is dropped.
    pub(super) fn wait_for(&self, reading: &Arc<Reading>) -> WaitGuard<'_> {
        self.state().waiting = Some((Arc::clone(reading), Instant::now()));
        WaitGuard(self)
    }

    /// Says whether the stream waits for its list to grow.
    pub(super) fn waits_for_shards(&self, waits: bool) {
        let mut state = self.state();
        match waits {
            true => _ = state.waiting_for_shards.get_or_insert_with(Instant::now),
            false => state.waiting_for_shards = None,
        }
    }

    pub(super) fn holds(&self, samples: usize, bytes: usize) {
        self.shuffle_samples.store(samples as u64, Ordering::Relaxed);
        self.shuffle_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    /// Says how many samples a pass has.
    pub(super) fn pass_has(&self, pass: u64, samples: u64) {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Some((pass, samples));
    }

    /// A sample left: so many left in its pass before.
    pub(super) fn gave_sample(&self, pass: u64, left: u64) {
        self.pass.store(pass, Ordering::Relaxed);
        self.pass_left.store(left, Ordering::Relaxed);
        self.samples.fetch_add(1, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn sum_of_open(&self, count: impl Fn(&Reading) -> u64) -> u64 {
        self.open.iter().filter_map(Weak::upgrade).map(|reading| count(&reading)).sum()
    }
}

/// Ends a wait, also where the stream is dropped within it.
pub(super) struct WaitGuard<'a>(&'a Progress);

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.0.state().waiting = None;
    }
}
