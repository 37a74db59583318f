//! A folder of image files in place of an archive: each file is a sample.
//!
//! In: a folder. Out: its images, those of folders within included (not by way of links). Files have no offsets, so each is given
//! one: a hash of its path below the folder, and the order is by that. The place of a file then depends on its own name alone: files
//! may be added or removed without changing the identity of any other, a cursor stays valid, and going to an offset is a search in a
//! sorted list. Memory: the paths of one folder.

use super::super::reading::{Activity, Reading};
use super::super::reason::{Reason, Trouble};
use super::super::sample::is_image_name;
use super::super::url::ImageFolder;
use super::{Data, Ending, HEAD, Member, Next};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The images of one folder, being walked.
pub(super) struct Folder {
    folder: ImageFolder,
    reading: Arc<Reading>,
    /// Offset and path below the folder, by offset.
    files: Vec<(u64, PathBuf)>,
    /// The next file.
    at: usize,
    current: Option<usize>,
    head: Vec<u8>,
    bytes: u64,
}

impl Folder {
    pub(super) fn open(folder: &ImageFolder, reading: &Arc<Reading>) -> Result<Self, Trouble> {
        reading.set(Activity::Opening);
        let mut paths = Vec::new();
        list(&folder.path(), Path::new(""), folder.is_deep(), reading, &mut paths).map_err(|error| trouble(&error))?;
        reading.set(Activity::Reading);
        let files = place(paths);
        let (folder, reading) = (folder.clone(), Arc::clone(reading));
        Ok(Self { folder, reading, files, at: 0, current: None, head: Vec::new(), bytes: 0 })
    }

    /// Bytes of images read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn go_to(&mut self, offset: u64) -> Result<(), Trouble> {
        self.at = self.files.partition_point(|(file_offset, _)| *file_offset < offset);
        self.current = None;
        self.head.clear();
        Ok(())
    }

    pub(super) fn step(&mut self) -> Next {
        self.head.clear();
        self.current = None;
        if self.reading.is_stopped() {
            return Next::End(Ending::failed(Trouble::new(Reason::Unreadable, "stopped")));
        }
        let Some((offset, path)) = self.files.get(self.at) else {
            return Next::End(Ending::complete());
        };
        self.current = Some(self.at);
        self.at += 1;
        Next::Member(Member { name: self.folder.key_of(path), offset: *offset, is_alone: true })
    }

    pub(super) fn head(&mut self) -> &[u8] {
        if self.head.is_empty()
            && let Some(mut file) = self.file()
        {
            // what cannot be read here is told by `data`
            let _ = (&mut file).take(HEAD).read_to_end(&mut self.head);
        }
        &self.head
    }

    pub(super) fn data(&mut self, most: u64) -> Data {
        let Some(path) = self.path() else {
            return Data::Cut;
        };
        let mut data = Vec::new();
        let read = File::open(path).and_then(|mut file| {
            (&mut file).take(most.saturating_add(1)).read_to_end(&mut data)?;
            if data.len() as u64 > most { file.seek(io::SeekFrom::End(0)) } else { Ok(data.len() as u64) }
        });
        self.bytes += data.len() as u64;
        self.reading.add_bytes(data.len());
        match read {
            Ok(size) if size > most => Data::TooLarge(size),
            Ok(_) => Data::Whole(data.into()),
            Err(error) => Data::Damaged(trouble(&error)),
        }
    }

    /// What is above every offset up to the current file's.
    pub(super) fn member_end(&mut self) -> u64 {
        let current = self.current.and_then(|current| self.files.get(current));
        current.map_or(0, |(offset, _)| offset + 1)
    }

    fn path(&self) -> Option<PathBuf> {
        let (_, path) = self.files.get(self.current?)?;
        Some(self.folder.path().join(path))
    }

    fn file(&self) -> Option<File> {
        File::open(self.path()?).ok()
    }
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
fn place(paths: Vec<PathBuf>) -> Vec<(u64, PathBuf)> {
    let hash = |path: &Path| xxhash_rust::xxh3::xxh3_64(path.to_string_lossy().as_bytes()) >> 1;
    let mut files: Vec<_> = paths.into_iter().map(|path| (hash(&path), path)).collect();
    files.sort_unstable();
    // two paths of one hash still have places of their own
    for i in 1..files.len() {
        let after = files[i - 1].0 + 1;
        files[i].0 = files[i].0.max(after);
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
