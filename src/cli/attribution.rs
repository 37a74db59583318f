//! `shoal shards attribution`: whom to name for the photographs that a run has used, or that a list holds.

use crate::config::{MetadataKey, Plan};
use crate::error::{Error, Result};
use crate::ingest::SampleMeta;
use crate::observe::console::say;
use crate::pipeline::used;
use crate::shards::metadata::Attribution;
use indicatif::HumanCount;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The arguments of `shoal shards attribution`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal shards attribution runs/yfcc --out credits.tsv
  shoal shards attribution @yfcc.txt --metadata yfcc100m_dataset.tsv.gz --metadata-key id > credits.tsv

Tab-separated: hash, photo id, title, author, page, licence, licence URL. A run folder means what the run was fed up to
its last snapshot: its stream is read again up to there. Exit code 3 if the metadata do not know some of it.")]
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
    let add = |sample: &SampleMeta| attribution.add(&sample.shard, &sample.key);
    match run {
        Some(run) => used::by_run(run, add)?,
        None => used::by_list(&arguments.what, add)?,
    }
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
