//! Which centroids may be the nearest to a point: bounds from 8-bit copies of points and centroids.
//!
//! Points and centroids are moved so that the mean of the points is the origin, and rounded to small whole numbers. The product
//! of two such copies is cheap ([`crate::torch::scores`]) and differs from that of the originals by no more than
//! `|point - copy| |centroid| + |copy of point| |centroid - copy|` (Cauchy and Schwarz). So a score `point · centroid -
//! |centroid|² / 2`, which is largest for the nearest centroid, is known up to a margin, and only centroids whose score may
//! reach that of one already known need to be looked at in full. Nothing is lost: bounds hold for every pair, rounding of
//! floats included.
//!
//! What passes is screened once more by copies of 16 bits ([`Columns::may_reach`]), whose margin is a hundredth: they cost more,
//! but only few pairs are left by then.
//!
//! In 256 dimensions the margin is 0.8 standard deviations of a score among isotropic points with AVX2, so that of 1,000 centroids
//! eight are left, and half of that where scores have 32 bits. It grows with the root of the dimension; [`Screen::new`] declines
//! above [`widest`].

use crate::torch::aligned::Aligned;
use crate::torch::rows::{self, PRODUCTS};
use crate::torch::scores::{self, COLUMNS, Kernel, Panel, Scorer, ZERO};
use rayon::prelude::*;

/// Length of a copy of 16 bits: the product of two fits into 32.
const FINE_COPY: f64 = 32_000.0;
/// Largest coordinate of the copy of a point, by [`rows::round_to_bytes`].
const ROW_LIMIT: f32 = 127.0;
/// What f32 arithmetic on one entry may be off by, relatively: its unit roundoff and some more.
const ROUNDING: f64 = 1.2e-7;
/// Offsets and floors stay within it, so that nothing that is added to them leaves 32 bits.
const FARTHEST: f64 = (1 << 29) as f64;

/// Dimensions above which the margin lets too many centroids through: none where screening is slow.
fn widest(kernel: Kernel) -> usize {
    match kernel {
        Kernel::Plain => 0,
        Kernel::Avx2 => 640,
        Kernel::Vnni | Kernel::Amx => 2_560,
    }
}

/// Points as bytes, with what is needed to bound their products.
pub(super) struct Screen<'a> {
    kernel: Kernel,
    points: &'a [f32],
    width: usize,
    /// `width` up to a multiple of what the kernel takes at once.
    padded: usize,
    /// The new origin.
    mean: Vec<f32>,
    /// One unit of a copy.
    unit: f32,
    codes: Aligned<u8>,
    /// Of each point.
    lengths: Vec<Lengths>,
    /// Longest copy of a point, in units.
    longest_copy: f64,
    /// Distance of a point from its copy up to which no correction is needed.
    usual_error: f64,
    /// Longest point.
    longest: f64,
}

/// A point as a copy of 16 bits.
#[derive(Clone, Copy, Default)]
pub(super) struct Fine {
    /// One unit of the copy.
    unit: f64,
    /// `|copy|`, and `|point - copy|`.
    copy: f64,
    error: f64,
}

/// Lengths of one point.
#[derive(Clone, Copy)]
struct Lengths {
    /// `|point|²`, moved.
    square: f64,
    /// `|copy|`.
    copy: f32,
    /// `|point - copy|`.
    error: f32,
}

/// Centroids as panels of bytes.
pub(super) struct Columns {
    /// The centroid of each column.
    pub(super) ids: Vec<u32>,
    width: usize,
    coordinates: Aligned<i8>,
    bias: Vec<scores::Columns>,
    offset: Vec<scores::Columns>,
    /// What one step of a score is worth.
    step: f64,
    longest: f64,
    largest_error: f64,
    /// Bound on what rounding of floats does to a score.
    slack: f64,
    /// Copies of 16 bits, one column after the other, and what is known of each.
    fine: Aligned<i16>,
    fine_columns: Vec<FineColumn>,
}

/// What is known of a centroid and its copy of 16 bits.
#[derive(Clone, Copy)]
struct FineColumn {
    unit: f64,
    error: f64,
    length: f64,
    half_square: f64,
}

