//! Which sample is in which cluster, as an Arrow file: one for each cycle of a run.
//!
//! Columns: `key` (text, where keys are known), `id` (u64), `cluster` (u32), `distance` (f32, squared, to the centroid),
//! `class` (i64 or null, from the stream's `.cls`), and where clusters are clustered in turn, `level_2` (u32) and so on.

use crate::error::{Error, Result};
use crate::shards::SampleId;
use crate::table::{self, Table, TableWriter};
use arrow::array::{ArrayRef, Float32Array, Int64Array, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a row without its key.
const ROW_BYTES: usize = 24;

/// The folder of a run with the assignments of its cycles.
pub const FOLDER: &str = "clusters";

/// The file of the cycle after `step`.
pub fn file_name(step: u64) -> String {
    format!("step-{step:09}.arrow")
}

/// The assignments of the cycle of a run after `step`, or of its last one.
///
/// # Errors
/// There is none yet.
pub fn of_cycle(run: &Path, step: Option<u64>) -> Result<PathBuf> {
    let folder = run.join(FOLDER);
    if let Some(step) = step {
        return Ok(folder.join(file_name(step)));
    }
    let hint = "a run has clusters after its first cycle; is it the folder of a run?";
    let entries = std::fs::read_dir(&folder).map_err(|error| Error::file("read", &folder, &error).with_hint(hint))?;
    let files = entries.flatten().map(|entry| entry.path());
    let last = files.filter(|path| path.extension().is_some_and(|extension| extension == "arrow")).max();
    last.ok_or_else(|| Error::data(format!("{} is empty", folder.display())).with_hint(hint))
}

/// One row for each sample: columns of the same length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assignments {
    /// WebDataset keys, where they are known.
    pub keys: Option<Vec<String>>,
    /// Samples.
    pub ids: Vec<SampleId>,
    /// Their clusters.
    pub clusters: Vec<u32>,
    /// Their squared distances to the centroid.
    pub distances: Vec<f32>,
    /// Their classes in the stream.
    pub classes: Vec<Option<i64>>,
    /// Their clusters in each level above, from the second up.
    pub levels: Vec<Vec<u32>>,
}

impl Assignments {
    /// Writes the file.
    ///
    /// # Errors
    /// Columns of different lengths, or the disk.
    pub fn write(&self, path: &Path) -> Result<()> {
        let rows = self.ids.len();
        let keys = self.keys.as_ref().map_or(rows, Vec::len);
        let above_fit = self.levels.iter().all(|level| level.len() == rows);
        if [self.clusters.len(), self.distances.len(), self.classes.len(), keys] != [rows; 4] || !above_fit {
            return Err(Error::data(format!("assignments for {}: columns of different lengths", path.display())));
        }
        let mut fields = vec![
            Field::new("id", DataType::UInt64, false),
            Field::new("cluster", DataType::UInt32, false),
            Field::new("distance", DataType::Float32, false),
            Field::new("class", DataType::Int64, true),
        ];
        if self.keys.is_some() {
            fields.insert(0, Field::new("key", DataType::Utf8, false));
        }
        fields.extend((0..self.levels.len()).map(|level| Field::new(level_name(level), DataType::UInt32, false)));
        let mut file = TableWriter::create(path, fields)?;
        let batch = table::rows_per_batch(ROW_BYTES);
        for start in (0..rows).step_by(batch) {
            let range = start..rows.min(start + batch);
            let mut columns: Vec<ArrayRef> = vec![
                Arc::new(UInt64Array::from_iter_values(self.ids[range.clone()].iter().map(|id| id.0))),
                Arc::new(UInt32Array::from(self.clusters[range.clone()].to_vec())),
                Arc::new(Float32Array::from(self.distances[range.clone()].to_vec())),
                Arc::new(Int64Array::from(self.classes[range.clone()].to_vec())),
            ];
            if let Some(keys) = &self.keys {
                columns.insert(0, Arc::new(StringArray::from_iter_values(&keys[range.clone()])));
            }
            columns.extend(
                self.levels
                    .iter()
                    .map(|level| -> ArrayRef { Arc::new(UInt32Array::from(level[range.clone()].to_vec())) }),
            );
            file.write(columns)?;
        }
        file.finish()
    }

    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self> {
        let file = Table::open(path)?;
        let above = (0..).take_while(|&level| file.has_column(&level_name(level))).count();
        let keys = file.has_column("key").then(Vec::new);
        let mut all = Self { keys, levels: vec![Vec::new(); above], ..Self::default() };
        for block in file {
            let block = block?;
            if let Some(keys) = &mut all.keys {
                keys.extend(block.column::<StringArray>("key")?.iter().map(|key| key.unwrap_or_default().to_owned()));
            }
            all.ids.extend(block.column::<UInt64Array>("id")?.values().iter().copied().map(SampleId));
            all.clusters.extend_from_slice(block.column::<UInt32Array>("cluster")?.values());
            all.distances.extend_from_slice(block.column::<Float32Array>("distance")?.values());
            all.classes.extend(block.column::<Int64Array>("class")?.iter());
            for (at, level) in all.levels.iter_mut().enumerate() {
                level.extend_from_slice(block.column::<UInt32Array>(&level_name(at))?.values());
            }
        }
        Ok(all)
    }

