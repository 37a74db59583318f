//! Shards from a folder of images.
//!
//! In: a folder, at any depth. Out: `NAME-000000.tar`, `NAME-000001.tar`, ... with one sample an image, whose key is the path below the
//! folder. Where the images lie in subfolders, the topmost ones are the classes: each sample gets a `.cls` with the class's number
//! by sorted name, and `NAME-classes.txt` lists them. A `.json` or `.txt` beside an image goes with it.
//!
//! The bytes depend on names and contents alone: sorted, with fixed times, owners and modes. Each shard is written aside and
//! renamed when whole. What is no image by its first bytes is left out and counted.

use super::sample::looks_like_image;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const SIDECARS: [&str; 2] = ["json", "txt"];
const ZSTD_LEVEL: i32 = 3;
const TAR_BLOCK: u64 = 512;

/// How shards are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackOptions {
    /// Samples in a shard, at most.
    pub max_samples: usize,
    /// Bytes of tar in a shard, at most, unless a single sample has more.
    pub max_bytes: u64,
    /// Mixes the samples in an order fixed by this seed; sorted by key otherwise.
    pub shuffle: Option<u64>,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self { max_samples: 10_000, max_bytes: 1 << 30, shuffle: None }
    }
}

/// What was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackSummary {
    /// The shards, in order.
    pub shards: Vec<PathBuf>,
    /// Samples in them.
    pub samples: usize,
    /// Bytes of the images.
    pub bytes: u64,
    /// Classes by number; empty where the images lie in no subfolders.
    pub classes: Vec<String>,
    /// Files that are neither images nor go with one.
    pub skipped: Vec<PathBuf>,
}

/// One image to pack.
struct Item {
    key: String,
    extension: String,
    path: PathBuf,
    sidecars: Vec<(&'static str, PathBuf)>,
    class: Option<usize>,
}

/// Packs the images below `folder` into shards named after `out`: `DIR/NAME.tar` or `DIR/NAME.tar.zst`.
///
/// # Errors
/// No images; two images with the same key; files that cannot be read or written; a name that is no archive's.
pub fn pack(folder: &Path, out: &Path, options: &PackOptions) -> Result<PackSummary> {
    let naming = Naming::of(out)?;
    let mut summary = PackSummary::default();
    let mut items = gather(folder, &mut summary)?;
    if items.is_empty() {
        return Err(Error::data(format!("there are no images in {}", folder.display()))
            .with_hint("images are JPEG, PNG, WebP, GIF, BMP and TIFF files, told by their first bytes"));
    }
    match options.shuffle {
        Some(seed) => items.sort_by_cached_key(|item| {
            (xxhash_rust::xxh3::xxh3_64_with_seed(item.key.as_bytes(), seed), item.key.clone())
        }),
        None => items.sort_by(|one, other| one.key.cmp(&other.key)),
    }
    std::fs::create_dir_all(&naming.folder).map_err(|source| Error::file("make", &naming.folder, &source))?;

    let mut shard: Option<ShardWriter> = None;
    for item in &items {
        let members = item.members()?;
        let bytes = members.iter().map(|(_, data)| TAR_BLOCK + (data.len() as u64).next_multiple_of(TAR_BLOCK)).sum();
        if let Some(full) = shard.take_if(|shard| !shard.has_room(bytes, options)) {
            full.finish()?;
        }
        let writer = match &mut shard {
            Some(writer) => writer,
            empty => {
                let path = naming.shard(summary.shards.len());
                summary.shards.push(path.clone());
                empty.insert(ShardWriter::create(path, naming.zstd)?)
            }
        };
        writer.append(&members, bytes)?;
        summary.samples += 1;
        summary.bytes += members.first().map_or(0, |(_, image)| image.len() as u64);
    }
    if let Some(last) = shard {
        last.finish()?;
    }
    if !summary.classes.is_empty() {
        let path = naming.classes();
        std::fs::write(&path, summary.classes.join("\n") + "\n")
            .map_err(|source| Error::file("write", &path, &source))?;
    }
    Ok(summary)
}

/// The names of the files that are written.
struct Naming {
    folder: PathBuf,
    stem: String,
    zstd: bool,
}

impl Naming {
    fn of(out: &Path) -> Result<Self> {
        let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (stem, zstd) = match (name.strip_suffix(".tar"), name.strip_suffix(".tar.zst")) {
            (Some(stem), _) => (stem, false),
            (_, Some(stem)) => (stem, true),
            _ => {
                return Err(Error::usage(format!("shards cannot be named {}", out.display()))
                    .with_hint("write DIR/NAME.tar or DIR/NAME.tar.zst"));
            }
        };
        let folder = out.parent().map(Path::to_path_buf).unwrap_or_default();
        let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
        Ok(Self { folder, stem: stem.to_owned(), zstd })
    }

