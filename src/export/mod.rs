//! Networks in the formats of others: PyTorch's state dicts, TorchScript, the names of torchvision and timm.
//!
//! In: a network that was opened from a snapshot, and its metadata. Out: files that Python reads without shoal: `.pth`, which
//! `torch.load(weights_only=True)` takes, `.pt` for `torch.jit.load`, safetensors under other names. All are written aside and
//! renamed, so that nothing half lies under a whole one's name. The way back is `ops/import.py`.
//!
//! What can go wrong: the disk, and networks that a library does not have; see [`names::Library`].

mod archive;
pub mod names;
mod pickle;
pub mod torchscript;

use crate::config::Arch;
use crate::error::{Error, Result};
use crate::model::state::{self, Metadata};
use archive::Archive;
use pickle::Pickle;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tch::Tensor;

/// Where the metadata lie in an archive: `torch.jit.load` hands it out as the extra file `shoal.json`, `torch.load` ignores it.
const METADATA_RECORD: &str = "extra/shoal.json";

/// Writes tensors as a state dict, an `OrderedDict` in their order, to a `.pth` file.
///
/// # Errors
/// The file cannot be written, or a tensor is of a kind that PyTorch's pickles lack.
pub fn state_dict(path: &Path, tensors: &[(String, Tensor)], metadata: &Metadata) -> Result<()> {
    let mut pickle = Pickle::new();
    ordered_dict(tensors, &mut pickle)?;
    write(path, pickle, tensors, metadata)
}

/// Writes the layout of the published DeepCluster checkpoints: a dict of `arch`, `epoch` and `state_dict`, whose convolutional part
/// is called `features.module`, as data-parallel training leaves it. `top_layer.*` may be among the tensors. Streams have no
/// epochs: `epoch` is what the metadata say, else 0, and their `step` is beside it.
///
/// # Errors
/// The architecture was not published, or the file cannot be written.
pub fn published(path: &Path, arch: Arch, tensors: &[(String, Tensor)], metadata: &Metadata) -> Result<()> {
    if !matches!(arch, Arch::AlexNet | Arch::Vgg16) {
        let what = format!("DeepCluster published alexnet and vgg16, there is no such layout for {}", arch.name());
        return Err(Error::usage(what).with_hint("leave --published out"));
    }
    let named: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name.replacen("features.", "features.module.", 1), tensor.shallow_clone()))
        .collect();
    let number = |key: &str| metadata.get(key).and_then(|text| text.parse::<i64>().ok());
    let mut pickle = Pickle::new();
    pickle.dict(|pickle| {
        pickle.text("arch");
        pickle.text(arch.name());
        pickle.text("epoch");
        pickle.integer(number("epoch").unwrap_or(0));
        if let Some(step) = number("step") {
            pickle.text("step");
            pickle.integer(step);
        }
        pickle.text("state_dict");
        ordered_dict(&named, pickle)
    })?;
    write(path, pickle, &named, metadata)
}

fn ordered_dict(tensors: &[(String, Tensor)], pickle: &mut Pickle) -> Result<()> {
    pickle.ordered_dict(|pickle| {
        for (number, (name, tensor)) in tensors.iter().enumerate() {
            pickle.text(name);
            pickle.tensor(number, tensor, false)?;
        }
        Ok(())
    })
}

fn write(path: &Path, pickle: Pickle, tensors: &[(String, Tensor)], metadata: &Metadata) -> Result<()> {
    let pickle = pickle.finish();
    aside(path, |file| {
        let mut archive = Archive::create(file, path)?;
        archive.record("data.pkl", &pickle)?;
        archive.record(METADATA_RECORD, json(metadata)?.as_bytes())?;
        archive.storages(tensors.iter().map(|(_, tensor)| tensor))?;
        archive.finish()
    })
}

/// Writes tensors and metadata as safetensors.
///
/// # Errors
/// Those of [`state::write_safetensors`].
pub fn safetensors(path: &Path, tensors: &[(String, Tensor)], metadata: &Metadata) -> Result<()> {
    aside(path, |path| state::write_safetensors(path, tensors, metadata))
}

/// Lets `fill` write a file beside `path`, which then takes its name; where that fails, nothing is left.
fn aside<T>(path: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let refuse = |error: &std::io::Error| Error::file("write", path, error);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // what the umask leaves of it, as for any other file
    let builder = builder.prefix(".export-").permissions(Permissions::from_mode(0o666));
    let unfinished = builder.tempfile_in(folder).map_err(|error| refuse(&error))?.into_temp_path();
    let allowed = fs::metadata(&unfinished).map_err(|error| refuse(&error))?.permissions();
    let filled = fill(&unfinished)?;
    // some writers put a file of their own in its place, which only the owner may read
    fs::set_permissions(&unfinished, allowed).map_err(|error| refuse(&error))?;
    unfinished.persist(path).map_err(|error| refuse(&error.error))?;
    Ok(filled)
}

fn json(metadata: &Metadata) -> Result<String> {
    serde_json::to_string(metadata).map_err(|error| Error::data(format!("cannot describe the network: {error}")))
}
