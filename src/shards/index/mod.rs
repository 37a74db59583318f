//! What each sample of a shard is: offset, bytes, size in pixels, format, verdict. Learnt by the way while a run reads a shard
//! for the first time, or by `shoal shards index`.
//!
//! A folder holds one Arrow IPC file a shard, in 256 folders by a hash of its name, so that ten thousand shards make no folder
//! slow and a shard is found without a catalogue. A file appears whole or not at all. It says of which version of the
//! shard it is (a [`Stamp`]): for another version there is no index. About 12 bytes a sample on disk.
//!
//! What the stream gives, and in which order, is the same with an index, without one, and with half of one. An index saves work: an
//! image that could not be decoded is not tried again in later passes, single samples are found without reading the list, and
//! the share of a pass that is done is known.

mod collect;
mod make;
mod parts;
#[cfg(test)]
mod tests;

pub use collect::Collector;
pub use make::{Look, Made, make};
pub use parts::Part;

use super::archive::Archive;
use super::reason::{Filtered, Reason, Trouble};
use super::url::{Address, ShardUrl};
use crate::error::{Error, Result};
use crate::table::{Table, TableWriter};
use arrow::array::{StringArray, UInt16Array, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Stands in the verdict column for a sample that can be used.
const OK: &str = "ok";

/// Which version of a shard something was learnt from. Unknown facts are equal to each other alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Option<u64>, Option<String>)", into = "(Option<u64>, Option<String>)")]
pub struct Stamp {
    /// Length in bytes as it is stored.
    pub bytes: Option<u64>,
    /// What changes when the shard is written anew: the ETag of a server, or its Last-Modified; the time of the last change
    /// of a file, in nanoseconds since 1970.
    pub version: Option<String>,
}

impl Stamp {
    /// The stamp of a shard that is open.
    pub fn of(url: &ShardUrl, archive: &Archive) -> Self {
        let version = match url.address() {
            Address::Local(path) => modified(path),
            _ => archive.tag().map(str::to_owned),
        };
        Self { bytes: archive.stored_length(), version }
    }

    /// How a shard that had this stamp has changed, if it is certain to be another one: by its length, or by what its server
    /// says of its version. The time of a file says nothing certain: copies have times of their own.
    pub fn change(&self, now: &Self, url: &ShardUrl) -> Option<Trouble> {
        let detail = match (self, now) {
            (Self { bytes: Some(old), .. }, Self { bytes: Some(new), .. }) if old != new => {
                format!("{new} bytes long, {old} when the run read it")
            }
            (Self { version: Some(old), .. }, Self { version: Some(new), .. }) if url.is_remote() && old != new => {
                format!("version {new}, {old} when the run read it")
            }
            _ => return None,
        };
        Some(Trouble::new(Reason::ShardChanged, detail))
    }
}

impl From<(Option<u64>, Option<String>)> for Stamp {
    fn from((bytes, version): (Option<u64>, Option<String>)) -> Self {
        Self { bytes, version }
    }
}

impl From<Stamp> for (Option<u64>, Option<String>) {
    fn from(stamp: Stamp) -> Self {
        (stamp.bytes, stamp.version)
    }
}

fn modified(path: &Path) -> Option<String> {
    let time = std::fs::metadata(path).ok()?.modified().ok()?;
    Some(time.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos().to_string())
}

/// What became of a sample when it was read and decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowVerdict {
    /// It can be trained on.
    Usable,
    /// It cannot.
    Lost(Reason),
    /// The pipeline that made the index did not want it.
    Filtered(Filtered),
}

impl RowVerdict {
    /// As it stands in the index.
    pub fn name(self) -> &'static str {
        match self {
            Self::Usable => OK,
            Self::Lost(reason) => reason.name(),
            Self::Filtered(filtered) => filtered.name(),
        }
    }

    /// Why the image could not be decoded, if that was the trouble: what is told by its first bytes, or by settings, costs
    /// nothing to find again.
    fn is_spoilt(self) -> Option<Reason> {
        match self {
            Self::Lost(reason @ Reason::DecodeFailed) => Some(reason),
            Self::Usable | Self::Lost(_) | Self::Filtered(_) => None,
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        let lost = Reason::ALL.iter().map(|&reason| Self::Lost(reason));
        let filtered = Filtered::ALL.iter().map(|&filtered| Self::Filtered(filtered));
        std::iter::once(Self::Usable).chain(lost).chain(filtered).find(|verdict| verdict.name() == name)
    }
}

