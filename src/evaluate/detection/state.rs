//! Where a training is: what a file needs to go on with it.
//!
//! In and out: one safetensors file with the weights of network and head, the momenta, and as metadata the step, the course of
//! the loss, and the settings. A state of other settings is refused, with the first of them that differs. It is written aside,
//! synced and renamed, so that a crash leaves the one before.

use super::detector::Detector;
use crate::error::{Error, Result};
use crate::model::Named;
use crate::model::state::{Metadata, copy_into, read_safetensors, replace_safetensors};
use crate::train::optimizer::Sgd;
use serde::{Deserialize, Serialize};
use std::path::Path;

const ITERATION: &str = "iteration";
const LOSSES: &str = "losses";
const NETWORK: &str = "network.";
const MOMENTUM: &str = "momentum.";

/// Means of the loss over tenths of a training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// Sum and number of losses in each tenth.
    tenths: [(f64, u64); 10],
}

impl Course {
    /// Adds the loss of a step, counted from 1, of a training of so many.
    pub fn add(&mut self, loss: f64, iteration: u64, iterations: u64) {
        let tenth = (iteration - 1) * 10 / iterations.max(1);
        let (sum, count) = &mut self.tenths[tenth.min(9) as usize];
        *sum += loss;
        *count += 1;
    }

    /// The means, of tenths that have a step.
    pub fn means(&self) -> Vec<f64> {
        self.tenths.iter().filter(|(_, count)| *count > 0).map(|(sum, count)| sum / *count as f64).collect()
    }
}

/// A training on its way.
#[derive(Debug, Default)]
pub struct State {
    /// Steps done.
    pub iteration: u64,
    /// Of the loss.
    pub losses: Course,
    /// All that a training depends on, as text.
    pub settings: Metadata,
    /// Weights and momenta as they were read, until they are taken over.
    tensors: Named,
}

impl State {
    /// The beginning.
    pub fn new(settings: Metadata) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Reads a state; the beginning where there is no file.
    ///
    /// # Errors
    /// It cannot be read, or is that of other settings.
    pub fn open(path: &Path, settings: Metadata) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::new(settings));
        }
        let (tensors, mut metadata) = read_safetensors(path)?;
        let refuse = |what: String| {
            Error::data(format!("{} {what}", path.display())).with_hint("give another --state, or remove it")
        };
        let (Some(iteration), Some(losses)) = (metadata.remove(ITERATION), metadata.remove(LOSSES)) else {
            return Err(refuse("is no state of a detector".into()));
        };
        for (name, value) in &settings {
            let was = metadata.get(name).map_or("not there", String::as_str);
            if was != value {
                let what = format!("{} is of another training: {name} was {was}, now it is {value}", path.display());
                return Err(Error::usage(what).with_hint("give the settings that it was made with, or another --state"));
            }
        }
        let (Ok(iteration), Ok(losses)) = (iteration.parse(), serde_json::from_str(&losses)) else {
            return Err(refuse("does not say how far its training is".into()));
        };
        Ok(Self { iteration, losses, settings, tensors })
    }

    /// Moves weights and momenta into a detector and its optimisers, if the state was read from a file.
    pub fn load(&mut self, detector: &Detector<'_>, optimizers: &mut [Sgd]) -> Result<()> {
        let tensors = std::mem::take(&mut self.tensors);
        if tensors.is_empty() {
            return Ok(());
        }
        let below = |prefix: &str| -> Named {
            let found = tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
            found.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect()
        };
        detector.backbone().load_state(&below(NETWORK))?;
        copy_into(&detector.head(), &tensors)?;
        let momenta = below(MOMENTUM);
        optimizers.iter_mut().try_for_each(|optimizer| optimizer.load_state(&momenta))
    }

    /// Writes the state as it is now.
    pub fn write(&self, path: &Path, detector: &Detector<'_>, optimizers: &[Sgd]) -> Result<()> {
        let named = |prefix: &str, tensors: Named| -> Named {
            tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
        };
        let mut tensors = named(NETWORK, detector.backbone().state()?);
        tensors.extend(detector.head());
        for optimizer in optimizers {
            tensors.extend(named(MOMENTUM, optimizer.state()));
        }
        let mut metadata = self.settings.clone();
        metadata.insert(ITERATION.to_owned(), self.iteration.to_string());
        let losses = serde_json::to_string(&self.losses).map_err(|error| Error::data(error.to_string()))?;
        metadata.insert(LOSSES.to_owned(), losses);
        replace_safetensors(path, &tensors, &metadata)
    }
}
