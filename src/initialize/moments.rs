//! Mean and variance of each channel over batches that go by once.
//!
//! In: activations `[B, C, H, W]` or `[B, C]`. Out: mean and variance `[C]` in double precision. Batches are joined by their means and sums of
//! squared deviations (Chan, Golub and LeVeque, 1979), so that nothing cancels. Errors: values that are not finite.

use crate::error::{Error, Result};
use tch::{Kind, Tensor};

/// What has gone by so far.
#[derive(Debug, Default)]
pub(super) struct Moments {
    images: i64,
    values: f64,
    /// Mean, and sum of squared deviations from it, `[C]` each.
    sums: Option<(Tensor, Tensor)>,
}

impl Moments {
    /// A batch of activations.
    pub(super) fn add(&mut self, activations: &Tensor) -> Result<()> {
        let dims: &[i64] = if activations.dim() == 4 { &[0, 2, 3] } else { &[0] };
        let channels = activations.size()[1];
        let values = (activations.numel() as i64 / channels) as f64;
        let (variance, mean) = activations.f_var_mean_dim(Some(dims), false, false)?;
        let (mean, squares) = (mean.f_to_kind(Kind::Double)?, variance.f_to_kind(Kind::Double)?.f_mul_scalar(values)?);
        self.images += activations.size()[0];
        self.sums = Some(match self.sums.take() {
            None => (mean, squares),
            Some((old_mean, old_squares)) => {
                let all = self.values + values;
                let apart = mean.f_sub(&old_mean)?;
                let between = apart.f_square()?.f_mul_scalar(self.values * values / all)?;
                (old_mean.f_add(&apart.f_mul_scalar(values / all)?)?, old_squares.f_add(&squares)?.f_add(&between)?)
            }
        });
        self.values += values;
        Ok(())
    }

    /// Images so far.
    pub(super) fn images(&self) -> i64 {
        self.images
    }

    /// Mean and variance (of the values themselves, not of a population) of the channels of `layer`.
    pub(super) fn finish(self, layer: &str) -> Result<(Tensor, Tensor)> {
        let (mean, squares) = self.sums.ok_or_else(|| Error::data(format!("{layer} has seen no image")))?;
        let variance = squares.f_div_scalar(self.values)?;
        if !bool::try_from(mean.f_add(&variance)?.f_isfinite()?.f_all()?)? {
            return Err(Error::data(format!("the outputs of {layer} are not finite")));
        }
        Ok((mean, variance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn batches_join_to_the_moments_of_all_values_even_far_from_the_origin() -> Result<()> {
        let all = Tensor::arange(7 * 2 * 3 * 3, (Kind::Double, Device::Cpu)).sin().view([7, 2, 3, 3]) + 1000.0;
        let mut moments = Moments::default();
        for (start, len) in [(0, 3), (3, 1), (4, 3)] {
            moments.add(&all.narrow(0, start, len))?;
        }
        assert_eq!(moments.images(), 7);
        let (mean, variance) = moments.finish("conv1")?;
        for channel in 0..2 {
            let values = Vec::<f64>::try_from(all.select(1, channel).contiguous().view(-1)).expect("a vector");
            let expected = values.iter().sum::<f64>() / values.len() as f64;
            let spread = values.iter().map(|value| (value - expected).powi(2)).sum::<f64>() / values.len() as f64;
            assert!((mean.double_value(&[channel]) - expected).abs() < 1e-9);
            assert!((variance.double_value(&[channel]) - spread).abs() < 1e-9);
        }
        Ok(())
    }

    #[test]
    fn values_that_are_not_finite_are_told_with_their_layer() -> Result<()> {
        let mut moments = Moments::default();
        moments.add(&Tensor::from_slice2(&[[1.0f32, f32::NAN], [0.0, 1.0]]))?;
        assert!(moments.finish("fc6").expect_err("a NaN").to_string().contains("fc6"));
        assert!(Moments::default().finish("fc6").is_err());
        Ok(())
    }
}
