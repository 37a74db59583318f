//! `shoal shards`: what a list holds, whether all of it can be read, and shards from a folder.

use super::doctor::ShardHead;
use crate::config::{FetchPlan, Plan, StreamPlan, ViewsPlan};
use crate::decode::{Decoder, Filter};
use crate::error::{Error, Result};
use crate::ingest::{Cursor, RawSample, SampleMeta};
use crate::observe::console::say;
use crate::pipeline::start_runtime;
use crate::shards::audit::{Judge, ShardReport, audit, glance};
use crate::shards::pack::{PackOptions, pack};
use crate::shards::source::{Fetcher, Source};
use crate::shards::{Ledger, Reading, SampleId, ShardList, ShardUrl, Verdict};
use futures_util::StreamExt;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

/// What to do with shards.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// What a list names, and how each shard begins
    List(ListArguments),
    /// Read and decode everything, and account for every shard
    Check(CheckArguments),
    /// Write shards from a folder of images; class folders become labels (.cls)
    Pack(PackArguments),
}

/// The arguments of `shoal shards list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal shards list 'shards/photos-{000000..000007}.tar'
  shoal shards list @yfcc.txt --names
  shoal shards list /data/shards 'https://host/part-{000..127}.tar::more.tar.zst' --json")]
pub(super) struct ListArguments {
    /// Paths, URLs, {000..127}, a::b, globs, folders, @list.txt
    #[arg(required = true, value_name = "LIST")]
    shards: Vec<String>,
    /// Only names: opens nothing
    #[arg(long)]
    names: bool,
    /// Results as JSON
    #[arg(long)]
    json: bool,
}

/// The arguments of `shoal shards check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal shards check shards/damage.tar
  shoal shards check @yfcc.txt --ledger losses.jsonl --lanes 16 --json
  shoal shards check @yfcc.txt --pipeline yfcc100m-alexnet

