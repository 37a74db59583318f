//! Filters from patches: what a layer sees through its windows, as principal components or as centroids.
//!
//! In: the inputs of a layer. Out: its weights, in place, of any scale, since that is set afterwards. Some ten thousand patches are drawn, as many of
//! each image, at places that a chunk of images has in common; a linear layer has one patch an image, its whole input.
//!
//! Principal components are as many as patches and their entries allow; centroids are of patches whitened in as many directions as
//! there are filters, of length one (spherical k-means), taken back through the whitening, and need two patches a filter. Filters beyond stay as they were drawn: linear layers
//! with more outputs than there are images keep most or all of their random weights.

use super::{Method, Source};
use crate::cluster::kmeans::{self, Options, Seeding};
use crate::cluster::whiten::Whitening;
use crate::error::{Error, Result};
use crate::model::{Affine, Sweep};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

/// Patches drawn for a convolution, or a little more.
const PATCHES: i64 = 10_000;
/// Patches that a centroid needs.
const PATCHES_A_CENTROID: i64 = 2;

/// `[P, D]`: windows of the inputs of a layer, each laid out as a filter is.
pub(super) struct Patches {
    rows: Tensor,
}

impl Patches {
    /// Draws patches of what a layer sees.
    pub(super) fn sample(source: &Source<'_>, seed: u64, tell: &mut dyn FnMut(&str) -> Result<()>) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let of_each_image = (PATCHES / source.images.count()).max(1);
        let (mut rows, mut count) = (Vec::new(), 0);
        source.each_input(|input| {
            match source.affine.sweep {
                Some(sweep) => rows.extend(windows(input, sweep, of_each_image, &mut random)?),
                None => rows.push(input.shallow_clone()),
            }
            count += input.size()[0];
            tell(&format!("{}: patches of {count} images", source.affine.name))
        })?;
        Ok(Self::of(Tensor::f_cat(&rows, 0)?))
    }

    /// Patches `[P, D]` at hand.
    pub(super) fn of(rows: Tensor) -> Self {
        Self { rows }
    }

    /// Turns the filters of `affine` into ones that follow from the patches; how many of them.
    pub(super) fn into_filters(self, affine: &Affine, method: Method, seed: u64) -> Result<i64> {
        let _no_grad = tch::no_grad_guard();
        let (patches, outputs) = (self.rows.size2()?.0, affine.outputs());
        let filters = match method {
            Method::Rescale => return Ok(0),
            Method::Kmeans if patches < PATCHES_A_CENTROID * outputs => return Ok(0),
            Method::Kmeans => {
                let whitening = self.whitening(affine.name, outputs as usize)?;
                let points = whitening.apply_all(&self.rows)?;
                let (k, seeding) = (outputs as usize, Seeding::PlusPlus);
                let options = Options { k, seed, seeding, spherical: true, ..Options::default() };
                kmeans::cluster(&points, None, options)?.centroids.f_matmul(whitening.projection())?
            }
            // Rows of the projection are principal components, scaled.
            Method::Pca => self.whitening(affine.name, outputs as usize)?.projection().shallow_clone(),
        };
        let found = filters.size2()?.0;
        let mut shape = affine.weight.size();
        shape[0] = found;
        affine.weight.f_narrow(0, 0, found)?.f_copy_(&filters.f_view(shape.as_slice())?)?;
        Ok(found)
    }

    fn whitening(&self, layer: &str, dims: usize) -> Result<Whitening> {
        Whitening::fit(&self.rows, dims, self.rows.device()).map_err(|error| match error {
            Error::Data { .. } => Error::data(format!("the patches that {layer} sees are all the same, or not finite"))
                .with_hint("look at the images: a network cannot be initialised from blank ones"),
            other => other,
        })
    }
}

/// `count` windows of each of `[B, C, H, W]`, at different places, the same ones for all: that many times `[B, C · kernel²]`, or fewer
/// where there are not as many places.
fn windows(input: &Tensor, sweep: Sweep, count: i64, random: &mut ChaCha8Rng) -> Result<Vec<Tensor>> {
    let Sweep { kernel, stride, padding } = sweep;
    let padded = input.f_constant_pad_nd([padding; 4])?;
    let size = padded.size();
    let (rows, columns) = ((size[2] - kernel) / stride + 1, (size[3] - kernel) / stride + 1);
    let mut places: Vec<i64> = (0..rows * columns).collect();
    let wanted = usize::try_from(count).unwrap_or(usize::MAX).min(places.len());
    let mut found = Vec::with_capacity(wanted);
    for drawn in 0..wanted {
        let other = random.random_range(drawn..places.len());
        places.swap(drawn, other);
        let (top, left) = (places[drawn] / columns * stride, places[drawn] % columns * stride);
        let window = padded.f_narrow(2, top, kernel)?.f_narrow(3, left, kernel)?;
        found.push(window.f_contiguous()?.f_flatten(1, -1)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn a_window_times_a_filter_is_an_output_of_the_convolution() -> Result<()> {
        let input = Tensor::arange(2 * 3 * 8 * 9, (Kind::Double, Device::Cpu)).sin().view([2, 3, 8, 9]);
        let filter = Tensor::arange(3 * 4 * 4, (Kind::Double, Device::Cpu)).cos().view([1, 3, 4, 4]);
        let sweep = Sweep { kernel: 4, stride: 3, padding: 2 };
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let found = windows(&input, sweep, 100, &mut random)?;
        let outputs = input.conv2d(&filter, None::<&Tensor>, [3, 3], [2, 2], [1, 1], 1);
        let places = outputs.size()[2] * outputs.size()[3];
        assert_eq!(found.len() as i64, places, "each place once");
        for image in 0..2 {
            let sorted = |values: Vec<f64>| {
                let mut values = values;
                values.sort_by(f64::total_cmp);
                values
            };
            let expected =
                sorted(Vec::<f64>::try_from(outputs.select(0, image).contiguous().view(-1)).expect("values"));
            let products = found.iter().map(|rows| (rows.select(0, image) * filter.view(-1)).sum(Kind::Double));
            let products = sorted(products.map(|product| product.double_value(&[])).collect());
            for (product, expected) in products.iter().zip(&expected) {
                assert!((product - expected).abs() < 1e-12, "{products:?} {expected:?}");
            }
        }
        assert_eq!(windows(&input, sweep, 2, &mut random)?.len(), 2);
        Ok(())
    }
}
