//! What is needed to go on with a fine-tuning that was interrupted, in one file.
//!
//! A safetensors file: weights that are trained and their momenta, and in its header what is being evaluated, the trials that are done and
//! how many steps of the next one. It is written aside and renamed, so that one whole file is there at any time. A file of another
//! evaluation is refused, with what differs.

use crate::error::{Error, Result};
use crate::model::Named;
use crate::model::state::{Metadata, copy_into, read_safetensors, replace_safetensors};
use crate::train::optimizer::Sgd;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use tch::Tensor;

/// How far an evaluation is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Place {
    /// Network, data and settings, as a JSON object.
    pub(super) of: Value,
    /// Mean average precision of the trials that are done.
    pub(super) trials: Vec<f64>,
    /// Steps done of the one after them.
    pub(super) steps: u64,
}

/// `key` is the name of the evaluation.
pub(super) fn write(path: &Path, key: &str, place: &Place, tensors: &Named) -> Result<()> {
    let text = serde_json::to_string(place).map_err(|error| Error::data(format!("{}: {error}", path.display())))?;
    replace_safetensors(path, tensors, &Metadata::from([(key.to_owned(), text)]))
}

/// Nothing where there is no file.
///
/// # Errors
/// The file is none of these, or of an evaluation other than `of`.
pub(super) fn read(path: &Path, key: &str, of: &Value) -> Result<Option<(Place, Named)>> {
    if !path.exists() {
        return Ok(None);
    }
    let (tensors, metadata) = read_safetensors(path)?;
    let place = metadata.get(key).and_then(|text| serde_json::from_str::<Place>(text).ok());
    let Some(place) = place else {
        return Err(Error::data(format!("{} is no state of shoal eval {key}", path.display())));
    };
    if place.of == *of {
        return Ok(Some((place, tensors)));
    }
    let what = format!("{} is the state of another evaluation: {}", path.display(), difference(&place.of, of));
    Err(Error::usage(what).with_hint("repeat its arguments to go on, or give another --state"))
}

/// Weights that are trained, and their momenta as `momentum.NAME`.
pub(super) fn fitted(trained: Named, optimizer: &Sgd) -> Named {
    let momenta = optimizer.state().into_iter().map(|(name, tensor)| (format!("momentum.{name}"), tensor));
    trained.into_iter().chain(momenta).collect()
}

/// Copies what [`fitted`] gave back, in place.
pub(super) fn load_fitted(trained: &Named, optimizer: &mut Sgd, saved: &[(String, Tensor)]) -> Result<()> {
    copy_into(trained, saved)?;
    let momenta: Named = saved
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("momentum.")?.to_owned(), tensor.shallow_clone())))
        .collect();
    optimizer.load_state(&momenta)
}

/// The first key whose values differ, and both of them.
fn difference(then: &Value, now: &Value) -> String {
    let (Some(then), Some(now)) = (then.as_object(), now.as_object()) else { return "it says nothing".to_owned() };
    let differs = now.iter().find(|(key, value)| then.get(*key) != Some(value));
    differs.map_or("it has more".to_owned(), |(key, value)| {
        format!("{key} was {}, is {value}", then.get(key).unwrap_or(&Value::Null))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::state::write_safetensors;
    use serde_json::json;
    use std::fs;

    #[test]
    fn a_state_comes_back_to_its_own_evaluation_only() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("voc.state");
        let of = json!({"lr": [0.1], "kit": "a"});
        assert!(read(&path, "voc07", &of)?.is_none());
        let place = Place { of: of.clone(), trials: vec![0.25], steps: 7 };
        let tensors = vec![("w".to_owned(), Tensor::from_slice(&[1.0f32, 2.0]))];
        write(&path, "voc07", &place, &Named::new())?;
        write(&path, "voc07", &place, &tensors)?;
        let (found, weights) = read(&path, "voc07", &of)?.expect("it was written");
        assert_eq!((found, &weights[0].1), (place, &tensors[0].1));
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left aside");

        let error = read(&path, "voc07", &json!({"lr": [0.2], "kit": "a"})).expect_err("another");
        assert!(error.to_string().contains("lr was [0.1], is [0.2]") && error.hint().is_some(), "{error}");
        write_safetensors(&path, &tensors, &Metadata::new())?;
        assert!(read(&path, "voc07", &of).expect_err("no state").to_string().contains("voc.state"));
        Ok(())
    }
}
