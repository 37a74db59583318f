//! The names that torchvision and timm give to the same networks.
//!
//! In: a network on the CPU. Out: tensors that `load_state_dict(strict=False)` of theirs takes, missing nothing but the last
//! classifier. ResNets are torchvision's own, and timm's; VGG-16 is torchvision's `vgg16_bn` up to its second linear layer, which timm
//! writes as convolutions. Neither knows DeepCluster's AlexNet, `small`, or a Sobel filter in front: these are refused with what to
//! take instead.

use crate::config::{Arch, Input};
use crate::error::{Error, Result};
use crate::model::{Backbone, Named};
use tch::{Device, Kind, Tensor};

/// The side of the map that VGG-16 of both libraries flattens.
const VGG_SIDE: i64 = 7;

/// Whose names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// torchvision: `resnet18`, `resnet50`, `vgg16_bn`.
    Torchvision,
    /// timm: `resnet18`, `resnet50`, `vgg16_bn`.
    Timm,
}

impl Library {
    fn name(self) -> &'static str {
        match self {
            Self::Torchvision => "torchvision",
            Self::Timm => "timm",
        }
    }

    /// What its function is called that builds this architecture.
    pub fn model(self, arch: Arch) -> &'static str {
        match arch {
            Arch::Vgg16 => "vgg16_bn",
            arch => arch.name(),
        }
    }

    /// The tensors of `backbone` under the names of this library; `batches` is what its counters of batches say.
    ///
    /// # Errors
    /// The library has no such network.
    pub fn state(self, backbone: &Backbone, batches: i64) -> Result<Named> {
        self.check(backbone)?;
        let mut state = Named::new();
        for (name, tensor) in backbone.state()? {
            let counter = name.strip_suffix("running_var").map(|norm| format!("{norm}num_batches_tracked"));
            state.push(match self {
                Self::Torchvision => (name, tensor),
                Self::Timm => timm(name, &tensor)?,
            });
            if let Some(counter) = counter {
                state.push((counter, Tensor::f_full([0i64; 0], batches, (Kind::Int64, Device::Cpu))?));
            }
        }
        Ok(state)
    }

    fn check(self, backbone: &Backbone) -> Result<()> {
        let (library, arch) = (self.name(), backbone.plan().arch);
        let refuse =
            |why: String| Err(Error::usage(why).with_hint("take --to torchscript, which runs alone, or --to pytorch"));
        match arch {
            Arch::AlexNet => {
                return refuse(format!(
                    "{library}'s alexnet is another network: it has no batch norm, and other numbers of maps than DeepCluster's"
                ));
            }
            Arch::Small => return refuse(format!("{library} has no network like small")),
            Arch::Vgg16 | Arch::ResNet18 | Arch::ResNet50 => {}
        }
        if backbone.plan().input == Input::Sobel {
            return refuse(format!(
                "{library}'s {} takes RGB, and this network has a Sobel filter in front",
                self.model(arch)
            ));
        }
        match backbone.last_side(backbone.size()) {
            Some(side) if side != VGG_SIDE => refuse(format!(
                "{library}'s {} flattens maps of {VGG_SIDE} x {VGG_SIDE}, and this network, for {} pixels, maps of {side} x {side}",
                self.model(arch),
                backbone.size()
            )),
            _ => Ok(()),
        }
    }
}

/// timm's VGG has convolutions in the place of the linear layers; its ResNets are torchvision's.
fn timm(name: String, tensor: &Tensor) -> Result<(String, Tensor)> {
    let (renamed, side) = match name.split_at_checked("classifier.0".len()) {
        Some(("classifier.0", rest)) => (format!("pre_logits.fc1{rest}"), VGG_SIDE),
        Some(("classifier.3", rest)) => (format!("pre_logits.fc2{rest}"), 1),
        _ => return Ok((name, tensor.shallow_clone())),
    };
    if tensor.dim() != 2 {
        return Ok((renamed, tensor.shallow_clone()));
    }
    let shape = tensor.size();
    Ok((renamed, tensor.f_view([shape[0], shape[1] / (side * side), side, side])?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelPlan, Precision};

    fn blank(arch: Arch, input: Input, size: u32) -> Result<Backbone> {
        let plan = ModelPlan { arch, input, ..ModelPlan::default() };
        Backbone::build(&plan, size, None, Device::Cpu, Precision::Fp32)
    }

    #[test]
    fn a_vgg_has_the_names_and_shapes_of_theirs() -> Result<()> {
        let backbone = blank(Arch::Vgg16, Input::Rgb, 224)?;
        let shapes = |library: Library, part: &str| -> Result<Vec<(String, Vec<i64>)>> {
            let state = library.state(&backbone, 5)?;
            let part = state.into_iter().filter(|(name, _)| name.starts_with(part));
            Ok(part.map(|(name, tensor)| (name, tensor.size())).collect())
        };
        let named = |entries: &[(&str, &[i64])]| -> Vec<(String, Vec<i64>)> {
            entries.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
        };
        let linear = named(&[
            ("classifier.0.weight", &[4096, 25088]),
            ("classifier.0.bias", &[4096]),
            ("classifier.3.weight", &[4096, 4096]),
            ("classifier.3.bias", &[4096]),
        ]);
        assert_eq!(shapes(Library::Torchvision, "classifier.")?, linear);
        let convolutions = named(&[
            ("pre_logits.fc1.weight", &[4096, 512, 7, 7]),
            ("pre_logits.fc1.bias", &[4096]),
            ("pre_logits.fc2.weight", &[4096, 4096, 1, 1]),
            ("pre_logits.fc2.bias", &[4096]),
        ]);
        assert_eq!(shapes(Library::Timm, "pre_logits.")?, convolutions);
        for library in [Library::Torchvision, Library::Timm] {
            // 13 convolutions of two tensors, 13 norms of four and a counter
            assert_eq!(shapes(library, "features.")?.len(), 13 * (2 + 4 + 1));
            let state = library.state(&backbone, 5)?;
            let counters = state.iter().filter(|(name, _)| name.ends_with(".num_batches_tracked"));
            assert!(counters.clone().all(|(_, tensor)| tensor.int64_value(&[]) == 5 && tensor.dim() == 0));
            assert_eq!(counters.count(), 13);
        }
        Ok(())
    }

    #[test]
    fn networks_that_a_library_lacks_are_refused() -> Result<()> {
        for (backbone, why) in [
            (blank(Arch::AlexNet, Input::Rgb, 63)?, "batch norm"),
            (blank(Arch::Small, Input::Rgb, 28)?, "small"),
            (blank(Arch::ResNet18, Input::Sobel, 64)?, "Sobel"),
            (blank(Arch::Vgg16, Input::Rgb, 32)?, "7 x 7"),
        ] {
            for library in [Library::Torchvision, Library::Timm] {
                let error = library.state(&backbone, 0).expect_err(why);
                assert!(error.to_string().contains(why), "{error}");
                assert!(error.hint().is_some_and(|hint| hint.contains("torchscript")), "{error}");
                assert_eq!(error.exit_code(), 2);
            }
        }
        Ok(())
    }
}
