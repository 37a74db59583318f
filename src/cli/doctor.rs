//! `shoal doctor [PIPELINE]`: whether this machine can run a pipeline, one line a check, with a hint where it cannot.
//!
//! In: optionally a pipeline file, whose run folder and shards are looked at too, and whose speed on this machine is
//! forecast from a probe of them. Out: lines on stdout, or JSON; exit
//! code 4 if a check fails. A check never ends the others: what goes wrong is its result.

mod checks;
mod forecast;
mod probe;
mod upload;

use crate::config::{DeviceKind, Plan};
use crate::error::{Error, Result};
use crate::shards::ShardList;
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The arguments of `shoal doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal doctor                                    this machine
  shoal doctor pipelines/demo.toml                and what the pipeline needs of it
  shoal doctor yfcc.toml --run /data/yfcc --json  for scripts")]
pub struct DoctorArgs {
    /// Pipeline file, or the name of one in pipelines/: its shards and its device are checked too, and its speed is forecast
    pipeline: Option<PathBuf>,
    /// Set a key of the pipeline, e.g. device.kind=cpu (repeatable)
    #[arg(long, value_name = "KEY=VALUE", requires = "pipeline")]
    set: Vec<String>,
    /// Folder that the run would be written to
    #[arg(long, value_name = "DIR", default_value = "runs")]
    run: PathBuf,
    /// Print JSON instead of lines
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Fine.
    Ok,
    /// It will run, but something is amiss.
    Warn,
    /// It will not run.
    Fail,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One line of the doctor's report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// How it came out.
    pub status: Status,
    /// What was measured.
    pub value: String,
    /// The way out, where there is something to mend.
    pub hint: Option<String>,
    /// What was measured, for scripts; the names differ from check to check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numbers: Option<serde_json::Value>,
}

impl Check {
    /// A check with nothing to mend.
    pub fn ok(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Ok, value: value.into(), hint: None, numbers: None }
    }

    /// A check that leaves something to be wished for.
    pub fn warn(name: impl Into<String>, value: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Warn, value: value.into(), hint: Some(hint.into()), numbers: None }
    }

    /// A check that failed.
    pub fn fail(name: impl Into<String>, value: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Fail, value: value.into(), hint: Some(hint.into()), numbers: None }
    }

    /// The same with what was measured.
    #[must_use]
    pub fn with_numbers(self, numbers: serde_json::Value) -> Self {
        Self { numbers: Some(numbers), ..self }
    }
}

/// Runs every check and prints the report.
pub fn run(arguments: &DoctorArgs) -> Result<()> {
    let plan = arguments.pipeline.as_deref().map(|path| Plan::load(path, &arguments.set)).transpose()?;
    let wants_cuda = plan.as_ref().is_some_and(|plan| plan.device.kind == DeviceKind::Cuda);
    let mut checks = machine(&arguments.run, wants_cuda);
    if let Some(plan) = &plan {
        checks.extend(of_list(plan));
    }
    let mut stdout = io::stdout().lock();
    match report(&checks, arguments.json, &mut stdout).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(Error::data(format!("cannot write to stdout: {error}")));
        }
        _ => {}
    }
    verdict(&checks)
}

/// Every check of a pipeline's list, which is read once.
fn of_list(plan: &Plan) -> Vec<Check> {
    let list = match ShardList::parse_with(&plan.stream.shards, &plan.fetch) {
        Ok(list) => list,
        Err(error) => {
            let hint = error.hint().unwrap_or("check stream.shards and the network").to_owned();
            return vec![Check::fail("stream.shards", error.to_string(), hint)];
        }
    };
    let mut all = checks::shards(&list, plan);
    all.extend(forecast::forecast(&list, plan));
    all
}

/// Every check that needs no pipeline; `needs_cuda` makes a missing CUDA a failure.
pub fn machine(run_dir: &Path, needs_cuda: bool) -> Vec<Check> {
    let mut all = vec![checks::libtorch(), checks::cpu(), checks::cuda(needs_cuda), checks::jpeg(), checks::memory()];
    all.extend(upload::upload());
    all.extend(checks::disk(run_dir));
    all
}

fn report(checks: &[Check], json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, checks)?;
        return writeln!(out);
    }
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    for check in checks {
        write!(out, "{:<4}  {:<width$}  {}", check.status.name(), check.name, check.value)?;
        match &check.hint {
            Some(hint) => writeln!(out, " (hint: {hint})")?,
            None => writeln!(out)?,
        }
    }
    Ok(())
}

fn verdict(checks: &[Check]) -> Result<()> {
    let failed: Vec<&str> =
        checks.iter().filter(|check| check.status == Status::Fail).map(|check| check.name.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::device(format!("{} of {} checks failed: {}", failed.len(), checks.len(), failed.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks() -> Vec<Check> {
        vec![
            Check::ok("libtorch", "2.11.0"),
            Check::warn("CUDA", "not there", "the CPU trains"),
            Check::ok("JPEG", "yes"),
        ]
    }

    #[test]
    fn a_check_is_a_line_and_a_warning_is_no_failure() -> Result<()> {
        let mut text = Vec::new();
        report(&checks(), false, &mut text).map_err(|e| Error::data(e.to_string()))?;
        let expected =
            "ok    libtorch  2.11.0\nwarn  CUDA      not there (hint: the CPU trains)\nok    JPEG      yes\n";
        assert_eq!(String::from_utf8_lossy(&text), expected);
        verdict(&checks())
    }

    #[test]
    fn a_failure_is_named_and_json_is_json() {
        let mut all = checks();
        all.push(Check::fail("disk", "0 B free", "free some"));
        let error = verdict(&all).expect_err("the disk is full");
        assert_eq!((error.exit_code(), error.to_string().as_str()), (4, "1 of 4 checks failed: disk"));

        let mut text = Vec::new();
        report(&all, true, &mut text).expect("JSON is written");
        let value: serde_json::Value = serde_json::from_slice(&text).expect("JSON is read");
        assert_eq!(value[3]["status"], "fail");
        assert_eq!(value[1]["hint"], "the CPU trains");
        assert!(value[0]["hint"].is_null());
    }

    #[test]
    fn the_machine_that_runs_the_tests_is_fit() {
        let run = tempfile::tempdir().expect("a temporary folder");
        let all = machine(&run.path().join("runs/new"), false);
        let failed: Vec<&Check> = all.iter().filter(|check| check.status == Status::Fail).collect();
        assert!(failed.is_empty(), "{failed:?}");
        let mut left = std::fs::read_dir(run.path()).expect("the folder is readable");
        assert!(left.next().is_none(), "the probe cleans up after itself");
    }
}
