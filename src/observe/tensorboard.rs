//! TensorBoard event files, written without TensorFlow.
//!
//! In: scalars, histograms and pictures with their step. Out: `events.out.tfevents.*`, a sequence of records framed as
//! `u64 length · u32 masked CRC32-C of it · bytes · u32 masked CRC32-C of them` (all little-endian), each an `Event`
//! message of TensorFlow's `event.proto`, encoded by hand: a dozen fields do not need a protobuf compiler.
//!
//! A resumed run writes a new file that opens with a session start, on which TensorBoard forgets what older files hold
//! from that step on. What can go wrong: the disk.

use crate::error::{Error, Result};
use image::{ImageFormat, RgbImage};
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file, open at its end.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
}

/// A histogram: `counts[i]` values lie at or below `limits[i]` and above the limit before.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Sum of the values.
    pub sum: f64,
    /// Sum of their squares.
    pub sum_squares: f64,
    /// Upper ends of the bins, rising.
    pub limits: Vec<f64>,
    /// Values in each bin.
    pub counts: Vec<f64>,
}

impl Histogram {
    /// Sorts values into `bins` bins of equal width; none for no values.
    pub fn of(values: &[f64], bins: usize) -> Option<Self> {
        let bins = bins.max(1);
        let min = values.iter().copied().reduce(f64::min)?;
        let max = values.iter().copied().reduce(f64::max)?;
        let range = if max > min { max - min } else { 1.0 };
        let width = range / bins as f64;
        let mut limits: Vec<f64> = (1..bins).map(|bin| min + width * bin as f64).collect();
        limits.push(min + range);
        let mut counts = vec![0.0; bins];
        for value in values {
            let bin = ((value - min) / width).ceil() as usize;
            counts[bin.saturating_sub(1).min(bins - 1)] += 1.0;
        }
        let sum_squares = values.iter().map(|v| v * v).sum();
        Some(Self { min, max, sum: values.iter().sum(), sum_squares, limits, counts })
    }
}

impl EventFile {
    /// Starts a new event file in `folder` (made if missing) for steps from `first_step` on.
    pub fn create(folder: &Path, first_step: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| Error::file("create", folder, &e))?;
        let (file, path) = new_file(folder)?;
        let mut events = Self { file, path };
        events.write(0, |event| event.bytes(3, b"brain.Event:2"))?;
        const SESSION_START: u64 = 1;
        events.write(first_step, |event| event.message(7, |session| session.varint(1, SESSION_START)))?;
        Ok(events)
    }

    /// Writes scalars of one step.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        self.write(step, |event| {
            event.message(5, |summary| {
                for (tag, value) in values {
                    summary.message(1, |entry| {
                        entry.bytes(1, tag.as_bytes());
                        entry.float(2, *value as f32);
                    });
                }
            });
        })
    }

    /// Writes a histogram.
    pub fn histogram(&mut self, step: u64, tag: &str, histogram: &Histogram) -> Result<()> {
        self.value(step, tag, |entry| {
            entry.message(5, |body| {
                body.double(1, histogram.min);
                body.double(2, histogram.max);
                body.double(3, histogram.counts.iter().sum());
                body.double(4, histogram.sum);
                body.double(5, histogram.sum_squares);
                body.doubles(6, &histogram.limits);
                body.doubles(7, &histogram.counts);
            });
        })
    }

    /// Writes a picture.
    pub fn picture(&mut self, step: u64, tag: &str, picture: &RgbImage) -> Result<()> {
        let mut png = Cursor::new(Vec::new());
        let encoded = picture.write_to(&mut png, ImageFormat::Png);
        encoded.map_err(|error| Error::data(format!("cannot encode {tag} as PNG: {error}")))?;
        const RGB: u64 = 3;
        self.value(step, tag, |entry| {
            entry.message(4, |body| {
                body.varint(1, u64::from(picture.height()));
                body.varint(2, u64::from(picture.width()));
                body.varint(3, RGB);
                body.bytes(4, png.get_ref());
            });
        })
    }

    fn value(&mut self, step: u64, tag: &str, fill: impl FnOnce(&mut Message)) -> Result<()> {
        self.write(step, |event| {
            event.message(5, |summary| {
                summary.message(1, |entry| {
                    entry.bytes(1, tag.as_bytes());
                    fill(entry);
                });
            });
        })
    }

    fn write(&mut self, step: u64, fill: impl FnOnce(&mut Message)) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut event = Message::default();
        event.double(1, now.as_secs_f64());
        event.varint(2, step);
        fill(&mut event);
        self.file.write_all(&frame(&event.0)).map_err(|e| Error::file("append to", &self.path, &e))
    }
}

/// A file that no earlier session of the run has: names sort by time, then by a count within one second.
fn new_file(folder: &Path) -> Result<(File, PathBuf)> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for count in 0_u32.. {
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.shoal.{}.{count}", std::process::id()));
        match File::create_new(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::file("create", &path, &error)),
        }
    }
    Err(Error::data(format!("{} has no room for another event file", folder.display())))
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.raw_varint(u64::from(field << 3 | wire_type));
    }

    fn varint(&mut self, field: u32, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u32, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u32, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, value: &[u8]) {
        self.key(field, 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }

    fn doubles(&mut self, field: u32, values: &[f64]) {
        let packed: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.bytes(field, &packed);
    }

    fn message(&mut self, field: u32, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}

fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

/// The CRC rotated and shifted, so that the CRC of data that itself holds CRCs stays useful.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial, reflected.
fn crc32c(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data {
        crc = (crc >> 8) ^ CASTAGNOLI[((crc ^ u32::from(*byte)) & 0xff) as usize];
    }
    !crc
}

const CASTAGNOLI: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
#[path = "tensorboard_tests.rs"]
mod tests;
