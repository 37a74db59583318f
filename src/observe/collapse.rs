//! The collapse alarm: labels and network chasing each other until every image is in one cluster.
//!
//! In: the sizes of each clustering, then the new labels of each step. Out: at most one alarm for each collapse. What
//! is judged is a window of the last labels: the share of its largest cluster, and its entropy against that of as many
//! labels drawn from the clustering's own sizes, so that a clustering that is skewed by nature, or a window with fewer
//! labels than clusters, raises nothing. Nothing here can fail. (Paper, section 3.3: trivial solutions.)

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{HashMap, VecDeque};

/// The window's perplexity (the exponential of its entropy) falling to this share of what is expected is a collapse.
const PERPLEXITY_SHARE: f64 = 0.2;
/// A clustering that has this share of its rows in one cluster is taken for collapsed itself, not for skewed by nature.
const NATURAL_SHARE: f64 = 0.8;

/// Watches the new labels of a run.
#[derive(Debug)]
pub struct CollapseWatch {
    alarm_share: f64,
    capacity: usize,
    window: VecDeque<u32>,
    counts: HashMap<u32, usize>,
    expected: Option<Expected>,
    alarmed: bool,
}

/// What healthy labels look like under the present clustering.
#[derive(Clone, Copy, Debug)]
struct Expected {
    largest_share: f64,
    entropy: f64,
}

/// A collapse as it is first seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Collapse {
    /// Share of the window's labels in their largest cluster.
    pub largest_share: f64,
    /// Entropy of the window's labels, in nats.
    pub entropy: f64,
    /// Entropy of as many labels drawn from the clustering's sizes.
    pub expected_entropy: f64,
    /// Labels in the window.
    pub labels: usize,
}

impl Collapse {
    /// What was seen, what it means, and what to do.
    pub fn message(&self) -> String {
        format!(
            "the labels are collapsing: {:.0} % of the last {} are in one cluster, their entropy is {:.2} nats where \
             the clustering's sizes give {:.2}. The network learns to predict a constant, and what it has learnt fades. \
             Go back to a snapshot from before, and set cluster.assigner = \"frozen\", a longer cycle \
             (cluster.every_steps), or a lower train.lr",
            100.0 * self.largest_share,
            self.labels,
            self.entropy,
            self.expected_entropy
        )
    }
}

impl CollapseWatch {
    /// A watch over `batch_size` labels a step that alarms at `alarm_share` in one cluster.
    ///
    /// The window is 20 batches and at least 2,000 labels, but no longer than half a cycle of `cycle_steps`, since
    /// labels of different clusterings cannot be compared; 0 is a cycle of unknown length.
    pub fn new(batch_size: usize, cycle_steps: u64, alarm_share: f64) -> Self {
        let half_cycle = match usize::try_from(cycle_steps) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(steps) => batch_size.saturating_mul(steps.div_ceil(2)),
        };
        let capacity = (20 * batch_size).max(2_000).min(half_cycle).max(1);
        Self { alarm_share, capacity, window: VecDeque::new(), counts: HashMap::new(), expected: None, alarmed: false }
    }

    /// New labels follow from a clustering of these sizes. The window starts anew.
    pub fn clustered(&mut self, sizes: &[u64]) {
        self.window.clear();
        self.counts.clear();
        self.expected = Expected::of(sizes, self.capacity);
    }

    /// The new labels of a step. A collapse is told once; the next only after the labels have recovered.
    pub fn labels(&mut self, labels: impl IntoIterator<Item = u32>) -> Option<Collapse> {
        for label in labels {
            self.push(label);
        }
        let expected = self.expected?;
        if self.window.len() < self.capacity {
            return None;
        }
        let (largest_share, entropy) = spread(self.counts.values().copied(), self.window.len());
        let share_limit = expected.share_limit(self.alarm_share);
        let entropy_limit = (expected.entropy + PERPLEXITY_SHARE.ln()).max(0.0);
        let is_collapsed = largest_share >= share_limit || entropy < entropy_limit;
        if !is_collapsed {
            let is_clear = largest_share < 0.9 * share_limit && entropy >= entropy_limit + 0.1;
            self.alarmed &= !is_clear;
            return None;
        }
        if self.alarmed {
            return None;
        }
        self.alarmed = true;
        Some(Collapse { largest_share, entropy, expected_entropy: expected.entropy, labels: self.window.len() })
    }

    fn push(&mut self, label: u32) {
        if self.window.len() == self.capacity
            && let Some(oldest) = self.window.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        self.window.push_back(label);
        *self.counts.entry(label).or_default() += 1;
    }
}

