//! `shoal eval`: what a network has learnt, by frozen features; how alike two clusterings are.

mod detection;
mod nmi;
mod probe;

use crate::error::Result;

/// The evaluations.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Weighted k-nearest-neighbour accuracy of frozen features
    Knn(probe::KnnArguments),
    /// Accuracy of a linear classifier on frozen features
    Linear(probe::ProbeArguments),
    /// Mean average precision on VOC07 after fine-tuning to find objects (Fast R-CNN)
    Detection(detection::Arguments),
    /// Normalised mutual information of two clusterings, or of one with the labels of its samples
    Nmi(nmi::Arguments),
}

pub(super) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Knn(arguments) => probe::run_knn(arguments),
        Command::Linear(arguments) => probe::run_linear(arguments),
        Command::Detection(arguments) => detection::run(arguments),
        Command::Nmi(arguments) => nmi::run(arguments),
    }
}
