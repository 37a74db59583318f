//! What tch lacks, and the only `unsafe` code of the crate.
//!
//! libtorch 2.11 carries a plain C interface beside the one that tch wraps. Through it, and through the C interface of
//! the CUDA runtime, come: opening CUDA at run time ([`cuda`]), the choice of a device ([`device`]), the multi-tensor
//! optimiser step that tch's generator leaves out ([`fused_sgd`]), host memory that other threads may fill
//! ([`HostBuffer`]), and PyTorch's distributed engine ([`c10d`]). So that unsafe code has one place, what libjpeg-turbo's crate lacks
//! is here as well ([`turbo`]), and what is compiled for certain processors: the resampling of pictures ([`resample`]), and of k-means
//! the scores ([`scores`]), the bounds ([`bounds`]), the rows that it goes through ([`rows`]) and where they lie ([`aligned`]).
#![allow(unsafe_code)]

pub mod aligned;
pub mod bounds;
pub mod c10d;
pub mod cuda;
pub mod device;
mod dispatch;
mod exit;
mod host;
pub mod resample;
pub mod rows;
pub mod scores;
pub mod turbo;
mod unit;
mod vectors;

pub use dispatch::{SgdSettings, fused_sgd};
pub use exit::leave_at_once;
pub use host::{HostBuffer, floats};
pub use unit::unit_rows;
