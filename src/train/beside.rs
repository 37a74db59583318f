//! A clustering that runs beside training, on a thread of its own.
//!
//! It gets the rows as they are when it begins, and its outcome is installed at a step that is fixed then: a run does not depend on
//! how long it takes. Until then labels are those of the clustering before, and nothing may write to the rows. A snapshot keeps rows
//! and the network that encoded them; a run that goes on from it clusters them again, with the same outcome.
//!
//! What can go wrong: what can in a clustering; the error comes with [`Beside::finish`].

use crate::bank::Rows;
use crate::cluster::{self, Cycle};
use crate::config::ClusterPlan;
use crate::error::{Error, Result};
use crate::model::Backbone;
use crate::shards::SampleId;
use crate::world::World;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// A clustering in progress.
#[derive(Debug)]
pub(super) struct Beside {
    thread: JoinHandle<(Result<Cycle>, Duration)>,
    /// The network that encoded the rows.
    pub(super) encoder: Backbone,
    /// Mean age of the rows when it began, in steps.
    pub(super) bank_age: f64,
    /// How long training had stood still for it when it began.
    pub(super) stood: Duration,
}

/// How to cluster.
pub(super) struct Work {
    pub(super) plan: ClusterPlan,
    pub(super) seed: u64,
    pub(super) device: Device,
    /// Of this thread alone: its calls must not mix with those of the trainer.
    pub(super) world: World,
}

/// Rows that may go to another thread.
pub(super) struct OwnRows {
    features: Tensor,
    ids: Vec<SampleId>,
    classes: Vec<Option<i64>>,
    labels: Vec<Option<u32>>,
}

impl OwnRows {
    /// Shares the features of `rows`, copies the rest.
    pub(super) fn of(rows: &Rows<'_>) -> Self {
        Self {
            features: rows.features.shallow_clone(),
            ids: rows.ids.to_vec(),
            classes: rows.classes.to_vec(),
            labels: rows.labels.to_vec(),
        }
    }
}

impl Beside {
    /// Begins.
    pub(super) fn begin(rows: OwnRows, work: Work, encoder: Backbone) -> Result<Self> {
        let run = move || {
            let started = Instant::now();
            let OwnRows { features, ids, classes, labels } = &rows;
            let rows = Rows { features: features.shallow_clone(), ids, classes, labels };
            (cluster::fit(&rows, &work.plan, work.seed, work.device, &work.world), started.elapsed())
        };
        let thread = Builder::new().name("cluster".into()).spawn(run);
        let thread = thread.map_err(|error| Error::device(format!("cannot start a thread to cluster: {error}")))?;
        Ok(Self { thread, encoder, bank_age: 0.0, stood: Duration::ZERO })
    }

    /// Waits for the outcome; with the network that encoded the rows, and the time that it took.
    pub(super) fn finish(self) -> Result<(Cycle, Backbone, Duration)> {
        let (found, took) =
            self.thread.join().map_err(|_| Error::device("the clustering beside training has crashed"))?;
        Ok((found?, self.encoder, took))
    }
}
