//! Pipeline files: TOML in, a checked [`Plan`] out.
//!
//! In comes a pipeline file (`pipelines/demo.toml`, or just `demo`) and overrides (`--set train.lr=0.02`); out goes a
//! [`Plan`], in which every key has a value that makes sense beside the others. `set` reads keys and remembers where each
//! was set, `plan` gives them types and defaults, `check` knows the ranges, `diff` knows which keys a run that has begun
//! cannot change. `pipelines/reference.toml` lists every key.
//!
//! What can go wrong is the operator's to mend, hence always [`Error::usage`](crate::Error::usage): each line of the
//! message names the file and line (or `--set`), the key, the value and what is allowed. All problems are told at once.

mod check;
mod choice;
mod diff;
mod load;
mod plan;
mod set;

pub(crate) use check::MOST_CLASSES;
pub use check::Problem;
pub use choice::*;
pub use diff::Change;
pub use plan::*;
