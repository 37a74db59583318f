//! `shoal eval probes`: every layer of a network probed in one pass over the data, as in the paper's Table 1.

use crate::cli::network::{NetworkArguments, check_layer};
use crate::error::{Error, Result};
use crate::evaluate::probes::Settings;
use crate::observe::console::say;
use crate::pipeline::probing::{Choice, Event, Outcome, Probing, Test};
use crate::pipeline::used;
use crate::shards::ShardList;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The arguments of `shoal eval probes`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal eval probes --snapshot runs/imagenet --train @imagenet-train.txt --test @imagenet-val.txt --ten-crops
  shoal eval probes --snapshot runs/fashion --layers conv3,conv4 --epochs 10 \\
    --train shards/fashion-train.tar.zst --test shards/fashion-test.tar.zst --json
  shoal eval probes --snapshot runs/fashion --layers conv4 --lr 0.01,0.03 --weight-decay 1e-4,1e-7 --epochs 5 ...
  shoal eval probes --snapshot runs/imagenet --layers conv5 --hidden 4096,4096 ...      a perceptron (supplement)

The paper's protocol: images resized to views.resize, shifted crops of views.size and mirroring, SGD with momentum 0.9 and a learning rate of
lr / sqrt(1 + lr * weight decay * t), 90 epochs. With several values of --lr or --weight-decay each layer's best pair is chosen on one
train image in ten, held out by its id, and the probes are then fitted again on all of them. `shoal eval linear` is quicker: it finds the
minimum of a convex loss on features of center crops.")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    network: NetworkArguments,
    /// Labelled shards (.cls) to fit on (repeatable)
    #[arg(long, required = true, value_name = "LIST")]
    train: Vec<String>,
    /// Labelled shards (.cls) to test on (repeatable)
    #[arg(long, required = true, value_name = "LIST")]
    test: Vec<String>,
    /// Layers, by name; by default all that give maps
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    layers: Vec<String>,
    /// Passes over the train images
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: u64,
    /// First learning rate; several to choose from
    #[arg(long, value_delimiter = ',', default_value = "0.01", value_name = "VALUES")]
    lr: Vec<f64>,
    /// Weight decay; several to choose from
    #[arg(long, value_delimiter = ',', default_value = "1e-4", value_name = "VALUES")]
    weight_decay: Vec<f64>,
    /// Widths of hidden layers: a perceptron in place of a linear probe
    #[arg(long, value_delimiter = ',', value_name = "WIDTHS", value_parser = clap::value_parser!(i64).range(1..))]
    hidden: Vec<i64>,
    /// Images a step
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    probe_batch: u64,
    /// Test on ten crops of each image, averaging their softmax
    #[arg(long)]
    ten_crops: bool,
    /// Folder that keeps an interrupted run, to go on with the same command
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Results as JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    network: String,
    protocol: &'static str,
    classes: usize,
    train: Vec<String>,
    train_images: u64,
    test: Vec<String>,
    epochs: u64,
    ten_crops: bool,
    layers: Vec<Row>,
}

/// One layer.
#[derive(Debug, Serialize)]
struct Row {
    layer: String,
    dimensions: i64,
    lr: f64,
    weight_decay: f64,
    hidden: Vec<i64>,
    test_images: u64,
    /// Shares after the last epoch.
    top1: f64,
    top5: f64,
    /// Mean cross-entropy on the test images, in nats.
    loss: f64,
    /// Share after the best epoch, which published tables give.
    best_top1: f64,
    best_epoch: usize,
}

impl From<&Outcome> for Row {
    fn from(outcome: &Outcome) -> Self {
        let (last, (best_epoch, best)) = (outcome.last(), outcome.best());
        Self {
            layer: outcome.layer.clone(),
            dimensions: outcome.dimensions,
            lr: outcome.settings.lr,
            weight_decay: outcome.settings.weight_decay,
            hidden: outcome.settings.hidden.clone(),
            test_images: last.images,
            top1: last.top1_share(),
            top5: last.top5_share(),
            loss: last.loss / last.images.max(1) as f64,
            best_top1: best.top1_share(),
            best_epoch,
        }
    }
}

/// One in so many train images is held out to choose settings by.
const HELD_OUT: u64 = 10;

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let network = arguments.network.open()?;
    let backbone = network.backbone();
    for layer in &arguments.layers {
        check_layer(backbone, layer)?;
    }
    let layers = match arguments.layers.as_slice() {
        [] => backbone.map_layers().into_iter().map(str::to_owned).collect(),
        chosen => chosen.to_vec(),
    };
    let grid = grid(arguments)?;
    let counts = count_classes(&arguments.train)?;
    let images: u64 = counts.values().sum();
    let list = |specs: &[String]| ShardList::parse_with(specs, &network.plan().fetch);
    let (train, test) = (list(&arguments.train)?, list(&arguments.test)?);
    say(&format!(
        "{} labelled train images of {} classes; layers of {}: {}",
        HumanCount(images),
        counts.len(),
        network.origin,
        layers.join(", ")
    ));
    let mut probing = Probing {
        plan: network.plan(),
        placement: network.placement(),
        backbone,
        choice: Choice {
            network: backbone.fingerprint()?,
            probes: layers.iter().flat_map(|layer| grid.iter().map(|one| (layer.clone(), one.clone()))).collect(),
            epochs: arguments.epochs,
            // A batch holds no image twice.
            batch_size: arguments.probe_batch.min(images) as usize,
            ten_crops: arguments.ten_crops,
        },
        train,
        classes: counts.keys().copied().collect(),
        test: Test::HeldOut(HELD_OUT),
        state: arguments.state.as_ref().map(|folder| folder.join("choice")),
    };
    if grid.len() > 1 {
        say(&format!("choosing among {} settings on one train image in {HELD_OUT}", grid.len()));
        let tried = fit(&probing, images)?;
        probing.choice.probes = layers.iter().filter_map(|layer| best(layer, &tried)).collect();
    }
    probing.test = Test::List(test);
    probing.state.clone_from(&arguments.state);
    let outcomes = fit(&probing, images)?;
    let report = Report {
        network: network.origin.clone(),
        protocol: "probes by SGD (Table 1)",
        classes: counts.len(),
        train: arguments.train.clone(),
        train_images: images,
        test: arguments.test.clone(),
        epochs: arguments.epochs,
        ten_crops: arguments.ten_crops,
        layers: outcomes.iter().map(Row::from).collect(),
    };
    super::publish(&network, "probes", &report, arguments.json, describe)
}

