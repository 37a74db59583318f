//! What the blocks of a tar say: headers told from zeros and garbage, sizes, PAX records.

use tar::{EntryType, Header};

/// Bytes of a block, the unit of a tar.
pub(super) const BLOCK: u64 = 512;

/// One block.
pub(super) type Block = [u8; BLOCK as usize];

/// The size rounded up to whole blocks; none where that overflows.
pub(super) fn padded(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(BLOCK)
}

/// Whether a block marks the end.
pub(super) fn is_zero(block: &Block) -> bool {
    block.iter().all(|&byte| byte == 0)
}

/// Whether the checksum of a header holds, which reads its own field as spaces.
pub(super) fn is_header(block: &Block) -> bool {
    let Ok(stated) = Header::from_byte_slice(block).cksum() else {
        return false;
    };
    let without_field = block.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte });
    !is_zero(block) && stated == without_field.map(u32::from).sum::<u32>()
}

/// Kinds whose size field, if set, counts nothing.
pub(super) fn has_no_data(kind: EntryType) -> bool {
    kind.is_hard_link()
        || kind.is_symlink()
        || kind.is_dir()
        || kind.is_fifo()
        || kind.is_character_special()
        || kind.is_block_special()
}

/// The `length key=value\n` records of a PAX header; none where one is malformed. A value may hold anything, line ends too, and
/// NULs may follow the last record.
pub(super) fn pax_records(mut text: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while text.first().is_some_and(|&byte| byte != 0) {
        let space = text.iter().position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
        let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        text = &text[length..];
    }
    Some(records)
}
