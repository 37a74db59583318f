//! `shoal eval`: what a network has learnt, by frozen features; how alike two clusterings are.

mod nmi;
mod probe;
mod progress;
mod retrieval;

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
    /// Mean average precision of finding photographs of the same building (Oxford 5k, Paris 6k) by R-MAC descriptors
    Retrieval(retrieval::Arguments),
}

pub(super) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Knn(arguments) => probe::run_knn(arguments),
        Command::Linear(arguments) => probe::run_linear(arguments),
        Command::Nmi(arguments) => nmi::run(arguments),
        Command::Retrieval(arguments) => retrieval::run(arguments),
    }
}
