//! One cycle: the bank becomes labels, the student becomes the assigner, the head starts anew.
//!
//! With `cluster.overlap` the clustering itself runs beside training ([`super::beside`]). Errors: too few rows for `cluster.k`.

use super::Trainer;
use super::balance::ClusterWeights;
use super::beside::{Beside, OwnRows, Work};
use super::optimizer::Sgd;
use super::record::CycleRecord;
use super::upload::DeviceBatch;
use crate::bank::Rows;
use crate::cluster::assignments::Assignments;
use crate::cluster::{self, Clustering, Cycle};
use crate::config::{AssignerKind, Balance, HeadRenewal, Refresh};
use crate::error::{Error, Result};
use crate::model::{Backbone, Head};
use crate::seed;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Rows over which a clustering is compared with the one before, at least; each costs a forward pass of the old assigner.
const COMPARED_ROWS: usize = 50_000;
/// The same for each cluster: with fewer, two clusterings that have nothing in common seem to agree.
const COMPARED_ROWS_A_CLUSTER: usize = 50;

/// What a record tells beside the outcome of a clustering.
struct Told {
    bank_age: f64,
    took: Duration,
    stood: Duration,
}

impl Trainer {
    /// Whether the labels are to be renewed before the next step.
    ///
    /// `next_pass` is the pass of the next batch, where it is known: with `cluster.every_steps = 0` it decides.
    pub fn cycle_due(&self, next_pass: Option<u64>) -> bool {
        let every = self.plan.cluster.every_steps;
        match self.progress.clustered_at {
            _ if !self.learns_clusters() => false,
            _ if self.progress.beside_since.is_some() => false,
            None if self.plan.cluster.refresh == Refresh::Rolling => self.bank_is_ready(),
            None => true,
            Some(_) if every == 0 => next_pass.is_some_and(|pass| pass > self.progress.clustered_pass),
            Some(step) => self.progress.step >= step + every,
        }
    }

    /// Whether the bank holds what the first clustering needs: it is full, or the whole list has gone by.
    fn bank_is_ready(&self) -> bool {
        let is_one_list = self.plan.stream.weights.is_empty();
        self.bank.len() >= self.plan.bank.capacity || (is_one_list && self.progress.pass > 0)
    }

    /// Empties the bank, for other samples or the whole list to be encoded by the student.
    pub fn begin_refresh(&mut self) {
        self.bank.clear();
    }

    /// With `refresh = "refill"`: encodes one batch of the stream with the student, which becomes the assigner.
    ///
    /// The labels that the present assigner gives the first of them go along, to be compared with the new ones.
    pub fn refill(&mut self, batch: &DeviceBatch) -> Result<()> {
        let compared = COMPARED_ROWS.max(COMPARED_ROWS_A_CLUSTER * self.plan.cluster.k);
        let before = match &self.clustering {
            Some(clustering) if self.bank.len() < compared => {
                Some(clustering.assign(&self.encode(self.labeller()?, batch.center_views()?)?)?.0)
            }
            _ => None,
        };
        let features = self.encode(&self.student, batch.center_views()?)?;
        let entries = self.entries(&batch.samples, before.as_ref())?;
        self.push(&entries, &features)
    }

    /// With `refresh = "full"`: encodes one batch of the whole list with the student; none where this rank has come to the end of its
    /// part.
    pub fn refresh(&mut self, batch: Option<&DeviceBatch>) -> Result<()> {
        let samples = batch.map_or(&[][..], |batch| &batch.samples);
        let entries = self.entries(samples, None)?;
        if self.bank.len() + entries.len() > self.plan.bank.capacity {
            return Err(Error::usage(format!(
                "the list holds more than bank.capacity = {} samples, and cluster.refresh = \"full\" needs them all",
                self.plan.bank.capacity
            ))
            .with_hint("raise bank.capacity to the length of the list (`shoal shards check` counts it)"));
        }
        let features = match batch {
            Some(batch) => self.encode(&self.student, batch.center_views()?)?,
            None => Tensor::f_zeros([0, self.bank.dim() as i64], (Kind::Float, Device::Cpu))?,
        };
        self.push(&entries, &features)
    }

