//! `shoal sweep`: the same pipeline with different settings, each run measured the same way (paper, Figure 2c).

mod grid;
mod table;

use super::network::FeatureArguments;
use super::print;
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::evaluate::{knn, linear};
use crate::observe::console::say;
use crate::pipeline;
use crate::train::record::{self, Record};
use crate::visualize::plot::Plot;
use grid::{Axis, Combination, combinations};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use table::{MEASURES, Measures, Table};

/// The arguments of `shoal sweep`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal sweep fashion --set cluster.k=50,200,1000 --set stream.seed=31,32,33 --set train.steps=1000 \\
    --train shards/fashion-train.tar.zst --test shards/fashion-test.tar.zst
  shoal sweep my.toml --run /data/sweep --set cluster.every_steps=1000,5000 --set train.head=reset,match

Every combination of the values is a run of its own under DIR/runs. DIR gets sweep.tsv (a line for each run, as soon as it is
measured), sweep.md (means and deviations over stream.seed) and a plot of each measure along the first key with several numbers. Stopped
and started again, a sweep goes on where it was.")]
pub(super) struct Arguments {
    /// Pipeline file, or the name of one in pipelines/
    pipeline: PathBuf,
    /// Set a key of the pipeline, to several values in turn: KEY=VALUE,VALUE,... (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUES", required = true)]
    set: Vec<String>,
    /// Folder of the sweep; by default runs/sweep- and the name of the pipeline
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Labelled shards (.cls) to fit on: k-NN and linear accuracy are measured (repeatable)
    #[arg(long, value_name = "LIST", requires = "test")]
    train: Vec<String>,
    /// Labelled shards (.cls) to test on (repeatable)
    #[arg(long, value_name = "LIST", requires = "train")]
    test: Vec<String>,
    /// Layer whose features are measured; by default the feature that is clustered
    #[arg(long, requires = "train")]
    layer: Option<String>,
    /// Remove the folder of each run once it is measured
    #[arg(long)]
    remove_runs: bool,
    /// Plain lines instead of a bar
    #[arg(long)]
    no_bar: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let axes = arguments.set.iter().map(|setting| Axis::parse(setting)).collect::<Result<Vec<_>>>()?;
    let all = combinations(&axes);
    // Every plan is checked before the first run starts.
    let plans = all.iter().map(|values| plan(arguments, &axes, values)).collect::<Result<Vec<_>>>()?;
    if let Some(plan) = plans.iter().find(|plan| plan.train.steps == 0) {
        return Err(Error::usage(format!("a run with train.steps = {} never ends", plan.train.steps))
            .with_hint("--set train.steps=N"));
    }
    let folder = folder(arguments)?;
    std::fs::create_dir_all(&folder).map_err(|error| Error::file("make", &folder, &error))?;
    let mut table = Table::open(&folder.join("sweep.tsv"), &axes)?;
    let left = all.iter().filter(|values| !table.holds(values)).count();
    say(&format!("{} runs, {left} of them to do, in {}", all.len(), folder.display()));

    let mut number = all.len() - left;
    for (values, plan) in all.into_iter().zip(plans) {
        if table.holds(&values) {
            continue;
        }
        number += 1;
        say(&format!("run {number}: {}", describe(&axes, &values)));
        let run = folder.join("runs").join(name(&axes, &values));
        let bar = !arguments.no_bar && std::io::stderr().is_terminal();
        pipeline::pretrain(&plan, &run, bar, None)?;
        let measures = measure(arguments, &run)?;
        let found =
            MEASURES.iter().zip(measures).filter_map(|((_, title), value)| Some(format!("{title} {:.4}", value?)));
        say(&found.collect::<Vec<_>>().join(", "));
        table.add(values, measures)?;
        if arguments.remove_runs {
            std::fs::remove_dir_all(&run).map_err(|error| Error::file("remove", &run, &error))?;
        }
        write(&folder, &table)?;
    }
    write(&folder, &table)?;
    print(table.markdown().trim_end())
}

