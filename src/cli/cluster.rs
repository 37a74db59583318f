//! `shoal cluster`: the clusters of a file of features.
//!
//! In goes what `shoal embed` writes, or any Arrow file with a column of features; out come clusters by key and id, and if asked
//! for a balanced subset. The file is read twice, for the covariance and to project: memory is the projected rows.

use super::network::device_kind;
use crate::bank::Projection;
use crate::cluster::agreement::entropy;
use crate::cluster::assignments::Assignments;
use crate::cluster::covariance::Covariance;
use crate::cluster::hierarchy::{self, Pick};
use crate::cluster::kmeans::Partition;
use crate::cluster::whiten::Whitening;
use crate::cluster::{self, Clustering, Division, Points, Told};
use crate::config::{ClusterPlan, DevicePlan, Empties, Method, Start};
use crate::error::{Error, Result};
use crate::evaluate::features::FeatureFile;
use crate::model::state::write_safetensors;
use crate::seed;
use crate::torch::device::{place, set_threads};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// The arguments of `shoal cluster`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster features.arrow --k 1000 --out clusters.arrow
  shoal cluster features.arrow --method pic --out pic.arrow
  shoal cluster features.arrow --levels 10000,500 --sample 100000 --out curated.arrow
  shoal eval nmi clusters.arrow pic.arrow