    /// Clusters the bank, takes the student as assigner, renews the head.
    ///
    /// `next_pass` is the pass that the new labels are for; the cycle `started` when its encoding did. Gives the record, and which
    /// sample is in which cluster.
    pub fn cluster(&mut self, next_pass: u64, started: Instant) -> Result<(CycleRecord, Assignments)> {
        self.interval.settle(&mut self.progress, &self.world)?;
        let labels = self.labels_of_bank();
        let rows = Rows { labels: &labels, ..self.bank.view()? };
        let found = cluster::fit(&rows, &self.plan.cluster, self.cycle_seed(), self.device, &self.world)?;
        if self.plan.cluster.assigner == AssignerKind::Frozen {
            self.assigner()?.copy_from(&self.student)?;
        }
        let bank_age = self.bank.mean_age(self.progress.step);
        let took = started.elapsed();
        self.progress.clustered_at = Some(self.progress.step);
        self.progress.clustered_pass = next_pass;
        let outcome = self.install(found, Told { bank_age, took, stood: took });
        self.interval.skip(started.elapsed());
        outcome
    }

    /// Begins to cluster the bank beside training, for [`Trainer::finish_beside`] to install `cluster.overlap_steps` later.
    pub fn begin_beside(&mut self, next_pass: u64, started: Instant) -> Result<()> {
        self.interval.settle(&mut self.progress, &self.world)?;
        let encoder = self.student.duplicate()?;
        self.progress.clustered_at = Some(self.progress.step);
        self.progress.clustered_pass = next_pass;
        self.progress.beside_since = Some(self.progress.step);
        self.cluster_beside(encoder)?;
        if let Some(beside) = &mut self.beside {
            beside.stood = started.elapsed();
        }
        self.interval.skip(started.elapsed());
        Ok(())
    }

    /// Clusters what the bank holds on a thread of its own; `encoder` made the features.
    pub(super) fn cluster_beside(&mut self, encoder: Backbone) -> Result<()> {
        let labels = self.labels_of_bank();
        let rows = OwnRows::of(&Rows { labels: &labels, ..self.bank.view()? });
        let since = self.progress.beside_since.unwrap_or(self.progress.step);
        let work = Work {
            plan: self.plan.cluster.clone(),
            seed: self.cycle_seed(),
            device: self.device,
            world: self.aside.clone(),
        };
        let mut beside = Beside::begin(rows, work, encoder)?;
        beside.bank_age = self.bank.mean_age(since);
        self.beside = Some(beside);
        Ok(())
    }

    /// Whether the outcome of the clustering beside is to be installed before the next step.
    pub fn beside_due(&self) -> bool {
        let steps = self.plan.cluster.steps_beside();
        self.progress.beside_since.is_some_and(|since| self.progress.step >= since + steps)
    }

    /// Waits for the clustering beside, and installs what it has found.
    pub fn finish_beside(&mut self) -> Result<(CycleRecord, Assignments)> {
        let started = Instant::now();
        self.interval.settle(&mut self.progress, &self.world)?;
        let beside = self.beside.take().ok_or_else(|| Error::device("no clustering is under way"))?;
        let (bank_age, stood) = (beside.bank_age, beside.stood);
        let (found, encoder, took) = beside.finish()?;
        self.assigner()?.copy_from(&encoder)?;
        self.progress.beside_since = None;
        let outcome = self.install(found, Told { bank_age, took: took + stood, stood: stood + started.elapsed() });
        self.interval.skip(started.elapsed());
        outcome
    }

    fn cycle_seed(&self) -> u64 {
        seed::of(self.plan.stream.seed, "cluster", self.progress.cycle + 1)
    }

    /// The cluster of each row of the bank so far.
    fn labels_of_bank(&self) -> Vec<Option<u32>> {
        match self.plan.cluster.refresh {
            Refresh::Full => self.bank.ids().iter().map(|id| self.labels_by_id.get(id).copied()).collect(),
            Refresh::Refill | Refresh::Rolling => self.bank.labels().to_vec(),
        }
    }

