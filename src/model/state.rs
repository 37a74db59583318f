//! Named tensors on disk: safetensors files, their metadata, and copying what they hold into a network.
//!
//! In and out: [`Named`] lists and text metadata. Tensors come and go in fp32, fp16, bf16, f64, i64, i32, u8 and bool,
//! contiguous, by way of the CPU. The same tensors and metadata give the same bytes: the metadata is one JSON object
//! with sorted keys, under the single key `shoal` of the header.
//!
//! What can go wrong is said with the file, the tensor, what was expected and what was found. Only [`replace_safetensors`] is
//! atomic: a snapshot is so as a whole.

use crate::error::{Error, Result};
use crate::model::init::Named;
use safetensors::tensor::{Dtype, SafeTensors, TensorInfo, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Text beside the tensors of a file.
pub type Metadata = BTreeMap<String, String>;

const METADATA_KEY: &str = "shoal";

/// Reads every tensor, onto the CPU, and the metadata of a safetensors file.
///
/// # Errors
/// The file cannot be read, is cut short, or is no safetensors file.
pub fn read_safetensors(path: &Path) -> Result<(Named, Metadata)> {
    let bytes = std::fs::read(path).map_err(|error| Error::file("read", path, &error))?;
    let refuse = |why: &dyn std::fmt::Display| not_whole(path, why);
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| refuse(&error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| refuse(&error))?;
    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.tensors() {
        let tensor = tensor_of(&view).map_err(|error| refuse(&format!("{name}: {error}")))?;
        tensors.push((name, tensor));
    }
    let header = header.metadata().clone().unwrap_or_default();
    Ok((tensors, parse_metadata(header).map_err(|error| refuse(&error))?))
}

/// Reads the first of `names` that a safetensors file has, onto the CPU, and nothing else of it but the header.
///
/// # Errors
/// As [`read_safetensors`], or it has none of them.
pub fn read_one(path: &Path, names: &[&str]) -> Result<Tensor> {
    let failed = |error: std::io::Error| not_whole(path, &error);
    let mut file = File::open(path).map_err(|error| Error::file("read", path, &error))?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(failed)?;
    let start = u64::from_le_bytes(length).saturating_add(8);
    let mut header = Vec::new();
    file.by_ref().take(start - 8).read_to_end(&mut header).map_err(failed)?;
    let header: HashMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|error| not_whole(path, &error))?;
    let found = names.iter().find_map(|name| header.get(*name));
    let info = found.ok_or_else(|| Error::data(format!("{} has no {}", path.display(), names.join(" and no "))))?;
    let info: TensorInfo = serde_json::from_value(info.clone()).map_err(|error| not_whole(path, &error))?;
    let (from, to) = info.data_offsets;
    let mut data = vec![0; to.saturating_sub(from)];
    file.seek(SeekFrom::Start(start + from as u64)).and_then(|_| file.read_exact(&mut data)).map_err(failed)?;
    let view = TensorView::new(info.dtype, info.shape, &data).map_err(|error| not_whole(path, &error))?;
    tensor_of(&view)
}

fn not_whole(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::data(format!("{} is not a whole safetensors file: {why}", path.display()))
        .with_hint("shoal reads .safetensors only; ops/import.py converts .pth, .pt and .tar files")
}

fn tensor_of(view: &TensorView<'_>) -> Result<Tensor> {
    let kind = kind_of(view.dtype())
        .ok_or_else(|| Error::data(format!("it is of kind {:?}, which shoal does not know", view.dtype())))?;
    let shape: Vec<i64> = view.shape().iter().map(|&len| len as i64).collect();
    Ok(Tensor::f_from_data_size(view.data(), &shape, kind)?)
}

