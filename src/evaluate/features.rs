//! Feature files: what `shoal embed` writes, and what evaluation and offline clustering read.
//!
//! Arrow IPC, one row a sample: `key` (text), `id` (u64), `feature` (fixed-size list of f32), `label` (i64, missing where the
//! sample has none). Written batch by batch; read into one tensor `[N, D]`.

use crate::error::{Error, Result};
use crate::shards::SampleId;
use crate::table::{self, Table, TableWriter};
use arrow::array::{Array, ArrayRef, Int64Array, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Float32Type};
use std::path::Path;
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

/// The content of a feature file.
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

impl Features {
    /// The labels of all samples; an error if one has none.
    pub fn all_labels(&self) -> Result<Vec<i64>> {
        let labelled: Option<Vec<i64>> = self.labels.iter().copied().collect();
        labelled.ok_or_else(|| {
            let missing = self.labels.iter().filter(|label| label.is_none()).count();
            Error::data(format!("{missing} of {} samples have no label", self.labels.len()))
                .with_hint("evaluation needs a `.cls` member beside every image")
        })
    }
}

/// Reads a feature file; its `label` column may be missing.
pub fn read(path: &Path) -> Result<Features> {
    let file = Table::open(path)?;
    let (rows, dim) = (file.count_rows()?, file.width("feature")?);
    let labelled = file.has_column("label");
    let features = Tensor::f_empty([rows as i64, dim as i64], (Kind::Float, Device::Cpu))?;
    let mut all = Features { keys: Vec::new(), ids: Vec::new(), features, labels: Vec::new() };
    for block in file {
        let block = block?;
        let entries = Tensor::f_from_slice(block.matrix::<Float32Type>("feature")?)?;
        let (start, len) = (all.ids.len() as i64, block.rows() as i64);
        all.features.f_narrow(0, start, len)?.f_copy_(&entries.f_view([len, dim as i64])?)?;
        all.keys.extend(block.column::<StringArray>("key")?.iter().map(|key| key.unwrap_or_default().to_owned()));
        all.ids.extend(block.column::<UInt64Array>("id")?.values().iter().copied().map(SampleId));
        if labelled {
            let labels = block.column::<Int64Array>("label")?;
            all.labels.extend((0..labels.len()).map(|row| labels.is_valid(row).then(|| labels.value(row))));
        } else {
            all.labels.extend(std::iter::repeat_n(None, block.rows()));
        }
    }
    Ok(all)
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

        let found = read(&path)?;
        assert_eq!(found.features, rows);
        assert_eq!((found.keys.as_slice(), found.ids.as_slice()), (&keys[..], &ids[..]));
        assert_eq!(found.labels, labels);
        let error = found.all_labels().expect_err("a sample without a label");
        assert!(error.to_string().starts_with("1 of 3"), "{error}");
        Ok(())
    }
}
