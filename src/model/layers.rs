//! Layers with explicit weights: convolution, batch normalisation, linear.
//!
//! Weights stay in fp32. Under bf16 a layer casts them, and its input, on the way through (the gradients arrive in
//! fp32); batch normalisation keeps weights and statistics in fp32 and casts inside libtorch. Inputs may be
//! channels-last views: every layer keeps their layout. Nothing here panics: a shape that does not fit comes back as
//! libtorch's error.

use crate::config::Precision;
use crate::error::{Error, Result};
use crate::world::World;
use tch::{Kind, Tensor};

/// Whether a pass trains: which statistics batch norm takes, and whether there is dropout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics (the running ones are updated) and dropout.
    Train,
    /// Running statistics, which stay as they are, and dropout: how a trained network is fine-tuned on few images at a time.
    FineTune,
    /// Running statistics, no dropout.
    Eval,
}

/// How one pass through a network computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    pub(super) mode: Mode,
    pub(super) precision: Precision,
}

impl Pass {
    /// Whether batch norm takes the statistics of the batch.
    pub(super) fn normalises_by_batch(self) -> bool {
        self.mode == Mode::Train
    }

    pub(super) fn drops_out(self) -> bool {
        self.mode != Mode::Eval
    }

    /// The kind that convolutions and products compute in.
    pub(super) fn kind(self) -> Kind {
        compute_kind(self.precision)
    }
}

/// The kind that convolutions and products compute in.
pub(super) fn compute_kind(precision: Precision) -> Kind {
    match precision {
        Precision::Fp32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}

/// A square convolution.
#[derive(Debug)]
pub(super) struct Conv2d {
    /// `[outputs, inputs, kernel, kernel]`
    pub(super) weight: Tensor,
    /// `[outputs]`
    pub(super) bias: Option<Tensor>,
    pub(super) stride: i64,
    pub(super) padding: i64,
}

impl Conv2d {
    /// `[B, inputs, H, W]` to `[B, outputs, H', W']`, in the kind of the pass.
    pub(super) fn forward(&self, input: &Tensor, pass: Pass) -> Result<Tensor> {
        let kind = pass.kind();
        let weight = self.weight.f_to_kind(kind)?;
        let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(kind)).transpose()?;
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        Ok(input.f_to_kind(kind)?.f_conv2d(&weight, bias, stride, padding, [1, 1], 1)?)
    }
}

/// Batch normalisation over `[B, H, W]` with PyTorch's defaults.
#[derive(Debug)]
pub(super) struct BatchNorm2d {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) running_mean: Tensor,
    pub(super) running_var: Tensor,
    /// The ranks over whose images it normalises when it trains.
    pub(super) world: World,
}

impl BatchNorm2d {
    pub(super) const MOMENTUM: f64 = 0.1;
    pub(super) const EPSILON: f64 = 1e-5;

    /// `[B, C, H, W]` to the same shape and kind. Training updates the running statistics in place.
    ///
    /// Fails when training sees a single value a channel, whose variance would poison the running one with NaN.
    pub(super) fn forward(&self, input: &Tensor, pass: Pass) -> Result<Tensor> {
        let values_per_channel = input.numel() / self.weight.numel().max(1) * self.world.size();
        if pass.normalises_by_batch() && values_per_channel < 2 {
            let what = "batch normalisation cannot train on one value per channel";
            return Err(Error::usage(what).with_hint("raise train.batch_size or views.size"));
        }
        if pass.normalises_by_batch() && !self.world.is_alone() {
            return self.over_ranks(input, values_per_channel as f64);
        }
        Ok(input.f_batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            pass.normalises_by_batch(),
            Self::MOMENTUM,
            Self::EPSILON,
            true,
        )?)
    }

    /// The same over `count` values a channel of all ranks, as many on each: mean first, then the squares about it, which do not
    /// cancel. Gradients flow through both sums.
    fn over_ranks(&self, input: &Tensor, count: f64) -> Result<Tensor> {
        let channels = self.weight.numel() as i64;
        let sum = |values: &Tensor| -> Result<Tensor> {
            let own = values.f_sum_dim_intlist([0, 2, 3].as_slice(), false, Kind::Float)?;
            self.world.sum_with_gradient(&own)
        };
        let spread = |values: &Tensor| values.f_view([1, channels, 1, 1]);
        let values = input.f_to_kind(Kind::Float)?;
        let mean = sum(&values)?.f_div_scalar(count)?;
        let centred = values.f_sub(&spread(&mean)?)?;
        let variance = sum(&centred.f_square()?)?.f_div_scalar(count)?;
        let scale = variance.f_add_scalar(Self::EPSILON)?.f_rsqrt()?.f_mul(&self.weight)?;
        let output = centred.f_mul(&spread(&scale)?)?.f_add(&spread(&self.bias)?)?;

        let _guard = tch::no_grad_guard();
        let unbiased = variance.f_mul_scalar(count / (count - 1.0))?;
        for (running, new) in [(&self.running_mean, &mean), (&self.running_var, &unbiased)] {
            let _ = running.shallow_clone().f_lerp_(&new.f_detach()?, Self::MOMENTUM)?;
        }
        Ok(output.f_to_kind(input.kind())?)
    }
}