/// Writes tensors, made contiguous on the CPU, and metadata to a safetensors file.
///
/// # Errors
/// The file cannot be written, a name occurs twice, or a tensor is of a kind that is not listed above.
pub fn write_safetensors(path: &Path, tensors: &[(String, Tensor)], metadata: &Metadata) -> Result<()> {
    let refuse = |why: String| Error::data(format!("cannot write {}: {why}", path.display()));
    let mut blobs = BTreeMap::new();
    for (name, tensor) in tensors {
        let Some(dtype) = dtype_of(tensor.kind()) else {
            return Err(refuse(format!("{name} is of kind {:?}", tensor.kind())));
        };
        let shape: Vec<usize> = tensor.size().iter().map(|&len| len as usize).collect();
        if blobs.insert(name, (dtype, shape, bytes_of(tensor)?)).is_some() {
            return Err(refuse(format!("the name {name} occurs twice")));
        }
    }
    let mut views = Vec::with_capacity(blobs.len());
    for (name, (dtype, shape, bytes)) in &blobs {
        let view = TensorView::new(*dtype, shape.clone(), bytes);
        views.push((name.as_str(), view.map_err(|error| refuse(format!("{name}: {error}")))?));
    }
    let text = serde_json::to_string(metadata).map_err(|error| refuse(error.to_string()))?;
    let header = HashMap::from([(METADATA_KEY.to_owned(), text)]);
    safetensors::tensor::serialize_to_file(views, Some(header), path).map_err(|error| refuse(error.to_string()))
}

/// [`write_safetensors`] to a file beside `path`, which takes its name once it is on disk: a crash leaves the file that was there.
///
/// # Errors
/// As [`write_safetensors`].
pub fn replace_safetensors(path: &Path, tensors: &[(String, Tensor)], metadata: &Metadata) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".partial");
    let aside = Path::new(&aside);
    let failed = |error: std::io::Error| Error::file("write", path, &error);
    write_safetensors(aside, tensors, metadata)?;
    File::open(aside).and_then(|file| file.sync_all()).map_err(failed)?;
    std::fs::rename(aside, path).map_err(failed)
}

/// Copies `source` into `targets` by name, in place: every target must be there, in its shape and kind. What else
/// `source` holds is ignored.
///
/// # Errors
/// A tensor is missing or of another shape or kind; `targets` are then left as they were.
pub fn copy_into(targets: &[(String, Tensor)], source: &[(String, Tensor)]) -> Result<()> {
    let mut pairs = Vec::with_capacity(targets.len());
    for (name, target) in targets {
        pairs.push((target, find(source, name, &target.size(), target.kind())?));
    }
    let _no_grad = tch::no_grad_guard();
    for (target, values) in pairs {
        target.shallow_clone().f_copy_(values)?;
    }
    Ok(())
}

/// The tensor of that name, shape and kind.
///
/// # Errors
/// It is missing or of another shape or kind.
pub fn find<'a>(tensors: &'a [(String, Tensor)], name: &str, shape: &[i64], kind: Kind) -> Result<&'a Tensor> {
    let Some((_, tensor)) = tensors.iter().find(|(candidate, _)| candidate == name) else {
        return Err(Error::data(format!("the tensor {name} {shape:?} is missing")));
    };
    if tensor.size() != shape {
        let found = tensor.size();
        return Err(Error::data(format!("the tensor {name} should have shape {shape:?}, found {found:?}")));
    }
    if tensor.kind() != kind {
        let found = tensor.kind();
        return Err(Error::data(format!("the tensor {name} should be of kind {kind:?}, found {found:?}")));
    }
    Ok(tensor)
}

/// Adds the file to an error about its contents.
pub(super) fn in_file(error: Error, path: &Path) -> Error {
    match error {
        Error::Data { what, hint } => Error::Data { what: format!("{}: {what}", path.display()), hint },
        other => other,
    }
}

/// The values of a tensor, contiguous, in the byte order of the machine.
pub(crate) fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

