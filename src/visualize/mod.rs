//! Pictures of what a run has learnt.

pub mod plot;
pub mod report;
pub mod sheet;
mod text;
