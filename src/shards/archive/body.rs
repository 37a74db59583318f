//! The data of one member of a zip, piece by piece.
//!
//! In: the bytes behind a local header. Out: the data as they were before they were packed, never more at a time than was asked for, so
//! that no size is believed and nothing is allocated ahead. Where the header does not tell the size, a deflate stream ends itself;
//! stored data end at the first descriptor that counts just the bytes before it.

use super::super::reason::{Reason, Trouble};
use super::lookahead::Lookahead;
use super::record::{DESCRIPTOR, DESCRIPTOR_SIGNATURE, LocalHeader, Sizes, descriptor, follows_a_member};
use flate2::{Crc, Decompress, FlushDecompress, Status};

const STORED: u16 = 0;
const DEFLATE: u16 = 8;
/// Bytes inflated at once.
const PIECE: usize = 32 * 1024;

/// How far a member's data have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There is more.
    Open,
    /// This was all, and what follows is the next record.
    Closed,
    /// They cannot be read, or not to the end.
    Broken(Trouble),
    /// The archive ends within.
    Cut,
}

/// The data of one member.
pub(super) struct Body {
    coding: Coding,
    /// What the header says, where it does.
    stated: Option<Sizes>,
    descriptor_follows: bool,
    /// Bytes taken, and bytes given.
    packed: u64,
    plain: u64,
    crc: Crc,
    pub state: State,
    /// What header or descriptor say, once the data are closed.
    pub sizes: Option<Sizes>,
}

enum Coding {
    Stored,
    Deflate(Box<Decompress>),
    Unsupported,
}

impl Body {
    pub(super) fn new(header: &LocalHeader) -> Self {
        let unsupported = match (header.is_encrypted, header.method) {
            (true, _) => Some("it is encrypted".to_owned()),
            (false, STORED | DEFLATE) => None,
            (false, method) => Some(format!("it is compressed by method {method}")),
        };
        let coding = match (&unsupported, header.method) {
            (None, DEFLATE) => Coding::Deflate(Box::new(Decompress::new(false))),
            (None, _) => Coding::Stored,
            (Some(_), _) => Coding::Unsupported,
        };
        let is_stated = !header.sizes_are_behind || header.sizes.packed > 0;
        Self {
            coding,
            stated: is_stated.then_some(header.sizes),
            descriptor_follows: header.sizes_are_behind,
            packed: 0,
            plain: 0,
            crc: Crc::new(),
            state: match unsupported {
                Some(why) => State::Broken(Trouble::new(Reason::UnsupportedMember, why)),
                None => State::Open,
            },
            sizes: None,
        }
    }

    /// Bytes that the header says are packed.
    pub(super) fn stated_packed(&self) -> Option<u64> {
        self.stated.map(|sizes| sizes.packed)
    }

    /// Bytes that the header says will come.
    pub(super) fn stated_plain(&self) -> Option<u64> {
        self.stated.map(|sizes| sizes.plain)
    }

    /// Adds up to `most` bytes of data to `into`. After the last, [`Body::state`] is no longer open.
    pub(super) fn read(&mut self, ahead: &mut Lookahead, most: u64, into: &mut Vec<u8>) {
        let before = into.len();
        while self.state == State::Open && ((into.len() - before) as u64) < most {
            let wanted = most - (into.len() - before) as u64;
            let piece_at = into.len();
            match (&self.coding, self.stated) {
                (Coding::Deflate(_), _) => self.inflate(ahead, wanted, into),
                (_, Some(stated)) => self.copy(ahead, wanted.min(stated.packed - self.packed), into),
                (_, None) => self.search(ahead, wanted, into),
            }
            self.crc.update(&into[piece_at..]);
            self.plain += (into.len() - piece_at) as u64;
            let is_all = self.stated.is_some_and(|stated| self.packed == stated.packed);
            if is_all && self.state == State::Open && matches!(self.coding, Coding::Stored) {
                self.close(ahead);
            }
        }
    }

    /// Passes over the rest of the data and what stands behind them. `false` if the archive ends within.
    pub(super) fn pass(&mut self, ahead: &mut Lookahead) -> bool {
        if self.state == State::Closed {
            return true;
        }
        if let Some(stated) = self.stated {
            let left = stated.packed - self.packed;
            self.packed = stated.packed;
            if ahead.skip(left) < left {
                self.state = State::Cut;
                return false;
            }
            self.read_descriptor(ahead, Some(stated.plain));
            return true;
        }
        let mut scratch = Vec::new();
        if matches!(self.coding, Coding::Unsupported) {
            self.state = State::Open;
        }
        while self.state == State::Open {
            scratch.clear();
            self.read(ahead, PIECE as u64, &mut scratch);
        }
        self.state != State::Cut
    }