impl<'a> Screen<'a> {
    /// Whether points of this width are worth it on this processor.
    pub(super) fn pays(width: usize) -> bool {
        (1..=widest(Kernel::best())).contains(&width)
    }

    /// Copies points `[N, width]`; none where all are the same. `mean` is any point, best their mean.
    pub(super) fn new(kernel: Kernel, points: &'a [f32], mean: Vec<f32>) -> Option<Self> {
        let width = mean.len();
        let (squares, largest): (Vec<f32>, Vec<f32>) = points
            .par_chunks_exact(width)
            .map(|point| (rows::squared_distance(point, &mean), rows::largest(point, &mean)))
            .unzip();
        let most = |numbers: &[f32]| numbers.iter().copied().fold(0.0, f32::max);
        let (longest, largest) = (f64::from(most(&squares)).sqrt() * 1.001, most(&largest));
        let unit = (longest / kernel.limits().product.sqrt()).max(f64::from(largest / ROW_LIMIT)) as f32;
        if !unit.is_normal() {
            return None;
        }
        let padded = width.next_multiple_of(kernel.padding());
        let mut codes = Aligned::new(ZERO, points.len() / width * padded);
        let lengths: Vec<Lengths> = (points.par_chunks_exact(width), codes.par_chunks_exact_mut(padded), squares)
            .into_par_iter()
            .map(|(point, codes, square)| copy(point, &mean, square, unit, codes))
            .collect();
        let longest_copy = lengths.iter().map(|point| f64::from(point.copy)).fold(0.0, f64::max) / f64::from(unit);
        let mean_error = lengths.iter().map(|point| f64::from(point.error)).sum::<f64>() / lengths.len() as f64;
        Some(Self {
            kernel,
            points,
            width,
            padded,
            mean,
            unit,
            codes,
            lengths,
            longest_copy,
            usual_error: 1.1 * mean_error,
            longest,
        })
    }

    /// Points.
    pub(super) fn len(&self) -> usize {
        self.lengths.len()
    }