fn folder(arguments: &Arguments) -> Result<PathBuf> {
    if let Some(folder) = &arguments.run {
        return Ok(folder.clone());
    }
    let pipeline = &arguments.pipeline;
    let name = pipeline.file_stem().ok_or_else(|| Error::usage(format!("{} names no file", pipeline.display())))?;
    Ok(Path::new("runs").join(format!("sweep-{}", name.display())))
}

fn plan(arguments: &Arguments, axes: &[Axis], values: &Combination) -> Result<Plan> {
    let settings: Vec<String> = axes.iter().zip(values).map(|(axis, value)| format!("{}={value}", axis.key)).collect();
    Plan::load(&arguments.pipeline, &settings)
}

/// What tells a run from the others, for people.
fn describe(axes: &[Axis], values: &Combination) -> String {
    let differ = axes.iter().zip(values).filter(|(axis, _)| axis.varies());
    differ.map(|(axis, value)| format!("{} = {value}", axis.key)).collect::<Vec<_>>().join(", ")
}

/// The same as the name of a folder.
fn name(axes: &[Axis], values: &Combination) -> String {
    let differ = axes.iter().zip(values).filter(|(axis, _)| axis.varies());
    let parts = differ.map(|(axis, value)| format!("{}-{value}", axis.key)).collect::<Vec<_>>().join("_");
    let safe = |letter: char| if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '-' };
    let name: String = parts.chars().map(safe).collect();
    if name.is_empty() { "run".to_owned() } else { name }
}

/// Accuracies in percent where there are labelled lists, and the agreement of the last cycle.
fn measure(arguments: &Arguments, run: &Path) -> Result<Measures> {
    let (mut knn, mut linear) = (None, None);
    if !arguments.train.is_empty() {
        let network = FeatureArguments::of(run, arguments.layer.clone()).open()?;
        let (train, train_labels) = network.labelled_features(&arguments.train)?;
        let (test, test_labels) = network.labelled_features(&arguments.test)?;
        let neighbours = knn::accuracy(&train, &train_labels, &test, &test_labels, knn::Options::default())?;
        knn = Some(100.0 * neighbours.accuracy);
        let fitted = linear::accuracy(&train, &train_labels, &test, &test_labels, linear::Options::default())?;
        linear = Some(100.0 * fitted.accuracy);
    }
    let (labels, previous) = last_cycle(run)?;
    Ok([knn, linear, labels, previous])
}

/// NMI of the last clustering with the labels, and with the one before.
fn last_cycle(run: &Path) -> Result<(Option<f64>, Option<f64>)> {
    let mut cycles = record::read(run)?.into_iter().filter_map(|record| match record {
        Record::Cycle(cycle) => Some((cycle.nmi_labels, cycle.nmi_prev)),
        _ => None,
    });
    Ok(cycles.next_back().unwrap_or_default())
}

/// The table as Markdown, and a plot of each measure.
fn write(folder: &Path, table: &Table) -> Result<()> {
    let save = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|error| Error::file("write", &path, &error))
    };
    save("sweep.md", &table.markdown())?;
    for (number, (name, title)) in MEASURES.iter().enumerate() {
        let Some((key, series)) = table.series(number) else { continue };
        let plot = Plot { title, x: &key, y: title, log_x: spans_decades(&series), series: &series, size: (760, 480) };
        save(&format!("sweep-{name}.svg"), &plot.svg()?)?;
    }
    Ok(())
}

/// Whether values of x are better told apart by their logarithms.
fn spans_decades(series: &[crate::visualize::plot::Series]) -> bool {
    let xs = series.iter().flat_map(|one| &one.points).map(|point| point.x);
    let (low, high) = xs.fold((f64::INFINITY, 0.0_f64), |(low, high), x| (low.min(x), high.max(x)));
    low > 0.0 && high / low >= 10.0
}
