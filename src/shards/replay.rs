//! Tries again what a ledger says was lost, and nothing else.
//!
//! In: the losses of a ledger, and the shards they befell. Out: one [`Retried`] a loss, shard by shard: recovered, still lost for the
//! same reason, or lost for another. A sample is gone to directly. A shard that failed as a whole, or from some byte on, is read
//! again from its beginning or from the sample at which the damage began; what else is found damaged on that way is reported as a
//! loss of its own. Compressed shards are read through, since nothing can be gone to in them.
//!
//! Passes are not told apart: what was lost in five of them is tried once.

use super::archive::{Archive, Verdict};
use super::audit::{Job, Judge, in_list_order};
use super::ledger::Loss;
use super::list::ShardList;
use super::reading::Reading;
use super::reason::{Reason, Rejection, Trouble};
use super::sample::{Samples, ShardSample, Step};
use super::source::Fetcher;
use super::url::ShardUrl;
use crate::config::{FetchPlan, StreamPlan};
use crate::error::Result;
use futures_util::Stream;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// What came of another try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there: so many samples, where it is known.
    Recovered(u64),
    /// Lost for the same reason.
    StillLost(Trouble),
    /// Lost for another reason.
    OtherReason(Trouble),
    /// Not in the ledger, and lost on the way through a shard that had failed before.
    NewlyLost(Trouble),
}

/// One loss, tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retried {
    /// As it stands in the ledger; one that is new has the pass 0.
    pub loss: Loss,
    /// What came of it.
    pub outcome: Outcome,
}

impl Retried {
    /// What is lost still.
    pub fn remains(&self) -> Option<Loss> {
        let trouble = match &self.outcome {
            Outcome::Recovered(_) => return None,
            Outcome::StillLost(trouble) | Outcome::OtherReason(trouble) | Outcome::NewlyLost(trouble) => trouble,
        };
        Some(Loss { reason: trouble.reason, detail: trouble.detail.clone(), ..self.loss.clone() })
    }
}

/// Losses by shard, each once.
pub fn by_shard(losses: impl IntoIterator<Item = Loss>) -> BTreeMap<String, Vec<Loss>> {
    let mut known = HashSet::new();
    let mut shards: BTreeMap<String, Vec<Loss>> = BTreeMap::new();
    for loss in losses {
        if known.insert((loss.shard.clone(), loss.offset, loss.key.clone(), loss.reason)) {
            shards.entry(loss.shard.clone()).or_default().push(loss);
        }
    }
    for losses in shards.values_mut() {
        losses.sort_by_key(|loss| loss.offset);
    }
    shards
}

/// Tries the losses of the shards in `list` again, `plan.lanes` shards at once; those of other shards are left out.
///
/// # Errors
/// Outside of a tokio runtime; in the stream, where a reader panicked.
pub fn replay(
    list: &ShardList,
    mut losses: BTreeMap<String, Vec<Loss>>,
    plan: &StreamPlan,
    fetch: &FetchPlan,
    judge: Arc<Judge>,
) -> Result<impl Stream<Item = Result<Vec<Retried>>> + Send + use<>> {
    let mut concerned = list.clone();
    concerned.shards.retain(|url| losses.contains_key(&**url.name()));
    losses.retain(|shard, _| concerned.shards.iter().any(|url| **url.name() == **shard));
    let most = plan.max_member_mib as u64 * 1024 * 1024;
    let job: Arc<Job<Vec<Retried>>> = Arc::new(move |url, fetcher, reading| {
        let losses = losses.get(&**url.name()).cloned().unwrap_or_default();
        retry_shard(url, fetcher, reading, most, losses, &*judge)
    });
    in_list_order(&concerned, plan, fetch, job)
}

/// Losses of one shard that wait for what becomes of them.
struct Retry<'a> {
    shard: String,
    judge: &'a Judge,
    targets: Vec<Target>,
    newly: Vec<Retried>,
}

struct Target {
    loss: Loss,
    outcome: Option<Outcome>,
}

/// How far a loss reaches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// One sample.
    Sample,
    /// Bytes within the shard.
    Damage,
    /// The shard from here on.
    Rest,
}

/// How far to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// Until what lies at this byte is settled.
    Until(u64),
    /// To the end of the shard, with every sample from this byte on.
    RestFrom(u64),
}

impl Goal {
    fn is_reached(self, offset: u64) -> bool {
        matches!(self, Self::Until(until) if offset >= until)
    }
}

impl Target {
    fn reach(&self) -> Reach {
        match (&self.loss.key, self.loss.reason) {
            (Some(_), _) | (None, Reason::ShardChanged) => Reach::Sample,
            (None, Reason::GarbledHeader) => Reach::Damage,
            (None, _) => Reach::Rest,
        }
    }

