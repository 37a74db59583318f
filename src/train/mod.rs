//! Training: batches in, a better network out, one clustering every so many steps.
//!
//! [`Trainer`] owns every tensor of a run and does one thing at a time when told: fill the bank, train on a block of
//! batches, cluster, save, go on from what was saved. Who tells it is the loop in `pipeline`. Nothing here reads shards or
//! writes files of a run except through [`Trainer::capture`] and [`Trainer::restore`].
//!
//! A step (paper, sections 3.2 and 4.3): the assigner encodes the center views, the nearest centroids are the labels, the student
//! learns them from the train views. With `train.labels = "classes"` the classes of the stream are the labels: there is no assigner,
//! the bank stays empty, no cycle is ever due, and the head is one for the whole run.
//!
//! Of several ranks each has a trainer, which does the same things in the same order with its own part of each batch; what they have
//! in common is in `ranks`. Every method that changes something is then a call of all ranks.

pub mod balance;
pub mod labels;
pub mod optimizer;
pub mod progress;
pub mod record;
pub mod schedule;
pub mod state;
pub mod upload;

mod beside;
mod cycle;
mod ranks;
mod seen;

use crate::bank::{Bank, Entries, Projection};
use crate::cluster::Clustering;
use crate::cluster::assignments::Assignments;
use crate::config::{AssignerKind, Balance, Encoder, Labels, Plan, Refresh};
use crate::error::{Error, Result};
use crate::ingest::SampleMeta;
use crate::model::{Backbone, Head, Mode, Normalizer};
use crate::seed;
use crate::torch::c10d::Reducer;
use crate::torch::device::Placement;
use crate::world::World;
use balance::{ClusterWeights, draw_window};
use beside::Beside;
use labels::LabelsById;
use optimizer::Sgd;
use progress::{Interval, Progress};
use record::StepRecord;
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tch::{Device, Tensor};
use upload::DeviceBatch;

/// Everything that a run learns, and where it is.
#[derive(Debug)]
pub struct Trainer {
    plan: Plan,
    device: Device,
    world: World,
    /// The same ranks, for a clustering beside.
    aside: World,
    /// Before what it averages: its hooks go first.
    reducer: Option<Reducer>,
    normalizer: Normalizer,
    student: Backbone,
    /// None where classes are learnt.
    assigner: Option<Backbone>,
    optimizer: Sgd,
    head: Option<(Head, Sgd)>,
    bank: Bank,
    projection: Option<Projection>,
    clustering: Option<Clustering>,
    weights: Option<ClusterWeights>,
    labels_by_id: LabelsById,
    full_assignments: Option<Arc<Assignments>>,
    beside: Option<Beside>,
    progress: Progress,
    interval: Interval,
}

impl Trainer {
    /// A new run: weights from the seed, an empty bank, no labels.
    pub fn new(plan: &Plan, placement: &Placement, world: &World) -> Result<Self> {
        let device = placement.device;
        let mut student = Backbone::new(&plan.model, plan.views.size, plan.stream.seed, device, plan.device.precision)?;
        if plan.ranks.sync_batch_norm {
            student.normalise_over(world);
        }
        let learns_clusters = plan.train.labels == Labels::Clusters;
        let assigner = learns_clusters.then(|| student.duplicate()).transpose()?;
        let optimizer = Sgd::new(student.parameters(), plan.train.momentum, plan.train.weight_decay)?;
        let (dim, dims) = (student.feature_dim() as usize, plan.bank.projection);
        let projection_seed = seed::of(plan.stream.seed, "projection", 0);
        let projection = (dims > 0).then(|| Projection::new(dim, dims, projection_seed, device)).transpose()?;
        let capacity = if learns_clusters { plan.bank.capacity } else { 1 };
        let bank = Bank::shared(capacity, if dims > 0 { dims } else { dim }, world)?;
        let mut trainer = Self {
            plan: plan.clone(),
            device,
            world: world.clone(),
            aside: if plan.cluster.overlap { world.aside("cluster")? } else { World::alone() },
            reducer: None,
            normalizer: Normalizer::new(&plan.views.mean, &plan.views.std, device)?,
            student,
            assigner,
            optimizer,
            head: None,
            bank,
            projection,
            clustering: None,
            weights: None,
            labels_by_id: LabelsById::new(),
            full_assignments: None,
            beside: None,
            progress: Progress::default(),
            interval: Interval::default(),
        };
        if let Some(classes) = plan.train.known_classes() {
            let head = trainer.head_of_classes(classes)?;
            trainer.put_head(head)?;
        }
        Ok(trainer)
    }

    /// Where the run is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The network being trained.
    pub fn student(&self) -> &Backbone {
        &self.student
    }