/// One sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Byte offset of its first member's header in the uncompressed tar.
    pub offset: u64,
    /// Bytes of its image file; 0 where it was lost before they were read.
    pub bytes: u32,
    /// Size of the image when upright, in pixels; 0 where it was not decoded.
    pub width: u16,
    /// As `width`.
    pub height: u16,
    /// Format of the image, "" where it was not decoded.
    pub format: Cow<'static, str>,
    /// Whether it can be used.
    pub verdict: RowVerdict,
}

impl Row {
    /// A sample that was lost before anything was known of it.
    pub fn lost_at(offset: u64, reason: Reason) -> Self {
        Self::without_pixels(offset, RowVerdict::Lost(reason))
    }

    /// A sample of whose pixels nothing is known.
    pub fn without_pixels(offset: u64, verdict: RowVerdict) -> Self {
        Self { offset, bytes: 0, width: 0, height: 0, format: Cow::Borrowed(""), verdict }
    }
}

/// The index of one shard, in the order of its samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardIndex {
    /// The shard's name.
    pub shard: Arc<str>,
    /// The version it is of.
    pub stamp: Stamp,
    /// Samples that the shard gives to a stream, which rejects some of them when it decodes them.
    pub samples: u64,
    /// Every sample, those that the shard does not give included.
    pub rows: Vec<Row>,
}

impl ShardIndex {
    /// Images that cannot be decoded, by the offsets of their samples, and why.
    pub fn spoilt(&self) -> HashMap<u64, Reason> {
        self.rows.iter().filter_map(|row| Some((row.offset, row.verdict.is_spoilt()?))).collect()
    }
}

/// What an index says of a shard without its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The shard's name.
    pub shard: String,
    /// The version it is of.
    pub stamp: Stamp,
    /// Samples that the shard gives to a stream.
    pub samples: u64,
}

/// A folder of indices.
#[derive(Clone, Debug)]
pub struct Index {
    folder: PathBuf,
}

impl Index {
    /// The indices in a folder, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Samples that a shard gives to a stream, if it is known.
    ///
    /// # Errors
    /// The file of the shard is there and is none of ours.
    pub fn samples(&self, shard: &str) -> Result<Option<u64>> {
        Ok(self.summary(shard)?.map(|summary| summary.samples))
    }

    /// What is known of a shard without reading its rows.
    ///
    /// # Errors
    /// As [`Index::samples`].
    pub fn summary(&self, shard: &str) -> Result<Option<Summary>> {
        let path = self.path(shard);
        match path.is_file() {
            true => summary_of(&path, &Table::open(&path)?).map(Some),
            false => Ok(None),
        }
    }

    /// When a shard was indexed, if it is known.
    pub fn time(&self, shard: &str) -> Option<SystemTime> {
        self.path(shard).metadata().and_then(|file| file.modified()).ok()
    }

    /// Where the samples of a shard begin, and in which version of it, if it is known.
    ///
    /// # Errors
    /// As [`Index::samples`].
    pub fn offsets(&self, shard: &str) -> Result<Option<(Vec<u64>, Stamp)>> {
        let path = self.path(shard);
        if !path.is_file() {
            return Ok(None);
        }
        let table = Table::open(&path)?;
        let stamp = summary_of(&path, &table)?.stamp;
        let mut offsets = Vec::new();
        for block in table {
            offsets.extend_from_slice(block?.column::<UInt64Array>("offset")?.values());
        }
        Ok(Some((offsets, stamp)))
    }

    /// Every sample of a shard, if it is known.
    ///
    /// # Errors
    /// As [`Index::samples`].
    pub fn shard(&self, shard: &str) -> Result<Option<ShardIndex>> {
        let path = self.path(shard);
        match path.is_file() {
            true => read(&path).map(Some),
            false => Ok(None),
        }
    }

    /// Shards and samples in the folder.
    ///
    /// # Errors
    /// A file of an index is none.
    pub fn totals(&self) -> Result<(u64, u64)> {
        let (mut shards, mut samples) = (0, 0);
        let pattern = format!("{}/??/*.arrow", glob::Pattern::escape(&self.folder.to_string_lossy()));
        for path in glob::glob(&pattern).into_iter().flatten().flatten() {
            samples += summary_of(&path, &Table::open(&path)?)?.samples;
            shards += 1;
        }
        Ok((shards, samples))
    }

