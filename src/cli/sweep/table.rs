//! What the runs of a sweep measured: a file with a line for each, and tables and plots of means over seeds.
//!
//! In: combinations of settings and their measures. Out: `sweep.tsv`, to which a line is added as soon as a run is measured, so that
//! a sweep goes on where it was; Markdown; series to plot. What can go wrong: a file of other settings, or one that somebody
//! edited, named with the line.

use super::grid::{Axis, Combination};
use crate::error::{Error, Result};
use crate::visualize::plot::{Point, Series};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The key whose values are repetitions.
const SEED: &str = "stream.seed";

/// What is measured of a run, in the order of the columns.
pub(super) const MEASURES: [(&str, &str); 4] = [
    ("knn", "k-NN, %"),
    ("linear", "linear, %"),
    ("nmi_labels", "NMI with labels"),
    ("nmi_prev", "NMI to the cycle before"),
];

/// Measures of one run; none where it has none.
pub(super) type Measures = [Option<f64>; MEASURES.len()];

/// All runs measured so far.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    axes: Vec<Axis>,
    rows: Vec<(Combination, Measures)>,
}

impl Table {
    /// Reads what is there; makes the file where there is none.
    pub(super) fn open(path: &Path, axes: &[Axis]) -> Result<Self> {
        let mut table = Self { path: path.to_owned(), axes: axes.to_vec(), rows: Vec::new() };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                table.append(&table.header())?;
                return Ok(table);
            }
            Err(error) => return Err(Error::file("read", path, &error)),
        };
        let mut lines = text.lines();
        if lines.next() != Some(table.header().as_str()) {
            return Err(Error::usage(format!("{} belongs to a sweep over other keys", path.display()))
                .with_hint("give another --run"));
        }
        for (number, line) in lines.enumerate() {
            let row = table.parse(line).ok_or_else(|| {
                Error::data(format!("{}: line {} is no line of this table", path.display(), number + 2))
            })?;
            table.rows.push(row);
        }
        Ok(table)
    }

    /// Whether a run has been measured.
    pub(super) fn holds(&self, combination: &Combination) -> bool {
        self.rows.iter().any(|(held, _)| held == combination)
    }

    /// Adds the measures of a run.
    pub(super) fn add(&mut self, combination: Combination, measures: Measures) -> Result<()> {
        let cells = measures.iter().map(|measure| measure.map_or_else(String::new, |value| format!("{value:.4}")));
        let line = combination.iter().cloned().chain(cells).collect::<Vec<_>>().join("\t");
        self.append(&line)?;
        self.rows.push((combination, measures));
        Ok(())
    }

    fn append(&self, line: &str) -> Result<()> {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(&self.path);
        file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|error| Error::file("write", &self.path, &error))
    }

    fn header(&self) -> String {
        let keys = self.axes.iter().map(|axis| axis.key.as_str());
        keys.chain(MEASURES.iter().map(|(name, _)| *name)).collect::<Vec<_>>().join("\t")
    }

    fn parse(&self, line: &str) -> Option<(Combination, Measures)> {
        let cells: Vec<&str> = line.split('\t').collect();
        let (settings, measured) = cells.split_at_checked(self.axes.len())?;
        let mut measures = Measures::default();
        if measured.len() != measures.len() {
            return None;
        }
        for (measure, cell) in measures.iter_mut().zip(measured) {
            *measure = if cell.is_empty() { None } else { Some(cell.parse().ok()?) };
        }
        Some((settings.iter().map(|cell| (*cell).to_owned()).collect(), measures))
    }

    /// Means and deviations over seeds, one row for each other combination, as Markdown.
    pub(super) fn markdown(&self) -> String {
        let shown: Vec<usize> = self.varying().collect();
        let heads = shown.iter().map(|&at| self.axes[at].key.as_str()).chain(["runs"]);
        let heads: Vec<&str> = heads.chain(MEASURES.iter().map(|(_, title)| *title)).collect();
        let mut text = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
        for (settings, rows) in self.groups() {
            let settings = shown.iter().map(|&at| settings[at].clone());
            let measures = (0..MEASURES.len()).map(|measure| cell(&values(&rows, measure)));
            let cells: Vec<String> = settings.chain([rows.len().to_string()]).chain(measures).collect();
            text.push_str(&format!("| {} |\n", cells.join(" | ")));
        }
        text
    }

    /// The key along which a measure is drawn, and a line for each combination of the others; none where no key has several
    /// numbers, or nothing was measured.
    pub(super) fn series(&self, measure: usize) -> Option<(String, Vec<Series>)> {
        let is_numeric = |at: &usize| self.axes[*at].values.iter().all(|value| value.parse::<f64>().is_ok());
        let along = self.varying().find(is_numeric)?;
        let mut series: Vec<Series> = Vec::new();
        for (settings, rows) in self.groups() {
            let found = values(&rows, measure);
            let Some((y, spread)) = mean(&found) else { continue };
            let others = self.varying().filter(|&at| at != along);
            let name =
                others.map(|at| format!("{} = {}", self.axes[at].key, settings[at])).collect::<Vec<_>>().join(", ");
            let x = settings[along].parse().unwrap_or(f64::NAN);
            let point = Point { x, y, spread };
            match series.iter_mut().find(|one| one.name == name) {
                Some(one) => one.points.push(point),
                None => series.push(Series { name, points: vec![point] }),
            }
        }
        for one in &mut series {
            one.points.sort_by(|left, right| left.x.total_cmp(&right.x));
        }
        (!series.is_empty()).then(|| (self.axes[along].key.clone(), series))
    }

    /// Axes in which runs differ, seeds left out.
    fn varying(&self) -> impl Iterator<Item = usize> {
        let axes = self.axes.iter().enumerate();
        axes.filter(|(_, axis)| axis.varies() && axis.key != SEED).map(|(at, _)| at)
    }

    /// Rows that differ in their seed alone, in the order of their first one.
    fn groups(&self) -> Vec<(Combination, Vec<Measures>)> {
        let mut groups: Vec<(Combination, Vec<Measures>)> = Vec::new();
        for (settings, measures) in &self.rows {
            let mut key = settings.clone();
            if let Some(at) = self.axes.iter().position(|axis| axis.key == SEED) {
                key[at].clear();
            }
            match groups.iter_mut().find(|(held, _)| *held == key) {
                Some((_, rows)) => rows.push(*measures),
                None => groups.push((key, vec![*measures])),
            }
        }
        groups
    }
}

