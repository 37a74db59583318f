//! `shoal show map`: the bank of a run in the plane, with photographs.

use super::{photographs, save};
use crate::bank::Bank;
use crate::cli::print;
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::snapshot::Snapshot;
use crate::visualize::map::{Map, Method, places};
use indicatif::HumanCount;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use tch::Tensor;

/// Classes that have colours of their own.
const MOST_CLASSES: usize = 10;

/// The arguments of `shoal show map`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal show map --run runs/demo --out map.png
  shoal show map --run runs/demo --method tsne --points 1500 --out neighbours.png

The rows are those of the bank in the latest snapshot, evenly taken from it. Where samples have classes (.cls), the commonest ten have
colours.")]
pub(in crate::cli) struct Arguments {
    /// The run
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// The PNG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How features become places
    #[arg(long, value_enum, default_value_t = Method::Pca)]
    method: Method,
    /// Rows of the bank that are shown, at most
    #[arg(long, default_value_t = 5_000)]
    points: usize,
    /// Side of a photograph in pixels
    #[arg(long, default_value_t = 56, value_parser = clap::value_parser!(u32).range(16..=512))]
    side: u32,
    /// Width of the map in pixels
    #[arg(long, default_value_t = 1_600, value_parser = clap::value_parser!(u32).range(200..=10_000))]
    width: u32,
    /// Where to look for the photographs, by default the run's own shards (repeatable)
    #[arg(long, value_name = "LIST")]
    shards: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let plan = Plan::load(&arguments.run.join("pipeline.toml"), &[])?;
    let snapshot = Snapshot::open(&arguments.run)?;
    let bank = Bank::read(&snapshot.file("bank.arrow")?, plan.bank.capacity)?;
    if bank.is_empty() {
        return Err(Error::data(format!("the bank of {} is empty", arguments.run.display()))
            .with_hint("a bank fills until the first cycle; show the map of a later snapshot"));
    }
    let count = arguments.points.clamp(1, bank.len());
    let rows: Vec<i64> = (0..count).map(|row| (row * bank.len() / count) as i64).collect();
    let features = bank.rows()?.f_index_select(0, &Tensor::f_from_slice(&rows)?)?;
    let classes: Vec<Option<i64>> = rows.iter().map(|row| bank.classes()[*row as usize]).collect();
    let (groups, names) = commonest(&classes);
    let mut map = Map {
        title: format!("Map of {}", arguments.run.display()),
        subtitle: format!(
            "step {} · {} rows of the bank · {}",
            snapshot.step(),
            HumanCount(count as u64),
            name(arguments.method)
        ),
        places: places(&features, arguments.method)?,
        groups,
        names,
        size: (arguments.width, arguments.width * 5 / 8),
        side: arguments.side,
    };
    let shown = map.shown();
    let id_of = |point: usize| bank.ids()[rows[point] as usize];
    let wanted: HashSet<_> = shown.iter().map(|(point, _)| id_of(*point)).collect();
    let found = photographs(&arguments.run, &plan, &arguments.shards, &wanted, arguments.side)?;
    let pictures = shown.iter().filter_map(|(point, _)| Some((*point, found.get(&id_of(*point))?.1.clone()))).collect();
    map.subtitle.push_str(&format!(" · {} photographs", found.len()));
    save(&map.render(&pictures)?, &arguments.out)?;
    print(&format!("{count} rows, {} photographs -> {}", found.len(), arguments.out.display()))
}

fn name(method: Method) -> &'static str {
    match method {
        Method::Pca => "their two main directions",
        Method::Tsne => "t-SNE",
    }
}

/// The commonest classes as groups, most first, with their names; none where no sample has a class.
fn commonest(classes: &[Option<i64>]) -> (Vec<Option<usize>>, Vec<String>) {
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    classes.iter().flatten().for_each(|class| *counts.entry(*class).or_default() += 1);
    let mut sorted: Vec<(i64, usize)> = counts.into_iter().collect();
    sorted.sort_by_key(|&(class, count)| (std::cmp::Reverse(count), class));
    let others = sorted.len() > MOST_CLASSES;
    sorted.truncate(MOST_CLASSES);
    let group = |class: &Option<i64>| sorted.iter().position(|(known, _)| Some(*known) == *class);
    let mut names: Vec<String> = sorted.iter().map(|(class, _)| format!("class {class}")).collect();
    if others {
        names.push("others".to_owned());
    }
    (classes.iter().map(group).collect(), names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commonest_classes_have_groups() {
        let classes = [Some(7), None, Some(3), Some(7)];
        assert_eq!(
            commonest(&classes),
            (vec![Some(0), None, Some(1), Some(0)], vec!["class 7".to_owned(), "class 3".to_owned()])
        );
        assert_eq!(commonest(&[None, None]), (vec![None, None], Vec::new()));
        let many: Vec<Option<i64>> = (0..12).map(Some).collect();
        let (groups, names) = commonest(&many);
        assert_eq!((groups[9], groups[10], names.len()), (Some(9), None, 11));
    }
}
