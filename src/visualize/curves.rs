//! Curves of runs over their steps, as the paper draws them (Figure 2) and as one watches a run.
//!
//! In: the names of runs and their records. Out: for each measure that they have a [`Curve`]: of one run all its lines, of several
//! one line each. Nothing can go wrong; a measure that no run has is left out.

use super::plot::{Plot, Point, Series};
use crate::train::record::{CycleRecord, Record, StepRecord};

/// Most points of a line: more are not told apart.
const MOST_POINTS: usize = 600;

/// A measure over steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// For files.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What is beside it, with the unit.
    pub y: &'static str,
    /// Its lines, none of them empty.
    pub series: Vec<Series>,
}

impl Curve {
    /// How it is drawn.
    pub fn plot(&self, size: (u32, u32)) -> Plot<'_> {
        Plot { title: self.title, x: "steps", y: self.y, log_x: false, series: &self.series, size }
    }
}

/// What a line shows.
enum Value {
    Step(fn(&StepRecord) -> Option<f64>),
    Cycle(fn(&CycleRecord) -> Option<f64>),
}

/// Lines of a measure; the first is what several runs are compared by.
type Lines = &'static [(&'static str, Value)];

/// Name, title, unit, lines.
const MEASURES: [(&str, &str, &str, Lines); 8] = [
    ("loss", "Loss", "cross-entropy, nats", &[("loss", Value::Step(|record| Some(record.loss)))]),
    ("nmi", "Agreement with the cycle before", "NMI(t, t-1)", &[("NMI", Value::Cycle(|record| record.nmi_prev))]),
    ("nmi-labels", "Agreement with labels", "NMI", &[("NMI", Value::Cycle(|record| record.nmi_labels))]),
    (
        "reassigned",
        "Samples that change their cluster",
        "share, after matching",
        &[("share", Value::Cycle(|record| record.reassigned))],
    ),
    (
        "sizes",
        "Sizes of clusters",
        "times the mean size",
        &[
            ("largest", Value::Cycle(|record| size_at(record, 0.0))),
            ("a tenth are larger", Value::Cycle(|record| size_at(record, 0.1))),
            ("half are larger", Value::Cycle(|record| size_at(record, 0.5))),
            ("nine tenths are larger", Value::Cycle(|record| size_at(record, 0.9))),
        ],
    ),
    (
        "entropy",
        "Entropy of labels",
        "nats",
        &[
            ("of new labels", Value::Step(|record| Some(record.label_entropy))),
            ("of clusters", Value::Cycle(|record| Some(record.entropy))),
        ],
    ),
    ("rate", "Throughput", "images/s", &[("images/s", Value::Step(|record| Some(record.images_per_s)))]),
    ("waiting", "Waiting for data", "share of a step", &[("share", Value::Step(StepRecord::waiting))]),
];

/// Every measure that one of the runs has.
pub fn curves<R: AsRef<[Record]>>(runs: &[(String, R)]) -> Vec<Curve> {
    let all = MEASURES.iter().map(|(name, title, y, lines)| {
        let series: Vec<Series> = match runs {
            [(_, records)] => lines.iter().map(|(line, value)| series(line, value, records.as_ref())).collect(),
            _ => runs.iter().map(|(run, records)| series(run, &lines[0].1, records.as_ref())).collect(),
        };
        let series = series.into_iter().filter(|series| !series.points.is_empty()).collect();
        Curve { name, title, y, series }
    });
    all.filter(|curve| !curve.series.is_empty()).collect()
}

fn series(name: &str, value: &Value, records: &[Record]) -> Series {
    let known = records.iter().filter_map(|record| {
        let found = match (record, value) {
            (Record::Step(step), Value::Step(value)) => value(step),
            (Record::Cycle(cycle), Value::Cycle(value)) => value(cycle),
            _ => None,
        };
        Some((record.step() as f64, found.filter(|found| found.is_finite())?))
    });
    let known: Vec<(f64, f64)> = known.collect();
    let together = known.len().div_ceil(MOST_POINTS).max(1);
    Series { name: name.to_owned(), points: known.chunks(together).map(mean).collect() }
}

