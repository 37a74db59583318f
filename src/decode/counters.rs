//! What the decoders have done so far, as numbers that any thread may read while they work.
//!
//! Each number is exact once the decoders rest; while they work, two of them may be one image apart.

use super::Decoded;
use crate::shards::{Filtered, Reason, Rejection};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

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
    pixels_ns: AtomicU64,
    views_ns: AtomicU64,
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
    /// Seconds from bytes to pixels, summed over threads.
    pub pixels_s: f64,
    /// Seconds from pixels to views, summed over threads.
    pub views_s: f64,
}

impl DecodeStats {
    /// Seconds that threads were busy, summed over threads.
    pub fn busy_s(&self) -> f64 {
        self.pixels_s + self.views_s
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
            pixels_s: seconds(&self.pixels_ns),
            views_s: seconds(&self.views_ns),
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

    pub(super) fn add_pixels_time(&self, time: Duration) {
        self.pixels_ns.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    pub(super) fn add_views_time(&self, time: Duration) {
        self.views_ns.fetch_add(time.as_nanos() as u64, Relaxed);
    }
}

fn by_name(names: impl Iterator<Item = &'static str>, counts: &[AtomicU64]) -> BTreeMap<&'static str, u64> {
    names.zip(counts).map(|(name, count)| (name, count.load(Relaxed))).filter(|&(_, count)| count > 0).collect()
}

fn seconds(nanoseconds: &AtomicU64) -> f64 {
    nanoseconds.load(Relaxed) as f64 * 1e-9
}
