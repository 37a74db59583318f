//! `shoal eval retrieval`: finding photographs of the same building by what a convolution sees.
//!
//! Folders of photographs and of ground truth go in; the average precision of each query comes out, and their mean. What is there and
//! what is missing is said before work begins. Photographs go by once, one at a time; with `--cache` what the network saw in them is
//! kept, so that an interrupted evaluation goes on where it was.

use super::publish;
use crate::cli::network::{Network, NetworkArguments};
use crate::cli::progress::Progress;
use crate::error::{Error, Result};
use crate::evaluate::precision::Relevance;
use crate::evaluate::retrieval::cache::{Cache, Settings};
use crate::evaluate::retrieval::images::{Images, images};
use crate::evaluate::retrieval::look::Looker;
use crate::evaluate::retrieval::ranking::{Database, Place};
use crate::evaluate::retrieval::truth::{Query, absent, queries};
use crate::evaluate::retrieval::{self, Learnt, LeftOut, MOST_TO_LEARN_FROM};
use crate::observe::console::say;
use crate::pipeline::start_runtime;
use crate::pipeline::stop::Stop;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The arguments of `shoal eval retrieval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal eval retrieval --snapshot runs/vgg --images oxford5k/images --truth oxford5k/truth \\
    --whiten-images paris6k/images --cache cache
  ops/data/miniature_oxford.py mini && shoal eval retrieval --snapshot random:small:rgb --side 256 \\
    --images mini/oxford/images --truth mini/oxford/truth --whiten-images mini/paris/images

The folder of --truth holds NAME_query.txt (a photograph, and left, top, right and bottom of a box), NAME_good.txt, NAME_ok.txt and
NAME_junk.txt for each query, as the authors of Oxford 5k and Paris 6k hand them out. Photographs go through the network one at a
time, at their aspect. With --cache, one small file for each photograph and network is kept (40 kB for VGG-16): whatever is there
already is not computed again, after an interruption or for other --dims, queries or whitening.")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    network: NetworkArguments,
    /// Layer whose map is taken (after batch norm and ReLU, before its pool); by default the last one
    #[arg(long)]
    layer: Option<String>,
    /// Folder of the photographs that are ranked; those of folders in it count
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Folder of the lists of the queries
    #[arg(long, value_name = "DIR")]
    truth: PathBuf,
    /// Folder of other photographs, on whose regions the whitening is learnt: Paris for Oxford, Oxford for Paris
    #[arg(long, value_name = "DIR", required_unless_present = "no_whiten")]
    whiten_images: Option<PathBuf>,
    /// Leave the descriptors as they are
    #[arg(long, conflicts_with = "whiten_images")]
    no_whiten: bool,
    /// Longest side of a photograph, in pixels
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    side: u32,
    /// Scales at which regions are taken
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i64).range(1..=16))]
    levels: i64,
    /// Dimensions kept by the whitening, at most
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(i64).range(1..))]
    dims: i64,
    /// Folder where what the network saw is kept for the next time
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Also write every ranking: query, rank, photograph, similarity and relevance, tab-separated
    #[arg(long, value_name = "FILE")]
    rankings: Option<PathBuf>,
    /// Results as JSON
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Summary {
    network: String,
    layer: String,
    side: u32,
    levels: i64,
    /// Entries of a descriptor.
    dimensions: i64,
    /// Their folder.
    images: String,
    /// Photographs ranked.
    photographs: usize,
    /// Photographs that cannot be decoded, of both folders.
    left_out: Vec<String>,
    /// None without whitening.
    whitening: Option<Learning>,
    queries: Vec<Found>,
    /// Mean over the queries, in 0..1.
    mean_average_precision: f64,
}

/// What the whitening was learnt from.
#[derive(Debug, Serialize)]
struct Learning {
    images: usize,
    regions: i64,
}

/// What came of a query.
#[derive(Debug, Serialize)]
struct Found {
    query: String,
    image: String,
    positives: usize,
    junk: usize,
    /// In 0..1.
    average_precision: f64,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let database = images(&arguments.images)?;
    let queries = queries(&arguments.truth, &database)?;
    let others = match &arguments.whiten_images {
        Some(folder) => Some(arguments.others(folder)?),
        None => None,
    };
    arguments.say_what_is_there(&database, &queries, others.as_ref());

    let network = arguments.network.open()?;
    let looker = arguments.looker(&network)?;
    // Every photograph has a size of its own: trying out kernels for each would take longer than any of them.
    tch::Cuda::cudnn_set_benchmark(false);
    let runtime = start_runtime()?;
    let stop = Stop::default();
    stop.on_signals(runtime.handle())?;
    let measured = arguments.measure(&looker, (&database, &queries, others.as_ref()), &stop);
    if matches!(measured, Err(Error::Interrupted { .. })) {
        say(match &arguments.cache {
            Some(_) => "interrupted: the same command goes on from here",
            None => "interrupted: with --cache DIR the same command would go on from here",
        });
    }
    let summary = Summary::new(&network, &looker, arguments, &queries, measured?);
    publish(&network, "retrieval", &summary, arguments.json, Summary::text)
}

impl Arguments {
    /// Photographs to learn the whitening from.
    fn others(&self, folder: &Path) -> Result<Images> {
        let mut others = images(folder)?;
        if fs::canonicalize(folder).ok() == fs::canonicalize(&self.images).ok() {
            say(
                "warning: the whitening is learnt on the photographs that are ranked; the published protocol takes other ones",
            );
        }
        if others.len() > MOST_TO_LEARN_FROM {
            say(&format!(
                "of {} photographs to learn the whitening from, the first {MOST_TO_LEARN_FROM} are taken",
                others.len()
            ));
            others = others.into_iter().take(MOST_TO_LEARN_FROM).collect();
        }
        Ok(others)
    }

    fn say_what_is_there(&self, database: &Images, queries: &[Query], others: Option<&Images>) {
        let (images, truth) = (self.images.display(), self.truth.display());
        let whitening = match (&self.whiten_images, others) {
            (Some(folder), Some(others)) => {
                format!("{} photographs in {} to learn the whitening from", others.len(), folder.display())
            }
            _ => "no whitening".to_owned(),
        };
        say(&format!("{} photographs in {images}, {} queries in {truth}, {whitening}", database.len(), queries.len()));
        let absent = absent(queries, database);
        if !absent.is_empty() {
            let (count, which) = (absent.len(), some_of(absent.into_iter().map(str::to_owned)));
            say(&format!("positives that are not in {images} and count as not found: {count} ({which})"));
        }
    }

    fn looker<'a>(&self, network: &'a Network) -> Result<Looker<'a>> {
        let backbone = network.backbone();
        let maps = backbone.map_layers();
        let wanted = self.layer.as_deref().or(maps.last().copied()).unwrap_or_default();
        let Some(layer) = maps.iter().copied().find(|&layer| layer == wanted) else {
            return Err(
                Error::usage(format!("the layer {wanted} has no map")).with_hint(format!("one of {}", maps.join(", ")))
            );
        };
        let cache = match &self.cache {
            None => None,
            Some(folder) => {
                let plan = network.plan();
                let settings = Settings {
                    network: backbone.fingerprint()?,
                    metadata: backbone.metadata(),
                    precision: plan.device.precision.name(),
                    mean: plan.views.mean,
                    std: plan.views.std,
                    layer: layer.to_owned(),
                    side: self.side,
                    levels: self.levels,
                };
                Some(Cache::open(folder, &settings)?)
            }
        };
        let (side, levels) = (self.side, self.levels);
        Ok(Looker { backbone, normalizer: network.normalizer()?, layer, side, levels, cache })
    }

    fn measure(
        &self,
        looker: &Looker<'_>,
        (images, queries, others): (&Images, &[Query], Option<&Images>),
        stop: &Stop,
    ) -> Result<Measured> {
        let mut left_out = Vec::new();
        let proceed = |progress: &Progress| {
            if stop.is_requested() {
                return Err(Error::Interrupted { snapshot: None });
            }
            progress.step();
            Ok(())
        };
        let learnt = match others {
            None => None,
            Some(others) => {
                let progress = Progress::new("photographs to learn the whitening from", others.len());
                Some(retrieval::learn(looker, others, self.dims, &mut left_out, || proceed(&progress))?)
            }
        };
        let whitening = learnt.as_ref().map(|learnt| &learnt.whitening);
        if let Some(Learnt { regions, whitening, .. }) = &learnt
            && *regions <= whitening.dims()
        {
            let dims = whitening.dims();
            say(&format!("warning: {regions} regions are too few to learn {dims} dimensions from: lower --dims"));
        }
        let progress = Progress::new("photographs", images.len());
        let database = retrieval::database(looker, images, whitening, &mut left_out, || proceed(&progress))?;
        drop(progress);
        say_left_out(&left_out);

        let mut rankings = self.rankings.as_deref().map(Rankings::create).transpose()?;
        let progress = Progress::new("queries", queries.len());
        let mut precisions = Vec::with_capacity(queries.len());
        for query in queries {
            let descriptor = retrieval::describe_query(looker, query, images, whitening)?;
            let ranking = database.rank(&descriptor)?;
            if let Some(rankings) = &mut rankings {
                rankings.write(query, &database, &ranking)?;
            }
            precisions.push(database.precision(query, &ranking)?);
            proceed(&progress)?;
        }
        if let Some(rankings) = rankings {
            rankings.finish()?;
        }
        Ok(Measured { learnt, database, left_out, precisions })
    }
}

/// What was learnt and found.
struct Measured {
    learnt: Option<Learnt>,
    database: Database,
    left_out: Vec<LeftOut>,
    /// Of each query, in 0..1.
    precisions: Vec<f64>,
}

impl Summary {
    fn new(
        network: &Network,
        looker: &Looker<'_>,
        arguments: &Arguments,
        queries: &[Query],
        measured: Measured,
    ) -> Self {
        let Measured { learnt, database, left_out, precisions } = measured;
        let found = |(query, &average_precision): (&Query, &f64)| Found {
            query: query.name.clone(),
            image: query.image.clone(),
            positives: query.positives.len(),
            junk: query.junk.len(),
            average_precision,
        };
        Self {
            network: network.origin.clone(),
            layer: looker.layer.to_owned(),
            side: looker.side,
            levels: looker.levels,
            dimensions: database.descriptors.size()[1],
            photographs: database.names.len(),
            images: arguments.images.display().to_string(),
            left_out: left_out.into_iter().map(|left_out| left_out.image).collect(),
            whitening: learnt.map(|learnt| Learning { images: learnt.images, regions: learnt.regions }),
            queries: queries.iter().zip(&precisions).map(found).collect(),
            mean_average_precision: precisions.iter().sum::<f64>() / precisions.len().max(1) as f64,
        }
    }

    fn text(&self) -> String {
        let width = self.queries.iter().map(|found| found.query.len()).max().unwrap_or(0).max("query".len());
        let mut text = format!("{:width$}  positives   junk      AP\n", "query");
        for Found { query, positives, junk, average_precision, .. } in &self.queries {
            text.push_str(&format!("{query:width$}  {positives:>9}  {junk:>5}  {:>6.2}\n", 100.0 * average_precision));
        }
        let whitening = match &self.whitening {
            Some(Learning { images, regions }) => {
                format!("whitened by {regions} regions of {images} other photographs")
            }
            None => "not whitened".to_owned(),
        };
        text.push_str(&format!(
            "mAP {:.2} % of {} queries among {} photographs: {} of {}, {} levels, longest side {}, {} dimensions, {whitening}",
            100.0 * self.mean_average_precision,
            self.queries.len(),
            self.photographs,
            self.layer,
            self.network,
            self.levels,
            self.side,
            self.dimensions,
        ));
        text
    }
}

/// The file of `--rankings`, being written.
struct Rankings {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Rankings {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::file("write", path, &error))?;
        let mut rankings = Self { path: path.to_owned(), file: BufWriter::new(file) };
        rankings.line(format_args!("query\trank\timage\tsimilarity\trelevance"))?;
        Ok(rankings)
    }

    fn write(&mut self, query: &Query, database: &Database, ranking: &[Place]) -> Result<()> {
        for (rank, place) in ranking.iter().enumerate() {
            let image = &database.names[place.row];
            let relevance = match query.relevance(image) {
                Relevance::Positive => "positive",
                Relevance::Junk => "junk",
                Relevance::Negative => "negative",
            };
            let (name, rank, similarity) = (&query.name, rank + 1, place.similarity);
            self.line(format_args!("{name}\t{rank}\t{image}\t{similarity:.9}\t{relevance}"))?;
        }
        Ok(())
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) -> Result<()> {
        writeln!(self.file, "{line}").map_err(|error| Error::file("write", &self.path, &error))
    }

    fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(|error| Error::file("write", &self.path, &error))
    }
}

fn say_left_out(left_out: &[LeftOut]) {
    if left_out.is_empty() {
        return;
    }
    let which = left_out.iter().map(|LeftOut { image, trouble }| format!("{image}: {}", trouble.reason));
    let (count, which) = (left_out.len(), some_of(which));
    say(&format!("left out, since they cannot be decoded or are cut short: {count} ({which})"));
}

/// The first few of a list, and how many more there are.
fn some_of(names: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 20;
    let more = names.len().saturating_sub(SHOWN);
    let mut text = names.take(SHOWN).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
