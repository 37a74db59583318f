//! `shoal shards index`, and the totals that `shoal shards list --index` shows.

use super::Examiner;
use crate::config::{FetchPlan, StreamPlan, ViewsPlan};
use crate::decode::Filter;
use crate::error::{Error, Result};
use crate::observe::console::say;
use crate::pipeline::feed::index_row;
use crate::pipeline::start_runtime;
use crate::shards::ShardList;
use crate::shards::index::{Index, Look, RowVerdict, make};
use futures_util::StreamExt;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The arguments of `shoal shards index`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal shards index @yfcc.txt --out yfcc-index --jobs 16
  shoal shards list @yfcc.txt --index yfcc-index

One Arrow file a shard: offset, bytes, width, height, format and verdict of every sample. Shards whose index is there and
of the same version are not read again. A run makes the same by the way, under RUN/index. Exit code 3 if a shard has none.")]
pub(in crate::cli) struct Arguments {
    /// Paths, URLs, {000..127}, a::b, globs, folders, pipe:COMMAND, @list.txt
    #[arg(required = true, value_name = "LIST")]
    shards: Vec<String>,
    /// Folder for the index
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Shards read at once
    #[arg(long, visible_alias = "lanes", default_value_t = 2)]
    jobs: usize,
    /// Largest image decoded, in megapixels
    #[arg(long, default_value_t = 100.0)]
    max_megapixels: f64,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let list = ShardList::parse(&arguments.shards)?;
    let plan = StreamPlan { lanes: arguments.jobs, max_megapixels: arguments.max_megapixels, ..StreamPlan::default() };
    let index = Index::new(&arguments.out);
    let examiner = Examiner::new(&plan, &ViewsPlan::default(), Filter::default());
    let bar = examiner.progress_bar(list.shards.len() as u64);
    let look: Arc<Look> = Arc::new(move |sample| {
        let (raw, outcome) = examiner.examine(sample);
        index_row(&raw, &outcome)
    });
    let (mut indexed, mut there, mut samples, mut failed) = (0_u64, 0_u64, 0, 0_u64);
    start_runtime()?.block_on(async {
        let mut shards = std::pin::pin!(make(&list, &plan, &FetchPlan::default(), &index, look)?);
        while let Some(made) = shards.next().await {
            let made = made?;
            bar.inc(1);
            match made.samples {
                Ok(count) => {
                    samples += count;
                    there += u64::from(made.was_there);
                    indexed += u64::from(!made.was_there);
                }
                Err(trouble) => {
                    failed += 1;
                    bar.suspend(|| crate::cli::print(&format!("{}: {trouble}", made.shard)))?;
                }
            }
        }
        Ok::<(), Error>(())
    })?;
    bar.finish_and_clear();
    say(&format!("{indexed} shards indexed, {there} were there, {} samples", HumanCount(samples)));
    match failed {
        0 => Ok(()),
        _ => Err(Error::data(format!("{failed} shards have no index: they cannot be read to their end"))
            .with_hint("`shoal shards check` says more of them")),
    }
}

/// What an index says of a list.
#[derive(Debug, Default, Serialize)]
struct Totals {
    shards: u64,
    /// Shards of the list that are in the index.
    indexed: u64,
    /// Samples that the shards give, some of which decoding rejects.
    samples: u64,
    /// Of images that can be used: bytes and megapixels on average.
    mean_bytes: f64,
    mean_megapixels: f64,
    /// Images that can be used, by format.
    formats: BTreeMap<String, u64>,
    losses: BTreeMap<&'static str, u64>,
}

/// Shows what the index in `folder` says of the shards of a list.
pub(super) fn totals(list: &ShardList, folder: &Path, json: bool) -> Result<()> {
    if !folder.is_dir() {
        return Err(Error::usage(format!("{} is no folder", folder.display()))
            .with_hint("`shoal shards index LIST --out DIR` makes an index"));
    }
    let index = Index::new(folder);
    let mut totals = Totals { shards: list.shards.len() as u64, ..Totals::default() };
    let (mut usable, mut bytes, mut pixels) = (0_u64, 0_u64, 0_u64);
    for url in &list.shards {
        let Some(shard) = index.shard(url.name())? else {
            continue;
        };
        totals.indexed += 1;
        totals.samples += shard.samples;
        for (reason, count) in shard.losses() {
            *totals.losses.entry(reason.name()).or_default() += count;
        }
        for row in shard.rows.iter().filter(|row| row.verdict == RowVerdict::Usable) {
            usable += 1;
            bytes += u64::from(row.bytes);
            pixels += u64::from(row.width) * u64::from(row.height);
            *totals.formats.entry(row.format.to_string()).or_default() += 1;
        }
    }
    totals.mean_bytes = bytes as f64 / usable.max(1) as f64;
    totals.mean_megapixels = pixels as f64 / 1e6 / usable.max(1) as f64;
    if json {
        return crate::cli::print_json(&totals);
    }
    crate::cli::print(&totals.to_text())
}

impl Totals {
    fn to_text(&self) -> String {
        let Self { shards, indexed, .. } = self;
        let mut text = format!("{indexed} of {shards} shards are indexed\n{} samples", HumanCount(self.samples));
        let mean = HumanBytes(self.mean_bytes as u64);
        let _ = write!(text, "\na usable image has {mean} and {:.3} megapixels on average", self.mean_megapixels);
        for (what, count) in &self.formats {
            let _ = write!(text, "\n{count:>9}  {what}");
        }
        for (what, count) in &self.losses {
            let _ = write!(text, "\n{count:>9}  lost: {what}");
        }
        text
    }
}
