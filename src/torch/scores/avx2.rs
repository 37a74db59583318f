//! Scores with AVX2: products of bytes in pairs, added up in 16 bits that wrap. A sum is right whenever the whole of it fits,
//! whatever its parts do.

use super::{COLUMNS, Panel, ROWS, Scorer, TOGETHER};
use std::arch::x86_64::*;

/// Rows that go through a panel together: as many as there are registers for.
const SIDE_BY_SIDE: usize = 6;

impl Scorer<'_> {
    /// # Safety
    /// The processor must have AVX2, and the panel must be as wide as the rows.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn score_with_avx2(&mut self, floors: &[i32; ROWS], panel: &Panel<'_>) -> u64 {
        let mut hits = 0;
        for first in (0..self.count).step_by(SIDE_BY_SIDE) {
            let rows: [*const u8; SIDE_BY_SIDE] = std::array::from_fn(|at| {
                self.block()[(first + at).min(self.count - 1) * self.width..][..self.width].as_ptr()
            });
            // SAFETY: six rows of the width that the panel has.
            let sums = unsafe { sums(rows, panel, self.width) };
            for (at, sums) in sums.into_iter().enumerate().take(self.count - first) {
                hits |= self.finish_with_avx2(first + at, sums, floors[first + at], panel);
            }
        }
        hits
    }

    /// From the sums of a row to its scores.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn finish_with_avx2(&mut self, row: usize, sums: [__m256i; 2], floor: i32, panel: &Panel<'_>) -> u64 {
        let (bias, offset): ([__m256i; 2], [__m256i; 2]) = (bytemuck::cast(*panel.bias), bytemuck::cast(*panel.offset));
        let mut scores = [_mm256_setzero_si256(); 2];
        let mut above = 0;
        for half in 0..2 {
            // A column has two sums side by side: together they end in the lower half, whose sign goes into the upper.
            let sum = _mm256_add_epi16(sums[half], _mm256_srli_epi32(sums[half], 16));
            let product = _mm256_sub_epi32(sum, bias[half]);
            let product = _mm256_srai_epi32(_mm256_slli_epi32(product, 16), 16);
            scores[half] = _mm256_sub_epi32(product, offset[half]);
            let is_above = _mm256_cmpgt_epi32(scores[half], _mm256_set1_epi32(floor));
            above |= (_mm256_movemask_ps(_mm256_castsi256_ps(is_above)) as u16) << (8 * half);
        }
        self.scores[row].0 = bytemuck::cast(scores);
        self.above[row] = above;
        u64::from(above != 0) << row
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn find_highest_with_avx2(&mut self) {
        self.find_highest();
    }
}

/// Of each row, for the first eight columns and for the others: two sums a column.
///
/// # Safety
/// Every row must be at least `width` bytes long, a multiple of four, and the panel sixteen times that.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn sums(rows: [*const u8; SIDE_BY_SIDE], panel: &Panel<'_>, width: usize) -> [[__m256i; 2]; SIDE_BY_SIDE] {
    let mut columns = panel.coordinates.as_ptr();
    let mut sums = [[_mm256_setzero_si256(); 2]; SIDE_BY_SIDE];
    for at in (0..width).step_by(TOGETHER) {
        // SAFETY: 64 bytes of the panel for each four of its width; four bytes of each row before its end.
        unsafe {
            let first = _mm256_loadu_si256(columns.cast());
            let second = _mm256_loadu_si256(columns.add(32).cast());
            columns = columns.add(COLUMNS * TOGETHER);
            for (row, sums) in rows.iter().zip(&mut sums) {
                let coordinates = _mm256_set1_epi32(row.add(at).cast::<i32>().read_unaligned());
                sums[0] = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(coordinates, first));
                sums[1] = _mm256_add_epi16(sums[1], _mm256_maddubs_epi16(coordinates, second));
            }
        }
    }
    sums
}
