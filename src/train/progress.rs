//! Where a run is, and the sums since its last step record. A snapshot holds both, so that a resumed run
//! writes the very records of an undisturbed one.

use super::record::StepRecord;
use crate::cluster::agreement;
use crate::error::Result;
use crate::shards::SampleId;
use crate::world::World;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Images trained on.
    pub images: u64,
    /// Clusterings done.
    pub cycle: u64,
    /// The step of the last clustering, or of the beginning of the one beside.
    pub clustered_at: Option<u64>,
    /// The step at which the clustering beside training began, if there is one.
    #[serde(default)]
    pub beside_since: Option<u64>,
    /// The pass that the last clustering was for, with `refresh = "full"`.
    pub clustered_pass: u64,
    /// The pass of the newest sample.
    pub pass: u64,
    /// Sum of the losses of the steps since the last record.
    pub loss_sum: f64,
    /// Steps since the last record.
    pub steps: u64,
    /// Digest of the ids trained on since the last record.
    pub ids: u64,
    /// Labels since the last record, by cluster.
    pub label_counts: BTreeMap<i64, u64>,
    /// Labels since the last record that had the highest logit, where classes are learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hits: Option<u64>,
}

impl Progress {
    /// Counts ids as trained on, in order.
    pub fn add_ids(&mut self, ids: &[SampleId]) {
        for id in ids {
            self.ids = xxh3_64_with_seed(&id.0.to_le_bytes(), self.ids);
            self.images += 1;
        }
    }
}

/// Wall time by what the trainer was doing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Waiting for a batch.
    pub wait: Duration,
    /// The assigner's forward pass and the labels. On CUDA: the time to queue them.
    pub assign: Duration,
    /// Forward, backward and optimiser. On CUDA: the time to queue them, and to wait for their results.
    pub train: Duration,
}

impl Times {
    /// What has been spent since an earlier reading.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            wait: self.wait.saturating_sub(earlier.wait),
            assign: self.assign.saturating_sub(earlier.assign),
            train: self.train.saturating_sub(earlier.train),
        }
    }
}

/// Labels `[n]` of each rank, as many on all, in the order in which one rank would have met them.
fn labels_of_all(own: &Tensor, world: &World) -> Result<Vec<i64>> {
    if world.is_alone() {
        return Ok(Vec::try_from(own)?);
    }
    let all = world.gather(&own.f_to_device(Device::Cpu)?)?;
    Ok(Vec::try_from(all.f_tr()?.f_reshape([-1])?)?)
}

/// What lies on the device until the next record: reading it earlier would make the host wait.
#[derive(Debug)]
pub struct Interval {
    losses: Vec<Tensor>,
    hits: Vec<Tensor>,
    labels: Vec<Tensor>,
    labels_read: Vec<i64>,
    started: Instant,
    images: u64,
    /// Wall time by stage.
    pub times: Times,
}

impl Default for Interval {
    fn default() -> Self {
        Self {
            losses: Vec::new(),
            hits: Vec::new(),
            labels: Vec::new(),
            labels_read: Vec::new(),
            started: Instant::now(),
            images: 0,
            times: Times::default(),
        }
    }
}

impl Interval {
    /// The new labels of a batch, `[B]`: as the assigner gives them, before anything is balanced.
    pub fn add_labels(&mut self, labels: Tensor) {
        self.labels.push(labels);
    }

    /// One step's loss: a scalar, detached.
    pub fn add_loss(&mut self, loss: Tensor) {
        self.losses.push(loss);
    }

    /// How many labels of one step had the highest logit: a scalar.
    pub fn add_hits(&mut self, hits: Tensor) {
        self.hits.push(hits);
    }

    /// Whether no step has been added since the last read.
    pub fn is_empty(&self) -> bool {
        self.losses.is_empty()
    }

    /// Reads what lies on the device, of all ranks, into `progress`.
    pub fn settle(&mut self, progress: &mut Progress, world: &World) -> Result<()> {
        if self.losses.is_empty() || self.labels.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let losses = Vec::<f64>::try_from(Tensor::f_stack(&self.losses, 0)?.f_to_kind(Kind::Double)?)?;
        let losses = world.sum(&losses)?.into_iter().map(|loss| loss / world.size() as f64);
        let labels = labels_of_all(&Tensor::f_cat(&self.labels, 0)?, world)?;
        if !self.hits.is_empty() {
            let hits = Tensor::f_stack(&self.hits, 0)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
            *progress.hits.get_or_insert(0) += world.sum(&[hits as f64])?[0] as u64;
            self.hits.clear();
        }
        self.losses.clear();
        self.labels.clear();
        for loss in losses {
            progress.loss_sum += loss;
            progress.steps += 1;
        }
        for label in &labels {
            *progress.label_counts.entry(*label).or_default() += 1;
        }
        self.images += labels.len() as u64;
        self.labels_read.extend(labels);
        self.times.train += started.elapsed();
        Ok(())
    }

    /// The labels read since the last time, in order.
    pub fn take_labels(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.labels_read)
    }

    /// Closes the interval: its record, and a fresh start.
    pub fn close(
        &mut self,
        progress: &mut Progress,
        lr: f64,
        next_cycle: Option<u64>,
        losses: BTreeMap<String, u64>,
        filtered: BTreeMap<String, u64>,
    ) -> StepRecord {
        let counts: Vec<u64> = progress.label_counts.values().copied().collect();
        let labels: u64 = counts.iter().sum();
        let largest = counts.iter().copied().max().unwrap_or(0);
        let steps = progress.steps.max(1) as f64;
        let elapsed = self.started.elapsed().as_secs_f64();
        let record = StepRecord {
            step: progress.step,
            images: progress.images,
            loss: progress.loss_sum / steps,
            lr,
            images_per_s: self.images as f64 / elapsed.max(1e-9),
            wait_data_s: self.times.wait.as_secs_f64() / steps,
            assign_s: self.times.assign.as_secs_f64() / steps,
            train_s: self.times.train.as_secs_f64() / steps,
            label_entropy: agreement::entropy(&counts),
            largest_share: largest as f64 / labels.max(1) as f64,
            accuracy: progress.hits.map(|hits| hits as f64 / labels.max(1) as f64),
            losses,
            filtered,
            pass: progress.pass,
            pass_share: None,
            ids: format!("{:016x}", progress.ids),
            next_cycle,
        };
        progress.loss_sum = 0.0;
        progress.steps = 0;
        progress.ids = 0;
        progress.label_counts.clear();
        progress.hits = None;
        *self = Self::default();
        record
    }

    /// Leaves out of images per second what passed in a clustering or a snapshot.
    pub fn skip(&mut self, time: Duration) {
        self.started += time;
    }
}
