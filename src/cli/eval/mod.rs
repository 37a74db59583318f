//! `shoal eval`: what a network has learnt, by frozen features; how alike two clusterings are.

mod detection;
mod nmi;
mod probe;
mod probes;
mod report;
mod retrieval;
mod segmentation;
mod voc07;
mod watch;

use crate::cli::network::Network;
use crate::cli::{print, print_json};
use crate::error::Result;
use crate::evaluate::results::Evaluation;
use serde::Serialize;

/// The evaluations.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Weighted k-nearest-neighbour accuracy of frozen features
    Knn(probe::KnnArguments),
    /// Accuracy of a linear classifier on frozen features
    Linear(probe::ProbeArguments),
    /// Probes of every layer in one pass over the data, by SGD as in the paper's Table 1
    Probes(probes::Arguments),
    /// VOC07 classification by fine-tuning: mean average precision
    Voc07(voc07::Arguments),
    /// VOC07 detection by fine-tuning (Fast R-CNN): mean average precision
    Detection(detection::Arguments),
    /// VOC12 segmentation by fully convolutional networks: mean intersection over union
    Segmentation(segmentation::Arguments),
    /// Mean average precision of finding photographs of the same building (Oxford 5k, Paris 6k) by R-MAC descriptors
    Retrieval(retrieval::Arguments),
    /// Normalised mutual information of two clusterings, or of one with the labels of its samples
    Nmi(nmi::Arguments),
    /// A page of everything that was measured of a run, in the layout of the paper's tables
    Report(report::Arguments),
}

pub(super) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Knn(arguments) => probe::run_knn(arguments),
        Command::Linear(arguments) => probe::run_linear(arguments),
        Command::Probes(arguments) => probes::run(arguments),
        Command::Voc07(arguments) => voc07::run(arguments),
        Command::Detection(arguments) => detection::run(arguments),
        Command::Segmentation(arguments) => segmentation::run(arguments),
        Command::Retrieval(arguments) => retrieval::run(arguments),
        Command::Nmi(arguments) => nmi::run(arguments),
        Command::Report(arguments) => report::run(arguments),
    }
}

/// Prints what was found, as `text` or as JSON, and keeps it with the run that was measured, if it was a run.
fn publish<T: Serialize>(
    network: &Network,
    protocol: &str,
    found: &T,
    json: bool,
    text: impl FnOnce(&T) -> String,
) -> Result<()> {
    if let Some(run) = network.run() {
        Evaluation::now(protocol, network.step(), found)?.keep(run)?;
    }
    if json { print_json(found) } else { print(&text(found)) }
}
