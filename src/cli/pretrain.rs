//! `shoal pretrain PIPELINE`: the main job.

use crate::config::Plan;
use crate::error::{Error, Result};
use crate::pipeline::{self, Ranks};
use crate::torch::{cuda, leave_at_once};
use crate::world::Launch;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// The arguments of `shoal pretrain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal pretrain demo
  shoal pretrain pipelines/yfcc100m-alexnet.toml --run /data/yfcc --set train.lr=0.02
  shoal pretrain /data/yfcc/pipeline.toml --run /data/yfcc --steps 500000

The run folder holds everything: pipeline.toml (as resolved), metrics.jsonl, ledger.jsonl (what was lost, and why),
tensorboard/, clusters/, snapshots/ and `latest`. Started again on the same folder, a run goes on with the very next
sample. Ctrl-C or SIGTERM: finish the step, write a snapshot, exit 130; a second one leaves at once (where a launcher has started
it: one that comes ten seconds later).

Several processes train one run together where torchrun, srun or mpirun starts them; batch_size and bank.capacity are then those of
all together, and the run folder is one that all of them see:
  torchrun --no-python --nproc-per-node 2 --max-restarts 3 -- shoal pretrain demo --run runs/demo")]
pub(super) struct Arguments {
    /// Pipeline file, or the name of one in pipelines/
    pipeline: PathBuf,
    /// Run folder; by default runs/ and the name of the pipeline
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Set a key of the pipeline, e.g. train.lr=0.02 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Steps until the run is done: short for --set train.steps=N
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Plain lines instead of a bar
    #[arg(long)]
    no_bar: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let mut overrides = arguments.set.clone();
    overrides.extend(arguments.steps.map(|steps| format!("train.steps={steps}")));
    let plan = Plan::load(&arguments.pipeline, &overrides)?;
    let run = match &arguments.run {
        Some(run) => run.clone(),
        None => default_run(&arguments.pipeline)?,
    };
    let ranks = launch()?.map(|launch| Ranks { launch, end: end_for_another });
    let bar = !arguments.no_bar && std::io::stderr().is_terminal();
    let summary = pipeline::pretrain(&plan, &run, bar, ranks.as_ref())?;
    match ranks {
        Some(ranks) if ranks.launch.rank > 0 => Ok(()),
        _ => super::print(&summary.to_string()),
    }
}

/// Ends this process for what another rank has met, while its own trainer is stuck.
fn end_for_another(error: &Error) {
    super::report(error);
    leave_at_once(i32::from(error.exit_code()));
}

/// Takes this process's GPU where several train together on one machine.
pub(super) fn claim_gpu() -> Result<()> {
    match launch()? {
        Some(launch) if launch.local_size > 1 => cuda::claim(launch.local_rank),
        _ => Ok(()),
    }
}

fn launch() -> Result<Option<Launch>> {
    Launch::from_env(&|name| std::env::var(name).ok())
}

fn default_run(pipeline: &Path) -> Result<PathBuf> {
    let name = pipeline.file_stem().ok_or_else(|| Error::usage(format!("{} names no file", pipeline.display())))?;
    Ok(Path::new("runs").join(name))
}
