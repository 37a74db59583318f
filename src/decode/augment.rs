//! The views of a photograph: which box of it each one shows (paper, section 3.4), and the resampling.
//!
//! Boxes are drawn in pixels of the upright picture at full size, before it is decoded, so that the decoder can choose
//! the smallest scale that still covers them. They depend on (seed, pass, id) and the size of the picture alone: not on
//! threads, on timing, or on other samples.
//!
//! Resampling is bilinear with antialiasing: a triangle filter as wide as the reduction, like Pillow's. Crop and
//! resize are one step (`torch/resample`); where a box ends inside the picture the filter sees up to one output pixel beyond
//! its edge, as Pillow's `resize(box=...)` does, instead of repeating the edge.

use crate::config::ViewsPlan;
use crate::shards::SampleId;
use crate::torch::resample::{Picture, Resampler, Span};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Part of a picture, in pixels; edges may fall between pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CropBox {
    /// From the left edge of the picture.
    pub left: f64,
    /// From its top edge.
    pub top: f64,
    /// Extent to the right.
    pub width: f64,
    /// Extent downwards.
    pub height: f64,
}

impl CropBox {
    /// The same part of a picture that is `scale` times as large.
    #[must_use]
    pub fn scaled(self, scale: f64) -> Self {
        let Self { left, top, width, height } = self;
        Self { left: left * scale, top: top * scale, width: width * scale, height: height * scale }
    }

    /// The same box, counted from (left, top) of the picture.
    #[must_use]
    pub fn seen_from(self, (left, top): (u32, u32)) -> Self {
        Self { left: self.left - f64::from(left), top: self.top - f64::from(top), ..self }
    }
}

/// What the center views of a photograph are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CenterCrops {
    /// The middle: what is encoded.
    #[default]
    Middle,
    /// The four corners and the middle, and then the same mirrored, after the short side was resized to `views.resize`: ten views, over
    /// which a probe averages (torchvision's `TenCrop`).
    Ten,
    /// Somewhere in the middle `views.resize` squared, mirrored with probability `views.flip`: what a probe is fitted on. Drawn by
    /// (seed, pass, id).
    Shifted,
}

impl CenterCrops {
    /// Views of one photograph.
    pub fn count(self) -> usize {
        match self {
            Self::Middle | Self::Shifted => 1,
            Self::Ten => 10,
        }
    }
}

/// Draws the boxes of the views.
#[derive(Clone, Debug)]
pub struct Augment {
    plan: ViewsPlan,
    centers: CenterCrops,
    seed: u64,
}

/// A box of the upright picture, and whether the view is mirrored afterwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// What the view shows.
    pub crop: CropBox,
    /// Left becomes right.
    pub mirror: bool,
}

impl Augment {
    /// Views by `plan`; `seed` is `stream.seed`.
    pub fn new(plan: &ViewsPlan, seed: u64) -> Self {
        Self { plan: plan.clone(), centers: CenterCrops::default(), seed }
    }

    /// The same with other center views.
    #[must_use]
    pub fn with_centers(self, centers: CenterCrops) -> Self {
        Self { centers, ..self }
    }

    /// The center views, [`CenterCrops::count`] of them.
    pub fn centers(&self, size: (u32, u32), pass: u64, id: SampleId) -> Vec<View> {
        match self.centers {
            CenterCrops::Middle => vec![self.center(size)],
            CenterCrops::Ten => self.ten(size),
            CenterCrops::Shifted => vec![self.shifted(size, pass, id)],
        }
    }

    /// Center views of one photograph.
    pub fn count(&self) -> usize {
        self.centers.count()
    }

    /// Side of both views, in pixels.
    pub fn size(&self) -> u32 {
        self.plan.size
    }

    /// The center view: short side to `views.resize`, then the middle `views.size` squared, in one box.
    ///
    /// No part of the picture is shown twice or padded: `size >= resize` shows the whole short side.
    pub fn center(&self, (width, height): (u32, u32)) -> View {
        let short = f64::from(width.min(height));
        let side = short * (f64::from(self.plan.size) / f64::from(self.plan.resize)).min(1.0);
        let crop = CropBox {
            left: (f64::from(width) - side) / 2.0,
            top: (f64::from(height) - side) / 2.0,
            width: side,
            height: side,
        };
        View { crop, mirror: false }
    }

