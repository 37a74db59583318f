//! Backbones from files and from names: which architecture a state belongs to, and filling it.
//!
//! In: a safetensors file of ours (its metadata says what it holds) or in the layout of the published DeepCluster
//! checkpoints and of torchvision (told by names and shapes), or `ARCH[:INPUT[:SIZE]]` for random weights. Out: a
//! [`Backbone`]. What cannot be told or does not fit is refused with the file and the tensor.

use crate::config::{Arch, Input, ModelPlan, Precision};
use crate::error::{Error, Result};
use crate::model::init::Named;
use crate::model::state::{self, Metadata};
use crate::model::{Backbone, table};
use std::path::Path;
use tch::{Device, Tensor};

const ARCHITECTURES: [Arch; 5] = [Arch::AlexNet, Arch::Vgg16, Arch::ResNet18, Arch::ResNet50, Arch::Small];
const INPUTS: [Input; 2] = [Input::Sobel, Input::Rgb];

/// What is needed to build a network before its weights are known.
#[derive(Debug, PartialEq)]
pub(super) struct Design {
    pub(super) plan: ModelPlan,
    pub(super) size: u32,
}

impl Backbone {
    /// Builds the network that a safetensors file holds, with its weights. Heads (`top_layer.*`) in it are left aside.
    ///
    /// # Errors
    /// The file cannot be read, is of no architecture known here, or its tensors do not fit the architecture.
    pub fn open(path: &Path, device: Device, precision: Precision) -> Result<Self> {
        let (tensors, metadata) = state::read_safetensors(path)?;
        let named = |error| state::in_file(error, path);
        let design = if metadata.contains_key("arch") { described(&metadata) } else { recognised(&tensors) };
        let Design { plan, size } = design.map_err(named)?;
        let backbone = Self::build(&plan, size, None, device, precision)?;
        backbone.load_state(&tensors).map_err(named)?;
        Ok(backbone)
    }

    /// Random weights of the network named `ARCH[:INPUT[:SIZE]]`, for example `alexnet` or `small:rgb:28`: what follows
    /// `random:` on the command line. Without more it sees Sobel gradients of 224 pixels, `small` of 64.
    ///
    /// # Errors
    /// An unknown architecture or input, or a size too small for the architecture.
    pub fn random(spec: &str, seed: u64, device: Device, precision: Precision) -> Result<Self> {
        let mut parts = spec.split(':');
        let arch = parse_arch(parts.next().unwrap_or_default())?;
        let input = parts.next().map_or(Ok(Input::Sobel), parse_input)?;
        let size = match parts.next() {
            Some(text) => parse_size(text)?,
            None if arch == Arch::Small => 64,
            None => 224,
        };
        if parts.next().is_some() {
            return Err(Error::usage(format!("random:{spec} has parts after its size")));
        }
        Self::new(&ModelPlan { arch, input, ..ModelPlan::default() }, size, seed, device, precision)
    }
}

/// What [`Backbone::metadata`] wrote.
fn described(metadata: &Metadata) -> Result<Design> {
    let value = |key: &str| {
        metadata.get(key).ok_or_else(|| Error::data(format!("the metadata of the file have arch but lack {key}")))
    };
    let dropout = value("dropout")?;
    let Ok(dropout) = dropout.parse::<f64>() else {
        return Err(Error::data(format!("dropout in the metadata of the file is no number: {dropout:?}")));
    };
    let plan = ModelPlan { arch: parse_arch(value("arch")?)?, input: parse_input(value("input")?)?, dropout };
    Ok(Design { plan, size: parse_size(value("size")?)? })
}

/// Tells architecture, input and size from names and shapes.
fn recognised(tensors: &[(String, Tensor)]) -> Result<Design> {
    let tensors = body_only(tensors);
    let shape = |name: &str| tensors.iter().find(|(candidate, _)| candidate == name).map(|(_, tensor)| tensor.size());
    let bottleneck = shape("layer1.0.conv3.weight").is_some();
    let (arch, channels) = match (shape("features.0.weight").as_deref(), shape("conv1.weight").as_deref()) {
        (Some(&[96, channels, 11, 11]), _) => (Arch::AlexNet, channels),
        (Some(&[64, channels, 3, 3]), _) => (Arch::Vgg16, channels),
        (Some(&[32, channels, 5, 5]), _) => (Arch::Small, channels),
        (None, Some(&[64, channels, 7, 7])) if bottleneck => (Arch::ResNet50, channels),
        (None, Some(&[64, channels, 7, 7])) => (Arch::ResNet18, channels),
        _ => {
            let hint = format!("shoal knows {}", Arch::NAMES.join(", "));
            return Err(Error::data("its tensors are of no architecture known here").with_hint(hint));
        }
    };
    let input = if channels == 2 { Input::Sobel } else { Input::Rgb };
    let plan = ModelPlan { arch, input, ..ModelPlan::default() };
    let fc6 = shape("classifier.1.weight").or_else(|| shape("classifier.0.weight"));
    let columns = fc6.and_then(|shape| shape.get(1).copied());
    Ok(Design { plan, size: size_for(arch, columns) })
}

