//! A run under way, as others may see it: counters and words that cost the trainer nothing.
//!
//! In: the counters of the feed that trains, and for a while of one that encodes the list for a clustering. Out: sums over all feeds
//! that never fall, how full each queue is, what waits for what. Nothing can go wrong.

use super::{Activity, Controls, Stage};
use crate::batch::{Queue, Queues};
use crate::decode::{Counters, DecodeStats};
use crate::ingest::Progress;
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
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// Went in.
    pub put: u64,
    /// Came out.
    pub taken: u64,
}

/// What all feeds of this process have done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Samples that the stream gave.
    pub samples: u64,
    /// Bytes that came from files and servers.
    pub bytes: u64,
    /// Requests for bytes that were late, beside those under way.
    pub second_requests: u64,
    /// What the decoders did.
    pub decoding: DecodeStats,
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
        Self { activity: Arc::default(), controls, cuda, shuffle, feeds, last_snapshot: Mutex::new(Instant::now()) }
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

    /// What all feeds have done.
    pub fn totals(&self) -> Totals {
        let feeds = self.feeds();
        let mut totals = feeds.past.clone();
        totals.add(&feeds.training);
        feeds.beside.iter().for_each(|beside| totals.add(beside));
        totals
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
        let (stage, _, _) = self.activity.now();
        let sources = self.sources();
        match stage {
            Stage::Wait => format!("Training waits for a batch: {}", stream_words(&sources.progress)),
            Stage::Encode | Stage::Cluster => "Training waits for the clustering.".to_owned(),
            Stage::Pause => "Everything waits to be told to go on.".to_owned(),
            _ if sources.queues.batches.is_empty() => "Decoding is at work on the next batch.".to_owned(),
            _ => "The stream is ahead, and waits for training.".to_owned(),
        }
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
            feeds.past.add(&ended);
        }
    }
}

impl Totals {
    fn add(&mut self, sources: &Sources) {
        self.samples += sources.progress.samples();
        self.bytes += sources.progress.bytes();
        self.second_requests += sources.progress.second_requests();
        self.decoding.add(&sources.decoders.read());
        self.sample_queue.add(&sources.queues.samples);
        self.batch_queue.add(&sources.queues.batches);
    }
}

impl Flow {
    fn add(&mut self, queue: &Queue) {
        self.put += queue.put();
        self.taken += queue.taken();
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
