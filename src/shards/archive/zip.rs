//! The members of a zip, read forward like a tar, and every kind of damage in it.
//!
//! In: the uncompressed bytes. Out: every regular file in the order of the local headers, by which it is found again; the directory
//! at the end is not needed to begin, but all that was walked is held against it. Stored and deflated members are read, with sizes
//! before or behind the data, in 32 or 64 bits; others are members whose data are [`Data::Damaged`].
//!
//! Complete means: the end of the directory was reached, and the directory names just the members that were found, with their places,
//! sizes and checksums. Behind garbage, reading goes on at the next record that makes sense.

use super::super::input::Input;
use super::super::reason::{Reason, Trouble};
use super::body::{Body, State};
use super::lookahead::Lookahead;
use super::record::{
    DESCRIPTOR, END, END_SIGNATURE, END64, END64_SIGNATURE, ENTRY, ENTRY_SIGNATURE, End, Entry, LOCAL_SIGNATURE,
    LOCATOR64, LOCATOR64_SIGNATURE, LocalHeader, Sizes, end64, makes_sense,
};
use super::{Data, Ending, HEAD, Member, Next, cut_ending};
use std::collections::VecDeque;

/// Bytes held while a record is searched for.
const WINDOW: usize = 16 * 1024;

/// One zip, being walked.
pub(super) struct Zip {
    ahead: Lookahead,
    current: Option<Current>,
    /// Data of the current member that came already, for [`Zip::head`].
    head: Vec<u8>,
    /// Where walking began: members before it are not held against the directory.
    from: u64,
    walked: Roll,
    /// Damage was told of, so that the directory cannot but differ in particulars.
    is_damaged: bool,
    ready: VecDeque<Next>,
    ending: Option<Ending>,
}

/// The member whose data come next.
struct Current {
    name: Vec<u8>,
    offset: u64,
    body: Body,
    /// Its stated size leads beyond the end of the archive.
    is_overlong: bool,
}

/// Members, counted and summed so that the order does not matter and nothing has to be kept.
#[derive(Debug, Default, PartialEq, Eq)]
struct Roll {
    count: u64,
    sum: u64,
}

impl Roll {
    fn add(&mut self, name: &[u8], offset: u64, sizes: Sizes) {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for number in [offset, sizes.packed, sizes.plain, sizes.crc.into()] {
            hash.update(&number.to_le_bytes());
        }
        hash.update(name);
        self.count += 1;
        self.sum = self.sum.wrapping_add(hash.digest());
    }
}

impl Zip {
    /// Whether bytes begin a zip: with a member, or with the end of an empty directory.
    pub(super) fn is_one(first: &[u8]) -> bool {
        first.starts_with(LOCAL_SIGNATURE) || first.starts_with(END_SIGNATURE) || first.starts_with(END64_SIGNATURE)
    }

    /// A zip of which these first bytes are taken already.
    pub(super) fn new(input: Input, first: Vec<u8>) -> Self {
        Self {
            ahead: Lookahead::new(input, first),
            current: None,
            head: Vec::new(),
            from: 0,
            walked: Roll::default(),
            is_damaged: false,
            ready: VecDeque::new(),
            ending: None,
        }
    }

    pub(super) fn input(&self) -> &Input {
        self.ahead.input()
    }

    pub(super) fn position(&self) -> u64 {
        self.ahead.position()
    }

    pub(super) fn go_to(&mut self, offset: u64) -> Result<(), Trouble> {
        if self.current.is_none() && self.ready.is_empty() && self.ahead.position() == offset {
            return Ok(());
        }
        self.current = None;
        self.head.clear();
        self.from = offset;
        self.walked = Roll::default();
        self.is_damaged = false;
        self.ready.clear();
        self.ending = None;
        self.ahead.go_to(offset)
    }

