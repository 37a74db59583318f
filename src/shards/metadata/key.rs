//! From the keys of samples to the rows of the metadata, whatever the shards are keyed by.
//!
//! YFCC100M's photographs go by three names: the hash, the photo id, the line number. A hash is told by its letters and length (its bytes
//! are printed without padding, so 16 to 32 characters, nearly always 24 and more). Numbers are told apart only where they must be one
//! or the other: line numbers have 8 digits or fewer, and so have early photo ids. For those `filter.metadata_key` decides.
//! In DeeperCluster's layout, `12/345.zip` with `678.jpg` in it is line 12345678.

use super::row::Row;
use crate::config::MetadataKey;

/// Hashes shorter than this cannot be told from words or numbers.
const SHORTEST_HASH: usize = 24;
/// More digits than any line number has.
const LONGEST_LINE_NUMBER: usize = 8;

/// A name of a photograph: 60 bits, the lowest four left free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name(pub u64);

impl Name {
    fn new(kind: MetadataKey, text: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64_with_seed(text, kind as u64) & !0xf)
    }

    fn hash(text: &str) -> Self {
        Self::new(MetadataKey::Hash, text.as_bytes())
    }

    fn id(number: u64) -> Self {
        Self::new(MetadataKey::Id, &number.to_le_bytes())
    }

    fn line(number: u64) -> Self {
        Self::new(MetadataKey::Line, &number.to_le_bytes())
    }
}

/// The names of a row that keys of this kind can match.
pub(super) fn names_of_row(row: &Row, kind: MetadataKey) -> Vec<Name> {
    let all = [
        (MetadataKey::Hash, Name::hash(&row.hash)),
        (MetadataKey::Id, Name::id(row.id)),
        (MetadataKey::Line, Name::line(row.line)),
    ];
    all.into_iter().filter(|(of, _)| kind == MetadataKey::Auto || kind == *of).map(|(_, name)| name).collect()
}

/// The name that a sample's key gives; none where it is no name, or could be two.
pub(super) fn name_of_sample(shard: &str, key: &str, kind: MetadataKey) -> Option<Name> {
    let base = key.rsplit('/').next().unwrap_or(key);
    let number = base.parse::<u64>().ok().filter(|_| base.bytes().all(|byte| byte.is_ascii_digit()));
    let line = || line_by_place(shard, key).or(number).map(Name::line);
    match kind {
        MetadataKey::Hash => is_hash(base).then(|| Name::hash(base)),
        MetadataKey::Id => number.map(Name::id),
        MetadataKey::Line => line(),
        MetadataKey::Auto if base.len() >= SHORTEST_HASH => is_hash(base).then(|| Name::hash(base)),
        MetadataKey::Auto => {
            if let Some(line) = line_by_place(shard, key) {
                return Some(Name::line(line));
            }
            let is_padded_line = base.len() == LONGEST_LINE_NUMBER && base.starts_with('0');
            match number? {
                number if is_padded_line => Some(Name::line(number)),
                number if base.len() > LONGEST_LINE_NUMBER => Some(Name::id(number)),
                _ => None,
            }
        }
    }
}

fn is_hash(text: &str) -> bool {
    (16..=32).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The line number that folder, zip and member spell in DeeperCluster's layout.
fn line_by_place(shard: &str, key: &str) -> Option<u64> {
    let stem = shard.strip_suffix(".zip").unwrap_or(shard);
    let base = key.rsplit('/').next()?;
    let mut above = stem.rsplit('/');
    let (zip, folder) = (above.next()?, above.next()?);
    let are_digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let fits = shard.ends_with(".zip") && are_digits(folder, 2) && are_digits(zip, 3) && are_digits(base, 3);
    if fits { format!("{folder}{zip}{base}").parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_by_content_where_they_can_be() {
        let hash = "d41d8cd98f0b24e980998ecf8427e";
        let cases = [
            ("x.tar", hash, Some(Name::hash(hash))),
            ("x.tar", "000/0a1/d41d8cd98f0b24e980998ecf8427e", Some(Name::hash(hash))),
            ("x.tar", "6985418911", Some(Name::id(6_985_418_911))),
            ("x.tar", "00000678", Some(Name::line(678))),
            ("/data/12/345.zip", "678", Some(Name::line(12_345_678))),
            ("/data/00/000.zip", "005", Some(Name::line(5))),
            ("/data/000.zip", "005", None),
            ("x.tar", "12345678", None),
            ("x.tar", "photo of a cat", None),
            ("x.tar", "", None),
            ("x.tar", "notahashnotahashnotahashnota", None),
        ];
        for (shard, key, expected) in cases {
            assert_eq!(name_of_sample(shard, key, MetadataKey::Auto), expected, "{shard} {key}");
        }
        assert_eq!(name_of_sample("x.tar", "12345678", MetadataKey::Id), Some(Name::id(12_345_678)));
        assert_eq!(name_of_sample("x.tar", "12345678", MetadataKey::Line), Some(Name::line(12_345_678)));
        assert_eq!(name_of_sample("x.tar", "12345678", MetadataKey::Hash), None);
    }
}
