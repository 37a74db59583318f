//! `shoal show sheet`: clusters with their photographs.

use super::save;
use crate::cli::print;
use crate::cluster::assignments::Assignments;
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::pipeline::find;
use crate::shards::ShardList;
use crate::shards::index::Index;
use crate::visualize::choice::{Choice, Clusters, Order, Sort};
use crate::visualize::sheet::{Sheet, SheetRow};
use indicatif::HumanCount;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The arguments of `shoal show sheet`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal show sheet --run runs/demo --out sheet.png
  shoal show sheet --run runs/demo --out three.png --cluster 4,7,12 --columns 12
  shoal show sheet --run runs/imagenet --out pure.png --sort purity --first
  shoal show sheet --run runs/demo --out edge.png --order farthest
  shoal show sheet --run runs/yfcc --shards 'part-{000..003}.tar' --out some.png --first")]
pub(in crate::cli) struct Arguments {
    /// The run
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// The PNG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The cycle after this step, by default the last
    #[arg(long, value_name = "STEP")]
    step: Option<u64>,
    /// Clusters shown, spread evenly from the first to the last
    #[arg(long, default_value_t = 12)]
    rows: usize,
    /// What they are sorted by
    #[arg(long, value_enum, default_value_t = Sort::Size)]
    sort: Sort,
    /// Not spread: only the first of them
    #[arg(long, alias = "largest")]
    first: bool,
    /// These clusters
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with_all = ["first", "sort"])]
    cluster: Vec<usize>,
    /// Which photographs of a cluster are shown
    #[arg(long, value_enum, default_value_t = Order::Nearest)]
    order: Order,
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

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let plan = Plan::load(&arguments.run.join("pipeline.toml"), &[])?;
    let file = assignments_file(&arguments.run, arguments.step)?;
    let assignments = Assignments::read(&file)?;
    let choice = match (arguments.cluster.as_slice(), arguments.first) {
        ([], false) => Choice::Spread(arguments.rows),
        ([], true) => Choice::First(arguments.rows),
        (clusters, _) => Choice::These(clusters.to_vec()),
    };
    let all = Clusters::of(&assignments);
    let clusters = all.choose(&choice, arguments.sort)?;
    let members = |cluster: &usize| all.members(*cluster, arguments.order, arguments.columns);
    let chosen: Vec<Vec<usize>> = clusters.iter().map(members).collect();
    let wanted: HashSet<_> = chosen.iter().flatten().map(|row| assignments.ids[*row]).collect();
    let specs = if arguments.shards.is_empty() { &plan.stream.shards } else { &arguments.shards };
    let list = ShardList::parse_with(specs, &plan.fetch)?;
    let index = Index::new(arguments.run.join("index"));
    let found = find::thumbnails(&plan, list, &index, &wanted, arguments.side)?;
    if found.is_empty() {
        return Err(Error::data(format!("none of the {} photographs is in {}", wanted.len(), specs.join(" ")))
            .with_hint("name the shards that hold them with --shards"));
    }
    let largest = clusters.iter().map(|cluster| all.size(*cluster)).max().unwrap_or(0).max(1);
    let mut rows = Vec::with_capacity(clusters.len());
    for (cluster, members) in clusters.iter().zip(&chosen) {
        let thumbnails = members.iter().filter_map(|row| Some(found.get(&assignments.ids[*row])?.1.clone())).collect();
        let size = all.size(*cluster);
        let unit = if size == 1 { "image" } else { "images" };
        rows.push(SheetRow {
            name: format!("cluster {cluster}"),
            share: Some(size as f64 / largest as f64),
            caption: format!("{} {unit}\n{}", HumanCount(size as u64), all.describe(*cluster)),
            thumbnails,
        });
    }
    let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let sheet = Sheet {
        title: format!("Clusters of {}", arguments.run.display()),
        subtitle: format!(
            "{name} · {} clusters, {} photographs · {}",
            all.count(),
            assignments.ids.len(),
            arguments.order.name()
        ),
        rows,
    };
    save(&sheet.render(arguments.side)?, &arguments.out)?;
    print(&format!("{} clusters, {} photographs -> {}", clusters.len(), found.len(), arguments.out.display()))
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