    pub(super) fn step(&mut self) -> Next {
        if let Some(next) = self.ready.pop_front() {
            return next;
        }
        if let Some(ending) = &self.ending {
            return Next::End(ending.clone());
        }
        if let Some(next) = self.finish() {
            return next;
        }
        loop {
            let offset = self.ahead.position();
            let signature = self.ahead.peek(4).get(..4).unwrap_or_default();
            if signature == ENTRY_SIGNATURE || signature == END_SIGNATURE || signature == END64_SIGNATURE {
                return self.directory();
            }
            if signature.is_empty() {
                return self.cut("at a member's boundary, without a directory");
            }
            if signature.len() < 4 {
                return self.cut("inside a header");
            }
            if signature != LOCAL_SIGNATURE {
                return self.skip_garbled(offset);
            }
            let bytes = self.ahead.peek(WINDOW);
            let Some(length) = LocalHeader::length(bytes) else {
                return self.cut("inside a header");
            };
            if !makes_sense(bytes) {
                return self.skip_garbled(offset);
            }
            let bytes = self.ahead.peek(length);
            if bytes.len() < length {
                return self.cut("inside a header");
            }
            let Some(header) = LocalHeader::read(bytes) else {
                return self.skip_garbled(offset);
            };
            if let Some(member) = self.enter(header, offset) {
                return Next::Member(member);
            }
            if let Some(next) = self.finish() {
                return next;
            }
        }
    }

    /// The first bytes of the current member, 16 at most.
    pub(super) fn head(&mut self) -> &[u8] {
        let missing = HEAD.saturating_sub(self.head.len() as u64);
        if let Some(current) = self.current.as_mut().filter(|current| !current.is_overlong) {
            current.body.read(&mut self.ahead, missing, &mut self.head);
        }
        &self.head
    }

    pub(super) fn data(&mut self, most: u64) -> Data {
        let mut data = std::mem::take(&mut self.head);
        let Some(current) = &mut self.current else {
            return Data::Whole(data.into());
        };
        if current.is_overlong {
            return Data::Cut;
        }
        let body = &mut current.body;
        if let (State::Open, Some(size)) = (&body.state, body.stated_plain())
            && size > most
        {
            return Data::TooLarge(size);
        }
        // one byte more than may come tells that there are more
        let limit = body.stated_plain().unwrap_or(most).min(most).saturating_add(1);
        while body.state == State::Open && (data.len() as u64) < limit {
            body.read(&mut self.ahead, limit - data.len() as u64, &mut data);
        }
        if data.len() as u64 > most {
            return Data::TooLarge(data.len() as u64);
        }
        let fault = match &body.state {
            State::Cut => return Data::Cut,
            State::Broken(trouble) => Some(trouble.clone()),
            State::Closed => body.fault(),
            State::Open => Some(Trouble::new(Reason::ChecksumMismatch, "it inflates to more than is stated")),
        };
        match fault {
            Some(trouble) => {
                self.is_damaged |= trouble.reason == Reason::ChecksumMismatch;
                Data::Damaged(trouble)
            }
            None => Data::Whole(data.into()),
        }
    }

    /// Byte offset of whatever follows the current member.
    pub(super) fn member_end(&mut self) -> u64 {
        if let Some(next) = self.finish() {
            self.ready.push_back(next);
        }
        self.ahead.position()
    }

    /// Begins a member; none if it is of no interest.
    fn enter(&mut self, header: LocalHeader, offset: u64) -> Option<Member> {
        self.ahead.take(header.length);
        let body = Body::new(&header);
        let end = body.stated_packed().map(|packed| self.ahead.position().saturating_add(packed));
        let length = self.input().stored_length().filter(|_| self.input().is_plain());
        let is_overlong = matches!((end, length), (Some(end), Some(length)) if end > length);
        let name = String::from_utf8_lossy(&header.name).into_owned();
        self.current = Some(Current { name: header.name, offset, body, is_overlong });
        if name.ends_with('/') || name.starts_with("__MACOSX/") {
            return None;
        }
        Some(Member { name, offset, is_alone: false })
    }

    /// Passes over what is left of the current member; what to tell, if that fails.
    fn finish(&mut self) -> Option<Next> {
        self.head.clear();
        let mut current = self.current.take()?;
        if current.is_overlong {
            // either the archive is cut here or the size is garbled: if records follow, it is the latter
            return match self.find_record() {
                true => Some(self.garbled(current.offset)),
                false => Some(self.cut("inside the data of a member")),
            };
        }
        if !current.body.pass(&mut self.ahead) {
            return Some(self.cut("inside the data of a member"));
        }
        if let Some(sizes) = current.body.sizes {
            self.walked.add(&current.name, current.offset, sizes);
        }
        None
    }

