//! `shoal show sheet`: clusters with their photographs.

use super::save;
use crate::cli::print;
use crate::cluster::assignments::{self, Assignments};
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::pipeline::find;
use crate::shards::ShardList;
use crate::shards::index::Index;
use crate::visualize::choice::{Choice, Clusters, Order, Sort};
use crate::visualize::sheet::Sheet;
use std::path::PathBuf;

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
    let file = assignments::of_cycle(&arguments.run, arguments.step)?;
    let assignments = Assignments::read(&file)?;
    let choice = match (arguments.cluster.as_slice(), arguments.first) {
        ([], false) => Choice::Spread(arguments.rows),
        ([], true) => Choice::First(arguments.rows),
        (clusters, _) => Choice::These(clusters.to_vec()),
    };
    let all = Clusters::of(&assignments);
    let picked = all.pick(&choice, arguments.sort, arguments.order, arguments.columns)?;
    let wanted = all.ids(&picked);
    let specs = if arguments.shards.is_empty() { &plan.stream.shards } else { &arguments.shards };
    let list = ShardList::parse_with(specs, &plan.fetch)?;
    let index = Index::new(arguments.run.join("index"));
    let found = find::thumbnails(&plan, list, &index, &wanted, arguments.side, find::Reach::EVERYTHING)?;
    if found.is_empty() {
        return Err(Error::data(format!("none of the {} photographs is in {}", wanted.len(), specs.join(" ")))
            .with_hint("name the shards that hold them with --shards"));
    }
    let found = found.into_iter().map(|(id, (_, picture))| (id, picture)).collect();
    let rows = all.rows(&picked, &found);
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
    print(&format!("{} clusters, {} photographs -> {}", picked.len(), found.len(), arguments.out.display()))
}
