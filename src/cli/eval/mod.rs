//! `shoal eval`: what a network has learnt, by frozen features; how alike two clusterings are.

mod nmi;
mod probe;
mod segmentation;
mod voc07;
mod watch;

use crate::error::Result;

/// The evaluations.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Weighted k-nearest-neighbour accuracy of frozen features
    Knn(probe::KnnArguments),
    /// Accuracy of a linear classifier on frozen features
    Linear(probe::ProbeArguments),
    /// Normalised mutual information of two clusterings, or of one with the labels of its samples
    Nmi(nmi::Arguments),
    /// VOC12 segmentation by fully convolutional networks: mean intersection over union
    Segmentation(segmentation::Arguments),
    /// VOC07 classification by fine-tuning: mean average precision
    Voc07(voc07::Arguments),
}

pub(super) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Knn(arguments) => probe::run_knn(arguments),
        Command::Linear(arguments) => probe::run_linear(arguments),
        Command::Nmi(arguments) => nmi::run(arguments),
        Command::Segmentation(arguments) => segmentation::run(arguments),
        Command::Voc07(arguments) => voc07::run(arguments),
    }
}