/// Entries written by others stay as they are; ours are unpacked beside them.
fn parse_metadata(header: HashMap<String, String>) -> serde_json::Result<Metadata> {
    let mut metadata = Metadata::new();
    for (key, value) in header {
        if key == METADATA_KEY {
            metadata.extend(serde_json::from_str::<Metadata>(&value)?);
        } else {
            metadata.insert(key, value);
        }
    }
    Ok(metadata)
}

const KINDS: [(Kind, Dtype); 8] = [
    (Kind::Float, Dtype::F32),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Double, Dtype::F64),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(_, candidate)| *candidate == dtype).map(|(kind, _)| *kind)
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find(|(candidate, _)| *candidate == kind).map(|(_, dtype)| *dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, tensor: Tensor) -> (String, Tensor) {
        (name.to_owned(), tensor)
    }

    #[test]
    fn tensors_of_every_kind_come_back() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("t.safetensors");
        let base = Tensor::from_slice(&[1.0f32, -2.5, 3.25, 0.0, 5.0, 6.0]).reshape([2, 3]);
        let mut tensors: Named =
            KINDS.iter().map(|(kind, _)| named(&format!("{kind:?}"), base.abs().to_kind(*kind))).collect();
        tensors.push(named("turned", base.tr()));
        tensors.push(named("empty", Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))));
        let metadata = Metadata::from([("arch".to_owned(), "small".to_owned()), ("é".to_owned(), "\"".to_owned())]);
        write_safetensors(&path, &tensors, &metadata)?;
        let first = std::fs::read(&path).expect("the file");

        let (read, read_metadata) = read_safetensors(&path)?;
        assert_eq!(read_metadata, metadata);
        assert_eq!(read.len(), tensors.len());
        for (name, tensor) in &tensors {
            assert_eq!(find(&read, name, &tensor.size(), tensor.kind())?, tensor, "{name}");
        }
        tensors.reverse();
        write_safetensors(&path, &tensors, &metadata)?;
        assert_eq!(first, std::fs::read(&path).expect("the file"), "the order of the list does not matter");
        Ok(())
    }

    #[test]
    fn a_file_cut_short_is_refused_by_name() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("cut.safetensors");
        let tensors = [named("a", Tensor::ones([100], (Kind::Float, Device::Cpu)))];
        write_safetensors(&path, &tensors, &Metadata::new())?;
        let bytes = std::fs::read(&path).expect("the file");
        for len in [0, 7, 20, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).expect("a shorter file");
            let error = read_safetensors(&path).expect_err("it is cut short");
            assert!(error.to_string().contains("cut.safetensors"), "{error}");
            assert_eq!(error.exit_code(), 3);
        }
        Ok(())
    }

    #[test]
    fn copying_names_what_does_not_fit_and_changes_nothing() -> Result<()> {
        let float = |value: f64, shape: &[i64]| Tensor::full(shape, value, (Kind::Float, Device::Cpu));
        let targets = [named("a", float(0.0, &[2])), named("b", float(0.0, &[2, 2]))];
        let refused = |source: &[(String, Tensor)]| {
            let error = copy_into(&targets, source).expect_err("it does not fit").to_string();
            assert_eq!(targets[0].1, float(0.0, &[2]));
            error
        };
        let a = || named("a", float(1.0, &[2]));
        assert_eq!(refused(&[a()]), "the tensor b [2, 2] is missing");
        let turned = refused(&[a(), named("b", float(1.0, &[4]))]);
        assert_eq!(turned, "the tensor b should have shape [2, 2], found [4]");
        let half = refused(&[a(), named("b", float(1.0, &[2, 2]).to_kind(Kind::Half))]);
        assert_eq!(half, "the tensor b should be of kind Float, found Half");

        copy_into(&targets, &[named("b", float(3.0, &[2, 2])), a(), named("c", float(1.0, &[1]))])?;
        assert_eq!(targets[1].1, float(3.0, &[2, 2]));
        Ok(())
    }
}
