//! Resampling as it is defined, one value after the other.

use super::axis::Axis;
use super::{Picture, byte, level, weighted};

/// Fills `view`, `[size, size, 3]`; `line` is room that is used again.
pub(super) fn resample(
    picture: Picture<'_>,
    columns: &Axis,
    rows: &Axis,
    view: &mut [u8],
    size: usize,
    line: &mut Vec<i16>,
) {
    let (from, to) = columns.used();
    for ((first, weights), shown) in rows.pixels().zip(view.chunks_exact_mut(size * 3)) {
        line.clear();
        line.resize((to - from) * 3, 0);
        for (row, &weight) in (first..).zip(weights) {
            let stored = &picture.rgb[(row * picture.width + from) * 3..][..line.len()];
            for (sum, &stored) in line.iter_mut().zip(stored) {
                *sum = sum.saturating_add(weighted(level(stored), weight));
            }
        }
        let (pixels, _) = line.as_chunks::<3>();
        for ((first, weights), shown) in columns.pixels().zip(shown.as_chunks_mut::<3>().0) {
            let mut sums = [0_i16; 3];
            for (pixel, &weight) in pixels[first - from..].iter().zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum = sum.saturating_add(weighted(value, weight));
                }
            }
            *shown = sums.map(byte);
        }
    }
}
