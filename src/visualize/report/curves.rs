//! Curves of a run over its steps, as the paper draws them (Figure 2) and as one watches a run.

use super::document::Block;
use crate::error::Result;
use crate::train::record::{CycleRecord, Record, StepRecord};
use crate::visualize::plot::{Plot, Point, Series};

/// Most points of a line: more are not told apart.
const MOST_POINTS: usize = 600;

/// A plot of each measure that the records have.
pub(super) fn all(records: &[Record]) -> Result<Vec<Block>> {
    let steps: Vec<&StepRecord> = records
        .iter()
        .filter_map(|record| match record {
            Record::Step(step) => Some(step),
            _ => None,
        })
        .collect();
    let cycles: Vec<&CycleRecord> = records
        .iter()
        .filter_map(|record| match record {
            Record::Cycle(cycle) => Some(cycle),
            _ => None,
        })
        .collect();
    let of_steps = |name: &str, value: fn(&StepRecord) -> f64| {
        line(name, steps.iter().map(|record| (record.step, Some(value(record)))))
    };
    let of_cycles = |name: &str, value: fn(&CycleRecord) -> Option<f64>| {
        line(name, cycles.iter().map(|record| (record.step, value(record))))
    };
    let plots = [
        ("loss", "Loss", "cross-entropy, nats", vec![of_steps("loss", |record| record.loss)]),
        (
            "nmi",
            "Agreement of clusterings",
            "NMI",
            vec![
                of_cycles("with the cycle before", |record| record.nmi_prev),
                of_cycles("with labels", |record| record.nmi_labels),
            ],
        ),
        (
            "reassigned",
            "Samples that change their cluster",
            "share",
            vec![of_cycles("after matching", |record| record.reassigned)],
        ),
        (
            "sizes",
            "Sizes of clusters",
            "share of samples",
            vec![of_cycles("in the largest cluster", |record| Some(record.largest_share))],
        ),
        ("rate", "Throughput", "images/s", vec![of_steps("images/s", |record| record.images_per_s)]),
    ];
    let mut blocks = Vec::new();
    for (name, title, y, series) in plots {
        let series: Vec<Series> = series.into_iter().filter(|series| !series.points.is_empty()).collect();
        if series.is_empty() {
            continue;
        }
        let plot = Plot { title, x: "steps", y, log_x: false, series: &series, size: (760, 360) };
        blocks.push(Block::Plot { name: format!("report-{name}.svg"), title: title.to_owned(), svg: plot.svg()? });
    }
    Ok(blocks)
}

/// A line of what is known; of many points means over as many neighbours as leaves few enough.
fn line(name: &str, values: impl Iterator<Item = (u64, Option<f64>)>) -> Series {
    let known: Vec<(f64, f64)> =
        values.filter_map(|(step, value)| Some((step as f64, value.filter(|value| value.is_finite())?))).collect();
    let together = known.len().div_ceil(MOST_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let count = part.len() as f64;
        let (x, y) = part.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        Point { x: x / count, y: y / count, spread: 0.0 }
    };
    Series { name: name.to_owned(), points: known.chunks(together).map(mean).collect() }
}
