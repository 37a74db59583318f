//! What is asked of probes, and what is told of them.

use crate::evaluate::probes::{Settings, Tally};
use crate::shards::ShardList;
use serde::{Deserialize, Serialize};

/// What is probed, and how: two runs with the same choice give the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// What network it is, so that nobody goes on with another one.
    pub network: String,
    /// A layer and settings for each probe.
    pub probes: Vec<(String, Settings)>,
    /// Passes over the train list.
    pub epochs: u64,
    /// Images a step.
    pub batch_size: usize,
    /// Ten crops of each test image in place of one.
    pub ten_crops: bool,
}

/// What is tested on.
#[derive(Clone, Debug)]
pub enum Test {
    /// Labelled shards.
    List(ShardList),
    /// One in so many of the train images, which are then not fitted on: by their ids, so always the same.
    HeldOut(u64),
}

/// What became of one probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The layer.
    pub layer: String,
    /// How it was fitted.
    pub settings: Settings,
    /// Values of a row.
    pub dimensions: i64,
    /// What was right after each epoch.
    pub epochs: Vec<Tally>,
}

impl Choice {
    /// Layers that are probed, each once.
    pub(super) fn layers(&self) -> Vec<&str> {
        let mut layers: Vec<&str> = Vec::new();
        for (layer, _) in &self.probes {
            if !layers.contains(&layer.as_str()) {
                layers.push(layer);
            }
        }
        layers
    }
}

impl Outcome {
    /// After the last epoch.
    pub fn last(&self) -> Tally {
        self.epochs.last().copied().unwrap_or_default()
    }

    /// The epoch with the highest top-1, counted from 1, as published numbers are chosen; the first of equals.
    pub fn best(&self) -> (usize, Tally) {
        let mut best = (0, Tally::default());
        for (number, tally) in self.epochs.iter().enumerate() {
            if best.0 == 0 || tally.top1 > best.1.top1 {
                best = (number + 1, *tally);
            }
        }
        best
    }
}

/// What is told while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// So many images of this epoch (from 0) have been fitted on; the mean loss of each probe since the last look.
    Fitting {
        /// From 0.
        epoch: u64,
        /// Of this epoch.
        images: u64,
        /// In the order of the probes.
        losses: &'a [f64],
    },
    /// So many images have been tested.
    Testing {
        /// From 0.
        epoch: u64,
        /// Of this test.
        images: u64,
    },
    /// An epoch has been tested: all probes so far.
    Tested(&'a [Outcome]),
}
