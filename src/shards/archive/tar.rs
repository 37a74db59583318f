//! The members of a tar, and every kind of damage in it.
//!
//! In: the uncompressed bytes. Out: every regular file, with the byte offsets of its header and its end. The `tar` crate reads
//! the headers; the walk from header to header is done here, since the crate's own iterator ends quietly where an archive is
//! cut at a member's boundary or inside a header, and cannot go on behind a garbled one.
//!
//! Complete means: two zero blocks, nothing behind them, and every checksum of gzip or zstd in order. No size found in a header is
//! believed before its bytes have come: nothing is allocated ahead.

use super::super::input::Input;
use super::super::reason::{Reason, Trouble};
use super::header::{BLOCK, Block, has_no_data, is_header, is_zero, padded, pax_records};
use super::{Data, Ending, HEAD, Member, Next, cut_ending};
use tar::{EntryType, Header};

/// Extension headers hold names and numbers: more than this is garbage or an attack.
const LONGEST_EXTENSION: u64 = 1024 * 1024;
const MOST_EXTENSIONS: usize = 16;

/// One tar, being walked.
pub(super) struct Tar {
    input: Input,
    /// Data of the current member that came already, for [`Archive::head`].
    head: Vec<u8>,
    /// Data of the current member that are still to come, and the padding after them.
    unread: u64,
    padding: u64,
    /// Where the current member's data and padding end.
    end: u64,
    /// A block that was read ahead.
    ahead: Option<Block>,
    ending: Option<Ending>,
}

/// What extension headers say of the member after them.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

/// What a header turns out to be.
enum Walked {
    Member(Member),
    Skipped,
    Extension,
    Garbled,
    Cut,
}

impl Tar {
    /// Whether a block begins a tar.
    pub(super) fn is_one(first: &Block) -> bool {
        is_zero(first) || is_header(first)
    }

    /// A tar of which the first block is taken already.
    pub(super) fn new(input: Input, first: Block) -> Self {
        Self { input, head: Vec::new(), unread: 0, padding: 0, end: 0, ahead: Some(first), ending: None }
    }

    pub(super) fn input(&self) -> &Input {
        &self.input
    }

    /// Goes on at a byte of the uncompressed tar where a member begins or ends. A compressed shard is read up to there, and
    /// cannot go back.
    ///
    /// # Errors
    /// The shard ends before that byte, or cannot be read from there.
    pub(super) fn go_to(&mut self, offset: u64) -> Result<(), Trouble> {
        if self.next_offset() == offset && self.unread + self.padding == 0 {
            return Ok(());
        }
        self.ahead = None;
        self.head.clear();
        (self.unread, self.padding) = (0, 0);
        self.ending = None;
        self.input.go_to(offset)
    }

    /// What comes next.
    pub(super) fn step(&mut self) -> Next {
        if let Some(ending) = &self.ending {
            return Next::End(ending.clone());
        }
        let left = self.unread + self.padding;
        (self.unread, self.padding) = (0, 0);
        self.head.clear();
        if self.input.skip(left) < left {
            return self.cut("inside the data of a member");
        }
        let mut offset = self.next_offset();
        let mut extensions = Extensions::default();
        let mut extension_count = 0;
        loop {
            let at_boundary = self.ahead.is_none();
            let before = self.input.position();
            let Some(block) = self.block() else {
                let inside = !at_boundary || self.input.position() > before || extension_count > 0;
                return self.cut(if inside {
                    "inside a header"
                } else {
                    "at a member's boundary, without an end marker"
                });
            };
            if is_zero(&block) && extension_count == 0 {
                return self.zero_block(offset);
            }
            match self.walk(&block, offset, &mut extensions) {
                Walked::Member(member) => return Next::Member(member),
                Walked::Extension if extension_count < MOST_EXTENSIONS => extension_count += 1,
                Walked::Extension | Walked::Garbled => return self.skip_garbled(offset),
                Walked::Cut => return self.cut("inside a header"),
                Walked::Skipped => {
                    let left = self.unread + self.padding;
                    (self.unread, self.padding) = (0, 0);
                    if self.input.skip(left) < left {
                        return self.cut("inside the data of a member");
                    }
                    offset = self.next_offset();
                    extensions = Extensions::default();
                    extension_count = 0;
                }
            }
        }
    }

    /// The first bytes of the current member, 16 at most.
    pub(super) fn head(&mut self) -> &[u8] {
        let missing = HEAD.saturating_sub(self.head.len() as u64).min(self.unread);
        self.unread -= self.input.read(missing, &mut self.head);
        &self.head
    }

    /// The data of the current member, if they are no more than `most` bytes.
    pub(super) fn data(&mut self, most: u64) -> Data {
        let size = self.head.len() as u64 + self.unread;
        if size > most {
            return Data::TooLarge(size);
        }
        let mut data = std::mem::take(&mut self.head);
        data.reserve_exact(self.unread.min(LONGEST_EXTENSION) as usize);
        self.unread -= self.input.read(self.unread, &mut data);
        match self.unread {
            0 => Data::Whole(data.into()),
            _ => Data::Cut,
        }
    }

    /// The byte at which the current member's data and padding end.
    pub(super) fn member_end(&self) -> u64 {
        self.end
    }

    /// The byte at which the next header begins.
    fn next_offset(&self) -> u64 {
        self.input.position() - self.ahead.map_or(0, |_| BLOCK)
    }

