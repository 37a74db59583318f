//! `shoal inspect`: what is in a file, and how far a run is.

use crate::error::{Error, Result};
use crate::shards::index::Index;
use crate::shards::ledger::{self, Entry, ShardVerdict};
use crate::snapshot::{self, Snapshot};
use crate::table::Table;
use crate::train::record::{CycleRecord, Record, StepRecord};
use safetensors::SafeTensors;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The arguments of `shoal inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal inspect runs/demo
  shoal inspect runs/demo/latest/model.safetensors
  shoal inspect runs/demo/clusters/step-000000750.arrow --json")]
pub(super) struct Arguments {
    /// A run folder, a .safetensors file, or an .arrow file
    path: PathBuf,
    /// The same as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let path = &arguments.path;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension {
        "safetensors" => tensors(path, arguments.json),
        "arrow" => table(path, arguments.json),
        _ if path.join("metrics.jsonl").is_file() => progress(path, arguments.json),
        _ => Err(Error::usage(format!("{} is no run, no .safetensors and no .arrow file", path.display()))
            .with_hint("a run folder has a metrics.jsonl")),
    }
}

#[derive(Debug, Serialize)]
struct TensorFile {
    metadata: BTreeMap<String, String>,
    tensors: Vec<NamedShape>,
    parameters: usize,
}

#[derive(Debug, Serialize)]
struct NamedShape {
    name: String,
    kind: String,
    shape: Vec<usize>,
}

fn tensors(path: &Path, json: bool) -> Result<()> {
    let bytes = fs::read(path).map_err(|error| Error::file("read", path, &error))?;
    let broken = |error| Error::data(format!("{} is no safetensors file: {error}", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let mut tensors = Vec::new();
    for (name, view) in file.iter() {
        tensors.push(NamedShape {
            name: name.to_owned(),
            kind: format!("{:?}", view.dtype()),
            shape: view.shape().to_vec(),
        });
    }
    tensors.sort_by(|left, right| left.name.cmp(&right.name));
    let parameters = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    let found = TensorFile { metadata, tensors, parameters };
    if json {
        return super::print_json(&found);
    }
    let width = found.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (key, value) in &found.metadata {
        let _ = writeln!(text, "{key} = {value}");
    }
    for tensor in &found.tensors {
        let _ = writeln!(text, "{:width$}  {:4} {:?}", tensor.name, tensor.kind, tensor.shape);
    }
    let _ = write!(text, "{} tensors, {} values", found.tensors.len(), found.parameters);
    super::print(&text)
}

#[derive(Debug, Serialize)]
struct ArrowFile {
    rows: usize,
    columns: BTreeMap<String, String>,
}

fn table(path: &Path, json: bool) -> Result<()> {
    let file = Table::open(path)?;
    let columns = file.columns();
    let rows = file.count_rows()?;
    let found = ArrowFile { rows, columns };
    if json {
        return super::print_json(&found);
    }
    let mut text = String::new();
    for (name, kind) in &found.columns {
        let _ = writeln!(text, "{name}: {kind}");
    }
    let _ = write!(text, "{} rows", found.rows);
    super::print(&text)
}

#[derive(Debug, Default, Serialize)]
struct RunProgress {
    run: PathBuf,
    step: Option<StepRecord>,
    cycle: Option<CycleRecord>,
    alarms: Vec<String>,
    /// Whole snapshots, oldest first.
    snapshots: Vec<String>,
    /// Where a restart would go on.
    resumes_at: Option<u64>,
    /// How the shards of each pass of training ended.
    shards: BTreeMap<u64, BTreeMap<ShardVerdict, u64>>,
    /// What the run has learnt of its shards.
    index: Option<Indexed>,
}

#[derive(Debug, Serialize)]
struct Indexed {
    shards: u64,
    samples: u64,
}

fn progress(run: &Path, json: bool) -> Result<()> {
    let mut found = RunProgress { run: run.to_path_buf(), ..RunProgress::default() };
    let path = run.join("metrics.jsonl");
    let text = fs::read_to_string(&path).map_err(|error| Error::file("read", &path, &error))?;
    for line in text.lines() {
        // The last line of a run in flight may be half written.
        match serde_json::from_str(line) {
            Ok(Record::Step(record)) => found.step = Some(record),
            Ok(Record::Cycle(record)) => found.cycle = Some(record),
            Ok(Record::Alarm(record)) => found.alarms.push(record.message),
            Ok(Record::Snapshot(_)) | Err(_) => {}
        }
    }
    for folder in snapshot::folders(run)? {
        if let Ok(snapshot) = Snapshot::open(&folder) {
            found.resumes_at = Some(snapshot.step());
            found.snapshots.push(folder.strip_prefix(run).unwrap_or(&folder).display().to_string());
        }
    }
    let path = run.join("ledger.jsonl");
    if path.is_file() {
        for entry in ledger::read(&path)? {
            if let Entry::Shard(end) = entry
                && end.encoding.is_none()
            {
                *found.shards.entry(end.pass).or_default().entry(end.verdict).or_default() += 1;
            }
        }
    }
    let folder = run.join("index");
    if folder.is_dir() {
        let (shards, samples) = Index::new(folder).totals()?;
        found.index = Some(Indexed { shards, samples });
    }
    if json {
        return super::print_json(&found);
    }
    super::print(&found.to_text())
}

impl RunProgress {
    fn to_text(&self) -> String {
        let mut text = format!("run {}\n", self.run.display());
        if let Some(step) = &self.step {
            let lost: u64 = step.losses.values().sum();
            let filtered: u64 = step.filtered.values().sum();
            let _ = writeln!(
                text,
                "step {}, {} images, pass {}{}, loss {:.4}, {}{:.1} images/s, {lost} samples lost, {filtered} passed over",
                step.step,
                step.images,
                step.pass + 1,
                step.pass_share.map(|share| format!(" ({:.0} % of it)", 100.0 * share)).unwrap_or_default(),
                step.loss,
                step.accuracy.map(|accuracy| format!("accuracy {:.1} %, ", 100.0 * accuracy)).unwrap_or_default(),
                step.images_per_s
            );
        }
        if let Some(cycle) = &self.cycle {
            let _ = write!(text, "cycle {} at step {}: objective {:.4}", cycle.cycle, cycle.step, cycle.objective);
            let measures = [("NMI with the cycle before", cycle.nmi_prev), ("with labels", cycle.nmi_labels)];
            for (name, value) in measures {
                if let Some(value) = value {
                    let _ = write!(text, ", {name} {value:.3}");
                }
            }
            let _ = writeln!(text, ", {} empty, largest {:.1} %", cycle.empty, 100.0 * cycle.largest_share);
        }
        if let Some((pass, verdicts)) = self.shards.last_key_value() {
            let verdicts: Vec<_> =
                verdicts.iter().map(|(verdict, count)| format!("{count} {}", verdict.name())).collect();
            let _ = writeln!(text, "shards ended in pass {}: {}", pass + 1, verdicts.join(", "));
        }
        if let Some(Indexed { shards, samples }) = &self.index {
            let _ = writeln!(text, "index: {shards} shards of {samples} samples");
        }
        for alarm in &self.alarms {
            let _ = writeln!(text, "alarm: {alarm}");
        }
        match self.resumes_at {
            Some(step) => {
                let _ = write!(text, "snapshots: {}; a restart goes on at step {step}", self.snapshots.join(", "));
            }
            None => text.push_str("no snapshot yet: a restart begins anew"),
        }
        text
    }
}
