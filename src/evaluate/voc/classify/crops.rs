//! Random crops of photographs, resized to the square that a network takes.
//!
//! In: a split, and for each crop a row and two numbers that key its draw. Out: `[B, S, S, 3]` uint8. A crop depends on (seed,
//! numbers) and the size of its photograph alone. Photographs are decoded and resampled on a few threads of their own.

use super::data::Split;
use crate::config::ViewsPlan;
use crate::decode::{Augment, Photograph, View};
use crate::error::{Error, Result};
use crate::shards::SampleId;
use crate::torch::resample::{Picture, Resampler, Span};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use tch::Tensor;

/// Cuts crops.
#[derive(Debug)]
pub struct Cropper {
    augment: Augment,
    threads: ThreadPool,
}

impl Cropper {
    /// For squares of `size` pixels that cover a share of the photograph in `area`, at an aspect ratio of 1, half of them mirrored.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn new(size: u32, area: [f64; 2], seed: u64, threads: usize) -> Result<Self> {
        let plan = ViewsPlan { size, area, aspect: [1.0, 1.0], flip: 0.5, ..ViewsPlan::default() };
        let threads = ThreadPoolBuilder::new().num_threads(threads).thread_name(|at| format!("crop-{at}")).build();
        let threads = threads.map_err(|error| Error::device(format!("cannot start threads: {error}")))?;
        Ok(Self { augment: Augment::new(&plan, seed), threads })
    }

    /// One crop of each row; the place of a row, counted from `first`, keys its draw. `[B, S, S, 3]`
    pub fn one_each(&self, split: &Split, rows: &[usize], first: u64) -> Result<Tensor> {
        self.cut(split, rows, 1, |at, _| (0, first + at as u64))
    }

    /// `crops` crops of each row, next to each other; the row and the number of the crop key its draw. `[B * crops, S, S, 3]`
    pub fn several_each(&self, split: &Split, rows: &[usize], crops: usize) -> Result<Tensor> {
        self.cut(split, rows, crops, |at, crop| (crop as u64, rows[at] as u64))
    }

    fn cut(
        &self,
        split: &Split,
        rows: &[usize],
        crops: usize,
        key: impl Fn(usize, usize) -> (u64, u64) + Sync,
    ) -> Result<Tensor> {
        let size = self.augment.size() as usize;
        let bytes = 3 * size * size;
        let mut pixels = vec![0; rows.len() * crops * bytes];
        let fill = |resampler: &mut Resampler, (at, views): (usize, &mut [u8])| -> Result<()> {
            let photograph = split.photograph(rows[at])?;
            for (crop, out) in views.chunks_mut(bytes).enumerate() {
                let (pass, id) = key(at, crop);
                let view = self.augment.train((photograph.width, photograph.height), pass, SampleId(id));
                resample(resampler, &photograph, view, out, size);
            }
            Ok(())
        };
        self.threads
            .install(|| pixels.par_chunks_mut(crops * bytes).enumerate().try_for_each_init(Resampler::default, fill))?;
        let size = size as i64;
        Ok(Tensor::f_from_slice(&pixels)?.f_view([(rows.len() * crops) as i64, size, size, 3])?)
    }
}

fn resample(resampler: &mut Resampler, photograph: &Photograph, view: View, out: &mut [u8], size: usize) {
    let Photograph { width, height, rgb } = photograph;
    let picture = Picture { rgb, width: *width as usize, height: *height as usize };
    let across = Span { start: view.crop.left, extent: view.crop.width, backwards: view.mirror };
    let down = Span { start: view.crop.top, extent: view.crop.height, backwards: false };
    resampler.resample(picture, across, down, out, size);
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::kit_of;
    use super::*;
    use crate::evaluate::voc::devkit::Presence;

    #[test]
    fn crops_follow_their_keys_and_not_their_neighbours() -> Result<()> {
        let split = kit_of(&[(&[0, 7], Presence::Present), (&[3], Presence::Present)])?;
        let cropper = |threads| Cropper::new(16, [0.1, 0.5], 5, threads);
        let two = cropper(2)?.one_each(&split, &[0, 1], 40)?;
        assert_eq!(two.size(), [2, 16, 16, 3]);
        assert_eq!(two.get(1), cropper(1)?.one_each(&split, &[1], 41)?.get(0));
        assert_ne!(two.get(1), cropper(1)?.one_each(&split, &[1], 40)?.get(0));
        let several = cropper(1)?.several_each(&split, &[1, 0], 3)?;
        assert_eq!(several.size(), [6, 16, 16, 3]);
        assert_eq!(several.narrow(0, 3, 3), cropper(2)?.several_each(&split, &[0], 3)?);
        assert_ne!(several.get(0), several.get(1));
        Ok(())
    }

    #[test]
    fn a_photograph_that_is_no_image_is_named() -> Result<()> {
        let mut split = kit_of(&[(&[0], Presence::Present)])?;
        split.spoil(0);
        let cropper = Cropper::new(16, [0.1, 0.5], 5, 1)?;
        let error = cropper.one_each(&split, &[0], 0).expect_err("no image").to_string();
        assert!(error.contains("000000.jpg"), "{error}");
        Ok(())
    }
}