    /// Whether there is something to learn: from the beginning with classes, after the first clustering with clusters.
    pub fn has_labels(&self) -> bool {
        self.head.is_some()
    }

    /// The last clustering.
    pub fn clustering(&self) -> Option<&Clustering> {
        self.clustering.as_ref()
    }

    /// The rolling features.
    pub fn bank(&self) -> &Bank {
        &self.bank
    }

    /// Wall time of the steps since the last record.
    pub fn interval_mut(&mut self) -> &mut Interval {
        &mut self.interval
    }

    /// Batches that [`Trainer::train`] takes at once.
    pub fn block_len(&self) -> usize {
        match self.plan.train.balance {
            Balance::Sample => self.plan.train.balance_window,
            Balance::Weight | Balance::None => 1,
        }
    }

    /// Before the first clustering: encodes a batch for the bank, without training.
    pub fn fill(&mut self, batch: &DeviceBatch) -> Result<()> {
        let features = self.encode(self.assigner()?, batch.center_views()?)?;
        let entries = self.entries(&batch.samples, None)?;
        self.push(&entries, &features)?;
        self.progress.pass = entries.pass_of_slowest; // the bank is ready when all have read their part
        Ok(())
    }

    /// Trains on a block of batches, as many steps as batches. Needs labels: cluster first.
    pub fn train(&mut self, block: &[DeviceBatch]) -> Result<()> {
        let started = Instant::now();
        let mut labels = Vec::with_capacity(block.len());
        let mut entries = Vec::with_capacity(block.len());
        for batch in block {
            let (new, seen) = self.label(batch)?;
            self.interval.add_labels(new.shallow_clone());
            labels.push(new);
            entries.push(seen);
        }
        self.interval.times.assign += started.elapsed();

        let started = Instant::now();
        match self.plan.train.balance {
            Balance::Sample => self.train_balanced(block, &labels)?,
            Balance::Weight | Balance::None => {
                for ((batch, labels), entries) in block.iter().zip(&labels).zip(&entries) {
                    let images = batch.train_views()?;
                    let features = self.step(images, labels)?;
                    self.progress.add_ids(&entries.ids);
                    if self.fills_from_training() {
                        self.push(entries, &self.reduce(features)?)?;
                    }
                }
            }
        }
        self.progress.pass = entries.iter().map(|entries| entries.pass).max().unwrap_or(0);
        self.interval.times.train += started.elapsed();
        Ok(())
    }

    /// Steps over a window of batches whose samples are drawn uniformly over clusters (paper, section 3.3).
    fn train_balanced(&mut self, block: &[DeviceBatch], labels: &[Tensor]) -> Result<()> {
        let images: Vec<&Tensor> = block.iter().map(DeviceBatch::train_views).collect::<Result<_>>()?;
        let images = Tensor::f_cat(&images, 0)?;
        let labels = Tensor::f_cat(labels, 0)?;
        let samples: Vec<_> = block.iter().flat_map(|batch| &batch.samples).collect();
        let labels_here = Vec::<i64>::try_from(&labels)?;
        let (seed, step) = (self.own_seed(), self.progress.step);
        let batch = self.own_batch();
        let left = match self.plan.train.steps {
            0 => usize::MAX,
            steps => usize::try_from(steps.saturating_sub(step)).unwrap_or(usize::MAX),
        };
        for rows in draw_window(&labels_here, batch, seed, step).into_iter().take(left) {
            let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
            let index = Tensor::from_slice(&index).to_device(self.device);
            let drawn_labels = labels.f_index_select(0, &index)?;
            let features = self.step(&images.f_index_select(0, &index)?, &drawn_labels)?;
            let drawn: Vec<_> = rows.iter().map(|row| samples[*row]).collect();
            let fills = self.fills_from_training();
            let entries = self.entries(&drawn, fills.then_some(&drawn_labels))?;
            self.progress.add_ids(&entries.ids);
            if fills {
                self.push(&entries, &self.reduce(features)?)?;
            }
        }
        Ok(())
    }

    /// The record of the steps since the last one, and their labels in order.
    pub fn close_interval(
        &mut self,
        losses: BTreeMap<String, u64>,
        filtered: BTreeMap<String, u64>,
    ) -> Result<(StepRecord, Vec<i64>)> {
        self.interval.settle(&mut self.progress, &self.world)?;
        let labels = self.interval.take_labels();
        labels::check_finite(self.progress.loss_sum, self.progress.step)?;
        let lr = schedule::learning_rate(&self.plan.train, self.progress.step.saturating_sub(1));
        let next_cycle = match (self.progress.clustered_at, self.plan.cluster.every_steps) {
            (Some(step), every) if every > 0 => Some(step + every),
            _ => None,
        };
        Ok((self.interval.close(&mut self.progress, lr, next_cycle, losses, filtered), labels))
    }

