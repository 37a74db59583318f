//! `shoal eval report`: one page of everything that was measured of a run.

use crate::cli::print;
use crate::error::{Error, Result};
use crate::visualize::report;
use std::path::PathBuf;

/// The arguments of `shoal eval report`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  shoal eval probes --snapshot runs/mine --train @train.txt --test @val.txt
  shoal eval report runs/mine

Evaluations of a run (--snapshot RUN) are kept in RUN/evaluations.jsonl. The page has them in the layout of the paper's tables, with
published rows to compare with, curves, settings, and the commands for what was not measured: report.html stands alone,
report.md shows its plots from files beside it.")]
pub(in crate::cli) struct Arguments {
    /// The run
    run: PathBuf,
    /// Folder to write to; by default the run's own
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let page = report::of(&arguments.run)?;
    let folder = arguments.out.as_ref().unwrap_or(&arguments.run);
    std::fs::create_dir_all(folder).map_err(|error| Error::file("make", folder, &error))?;
    let save = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|error| Error::file("write", &path, &error))
    };
    save("report.html", &page.html())?;
    save("report.md", &page.markdown())?;
    for (name, svg) in page.plots() {
        save(name, svg)?;
    }
    print(&format!("{} and report.md", folder.join("report.html").display()))
}
