//! `shoal shards check`: reads and decodes everything, or only what a ledger says was lost, and accounts for it.

use super::Examiner;
use crate::config::{FetchPlan, Plan, StreamPlan, ViewsPlan};
use crate::decode::Filter;
use crate::error::{Error, Result};
use crate::observe::console::say;
use crate::pipeline::start_runtime;
use crate::shards::audit::{Judge, ShardReport, audit};
use crate::shards::{Ledger, ShardList, Verdict};
use futures_util::StreamExt;
use indicatif::HumanCount;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The arguments of `shoal shards check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal shards check shards/damage.tar
  shoal shards check @yfcc.txt --ledger losses.jsonl --jobs 16 --json
  shoal shards check @yfcc.txt --pipeline yfcc100m-alexnet
  shoal shards check @yfcc.txt --replay runs/yfcc/ledger.jsonl --out still-lost.jsonl

One line a shard on stdout: complete, or truncated at byte N, or failed; samples; losses by reason. With --replay one line
for each loss of that ledger in these shards: recovered, or lost still. Exit code 3 if anything was lost, or is still. With
--pipeline also what its [filter] passes over, but for duplicates and placeholders, which depend on the order of training.")]
pub(in crate::cli) struct Arguments {
    /// Paths, URLs, {000..127}, a::b, globs, folders, pipe:COMMAND, @list.txt
    #[arg(required = true, value_name = "LIST")]
    shards: Vec<String>,
    /// Write every loss here: shard, key, offset, reason
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Try again only what this ledger says was lost
    #[arg(long, value_name = "FILE", conflicts_with = "ledger")]
    replay: Option<PathBuf>,
    /// Write here what is still lost after a replay; a file that is there is kept
    #[arg(long, value_name = "FILE", requires = "replay")]
    out: Option<PathBuf>,
    /// Shards read at once
    #[arg(long, visible_alias = "jobs", default_value_t = 2)]
    lanes: usize,
    /// Largest image decoded, in megapixels
    #[arg(long, default_value_t = 100.0)]
    max_megapixels: f64,
    /// Count what the filters of this pipeline pass over
    #[arg(long, value_name = "PIPELINE")]
    pipeline: Option<PathBuf>,
    /// Results as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Checked {
    shard: String,
    /// `complete`, `truncated` or `failed`.
    verdict: &'static str,
    truncated_at: Option<u64>,
    bytes: u64,
    samples: u64,
    losses: BTreeMap<String, u64>,
    notices: BTreeMap<String, u64>,
    filtered: BTreeMap<String, u64>,
    trouble: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let list = ShardList::parse(&arguments.shards)?;
    let plan = StreamPlan { lanes: arguments.lanes, max_megapixels: arguments.max_megapixels, ..StreamPlan::default() };
    if let Some(path) = &arguments.replay {
        return super::replay::run(path, arguments.out.as_deref(), &list, &plan, arguments.json);
    }
    let ledger = Arc::new(match &arguments.ledger {
        Some(path) => Ledger::open(path, &plan)?,
        None => Ledger::in_memory(&plan),
    });
    let examiner = match &arguments.pipeline {
        Some(pipeline) => {
            let pipeline = Plan::load(pipeline, &[])?;
            Examiner::new(&plan, &pipeline.views, Filter::new(&pipeline.filter))
        }
        None => Examiner::new(&plan, &ViewsPlan::default(), Filter::default()),
    };
    let bar = examiner.progress_bar(list.shards.len() as u64);
    let judge: Arc<Judge> = Arc::new(move |sample| examiner.examine(sample).1.map(|decoded| decoded.notices()));
    let mut all = Vec::new();
    start_runtime()?.block_on(async {
        let mut reports = std::pin::pin!(audit(&list, &plan, &FetchPlan::default(), Arc::clone(&ledger), judge)?);
        while let Some(report) = reports.next().await {
            let checked = Checked::of(report?);
            bar.inc(1);
            if !arguments.json {
                bar.suspend(|| crate::cli::print(&checked.line()))?;
            }
            all.push(checked);
        }
        Ok::<(), Error>(())
    })?;
    bar.finish_and_clear();
    if arguments.json {
        crate::cli::print_json(&all)?;
    }
    let samples: u64 = all.iter().map(|shard| shard.samples).sum();
    let mut losses: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, count) in all.iter().flat_map(|shard| &shard.losses) {
        *losses.entry(reason).or_default() += count;
    }
    let lost: u64 = losses.values().sum();
    ledger.ensure_written()?;
    say(&format!("{} shards, {} samples, {lost} losses", all.len(), HumanCount(samples)));
    let passed_over: u64 = all.iter().flat_map(|shard| shard.filtered.values()).sum();
    if passed_over > 0 {
        say(&format!("{} more samples are passed over by the filters", HumanCount(passed_over)));
    }
    if lost == 0 {
        return Ok(());
    }
    for (reason, count) in &losses {
        say(&format!("{count:>9}  {reason}"));
    }
    let reasons: Vec<_> = losses.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let error = Error::data(format!("lost: {}", reasons.join(", ")));
    Err(match &arguments.ledger {
        Some(path) => error.with_hint(format!("each is a line of {}", path.display())),
        None => error.with_hint("--ledger FILE writes a line for each"),
    })
}

impl Checked {
    fn of(report: ShardReport) -> Self {
        let (verdict, truncated_at) = match report.ending.verdict {
            Verdict::Complete => ("complete", None),
            Verdict::TruncatedAt(byte) => ("truncated", Some(byte)),
            Verdict::Failed(_) => ("failed", None),
        };
        Self {
            shard: report.shard.to_string(),
            verdict,
            truncated_at,
            bytes: report.bytes,
            samples: report.samples,
            losses: report.losses.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
            notices: report.notices.iter().map(|(notice, count)| (notice.name().to_owned(), *count)).collect(),
            filtered: report.filtered.iter().map(|(filtered, count)| (filtered.name().to_owned(), *count)).collect(),
            trouble: report.ending.trouble.map(|trouble| trouble.to_string()),
        }
    }

    fn line(&self) -> String {
        let mut line = match self.truncated_at {
            Some(byte) => format!("{}: truncated at byte {byte}, {} samples", self.shard, self.samples),
            None => format!("{}: {}, {} samples", self.shard, self.verdict, self.samples),
        };
        for (what, counts) in [("lost", &self.losses), ("noticed", &self.notices), ("passed over", &self.filtered)] {
            if !counts.is_empty() {
                let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
                line.push_str(&format!("; {what}: {}", counts.join(", ")));
            }
        }
        if let Some(trouble) = &self.trouble {
            line.push_str(&format!(" [{trouble}]"));
        }
        line
    }
}
