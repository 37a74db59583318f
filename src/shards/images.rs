//! Folders of image files as shards: what `images:FOLDER`, `classes:FOLDER` and the same before `s3://bucket/prefix/` stand for.
//!
//! In: a folder, or a prefix of a store. Out: a shard for each folder in it that holds an image, with all below it, and one for
//! the images in the folder itself. So `images:s3://multimedia-commons/data/images/` over YFCC100M's `HHH/HHH/HASH.jpg` is 4,096
//! shards, and over class folders one a class; how deep or uneven the folders are does not matter, since lanes are filled sample by
//! sample. A folder within that may not be read is passed over with a warning. In a store nobody looks whether a folder holds an
//! image: that would be thousands of requests; one without is an empty shard.
//!
//! With `classes:` the folders are classes, numbered from 0 by their sorted names; those without an image have a number too. Images in
//! the folder itself are of no class.

use super::sample::is_image_name;
use super::source::Lookup;
use super::url::{ImageFolder, ShardUrl};
use crate::error::{Error, Result};
use std::io;
use std::path::{Path, PathBuf};

/// What the folders in a folder stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Folders {
    /// Nothing.
    Parts,
    /// Classes.
    Classes,
}

impl Folders {
    fn shard(self, root: &Path, name: impl Into<PathBuf>, number: usize) -> ShardUrl {
        let folder = ImageFolder::deep(root, name);
        ShardUrl::images(if self == Self::Classes { folder.of_class(number as i64) } else { folder })
    }
}

/// Adds the shards of a folder, looked for in each of `bases`; false if it is not there or has no image.
pub(super) fn collect_images(
    folder: &str,
    folders: Folders,
    bases: &[PathBuf],
    found: &mut Vec<ShardUrl>,
) -> Result<bool> {
    let Some(root) = bases.iter().map(|base| base.join(folder)).find(|path| path.is_dir()) else {
        return Ok(false);
    };
    // photos and photos/ are one shard
    let root: PathBuf = root.components().collect();
    let before = found.len();
    let (names, has_images) = look(&root).map_err(|source| Error::file("read", &root, &source))?;
    if has_images {
        found.push(ShardUrl::images(ImageFolder::flat(&root)));
    }
    for (number, name) in names.into_iter().enumerate() {
        if holds_images(&root.join(&name))? {
            found.push(folders.shard(&root, name, number));
        }
    }
    Ok(found.len() > before)
}

/// Adds the shards below a prefix of a store, `s3://bucket/a/b/` or without the last `/`; false if nothing is there.
pub(super) fn collect_stored(
    prefix: &str,
    kind: Folders,
    lookup: &mut Lookup<'_>,
    found: &mut Vec<ShardUrl>,
) -> Result<bool> {
    let prefix = prefix.trim_end_matches('/');
    let root = Path::new(prefix);
    let (keys, folders) = lookup.below(&format!("{prefix}/"))?;
    let name = |key: &str| key.rsplit('/').next().unwrap_or_default().to_owned();
    let before = found.len();
    if keys.iter().any(|key| is_image_name(&name(key))) {
        found.push(ShardUrl::images(ImageFolder::flat(root)));
    }
    let folders = folders.iter().map(|folder| name(folder.trim_end_matches('/')));
    let mut seen: Vec<String> = folders.filter(|folder| !folder.is_empty() && !folder.starts_with('.')).collect();
    seen.sort();
    found.extend(seen.into_iter().enumerate().map(|(number, folder)| kind.shard(root, folder, number)));
    Ok(found.len() > before)
}

/// Whether a folder within the one that was named may not be read: said, and passed over.
pub(super) fn is_closed(folder: &Path, source: &io::Error) -> bool {
    let is_closed = source.kind() == io::ErrorKind::PermissionDenied;
    if is_closed {
        tracing::warn!(folder = %folder.display(), "may not be read: nothing of this folder is used");
    }
    is_closed
}

/// The folders in a folder by name, and whether an image is among its files.
fn look(folder: &Path) -> io::Result<(Vec<std::ffi::OsString>, bool)> {
    let (mut names, mut has_images) = (Vec::new(), false);
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text.starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            names.push(name);
        } else {
            has_images |= is_image_name(&text);
        }
    }
    names.sort();
    Ok((names, has_images))
}

/// Whether there is an image anywhere below: as a rule in the first folder looked into.
fn holds_images(folder: &Path) -> Result<bool> {
    let (names, has_images) = match look(folder) {
        Err(source) if is_closed(folder, &source) => return Ok(false),
        found => found.map_err(|source| Error::file("read", folder, &source))?,
    };
    if has_images {
        return Ok(true);
    }
    for name in names {
        if holds_images(&folder.join(name))? {
            return Ok(true);
        }
    }
    Ok(false)
}
