//! Fast R-CNN (Girshick, ICCV 2015) on top of a pre-trained network: convolutions, pooled regions, linear layers, and two new
//! layers for classes and corrections.
//!
//! In: a [`Backbone`] with linear layers, whose weights it shares, and regions of a photograph. Out: logits of 21 classes,
//! background first, and a correction for each class; a loss over sampled regions. The last maps are taken before their pool,
//! and regions are pooled to the size that the first linear layer takes: 6 x 6 for AlexNet, 7 x 7 for VGG-16. Batch norm keeps its
//! statistics throughout; dropout is where the network has it.

use super::pooling::{self, Region};
use super::sampling::Sample;
use crate::config::Arch;
use crate::error::{Error, Result};
use crate::evaluate::voc::devkit::CLASSES;
use crate::model::init::normal_values;
use crate::model::{Backbone, Mode, Named};
use tch::{Device, Kind, Reduction, Tensor};

/// Classes with the background.
pub const OUTPUTS: i64 = CLASSES.len() as i64 + 1;

/// What is trained besides the new layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// The linear layers: `fc6-8` of the paper.
    Linear,
    /// Convolutions too, but for the first of them, as published: conv1 of AlexNet, conv1 and conv2 of VGG-16.
    All,
}

impl Trained {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "fc6-8",
            Self::All => "all",
        }
    }
}

/// A network that finds objects.
#[derive(Debug)]
pub struct Detector<'a> {
    backbone: &'a Backbone,
    /// The last convolution.
    layer: &'static str,
    /// Side of a pooled region.
    side: i64,
    /// Pixels from one cell of the last map to the next.
    stride: f32,
    scores: Layer,
    corrections: Layer,
}

#[derive(Debug)]
struct Layer {
    weight: Tensor,
    bias: Tensor,
}

impl Layer {
    /// N(0, deviation²) and 0.
    fn new(name: &str, shape: [i64; 2], deviation: f64, seed: u64, device: Device) -> Result<Self> {
        let values = normal_values(seed, &format!("{name}.weight"), (shape[0] * shape[1]) as usize, deviation);
        let weight = Tensor::f_from_slice(&values)?.f_view(shape)?.f_to_device(device)?.f_set_requires_grad(true)?;
        let bias = Tensor::f_zeros([shape[0]], (Kind::Float, device))?.f_set_requires_grad(true)?;
        Ok(Self { weight, bias })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        Ok(input.f_linear(&self.weight, Some(&self.bias))?)
    }
}

impl<'a> Detector<'a> {
    /// Puts new layers, which depend on `seed` alone, on a network.
    ///
    /// # Errors
    /// The network has no linear layers.
    pub fn new(backbone: &'a Backbone, seed: u64) -> Result<Self> {
        let arch = backbone.plan().arch;
        let stride = match arch {
            Arch::AlexNet | Arch::Vgg16 => 16.0,
            Arch::Small => 8.0,
            Arch::ResNet18 | Arch::ResNet50 => {
                let what = format!("detection is measured with fc6 and fc7, which {} lacks", arch.name());
                return Err(Error::usage(what).with_hint("take a network of alexnet, vgg16 or small"));
            }
        };
        let parameters = backbone.parameters();
        let first_linear =
            parameters.iter().find(|(name, tensor)| name.starts_with("classifier.") && tensor.dim() == 2);
        let last_conv = parameters.iter().rfind(|(_, tensor)| tensor.dim() == 4);
        let (Some((_, linear)), Some((_, conv)), Some(layer)) = (first_linear, last_conv, backbone.map_layers().pop())
        else {
            return Err(Error::usage(format!("{} has no convolution below its linear layers", arch.name())));
        };
        let side = (linear.size()[1] / conv.size()[0]).isqrt();
        let (width, device) = (backbone.feature_dim(), backbone.device());
        let scores = Layer::new("cls_score", [OUTPUTS, width], 0.01, seed, device)?;
        let corrections = Layer::new("bbox_pred", [4 * OUTPUTS, width], 0.001, seed, device)?;
        Ok(Self { backbone, layer, side, stride, scores, corrections })
    }

