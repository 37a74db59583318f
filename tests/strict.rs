//! A second reading of a tar, written from the formats' descriptions (POSIX ustar and pax, GNU), to judge ours by.
//!
//! It works on a whole archive in memory and is strict: it stops at the first byte that is not as it should be. Up to there
//! its samples are certain; [`Strict::is_whole`] says whether there was no such byte at all.

use std::ops::Range;

const BLOCK: usize = 512;
const LARGEST_EXTENSION: usize = 1 << 20;
const MOST_EXTENSIONS: usize = 16;

/// What an archive holds for certain.
#[derive(Debug, Default)]
pub struct Strict {
    /// Its regular files, in order.
    pub members: Vec<Member>,
    /// Whether everything was in order up to the last byte.
    pub is_whole: bool,
}

/// A regular file.
#[derive(Debug)]
pub struct Member {
    pub name: String,
    pub offset: usize,
    pub end: usize,
    /// Its data; those of a member that is cut reach past the archive.
    pub data: Range<usize>,
}

/// A run of members with one key.
#[derive(Debug, PartialEq, Eq)]
pub struct Sample {
    pub key: String,
    pub offset: usize,
    pub end: usize,
    /// Extension and data of each member.
    pub parts: Vec<(String, Vec<u8>)>,
}

impl Strict {
    pub fn read(tar: &[u8]) -> Self {
        let mut strict = Self::default();
        strict.is_whole = strict.walk(tar).is_some();
        strict
    }

    /// The samples that are whole for certain, by the rules of WebDataset.
    pub fn samples(&self, tar: &[u8]) -> Vec<Sample> {
        let mut samples: Vec<Sample> = Vec::new();
        let mut is_open = false;
        for member in &self.members {
            let Some((key, extension)) = key_and_extension(&member.name) else { continue };
            is_open = true;
            if samples.last().is_none_or(|sample| sample.key != key) {
                samples.push(Sample { key, offset: member.offset, end: 0, parts: Vec::new() });
            }
            let (Some(sample), Some(data)) = (samples.last_mut(), tar.get(member.data.clone())) else { break };
            sample.end = member.end;
            sample.parts.push((extension, data.to_vec()));
        }
        if is_open && !self.is_whole {
            samples.pop();
        }
        samples
    }

    fn walk(&mut self, tar: &[u8]) -> Option<()> {
        let mut at = 0;
        loop {
            let offset = at;
            let (mut name, mut size, mut is_sparse) = (None, None, false);
            let mut extensions = 0;
            let (header, kind) = loop {
                let header = tar.get(at..at + BLOCK)?;
                if extensions == 0 && header.iter().all(|&byte| byte == 0) {
                    let rest = &tar[at..];
                    return (rest.len() >= 2 * BLOCK && rest.iter().all(|&byte| byte == 0)).then_some(());
                }
                check_sum(header)?;
                at += BLOCK;
                let kind = header[156];
                if !b"LKxg".contains(&kind) {
                    break (header, kind);
                }
                extensions += 1;
                if extensions > MOST_EXTENSIONS {
                    return None;
                }
                let length = usize::try_from(number(&header[124..136])?).ok()?;
                if length > LARGEST_EXTENSION && b"Lx".contains(&kind) {
                    return None;
                }
                let text = tar.get(at..at.checked_add(length)?)?;
                at = at.checked_add(length.checked_next_multiple_of(BLOCK)?)?;
                if at > tar.len() {
                    return None;
                }
                if kind == b'L' {
                    name = Some(text.split(|&byte| byte == 0).next()?.to_vec());
                }
                if kind == b'x' {
                    for (key, value) in records(text)? {
                        match key {
                            b"path" => name = Some(value.to_vec()),
                            b"size" => size = Some(std::str::from_utf8(value).ok()?.parse::<u64>().ok()?),
                            _ => is_sparse |= key.starts_with(b"GNU.sparse."),
                        }
                    }
                }
            };
            let has_data = !(b'1'..=b'6').contains(&kind);
            let stated = number(&header[124..136])?;
            let size = if has_data { usize::try_from(size.unwrap_or(stated)).ok()? } else { 0 };
            if kind == b'S' && &header[257..263] == b"ustar " && header[482] != 0 {
                loop {
                    let map = tar.get(at..at + BLOCK)?;
                    at += BLOCK;
                    if map[504] == 0 {
                        break;
                    }
                }
            }
            let data = at..at.checked_add(size)?;
            at = at.checked_add(size.checked_next_multiple_of(BLOCK)?)?;
            let name = String::from_utf8_lossy(&name.unwrap_or_else(|| own_name(header))).into_owned();
            if matches!(kind, b'0' | 0 | b'7') && !is_sparse && !name.ends_with('/') {
                self.members.push(Member { name, offset, end: at, data });
            }
            if at > tar.len() {
                return None;
            }
        }
    }
}

/// The sum of a header's bytes, its own field read as spaces.
pub fn sum_of(header: &[u8]) -> u32 {
    let others = header[..148].iter().chain(&header[156..]);
    others.map(|&byte| u32::from(byte)).sum::<u32>() + 8 * u32::from(b' ')
}

fn check_sum(header: &[u8]) -> Option<()> {
    (number(&header[148..156])? == u64::from(sum_of(header))).then_some(())
}

/// Octal digits between spaces, up to a NUL; or base 256 where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (first, rest) = (field[0] & 0x7f, &field[1..]);
        // a width of more than 64 bits: the tar crate reads the last eight bytes, larger numbers do not exist
        let digits = std::iter::once(first).chain(rest.iter().copied());
        let skipped = field.len().saturating_sub(8);
        return Some(digits.skip(skipped).fold(0, |value, digit| value << 8 | u64::from(digit)));
    }
    let text = std::str::from_utf8(field.split(|&byte| byte == 0).next()?).ok()?;
    u64::from_str_radix(text.trim(), 8).ok()
}

fn own_name(header: &[u8]) -> Vec<u8> {
    let until_nul = |field: &[u8]| field.split(|&byte| byte == 0).next().unwrap_or_default().to_vec();
    let (name, prefix) = (until_nul(&header[..100]), until_nul(&header[345..500]));
    let is_posix = &header[257..265] == b"ustar\x0000";
    if is_posix && !prefix.is_empty() { [&prefix[..], b"/", &name].concat() } else { name }
}

/// `length key=value\n` records; nothing else may be there but NULs at the end.
fn records(mut text: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !text.is_empty() && text[0] != 0 {
        let space = text.iter().position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
        let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        text = &text[length..];
    }
    Some(records)
}

fn key_and_extension(name: &str) -> Option<(String, String)> {
    let (folder, base) = name.rsplit_once('/').map_or(("", name), |(folder, base)| (folder, base));
    let first = name.split('/').next()?;
    let is_meta = first.len() >= 4 && first.starts_with("__") && first.ends_with("__");
    let (stem, extension) = base.split_once('.')?;
    if stem.is_empty() || is_meta {
        return None;
    }
    let key = if name.contains('/') { format!("{folder}/{stem}") } else { stem.to_owned() };
    Some((key, extension.to_lowercase()))
}
