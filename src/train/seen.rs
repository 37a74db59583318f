//! Images that the rules on duplicates know, as they lie in a snapshot: `id`, `bytes`, and the hash of the pixels in two
//! halves, one row an image, oldest first. A snapshot without the file knows none.

use crate::batch::{Entry, Remembered};
use crate::error::Result;
use crate::shards::SampleId;
use crate::table::{Table, TableWriter, rows_per_batch};
use arrow::array::{ArrayRef, UInt64Array};
use arrow::datatypes::{DataType, Field};
use std::path::Path;
use std::sync::Arc;

const COLUMNS: [&str; 4] = ["id", "bytes", "pixels_low", "pixels_high"];

/// Writes all of them.
pub(super) fn write(path: &Path, remembered: &Remembered) -> Result<()> {
    let fields = COLUMNS.map(|name| Field::new(name, DataType::UInt64, false));
    let mut writer = TableWriter::create(path, fields.to_vec())?;
    let entries: Vec<&Entry> = remembered.iter().collect();
    for block in entries.chunks(rows_per_batch(size_of::<Entry>())) {
        let column = |value: fn(&Entry) -> u64| -> ArrayRef {
            Arc::new(UInt64Array::from_iter_values(block.iter().map(|entry| value(entry))))
        };
        writer.write(vec![
            column(|entry| entry.id.0),
            column(|entry| entry.bytes),
            column(|entry| entry.pixels as u64),
            column(|entry| (entry.pixels >> 64) as u64),
        ])?;
    }
    writer.finish()
}

/// Reads them back, the last `most` of them.
pub(super) fn read(path: &Path, most: usize) -> Result<Remembered> {
    let mut remembered = Remembered::new(most);
    if !path.exists() {
        return Ok(remembered);
    }
    for block in Table::open(path)? {
        let block = block?;
        let mut columns = Vec::with_capacity(COLUMNS.len());
        for name in COLUMNS {
            columns.push(block.column::<UInt64Array>(name)?.values());
        }
        remembered.extend((0..block.rows()).map(|row| Entry {
            id: SampleId(columns[0][row]),
            bytes: columns[1][row],
            pixels: u128::from(columns[3][row]) << 64 | u128::from(columns[2][row]),
        }));
    }
    Ok(remembered)
}
