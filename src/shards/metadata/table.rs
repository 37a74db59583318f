//! A table from names to four bits each, too large for memory: sorted numbers in a file.
//!
//! In: 64-bit entries in any order, a name in the upper 60 bits and a value in the lower four. Out: a file that holds each name once, in
//! order, and a look-up that reads one block of it. Names are hashes, so that they spread evenly over 256 parts, each of which is sorted
//! in memory: 100 million entries take parts of 3 MB and a file of 0.8 GB. A name that comes with two values is given the value 0.
//! The file is written aside and renamed; what a process that was killed left lying aside is removed by the next.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 16] = b"shoal names  1\n\0";
/// Bytes of the magic, the facts and their digest.
const HEAD: u64 = 16 + 8 * FACTS as u64 + 8;
/// Numbers at the front that say what the table was made from.
const FACTS: usize = 6;
/// Entries in a block: 32 KiB.
const BLOCK: usize = 4_096;
const PARTS: usize = 256;
const VALUE: u64 = 0xf;

/// What a table was made from, and what was in it.
pub(super) type Facts = [u64; FACTS];

/// A table being made.
pub(super) struct TableMaker {
    path: PathBuf,
    folder: tempfile::TempDir,
    parts: Vec<BufWriter<File>>,
    /// Locked as long as somebody is at work in the folder.
    _lock: File,
}

/// Beginning of the names of folders aside.
const ASIDE: &str = ".shoal-names-";

impl TableMaker {
    /// For a table at `path`; its parts lie beside it meanwhile.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let beside = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let failed = |source| {
            Error::file("write", beside, &source)
                .with_hint("the table needs 24 bytes a line of metadata, twice while it is made")
        };
        remove_leftovers(beside);
        let folder = tempfile::Builder::new().prefix(ASIDE).tempdir_in(beside).map_err(failed)?;
        let lock = File::create_new(folder.path().join(LOCK)).map_err(failed)?;
        if let Err(error) = lock.try_lock() {
            tracing::debug!(%error, "no locks here: should this process be killed, its folder stays");
        }
        let parts = (0..PARTS).map(|part| File::create_new(part_path(folder.path(), part)).map(BufWriter::new));
        let parts = parts.collect::<std::io::Result<_>>().map_err(failed)?;
        Ok(Self { path: path.to_owned(), folder, parts, _lock: lock })
    }

    pub(super) fn add(&mut self, name: u64, value: u8) -> Result<()> {
        let entry = (name & !VALUE) | (u64::from(value) & VALUE);
        let written = self.parts[(entry >> 56) as usize].write_all(&entry.to_le_bytes());
        written.map_err(|source| Error::file("write", &self.path, &source))
    }

    /// Sorts the parts into the table.
    pub(super) fn finish(self, facts: &Facts) -> Result<()> {
        let Self { path, folder, parts, _lock } = self;
        let failed = |source: std::io::Error| Error::file("write", &path, &source);
        let aside = folder.path().join("table");
        let mut table = BufWriter::new(File::create_new(&aside).map_err(failed)?);
        table.write_all(&head(facts)).map_err(failed)?;
        for (part, mut writer) in parts.into_iter().enumerate() {
            writer.flush().map_err(failed)?;
            let bytes = std::fs::read(part_path(folder.path(), part)).map_err(failed)?;
            let mut entries: Vec<u64> = numbers(&bytes).collect();
            entries.sort_unstable();
            entries.dedup_by(|entry, kept| {
                let is_same = (*entry ^ *kept) & !VALUE == 0;
                if is_same && *entry != *kept {
                    *kept &= !VALUE;
                }
                is_same
            });
            for entry in entries {
                table.write_all(&entry.to_le_bytes()).map_err(failed)?;
            }
        }
        table.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
        std::fs::rename(&aside, &path).map_err(failed)
    }
}

const LOCK: &str = "lock";

/// Removes the folders of processes that are no more: those whose locks nobody holds.
fn remove_leftovers(beside: &Path) {
    let entries = std::fs::read_dir(beside).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(ASIDE)) {
        let is_left = File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if is_left && let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!(folder = %entry.path().display(), %error, "the leftover of a killed process cannot be removed");
        }
    }
}

fn part_path(folder: &Path, part: usize) -> PathBuf {
    folder.join(format!("{part:02x}"))
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks().0.iter().map(|chunk| u64::from_le_bytes(*chunk))
}

