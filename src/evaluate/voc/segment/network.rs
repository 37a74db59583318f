//! A fully convolutional network: a body, fc6 and fc7 as convolutions, scores, and their way back to the size of the photograph.
//!
//! In: a [`Backbone`] of AlexNet or VGG-16, and photographs of any size. Out: a score for each class at each pixel, `[B, 21, H, W]`. Scores start
//! at zero. Upsampling between maps starts bilinear and is trained; the last one stays bilinear. Scores are of pool4 over 100 and of
//! pool3 over 10,000, so that all of them may be trained from the start (Shelhamer et al., PAMI 2017).

use super::Settings;
use super::geometry::{Axis, Layout};
use super::measure::LABELS;
use crate::error::{Error, Result};
use crate::evaluate::voc::classify::Trained;
use crate::model::{Backbone, Mode, Named};
use tch::{Device, Kind, Tensor};

/// Scores of one layer.
#[derive(Debug)]
struct Score {
    /// What its maps are multiplied by.
    scale: f64,
    /// `[21, C, 1, 1]`
    weight: Tensor,
    /// `[21]`
    bias: Tensor,
    /// `[21, 21, 4, 4]`: brings the scores of the layer above to this one's size.
    upsampling: Option<Tensor>,
}

/// A network that scores every pixel.
#[derive(Debug)]
pub struct Segmenter {
    backbone: Backbone,
    layout: Layout,
    /// Weight and bias of fc6 and fc7.
    linear: [(Tensor, Tensor); 2],
    /// From the coarsest layer on.
    scores: Vec<Score>,
    /// `[21, 1, K, K]`: each class for itself.
    last: Tensor,
    trained: Named,
}

