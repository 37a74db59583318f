//! The uncompressed bytes of one shard, counted.
//!
//! In: a [`Source`]. Out: the bytes of the archive, whatever it is wrapped in, told by the first bytes and never by the name. An error of
//! the layers below ends the input and is kept as a [`Trouble`]: the bytes before it still count.

use super::reason::{Reason, Trouble};
use super::source::Source;
use std::io::{self, BufRead, BufReader, Read};

const BUFFER: usize = 64 * 1024;
/// Shorter ways forward are read, not jumped: asking a server, or the disk at another place, takes longer.
const NEAR: u64 = 1024 * 1024;
/// Windows of `zstd --long=31`, the largest there are.
const WINDOW_LOG_MAX: u32 = 31;

/// What a shard is, and what it is wrapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    /// A tar in nothing: any byte can be gone to.
    None,
    /// gzip, possibly of several members.
    Gzip,
    /// Zstandard, possibly of several frames.
    Zstd,
    /// No tar but a zip.
    Zip,
    /// No archive but a folder of images.
    Folder,
}

impl Wrapping {
    /// As an operator would name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "tar",
            Self::Gzip => "tar.gz",
            Self::Zstd => "tar.zst",
            Self::Zip => "zip",
            Self::Folder => "images",
        }
    }
}

/// The uncompressed bytes of one shard.
pub(super) struct Input {
    layers: Layers,
    position: u64,
    trouble: Option<Trouble>,
}

enum Layers {
    Plain(BufReader<Peeked>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<Peeked>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<Peeked>>>),
}

