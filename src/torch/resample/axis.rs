//! Which pixels of one axis make each pixel of a view, and with what weights.
//!
//! All pixels of a view take the same number of neighbouring pixels, those without weight included, so that loops have a fixed
//! length. Weights count in 2^-15 and sum to exactly one; they are rounded as running sums, so that no error piles up.

use super::Span;

/// One, as a sum of weights.
const ONE: f64 = 32768.0;

/// The pixels and weights of one axis.
#[derive(Debug, Default)]
pub(super) struct Axis {
    /// Pixels that make one.
    taps: usize,
    /// The first of them, for each pixel of the view.
    first: Vec<u32>,
    /// Their weights, `taps` for each pixel of the view.
    weights: Vec<i16>,
    exact: Vec<f64>,
}

impl Axis {
    /// For `size` pixels of a view over a span of `length` pixels.
    pub(super) fn set(&mut self, span: Span, size: usize, length: usize) {
        let scale = span.extent / size as f64;
        let support = scale.max(1.0);
        self.taps = ((2.0 * support).ceil() as usize).min(length);
        self.first.clear();
        self.weights.clear();
        let last = length - self.taps;
        for place in 0..size {
            let place = if span.backwards { size - 1 - place } else { place };
            let center = span.start + (place as f64 + 0.5) * scale;
            let first = ((center - support + 0.5).max(0.0) as usize).min(last);
            self.first.push(first as u32);
            self.weigh(first, center, 1.0 / support);
        }
    }

    fn weigh(&mut self, first: usize, center: f64, slope: f64) {
        let pixels = (first..first + self.taps).map(|pixel| pixel as f64 + 0.5);
        self.exact.clear();
        self.exact.extend(pixels.map(|pixel| (1.0 - (pixel - center).abs() * slope).max(0.0)));
        let sum: f64 = self.exact.iter().sum();
        // none where the span lies beyond the picture: then its nearest pixel is shown
        let unit = if sum > 0.0 { ONE / sum } else { 0.0 };
        let (mut whole, mut before) = (0.5, 0);
        for exact in &self.exact {
            whole += exact * unit;
            let here = whole as i32;
            // a single pixel cannot have all of the weight: 2^-15 less is no different after rounding
            self.weights.push((here - before).min(i32::from(i16::MAX)) as i16);
            before = here;
        }
        if sum == 0.0 {
            let nearest = if center < first as f64 { 0 } else { self.taps - 1 };
            let at = self.weights.len() - self.taps + nearest;
            self.weights[at] = i16::MAX;
        }
    }

    /// Pixels that make one.
    pub(super) fn taps(&self) -> usize {
        self.taps
    }

    /// Pixels of the view.
    pub(super) fn len(&self) -> usize {
        self.first.len()
    }

    /// For each pixel of the view, the first pixel that makes it, and the weights from there on.
    pub(super) fn pixels(&self) -> impl Iterator<Item = (usize, &[i16])> {
        self.first.iter().map(|&first| first as usize).zip(self.weights.chunks_exact(self.taps))
    }

    /// As [`Axis::pixels`], for one pixel of the view.
    pub(super) fn pixel(&self, place: usize) -> (usize, &[i16]) {
        (self.first[place] as usize, &self.weights[place * self.taps..][..self.taps])
    }

    /// The pixels that are used at all: from one to before the other.
    pub(super) fn used(&self) -> (usize, usize) {
        let ends = [self.first.first(), self.first.last()].map(|end| end.map_or(0, |&end| end as usize));
        (ends[0].min(ends[1]), ends[0].max(ends[1]) + self.taps)
    }
}
