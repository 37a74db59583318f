//! MATLAB files of version 5, as far as published proposals need them: cells, numbers and text.
//!
//! In: a `.mat` file. Out: its variables by name. Its elements are tagged with kind and size and may be compressed (zlib);
//! numbers may be stored in a smaller kind than their class; both byte orders occur. What is neither cells, numbers nor text
//! comes as [`Value::Other`]. A file that is cut short, damaged, or of version 7.3 (HDF5) or 4 is refused with its name.

use crate::error::{Error, Result};
use flate2::read::ZlibDecoder;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// A variable, or what a cell holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Numbers of any class, in the order of the file: the first index runs fastest.
    Numbers {
        /// Lengths of the axes, two or more.
        shape: Vec<usize>,
        /// As many as the product of `shape`.
        values: Vec<f64>,
    },
    /// A row of characters.
    Text(String),
    /// Cells of any shape, the first index running fastest.
    Cells(Vec<Value>),
    /// A structure, an object, a sparse matrix or a function.
    Other,
}

const HEADER: usize = 128;
/// Cells within cells; more are not read.
const DEEPEST: usize = 8;

const COMPRESSED: u32 = 15;
const MATRIX: u32 = 14;

/// Reads the variables of a file.
///
/// # Errors
/// It cannot be read, or is not a whole file of version 5.
pub fn read(path: &Path) -> Result<BTreeMap<String, Value>> {
    let bytes = std::fs::read(path).map_err(|error| Error::file("read", path, &error))?;
    if bytes.starts_with(b"MATLAB 7.3") || bytes.starts_with(b"\x89HDF") {
        return Err(Error::data(format!(
            "{} is a MATLAB file of version 7.3, which shoal does not read",
            path.display()
        ))
        .with_hint("save it in MATLAB with save(..., '-v7'), or write the boxes as JSON lines"));
    }
    parse(&bytes).map_err(|why| {
        Error::data(format!("{} is not a whole MATLAB file of version 5: {why}", path.display()))
            .with_hint("boxes may also come as JSON lines: {\"image\": \"000005\", \"boxes\": [[1, 1, 90, 60]]}")
    })
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Value>, String> {
    if bytes.len() < HEADER {
        return Err(format!("{} bytes are fewer than its header", bytes.len()));
    }
    let big = match &bytes[HEADER - 2..HEADER] {
        b"IM" => false,
        b"MI" => true,
        other => return Err(format!("its byte order is given as {other:?}")),
    };
    let mut variables = BTreeMap::new();
    let mut elements = Elements { rest: &bytes[HEADER..], big };
    while let Some((kind, data)) = elements.next()? {
        let inflated;
        let (kind, data) = if kind == COMPRESSED {
            inflated = inflate(data, big)?;
            let mut inner = Elements { rest: &inflated, big };
            inner.next()?.ok_or("a compressed element is empty")?
        } else {
            (kind, data)
        };
        if kind == MATRIX {
            let (name, value) = matrix(data, big, 0)?;
            variables.insert(name, value);
        }
    }
    Ok(variables)
}

/// The one element within a compressed one: as long as its tag says, whatever follows.
fn inflate(data: &[u8], big: bool) -> Result<Vec<u8>, String> {
    let trouble = |error: std::io::Error| format!("a compressed element: {error}");
    let mut decoder = ZlibDecoder::new(data);
    let mut inflated = vec![0; 8];
    decoder.read_exact(&mut inflated).map_err(trouble)?;
    let size = word(&inflated[4..], big);
    decoder.take(u64::from(size)).read_to_end(&mut inflated).map_err(trouble)?;
    Ok(inflated)
}

/// Goes over elements: their kind and bytes.
struct Elements<'a> {
    rest: &'a [u8],
    big: bool,
}

impl<'a> Elements<'a> {
    fn next(&mut self) -> Result<Option<(u32, &'a [u8])>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.rest.get(..8).ok_or("the tag of an element is cut short")?;
        let first = word(tag, self.big);
        if first >> 16 != 0 {
            // Up to four bytes stand in the tag itself.
            let (kind, size) = (first & 0xffff, (first >> 16) as usize);
            let data = tag[4..].get(..size).ok_or_else(|| format!("a small element claims {size} bytes"))?;
            self.rest = &self.rest[8..];
            return Ok(Some((kind, data)));
        }
        let size = word(&tag[4..], self.big) as usize;
        let data = self.rest[8..].get(..size).ok_or_else(|| {
            format!("an element of {size} bytes is cut short after {}", self.rest.len().saturating_sub(8))
        })?;
        // Elements end at multiples of eight bytes, compressed ones wherever they end.
        let padded = if first == COMPRESSED { size } else { size.next_multiple_of(8) };
        self.rest = self.rest.get(8 + padded..).unwrap_or_default();
        Ok(Some((first, data)))
    }

    fn expect(&mut self, what: &str) -> Result<(u32, &'a [u8]), String> {
        self.next()?.ok_or_else(|| format!("a matrix lacks its {what}"))
    }
}