    /// Why the data that were read to their end are not what they should be.
    pub(super) fn fault(&self) -> Option<Trouble> {
        let wrong = |what: String| Some(Trouble::new(Reason::ChecksumMismatch, what));
        match self.sizes {
            None => wrong("no checksum behind the data".into()),
            Some(sizes) if sizes.plain != self.plain => {
                wrong(format!("{} bytes where {} are stated", self.plain, sizes.plain))
            }
            Some(sizes) if sizes.crc != self.crc.sum() => {
                wrong(format!("CRC-32 {:08x} where {:08x} is stated", self.crc.sum(), sizes.crc))
            }
            Some(_) => None,
        }
    }

    /// Stored data of a known size.
    fn copy(&mut self, ahead: &mut Lookahead, count: u64, into: &mut Vec<u8>) {
        let held = ahead.peek(1);
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(held.len());
        if count == 0 && self.stated_packed() != Some(self.packed) {
            self.state = State::Cut;
            return;
        }
        into.extend_from_slice(&held[..count]);
        ahead.take(count);
        self.packed += count as u64;
    }

    /// Data without a known size that end at their descriptor.
    fn search(&mut self, ahead: &mut Lookahead, wanted: u64, into: &mut Vec<u8>) {
        let held = ahead.peek(DESCRIPTOR + 4);
        if held.is_empty() {
            self.state = State::Cut;
            return;
        }
        let at = held.windows(4).position(|window| window == DESCRIPTOR_SIGNATURE);
        if at == Some(0) {
            let plain = matches!(self.coding, Coding::Stored).then_some(self.packed);
            if let Some((sizes, length)) = descriptor(held, self.packed, plain) {
                ahead.take(length);
                self.sizes = Some(sizes);
                self.state = State::Closed;
                return;
            }
            let ends_here = |length: usize| held.get(length..).is_some_and(follows_a_member);
            if let Some(length) = [16, 24].into_iter().find(|&length| ends_here(length)) {
                ahead.take(length);
                let detail = format!("{} bytes came, its descriptor counts others", self.packed);
                self.state = State::Broken(Trouble::new(Reason::ChecksumMismatch, detail));
                return;
            }
        }
        let certain = match at {
            Some(0) => 1,
            Some(at) => at,
            // the last three may begin a signature, unless they are the last of all
            None if held.len() > 3 => held.len() - 3,
            None => held.len(),
        };
        let count = certain.min(usize::try_from(wanted).unwrap_or(usize::MAX));
        into.extend_from_slice(&held[..count]);
        ahead.take(count);
        self.packed += count as u64;
    }

    fn inflate(&mut self, ahead: &mut Lookahead, wanted: u64, into: &mut Vec<u8>) {
        let Coding::Deflate(inflater) = &mut self.coding else {
            return;
        };
        let held = ahead.peek(1);
        let left = self.stated.map_or(u64::MAX, |stated| stated.packed - self.packed);
        let packed = &held[..held.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        let is_cut = held.is_empty();
        let is_over = packed.is_empty();
        let mut piece = [0; PIECE];
        let room = PIECE.min(usize::try_from(wanted).unwrap_or(PIECE));
        let (taken, given) = (inflater.total_in(), inflater.total_out());
        let status = inflater.decompress(packed, &mut piece[..room], FlushDecompress::None);
        let taken = (inflater.total_in() - taken) as usize;
        let given = (inflater.total_out() - given) as usize;
        into.extend_from_slice(&piece[..given]);
        ahead.take(taken);
        self.packed += taken as u64;
        match status {
            Ok(Status::StreamEnd) => self.end_of_deflate(ahead, given),
            Ok(Status::Ok | Status::BufError) if taken + given > 0 => {}
            Ok(_) if is_cut => self.state = State::Cut,
            Ok(_) if is_over => self.break_off("the deflate stream does not end where its data do"),
            Ok(_) => self.break_off("the deflate stream comes to a halt"),
            Err(_) => self.break_off("the deflate stream is damaged"),
        }
    }

    /// `given` bytes of the last piece are not counted yet.
    fn end_of_deflate(&mut self, ahead: &mut Lookahead, given: usize) {
        match self.stated {
            Some(stated) if stated.packed != self.packed => {
                self.break_off("the deflate stream ends before its data do");
            }
            Some(_) => self.close(ahead),
            None => self.read_descriptor(ahead, Some(self.plain + given as u64)),
        }
    }

    fn break_off(&mut self, why: &str) {
        self.state = State::Broken(Trouble::new(Reason::ChecksumMismatch, why));
    }

    /// The data have come, all that the header counts.
    fn close(&mut self, ahead: &mut Lookahead) {
        let plain = self.stated_plain();
        self.read_descriptor(ahead, plain);
    }

    /// What stands behind the data; without one where none follows, or none that fits.
    fn read_descriptor(&mut self, ahead: &mut Lookahead, plain: Option<u64>) {
        self.state = State::Closed;
        self.sizes = self.stated;
        if !self.descriptor_follows {
            return;
        }
        let behind = ahead.peek(DESCRIPTOR + 4);
        let plain = plain.filter(|_| !matches!(self.coding, Coding::Unsupported));
        if let Some((sizes, length)) = descriptor(behind, self.packed, plain) {
            ahead.take(length);
            self.sizes = Some(sizes);
        }
    }
}
