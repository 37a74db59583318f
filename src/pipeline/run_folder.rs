//! The folder of a run, apart from its snapshots: the resolved pipeline file and the assignments of each cycle.

use crate::cluster::assignments;
use crate::config::{Plan, StreamPlan};
use crate::error::{Error, Result};
use crate::shards::Ledger;
use crate::snapshot;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Saves the resolved plan as `pipeline.toml`; where an earlier session has left snapshots, checks first that the run
/// can go on with it.
///
/// # Errors
/// Keys that differ from the earlier session's, where a run cannot change them.
pub fn settle_plan(plan: &Plan, folder: &Path) -> Result<()> {
    if let Some(so_far) = plan_so_far(folder)? {
        so_far.ensure_run_can_go_on(plan, folder)?;
    }
    let path = folder.join("pipeline.toml");
    let aside = folder.join(".pipeline.toml.tmp");
    fs::write(&aside, plan.to_toml()?).map_err(|error| Error::file("write", &aside, &error))?;
    fs::rename(&aside, &path).map_err(|error| Error::file("write", &path, &error))
}

/// The plan of the run so far, where an earlier session has left snapshots.
pub(super) fn plan_so_far(folder: &Path) -> Result<Option<Plan>> {
    let path = folder.join("pipeline.toml");
    if !path.is_file() || snapshot::folders(folder)?.is_empty() {
        return Ok(None);
    }
    Plan::load(&path, &[]).map(Some)
}

/// The folder of the assignments of each cycle, made if it is not there.
pub fn clusters(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(assignments::FOLDER);
    fs::create_dir_all(&path).map_err(|error| Error::file("create", &path, &error))?;
    Ok(path)
}

/// The ledger of a rank.
pub fn ledger(folder: &Path, rank: usize) -> PathBuf {
    match rank {
        0 => folder.join("ledger.jsonl"),
        rank => folder.join(format!("ledger.rank-{rank}.jsonl")),
    }
}

/// What ranks have lost that trained in earlier sessions, when there were more than `size` of them.
///
/// # Errors
/// A ledger of theirs cannot be read.
pub fn losses_of_former_ranks(folder: &Path, size: usize, plan: &StreamPlan) -> Result<BTreeMap<String, u64>> {
    let mut losses = BTreeMap::new();
    for path in (size..).map(|rank| ledger(folder, rank)).take_while(|path| path.is_file()) {
        for (reason, count) in Ledger::open(&path, plan)?.losses() {
            *losses.entry(reason.to_string()).or_default() += count;
        }
    }
    Ok(losses)
}
