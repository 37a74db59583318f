//! `shoal shards`: what a list holds, whether all of it can be read, and shards from a folder.

mod check;
mod index;
mod replay;

use crate::config::{FetchPlan, StreamPlan, ViewsPlan};
use crate::decode::{Decoded, Decoder, Filter};
use crate::error::{Error, Result};
use crate::ingest::{RawSample, SampleMeta};
use crate::observe::console::say;
use crate::pipeline::start_runtime;
use crate::shards::audit::glance;
use crate::shards::pack::{PackOptions, pack};
use crate::shards::{Rejection, SampleId, ShardList, ShardSample};
use futures_util::StreamExt;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What to do with shards.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// What a list names, and how each shard begins
    List(ListArguments),
    /// Read and decode everything, and account for every shard
    Check(check::Arguments),
    /// Learn what each sample is: offset, bytes, size, format, verdict
    Index(index::Arguments),
    /// Write shards from a folder of images; class folders become labels (.cls)
    Pack(PackArguments),
    /// Whom to name: title, author, page and licence of each photograph used
    Attribution(super::attribution::Arguments),
}

/// The arguments of `shoal shards list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal shards list 'shards/photos-{000000..000007}.tar'
  shoal shards list @yfcc.txt --names
  shoal shards list @yfcc.txt --index runs/yfcc/index
  shoal shards list /data/shards 'https://host/part-{000..127}.tar::more.tar.zst' --json
  shoal shards list s3://bucket/photos/ 'gs://bucket/photos-*.tar' 'pipe:ssh host cat {0..9}.tar'")]
pub(super) struct ListArguments {
    /// Paths, URLs, {000..127}, a::b, globs, folders, pipe:COMMAND, @list.txt
    #[arg(required = true, value_name = "LIST")]
    shards: Vec<String>,
    /// Only names: opens nothing
    #[arg(long)]
    names: bool,
    /// Totals by an index instead: RUN/index, or what `shards index` made. Opens no shard
    #[arg(long, value_name = "DIR", conflicts_with = "names")]
    index: Option<PathBuf>,
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
        Command::Check(arguments) => check::run(arguments),
        Command::Index(arguments) => index::run(arguments),
        Command::Pack(arguments) => write_shards(arguments),
        Command::Attribution(arguments) => super::attribution::run(arguments),
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
    if let Some(folder) = &arguments.index {
        return index::totals(&list, folder, arguments.json);
    }
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

/// Decodes samples and keeps nothing but a count.
struct Examiner {
    decoder: Decoder,
    looks_at_pixels: bool,
    samples: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

impl Examiner {
    fn new(plan: &StreamPlan, views: &ViewsPlan, filter: Filter) -> Self {
        let looks_at_pixels = filter.looks_at_pixels();
        let decoder = Decoder::new(views, plan).with_filter(filter);
        Self { decoder, looks_at_pixels, samples: Arc::default(), bytes: Arc::default() }
    }

    /// What becomes of a sample when it is decoded.
    fn examine(&self, sample: &ShardSample) -> (RawSample, Result<Decoded, Rejection>) {
        self.samples.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(sample.image.len() as u64, Ordering::Relaxed);
        let meta = SampleMeta {
            id: SampleId(0),
            key: sample.key.clone(),
            shard: Arc::from(""),
            offset: sample.offset,
            pass: 0,
            class: sample.class,
        };
        let raw = RawSample::new(meta, sample.image.clone());
        let side = self.decoder.size() as usize;
        let mut center = self.looks_at_pixels.then(|| vec![0; side * side * 3]);
        let outcome = self.decoder.decode_into(&raw, center.as_deref_mut(), None);
        (raw, outcome)
    }

    /// A bar over so many shards, with the speed at which samples go by.
    fn progress_bar(&self, shards: u64) -> ProgressBar {
        let bar = ProgressBar::new(shards);
        let (samples, bytes) = (Arc::clone(&self.samples), Arc::clone(&self.bytes));
        let speed = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let per_second = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / state.elapsed().as_secs_f64();
            let (images, bytes) = (per_second(&samples), per_second(&bytes) as u64);
            let _ = write!(out, "{images:.0} images/s, {}/s", HumanBytes(bytes));
        };
        if let Ok(style) = ProgressStyle::with_template("{bar:20} {pos}/{len} shards · {speed} · {eta} left") {
            bar.set_style(style.with_key("speed", speed));
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        bar
    }
}