impl Segmenter {
    /// From a copy of `pretrained`, whose own weights stay as they are.
    ///
    /// # Errors
    /// A network that has no such layout, or whose linear layers are for another size of image.
    pub fn new(pretrained: &Backbone, settings: &Settings) -> Result<Self> {
        let layout = Layout::of(pretrained.plan().arch, settings.stride)?;
        let backbone = pretrained.duplicate()?;
        let (mut trained, mut linear) = (Named::new(), Vec::new());
        {
            let _no_grad = tch::no_grad_guard();
            for (name, tensor) in backbone.parameters() {
                let connects = name.starts_with("classifier.");
                let moves = settings.train == Trained::All || connects;
                let tensor = tensor.f_set_requires_grad(moves)?;
                if connects {
                    linear.push(tensor.shallow_clone());
                }
                if moves {
                    trained.push((name, tensor));
                }
            }
        }
        let Ok([weight6, bias6, weight7, bias7]) = <[Tensor; 4]>::try_from(linear) else {
            return Err(Error::usage("the network does not have fc6 and fc7 alone"));
        };
        if weight6.size2()?.1 != layout.fc6_inputs() {
            let (size, side) = (backbone.size(), layout.fc6);
            return Err(Error::usage(format!(
                "fc6 of a network for {size} pixels is no convolution of {side} x {side}"
            ))
            .with_hint("take a network for images of 224 pixels"));
        }

        let device = backbone.device();
        let mut scores = Vec::new();
        for (at, &(scale, channels)) in layout.scored.iter().enumerate() {
            let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Float, device));
            let weight = zeros(&[LABELS as i64, channels, 1, 1])?.f_set_requires_grad(true)?;
            let bias = zeros(&[LABELS as i64])?.f_set_requires_grad(true)?;
            let upsampling = if at > 0 { Some(doubling(device)?.f_set_requires_grad(true)?) } else { None };
            trained.push((format!("score.{at}.weight"), weight.shallow_clone()));
            trained.push((format!("score.{at}.bias"), bias.shallow_clone()));
            trained.extend(upsampling.iter().map(|kernel| (format!("score.{at}.upsampling"), kernel.shallow_clone())));
            scores.push(Score { scale, weight, bias, upsampling });
        }
        let last = bilinear(layout.last_kernel, device)?;
        let last = last.f_repeat([LABELS as i64, 1, 1, 1])?;
        Ok(Self { backbone, layout, linear: [(weight6, bias6), (weight7, bias7)], scores, last, trained })
    }

    /// `[B, 3, H, W]` normalised images to `[B, 21, H, W]` scores.
    pub fn scores(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let shape = images.size();
        let [before, after] = self.layout.padding;
        let padded = images.f_constant_pad_nd([before, after, before, after])?;
        let layers: Vec<&str> = self.layout.taps.iter().map(|(layer, _)| *layer).collect();
        let (kernel, stride) = self.layout.pool;
        let mut maps = Vec::with_capacity(layers.len());
        for map in self.backbone.activations(&padded, &layers, mode)? {
            maps.push(map.f_max_pool2d([kernel; 2], [stride; 2], [0; 2], [1; 2], false)?);
        }

        // From the coarsest on.
        let mut scored = maps.iter().zip(&self.layout.taps).rev().zip(&self.scores);
        let Some(((map, (_, axis)), score)) = scored.next() else { return Err(Error::usage("no layer is scored")) };
        let connected = self.connect(map, mode)?;
        let mut axis = axis.window(self.layout.fc6, 1, 0);
        let mut sum = connected.f_conv2d(&score.weight, Some(&score.bias), [1; 2], [0; 2], [1; 2], 1)?;
        for ((map, (_, finer)), score) in scored {
            if let Some(kernel) = &score.upsampling {
                sum = upsampled(&sum, kernel, 2, 1)?;
                axis = axis.upsampled(4, 2);
            }
            let own = map.f_mul_scalar(score.scale)?;
            let own = own.f_conv2d(&score.weight, Some(&score.bias), [1; 2], [0; 2], [1; 2], 1)?;
            let [.., height, width] = sum.size()[..] else { return Err(Error::usage("scores are not maps")) };
            sum = cut(&own, finer.start_of(axis)?, (height, width))?.f_add(&sum)?;
        }
        let full = upsampled(&sum, &self.last, axis.stride(), LABELS as i64)?;
        axis = axis.upsampled(self.layout.last_kernel, axis.stride());
        cut(&full, axis.start_of(Axis::PHOTOGRAPH)?, (shape[2], shape[3]))
    }

    /// fc6 and fc7 as convolutions, each with ReLU and dropout.
    fn connect(&self, map: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut x = map.shallow_clone();
        for ((weight, bias), side) in self.linear.iter().zip([self.layout.fc6, 1]) {
            let (outputs, inputs) = weight.size2()?;
            let kernel = weight.f_view([outputs, inputs / (side * side), side, side])?;
            x = x.f_conv2d(&kernel, Some(bias), [1; 2], [0; 2], [1; 2], 1)?.f_relu()?;
            x = x.f_dropout(self.backbone.plan().dropout, mode != Mode::Eval)?;
        }
        Ok(x)
    }

    /// What is trained, sharing storage and gradients with the network.
    pub fn trained(&self) -> Named {
        self.trained.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    /// The body.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }
}

/// A transposed convolution without padding.
fn upsampled(x: &Tensor, kernel: &Tensor, stride: i64, groups: i64) -> Result<Tensor> {
    let no_bias: Option<&Tensor> = None;
    Ok(x.f_conv_transpose2d(kernel, no_bias, [stride; 2], [0; 2], [0; 2], groups, [1; 2])?)
}

/// The part of `height` and `width` entries that begins `start` from both edges.
fn cut(x: &Tensor, start: i64, (height, width): (i64, i64)) -> Result<Tensor> {
    Ok(x.f_narrow(2, start, height)?.f_narrow(3, start, width)?)
}

