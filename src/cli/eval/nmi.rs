//! `shoal eval nmi`: how alike two clusterings are, or one and the labels of its samples.

use crate::cli::{print, print_json};
use crate::cluster::agreement::{Contingency, Normalizer};
use crate::cluster::assignments::Assignments;
use crate::error::{Error, Result};
use serde::Serialize;
use std::path::PathBuf;

/// The arguments of `shoal eval nmi`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal eval nmi runs/fashion/clusters/step-000001500.arrow runs/fashion/clusters/step-000001750.arrow
  shoal eval nmi runs/fashion/clusters/step-000001750.arrow
  shoal eval nmi kmeans.arrow pic.arrow --mean arithmetic --ami

With two files: over the samples that stand in both (cycles of a long stream share few). With one: against the labels (.cls) in it.
The paper's mean is the geometric one; scikit-learn's default is the arithmetic.")]
pub(in crate::cli) struct Arguments {
    /// Assignments of a cycle (RUN/clusters/step-*.arrow), or of `shoal cluster`
    first: PathBuf,
    /// Assignments of another
    second: Option<PathBuf>,
    /// Which mean of the two entropies to divide by
    #[arg(long, value_enum, default_value = "geometric")]
    mean: Mean,
    /// Also the information adjusted for chance, which does not grow with the number of clusters
    #[arg(long)]
    ami: bool,
    /// Results as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Mean {
    Geometric,
    Arithmetic,
}

/// What two clusterings have in common.
#[derive(Debug, Serialize)]
struct Agreement {
    samples: usize,
    /// Clusters with a sample, of each.
    clusters: [usize; 2],
    mean: Mean,
    nmi: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ami: Option<f64>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
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
    let table = Contingency::new(pairs.into_iter());
    let normalizer = match arguments.mean {
        Mean::Geometric => Normalizer::Geometric,
        Mean::Arithmetic => Normalizer::Arithmetic,
    };
    let filled = |sizes: &[u64]| sizes.iter().filter(|&&size| size > 0).count();
    let found = Agreement {
        samples: table.total as usize,
        clusters: [filled(&table.rows), filled(&table.columns)],
        mean: arguments.mean,
        nmi: table.nmi(normalizer),
        ami: arguments.ami.then(|| table.ami(normalizer)),
    };
    if arguments.json {
        return print_json(&found);
    }
    let mean = match found.mean {
        Mean::Geometric => "geometric",
        Mean::Arithmetic => "arithmetic",
    };
    let ami = found.ami.map(|ami| format!(", AMI {ami:.4}")).unwrap_or_default();
    let [left, right] = found.clusters;
    print(&format!("NMI {:.4}{ami} ({mean} mean), {} samples, {left} and {right} clusters", found.nmi, found.samples))
}
