//! The network, its input, its head, and their names on disk.
//!
//! In: a batch of pixels, turned by [`Normalizer`] into `[B, 3, S, S]` images. Out: features `[B, D]` before their last
//! ReLU, which are what is clustered (paper, section 3.2), or the activations of a named layer; [`Head`] turns features
//! into logits. A [`Backbone`] is one of five architectures with an optional Sobel front; its tensors have names, so
//! that optimisers, snapshots and Python see the same network. Weights are fp32 on the device, [`Precision`] says what
//! is computed in.
//!
//! Errors: a size too small for the strides, images that do not fit, states that do not fit (all named), libtorch's
//! own. Grad mode is the caller's business: under `tch::no_grad_guard()` nothing is recorded.

mod affine;
mod alexnet;
mod head;
pub(crate) mod init;
mod input;
mod layers;
mod open;
mod plain;
mod resnet;
mod script;
mod small;
mod sobel;
pub mod state;
mod taps;
mod vgg;

pub use affine::{Affine, Sweep};
pub use head::Head;
pub use init::Named;
pub use input::Normalizer;
pub use layers::Mode;
pub use script::Source;

use crate::config::{Arch, Input, ModelPlan, Precision};
use crate::error::{Error, Result};
use crate::world::World;
use init::Builder;
use layers::Pass;
use plain::{Plain, Table};
use resnet::{Depth, ResNet};
use script::Script;
use sobel::Sobel;
use state::Metadata;
use std::path::Path;
use taps::Taps;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::Xxh3;

#[derive(Debug)]
enum Body {
    Plain(Plain),
    ResNet(ResNet),
}

/// A convolutional network that turns images into features.
#[derive(Debug)]
pub struct Backbone {
    sobel: Option<Sobel>,
    body: Body,
    plan: ModelPlan,
    size: u32,
    device: Device,
    precision: Precision,
    parameters: Named,
    buffers: Named,
}

impl Backbone {
    /// Random weights, which depend on `seed` and their names alone, for square images of `size` pixels.
    ///
    /// # Errors
    /// `size` is too small for the strides of the architecture, or there is no memory.
    pub fn new(plan: &ModelPlan, size: u32, seed: u64, device: Device, precision: Precision) -> Result<Self> {
        Self::build(plan, size, Some(seed), device, precision)
    }

    /// Without a seed the weights are 0, to be filled from elsewhere.
    pub(crate) fn build(
        plan: &ModelPlan,
        size: u32,
        seed: Option<u64>,
        device: Device,
        precision: Precision,
    ) -> Result<Self> {
        let (sobel, channels) = match plan.input {
            Input::Sobel => (Some(Sobel::new(device)?), 2),
            Input::Rgb => (None, 3),
        };
        let mut builder = Builder::new(seed, device);
        let body = match (table(plan.arch), plan.arch) {
            (Some(table), arch) => {
                let side = last_side(table, arch, size)?;
                Body::Plain(Plain::new(table, channels, side, plan.dropout, &mut builder)?)
            }
            (None, Arch::ResNet50) => Body::ResNet(ResNet::new(Depth::Fifty, channels, &mut builder)?),
            (None, _) => Body::ResNet(ResNet::new(Depth::Eighteen, channels, &mut builder)?),
        };
        let (parameters, buffers) = builder.finish();
        Ok(Self { sobel, body, plan: plan.clone(), size, device, precision, parameters, buffers })
    }

    /// Has batch norm, when it trains, normalise over the images of all ranks.
    pub fn normalise_over(&mut self, world: &World) {
        let norms = match &mut self.body {
            Body::Plain(body) => body.norms_mut(),
            Body::ResNet(body) => body.norms_mut(),
        };
        norms.into_iter().for_each(|norm| norm.world = world.clone());
    }

    /// Another network of the same architecture, device and precision, with copies of the weights.
    pub fn duplicate(&self) -> Result<Self> {
        let twin = Self::build(&self.plan, self.size, None, self.device, self.precision)?;
        twin.copy_from(self)?;
        Ok(twin)
    }

