//! `shoal shards attribution`: whom to name for the photographs that a run has used, or that a list holds.

use crate::config::{MetadataKey, Plan};
use crate::error::{Error, Result};
use crate::ingest::SampleMeta;
use crate::observe::console::say;
use crate::pipeline::used::{self, Extent, UsedByRun};
use crate::shards::metadata::Attribution;
use indicatif::{HumanCount, ProgressBar};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The arguments of `shoal shards attribution`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal shards attribution runs/yfcc --out credits.tsv
  shoal shards attribution @yfcc.txt --metadata yfcc100m_dataset.tsv.gz --metadata-key id > credits.tsv

Tab-separated: hash, photo id, title, author, page, licence, licence URL. A run folder means what went into the batches
of the run up to its last snapshot: its stream is read and decoded again up to there, and judged by its filters. A list
means all of it. Exit code 3 if the metadata do not know some of it.")]
pub(super) struct Arguments {
    /// A run folder; or paths, URLs, {000..127}, a::b, globs, folders, @list.txt
    #[arg(required = true, value_name = "RUN|LIST")]
    what: Vec<String>,
    /// YFCC100M's metadata: tab-separated, plain, .gz or .zst [default: the run's]
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// What keys are in the metadata: auto, hash, id or line [default: the run's, or auto]
    #[arg(long, value_name = "KIND", value_parser = |text: &str| MetadataKey::try_from(text.to_owned()))]
    metadata_key: Option<MetadataKey>,
    /// Write here, not to stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let run = match arguments.what.as_slice() {
        [only] if Path::new(only).join("pipeline.toml").is_file() => Some(Path::new(only)),
        _ => None,
    };
    let filter = match run {
        Some(run) => Plan::load(&run.join("pipeline.toml"), &[])?.filter,
        None => Plan::default().filter,
    };
    let metadata = arguments.metadata.clone().unwrap_or_else(|| PathBuf::from(&filter.metadata));
    if metadata.as_os_str().is_empty() {
        return Err(Error::usage("no metadata to look into").with_hint("name the file with --metadata"));
    }
    let mut attribution = Attribution::new(arguments.metadata_key.unwrap_or(filter.metadata_key))?;
    let bar = ProgressBar::new_spinner();
    let mut samples = 0_u64;
    let add = |sample: &SampleMeta| {
        samples += 1;
        bar.set_message(format!("{} photographs", HumanCount(samples)));
        bar.tick();
        attribution.add(&sample.shard, &sample.key)
    };
    match run {
        Some(run) => {
            let used = UsedByRun::open(run)?;
            say(told_of(used.extent()));
            used.each(add)?;
        }
        None => used::by_list(&arguments.what, add)?,
    }
    bar.finish_and_clear();
    let mut out: Box<dyn Write> = match &arguments.out {
        Some(path) => Box::new(BufWriter::new(File::create(path).map_err(|error| Error::file("write", path, &error))?)),
        None => Box::new(BufWriter::new(std::io::stdout().lock())),
    };
    let attributed = attribution.write(&metadata, &mut *out)?;
    say(&format!("{} photographs named", HumanCount(attributed.named)));
    if attributed.unknown + attributed.nameless == 0 {
        return Ok(());
    }
    let (unknown, nameless) = (attributed.unknown, attributed.nameless);
    let name = metadata.display();
    Err(Error::data(format!("{unknown} photographs are not in {name}; {nameless} samples have keys that name none"))
        .with_hint("--metadata-key says whether keys are hashes, photo ids or line numbers"))
}

fn told_of(extent: &Extent) -> &'static str {
    match extent {
        Extent::Nothing => "the run has used nothing yet",
        Extent::UpTo(_) => "reading again what the run has used of its first pass",
        Extent::Pass => "the run is past its first pass: reading that pass again",
        Extent::List => {
            "the order in which the run read cannot be gone over again (arrival, follow, or another list by now): \
             everything of its list that its filters let pass counts as used, duplicates included"
        }
    }
}
