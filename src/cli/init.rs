//! `shoal init`: a network whose first weights follow from images.
//!
//! In: an architecture, or a pipeline, and a list; out: a `.safetensors` file that every command takes as `--snapshot`. Nothing is
//! written before the end, and then aside and renamed.

use super::network::device_kind;
use crate::config::{DevicePlan, Plan, Precision, ViewsPlan};
use crate::error::{Error, Result};
use crate::initialize::{Images, Layer, Method, initialize};
use crate::model::{Backbone, Normalizer, state};
use crate::observe::console::say;
use crate::pipeline::gather::Gathering;
use crate::pipeline::start_runtime;
use crate::pipeline::stop::Stop;
use crate::shards::ShardList;
use crate::torch::device::{Placement, place, set_threads};
use crate::train::state::views_metadata;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The arguments of `shoal init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal init --pipeline fashion --out start.safetensors
  shoal init --network alexnet:rgb --shards @photos.txt --method pca --out start.safetensors
  shoal eval knn --snapshot start.safetensors --train shards/fashion-train.tar.zst --test shards/fashion-test.tar.zst

Data-dependent initialisation (Krähenbühl et al., ICLR 2016), a baseline of the paper's tables: filters from patches of the images,
outputs of mean 0 and variance 1, and layers that change at one rate. For alexnet, vgg16 and small. Linear layers with more outputs
than half the images keep random filters with kmeans, and with pca those beyond the number of images.")]
pub(super) struct Arguments {
    /// Pipeline file that gives [model], [views], [stream], and the seed
    #[arg(long, value_name = "FILE", required_unless_present = "network", conflicts_with = "network")]
    pipeline: Option<PathBuf>,
    /// Set a key of the pipeline, e.g. stream.seed=7 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "pipeline")]
    set: Vec<String>,
    /// The network, without a pipeline: ARCH[:INPUT[:SIZE]], e.g. alexnet:rgb
    #[arg(long, value_name = "ARCH", requires = "shards")]
    network: Option<String>,
    /// Shards whose images are looked at; by default those of the pipeline (repeatable)
    #[arg(long, value_name = "LIST")]
    shards: Vec<String>,
    /// Where filters come from: kmeans, centroids of whitened patches; pca, principal components; rescale, random ones
    #[arg(long, default_value = "kmeans", value_parser = ["kmeans", "pca", "rescale"])]
    method: String,
    /// Images to look at, from the beginning of the stream
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    images: u32,
    /// The .safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where to compute
    #[arg(long, default_value = "auto", value_parser = ["auto", "cpu", "cuda"])]
    device: String,
    /// Images at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// What became of each layer, as JSON
    #[arg(long)]
    json: bool,
}

/// What was written, and from what.
#[derive(Debug, Serialize)]
struct Initialized {
    out: PathBuf,
    method: &'static str,
    images: i64,
    layers: Vec<Layer>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.out.extension().is_none_or(|extension| extension != "safetensors") {
        return Err(Error::usage(format!("{} is no name of a .safetensors file", arguments.out.display()))
            .with_hint("commands tell a network by that ending"));
    }
    let (mut plan, placement, backbone) = open(arguments)?;
    if !arguments.shards.is_empty() {
        plan.stream.shards.clone_from(&arguments.shards);
        plan.stream.weights.clear();
    }
    backbone.affines()?; // refuses some networks before anything is read
    let list = ShardList::parse_with(&plan.stream.shards, &plan.fetch)?;
    say(&format!(
        "{} from up to {} images of {} shards, on {:?}",
        backbone.plan().arch.name(),
        HumanCount(u64::from(arguments.images)),
        HumanCount(list.shards.len() as u64),
        placement.device
    ));
    let runtime = start_runtime()?;
    let stop = Stop::default();
    stop.on_signals(runtime.handle())?;
    let bar = spinner();
    let gathering = Gathering {
        plan: &plan,
        placement: &placement,
        count: arguments.images as usize,
        batch_size: arguments.batch_size as usize,
    };
    let chunks =
        gathering.center_views(list, &runtime, &stop, |count| show(&bar, &format!("reading: {count} images")))?;
    let normalizer = Normalizer::new(&plan.views.mean, &plan.views.std, placement.device)?;
    let images = Images::new(chunks, normalizer, placement.device);
    if images.count() < i64::from(arguments.images) {
        bar.suspend(|| say(&format!("the list holds {} images that decode: they have to do", images.count())));
    }

    let method = method(&arguments.method);
    let mut tell = |what: &str| {
        if stop.is_requested() {
            return Err(Error::Interrupted { snapshot: None });
        }
        show(&bar, what);
        Ok(())
    };
    let layers = initialize(&backbone, &images, method, plan.stream.seed, &mut tell)?;
    bar.finish_and_clear();
    write(&backbone, &plan.views, method, images.count(), &arguments.out)?;
    let found = Initialized { out: arguments.out.clone(), method: method.name(), images: images.count(), layers };
    if arguments.json { super::print_json(&found) } else { super::print(&found.to_text()) }
}

/// The plan, where it runs, and the network with random weights of its seed, in fp32.
fn open(arguments: &Arguments) -> Result<(Plan, Placement, Backbone)> {
    let mut plan = match &arguments.pipeline {
        Some(path) => Plan::load(path, &arguments.set)?,
        None => Plan::default(),
    };
    plan.device = DevicePlan { kind: device_kind(&arguments.device), precision: Precision::Fp32, ..plan.device };
    let placement = place(&plan.device)?;
    set_threads(&placement);
    let (seed, device) = (plan.stream.seed, placement.device);
    let backbone = match &arguments.network {
        Some(spec) => Backbone::random(spec, seed, device, Precision::Fp32)?,
        None => Backbone::new(&plan.model, plan.views.size, seed, device, Precision::Fp32)?,
    };
    if arguments.network.is_some() {
        plan.views = ViewsPlan { size: backbone.size(), resize: backbone.size() * 8 / 7, ..plan.views };
    }
    Ok((plan, placement, backbone))
}

fn method(name: &str) -> Method {
    match name {
        "pca" => Method::Pca,
        "rescale" => Method::Rescale,
        _ => Method::Kmeans,
    }
}

fn write(backbone: &Backbone, views: &ViewsPlan, method: Method, images: i64, out: &Path) -> Result<()> {
    let mut metadata = backbone.metadata();
    metadata.insert("views".into(), views_metadata(views)?);
    metadata.insert("init".into(), method.name().into());
    metadata.insert("images".into(), images.to_string());
    state::replace_safetensors(out, &backbone.state()?, &metadata)
}

impl Initialized {
    fn to_text(&self) -> String {
        let mut text = format!(
            "{:<8} {:>8} {:>12} {:>9} {:>12} {:>6}\n",
            "layer", "filters", "from images", "constant", "rate before", "rate"
        );
        for layer in &self.layers {
            let Layer { name, filters, from_images, constant, rate_before, rate } = layer;
            text.push_str(&format!(
                "{name:<8} {filters:>8} {from_images:>12} {constant:>9} {rate_before:>12.3} {rate:>6.3}\n"
            ));
        }
        text.push_str(&format!("{} of {} images -> {}", self.method, self.images, self.out.display()));
        text
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, what: &str) {
    bar.set_message(what.to_owned());
    bar.tick();
}