    fn learns_clusters(&self) -> bool {
        self.plan.train.labels == Labels::Clusters
    }

    fn assigner(&self) -> Result<&Backbone> {
        self.assigner.as_ref().ok_or_else(|| Error::device("classes are learnt without an assigner"))
    }

    /// Who gives labels between two clusterings.
    fn labeller(&self) -> Result<&Backbone> {
        match self.plan.cluster.assigner {
            AssignerKind::Frozen => self.assigner(),
            AssignerKind::Live => Ok(&self.student),
        }
    }

    fn fills_from_training(&self) -> bool {
        self.learns_clusters()
            && self.plan.cluster.refresh == Refresh::Rolling
            && self.plan.bank.encoder == Encoder::Train
    }

    /// `[B, D]` features of uint8 pixels as the bank keeps them, in evaluation mode, without a graph.
    fn encode(&self, network: &Backbone, pixels: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        self.reduce(network.forward(&self.normalizer.prepare(pixels)?, Mode::Eval)?)
    }

    /// Features as the bank keeps them.
    fn reduce(&self, features: Tensor) -> Result<Tensor> {
        match &self.projection {
            Some(projection) => projection.apply(&features),
            None => Ok(features),
        }
    }

    /// The samples of all ranks, with the labels that the present clustering gives them if they are wanted.
    fn entries<S: Borrow<SampleMeta>>(&self, samples: &[S], labels: Option<&Tensor>) -> Result<Entries> {
        let labels = labels.map(Vec::<i64>::try_from).transpose()?;
        Entries::gather(&self.world, samples, labels.as_deref(), self.own_batch())
    }

    fn push(&mut self, entries: &Entries, features: &Tensor) -> Result<()> {
        self.bank.push(entries, features, self.progress.step)
    }

    /// `[B]` labels of a batch: its classes, or its clusters. With `refresh = "rolling"` its features go to the bank on the way.
    fn label(&mut self, batch: &DeviceBatch) -> Result<(Tensor, Entries)> {
        if !self.learns_clusters() {
            return Ok((labels::of_classes(&batch.samples, self.device)?, self.entries(&batch.samples, None)?));
        }
        if let Some(labels) = labels::look_up(&self.labels_by_id, &batch.samples, self.device)? {
            return Ok((labels, self.entries(&batch.samples, None)?));
        }
        let features = self.encode(self.labeller()?, batch.center_views()?)?;
        let clustering = self.clustering.as_ref().ok_or_else(no_labels)?;
        let (labels, _) = clustering.assign(&features)?;
        if self.plan.cluster.refresh != Refresh::Rolling {
            return Ok((labels, self.entries(&batch.samples, None)?));
        }
        let entries = self.entries(&batch.samples, Some(&labels))?;
        match self.plan.bank.encoder {
            Encoder::Assigner => self.push(&entries, &features)?,
            Encoder::Student => {
                let features = self.encode(&self.student, batch.center_views()?)?;
                self.push(&entries, &features)?;
            }
            Encoder::Train => {} // its features come with the training pass
        }
        Ok((labels, entries))
    }

    /// One step of the student and its head; the detached features of the training pass.
    fn step(&mut self, pixels: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let lr = schedule::learning_rate(&self.plan.train, self.progress.step);
        // Dropout draws from libtorch's generator: reseeding it by the step makes a resumed run draw the same.
        tch::manual_seed(seed::of(self.own_seed(), "step", self.progress.step) as i64);
        let images = self.normalizer.prepare(pixels)?;
        let sample_weights = self.weights.as_ref().map(|weights| weights.of(labels)).transpose()?;
        let (head, head_optimizer) = self.head.as_mut().ok_or_else(no_labels)?;
        self.optimizer.zero_grad()?;
        head_optimizer.zero_grad()?;
        let features = self.student.forward(&images, Mode::Train)?;
        let logits = head.logits(&features)?;
        let loss = labels::loss(&logits, labels, sample_weights.as_ref())?;
        let reducer = &mut self.reducer;
        self.world.backward(|| {
            reducer.as_mut().map(Reducer::prepare).transpose()?;
            Ok(loss.f_backward()?)
        })?;
        self.optimizer.step(lr)?;
        head_optimizer.step(lr)?;
        self.progress.step += 1;
        self.agree()?;
        self.interval.add_loss(loss.f_detach()?);
        if !self.learns_clusters() {
            self.interval.add_hits(labels::hits(&logits, labels)?);
        }
        Ok(features.f_detach()?)
    }
}

fn no_labels() -> Error {
    Error::device("there are no labels before the first clustering")
}
