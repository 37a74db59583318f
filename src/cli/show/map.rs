//! `shoal show map`: what a network takes for alike, in the plane, with photographs.

use super::save;
use super::top::thumbnail;
use crate::cli::network::{FeatureArguments, Network};
use crate::cli::print;
use crate::error::Result;
use crate::model::Mode;
use crate::visualize::map::{Map, Method, places};
use image::RgbImage;
use indicatif::HumanCount;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// Classes that have colours of their own.
const MOST_CLASSES: usize = 10;

/// The arguments of `shoal show map`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal show map --snapshot runs/demo --out map.png
  shoal show map --snapshot runs/fashion --method tsne --shards shards/fashion-test.tar.zst --out neighbours.png

Images of the list are encoded in its order, and points drawn from them at random (the same each time). Where they have classes (.cls), the
commonest ten have colours. Without --layer it is the feature that is clustered.")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    network: FeatureArguments,
    /// Shards of the images, by default those of the run (repeatable)
    #[arg(long, value_name = "LIST")]
    shards: Vec<String>,
    /// The PNG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How features become places
    #[arg(long, value_enum, default_value_t = Method::Pca)]
    method: Method,
    /// Points of the map, at most
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(3..))]
    points: u32,
    /// Images that are looked at, at most
    #[arg(long, default_value_t = 20_000)]
    images: u64,
    /// Side of a photograph in pixels
    #[arg(long, default_value_t = 56, value_parser = clap::value_parser!(u32).range(16..=512))]
    side: u32,
    /// Width of the map in pixels
    #[arg(long, default_value_t = 1_600, value_parser = clap::value_parser!(u32).range(200..=10_000))]
    width: u32,
}

/// An image on the map.
struct Point {
    feature: Vec<f32>,
    class: Option<i64>,
    photograph: RgbImage,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let network = arguments.network.open()?;
    let specs = if arguments.shards.is_empty() { &network.plan().stream.shards } else { &arguments.shards };
    let (points, seen) = draw(arguments, &network, specs)?;
    let classes: Vec<Option<i64>> = points.iter().map(|point| point.class).collect();
    let (groups, names) = commonest(&classes);
    let features: Vec<f32> = points.iter().flat_map(|point| &point.feature).copied().collect();
    let features = Tensor::f_from_slice(&features)?.f_view([points.len() as i64, -1])?;
    let map = Map {
        title: format!("Map of {}", network.origin),
        subtitle: format!(
            "{} of {} images · {} of {} · near is alike",
            HumanCount(points.len() as u64),
            HumanCount(seen),
            name(arguments.method),
            network.layer().unwrap_or("the clustered feature"),
        ),
        places: places(&features, arguments.method)?,
        groups,
        names,
        size: (arguments.width, arguments.width * 5 / 8),
        side: arguments.side,
    };
    let shown = map.shown();
    let photographs = shown.iter().map(|(point, _)| (*point, points[*point].photograph.clone())).collect();
    save(&map.render(&photographs)?, &arguments.out)?;
    print(&format!("{} points, {} photographs -> {}", points.len(), shown.len(), arguments.out.display()))
}

/// Points drawn from the images of a list, and how many images that were: each image is as likely as any other (Vitter's reservoir).
fn draw(arguments: &Arguments, network: &Network, specs: &[String]) -> Result<(Vec<Point>, u64)> {
    let most = arguments.points as usize;
    let mut rng = ChaCha8Rng::seed_from_u64(u64::from(arguments.points));
    let (mut points, mut seen): (Vec<Point>, u64) = (Vec::new(), 0);
    network.batches(specs, |batch, images| {
        let features = match network.layer() {
            Some(layer) => network.backbone().forward_to(images, layer)?.f_flatten(1, -1)?,
            None => network.backbone().forward(images, Mode::Eval)?,
        };
        let features = features.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
        let views = batch.center_views()?;
        for (row, sample) in batch.samples.iter().enumerate() {
            seen += 1;
            let place = if points.len() < most { points.len() as u64 } else { rng.random_range(0..seen) };
            if place >= most as u64 {
                continue;
            }
            let row = row as i64;
            let photograph = thumbnail(&views.f_get(row)?, arguments.side)?;
            let point = Point { feature: Vec::try_from(features.f_get(row)?)?, class: sample.class, photograph };
            match points.get_mut(place as usize) {
                Some(held) => *held = point,
                None => points.push(point),
            }
        }
        Ok(if seen < arguments.images { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok((points, seen))
}

fn name(method: Method) -> &'static str {
    match method {
        Method::Pca => "the two main directions",
        Method::Tsne => "t-SNE",
    }
}

/// The commonest classes as groups, most first, with their names; none where no sample has a class.
fn commonest(classes: &[Option<i64>]) -> (Vec<Option<usize>>, Vec<String>) {
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    classes.iter().flatten().for_each(|class| *counts.entry(*class).or_default() += 1);
    let mut sorted: Vec<(i64, usize)> = counts.into_iter().collect();
    sorted.sort_by_key(|&(class, count)| (std::cmp::Reverse(count), class));
    let others = sorted.len() > MOST_CLASSES;
    sorted.truncate(MOST_CLASSES);
    let group = |class: &Option<i64>| sorted.iter().position(|(known, _)| Some(*known) == *class);
    let mut names: Vec<String> = sorted.iter().map(|(class, _)| format!("class {class}")).collect();
    if others {
        names.push("others".to_owned());
    }
    (classes.iter().map(group).collect(), names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commonest_classes_have_groups() {
        let classes = [Some(7), None, Some(3), Some(7)];
        assert_eq!(
            commonest(&classes),
            (vec![Some(0), None, Some(1), Some(0)], vec!["class 7".to_owned(), "class 3".to_owned()])
        );
        assert_eq!(commonest(&[None, None]), (vec![None, None], Vec::new()));
        let many: Vec<Option<i64>> = (0..12).map(Some).collect();
        let (groups, names) = commonest(&many);
        assert_eq!((groups[9], groups[10], names.len()), (Some(9), None, 11));
    }
}
