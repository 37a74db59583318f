//! Pictures of what a run has learnt.

pub mod sheet;
mod text;
