//! Products of small whole numbers, up to 64 rows by sixteen columns at once: how k-means finds out which centroids may be near.
//!
//! In: rows of bytes, each a coordinate plus 128; a panel of sixteen columns of small coordinates. Out: for each pair
//! `row · column - offset`, and the largest of each row. How fast a processor is at this decides how far coordinates may go
//! ([`Kernel::limits`]): AVX2 takes 32 products of bytes where it takes 8 of floats, but adds them up in 16 bits; AVX-512 with VNNI
//! takes 64 and AMX 16,384 with each instruction, in 32 bits.
//!
//! [`Kernel::Plain`] is the definition, and all give the same numbers within their limits.

mod amx;
mod avx2;
mod vnni;

use super::aligned::Aligned;
use std::sync::OnceLock;

/// Columns of a panel.
pub const COLUMNS: usize = 16;
/// Rows that are scored together, at most.
pub const ROWS: usize = 64;
/// What stands for a coordinate of 0 in a row.
pub const ZERO: u8 = 128;
/// Coordinates that stand side by side in a panel.
const TOGETHER: usize = 4;

/// One whole number for each column of a panel.
pub type Columns = [i32; COLUMNS];

/// Sixteen columns.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    /// `[width / 4, 16, 4]`, by [`place`].
    pub coordinates: &'a [i8],
    /// 128 times the sum of each column.
    pub bias: &'a Columns,
    /// What each column's product is lessened by.
    pub offset: &'a Columns,
}

/// Where coordinate `row` of `column` stands among the coordinates of its panel.
pub fn place(row: usize, column: usize) -> usize {
    (row / TOGETHER * COLUMNS + column) * TOGETHER + row % TOGETHER
}

/// What scores are computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Plain loops.
    Plain,
    /// AVX2.
    Avx2,
    /// AVX-512 with VNNI.
    Vnni,
    /// AMX with whole numbers of eight bits.
    Amx,
}

/// How large coordinates may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a column, either way.
    pub column: i32,
    /// `|row| |column|`.
    pub product: f64,
}

impl Kernel {
    /// The fastest that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        let fastest_first = [Self::Amx, Self::Vnni, Self::Avx2];
        *BEST.get_or_init(|| fastest_first.into_iter().find(|kernel| kernel.is_here()).unwrap_or(Self::Plain))
    }

    /// Whether this processor has it.
    pub fn is_here(self) -> bool {
        match self {
            Self::Plain => true,
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            Self::Vnni => {
                is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
            }
            // Its sums are gone through with AVX-512.
            Self::Amx => Self::Vnni.is_here() && amx::is_here(),
        }
    }

    /// How large coordinates may be for scores to be right.
    pub fn limits(self) -> Limits {
        match self {
            // Two products of a byte and 63 fit into 16 bits, and so must the whole sum.
            Self::Avx2 => Limits { column: 63, product: 32_767.0 },
            Self::Plain | Self::Vnni | Self::Amx => Limits { column: 127, product: f64::from(1 << 29) },
        }
    }

    /// Rows and panels must have a multiple of so many coordinates.
    pub fn padding(self) -> usize {
        match self {
            Self::Plain | Self::Avx2 | Self::Vnni => TOGETHER,
            Self::Amx => amx::DEPTH,
        }
    }
}

/// Scores of a row, in a line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line(Columns);

/// Scores blocks of rows in one panel after another.
pub struct Scorer<'c> {
    kernel: Kernel,
    width: usize,
    /// Held for what its being there and its end do.
    _tiles: Option<amx::Tiles>,
    /// The rows of the block where they lie, or else copies of them: [`ROWS`] of them, the last ones of no meaning where there are
    /// fewer.
    lent: Option<&'c [u8]>,
    copies: Aligned<u8>,
    count: usize,
    scores: Box<[Line; ROWS]>,
    above: [u16; ROWS],
    highest: [i32; ROWS],
}

