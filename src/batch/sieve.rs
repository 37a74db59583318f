//! What is decided of samples one after the other, in stream order, once they are decoded: duplicates, and whether anything
//! is left at all.
//!
//! In: each sample with what decoding it gave. Out: the same, or that it is passed over. An error where a whole pass over
//! the list left nothing: such a run would go on for ever without a word. (Mixed lists have no pass
//! in common; of them it is not asked.)

use super::seen::{Entry, Met, Remembered, Seen};
use crate::config::{Duplicates, FilterPlan};
use crate::decode::Decoded;
use crate::error::{Error, Result};
use crate::ingest::SampleMeta;
use crate::shards::{FilteredCounts, Rejection};

/// Decides in stream order. The default lets everything pass.
#[derive(Debug, Default)]
pub struct Sieve {
    seen: Option<Seen>,
    /// Whether the stream began at the beginning of a pass.
    from_start: bool,
    /// Whether several lists give the samples, each with passes of its own.
    is_mixed: bool,
    pass: Option<Pass>,
}

/// The pass under way.
#[derive(Debug)]
struct Pass {
    number: u64,
    /// Whether it has been met from its first sample on.
    whole: bool,
    kept: bool,
    filtered: FilteredCounts,
}

impl Sieve {
    /// The rules of a plan, for a stream that goes on with what is `remembered`; `from_start` if it begins a pass.
    pub fn new(plan: &FilterPlan, remembered: &Remembered, from_start: bool) -> Self {
        let compares = plan.duplicates != Duplicates::Off || !plan.placeholders.is_empty();
        Self { seen: compares.then(|| Seen::new(plan, remembered)), from_start, ..Self::default() }
    }

    /// For a stream of several lists, unless there is one only: whether a whole pass left nothing is not asked.
    #[must_use]
    pub fn over_lists(self, lists: usize) -> Self {
        Self { is_mixed: lists > 1, ..self }
    }

    /// Decides on the next sample; whatever is new to the rules on duplicates goes to `added`.
    ///
    /// # Errors
    /// The pass before this sample's left nothing, for what was passed over.
    pub fn judge(
        &mut self,
        sample: &SampleMeta,
        outcome: Result<Decoded, Rejection>,
        added: &mut Vec<Entry>,
    ) -> Result<Result<Decoded, Rejection>> {
        let outcome = outcome.and_then(|decoded| {
            let met = self.seen.as_mut().map_or(Met::Known, |seen| seen.meet(sample.id, &decoded.prints));
            match met {
                Met::Again(filtered) => Err(filtered.into()),
                Met::New(entry) => {
                    added.push(entry);
                    Ok(decoded)
                }
                Met::Known => Ok(decoded),
            }
        });
        if self.is_mixed {
            return Ok(outcome);
        }
        let pass = self.pass_of(sample.pass)?;
        match &outcome {
            Ok(_) => pass.kept = true,
            Err(Rejection::Filtered(filtered)) => *pass.filtered.entry(*filtered).or_default() += 1,
            Err(Rejection::Lost(_)) => {}
        }
        Ok(outcome)
    }

    /// The pass under way, or a new one if the last left something.
    fn pass_of(&mut self, number: u64) -> Result<&mut Pass> {
        let whole = match self.pass.take() {
            Some(pass) if pass.number == number => return Ok(self.pass.insert(pass)),
            Some(pass) => {
                pass.check()?;
                true
            }
            None => self.from_start,
        };
        Ok(self.pass.insert(Pass { number, whole, kept: false, filtered: FilteredCounts::new() }))
    }
}

impl Pass {
    fn check(&self) -> Result<()> {
        if self.kept || !self.whole || self.filtered.is_empty() {
            return Ok(());
        }
        let counts: Vec<_> = self.filtered.iter().map(|(filtered, count)| format!("{count} {filtered}")).collect();
        Err(Error::data(format!(
            "a whole pass over the list left no sample to train on; passed over: {}",
            counts.join(", ")
        ))
        .with_hint("loosen the keys of [filter] that passed over most; `shoal shards check --pipeline FILE` counts"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Format, Prints};
    use crate::shards::{Filtered, Reason, SampleId, Trouble};
    use std::sync::Arc;

    fn sample(pass: u64) -> SampleMeta {
        SampleMeta { id: SampleId(1), key: "a".into(), shard: Arc::from("a.tar"), offset: 0, pass, class: None }
    }

    fn decoded() -> Result<Decoded, Rejection> {
        let (eighths, truncated, rotated, converted) = (None, false, false, false);
        let prints = Prints::default();
        Ok(Decoded { format: Format::Png, size: (9, 9), eighths, truncated, rotated, converted, prints })
    }

    fn too_small() -> Result<Decoded, Rejection> {
        Err(Filtered::TooSmall.into())
    }

    /// How many of these samples (pass, outcome) are judged before the sieve gives up.
    fn judged(from_start: bool, samples: Vec<(u64, Result<Decoded, Rejection>)>) -> usize {
        let mut sieve = Sieve::new(&FilterPlan::default(), &Remembered::default(), from_start);
        let judge = |(pass, outcome)| sieve.judge(&sample(pass), outcome, &mut Vec::new());
        samples.into_iter().map(judge).take_while(Result::is_ok).count()
    }

    #[test]
    fn a_whole_pass_of_nothing_ends_the_stage() {
        let nothing = || vec![(0, too_small()), (0, too_small()), (1, too_small()), (2, too_small())];
        assert_eq!(judged(true, nothing()), 2);
        assert_eq!(judged(false, nothing()), 3, "the first pass may have given something before");
        assert_eq!(judged(true, vec![(0, too_small()), (0, decoded()), (1, too_small()), (2, too_small())]), 3);
        let lost = || Err(Trouble::new(Reason::EmptyImage, "no bytes").into());
        assert_eq!(judged(true, vec![(0, lost()), (1, lost()), (2, lost())]), 3, "the ledger judges losses");

        let mut mixed = Sieve::new(&FilterPlan::default(), &Remembered::default(), true).over_lists(2);
        for pass in [0, 1, 0, 1, 2] {
            mixed.judge(&sample(pass), too_small(), &mut Vec::new()).unwrap().unwrap_err();
        }

        let mut sieve = Sieve::new(&FilterPlan::default(), &Remembered::default(), true).over_lists(1);
        let mut judge = |pass| sieve.judge(&sample(pass), too_small(), &mut Vec::new());
        judge(0).unwrap().unwrap_err();
        let error = judge(1).unwrap_err();
        assert!(
            error.to_string().contains("1 too_small") && error.hint().is_some_and(|hint| hint.contains("[filter]"))
        );
    }
}