    fn shard(&self, number: usize) -> PathBuf {
        let ending = if self.zstd { "tar.zst" } else { "tar" };
        self.folder.join(format!("{}-{number:06}.{ending}", self.stem))
    }

    fn classes(&self) -> PathBuf {
        self.folder.join(format!("{}-classes.txt", self.stem))
    }
}

/// Every image below a folder, with its class and what goes with it.
fn gather(folder: &Path, summary: &mut PackSummary) -> Result<Vec<Item>> {
    let mut files = BTreeSet::new();
    walk(folder, &mut files)?;
    let mut images = Vec::new();
    let mut others = BTreeSet::new();
    for path in files {
        match begins_like_image(&path)? {
            true => images.push(path),
            false => _ = others.insert(path),
        }
    }
    let class_of = |path: &Path| {
        let below = path.strip_prefix(folder).unwrap_or(path);
        let mut parts = below.components();
        let first = parts.next()?;
        parts.next().map(|_| first.as_os_str().to_string_lossy().into_owned())
    };
    let classes: BTreeSet<String> = images.iter().filter_map(|path| class_of(path)).collect();
    summary.classes = classes.into_iter().collect();

    let mut by_key: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut items = Vec::with_capacity(images.len());
    for path in images {
        let key = key_of(folder, &path);
        if let Some(first) = by_key.insert(key.clone(), path.clone()) {
            return Err(Error::data(format!(
                "{} and {} would both get the key {key}",
                first.display(),
                path.display()
            ))
            .with_hint("rename one of them"));
        }
        let sidecars = SIDECARS.map(|extension| (extension, path.with_extension(extension)));
        let sidecars = sidecars.into_iter().filter(|(_, sidecar)| others.remove(sidecar)).collect();
        let class = class_of(&path).and_then(|class| summary.classes.binary_search(&class).ok());
        let extension = path.extension().map_or_else(|| "img".to_owned(), |text| text.to_string_lossy().to_lowercase());
        items.push(Item { key, extension, path, sidecars, class });
    }
    summary.skipped = others.into_iter().collect();
    Ok(items)
}

fn walk(folder: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|source| Error::file("read", folder, &source))? {
        let entry = entry.map_err(|source| Error::file("read", folder, &source))?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let kind = entry.file_type().map_err(|source| Error::file("read", &path, &source))?;
        if kind.is_dir() {
            walk(&path, files)?;
        } else if path.is_file() {
            files.insert(path);
        }
    }
    Ok(())
}

fn begins_like_image(path: &Path) -> Result<bool> {
    let file = File::open(path).map_err(|source| Error::file("read", path, &source))?;
    let mut head = Vec::with_capacity(16);
    file.take(16).read_to_end(&mut head).map_err(|source| Error::file("read", path, &source))?;
    Ok(looks_like_image(&head))
}

/// The path below the folder without its extension. Dots in the name would end the key too early: they become underscores.
fn key_of(folder: &Path, path: &Path) -> String {
    let below = path.strip_prefix(folder).unwrap_or(path).with_extension("");
    let name = below.file_name().unwrap_or_default().to_string_lossy().replace('.', "_");
    let parents = below.parent().into_iter().flat_map(Path::components);
    let mut parts: Vec<String> = parents.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    parts.push(name);
    parts.join("/")
}

impl Item {
    /// Names and data of the sample's members, the image first.
    fn members(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let read = |path: &Path| std::fs::read(path).map_err(|source| Error::file("read", path, &source));
        let mut members = vec![(format!("{}.{}", self.key, self.extension), read(&self.path)?)];
        if let Some(class) = self.class {
            members.push((format!("{}.cls", self.key), class.to_string().into_bytes()));
        }
        for (extension, path) in &self.sidecars {
            members.push((format!("{}.{extension}", self.key), read(path)?));
        }
        Ok(members)
    }
}

/// A shard being written aside.
struct ShardWriter {
    path: PathBuf,
    aside: PathBuf,
    tar: tar::Builder<Output>,
    samples: usize,
    bytes: u64,
}