fn mean(part: &[(f64, f64)]) -> Point {
    let count = part.len() as f64;
    let (x, y) = part.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    Point { x: x / count, y: y / count, spread: 0.0 }
}

/// The size that this share of the clusters exceeds, over the mean size.
fn size_at(record: &CycleRecord, share: f64) -> Option<f64> {
    let samples: u64 = record.sizes.iter().sum();
    let at = (share * record.sizes.len().saturating_sub(1) as f64).round() as usize;
    let size = *record.sizes.get(at)?;
    (samples > 0).then(|| size as f64 * record.sizes.len() as f64 / samples as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cycle(step: u64, nmi: Option<f64>) -> Record {
        let line = json!({"kind": "cycle", "step": step, "cycle": 1, "rows": 10, "objective": 0.5, "nmi_prev": nmi, "nmi_labels": null,
            "reassigned": nmi, "empty": 0, "largest_share": 0.6, "entropy": 2.0, "sizes": [6, 3, 1, 0, 0], "bank_age": 0.0,
            "iterations": 3, "seconds": 1.0});
        serde_json::from_value(line).expect("a record")
    }

    fn step(step: u64, loss: f64) -> Record {
        let line = json!({"kind": "step", "step": step, "images": step * 8, "loss": loss, "lr": 0.1, "images_per_s": 100.0,
            "wait_data_s": 0.25, "assign_s": 0.25, "train_s": 0.5, "label_entropy": 1.5, "largest_share": 0.1, "losses": {}, "pass": 0,
            "ids": "", "next_cycle": null});
        serde_json::from_value(line).expect("a record")
    }

    fn named<'c>(curves: &'c [Curve], name: &str) -> &'c Curve {
        curves.iter().find(|curve| curve.name == name).expect("a curve")
    }

    #[test]
    fn one_run_has_all_its_lines_and_what_is_not_known_is_left_out() {
        let records = vec![cycle(10, None), step(20, 3.0), cycle(30, Some(0.7)), step(40, 1e300)];
        let mut records = records;
        if let Some(Record::Step(last)) = records.last_mut() {
            last.loss = f64::NAN;
        }
        let curves = curves(&[("demo".into(), records)]);
        assert_eq!(named(&curves, "loss").series[0].points, [Point { x: 20.0, y: 3.0, spread: 0.0 }]);
        assert_eq!(named(&curves, "nmi").series[0].points, [Point { x: 30.0, y: 0.7, spread: 0.0 }]);
        assert_eq!(named(&curves, "waiting").series[0].points[0].y, 0.25);
        assert!(curves.iter().all(|curve| curve.name != "nmi-labels"));
        // of five clusters with ten samples the mean has two: 6, 1 and 0 of the sizes are 3, 0.5 and 0 times that
        let sizes = &named(&curves, "sizes").series;
        let first: Vec<f64> = sizes.iter().map(|series| series.points[0].y).collect();
        assert_eq!(first, [3.0, 3.0, 0.5, 0.0]);
    }

    #[test]
    fn several_runs_have_one_line_each_and_many_points_become_few() {
        let long: Vec<Record> = (0..2_000).map(|at| step(at, at as f64)).collect();
        let curves = curves(&[("long".into(), long), ("short".into(), vec![step(5, 1.0)])]);
        let loss = &named(&curves, "loss").series;
        assert_eq!(loss.iter().map(|series| series.name.as_str()).collect::<Vec<_>>(), ["long", "short"]);
        assert_eq!(loss[0].points.len(), 500);
        assert_eq!(loss[0].points[0], Point { x: 1.5, y: 1.5, spread: 0.0 });
        assert_eq!(named(&curves, "entropy").series.len(), 2);
    }
}
