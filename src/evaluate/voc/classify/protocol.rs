//! The whole evaluation: choice of settings on `val` if wanted, then training and test.
//!
//! In: a kit, a network, a [`Plan`]. Out: a [`Report`]. With a choice each candidate is trained on `train` and scored on `val`, and the
//! best one trained anew on `trainval` and scored on `test`, once. Where there is a state file, an evaluation that is stopped goes on from
//! it; it is written every few minutes, at a stop, and before a score.
//!
//! A class without a positive photograph cannot be measured, and one that training has not seen should not be: both are
//! errors, unless the plan passes them over, and then the mean is over the other classes.

use super::Settings;
use super::data::Split;
use super::fit::{Fit, Flow, Step};
use super::network::identity;
use super::score::{average_precisions, logits};
use crate::error::{Error, Result};
use crate::evaluate::voc::devkit::{CLASSES, Devkit};
use crate::evaluate::voc::state::{self, Place};
use crate::model::{Backbone, Named, Normalizer};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What states of this evaluation are called.
const KEY: &str = "voc07";

/// Time between two states on disk.
pub(in crate::evaluate::voc) const SAVE_EVERY: Duration = Duration::from_secs(300);

/// What to evaluate, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Candidates, or the one setting there is.
    pub candidates: Vec<Settings>,
    /// Whether one of them is chosen on `val`.
    pub select: bool,
    /// The lists to train on and to test on.
    pub splits: [String; 2],
    /// Pass over classes that a split does not show.
    pub skip_empty: bool,
    /// Where to keep what is needed to go on.
    pub state: Option<PathBuf>,
    /// Threads that decode.
    pub threads: usize,
    /// Crops that are scored together.
    pub at_once: usize,
}

/// One class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassResult {
    /// Its name.
    pub class: &'static str,
    /// Photographs of the test list that show it.
    pub positives: usize,
    /// None where it is passed over.
    pub average_precision: Option<f64>,
}

/// One candidate.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// Trained on `train` with these.
    pub settings: Settings,
    /// On `val`.
    pub mean_average_precision: f64,
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
    /// In the order of the kit.
    pub classes: Vec<ClassResult>,
    /// Over the classes that have one.
    pub mean_average_precision: f64,
    /// The candidates, where there was a choice.
    pub trials: Vec<Trial>,
}

/// Somebody who looks on and may stop the work.
pub trait Watch {
    /// A line that stays.
    fn say(&mut self, line: &str);
    /// Something begins, with so much of it done.
    fn begin(&mut self, what: &str, done: u64, total: u64);
    /// Training has come further.
    fn trained(&mut self, step: Step);
    /// Scoring has come further.
    fn scored(&mut self, photographs: u64);
    /// Whether to stop now.
    fn is_stopped(&self) -> bool;
}

/// Carries out a plan.
///
/// # Errors
/// What [`Split::read`], [`Fit::run`] and [`logits`] refuse; classes without positives; a state of another evaluation; a stop.
pub fn evaluate(
    kit: &Devkit,
    pretrained: &Backbone,
    normalizer: &Normalizer,
    plan: &Plan,
    watch: &mut dyn Watch,
) -> Result<Report> {
    plan.candidates.iter().try_for_each(Settings::check)?;
    let (Some(only), true) = (plan.candidates.first(), plan.select || plan.candidates.len() == 1) else {
        return Err(Error::usage("several settings, and no choice between them").with_hint("give one, or --select"));
    };
    let read = |name: &str, watch: &mut dyn Watch| -> Result<Split> {
        let split = Split::read(kit, name)?;
        watch.say(&split.summary());
        check_classes(&split, plan.skip_empty)?;
        Ok(split)
    };
    // All of it is read first: what is wrong with the test list should not come out after days.
    let choosing = if plan.select { Some([read("train", watch)?, read("val", watch)?]) } else { None };
    let [fit_on, test_on] = &plan.splits;
    let (fit_on, test_on) = (read(fit_on, watch)?, read(test_on, watch)?);

    let mut work = Work { pretrained, normalizer, plan, watch, place: Place::default(), saved: None };
    work.resume(kit)?;
    let mut trials: Vec<Trial> = Vec::new();
    if let Some([train, val]) = &choosing {
        for (number, settings) in plan.candidates.iter().enumerate() {
            let known = work.place.trials.get(number).copied();
            let mean = match known {
                Some(mean) => mean,
                None => work.measure(train, val, settings)?.1,
            };
            if known.is_none() {
                work.finish(mean);
                let (of, lr, decay) = (plan.candidates.len(), settings.lr, settings.weight_decay);
                let line =
                    format!("{} of {of}: val mAP {:.2} % at lr {lr}, weight decay {decay}", number + 1, 100.0 * mean);
                work.watch.say(&line);
            }
            trials.push(Trial { settings: *settings, mean_average_precision: mean });
        }
    }
    // The first of equals.
    let best = trials.iter().rev().max_by(|a, b| a.mean_average_precision.total_cmp(&b.mean_average_precision));
    let settings = best.map_or(*only, |trial| trial.settings);
    drop(choosing);
    let (classes, mean) = work.measure(&fit_on, &test_on, &settings)?;
    Ok(Report {
        splits: plan.splits.clone(),
        photographs: [fit_on.len(), test_on.len()],
        settings,
        classes,
        mean_average_precision: mean,
        trials,
    })
}

struct Work<'a> {
    pretrained: &'a Backbone,
    normalizer: &'a Normalizer,
    plan: &'a Plan,
    watch: &'a mut dyn Watch,
    place: Place,
    /// Weights and momenta of the trial that the state was in.
    saved: Option<Named>,
}

