//! The bytes of a shard that is a file.
//!
//! In: a path. Out: the open file and its length, where it has one: pipes and devices have none. What the system refuses
//! becomes a [`Trouble`].

use super::super::reason::{Reason, Trouble};
use std::fs::File;
use std::io;
use std::path::Path;

/// Opens a file at its first byte.
pub(super) fn open(path: &Path) -> Result<(File, Option<u64>), Trouble> {
    let file = File::open(path).map_err(|error| trouble(&error))?;
    let metadata = file.metadata().map_err(|error| trouble(&error))?;
    if metadata.is_dir() {
        return Err(Trouble::new(Reason::Unreadable, "is a folder"));
    }
    Ok((file, metadata.is_file().then_some(metadata.len())))
}

/// What an error of the file system means for a shard.
pub(super) fn trouble(error: &io::Error) -> Trouble {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => Reason::NotFound,
        io::ErrorKind::PermissionDenied => Reason::Forbidden,
        _ => Reason::Unreadable,
    };
    Trouble::new(reason, error.to_string())
}