impl Input {
    /// Looks at the first bytes of a shard.
    pub(super) fn open(mut source: Source) -> Result<Self, Trouble> {
        let mut head = Vec::with_capacity(8);
        let looked = (&mut source).take(8).read_to_end(&mut head);
        looked.map_err(|error| trouble_of(&error, Wrapping::None))?;
        let wrapping = wrapping(&head);
        let buffered = BufReader::with_capacity(BUFFER, Peeked { head, source });
        let layers = match wrapping {
            Wrapping::None | Wrapping::Zip | Wrapping::Folder => Layers::Plain(buffered),
            Wrapping::Gzip => Layers::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(buffered))),
            Wrapping::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(buffered).and_then(|mut decoder| {
                    decoder.window_log_max(WINDOW_LOG_MAX)?;
                    Ok(decoder)
                });
                Layers::Zstd(Box::new(decoder.map_err(|error| trouble_of(&error, wrapping))?))
            }
        };
        Ok(Self { layers, position: 0, trouble: None })
    }

    pub(super) fn wrapping(&self) -> Wrapping {
        match self.layers {
            Layers::Plain(_) => Wrapping::None,
            Layers::Gzip(_) => Wrapping::Gzip,
            Layers::Zstd(_) => Wrapping::Zstd,
        }
    }

    /// Whether bytes are as they are stored.
    pub(super) fn is_plain(&self) -> bool {
        self.wrapping() == Wrapping::None
    }

    /// Bytes of the archive that were read or passed over.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Why there are no more bytes, unless this is simply the end.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    fn source(&self) -> &Source {
        match &self.layers {
            Layers::Plain(reader) => &reader.get_ref().source,
            Layers::Gzip(decoder) => &decoder.get_ref().get_ref().source,
            Layers::Zstd(decoder) => &decoder.get_ref().get_ref().source,
        }
    }

    /// Length in bytes of the shard as it is stored, if it is known.
    pub(super) fn stored_length(&self) -> Option<u64> {
        self.source().length()
    }

    /// The version of the shard as the server tells it.
    pub(super) fn tag(&self) -> Option<&str> {
        self.source().tag()
    }

    /// Whether any byte can be gone to without reading those between.
    pub(super) fn can_jump(&self) -> bool {
        self.is_plain() && self.source().can_jump()
    }

    /// Goes to a byte of the tar; backwards only where it is not compressed.
    pub(super) fn go_to(&mut self, offset: u64) -> Result<(), Trouble> {
        let forward = offset.checked_sub(self.position);
        if let Layers::Plain(reader) = &mut self.layers
            && forward.is_none_or(|distance| distance > NEAR)
        {
            let buffered = reader.buffer().len();
            reader.consume(buffered);
            let below = reader.get_mut();
            below.head.clear();
            // after a failure the source may be anywhere: nothing is read until another jump succeeds
            self.trouble = below.source.go_to(offset).err();
            if let Some(trouble) = &self.trouble {
                return Err(trouble.clone());
            }
            self.position = offset;
            return Ok(());
        }
        let distance =
            forward.ok_or_else(|| Trouble::new(Reason::ShardChanged, "compressed data cannot be read backwards"))?;
        if self.skip(distance) == distance {
            return Ok(());
        }
        let ends = format!("ends at byte {} of the tar, before byte {offset}", self.position);
        Err(self.trouble.clone().unwrap_or_else(|| Trouble::new(Reason::ShardChanged, ends)))
    }

    /// Adds up to `count` bytes to `into`: fewer only at the end. Memory grows with what has come, not with what was asked for.
    pub(super) fn read(&mut self, count: u64, into: &mut Vec<u8>) -> u64 {
        if self.trouble.is_some() {
            return 0;
        }
        let before = into.len();
        let result = match &mut self.layers {
            Layers::Plain(reader) => reader.take(count).read_to_end(into),
            Layers::Gzip(decoder) => decoder.take(count).read_to_end(into),
            Layers::Zstd(decoder) => decoder.take(count).read_to_end(into),
        };
        let came = (into.len() - before) as u64;
        self.position += came;
        if let Err(error) = result {
            self.trouble = Some(trouble_of(&error, self.wrapping()));
        }
        came
    }

    /// Passes over up to `count` bytes: fewer only at the end. A trouble is the end: what lies behind it is not jumped to.
    pub(super) fn skip(&mut self, count: u64) -> u64 {
        if self.trouble.is_some() {
            return 0;
        }
        let target = self.position.saturating_add(count);
        let is_within = self.stored_length().is_some_and(|length| target <= length);
        if count > NEAR && self.can_jump() && is_within {
            return if self.go_to(target).is_ok() { count } else { 0 };
        }
        let mut scratch = Vec::with_capacity(BUFFER);
        let mut left = count;
        while left > 0 {
            scratch.clear();
            let came = self.read(left.min(BUFFER as u64), &mut scratch);
            if came == 0 {
                break;
            }
            left -= came;
        }
        count - left
    }
}

fn wrapping(head: &[u8]) -> Wrapping {
    match head {
        [0x1f, 0x8b, ..] => Wrapping::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Wrapping::Zstd,
        _ => Wrapping::None,
    }
}

fn trouble_of(error: &io::Error, wrapping: Wrapping) -> Trouble {
    if let Some(trouble) = error.get_ref().and_then(|inner| inner.downcast_ref::<Trouble>()) {
        return trouble.clone();
    }
    let reason = match (error.kind(), wrapping) {
        (io::ErrorKind::UnexpectedEof, _) => Reason::TruncatedShard,
        (_, Wrapping::Gzip | Wrapping::Zstd) => Reason::CorruptCompression,
        (_, Wrapping::None | Wrapping::Zip | Wrapping::Folder) => Reason::Unreadable,
    };
    Trouble::new(reason, error.to_string())
}

/// A source whose first bytes were taken for a look and are given again.
struct Peeked {
    head: Vec<u8>,
    source: Source,
}

impl Read for Peeked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.head.is_empty() {
            return self.source.read(into);
        }
        let count = self.head.len().min(into.len());
        into[..count].copy_from_slice(&self.head[..count]);
        self.head.drain(..count);
        Ok(count)
    }
}