    /// Top left, top right, bottom left, bottom right and middle, and then the five mirrored.
    fn ten(&self, size: (u32, u32)) -> Vec<View> {
        let CropBox { left, top, width: side, .. } = self.center(size).crop;
        let (right, bottom) = (f64::from(size.0) - side, f64::from(size.1) - side);
        let corners = [(0.0, 0.0), (right, 0.0), (0.0, bottom), (right, bottom), (left, top)];
        let crops = corners.map(|(left, top)| CropBox { left, top, width: side, height: side });
        let views = |mirror| crops.map(|crop| View { crop, mirror });
        [views(false), views(true)].concat()
    }

    /// The train view: a random resized crop and a mirroring.
    ///
    /// The distribution is that of torchvision's `RandomResizedCrop`: area uniform in `views.area`, aspect ratio
    /// uniform in its logarithm, whole pixels, ten tries; then the largest middle crop of an allowed aspect ratio.
    pub fn train(&self, (width, height): (u32, u32), pass: u64, id: SampleId) -> View {
        let mut dice = Dice::new(self.seed, pass, id);
        let crop = self.random_crop(f64::from(width), f64::from(height), &mut dice);
        let mirror = dice.uniform() < self.plan.flip;
        View { crop, mirror }
    }

    /// Moves by whole pixels of the resized photograph.
    fn shifted(&self, (width, height): (u32, u32), pass: u64, id: SampleId) -> View {
        let mut dice = Dice::new(self.seed, pass, id);
        let (size, resize) = (f64::from(self.plan.size), f64::from(self.plan.resize.max(self.plan.size)));
        let short = f64::from(width.min(height));
        let scale = short / resize;
        let top = dice.whole(resize - size) * scale;
        let left = dice.whole(resize - size) * scale;
        let crop = CropBox {
            left: (f64::from(width) - short) / 2.0 + left,
            top: (f64::from(height) - short) / 2.0 + top,
            width: size * scale,
            height: size * scale,
        };
        View { crop, mirror: dice.uniform() < self.plan.flip }
    }

    fn random_crop(&self, width: f64, height: f64, dice: &mut Dice) -> CropBox {
        const TRIES: usize = 10;
        let [area_min, area_max] = self.plan.area;
        let [aspect_min, aspect_max] = self.plan.aspect;
        for _ in 0..TRIES {
            let area = width * height * dice.between(area_min, area_max);
            let aspect = dice.between(aspect_min.ln(), aspect_max.ln()).exp();
            let crop_width = (area * aspect).sqrt().round_ties_even();
            let crop_height = (area / aspect).sqrt().round_ties_even();
            if crop_width < 1.0 || crop_height < 1.0 || crop_width > width || crop_height > height {
                continue;
            }
            let top = dice.whole(height - crop_height);
            let left = dice.whole(width - crop_width);
            return CropBox { left, top, width: crop_width, height: crop_height };
        }
        let aspect = (width / height).clamp(aspect_min, aspect_max);
        let crop_width = (height * aspect).round_ties_even().clamp(1.0, width);
        let crop_height = (width / aspect).round_ties_even().clamp(1.0, height);
        CropBox {
            left: ((width - crop_width) / 2.0).floor(),
            top: ((height - crop_height) / 2.0).floor(),
            width: crop_width,
            height: crop_height,
        }
    }
}

/// Random numbers of one sample in one pass: a ChaCha8 stream whose 256-bit key is (seed, pass, id, purpose).
///
/// The numbers follow from the key by the arithmetic below alone, so they stay the same whatever a library of
/// distributions does.
struct Dice(ChaCha8Rng);

