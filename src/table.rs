//! Arrow IPC files (zstd): how banks, assignments and features lie on disk.
//!
//! In go columns, one record batch at a time; out come the same batches, each column checked for name and type. Nothing
//! holds more than one batch. Matrices are `FixedSizeList` columns. `pyarrow.ipc.open_file` and every other Arrow reader
//! open these files. A file cut short has no footer and is refused on opening; whoever needs a file to appear whole or
//! not at all writes it aside and renames it.

use crate::error::{Error, Result};
use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, FixedSizeListArray, PrimitiveArray, RecordBatch};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::{FileReader, FileReaderBuilder};
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of matrix in one record batch.
const BATCH_BYTES: usize = 8 << 20;

/// Rows of a record batch whose matrix has rows of `row_bytes`.
pub(crate) fn rows_per_batch(row_bytes: usize) -> usize {
    (BATCH_BYTES / row_bytes.max(1)).max(1)
}

/// A file being written.
pub(crate) struct TableWriter {
    path: PathBuf,
    schema: SchemaRef,
    writer: FileWriter<BufWriter<File>>,
}

impl TableWriter {
    /// Creates or replaces the file.
    pub(crate) fn create(path: &Path, fields: Vec<Field>) -> Result<Self> {
        let file = File::create(path).map_err(|source| Error::file("write", path, &source))?;
        let schema = Arc::new(Schema::new(fields));
        let writer = IpcWriteOptions::default()
            .try_with_compression(Some(CompressionType::ZSTD))
            .and_then(|options| FileWriter::try_new_with_options(BufWriter::new(file), &schema, options))
            .map_err(|source| write_error(path, &source))?;
        Ok(Self { path: path.to_owned(), schema, writer })
    }

    /// A fact about the whole file, kept in its footer.
    pub(crate) fn note(&mut self, key: &str, value: impl ToString) {
        self.writer.write_metadata(key, value.to_string());
    }

    /// Appends one record batch: columns in the order of the fields, all of one length.
    pub(crate) fn write(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        RecordBatch::try_new(self.schema.clone(), columns)
            .and_then(|batch| self.writer.write(&batch))
            .map_err(|source| write_error(&self.path, &source))
    }

    /// Writes the footer, without which the file is not one.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.writer.finish().and_then(|()| self.writer.flush()).map_err(|source| write_error(&self.path, &source))
    }
}

/// A file being read, batch by batch.
pub(crate) struct Table {
    path: PathBuf,
    reader: FileReader<BufReader<File>>,
}

impl Table {
    /// Opens a file and reads its footer.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), reader: open_reader(path, None)? })
    }

    /// A fact about the whole file, if it stands in the footer.
    pub(crate) fn fact(&self, key: &str) -> Option<&str> {
        self.reader.custom_metadata().get(key).map(String::as_str)
    }

    /// Names and kinds of its columns.
    pub(crate) fn columns(&self) -> BTreeMap<String, String> {
        let fields = self.reader.schema();
        fields.fields().iter().map(|field| (field.name().clone(), field.data_type().to_string())).collect()
    }

    /// Whether there is a column of that name.
    pub(crate) fn has_column(&self, name: &str) -> bool {
        self.reader.schema().field_with_name(name).is_ok()
    }

    /// Length of the rows of a matrix column.
    pub(crate) fn width(&self, name: &str) -> Result<usize> {
        let schema = self.reader.schema();
        match schema.field_with_name(name).map(Field::data_type) {
            Ok(DataType::FixedSizeList(_, width)) if *width > 0 => Ok(*width as usize),
            Ok(other) => {
                Err(Error::data(format!("{}: column `{name}` is {other}, not a fixed-size list", self.path.display())))
            }
            Err(_) => Err(missing_column(&self.path, name)),
        }
    }

    /// What the rows of a matrix column are of.
    pub(crate) fn entry_type(&self, name: &str) -> Result<DataType> {
        let schema = self.reader.schema();
        match schema.field_with_name(name).map(Field::data_type) {
            Ok(DataType::FixedSizeList(entry, _)) => Ok(entry.data_type().clone()),
            _ => Err(missing_column(&self.path, name)),
        }
    }

    /// Rows in the file, counted by reading its first column.
    pub(crate) fn count_rows(&self) -> Result<usize> {
        let mut rows = 0;
        for batch in open_reader(&self.path, Some(vec![0]))? {
            rows += batch.map_err(|source| read_error(&self.path, &source))?.num_rows();
        }
        Ok(rows)
    }
}

impl Iterator for Table {
    type Item = Result<Block>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.reader.next()?;
        let block = batch.map(|batch| Block { path: self.path.clone(), batch });
        Some(block.map_err(|source| read_error(&self.path, &source)))
    }
}

/// One record batch of a [`Table`].
pub(crate) struct Block {
    path: PathBuf,
    batch: RecordBatch,
}