/// An affine map.
#[derive(Debug)]
pub(super) struct Linear {
    /// `[outputs, inputs]`
    pub(super) weight: Tensor,
    /// `[outputs]`
    pub(super) bias: Tensor,
}

impl Linear {
    /// `[B, inputs]` to `[B, outputs]`, in `kind`.
    pub(super) fn forward(&self, input: &Tensor, kind: Kind) -> Result<Tensor> {
        let (weight, bias) = (self.weight.f_to_kind(kind)?, self.bias.f_to_kind(kind)?);
        Ok(input.f_to_kind(kind)?.f_linear(&weight, Some(&bias))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn norm(channels: i64) -> BatchNorm2d {
        let full = |value: f64| Tensor::full([channels], value, (Kind::Float, Device::Cpu));
        BatchNorm2d {
            weight: full(2.0),
            bias: full(0.5),
            running_mean: full(0.0),
            running_var: full(1.0),
            world: World::alone(),
        }
    }

    #[test]
    fn batch_norm_normalises_and_moves_its_running_statistics_by_a_tenth() -> Result<()> {
        // channel 0 holds 1, 2, 3, 6: mean 3, biased variance 14/4, unbiased 14/3
        let input = Tensor::from_slice(&[1f32, 2.0, 3.0, 6.0]).reshape([4, 1, 1, 1]);
        let layer = norm(1);
        let output = layer.forward(&input, Pass { mode: Mode::Train, precision: Precision::Fp32 })?;
        let deviation = (3.5f64 + 1e-5).sqrt();
        for (row, value) in [1.0, 2.0, 3.0, 6.0].into_iter().enumerate() {
            let expected = 2.0 * (value - 3.0) / deviation + 0.5;
            assert!((output.double_value(&[row as i64, 0, 0, 0]) - expected).abs() < 1e-5);
        }
        assert!((layer.running_mean.double_value(&[0]) - 0.3).abs() < 1e-6);
        assert!((layer.running_var.double_value(&[0]) - (0.9 + 0.1 * 14.0 / 3.0)).abs() < 1e-6);

        let before = layer.running_mean.copy();
        let _ = layer.forward(&input, Pass { mode: Mode::Eval, precision: Precision::Fp32 })?;
        assert_eq!(before, layer.running_mean, "evaluation leaves the running statistics alone");
        Ok(())
    }

    #[test]
    fn batch_norm_over_ranks_is_that_over_their_whole_batch_with_its_gradients() -> Result<()> {
        let train = Pass { mode: Mode::Train, precision: Precision::Fp32 };
        let run = |world: &World| -> Result<Vec<Vec<f32>>> {
            let images = crate::cluster::samples::normal(1, 12, 3 * 20).view([12, 3, 4, 5]) * 2.0 + 7.0;
            let pull = crate::cluster::samples::normal(2, 12, 3 * 20).view([12, 3, 4, 5]);
            let (rank, size) = (world.rank() as i64, world.size() as i64);
            let part = |all: &Tensor| all.narrow(0, rank * 12 / size, 12 / size);
            let layer = BatchNorm2d { world: world.clone(), ..norm(3) };
            let (weight, bias) = (layer.weight.set_requires_grad(true), layer.bias.set_requires_grad(true));
            let input = part(&images).copy().set_requires_grad(true);
            let output = layer.forward(&input, train)?;
            // The loss of a rank is a mean over its images; what is averaged over ranks is then that of all.
            (&output * part(&pull)).mean(Kind::Float).f_backward()?;
            let share = 1.0 / size as f64;
            let mut found = vec![output.detach(), input.grad() * share, layer.running_mean, layer.running_var];
            for gradient in [weight.grad(), bias.grad()] {
                world.reduce(&gradient, crate::torch::c10d::Reduction::Sum)?;
                found.push(gradient * share);
            }
            found.into_iter().map(|tensor| Ok(Vec::try_from(tensor.reshape([-1]))?)).collect()
        };
        let whole = run(&World::alone())?;
        let found = crate::world::tests::of_ranks(3, run);
        for (rank, found) in found.iter().enumerate() {
            for (index, (found, whole)) in found.iter().zip(&whole).enumerate() {
                let expected = if index < 2 { &whole[rank * 240..][..240] } else { &whole[..] };
                let far = found.iter().zip(expected).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max);
                assert!(found.len() == expected.len() && far < 2e-5, "tensor {index} of rank {rank} is off by {far}");
            }
        }
        Ok(())
    }

    #[test]
    fn batch_norm_refuses_to_train_on_a_single_value() {
        let input = Tensor::zeros([1, 3, 1, 1], (Kind::Float, Device::Cpu));
        let error = norm(3).forward(&input, Pass { mode: Mode::Train, precision: Precision::Fp32 });
        assert!(error.expect_err("one value a channel").hint().is_some_and(|hint| hint.contains("batch_size")));
    }
}
