//! `shoal show activations`: the image that each filter answers most, found by climbing.

use super::save;
use super::top::{FilterArguments, LAYER_HELP, best_images, layer_of, row};
use crate::cli::network::{FeatureArguments, Network};
use crate::cli::print;
use crate::cli::progress::Progress;
use crate::error::Result;
use crate::visualize::ascent::{Ascent, pictures};
use crate::visualize::mosaic::{Mosaic, Panel, Tile};
use crate::visualize::sheet::Sheet;
use image::{RgbImage, imageops};
use indicatif::HumanCount;
use std::path::PathBuf;

/// The arguments of `shoal show activations`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("layer", |layer| layer.help(LAYER_HELP)), after_help = "\
Examples:
  shoal show activations --snapshot runs/demo --layer conv3 --out conv3.png
  shoal show activations --snapshot runs/yfcc --layer conv5 --filters 3,17 --steps 3000 --lr 30 --out conv5.png
  shoal show activations --snapshot runs/demo --shards 'shards/photos-*.tar' --out both.png     beside the best photographs

Gradient ascent from noise (Yosinski et al., 2015), with the settings of the authors' program. They advise --lr 3 --steps 30000 for
conv1 and --lr 30 --steps 3000 for conv5. With --shards each row starts with the image that was found, and goes on with the nine
photographs that the filter answers most, as Figure 4. Without --layer it is the last convolution.")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    network: FeatureArguments,
    #[command(flatten)]
    filters: FilterArguments,
    /// Show the photographs of these shards beside, that each filter answers most (repeatable)
    #[arg(long, value_name = "LIST")]
    shards: Vec<String>,
    /// The PNG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Steps of the ascent
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Length of a step
    #[arg(long, default_value_t = Ascent::default().lr)]
    lr: f64,
    /// Penalty on the squared length of the image
    #[arg(long, default_value_t = Ascent::default().weight_decay)]
    weight_decay: f64,
    /// Of the noise that it starts from
    #[arg(long, default_value_t = Ascent::default().seed)]
    seed: i64,
    /// Photographs beside each
    #[arg(long, default_value_t = 9)]
    images: usize,
    /// Side of a picture in pixels; by default that of the network's images, with --shards 128
    #[arg(long, value_parser = clap::value_parser!(u32).range(8..=1024))]
    side: Option<u32>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let network = arguments.network.open()?;
    let layer = layer_of(&network)?;
    let filters = arguments.filters.choose(&network, &layer)?;
    let found = climb(arguments, &network, &layer, &filters)?;
    let title = format!("What filters of {layer} look for");
    let origin = format!("{} · {} steps of gradient ascent", network.origin, arguments.steps);
    if arguments.shards.is_empty() {
        let tiles = filters.iter().zip(found).map(|(filter, picture)| {
            let picture = match arguments.side {
                Some(side) => imageops::resize(&picture, side, side, imageops::FilterType::CatmullRom),
                None => picture,
            };
            Tile { picture, label: format!("filter {filter}") }
        });
        let panels = vec![Panel { title: String::new(), tiles: tiles.collect() }];
        save(&Mosaic { title, subtitle: origin, panels }.render(None)?, &arguments.out)?;
        return print(&format!("{} filters -> {}", filters.len(), arguments.out.display()));
    }
    let side = arguments.side.unwrap_or(128);
    let best = best_images(&network, &layer, &filters, &arguments.shards, arguments.images, side)?;
    let rows = filters.iter().zip(best.filters()).zip(&found);
    let rows = rows.map(|((filter, best), picture)| row(*filter, best, Some(picture))).collect();
    let subtitle = format!("{origin} · then the best of {} images", HumanCount(best.seen()));
    save(&Sheet { title, subtitle, rows }.render(side)?, &arguments.out)?;
    print(&format!("{} filters, {} images -> {}", filters.len(), best.seen(), arguments.out.display()))
}

fn climb(arguments: &Arguments, network: &Network, layer: &str, filters: &[i64]) -> Result<Vec<RgbImage>> {
    let ascent = Ascent {
        steps: arguments.steps as usize,
        lr: arguments.lr,
        weight_decay: arguments.weight_decay,
        seed: arguments.seed,
        ..Ascent::default()
    };
    let normalizer = network.normalizer()?;
    let batches = filters.len().div_ceil(network.batch_size());
    let progress = Progress::new("steps of gradient ascent", arguments.steps as usize * batches);
    let mut found = Vec::with_capacity(filters.len());
    for some in filters.chunks(network.batch_size()) {
        let images = ascent.climb(network.backbone(), &normalizer, layer, some, &mut |_| progress.step())?;
        found.extend(pictures(&images)?);
    }
    Ok(found)
}
