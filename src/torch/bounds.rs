//! Bounds on distances, as k-means keeps them for groups of centroids: 16 bits each, many at once.
//!
//! Each gives the same outcome to the last bit on every processor.

use super::vectors::compiled_for_vectors;
use std::arch::x86_64::*;

/// What turns the highest scores of points into bounds on distances.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// `|point|²` of each.
    pub squares: &'a [f32],
    /// What a score of each may be too low by.
    pub margins: &'a [f32],
    /// Twice what one step of a score is worth.
    pub twice_step: f32,
    /// What a bound counts in: this many to one unit of distance.
    pub scale: f32,
}

compiled_for_vectors! {
    /// Replaces the bounds of points whose score is known (above `i32::MIN`) by `√(square - 2 step (score + margin))`, rounded down.
    pub fn set(highest: &[i32], bound: &Bound<'_>, bounds: &mut [u16]) = set_each
}

/// 2^23: what is below one does not fit beside it, and the last bits are those of the whole number.
const WHOLE: f32 = 8_388_608.0;

#[inline(always)]
fn set_each(highest: &[i32], bound: &Bound<'_>, bounds: &mut [u16]) {
    let points = bound.squares.iter().zip(bound.margins);
    for ((&score, (square, margin)), into) in highest.iter().zip(points).zip(bounds) {
        let square = square - bound.twice_step * (score as f32 + margin);
        let distance = (square.max(0.0).sqrt() * bound.scale).min(f32::from(u16::MAX));
        // Half less and to the nearest is no more than it is: Rust's own conversion goes through each number by itself.
        let whole = (distance - 0.5).max(0.0) + WHOLE;
        *into = if score == i32::MIN { *into } else { whole.to_bits() as u16 };
    }
}

/// Points that one number of [`lower`] has a flag for.
pub const FLAGS: usize = 16;

/// Lessens bounds of points by `drift`, down to 0, and sets in `possible` the flags of those that are not above the limit of their
/// point then.
pub fn lower(bounds: &mut [u16], drift: u16, limits: &[u16], possible: &mut [u16]) {
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { lower_with_avx2(bounds, drift, limits, possible) };
    }
    lower_each(bounds, drift, limits, possible);
}

fn lower_each(bounds: &mut [u16], drift: u16, limits: &[u16], possible: &mut [u16]) {
    let blocks = bounds.chunks_mut(FLAGS).zip(limits.chunks(FLAGS));
    for ((bounds, limits), possible) in blocks.zip(possible) {
        *possible = 0;
        for (at, (bound, limit)) in bounds.iter_mut().zip(limits).enumerate() {
            *bound = bound.saturating_sub(drift);
            *possible |= u16::from(*bound <= *limit) << at;
        }
    }
}

#[target_feature(enable = "avx2")]
fn lower_with_avx2(bounds: &mut [u16], drift: u16, limits: &[u16], possible: &mut [u16]) {
    let drift_lanes = _mm256_set1_epi16(drift as i16);
    let blocks = bounds.chunks_mut(FLAGS).zip(limits.chunks(FLAGS));
    for ((bounds, limits), possible) in blocks.zip(possible) {
        if bounds.len() < FLAGS || limits.len() < FLAGS {
            lower_each(bounds, drift, limits, std::slice::from_mut(possible));
            continue;
        }
        // SAFETY: both are 32 bytes long.
        unsafe {
            let old = _mm256_loadu_si256(bounds.as_ptr().cast());
            let limits = _mm256_loadu_si256(limits.as_ptr().cast());
            let new = _mm256_subs_epu16(old, drift_lanes);
            _mm256_storeu_si256(bounds.as_mut_ptr().cast(), new);
            // Not above the limit: the larger of the two is the limit.
            let below = _mm256_cmpeq_epi16(_mm256_max_epu16(new, limits), limits);
            let packed = _mm_packs_epi16(_mm256_castsi256_si128(below), _mm256_extracti128_si256(below, 1));
            *possible = _mm_movemask_epi8(packed) as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn bounds_are_distances_rounded_down(points in prop::collection::vec((-40_000..40_000, 0.5_f32..4.0, 0.0_f32..900.0), 1..40)) {
            let highest: Vec<i32> = points.iter().map(|&(score, _, _)| if score > 38_000 { i32::MIN } else { score }).collect();
            let squares: Vec<f32> = points.iter().map(|point| point.1).collect();
            let margins: Vec<f32> = points.iter().map(|point| point.2).collect();
            let bound = Bound { squares: &squares, margins: &margins, twice_step: 1e-4, scale: 20_000.0 };
            let mut bounds = vec![77; highest.len()];
            set(&highest, &bound, &mut bounds);
            for ((&score, (_, square, margin)), &found) in highest.iter().zip(points).zip(&bounds) {
                let exact = (f64::from(square) - 1e-4 * (f64::from(score) + f64::from(margin))).max(0.0).sqrt() * 20_000.0;
                match score {
                    i32::MIN => prop_assert_eq!(found, 77),
                    _ => prop_assert!((f64::from(found) - exact.min(65_535.0)).abs() <= 6.0, "{} {}", found, exact),
                }
            }
        }

        #[test]
        fn bounds_are_lowered_and_compared(
            bounds in prop::collection::vec((any::<u16>(), any::<u16>()), 1..50),
            drift in 0_u16..9_000,
        ) {
            let (before, limits): (Vec<u16>, Vec<u16>) = bounds.into_iter().unzip();
            let (mut found, mut plain) = (before.clone(), before.clone());
            let mut flags = vec![7; found.len().div_ceil(FLAGS)];
            let mut plain_flags = flags.clone();
            lower(&mut found, drift, &limits, &mut flags);
            lower_each(&mut plain, drift, &limits, &mut plain_flags);
            prop_assert_eq!((&found, &flags), (&plain, &plain_flags));
            for (at, &bound) in before.iter().enumerate() {
                prop_assert_eq!(found[at], bound.saturating_sub(drift));
                prop_assert_eq!(flags[at / FLAGS] >> (at % FLAGS) & 1 == 1, found[at] <= limits[at]);
            }
        }
    }
}