enum Output {
    Plain(BufWriter<File>),
    Zstd(Box<zstd::stream::write::Encoder<'static, BufWriter<File>>>),
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(file) => file.write(data),
            Self::Zstd(encoder) => encoder.write(data),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(file) => file.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

impl ShardWriter {
    fn create(path: PathBuf, zstd: bool) -> Result<Self> {
        let mut aside = path.clone().into_os_string();
        aside.push(".part");
        let aside = PathBuf::from(aside);
        let failed = |source| Error::file("write", &aside, &source);
        let file = BufWriter::new(File::create(&aside).map_err(failed)?);
        let output = match zstd {
            true => {
                let mut encoder = zstd::stream::write::Encoder::new(file, ZSTD_LEVEL).map_err(failed)?;
                encoder.include_checksum(true).map_err(failed)?;
                Output::Zstd(Box::new(encoder))
            }
            false => Output::Plain(file),
        };
        Ok(Self { path, aside, tar: tar::Builder::new(output), samples: 0, bytes: 2 * TAR_BLOCK })
    }

    fn has_room(&self, bytes: u64, options: &PackOptions) -> bool {
        self.samples < options.max_samples && self.bytes + bytes <= options.max_bytes
    }

    fn append(&mut self, members: &[(String, Vec<u8>)], bytes: u64) -> Result<()> {
        for (name, data) in members {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            let appended = self.tar.append_data(&mut header, name, data.as_slice());
            appended.map_err(|source| Error::file("write", &self.aside, &source))?;
        }
        self.samples += 1;
        self.bytes += bytes;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let failed = |source| Error::file("write", &self.aside, &source);
        let file = match self.tar.into_inner().map_err(failed)? {
            Output::Plain(file) => file,
            Output::Zstd(encoder) => encoder.finish().map_err(failed)?,
        };
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&self.aside, &self.path).map_err(|source| Error::file("write", &self.path, &source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JPEG: &[u8] = b"\xff\xd8\xff\xe0 pretend";

    fn folder_with(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, data) in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, data).unwrap();
        }
        folder
    }

    /// Names of the members of a shard, read by the `tar` crate alone.
    fn names(shard: &Path) -> Vec<String> {
        let mut archive = tar::Archive::new(File::open(shard).unwrap());
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn classes_sidecars_and_sizes() {
        let folder = folder_with(&[
            ("dog/b.v2.JPG", JPEG),
            ("dog/b.v2.json", b"{}"),
            ("cat/a.jpg", JPEG),
            ("cat/readme.md", b"cats"),
            ("dog/deep/c.jpg", JPEG),
        ]);
        let out = tempfile::tempdir().unwrap();
        let options = PackOptions { max_samples: 2, ..PackOptions::default() };
        let summary = pack(folder.path(), &out.path().join("pets.tar"), &options).unwrap();
        assert_eq!((summary.samples, summary.classes.as_slice()), (3, &["cat".to_owned(), "dog".to_owned()][..]));
        assert_eq!(summary.skipped, [folder.path().join("cat/readme.md")]);
        assert_eq!(
            names(&summary.shards[0]),
            ["cat/a.jpg", "cat/a.cls", "dog/b_v2.jpg", "dog/b_v2.cls", "dog/b_v2.json"]
        );
        assert_eq!(names(&summary.shards[1]), ["dog/deep/c.jpg", "dog/deep/c.cls"]);
        assert_eq!(std::fs::read_to_string(out.path().join("pets-classes.txt")).unwrap(), "cat\ndog\n");
        let left: Vec<_> = std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.iter().all(|path| path.extension().unwrap() != "part"), "{left:?}");
    }

    #[test]
    fn the_bytes_depend_on_contents_alone() {
        let files: Vec<(String, Vec<u8>)> =
            (0..20_u8).map(|i| (format!("{i:03}.jpg"), [JPEG, &vec![i; 100 * usize::from(i)]].concat())).collect();
        for name in ["x.tar", "x.tar.zst"] {
            for shuffle in [None, Some(7)] {
                let options = PackOptions { max_bytes: 8_000, shuffle, ..PackOptions::default() };
                let packed = [false, true].map(|reversed| {
                    let mut files: Vec<(&str, &[u8])> =
                        files.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
                    if reversed {
                        files.reverse();
                    }
                    let (folder, out) = (folder_with(&files), tempfile::tempdir().unwrap());
                    let summary = pack(folder.path(), &out.path().join(name), &options).unwrap();
                    assert!(summary.shards.len() > 2 && summary.classes.is_empty());
                    summary.shards.iter().map(|shard| std::fs::read(shard).unwrap()).collect::<Vec<_>>()
                });
                assert!(packed[0] == packed[1], "{name} {shuffle:?}");
            }
        }
    }

    #[test]
    fn refusals_name_the_files() {
        let out = tempfile::tempdir().unwrap();
        let to = out.path().join("x.tar");
        let same = folder_with(&[("a.b.jpg", JPEG), ("a_b.jpg", JPEG)]);
        let error = pack(same.path(), &to, &PackOptions::default()).unwrap_err();
        assert!(error.to_string().contains("a.b.jpg") && error.to_string().contains("a_b.jpg"), "{error}");
        let none = folder_with(&[("a.txt", b"words")]);
        assert_eq!(pack(none.path(), &to, &PackOptions::default()).unwrap_err().exit_code(), 3);
        assert_eq!(pack(same.path(), Path::new("x.zip"), &PackOptions::default()).unwrap_err().exit_code(), 2);
    }
}