impl<'c> Scorer<'c> {
    /// For rows of `width` bytes.
    ///
    /// # Panics
    /// The processor has no such kernel, or `width` is no multiple of [`Kernel::padding`].
    pub fn new(kernel: Kernel, width: usize) -> Self {
        assert!(kernel.is_here() && width.is_multiple_of(kernel.padding()), "a kernel and a width for it");
        Self {
            kernel,
            width,
            _tiles: (kernel == Kernel::Amx).then(amx::Tiles::new),
            lent: None,
            copies: Aligned::new(ZERO, ROWS * width),
            count: 0,
            scores: Box::new([Line([0; COLUMNS]); ROWS]),
            above: [0; ROWS],
            highest: [i32::MIN; ROWS],
        }
    }

    /// Takes a block: some of the rows that stand in `codes` one after the other. Whether they lie side by side there.
    ///
    /// # Panics
    /// There are more than [`ROWS`], or one does not stand there.
    pub fn take(&mut self, codes: &'c [u8], rows: &[u32]) -> bool {
        assert!(rows.len() <= ROWS, "a block of rows");
        self.count = rows.len();
        let first = rows.first().map_or(0, |&row| row as usize);
        let are_together = rows.iter().enumerate().all(|(at, &row)| row as usize == first + at);
        self.lent = codes.get(first * self.width..(first + ROWS) * self.width).filter(|_| are_together);
        if self.lent.is_none() {
            for (copy, &row) in self.copies.chunks_exact_mut(self.width).zip(rows) {
                copy.copy_from_slice(&codes[row as usize * self.width..][..self.width]);
            }
        }
        are_together
    }

    /// [`ROWS`] rows.
    fn block(&self) -> &[u8] {
        self.lent.unwrap_or(&self.copies)
    }

    /// Scores the block in a panel: says which rows have a score above the floor of their row, as a bit for each.
    ///
    /// # Panics
    /// The panel has another width.
    pub fn score(&mut self, floors: &[i32; ROWS], panel: &Panel<'_>) -> u64 {
        assert_eq!(panel.coordinates.len(), self.width * COLUMNS, "a panel as wide as the rows");
        match self.kernel {
            Kernel::Plain => self.score_plainly(floors, panel),
            // SAFETY: `new` has seen that the processor has it, and rows and panel have the width.
            Kernel::Avx2 => unsafe { self.score_with_avx2(floors, panel) },
            // SAFETY: likewise.
            Kernel::Vnni => unsafe { self.score_with_vnni(floors, panel) },
            // SAFETY: likewise.
            Kernel::Amx => unsafe { self.score_with_amx(floors, panel) },
        }
    }

    /// The columns of a row whose scores in the last panel are above its floor, as a bit for each.
    pub fn above(&self, row: usize) -> u16 {
        self.above[row]
    }

    /// The score of a row in the last panel.
    pub fn score_of(&self, row: usize, column: usize) -> i32 {
        self.scores[row].0[column]
    }

    /// The largest score of each row in the last panel.
    pub fn highest(&mut self) -> &[i32] {
        match self.kernel {
            // SAFETY: `new` has seen that the processor has it.
            Kernel::Vnni | Kernel::Amx => unsafe { self.find_highest_with_avx512() },
            // SAFETY: likewise.
            Kernel::Avx2 => unsafe { self.find_highest_with_avx2() },
            Kernel::Plain => self.find_highest(),
        }
        &self.highest[..self.count]
    }

    #[inline(always)]
    fn find_highest(&mut self) {
        for (highest, scores) in self.highest.iter_mut().zip(&self.scores[..self.count]) {
            *highest = scores.0.iter().copied().fold(i32::MIN, i32::max);
        }
    }

