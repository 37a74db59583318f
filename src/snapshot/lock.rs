//! One process a run: an exclusive lock on `RUN/.lock`, held until dropped and released by the kernel on any death.

use crate::error::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

/// The lock of a run directory.
#[derive(Debug)]
pub(super) struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock, or says which process has it.
    pub(super) fn take(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join(".lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::file("open", &path, &e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(taken(run_dir, &mut file)),
            Err(TryLockError::Error(error)) => {
                return Err(Error::file("lock", &path, &error)
                    .with_hint("the file system must support locks: point --run at a local disk"));
            }
        }
        // The number only serves the message to a second process: the lock holds without it.
        let noted = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        if let Err(error) = noted {
            tracing::warn!("cannot note the process in {}: {error}", path.display());
        }
        Ok(Self { _file: file })
    }
}

fn taken(run_dir: &Path, file: &mut File) -> Error {
    let mut holder = String::new();
    let holder = match file.read_to_string(&mut holder) {
        Ok(_) if !holder.is_empty() => format!("process {holder}"),
        _ => "another process".to_owned(),
    };
    Error::usage(format!("{} is in use by {holder}", run_dir.display()))
        .with_hint("wait for it or stop it, or start this run in a directory of its own with --run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_told_who_has_the_run() -> Result<()> {
        let run = tempfile::tempdir().expect("a temporary folder");
        let lock = RunLock::take(run.path())?;
        let error = RunLock::take(run.path()).expect_err("the lock is taken");
        assert!(error.to_string().ends_with(&format!("in use by process {}", std::process::id())), "{error}");
        assert_eq!(error.exit_code(), 2);
        drop(lock);
        RunLock::take(run.path())?;
        Ok(())
    }
}
