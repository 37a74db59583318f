//! Products of small whole numbers, six rows by sixteen columns at once: how k-means finds out which centroids may be near.
//!
//! In: rows of bytes, each a coordinate plus 128; a panel of sixteen columns of coordinates within ±63. Out: for each pair
//! `row · column - offset`, saturated to 16 bits, and the largest of each row. Products are summed in 16 bits
//! that wrap, so a sum is right whenever the whole of it fits, whatever its parts do: the caller sees to
//! `|row| |column| <= 32767`. A multiplication of AVX2 (`pmaddubsw`) takes 32 such pairs where a fused one takes 8 floats, which
//! is where the speed comes from: three times that of a matrix product in 32-bit floats. AVX-512 with VNNI (`vpdpbusd`) takes and
//! adds 64.
//!
//! `plain` is the definition and gives the same numbers; only processors with AVX2 are worth it ([`is_fast`]).

use std::arch::x86_64::*;

/// Rows that are scored together.
pub const ROWS: usize = 6;
/// Columns of a panel.
pub const COLUMNS: usize = 16;
/// What stands for a coordinate of 0 in a row.
pub const ZERO: u8 = 128;
/// Largest coordinate of a column, either way: two products of it with a byte fit into 16 bits.
pub const COLUMN_LIMIT: i32 = 63;
/// Coordinates that stand side by side in a panel.
pub const TOGETHER: usize = 4;

/// One score for each column of a panel.
pub type Scores = [i16; COLUMNS];

/// Sixteen columns.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    /// `[width / 4, 16, 4]`, but for the order of columns, which is that of [`place`].
    pub coordinates: &'a [i8],
    /// 128 times the sum of each column, wrapped.
    pub bias: &'a Scores,
    /// What each column's product is lessened by.
    pub offset: &'a Scores,
}

/// The scores of six rows in one panel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scored {
    /// Of each row, for each column.
    pub scores: [Scores; ROWS],
    /// The largest of each row.
    pub highest: [i16; ROWS],
    /// A bit for each column whose score is above the row's floor.
    pub above: [u16; ROWS],
}

/// Where coordinate `row` of `column` stands among the coordinates of its panel.
pub fn place(row: usize, column: usize) -> usize {
    // Columns 0, 2, 4, ... are the first vector of a quadruple of coordinates, the others the second: so sums are put together
    // without crossing lanes.
    let slot = (column % 2) * (COLUMNS / 2) + column / 2;
    (row / TOGETHER * COLUMNS + slot) * TOGETHER + row % TOGETHER
}

/// Whether this processor does it fast.
pub fn is_fast() -> bool {
    is_x86_feature_detected!("avx2")
}

fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
}

/// Scores `rows` in a panel, and says which are above the `floors` of their rows.
///
/// # Panics
/// A row is shorter than the panel.
pub fn score(rows: [&[u8]; ROWS], floors: &[i16; ROWS], panel: &Panel<'_>, scored: &mut Scored) {
    let width = panel.coordinates.len() / COLUMNS;
    assert!(width.is_multiple_of(TOGETHER) && rows.iter().all(|row| row.len() >= width), "rows as wide as the panel");
    if has_vnni() {
        // SAFETY: the processor has what the function is compiled for, and no row is shorter than the panel.
        return unsafe { score_with_vnni(rows, floors, panel, width, scored) };
    }
    if is_fast() {
        // SAFETY: the processor has what the function is compiled for, and no row is shorter than the panel.
        return unsafe { score_with_avx2(rows, floors, panel, width, scored) };
    }
    plain(rows, floors, panel, width, scored);
}

/// What turns the largest scores of a point into bounds on distances.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// `|point|²`.
    pub square: f32,
    /// What a score may be too low by.
    pub margin: f32,
    /// Twice what one step of a score is worth.
    pub twice_step: f32,
    /// What a bound counts in: this many to one unit of distance.
    pub scale: f32,
}

/// Replaces those of `bounds` whose score is known (above `i16::MIN`) by `√(square - 2 step (score + margin))`, rounded down.
/// Of a score of `i16::MAX`, which may have been cut, nothing follows.
pub fn set_bounds(highest: &[i16], bound: Bound, bounds: &mut [u16]) {
    if is_fast() {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { set_bounds_with_avx2(highest, bound, bounds) };
    }
    set_each_bound(highest, bound, bounds);
}

