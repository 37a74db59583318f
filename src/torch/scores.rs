//! Products of small whole numbers, six rows by sixteen columns at once: how k-means finds out which centroids may be near.
//!
//! In: rows of bytes, each a coordinate plus 128; a panel of sixteen columns of coordinates within ±63. Out: for each pair
//! `row · column - offset`, saturated to 16 bits, and of each row the two largest seen so far. Products are summed in 16 bits
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

/// What is known of one row while panels go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The largest score in each place of a panel.
    pub first: Scores,
    /// The second largest.
    pub second: Scores,
    /// Scores above it are told of.
    pub floor: i16,
}

impl Seen {
    /// Nothing yet.
    pub fn new(floor: i16) -> Self {
        Self { first: [i16::MIN; COLUMNS], second: [i16::MIN; COLUMNS], floor }
    }

    /// The two largest scores.
    pub fn top(&self) -> (i16, i16) {
        let mut top = (i16::MIN, i16::MIN);
        for &score in self.first.iter().chain(&self.second) {
            if score > top.0 {
                top = (score, top.0);
            } else if score > top.1 {
                top.1 = score;
            }
        }
        top
    }
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

/// Scores of `rows`, and a bit for each row that has one above its floor.
///
/// # Panics
/// A row is shorter than the panel.
pub fn score(rows: [&[u8]; ROWS], panel: &Panel<'_>, seen: &mut [Seen; ROWS], scores: &mut [Scores; ROWS]) -> u32 {
    let width = panel.coordinates.len() / COLUMNS;
    assert!(width.is_multiple_of(TOGETHER) && rows.iter().all(|row| row.len() >= width), "rows as wide as the panel");
    if is_fast() {
        // SAFETY: the processor has what the function is compiled for, and no row is shorter than the panel.
        return unsafe { score_with_avx2(rows, panel, width, seen, scores) };
    }
    plain(rows, panel, width, seen, scores)
}

/// Sum of squared differences, over 32 running sums: the same to the last bit on every processor.
pub fn squared_distance(left: &[f32], right: &[f32]) -> f32 {
    if is_fast() {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { squared_distance_with_avx2(left, right) };
    }
    sum_of_squares(left, right)
}

fn plain(
    rows: [&[u8]; ROWS],
    panel: &Panel<'_>,
    width: usize,
    seen: &mut [Seen; ROWS],
    scores: &mut [Scores; ROWS],
) -> u32 {
    let mut told = 0;
    for (index, ((row, seen), scores)) in rows.iter().zip(seen).zip(scores).enumerate() {
        for column in 0..COLUMNS {
            let mut sum = 0_i16;
            for (at, &coordinate) in row[..width].iter().enumerate() {
                let product = i16::from(coordinate).wrapping_mul(i16::from(panel.coordinates[place(at, column)]));
                sum = sum.wrapping_add(product);
            }
            let score = sum.wrapping_sub(panel.bias[column]).saturating_sub(panel.offset[column]);
            scores[column] = score;
            seen.second[column] = seen.second[column].max(score.min(seen.first[column]));
            seen.first[column] = seen.first[column].max(score);
            told |= u32::from(score > seen.floor) << index;
        }
    }
    told
}

/// # Safety
/// Every row must be at least `width` bytes long, a multiple of four, and the panel sixteen times that.
#[target_feature(enable = "avx2")]
unsafe fn score_with_avx2(
    rows: [&[u8]; ROWS],
    panel: &Panel<'_>,
    width: usize,
    seen: &mut [Seen; ROWS],
    scores: &mut [Scores; ROWS],
) -> u32 {
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
    let bias = load(panel.bias);
    let offset = load(panel.offset);
    let mut told = 0;
    for index in 0..ROWS {
        // A column has two sums side by side: the even ones end in their lower halves, the odd ones in their upper.
        let even = _mm256_add_epi16(sums[index][0], _mm256_srli_epi32(sums[index][0], 16));
        let odd = _mm256_add_epi16(sums[index][1], _mm256_slli_epi32(sums[index][1], 16));
        let products = _mm256_sub_epi16(_mm256_blend_epi16(even, odd, 0b1010_1010), bias);
        let score = _mm256_subs_epi16(products, offset);
        let seen = &mut seen[index];
        let first = load(&seen.first);
        let second = _mm256_max_epi16(load(&seen.second), _mm256_min_epi16(first, score));
        store(&mut seen.second, second);
        store(&mut seen.first, _mm256_max_epi16(first, score));
        store(&mut scores[index], score);
        let above = _mm256_movemask_epi8(_mm256_cmpgt_epi16(score, _mm256_set1_epi16(seen.floor)));
        told |= u32::from(above != 0) << index;
    }
    told
}

#[target_feature(enable = "avx2")]
fn load(scores: &Scores) -> __m256i {
    bytemuck::cast(*scores)
}

#[target_feature(enable = "avx2")]
fn store(scores: &mut Scores, values: __m256i) {
    *scores = bytemuck::cast(values);
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
            floor in -3_000_i16..3_000,
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
            let mut seen = [Seen::new(floor); ROWS];
            let mut scores = [[0; COLUMNS]; ROWS];
            let told = plain(rows, &panel, width, &mut seen, &mut scores);
            for row in 0..ROWS {
                for column in 0..COLUMNS {
                    let product: i32 = (0..width)
                        .map(|at| (i32::from(rows[row][at]) - i32::from(ZERO)) * i32::from(column_at(column, at)))
                        .sum();
                    let expected = (product - i32::from(offsets[column])).clamp(-32_768, 32_767);
                    prop_assert_eq!(i32::from(scores[row][column]), expected);
                }
                prop_assert_eq!(told >> row & 1 == 1, scores[row].iter().any(|&score| score > floor));
                let mut sorted = scores[row];
                sorted.sort_unstable();
                prop_assert_eq!(seen[row].top(), (sorted[COLUMNS - 1], sorted[COLUMNS - 2]));
            }
            // A second time: each score is its own second.
            let (mut seen_here, mut scores_here) = ([Seen::new(floor); ROWS], [[0; COLUMNS]; ROWS]);
            let told_here = score(rows, &panel, &mut seen_here, &mut scores_here);
            prop_assert_eq!((told_here, &seen_here, &scores_here), (told, &seen, &scores));
            score(rows, &panel, &mut seen_here, &mut scores_here);
            plain(rows, &panel, width, &mut seen, &mut scores);
            prop_assert_eq!(seen_here, seen);
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