    /// Puts new labels and a new head to work.
    fn install(&mut self, found: Cycle, told: Told) -> Result<(CycleRecord, Assignments)> {
        let cycle = self.progress.cycle + 1;
        let head = self.renew_head(&found, cycle)?;
        let Cycle { clustering, ids, assignment, distances, stats, .. } = found;
        let classes = self.bank.classes().to_vec();
        let found = Assignments { ids, classes, clusters: assignment, distances, ..Assignments::default() };
        self.weights = self.weights_for(&clustering)?;
        match self.plan.cluster.refresh {
            Refresh::Rolling => self.bank.relabel(&found.clusters)?,
            Refresh::Refill => self.bank.clear(), // it is filled anew for the next cycle
            Refresh::Full => {
                self.labels_by_id = found.by_id();
                self.full_assignments = Some(Arc::new(found.clone()));
                self.bank.clear();
            }
        }
        self.put_head(head)?;
        self.clustering = Some(clustering);
        self.progress.cycle = cycle;
        let record = CycleRecord {
            step: self.progress.step,
            cycle,
            rows: stats.rows,
            objective: stats.objective,
            nmi_prev: stats.nmi_prev,
            nmi_labels: stats.nmi_labels,
            reassigned: stats.reassigned,
            empty: stats.empty,
            largest_share: stats.largest_share,
            entropy: stats.entropy,
            sizes: stats.sizes,
            bank_age: told.bank_age,
            iterations: stats.iterations,
            seconds: told.took.as_secs_f64(),
            stood_s: told.stood.as_secs_f64(),
        };
        Ok((record, found))
    }

    /// The weights of samples by the sizes of their clusters, with `balance = "weight"`.
    pub(super) fn weights_for(&self, clustering: &Clustering) -> Result<Option<ClusterWeights>> {
        match self.plan.train.balance {
            Balance::Weight => {
                ClusterWeights::new(&clustering.sizes, self.plan.train.balance_limit, self.device).map(Some)
            }
            Balance::Sample | Balance::None => Ok(None),
        }
    }

    /// The head for new labels: fresh, with the rows of the clusters that the new ones continue, or their centroids.
    fn renew_head(&self, found: &Cycle, cycle: u64) -> Result<(Head, Sgd)> {
        if self.plan.train.head == HeadRenewal::Centroids {
            return self.with_optimizer(self.prototypes(&found.clustering)?);
        }
        let fresh = Head::new(
            self.student.feature_dim(),
            found.clustering.k() as i64,
            seed::of(self.plan.stream.seed, "head", cycle),
            self.device,
            self.plan.device.precision,
        )?;
        if let (HeadRenewal::Match, Some((old, _)), Some(origins)) = (self.plan.train.head, &self.head, &found.origins)
        {
            inherit(&fresh, old, origins)?;
        }
        self.with_optimizer(fresh)
    }

    /// The head that is the centroids of a clustering.
    pub(super) fn prototypes(&self, clustering: &Clustering) -> Result<Head> {
        let (mean, whitening) = (clustering.whitening.mean(), clustering.whitening.projection());
        let origin = whitening.f_mv(mean)?;
        let projection = match &self.projection {
            Some(projection) => whitening.f_matmul(&projection.matrix().f_tr()?)?,
            None => whitening.shallow_clone(),
        };
        Head::prototypes(&projection, &origin, &clustering.centroids, self.plan.train.temperature)
    }

    /// The head where classes are learnt, one output each: trained as the network is.
    pub(super) fn head_of_classes(&self, classes: usize) -> Result<(Head, Sgd)> {
        let (dim, precision) = (self.student.feature_dim(), self.plan.device.precision);
        let head = Head::new(dim, classes as i64, seed::of(self.plan.stream.seed, "head", 0), self.device, precision)?;
        let optimizer = Sgd::new(head.parameters(), self.plan.train.momentum, self.plan.train.weight_decay)?;
        Ok((head, optimizer))
    }

    /// A head of clusters with the optimiser that it has: without momentum.
    pub(super) fn with_optimizer(&self, head: Head) -> Result<(Head, Sgd)> {
        let optimizer = Sgd::new(head.parameters(), 0.0, self.plan.train.weight_decay)?;
        Ok((head, optimizer))
    }
}

/// Copies to each cluster's row of `new` the row of `old` that it continues; rows of new clusters stay as drawn.
fn inherit(new: &Head, old: &Head, origins: &[Option<u32>]) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let continued = origins.iter().enumerate().filter_map(|(to, from)| from.map(|from| (to as i64, i64::from(from))));
    let (to, from): (Vec<i64>, Vec<i64>) = continued.unzip();
    // A head of centroids has no rows to hand on.
    for ((_, mut new), (_, old)) in new.parameters().into_iter().zip(old.parameters()) {
        let to = Tensor::f_from_slice(&to)?.f_to_device(new.device())?;
        let from = Tensor::f_from_slice(&from)?.f_to_device(old.device())?;
        let _ = new.f_index_copy_(0, &to, &old.f_index_select(0, &from)?)?;
    }
    Ok(())
}
