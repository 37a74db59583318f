//! `shoal show filters`: what the first layer looks for.

use super::save;
use crate::cli::network::NetworkArguments;
use crate::cli::print;
use crate::error::Result;
use crate::visualize::filters::tiles;
use crate::visualize::mosaic::{Mosaic, Panel, Tile};
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
        let weight = network.backbone().first_filters()?;
        let (count, inputs, kernel, _) = weight.size4()?;
        let seen = if inputs == 2 { "gradients along x | along y" } else { "RGB" };
        let tiles = tiles(&weight, arguments.side)?.into_iter().map(|picture| Tile { picture, label: String::new() });
        panels.push(Panel {
            title: format!("{snapshot} · {count} filters of {kernel} × {kernel} · {seen}"),
            tiles: tiles.collect(),
        });
    }
    let count: usize = panels.iter().map(|panel| panel.tiles.len()).sum();
    let mosaic = Mosaic {
        title: "Filters of the first layer".to_owned(),
        subtitle: "each from its smallest weight, black, to its largest, white".to_owned(),
        panels,
    };
    save(&mosaic.render(arguments.columns)?, &arguments.out)?;
    print(&format!("{count} filters -> {}", arguments.out.display()))
}
