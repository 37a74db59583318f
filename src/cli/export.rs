//! `shoal export`: a network in another format.

use super::network::model_file;
use crate::error::{Error, Result};
use crate::model::state;
use clap::ValueEnum;
use std::path::PathBuf;

/// The arguments of `shoal export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  shoal export runs/demo --to safetensors --out demo.safetensors

Python reads it with safetensors.torch.load_file; names are those of the published DeepCluster checkpoints, and the
header's metadata holds architecture, input, size and views.")]
pub(super) struct Arguments {
    /// The network: a run, a snapshot or a .safetensors file
    snapshot: PathBuf,
    /// The format
    #[arg(long, value_enum)]
    to: Format,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Safetensors,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let source = model_file(&arguments.snapshot)?;
    let (tensors, metadata) = state::read_safetensors(&source)?;
    if arguments.out.canonicalize().ok() == source.canonicalize().ok() {
        return Err(Error::usage(format!("{} is the network itself", arguments.out.display())));
    }
    match arguments.to {
        Format::Safetensors => state::write_safetensors(&arguments.out, &tensors, &metadata)?,
    }
    super::print(&format!("{} tensors of {} -> {}", tensors.len(), source.display(), arguments.out.display()))
}