Columns of the Arrow IPC file: key, id (u64), cluster (u32), distance (f32, squared, to the centroid), class (i64 or null), with
--levels also level_2 and so on. Features are a column `feature` of fixed-size lists of floats; columns key, id and label are
used if they are there. A subset is a text file, one key a line.")]
pub(super) struct Arguments {
    /// Features, as `shoal embed` writes them
    features: PathBuf,
    /// The Arrow file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Clusters
    #[arg(long, required_unless_present_any = ["levels", "method"])]
    k: Option<usize>,
    /// kmeans, or pic, which finds a number of clusters of its own
    #[arg(long, default_value = "kmeans", value_parser = ["kmeans", "pic"])]
    method: String,
    /// Clusters of clusters: k of the first level, of the second, ...
    #[arg(long, value_name = "K,K", value_delimiter = ',', conflicts_with_all = ["k", "coarse", "balanced"])]
    levels: Vec<usize>,
    /// Find so many coarse clusters first, and the k within them: for k beyond 100,000
    #[arg(long, value_name = "M", default_value_t = 0)]
    coarse: usize,
    /// Iterations of k-means, at most
    #[arg(long, default_value_t = 20)]
    iterations: usize,
    /// Stop once an iteration lowers the objective by less than this share
    #[arg(long, default_value_t = 0.0)]
    tolerance: f64,
    /// Where k-means starts: random rows, or rows that lie apart (k-means++)
    #[arg(long, default_value = "random", value_parser = ["random", "plusplus"])]
    start: String,
    /// Centroids of length one
    #[arg(long)]
    spherical: bool,
    /// What becomes of clusters without rows: see `empties` in pipelines/reference.toml
    #[arg(long, default_value = "split", value_parser = ["split", "faiss", "paper", "odc"])]
    empties: String,
    /// Equal shares for all clusters (Sinkhorn) instead of the nearest centroid
    #[arg(long, conflicts_with = "coarse")]
    balanced: bool,
    /// Neighbours of a row, for pic
    #[arg(long, default_value_t = 5)]
    neighbours: usize,
    /// Width of the kernel over distances, for pic
    #[arg(long, default_value_t = 0.2)]
    sigma: f64,
    /// Dimensions to which a fixed random projection takes the features first, as `bank.projection` does; 0 leaves them
    #[arg(long, value_name = "P", default_value_t = 0)]
    projection: usize,
    /// Dimensions kept by PCA
    #[arg(long, default_value_t = 256)]
    pca: usize,
    /// Cluster the features as they are, without PCA, whitening and scaling to length one
    #[arg(long)]
    no_whiten: bool,
    /// Chooses the start and the sample
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the keys of so many rows, taken evenly over the clusters of every level
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Of the lowest clusters take the rows nearest to the centroid, not any
    #[arg(long, requires = "sample")]
    nearest: bool,
    /// Where those keys go, by default beside --out
    #[arg(long, value_name = "FILE", requires = "sample")]
    subset: Option<PathBuf>,
    /// Also write PCA, whitening and centroids, as safetensors
    #[arg(long, value_name = "FILE", conflicts_with_all = ["no_whiten", "projection"])]
    save: Option<PathBuf>,
    /// Where to compute
    #[arg(long, default_value = "auto", value_parser = ["auto", "cpu", "cuda"])]
    device: String,
    /// CPU threads, by default all
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Results as JSON
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Summary {
    rows: usize,
    dimensions: i64,
    clusters: usize,
    /// Clusters of each level above.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    levels: Vec<usize>,
    /// Mean squared distance to the centroid.
    objective: f64,
    iterations: usize,
    empty: usize,
    largest_share: f64,
    /// Of the sizes, in nats.
    entropy: f64,
    /// With the labels of the features, geometric, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    nmi_labels: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample: Option<usize>,
    seconds: f64,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let plan = arguments.plan()?;
    let device =
        DevicePlan { kind: device_kind(&arguments.device), threads: arguments.threads, ..DevicePlan::default() };
    let placement = place(&device)?;
    set_threads(&placement);
    let file = FeatureFile::open(&arguments.features)?;
    let needed = if plan.method == Method::KMeans { plan.k } else { plan.neighbours + 1 };
    if file.rows() < needed {
        let (name, rows) = (arguments.features.display(), file.rows());
        return Err(Error::usage(format!("{name} has {rows} rows, too few for {needed} clusters or neighbours"))
            .with_hint("lower --k, or --neighbours of pic"));
    }
    let show = Show::new(arguments.iterations);
    let rows = arguments.read(&file, placement.device, &show)?;

    let (division, above) = match arguments.levels.as_slice() {
        [] => (
            cluster::divide(&Points::alone(&rows.points)?, &plan, None, arguments.seed, &mut |told| {
                show.told(0, told)
            })?,
            Vec::new(),
        ),
        ks => {
            let mut tell = |level, objective| show.told(level, Told::Objective(objective));
            let options = cluster::options(&plan, arguments.seed);
            let mut levels = hierarchy::levels(&rows.points, ks, options, &mut tell)?;
            let above = levels.split_off(1);
            let partition = levels.pop().ok_or_else(|| Error::usage("no levels"))?;
            (Division { partition, coarse: None, prices: None }, above)
        }
    };
    show.end();
    let (dimensions, Rows { keys, ids, labels, whitening, points }) = (rows.points.size()[1], rows);
    drop(points);

    let mut levels = vec![division.partition];
    levels.extend(above);
    if let Some(count) = arguments.sample {
        let pick = if arguments.nearest { Pick::Nearest } else { Pick::Random };
        let chosen = hierarchy::sample(&levels, count, pick, arguments.seed)?;
        arguments.write_subset(chosen.iter().map(|&row| keys[row].as_str()))?;
    }
    let mut summary = Summary::of(&levels, &labels, dimensions);
    summary.sample = arguments.sample;
    if let (Some(path), Some(whitening)) = (&arguments.save, whitening) {
        let Partition { centroids, sizes, .. } = &levels[0];
        let (centroids, sizes) = (centroids.shallow_clone(), sizes.clone());
        let found = Clustering { whitening, centroids, sizes, coarse: division.coarse, prices: division.prices };
        write_safetensors(path, &found.named_tensors()?, &BTreeMap::new())?;
    }
    let above = level_columns(&levels);
    let Some(Partition { assignment, distances, .. }) = levels.into_iter().next() else { return Ok(()) };
    Assignments { keys: Some(keys), ids, clusters: assignment, distances, classes: labels, levels: above }
        .write(&arguments.out)?;
    summary.seconds = started.elapsed().as_secs_f64();
    if arguments.json {
        return super::print_json(&summary);
    }
    super::print(&format!("{}\n-> {}", summary.text(), arguments.out.display()))
}

impl Arguments {
    fn plan(&self) -> Result<ClusterPlan> {
        let named = |error: String| Error::usage(error);
        let method = Method::try_from(self.method.clone()).map_err(named)?;
        if method == Method::Pic && !(self.levels.is_empty() && self.coarse == 0) {
            return Err(Error::usage("--method pic has one level").with_hint("leave out --levels and --coarse"));
        }
        let k = self.k.or(self.levels.first().copied());
        if k.is_none() && method == Method::KMeans {
            return Err(Error::usage("k-means needs to know how many clusters").with_hint("give --k, or --levels"));
        }
        Ok(ClusterPlan {
            method,
            k: k.unwrap_or(2),
            iterations: self.iterations,
            tolerance: self.tolerance,
            spherical: self.spherical,
            start: Start::try_from(self.start.clone()).map_err(named)?,
            empties: Empties::try_from(self.empties.clone()).map_err(named)?,
            coarse: self.coarse,
            balanced: self.balanced,
            neighbours: self.neighbours,
            sigma: self.sigma,
            ..ClusterPlan::default()
        })
    }

