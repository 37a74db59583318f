//! `shoal eval voc07`: fine-tunes a network on PASCAL VOC 2007 and measures how well it tells the classes apart.

use super::publish;
use super::watch::OnTerminal;
use crate::cli::network::NetworkArguments;
use crate::config::Arch;
use crate::error::{Error, Result};
use crate::evaluate::voc::classify::{Plan, Report, Settings, Trained, evaluate};
use crate::evaluate::voc::devkit::Devkit;
use crate::observe::console::say;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The arguments of `shoal eval voc07`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal eval voc07 --snapshot runs/yfcc --voc VOCdevkit --state voc.state --json
  shoal eval voc07 --snapshot runs/yfcc --voc VOCdevkit --train all --select --lr 0.001,0.003 --iterations 80000
  shoal eval voc07 --snapshot random:alexnet --voc VOCdevkit --bn affine

Trained on trainval, tested on test; --select first tries every combination of --lr, --weight-decay, --halve-every and
--iterations on train and val. The paper's 72.0 (fc6-8) comes with --bn affine; its authors give 70.4 for frozen
convolutions. With --state FILE, Ctrl-C writes what is needed to go on, and the same command goes on; a finished
evaluation removes the file. On one thread the same seed gives the same numbers.")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    network: NetworkArguments,
    /// Crops that are scored at once
    #[arg(long, default_value_t = 128)]
    batch_size: usize,
    /// VOCdevkit, or the VOC2007 folder in it
    #[arg(long, value_name = "DIR")]
    voc: PathBuf,
    /// What to train: the linear layers, or everything
    #[arg(long, default_value = "fc6-8", value_parser = ["fc6-8", "all"])]
    train: String,
    /// Scale and shift of batch norm under fc6-8: frozen with the convolutions, or trained (affine)
    #[arg(long, default_value = "frozen", value_parser = ["frozen", "affine"])]
    bn: String,
    /// Iterations
    #[arg(long, value_name = "N,..", default_value = "80000", value_delimiter = ',')]
    iterations: Vec<u64>,
    /// Learning rate
    #[arg(long, value_name = "LR,..", default_value = "0.003", value_delimiter = ',')]
    lr: Vec<f64>,
    /// Iterations after which the learning rate is halved, again and again
    #[arg(long, value_name = "N,..", default_value = "5000", value_delimiter = ',')]
    halve_every: Vec<u64>,
    /// L2 penalty
    #[arg(long, value_name = "W,..", default_value = "1e-6", value_delimiter = ',')]
    weight_decay: Vec<f64>,
    /// Momentum
    #[arg(long, default_value_t = 0.9)]
    momentum: f64,
    /// Photographs in a step of training
    #[arg(long, default_value_t = 16)]
    train_batch: usize,
    /// Largest norm of all gradients together
    #[arg(long, default_value_t = 10.0)]
    clip: f64,
    /// Share of the photograph that a crop covers
    #[arg(long, value_name = "MIN,MAX", default_value = "0.1,0.5", value_delimiter = ',', num_args = 1)]
    area: Vec<f64>,
    /// Random crops of a photograph whose logits are summed
    #[arg(long, default_value_t = 10)]
    crops: usize,
    /// Of new weights, order, crops and dropout
    #[arg(long, default_value_t = 31)]
    seed: u64,
    /// Choose among the given values by training on train and testing on val
    #[arg(long)]
    select: bool,
    /// The list to train on
    #[arg(long, value_name = "SPLIT", default_value = "trainval")]
    train_on: String,
    /// The list to test on
    #[arg(long, value_name = "SPLIT", default_value = "test")]
    test_on: String,
    /// Take the mean over the classes that both lists show, where some are missing
    #[arg(long)]
    skip_empty_classes: bool,
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
    protocol: &'static str,
    /// The kit.
    voc: &'a Path,
    #[serde(flatten)]
    report: &'a Report,
    seconds: f64,
}

const PROTOCOL: &str =
    "sum of the logits of random crops; average precision as scikit-learn's; difficult objects left out";

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let plan = arguments.plan()?;
    let kit = Devkit::open(&arguments.voc, "VOC2007")?;
    let network = arguments.network.open()?;
    let arch = network.backbone().plan().arch;
    if matches!(arch, Arch::ResNet18 | Arch::ResNet50) && arguments.train == "fc6-8" {
        say(&format!("{} has no fc6 and fc7: a linear layer on its feature is trained", arch.name()));
    }
    let plan = Plan { threads: network.placement().decode_threads, at_once: arguments.batch_size, ..plan };

    let mut watch = OnTerminal::new(!arguments.no_bar)?;
    let report = evaluate(&kit, network.backbone(), &network.normalizer()?, &plan, &mut watch)?;
    drop(watch);

    let seconds = started.elapsed().as_secs_f64();
    let (origin, arch, voc) = (&network.origin, arch.name(), kit.root());
    let found = Found { network: origin, arch, protocol: PROTOCOL, voc, report: &report, seconds };
    publish(&network, "voc07", &found, arguments.json, text)?;
    match &plan.state {
        Some(path) => fs::remove_file(path).map_err(|error| Error::file("remove", path, &error)),
        None => Ok(()),
    }
}

impl Arguments {
    fn plan(&self) -> Result<Plan> {
        let &[smallest, largest] = self.area.as_slice() else {
            return Err(Error::usage("--area takes two shares of the photograph, for example 0.1,0.5"));
        };
        if self.bn == "affine" && self.train == "all" {
            let error = Error::usage("--train all trains batch norm anyway");
            return Err(error.with_hint("leave out --bn, whose affine is for --train fc6-8"));
        }
        let mut candidates = Vec::new();
        for &iterations in &self.iterations {
            for &halve_every in &self.halve_every {
                for &weight_decay in &self.weight_decay {
                    for &lr in &self.lr {
                        candidates.push(Settings {
                            train: if self.train == "all" { Trained::All } else { Trained::LinearLayers },
                            norm_affine: self.bn == "affine",
                            lr,
                            halve_every,
                            iterations,
                            batch_size: self.train_batch,
                            momentum: self.momentum,
                            weight_decay,
                            clip: self.clip,
                            area: [smallest, largest],
                            crops: self.crops,
                            seed: self.seed,
                        });
                    }
                }
            }
        }
        Ok(Plan {
            candidates,
            select: self.select,
            splits: [self.train_on.clone(), self.test_on.clone()],
            skip_empty: self.skip_empty_classes,
            state: self.state.clone(),
            threads: 1,
            at_once: 1,
        })
    }
}

fn text(found: &Found<'_>) -> String {
    let report = found.report;
    let mut lines = Vec::new();
    for class in &report.classes {
        let value = match class.average_precision {
            Some(value) => format!("{:6.2} %", 100.0 * value),
            None => "     - ".to_owned(),
        };
        lines.push(format!("{:12} {value}  {} photographs", class.class, class.positives));
    }
    let measured = report.classes.iter().filter(|class| class.average_precision.is_some()).count();
    let classes = if measured < report.classes.len() {
        format!("{measured} classes only, of {}", report.classes.len())
    } else {
        format!("{measured} classes")
    };
    let [train, test] = &report.splits;
    let Settings { lr, iterations, .. } = report.settings;
    lines.push(format!(
        "mAP {:.2} % of {}, {classes}: {} photographs of {test}, trained on {} of {train} (lr {lr}, {iterations} iterations, {:.0} s)",
        100.0 * report.mean_average_precision,
        found.network,
        report.photographs[1],
        report.photographs[0],
        found.seconds,
    ));
    lines.join("\n")
}