impl Dice {
    fn new(seed: u64, pass: u64, id: SampleId) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&pass.to_le_bytes());
        key[16..24].copy_from_slice(&id.0.to_le_bytes());
        key[24..].copy_from_slice(b"viewcrop");
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in [0, 1), with 53 bits.
    fn uniform(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1u64 << 53) as f64;
        (self.0.next_u64() >> 11) as f64 * STEP
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// A whole number from 0 to `last`, both included.
    fn whole(&mut self, last: f64) -> f64 {
        (self.uniform() * (last + 1.0)).floor().min(last)
    }
}

/// Resamples `crop` of `picture` into `view`, `[size, size, 3]`, reading columns, rows or both backwards.
pub(super) fn resample(
    resampler: &mut Resampler,
    picture: Picture<'_>,
    crop: CropBox,
    (mirror_columns, mirror_rows): (bool, bool),
    view: &mut [u8],
    size: u32,
) {
    let (left, width) = inside(crop.left, crop.width, picture.width as f64);
    let (top, height) = inside(crop.top, crop.height, picture.height as f64);
    let across = Span { start: left, extent: width, backwards: mirror_columns };
    let down = Span { start: top, extent: height, backwards: mirror_rows };
    resampler.resample(picture, across, down, view, size as usize);
}

/// How far beyond a box of `extent` pixels the filter of [`resample`] looks, in pixels: it is as wide as the reduction,
/// and half of it can stand outside.
pub(super) fn reach(extent: f64, size: u32) -> f64 {
    (extent / f64::from(size)).max(1.0).ceil() + 1.0
}

