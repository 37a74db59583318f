//! Products of small whole numbers, six rows by sixteen columns at once: how k-means finds out which centroids may be near.
//!
//! In: rows of bytes, each a coordinate plus 128; a panel of sixteen columns of coordinates within ±63. Out: for each pair
//! `row · column - offset`, saturated to 16 bits, and the largest of each row. Products are summed in 16 bits
//! that wrap, so a sum is right whenever the whole of it fits, whatever its parts do: the caller sees to
//! `|row| |column| <= 32767`. A multiplication of AVX2 (`pmaddubsw`) takes 32 such pairs where a fused one takes 8 floats, which
//! is where the speed comes from: three times that of a matrix product in 32-bit floats.
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

/// Scores `rows` in a panel, and says which are above the `floors` of their rows.
///
/// # Panics
/// A row is shorter than the panel.
pub fn score(rows: [&[u8]; ROWS], floors: &[i16; ROWS], panel: &Panel<'_>, scored: &mut Scored) {
    let width = panel.coordinates.len() / COLUMNS;
    assert!(width.is_multiple_of(TOGETHER) && rows.iter().all(|row| row.len() >= width), "rows as wide as the panel");
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

/// Sum of squared differences, over 32 running sums: the same to the last bit on every processor.
pub fn squared_distance(left: &[f32], right: &[f32]) -> f32 {
    if is_fast() {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { squared_distance_with_avx2(left, right) };
    }
    sum_of_squares(left, right)
}

/// The product of two rows of coordinates of 16 bits, in 32 that wrap: right where the whole of it fits.
pub fn product(left: &[i16], right: &[i16]) -> i32 {
    if is_fast() {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { product_with_avx2(left, right) };
    }
    product_of_each(left, right)
}

#[target_feature(enable = "avx2")]
fn product_with_avx2(left: &[i16], right: &[i16]) -> i32 {
    product_of_each(left, right)
}

#[inline(always)]
fn product_of_each(left: &[i16], right: &[i16]) -> i32 {
    const LANES: usize = 16;
    let (left_blocks, right_blocks) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest = left_blocks.remainder().iter().zip(right_blocks.remainder());
    let mut sums = [0_i32; LANES / 2];
    for (left, right) in left_blocks.zip(right_blocks) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            let at = 2 * lane;
            let pair = i32::from(left[at])
                .wrapping_mul(i32::from(right[at]))
                .wrapping_add(i32::from(left[at + 1]).wrapping_mul(i32::from(right[at + 1])));
            *sum = sum.wrapping_add(pair);
        }
    }
    let sum = rest.fold(0_i32, |sum, (&left, &right)| sum.wrapping_add(i32::from(left).wrapping_mul(i32::from(right))));
    sums.iter().fold(sum, |sum, &lane| sum.wrapping_add(lane))
}

/// Adds `entries`, each times `scale` and cut to a whole number, to `sums`, which wrap.
pub fn accumulate(sums: &mut [i64], entries: &[f32], scale: f32) {
    if is_fast() {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { accumulate_with_avx2(sums, entries, scale) };
    }
    accumulate_each(sums, entries, scale);
}

#[target_feature(enable = "avx2")]
fn accumulate_with_avx2(sums: &mut [i64], entries: &[f32], scale: f32) {
    accumulate_each(sums, entries, scale);
}

#[inline(always)]
fn accumulate_each(sums: &mut [i64], entries: &[f32], scale: f32) {
    for (sum, &entry) in sums.iter_mut().zip(entries) {
        *sum = sum.wrapping_add(i64::from((entry * scale) as i32));
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
    let bias: __m256i = bytemuck::cast(*panel.bias);
    let offset: __m256i = bytemuck::cast(*panel.offset);
    for (row, sums) in sums.iter().enumerate() {
        // A column has two sums side by side: the even ones end in their lower halves, the odd ones in their upper.
        let even = _mm256_add_epi16(sums[0], _mm256_srli_epi32(sums[0], 16));
        let odd = _mm256_add_epi16(sums[1], _mm256_slli_epi32(sums[1], 16));
        let products = _mm256_sub_epi16(_mm256_blend_epi16(even, odd, 0b1010_1010), bias);
        let scores = _mm256_subs_epi16(products, offset);
        scored.scores[row] = bytemuck::cast(scores);
        let above = _mm256_cmpgt_epi16(scores, _mm256_set1_epi16(floors[row]));
        let above = _mm_packs_epi16(_mm256_castsi256_si128(above), _mm256_extracti128_si256(above, 1));
        scored.above[row] = _mm_movemask_epi8(above) as u16;
        // There is an instruction for the smallest of eight unsigned numbers: turned over, it is the largest signed one.
        let larger = _mm_max_epi16(_mm256_castsi256_si128(scores), _mm256_extracti128_si256(scores, 1));
        let turned = _mm_minpos_epu16(_mm_xor_si128(larger, _mm_set1_epi16(i16::MAX)));
        scored.highest[row] = _mm_extract_epi16(turned, 0) as i16 ^ i16::MAX;
    }
}

#[target_feature(enable = "avx2")]
fn squared_distance_with_avx2(left: &[f32], right: &[f32]) -> f32 {
    sum_of_squares(left, right)
}

#[inline(always)]
fn sum_of_squares(left: &[f32], right: &[f32]) -> f32 {
    const LANES: usize = 32;
    let mut sums = [0.0_f32; LANES];
    let (left_blocks, right_blocks) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest = left_blocks.remainder().iter().zip(right_blocks.remainder());
    for (left, right) in left_blocks.zip(right_blocks) {
        for lane in 0..LANES {
            let difference = left[lane] - right[lane];
            sums[lane] += difference * difference;
        }
    }
    for (sum, (left, right)) in sums.iter_mut().zip(rest) {
        *sum += (left - right) * (left - right);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Small coordinates, so that every sum fits: against whole numbers without limits, and against AVX2.
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
        fn products_of_16_bits_are_exact_where_they_fit(entries in prop::collection::vec((any::<i16>(), -9_i16..9), 0..70)) {
            let (left, right): (Vec<i16>, Vec<i16>) = entries.into_iter().unzip();
            let exact: i64 = left.iter().zip(&right).map(|(left, right)| i64::from(*left) * i64::from(*right)).sum();
            prop_assert_eq!(i64::from(product(&left, &right)), exact);
        }

        #[test]
        fn distances_are_the_same_on_every_processor(left in prop::collection::vec(-2_f32..2.0, 0..70)) {
            let right: Vec<f32> = left.iter().rev().map(|entry| entry * 0.7).collect();
            let exact: f64 = left.iter().zip(&right).map(|(left, right)| (f64::from(*left) - f64::from(*right)).powi(2)).sum();
            let found = squared_distance(&left, &right);
            prop_assert_eq!(found.to_bits(), sum_of_squares(&left, &right).to_bits());
            prop_assert!((f64::from(found) - exact).abs() <= 1e-6 * exact);
        }
    }
}
