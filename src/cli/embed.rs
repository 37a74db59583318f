//! `shoal embed`: the features of every image of a list.

use super::network::FeatureArguments;
use crate::error::{Error, Result};
use crate::evaluate::features::FeatureWriter;
use indicatif::ProgressBar;
use std::path::PathBuf;

/// The arguments of `shoal embed`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal embed --snapshot runs/demo --shards 'shards/photos-{000000..000007}.tar' --out features.arrow
  shoal embed --snapshot random:alexnet --shards @list.txt --layer conv3 --out conv3.arrow

Columns of the Arrow IPC file: key, id (u64), feature (fixed-size list of f32), label (from .cls, or null).")]
pub(super) struct Arguments {
    #[command(flatten)]
    network: FeatureArguments,
    /// Shards: paths, URLs, braces, globs, folders, pipe:COMMAND, @list.txt (repeatable)
    #[arg(long, required = true, value_name = "LIST")]
    shards: Vec<String>,
    /// The Arrow file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let network = arguments.network.open()?;
    let mut writer = None;
    let mut images = 0u64;
    let bar = ProgressBar::new_spinner();
    network.encode(&arguments.shards, |samples, features| {
        images += samples.len() as u64;
        bar.set_message(format!("{images} images"));
        bar.tick();
        let keys: Vec<_> = samples.iter().map(|sample| sample.key.clone()).collect();
        let ids: Vec<_> = samples.iter().map(|sample| sample.id).collect();
        let labels: Vec<_> = samples.iter().map(|sample| sample.class).collect();
        let writer = match &mut writer {
            Some(writer) => writer,
            None => writer.insert(FeatureWriter::create(&arguments.out, features.size()[1] as usize)?),
        };
        writer.push(&keys, &ids, features, &labels)
    })?;
    bar.finish_and_clear();
    let Some(writer) = writer else {
        return Err(Error::data(format!("{} hold no image that decodes", arguments.shards.join(" "))));
    };
    writer.finish()?;
    super::print(&format!("{images} images of {} -> {}", network.origin, arguments.out.display()))
}
