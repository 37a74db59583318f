//! Rules by which a sound image is passed over: those that look at one image alone.
//!
//! In come the size of a file, the size in its header and, once decoded, its center view; out comes the first rule of
//! `[filter]` that it falls under. The same image always gets the same answer, so that these rules hold in every order of
//! the stream and on every number of threads. For the rules that compare images with those before, [`Filter::prints`]
//! gives what is compared; `batch` decides.

use super::fingerprint::{self, luma};
use crate::config::{Duplicates, FilterPlan};
use crate::shards::Filtered;
use xxhash_rust::xxh3::xxh3_64;

/// The rules of `[filter]`. The default lets everything pass.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    plan: FilterPlan,
}

/// What is compared with other images. Nothing, where no rule asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prints {
    /// XXH3 of the file.
    pub bytes: Option<u64>,
    /// The perceptual hash of the center view: see `fingerprint.rs`.
    pub pixels: Option<u128>,
    /// Whether the file has a length from `filter.placeholders`.
    pub placeholder: bool,
}

impl Filter {
    /// The rules of a plan.
    pub fn new(plan: &FilterPlan) -> Self {
        Self { plan: plan.clone() }
    }

    /// Whether a rule needs the center view.
    pub fn looks_at_pixels(&self) -> bool {
        self.plan.uniform > 0.0
    }

    /// By the length of the file.
    pub(super) fn check_bytes(&self, bytes: usize) -> Result<(), Filtered> {
        if bytes < self.plan.min_bytes { Err(Filtered::TooFewBytes) } else { Ok(()) }
    }

    /// By width and height, upright or not.
    pub(super) fn check_size(&self, (width, height): (u32, u32)) -> Result<(), Filtered> {
        let (shorter, longer) = (width.min(height), width.max(height));
        if shorter < self.plan.min_side {
            return Err(Filtered::TooSmall);
        }
        let aspect = f64::from(longer) / f64::from(shorter.max(1));
        if self.plan.max_aspect > 0.0 && aspect > self.plan.max_aspect {
            return Err(Filtered::TooElongated);
        }
        Ok(())
    }

    /// By the center view, `[side, side, 3]`, of a file of so many bytes.
    pub(super) fn check_pixels(&self, center: &[u8], side: usize, bytes: usize) -> Result<(), Filtered> {
        let may_be_uniform = self.plan.uniform > 0.0 && bytes < self.plan.uniform_bytes;
        if may_be_uniform && is_uniform(center, side, self.plan.uniform) {
            return Err(Filtered::Uniform);
        }
        Ok(())
    }

    /// What the rules on duplicates compare, of a file and its center view, `[side, side, 3]`.
    pub(super) fn prints(&self, image: &[u8], center: &[u8], side: usize) -> Prints {
        let placeholder = self.plan.placeholders.contains(&image.len());
        let duplicates = self.plan.duplicates;
        Prints {
            bytes: (placeholder || duplicates != Duplicates::Off).then(|| xxh3_64(image)),
            pixels: (duplicates == Duplicates::Near).then(|| fingerprint::fingerprint(center, side)),
            placeholder,
        }
    }
}

/// Whether 95 of 100 columns, and 95 of 100 rows, have a variance of luma below `limit`.
///
/// Columns alone would take a sky that brightens from left to right, or a fence, for one colour.
fn is_uniform(center: &[u8], side: usize, limit: f64) -> bool {
    let mut columns = vec![Moments::default(); side];
    let mut rows = vec![Moments::default(); side];
    for (pixels, row) in center.chunks_exact(side * 3).zip(&mut rows) {
        for (pixel, column) in pixels.chunks_exact(3).zip(&mut columns) {
            let value = u64::from(luma(pixel) / 256);
            row.add(value);
            column.add(value);
        }
    }
    [columns, rows].iter().all(|lines| high_variance(lines, side) < limit)
}

/// Sums of values and of their squares.
#[derive(Clone, Copy, Default)]
struct Moments {
    sum: u64,
    squares: u64,
}