    /// The cluster of each sample.
    pub fn by_id(&self) -> HashMap<SampleId, u32> {
        self.ids.iter().copied().zip(self.clusters.iter().copied()).collect()
    }

    /// Samples in each cluster, up to the last that has one.
    pub fn sizes(&self) -> Vec<u64> {
        let clusters = self.clusters.iter().max().map_or(0, |last| *last as usize + 1);
        let mut sizes = vec![0; clusters];
        for cluster in &self.clusters {
            sizes[*cluster as usize] += 1;
        }
        sizes
    }

    /// For each sample in both: its cluster here and there.
    pub fn pairs(&self, other: &Self) -> Vec<(u32, u32)> {
        let there = other.by_id();
        let here = self.ids.iter().zip(&self.clusters);
        here.filter_map(|(id, cluster)| Some((*cluster, *there.get(id)?))).collect()
    }

    /// For each sample with a class: its cluster and its class, as a number from 0.
    pub fn pairs_with_classes(&self) -> Vec<(u32, u32)> {
        let known = self.clusters.iter().zip(&self.classes).filter_map(|(cluster, class)| Some((*cluster, (*class)?)));
        let (clusters, classes): (Vec<u32>, Vec<i64>) = known.unzip();
        clusters.into_iter().zip(super::agreement::compact(&classes)).collect()
    }
}

fn level_name(above: usize) -> String {
    format!("level_{}", above + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(keys: Option<Vec<String>>) -> Assignments {
        Assignments {
            keys,
            ids: vec![SampleId(u64::MAX), SampleId(3)],
            clusters: vec![9, 0],
            distances: vec![0.25, 1.5],
            classes: vec![None, Some(-7)],
            levels: vec![vec![4, 0], vec![1, 0]],
        }
    }

    #[test]
    fn assignments_come_back_with_and_without_keys() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("clusters.arrow");
        for keys in [None, Some(vec!["a/1".to_owned(), "b".to_owned()])] {
            let assignments = two(keys);
            assignments.write(&path)?;
            assert_eq!(Assignments::read(&path)?, assignments);
        }
        assert!(Assignments { clusters: vec![9], ..two(None) }.write(&path).is_err());
        assert!(Assignments { levels: vec![vec![9]], ..two(None) }.write(&path).is_err());
        Ok(())
    }

    #[test]
    fn pairs_are_of_samples_in_both() {
        let here = two(None);
        let there = Assignments { ids: vec![SampleId(3), SampleId(4)], ..two(None) };
        assert_eq!(here.pairs(&there), [(0, 9)]);
        assert_eq!(here.pairs_with_classes(), [(0, 0)]);
        assert_eq!(here.sizes(), [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
