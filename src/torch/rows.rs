//! Single rows of numbers, as k-means goes through them: distances, sums, and copies in whole numbers.
//!
//! Each gives the same outcome to the last bit on every processor.

use super::vectors::compiled_for_vectors;
use std::arch::x86_64::*;

/// Numbers that are gone through side by side.
const LANES: usize = 16;

compiled_for_vectors! {
    /// Sum of squared differences, over 32 running sums: the same to the last bit on every processor.
    pub fn squared_distance(left: &[f32], right: &[f32]) -> f32 = sum_of_squares
}

/// Rows that [`products`] goes through side by side.
pub const PRODUCTS: usize = 4;

/// The products of a row of coordinates of 16 bits with four others as long, in 32 bits that wrap: right where the whole of it fits.
pub fn products(row: &[i16], others: [&[i16]; PRODUCTS]) -> [i32; PRODUCTS] {
    assert!(others.iter().all(|other| other.len() == row.len()), "rows of one length");
    if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { products_with_vnni(row, others) };
    }
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { products_with_avx2(row, others) };
    }
    with_rest([0; PRODUCTS], row, others, 0)
}

fn product_of_each(left: &[i16], right: &[i16]) -> i32 {
    let products = left.iter().zip(right).map(|(&left, &right)| i32::from(left).wrapping_mul(i32::from(right)));
    products.fold(0, i32::wrapping_add)
}

#[target_feature(enable = "avx2")]
fn products_with_avx2(row: &[i16], others: [&[i16]; PRODUCTS]) -> [i32; PRODUCTS] {
    let mut sums = [_mm256_setzero_si256(); PRODUCTS];
    let whole = row.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        // SAFETY: 16 numbers of each row from `at` on.
        unsafe {
            let left = _mm256_loadu_si256(row.as_ptr().add(at).cast());
            for (sum, other) in sums.iter_mut().zip(&others) {
                let right = _mm256_loadu_si256(other.as_ptr().add(at).cast());
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(left, right));
            }
        }
    }
    with_rest(add_up(sums), row, others, whole)
}

/// Each to one number.
#[inline]
#[target_feature(enable = "avx2")]
fn add_up(sums: [__m256i; PRODUCTS]) -> [i32; PRODUCTS] {
    let halves = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
    bytemuck::cast(_mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)))
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vnni")]
fn products_with_vnni(row: &[i16], others: [&[i16]; PRODUCTS]) -> [i32; PRODUCTS] {
    let mut sums = [_mm512_setzero_si512(); PRODUCTS];
    let whole = row.len() / (2 * LANES) * (2 * LANES);
    for at in (0..whole).step_by(2 * LANES) {
        // SAFETY: 32 numbers of each row from `at` on.
        unsafe {
            let left = _mm512_loadu_si512(row.as_ptr().add(at).cast());
            for (sum, other) in sums.iter_mut().zip(&others) {
                *sum = _mm512_dpwssd_epi32(*sum, left, _mm512_loadu_si512(other.as_ptr().add(at).cast()));
            }
        }
    }
    // Halves are folded until each is four numbers, which are added up as AVX2 does.
    let mut folded = [_mm256_setzero_si256(); PRODUCTS];
    for (folded, sum) in folded.iter_mut().zip(sums) {
        *folded = _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
    }
    with_rest(add_up(folded), row, others, whole)
}

/// Adds the products from `start` on, which filled no vector.
#[inline(always)]
fn with_rest(mut sums: [i32; PRODUCTS], row: &[i16], others: [&[i16]; PRODUCTS], start: usize) -> [i32; PRODUCTS] {
    if start < row.len() {
        for (sum, other) in sums.iter_mut().zip(others) {
            *sum = sum.wrapping_add(product_of_each(&row[start..], &other[start..]));
        }
    }
    sums
}

/// What rounding a row to whole numbers has come to: sums of squares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rounded {
    /// Of the whole numbers.
    pub copy: f32,
    /// Of what the row differs by from them times the unit.
    pub error: f32,
}

compiled_for_vectors! {
    /// Rounds `row` less `origin`, over `unit`, to `codes` of 16 bits, within which it must lie.
    pub fn round_to_whole(row: &[f32], origin: &[f32], unit: f32, codes: &mut [i16]) -> Rounded = round_each
}

