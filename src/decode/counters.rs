//! What the decoders have done so far, as numbers that any thread may read while they work.
//!
//! Each number is exact once the decoders rest; while they work, two of them may be one image apart.

use super::Decoded;
use crate::shards::{Filtered, Reason, Rejection};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Live counters, shared between decoding threads and the observer.
#[derive(Debug, Default)]
pub struct Counters {
    decoded: AtomicU64,
    truncated: AtomicU64,
    rotated: AtomicU64,
    converted: AtomicU64,
    rejected: [AtomicU64; Reason::ALL.len()],
    filtered: [AtomicU64; Filtered::ALL.len()],
    eighths: [AtomicU64; 8],
    part_ns: [AtomicU64; Part::NAMES.len()],
}

/// The counters at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DecodeStats {
    /// Images that became pixels.
    pub decoded: u64,
    /// Of these, images whose file is cut short or corrupt in places.
    pub truncated: u64,
    /// Of these, images turned upright by their EXIF orientation.
    pub rotated: u64,
    /// Of these, images that were not 8-bit RGB in their file: gray, palette, CMYK, alpha, 16 bits.
    pub converted: u64,
    /// Images that did not, by reason; reasons without any are left out.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Images that a filter passed over, by rule; rules without any are left out.
    pub filtered: BTreeMap<&'static str, u64>,
    /// JPEGs by the scale of their inverse DCT: entry `n - 1` counts those decoded at `n / 8`.
    pub eighths: [u64; 8],
    /// Seconds by part, in the order of [`Part::NAMES`], summed over threads.
    pub part_s: [f64; Part::NAMES.len()],
}

/// What the time of an image goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Reading size and orientation, and drawing the views.
    Header,
    /// From bytes to pixels.
    Decode,
    /// From pixels to views.
    Resize,
    /// Turning upright and mirroring.
    Turn,
    /// The rules on pixels and on duplicates.
    Filter,
}

impl Part {
    /// Names, in order.
    pub const NAMES: [&str; 5] = ["header", "decode", "resize", "turn", "filter"];
}

impl DecodeStats {
    /// Adds what other decoders did.
    pub fn add(&mut self, other: &Self) {
        self.decoded += other.decoded;
        self.truncated += other.truncated;
        self.rotated += other.rotated;
        self.converted += other.converted;
        other.rejected.iter().for_each(|(reason, count)| *self.rejected.entry(reason).or_default() += count);
        other.filtered.iter().for_each(|(rule, count)| *self.filtered.entry(rule).or_default() += count);
        self.eighths.iter_mut().zip(other.eighths).for_each(|(sum, count)| *sum += count);
        self.part_s.iter_mut().zip(other.part_s).for_each(|(sum, seconds)| *sum += seconds);
    }

    /// Seconds that threads were busy, summed over threads.
    pub fn busy_s(&self) -> f64 {
        self.part_s.iter().sum()
    }

    /// Images that the decoders are done with, whatever became of them.
    pub fn tried(&self) -> u64 {
        self.decoded + self.rejected.values().chain(self.filtered.values()).sum::<u64>()
    }

    /// Milliseconds that an image takes on one thread, by part: "0.70 ms an image (header 0.00, decode 0.51, ...)".
    pub fn per_image(&self) -> String {
        let ms = |seconds: f64| 1e3 * seconds / self.tried().max(1) as f64;
        let parts = Part::NAMES.iter().zip(self.part_s).map(|(name, seconds)| format!("{name} {:.2}", ms(seconds)));
        format!("{:.2} ms an image ({})", ms(self.busy_s()), parts.collect::<Vec<String>>().join(", "))
    }
}

impl Counters {
    /// All of them at this moment.
    pub fn read(&self) -> DecodeStats {
        DecodeStats {
            decoded: self.decoded.load(Relaxed),
            truncated: self.truncated.load(Relaxed),
            rotated: self.rotated.load(Relaxed),
            converted: self.converted.load(Relaxed),
            rejected: by_name(Reason::ALL.iter().map(|reason| reason.name()), &self.rejected),
            filtered: by_name(Filtered::ALL.iter().map(|filtered| filtered.name()), &self.filtered),
            eighths: std::array::from_fn(|i| self.eighths[i].load(Relaxed)),
            part_s: std::array::from_fn(|i| seconds(&self.part_ns[i])),
        }
    }

    pub(super) fn add(&self, outcome: &Result<Decoded, Rejection>) {
        let decoded = match outcome {
            Ok(decoded) => decoded,
            Err(Rejection::Lost(trouble)) => {
                self.rejected[trouble.reason as usize].fetch_add(1, Relaxed);
                return;
            }
            Err(Rejection::Filtered(filtered)) => {
                self.filtered[*filtered as usize].fetch_add(1, Relaxed);
                return;
            }
        };
        self.decoded.fetch_add(1, Relaxed);
        self.truncated.fetch_add(u64::from(decoded.truncated), Relaxed);
        self.rotated.fetch_add(u64::from(decoded.rotated), Relaxed);
        self.converted.fetch_add(u64::from(decoded.converted), Relaxed);
        if let Some(eighths) = decoded.eighths {
            self.eighths[usize::from(eighths.clamp(1, 8)) - 1].fetch_add(1, Relaxed);
        }
    }
}

/// Attributes the time of one image to its parts.
pub(super) struct Clock<'a> {
    counters: &'a Counters,
    since: Instant,
}

impl<'a> Clock<'a> {
    pub(super) fn start(counters: &'a Counters) -> Self {
        Self { counters, since: Instant::now() }
    }

    /// The time since the last lap went to `part`.
    pub(super) fn lap(&mut self, part: Part) {
        let now = Instant::now();
        self.counters.part_ns[part as usize].fetch_add((now - self.since).as_nanos() as u64, Relaxed);
        self.since = now;
    }
}

fn by_name(names: impl Iterator<Item = &'static str>, counts: &[AtomicU64]) -> BTreeMap<&'static str, u64> {
    names.zip(counts).map(|(name, count)| (name, count.load(Relaxed))).filter(|&(_, count)| count > 0).collect()
}

fn seconds(nanoseconds: &AtomicU64) -> f64 {
    nanoseconds.load(Relaxed) as f64 * 1e-9
}
