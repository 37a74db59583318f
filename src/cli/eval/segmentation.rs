//! `shoal eval segmentation`: makes a network fully convolutional, trains it on masks of PASCAL VOC, and counts pixels.

use super::publish;
use super::watch::OnTerminal;
use crate::cli::network::NetworkArguments;
use crate::error::{Error, Result};
use crate::evaluate::voc::classify::Trained;
use crate::evaluate::voc::devkit::Devkit;
use crate::evaluate::voc::segment::{Plan, Report, Settings, Stride, evaluate};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The arguments of `shoal eval segmentation`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal eval segmentation --snapshot runs/yfcc --voc VOCdevkit --state seg.state
  shoal eval segmentation --snapshot vgg16.safetensors --voc VOCdevkit --fcn 8s --train-on trainaug --json

For AlexNet (32s) and VGG-16. Trained on train, tested on val of ImageSets/Segmentation; a list of one's own, like trainaug, is a
file there. fc6 and fc7 keep the weights of the snapshot. The paper's settings were not published: these are those of the
stock AlexNet-FCN, with the loss averaged over the pixels of a photograph. With --state FILE, Ctrl-C writes what is needed to
go on, and the same command goes on; a finished evaluation removes the file.")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    network: NetworkArguments,
    /// VOCdevkit, or the folder of a year in it
    #[arg(long, value_name = "DIR")]
    voc: PathBuf,
    /// The year whose folder it is
    #[arg(long, default_value = "VOC2012")]
    year: String,
    /// Pixels between two scores before the last upsampling
    #[arg(long, default_value = "32s", value_parser = ["32s", "16s", "8s"])]
    fcn: String,
    /// What to train: everything, or fc6, fc7 and the scores
    #[arg(long, default_value = "all", value_parser = ["fc6-8", "all"])]
    train: String,
    /// Steps
    #[arg(long, default_value_t = 100_000)]
    iterations: u64,
    /// Photographs in a step
    #[arg(long, default_value_t = 20)]
    train_batch: usize,
    /// Learning rate
    #[arg(long, default_value_t = 1e-4)]
    lr: f64,
    /// Momentum
    #[arg(long, default_value_t = 0.9)]
    momentum: f64,
    /// L2 penalty
    #[arg(long, default_value_t = 5e-4)]
    weight_decay: f64,
    /// Of order and dropout
    #[arg(long, default_value_t = 31)]
    seed: u64,
    /// The list to train on
    #[arg(long, value_name = "SPLIT", default_value = "train")]
    train_on: String,
    /// The list to test on
    #[arg(long, value_name = "SPLIT", default_value = "val")]
    test_on: String,
    /// Keep what is needed to go on here, and go on from it
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Plain lines instead of a bar
    #[arg(long)]
    no_bar: bool,
    /// Results as JSON
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Found<'a> {
    network: &'a str,
    arch: &'static str,
    /// The kit.
    voc: &'a Path,
    #[serde(flatten)]
    report: &'a Report,
    seconds: f64,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let kit = Devkit::open(&arguments.voc, &arguments.year)?;
    let network = arguments.network.open()?;
    let stride = match arguments.fcn.as_str() {
        "32s" => Stride::ThirtyTwo,
        "16s" => Stride::Sixteen,
        _ => Stride::Eight,
    };
    let settings = Settings {
        train: if arguments.train == "all" { Trained::All } else { Trained::LinearLayers },
        stride,
        lr: arguments.lr,
        iterations: arguments.iterations,
        batch_size: arguments.train_batch,
        momentum: arguments.momentum,
        weight_decay: arguments.weight_decay,
        seed: arguments.seed,
    };
    let splits = [arguments.train_on.clone(), arguments.test_on.clone()];
    let plan = Plan { settings, splits, state: arguments.state.clone() };
    let mut watch = OnTerminal::new(!arguments.no_bar)?;
    let report = evaluate(&kit, network.backbone(), &network.normalizer()?, &plan, &mut watch)?;
    drop(watch);

    let seconds = started.elapsed().as_secs_f64();
    let arch = network.backbone().plan().arch.name();
    let found = Found { network: &network.origin, arch, voc: kit.root(), report: &report, seconds };
    publish(&network, "segmentation", &found, arguments.json, text)?;
    match &plan.state {
        Some(path) => fs::remove_file(path).map_err(|error| Error::file("remove", path, &error)),
        None => Ok(()),
    }
}

fn text(found: &Found<'_>) -> String {
    let report = found.report;
    let mut lines = Vec::new();
    for class in &report.classes {
        let value = class.iu.map_or_else(|| "     -".to_owned(), |iu| format!("{:6.2} %", 100.0 * iu));
        lines.push(format!("{:12} {value}", class.class));
    }
    let [train, test] = &report.splits;
    lines.push(format!(
        "mean IU {:.2} %, pixels {:.2} %, mean accuracy {:.2} % of {}: {} photographs of {test}, trained on {} of {train} ({} iterations, {:.0} s)",
        100.0 * report.mean_iu,
        100.0 * report.pixel_accuracy,
        100.0 * report.mean_accuracy,
        found.network,
        report.photographs[1],
        report.photographs[0],
        report.settings.iterations,
        found.seconds,
    ));
    lines.join("\n")
}
