//! A folder of image files, or a prefix of a store with images below it, in place of an archive: each file is a sample.
//!
//! In: a folder. Out: its images, those of folders within included (not by way of links). Files have no offsets, so each is given
//! one: a hash of its path below the folder, and the order is by that. The place of a file then depends on its own name alone: files
//! may be added or removed without changing the identity of any other, a cursor stays valid, and going to an offset is a search in a
//! sorted list. An object that cannot be had is lost alone. Memory: the names of one folder, and what is fetched ahead of a store.

use super::super::reading::{Activity, Reading};
use super::super::reason::{Reason, Trouble};
use super::super::sample::is_image_name;
use super::super::source::{Ahead, Fetched, Fetcher, list_objects};
use super::super::url::ImageFolder;
use super::{Data, Ending, HEAD, Member, Next};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The images of one folder, being walked.
pub(super) struct Folder {
    folder: ImageFolder,
    reading: Arc<Reading>,
    /// By offset.
    files: Vec<Placed>,
    store: Option<Store>,
    /// The next file.
    at: usize,
    current: Option<usize>,
    head: Vec<u8>,
    bytes: u64,
}

/// A file and its place.
struct Placed {
    offset: u64,
    /// Below the folder.
    path: PathBuf,
    /// As a store lists it.
    bytes: u64,
}

/// Where the files are objects.
struct Store {
    prefix: String,
    ahead: Ahead,
    /// The largest object that is received.
    most: u64,
    /// What the current file turned out to be, once somebody looked.
    current: Option<Data>,
}

impl Folder {
    pub(super) fn open(folder: &ImageFolder, fetcher: &Arc<Fetcher>, reading: &Arc<Reading>) -> Result<Self, Trouble> {
        reading.set(Activity::Opening);
        let (paths, store) = match folder.prefix() {
            Some(prefix) => {
                let objects = list_objects(&prefix, !folder.is_deep(), fetcher, reading)?;
                let seen = objects.into_iter().filter(|object| is_shown(&object.name));
                let paths = seen.map(|object| (PathBuf::from(object.name), object.bytes)).collect();
                let ahead = Ahead::new(fetcher, reading);
                (paths, Some(Store { prefix, ahead, most: u64::MAX, current: None }))
            }
            None => {
                let mut paths = Vec::new();
                list(&folder.path(), Path::new(""), folder.is_deep(), reading, &mut paths)
                    .map_err(|error| trouble(&error))?;
                (paths.into_iter().map(|path| (path, 0)).collect(), None)
            }
        };
        reading.set(Activity::Reading);
        let files = place(paths);
        let (folder, reading) = (folder.clone(), Arc::clone(reading));
        Ok(Self { folder, reading, files, store, at: 0, current: None, head: Vec::new(), bytes: 0 })
    }

    /// Bytes of images read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn go_to(&mut self, offset: u64) -> Result<(), Trouble> {
        self.at = self.files.partition_point(|file| file.offset < offset);
        self.leave();
        Ok(())
    }

    fn leave(&mut self) {
        self.current = None;
        self.head.clear();
        if let Some(store) = &mut self.store {
            store.current = None;
        }
    }

    pub(super) fn step(&mut self) -> Next {
        self.leave();
        if self.reading.is_stopped() {
            return Next::End(Ending::failed(Trouble::new(Reason::Unreadable, "stopped")));
        }
        let Some(Placed { offset, path, .. }) = self.files.get(self.at) else {
            return Next::End(Ending::complete());
        };
        self.current = Some(self.at);
        self.at += 1;
        Next::Member(Member { name: self.folder.key_of(path), offset: *offset, is_alone: true })
    }

    pub(super) fn head(&mut self) -> &[u8] {
        if self.head.is_empty() {
            match (&mut self.store, self.current) {
                (Some(store), Some(current)) => {
                    let most = store.most;
                    if let Data::Whole(bytes) = store.look(&self.files[current..], current, most) {
                        self.head.extend(bytes.iter().take(HEAD as usize));
                    }
                }
                (Some(_), None) => {}
                (None, _) => {
                    if let Some(mut file) = self.path().and_then(|path| File::open(path).ok()) {
                        // what cannot be read here is told by `data`
                        let _ = (&mut file).take(HEAD).read_to_end(&mut self.head);
                    }
                }
            }
        }
        &self.head
    }

    pub(super) fn data(&mut self, most: u64) -> Data {
        let Some(current) = self.current else {
            return Data::Cut;
        };
        let data = match &mut self.store {
            Some(store) => store.look(&self.files[current..], current, most).clone(),
            None => self.path().map_or(Data::Cut, |path| read(&path, most)),
        };
        if let Data::Whole(bytes) = &data {
            self.bytes += bytes.len() as u64;
            self.reading.add_bytes(bytes.len());
        }
        data
    }

    /// What is above every offset up to the current file's.
    pub(super) fn member_end(&mut self) -> u64 {
        let current = self.current.and_then(|current| self.files.get(current));
        current.map_or(0, |file| file.offset + 1)
    }

    fn path(&self) -> Option<PathBuf> {
        Some(self.folder.path().join(&self.files.get(self.current?)?.path))
    }
}

