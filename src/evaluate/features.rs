//! Feature files: what `shoal embed` writes, and what evaluation and offline clustering read.
//!
//! Arrow IPC, one row a sample: `key` (text), `id` (u64), `feature` (fixed-size list of f32), `label` (i64, missing where the
//! sample has none). Written and read batch by batch. A file of other making may have features of f16 or f64, and lack all
//! other columns: the number of the row is then key and id.

use crate::error::{Error, Result};
use crate::shards::SampleId;
use crate::table::{self, Block, Table, TableWriter};
use arrow::array::{ArrayRef, Int64Array, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Float16Type, Float32Type, Float64Type};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// A feature file being written.
pub struct FeatureWriter {
    file: TableWriter,
    dim: usize,
}

impl FeatureWriter {
    /// Creates or replaces the file, for features of `dim` entries.
    pub fn create(path: &Path, dim: usize) -> Result<Self> {
        let fields = vec![
            Field::new("key", DataType::Utf8, false),
            Field::new("id", DataType::UInt64, false),
            table::matrix_field::<Float32Type>("feature", dim),
            Field::new("label", DataType::Int64, true),
        ];
        Ok(Self { file: TableWriter::create(path, fields)?, dim })
    }

    /// Appends samples with their features `[B, D]`, any float kind and device.
    pub fn push(&mut self, keys: &[String], ids: &[SampleId], features: &Tensor, labels: &[Option<i64>]) -> Result<()> {
        let rows = ids.len();
        let shape = features.size();
        if shape != [rows as i64, self.dim as i64] || keys.len() != rows || labels.len() != rows {
            return Err(Error::data(format!(
                "{rows} samples with {} keys, {} labels and features {shape:?} where rows of {} are due",
                keys.len(),
                labels.len(),
                self.dim
            )));
        }
        let features = features.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        let batch = table::rows_per_batch(self.dim * size_of::<f32>());
        for start in (0..rows).step_by(batch) {
            let range = start..rows.min(start + batch);
            let entries = features.f_narrow(0, start as i64, range.len() as i64)?.f_reshape([-1])?;
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(&keys[range.clone()])),
                Arc::new(UInt64Array::from_iter_values(ids[range.clone()].iter().map(|id| id.0))),
                table::matrix_column::<Float32Type>(Vec::<f32>::try_from(&entries)?, self.dim)?,
                Arc::new(Int64Array::from(labels[range].to_vec())),
            ];
            self.file.write(columns)?;
        }
        Ok(())
    }

    /// Writes the footer, without which the file cannot be read.
    pub fn finish(self) -> Result<()> {
        self.file.finish()
    }
}

/// Some rows of a feature file.
#[derive(Debug)]
pub struct Features {
    /// WebDataset keys.
    pub keys: Vec<String>,
    /// Samples.
    pub ids: Vec<SampleId>,
    /// `[N, D]`, f32.
    pub features: Tensor,
    /// Classes, where known.
    pub labels: Vec<Option<i64>>,
}

/// A feature file that can be read, as often as needed.
#[derive(Debug)]
pub struct FeatureFile {
    path: PathBuf,
    rows: usize,
    dim: usize,
    entry: DataType,
}

impl FeatureFile {
    /// Looks at its columns and counts its rows.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Table::open(path)?;
        let (dim, entry) = (file.width("feature")?, file.entry_type("feature")?);
        if !matches!(entry, DataType::Float16 | DataType::Float32 | DataType::Float64) {
            return Err(Error::data(format!("{}: column `feature` holds {entry}, not floats", path.display())));
        }
        Ok(Self { path: path.to_owned(), rows: file.count_rows()?, dim, entry })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Entries of a feature.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Its rows from the first, a batch at a time.
    pub fn blocks(&self) -> Result<impl Iterator<Item = Result<Features>>> {
        let file = Table::open(&self.path)?;
        let mut start = 0;
        Ok(file.map(move |block| {
            let block = block?;
            let first = start;
            start += block.rows() as u64;
            self.block(&block, first)
        }))
    }

