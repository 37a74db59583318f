//! Resampling sixteen values at once, on processors with AVX2.
//!
//! Four rows of the view are made together. Each is blended from rows of the picture as bytes lie there ([`blend_rows`]); the
//! four are then interleaved so that one vector holds a column of four pixels with four values each, the last of them idle
//! ([`interleave`]); so a pixel of the view, in all four rows, is one multiplication for each column it is made of
//! ([`blend_columns`]), and only its bytes are left to be put in order ([`write`]).
//!
//! Whole vectors are read from the rows of the picture, past the last column that is used. Rows whose vectors would end beyond
//! the buffer are copied first; what is read past a row is never used.

use super::Picture;
use super::axis::Axis;
use bytemuck::{cast, cast_slice};
use std::arch::x86_64::*;

/// Sixteen values.
type Vector = [i16; 16];

/// Rows of a view that are made together.
const ROWS: usize = 4;
/// Bytes of a row that are blended at once.
const CHUNK: usize = 32;

/// Room for four rows of a view on their way.
#[derive(Debug, Default)]
pub(super) struct Bands {
    /// Blended rows, two vectors for each chunk of bytes.
    rows: [Vec<Vector>; ROWS],
    /// The columns of all four.
    columns: Vec<Vector>,
    /// Pixels of the view, a byte that is not used after each: four rows for each column.
    shown: Vec<[u32; ROWS]>,
    /// Copies of the rows at the end of the buffer.
    spare: Vec<u8>,
}

impl Bands {
    /// Bytes that are kept.
    pub(super) fn bytes(&self) -> usize {
        let rows = self.rows.iter().map(Vec::capacity).sum::<usize>();
        (rows + self.columns.capacity()) * size_of::<Vector>()
            + self.shown.capacity() * size_of::<[u32; ROWS]>()
            + self.spare.capacity()
    }
}

/// Fills `view`, `[size, size, 3]`; false, and nothing done, on a processor without AVX2.
pub(super) fn resample(
    picture: Picture<'_>,
    columns: &Axis,
    rows: &Axis,
    view: &mut [u8],
    size: usize,
    bands: &mut Bands,
) -> bool {
    let has_avx2 = is_x86_feature_detected!("avx2");
    if has_avx2 {
        // SAFETY: the processor has what the function is compiled for.
        unsafe { resample_with(picture, columns, rows, view, size, bands) };
    }
    has_avx2
}

#[target_feature(enable = "avx2")]
fn resample_with(picture: Picture<'_>, columns: &Axis, rows: &Axis, view: &mut [u8], size: usize, bands: &mut Bands) {
    let (from, to) = columns.used();
    let chunks = ((to - from) * 3).div_ceil(CHUNK);
    for row in &mut bands.rows {
        // two pixels are taken out of sixteen bytes, of which the last four may lie beyond them
        row.resize(2 * chunks + 1, [0; 16]);
    }
    bands.columns.resize((to - from).next_multiple_of(2), [0; 16]);
    bands.shown.resize(size.next_multiple_of(4), [0; ROWS]);
    let lines = Lines::new(picture, from, chunks * CHUNK, &mut bands.spare);
    for (band, shown) in view.chunks_mut(ROWS * size * 3).enumerate() {
        for (row, place) in bands.rows.iter_mut().zip(band * ROWS..rows.len()) {
            let (first, weights) = rows.pixel(place);
            blend_rows(&lines, first, weights, row);
        }
        interleave(&bands.rows, &mut bands.columns);
        match columns.taps() {
            2 => blend_columns::<2>(&bands.columns, from, columns, &mut bands.shown),
            3 => blend_columns::<3>(&bands.columns, from, columns, &mut bands.shown),
            4 => blend_columns::<4>(&bands.columns, from, columns, &mut bands.shown),
            _ => blend_columns::<0>(&bands.columns, from, columns, &mut bands.shown),
        }
        write(&bands.shown, shown, size);
    }
}

/// The rows of a picture from one byte on, in whole chunks.
struct Lines<'a> {
    rgb: &'a [u8],
    pitch: usize,
    from: usize,
    length: usize,
    /// The first row whose chunks would end beyond the buffer.
    first_spare: usize,
    spare: &'a [u8],
}

