//! The whole evaluation: training on one list, and the pixels of another.
//!
//! In: a kit, a network, a [`Plan`]. Out: a [`Report`]. Where there is a state file, a training that is stopped goes on from it; it is
//! written every few minutes, at a stop, and before the measure.

use super::Settings;
use super::data::Photographs;
use super::fit::Fit;
use crate::error::{Error, Result};
use crate::evaluate::voc::classify::{Flow, SAVE_EVERY, Watch, identity};
use crate::evaluate::voc::devkit::{CLASSES, Devkit};
use crate::evaluate::voc::state::{self, Place};
use crate::model::{Backbone, Normalizer};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

const KEY: &str = "segmentation";

/// What to evaluate, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How to train.
    pub settings: Settings,
    /// The lists to train on and to test on.
    pub splits: [String; 2],
    /// Where to keep what is needed to go on.
    pub state: Option<PathBuf>,
}

/// One class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassResult {
    /// Its name.
    pub class: &'static str,
    /// Intersection over union; none where it neither is nor is told.
    pub iu: Option<f64>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The lists trained on and tested on.
    pub splits: [String; 2],
    /// Their photographs.
    pub photographs: [usize; 2],
    /// What was trained with.
    pub settings: Settings,
    /// Background, and the classes in the order of the kit.
    pub classes: Vec<ClassResult>,
    /// Mean over the classes that have one.
    pub mean_iu: f64,
    /// Share of the pixels.
    pub pixel_accuracy: f64,
    /// Mean of that share over the classes that are there.
    pub mean_accuracy: f64,
}

/// Carries out a plan.
///
/// # Errors
/// What [`Photographs::list`] and [`Fit`] refuse; a state of another evaluation; a stop.
pub fn evaluate(
    kit: &Devkit,
    pretrained: &Backbone,
    normalizer: &Normalizer,
    plan: &Plan,
    watch: &mut dyn Watch,
) -> Result<Report> {
    let [train, test] = &plan.splits;
    let (train, test) = (Photographs::list(kit, train)?, Photographs::list(kit, test)?);
    for list in [&train, &test] {
        watch.say(&format!("{}: {} photographs with masks", list.name(), list.len()));
    }
    let mut fit = Fit::new(pretrained, &plan.settings)?;
    let mut place = Place::default();
    if let Some(path) = &plan.state {
        let (network, settings) = (identity(pretrained, true)?, plan.settings);
        place.of = json!({"network": network, "kit": kit.root(), "splits": plan.splits, "settings": settings});
        if let Some((found, tensors)) = state::read(path, KEY, &place.of)? {
            watch.say(&format!("goes on after {} iterations, from {}", found.steps, path.display()));
            fit.load_state(&tensors, found.steps)?;
        }
    }
    let interrupted = || Error::Interrupted { snapshot: plan.state.clone() };

    watch.begin(&format!("training on {}", train.name()), fit.done(), plan.settings.iterations);
    while !fit.is_complete() {
        let started = Instant::now();
        fit.run(&train, normalizer, |step| {
            watch.trained(step);
            let due = plan.state.is_some() && started.elapsed() > SAVE_EVERY;
            if watch.is_stopped() || due { Flow::Pause } else { Flow::GoOn }
        })?;
        if let Some(path) = &plan.state {
            place.steps = fit.done();
            state::write(path, KEY, &place, &fit.state())?;
        }
        if watch.is_stopped() {
            return Err(interrupted());
        }
    }
    watch.begin(&format!("scoring {}", test.name()), 0, test.len() as u64);
    let found = fit.measure(&test, normalizer, |done| {
        watch.scored(done as u64);
        !watch.is_stopped() || done == test.len()
    });
    let found = match found {
        Err(Error::Interrupted { .. }) => return Err(interrupted()),
        other => other?,
    };
    let names = ["background"].into_iter().chain(CLASSES);
    Ok(Report {
        splits: plan.splits.clone(),
        photographs: [train.len(), test.len()],
        settings: plan.settings,
        classes: names
            .enumerate()
            .map(|(class, name)| ClassResult { class: name, iu: found.intersection_over_union(class) })
            .collect(),
        mean_iu: found.mean_iu(),
        pixel_accuracy: found.pixel_accuracy(),
        mean_accuracy: found.mean_accuracy(),
    })
}