/// Every pair of a learning rate and a weight decay.
fn grid(arguments: &Arguments) -> Result<Vec<Settings>> {
    let mut grid = Vec::new();
    for &lr in &arguments.lr {
        for &weight_decay in &arguments.weight_decay {
            if !(lr > 0.0 && lr.is_finite() && weight_decay >= 0.0 && weight_decay.is_finite()) {
                return Err(Error::usage(format!("--lr {lr} with --weight-decay {weight_decay} fits nothing"))
                    .with_hint("a learning rate is above 0, a weight decay not below"));
            }
            grid.push(Settings { lr, weight_decay, hidden: arguments.hidden.clone() });
        }
    }
    Ok(grid)
}

/// Images of each class; their labels alone are read.
fn count_classes(list: &[String]) -> Result<BTreeMap<i64, u64>> {
    let mut counts = BTreeMap::new();
    let mut unlabelled = 0u64;
    used::by_list(list, |sample| {
        match sample.class {
            Some(class) => *counts.entry(class).or_default() += 1,
            None => unlabelled += 1,
        }
        Ok(())
    })?;
    if counts.len() < 2 {
        let what = format!("the labelled images of {} are of {} classes: two are needed", list.join(" "), counts.len());
        return Err(Error::data(what)
            .with_hint("labels are integers in .cls members; `shoal shards pack` writes them from class folders"));
    }
    if unlabelled > 0 {
        say(&format!("{} train images without a label are left out", HumanCount(unlabelled)));
    }
    Ok(counts)
}

/// The settings that were right most often for a layer.
fn best(layer: &str, tried: &[Outcome]) -> Option<(String, Settings)> {
    let of_layer = tried.iter().filter(|outcome| outcome.layer == layer);
    // Of equals the first: `max_by_key` takes the last.
    let best = of_layer.rev().max_by_key(|outcome| outcome.last().top1)?;
    say(&format!(
        "{layer}: lr {}, weight decay {} ({:.2} % of the images held out)",
        best.settings.lr,
        best.settings.weight_decay,
        100.0 * best.last().top1_share()
    ));
    Some((layer.to_owned(), best.settings.clone()))
}

/// Runs with a bar.
fn fit(probing: &Probing<'_>, images: u64) -> Result<Vec<Outcome>> {
    let epochs = probing.choice.epochs;
    let bar = ProgressBar::new(images * epochs);
    match ProgressStyle::with_template("{bar:10.cyan/dim} {wide_msg} {per_sec}, {eta} left") {
        Ok(style) => bar.set_style(style.progress_chars("━╸─")),
        Err(error) => tracing::debug!("the bar keeps its default style: {error}"),
    }
    let outcomes = probing.run(&mut |event| match event {
        Event::Fitting { epoch, images: fitted, losses } => {
            bar.set_position(epoch * images + fitted);
            let low = losses.iter().copied().fold(f64::INFINITY, f64::min);
            let high = losses.iter().copied().fold(0.0, f64::max);
            bar.set_message(format!("epoch {}/{epochs} · loss {low:.3} to {high:.3}", epoch + 1));
        }
        Event::Testing { epoch, images } => {
            bar.set_message(format!("epoch {}/{epochs} · testing, {} images", epoch + 1, HumanCount(images)));
        }
        Event::Tested(outcomes) => bar.suspend(|| say_tested(outcomes, epochs)),
    });
    bar.finish_and_clear();
    outcomes
}

fn say_tested(outcomes: &[Outcome], epochs: u64) {
    let shares: Vec<String> = outcomes
        .iter()
        .map(|outcome| format!("{} {:.2}", outcome.layer, 100.0 * outcome.last().top1_share()))
        .collect();
    let epoch = outcomes.first().map_or(0, |outcome| outcome.epochs.len());
    say(&format!("epoch {epoch}/{epochs}: top-1, %: {}", shares.join(", ")));
}

fn describe(report: &Report) -> String {
    let crops = if report.ten_crops { ", ten crops" } else { "" };
    let mut text = format!(
        "{} of {}, {} epochs, {} classes{crops}\n\n",
        report.protocol, report.network, report.epochs, report.classes
    );
    text.push_str("layer      values top-1, % top-5, %   best (epoch)       lr    decay");
    for row in &report.layers {
        let best = format!("{:.2} ({})", 100.0 * row.best_top1, row.best_epoch);
        let (top1, top5) = (100.0 * row.top1, 100.0 * row.top5);
        let Row { layer, dimensions, lr, weight_decay, .. } = row;
        text.push_str(&format!(
            "\n{layer:<10} {dimensions:>6} {top1:>8.2} {top5:>8.2} {best:>14} {lr:>8} {weight_decay:>8}"
        ));
    }
    text
}