    /// A point itself.
    pub(super) fn point(&self, index: usize) -> &'a [f32] {
        &self.points[index * self.width..][..self.width]
    }

    /// What scores bytes of points in panels of centroids.
    pub(super) fn scorer(&self) -> Scorer<'_> {
        Scorer::new(self.kernel, self.padded)
    }

    /// The bytes of a point and of all that follow.
    pub(super) fn codes_from(&self, index: usize) -> &[u8] {
        &self.codes[index * self.padded..]
    }

    /// Copies those of `centroids` `[k, width]` that `ids` names.
    pub(super) fn columns(&self, centroids: &[f32], ids: Vec<u32>) -> Columns {
        let width = self.width;
        let mut moved = vec![0.0; ids.len() * width];
        moved.par_chunks_exact_mut(width).zip(&ids).for_each(|(moved, &id)| {
            let centroid = &centroids[id as usize * width..][..width];
            moved.iter_mut().zip(centroid).zip(&self.mean).for_each(|((moved, entry), mean)| *moved = entry - mean);
        });
        let squares: Vec<f64> = moved.par_chunks_exact(width).map(squared_length).collect();
        let longest = squares.iter().copied().fold(0.0, f64::max).sqrt();
        let (unit, codes) = self.round_columns(&moved, longest);
        let (fine, fine_columns) = fine_copies(&moved, &squares);
        let step = f64::from(unit) * f64::from(self.unit);
        let panels = ids.len().div_ceil(COLUMNS);
        let mut columns = Columns {
            width: self.padded,
            coordinates: Aligned::new(0, panels * COLUMNS * self.padded),
            bias: vec![[0; COLUMNS]; panels],
            offset: vec![[FARTHEST as i32; COLUMNS]; panels],
            step,
            longest,
            largest_error: 0.0,
            slack: ROUNDING * (16.0 + width as f64 / 8.0) * (self.longest + longest).powi(2),
            fine,
            fine_columns,
            ids,
        };
        let panels = columns.coordinates.par_chunks_exact_mut(COLUMNS * self.padded);
        let panels = panels.zip(&mut columns.bias).zip(&mut columns.offset);
        let columns_of = codes.par_chunks(COLUMNS * width).zip(moved.par_chunks(COLUMNS * width));
        let errors = panels.zip(columns_of).zip(squares.par_chunks(COLUMNS)).map(|((panel, columns), squares)| {
            let ((coordinates, bias), offset) = panel;
            let mut largest_error = 0.0_f64;
            for (at, (codes, column)) in columns.0.chunks_exact(width).zip(columns.1.chunks_exact(width)).enumerate() {
                for (row, &code) in codes.iter().enumerate() {
                    coordinates[scores::place(row, at)] = code;
                }
                bias[at] = codes.iter().map(|&code| i32::from(code)).sum::<i32>() * i32::from(ZERO);
                let steps = (squares[at] / 2.0 - self.usual_error * squares[at].sqrt()) / step;
                // One that is cut to fit makes the score larger, which is safe.
                offset[at] = steps.floor().min(FARTHEST) as i32;
                let error = column.iter().zip(codes).map(|(&entry, &code)| square(entry - f32::from(code) * unit));
                largest_error = largest_error.max(error.sum::<f64>().sqrt() * 1.001);
            }
            largest_error
        });
        columns.largest_error = errors.reduce(|| 0.0, f64::max);
        columns
    }

    /// Rounds moved centroids, of which the longest is so long, to whole numbers of a unit for all.
    fn round_columns(&self, moved: &[f32], longest: f64) -> (f32, Vec<i8>) {
        let limits = self.kernel.limits();
        let limit = (limits.product / self.longest_copy).floor();
        let largest = moved.par_iter().map(|entry| entry.abs()).reduce(|| 0.0, f32::max);
        let mut unit = (longest / limit)
            .max(f64::from(largest) / f64::from(limits.column))
            .max(f64::from(self.unit) * 1e-6) as f32;
        loop {
            let codes: Vec<i8> = moved.par_iter().map(|entry| round(entry / unit, limits.column)).collect();
            let length = |column: &[i8]| column.iter().map(|&code| square(f32::from(code))).sum::<f64>().sqrt();
            // Rounding may make copies a little longer than what they are copies of.
            if codes.par_chunks_exact(self.width).all(|column| length(column) <= limit) {
                return (unit, codes);
            }
            unit *= 1.01;
        }
    }

    /// What has to be added to a step count of `columns` for it to bound the score of the point from above, in steps.
    fn margin(&self, index: usize, columns: &Columns) -> f64 {
        let point = &self.lengths[index];
        let unusual = (f64::from(point.error) - self.usual_error).max(0.0) * columns.longest;
        (unusual + f64::from(point.copy) * columns.largest_error + columns.slack) / columns.step + 1.0
    }

    /// The floor above which the steps of every centroid lie that may be as near to the point as `squared_distance`.
    pub(super) fn floor(&self, index: usize, columns: &Columns, squared_distance: f32) -> i32 {
        let score = (self.lengths[index].square - f64::from(squared_distance)) / 2.0;
        let least = (score / columns.step - self.margin(index, columns)).floor() - 1.0;
        if least < -FARTHEST { i32::MIN } else { least.min(FARTHEST) as i32 }
    }

    /// Copies a point to 16 bits.
    pub(super) fn fine(&self, index: usize, codes: &mut [i16]) -> Fine {
        fine_copy(self.point(index), &self.mean, self.lengths[index].square.sqrt(), codes)
    }

    /// The score of a point that a centroid as near as `squared_distance` has.
    pub(super) fn score(&self, index: usize, squared_distance: f32) -> f64 {
        (self.lengths[index].square - f64::from(squared_distance)) / 2.0
    }

    /// What makes lower bounds on distances of the highest scores of a point: `|point|²`, and what a score may be too low by.
    pub(super) fn bound(&self, index: usize, columns: &Columns) -> (f32, f32) {
        let square = self.lengths[index].square;
        // f32 arithmetic on the square and on the steps, each of which is off by a few roundings at most.
        let rounding = 1e-6 * (square + self.longest * columns.longest) / columns.step;
        (square as f32, (self.margin(index, columns) + columns.slack / columns.step + rounding) as f32)
    }

    /// No point is farther than this from a centroid that lies among the points.
    pub(super) fn diameter(&self) -> f64 {
        2.0 * self.longest
    }
}