    /// The new layers by the names of the published code, sharing storage.
    pub fn head(&self) -> Named {
        let named = |name: &str, tensor: &Tensor| (name.to_owned(), tensor.shallow_clone());
        vec![
            named("cls_score.weight", &self.scores.weight),
            named("cls_score.bias", &self.scores.bias),
            named("bbox_pred.weight", &self.corrections.weight),
            named("bbox_pred.bias", &self.corrections.bias),
        ]
    }

    /// The network beneath.
    pub fn backbone(&self) -> &Backbone {
        self.backbone
    }

    /// Fixes what is not to be trained; what is.
    pub fn train_only(&self, trained: Trained) -> Result<Named> {
        let layers = self.backbone.map_layers();
        let fixed = match trained {
            Trained::Linear => layers.len(),
            Trained::All if self.backbone.plan().arch == Arch::Vgg16 => {
                layers.iter().filter(|layer| layer.starts_with("conv1_") || layer.starts_with("conv2_")).count()
            }
            Trained::All => 1,
        };
        let mut parameters = self.head();
        // Each convolution has a weight and a bias, and so has its batch norm.
        for (at, (name, tensor)) in self.backbone.parameters().into_iter().enumerate() {
            let is_trained = at >= 4 * fixed;
            let tensor = tensor.f_set_requires_grad(is_trained)?;
            if is_trained {
                parameters.push((name, tensor));
            }
        }
        Ok(parameters)
    }

    /// The last map `[C, H, W]` of one normalised image `[1, 3, H, W]`.
    pub fn map(&self, image: &Tensor, mode: Mode) -> Result<Tensor> {
        let maps = self.backbone.activations(image, &[self.layer], mode)?;
        let map = maps.into_iter().next().ok_or_else(|| Error::usage(format!("there is no layer {}", self.layer)))?;
        Ok(map.f_squeeze_dim(0)?)
    }

    /// Regions of a map, as the linear layers take them: `[R, C · side²]`.
    pub fn pool(&self, map: &Tensor, regions: &[Region]) -> Result<Tensor> {
        Ok(pooling::max_pool(map, regions, self.side, 1.0 / self.stride)?.f_flatten(1, -1)?)
    }

    /// Logits `[R, 21]` and corrections `[R, 84]`, four a class, of pooled regions.
    pub fn judge(&self, pooled: &Tensor, mode: Mode) -> Result<(Tensor, Tensor)> {
        let features = self.backbone.connect(pooled, mode)?.f_relu()?;
        Ok((self.scores.forward(&features)?, self.corrections.forward(&features)?))
    }
}

