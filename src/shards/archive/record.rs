//! What the records of a zip say (APPNOTE 6.3): local headers, descriptors, entries of the directory, its end.
//!
//! In: bytes that may be anything. Out: the record, or none where they are no such record. Nothing is believed here: whoever walks the
//! archive holds what the records say against what comes. All numbers are little-endian.

/// Bytes of a local header without name and extra field.
pub(super) const LOCAL: usize = 30;
/// Bytes of an entry of the directory without name, extra field and comment.
pub(super) const ENTRY: usize = 46;
/// Bytes of the longest descriptor.
pub(super) const DESCRIPTOR: usize = 24;
/// Bytes of the end of the directory, without comment.
pub(super) const END: usize = 22;
/// Bytes of the end of a zip64 directory, without its extensible part; and of what locates it.
pub(super) const END64: usize = 56;
pub(super) const LOCATOR64: usize = 20;

pub(super) const LOCAL_SIGNATURE: &[u8] = b"PK\x03\x04";
pub(super) const ENTRY_SIGNATURE: &[u8] = b"PK\x01\x02";
pub(super) const DESCRIPTOR_SIGNATURE: &[u8] = b"PK\x07\x08";
pub(super) const END_SIGNATURE: &[u8] = b"PK\x05\x06";
pub(super) const END64_SIGNATURE: &[u8] = b"PK\x06\x06";
pub(super) const LOCATOR64_SIGNATURE: &[u8] = b"PK\x06\x07";

const ENCRYPTED: u16 = 1;
const SIZES_BEHIND: u16 = 8;
const ZIP64_FIELD: u16 = 1;
/// A number that stands in the zip64 field instead.
const ELSEWHERE: u64 = u32::MAX as u64;
/// Longer names are garbage where a header is searched for.
const LONGEST_NAME: usize = 4_096;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// What is known of a member's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub crc: u32,
    pub packed: u64,
    pub plain: u64,
}

/// The header before a member's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LocalHeader {
    pub name: Vec<u8>,
    pub method: u16,
    pub is_encrypted: bool,
    /// Whether sizes and checksum come behind the data; the header's own may be zeros then.
    pub sizes_are_behind: bool,
    pub sizes: Sizes,
    /// Bytes of the header.
    pub length: usize,
}

impl LocalHeader {
    /// Bytes of the header that begins here, if its fixed part is there.
    pub(super) fn length(bytes: &[u8]) -> Option<usize> {
        Some(LOCAL + usize::from(u16_at(bytes, 26)?) + usize::from(u16_at(bytes, 28)?))
    }

    /// The header that begins here; none if it is none, or not whole.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(LOCAL_SIGNATURE) {
            return None;
        }
        let flags = u16_at(bytes, 6)?;
        let name_end = LOCAL + usize::from(u16_at(bytes, 26)?);
        let length = Self::length(bytes)?;
        let mut numbers = [u64::from(u32_at(bytes, 22)?), u64::from(u32_at(bytes, 18)?)];
        widen(&mut numbers, bytes.get(name_end..length)?);
        let name = bytes.get(LOCAL..name_end)?.to_vec();
        if name.is_empty() {
            return None;
        }
        Some(Self {
            name,
            method: u16_at(bytes, 8)?,
            is_encrypted: flags & ENCRYPTED != 0,
            sizes_are_behind: flags & SIZES_BEHIND != 0,
            sizes: Sizes { crc: u32_at(bytes, 14)?, packed: numbers[1], plain: numbers[0] },
            length,
        })
    }
}

/// An entry of the directory.
pub(super) struct Entry {
    pub name: Vec<u8>,
    pub sizes: Sizes,
    /// Where its local header begins.
    pub offset: u64,
}

impl Entry {
    /// Bytes of the entry that begins here, if its fixed part is there.
    pub(super) fn length(bytes: &[u8]) -> Option<usize> {
        let variable = usize::from(u16_at(bytes, 28)?) + usize::from(u16_at(bytes, 30)?);
        Some(ENTRY + variable + usize::from(u16_at(bytes, 32)?))
    }

    /// The entry that begins here; none if it is none, or not whole.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(ENTRY_SIGNATURE) {
            return None;
        }
        let name_end = ENTRY + usize::from(u16_at(bytes, 28)?);
        let extra_end = name_end + usize::from(u16_at(bytes, 30)?);
        let mut numbers = [u64::from(u32_at(bytes, 24)?), u64::from(u32_at(bytes, 20)?), u64::from(u32_at(bytes, 42)?)];
        widen(&mut numbers, bytes.get(name_end..extra_end)?);
        let [plain, packed, offset] = numbers;
        let sizes = Sizes { crc: u32_at(bytes, 16)?, packed, plain };
        Some(Self { name: bytes.get(ENTRY..name_end)?.to_vec(), sizes, offset })
    }
}

