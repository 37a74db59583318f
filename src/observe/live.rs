//! A run under way, as others may see it: counters and words that cost the trainer nothing.
//!
//! In: the counters of the feed that trains, and for a while of one that encodes the list for a clustering; what other ranks say of
//! theirs. Out: sums that never fall, how full each queue is, what waits for what. Nothing can go wrong.

use super::ranks::{RankView, Report, Reports};
use super::{Activity, Controls, Stage};
use crate::batch::{Queue, Queues};
use crate::decode::{Counters, DecodeStats, Part};
use crate::ingest::Progress;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The counters of one feed.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Of the stream.
    pub progress: Arc<Progress>,
    /// Of the decoders.
    pub decoders: Arc<Counters>,
    /// Of the channels around them.
    pub queues: Arc<Queues>,
}

/// What has passed a point since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Went in.
    pub put: u64,
    /// Came out.
    pub taken: u64,
}

/// What decoders have done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Decoding {
    /// Images that they are done with, whatever became of them.
    pub tried: u64,
    /// Of these, images that became pixels.
    pub decoded: u64,
    /// Of these, images whose file is cut short or corrupt in places.
    pub truncated: u64,
    /// Seconds by part, in the order of [`Part::NAMES`], summed over threads.
    pub part_s: [f64; Part::NAMES.len()],
}

/// What all feeds of a process have done, or of several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Samples that the stream gave.
    pub samples: u64,
    /// Bytes that came from files and servers.
    pub bytes: u64,
    /// Requests for bytes that were late, beside those under way.
    pub second_requests: u64,
    /// What the decoders did.
    pub decoding: Decoding,
    /// Samples on their way to the decoders.
    pub sample_queue: Flow,
    /// Batches on their way to the trainer.
    pub batch_queue: Flow,
}

/// Shared by a run and those who watch it.
#[derive(Debug)]
pub struct Live {
    /// What the trainer is about.
    pub activity: Arc<Activity>,
    /// What is asked of it.
    pub controls: Controls,
    /// Whether it trains on CUDA.
    pub cuda: bool,
    /// Samples that the shuffle buffer holds at most.
    pub shuffle: usize,
    feeds: Mutex<Feeds>,
    last_snapshot: Mutex<Instant>,
    ranks: Mutex<Reports>,
}

#[derive(Debug)]
struct Feeds {
    training: Sources,
    /// A feed for a clustering, as long as there is one.
    beside: Option<Sources>,
    /// All feeds for clusterings before.
    past: Totals,
}

impl Live {
    /// A run that trains on what comes from `training`, and heeds `controls`.
    pub fn new(training: Sources, controls: Controls, cuda: bool, shuffle: usize) -> Self {
        let feeds = Mutex::new(Feeds { training, beside: None, past: Totals::default() });
        let last_snapshot = Mutex::new(Instant::now());
        Self { activity: Arc::default(), controls, cuda, shuffle, feeds, last_snapshot, ranks: Mutex::default() }
    }

    /// Says that a feed for a clustering is read until the answer is dropped.
    pub fn watch(self: &Arc<Self>, feed: Sources) -> Beside {
        self.feeds().beside = Some(feed);
        Beside(Arc::clone(self))
    }

    /// The feed that is read now.
    pub fn sources(&self) -> Sources {
        let feeds = self.feeds();
        feeds.beside.as_ref().unwrap_or(&feeds.training).clone()
    }

    /// What all feeds of this process have done.
    pub fn totals(&self) -> Totals {
        let feeds = self.feeds();
        let mut totals = feeds.past.clone();
        totals.add(&Totals::of(&feeds.training));
        feeds.beside.iter().for_each(|beside| totals.add(&Totals::of(beside)));
        totals
    }

    /// What all ranks have done, those other than this one as of their last report.
    pub fn totals_of_all(&self) -> Totals {
        let mut totals = self.totals();
        totals.add(&self.reports().others());
        totals
    }

    /// Takes in what each rank says of itself, this one, which is the first, included.
    pub fn hear(&self, reports: Vec<Report>) {
        self.reports().hear(reports);
    }

    /// For how long each rank has waited for its own batches in its process, in seconds, as of its last report.
    pub fn waited_s(&self) -> Vec<f64> {
        self.reports().waited_s()
    }

    /// How each rank did of late.
    pub fn ranks(&self) -> Vec<RankView> {
        self.reports().views()
    }