impl Expected {
    /// Draws `labels` labels from the sizes: a window's entropy is lower than that of the sizes, and the more so the
    /// fewer labels there are for a cluster.
    fn of(sizes: &[u64], labels: usize) -> Option<Self> {
        let rows: u64 = sizes.iter().sum();
        if rows == 0 {
            return None;
        }
        let ends: Vec<u64> = sizes
            .iter()
            .scan(0, |end, size| {
                *end += size;
                Some(*end)
            })
            .collect();
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut counts = vec![0_usize; sizes.len()];
        for _ in 0..labels {
            let row = random.random_range(0..rows);
            counts[ends.partition_point(|end| *end <= row)] += 1;
        }
        let largest = sizes.iter().copied().max().unwrap_or_default();
        let (_, entropy) = spread(counts.into_iter(), labels);
        Some(Self { largest_share: largest as f64 / rows as f64, entropy })
    }

    /// The share that alarms: the plan's, or where the clustering itself comes near it, half of what is left above its
    /// own largest.
    fn share_limit(&self, alarm_share: f64) -> f64 {
        let natural_share = self.largest_share.min(NATURAL_SHARE);
        if natural_share < alarm_share / 2.0 {
            return alarm_share;
        }
        alarm_share.max((1.0 + natural_share) / 2.0)
    }
}

/// Share of the largest count, and entropy in nats.
fn spread(counts: impl Iterator<Item = usize>, total: usize) -> (f64, f64) {
    let mut largest = 0.0_f64;
    let mut entropy = 0.0;
    for count in counts.filter(|count| *count > 0) {
        let share = count as f64 / total as f64;
        largest = largest.max(share);
        entropy -= share * share.ln();
    }
    (largest, entropy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: usize = 128;

    fn watch(sizes: &[u64]) -> CollapseWatch {
        let mut watch = CollapseWatch::new(BATCH, 150, 0.5);
        watch.clustered(sizes);
        watch
    }

    /// Feeds batches of labels and counts the alarms.
    fn alarms(watch: &mut CollapseWatch, batches: usize, mut label: impl FnMut() -> u32) -> usize {
        (0..batches).filter(|_| watch.labels((0..BATCH).map(|_| label())).is_some()).count()
    }

    fn uniform(k: u32) -> impl FnMut() -> u32 {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        move || random.random_range(0..k)
    }

    #[test]
    fn one_cluster_for_everything_alarms_once_and_again_after_recovery() {
        let mut watch = watch(&[100; 200]);
        assert_eq!(alarms(&mut watch, 100, uniform(200)), 0);
        assert_eq!(alarms(&mut watch, 100, || 7), 1);
        assert_eq!(alarms(&mut watch, 100, uniform(200)), 0);
        assert_eq!(alarms(&mut watch, 100, || 9), 1);
    }

    #[test]
    fn the_first_window_is_never_judged() {
        let mut watch = watch(&[100; 200]);
        assert_eq!(alarms(&mut watch, 19, || 7), 0);
        assert_eq!(alarms(&mut watch, 1, || 7), 1);
    }

    #[test]
    fn a_collapse_to_a_few_clusters_shows_in_the_entropy() {
        let mut watch = watch(&[100; 200]);
        let collapse = (0..40).find_map(|i| watch.labels((0..BATCH as u32).map(|j| (i + j) % 10)));
        let collapse = collapse.expect("10 of 200 clusters is a collapse");
        assert!(collapse.largest_share < 0.2, "{collapse:?}");
        assert!((collapse.entropy - 10_f64.ln()).abs() < 0.01, "{collapse:?}");
        assert!(collapse.message().contains("cluster.assigner"));
    }

    #[test]
    fn a_clustering_skewed_by_nature_raises_nothing() {
        // Two thirds of all rows in the first cluster, and so of all labels.
        let mut sizes = vec![10; 100];
        sizes[0] = 2_000;
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut skewed = || if random.random_range(0..3) < 2 { 0 } else { random.random_range(1..100) };
        let mut watch = watch(&sizes);
        assert_eq!(alarms(&mut watch, 200, &mut skewed), 0);
        assert_eq!(alarms(&mut watch, 100, || 0), 1);
    }

    #[test]
    fn a_clustering_that_has_collapsed_itself_is_no_excuse() {
        let mut sizes = vec![1; 100];
        sizes[0] = 100_000;
        let mut watch = watch(&sizes);
        assert_eq!(alarms(&mut watch, 100, || 0), 1);
    }

    #[test]
    fn more_clusters_than_labels_raise_nothing() {
        let mut watch = watch(&[30; 10_000]);
        assert_eq!(alarms(&mut watch, 100, uniform(10_000)), 0);
    }

    #[test]
    fn a_short_cycle_shortens_the_window() {
        let mut watch = CollapseWatch::new(BATCH, 10, 0.5);
        watch.clustered(&[100; 20]);
        assert_eq!(alarms(&mut watch, 5, || 1), 1);
    }
}