fn head(facts: &Facts) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    facts.iter().for_each(|fact| head.extend(fact.to_le_bytes()));
    head.extend(xxhash_rust::xxh3::xxh3_64(&head).to_le_bytes());
    head
}

/// A table on disk. Memory: 2 bytes for every thousand of its file.
#[derive(Debug)]
pub(super) struct NameTable {
    file: File,
    /// The first entry of each block.
    firsts: Vec<u64>,
    entries: u64,
    pub facts: Facts,
}

impl NameTable {
    /// Opens a table; none if there is none, or it is not whole.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        let failed = |source: std::io::Error| Error::file("read", path, &source);
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let length = file.metadata().map_err(failed)?.len();
        let mut bytes = Vec::new();
        (&mut file).take(HEAD).read_to_end(&mut bytes).map_err(failed)?;
        let stated = bytes.get(16..).map(|facts| numbers(facts).take(FACTS).collect::<Vec<_>>());
        let facts: Option<Facts> = stated.and_then(|facts| facts.try_into().ok());
        let Some(facts) = facts.filter(|facts| head(facts) == bytes && (length - HEAD).is_multiple_of(8)) else {
            return Ok(None);
        };
        let entries = (length - HEAD) / 8;
        let mut firsts = Vec::with_capacity((entries / BLOCK as u64) as usize + 1);
        for at in (0..entries).step_by(BLOCK) {
            let mut first = [0; 8];
            file.read_exact_at(&mut first, HEAD + 8 * at).map_err(failed)?;
            firsts.push(u64::from_le_bytes(first));
        }
        Ok(Some(Self { file, firsts, entries, facts }))
    }

    /// How many names it holds.
    pub(super) fn len(&self) -> u64 {
        self.entries
    }

    /// The value of a name.
    pub(super) fn value(&self, name: u64) -> std::io::Result<Option<u8>> {
        let block = self.firsts.partition_point(|first| first & !VALUE <= name);
        let Some(block) = block.checked_sub(1) else {
            return Ok(None);
        };
        let begin = block as u64 * BLOCK as u64;
        let mut bytes = vec![0; 8 * (self.entries - begin).min(BLOCK as u64) as usize];
        self.file.read_exact_at(&mut bytes, HEAD + 8 * begin)?;
        let entries: Vec<u64> = numbers(&bytes).collect();
        let found = entries.binary_search_by_key(&name, |entry| entry & !VALUE);
        Ok(found.ok().map(|at| (entries[at] & VALUE) as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_dead_process_is_removed_and_that_of_a_living_one_is_not() {
        let beside = tempfile::tempdir().unwrap();
        let aside = || {
            let names = std::fs::read_dir(beside.path()).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name.to_string_lossy().starts_with(ASIDE)).count()
        };
        let dead = beside.path().join(".shoal-names-dead");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join(LOCK), "").unwrap();
        let first = TableMaker::create(&beside.path().join("first")).unwrap();
        assert!(!dead.exists());
        let second = TableMaker::create(&beside.path().join("second")).unwrap();
        assert_eq!(aside(), 2);
        first.finish(&Facts::default()).unwrap();
        second.finish(&Facts::default()).unwrap();
        assert_eq!(aside(), 0);
    }
    use std::collections::HashMap;

    #[test]
    fn every_name_is_found_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names");
        let name = |i: u64| xxhash_rust::xxh3::xxh3_64(&i.to_le_bytes()) & !VALUE;
        let mut maker = TableMaker::create(&path).unwrap();
        let mut expected = HashMap::new();
        for i in 0..20_000 {
            maker.add(name(i), (i % 7) as u8).unwrap();
            expected.insert(name(i), (i % 7) as u8);
        }
        maker.add(name(3), 3).unwrap();
        maker.add(name(4), 6).unwrap();
        expected.insert(name(4), 0);
        let facts = [1, 2, 3, 4, 5, 6];
        maker.finish(&facts).unwrap();
        let table = NameTable::open(&path).unwrap().unwrap();
        assert_eq!((table.len(), table.facts), (20_000, facts));
        for (name, value) in expected {
            assert_eq!(table.value(name).unwrap(), Some(value));
        }
        assert!((20_000..30_000).all(|i| table.value(name(i)).unwrap().is_none()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");

        std::fs::write(&path, &std::fs::read(&path).unwrap()[..40]).unwrap();
        assert!(NameTable::open(&path).unwrap().is_none());
        assert!(NameTable::open(&folder.path().join("none")).unwrap().is_none());
    }
}
