//! The network that is fine-tuned: a pre-trained body whose linear layers start anew, and 20 logits on top.
//!
//! In: a [`Backbone`] and [`Settings`]. Out: logits `[B, 20]`, and the weights that are trained. fc6 and fc7 start at N(0, 0.01) with
//! biases of 0.1, as in the protocol; the layer of logits is a linear layer as PyTorch makes them, uniform in ±1/√D, with biases of 0.1.
//! All of it depends on (seed, name) alone.

use super::{Settings, Trained};
use crate::error::Result;
use crate::evaluate::voc::devkit::CLASSES;
use crate::model::init::normal_values;
use crate::model::{Backbone, Mode, Named};
use crate::seed;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tch::{Kind, Tensor};
use xxhash_rust::xxh3::Xxh3;

/// Biases of the layers that start anew.
const BIAS: f64 = 0.1;

/// A network with 20 logits.
#[derive(Debug)]
pub struct Classifier {
    backbone: Backbone,
    /// `[20, D]`
    weight: Tensor,
    /// `[20]`
    bias: Tensor,
    trained: Named,
}

impl Classifier {
    /// From a copy of `pretrained`, whose own weights stay as they are.
    pub fn new(pretrained: &Backbone, settings: &Settings) -> Result<Self> {
        let backbone = pretrained.duplicate()?;
        let mut trained = Named::new();
        {
            let _no_grad = tch::no_grad_guard();
            for (name, mut tensor) in backbone.parameters() {
                if starts_anew(&name) {
                    renew(&name, &mut tensor, settings.seed)?;
                }
                let moves = settings.train == Trained::All
                    || starts_anew(&name)
                    || (settings.norm_affine && normalises(&name, &backbone));
                let tensor = tensor.f_set_requires_grad(moves)?;
                if moves {
                    trained.push((name, tensor));
                }
            }
        }
        let dim = backbone.feature_dim();
        let (classes, device) = (CLASSES.len() as i64, backbone.device());
        let weight = uniform_values(settings.seed, "fc8.weight", (classes * dim) as usize, 1.0 / (dim as f64).sqrt());
        let weight = Tensor::f_from_slice(&weight)?.f_view([classes, dim])?.f_to_device(device)?;
        let weight = weight.f_set_requires_grad(true)?;
        let bias = Tensor::f_full([classes], BIAS, (Kind::Float, device))?.f_set_requires_grad(true)?;
        trained.push(("fc8.weight".to_owned(), weight.shallow_clone()));
        trained.push(("fc8.bias".to_owned(), bias.shallow_clone()));
        Ok(Self { backbone, weight, bias, trained })
    }

