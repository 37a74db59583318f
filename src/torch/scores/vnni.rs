//! Scores with AVX-512 and VNNI: 64 products of bytes with an instruction, added up in 32 bits.

use super::{COLUMNS, Columns, Panel, ROWS, Scorer, TOGETHER};
use std::arch::x86_64::*;

/// Rows that go through a panel together: two sums each, so that none waits for itself, keep both units busy.
const SIDE_BY_SIDE: usize = 6;

impl Scorer<'_> {
    /// # Safety
    /// The processor must have AVX-512 F, BW and VNNI, and the panel must be as wide as the rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) unsafe fn score_with_vnni(&mut self, floors: &[i32; ROWS], panel: &Panel<'_>) -> u64 {
        for first in (0..self.count).step_by(SIDE_BY_SIDE) {
            let rows: [*const u8; SIDE_BY_SIDE] = std::array::from_fn(|at| {
                self.block()[(first + at).min(self.count - 1) * self.width..][..self.width].as_ptr()
            });
            // SAFETY: six rows of the width that the panel has.
            let sums = unsafe { sums(rows, panel, self.width) };
            for (scores, sums) in self.scores[first..self.count].iter_mut().zip(sums) {
                scores.0 = bytemuck::cast(sums);
            }
        }
        // SAFETY: as above.
        unsafe { self.finish_with_avx512(floors, panel) }
    }

    /// From sums, which stand where scores are to stand, to scores.
    ///
    /// # Safety
    /// The processor must have AVX-512 F and BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn finish_with_avx512(&mut self, floors: &[i32; ROWS], panel: &Panel<'_>) -> u64 {
        let (bias, offset): (__m512i, __m512i) = (bytemuck::cast(*panel.bias), bytemuck::cast(*panel.offset));
        let less = _mm512_add_epi32(bias, offset);
        // Rows beyond the block too: a loop of known length is twice as fast.
        for ((scores, &floor), above) in self.scores.iter_mut().zip(floors).zip(&mut self.above) {
            let found = _mm512_sub_epi32(bytemuck::cast::<Columns, __m512i>(scores.0), less);
            scores.0 = bytemuck::cast(found);
            *above = _mm512_cmpgt_epi32_mask(found, _mm512_set1_epi32(floor));
        }
        let halves: [__m512i; 2] = bytemuck::cast(self.above);
        let [first, second] = halves.map(|half| u64::from(_mm512_test_epi16_mask(half, half)));
        let beyond = u64::MAX.checked_shl(self.count as u32).unwrap_or(0);
        (first | second << 32) & !beyond
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn find_highest_with_avx512(&mut self) {
        for (highest, scores) in self.highest.iter_mut().zip(&self.scores[..self.count]) {
            *highest = _mm512_reduce_max_epi32(bytemuck::cast(scores.0));
        }
    }
}

/// Of each row, for each column.
///
/// # Safety
/// Every row must be at least `width` bytes long, a multiple of four, and the panel sixteen times that.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn sums(rows: [*const u8; SIDE_BY_SIDE], panel: &Panel<'_>, width: usize) -> [__m512i; SIDE_BY_SIDE] {
    let columns = panel.coordinates.as_ptr();
    let mut sums = [[_mm512_setzero_si512(); 2]; SIDE_BY_SIDE];
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
    sums.map(|[left, right]| _mm512_add_epi32(left, right))
}
