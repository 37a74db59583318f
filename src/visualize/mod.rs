//! Pictures of what a run has learnt.
//!
//! In: weights, activations, photographs, records. Out: pictures (PNG by way of `image`, plots by way of `plotters`), and the page of a
//! run. Nothing here reads a run's folder or a shard: `cli/show` gathers what is to be seen.

pub mod ascent;
pub mod best;
mod canvas;
pub mod choice;
pub mod curves;
pub mod filters;
pub mod map;
pub mod mosaic;
pub mod plot;
pub mod report;
pub mod sheet;
mod text;
