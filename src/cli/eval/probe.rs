//! `shoal eval knn` and `shoal eval linear`: what a network has learnt, by frozen features.

use super::publish;
use crate::cli::network::{FeatureArguments, Network};
use crate::error::Result;
use crate::evaluate::{knn, linear};
use serde::Serialize;
use tch::Tensor;

/// A network, and labelled shards to fit and to test on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  shoal eval linear --snapshot runs/fashion --layer conv4 \\
    --train shards/fashion-train.tar.zst --test shards/fashion-test.tar.zst --json")]
pub(in crate::cli) struct ProbeArguments {
    #[command(flatten)]
    network: FeatureArguments,
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
pub(in crate::cli) struct KnnArguments {
    #[command(flatten)]
    probe: ProbeArguments,
    /// Neighbours
    #[arg(long, default_value_t = 20)]
    neighbours: usize,
}

/// What a probe found.
#[derive(Debug, Serialize)]
struct Accuracy {
    network: String,
    layer: String,
    protocol: String,
    train: Vec<String>,
    train_images: usize,
    test: Vec<String>,
    test_images: usize,
    dimensions: i64,
    /// Share of the test images that are right.
    accuracy: f64,
}

/// k-NN.
pub(super) fn run_knn(arguments: &KnnArguments) -> Result<()> {
    let probe = Probe::encode(&arguments.probe)?;
    let options = knn::Options { k: arguments.neighbours, ..knn::Options::default() };
    let found = knn::accuracy(&probe.train, &probe.train_labels, &probe.test, &probe.test_labels, options)?;
    probe.tell("knn", format!("k-NN, k = {}", arguments.neighbours), found.accuracy)
}

/// A linear classifier.
pub(super) fn run_linear(arguments: &ProbeArguments) -> Result<()> {
    let probe = Probe::encode(arguments)?;
    let options = linear::Options::default();
    let found = linear::accuracy(&probe.train, &probe.train_labels, &probe.test, &probe.test_labels, options)?;
    probe.tell("linear", "linear".to_owned(), found.accuracy)
}

/// Frozen features and labels of both lists.
struct Probe<'a> {
    arguments: &'a ProbeArguments,
    network: Network,
    train: Tensor,
    train_labels: Vec<i64>,
    test: Tensor,
    test_labels: Vec<i64>,
}

impl<'a> Probe<'a> {
    fn encode(arguments: &'a ProbeArguments) -> Result<Self> {
        let network = arguments.network.open()?;
        let (train, train_labels) = network.labelled_features(&arguments.train)?;
        let (test, test_labels) = network.labelled_features(&arguments.test)?;
        Ok(Self { arguments, network, train, train_labels, test, test_labels })
    }

    fn tell(&self, name: &str, protocol: String, accuracy: f64) -> Result<()> {
        let found = Accuracy {
            network: self.network.origin.clone(),
            layer: self.network.layer().unwrap_or("feature").to_owned(),
            protocol,
            train: self.arguments.train.clone(),
            train_images: self.train_labels.len(),
            test: self.arguments.test.clone(),
            test_images: self.test_labels.len(),
            dimensions: self.train.size().get(1).copied().unwrap_or(0),
            accuracy,
        };
        publish(&self.network, name, &found, self.arguments.json, |found| {
            format!(
                "{} on {} of {}: {:.2} % of {} test images ({} to fit on, {} dimensions)",
                found.protocol,
                found.layer,
                found.network,
                100.0 * found.accuracy,
                found.test_images,
                found.train_images,
                found.dimensions
            )
        })
    }
}