/// Mean cross-entropy of the classes, plus the smooth L1 loss of the corrections of regions on objects, over the number of all
/// regions (equations 1 to 3).
pub fn loss(logits: &Tensor, corrections: &Tensor, samples: &[Sample], targets: &[[f32; 4]]) -> Result<Tensor> {
    let device = logits.device();
    let classes: Vec<i64> = samples.iter().map(|sample| sample.class).collect();
    let labels = Tensor::f_from_slice(&classes)?.f_to_device(device)?;
    let wrong = logits.f_cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Mean, -100, 0.0)?;
    let on_objects: Vec<usize> = (0..samples.len()).filter(|&at| classes[at] > 0).collect();
    let rows: Vec<i64> = on_objects.iter().map(|&at| at as i64 * OUTPUTS + classes[at]).collect();
    let wanted: Vec<f32> = on_objects.iter().flat_map(|&at| targets[at]).collect();
    let rows = Tensor::f_from_slice(&rows)?.f_to_device(device)?;
    let wanted = Tensor::f_from_slice(&wanted)?.f_view([-1, 4])?.f_to_device(device)?;
    let found = corrections.f_reshape([-1, 4])?.f_index_select(0, &rows)?;
    let off = found.f_smooth_l1_loss(&wanted, Reduction::Sum, 1.0)?.f_div_scalar(samples.len() as f64)?;
    Ok(wrong.f_add(&off)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelPlan, Precision};
    use crate::evaluate::voc::devkit::Bounds;

    /// Weights are 0: drawing those of VGG-16 takes longer than all else here.
    fn empty(arch: Arch, size: u32) -> Backbone {
        let plan = ModelPlan { arch, ..ModelPlan::default() };
        Backbone::build(&plan, size, None, Device::Cpu, Precision::Fp32).expect("a network")
    }

    #[test]
    fn the_loss_by_hand() -> Result<()> {
        let bounds = Bounds { left: 0.0, top: 0.0, right: 9.0, bottom: 9.0 };
        let sample = |class| Sample { region: bounds, class, object: bounds };
        let logits = Tensor::zeros([2, OUTPUTS], (Kind::Float, Device::Cpu));
        // The correction of class 3 of the second region is off by 0.5, 2, 0, 0; those of background and of other classes count nothing.
        let corrections = Tensor::full([2, 4 * OUTPUTS], 7.0, (Kind::Float, Device::Cpu));
        let own = corrections.narrow(0, 1, 1).narrow(1, 12, 4);
        own.shallow_clone().copy_(&Tensor::from_slice(&[1.5f32, 3.0, 1.0, 1.0]).reshape([1, 4]));
        let found = loss(&logits, &corrections, &[sample(0), sample(3)], &[[0.0; 4], [1.0; 4]])?;
        let expected = 21f64.ln() + (0.5 * 0.25 + 1.5) / 2.0;
        assert!((found.double_value(&[]) - expected).abs() < 1e-5, "{found:?} instead of {expected}");
        let background = loss(&logits, &corrections, &[sample(0); 2], &[[0.0; 4]; 2])?;
        assert!((background.double_value(&[]) - 21f64.ln()).abs() < 1e-5);
        Ok(())
    }

    #[test]
    fn every_architecture_with_linear_layers_pools_what_they_take_and_keeps_its_first_convolutions() -> Result<()> {
        for (arch, size, side, first) in [
            (Arch::AlexNet, 224, 6, "features.4.weight"),
            (Arch::Small, 64, 2, "features.3.weight"),
            (Arch::Vgg16, 224, 7, "features.14.weight"),
        ] {
            let backbone = empty(arch, size);
            let detector = Detector::new(&backbone, 1)?;
            assert_eq!(detector.side, side, "{arch:?}");
            let map = detector.map(&Tensor::zeros([1, 3, 70, 100], (Kind::Float, Device::Cpu)), Mode::Eval)?;
            let region = Region { left: 3.0, top: 3.0, right: 50.0, bottom: 40.0 };
            let (logits, corrections) = detector.judge(&detector.pool(&map, &[region; 3])?, Mode::Eval)?;
            assert_eq!((logits.size(), corrections.size()), (vec![3, 21], vec![3, 84]));

            assert_eq!(detector.train_only(Trained::All)?[4].0, first);
            let linear = detector.train_only(Trained::Linear)?;
            assert!(linear[4].0.starts_with("classifier."), "{}", linear[4].0);
            let fixed = backbone.parameters().iter().filter(|(_, tensor)| !tensor.requires_grad()).count();
            assert_eq!(fixed + linear.len() - 4, backbone.parameters().len());
        }
        Ok(())
    }

    #[test]
    fn networks_without_linear_layers_are_refused() {
        let backbone = empty(Arch::ResNet18, 64);
        let error = Detector::new(&backbone, 1).expect_err("no fc6");
        assert!(error.to_string().contains("resnet18") && error.hint().is_some_and(|hint| hint.contains("alexnet")));
    }
}