    /// The rows of a file as they are to be clustered.
    fn read(&self, file: &FeatureFile, device: Device, show: &Show) -> Result<Rows> {
        let (total, dim) = (file.rows(), file.dim());
        let projection = match self.projection {
            0 => None,
            dims => Some(Projection::new(dim, dims, seed::of(self.seed, "projection", 0), device)?),
        };
        let reduce = |features: &Tensor| match &projection {
            Some(projection) => projection.apply(&features.f_to_device(device)?),
            None => Ok(features.shallow_clone()),
        };
        let width = if self.projection > 0 { self.projection } else { dim } as i64;
        let whitening = match self.no_whiten {
            true => None,
            false => {
                let mut covariance = Covariance::new(width, device)?;
                for block in file.blocks()? {
                    covariance.add(&reduce(&block?.features)?)?;
                    show.reading("covariance", covariance.count() as usize, total);
                }
                Some(Whitening::of(covariance, self.pca)?)
            }
        };
        let width = whitening.as_ref().map_or(width, Whitening::output_dim);
        let points = Tensor::f_empty([total as i64, width], (Kind::Float, device))?;
        let mut rows = Rows { keys: Vec::new(), ids: Vec::new(), labels: Vec::new(), whitening, points };
        for block in file.blocks()? {
            let block = block?;
            let (start, len) = (rows.ids.len() as i64, block.ids.len() as i64);
            let reduced = reduce(&block.features)?;
            let projected = match &rows.whitening {
                Some(whitening) => whitening.apply(&reduced)?,
                None => reduced,
            };
            rows.points.f_narrow(0, start, len)?.f_copy_(&projected)?;
            rows.keys.extend(block.keys);
            rows.ids.extend(block.ids);
            rows.labels.extend(block.labels);
            show.reading("projecting", rows.ids.len(), total);
        }
        Ok(rows)
    }

    fn write_subset<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Result<()> {
        let path = self.subset.clone().unwrap_or_else(|| self.out.with_extension("subset.txt"));
        let mut text: String = keys.collect::<Vec<_>>().join("\n");
        text.push('\n');
        fs::write(&path, text).map_err(|error| Error::file("write", &path, &error))
    }
}

/// The rows of a file, projected.
struct Rows {
    keys: Vec<String>,
    ids: Vec<crate::shards::SampleId>,
    labels: Vec<Option<i64>>,
    /// None where they are left as they are.
    whitening: Option<Whitening>,
    /// `[N, d]`, f32.
    points: Tensor,
}

/// The cluster of each row in each level above the first.
fn level_columns(levels: &[Partition]) -> Vec<Vec<u32>> {
    let Some((first, above)) = levels.split_first() else { return Vec::new() };
    let mut below = first.assignment.clone();
    above
        .iter()
        .map(|level| {
            below.iter_mut().for_each(|cluster| *cluster = level.assignment[*cluster as usize]);
            below.clone()
        })
        .collect()
}

impl Summary {
    fn of(levels: &[Partition], labels: &[Option<i64>], dimensions: i64) -> Self {
        let first = &levels[0];
        let rows = first.assignment.len();
        Self {
            rows,
            dimensions,
            clusters: first.sizes.len(),
            levels: levels[1..].iter().map(|level| level.sizes.len()).collect(),
            objective: first.objective() / rows.max(1) as f64,
            iterations: first.iterations(),
            empty: first.sizes.iter().filter(|&&size| size == 0).count(),
            largest_share: first.sizes.iter().max().copied().unwrap_or(0) as f64 / rows.max(1) as f64,
            entropy: entropy(&first.sizes),
            nmi_labels: cluster::nmi_with_classes(&first.assignment, labels),
            sample: None,
            seconds: 0.0,
        }
    }

    fn text(&self) -> String {
        let above = self.levels.iter().map(|k| format!(", {k} above")).collect::<String>();
        let nmi = self.nmi_labels.map(|nmi| format!(", NMI with the labels {nmi:.4}")).unwrap_or_default();
        let sample = self.sample.map(|count| format!(", a subset of {count}")).unwrap_or_default();
        let iterations =
            if self.iterations > 0 { format!(" after {} iterations", self.iterations) } else { String::new() };
        format!(
            "{} rows of {} dimensions in {} clusters{above} ({} empty, the largest {:.2} %), mean squared distance \
             {:.5}{iterations}{nmi}{sample}, {:.1} s",
            self.rows,
            self.dimensions,
            self.clusters,
            self.empty,
            100.0 * self.largest_share,
            self.objective,
            self.seconds
        )
    }
}

/// What is going on, on stderr.
struct Show {
    bar: ProgressBar,
    iterations: usize,
}

impl Show {
    fn new(iterations: usize) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, iterations }
    }

    fn reading(&self, what: &str, rows: usize, total: usize) {
        self.bar.set_message(format!("{what}: {rows} of {total} rows"));
    }

    fn told(&self, level: usize, told: Told) {
        let text = match told {
            Told::Objective(objective) => {
                format!(
                    "level {}: sum of squared distances {objective:.4}, at most {} iterations",
                    level + 1,
                    self.iterations
                )
            }
            Told::Neighbours(share) => format!("neighbours: {:.0} %", 100.0 * share),
        };
        self.bar.set_message(text);
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