    /// Says that a snapshot begins.
    pub fn snapshot_begins(&self) {
        *self.last_snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long ago the last snapshot began, or the process, by which `snapshot.every_minutes` is counted.
    pub fn snapshot_age(&self) -> Duration {
        self.last_snapshot.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// What is waited for, in a sentence.
    pub fn waits_for(&self) -> String {
        let (stage, detail, _) = self.activity.now();
        let sources = self.sources();
        match stage {
            Stage::Wait if !detail.is_empty() => format!("Training waits {detail}."),
            Stage::Wait => format!("Training waits for a batch: {}", stream_words(&sources.progress)),
            Stage::Encode | Stage::Cluster => "Training waits for the clustering.".to_owned(),
            Stage::Pause => "Everything waits to be told to go on.".to_owned(),
            _ if sources.queues.batches.is_empty() => "Decoding is at work on the next batch.".to_owned(),
            _ => "The stream is ahead, and waits for training.".to_owned(),
        }
    }

    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.ranks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feeds(&self) -> MutexGuard<'_, Feeds> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, a feed for a clustering is watched.
#[derive(Debug)]
pub struct Beside(Arc<Live>);

impl Drop for Beside {
    fn drop(&mut self) {
        let mut feeds = self.0.feeds();
        if let Some(ended) = feeds.beside.take() {
            feeds.past.add(&Totals::of(&ended));
        }
    }
}

impl Totals {
    fn of(sources: &Sources) -> Self {
        Self {
            samples: sources.progress.samples(),
            bytes: sources.progress.bytes(),
            second_requests: sources.progress.second_requests(),
            decoding: Decoding::of(&sources.decoders.read()),
            sample_queue: Flow::of(&sources.queues.samples),
            batch_queue: Flow::of(&sources.queues.batches),
        }
    }

    /// Adds what others have done.
    pub(super) fn add(&mut self, other: &Self) {
        self.samples += other.samples;
        self.bytes += other.bytes;
        self.second_requests += other.second_requests;
        self.decoding.add(&other.decoding);
        self.sample_queue.add(other.sample_queue);
        self.batch_queue.add(other.batch_queue);
    }
}

impl Decoding {
    fn of(stats: &DecodeStats) -> Self {
        let DecodeStats { decoded, truncated, part_s, .. } = *stats;
        Self { tried: stats.tried(), decoded, truncated, part_s }
    }

    fn add(&mut self, other: &Self) {
        self.tried += other.tried;
        self.decoded += other.decoded;
        self.truncated += other.truncated;
        self.part_s.iter_mut().zip(other.part_s).for_each(|(sum, seconds)| *sum += seconds);
    }
}

impl Flow {
    fn of(queue: &Queue) -> Self {
        Self { put: queue.put(), taken: queue.taken() }
    }

    fn add(&mut self, other: Self) {
        self.put += other.put;
        self.taken += other.taken;
    }
}

/// How fast something was of late.
#[derive(Debug, Default)]
pub struct Rates {
    seen: std::collections::VecDeque<(Instant, Totals)>,
}

/// Readings that rates are over.
const READINGS: usize = 6;

impl Rates {
    /// One more reading, to be made at even distances.
    pub fn read(&mut self, totals: Totals) {
        self.seen.push_back((Instant::now(), totals));
        if self.seen.len() > READINGS {
            self.seen.pop_front();
        }
    }

    /// A number of the totals, in so many a second; none before there are two readings.
    pub fn per_second(&self, number: impl Fn(&Totals) -> f64) -> Option<f64> {
        let ((from, first), (to, last)) = (self.seen.front()?, self.seen.back()?);
        let seconds = (*to - *from).as_secs_f64();
        (seconds > 0.0).then(|| (number(last) - number(first)) / seconds)
    }
}

/// What the stream says of itself while it is waited for.
pub fn stream_words(progress: &Progress) -> String {
    if let Some(time) = progress.waiting_for_shards() {
        return format!("waiting for new shards for {:.0} s", time.as_secs_f64());
    }
    let (samples, mib) = (progress.shuffle_samples(), progress.shuffle_bytes() >> 20);
    let rest = format!("shards: {}; {samples} samples ({mib} MiB) in the shuffle buffer", progress.lane_words());
    match progress.waiting() {
        Some(waiting) => {
            let (what, seconds) = (waiting.activity.name(), waiting.time.as_secs_f64());
            format!("{} is {what} for {seconds:.0} s; {rest}", waiting.shard)
        }
        None => format!("samples wait for the decoders; {rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(put: u64) -> Sources {
        let queues = Queues::new(8, 1);
        (0..put).for_each(|_| queues.samples.count_put());
        Sources { progress: Arc::default(), decoders: Arc::default(), queues: Arc::new(queues) }
    }

    #[test]
    fn totals_never_fall_when_a_feed_for_a_clustering_ends() {
        let live = Arc::new(Live::new(feed(5), Controls::default(), false, 100));
        assert_eq!(live.totals().sample_queue.put, 5);
        let beside = live.watch(feed(3));
        assert_eq!((live.totals().sample_queue.put, live.sources().queues.samples.len()), (8, 3));
        drop(beside);
        assert_eq!((live.totals().sample_queue.put, live.sources().queues.samples.len()), (8, 5));
    }

    #[test]
    fn it_says_what_waits_for_what() {
        let live = Live::new(feed(0), Controls::default(), false, 100);
        live.activity.enter(Stage::Wait, "");
        assert!(live.waits_for().starts_with("Training waits for a batch: samples wait for the decoders"));
        live.activity.enter(Stage::Train, "");
        assert!(live.waits_for().starts_with("Decoding is at work"));
        live.sources().queues.batches.count_put();
        assert!(live.waits_for().starts_with("The stream is ahead"));
    }

    #[test]
    fn a_rate_is_over_the_last_readings() {
        let mut rates = Rates::default();
        let samples = |totals: &Totals| totals.samples as f64;
        rates.read(Totals::default());
        assert_eq!(rates.per_second(samples), None);
        std::thread::sleep(Duration::from_millis(20));
        rates.read(Totals { samples: 10, ..Totals::default() });
        let rate = rates.per_second(samples).expect("two readings");
        assert!(rate > 0.0 && rate <= 500.0, "{rate}");
    }
}