impl Moments {
    fn add(&mut self, value: u64) {
        self.sum += value;
        self.squares += value * value;
    }

    fn variance(self, count: usize) -> f64 {
        let mean = self.sum as f64 / count as f64;
        self.squares as f64 / count as f64 - mean * mean
    }
}

/// The 95th percentile of the variances of lines of `count` values.
fn high_variance(lines: &[Moments], count: usize) -> f64 {
    let mut variances: Vec<f64> = lines.iter().map(|line| line.variance(count)).collect();
    variances.sort_by(f64::total_cmp);
    variances[(variances.len() - 1) * 95 / 100]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(value: impl Fn(usize, usize) -> u8) -> Vec<u8> {
        (0..64 * 64).flat_map(|at| [value(at % 64, at / 64); 3]).collect()
    }

    #[test]
    fn sizes_are_judged_whichever_way_up() {
        let filter =
            Filter::new(&FilterPlan { min_side: 64, max_aspect: 3.0, min_bytes: 100, ..FilterPlan::default() });
        for turned in [false, true] {
            let check = |(width, height)| filter.check_size(if turned { (height, width) } else { (width, height) });
            assert_eq!(check((64, 192)), Ok(()));
            assert_eq!(check((63, 63)), Err(Filtered::TooSmall));
            assert_eq!(check((64, 193)), Err(Filtered::TooElongated));
        }
        assert_eq!((filter.check_bytes(100), filter.check_bytes(99)), (Ok(()), Err(Filtered::TooFewBytes)));
        let open = Filter::default();
        assert_eq!((open.check_bytes(0), open.check_size((1, 9_999))), (Ok(()), Ok(())));
    }

    #[test]
    fn only_what_varies_neither_down_nor_across_is_uniform() {
        let noise = |x: usize, y: usize| (120 + (x * 7 + y * 13) % 9) as u8;
        assert!(is_uniform(&view(|_, _| 255), 64, 50.0));
        assert!(is_uniform(&view(noise), 64, 50.0));
        let line_of_text = |x: usize, y: usize| if y == 30 { (x % 2 * 255) as u8 } else { 90 };
        assert!(!is_uniform(&view(line_of_text), 64, 50.0), "a column varies by 64 x 2.6");
        assert!(!is_uniform(&view(|x, _| (x * 4) as u8), 64, 50.0), "a gradient across");
        assert!(!is_uniform(&view(|_, y| (y * 4) as u8), 64, 50.0), "a gradient down");
        let faint_stripe = |x: usize, y: usize| if x < 3 { (70 + y % 2 * 40) as u8 } else { 90 };
        assert!(is_uniform(&view(faint_stripe), 64, 50.0), "3 of 64 columns may vary");
    }

    #[test]
    fn uniformity_is_no_matter_for_large_files() {
        let filter = Filter::new(&FilterPlan { uniform: 50.0, uniform_bytes: 20_000, ..FilterPlan::default() });
        let flat = view(|_, _| 90);
        assert_eq!(filter.check_pixels(&flat, 64, 19_999), Err(Filtered::Uniform));
        assert_eq!(filter.check_pixels(&flat, 64, 20_000), Ok(()));
    }

    #[test]
    fn nothing_is_computed_that_no_rule_asks_for() {
        let prints = |duplicates, placeholders: &[usize]| {
            let plan = FilterPlan { duplicates, placeholders: placeholders.to_vec(), ..FilterPlan::default() };
            let Prints { bytes, pixels, placeholder } = Filter::new(&plan).prints(b"file", &view(|_, _| 0), 64);
            (bytes.is_some(), pixels.is_some(), placeholder)
        };
        assert_eq!(prints(Duplicates::Off, &[5]), (false, false, false));
        assert_eq!(prints(Duplicates::Off, &[4]), (true, false, true));
        assert_eq!(prints(Duplicates::Bytes, &[]), (true, false, false));
        assert_eq!(prints(Duplicates::Near, &[]), (true, true, false));
    }
}
