//! `shoal eval knn` and `shoal eval linear`: what a network has learnt, by frozen features.

use crate::cli::network::NetworkArguments;
use crate::cli::{print, print_json};
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
    train_images: usize,
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
    probe.tell(&format!("k-NN, k = {}", arguments.neighbours), found.accuracy, arguments.probe.json)
}

/// A linear classifier.
pub(super) fn run_linear(arguments: &ProbeArguments) -> Result<()> {
    let probe = Probe::encode(arguments)?;
    let options = linear::Options::default();
    let found = linear::accuracy(&probe.train, &probe.train_labels, &probe.test, &probe.test_labels, options)?;
    probe.tell("linear", found.accuracy, arguments.json)
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
            return print_json(&found);
        }
        print(&format!(
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