    /// Features `[B, D]` in fp32, before their last ReLU, of `[B, 3, S, S]` normalised images.
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut taps = Taps::new(&[]);
        self.run(images, mode, &mut taps)
    }

    /// Activations in fp32 of the layer called `layer` (one of [`Backbone::layers`]), after batch norm and ReLU and
    /// before pooling, in evaluation mode: `[B, C, H, W]`, or `[B, D]` for linear layers. Convolutions take images of
    /// any size.
    pub fn forward_to(&self, images: &Tensor, layer: &str) -> Result<Tensor> {
        self.check_layer(layer)?;
        let wanted = [layer];
        let mut taps = Taps::new(&wanted);
        self.run(images, Mode::Eval, &mut taps)
    }

    /// As [`Backbone::forward_to`] for several layers, in one pass that ends with the last of them, and in any mode: activations in
    /// fp32, in the order of `layers`.
    pub fn activations(&self, images: &Tensor, layers: &[&str], mode: Mode) -> Result<Vec<Tensor>> {
        for layer in layers {
            self.check_layer(layer)?;
        }
        let mut taps = Taps::new(layers);
        let _ = self.run(images, mode, &mut taps)?;
        taps.into_found().iter().map(|found| Ok(found.f_to_kind(Kind::Float)?)).collect()
    }

    /// What the last ReLU of the layer called `layer` is applied to, in fp32 and evaluation mode: `[B, C, H, W]`, or `[B, D]`.
    pub fn before_relu(&self, images: &Tensor, layer: &str) -> Result<Tensor> {
        self.check_layer(layer)?;
        let wanted = [layer];
        let mut taps = Taps::before_relu(&wanted);
        let output = self.run(images, Mode::Eval, &mut taps)?;
        match taps.into_found().pop() {
            Some(drive) => Ok(drive.f_to_kind(Kind::Float)?),
            None => Ok(output),
        }
    }

    /// The first convolution's weights of a safetensors file, as [`Backbone::first_filters`] of a network in it.
    ///
    /// # Errors
    /// The file cannot be read, or is of no architecture known here.
    pub fn first_filters_of(path: &Path) -> Result<Tensor> {
        state::read_one(path, &["features.0.weight", "conv1.weight"])
    }

    /// The first convolution's weights, `[outputs, inputs, kernel, kernel]`: what it looks for, in the image or its gradients.
    ///
    /// # Errors
    /// There is none, which no architecture is.
    pub fn first_filters(&self) -> Result<Tensor> {
        let first = self.parameters.iter().find(|(_, tensor)| tensor.dim() == 4);
        let (_, weight) = first.ok_or_else(|| Error::data(format!("{} has no convolution", self.plan.arch.name())))?;
        Ok(weight.shallow_clone())
    }

    /// The linear layers alone, for AlexNet, VGG and `small`: last maps after pooling, flattened to `[B, W]`, to features `[B, D]` in
    /// fp32 before their last ReLU.
    ///
    /// # Errors
    /// A ResNet, which has no linear layers.
    pub fn connect(&self, flat: &Tensor, mode: Mode) -> Result<Tensor> {
        let Body::Plain(body) = &self.body else {
            return Err(Error::usage(format!("{} has no linear layers", self.plan.arch.name())));
        };
        let pass = Pass { mode, precision: self.precision };
        Ok(body.connect(flat, pass, &mut Taps::new(&[]))?.f_to_kind(Kind::Float)?)
    }

    /// The body of a TorchScript method that takes `images` as [`Backbone::forward`] does in evaluation mode, or, with a layer, as
    /// [`Backbone::forward_to`] does. It names the tensors of [`Backbone::state`] as members of `self`.
    ///
    /// # Errors
    /// There is no such layer.
    pub fn script(&self, layer: Option<&str>) -> Result<Source> {
        if let Some(layer) = layer {
            self.check_layer(layer)?;
        }
        let mut script = Script::new();
        let input = match &self.sobel {
            Some(_) => Sobel::script("images", &mut script),
            None => "images".to_owned(),
        };
        let output = match &self.body {
            Body::Plain(body) => body.script(&input, layer, &mut script),
            Body::ResNet(body) => body.script(&input, layer, &mut script),
        };
        Ok(script.finish(&output))
    }

    /// Side of the last map before the linear layers, for images of `size` pixels; none where any size of image gives the same
    /// features, or where nothing is left.
    pub fn last_side(&self, size: u32) -> Option<i64> {
        let table = table(self.plan.arch)?;
        if table.average_to.is_some() { None } else { table.last_side(i64::from(size)) }
    }

    fn check_layer(&self, layer: &str) -> Result<()> {
        let layers = self.layers();
        if layers.contains(&layer) {
            return Ok(());
        }
        let what = format!("{} has no layer {layer:?}", self.plan.arch.name());
        Err(Error::usage(what).with_hint(format!("one of {}", layers.join(", "))))
    }

    fn run(&self, images: &Tensor, mode: Mode, taps: &mut Taps<'_>) -> Result<Tensor> {
        let shape = images.size();
        if shape.len() != 4 || shape[1] != 3 {
            return Err(Error::usage(format!("images must be [B, 3, H, W], found {shape:?}")));
        }
        let pass = Pass { mode, precision: self.precision };
        let input = self.front(images)?;
        let output = match &self.body {
            Body::Plain(body) => body.forward(&input, pass, taps)?,
            Body::ResNet(body) => body.forward(&input, pass, taps)?,
        };
        Ok(output.f_to_kind(Kind::Float)?)
    }

    /// What the first convolution sees.
    fn front(&self, images: &Tensor) -> Result<Tensor> {
        match &self.sobel {
            Some(sobel) => sobel.forward(images),
            None => Ok(images.shallow_clone()),
        }
    }

    /// Names of the layers, from the image up.
    pub fn layers(&self) -> Vec<&'static str> {
        match &self.body {
            Body::Plain(body) => body.layers(),
            Body::ResNet(_) => ResNet::layers(),
        }
    }

    /// Names of those whose activations are maps: convolutions, or the stages of a ResNet.
    pub fn map_layers(&self) -> Vec<&'static str> {
        match &self.body {
            Body::Plain(body) => body.convs(),
            Body::ResNet(_) => ResNet::layers(),
        }
    }

    /// What is trained, in a fixed order, sharing storage and gradients with the network.
    pub fn parameters(&self) -> Named {
        share(&self.parameters)
    }

    /// Running statistics, in a fixed order, sharing storage with the network.
    pub fn buffers(&self) -> Named {
        share(&self.buffers)
    }

    /// Everything that goes to disk: the Sobel filter, parameters, buffers.
    pub fn state(&self) -> Result<Named> {
        let mut state = match &self.sobel {
            Some(sobel) => sobel.state()?,
            None => Vec::new(),
        };
        state.extend(self.parameters());
        state.extend(self.buffers());
        Ok(state)
    }

    /// Copies a state into the weights, in place. The Sobel filter, a head and counters of batches in it are left
    /// aside, `.module` in names is dropped.
    ///
    /// # Errors
    /// A tensor is missing, unknown, or of another shape or kind; the weights are then as before.
    pub fn load_state(&self, state: &[(String, Tensor)]) -> Result<()> {
        let source = open::body_only(state);
        let mut targets = self.parameters();
        targets.extend(self.buffers());
        let unknown = source.iter().find(|(name, _)| !targets.iter().any(|(target, _)| target == name));
        if let Some((name, _)) = unknown {
            return Err(Error::data(format!("the tensor {name} is unknown to {}", self.plan.arch.name())));
        }
        state::copy_into(&targets, &source)
    }

    /// Takes over the weights and statistics of `other`, in place.
    ///
    /// # Errors
    /// `other` is of another architecture, input or size.
    pub fn copy_from(&self, other: &Self) -> Result<()> {
        state::copy_into(&self.parameters, &other.parameters)?;
        state::copy_into(&self.buffers, &other.buffers)
    }

    /// A hash of all weights and statistics, with their names, in hexadecimal.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Xxh3::new();
        for (name, tensor) in self.state()? {
            hash.update(name.as_bytes());
            hash.update(&state::bytes_of(&tensor)?);
        }
        Ok(format!("{:032x}", hash.digest128()))
    }

    /// D, the width of the features.
    pub fn feature_dim(&self) -> i64 {
        match &self.body {
            Body::Plain(body) => body.feature_dim(),
            Body::ResNet(body) => body.feature_dim(),
        }
    }

    /// The plan that it was built from.
    pub fn plan(&self) -> &ModelPlan {
        &self.plan
    }

    /// Side in pixels of the images that it was built for.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Where its weights are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// What goes beside the tensors on disk, for [`Backbone::open`]: arch, input, size, dropout.
    pub fn metadata(&self) -> Metadata {
        let entries = [
            ("arch", self.plan.arch.name().to_owned()),
            ("input", self.plan.input.name().to_owned()),
            ("size", self.size.to_string()),
            ("dropout", self.plan.dropout.to_string()),
        ];
        entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// The layers of an architecture without branches.
fn table(arch: Arch) -> Option<&'static Table> {
    match arch {
        Arch::AlexNet => Some(&alexnet::TABLE),
        Arch::Vgg16 => Some(&vgg::TABLE),
        Arch::Small => Some(&small::TABLE),
        Arch::ResNet18 | Arch::ResNet50 => None,
    }
}

/// Side of the last map, or an error that names the smallest size of image.
fn last_side(table: &Table, arch: Arch, size: u32) -> Result<i64> {
    if let Some(side) = table.last_side(i64::from(size)) {
        return Ok(side);
    }
    let smallest = (1..).find(|&size| table.last_side(size).is_some()).unwrap_or_default();
    let what = format!("views.size = {size} is too small for {}", arch.name());
    Err(Error::usage(what).with_hint(format!("its strides need at least {smallest} pixels")))
}

fn share(tensors: &[(String, Tensor)]) -> Named {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

#[cfg(test)]
mod tests;