impl Block {
    /// Rows in this block.
    pub(crate) fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// Whether there is a column of that name.
    pub(crate) fn has_column(&self, name: &str) -> bool {
        self.batch.column_by_name(name).is_some()
    }

    /// The column of that name and array type.
    pub(crate) fn column<A: Array + 'static>(&self, name: &str) -> Result<&A> {
        let column = self.batch.column_by_name(name).ok_or_else(|| missing_column(&self.path, name))?;
        column.as_any().downcast_ref::<A>().ok_or_else(|| {
            Error::data(format!("{}: column `{name}` has the type {}", self.path.display(), column.data_type()))
        })
    }

    /// The entries of a matrix column, row after row.
    pub(crate) fn matrix<T: ArrowPrimitiveType>(&self, name: &str) -> Result<&[T::Native]> {
        let list = self.column::<FixedSizeListArray>(name)?;
        let values = list.values().as_any().downcast_ref::<PrimitiveArray<T>>().ok_or_else(|| {
            let found = list.value_type();
            Error::data(format!("{}: column `{name}` holds {found}, not {}", self.path.display(), T::DATA_TYPE))
        })?;
        if list.null_count() > 0 || values.null_count() > 0 {
            return Err(Error::data(format!("{}: column `{name}` has missing values", self.path.display())));
        }
        let start = list.value_offset_at(0);
        let len = list.len() * list.value_length() as usize;
        Ok(&values.values()[start..start + len])
    }
}

/// The field of a matrix column with rows of `width` entries.
pub(crate) fn matrix_field<T: ArrowPrimitiveType>(name: &str, width: usize) -> Field {
    Field::new(name, DataType::FixedSizeList(item_field::<T>(), width as i32), false)
}

/// A matrix column from its entries, row after row.
pub(crate) fn matrix_column<T: ArrowPrimitiveType>(entries: Vec<T::Native>, width: usize) -> Result<ArrayRef>
where
    ScalarBuffer<T::Native>: From<Vec<T::Native>>,
{
    let values = Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::from(entries), None));
    let list = FixedSizeListArray::try_new(item_field::<T>(), width as i32, values, None)
        .map_err(|source| Error::data(format!("a matrix with rows of {width}: {source}")))?;
    Ok(Arc::new(list))
}

fn item_field<T: ArrowPrimitiveType>() -> Arc<Field> {
    Arc::new(Field::new("item", T::DATA_TYPE, false))
}

fn open_reader(path: &Path, columns: Option<Vec<usize>>) -> Result<FileReader<BufReader<File>>> {
    let file = File::open(path).map_err(|source| Error::file("read", path, &source))?;
    let mut builder = FileReaderBuilder::new();
    if let Some(columns) = columns {
        builder = builder.with_projection(columns);
    }
    builder.build(BufReader::new(file)).map_err(|source| read_error(path, &source))
}

fn missing_column(path: &Path, name: &str) -> Error {
    Error::data(format!("{} has no column `{name}`", path.display()))
}

fn read_error(path: &Path, source: &ArrowError) -> Error {
    Error::data(format!("cannot read {}: {source}", path.display()))
        .with_hint("the file is not an Arrow IPC file, or was cut short while it was written")
}

fn write_error(path: &Path, source: &ArrowError) -> Error {
    Error::data(format!("cannot write {}: {source}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::UInt64Array;
    use arrow::datatypes::Float32Type;

    #[test]
    fn a_file_gives_back_its_batches_and_refuses_other_names_types_and_cuts() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("table.arrow");
        let id = Field::new("id", DataType::UInt64, false);
        let mut writer = TableWriter::create(&path, vec![id, matrix_field::<Float32Type>("feature", 2)])?;
        for start in [0_u64, 2] {
            let ids = Arc::new(UInt64Array::from(vec![start, start + 1]));
            let entries = (0..4).map(|entry| (start * 2 + entry) as f32).collect();
            writer.write(vec![ids, matrix_column::<Float32Type>(entries, 2)?])?;
        }
        writer.note("next", 3);
        writer.finish()?;

        let table = Table::open(&path)?;
        assert_eq!((table.count_rows()?, table.width("feature")?, table.fact("next")), (4, 2, Some("3")));
        let mut entries = Vec::new();
        for block in table {
            let block = block?;
            assert!(block.column::<UInt64Array>("feature").is_err());
            assert!(block.column::<UInt64Array>("key").is_err());
            entries.extend_from_slice(block.matrix::<Float32Type>("feature")?);
        }
        assert_eq!(entries, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);

        let bytes = std::fs::read(&path).expect("the file just written");
        std::fs::write(&path, &bytes[..bytes.len() - 20]).expect("a shorter file");
        assert!(Table::open(&path).is_err());
        Ok(())
    }
}