impl<'a> Lines<'a> {
    fn new(picture: Picture<'a>, from: usize, length: usize, spare: &'a mut Vec<u8>) -> Self {
        let (pitch, from) = (picture.width * 3, from * 3);
        let fitting = picture.rgb.len().checked_sub(from + length).map_or(0, |rest| rest / pitch + 1);
        let first_spare = fitting.min(picture.height);
        spare.clear();
        for row in first_spare..picture.height {
            let stored = &picture.rgb[row * pitch + from..(row + 1) * pitch];
            let stored = &stored[..stored.len().min(length)];
            spare.extend_from_slice(stored);
            spare.resize((row + 1 - first_spare) * length, 0);
        }
        Self { rgb: picture.rgb, pitch, from, length, first_spare, spare }
    }

    fn chunks(&self, row: usize) -> &[[u8; CHUNK]] {
        let bytes = match row.checked_sub(self.first_spare) {
            None => &self.rgb[row * self.pitch + self.from..][..self.length],
            Some(spare) => &self.spare[spare * self.length..][..self.length],
        };
        bytes.as_chunks().0
    }
}

/// One row of a view out of rows of the picture from `first` on.
#[target_feature(enable = "avx2")]
fn blend_rows(lines: &Lines<'_>, first: usize, weights: &[i16], blended: &mut [Vector]) {
    let (blended, _) = blended.as_chunks_mut::<2>();
    let line = |tap: usize| lines.chunks(first + tap);
    let (mut done, mut is_first) = (0, true);
    while let Some(rest) = weights.get(done..).filter(|rest| !rest.is_empty()) {
        let taken = match *rest {
            [a, b, c, d, ..] => {
                let lines = [line(done), line(done + 1), line(done + 2), line(done + 3)];
                add_lines(lines, [a, b, c, d], is_first, blended)
            }
            [a, b, c] => add_lines([line(done), line(done + 1), line(done + 2)], [a, b, c], is_first, blended),
            [a, b] => add_lines([line(done), line(done + 1)], [a, b], is_first, blended),
            [a, ..] => add_lines([line(done)], [a], is_first, blended),
            [] => break,
        };
        (done, is_first) = (done + taken, false);
    }
    // `unpack` has left bytes 0 to 7 and 16 to 23 in the first vector of a chunk, the others in the second
    for [low, high] in blended {
        let (a, b): (__m256i, __m256i) = (cast(*low), cast(*high));
        *low = cast(_mm256_permute2x128_si256::<0x20>(a, b));
        *high = cast(_mm256_permute2x128_si256::<0x31>(a, b));
    }
}

/// Adds weighted lines to what is there, or begins with them; says how many.
#[target_feature(enable = "avx2")]
fn add_lines<const N: usize>(
    lines: [&[[u8; CHUNK]]; N],
    weights: [i16; N],
    is_first: bool,
    sums: &mut [[Vector; 2]],
) -> usize {
    let (zero, flip) = (_mm256_setzero_si256(), _mm256_set1_epi8(i8::MIN));
    let mut factors = [zero; N];
    let mut bytes: [&[[u8; CHUNK]]; N] = [&[]; N];
    let chunks = lines[0].len().min(sums.len());
    for k in 0..N {
        factors[k] = _mm256_set1_epi16(weights[k]);
        bytes[k] = &lines[k][..chunks];
    }
    for (i, sum) in sums[..chunks].iter_mut().enumerate() {
        let (mut low, mut high) = if is_first { (zero, zero) } else { (cast(sum[0]), cast(sum[1])) };
        for k in 0..N {
            let levels = _mm256_xor_si256(cast(bytes[k][i]), flip);
            let (a, b) = (_mm256_unpacklo_epi8(zero, levels), _mm256_unpackhi_epi8(zero, levels));
            low = _mm256_adds_epi16(low, _mm256_mulhrs_epi16(a, factors[k]));
            high = _mm256_adds_epi16(high, _mm256_mulhrs_epi16(b, factors[k]));
        }
        *sum = [cast(low), cast(high)];
    }
    N
}

