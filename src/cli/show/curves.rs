//! `shoal show curves`: what runs have said of themselves, over their steps.

use super::save;
use crate::cli::print;
use crate::error::{Error, Result};
use crate::train::record;
use crate::visualize::curves::{Curve, curves};
use crate::visualize::plot::{self, Plot};
use std::path::{Path, PathBuf};

/// Of one plot, in pixels.
const SIZE: (u32, u32) = (760, 400);

/// The arguments of `shoal show curves`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal show curves runs/demo --out curves.svg
  shoal show curves runs/reset runs/match --out both.png --only nmi,nmi-labels

Curves: loss, nmi (with the cycle before), nmi-labels, reassigned, sizes, entropy, rate, waiting. Of one run every line is drawn, of several
one for each run.")]
pub(in crate::cli) struct Arguments {
    /// The runs
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The SVG or PNG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only these curves
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Plots in a row
    #[arg(long, default_value_t = 2)]
    columns: usize,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let mut runs = Vec::with_capacity(arguments.runs.len());
    for run in &arguments.runs {
        let records = record::read(run)?;
        if records.is_empty() {
            return Err(Error::data(format!("{} has no records", run.display()))
                .with_hint("the folder that `shoal pretrain --run` was given, once it has done a few steps"));
        }
        runs.push((name_of(run), records));
    }
    let all = curves(&runs);
    let chosen = choose(&all, &arguments.only)?;
    let plots: Vec<Plot<'_>> = chosen.iter().map(|curve| curve.plot(SIZE)).collect();
    let out = &arguments.out;
    match out.extension().and_then(|ending| ending.to_str()) {
        Some("svg") => {
            super::make_pictures_folder(out)?;
            std::fs::write(out, plot::svg(&plots, arguments.columns)?)
                .map_err(|error| Error::file("write", out, &error))?;
        }
        Some("png") => save(&plot::picture(&plots, arguments.columns)?, out)?,
        _ => {
            return Err(Error::usage(format!("--out {}: curves are written as .svg or .png", out.display())));
        }
    }
    print(&format!("{} curves of {} runs -> {}", plots.len(), runs.len(), out.display()))
}

/// Those of the curves that are wanted, in the order of the wish.
fn choose<'c>(all: &'c [Curve], only: &[String]) -> Result<Vec<&'c Curve>> {
    if only.is_empty() {
        return Ok(all.iter().collect());
    }
    let find = |name: &String| {
        all.iter().find(|curve| curve.name == name).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|curve| curve.name).collect();
            Error::usage(format!("there is no curve {name}")).with_hint(format!("these runs have {}", names.join(", ")))
        })
    };
    only.iter().map(find).collect()
}

/// The last two parts of a path tell runs apart in a legend.
fn name_of(run: &Path) -> String {
    let parts: Vec<_> = run.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}
