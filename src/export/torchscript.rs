//! A network as a TorchScript archive: its tensors as parameters and buffers of nested modules, and `forward` as source text.
//!
//! In: a [`Backbone`], perhaps a layer to end with, metadata. Out: a file that `torch.jit.load` (Python) and `torch::jit::load`
//! (C++) run without shoal: normalised RGB `[B, 3, H, W]` in, features `[B, D]` or activations out. It is written, rather than
//! traced, so that tensors keep their names, `.to("cuda")`, `.half()` and `state_dict()` work, and no size of image is baked in.
//! The metadata are its extra file `shoal.json`.
//!
//! The file is proved before it gets its name: libtorch loads it, runs two images, and must give what the network gives.

use super::archive::Archive;
use super::pickle::Pickle;
use super::{METADATA_RECORD, aside, json};
use crate::error::{Error, Result};
use crate::model::state::Metadata;
use crate::model::{Backbone, Mode, Named};
use std::fmt::Write;
use std::path::Path;
use tch::{CModule, Device, Kind, Tensor};

/// The namespace of the classes, and the record that holds their source.
const NAMESPACE: &str = "__torch__.shoal";
const SOURCE_RECORD: &str = "code/__torch__/shoal.py";
/// The pickle of an empty tuple.
const NO_CONSTANTS: &[u8] = b"\x80\x02).";
/// How far the file may be from the network, where outputs spread by 1 or less; in proportion beyond that.
const TOLERANCE: f64 = 1e-4;

/// A module: tensors and modules by name, in the order of the state.
#[derive(Debug, Default)]
struct Module {
    tensors: Vec<Member>,
    modules: Vec<(String, Self)>,
}

/// A tensor of a module, and its number in the list of tensors.
#[derive(Debug)]
struct Member {
    name: String,
    number: usize,
    trained: bool,
}

/// Writes `backbone`, which must be on the CPU, up to its end or to `layer`, and returns by how much the outputs of the file differ
/// from its own for images of `size` pixels.
///
/// # Errors
/// There is no such layer, the network does not take images of that size, the file cannot be written, or libtorch does not run it
/// to the same outputs.
pub fn write(path: &Path, backbone: &Backbone, layer: Option<&str>, size: u32, metadata: &Metadata) -> Result<f64> {
    let source = backbone.script(layer)?;
    let mut state = backbone.state()?;
    state.retain(|(name, _)| source.tensors.contains(name));
    let parameters = backbone.parameters();
    let mut network = Module::default();
    for (number, (name, _)) in state.iter().enumerate() {
        let trained = parameters.iter().any(|(parameter, _)| parameter == name);
        network.insert(name, number, trained);
    }
    let class = format!("{NAMESPACE}.{}", backbone.plan().arch.name());
    let mut text = String::new();
    network.declare(&class, &source.body, &mut text);
    let mut pickle = Pickle::new();
    network.pickle(&class, &state, &mut pickle)?;
    let pickle = pickle.finish();

    aside(path, |file| {
        let mut archive = Archive::create(file, path)?;
        archive.record("data.pkl", &pickle)?;
        archive.record(SOURCE_RECORD, text.as_bytes())?;
        archive.record("constants.pkl", NO_CONSTANTS)?;
        archive.record(METADATA_RECORD, json(metadata)?.as_bytes())?;
        archive.storages(state.iter().map(|(_, tensor)| tensor))?;
        archive.finish()?;
        proved(file, backbone, layer, size)
    })
}

impl Module {
    /// Files a tensor under its name on disk: modules, divided by dots, then its own.
    fn insert(&mut self, name: &str, number: usize, trained: bool) {
        let Some((module, rest)) = name.split_once('.') else {
            self.tensors.push(Member { name: name.to_owned(), number, trained });
            return;
        };
        let place = self.modules.iter().position(|(known, _)| known == module).unwrap_or_else(|| {
            self.modules.push((module.to_owned(), Self::default()));
            self.modules.len() - 1
        });
        self.modules[place].1.insert(rest, number, trained);
    }

    /// Appends the class of each module, its own last; only the outermost one does anything.
    fn declare(&self, class: &str, forward: &str, text: &mut String) {
        for (name, module) in &self.modules {
            module.declare(&inner(class, name), "", text);
        }
        let names = |trained: bool| -> String {
            self.tensors.iter().filter(|t| t.trained == trained).map(|t| format!("\"{}\", ", t.name)).collect()
        };
        let (_, short) = class.rsplit_once('.').unwrap_or(("", class));
        let mut lines = vec![
            format!("class {short}(Module):"),
            format!("  __parameters__ = [{}]", names(true)),
            format!("  __buffers__ = [{}]", names(false)),
            "  __annotations__ = []".to_owned(),
            "  training : bool".to_owned(),
        ];
        lines.extend(self.tensors.iter().map(|tensor| format!("  {} : Tensor", tensor.name)));
        lines.extend(
            self.modules.iter().map(|(name, _)| format!("  __annotations__[\"{name}\"] = {}", inner(class, name))),
        );
        text.extend(lines.iter().flat_map(|line| [line, "\n"]));
        if !forward.is_empty() {
            // writing to a string cannot fail
            let _ = write!(text, "  def forward(self: {class},\n    images: Tensor) -> Tensor:\n{forward}");
        }
    }

    /// Appends the object of each module: its attributes in the order of its class.
    fn pickle(&self, class: &str, state: &Named, pickle: &mut Pickle) -> Result<()> {
        pickle.object(class, |pickle| {
            pickle.text("training");
            pickle.boolean(false);
            for Member { name, number, trained } in &self.tensors {
                pickle.text(name);
                pickle.tensor(*number, &state[*number].1, *trained)?;
            }
            for (name, module) in &self.modules {
                pickle.text(name);
                module.pickle(&inner(class, name), state, pickle)?;
            }
            Ok(())
        })
    }
}

/// The class of a module of a module.
fn inner(class: &str, name: &str) -> String {
    format!("{class}_{name}")
}

/// The largest difference between what the file and the network give for the same images.
fn proved(path: &Path, backbone: &Backbone, layer: Option<&str>, size: u32) -> Result<f64> {
    let _no_grad = tch::no_grad_guard();
    let side = i64::from(size);
    // waves of several lengths: images with structure, of mean 0 and deviation 1
    let ramp = Tensor::f_arange(2 * 3 * side * side, (Kind::Double, Device::Cpu))?;
    let waves = ramp.f_mul_scalar(0.37)?.f_sin()?.f_add(&ramp.f_mul_scalar(0.0071)?.f_cos()?)?;
    let images = waves.f_to_kind(Kind::Float)?.f_view([2, 3, side, side])?;
    let expected = match layer {
        Some(layer) => backbone.forward_to(&images, layer)?,
        None => backbone.forward(&images, Mode::Eval)?,
    };
    let found = CModule::load_on_device(path, Device::Cpu)?.forward_ts(&[&images])?;
    if found.size() != expected.size() {
        return Err(Error::device(format!("the TorchScript gives {:?} for {:?}", found.size(), expected.size())));
    }
    let difference = found.f_sub(&expected)?.f_abs()?.f_max()?.f_double_value(&[])?;
    let largest = expected.f_abs()?.f_max()?.f_double_value(&[])?;
    if difference <= TOLERANCE * largest.max(1.0) {
        return Ok(difference);
    }
    let what = format!("libtorch runs the TorchScript to outputs that differ by {difference:.1e} from the network's");
    let hint = "its weights may hold NaN or infinity: see `shoal inspect`, or report this as a defect";
    Err(Error::device(what).with_hint(hint))
}