    fn block(&mut self) -> Option<Block> {
        if let Some(block) = self.ahead.take() {
            return Some(block);
        }
        let mut bytes = Vec::with_capacity(BLOCK as usize);
        self.input.read(BLOCK, &mut bytes);
        Block::try_from(bytes).ok()
    }

    /// Makes of a header what it says, and of its data what is to be done with them.
    fn walk(&mut self, block: &Block, offset: u64, extensions: &mut Extensions) -> Walked {
        if !is_header(block) {
            return Walked::Garbled;
        }
        let header = Header::from_byte_slice(block);
        let kind = header.entry_type();
        let Ok(header_size) = header.entry_size() else {
            return Walked::Garbled;
        };
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            return self.extend(kind, header_size, extensions);
        }
        let belongs_to_the_next = kind.is_gnu_longlink() || kind.is_pax_global_extensions();
        let size = match extensions.size {
            _ if has_no_data(kind) => 0,
            Some(size) if !belongs_to_the_next => size,
            _ => header_size,
        };
        if header.as_gnu().is_some_and(|gnu| kind.is_gnu_sparse() && gnu.is_extended()) && !self.skip_sparse_map() {
            return Walked::Cut;
        }
        let Some(end) = padded(size).and_then(|size| size.checked_add(self.input.position())) else {
            return Walked::Garbled;
        };
        self.unread = size;
        self.padding = end - self.input.position() - size;
        if belongs_to_the_next {
            return self.pass_over();
        }
        let raw_name = extensions.name.take().unwrap_or_else(|| header.path_bytes().into_owned());
        let name = String::from_utf8_lossy(&raw_name).into_owned();
        if !(kind.is_file() || kind.is_contiguous()) || extensions.sparse || name.ends_with('/') {
            return Walked::Skipped;
        }
        self.end = end;
        Walked::Member(Member { name, offset, is_alone: false })
    }

    /// Skips the data of a header that belongs to the next one.
    fn pass_over(&mut self) -> Walked {
        let left = self.unread + self.padding;
        (self.unread, self.padding) = (0, 0);
        if self.input.skip(left) < left { Walked::Cut } else { Walked::Extension }
    }

    /// Reads a GNU long name or PAX records.
    fn extend(&mut self, kind: EntryType, size: u64, extensions: &mut Extensions) -> Walked {
        if size > LONGEST_EXTENSION {
            return Walked::Garbled;
        }
        let mut text = Vec::new();
        let came = self.input.read(size, &mut text);
        let padding = padded(size).unwrap_or(size) - size;
        if came < size || self.input.skip(padding) < padding {
            return Walked::Cut;
        }
        if kind.is_gnu_longname() {
            let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
            text.truncate(end);
            extensions.name = Some(text);
            return Walked::Extension;
        }
        let Some(records) = pax_records(&text) else {
            return Walked::Garbled;
        };
        for (key, value) in records {
            match key {
                b"path" => extensions.name = Some(value.to_vec()),
                b"size" => match std::str::from_utf8(value).ok().and_then(|value| value.parse().ok()) {
                    Some(size) => extensions.size = Some(size),
                    None => return Walked::Garbled,
                },
                _ => extensions.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Walked::Extension
    }

    /// The blocks with which an old GNU sparse file goes on describing itself.
    fn skip_sparse_map(&mut self) -> bool {
        loop {
            match self.block() {
                None => return false,
                Some(block) if block[504] == 0 => return true,
                Some(_) => {}
            }
        }
    }

    /// One zero block was read: the end, if another follows.
    fn zero_block(&mut self, offset: u64) -> Next {
        let Some(block) = self.block() else {
            return self.cut("after one zero block, where two mark the end");
        };
        if !is_zero(&block) {
            self.ahead = Some(block);
            return Next::Damage(offset, Trouble::new(Reason::GarbledHeader, "a single zero block"));
        }
        let mut trailing = None;
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let before = self.input.position();
            if self.input.read(64 * BLOCK, &mut bytes) == 0 {
                break;
            }
            if let (None, Some(at)) = (trailing, bytes.iter().position(|&byte| byte != 0)) {
                trailing = Some(before + at as u64);
            }
        }
        if self.input.trouble().is_some() {
            return self.cut("after the end marker");
        }
        self.ending = Some(Ending::complete());
        match trailing {
            Some(at) => {
                let bytes = self.input.position() - at;
                Next::Damage(
                    at,
                    Trouble::new(Reason::TrailingData, format!("{bytes} bytes after the end marker are not read")),
                )
            }
            None => Next::End(Ending::complete()),
        }
    }

    /// Looks for the next header behind something that is none.
    fn skip_garbled(&mut self, offset: u64) -> Next {
        (self.unread, self.padding) = (0, 0);
        let mut zero_blocks = 0;
        while let Some(block) = self.block() {
            if is_header(&block) {
                self.ahead = Some(block);
                break;
            }
            zero_blocks = if is_zero(&block) { zero_blocks + 1 } else { 0 };
        }
        if self.ahead.is_none() {
            let ending = match (zero_blocks >= 2, self.input.trouble()) {
                (true, None) => Ending::complete(),
                _ => cut_ending(&self.input, self.input.position(), "behind a garbled header"),
            };
            self.ending = Some(ending);
        }
        let skipped = self.next_offset() - offset;
        Next::Damage(offset, Trouble::new(Reason::GarbledHeader, format!("{skipped} bytes skipped")))
    }

    fn cut(&mut self, place: &str) -> Next {
        let ending = cut_ending(&self.input, self.input.position(), place);
        self.ending = Some(ending.clone());
        Next::End(ending)
    }
}
