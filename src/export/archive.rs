//! The container of PyTorch's files: a zip with nothing compressed, everything under `archive/`, and the values of each tensor in a
//! record of its own that begins at a multiple of 64 bytes, so that it can be mapped into memory.
//!
//! In: records by name, and tensors, which are numbered as they come. Out: a zip that `torch.load`, `torch.jit.load` and plain
//! `unzip` read. The same records give the same bytes. What can go wrong: the disk, and kinds of tensor that have no storage in
//! PyTorch's pickles.

use crate::error::{Error, Result};
use crate::model::state;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tch::Tensor;
use zip::write::FileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

const ROOT: &str = "archive";
const ALIGNMENT: u16 = 64;
/// The version of the format: what `torch.save` has written since PyTorch 1.5.
const VERSION: &str = "3\n";
/// From here on a record needs sizes of 64 bits in its header.
const LARGE: u64 = 1 << 31;

/// An archive that is being written.
pub(super) struct Archive {
    zip: ZipWriter<BufWriter<File>>,
    path: PathBuf,
}

impl Archive {
    /// In `file`, which becomes `path`: the name that errors give it.
    pub(super) fn create(file: &Path, path: &Path) -> Result<Self> {
        let file = File::create(file).map_err(|error| Error::file("write", path, &error))?;
        Ok(Self { zip: ZipWriter::new(BufWriter::new(file)), path: path.to_owned() })
    }

    /// Adds one record.
    pub(super) fn record(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let options = FileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(bytes.len() as u64 >= LARGE);
        let started = self.zip.start_file_aligned(format!("{ROOT}/{name}"), options, ALIGNMENT);
        started.map_err(std::io::Error::from).map_err(|error| self.refuse(&error))?;
        self.zip.write_all(bytes).map_err(|error| self.refuse(&error))
    }

    /// Adds the values of tensors as the records `data/0`, `data/1` and so on.
    pub(super) fn storages<'a>(&mut self, tensors: impl Iterator<Item = &'a Tensor>) -> Result<()> {
        for (number, tensor) in tensors.enumerate() {
            self.record(&format!("data/{number}"), &state::bytes_of(tensor)?)?;
        }
        Ok(())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<()> {
        self.record("byteorder", b"little")?;
        self.record("version", VERSION.as_bytes())?;
        let finished = self.zip.finish().map_err(std::io::Error::from).and_then(|mut file| file.flush());
        finished.map_err(|error| self.refuse(&error))
    }

    fn refuse(&self, error: &std::io::Error) -> Error {
        Error::file("write", &self.path, error)
    }
}