    /// Reads the directory to its end, and holds what was walked against it.
    fn directory(&mut self) -> Next {
        let mut listed = Roll::default();
        let mut entries = 0;
        while self.ahead.peek(4).starts_with(ENTRY_SIGNATURE) {
            let length = Entry::length(self.ahead.peek(ENTRY)).unwrap_or(ENTRY);
            let bytes = self.ahead.peek(length);
            if bytes.len() < length {
                return self.cut("inside the directory");
            }
            let Some(entry) = Entry::read(bytes) else {
                return self.cut("inside the directory");
            };
            self.ahead.take(length);
            entries += 1;
            if entry.offset >= self.from {
                listed.add(&entry.name, entry.offset, entry.sizes);
            }
        }
        let mut counted = None;
        if self.ahead.peek(END64).starts_with(END64_SIGNATURE) {
            let Some((count, length)) = end64(self.ahead.peek(END64)) else {
                return self.garbled_directory();
            };
            if self.ahead.skip(length) < length {
                return self.cut("inside the directory");
            }
            counted = Some(count);
        }
        if self.ahead.peek(LOCATOR64).starts_with(LOCATOR64_SIGNATURE) {
            self.ahead.take(LOCATOR64);
        }
        let bytes = self.ahead.peek(END);
        if bytes.len() < END {
            return self.cut("inside the directory");
        }
        let Some(end) = End::read(bytes) else {
            return self.garbled_directory();
        };
        let length = end.length as u64;
        if self.ahead.skip(length) < length {
            return self.cut("inside the comment at its end");
        }
        let is_counted = counted.map_or(end.entries == entries as u16, |count| count == entries);
        self.end(&listed, is_counted)
    }

    /// All records have been read.
    fn end(&mut self, listed: &Roll, is_counted: bool) -> Next {
        let end = self.ahead.position();
        if listed.count != self.walked.count || !is_counted || (*listed != self.walked && !self.is_damaged) {
            let (listed, walked) = (listed.count, self.walked.count);
            let what = match (listed == walked, is_counted) {
                (false, _) => format!("it lists {listed} members, {walked} were found"),
                (true, false) => "it does not have as many entries as it says".to_owned(),
                (true, true) => "a name, place, size or checksum is not that of the member".to_owned(),
            };
            self.ready.push_back(Next::Damage(end, Trouble::new(Reason::DirectoryMismatch, what)));
        }
        let mut trailing = None;
        loop {
            let position = self.ahead.position();
            let bytes = self.ahead.peek(1);
            if bytes.is_empty() {
                break;
            }
            if let (None, Some(at)) = (trailing, bytes.iter().position(|&byte| byte != 0)) {
                trailing = Some(position + at as u64);
            }
            let count = bytes.len();
            self.ahead.take(count);
        }
        if self.input().trouble().is_some() {
            let next = self.cut("after the directory");
            self.ready.push_back(next);
        } else {
            if let Some(at) = trailing {
                let bytes = self.ahead.position() - at;
                let detail = format!("{bytes} bytes after the end of the directory are not read");
                self.ready.push_back(Next::Damage(at, Trouble::new(Reason::TrailingData, detail)));
            }
            self.ending = Some(Ending::complete());
        }
        self.step()
    }

    /// Looks for the next record behind something that is none.
    fn skip_garbled(&mut self, offset: u64) -> Next {
        self.ahead.take(1);
        if !self.find_record() {
            self.ending = Some(cut_ending(self.input(), self.position(), "behind a garbled header"));
        }
        self.garbled(offset)
    }

    fn garbled(&mut self, offset: u64) -> Next {
        self.is_damaged = true;
        let skipped = self.ahead.position() - offset;
        Next::Damage(offset, Trouble::new(Reason::GarbledHeader, format!("{skipped} bytes skipped")))
    }

    fn garbled_directory(&mut self) -> Next {
        let at = self.ahead.position();
        let trouble = Trouble::new(Reason::GarbledHeader, format!("the directory is garbled at byte {at}"));
        self.ending = Some(Ending { verdict: super::Verdict::TruncatedAt(at), trouble: Some(trouble) });
        self.step()
    }

    /// Goes to the next record that makes sense; `false` if there is none.
    fn find_record(&mut self) -> bool {
        loop {
            let held = self.ahead.peek(WINDOW);
            let count = match held.windows(2).position(|pair| pair == b"PK") {
                Some(0) if makes_sense(held) => return true,
                Some(0) => 1,
                Some(at) => at,
                // the last byte may begin a record, unless it is the last of all
                None if held.len() > DESCRIPTOR => held.len() - 1,
                None => held.len(),
            };
            if count == 0 {
                return false;
            }
            self.ahead.take(count);
        }
    }

    fn cut(&mut self, place: &str) -> Next {
        let ending = cut_ending(self.input(), self.input().position(), place);
        self.ending = Some(ending.clone());
        Next::End(ending)
    }
}