    fn score_plainly(&mut self, floors: &[i32; ROWS], panel: &Panel<'_>) -> u64 {
        for (row, &floor) in floors.iter().enumerate().take(self.count) {
            for column in 0..COLUMNS {
                let product = |at: usize| {
                    i32::from(self.block()[row * self.width + at]) * i32::from(panel.coordinates[place(at, column)])
                };
                let sum: i32 = (0..self.width).map(product).sum();
                self.scores[row].0[column] = sum - panel.bias[column] - panel.offset[column];
            }
            let above = |column: usize| u16::from(self.scores[row].0[column] > floor) << column;
            self.above[row] = (0..COLUMNS).map(above).sum();
        }
        (0..self.count).map(|row| u64::from(self.above[row] != 0) << row).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whole numbers that look random.
    fn draw(seed: u64, at: usize) -> i64 {
        let mixed = (seed ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        (mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 40) as i64
    }

    /// Scores rows and columns as large as the kernel allows, and compares with whole numbers without limits.
    fn check(kernel: Kernel, units: usize, count: usize, seed: u64, offset: &Columns) -> Result<(), TestCaseError> {
        let width = units * kernel.padding();
        let limits = kernel.limits();
        let most = (limits.product / (127.0 * width as f64)).min(f64::from(limits.column)) as i64;
        let row_at = |row: usize, at: usize| draw(seed, row * 1_000 + at) % 255 - 127;
        let column_at = |column: usize, at: usize| draw(seed, 200_000 + column * 1_000 + at) % (2 * most + 1) - most;
        let codes: Vec<u8> = (0..2 * ROWS + 3)
            .flat_map(|row| (0..width).map(move |at| (row_at(row, at) + i64::from(ZERO)) as u8))
            .collect();
        let (mut coordinates, mut bias) = (vec![0; width * COLUMNS], [0; COLUMNS]);
        for (column, bias) in bias.iter_mut().enumerate() {
            for at in 0..width {
                coordinates[place(at, column)] = column_at(column, at) as i8;
                *bias += i32::from(ZERO) * column_at(column, at) as i32;
            }
        }
        // Rows side by side, or every second.
        let apart = 1 + seed as usize % 2;
        let rows: Vec<u32> = (0..count).map(|at| (3 + at * apart) as u32).collect();
        let floors: [i32; ROWS] = std::array::from_fn(|at| draw(seed, 400_000 + at) as i32 % 40_000 - 20_000);
        let mut scorer = Scorer::new(kernel, width);
        scorer.take(&codes, &rows);
        let hits = scorer.score(&floors, &Panel { coordinates: &coordinates, bias: &bias, offset });
        for (at, &row) in rows.iter().enumerate() {
            let product = |column: usize| (0..width).map(|at| row_at(row as usize, at) * column_at(column, at)).sum();
            let expected = (0..COLUMNS).map(|column| {
                let sum: i64 = product(column);
                sum - i64::from(offset[column])
            });
            let expected: Vec<i64> = expected.collect();
            for (column, &expected) in expected.iter().enumerate() {
                prop_assert_eq!(i64::from(scorer.score_of(at, column)), expected, "{:?} {} {}", kernel, at, column);
                prop_assert_eq!(scorer.above(at) >> column & 1 == 1, expected > i64::from(floors[at]));
            }
            prop_assert_eq!(hits >> at & 1 == 1, scorer.above(at) != 0);
            prop_assert_eq!(Some(&i64::from(scorer.highest()[at])), expected.iter().max());
        }
        prop_assert!(count == ROWS || hits >> count == 0, "no row beyond the block");
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn scores_are_products_less_offsets(
            units in 1_usize..6,
            count in 1..=ROWS,
            seed in any::<u64>(),
            offset in prop::array::uniform16(-20_000_i32..32_000),
        ) {
            for kernel in [Kernel::Plain, Kernel::Avx2, Kernel::Vnni, Kernel::Amx] {
                if kernel.is_here() {
                    check(kernel, units, count, seed, &offset)?;
                }
            }
        }
    }
}
