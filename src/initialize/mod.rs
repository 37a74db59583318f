//! Weights from data: the initialisation of Krähenbühl, Doersch, Donahue and Darrell (ICLR 2016), a baseline of the paper's Table 1.
//!
//! In: a network with random weights, and some hundreds of images. Out: the same network, in place, with, layer by layer from the
//! image up,
//!
//! 1. filters that are random, principal components, or centroids of the patches that the layer sees (`filters`);
//! 2. outputs scaled and shifted to mean 0 and variance 1, channel by channel, over images and places (their section 3.1);
//!
//! and then with all layers scaled so that they change at the same relative rate under training ([`rates`]; their section 3.2).
//!
//! Their networks have no batch norm; in these, one follows each convolution. After step 2 what it would subtract and divide by
//! is 0 and 1, and its running statistics are set to that: in evaluation mode it hands through what the convolution gives, as if it were not
//! there. Step 3 scales statistics along with weights, which changes nothing of the function. Under training the statistics are
//! those of each batch, and of step 2 only the shape of the filters is left.
//!
//! What can go wrong: fewer than two images, a ResNet, values that are not finite.

mod filters;
mod moments;
pub mod rates;

use crate::error::{Error, Result};
use crate::model::{Affine, Backbone, Normalizer};
use crate::seed;
use filters::Patches;
use moments::Moments;
use serde::Serialize;
use tch::{Device, Tensor};

/// Share of its squared mean below which the variance of a channel is rounding.
const ROUNDING: f64 = 1e-10;

/// Where filters come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Centroids of whitened patches (spherical k-means; Coates and Ng, 2012).
    Kmeans,
    /// Principal components of patches.
    Pca,
    /// Random, as they are: scaled alone.
    Rescale,
}

impl Method {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kmeans => "kmeans",
            Self::Pca => "pca",
            Self::Rescale => "rescale",
        }
    }
}

/// Images to take statistics of: uint8 `[B, S, S, 3]` chunks on the host, brought to the device one by one.
#[derive(Debug)]
pub struct Images {
    chunks: Vec<Tensor>,
    normalizer: Normalizer,
    device: Device,
}

impl Images {
    /// Chunks of at least one image each, all of one size.
    pub fn new(chunks: Vec<Tensor>, normalizer: Normalizer, device: Device) -> Self {
        Self { chunks, normalizer, device }
    }

    /// How many.
    pub fn count(&self) -> i64 {
        self.chunks.iter().map(|chunk| chunk.size()[0]).sum()
    }

    /// The chunks as a network takes them, `[B, 3, S, S]`.
    fn each(&self, mut act: impl FnMut(&Tensor) -> Result<()>) -> Result<()> {
        self.chunks.iter().try_for_each(|chunk| act(&self.normalizer.prepare(&chunk.f_to_device(self.device)?)?))
    }
}

/// What became of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// Output channels.
    pub filters: i64,
    /// Those whose filters are from the images; the others are random.
    pub from_images: i64,
    /// Channels that give one value for all images and places, which no scale mends.
    pub constant: i64,
    /// Relative rate of change, as a multiple of the geometric mean over the layers, before they were made equal.
    pub rate_before: f64,
    /// The same afterwards.
    pub rate: f64,
}

/// Initialises `backbone`, whose weights are random, from `images`. The same weights, images and seed give the same outcome.
///
/// `tell` hears what is being done, and stops it with an error.
///
/// # Errors
/// Fewer than two images, a network with branches, activations or gradients that are not finite or all 0.
pub fn initialize(
    backbone: &Backbone,
    images: &Images,
    method: Method,
    seed: u64,
    tell: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Vec<Layer>> {
    if images.count() < 2 {
        return Err(Error::data(format!("a network cannot be initialised from {} images", images.count()))
            .with_hint("statistics need two images at least, good filters some hundreds"));
    }
    let mut layers = Vec::new();
    for (position, affine) in backbone.affines()?.into_iter().enumerate() {
        let source = Source { backbone, images, position, affine: &affine };
        let from_images = match method {
            Method::Rescale => 0,
            Method::Kmeans | Method::Pca => {
                tell(&format!("{}: patches", affine.name))?;
                let patches = Patches::sample(&source, seed::of(seed, "patches", position as u64), tell)?;
                tell(&format!("{}: filters", affine.name))?;
                patches.into_filters(&affine, method, seed::of(seed, "filters", position as u64))?
            }
        };
        tell(&format!("{}: statistics", affine.name))?;
        let constant = normalize(&source, tell)?;
        let (name, filters) = (affine.name.to_owned(), affine.outputs());
        layers.push(Layer { name, filters, from_images, constant, rate_before: 1.0, rate: 1.0 });
    }
    tell("rates of change")?;
    let (before, after) = rates::equalize(backbone, images, seed, tell)?;
    for (layer, (before, after)) in layers.iter_mut().zip(before.into_iter().zip(after)) {
        (layer.rate_before, layer.rate) = (before, after);
    }
    Ok(layers)
}

/// A layer, and what it sees.
struct Source<'a> {
    backbone: &'a Backbone,
    images: &'a Images,
    position: usize,
    affine: &'a Affine,
}

impl Source<'_> {
    /// Hands `act` the inputs of the layer, `[B, C, H, W]` or `[B, D]`, chunk by chunk.
    fn each_input(&self, mut act: impl FnMut(&Tensor) -> Result<()>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.images.each(|images| act(&self.backbone.input_of(images, self.position)?))
    }
}

/// Scales and shifts the channels of a layer to mean 0 and variance 1; how many of them are constant, and only shifted.
fn normalize(source: &Source<'_>, tell: &mut dyn FnMut(&str) -> Result<()>) -> Result<i64> {
    let _no_grad = tch::no_grad_guard();
    let affine = source.affine;
    let mut moments = Moments::default();
    source.each_input(|input| {
        moments.add(&affine.forward(input)?)?;
        tell(&format!("{}: statistics of {} images", affine.name, moments.images()))
    })?;
    let (mean, variance) = moments.finish(affine.name)?;
    let is_constant = variance.f_le_tensor(&mean.f_square()?.f_mul_scalar(ROUNDING)?)?;
    let scale = variance.f_where_self(&is_constant.f_logical_not()?, &variance.f_ones_like()?)?.f_rsqrt()?;
    let kind = affine.weight.kind();
    let shift = mean.f_neg()?.f_mul(&scale)?.f_to_kind(kind)?;
    let scale = scale.f_to_kind(kind)?;

    let mut by_channel = vec![1; affine.weight.dim()];
    by_channel[0] = -1;
    let (mut weight, mut bias) = (affine.weight.shallow_clone(), affine.bias.shallow_clone());
    let _ = weight.f_mul_(&scale.f_view(by_channel.as_slice())?)?;
    let _ = bias.f_mul_(&scale)?.f_add_(&shift)?;
    if let Some((running_mean, running_variance)) = &affine.statistics {
        let _ = running_mean.shallow_clone().f_fill_(0.0)?;
        let _ = running_variance.shallow_clone().f_fill_(1.0)?;
    }
    Ok(is_constant.f_sum(tch::Kind::Int64)?.f_int64_value(&[])?)
}

#[cfg(test)]
mod tests;