/// Columns of four rows out of the rows: pixels of three values become pixels of four.
#[target_feature(enable = "avx2")]
fn interleave(rows: &[Vec<Vector>; ROWS], columns: &mut [Vector]) {
    /// Bytes of two pixels.
    const PAIR: usize = 12;
    let (pairs, _) = columns.as_chunks_mut::<2>();
    let needed = (pairs.len() - 1) * PAIR + 16;
    let bytes = |row: usize| &cast_slice::<Vector, u8>(&rows[row])[..needed];
    let bytes = [bytes(0), bytes(1), bytes(2), bytes(3)];
    let spread: __m128i = cast([0_u8, 1, 2, 3, 4, 5, 0x80, 0x80, 6, 7, 8, 9, 10, 11, 0x80, 0x80]);
    for (i, pair) in pairs.iter_mut().enumerate() {
        let take = |row: usize| {
            let mut two = [0; 16];
            two.copy_from_slice(&bytes[row][PAIR * i..][..16]);
            _mm_shuffle_epi8(cast(two), spread)
        };
        let (a, b, c, d) = (take(0), take(1), take(2), take(3));
        let left = [_mm_unpacklo_epi64(a, b), _mm_unpacklo_epi64(c, d)];
        let right = [_mm_unpackhi_epi64(a, b), _mm_unpackhi_epi64(c, d)];
        *pair = [cast(left), cast(right)];
    }
}

/// Pixels of the view out of columns from `from` on. `TAPS` is their number for each pixel, or 0 for any.
#[target_feature(enable = "avx2")]
fn blend_columns<const TAPS: usize>(columns: &[Vector], from: usize, axis: &Axis, shown: &mut [[u32; ROWS]]) {
    let taps = if TAPS == 0 { axis.taps() } else { TAPS };
    let half = _mm256_set1_epi16(1 << 7);
    let flip = _mm_set1_epi8(i8::MIN);
    for ((first, weights), shown) in axis.pixels().zip(shown) {
        let (columns, weights) = (&columns[first - from..][..taps], &weights[..taps]);
        let mut sum = _mm256_setzero_si256();
        for k in 0..taps {
            let product = _mm256_mulhrs_epi16(cast(columns[k]), _mm256_set1_epi16(weights[k]));
            sum = _mm256_adds_epi16(sum, product);
        }
        let whole = _mm256_srai_epi16::<8>(_mm256_adds_epi16(sum, half));
        let bytes = _mm_packs_epi16(_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
        *shown = cast(_mm_xor_si128(bytes, flip));
    }
}

/// Writes up to four rows of the view, `[rows, size, 3]`, leaving out the idle byte of each pixel.
#[target_feature(enable = "avx2")]
fn write(shown: &[[u32; ROWS]], view: &mut [u8], size: usize) {
    let close_up: __m128i = cast([0_u8, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 0x80, 0x80, 0x80, 0x80]);
    let mut lines = view.chunks_exact_mut(size * 3);
    let mut line = || lines.next().unwrap_or_default();
    let lines = [line(), line(), line(), line()];
    for (i, four) in shown.as_chunks::<4>().0.iter().enumerate() {
        let [a, b, c, d]: [__m128i; 4] = [cast(four[0]), cast(four[1]), cast(four[2]), cast(four[3])];
        let (upper, lower) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
        let (upper_right, lower_right) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
        let put = |line: &mut [u8], pixels: __m128i| put(line, 12 * i, cast(_mm_shuffle_epi8(pixels, close_up)));
        put(lines[0], _mm_unpacklo_epi64(upper, upper_right));
        put(lines[1], _mm_unpackhi_epi64(upper, upper_right));
        put(lines[2], _mm_unpacklo_epi64(lower, lower_right));
        put(lines[3], _mm_unpackhi_epi64(lower, lower_right));
    }
}

/// Writes four pixels, and where there is room the idle bytes behind them too, over which the next four come: one store.
#[inline]
fn put(line: &mut [u8], at: usize, pixels: [u8; 16]) {
    match line.get_mut(at..at + 16) {
        Some(place) => place.copy_from_slice(&pixels),
        None => {
            let place = line.get_mut(at..).unwrap_or_default();
            let count = place.len().min(12);
            place[..count].copy_from_slice(&pixels[..count]);
        }
    }
}
