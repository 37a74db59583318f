//! How many classes a run learns, where its pipeline leaves that to the list (`train.classes = 0`).
//!
//! In: a plan, and the list. Out: that of the run so far ([`of_run`]), or one more than the largest class of the list, which is
//! read once for it, without decoding ([`count`]). RUN/pipeline.toml keeps the number, so a run that goes on does not read again,
//! and its head keeps its shape whatever the list becomes.
//!
//! What can go wrong: no sample has a class, all have the same, a class is too large to be counted from 0, the list cannot be read,
//! somebody asks to stop. Samples with a negative class, or none, are told here and lost in training.

use super::run_folder;
use super::stop::Stop;
use crate::config::{Labels, MOST_CLASSES, Plan, StreamPlan};
use crate::error::{Error, Result};
use crate::ingest::{self, Opening, Passes};
use crate::observe::console::say;
use crate::shards::{Ledger, ShardList};
use futures_util::StreamExt;
use indicatif::{HumanCount, ProgressBar};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Samples between two looks at the progress and at whether somebody asked to stop.
const LOOK_EVERY: u64 = 100;

/// Whether the list has to be read for its classes.
pub(super) fn are_unknown(plan: &Plan) -> bool {
    plan.train.labels == Labels::Classes && plan.train.classes == 0
}

/// The plan, with the classes of the run in `folder` where it has begun and `plan` does not say how many.
pub(super) fn of_run(plan: &Plan, folder: &Path) -> Result<Plan> {
    let mut plan = plan.clone();
    if are_unknown(&plan)
        && let Some(classes) = run_folder::plan_so_far(folder)?.and_then(|plan| plan.train.known_classes())
    {
        plan.train.classes = classes;
    }
    Ok(plan)
}

/// Reads the labels of the list, once, and says what was met.
///
/// # Errors
/// No two classes to tell apart, numbers that are too large, a list that cannot be read; [`Error::Interrupted`].
pub(super) fn count(plan: &Plan, list: &ShardList, runtime: &Runtime, stop: &Stop) -> Result<usize> {
    let shards = HumanCount(list.shards.len() as u64);
    say(&format!("train.classes = 0: the labels of {shards} shards are read once (a number there saves that)"));
    let stream = StreamPlan { shuffle: 1, max_loss_rate: 1.0, ..plan.stream.clone() };
    let ledger = Arc::new(Ledger::in_memory(&stream));
    let bar = ProgressBar::new_spinner();
    let mut found = Found::default();
    runtime.block_on(async {
        let opening = Opening::new(list.clone(), &stream, &plan.fetch, Passes::Once, ledger);
        let mut samples = std::pin::pin!(ingest::stream(opening));
        while let Some(sample) = samples.next().await {
            found.add(sample?.meta.class);
            if found.samples.is_multiple_of(LOOK_EVERY) {
                if stop.is_requested() {
                    return Err(Error::Interrupted { snapshot: None });
                }
                bar.set_message(format!("{} labels", HumanCount(found.samples)));
                bar.tick();
            }
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    let classes = found.classes()?;
    say(&found.to_string());
    Ok(classes)
}

/// The classes met so far.
#[derive(Debug, Default)]
struct Found {
    samples: u64,
    unlabelled: u64,
    classes: BTreeSet<i64>,
}

impl Found {
    fn add(&mut self, class: Option<i64>) {
        self.samples += 1;
        match class {
            Some(class) if class >= 0 => {
                self.classes.insert(class);
            }
            Some(_) | None => self.unlabelled += 1,
        }
    }

    fn classes(&self) -> Result<usize> {
        let samples = HumanCount(self.samples);
        let Some(&largest) = self.classes.last() else {
            return Err(Error::data(format!("none of {samples} samples of the list has a class from 0 up to learn"))
                .with_hint(
                    "classes are integers in .cls members; `shoal shards pack` writes them from class folders",
                ));
        };
        let classes = usize::try_from(largest).unwrap_or(usize::MAX).saturating_add(1);
        if classes > MOST_CLASSES {
            return Err(Error::data(format!(
                "the list has {} classes with numbers up to {largest}: a head would need as many outputs",
                HumanCount(self.classes.len() as u64)
            ))
            .with_hint("number the classes from 0"));
        }
        if self.classes.len() == 1 {
            return Err(Error::data(format!("all {samples} samples of the list are of class {largest}")).with_hint(
                "there must be two classes to tell apart; train.classes = N trains on such a list all the same",
            ));
        }
        Ok(classes)
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (met, largest) = (self.classes.len() as u64, self.classes.last().copied().unwrap_or(0));
        let samples = HumanCount(self.samples);
        write!(f, "train.classes = {}: {} classes met in {samples} samples", largest + 1, HumanCount(met))?;
        match self.unlabelled {
            0 => Ok(()),
            unlabelled => write!(f, ", {} samples have none and will be lost", HumanCount(unlabelled)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(classes: &[Option<i64>]) -> Found {
        let mut found = Found::default();
        classes.iter().for_each(|class| found.add(*class));
        found
    }

    #[test]
    fn there_is_one_class_more_than_the_largest_number() -> Result<()> {
        let found = found(&[Some(0), Some(7), None, Some(3), Some(-2), Some(7)]);
        assert_eq!(found.classes()?, 8);
        let told = found.to_string();
        assert!(told.contains("= 8: 3 classes met in 6 samples, 2 samples have none"), "{told}");
        Ok(())
    }

    #[test]
    fn lists_without_two_classes_or_with_huge_numbers_are_refused() {
        for (classes, word) in [
            (&[None, None][..], "none of 2 samples"),
            (&[Some(-1)], "none of 1 samples"),
            (&[Some(4), Some(4)], "all 2 samples"),
            (&[Some(0), Some(2_084_071)], "2084071"),
            (&[Some(0), Some(i64::MAX)], "up to 9223372036854775807"),
        ] {
            let error = found(classes).classes().expect_err(word);
            assert!(error.to_string().contains(word) && error.hint().is_some(), "{error}");
        }
    }
}
