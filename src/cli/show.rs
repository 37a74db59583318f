//! `shoal show`: pictures of what a run has found.

use crate::cluster::assignments::Assignments;
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::pipeline::find;
use crate::shards::ShardList;
use crate::shards::index::Index;
use crate::visualize::sheet::{Choice, Sheet, SheetRow, describe, nearest};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The pictures.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Clusters as a contact sheet: one row each, the photographs nearest to its centroid first
    Sheet(SheetArguments),
}

/// The arguments of `shoal show sheet`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal show sheet --run runs/demo --out sheet.png
  shoal show sheet --run runs/demo --out three.png --cluster 4,7,12 --columns 12
  shoal show sheet --run runs/yfcc --shards 'part-{000..003}.tar' --out some.png --largest")]
pub(super) struct SheetArguments {
    /// The run
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// The PNG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The cycle after this step, by default the last
    #[arg(long, value_name = "STEP")]
    step: Option<u64>,
    /// Clusters shown, spread evenly from the largest to the smallest
    #[arg(long, default_value_t = 12)]
    rows: usize,
    /// Only the largest clusters
    #[arg(long)]
    largest: bool,
    /// These clusters
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "largest")]
    cluster: Vec<usize>,
    /// Photographs in a row
    #[arg(long, default_value_t = 8)]
    columns: usize,
    /// Side of a photograph in pixels
    #[arg(long, default_value_t = 128)]
    side: u32,
    /// Where to look for the photographs, by default the run's own shards (repeatable)
    #[arg(long, value_name = "LIST")]
    shards: Vec<String>,
}

pub(super) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Sheet(arguments) => sheet(arguments),
    }
}

fn sheet(arguments: &SheetArguments) -> Result<()> {
    let plan = Plan::load(&arguments.run.join("pipeline.toml"), &[])?;
    let file = assignments_file(&arguments.run, arguments.step)?;
    let assignments = Assignments::read(&file)?;
    let choice = match (arguments.cluster.as_slice(), arguments.largest) {
        ([], false) => Choice::Spread(arguments.rows),
        ([], true) => Choice::Largest(arguments.rows),
        (clusters, _) => Choice::These(clusters.to_vec()),
    };
    let sizes = assignments.sizes();
    let clusters = choice.clusters(&sizes)?;
    let chosen: Vec<Vec<usize>> = clusters
        .iter()
        .map(|cluster| nearest(*cluster, &assignments.clusters, &assignments.distances, arguments.columns))
        .collect();
    let wanted: HashSet<_> = chosen.iter().flatten().map(|row| assignments.ids[*row]).collect();
    let specs = if arguments.shards.is_empty() { &plan.stream.shards } else { &arguments.shards };
    let list = ShardList::parse_with(specs, &plan.fetch)?;
    let index = Index::new(arguments.run.join("index"));
    let found = find::thumbnails(&plan, list, &index, &wanted, arguments.side)?;
    if found.is_empty() {
        return Err(Error::data(format!(
            "none of the {} photographs of {} is in the shards",
            wanted.len(),
            file.display()
        ))
        .with_hint("name the shards that hold them with --shards"));
    }
    let mut rows = Vec::with_capacity(clusters.len());
    for (cluster, members) in clusters.iter().zip(&chosen) {
        let thumbnails = members.iter().filter_map(|row| Some(found.get(&assignments.ids[*row])?.1.clone())).collect();
        rows.push(SheetRow {
            cluster: *cluster,
            size: sizes[*cluster],
            caption: caption(&assignments, *cluster),
            thumbnails,
        });
    }
    let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let sheet = Sheet {
        title: format!("Clusters of {}", arguments.run.display()),
        subtitle: format!(
            "{name} · {} clusters, {} photographs · nearest to the centroid first",
            sizes.iter().filter(|size| **size > 0).count(),
            assignments.ids.len()
        ),
        rows,
    };
    let picture = sheet.render(arguments.side)?;
    picture
        .save(&arguments.out)
        .map_err(|error| Error::data(format!("cannot write {}: {error}", arguments.out.display())))?;
    super::print(&format!("{} clusters, {} photographs -> {}", clusters.len(), found.len(), arguments.out.display()))
}

/// Mean distance, and the classes of the samples where they have some.
fn caption(assignments: &Assignments, cluster: usize) -> String {
    let members = assignments.clusters.iter().enumerate().filter(|(_, found)| **found as usize == cluster);
    let members: Vec<usize> = members.map(|(row, _)| row).collect();
    let distance: f64 = members.iter().map(|row| f64::from(assignments.distances[*row])).sum();
    let classes: Vec<i64> = members.iter().filter_map(|row| assignments.classes[*row]).collect();
    describe(distance / members.len().max(1) as f64, &classes)
}

/// The assignments of the cycle at `step`, or of the last one.
fn assignments_file(run: &Path, step: Option<u64>) -> Result<PathBuf> {
    let folder = run.join("clusters");
    if let Some(step) = step {
        return Ok(folder.join(format!("step-{step:09}.arrow")));
    }
    let entries = fs::read_dir(&folder).map_err(|error| {
        Error::file("read", &folder, &error)
            .with_hint("a run has clusters after its first cycle; is --run a run folder?")
    })?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "arrow"));
    files.sort();
    files.pop().ok_or_else(|| {
        Error::data(format!("{} is empty", folder.display())).with_hint("a run has clusters after its first cycle")
    })
}
