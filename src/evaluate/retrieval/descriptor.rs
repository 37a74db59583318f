//! From the map of a photograph to its R-MAC descriptor (Tolias, Sicre and Jégou, ICLR 2016, sections 3.2 and 3.3).
//!
//! In: maps `[C, H, W]` after ReLU. Of each region the highest value of each channel is taken: [`maxima`], all that is kept of a map.
//! These rows are scaled to length one, whitened and scaled again; their sum, scaled to length one, is the descriptor: [`describe`]. How
//! to whiten is learnt from the regions of other photographs, which go by once ([`Whitening`]). All that follows the maxima is in double
//! precision. Memory is the scatter matrix, `[C, C]`, and the regions of one photograph.
//!
//! What can go wrong: too few regions to learn from, regions that are all the same, maps with values that are no numbers.

use super::regions::regions;
use crate::cluster::covariance::Covariance;
use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Smallest eigenvalue that is whitened as it is, as a share of the largest: smaller ones count as this.
const EIGENVALUE_FLOOR: f64 = 1e-5;
/// Shortest row that has a direction.
const SHORTEST: f64 = 1e-12;

/// Highest value of each channel in each region, `[R, C]` in fp32 on the CPU, of a map `[C, H, W]`.
pub fn maxima(map: &Tensor, levels: i64) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let (_, height, width) = map.size3()?;
    let mut rows = Vec::new();
    for region in regions(height, width, levels) {
        let square = map.f_narrow(1, region.top, region.side)?.f_narrow(2, region.left, region.side)?;
        rows.push(square.f_amax([1, 2], false)?);
    }
    Ok(Tensor::f_stack(&rows, 0)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?)
}

/// The descriptor `[D]`, in double precision and of length one, of a photograph with the maxima `[R, C]`.
///
/// # Errors
/// Maxima that are not finite, or of another width than was learnt.
pub fn describe(maxima: &Tensor, whitening: Option<&Whitening>) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let mut rows = unit(maxima)?;
    if let Some(whitening) = whitening {
        rows = unit(&whitening.apply(&rows)?)?;
    }
    let descriptor = unit(&rows.f_sum_dim_intlist(0, true, Kind::Double)?)?.f_squeeze_dim(0)?;
    if !bool::try_from(descriptor.f_isfinite()?.f_all()?)? {
        return Err(
            Error::data("the activations are not finite").with_hint("training has diverged: take an earlier snapshot")
        );
    }
    Ok(descriptor)
}

/// Learns a whitening from regions that go by once.
#[derive(Debug)]
pub struct Learner {
    covariance: Covariance,
}

impl Learner {
    /// Nothing yet, of maps with so many channels.
    pub fn new(channels: i64) -> Result<Self> {
        Ok(Self { covariance: Covariance::new(channels, Device::Cpu)? })
    }

    /// The maxima `[R, C]` of one more photograph.
    pub fn add(&mut self, maxima: &Tensor) -> Result<()> {
        self.covariance.add(&unit(maxima)?)
    }

    /// Regions so far.
    pub fn regions(&self) -> i64 {
        self.covariance.count()
    }

    /// What was learnt, with at most `dims` directions.
    ///
    /// # Errors
    /// There are too few regions, or they are all the same or not finite.
    pub fn finish(self, dims: i64) -> Result<Whitening> {
        let _no_grad = tch::no_grad_guard();
        let count = self.covariance.count();
        if count < 2 || dims < 1 {
            return Err(Error::usage(format!("{count} regions cannot be whitened to {dims} dimensions")));
        }
        let (mean, covariance) = self.covariance.finish()?;
        if !bool::try_from(covariance.f_isfinite()?.f_all()?)? {
            return Err(Error::data("the activations to learn a whitening from are not finite")
                .with_hint("training has diverged: take an earlier snapshot"));
        }
        let (eigenvalues, eigenvectors) = covariance.f_linalg_eigh("L")?;
        let channels = mean.numel() as i64;
        let largest = eigenvalues.double_value(&[channels - 1]);
        // Rows have length one, and rounding of fp32 alone leaves about 1e-14.
        if largest <= SHORTEST {
            return Err(Error::data(format!("all {count} regions to learn a whitening from are the same")).with_hint(
                "the network gives one answer for everything: look at the images, or choose another --layer",
            ));
        }
        let kept = dims.min(channels);
        let scales = eigenvalues.f_clamp_min(largest * EIGENVALUE_FLOOR)?.f_rsqrt()?;
        let projection = eigenvectors.f_mul(&scales)?.f_narrow(1, channels - kept, kept)?.f_flip([1])?;
        Ok(Whitening { mean, projection: projection.f_contiguous()? })
    }
}

/// A change of axes after which those that it was learnt from vary alike along each axis: `(x - mean) P`.
#[derive(Debug)]
pub struct Whitening {
    /// `[C]`, f64.
    mean: Tensor,
    /// `[C, d]`, f64: eigenvectors of the covariance over the square roots of their eigenvalues, largest first.
    projection: Tensor,
}

