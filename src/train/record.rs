//! What a run says of itself: one line of `metrics.jsonl` each, and the same to every other listener.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

/// A line of `metrics.jsonl`: `kind` says which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Some steps of training.
    Step(StepRecord),
    /// One clustering.
    Cycle(CycleRecord),
    /// One snapshot written.
    Snapshot(SnapshotRecord),
    /// Something the operator should look at.
    Alarm(AlarmRecord),
}

impl Record {
    /// Steps done when it was made.
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(record) => record.step,
            Self::Cycle(record) => record.step,
            Self::Snapshot(record) => record.step,
            Self::Alarm(record) => record.step,
        }
    }
}

/// All that a run has said so far, lines of kinds unknown here left out; nothing where it has not begun.
///
/// # Errors
/// `metrics.jsonl` cannot be read.
pub fn read(run: &Path) -> Result<Vec<Record>> {
    let path = run.join("metrics.jsonl");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::file("read", &path, &error)),
    }
}

/// The steps since the last such record; means over them where not said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps done.
    pub step: u64,
    /// Images trained on since the run began.
    pub images: u64,
    /// Cross-entropy against the labels, in nats.
    pub loss: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Images per second of wall time.
    pub images_per_s: f64,
    /// Seconds per step spent waiting for a batch.
    pub wait_data_s: f64,
    /// Seconds per step of the assigner's forward pass and the labels.
    pub assign_s: f64,
    /// Seconds per step of the student's forward and backward pass and the optimiser.
    pub train_s: f64,
    /// Entropy of the new labels, in nats.
    pub label_entropy: f64,
    /// Share of the new labels in their largest cluster, or class.
    pub largest_share: f64,
    /// Where classes are learnt: the share of the images trained on whose class had the highest logit, as they were trained on, with
    /// crops and dropout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Samples lost since the run began, by reason: in passes, and in encodings of the list for a clustering.
    pub losses: BTreeMap<String, u64>,
    /// Samples passed over on purpose since the run began, up to the last one trained on, by rule.
    #[serde(default)]
    pub filtered: BTreeMap<String, u64>,
    /// Passes over the list, complete or begun.
    pub pass: u64,
    /// How much of the pass over the list the stream has given, where an index knows of every shard how many samples it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass_share: Option<f64>,
    /// Digest of the ids trained on since the last such record, in order.
    pub ids: String,
    /// The step after which the next clustering comes, where it is known.
    pub next_cycle: Option<u64>,
}

impl StepRecord {
    /// Share of a step spent waiting for a batch; none where no time was measured.
    pub fn waiting(&self) -> Option<f64> {
        let step = self.wait_data_s + self.assign_s + self.train_s;
        (step > 0.0).then(|| self.wait_data_s / step)
    }
}

/// One clustering of the bank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CycleRecord {
    /// Steps done.
    pub step: u64,
    /// Which clustering, from 1.
    pub cycle: u64,
    /// Rows clustered.
    pub rows: usize,
    /// Sum of squared distances to the centroids, divided by rows.
    pub objective: f64,
    /// Normalised mutual information (geometric) with the previous labels of the same samples; none at the first cycle.
    /// Chance is above 0 where there are few samples a cluster: about 0.65 for 20, 0.5 for 100, with k = 10,000.
    pub nmi_prev: Option<f64>,
    /// The same with the labels of the stream (`.cls`), where it has them.
    pub nmi_labels: Option<f64>,
    /// Share of samples whose cluster changed, after matching clusters one to one.
    pub reassigned: Option<f64>,
    /// Clusters without a sample.
    pub empty: usize,
    /// Share of samples in the largest cluster.
    pub largest_share: f64,
    /// Entropy of cluster sizes, in nats; ln k where all are equal.
    pub entropy: f64,
    /// Samples by cluster, largest first.
    pub sizes: Vec<u64>,
    /// Mean age of the clustered rows, in steps.
    pub bank_age: f64,
    /// Iterations of k-means.
    pub iterations: usize,
    /// Wall time, with that of encoding.
    pub seconds: f64,
    /// How much of it training stood still: all, but with `cluster.overlap`.
    #[serde(default)]
    pub stood_s: f64,
}

/// One snapshot on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Steps done.
    pub step: u64,
    /// Its folder, relative to the run.
    pub path: String,
    /// Size on disk.
    pub bytes: u64,
    /// Wall time until it was on disk.
    pub seconds: f64,
    /// How much of it training stood still.
    #[serde(default)]
    pub stood_s: f64,
}

/// Something the operator should look at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlarmRecord {
    /// Steps done.
    pub step: u64,
    /// `collapse`, ...
    pub alarm: String,
    /// What was seen, and what to do.
    pub message: String,
}
