//! NCCL, opened at run time: what ranks on GPUs compute together with.
//!
//! `nccl.cpp` beside this file becomes a library of its own, built where `ops/setup.sh --cuda` has put NCCL's headers, and opened only
//! where several ranks train on CUDA. So one program serves machines with and without it. It must lie beside the program, or where it
//! was built.

use super::BackendMaker;
use crate::error::{Error, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::path::PathBuf;

const NAME: &str = "libshoal_nccl.so";

/// What makes NCCL's backend for a group. libtorch's CUDA half must be open.
///
/// # Errors
/// The library is not there, or does not fit this libtorch.
pub fn maker() -> Result<BackendMaker> {
    let mut reasons = Vec::new();
    for path in places() {
        // SAFETY: its initialisers are those of C++ without globals; libtorch_cuda, which it needs, is loaded.
        let opened = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
        // SAFETY: the signature is that of nccl.cpp.
        let found = opened.and_then(|library| unsafe {
            let maker = *library.get::<BackendMaker>(b"shoal_nccl_backend\0")?;
            std::mem::forget(library); // groups use it for the life of the process
            Ok(maker)
        });
        match found {
            Ok(maker) => return Ok(maker),
            Err(error) => {
                let text = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                reasons.push(text);
            }
        }
    }
    Err(Error::device(format!("several ranks on GPUs need {NAME}, which cannot be opened: {}", reasons.join("; "))).with_hint(
        "build shoal after `ops/setup.sh --cuda`, and keep the library beside the program; or train on CPUs with device.kind = \"cpu\"",
    ))
}

/// Beside the program, then where it was built.
fn places() -> impl Iterator<Item = PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join(NAME)));
    beside.into_iter().chain(option_env!("SHOAL_NCCL_LIB").map(PathBuf::from))
}