/// `[1, 1, side, side]`: a triangle that is as wide as two strides of it, in both directions.
fn bilinear(side: i64, device: Device) -> Result<Tensor> {
    let half = ((side + 1) / 2) as f64;
    let centre = (side - 1) as f64 / 2.0;
    let line: Vec<f32> = (0..side).map(|at| (1.0 - (at as f64 - centre).abs() / half) as f32).collect();
    let line = Tensor::f_from_slice(&line)?.f_to_device(device)?;
    Ok(line.f_outer(&line)?.f_view([1, 1, side, side])?)
}

/// `[21, 21, 4, 4]`: bilinear from each class to itself, and nothing between classes.
fn doubling(device: Device) -> Result<Tensor> {
    let each = Tensor::f_eye(LABELS as i64, (Kind::Float, device))?.f_view([LABELS as i64, LABELS as i64, 1, 1])?;
    Ok(each.f_mul(&bilinear(4, device)?)?)
}

#[cfg(test)]
mod tests {
    use super::super::Stride;
    use super::*;
    use crate::config::Precision;

    #[test]
    fn bilinear_upsampling_keeps_constants_and_slopes() -> Result<()> {
        // Values 0, 1, 2, ... at steps of 2: inside, a line of slope 1/2.
        let line = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([1, 1, 1, 6]).repeat([1, 1, 6, 1]);
        let found = upsampled(&line, &bilinear(4, Device::Cpu)?, 2, 1)?;
        assert_eq!(found.size(), [1, 1, 14, 14]);
        for column in 3..11 {
            // Entry o lies at (o - 3/2) / 2 of the line.
            let expected = (column as f64 - 1.5) / 2.0;
            assert!((found.double_value(&[0, 0, 6, column]) - expected).abs() < 1e-6, "{column}");
        }
        // The odd kernel of AlexNet.
        let ones = Tensor::ones([1, 1, 5, 5], (Kind::Float, Device::Cpu));
        let found = upsampled(&ones, &bilinear(63, Device::Cpu)?, 32, 1)?;
        assert!((found.double_value(&[0, 0, 90, 90]) - 1.0).abs() < 1e-5);
        Ok(())
    }

    #[test]
    fn linear_layers_for_another_size_are_refused() -> Result<()> {
        let small = Backbone::random("alexnet:sobel:63", 1, Device::Cpu, Precision::Fp32)?;
        let error = Segmenter::new(&small, &Settings::default()).expect_err("fc6 does not fit");
        assert!(error.to_string().contains("63") && error.hint().is_some_and(|hint| hint.contains("224")), "{error}");
        Ok(())
    }

    #[test]
    fn sizes_fit_at_every_length() -> Result<()> {
        // Lengths alone, without weights: what every stage leaves of a line of pixels.
        use crate::config::Arch;
        for (arch, stride) in [
            (Arch::AlexNet, Stride::ThirtyTwo),
            (Arch::Vgg16, Stride::ThirtyTwo),
            (Arch::Vgg16, Stride::Sixteen),
            (Arch::Vgg16, Stride::Eight),
        ] {
            let layout = Layout::of(arch, stride)?;
            for length in 1..700 {
                let lengths = layout.lengths(length);
                let (_, coarsest) = layout.taps[layout.taps.len() - 1];
                let mut axis = coarsest.window(layout.fc6, 1, 0);
                let mut scores = lengths[lengths.len() - 1] - layout.fc6 + 1;
                for (at, (_, finer)) in layout.taps.iter().enumerate().rev().skip(1) {
                    (axis, scores) = (axis.upsampled(4, 2), 2 * (scores - 1) + 4);
                    assert!(finer.start_of(axis)? + scores <= lengths[at], "{arch:?} {stride:?} {length}");
                }
                let full = axis.stride() * (scores - 1) + layout.last_kernel;
                let last = axis.upsampled(layout.last_kernel, axis.stride());
                assert!(last.start_of(Axis::PHOTOGRAPH)? + length <= full, "{arch:?} {stride:?} {length}");
            }
        }
        Ok(())
    }
}