impl Work<'_> {
    /// Takes up a state, if there is one.
    fn resume(&mut self, kit: &Devkit) -> Result<()> {
        let Some(path) = &self.plan.state else { return Ok(()) };
        self.place.of = json!({
            "network": identity(self.pretrained, false)?,
            "kit": kit.root(),
            "splits": self.plan.splits,
            "select": self.plan.select,
            "skip_empty_classes": self.plan.skip_empty,
            "settings": self.plan.candidates,
        });
        if let Some((place, tensors)) = state::read(path, KEY, &self.place.of)? {
            let (trials, steps) = (place.trials.len(), place.steps);
            let before = if trials > 0 { format!(" of trial {}", trials + 1) } else { String::new() };
            self.watch.say(&format!("goes on after {steps} iterations{before}, from {}", path.display()));
            (self.place, self.saved) = (place, Some(tensors));
        }
        Ok(())
    }

    fn save(&mut self, fit: &Fit) -> Result<()> {
        self.place.steps = fit.done();
        match &self.plan.state {
            Some(path) => state::write(path, KEY, &self.place, &fit.state()),
            None => Ok(()),
        }
    }

    /// A trial is done.
    fn finish(&mut self, mean: f64) {
        self.place.trials.push(mean);
        self.place.steps = 0;
    }

    /// Trains on one split and scores another.
    fn measure(&mut self, train: &Split, test: &Split, settings: &Settings) -> Result<(Vec<ClassResult>, f64)> {
        let mut fit = Fit::new(self.pretrained, settings)?;
        if let Some(tensors) = self.saved.take() {
            fit.load_state(&tensors, self.place.steps)?;
        }
        self.watch.begin(&format!("training on {}", train.name()), fit.done(), settings.iterations);
        while !fit.is_complete() {
            let (started, keeps) = (Instant::now(), self.plan.state.is_some());
            let watch = &mut *self.watch;
            fit.run(train, self.normalizer, self.plan.threads, |step| {
                watch.trained(step);
                let pause = watch.is_stopped() || (keeps && started.elapsed() > SAVE_EVERY);
                if pause { Flow::Pause } else { Flow::GoOn }
            })?;
            self.save(&fit)?;
            if self.watch.is_stopped() {
                return Err(self.interrupted());
            }
        }
        self.watch.begin(&format!("scoring {}", test.name()), 0, test.len() as u64);
        let watch = &mut *self.watch;
        let scores = logits(
            fit.classifier(),
            test,
            (self.normalizer, settings),
            (self.plan.threads, self.plan.at_once),
            |done| {
                watch.scored(done as u64);
                !watch.is_stopped() || done == test.len()
            },
        );
        let scores = match scores {
            Err(Error::Interrupted { .. }) => return Err(self.interrupted()),
            other => other?,
        };
        Ok(summarise(&average_precisions(&scores, test), train, test))
    }

    fn interrupted(&self) -> Error {
        Error::Interrupted { snapshot: self.plan.state.clone() }
    }
}

/// Classes with their average precision, and the mean over those that both splits show.
fn summarise(precisions: &[Option<f64>], train: &Split, test: &Split) -> (Vec<ClassResult>, f64) {
    let (seen, positives) = (train.positives(), test.positives());
    let classes: Vec<ClassResult> = CLASSES
        .iter()
        .enumerate()
        .map(|(class, &name)| ClassResult {
            class: name,
            positives: positives[class],
            average_precision: precisions[class].filter(|_| seen[class] > 0),
        })
        .collect();
    let found: Vec<f64> = classes.iter().filter_map(|class| class.average_precision).collect();
    let mean = found.iter().sum::<f64>() / found.len().max(1) as f64;
    (classes, mean)
}

fn check_classes(split: &Split, skip_empty: bool) -> Result<()> {
    let positives = split.positives();
    let empty: Vec<&str> =
        CLASSES.iter().zip(positives).filter(|(_, count)| *count == 0).map(|(class, _)| *class).collect();
    if empty.len() == CLASSES.len() {
        return Err(Error::data(format!("{} shows none of the classes", split.name())));
    }
    if empty.is_empty() || skip_empty {
        return Ok(());
    }
    let what = format!("no photograph of {} shows {}", split.name(), empty.join(", "));
    Err(Error::data(what).with_hint("with --skip-empty-classes the mean is over the classes that are there"))
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::kit_of;
    use super::*;
    use crate::evaluate::voc::devkit::Presence::Present;

    #[test]
    fn the_mean_is_over_classes_that_both_splits_show() -> Result<()> {
        let train = kit_of(&[(&[0], Present), (&[1], Present)])?;
        let test = kit_of(&[(&[1], Present), (&[2], Present)])?;
        let mut precisions = [None; CLASSES.len()];
        (precisions[1], precisions[2]) = (Some(0.5), Some(1.0));
        let (classes, mean) = summarise(&precisions, &train, &test);
        assert_eq!(mean, 0.5, "training has seen no bird");
        assert_eq!((classes[1].average_precision, classes[2].average_precision), (Some(0.5), None));
        assert_eq!((classes[2].class, classes[2].positives), ("bird", 1));

        let error = check_classes(&test, false).expect_err("classes are missing").to_string();
        assert!(error.contains("train") && error.contains("aeroplane, boat"), "{error}");
        assert!(check_classes(&test, true).is_ok());
        let nothing = kit_of(&[(&[], Present)])?;
        assert!(check_classes(&nothing, true).is_err());
        Ok(())
    }
}