One line a shard on stdout: complete, or truncated at byte N, or failed; samples; losses by reason. Exit code 3 if
anything was lost. With --pipeline also what its [filter] passes over, but for duplicates and placeholders, which depend
on the order of training.")]
pub(super) struct CheckArguments {
    /// Paths, URLs, {000..127}, a::b, globs, folders, @list.txt
    #[arg(required = true, value_name = "LIST")]
    shards: Vec<String>,
    /// Write every loss here: shard, key, offset, reason
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Shards read at once
    #[arg(long, default_value_t = 2)]
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

/// The arguments of `shoal shards pack`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal shards pack photos/ --out shards/mine.tar
  shoal shards pack imagenet/train --out train.tar.zst --max-samples 5000 --shuffle 1

The same folder gives the same bytes. Class folders are numbered by name; NAME-classes.txt beside the shards lists them.")]
pub(super) struct PackArguments {
    /// Folder of images
    folder: PathBuf,
    /// DIR/NAME.tar or .tar.zst: shards are NAME-000000.tar and so on
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Samples in a shard, at most
    #[arg(long, default_value_t = PackOptions::default().max_samples)]
    max_samples: usize,
    /// MiB in a shard, at most
    #[arg(long, default_value_t = PackOptions::default().max_bytes >> 20)]
    max_mib: u64,
    /// Mix the samples in an order fixed by this seed
    #[arg(long, value_name = "SEED")]
    shuffle: Option<u64>,
}

pub(super) fn run(command: &Command) -> Result<()> {
    match command {
        Command::List(arguments) => list(arguments),
        Command::Check(arguments) => check(arguments),
        Command::Pack(arguments) => write_shards(arguments),
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    shard: String,
    wrapping: Option<String>,
    stored_bytes: Option<u64>,
    first_key: Option<String>,
    trouble: Option<String>,
}

fn list(arguments: &ListArguments) -> Result<()> {
    let list = ShardList::parse(&arguments.shards)?;
    let mut listed = Vec::new();
    if arguments.names {
        listed.extend(list.shards.iter().map(|url| Listed {
            shard: url.to_string(),
            wrapping: None,
            stored_bytes: None,
            first_key: None,
            trouble: None,
        }));
    } else {
        start_runtime()?.block_on(async {
            let mut glances = std::pin::pin!(glance(&list, &StreamPlan::default(), &FetchPlan::default())?);
            while let Some(glance) = glances.next().await {
                let glance = glance?;
                let beginning = glance.beginning.as_ref().ok();
                listed.push(Listed {
                    shard: glance.shard.to_string(),
                    wrapping: beginning.map(|beginning| beginning.wrapping.name().to_owned()),
                    stored_bytes: beginning.and_then(|beginning| beginning.stored_bytes),
                    first_key: beginning.and_then(|beginning| beginning.first_key.clone()),
                    trouble: glance.beginning.as_ref().err().map(ToString::to_string),
                });
            }
            Ok::<(), Error>(())
        })?;
    }
    if list.duplicates > 0 {
        say(&format!("{} duplicates left out", list.duplicates));
    }
    if arguments.json {
        return super::print_json(&listed);
    }
    for shard in &listed {
        super::print(&shard.line())?;
    }
    let bytes: u64 = listed.iter().filter_map(|shard| shard.stored_bytes).sum();
    say(&format!("{} shards, {}", HumanCount(listed.len() as u64), HumanBytes(bytes)));
    Ok(())
}

impl Listed {
    fn line(&self) -> String {
        if let Some(trouble) = &self.trouble {
            return format!("{}  {trouble}", self.shard);
        }
        let Some(wrapping) = &self.wrapping else { return self.shard.clone() };
        let size = self.stored_bytes.map_or_else(|| "size unknown".to_owned(), |bytes| HumanBytes(bytes).to_string());
        let first = self.first_key.as_deref().unwrap_or("no sample");
        format!("{}  {wrapping}, {size}, first key {first}", self.shard)
    }
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

fn check(arguments: &CheckArguments) -> Result<()> {
    let list = ShardList::parse(&arguments.shards)?;
    let plan = StreamPlan { lanes: arguments.lanes, max_megapixels: arguments.max_megapixels, ..StreamPlan::default() };
    let ledger = Arc::new(match &arguments.ledger {
        Some(path) => Ledger::open(path, &plan)?,
        None => Ledger::in_memory(&plan),
    });
    let judge = match &arguments.pipeline {
        Some(pipeline) => {
            let pipeline = Plan::load(pipeline, &[])?;
            judge(&plan, &pipeline.views, Filter::new(&pipeline.filter))
        }
        None => judge(&plan, &ViewsPlan::default(), Filter::default()),
    };
    let bar = progress_bar(list.shards.len() as u64);
    let mut all = Vec::new();
    start_runtime()?.block_on(async {
        let mut reports = std::pin::pin!(audit(&list, &plan, &FetchPlan::default(), Arc::clone(&ledger), judge)?);
        while let Some(report) = reports.next().await {
            let checked = Checked::of(report?);
            bar.inc(1);
            if !arguments.json {
                bar.suspend(|| super::print(&checked.line()))?;
            }
            all.push(checked);
        }
        Ok::<(), Error>(())
    })?;
    bar.finish_and_clear();
    if arguments.json {
        super::print_json(&all)?;
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
    let reasons: Vec<_> = losses.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let error = Error::data(format!("lost: {}", reasons.join(", ")));
    Err(match &arguments.ledger {
        Some(path) => error.with_hint(format!("each is a line of {}", path.display())),
        None => error.with_hint("--ledger FILE writes a line for each"),
    })
}

/// Decodes every image, and keeps nothing.
fn judge(plan: &StreamPlan, views: &ViewsPlan, filter: Filter) -> Arc<Judge> {
    let looks_at_pixels = filter.looks_at_pixels();
    let decoder = Decoder::new(views, plan).with_filter(filter);
    Arc::new(move |sample| {
        let meta = SampleMeta {
            id: SampleId(0),
            key: sample.key.clone(),
            shard: Arc::from(""),
            offset: sample.offset,
            pass: 0,
            class: sample.class,
        };
        let raw = RawSample { meta, image: sample.image.clone(), cursor: Cursor::default() };
        let side = decoder.size() as usize;
        let mut center = looks_at_pixels.then(|| vec![0; side * side * 3]);
        decoder.decode_into(&raw, center.as_deref_mut(), None).map(|decoded| decoded.notices())
    })
}

fn progress_bar(shards: u64) -> ProgressBar {
    let bar = ProgressBar::new(shards);
    if let Ok(style) = ProgressStyle::with_template("{bar:20} {pos}/{len} shards · {eta} left") {
        bar.set_style(style);
    }
    bar
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

fn write_shards(arguments: &PackArguments) -> Result<()> {
    let options = PackOptions {
        max_samples: arguments.max_samples,
        max_bytes: arguments.max_mib << 20,
        shuffle: arguments.shuffle,
    };
    let summary = pack(&arguments.folder, &arguments.out, &options)?;
    for path in &summary.skipped {
        say(&format!("skipped: {} is no image", path.display()));
    }
    for shard in &summary.shards {
        super::print(&shard.display().to_string())?;
    }
    say(&format!(
        "{} images ({}) in {} shards, {} classes, {} files skipped",
        HumanCount(summary.samples as u64),
        HumanBytes(summary.bytes),
        summary.shards.len(),
        summary.classes.len(),
        summary.skipped.len()
    ));
    Ok(())
}

/// Shards that the doctor looks at.
const HEADS: usize = 3;

/// The first bytes of the first shards of a pipeline.
pub(super) fn heads(plan: &Plan) -> Vec<ShardHead> {
    let list = match ShardList::parse(&plan.stream.shards) {
        Ok(list) => list,
        Err(error) => return vec![ShardHead { shard: "stream.shards".into(), head: Err(error) }],
    };
    let first = list.shards.iter().take(HEADS);
    first.map(|url| ShardHead { shard: url.to_string(), head: head(url, &plan.fetch) }).collect()
}

fn head(url: &ShardUrl, plan: &FetchPlan) -> Result<Vec<u8>> {
    let runtime = start_runtime()?;
    let _context = runtime.enter();
    let fetcher = Fetcher::new(std::slice::from_ref(url), plan)?;
    let reading = Reading::new(Arc::clone(url.name()));
    let source = Source::open(url, &fetcher, &reading).map_err(|trouble| Error::data(format!("{url}: {trouble}")))?;
    let mut bytes = Vec::new();
    source.take(512).read_to_end(&mut bytes).map_err(|error| Error::data(format!("{url}: {error}")))?;
    Ok(bytes)
}