#[inline(always)]
fn round_each(row: &[f32], origin: &[f32], unit: f32, codes: &mut [i16]) -> Rounded {
    let (mut copies, mut errors) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let per_unit = 1.0 / unit;
    let round = |entry: f32| {
        let (code, whole) = to_whole(entry * per_unit);
        (code, whole, entry - whole * unit)
    };
    let (rows, row_rest) = row.as_chunks::<LANES>();
    let (origins, origin_rest) = origin.as_chunks::<LANES>();
    let (blocks, code_rest) = codes.as_chunks_mut::<LANES>();
    for ((row, origin), codes) in rows.iter().zip(origins).zip(blocks) {
        for lane in 0..LANES {
            let (code, whole, off) = round(row[lane] - origin[lane]);
            codes[lane] = code;
            copies[lane] += whole * whole;
            errors[lane] += off * off;
        }
    }
    for (lane, ((row, origin), code)) in row_rest.iter().zip(origin_rest).zip(code_rest).enumerate() {
        let (rounded, whole, off) = round(row - origin);
        *code = rounded;
        copies[lane] += whole * whole;
        errors[lane] += off * off;
    }
    Rounded { copy: copies.iter().sum(), error: errors.iter().sum() }
}

compiled_for_vectors! {
    /// The largest entry of `row` less `origin`, either way; of numbers alone.
    pub fn largest(row: &[f32], origin: &[f32]) -> f32 = largest_of_each
}

#[inline(always)]
fn largest_of_each(row: &[f32], origin: &[f32]) -> f32 {
    let mut most = [0.0_f32; LANES];
    let (rows, row_rest) = row.as_chunks::<LANES>();
    let (origins, origin_rest) = origin.as_chunks::<LANES>();
    for (row, origin) in rows.iter().zip(origins) {
        for lane in 0..LANES {
            let entry = (row[lane] - origin[lane]).abs();
            most[lane] = if entry > most[lane] { entry } else { most[lane] };
        }
    }
    let rest = row_rest.iter().zip(origin_rest).map(|(entry, origin)| (entry - origin).abs());
    rest.chain(most).fold(0.0, f32::max)
}

compiled_for_vectors! {
    /// Adds `row` to `sums`.
    pub fn add(sums: &mut [f64], row: &[f32]) = add_each
}

#[inline(always)]
fn add_each(sums: &mut [f64], row: &[f32]) {
    for (sum, &entry) in sums.iter_mut().zip(row) {
        *sum += f64::from(entry);
    }
}

compiled_for_vectors! {
    /// Rounds `row` less `origin`, over `unit`, to as many bytes around 128, cut to 127 either way.
    pub fn round_to_bytes(row: &[f32], origin: &[f32], unit: f32, bytes: &mut [u8]) -> Rounded = bytes_of_each
}

#[inline(always)]
fn bytes_of_each(row: &[f32], origin: &[f32], unit: f32, bytes: &mut [u8]) -> Rounded {
    let (mut copies, mut errors) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let per_unit = 1.0 / unit;
    let round = |entry: f32| {
        let (_, whole) = to_whole((entry * per_unit).clamp(-127.0, 127.0) + 128.0);
        (whole as u8, whole - 128.0, entry - (whole - 128.0) * unit)
    };
    let (rows, row_rest) = row.as_chunks::<LANES>();
    let (origins, origin_rest) = origin.as_chunks::<LANES>();
    let (blocks, byte_rest) = bytes.as_chunks_mut::<LANES>();
    for ((row, origin), bytes) in rows.iter().zip(origins).zip(blocks) {
        for lane in 0..LANES {
            let (byte, whole, off) = round(row[lane] - origin[lane]);
            bytes[lane] = byte;
            copies[lane] += whole * whole;
            errors[lane] += off * off;
        }
    }
    for (lane, ((row, origin), into)) in row_rest.iter().zip(origin_rest).zip(byte_rest).enumerate() {
        let (byte, whole, off) = round(row - origin);
        *into = byte;
        copies[lane] += whole * whole;
        errors[lane] += off * off;
    }
    Rounded { copy: copies.iter().sum(), error: errors.iter().sum() }
}

/// The nearest whole number of less than 22 bits, and its last 16.
#[inline(always)]
fn to_whole(entry: f32) -> (i16, f32) {
    // 1.5 · 2^23: what is below one does not fit beside it, and the last bits are those of the whole number.
    const SHIFT: f32 = 12_582_912.0;
    let shifted = entry + SHIFT;
    (shifted.to_bits() as i16, shifted - SHIFT)
}

compiled_for_vectors! {
    /// Adds `entries`, each times `scale`, less than 2^51 then, and rounded to a whole number, to `sums`, which wrap.
    pub fn accumulate(sums: &mut [i64], entries: &[f32], scale: f32) = accumulate_each
}