impl Whitening {
    /// Directions kept.
    pub fn dims(&self) -> i64 {
        self.projection.size()[1]
    }

    /// Rows `[R, C]` of f64 to `[R, d]`.
    fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let (expected, found) = (self.mean.numel() as i64, rows.size2()?.1);
        if expected != found {
            return Err(Error::data(format!("regions of {found} channels, a whitening of {expected}")));
        }
        Ok(rows.f_sub(&self.mean)?.f_matmul(&self.projection)?)
    }
}

/// Rows of length one, in double precision; one without a length stays zero.
fn unit(rows: &Tensor) -> Result<Tensor> {
    let rows = rows.f_to_kind(Kind::Double)?;
    let lengths = rows.f_square()?.f_sum_dim_intlist(1, true, Kind::Double)?.f_sqrt()?;
    Ok(rows.f_div(&lengths.f_clamp_min(SHORTEST)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::normal;

    #[test]
    fn maxima_of_a_map_that_counts_its_pixels() -> Result<()> {
        // The last pixel of a region is its highest, in the first channel; the first one in the second, which counts down.
        let up = Tensor::arange(144, (Kind::Float, Device::Cpu)).view([12, 12]);
        let found = maxima(&Tensor::stack(&[&up, &(-&up)], 0), 2)?;
        let expected = [[143.0, 0.0], [91.0, 0.0], [95.0, -4.0], [139.0, -48.0], [143.0, -52.0]];
        assert_eq!(Vec::<Vec<f32>>::try_from(found).expect("a matrix"), expected);
        Ok(())
    }

    #[test]
    fn without_whitening_a_descriptor_is_the_direction_of_a_sum_of_directions() -> Result<()> {
        let rows = Tensor::from_slice(&[3.0_f32, 4.0, 0.0, 2.0, 0.0, 0.0]).view([3, 2]);
        // (0.6, 0.8) + (0, 1) + nothing, over its length.
        let length = (0.6_f64 * 0.6 + 1.8 * 1.8).sqrt();
        let found = Vec::<f64>::try_from(describe(&rows, None)?).expect("numbers");
        assert!((found[0] - 0.6 / length).abs() < 1e-7 && (found[1] - 1.8 / length).abs() < 1e-7, "{found:?}");
        Ok(())
    }

    #[test]
    fn whitened_directions_of_what_was_learnt_from_have_unit_variance() -> Result<()> {
        let scales = Tensor::logspace(0.0, 1.0, 6, 10.0, (Kind::Float, Device::Cpu));
        let rows = normal(3, 400, 6).relu() * scales;
        let mut learner = Learner::new(6)?;
        for start in [0, 100, 200, 300] {
            learner.add(&rows.narrow(0, start, 100))?;
        }
        assert_eq!(learner.regions(), 400);
        let whitening = learner.finish(5)?;
        assert_eq!(whitening.dims(), 5);
        let white = whitening.apply(&unit(&rows)?)?;
        let covariance = white.tr().matmul(&white) / 400.0;
        assert!(covariance.allclose(&Tensor::eye(5, (Kind::Double, Device::Cpu)), 1e-9, 1e-9, false), "{covariance}");
        Ok(())
    }

    #[test]
    fn small_variance_counts_as_a_share_of_the_largest() -> Result<()> {
        // Nearly one direction each: (1, ±0.5 ε) and (1, 0) turn by ε; the third axis is silent and stays so.
        let rows = Tensor::from_slice(&[1.0_f32, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).view([4, 3]);
        let mut learner = Learner::new(3)?;
        learner.add(&rows)?;
        let whitening = learner.finish(3)?;
        // Variance 1/2 along (1, -1)/√2 and none along the two others, which count as 1e-5 of it.
        let one = whitening.apply(&Tensor::from_slice(&[0.5_f64, 0.5, 0.01]).view([1, 3]))?.abs();
        let length = one.square().sum(Kind::Double).double_value(&[]).sqrt();
        assert!((length - 0.01 / (0.5 * EIGENVALUE_FLOOR).sqrt()).abs() < 1e-6, "{length}");
        Ok(())
    }

    #[test]
    fn what_cannot_be_learnt_from_is_refused() -> Result<()> {
        let refused = |rows: &Tensor| {
            let mut learner = Learner::new(4).expect("a learner");
            learner.add(rows).expect("rows");
            learner.finish(4).expect_err("nothing to learn").to_string()
        };
        assert!(refused(&normal(1, 1, 4)).contains("1 regions"));
        assert!(refused(&Tensor::full([300, 4], 0.1, (Kind::Float, Device::Cpu))).contains("the same"));
        let bad = normal(1, 9, 4);
        let _ = bad.narrow(0, 3, 1).fill_(f64::NAN);
        assert!(refused(&bad).contains("not finite"));
        assert!(describe(&bad, None).is_err());
        let mut learner = Learner::new(4)?;
        learner.add(&normal(1, 9, 4))?;
        assert!(describe(&normal(1, 9, 5), Some(&learner.finish(2)?)).is_err());
        Ok(())
    }
}