/// Takes from the zip64 field what did not fit in 32 bits, in its order.
fn widen(numbers: &mut [u64], mut extra: &[u8]) {
    while let (Some(kind), Some(size)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some(field) = extra.get(4..4 + usize::from(size)) else {
            return;
        };
        if kind == ZIP64_FIELD {
            let mut at = 0;
            for number in numbers.iter_mut().filter(|number| **number == ELSEWHERE) {
                let Some(wide) = u64_at(field, at) else {
                    return;
                };
                *number = wide;
                at += 8;
            }
            return;
        }
        extra = &extra[4 + usize::from(size)..];
    }
}

/// The descriptor behind a member's data, and its length. With or without a signature, in 32 or 64 bits: the one that says what has come
/// (`plain` where that is known) is the one meant.
pub(super) fn descriptor(bytes: &[u8], packed: u64, plain: Option<u64>) -> Option<(Sizes, usize)> {
    let signed = bytes.strip_prefix(DESCRIPTOR_SIGNATURE);
    let forms = [(signed, 4, 4), (signed, 4, 8), (Some(bytes), 0, 4), (Some(bytes), 0, 8)];
    forms.into_iter().find_map(|(fields, before, width)| {
        let fields = fields?;
        let number = |at| if width == 4 { u32_at(fields, at).map(u64::from) } else { u64_at(fields, at) };
        let sizes = Sizes { crc: u32_at(fields, 0)?, packed: number(4)?, plain: number(4 + width)? };
        let length = before + 4 + 2 * width;
        let fits = match plain {
            Some(plain) => sizes.plain == plain,
            None => follows_a_member(bytes.get(length..)?),
        };
        (sizes.packed == packed && fits).then_some((sizes, length))
    })
}

/// Whether what begins here can follow a member.
pub(super) fn follows_a_member(bytes: &[u8]) -> bool {
    [LOCAL_SIGNATURE, ENTRY_SIGNATURE, END_SIGNATURE, END64_SIGNATURE].iter().any(|it| bytes.starts_with(it))
}

/// Whether bytes in the middle of garbage begin a record that makes sense. Give it 64 bytes or more, unless there are no more.
pub(super) fn makes_sense(bytes: &[u8]) -> bool {
    let is_plain_name = |at: usize, length: usize| {
        let name = bytes.get(at..(at + length).min(bytes.len())).unwrap_or_default();
        (1..=LONGEST_NAME).contains(&length) && !name.is_empty() && name.iter().all(|&byte| byte >= b' ')
    };
    let known_method = |at| matches!(u16_at(bytes, at), Some(0..=10 | 12 | 14 | 18..=20 | 93..=99));
    // a specification up to 6.3, for a system that exists
    let known_version = |at| matches!(bytes.get(at..at + 2), Some([0..=63, 0..=20]));
    if bytes.starts_with(LOCAL_SIGNATURE) {
        let name_length = u16_at(bytes, 26).map_or(0, usize::from);
        return known_version(4) && known_method(8) && is_plain_name(LOCAL, name_length);
    }
    if bytes.starts_with(ENTRY_SIGNATURE) {
        let name_length = u16_at(bytes, 28).map_or(0, usize::from);
        return known_version(6) && known_method(10) && is_plain_name(ENTRY, name_length);
    }
    let end = End::read(bytes);
    end.is_some_and(|end| end.is_on_one_disk) || (bytes.starts_with(END64_SIGNATURE) && end64(bytes).is_some())
}

/// The end of the directory.
pub(super) struct End {
    /// Entries in the directory, modulo 2^16 where there is no zip64 end.
    pub entries: u16,
    /// Bytes of the record, with its comment.
    pub length: usize,
    is_on_one_disk: bool,
}

impl End {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(END_SIGNATURE) {
            return None;
        }
        let [disk, directory_disk, here, entries] = [4, 6, 8, 10].map(|at| u16_at(bytes, at));
        let length = END + usize::from(u16_at(bytes, 20)?);
        Some(Self { entries: entries?, length, is_on_one_disk: disk? == directory_disk? && here? == entries? })
    }
}

/// Of the end of a zip64 directory: how many entries it has, and its length in bytes.
pub(super) fn end64(bytes: &[u8]) -> Option<(u64, u64)> {
    let length = u64_at(bytes, 4)?.checked_add(12)?;
    let entries = u64_at(bytes, 32)?;
    (length >= END64 as u64).then_some((entries, length))
}
