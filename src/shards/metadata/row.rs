//! Lines of YFCC100M's metadata, plain or packed by gzip or zstd.
//!
//! In: a file of tab-separated lines with 25 fields: line number, photo id, hash, user, ..., title, ..., page URL, download URL,
//! licence name, licence URL, ..., marker (0 photo, 1 video). Out: one [`Row`] after the other; a line with other fields is counted and
//! passed over. Text fields are URL-encoded there. Memory: one line.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const FIELDS: usize = 25;
/// Longer lines are none of this format.
const LONGEST_LINE: u64 = 1024 * 1024;

/// A photograph in the metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Line number, from 0.
    pub line: u64,
    /// Flickr's number.
    pub id: u64,
    /// MD5 of the download URL, each byte in hexadecimal *without* padding: 16 to 32 characters.
    pub hash: String,
    /// Nickname of its author.
    pub author: String,
    /// Title.
    pub title: String,
    /// Its page.
    pub page: String,
    /// Name of its licence.
    pub licence: String,
    /// Text of its licence.
    pub licence_url: String,
}

/// A metadata file being read.
pub struct Rows {
    path: PathBuf,
    lines: Box<dyn BufRead>,
    text: Vec<u8>,
    read: u64,
    malformed: u64,
}

impl Rows {
    /// Opens a file; what it is packed by is told by its first bytes.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::file("read", path, &source).with_hint("filter.metadata names YFCC100M's metadata");
        let mut file = File::open(path).map_err(failed)?;
        let mut first = Vec::new();
        (&mut file).take(4).read_to_end(&mut first).map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let lines: Box<dyn BufRead> = match first.as_slice() {
            [0x1f, 0x8b, ..] => Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(file))),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                Box::new(BufReader::new(zstd::stream::read::Decoder::new(file).map_err(failed)?))
            }
            _ => Box::new(BufReader::with_capacity(1 << 20, file)),
        };
        Ok(Self { path: path.to_owned(), lines, text: Vec::new(), read: 0, malformed: 0 })
    }

    /// The next row; none at the end.
    ///
    /// # Errors
    /// The file cannot be read to its end, or its first line is none of this format.
    pub fn next_row(&mut self) -> Result<Option<Row>> {
        loop {
            self.text.clear();
            let line = (&mut self.lines).take(LONGEST_LINE).read_until(b'\n', &mut self.text);
            if line.map_err(|source| Error::file("read", &self.path, &source))? == 0 {
                return Ok(None);
            }
            self.read += 1;
            let text = String::from_utf8_lossy(&self.text);
            if let Some(row) = parse(text.trim_end_matches(['\r', '\n'])) {
                return Ok(Some(row));
            }
            self.malformed += 1;
            if self.read == 1 {
                let fields = text.split('\t').count();
                return Err(Error::data(format!(
                    "{}: line 1 has {fields} fields, or none where numbers should be",
                    self.path.display()
                ))
                .with_hint(format!(
                    "YFCC100M's lines have {FIELDS}: line number, photo id, hash, ..., licence name, licence URL, ..., marker"
                )));
            }
        }
    }

    /// Lines read, and how many of them were malformed.
    pub fn counts(&self) -> (u64, u64) {
        (self.read, self.malformed)
    }
}

fn parse(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.split('\t').collect();
    if fields.len() != FIELDS {
        return None;
    }
    Some(Row {
        line: fields[0].parse().ok()?,
        id: fields[1].parse().ok()?,
        hash: fields[2].to_owned(),
        author: decoded(fields[4]),
        title: decoded(fields[8]),
        page: fields[15].to_owned(),
        licence: fields[17].to_owned(),
        licence_url: fields[18].to_owned(),
    })
}

/// URL-encoded text as it reads, on one line.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let hex = (first == b'%').then(|| behind.get(..2)).flatten();
        let code = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        rest = if code.is_some() { &behind[2..] } else { behind };
        bytes.push(match (code, first) {
            (Some(code), _) => code,
            (None, b'+') => b' ',
            (None, other) => other,
        });
    }
    String::from_utf8_lossy(&bytes).replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_decoded_onto_one_line() {
        let cases =
            [("a+b%20c", "a b c"), ("%C3%A9t%c3%a9", "été"), ("50%", "50%"), ("%zz", "%zz"), ("a%0Ab%09c", "a b c")];
        for (text, expected) in cases {
            assert_eq!(decoded(text), expected);
        }
    }
}
