//! `shoal show top`: the images of a list that filters answer most.

use super::save;
use crate::cli::network::{FeatureArguments, Network};
use crate::cli::print;
use crate::error::{Error, Result};
use crate::visualize::ascent::{check_filters, picture, spatial_means};
use crate::visualize::best::{Best, Found};
use crate::visualize::sheet::{Sheet, SheetRow};
use image::RgbImage;
use image::imageops::{self, FilterType};
use indicatif::HumanCount;
use std::ops::ControlFlow;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// What `--layer` means where filters are shown.
pub(super) const LAYER_HELP: &str =
    "Layer whose filters are shown (after batch norm and ReLU); by default the last convolution";

/// Which filters.
#[derive(Debug, clap::Args)]
pub(super) struct FilterArguments {
    /// Filters of the layer, by number (N,N,...)
    #[arg(long, value_name = "N", value_delimiter = ',')]
    filters: Vec<i64>,
    /// Without --filters: so many, evenly spread over the layer
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..))]
    rows: u16,
}

/// The arguments of `shoal show top`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("layer", |layer| layer.help(LAYER_HELP)), after_help = "\
Examples:
  shoal show top --snapshot runs/demo --shards 'shards/photos-*.tar' --out top.png
  shoal show top --snapshot runs/yfcc --layer conv5 --filters 3,17,40 --shards @list.txt --out top.png

An image counts by the mean of the filter's activation, after ReLU, over its center crop. The list is read once, whatever its length; without
--layer it is the last convolution.")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    network: FeatureArguments,
    #[command(flatten)]
    filters: FilterArguments,
    /// Shards to look through (repeatable)
    #[arg(long, required = true, value_name = "LIST")]
    shards: Vec<String>,
    /// The PNG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Images of each filter
    #[arg(long, default_value_t = 9)]
    images: usize,
    /// Side of an image in pixels
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(8..=1024))]
    side: u32,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let network = arguments.network.open()?;
    let layer = layer_of(&network)?;
    let filters = arguments.filters.choose(&network, &layer)?;
    let best = best_images(&network, &layer, &filters, &arguments.shards, arguments.images, arguments.side)?;
    let rows = filters.iter().zip(best.filters()).map(|(filter, found)| row(*filter, found, None)).collect();
    let sheet = Sheet {
        title: format!("What filters of {layer} answer most"),
        subtitle: format!("{} · the best of {} images, the best first", network.origin, HumanCount(best.seen())),
        rows,
    };
    save(&sheet.render(arguments.side)?, &arguments.out)?;
    print(&format!("{} filters, {} images -> {}", filters.len(), best.seen(), arguments.out.display()))
}

impl FilterArguments {
    /// The numbers, all of which the layer has.
    pub(super) fn choose(&self, network: &Network, layer: &str) -> Result<Vec<i64>> {
        let count = check_filters(network.backbone(), layer, &self.filters)?;
        if !self.filters.is_empty() {
            return Ok(self.filters.clone());
        }
        let rows = i64::from(self.rows).min(count);
        Ok((0..rows).map(|row| row * count / rows).collect())
    }
}

/// The layer that was asked for, or the last that gives maps.
pub(super) fn layer_of(network: &Network) -> Result<String> {
    let last = network.backbone().map_layers().last().map(|name| (*name).to_owned());
    let layer = network.layer().map(str::to_owned).or(last);
    layer.ok_or_else(|| Error::usage(format!("{} has no convolution", network.origin)))
}

/// Looks through the shards for the images that the filters answer most.
pub(super) fn best_images(
    network: &Network,
    layer: &str,
    filters: &[i64],
    shards: &[String],
    each: usize,
    side: u32,
) -> Result<Best> {
    let mut best = Best::new(filters.len(), each);
    let wanted = Tensor::f_from_slice(filters)?.f_to_device(network.backbone().device())?;
    network.batches(shards, |batch, images| {
        let maps = network.backbone().forward_to(images, layer)?;
        let scores =
            spatial_means(&maps)?.f_index_select(1, &wanted)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
        let views = batch.center_views()?;
        for (row, sample) in batch.samples.iter().enumerate() {
            let scores = Vec::<f32>::try_from(scores.f_get(row as i64)?)?;
            best.offer(sample.id, &sample.key, &scores, || thumbnail(&views.f_get(row as i64)?, side))?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(best)
}

/// A filter's row: what it looks for, where that is known, and its best images.
pub(super) fn row(filter: i64, found: &[Found], ideal: Option<&RgbImage>) -> SheetRow {
    let most = found.first().map_or_else(String::new, |found| format!("activation up to {:.2}", found.score));
    let best = found.iter().map(|found| (*found.picture).clone());
    SheetRow {
        name: format!("filter {filter}"),
        share: None,
        caption: most,
        thumbnails: ideal.cloned().into_iter().chain(best).collect(),
    }
}

/// A view, uint8 `[S, S, 3]`, as a picture of `side` pixels.
pub(super) fn thumbnail(view: &Tensor, side: u32) -> Result<RgbImage> {
    let picture = picture(view)?;
    if picture.width() == side {
        return Ok(picture);
    }
    Ok(imageops::resize(&picture, side, side, FilterType::CatmullRom))
}