/// Takes back what rounding may have put outside `0..length`.
fn inside(start: f64, extent: f64, length: f64) -> (f64, f64) {
    let start = start.clamp(0.0, length);
    let mut extent = extent.min(length - start);
    if start + extent > length {
        extent = extent.next_down();
    }
    (start, extent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn augment() -> Augment {
        Augment::new(&ViewsPlan::default(), 31)
    }

    #[test]
    fn ten_crops_are_corners_and_middle_and_the_same_mirrored() {
        let augment = augment().with_centers(CenterCrops::Ten);
        let views = augment.centers((512, 384), 0, SampleId(1));
        assert_eq!(views.len(), CenterCrops::Ten.count());
        // 384 is resized to 256, so a crop of 224 covers 336.
        let corners: Vec<_> = views[..5].iter().map(|view| (view.crop.left, view.crop.top)).collect();
        assert_eq!(corners, [(0.0, 0.0), (176.0, 0.0), (0.0, 48.0), (176.0, 48.0), (88.0, 24.0)]);
        assert!(views.iter().all(|view| (view.crop.width, view.crop.height) == (336.0, 336.0)));
        assert_eq!(views[4], augment.center((512, 384)));
        for (plain, mirrored) in views[..5].iter().zip(&views[5..]) {
            assert_eq!((plain.crop, plain.mirror, mirrored.mirror), (mirrored.crop, false, true));
        }
    }

    #[test]
    fn shifted_crops_stay_in_the_middle_square_and_reach_its_corners() {
        let augment = augment().with_centers(CenterCrops::Shifted);
        let mut seen = std::collections::BTreeSet::new();
        for id in 0..20_000 {
            let crop = augment.centers((300, 512), 3, SampleId(id))[0].crop;
            let (x, y) = (crop.left * 256.0 / 300.0, (crop.top - 106.0) * 256.0 / 300.0);
            assert!((crop.width - 262.5).abs() < 1e-9 && crop.width == crop.height);
            assert!((x - x.round()).abs() < 1e-9 && (y - y.round()).abs() < 1e-9, "{x} {y}");
            seen.insert((x.round() as i64, y.round() as i64));
        }
        let columns: std::collections::BTreeSet<_> = seen.iter().map(|(x, _)| *x).collect();
        assert_eq!(columns.into_iter().collect::<Vec<_>>(), (0..=32).collect::<Vec<_>>());
        assert_eq!(seen.len(), 33 * 33, "every place is drawn");
    }

    #[test]
    fn the_center_box_is_resize_then_crop() {
        // short side 375 to 256, middle 224 of it: 375 * 224 / 256 = 328.125 pixels
        let view = augment().center((500, 375));
        assert_eq!(view.crop, CropBox { left: 85.9375, top: 23.4375, width: 328.125, height: 328.125 });
        assert!(!view.mirror);
    }

    #[test]
    fn the_same_key_draws_the_same_view_and_another_key_another() {
        let draw = |seed, pass, id| Augment::new(&ViewsPlan::default(), seed).train((640, 480), pass, SampleId(id));
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        assert_ne!(draw(1, 2, 3).crop, draw(2, 2, 3).crop);
        assert_ne!(draw(1, 2, 3).crop, draw(1, 3, 3).crop);
        assert_ne!(draw(1, 2, 3).crop, draw(1, 2, 4).crop);
        assert_ne!(draw(1, 2, 3).crop, draw(2, 1, 3).crop, "seed and pass do not stand for each other");
    }

    /// Kolmogorov's distance between samples in 0..1 and the uniform distribution.
    fn distance_from_uniform(mut samples: Vec<f64>) -> f64 {
        samples.sort_by(f64::total_cmp);
        let n = samples.len() as f64;
        let gap = |(i, x): (usize, &f64)| (x - i as f64 / n).abs().max((x - (i as f64 + 1.0) / n).abs());
        samples.iter().enumerate().map(gap).fold(0.0, f64::max)
    }

    #[test]
    fn area_aspect_place_and_flip_are_uniform_where_every_try_fits() {
        // Crops of at most a quarter of a large square always fit, so no try is refused and no value is favoured.
        let plan = ViewsPlan { area: [0.05, 0.25], ..ViewsPlan::default() };
        let augment = Augment::new(&plan, 7);
        let side = 4000.0;
        let views: Vec<View> = (0..4000).map(|id| augment.train((4000, 4000), 0, SampleId(id))).collect();
        let column = |f: &dyn Fn(&CropBox) -> f64| views.iter().map(|view| f(&view.crop)).collect::<Vec<f64>>();

        let area = column(&|c| (c.width * c.height / side / side - 0.05) / 0.2);
        let aspect = column(&|c| ((c.width / c.height).ln() - 0.75f64.ln()) / (16.0f64 / 9.0).ln());
        let left = column(&|c| c.left / (side - c.width));
        let top = column(&|c| c.top / (side - c.height));
        // 1.95 / sqrt(4000) = 0.031 is passed by chance once in a thousand
        for (name, values) in [("area", area), ("aspect", aspect), ("left", left), ("top", top)] {
            let distance = distance_from_uniform(values);
            assert!(distance < 0.031, "{name} is {distance} from uniform");
        }
        let mirrored = views.iter().filter(|view| view.mirror).count();
        assert!((1850..2150).contains(&mirrored), "{mirrored} of 4000 are mirrored");
    }

    #[test]
    fn a_long_strip_falls_back_to_its_middle() {
        // No crop of at least 8 % fits at an aspect ratio of at most 4/3: 0.08 * 10000 * 10 = 8000 pixels, 10 rows
        // allow 133.
        let view = augment().train((10_000, 10), 0, SampleId(1));
        assert_eq!(view.crop, CropBox { left: 4993.0, top: 0.0, width: 13.0, height: 10.0 });
        let view = augment().train((10, 10_000), 0, SampleId(1));
        assert_eq!(view.crop, CropBox { left: 0.0, top: 4993.0, width: 10.0, height: 13.0 });
    }

    proptest! {
        #[test]
        fn boxes_lie_inside_pictures_of_any_size(width in 1u32..5000, height in 1u32..5000, id in any::<u64>()) {
            for view in [augment().center((width, height)), augment().train((width, height), 3, SampleId(id))] {
                let CropBox { left, top, width: w, height: h } = view.crop;
                prop_assert!(left >= 0.0 && top >= 0.0 && w > 0.0 && h > 0.0);
                prop_assert!(left + w <= f64::from(width) && top + h <= f64::from(height));
            }
        }

        #[test]
        fn rounding_outside_is_taken_back(start in -1e-9..100.0f64, extent in 0.001..100.0f64) {
            let (start, extent) = inside(start, extent, 100.0);
            prop_assert!(start >= 0.0 && extent >= 0.0 && start + extent <= 100.0);
        }
    }
}