    fn is_part_of(&self, sample: &ShardSample) -> bool {
        let is_within = sample.offset < self.loss.offset && self.loss.offset < sample.end;
        is_within && self.loss.key.as_ref() == Some(&sample.key)
    }

    fn settle(&mut self, trouble: Trouble) {
        self.outcome = Some(match trouble.reason == self.loss.reason {
            true => Outcome::StillLost(trouble),
            false => Outcome::OtherReason(trouble),
        });
    }
}

fn retry_shard(
    url: &ShardUrl,
    fetcher: &Arc<Fetcher>,
    reading: &Arc<Reading>,
    most: u64,
    losses: Vec<Loss>,
    judge: &Judge,
) -> Vec<Retried> {
    let targets = losses.into_iter().map(|loss| Target { loss, outcome: None }).collect();
    let mut retry = Retry { shard: url.name().to_string(), judge, targets, newly: Vec::new() };
    match Archive::open(url, fetcher, reading) {
        Ok(archive) => retry.run(Samples::new(archive, most).with_class(url.class())),
        Err(trouble) => retry.settle_rest(&trouble),
    }
    retry.into_results()
}

impl Retry<'_> {
    fn run(&mut self, mut samples: Samples) {
        let rest_from = self.rest_from();
        for number in 0..self.targets.len() {
            let target = &self.targets[number];
            let offset = target.loss.offset;
            if target.outcome.is_some() || target.reach() == Reach::Rest || offset >= rest_from.unwrap_or(u64::MAX) {
                continue;
            }
            let may_jump = samples.archive().can_jump() && !self.belongs_to_damage_before(number);
            if may_jump && let Err(trouble) = samples.go_to(offset) {
                self.settle_rest(&trouble);
                return;
            }
            if !self.walk(&mut samples, Goal::Until(offset)) {
                break;
            }
        }
        let Some(from) = rest_from else {
            return;
        };
        if samples.archive().can_jump()
            && let Err(trouble) = samples.go_to(from)
        {
            self.settle_rest(&trouble);
            return;
        }
        self.walk(&mut samples, Goal::RestFrom(from));
    }

    /// Whether a loss can only be judged on the way from the one before it: garbled headers cost the sample before them, and the
    /// rest of the sample they lie in looks like a sample of its own.
    fn belongs_to_damage_before(&self, number: usize) -> bool {
        let Some(before) = number.checked_sub(1).map(|before| &self.targets[before]) else {
            return false;
        };
        let reach = self.targets[number].reach();
        before.reach() == Reach::Damage || (reach == Reach::Damage && before.loss.reason == Reason::GarbledHeader)
    }

    /// The byte from which on the shard is to be read again, if it was lost from some byte on: where the sample begins in which the
    /// damage lies.
    fn rest_from(&self) -> Option<u64> {
        let rest: Vec<&Target> = self.targets.iter().filter(|target| target.reach() == Reach::Rest).collect();
        let from = rest.iter().map(|target| {
            let loss = &target.loss;
            match loss.reason {
                Reason::Quarantined => loss.offset,
                Reason::TruncatedShard | Reason::ConnectionLost | Reason::CorruptCompression => {
                    let of_same = self.targets.iter().rev().find(|other| {
                        other.loss.key.is_some() && other.loss.reason == loss.reason && other.loss.offset <= loss.offset
                    });
                    of_same.map_or(0, |other| other.loss.offset)
                }
                _ => 0,
            }
        });
        from.min()
    }

    /// Reads on; false at the end of the shard.
    fn walk(&mut self, samples: &mut Samples, goal: Goal) -> bool {
        let mut count = 0;
        loop {
            match samples.step() {
                Step::Sample(sample) => {
                    let offset = sample.offset;
                    self.pass(offset);
                    let is_of_rest = matches!(goal, Goal::RestFrom(from) if offset >= from);
                    if is_of_rest || self.is_wanted(&sample) {
                        let result = self.examine(&sample);
                        count += u64::from(is_of_rest && result.is_ok());
                        self.settle_parts(&sample, &result);
                        self.settle_at(offset, Some(sample.key), result);
                    }
                    if goal.is_reached(offset) {
                        return true;
                    }
                }
                Step::Lost(lost) => {
                    let offset = lost.offset;
                    self.pass(offset);
                    self.settle_at(offset, lost.key, Err(lost.trouble));
                    if goal.is_reached(offset) {
                        return true;
                    }
                }
                Step::End(ending) => {
                    self.pass(samples.archive().position());
                    match (ending.trouble, goal) {
                        (None, Goal::RestFrom(_)) => self.recover_rest(count),
                        (None, Goal::Until(_)) => self.pass(u64::MAX),
                        (Some(trouble), _) => {
                            if let (Goal::RestFrom(_), Verdict::TruncatedAt(at)) = (goal, ending.verdict) {
                                self.note_new_cut(at, &trouble);
                            }
                            self.settle_rest(&trouble);
                        }
                    }
                    return false;
                }
            }
        }
    }

    /// Whether a sample can be used. One that a filter does not want can; one that was lost for want of a class needs one.
    fn examine(&self, sample: &ShardSample) -> Result<(), Trouble> {
        let lacked_class =
            |target: &Target| target.loss.offset == sample.offset && target.loss.reason == Reason::Unlabelled;
        match (self.judge)(sample) {
            Ok(_) if sample.class.is_none() && self.targets.iter().any(lacked_class) => {
                Err(Trouble::new(Reason::Unlabelled, "no class"))
            }
            Ok(_) | Err(Rejection::Filtered(_)) => Ok(()),
            Err(Rejection::Lost(trouble)) => Err(trouble),
        }
    }

    fn is_wanted(&self, sample: &ShardSample) -> bool {
        let is_meant = |target: &Target| target.loss.offset == sample.offset || target.is_part_of(sample);
        self.targets.iter().any(|target| target.outcome.is_none() && is_meant(target))
    }

    /// A part of a sample that was taken for a sample of its own is what the whole sample is.
    fn settle_parts(&mut self, sample: &ShardSample, result: &Result<(), Trouble>) {
        let parts = self.targets.iter_mut().filter(|target| target.outcome.is_none() && target.is_part_of(sample));
        for target in parts {
            match result {
                Ok(()) => target.outcome = Some(Outcome::Recovered(0)),
                Err(trouble) => target.settle(trouble.clone()),
            }
        }
    }

    /// The reading has come past everything before `offset`: damage that did not show is mended; a sample that did not is gone.
    fn pass(&mut self, offset: u64) {
        for target in &mut self.targets {
            if target.outcome.is_some() || target.loss.offset >= offset {
                continue;
            }
            match target.reach() {
                Reach::Damage => target.outcome = Some(Outcome::Recovered(0)),
                Reach::Sample => {
                    target.settle(Trouble::new(Reason::ShardChanged, "no sample begins where one did before"));
                }
                Reach::Rest => {}
            }
        }
    }

    /// Something was met at `offset`: a sample, or what is lost there.
    fn settle_at(&mut self, offset: u64, key: Option<String>, result: Result<(), Trouble>) {
        let mut is_known = false;
        for target in self.targets.iter_mut().filter(|target| target.loss.offset == offset) {
            // an empty shard and bytes behind its end are told at a byte, too
            let is_meant = match &result {
                Ok(()) => target.reach() != Reach::Rest,
                Err(trouble) => target.reach() != Reach::Rest || target.loss.reason == trouble.reason,
            };
            is_known |= is_meant;
            if !is_meant || target.outcome.is_some() {
                continue;
            }
            match &result {
                Ok(()) => target.outcome = Some(Outcome::Recovered(1)),
                Err(trouble) => target.settle(trouble.clone()),
            }
        }
        if let (Err(trouble), false) = (&result, is_known) {
            self.add_new(offset, key, trouble);
        }
    }

    fn note_new_cut(&mut self, at: u64, trouble: &Trouble) {
        let is_known = self.targets.iter().any(|target| target.reach() == Reach::Rest && target.outcome.is_none());
        if !is_known {
            self.add_new(at, None, trouble);
        }
    }

    fn add_new(&mut self, offset: u64, key: Option<String>, trouble: &Trouble) {
        let Trouble { reason, detail } = trouble.clone();
        let loss = Loss { pass: 0, shard: self.shard.clone(), key, offset, reason, detail, encoding: None };
        self.newly.push(Retried { loss, outcome: Outcome::NewlyLost(trouble.clone()) });
    }

    /// The shard was read to its proper end.
    fn recover_rest(&mut self, samples: u64) {
        for target in self.targets.iter_mut().filter(|target| target.outcome.is_none()) {
            let is_rest = target.reach() == Reach::Rest && target.loss.reason != Reason::TrailingData;
            target.outcome = Some(Outcome::Recovered(if is_rest { samples } else { 0 }));
        }
    }

    fn settle_rest(&mut self, trouble: &Trouble) {
        for target in self.targets.iter_mut().filter(|target| target.outcome.is_none()) {
            target.settle(trouble.clone());
        }
    }

    fn into_results(self) -> Vec<Retried> {
        let settled = self.targets.into_iter().filter_map(|Target { loss, outcome }| {
            let outcome = outcome?;
            Some(Retried { loss, outcome })
        });
        settled.chain(self.newly).collect()
    }
}