/// 224 if the columns of the first linear layer allow it, else the smallest size that they fit.
fn size_for(arch: Arch, columns: Option<i64>) -> u32 {
    let (Some(table), Some(columns)) = (table(arch), columns) else { return 224 };
    if table.average_to.is_some() {
        return 224;
    }
    let maps = table.convs.last().map_or(1, |row| row.outputs);
    let fits = |size: u32| table.last_side(i64::from(size)).is_some_and(|side| side * side * maps == columns);
    if fits(224) {
        return 224;
    }
    (1..2048).find(|&size| fits(size)).unwrap_or(224)
}

/// The tensors of a body under our names: without the `.module` of parallel training, and without counters of batches,
/// the Sobel filter and the head (`top_layer`, or torchvision's `fc`).
pub(super) fn body_only(tensors: &[(String, Tensor)]) -> Named {
    let mut body = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let name = name.replace(".module", "");
        let aside = name.starts_with("sobel.")
            || name.starts_with("top_layer.")
            || name.starts_with("fc.")
            || name.ends_with(".num_batches_tracked");
        if !aside {
            body.push((name, tensor.shallow_clone()));
        }
    }
    body
}

fn parse_arch(text: &str) -> Result<Arch> {
    let found = ARCHITECTURES.into_iter().find(|arch| arch.name() == text);
    found.ok_or_else(|| unknown("architecture", text, Arch::NAMES))
}

fn parse_input(text: &str) -> Result<Input> {
    let found = INPUTS.into_iter().find(|input| input.name() == text);
    found.ok_or_else(|| unknown("input", text, Input::NAMES))
}

fn parse_size(text: &str) -> Result<u32> {
    text.parse().map_err(|_| Error::usage(format!("the size of images must be a whole number, found {text:?}")))
}

fn unknown(what: &str, text: &str, names: &[&str]) -> Error {
    Error::usage(format!("unknown {what} {text:?}")).with_hint(format!("one of {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn blank(arch: Arch, input: Input, size: u32) -> Result<Backbone> {
        let plan = ModelPlan { arch, input, ..ModelPlan::default() };
        Backbone::build(&plan, size, None, Device::Cpu, Precision::Fp32)
    }

    #[test]
    fn every_architecture_is_told_by_its_tensors() -> Result<()> {
        for arch in ARCHITECTURES {
            for input in INPUTS {
                let design = recognised(&blank(arch, input, 64)?.state()?)?;
                assert_eq!((design.plan.arch, design.plan.input), (arch, input));
            }
        }
        assert_eq!(size_for(Arch::AlexNet, Some(9216)), 224);
        assert_eq!(size_for(Arch::AlexNet, Some(256)), 63);
        assert_eq!(size_for(Arch::Vgg16, Some(25088)), 224);
        Ok(())
    }

    #[test]
    fn a_published_layout_loads() -> Result<()> {
        let ours = Backbone::random("alexnet:sobel:63", 5, Device::Cpu, Precision::Fp32)?;
        let mut published: Named = ours
            .state()?
            .into_iter()
            .map(|(name, tensor)| (name.replace("features.", "features.module."), tensor))
            .collect();
        published.push(("top_layer.weight".to_owned(), Tensor::zeros([10, 4096], (Kind::Float, Device::Cpu))));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("published.safetensors");
        state::write_safetensors(&path, &published, &Metadata::new())?;

        let opened = Backbone::open(&path, Device::Cpu, Precision::Fp32)?;
        assert_eq!(opened.plan(), ours.plan());
        assert_eq!(opened.size(), 63);
        for ((name, ours), (_, theirs)) in ours.state()?.iter().zip(opened.state()?) {
            assert_eq!(ours, &theirs, "{name}");
        }
        Ok(())
    }

    #[test]
    fn files_that_do_not_fit_are_refused_by_name() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("odd.safetensors");
        let backbone = blank(Arch::Small, Input::Rgb, 28)?;
        let refused = |tensors: &[(String, Tensor)], metadata: &Metadata| -> Result<String> {
            state::write_safetensors(&path, tensors, metadata)?;
            let error = Backbone::open(&path, Device::Cpu, Precision::Fp32).expect_err("it does not fit").to_string();
            assert!(error.contains("odd.safetensors"), "{error}");
            Ok(error)
        };
        let mut tensors = backbone.state()?;
        let stranger = ("stranger".to_owned(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
        assert!(refused(std::slice::from_ref(&stranger), &Metadata::new())?.contains("no architecture"));
        tensors.push(stranger);
        assert!(refused(&tensors, &backbone.metadata())?.contains("stranger"));
        tensors.truncate(tensors.len() - 2);
        assert!(refused(&tensors, &backbone.metadata())?.contains("is missing"));
        Ok(())
    }

    #[test]
    fn names_of_random_networks_are_checked() -> Result<()> {
        let random = |spec: &str| Backbone::random(spec, 1, Device::Cpu, Precision::Fp32);
        let small = random("small:rgb:28")?;
        assert_eq!((small.plan().input, small.size()), (Input::Rgb, 28));
        assert_eq!(random("small")?.size(), 64);
        for spec in ["", "resnet", "small:gray", "small:rgb:x", "small:rgb:28:1", "alexnet:rgb:62"] {
            assert_eq!(random(spec).expect_err(spec).exit_code(), 2, "{spec}");
        }
        Ok(())
    }
}
