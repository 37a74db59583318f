//! `shoal eval`: what a network has learnt, by frozen features; how alike two clusterings are.

use super::network::NetworkArguments;
use crate::cluster::agreement::{Contingency, Normalizer};
use crate::cluster::assignments::Assignments;
use crate::error::{Error, Result};
use crate::evaluate::{knn, linear};
use serde::Serialize;
use std::path::PathBuf;
use tch::Tensor;

/// The evaluations.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Weighted k-nearest-neighbour accuracy of frozen features
    Knn(KnnArguments),
    /// Accuracy of a linear classifier on frozen features
    Linear(ProbeArguments),
    /// Normalised mutual information of two clusterings, or of one with the labels of its samples
    Nmi(NmiArguments),
}

/// A network, and labelled shards to fit and to test on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  shoal eval linear --snapshot runs/fashion --layer conv4 \\
    --train shards/fashion-train.tar.zst --test shards/fashion-test.tar.zst --json")]
pub(super) struct ProbeArguments {
    #[command(flatten)]
    network: NetworkArguments,
    /// Labelled shards (.cls) to fit on (repeatable)
    #[arg(long, required = true, value_name = "LIST")]
    train: Vec<String>,
    /// Labelled shards (.cls) to test on (repeatable)
    #[arg(long, required = true, value_name = "LIST")]
    test: Vec<String>,
    /// Results as JSON
    #[arg(long)]
    json: bool,
}

/// The arguments of `shoal eval knn`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  shoal eval knn --snapshot random:small --pipeline pipelines/fashion.toml \\
    --train shards/fashion-train.tar.zst --test shards/fashion-test.tar.zst")]
pub(super) struct KnnArguments {
    #[command(flatten)]
    probe: ProbeArguments,
    /// Neighbours
    #[arg(long, default_value_t = 20)]
    neighbours: usize,
}

/// The arguments of `shoal eval nmi`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal eval nmi runs/fashion/clusters/step-000001500.arrow runs/fashion/clusters/step-000001750.arrow
  shoal eval nmi runs/fashion/clusters/step-000001750.arrow

With two files: over the samples that stand in both (cycles of a long stream share few). With one: against the labels (.cls) in it.")]
pub(super) struct NmiArguments {
    /// Assignments of a cycle (RUN/clusters/step-*.arrow)
    first: PathBuf,
    /// Assignments of another
    second: Option<PathBuf>,
    /// Results as JSON
    #[arg(long)]
    json: bool,
}

/// What a probe found.
#[derive(Debug, Serialize)]
struct Accuracy {
    network: String,
    layer: String,
    protocol: String,
    train_images: usize,
    test_images: usize,
    dimensions: i64,
    /// Share of the test images that are right.
    accuracy: f64,
}

pub(super) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Knn(arguments) => {
            let probe = Probe::encode(&arguments.probe)?;
            let options = knn::Options { k: arguments.neighbours, ..knn::Options::default() };
            let found = knn::accuracy(&probe.train, &probe.train_labels, &probe.test, &probe.test_labels, options)?;
            probe.tell(&format!("k-NN, k = {}", arguments.neighbours), found.accuracy, arguments.probe.json)
        }
        Command::Linear(arguments) => {
            let probe = Probe::encode(arguments)?;
            let options = linear::Options::default();
            let found = linear::accuracy(&probe.train, &probe.train_labels, &probe.test, &probe.test_labels, options)?;
            probe.tell("linear", found.accuracy, arguments.json)
        }
        Command::Nmi(arguments) => nmi(arguments),
    }
}

/// Frozen features and labels of both lists.
struct Probe {
    network: String,
    layer: String,
    train: Tensor,
    train_labels: Vec<i64>,
    test: Tensor,
    test_labels: Vec<i64>,
}

impl Probe {
    fn encode(arguments: &ProbeArguments) -> Result<Self> {
        let network = arguments.network.open()?;
        let (train, train_labels) = network.labelled_features(&arguments.train)?;
        let (test, test_labels) = network.labelled_features(&arguments.test)?;
        let layer = network.layer().unwrap_or("feature").to_owned();
        Ok(Self { network: network.origin, layer, train, train_labels, test, test_labels })
    }

    fn tell(&self, protocol: &str, accuracy: f64, json: bool) -> Result<()> {
        let found = Accuracy {
            network: self.network.clone(),
            layer: self.layer.clone(),
            protocol: protocol.to_owned(),
            train_images: self.train_labels.len(),
            test_images: self.test_labels.len(),
            dimensions: self.train.size().get(1).copied().unwrap_or(0),
            accuracy,
        };
        if json {
            return super::print_json(&found);
        }
        super::print(&format!(
            "{protocol} on {} of {}: {:.2} % of {} test images ({} to fit on, {} dimensions)",
            found.layer,
            found.network,
            100.0 * accuracy,
            found.test_images,
            found.train_images,
            found.dimensions
        ))
    }
}

/// What two clusterings have in common.
#[derive(Debug, Serialize)]
struct Agreement {
    samples: usize,
    nmi: f64,
    nmi_arithmetic: f64,
}

fn nmi(arguments: &NmiArguments) -> Result<()> {
    let first = Assignments::read(&arguments.first)?;
    let pairs = match &arguments.second {
        Some(path) => first.pairs(&Assignments::read(path)?),
        None => first.pairs_with_classes(),
    };
    if pairs.is_empty() {
        return Err(match &arguments.second {
            Some(path) => Error::data(format!("{} and {} share no sample", arguments.first.display(), path.display())),
            None => Error::data(format!("{} holds no labels (.cls)", arguments.first.display()))
                .with_hint("give a second file to compare with"),
        });
    }
    let samples = pairs.len();
    let table = Contingency::new(pairs.into_iter());
    let (nmi, nmi_arithmetic) = (table.nmi(Normalizer::Geometric), table.nmi(Normalizer::Arithmetic));
    let found = Agreement { samples, nmi, nmi_arithmetic };
    if arguments.json {
        return super::print_json(&found);
    }
    super::print(&format!(
        "NMI {:.4} (geometric), {:.4} (arithmetic), {} samples",
        found.nmi, found.nmi_arithmetic, found.samples
    ))
}
