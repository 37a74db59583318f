//! `shoal export`: a network in another format.

use super::network::model_file;
use crate::config::Precision;
use crate::error::{Error, Result};
use crate::export::{self, names::Library, torchscript};
use crate::model::state::{self, Metadata};
use crate::model::{Backbone, Named};
use crate::observe::console::say;
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use tch::Device;

/// The arguments of `shoal export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal export runs/demo --to safetensors --out demo.safetensors
  shoal export runs/demo --to torchscript --out demo.pt
  shoal export runs/demo --to torchscript --layer conv5 --size 448 --out conv5.pt
  shoal export runs/yfcc --to pytorch --out yfcc.pth
  shoal export runs/yfcc --to pytorch --published --out checkpoint.pth.tar
  shoal export resnet.safetensors --to timm --out resnet.pth

Formats:
  safetensors   for safetensors.torch.load_file; names are those of the published DeepCluster checkpoints
  pytorch       a state dict of the same names, for torch.load(F, weights_only=True)
  torchscript   for torch.jit.load(F), which needs no definition: normalised RGB [B, 3, H, W] to features
  torchvision   for load_state_dict(strict=False) of torchvision's resnet18, resnet50 or vgg16_bn; .pth or .safetensors
  timm          the same for timm's

Architecture, input, size and views are in the header of safetensors, and in archive/extra/shoal.json of the others.
The way back, and in: ops/import.py")]
pub(super) struct Arguments {
    /// The network: a run, a snapshot or a .safetensors file
    snapshot: PathBuf,
    /// The format
    #[arg(long, value_enum)]
    to: Format,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// torchscript: the layer to end with, after its ReLU; by default the feature that is clustered
    #[arg(long)]
    layer: Option<String>,
    /// torchscript: side in pixels of the images that it is tried on; by default the network's
    #[arg(long, value_name = "N")]
    size: Option<u32>,
    /// pytorch: the layout of the published checkpoints: arch, epoch, state_dict, features.module.N, top_layer
    #[arg(long)]
    published: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Safetensors,
    Pytorch,
    Torchscript,
    Torchvision,
    Timm,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    arguments.check()?;
    let source = model_file(&arguments.snapshot)?;
    if arguments.out.canonicalize().ok() == source.canonicalize().ok() {
        return Err(Error::usage(format!("{} is the network itself", arguments.out.display())));
    }
    let (tensors, metadata) = state::read_safetensors(&source)?;
    let backbone = Backbone::open(&source, Device::Cpu, Precision::Fp32)?;
    let mut about = backbone.metadata();
    // the file's own words win, and may be more
    about.extend(metadata.clone());
    say(&describe(&backbone, &about));
    let done = match arguments.to {
        Format::Safetensors => {
            export::safetensors(&arguments.out, &tensors, &metadata)?;
            format!("{} tensors", tensors.len())
        }
        Format::Pytorch => arguments.pytorch(&backbone, &about)?,
        Format::Torchscript => arguments.torchscript(&backbone, about)?,
        Format::Torchvision => arguments.library(Library::Torchvision, &backbone, &about)?,
        Format::Timm => arguments.library(Library::Timm, &backbone, &about)?,
    };
    super::print(&format!("{done}: {} -> {}", source.display(), arguments.out.display()))
}

impl Arguments {
    /// Refuses options that do not belong to the format, and endings that would mislead.
    fn check(&self) -> Result<()> {
        let script = self.to == Format::Torchscript;
        for (option, given, belongs) in [
            ("--layer", self.layer.is_some() && !script, "torchscript"),
            ("--size", self.size.is_some() && !script, "torchscript"),
            ("--published", self.published && self.to != Format::Pytorch, "pytorch"),
        ] {
            if given {
                return Err(Error::usage(format!("{option} goes with --to {belongs}")));
            }
        }
        let safetensors = is_safetensors(&self.out);
        if safetensors && matches!(self.to, Format::Pytorch | Format::Torchscript) {
            return Err(Error::usage(format!("{} would be a pickle, not safetensors", self.out.display()))
                .with_hint("name it .pth, or .pt for torchscript; or take --to safetensors"));
        }
        Ok(())
    }

    fn pytorch(&self, backbone: &Backbone, metadata: &Metadata) -> Result<String> {
        let mut tensors = backbone.state()?;
        if !self.published {
            export::state_dict(&self.out, &tensors, metadata)?;
            return Ok(format!("{} tensors", tensors.len()));
        }
        match top_layer(&self.snapshot)? {
            Some(top_layer) => tensors.extend(top_layer),
            None => say("there is no head to go into top_layer: loaders that count its outputs will miss it"),
        }
        export::published(&self.out, backbone.plan().arch, &tensors, metadata)?;
        Ok(format!("{} tensors in the published layout", tensors.len()))
    }

    fn torchscript(&self, backbone: &Backbone, mut metadata: Metadata) -> Result<String> {
        let size = self.size.unwrap_or(backbone.size());
        let whole = self.layer.as_deref().is_none_or(|layer| !backbone.map_layers().contains(&layer));
        if whole && backbone.last_side(size) != backbone.last_side(backbone.size()) {
            let built = backbone.size();
            let what = format!(
                "--size {size}: the linear layers of this {} take images of {built} pixels",
                backbone.plan().arch.name()
            );
            return Err(Error::usage(what).with_hint("leave --size out, or end with a convolution, by --layer"));
        }
        metadata.insert("size".into(), size.to_string());
        if let Some(layer) = &self.layer {
            metadata.insert("layer".into(), layer.clone());
        }
        let layer = self.layer.as_deref();
        let difference = torchscript::write(&self.out, backbone, layer, size, &metadata)?;
        let what = layer.unwrap_or("the feature");
        Ok(format!("TorchScript up to {what}, within {difference:.0e} of the network on {size} x {size} pixels"))
    }

    fn library(&self, library: Library, backbone: &Backbone, metadata: &Metadata) -> Result<String> {
        let batches = metadata.get("step").and_then(|step| step.parse().ok()).unwrap_or(0);
        let tensors = library.state(backbone, batches)?;
        if is_safetensors(&self.out) {
            export::safetensors(&self.out, &tensors, metadata)?;
        } else {
            export::state_dict(&self.out, &tensors, metadata)?;
        }
        Ok(format!("{} tensors for {}", tensors.len(), library.model(backbone.plan().arch)))
    }
}

fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

/// In a line: which network, what it sees, how far it is.
fn describe(backbone: &Backbone, metadata: &Metadata) -> String {
    let plan = backbone.plan();
    let step = metadata.get("step").map(|step| format!(", step {step}")).unwrap_or_default();
    format!("{} with {} input, for {} pixels{step}", plan.arch.name(), plan.input.name(), backbone.size())
}

/// The classifier beside the network of a run or a snapshot, where it is a layer of its own.
fn top_layer(snapshot: &Path) -> Result<Option<Named>> {
    if !snapshot.is_dir() {
        return Ok(None);
    }
    let head = model_file(snapshot)?.with_file_name("head.safetensors");
    if !head.exists() {
        return Ok(None);
    }
    let (mut tensors, _) = state::read_safetensors(&head)?;
    tensors.retain(|(name, _)| name.starts_with("top_layer."));
    Ok(Some(tensors))
}
