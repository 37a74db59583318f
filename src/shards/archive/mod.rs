//! The members of one shard, and a verdict on the whole of it.
//!
//! In: the bytes of one shard, or a folder of images. Out: every regular file, one by one, with the byte offset of its header
//! in the *uncompressed* archive; damage, where there is some; and at the end a [`Verdict`]. Whether it is a tar (`tar.rs`) or
//! a zip (`zip.rs`) is told by the first bytes, never by the name; a folder (`folder.rs`) comes by its address. Whoever asks
//! for members need not know which it is.

mod body;
mod folder;
mod header;
mod lookahead;
mod record;
mod tar;
mod zip;

use self::folder::Folder;
use self::header::{BLOCK, Block};
use self::tar::Tar;
use self::zip::Zip;
use super::input::Input;
pub use super::input::Wrapping;
use super::reading::Reading;
use super::reason::{Reason, Trouble};
use super::source::{Fetcher, Source};
use super::url::ShardUrl;
use bytes::Bytes;
use std::sync::Arc;

/// Bytes that tell what a member is.
const HEAD: u64 = 16;

/// How a shard ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Read to its proper end.
    Complete,
    /// Readable up to this byte of the uncompressed tar.
    TruncatedAt(u64),
    /// Not readable at all.
    Failed(Reason),
}

/// The verdict, and the particulars where it is a bad one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// How the shard ended.
    pub verdict: Verdict,
    /// Why, unless it is complete.
    pub trouble: Option<Trouble>,
}

impl Ending {
    /// A shard that could not be read at all.
    pub fn failed(trouble: Trouble) -> Self {
        Self { verdict: Verdict::Failed(trouble.reason), trouble: Some(trouble) }
    }

    /// A shard that was read to its proper end.
    fn complete() -> Self {
        Self { verdict: Verdict::Complete, trouble: None }
    }
}

/// A regular file in the archive, before its data are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path in the archive.
    pub name: String,
    /// Byte offset of its first header, extension headers included.
    pub offset: u64,
    /// A sample of its own, whatever its neighbours are called.
    pub is_alone: bool,
}

/// What comes next in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A regular file. [`Archive::data`] reads it; otherwise it is skipped.
    Member(Member),
    /// Something unreadable from this byte on, skipped.
    Damage(u64, Trouble),
    /// The end; the same again if asked again.
    End(Ending),
}

/// The data of a member.
#[derive(Clone, Debug)]
pub enum Data {
    /// All of them.
    Whole(Bytes),
    /// More bytes than asked for; this many. They will be skipped.
    TooLarge(u64),
    /// They are not what they were, or cannot be read at all; the shard goes on.
    Damaged(Trouble),
    /// The shard ends within.
    Cut,
}

/// One shard, being walked.
pub struct Archive {
    walk: Walk,
}

enum Walk {
    Tar(Box<Tar>),
    Zip(Box<Zip>),
    Folder(Box<Folder>),
}

/// The same call for every kind of archive.
macro_rules! of_each {
    ($self:ident, $walk:ident => $call:expr) => {
        match &mut $self.walk {
            Walk::Tar($walk) => $call,
            Walk::Zip($walk) => $call,
            Walk::Folder($walk) => $call,
        }
    };
}

impl Archive {
    /// Opens a shard and looks at its first bytes. Blocks: not for async code.
    ///
    /// # Errors
    /// Why it cannot be read at all.
    pub fn open(url: &ShardUrl, fetcher: &Arc<Fetcher>, reading: &Arc<Reading>) -> Result<Self, Trouble> {
        if let Some(folder) = url.folder() {
            return Ok(Self { walk: Walk::Folder(Box::new(Folder::open(folder, fetcher, reading)?)) });
        }
        let mut input = Input::open(Source::open(url, fetcher, reading)?)?;
        let mut first = Vec::new();
        input.read(BLOCK, &mut first);
        if let (true, Some(trouble)) = (first.is_empty(), input.trouble()) {
            return Err(trouble.clone());
        }
        if first.is_empty() {
            return Err(Trouble::new(Reason::EmptyShard, "no bytes"));
        }
        if Zip::is_one(&first) {
            return Ok(Self { walk: Walk::Zip(Box::new(Zip::new(input, first))) });
        }
        match Block::try_from(first.as_slice()) {
            Ok(block) if Tar::is_one(&block) => Ok(Self { walk: Walk::Tar(Box::new(Tar::new(input, block))) }),
            _ => Err(not_an_archive(&first, input.wrapping())),
        }
    }

