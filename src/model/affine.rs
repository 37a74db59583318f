//! The affine layers of a network without branches, one by one: what somebody needs who sets their weights from data.
//!
//! In: a network. Out: each convolution and linear layer from the image up, sharing storage with the network ([`Affine`]), and what it sees of a
//! batch ([`Backbone::input_of`]). A layer's output is what batch norm takes, where there is one, and ReLU otherwise.
//!
//! Errors: a ResNet, whose layers do not come one after the other; libtorch's own.

use crate::error::{Error, Result};
use crate::model::layers::{Mode, Pass};
use crate::model::{Backbone, Body};
use tch::Tensor;

/// How a convolution moves over its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// Side of the window.
    pub kernel: i64,
    /// Pixels between two windows.
    pub stride: i64,
    /// Zeros around the input.
    pub padding: i64,
}

/// One affine layer, in fp32.
#[derive(Debug)]
pub struct Affine {
    /// As in [`Backbone::layers`].
    pub name: &'static str,
    /// `[outputs, inputs, kernel, kernel]`, or `[outputs, inputs]`.
    pub weight: Tensor,
    /// `[outputs]`.
    pub bias: Tensor,
    /// Running mean and variance of the batch norm after it, `[outputs]` each, if there is one.
    pub statistics: Option<(Tensor, Tensor)>,
    /// None for a linear layer.
    pub sweep: Option<Sweep>,
}

impl Affine {
    /// Output channels.
    pub fn outputs(&self) -> i64 {
        self.bias.numel() as i64
    }

    /// Weights of one output channel.
    pub fn inputs(&self) -> i64 {
        self.weight.numel() as i64 / self.outputs().max(1)
    }

    /// `[B, inputs, H, W]` to `[B, outputs, H', W']`, or `[B, inputs]` to `[B, outputs]`.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let Some(Sweep { stride, padding, .. }) = self.sweep else {
            return Ok(input.f_linear(&self.weight, Some(&self.bias))?);
        };
        Ok(input.f_conv2d(&self.weight, Some(&self.bias), [stride; 2], [padding; 2], [1, 1], 1)?)
    }
}

impl Backbone {
    /// Its affine layers, from the image up.
    ///
    /// # Errors
    /// A ResNet.
    pub fn affines(&self) -> Result<Vec<Affine>> {
        match &self.body {
            Body::Plain(body) => body.affines(),
            Body::ResNet(_) => Err(self.has_branches()),
        }
    }

    /// What the affine layer at `position` of [`Backbone::affines`] sees of `[B, 3, S, S]` normalised images, in evaluation mode:
    /// `[B, C, H, W]`, or `[B, D]`.
    ///
    /// # Errors
    /// A ResNet.
    pub fn input_of(&self, images: &Tensor, position: usize) -> Result<Tensor> {
        let Body::Plain(body) = &self.body else { return Err(self.has_branches()) };
        let pass = Pass { mode: Mode::Eval, precision: self.precision };
        body.input_of(&self.front(images)?, position, pass)
    }

    fn has_branches(&self) -> Error {
        let arch = self.plan.arch.name();
        Error::usage(format!("{arch} has branches: its layers do not come one after the other"))
            .with_hint("one of alexnet, vgg16, small")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Precision;
    use tch::{Device, Kind};

    #[test]
    fn layer_by_layer_is_the_network() -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for spec in ["small:sobel:28", "small:rgb:40"] {
            let network = Backbone::random(spec, 3, Device::Cpu, Precision::Fp32)?;
            let side = i64::from(network.size());
            let images = Tensor::arange(2 * 3 * side * side, (Kind::Float, Device::Cpu)).sin().view([2, 3, side, side]);
            let affines = network.affines()?;
            assert_eq!(affines.iter().map(|affine| affine.name).collect::<Vec<_>>(), network.layers());
            let last = affines.len() - 1;
            let output = affines[last].forward(&network.input_of(&images, last)?)?;
            assert_eq!(output, network.forward(&images, Mode::Eval)?, "{spec}");
            let first = affines[0].forward(&network.input_of(&images, 0)?)?;
            assert_eq!(first.size()[1], affines[0].outputs());
            assert_eq!(affines[0].inputs(), affines[0].weight.numel() as i64 / first.size()[1]);
        }
        Ok(())
    }

    #[test]
    fn networks_with_branches_are_refused() -> Result<()> {
        let network = Backbone::random("resnet18:rgb:32", 3, Device::Cpu, Precision::Fp32)?;
        let error = network.affines().expect_err("it has branches");
        assert!(error.to_string().contains("resnet18") && error.exit_code() == 2, "{error}");
        Ok(())
    }
}
