//! The image that a filter answers most, by gradient ascent with regularisation (paper, Figure 4; Yosinski et al., 2015).
//!
//! In: a network, a layer, some of its filters. Out: an image for each, `[F, 3, S, S]`, found from noise: every step climbs the
//! log-probability of the filter among all of its layer, by the spatial means of their activations, less a penalty on the image's
//! length; now and then the image is blurred. All filters climb in one batch. A filter that is silent everywhere has no slope after
//! ReLU: until it answers, what ReLU is applied to is climbed. What can go wrong: a filter that the layer lacks.
//!
//! The settings are those of the authors' program, which starts from pixels of 128 ± 20.

use crate::error::{Error, Result};
use crate::model::{Backbone, Normalizer};
use image::RgbImage;
use tch::{Device, Kind, Tensor};

/// Radius of the blur in pixels: four deviations of 0.3.
const BLUR_RADIUS: i64 = 1;
/// Contrast of the picture that is shown.
const SHOWN_DEVIATION: f64 = 0.1;

/// How to climb.
#[derive(Clone, Copy, Debug)]
pub struct Ascent {
    /// Steps.
    pub steps: usize,
    /// Length of a step, of an image's whole gradient scaled to length one.
    pub lr: f64,
    /// Penalty on the squared length of the image.
    pub weight_decay: f64,
    /// Steps between two blurs; 0 blurs never.
    pub blur_every: usize,
    /// Deviation of the blur in pixels.
    pub blur: f64,
    /// Of the noise it starts from.
    pub seed: i64,
}

impl Default for Ascent {
    fn default() -> Self {
        Self { steps: 1_000, lr: 3.0, weight_decay: 1e-5, blur_every: 5, blur: 0.3, seed: 31 }
    }
}

impl Ascent {
    /// Climbs for `filters` of `layer` with images of the network's size; `tell` hears of each step that is done.
    ///
    /// # Errors
    /// The layer has no such filter.
    pub fn climb(
        &self,
        backbone: &Backbone,
        normalizer: &Normalizer,
        layer: &str,
        filters: &[i64],
        tell: &mut dyn FnMut(usize),
    ) -> Result<Tensor> {
        let mut images = self.noise(backbone, normalizer, filters.len() as i64)?;
        check_filters(backbone, layer, filters)?;
        let targets = Tensor::f_from_slice(filters)?.f_to_device(backbone.device())?;
        let blur = self.kernel(backbone.device())?;
        for step in 1..=self.steps {
            let slope = self.slope(backbone, layer, &targets, &images)?;
            let _no_grad = tch::no_grad_guard();
            let length = slope.f_flatten(1, -1)?.f_norm_scalaropt_dim(2, [1], true)?.f_view([-1, 1, 1, 1])? + 1e-8;
            images = images.f_add(&(slope.f_div(&length)? * self.lr))?;
            if self.blur_every > 0 && step.is_multiple_of(self.blur_every) {
                images = images.f_pad([BLUR_RADIUS; 4], "replicate", None)?.f_conv2d(
                    &blur,
                    None::<&Tensor>,
                    [1, 1],
                    [0, 0],
                    [1, 1],
                    3,
                )?;
            }
            tell(step);
        }
        Ok(images)
    }

    /// Where it starts, as the network takes it.
    fn noise(&self, backbone: &Backbone, normalizer: &Normalizer, count: i64) -> Result<Tensor> {
        let side = i64::from(backbone.size());
        tch::manual_seed(self.seed);
        let noise = Tensor::f_randn([count, side, side, 3], (Kind::Float, Device::Cpu))? * 20.0 + 128.0;
        let pixels = noise.f_clamp(0.0, 255.0)?.f_to_kind(Kind::Uint8)?.f_to_device(backbone.device())?;
        normalizer.prepare(&pixels)
    }

    /// The gradient of every image's objective.
    fn slope(&self, backbone: &Backbone, layer: &str, targets: &Tensor, images: &Tensor) -> Result<Tensor> {
        let images = images.f_detach()?.f_set_requires_grad(true)?;
        let drive = backbone.before_relu(&images, layer)?;
        let answers = spatial_means(&drive.f_relu()?)?;
        let silent = answers.f_gather(1, &targets.f_unsqueeze(1)?, false)?.f_le(0.0)?;
        let answers = spatial_means(&drive)?.f_where_self(&silent, &answers)?;
        let wrong = answers.f_cross_entropy_loss::<Tensor>(targets, None, tch::Reduction::Sum, -100, 0.0)?;
        let objective = -wrong - images.f_square()?.f_sum(Kind::Float)? * self.weight_decay;
        let slopes = Tensor::f_run_backward(&[objective], &[&images], false, false)?;
        slopes.into_iter().next().ok_or_else(|| Error::device("libtorch gives no gradient of an image"))
    }

    /// A Gaussian for each of three channels, `[3, 1, 3, 3]`.
    fn kernel(&self, device: Device) -> Result<Tensor> {
        let weight = |offset: i64| (-((offset * offset) as f64) / (2.0 * self.blur.max(1e-3).powi(2))).exp();
        let line: Vec<f64> = (-BLUR_RADIUS..=BLUR_RADIUS).map(weight).collect();
        let line = Tensor::f_from_slice(&line)?;
        let line = &line / line.f_sum(Kind::Double)?;
        let plane = line.f_unsqueeze(1)?.f_matmul(&line.f_unsqueeze(0)?)?;
        Ok(plane.f_to_kind(Kind::Float)?.f_expand([3, 1, -1, -1], false)?.f_contiguous()?.f_to_device(device)?)
    }
}

