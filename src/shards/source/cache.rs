//! Whole shards kept on disk, so that later passes need no bytes from the network.
//!
//! In: the bytes of a shard as they stream by, its name, version and length. Out: a local file, for whoever asks for the same name,
//! version and length again. A shard is written aside under a name of its own and renamed once it is whole, so that processes
//! that share a folder never see half of one; the one used least recently makes room. Making room and reserving it happen under the lock
//! of the folder, whose file counts what is taken (never too little: what was given up meanwhile is found when room is short); a file that is being written is locked by its writer, so that those of dead processes are known and removed.
//! Where the disk is full or the folder is gone, that is said once, and shards come from the network as without a cache.

use crate::config::FetchPlan;
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
const WHOLE: &str = "shard";
const PARTIAL: &str = "partial";

/// A folder of shards.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    /// Bytes that all files together may have.
    most: u64,
    /// The store that takes the place of the provider's, whose buckets may have the same names.
    endpoint: String,
    /// Set once the files were counted: the count of an earlier process may not have reached the disk.
    counted: AtomicBool,
    /// Set once nothing more can be written.
    given_up: AtomicBool,
}

/// A file of the folder.
struct Kept {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Kept {
    fn is_partial(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == PARTIAL)
    }
}

impl Cache {
    /// The cache of a plan; none where the plan has none.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(super) fn open(plan: &FetchPlan) -> Result<Option<Arc<Self>>> {
        if plan.cache.is_empty() {
            return Ok(None);
        }
        let folder = PathBuf::from(&plan.cache);
        fs::create_dir_all(&folder).map_err(|error| {
            Error::file("create", &folder, &error).with_hint("fetch.cache names a folder; leave it empty for no cache")
        })?;
        let most = (plan.cache_gib * GIB) as u64;
        let endpoint = plan.endpoint.clone();
        let cache = Self { folder, most, endpoint, counted: false.into(), given_up: false.into() };
        // A folder that cannot be written to is told of when there is something to keep.
        let _ = cache.lock().and_then(|_lock| cache.living());
        Ok(Some(Arc::new(cache)))
    }

    /// Whether any version of this shard is here.
    pub(super) fn knows(&self, name: &str) -> bool {
        let stem = self.stem(name);
        let Ok(entries) = fs::read_dir(self.subfolder(&stem)) else {
            return false;
        };
        entries.flatten().any(|entry| {
            let file = entry.file_name();
            let file = file.to_string_lossy();
            file.starts_with(&stem) && file.ends_with(WHOLE)
        })
    }

    /// This version of this shard, if it is here.
    pub(super) fn find(&self, name: &str, tag: Option<&str>, length: Option<u64>) -> Option<File> {
        let (tag, length) = (tag?, length?);
        let file = File::open(self.path(name, tag, length)).ok()?;
        if file.metadata().ok()?.len() != length {
            return None;
        }
        // Only the order in which shards make room depends on it.
        let _ = file.set_modified(SystemTime::now());
        Some(file)
    }

    /// Makes room for a shard that is about to come. None where it is not worth it: without a version nobody could tell later
    /// whether it is still the same; a shard longer than the whole cache, or as long as other writers leave no room for, is
    /// not kept.
    pub(super) fn begin(self: &Arc<Self>, name: &str, tag: Option<&str>, length: Option<u64>) -> Option<Entry> {
        let (tag, length) = (tag?, length?);
        if length == 0 || length > self.most || self.given_up.load(Ordering::Relaxed) {
            return None;
        }
        match self.reserve(self.path(name, tag, length), length) {
            Ok(entry) => entry,
            Err(error) => {
                self.give_up(&error);
                None
            }
        }
    }

    fn reserve(self: &Arc<Self>, whole: PathBuf, length: u64) -> io::Result<Option<Entry>> {
        let lock = self.lock()?;
        let Some(taken) = self.room_for(length, &lock)? else {
            return Ok(None);
        };
        lock.write_all_at(&(taken + length).to_le_bytes(), 0)?;
        self.counted.store(true, Ordering::Relaxed);
        if let Some(folder) = whole.parent() {
            fs::create_dir_all(folder)?;
        }
        // machines that share a folder may have processes of one number
        let chance = RandomState::new().hash_one(std::process::id());
        let partial = whole.with_extension(format!("{chance:016x}.{PARTIAL}"));
        let file = match File::options().write(true).create_new(true).open(&partial) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            file => file?,
        };
        let entry = Entry { cache: Arc::clone(self), file, partial, whole, length, written: 0 };
        entry.file.try_lock()?;
        // a hole of this length: others count it as taken
        entry.file.set_len(length)?;
        Ok(Some(entry))
    }

    /// Bytes taken once so many more fit; none where they cannot. The files are looked at only where room is short.
    fn room_for(&self, bytes: u64, lock: &File) -> io::Result<Option<u64>> {
        let mut count = [0; 8];
        let is_counted = self.counted.load(Ordering::Relaxed) && lock.read_exact_at(&mut count, 0).is_ok();
        let taken = u64::from_le_bytes(count);
        match is_counted && taken.saturating_add(bytes) <= self.most {
            true => Ok(Some(taken)),
            false => self.make_room(bytes),
        }
    }

    /// Removes what was used least recently until so many bytes more fit: bytes taken then, none where they cannot.
    fn make_room(&self, bytes: u64) -> io::Result<Option<u64>> {
        let living = self.living()?;
        let mut taken = living.iter().map(|kept| kept.bytes).sum::<u64>();
        let mut whole: Vec<Kept> = living.into_iter().filter(|kept| !kept.is_partial()).collect();
        whole.sort_by_key(|kept| kept.used);
        for kept in whole {
            if taken + bytes <= self.most {
                break;
            }
            remove(&kept.path)?;
            taken -= kept.bytes;
        }
        Ok((taken + bytes <= self.most).then_some(taken))
    }

    /// The files, less those that dead processes were writing, which are removed. The folder must be locked.
    fn living(&self) -> io::Result<Vec<Kept>> {
        let mut living = Vec::new();
        for kept in self.files()? {
            if kept.is_partial() && is_abandoned(&kept.path) {
                remove(&kept.path)?;
            } else {
                living.push(kept);
            }
        }
        Ok(living)
    }

    fn files(&self) -> io::Result<Vec<Kept>> {
        let mut files = Vec::new();
        for folder in fs::read_dir(&self.folder)? {
            let folder = folder?;
            if !folder.file_type()?.is_dir() {
                continue;
            }
            for entry in fs::read_dir(folder.path())? {
                let entry = entry?;
                let path = entry.path();
                let is_ours = path.extension().is_some_and(|extension| extension == WHOLE || extension == PARTIAL);
                // renamed or removed by another process since
                let Ok(metadata) = entry.metadata() else { continue };
                if is_ours {
                    files.push(Kept { path, bytes: metadata.len(), used: metadata.modified()? });
                }
            }
        }
        Ok(files)
    }

    /// The lock of the folder, until it is dropped.
    fn lock(&self) -> io::Result<File> {
        let path = self.folder.join(".lock");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.lock()?;
        Ok(file)
    }

    /// Says once that nothing more is written.
    fn give_up(&self, error: &io::Error) {
        if !self.given_up.swap(true, Ordering::Relaxed) {
            let folder = self.folder.display();
            tracing::warn!(%folder, %error, "the cache of shards cannot be written: going on without it");
        }
    }

    fn stem(&self, name: &str) -> String {
        hex(&format!("{}\n{name}", self.endpoint), 32)
    }

    fn subfolder(&self, stem: &str) -> PathBuf {
        self.folder.join(&stem[..2])
    }

    fn path(&self, name: &str, tag: &str, length: u64) -> PathBuf {
        let stem = self.stem(name);
        let version = hex(&format!("{length}\n{tag}"), 16);
        self.subfolder(&stem).join(format!("{stem}-{version}.{WHOLE}"))
    }
}