/// Name and value of a matrix, or of a cell.
fn matrix(data: &[u8], big: bool, depth: usize) -> Result<(String, Value), String> {
    if data.is_empty() {
        return Ok((String::new(), Value::Numbers { shape: vec![0, 0], values: Vec::new() }));
    }
    if depth > DEEPEST {
        return Err(format!("cells lie more than {DEEPEST} deep"));
    }
    let mut parts = Elements { rest: data, big };
    let (_, flags) = parts.expect("class")?;
    let class = flags.get(..4).map(|flags| word(flags, big) & 0xff).ok_or("the class of a matrix is cut short")?;
    let (kind, shape) = parts.expect("shape")?;
    let shape: Vec<usize> = numbers(kind, shape, big)?.into_iter().map(|length| length as usize).collect();
    let (_, name) = parts.expect("name")?;
    let name = String::from_utf8_lossy(name).into_owned();
    let count = shape.iter().try_fold(1usize, |product, &length| product.checked_mul(length));
    let count = count.ok_or_else(|| format!("{name} claims a shape of {shape:?}"))?;

    let value = match class {
        1 => {
            let mut cells = Vec::new();
            for _ in 0..count {
                let (kind, cell) = parts.expect("cells")?;
                if kind != MATRIX {
                    return Err(format!("a cell of {name} is of kind {kind}"));
                }
                cells.push(matrix(cell, big, depth + 1)?.1);
            }
            Value::Cells(cells)
        }
        4 => {
            let (kind, text) = parts.expect("characters")?;
            Value::Text(characters(kind, text, big)?)
        }
        6..=15 => {
            let (kind, values) = parts.expect("values")?;
            let values = numbers(kind, values, big)?;
            if values.len() != count {
                return Err(format!("{name} of shape {shape:?} has {} values", values.len()));
            }
            Value::Numbers { shape, values }
        }
        _ => Value::Other,
    };
    Ok((name, value))
}

fn numbers(kind: u32, bytes: &[u8], big: bool) -> Result<Vec<f64>, String> {
    /// Numbers of one kind, in either byte order.
    macro_rules! of {
        ($number:ty) => {{
            let (chunks, _) = bytes.as_chunks();
            let number = if big { <$number>::from_be_bytes } else { <$number>::from_le_bytes };
            chunks.iter().map(|&chunk| number(chunk) as f64).collect()
        }};
    }
    Ok(match kind {
        1 => of!(i8),
        2 => of!(u8),
        3 => of!(i16),
        4 => of!(u16),
        5 => of!(i32),
        6 => of!(u32),
        7 => of!(f32),
        9 => of!(f64),
        12 => of!(i64),
        13 => of!(u64),
        _ => return Err(format!("numbers are of kind {kind}")),
    })
}

fn characters(kind: u32, bytes: &[u8], big: bool) -> Result<String, String> {
    match kind {
        1 | 2 | 16 => Ok(String::from_utf8_lossy(bytes).into_owned()),
        4 | 17 => {
            let units: Vec<u16> = numbers(4, bytes, big)?.into_iter().map(|unit| unit as u16).collect();
            Ok(String::from_utf16_lossy(&units))
        }
        _ => Err(format!("characters are of kind {kind}")),
    }
}

/// The first four bytes as a number.
fn word(bytes: &[u8], big: bool) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[..4]);
    if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in which each number of a tag is written by `word`; `a` is [[1, 3], [2, 4]] stored as bytes, `t` is "ab".
    fn file(order: &[u8; 2], word: fn(u32) -> [u8; 4]) -> Vec<u8> {
        let mut bytes = vec![b' '; 126];
        bytes.extend(order);
        let element = |kind: u32, data: &[u8]| {
            let mut element = [word(kind), word(data.len() as u32)].concat();
            element.extend(data);
            element.resize(element.len().next_multiple_of(8), 0);
            element
        };
        let words = |numbers: &[u32]| numbers.iter().flat_map(|&number| word(number)).collect::<Vec<u8>>();
        let small = |kind: u32, data: &[u8]| {
            let mut small = word((data.len() as u32) << 16 | kind).to_vec();
            small.extend(data);
            small.resize(8, 0);
            small
        };
        let numbers =
            [element(6, &words(&[6, 0])), element(5, &words(&[2, 2])), small(1, b"a"), small(2, &[1, 2, 3, 4])];
        bytes.extend(element(14, &numbers.concat()));
        let text = [element(6, &words(&[4, 0])), element(5, &words(&[1, 2])), small(1, b"t"), small(16, b"ab")];
        bytes.extend(element(14, &text.concat()));
        bytes
    }

    #[test]
    fn both_byte_orders_are_read() {
        for bytes in [file(b"IM", u32::to_le_bytes), file(b"MI", u32::to_be_bytes)] {
            let variables = parse(&bytes).expect("a file");
            let expected = Value::Numbers { shape: vec![2, 2], values: vec![1.0, 2.0, 3.0, 4.0] };
            assert_eq!(variables["a"], expected);
            assert_eq!(variables["t"], Value::Text("ab".into()));
        }
    }

    #[test]
    fn no_prefix_of_a_file_is_read_as_something_else() {
        let whole = file(b"IM", u32::to_le_bytes);
        let expected = parse(&whole).expect("a file");
        for length in 0..whole.len() {
            if let Ok(found) = parse(&whole[..length]) {
                assert!(found.iter().all(|(name, value)| expected[name] == *value), "{length} bytes");
            }
        }
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (bytes, words) in
            [(&b"MATLAB 7.3 MAT-file"[..], "7.3"), (b"not a MATLAB file", "header"), (&[b' '; 200], "byte order")]
        {
            let path = folder.path().join("boxes.mat");
            std::fs::write(&path, bytes).expect("a file");
            let error = read(&path).expect_err(words);
            assert!(error.to_string().contains("boxes.mat") && error.to_string().contains(words), "{error}");
            assert!(error.hint().is_some());
        }
    }
}