    fn input(&self) -> Option<&Input> {
        match &self.walk {
            Walk::Tar(tar) => Some(tar.input()),
            Walk::Zip(zip) => Some(zip.input()),
            Walk::Folder(_) => None,
        }
    }

    /// What kind of archive it is, and what it is wrapped in.
    pub fn wrapping(&self) -> Wrapping {
        match &self.walk {
            Walk::Tar(tar) => tar.input().wrapping(),
            Walk::Zip(_) => Wrapping::Zip,
            Walk::Folder(_) => Wrapping::Folder,
        }
    }

    /// Length in bytes of the shard as it is stored, if it is known.
    pub fn stored_length(&self) -> Option<u64> {
        self.input()?.stored_length()
    }

    /// The version of the shard as the server tells it.
    pub fn tag(&self) -> Option<&str> {
        self.input()?.tag()
    }

    /// Bytes of the uncompressed archive read so far.
    pub fn position(&self) -> u64 {
        match &self.walk {
            Walk::Tar(tar) => tar.input().position(),
            Walk::Zip(zip) => zip.position(),
            Walk::Folder(folder) => folder.bytes(),
        }
    }

    /// Whether [`Archive::go_to`] reads none of the bytes between, backwards too: a server is asked for a range.
    pub fn can_jump(&self) -> bool {
        self.input().is_none_or(Input::can_jump)
    }

    /// Goes on at a byte of the uncompressed archive where a member begins or ends. A compressed shard is read up to there, and
    /// cannot go back.
    ///
    /// # Errors
    /// The shard ends before that byte, or cannot be read from there.
    pub fn go_to(&mut self, offset: u64) -> Result<(), Trouble> {
        of_each!(self, walk => walk.go_to(offset))
    }

    /// What comes next.
    pub fn step(&mut self) -> Next {
        of_each!(self, walk => walk.step())
    }

    /// The first bytes of the current member, 16 at most.
    pub fn head(&mut self) -> &[u8] {
        of_each!(self, walk => walk.head())
    }

    /// The data of the current member, if they are no more than `most` bytes.
    pub fn data(&mut self, most: u64) -> Data {
        of_each!(self, walk => walk.data(most))
    }

    /// Byte offset of whatever follows the current member. Where no header tells it, this reads up to there.
    pub fn member_end(&mut self) -> u64 {
        of_each!(self, walk => walk.member_end())
    }
}

/// The ending of an archive that stops at byte `at`, `place` being where that is.
fn cut_ending(input: &Input, at: u64, place: &str) -> Ending {
    let trouble = match input.trouble() {
        Some(trouble) => Trouble::new(trouble.reason, format!("ends {place} at byte {at}: {}", trouble.detail)),
        None => Trouble::new(Reason::TruncatedShard, format!("ends {place} at byte {at}")),
    };
    Ending { verdict: Verdict::TruncatedAt(at), trouble: Some(trouble) }
}

fn not_an_archive(first: &[u8], wrapping: Wrapping) -> Trouble {
    let shown = first.iter().take(60).map(|&byte| if (32..127).contains(&byte) { char::from(byte) } else { '.' });
    let what = match wrapping {
        Wrapping::None | Wrapping::Zip | Wrapping::Folder => "begins with",
        Wrapping::Gzip => "is gzip of something that begins with",
        Wrapping::Zstd => "is zstd of something that begins with",
    };
    Trouble::new(Reason::NotAnArchive, format!("{what} \"{}\"", shown.collect::<String>()))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod zip_tests;