/// The first digits of the SHA-256 of a text.
fn hex(text: &str, digits: usize) -> String {
    let bytes = Sha256::digest(text.as_bytes());
    bytes.iter().take(digits / 2).map(|byte| format!("{byte:02x}")).collect()
}

/// Removes a file that its writer, or another process, may have removed meanwhile.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether nobody writes this file any more.
fn is_abandoned(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Ok(())))
}

/// A shard on its way into the cache. Dropped before it is whole, it leaves nothing.
#[derive(Debug)]
pub(super) struct Entry {
    cache: Arc<Cache>,
    file: File,
    partial: PathBuf,
    whole: PathBuf,
    length: u64,
    written: u64,
}

impl Entry {
    /// Adds the next bytes of the shard; gives the entry back while more are to come. The last byte makes it whole.
    pub(super) fn write(mut self, bytes: &[u8]) -> Option<Self> {
        match self.add(bytes) {
            Ok(()) if self.written < self.length => Some(self),
            Ok(()) => {
                if let Err(error) = self.finish() {
                    self.cache.give_up(&error);
                }
                None
            }
            Err(error) => {
                self.cache.give_up(&error);
                None
            }
        }
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        if self.written > self.length {
            return Err(io::Error::other("a shard is longer than its server said"));
        }
        self.file.write_all(bytes)
    }