    /// Writes the index of a shard; one that is there is replaced.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, index: &ShardIndex) -> Result<()> {
        write(index, &self.path(&index.shard))
    }

    /// Takes away the index of a shard, if there is one.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(&self, shard: &str) -> Result<()> {
        remove_file(&self.path(shard))
    }

    fn path(&self, shard: &str) -> PathBuf {
        let hash = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(shard.as_bytes()));
        self.folder.join(&hash[..2]).join(format!("{}.arrow", &hash[2..]))
    }
}

impl ShardIndex {
    /// Samples lost, by reason.
    pub fn losses(&self) -> BTreeMap<Reason, u64> {
        let mut losses = BTreeMap::new();
        for row in &self.rows {
            if let RowVerdict::Lost(reason) = row.verdict {
                *losses.entry(reason).or_default() += 1;
            }
        }
        losses
    }
}

/// Writes an index into a file, by way of another one beside it, which other processes do not write.
fn write(index: &ShardIndex, path: &Path) -> Result<()> {
    let aside = path.with_extension(format!("{}.new", std::process::id()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| Error::file("make", folder, &source))?;
    }
    let text = |name| Field::new(name, DataType::Utf8, false);
    let mut writer = TableWriter::create(
        &aside,
        vec![
            Field::new("offset", DataType::UInt64, false),
            Field::new("bytes", DataType::UInt32, false),
            Field::new("width", DataType::UInt16, false),
            Field::new("height", DataType::UInt16, false),
            text("format"),
            text("verdict"),
        ],
    )?;
    let rows = &index.rows;
    writer.write(vec![
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.offset))),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.bytes))),
        Arc::new(UInt16Array::from_iter_values(rows.iter().map(|row| row.width))),
        Arc::new(UInt16Array::from_iter_values(rows.iter().map(|row| row.height))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.format))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.verdict.name()))),
    ])?;
    writer.note("shard", &index.shard);
    writer.note("samples", index.samples);
    if let Some(bytes) = index.stamp.bytes {
        writer.note("stored_bytes", bytes);
    }
    if let Some(version) = &index.stamp.version {
        writer.note("version", version);
    }
    writer.finish()?;
    std::fs::rename(aside, path).map_err(|source| Error::file("write", path, &source))
}

/// Takes away a file, if it is there.
fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path, &source)),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<ShardIndex> {
    let table = Table::open(path)?;
    let Summary { shard, stamp, samples } = summary_of(path, &table)?;
    let mut rows = Vec::new();
    for block in table {
        let block = block?;
        let offsets = block.column::<UInt64Array>("offset")?;
        let bytes = block.column::<UInt32Array>("bytes")?;
        let (widths, heights) = (block.column::<UInt16Array>("width")?, block.column::<UInt16Array>("height")?);
        let (formats, verdicts) = (block.column::<StringArray>("format")?, block.column::<StringArray>("verdict")?);
        for row in 0..block.rows() {
            rows.push(Row {
                offset: offsets.value(row),
                bytes: bytes.value(row),
                width: widths.value(row),
                height: heights.value(row),
                format: Cow::Owned(formats.value(row).to_owned()),
                verdict: verdict_of(path, verdicts.value(row))?,
            });
        }
    }
    Ok(ShardIndex { shard: shard.into(), stamp, samples, rows })
}

fn summary_of(path: &Path, table: &Table) -> Result<Summary> {
    let lacking = |key: &str| {
        Error::data(format!("{} is no index of a shard: it has no `{key}`", path.display()))
            .with_hint("remove it: the next pass makes it anew")
    };
    Ok(Summary {
        shard: table.fact("shard").ok_or_else(|| lacking("shard"))?.to_owned(),
        samples: table.fact("samples").and_then(|text| text.parse().ok()).ok_or_else(|| lacking("samples"))?,
        stamp: Stamp {
            bytes: table.fact("stored_bytes").and_then(|text| text.parse().ok()),
            version: table.fact("version").map(str::to_owned),
        },
    })
}

fn verdict_of(path: &Path, name: &str) -> Result<RowVerdict> {
    RowVerdict::of_name(name).ok_or_else(|| Error::data(format!("{}: no verdict is \"{name}\"", path.display())))
}