    /// `[B, 3, S, S]` normalised images to `[B, 20]` logits.
    pub fn logits(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let features = self.backbone.forward(images, mode)?.f_relu()?;
        Ok(features.f_linear(&self.weight, Some(&self.bias))?)
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

/// Whether the weight of that name is one of the linear layers.
fn starts_anew(name: &str) -> bool {
    name.starts_with("classifier.")
}

/// Whether it is a scale or a shift of batch normalisation: a layer with running statistics.
fn normalises(name: &str, backbone: &Backbone) -> bool {
    let Some((layer, _)) = name.rsplit_once('.') else { return false };
    let statistic = format!("{layer}.running_mean");
    backbone.buffers().iter().any(|(name, _)| *name == statistic)
}

fn renew(name: &str, tensor: &mut Tensor, seed: u64) -> Result<()> {
    if name.ends_with(".bias") {
        let _ = tensor.f_fill_(BIAS)?;
        return Ok(());
    }
    let values = normal_values(seed::of(seed, "voc layers", 0), name, tensor.numel(), 0.01);
    tensor.f_copy_(&Tensor::f_from_slice(&values)?.f_view(tensor.size().as_slice())?)?;
    Ok(())
}

/// `count` draws, uniform in `-bound..bound`, that depend on (seed, name) alone.
fn uniform_values(seed: u64, name: &str, count: usize, bound: f64) -> Vec<f32> {
    let mut random = ChaCha12Rng::seed_from_u64(seed::of(seed, name, 0));
    let unit = |draw: u32| (f64::from(draw) + 0.5) / f64::from(1u32 << 31) - 1.0;
    (0..count).map(|_| (bound * unit(random.next_u32())) as f32).collect()
}

/// A number that stands for what a network has learnt, with the linear layers or without them, where they start anew.
pub(in crate::evaluate::voc) fn identity(backbone: &Backbone, with_linear: bool) -> Result<String> {
    let mut hash = Xxh3::new();
    for (name, tensor) in backbone.parameters().into_iter().chain(backbone.buffers()) {
        if starts_anew(&name) && !with_linear {
            continue;
        }
        hash.update(name.as_bytes());
        let values = Vec::<f32>::try_from(tensor.f_detach()?.f_flatten(0, -1)?.f_to_device(tch::Device::Cpu)?)?;
        values.iter().for_each(|value| hash.update(&value.to_le_bytes()));
    }
    Ok(format!("{} {:016x}", backbone.plan().arch.name(), hash.digest()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Precision;
    use tch::Device;

    fn names(spec: &str, settings: &Settings) -> Result<Vec<String>> {
        let backbone = Backbone::random(spec, 1, Device::Cpu, Precision::Fp32)?;
        Ok(Classifier::new(&backbone, settings)?.trained().into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn what_is_trained_follows_the_settings() -> Result<()> {
        let linear = Settings::default();
        let fc8 = ["fc8.weight", "fc8.bias"];
        assert_eq!(names("small:rgb:32", &linear)?, [&["classifier.1.weight", "classifier.1.bias"], &fc8[..]].concat());
        let affine = names("small:rgb:32", &Settings { norm_affine: true, ..linear })?;
        assert_eq!(affine.len(), 4 + 2 * 4, "scale and shift after each of four convolutions: {affine:?}");
        assert!(affine.contains(&"features.1.weight".into()) && !affine.contains(&"features.0.weight".into()));
        assert_eq!(names("small:rgb:32", &Settings { train: Trained::All, ..linear })?.len(), 4 + 4 * 4);
        // No linear layers but the new one.
        assert_eq!(names("resnet18:rgb:64", &linear)?, fc8);
        Ok(())
    }

    #[test]
    fn linear_layers_start_anew_and_the_rest_is_the_given_network() -> Result<()> {
        let given = Backbone::random("small:rgb:32", 1, Device::Cpu, Precision::Fp32)?;
        let classifier = Classifier::new(&given, &Settings::default())?;
        for ((name, mine), (_, theirs)) in classifier.backbone().state()?.iter().zip(given.state()?) {
            assert_eq!(mine == &theirs, !starts_anew(name), "{name}");
        }
        let named = |name: &str| {
            let trained = classifier.trained();
            trained.iter().find(|(candidate, _)| candidate == name).map(|(_, tensor)| tensor.detach()).expect(name)
        };
        let fc5 = named("classifier.1.weight");
        assert!(
            (fc5.std(false).double_value(&[]) - 0.01).abs() < 2e-4
                && fc5.mean(Kind::Float).double_value(&[]).abs() < 2e-4
        );
        assert_eq!(named("classifier.1.bias"), Tensor::full([256], 0.1, (Kind::Float, Device::Cpu)));
        // Uniform in ±1/16: its deviation is that over √3.
        let fc8 = named("fc8.weight");
        assert!(fc8.abs().max().double_value(&[]) <= 0.0625);
        assert!((fc8.std(false).double_value(&[]) - 0.0625 / 3f64.sqrt()).abs() < 1e-3);
        assert!(
            given.parameters().iter().all(|(_, tensor)| tensor.requires_grad()),
            "the given network stays as it is"
        );
        Ok(())
    }

    #[test]
    fn an_identity_is_of_what_was_learnt() -> Result<()> {
        let network = |seed| Backbone::random("small:rgb:32", seed, Device::Cpu, Precision::Fp32);
        let first = network(1)?;
        assert_ne!(identity(&first, false)?, identity(&network(2)?, false)?);
        let twin = Classifier::new(&first, &Settings::default())?;
        assert_eq!(identity(&first, false)?, identity(twin.backbone(), false)?);
        assert_ne!(identity(&first, true)?, identity(twin.backbone(), true)?);
        Ok(())
    }
}