#[target_feature(enable = "avx2")]
fn set_bounds_with_avx2(highest: &[i16], bound: Bound, bounds: &mut [u16]) {
    set_each_bound(highest, bound, bounds);
}

#[inline(always)]
fn set_each_bound(highest: &[i16], bound: Bound, bounds: &mut [u16]) {
    for (&score, into) in highest.iter().zip(bounds) {
        let square = bound.square - bound.twice_step * (f32::from(score) + bound.margin);
        let distance = (square.max(0.0).sqrt() * bound.scale).min(f32::from(u16::MAX));
        let distance = if score == i16::MAX { 0 } else { distance as i32 as u16 };
        *into = if score == i16::MIN { *into } else { distance };
    }
}

/// Groups that one number of [`lower_bounds`] has a flag for.
pub const FLAGS: usize = 16;

/// Lessens each of `bounds` by its `drift`, down to 0, and sets in `possible` the flags of those that are not above `limit` then.
pub fn lower_bounds(bounds: &mut [u16], drift: &[u16], limit: u16, possible: &mut [u16]) {
    if is_fast() {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { lower_bounds_with_avx2(bounds, drift, limit, possible) };
    }
    lower_each_bound(bounds, drift, limit, possible);
}

fn lower_each_bound(bounds: &mut [u16], drift: &[u16], limit: u16, possible: &mut [u16]) {
    let blocks = bounds.chunks_mut(FLAGS).zip(drift.chunks(FLAGS));
    for ((bounds, drift), possible) in blocks.zip(possible) {
        *possible = 0;
        for (at, (bound, drift)) in bounds.iter_mut().zip(drift).enumerate() {
            *bound = bound.saturating_sub(*drift);
            *possible |= u16::from(*bound <= limit) << at;
        }
    }
}

#[target_feature(enable = "avx2")]
fn lower_bounds_with_avx2(bounds: &mut [u16], drift: &[u16], limit: u16, possible: &mut [u16]) {
    let limit_lanes = _mm256_set1_epi16(limit as i16);
    let blocks = bounds.chunks_mut(FLAGS).zip(drift.chunks(FLAGS));
    for ((bounds, drift), possible) in blocks.zip(possible) {
        if bounds.len() < FLAGS || drift.len() < FLAGS {
            lower_each_bound(bounds, drift, limit, std::slice::from_mut(possible));
            continue;
        }
        // SAFETY: both are 32 bytes long.
        unsafe {
            let old = _mm256_loadu_si256(bounds.as_ptr().cast());
            let new = _mm256_subs_epu16(old, _mm256_loadu_si256(drift.as_ptr().cast()));
            _mm256_storeu_si256(bounds.as_mut_ptr().cast(), new);
            // Not above the limit: the larger of the two is the limit.
            let below = _mm256_cmpeq_epi16(_mm256_max_epu16(new, limit_lanes), limit_lanes);
            let packed = _mm_packs_epi16(_mm256_castsi256_si128(below), _mm256_extracti128_si256(below, 1));
            *possible = _mm_movemask_epi8(packed) as u16;
        }
    }
}

fn plain(rows: [&[u8]; ROWS], floors: &[i16; ROWS], panel: &Panel<'_>, width: usize, scored: &mut Scored) {
    for (index, row) in rows.iter().enumerate() {
        let scores = &mut scored.scores[index];
        scored.above[index] = 0;
        for (column, score) in scores.iter_mut().enumerate() {
            let mut sum = 0_i16;
            for (at, &coordinate) in row[..width].iter().enumerate() {
                let product = i16::from(coordinate).wrapping_mul(i16::from(panel.coordinates[place(at, column)]));
                sum = sum.wrapping_add(product);
            }
            *score = sum.wrapping_sub(panel.bias[column]).saturating_sub(panel.offset[column]);
            scored.above[index] |= u16::from(*score > floors[index]) << column;
        }
        scored.highest[index] = scores.iter().copied().fold(i16::MIN, i16::max);
    }
}

