//! What YFCC100M's metadata say of samples: their licences, and whom to name.
//!
//! In: `filter.metadata`, and the shard and key of a sample. Out: whether its licence is among `filter.licences` ([`Licences`]),
//! before it is decoded; and the rows of the samples that were used ([`Attribution`]). The metadata are read once into a sorted table
//! of hashes beside them (`NAME.names-KIND`), which is used again until they change; a look-up reads one block of it.

mod attribution;
mod key;
mod row;
mod table;

pub use attribution::{Attributed, Attribution};
pub use row::{Row, Rows};

use self::key::{name_of_sample, names_of_row};
use self::table::{Facts, NameTable, TableMaker};
use super::reason::{Filtered, Reason, Rejection, Trouble};
use crate::config::{FilterPlan, MetadataKey};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Licences by the name they have in `filter.licences` and in the URLs of Creative Commons. Numbers are their places from 1.
pub const LICENCES: [&str; 8] = ["by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd", "zero", "mark"];
/// Rows between two lines that say how far the table has come.
const REPORT_EVERY: u64 = 5_000_000;

/// Tells samples by their licence.
#[derive(Debug)]
pub struct Licences {
    table: NameTable,
    key: MetadataKey,
    path: PathBuf,
    wanted: Vec<u8>,
}

impl Licences {
    /// By `filter.licences`; none if every licence will do. Makes the table first, if it is not there.
    ///
    /// # Errors
    /// The metadata or the table cannot be read or written.
    pub fn open(plan: &FilterPlan) -> Result<Option<Arc<Self>>> {
        if plan.licences.is_empty() {
            return Ok(None);
        }
        let path = PathBuf::from(&plan.metadata);
        let table = open_table(&path, plan.metadata_key)?;
        let wanted = plan.licences.iter().filter_map(|name| number(name)).collect();
        Ok(Some(Arc::new(Self { table, key: plan.metadata_key, path, wanted })))
    }

    /// Lets a sample pass, or says why not.
    ///
    /// # Errors
    /// Its licence is another, or unknown; the table cannot be read.
    pub fn judge(&self, shard: &str, key: &str) -> Result<(), Rejection> {
        let Some(name) = name_of_sample(shard, key, self.key) else {
            return Err(Filtered::UnknownLicence.into());
        };
        let value = self.table.value(name.0).map_err(|error| {
            Trouble::new(Reason::Unreadable, format!("the table of licences of {}: {error}", self.path.display()))
        })?;
        match value {
            None | Some(0) => Err(Filtered::UnknownLicence.into()),
            Some(value) if self.wanted.contains(&value) => Ok(()),
            Some(_) => Err(Filtered::Licence.into()),
        }
    }
}

/// The number of a licence by its name.
fn number(name: &str) -> Option<u8> {
    LICENCES.iter().position(|licence| *licence == name).map(|place| place as u8 + 1)
}

/// The number of the licence with this URL; 0 for one of another kind.
fn number_of_url(url: &str) -> u8 {
    let path = url.split_once("/licenses/").or_else(|| url.split_once("/publicdomain/")).map(|(_, path)| path);
    path.and_then(|path| number(path.split('/').next()?)).unwrap_or(0)
}

/// The table of a metadata file, made anew where the file has changed.
fn open_table(metadata: &Path, kind: MetadataKey) -> Result<NameTable> {
    let facts = facts_of(metadata)?;
    let mut name = metadata.file_name().unwrap_or_default().to_owned();
    name.push(format!(".names-{}", kind.name()));
    let path = metadata.with_file_name(name);
    if let Some(table) = NameTable::open(&path)?
        && table.facts[..2] == facts
    {
        return Ok(table);
    }
    tracing::info!("reading {} into {}", metadata.display(), path.display());
    let mut maker = TableMaker::create(&path)?;
    let mut rows = Rows::open(metadata)?;
    while let Some(row) = rows.next_row()? {
        let licence = number_of_url(&row.licence_url);
        for name in names_of_row(&row, kind) {
            maker.add(name.0, licence)?;
        }
        let (read, _) = rows.counts();
        if read.is_multiple_of(REPORT_EVERY) {
            tracing::info!("{read} lines of {}", metadata.display());
        }
    }
    let (read, malformed) = rows.counts();
    if malformed > 0 {
        tracing::warn!("{malformed} of {read} lines of {} are malformed: passed over", metadata.display());
    }
    let [length, modified] = facts;
    let facts: Facts = [length, modified, read, malformed, 0, 0];
    maker.finish(&facts)?;
    NameTable::open(&path)?.ok_or_else(|| Error::data(format!("{} is not whole", path.display())))
}

/// Length and time of the last change.
fn facts_of(metadata: &Path) -> Result<[u64; 2]> {
    let failed = |source| {
        Error::file("read", metadata, &source)
            .with_hint("filter.metadata names YFCC100M's metadata, a file of tab-separated lines")
    };
    let file = std::fs::metadata(metadata).map_err(failed)?;
    let modified = file.modified().map_err(failed)?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok([file.len(), modified.as_nanos() as u64])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_told_by_their_urls() {
        let cases = [
            ("http://creativecommons.org/licenses/by-nc-sa/2.0/", "by-nc-sa"),
            ("https://creativecommons.org/licenses/by/4.0/deed.de", "by"),
            ("http://creativecommons.org/publicdomain/zero/1.0/", "zero"),
        ];
        for (url, name) in cases {
            assert_eq!(number_of_url(url), number(name).unwrap());
        }
        for url in ["", "http://creativecommons.org/licenses/", "http://www.flickr.com/commons/usage/", "by"] {
            assert_eq!(number_of_url(url), 0);
        }
    }
}