fn values(rows: &[Measures], measure: usize) -> Vec<f64> {
    rows.iter().filter_map(|row| row[measure]).collect()
}

/// Mean and sample deviation, which is 0 for one value.
fn mean(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len() as f64;
    if values.is_empty() {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, (squares / (count - 1.0).max(1.0)).sqrt()))
}

/// As many digits as a measure has: shares of 1 take two more than percents.
fn cell(values: &[f64]) -> String {
    let Some((mean, deviation)) = mean(values) else { return String::new() };
    let digits = if mean.abs() <= 1.0 { 3 } else { 2 };
    match values.len() {
        1 => format!("{mean:.digits$}"),
        _ => format!("{mean:.digits$} ± {deviation:.digits$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes() -> Vec<Axis> {
        ["cluster.k=50,200", "train.head=reset,match", "stream.seed=1,2", "train.lr=0.1"]
            .map(|setting| Axis::parse(setting).expect("an axis"))
            .to_vec()
    }

    fn row(text: &str) -> Combination {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_sweep_goes_on_from_its_file_and_means_are_over_seeds() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("sweep.tsv");
        let mut table = Table::open(&path, &axes())?;
        table.add(row("50 reset 1 0.1"), [Some(80.0), None, Some(0.5), None])?;
        table.add(row("50 reset 2 0.1"), [Some(84.0), None, Some(0.7), None])?;
        table.add(row("200 reset 1 0.1"), [Some(90.0), None, None, None])?;

        let again = Table::open(&path, &axes())?;
        assert!(again.holds(&row("50 reset 2 0.1")) && !again.holds(&row("50 match 2 0.1")));
        let lines: Vec<String> = again.markdown().lines().map(str::to_owned).collect();
        assert_eq!(lines[2], "| 50 | reset | 2 | 82.00 ± 2.83 |  | 0.600 ± 0.141 |  |");
        assert_eq!(lines[3], "| 200 | reset | 1 | 90.00 |  |  |  |");
        let (key, series) = again.series(0).expect("there is something to draw");
        assert_eq!((key.as_str(), series.len()), ("cluster.k", 1));
        assert_eq!(series[0].name, "train.head = reset");
        assert_eq!(
            series[0].points.iter().map(|point| (point.x, point.y)).collect::<Vec<_>>(),
            [(50.0, 82.0), (200.0, 90.0)]
        );
        assert!(again.series(1).is_none(), "nothing was measured");
        Ok(())
    }

    #[test]
    fn files_of_other_sweeps_are_refused() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("sweep.tsv");
        Table::open(&path, &axes())?;
        assert!(Table::open(&path, &axes()[..2]).is_err());
        let mut text = std::fs::read_to_string(&path).expect("the file");
        text.push_str("50\treset\t1\t0.1\tmany\t\t\t\n");
        std::fs::write(&path, text).expect("a file");
        let error = Table::open(&path, &axes()).expect_err("no number").to_string();
        assert!(error.contains("line 2"), "{error}");
        Ok(())
    }
}
