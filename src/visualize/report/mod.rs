//! The page of a run: the paper's tables with its published rows beside those of the run, curves, settings, and what was not
//! measured.
//!
//! In: the folder of a run, with `metrics.jsonl`, `evaluations.jsonl` (what `shoal eval` found on it) and `pipeline.toml`. Out: a
//! [`Document`]. Nothing is computed here: a number on the page stands in one of those files. What can go wrong: no such run, or
//! a line in a file that is none.

mod document;
mod published;
mod tables;

pub use document::{Block, Document, Row, Section};

use crate::config::Plan;
use crate::error::{Error, Result};
use crate::evaluate::results::{self, Evaluation};
use crate::train::record;
use crate::visualize::curves::{Curve, curves};
use std::path::Path;

/// Builds the page of a run.
///
/// # Errors
/// The folder is no run, or one of its files cannot be read.
pub fn of(run: &Path) -> Result<Document> {
    let pipeline = run.join("pipeline.toml");
    if !pipeline.is_file() {
        return Err(Error::usage(format!("{} is no run: it has no pipeline.toml", run.display()))
            .with_hint("the folder that `shoal pretrain --run` was given"));
    }
    let plan = Plan::load(&pipeline, &[])?;
    let settings = std::fs::read_to_string(&pipeline).map_err(|error| Error::file("read", &pipeline, &error))?;
    let records = record::read(run)?;
    let evaluations = latest(results::read(run)?);
    let name = run.file_name().map_or_else(|| run.display().to_string(), |name| name.to_string_lossy().into_owned());

    let mut sections = vec![Section { title: "The run".to_owned(), blocks: tables::run(&plan, &records) }];
    sections.extend(tables::sections(&plan, &evaluations));
    let curves = curves(&[(name.clone(), records)]);
    if !curves.is_empty() {
        let blocks: Result<Vec<Block>> = curves.iter().map(plot).collect();
        sections.push(Section { title: "Training (Figure 2)".to_owned(), blocks: blocks? });
    }
    let missing = tables::missing(run, &plan, &evaluations);
    if !missing.is_empty() {
        sections.push(Section { title: "Not measured".to_owned(), blocks: missing });
    }
    sections.push(Section { title: "Settings".to_owned(), blocks: vec![Block::Code(settings)] });
    Ok(Document { title: format!("shoal: {name}"), sections })
}

fn plot(curve: &Curve) -> Result<Block> {
    let svg = curve.plot((760, 360)).svg()?;
    Ok(Block::Plot { name: format!("report-{}.svg", curve.name), title: curve.title.to_owned(), svg })
}

/// Of evaluations that measured the same thing the last one, in the order in which they were first made.
fn latest(all: Vec<Evaluation>) -> Vec<Evaluation> {
    let mut kept: Vec<Evaluation> = Vec::new();
    for evaluation in all {
        match kept.iter_mut().find(|held| tables::same(held, &evaluation)) {
            Some(held) => *held = evaluation,
            None => kept.push(evaluation),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("pipeline.toml"), "[stream]\nshards = [\"a.tar\"]\n").expect("a file");
        let cycle = |step: u64, nmi: Option<f64>| {
            json!({"kind": "cycle", "step": step, "cycle": 1, "rows": 10, "objective": 0.5, "nmi_prev": nmi, "nmi_labels": 0.4,
                "reassigned": nmi, "empty": 0, "largest_share": 0.1, "entropy": 2.0, "sizes": [1], "bank_age": 0.0,
                "iterations": 3, "seconds": 1.0})
        };
        let lines = [cycle(10, None), cycle(20, Some(0.7)), cycle(30, Some(0.8))].map(|line| line.to_string());
        std::fs::write(folder.path().join("metrics.jsonl"), lines.join("\n")).expect("a file");
        folder
    }

    fn keep(run: &Path, protocol: &str, report: serde_json::Value) {
        Evaluation::now(protocol, Some(30), &report).and_then(|found| found.keep(run)).expect("it is kept");
    }

    #[test]
    fn rows_of_the_run_stand_among_published_ones() -> Result<()> {
        let folder = run();
        let layers: Vec<_> = (1..=5)
            .map(|layer| json!({"layer": format!("conv{layer}"), "top1": 0.1 * f64::from(layer), "top5": 0.6, "dimensions": 9}))
            .collect();
        keep(folder.path(), "probes", json!({"layers": layers, "train": ["imagenet-train.tar"], "test": ["val.tar"]}));
        keep(folder.path(), "knn", json!({"layer": "fc7", "accuracy": 0.4375, "train": ["a"], "test": ["b"]}));
        keep(folder.path(), "knn", json!({"layer": "fc7", "accuracy": 0.625, "train": ["a"], "test": ["b"]}));
        let page = of(folder.path())?;
        let text = page.markdown();
        assert!(text.contains("| Split-Brain | 17.7 | 29.3 | 35.4 | 35.2 | 32.8 |"), "{text}");
        assert!(text.contains("| **10.0** | **20.0** | **30.0** | **40.0** | **50.0** |"), "{text}");
        assert!(text.contains("62.50") && !text.contains("43.75"), "the last of two measures of one thing: {text}");
        assert!(text.contains("shoal eval voc07") && !text.contains("shoal eval probes --"), "{text}");
        assert!(page.plots().any(|(name, svg)| name == "report-nmi.svg" && svg.contains("<svg")));
        assert!(page.html().contains("a.tar"), "settings are there");
        Ok(())
    }

    #[test]
    fn a_run_that_has_measured_nothing_says_what_it_lacks() -> Result<()> {
        let folder = run();
        let text = of(folder.path())?.markdown();
        for command in
            ["eval probes", "eval knn", "eval voc07", "eval detection", "eval segmentation", "eval retrieval"]
        {
            assert!(text.contains(command), "{command}: {text}");
        }
        let error = of(&folder.path().join("nowhere")).expect_err("no run");
        assert_eq!(error.exit_code(), 2);
        Ok(())
    }
}
