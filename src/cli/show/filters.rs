//! `shoal show filters`: what the first layer looks for.

use super::save;
use crate::cli::network::NetworkArguments;
use crate::cli::print;
use crate::error::Result;
use crate::visualize::filters;
use std::path::PathBuf;

/// The arguments of `shoal show filters`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal show filters --snapshot runs/demo --out filters.png
  shoal show filters --snapshot runs/rgb --snapshot runs/sobel --snapshot random:alexnet --out three.png

Each filter is stretched by itself from black, its smallest weight, to white. Of a network that sees colours a tile is in colours; of
one behind a Sobel filter it is two grey squares, of the gradient along x and along y.")]
pub(in crate::cli) struct Arguments {
    /// The network: a run, a snapshot, a .safetensors file, or random:ARCH[:INPUT[:SIZE]] (repeatable: side by side)
    #[arg(long, required = true, value_name = "S")]
    snapshot: Vec<String>,
    /// The PNG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Least side of a filter in pixels
    #[arg(long, default_value_t = 44, value_parser = clap::value_parser!(u32).range(1..=512))]
    side: u32,
    /// Filters in a row
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    columns: Option<u32>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let mut panels = Vec::with_capacity(arguments.snapshot.len());
    for snapshot in &arguments.snapshot {
        let network = NetworkArguments::of(snapshot).open()?;
        panels.push(filters::panel(&network.backbone().first_filters()?, snapshot, arguments.side)?);
    }
    let count: usize = panels.iter().map(|panel| panel.tiles.len()).sum();
    save(&filters::mosaic(panels).render(arguments.columns)?, &arguments.out)?;
    print(&format!("{count} filters -> {}", arguments.out.display()))
}
