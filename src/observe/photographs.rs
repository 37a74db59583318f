//! The way from ids to photographs: a run keeps only ids, and what draws beside it may not read the list for hours.

use crate::error::Result;
use crate::shards::SampleId;
use image::RgbImage;
use std::collections::{HashMap, HashSet};

/// Finds photographs near at hand.
pub trait Photographs: Send + Sync {
    /// Square thumbnails of `side` pixels, with their keys, of those samples that can be found in a short time.
    ///
    /// # Errors
    /// Nothing of the list can be read.
    fn find(&self, wanted: &HashSet<SampleId>, side: u32) -> Result<HashMap<SampleId, (String, RgbImage)>>;
}

/// Where there are none to be found.
#[derive(Debug)]
pub struct NoPhotographs;

impl Photographs for NoPhotographs {
    fn find(&self, _: &HashSet<SampleId>, _: u32) -> Result<HashMap<SampleId, (String, RgbImage)>> {
        Ok(HashMap::new())
    }
}

/// Gives way to training from now on: this thread, and those that it starts. Where all cores are busy it still has a tenth of one, so that
/// photographs do not take minutes.
pub(super) fn run_calmly() {
    const CALM: i32 = 10;
    if let Err(error) = rustix::process::nice(CALM) {
        tracing::debug!("the priority stays: {error}");
    }
}