impl Store {
    /// The first of `files`, whose number is `current`; those behind it are fetched meanwhile.
    fn look(&mut self, files: &[Placed], current: usize, most: u64) -> &Data {
        self.most = most;
        let (prefix, ahead) = (&self.prefix, &mut self.ahead);
        self.current.get_or_insert_with(|| {
            let listed = files.first().map_or(0, |file| file.bytes);
            if listed > most {
                return Data::TooLarge(listed);
            }
            let wanted = files.iter().zip(current..).map(|(file, number)| {
                let address = format!("{prefix}{}", file.path.display());
                (number, address, file.bytes)
            });
            match ahead.take(wanted, most) {
                Fetched::Whole(bytes) => Data::Whole(bytes),
                Fetched::TooLarge(bytes) => Data::TooLarge(bytes),
                Fetched::Failed(trouble) => Data::Damaged(trouble),
            }
        })
    }
}

/// A file, if it has no more than `most` bytes.
fn read(path: &Path, most: u64) -> Data {
    let mut data = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        (&mut file).take(most.saturating_add(1)).read_to_end(&mut data)?;
        if data.len() as u64 > most { file.seek(io::SeekFrom::End(0)) } else { Ok(data.len() as u64) }
    });
    match read {
        Ok(size) if size > most => Data::TooLarge(size),
        Ok(_) => Data::Whole(Bytes::from(data)),
        Err(error) => Data::Damaged(trouble(&error)),
    }
}

/// Whether an object of this name is an image, and neither it nor a folder on the way is hidden.
fn is_shown(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or_default();
    is_image_name(last) && !name.split('/').any(|part| part.starts_with('.'))
}

/// Adds the images below `folder`, as paths from there.
fn list(folder: &Path, below: &Path, is_deep: bool, reading: &Reading, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder.join(below))? {
        if reading.is_stopped() {
            return Err(io::Error::other("stopped"));
        }
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let kind = entry.file_type()?;
        if text.starts_with('.') {
            continue;
        }
        let path = below.join(&name);
        if kind.is_dir() {
            if is_deep {
                list(folder, &path, is_deep, reading, paths)?;
            }
        } else if is_image_name(&text) && (kind.is_file() || folder.join(&path).is_file()) {
            paths.push(path);
        }
    }
    Ok(())
}

/// Gives each path its offset, and sorts by it.
fn place(paths: Vec<(PathBuf, u64)>) -> Vec<Placed> {
    let hash = |path: &Path| xxhash_rust::xxh3::xxh3_64(path.to_string_lossy().as_bytes()) >> 1;
    let placed = paths.into_iter().map(|(path, bytes)| Placed { offset: hash(&path), path, bytes });
    let mut files: Vec<Placed> = placed.collect();
    files.sort_unstable_by(|a, b| (a.offset, &a.path).cmp(&(b.offset, &b.path)));
    // two paths of one hash still have places of their own
    for i in 1..files.len() {
        let after = files[i - 1].offset + 1;
        files[i].offset = files[i].offset.max(after);
    }
    files
}

fn trouble(error: &io::Error) -> Trouble {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => Reason::NotFound,
        io::ErrorKind::PermissionDenied => Reason::Forbidden,
        _ => Reason::Unreadable,
    };
    Trouble::new(reason, error.to_string())
}
