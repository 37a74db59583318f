//! Mean and covariance of rows that go by once.
//!
//! In go blocks of rows `[B, D]` of any float kind; out come mean `[D]` and covariance `[D, D]` in double precision. Sums are
//! taken about the mean of the first block, so that nothing cancels where rows lie far from the origin. Only panels on and
//! below the diagonal are multiplied: `N D² (1 + 1/panels)` operations. Memory is `D × D` and a few blocks. Ranks that each
//! have some of the rows add up what they have.

use crate::error::{Error, Result};
use crate::torch::c10d::Reduction;
use crate::world::World;
use tch::{Device, Kind, Tensor};

/// Columns that are multiplied at once with those before them: few enough to spare nearly half, enough for fast products.
const PANEL: i64 = 512;

/// What has gone by so far.
#[derive(Debug)]
pub struct Covariance {
    device: Device,
    count: i64,
    /// About where the rows lie, `[D]`; undefined before the first.
    origin: Tensor,
    /// Sum of rows less the origin, `[D]`.
    sum: Tensor,
    /// Sum of their outer products `[D, D]`: panels on and below the diagonal.
    scatter: Tensor,
}

impl Covariance {
    /// Nothing yet, of rows of `width` entries; sums lie on `device`.
    pub fn new(width: i64, device: Device) -> Result<Self> {
        let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Double, device));
        Ok(Self { device, count: 0, origin: Tensor::new(), sum: zeros(&[width])?, scatter: zeros(&[width, width])? })
    }

    /// Rows `[B, D]`.
    pub fn add(&mut self, rows: &Tensor) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let (count, width) = rows.size2()?;
        if self.sum.size() != [width] {
            return Err(Error::data(format!("rows of {width} entries among rows of {}", self.sum.numel())));
        }
        if count == 0 {
            return Ok(());
        }
        let rows = rows.f_to_device(self.device)?.f_to_kind(Kind::Double)?;
        if self.count == 0 {
            self.origin = rows.f_mean_dim(0, false, Kind::Double)?;
        }
        let rows = rows.f_sub(&self.origin)?;
        self.sum = self.sum.f_add(&rows.f_sum_dim_intlist(0, false, Kind::Double)?)?;
        for start in (0..width).step_by(PANEL as usize) {
            let len = PANEL.min(width - start);
            let panel = self.scatter.f_narrow(0, start, len)?.f_narrow(1, 0, start + len)?;
            let left = rows.f_narrow(1, start, len)?.f_tr()?;
            let _ = panel.shallow_clone().f_addmm_(&left, &rows.f_narrow(1, 0, start + len)?)?;
        }
        self.count += count;
        Ok(())
    }

    /// Adds what has gone by on the other ranks: all have the same afterwards.
    pub fn add_ranks(&mut self, world: &World) -> Result<()> {
        if world.is_alone() {
            return Ok(());
        }
        let _no_grad = tch::no_grad_guard();
        let width = self.sum.numel() as i64;
        let origin = match self.count {
            0 => Tensor::f_zeros([width], (Kind::Double, self.device))?,
            _ => self.origin.shallow_clone(),
        };
        let common = world.on_first(self.device, || Ok(vec![origin.copy()]))?.remove(0);
        // Sums of y + δ, where they were of y.
        let shift = origin.f_sub(&common)?;
        let crossed = self.sum.f_outer(&shift)?;
        let squared = shift.f_outer(&shift)?.f_mul_scalar(self.count)?;
        self.scatter =
            self.scatter.f_tril(0)?.f_add(&crossed)?.f_add(&crossed.f_tr()?)?.f_add(&squared)?.f_contiguous()?;
        self.sum = self.sum.f_add(&shift.f_mul_scalar(self.count)?)?;
        world.reduce(&self.scatter, Reduction::Sum)?;
        world.reduce(&self.sum, Reduction::Sum)?;
        self.count = world.sum(&[self.count as f64])?[0] as i64;
        self.origin = common;
        Ok(())
    }

    /// Rows so far.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// Mean `[D]` and covariance `[D, D]`, divided by the number of rows: at least one.
    pub fn finish(self) -> Result<(Tensor, Tensor)> {
        let _no_grad = tch::no_grad_guard();
        if self.count == 0 {
            return Err(Error::data("no rows have a mean"));
        }
        let shift = self.sum.f_div_scalar(self.count)?;
        let lower = self.scatter.f_tril(0)?;
        let scatter = lower.f_add(&lower.f_tril(-1)?.f_tr()?)?;
        let covariance = scatter.f_div_scalar(self.count)?.f_sub(&shift.f_outer(&shift)?)?;
        Ok((self.origin.f_add(&shift)?, covariance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::normal;

    #[test]
    fn one_pass_is_as_good_as_two_also_far_from_the_origin_and_over_several_panels() -> Result<()> {
        for (width, far) in [(5, 0.0), (5, 1e6), (1_100, 10.0)] {
            let rows = normal(1, 700, width).to_kind(Kind::Double) + far;
            let mut covariance = Covariance::new(width, Device::Cpu)?;
            for (start, len) in [(0, 1), (1, 300), (301, 0), (301, 399)] {
                covariance.add(&rows.narrow(0, start, len))?;
            }
            assert_eq!(covariance.count(), 700);
            let (mean, found) = covariance.finish()?;
            let expected = rows.mean_dim(0, false, Kind::Double);
            let centred = &rows - &expected;
            let scatter = centred.tr().matmul(&centred) / 700.0;
            assert!(mean.allclose(&expected, 1e-12, 1e-12, false));
            assert!(found.allclose(&scatter, 1e-9, 1e-9, false), "{width} {far}");
            assert!(found.equal(&found.tr()));
        }
        assert!(Covariance::new(3, Device::Cpu)?.finish().is_err());
        assert!(Covariance::new(3, Device::Cpu)?.add(&normal(1, 2, 4)).is_err());
        Ok(())
    }
}