/// `[B, C]` means over all places of `[B, C, H, W]`; `[B, D]` stays.
pub fn spatial_means(maps: &Tensor) -> Result<Tensor> {
    match maps.dim() {
        4 => Ok(maps.f_mean_dim(&[2_i64, 3][..], false, Kind::Float)?),
        _ => Ok(maps.f_to_kind(Kind::Float)?),
    }
}

/// Refuses filters that a layer lacks; how many it has.
pub fn check_filters(backbone: &Backbone, layer: &str, filters: &[i64]) -> Result<i64> {
    let _no_grad = tch::no_grad_guard();
    let side = i64::from(backbone.size());
    let probe = Tensor::f_zeros([1, 3, side, side], (Kind::Float, backbone.device()))?;
    let count = backbone.before_relu(&probe, layer)?.size()[1];
    match filters.iter().find(|filter| !(0..count).contains(*filter)) {
        Some(filter) => Err(Error::usage(format!("{layer} has no filter {filter}"))
            .with_hint(format!("its filters are numbered from 0 to {}", count - 1))),
        None => Ok(count),
    }
}

/// Images `[F, 3, S, S]` as they are shown: each moved to the middle and stretched to the same contrast.
pub fn pictures(images: &Tensor) -> Result<Vec<RgbImage>> {
    let each = (0..images.size()[0]).map(|index| {
        let image = images.f_get(index)?.f_to_device(Device::Cpu)?;
        let moved = &image - image.f_mean(Kind::Float)?;
        let stretched = &moved / (moved.f_std(true)? + 1e-5) * SHOWN_DEVIATION + 0.5;
        let pixels = (stretched.f_clamp(0.0, 1.0)? * 255.0).f_round()?.f_to_kind(Kind::Uint8)?;
        picture(&pixels.f_permute([1, 2, 0])?)
    });
    each.collect()
}

/// Pixels, uint8 `[H, W, 3]`, as a picture.
pub fn picture(pixels: &Tensor) -> Result<RgbImage> {
    let (height, width, _) = pixels.size3()?;
    let bytes = Vec::<u8>::try_from(pixels.f_to_device(Device::Cpu)?.f_contiguous()?.f_flatten(0, -1)?)?;
    let picture = RgbImage::from_raw(width as u32, height as u32, bytes);
    picture.ok_or_else(|| Error::device(format!("pixels of {:?} are no picture", pixels.size())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelPlan, Precision};

    fn network() -> Result<(Backbone, Normalizer)> {
        let plan = ModelPlan::default();
        let plan = ModelPlan { arch: crate::config::Arch::Small, ..plan };
        let backbone = Backbone::new(&plan, 32, 5, Device::Cpu, Precision::Fp32)?;
        Ok((backbone, Normalizer::new(&[0.5; 3], &[0.25; 3], Device::Cpu)?))
    }

    /// Log-probability of each filter among all of the layer, of the image in its row.
    fn log_shares(backbone: &Backbone, layer: &str, images: &Tensor, filters: &[i64]) -> Result<Vec<f64>> {
        let _no_grad = tch::no_grad_guard();
        let answers = spatial_means(&backbone.forward_to(images, layer)?)?.log_softmax(1, Kind::Double);
        Ok(filters.iter().enumerate().map(|(row, &filter)| answers.double_value(&[row as i64, filter])).collect())
    }

    #[test]
    fn each_image_comes_to_drive_its_filter_beyond_the_others() -> Result<()> {
        let (backbone, normalizer) = network()?;
        let filters = [0, 3, 17];
        let ascent = Ascent { steps: 60, lr: 1.0, ..Ascent::default() };
        let mut told = Vec::new();
        let noise = ascent.noise(&backbone, &normalizer, 3)?;
        let images = ascent.climb(&backbone, &normalizer, "conv3", &filters, &mut |step| told.push(step))?;
        assert_eq!(told, (1..=60).collect::<Vec<_>>());
        let before = log_shares(&backbone, "conv3", &noise, &filters)?;
        let after = log_shares(&backbone, "conv3", &images, &filters)?;
        for (before, after) in before.iter().zip(&after) {
            assert!(*after > before + 0.5, "{before} {after}");
        }
        assert!(pictures(&images)?.iter().all(|picture| picture.dimensions() == (32, 32)));
        Ok(())
    }

    #[test]
    fn weights_gather_no_gradient() -> Result<()> {
        let (backbone, normalizer) = network()?;
        let _ = Ascent { steps: 2, ..Ascent::default() }.climb(&backbone, &normalizer, "conv1", &[0], &mut |_| {})?;
        assert!(backbone.parameters().iter().all(|(_, parameter)| !parameter.grad().defined()));
        Ok(())
    }

    #[test]
    fn a_filter_that_the_layer_lacks_is_refused_with_the_number_of_those_it_has() -> Result<()> {
        let (backbone, _) = network()?;
        let count = check_filters(&backbone, "conv2", &[0])?;
        let error = check_filters(&backbone, "conv2", &[0, count]).expect_err("one too many");
        assert!(error.hint().is_some_and(|hint| hint.contains(&(count - 1).to_string())), "{error}");
        Ok(())
    }

    #[test]
    fn a_blur_keeps_the_mean() -> Result<()> {
        let kernel = Ascent { blur: 0.8, ..Ascent::default() }.kernel(Device::Cpu)?;
        assert_eq!(kernel.size(), [3, 1, 3, 3]);
        assert!((kernel.get(2).sum(Kind::Float).double_value(&[]) - 1.0).abs() < 1e-6);
        Ok(())
    }
}
