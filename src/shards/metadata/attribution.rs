//! Whom to name: the rows of the metadata that belong to samples that were used.
//!
//! In: shards and keys of samples, in any order, as often as they come. Out: one line for each that the metadata know, in the order of
//! the metadata: hash, title, author, page, licence and its URL. Memory does not grow with the number of samples: their names go to a
//! sorted table on disk, against which the metadata are read once.

use super::Rows;
use super::key::{name_of_sample, names_of_row};
use super::table::{NameTable, TableMaker};
use crate::config::MetadataKey;
use crate::error::{Error, Result};
use std::io::Write;
use std::path::Path;

const HEADER: &str = "hash\tid\ttitle\tauthor\tpage\tlicence\tlicence_url";

/// Names of samples, being collected.
pub struct Attribution {
    folder: tempfile::TempDir,
    names: TableMaker,
    key: MetadataKey,
    /// Keys that are no names of photographs.
    nameless: u64,
}

/// What came of an attribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributed {
    /// Photographs named.
    pub named: u64,
    /// Photographs that the metadata do not know.
    pub unknown: u64,
    /// Samples whose keys are no names of photographs, each as often as it came.
    pub nameless: u64,
}

impl Attribution {
    /// For samples with keys of this kind.
    ///
    /// # Errors
    /// There is no room for temporary files.
    pub fn new(key: MetadataKey) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(|source| Error::file("write", &std::env::temp_dir(), &source))?;
        let names = TableMaker::create(&folder.path().join("names"))?;
        Ok(Self { folder, names, key, nameless: 0 })
    }

    /// Adds a sample.
    ///
    /// # Errors
    /// The disk is full.
    pub fn add(&mut self, shard: &str, key: &str) -> Result<()> {
        match name_of_sample(shard, key, self.key) {
            Some(name) => self.names.add(name.0, 0),
            None => {
                self.nameless += 1;
                Ok(())
            }
        }
    }

    /// Writes a line for each photograph among the samples.
    ///
    /// # Errors
    /// The metadata cannot be read, or `out` cannot be written.
    pub fn write(self, metadata: &Path, out: &mut dyn Write) -> Result<Attributed> {
        let path = self.folder.path().join("names");
        self.names.finish(&Default::default())?;
        let names = NameTable::open(&path)?.ok_or_else(|| Error::data(format!("{} is not whole", path.display())))?;
        let failed = |source: std::io::Error| Error::data(format!("cannot write the attribution: {source}"));
        writeln!(out, "{HEADER}").map_err(failed)?;
        let mut rows = Rows::open(metadata)?;
        let mut named = 0;
        while let Some(row) = rows.next_row()? {
            for name in names_of_row(&row, self.key) {
                if names.value(name.0).map_err(|source| Error::file("read", &path, &source))?.is_none() {
                    continue;
                }
                named += 1;
                let (hash, id, title, author) = (&row.hash, row.id, &row.title, &row.author);
                let (page, licence, url) = (&row.page, &row.licence, &row.licence_url);
                writeln!(out, "{hash}\t{id}\t{title}\t{author}\t{page}\t{licence}\t{url}").map_err(failed)?;
                break;
            }
        }
        out.flush().map_err(failed)?;
        Ok(Attributed { named, unknown: names.len().saturating_sub(named), nameless: self.nameless })
    }
}