    fn block(&self, block: &Block, first: u64) -> Result<Features> {
        let rows = block.rows();
        let features = match self.entry {
            DataType::Float16 => Tensor::f_from_slice(block.matrix::<Float16Type>("feature")?)?,
            DataType::Float64 => Tensor::f_from_slice(block.matrix::<Float64Type>("feature")?)?,
            _ => Tensor::f_from_slice(block.matrix::<Float32Type>("feature")?)?,
        };
        let numbers = first..first + rows as u64;
        let keys = match block.has_column("key") {
            true => block.column::<StringArray>("key")?.iter().map(|key| key.unwrap_or_default().to_owned()).collect(),
            false => numbers.clone().map(|row| row.to_string()).collect(),
        };
        let ids = match block.has_column("id") {
            true => block.column::<UInt64Array>("id")?.values().iter().copied().map(SampleId).collect(),
            false => numbers.map(SampleId).collect(),
        };
        let labels = match block.has_column("label") {
            true => block.column::<Int64Array>("label")?.iter().collect(),
            false => vec![None; rows],
        };
        let features = features.f_to_kind(Kind::Float)?.f_view([rows as i64, self.dim as i64])?;
        Ok(Features { keys, ids, features, labels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_back_as_one_tensor() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("features.arrow");
        let rows = Tensor::from_slice(&[0.5_f32, -1.0, 2.0, 3.5, 4.0, 5.0]).view([3, 2]);
        let keys = ["a", "b/c", "d"].map(str::to_owned);
        let ids = [SampleId(3), SampleId(u64::MAX), SampleId(1)];
        let labels = [Some(-7), None, Some(2)];
        let mut writer = FeatureWriter::create(&path, 2)?;
        writer.push(&keys[..2], &ids[..2], &rows.narrow(0, 0, 2).to_kind(Kind::BFloat16), &labels[..2])?;
        writer.push(&keys[2..], &ids[2..], &rows.narrow(0, 2, 1), &labels[2..])?;
        assert!(writer.push(&keys, &ids, &rows.narrow(0, 0, 2), &labels).is_err());
        writer.finish()?;

        let file = FeatureFile::open(&path)?;
        assert_eq!((file.rows(), file.dim()), (3, 2));
        let blocks = file.blocks()?.collect::<Result<Vec<_>>>()?;
        let features: Vec<&Tensor> = blocks.iter().map(|block| &block.features).collect();
        assert_eq!(Tensor::cat(&features, 0), rows);
        assert_eq!(blocks.iter().flat_map(|block| block.keys.clone()).collect::<Vec<_>>(), keys);
        assert_eq!(blocks.iter().flat_map(|block| block.ids.clone()).collect::<Vec<_>>(), ids);
        assert_eq!(blocks.iter().flat_map(|block| block.labels.clone()).collect::<Vec<_>>(), labels);
        Ok(())
    }

    #[test]
    fn rows_without_names_are_numbered_and_halves_are_floats_too() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("features.arrow");
        let mut file = TableWriter::create(&path, vec![table::matrix_field::<Float16Type>("feature", 2)])?;
        for start in [0_u8, 4] {
            let entries = (start..start + 4).map(half::f16::from).collect();
            file.write(vec![table::matrix_column::<Float16Type>(entries, 2)?])?;
        }
        file.finish()?;
        let blocks = FeatureFile::open(&path)?.blocks()?.collect::<Result<Vec<_>>>()?;
        assert_eq!(blocks[1].keys, ["2", "3"]);
        assert_eq!((blocks[1].ids[0], blocks[1].labels.as_slice()), (SampleId(2), &[None, None][..]));
        assert_eq!(blocks[1].features, Tensor::from_slice(&[4.0_f32, 5.0, 6.0, 7.0]).view([2, 2]));
        Ok(())
    }
}