/// # Safety
/// Every row must be at least `width` bytes long, a multiple of four, and the panel sixteen times that.
#[target_feature(enable = "avx2")]
unsafe fn score_with_avx2(
    rows: [&[u8]; ROWS],
    floors: &[i16; ROWS],
    panel: &Panel<'_>,
    width: usize,
    scored: &mut Scored,
) {
    let rows = rows.map(<[u8]>::as_ptr);
    let mut columns = panel.coordinates.as_ptr();
    let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
    for at in (0..width).step_by(TOGETHER) {
        // SAFETY: 64 bytes of the panel for each four of its width; four bytes of each row before its end.
        unsafe {
            let even = _mm256_loadu_si256(columns.cast());
            let odd = _mm256_loadu_si256(columns.add(32).cast());
            columns = columns.add(COLUMNS * TOGETHER);
            for (row, sums) in rows.iter().zip(&mut sums) {
                let coordinates = _mm256_set1_epi32(row.add(at).cast::<i32>().read_unaligned());
                sums[0] = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(coordinates, even));
                sums[1] = _mm256_add_epi16(sums[1], _mm256_maddubs_epi16(coordinates, odd));
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        // A column has two sums side by side: the even ones end in their lower halves, the odd ones in their upper.
        let even = _mm256_add_epi16(sums[0], _mm256_srli_epi32(sums[0], 16));
        let odd = _mm256_add_epi16(sums[1], _mm256_slli_epi32(sums[1], 16));
        finish(row, _mm256_blend_epi16(even, odd, 0b1010_1010), floors[row], panel, scored);
    }
}

/// # Safety
/// As of [`score_with_avx2`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn score_with_vnni(
    rows: [&[u8]; ROWS],
    floors: &[i16; ROWS],
    panel: &Panel<'_>,
    width: usize,
    scored: &mut Scored,
) {
    let rows = rows.map(<[u8]>::as_ptr);
    let columns = panel.coordinates.as_ptr();
    // Two sums a row: one would wait for itself.
    let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
    for at in (0..width).step_by(2 * TOGETHER) {
        for (half, at) in [at, at + TOGETHER].into_iter().enumerate() {
            if at < width {
                // SAFETY: 64 bytes of the panel for each four of its width; four bytes of each row before its end.
                unsafe {
                    let column = _mm512_loadu_si512(columns.add(at * COLUMNS).cast());
                    for (row, sums) in rows.iter().zip(&mut sums) {
                        let coordinates = _mm512_set1_epi32(row.add(at).cast::<i32>().read_unaligned());
                        sums[half] = _mm512_dpbusd_epi32(sums[half], coordinates, column);
                    }
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        // The even columns are the lower half, the odd ones the upper.
        let sums = _mm512_cvtepi32_epi16(_mm512_add_epi32(sums[0], sums[1]));
        let (even, odd) = (_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        let sums = _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd));
        finish(row, sums, floors[row], panel, scored);
    }
}

/// From the sums of a row to its scores.
#[inline]
#[target_feature(enable = "avx2")]
fn finish(row: usize, sums: __m256i, floor: i16, panel: &Panel<'_>, scored: &mut Scored) {
    let products = _mm256_sub_epi16(sums, bytemuck::cast(*panel.bias));
    let scores = _mm256_subs_epi16(products, bytemuck::cast(*panel.offset));
    scored.scores[row] = bytemuck::cast(scores);
    let above = _mm256_cmpgt_epi16(scores, _mm256_set1_epi16(floor));
    let above = _mm_packs_epi16(_mm256_castsi256_si128(above), _mm256_extracti128_si256(above, 1));
    scored.above[row] = _mm_movemask_epi8(above) as u16;
    // There is an instruction for the smallest of eight unsigned numbers: turned over, it is the largest signed one.
    let larger = _mm_max_epi16(_mm256_castsi256_si128(scores), _mm256_extracti128_si256(scores, 1));
    let turned = _mm_minpos_epu16(_mm_xor_si128(larger, _mm_set1_epi16(i16::MAX)));
    scored.highest[row] = _mm_extract_epi16(turned, 0) as i16 ^ i16::MAX;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Small coordinates, so that every sum fits: against whole numbers without limits, and against AVX2 and VNNI.
        #[test]
        fn scores_are_products_less_offsets(
            quads in 1_usize..20,
            seed in prop::collection::vec(any::<u8>(), 64),
            offsets in prop::array::uniform16(-20_000_i16..32_000),
            floors in prop::array::uniform6(-30_000_i16..20_000),
        ) {
            let width = quads * TOGETHER;
            let draw = |at: usize| seed[at % seed.len()].wrapping_mul((at / seed.len()) as u8 * 2 + 1);
            let rows: Vec<Vec<u8>> =
                (0..ROWS).map(|row| (0..width).map(|at| ZERO - 20 + draw(row * width + at) % 41).collect()).collect();
            let mut coordinates = vec![0; width * COLUMNS];
            let mut bias = [0; COLUMNS];
            let column_at = |column: usize, at: usize| (draw(7 * column + 3 * at + 11) % 35) as i8 - 17;
            for (column, bias) in bias.iter_mut().enumerate() {
                for at in 0..width {
                    coordinates[place(at, column)] = column_at(column, at);
                    *bias = i16::wrapping_add(*bias, 128 * i16::from(column_at(column, at)));
                }
            }
            let panel = Panel { coordinates: &coordinates, bias: &bias, offset: &offsets };
            let rows: [&[u8]; ROWS] = std::array::from_fn(|row| rows[row].as_slice());
            let mut defined = Scored::default();
            plain(rows, &floors, &panel, width, &mut defined);
            for row in 0..ROWS {
                for (column, &offset) in offsets.iter().enumerate() {
                    let product: i32 = (0..width)
                        .map(|at| (i32::from(rows[row][at]) - i32::from(ZERO)) * i32::from(column_at(column, at)))
                        .sum();
                    let expected = (product - i32::from(offset)).clamp(-32_768, 32_767);
                    prop_assert_eq!(i32::from(defined.scores[row][column]), expected);
                    let is_above = defined.above[row] >> column & 1 == 1;
                    prop_assert_eq!(is_above, expected > i32::from(floors[row]));
                }
                prop_assert_eq!(Some(&defined.highest[row]), defined.scores[row].iter().max());
            }
            let mut found = Scored::default();
            if is_fast() {
                // SAFETY: the processor has AVX2, and the rows are as wide as the panel.
                unsafe { score_with_avx2(rows, &floors, &panel, width, &mut found) };
                prop_assert_eq!(found, defined);
            }
            let mut found = Scored::default();
            score(rows, &floors, &panel, &mut found);
            prop_assert_eq!(found, defined);
        }

        #[test]
        fn bounds_are_distances_rounded_down(highest in prop::collection::vec(any::<i16>(), 1..40)) {
            let bound = Bound { square: 2.5, margin: 700.0, twice_step: 1e-4, scale: 20_000.0 };
            let mut bounds = vec![77; highest.len()];
            set_bounds(&highest, bound, &mut bounds);
            for (&score, &found) in highest.iter().zip(&bounds) {
                let exact = (2.5 - 1e-4 * (f64::from(score) + 700.0)).max(0.0).sqrt() * 20_000.0;
                match score {
                    i16::MIN => prop_assert_eq!(found, 77),
                    i16::MAX => prop_assert_eq!(found, 0),
                    _ => prop_assert!((f64::from(found) - exact.min(65_535.0)).abs() <= 1.5, "{} {}", found, exact),
                }
            }
        }

        #[test]
        fn bounds_are_lowered_and_compared(
            bounds in prop::collection::vec((any::<u16>(), 0_u16..9_000), 1..50),
            limit in any::<u16>(),
        ) {
            let (mut found, drift): (Vec<u16>, Vec<u16>) = bounds.into_iter().unzip();
            let mut plain = found.clone();
            let mut flags = vec![[7_u16; 2]; found.len().div_ceil(FLAGS)];
            let (mut left, mut right): (Vec<u16>, Vec<u16>) = flags.drain(..).map(|[left, right]| (left, right)).unzip();
            lower_bounds(&mut found, &drift, limit, &mut left);
            lower_each_bound(&mut plain, &drift, limit, &mut right);
            prop_assert_eq!(&found, &plain);
            prop_assert_eq!(&left, &right);
            for (at, &bound) in found.iter().enumerate() {
                prop_assert_eq!(left[at / FLAGS] >> (at % FLAGS) & 1 == 1, bound <= limit);
            }
        }

    }
}