    /// Gives the file its name, once the disk has it: after a crash a name must not stand for bytes that never arrived.
    fn finish(&self) -> io::Result<()> {
        self.file.sync_data()?;
        // under the lock: whoever counts the files sees it under one of its names
        let _lock = self.cache.lock()?;
        fs::rename(&self.partial, &self.whole)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.partial); // of a whole shard it is gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn cache(folder: &Path, bytes: u64) -> Arc<Cache> {
        let cache = folder.display().to_string();
        Cache::open(&FetchPlan { cache, cache_gib: bytes as f64 / GIB, ..FetchPlan::default() }).unwrap().unwrap()
    }

    fn keep(cache: &Arc<Cache>, name: &str, bytes: &[u8]) -> bool {
        let Some(entry) = cache.begin(name, Some("\"v1\""), Some(bytes.len() as u64)) else {
            return false;
        };
        let (first, second) = bytes.split_at(bytes.len() / 2);
        entry.write(first).unwrap().write(second).is_none()
    }

    fn kept(cache: &Cache, name: &str, length: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        cache.find(name, Some("\"v1\""), Some(length as u64))?.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    fn count(folder: &Path, extension: &str) -> usize {
        let files = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let all = files(folder.to_owned()).filter(|path| path.is_dir()).flat_map(files);
        all.filter(|path| path.extension().is_some_and(|found| found == extension)).count()
    }

    #[test]
    fn a_shard_is_found_again_by_name_version_and_length() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), 1_000);
        assert!(!cache.knows("a") && keep(&cache, "a", b"abcd") && cache.knows("a"));
        assert_eq!(kept(&cache, "a", 4).unwrap(), b"abcd");
        assert!(cache.find("a", Some("\"v2\""), Some(4)).is_none());
        assert!(cache.find("a", Some("\"v1\""), Some(5)).is_none());
        assert!(cache.find("a", None, Some(4)).is_none() && cache.find("b", Some("\"v1\""), Some(4)).is_none());
        assert_eq!((count(folder.path(), WHOLE), count(folder.path(), PARTIAL)), (1, 0));
    }

    #[test]
    fn half_a_shard_is_never_found_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), 1_000);
        let entry = cache.begin("a", Some("v"), Some(4)).unwrap().write(b"abc").unwrap();
        assert!(cache.find("a", Some("v"), Some(4)).is_none() && !cache.knows("a"));
        drop(entry);
        assert_eq!(count(folder.path(), PARTIAL), 0);
        assert!(cache.begin("a", Some("v"), Some(4)).unwrap().write(b"abcde").is_none(), "longer than said");
        assert_eq!((count(folder.path(), WHOLE), count(folder.path(), PARTIAL)), (0, 0));
    }

    #[test]
    fn the_one_used_least_recently_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), 100);
        for name in ["a", "b", "c"] {
            assert!(keep(&cache, name, &[1; 30]));
            let file = cache.find(name, Some("\"v1\""), Some(30)).unwrap();
            // an hour ago, in this order
            let age = std::time::Duration::from_secs(3_600 - u64::from(name.as_bytes()[0]));
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        assert!(kept(&cache, "a", 30).is_some(), "used now");
        assert!(keep(&cache, "d", &[1; 40]));
        let left: Vec<_> = ["a", "b", "c", "d"].into_iter().filter(|name| cache.knows(name)).collect();
        assert_eq!(left, ["a", "c"].into_iter().chain(["d"]).collect::<Vec<_>>());
        assert!(!keep(&cache, "e", &[1; 101]), "longer than the cache");
    }

    #[test]
    fn room_that_others_write_into_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (cache(folder.path(), 100), cache(folder.path(), 100));
        let entry = one.begin("a", Some("v"), Some(70)).unwrap();
        assert!(other.begin("b", Some("v"), Some(40)).is_none());
        assert!(other.begin("b", Some("v"), Some(30)).is_some());
        drop(entry);
        assert!(other.begin("b", Some("v"), Some(40)).is_some());
    }

    #[test]
    fn what_a_dead_process_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (cache(folder.path(), 100), cache(folder.path(), 100));
        let living = one.begin("a", Some("v"), Some(10)).unwrap();
        let dead = living.partial.with_extension("dead.partial");
        fs::write(&dead, [0; 90]).unwrap();
        let second = other.begin("b", Some("v"), Some(90)).unwrap();
        assert!(!dead.exists() && living.partial.exists() && second.partial.exists());
        fs::write(&dead, [0; 90]).unwrap();
        cache(folder.path(), 100);
        assert!(!dead.exists() && living.partial.exists(), "by whoever opens the folder");
    }

    #[test]
    fn a_full_disk_or_a_lost_folder_costs_the_cache_alone() {
        let folder = tempfile::tempdir().unwrap();
        let full = cache(folder.path(), 1_000);
        let mut entry = full.begin("a", Some("v"), Some(4)).unwrap();
        entry.file = File::options().write(true).open("/dev/full").unwrap();
        assert!(entry.write(b"ab").is_none());
        assert!(full.begin("a", Some("v"), Some(4)).is_none(), "given up");
        assert_eq!(count(folder.path(), PARTIAL), 0);

        let lost = cache(folder.path(), 1_000);
        assert!(keep(&lost, "a", b"abcd"));
        let entry = lost.begin("b", Some("v"), Some(4)).unwrap();
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(entry.write(b"abcd").is_none() && kept(&lost, "a", 4).is_none());
        assert!(lost.begin("c", Some("v"), Some(4)).is_none());
    }

    #[test]
    fn threads_that_keep_the_same_shards_get_whole_ones() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                // caches of their own, as processes have
                let cache = cache(folder.path(), 25_000);
                scope.spawn(move || {
                    for round in 0..40_u8 {
                        let name = format!("shard-{}", round % 5);
                        let bytes = vec![round % 5; 5_000 + usize::from(round % 5)];
                        match kept(&cache, &name, bytes.len()) {
                            Some(found) => assert_eq!(found, bytes),
                            None => _ = keep(&cache, &name, &bytes),
                        }
                        assert!(!cache.given_up.load(Ordering::Relaxed));
                    }
                });
            }
        });
        let bytes: u64 = cache(folder.path(), 0).files().unwrap().iter().map(|kept| kept.bytes).sum();
        assert!((5_000..=25_000).contains(&bytes), "{bytes}");
        assert_eq!(count(folder.path(), PARTIAL), 0);
    }
}
