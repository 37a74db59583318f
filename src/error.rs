//! One error type, sorted by what the operator can do about it.
//!
//! Every variant carries a message that names the file, key or shape, and, where there is one, a `hint`: the way out.
//! The variant decides the exit code of the process; see [`Error::exit_code`]. The text of libtorch is cut to its first
//! line: the rest is C++ frames, and goes to the debug log.

use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by what the operator can do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line or the pipeline file is wrong: correct it and start again.
    #[error("{what}")]
    Usage {
        /// What is wrong, with the file, key or shape.
        what: String,
        /// The way out.
        hint: Option<String>,
    },
    /// The data, or a file that a run depends on, cannot be read or written: mend it, or point elsewhere.
    #[error("{what}")]
    Data {
        /// What is wrong, with the file, key or shape.
        what: String,
        /// The way out.
        hint: Option<String>,
    },
    /// libtorch or the device refused.
    #[error("{what}")]
    Device {
        /// What is wrong, with the file, key or shape.
        what: String,
        /// The way out.
        hint: Option<String>,
    },
    /// A stage of the pipeline panicked: a defect of shoal.
    #[error("the {stage} stage failed: {what}")]
    Stage {
        /// The stage, as it stands in the drawing.
        stage: &'static str,
        /// What the panic said.
        what: String,
    },
    /// The operator asked to stop; everything up to `snapshot` is kept.
    #[error("interrupted{}", .snapshot.as_deref().map(|p| format!(", snapshot written to {}", p.display())).unwrap_or_default())]
    Interrupted {
        /// The snapshot that holds everything, where there is something to hold.
        snapshot: Option<PathBuf>,
    },
}

impl Error {
    /// The command line or pipeline file is wrong.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), hint: None }
    }

    /// Data cannot be read or written.
    pub fn data(what: impl Into<String>) -> Self {
        Self::Data { what: what.into(), hint: None }
    }

    /// libtorch or the device refused.
    pub fn device(what: impl Into<String>) -> Self {
        Self::Device { what: what.into(), hint: None }
    }

    /// A file operation failed: `action` is a verb ("read", "write").
    pub fn file(action: &str, path: &Path, source: &std::io::Error) -> Self {
        Self::data(format!("cannot {action} {}: {source}", path.display()))
    }

    /// Adds the way out.
    #[must_use]
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::Usage { hint, .. } | Self::Data { hint, .. } | Self::Device { hint, .. } => *hint = Some(text.into()),
            Self::Stage { .. } | Self::Interrupted { .. } => {}
        }
        self
    }

    /// The way out, if one is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Usage { hint, .. } | Self::Data { hint, .. } | Self::Device { hint, .. } => hint.as_deref(),
            Self::Stage { .. } => {
                Some("this is a defect of shoal: please report it with the line above and the pipeline file")
            }
            Self::Interrupted { .. } => None,
        }
    }

    /// The exit code of the process: 2 usage, 3 data, 4 device, 130 interrupted, 1 a defect of shoal.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            Self::Data { .. } => 3,
            Self::Device { .. } => 4,
            Self::Stage { .. } => 1,
            Self::Interrupted { .. } => 130,
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        let text = error.to_string();
        tracing::debug!("{text}");
        let what = first_line(&text);
        let out_of_memory = what.contains("out of memory");
        let error = Self::device(format!("libtorch: {what}"));
        if out_of_memory {
            return error.with_hint("lower train.batch_size, views.size or cluster.k in the pipeline file");
        }
        error
    }
}

/// The first line that says something: libtorch's messages go on with C++ frames.
fn first_line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message");
    line.trim_start_matches("Internal torch error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_error_of_libtorch_is_one_line() {
        let a = tch::Tensor::zeros([2, 3], (tch::Kind::Float, tch::Device::Cpu));
        let error = Error::from(a.f_matmul(&a).expect_err("2x3 by 2x3 cannot be multiplied"));
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("2x3"), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}
