//! `shoal shards check --replay`: tries again what a ledger says was lost.

use super::Examiner;
use crate::config::{FetchPlan, StreamPlan, ViewsPlan};
use crate::decode::Filter;
use crate::error::{Error, Result};
use crate::observe::console::say;
use crate::pipeline::start_runtime;
use crate::shards::audit::Judge;
use crate::shards::ledger::{self, Entry};
use crate::shards::replay::{Outcome, Retried, by_shard, replay};
use crate::shards::{Ledger, Loss, ShardList};
use futures_util::StreamExt;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// One loss and what came of it, as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    shard: String,
    key: Option<String>,
    offset: u64,
    reason: &'static str,
    /// `recovered`, `still_lost`, `other_reason`, `newly_lost` or `not_in_list`.
    outcome: &'static str,
    /// Samples that are there again.
    samples: u64,
    /// Why it is lost still.
    trouble: Option<String>,
}

pub(super) fn run(path: &Path, out: Option<&Path>, list: &ShardList, plan: &StreamPlan, json: bool) -> Result<()> {
    if let Some(out) = out.filter(|out| out.exists()) {
        return Err(
            Error::usage(format!("{} is there already", out.display())).with_hint("name another file for --out")
        );
    }
    let losses = ledger::read(path)?.into_iter().filter_map(|entry| match entry {
        Entry::Loss(loss) => Some(loss),
        Entry::Shard(_) | Entry::Sum(_) => None,
    });
    let losses = by_shard(losses);
    let names: HashSet<&str> = list.shards.iter().map(|url| &**url.name()).collect();
    let (listed, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        losses.into_iter().partition(|(shard, _)| names.contains(shard.as_str()));

    let mut shown = Vec::new();
    let mut remaining = Vec::new();
    let examiner = Examiner::new(plan, &ViewsPlan::default(), Filter::default());
    let bar = examiner.progress_bar(listed.len() as u64);
    let judge: Arc<Judge> = Arc::new(move |sample| examiner.examine(sample).1.map(|decoded| decoded.notices()));
    start_runtime()?.block_on(async {
        let mut shards = std::pin::pin!(replay(list, listed, plan, &FetchPlan::default(), judge)?);
        while let Some(retried) = shards.next().await {
            bar.inc(1);
            for retried in retried? {
                remaining.extend(retried.remains());
                show(Shown::of(&retried), &bar, json, &mut shown)?;
            }
        }
        Ok::<(), Error>(())
    })?;
    for loss in others.into_values().flatten() {
        show(Shown::not_in_list(&loss), &bar, json, &mut shown)?;
        remaining.push(loss);
    }
    bar.finish_and_clear();
    if json {
        crate::cli::print_json(&shown)?;
    }
    if let Some(out) = out {
        let ledger = Ledger::open(out, plan)?;
        for loss in remaining.iter().cloned() {
            ledger.lose(loss);
        }
        ledger.ensure_written()?;
    }
    conclude(&shown, remaining.len())
}

fn show(line: Shown, bar: &indicatif::ProgressBar, json: bool, shown: &mut Vec<Shown>) -> Result<()> {
    if !json {
        bar.suspend(|| crate::cli::print(&line.line()))?;
    }
    shown.push(line);
    Ok(())
}

/// Counts by outcome; an error where anything is lost still.
fn conclude(shown: &[Shown], remaining: usize) -> Result<()> {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in shown {
        *counts.entry((line.reason, line.outcome)).or_default() += 1;
    }
    for ((reason, outcome), count) in counts {
        say(&format!("{count:>9}  {reason}: {}", outcome.replace('_', " ")));
    }
    let recovered = shown.len() - remaining;
    say(&format!("{recovered} of {} losses recovered", shown.len()));
    match remaining {
        0 => Ok(()),
        _ => Err(Error::data(format!("{remaining} are lost still")).with_hint(
            "--out FILE writes them as a ledger; shards that are not in the list given here were not tried",
        )),
    }
}

impl Shown {
    fn of(retried: &Retried) -> Self {
        let (outcome, samples, trouble) = match &retried.outcome {
            Outcome::Recovered(samples) => ("recovered", *samples, None),
            Outcome::StillLost(trouble) => ("still_lost", 0, Some(trouble)),
            Outcome::OtherReason(trouble) => ("other_reason", 0, Some(trouble)),
            Outcome::NewlyLost(trouble) => ("newly_lost", 0, Some(trouble)),
        };
        let trouble = trouble.map(ToString::to_string);
        Self { outcome, samples, trouble, ..Self::not_in_list(&retried.loss) }
    }

    fn not_in_list(loss: &Loss) -> Self {
        Self {
            shard: loss.shard.clone(),
            key: loss.key.clone(),
            offset: loss.offset,
            reason: loss.reason.name(),
            outcome: "not_in_list",
            samples: 0,
            trouble: None,
        }
    }

    fn line(&self) -> String {
        let Self { shard, offset, reason, .. } = self;
        let key = self.key.as_deref().map_or_else(String::new, |key| format!(" ({key})"));
        let outcome = self.outcome.replace('_', " ");
        let more = match &self.trouble {
            Some(trouble) => format!(": {trouble}"),
            None if self.samples > 1 => format!(", {} samples", self.samples),
            None => String::new(),
        };
        format!("{shard} at byte {offset}{key}, {reason}: {outcome}{more}")
    }
}
