//! What networks saw in photographs, kept so that an interrupted evaluation goes on, and the next one begins where this one ended.
//!
//! In and out: the maxima `[R, C]` of one photograph, before whitening, each in a safetensors file of its own. All that one network and
//! one set of settings gave lies in a folder named by a hash of both, beside `settings.json`, which says in words what it is of; a file
//! is named by a hash of the photograph's bytes and the part of it that was looked at. So whatever is changed — weights, settings,
//! photographs — is computed anew, and Oxford and Paris share the cache when each is whitened by the other. A file is written aside and
//! renamed: it is whole or not there. One that cannot be read all the same is computed anew.
//!
//! A photograph of Oxford at three levels of VGG-16 takes 40 kB, all of Oxford and Paris 460 MB.

use crate::error::{Error, Result};
use crate::model::state::{self, Metadata};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_128;

const TENSOR: &str = "maxima";

/// All that the maxima of a photograph depend on, but the photograph.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// [`fingerprint`](crate::model::Backbone::fingerprint) of its weights.
    pub network: String,
    /// Its architecture and input, for people.
    pub metadata: Metadata,
    /// What it computes in.
    pub precision: &'static str,
    /// Of pixels in 0..1, channel by channel.
    pub mean: [f64; 3],
    /// The same.
    pub std: [f64; 3],
    /// The layer looked at.
    pub layer: String,
    /// Longest side of a photograph.
    pub side: u32,
    /// Levels of regions.
    pub levels: i64,
}

/// The folder of one network and one set of settings.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens or makes the folder for `settings` in `root`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(root: &Path, settings: &Settings) -> Result<Self> {
        let text = serde_json::to_string_pretty(settings)
            .map_err(|error| Error::data(format!("cannot write settings as JSON: {error}")))?;
        let folder = root.join(format!("{:032x}", xxh3_128(text.as_bytes())));
        fs::create_dir_all(&folder).map_err(|error| Error::file("make", &folder, &error))?;
        let path = folder.join("settings.json");
        fs::write(&path, text).map_err(|error| Error::file("write", &path, &error))?;
        Ok(Self { folder })
    }

    /// The maxima under `key`, if they are there and whole.
    pub fn get(&self, key: u128) -> Option<Tensor> {
        let path = self.path(key);
        if !path.is_file() {
            return None;
        }
        match state::read_safetensors(&path) {
            Ok((tensors, _)) => {
                let found = tensors.into_iter().find(|(name, tensor)| name == TENSOR && tensor.dim() == 2);
                found.map(|(_, tensor)| tensor)
            }
            Err(error) => {
                tracing::warn!("{error}: it is computed anew");
                None
            }
        }
    }

    /// Keeps the maxima `[R, C]` of one photograph under `key`.
    pub fn put(&self, key: u128, maxima: &Tensor) -> Result<()> {
        let path = self.path(key);
        let trouble = |error| Error::file("write", &path, &error);
        let aside = tempfile::NamedTempFile::new_in(&self.folder).map_err(trouble)?;
        state::write_safetensors(aside.path(), &[(TENSOR.to_owned(), maxima.shallow_clone())], &Metadata::new())?;
        aside.persist(&path).map_err(|error| trouble(error.error))?;
        Ok(())
    }

    fn path(&self, key: u128) -> PathBuf {
        self.folder.join(format!("{key:032x}.safetensors"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(side: u32) -> Settings {
        Settings {
            network: "n".into(),
            metadata: Metadata::new(),
            precision: "fp32",
            mean: [0.5; 3],
            std: [0.5; 3],
            layer: "conv4".into(),
            side,
            levels: 3,
        }
    }

    #[test]
    fn what_is_put_comes_back_to_the_bit_and_only_under_the_same_settings() -> Result<()> {
        let root = tempfile::tempdir().expect("a temporary folder");
        let maxima = Tensor::from_slice(&[0.1_f32, 2.5, -3.0, 1e-30, 7.0, 8.0]).view([2, 3]);
        let cache = Cache::open(root.path(), &settings(64))?;
        assert!(cache.get(7).is_none());
        cache.put(7, &maxima)?;
        assert_eq!(Cache::open(root.path(), &settings(64))?.get(7).expect("it is there"), maxima);
        assert!(cache.get(8).is_none());
        assert!(Cache::open(root.path(), &settings(65))?.get(7).is_none());
        Ok(())
    }

    #[test]
    fn a_damaged_file_counts_as_missing_and_is_written_over() -> Result<()> {
        let root = tempfile::tempdir().expect("a temporary folder");
        let cache = Cache::open(root.path(), &settings(64))?;
        let maxima = Tensor::from_slice(&[1.0_f32, 2.0]).view([1, 2]);
        cache.put(7, &maxima)?;
        let bytes = fs::read(cache.path(7)).expect("the file");
        for damaged in [&bytes[..0], &bytes[..bytes.len() - 1]] {
            fs::write(cache.path(7), damaged).expect("a file");
            assert!(cache.get(7).is_none());
        }
        cache.put(7, &maxima)?;
        assert_eq!(cache.get(7).expect("it is there"), maxima);
        assert_eq!(fs::read_dir(&cache.folder).expect("a folder").count(), 2, "nothing is left aside");
        Ok(())
    }
}