#[inline(always)]
fn accumulate_each(sums: &mut [i64], entries: &[f32], scale: f32) {
    // 1.5 · 2^52, as for `to_whole`.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    for (sum, &entry) in sums.iter_mut().zip(entries) {
        let shifted = f64::from(entry) * f64::from(scale) + SHIFT;
        *sum = sum.wrapping_add((shifted.to_bits() as i64).wrapping_sub(SHIFT.to_bits() as i64));
    }
}

#[inline(always)]
fn sum_of_squares(left: &[f32], right: &[f32]) -> f32 {
    const SUMS: usize = 32;
    let mut sums = [0.0_f32; SUMS];
    let (left_blocks, right_blocks) = (left.chunks_exact(SUMS), right.chunks_exact(SUMS));
    let rest = left_blocks.remainder().iter().zip(right_blocks.remainder());
    for (left, right) in left_blocks.zip(right_blocks) {
        for lane in 0..SUMS {
            let difference = left[lane] - right[lane];
            sums[lane] += difference * difference;
        }
    }
    for (sum, (left, right)) in sums.iter_mut().zip(rest) {
        *sum += (left - right) * (left - right);
    }
    let mut half = SUMS / 2;
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

        #[test]
        fn products_of_16_bits_are_exact_where_they_fit(entries in prop::collection::vec((any::<i16>(), -9_i16..9), 0..110)) {
            let (row, first): (Vec<i16>, Vec<i16>) = entries.into_iter().unzip();
            let others: [Vec<i16>; PRODUCTS] = std::array::from_fn(|at| first.iter().map(|entry| entry - at as i16).collect());
            let borrowed = std::array::from_fn(|at| others[at].as_slice());
            let exact = |other: &[i16]| -> i64 { row.iter().zip(other).map(|(left, right)| i64::from(*left) * i64::from(*right)).sum() };
            prop_assert_eq!(products(&row, borrowed).map(i64::from), borrowed.map(exact));
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                prop_assert_eq!(unsafe { products_with_avx2(&row, borrowed) }.map(i64::from), borrowed.map(exact));
            }
        }

        #[test]
        fn rounding_is_to_the_nearest(row in prop::collection::vec(-30_000_f32..30_000.0, 0..70)) {
            let origin: Vec<f32> = row.iter().map(|entry| entry * 0.25).collect();
            let mut codes = vec![0; row.len()];
            let found = round_to_whole(&row, &origin, 2.0, &mut codes);
            let (mut copy, mut error) = (0.0, 0.0);
            for ((&entry, &origin), &code) in row.iter().zip(&origin).zip(&codes) {
                let exact = (f64::from(entry) - f64::from(origin)) / 2.0;
                prop_assert!((f64::from(code) - exact).abs() <= 0.501, "{} {}", exact, code);
                copy += f64::from(code).powi(2);
                error += (2.0 * (exact - f64::from(code))).powi(2);
            }
            prop_assert!((f64::from(found.copy) - copy).abs() <= 1e-5 * copy);
            prop_assert!((f64::from(found.error) - error).abs() <= 0.02 * error + 0.01);
            let mut plain = codes.clone();
            prop_assert_eq!(round_each(&row, &origin, 2.0, &mut plain), found);
            prop_assert_eq!(plain, codes);
        }

        #[test]
        fn bytes_are_rounded_and_cut(row in prop::collection::vec(-30_f32..30.0, 0..70)) {
            let origin: Vec<f32> = row.iter().map(|entry| entry * 0.25).collect();
            let mut bytes = vec![0; row.len()];
            let found = round_to_bytes(&row, &origin, 0.125, &mut bytes);
            let (mut copy, mut error) = (0.0, 0.0);
            for ((&entry, &origin), &byte) in row.iter().zip(&origin).zip(&bytes) {
                let exact = (f64::from(entry) - f64::from(origin)) / 0.125;
                let whole = f64::from(byte) - 128.0;
                prop_assert!((whole - exact.clamp(-127.0, 127.0)).abs() <= 0.501, "{} {}", exact, byte);
                copy += whole.powi(2);
                error += (0.125 * (exact - whole)).powi(2);
            }
            prop_assert!((f64::from(found.copy) - copy).abs() <= 1e-5 * copy);
            prop_assert!((f64::from(found.error) - error).abs() <= 1e-3 * error + 1e-6);
            let mut plain = bytes.clone();
            prop_assert_eq!(bytes_of_each(&row, &origin, 0.125, &mut plain), found);
            prop_assert_eq!(plain, bytes);
            let most = row.iter().zip(&origin).map(|(entry, origin)| (entry - origin).abs()).fold(0.0, f32::max);
            prop_assert_eq!(largest(&row, &origin), most);
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