impl Columns {
    /// Which of the centroids of four columns may have a score of `least` or more with a point, by copies of 16 bits.
    pub(super) fn may_reach(
        &self,
        columns: [usize; PRODUCTS],
        point: &Fine,
        codes: &[i16],
        least: f64,
    ) -> [bool; PRODUCTS] {
        let (width, fine) = (codes.len(), &*self.fine);
        let mut others = [codes; PRODUCTS];
        for (other, column) in others.iter_mut().zip(columns) {
            *other = &fine[column * width..][..width];
        }
        let mut may_reach = [true; PRODUCTS];
        let products = rows::products(codes, others);
        for ((may_reach, column), product) in may_reach.iter_mut().zip(columns).zip(products) {
            let FineColumn { unit, error, length, half_square } = self.fine_columns[column];
            let product = f64::from(product) * point.unit * unit;
            let margin = point.error * length + point.copy * error + self.slack;
            *may_reach = product - half_square + margin >= least;
        }
        may_reach
    }

    /// Twice what one step of a score is worth.
    pub(super) fn twice_step(&self) -> f32 {
        (2.0 * self.step) as f32
    }

    /// Panels.
    pub(super) fn panels(&self) -> usize {
        self.bias.len()
    }

    /// The bytes of a panel.
    pub(super) fn panel(&self, panel: usize) -> Panel<'_> {
        let coordinates = &self.coordinates[panel * COLUMNS * self.width..][..COLUMNS * self.width];
        Panel { coordinates, bias: &self.bias[panel], offset: &self.offset[panel] }
    }
}

/// A point, less the mean, as bytes; `square` is its squared length then.
fn copy(point: &[f32], mean: &[f32], square: f32, unit: f32, codes: &mut [u8]) -> Lengths {
    let rounded = rows::round_to_bytes(point, mean, unit, &mut codes[..point.len()]);
    let copy = f64::from(rounded.copy).sqrt() as f32 * unit * 1.000_01;
    Lengths { square: f64::from(square), copy, error: rounded.error.sqrt() * 1.001 + f32::MIN_POSITIVE }
}

/// Rounds a row, less `origin` of that `length`, to whole numbers of 16 bits.
fn fine_copy(row: &[f32], origin: &[f32], length: f64, codes: &mut [i16]) -> Fine {
    let tiny = f64::from(f32::MIN_POSITIVE);
    let unit = (length / FINE_COPY).max(tiny) as f32;
    let rounded = rows::round_to_whole(row, origin, unit, codes);
    let unit = f64::from(unit);
    // 1 %: what f32 arithmetic may lose of errors that are small beside the entries.
    Fine {
        unit,
        copy: f64::from(rounded.copy).sqrt() * unit * 1.01,
        error: f64::from(rounded.error).sqrt() * 1.01 + tiny,
    }
}

/// Copies of 16 bits of moved centroids of those squared lengths.
fn fine_copies(moved: &[f32], squares: &[f64]) -> (Aligned<i16>, Vec<FineColumn>) {
    let width = moved.len() / squares.len();
    let origin = vec![0.0; width];
    let mut fine = Aligned::new(0, moved.len());
    let columns = moved.par_chunks_exact(width).zip(fine.par_chunks_exact_mut(width)).zip(squares);
    let columns = columns.map(|((column, codes), &square)| {
        let Fine { unit, error, .. } = fine_copy(column, &origin, square.sqrt(), codes);
        FineColumn { unit, error, length: square.sqrt(), half_square: square / 2.0 }
    });
    let columns = columns.collect();
    (fine, columns)
}

fn round(entry: f32, limit: i32) -> i8 {
    nearest_whole(entry).clamp(-limit as f32, limit as f32) as i8
}

/// The nearest whole number, for numbers of less than 22 bits: `f32::round` is a call for each entry.
fn nearest_whole(entry: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23: what is below one does not fit beside it
    (entry + SHIFT) - SHIFT
}

fn square(entry: f32) -> f64 {
    f64::from(entry) * f64::from(entry)
}

fn squared_length(row: &[f32]) -> f64 {
    row.iter().map(|&entry| square(entry)).sum()
}
