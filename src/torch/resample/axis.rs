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
        let last = length - self.taps;
        self.first.clear();
        self.weights.clear();
        self.weights.resize(size * self.taps, 0);
        self.exact.resize(self.taps, 0.0);
        let slope = 1.0 / support;
        for (place, weights) in self.weights.chunks_exact_mut(self.taps).enumerate() {
            let place = if span.backwards { size - 1 - place } else { place };
            let center = span.start + (place as f64 + 0.5) * scale;
            let first = ((center - support + 0.5).max(0.0) as usize).min(last);
            self.first.push(first as u32);
            weigh(center - first as f64, slope, &mut self.exact, weights);
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

/// Weights of neighbouring pixels, the first at 0, under a triangle around `center` that falls by `slope` for each pixel; `exact` is
/// room as long as they are.
fn weigh(center: f64, slope: f64, exact: &mut [f64], weights: &mut [i16]) {
    let mut sum = 0.0;
    let mut middle = 0.5 - center;
    for exact in exact.iter_mut() {
        *exact = (1.0 - middle.abs() * slope).max(0.0);
        sum += *exact;
        middle += 1.0;
    }
    if sum == 0.0 {
        // a span beyond the picture shows its nearest pixel
        let nearest = if center < 0.0 { 0 } else { weights.len() - 1 };
        weights[nearest] = i16::MAX;
        return;
    }
    let unit = ONE / sum;
    let (mut whole, mut before) = (0.5, 0);
    for (exact, weight) in exact.iter().zip(weights) {
        whole += exact * unit;
        let here = whole as i32;
        // a single pixel cannot have all of the weight: 2^-15 less is no different after rounding
        *weight = (here - before).min(i32::from(i16::MAX)) as i16;
        before = here;
    }
}
