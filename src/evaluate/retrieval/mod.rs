//! Instance retrieval (paper, Table 5): photographs of the same building are to be found by what a convolution sees.
//!
//! [`images`] and [`truth`] read the Oxford 5k and Paris 6k layout; [`look`] runs the network on a photograph at its aspect and keeps the
//! highest activations of the [`regions`] of its map, in a [`cache`] if asked to; [`descriptor`] makes one vector of them, whitened by what
//! was learnt on the regions of another set of photographs; [`ranking`] ranks by dot product and measures the average precision.
//!
//! The published protocol: VGG-16, last convolution after batch norm and ReLU, longest side 1024, three levels, whitening to 512
//! dimensions learnt on Paris for Oxford and on Oxford for Paris, no multi-scale, no query expansion. Photographs go by one at a time:
//! memory is one pass of the network, the scatter matrix and the descriptors.

pub mod cache;
pub mod descriptor;
pub mod images;
pub mod look;
pub mod ranking;
pub mod regions;
pub mod truth;

use crate::error::{Error, Result};
use crate::shards::Trouble;
use descriptor::{Learner, Whitening, describe};
use images::Images;
use look::{Looker, Seen};
use ranking::Database;
use std::path::Path;
use tch::{Tensor, no_grad_guard};
use truth::Query;

/// Photographs that a whitening is learnt from, at most.
pub const MOST_TO_LEARN_FROM: usize = 10_000;

/// A photograph that cannot be decoded, or is cut short.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// Its name.
    pub image: String,
    /// Why.
    pub trouble: Trouble,
}

/// What was learnt from photographs.
#[derive(Debug)]
pub struct Learnt {
    /// From their regions.
    pub whitening: Whitening,
    /// How many.
    pub images: usize,
    /// Regions of all of them.
    pub regions: i64,
}

/// Learns a whitening to at most `dims` dimensions from the regions of `images`. After each photograph `proceed` is asked.
///
/// # Errors
/// None can be decoded, their regions are all the same, or what [`Looker::look`] and `proceed` return.
pub fn learn(
    looker: &Looker<'_>,
    images: &Images,
    dims: i64,
    left_out: &mut Vec<LeftOut>,
    mut proceed: impl FnMut() -> Result<()>,
) -> Result<Learnt> {
    let mut learner: Option<Learner> = None;
    let mut count = 0;
    for_each(looker, images, left_out, &mut proceed, |_, maxima| {
        let learner = match &mut learner {
            Some(learner) => learner,
            None => learner.insert(Learner::new(maxima.size2()?.1)?),
        };
        count += 1;
        learner.add(maxima)
    })?;
    let learner = learner.ok_or_else(|| none_of(images))?;
    let regions = learner.regions();
    Ok(Learnt { whitening: learner.finish(dims)?, images: count, regions })
}

/// Descriptors of `images`, but for those that cannot be decoded. After each photograph `proceed` is asked.
///
/// # Errors
/// None can be decoded, or what [`Looker::look`], [`describe`] and `proceed` return.
pub fn database(
    looker: &Looker<'_>,
    images: &Images,
    whitening: Option<&Whitening>,
    left_out: &mut Vec<LeftOut>,
    mut proceed: impl FnMut() -> Result<()>,
) -> Result<Database> {
    let (mut names, mut rows) = (Vec::with_capacity(images.len()), Vec::with_capacity(images.len()));
    for_each(looker, images, left_out, &mut proceed, |name, maxima| {
        rows.push(describe(maxima, whitening)?);
        names.push(name.to_owned());
        Ok(())
    })?;
    if rows.is_empty() {
        return Err(none_of(images));
    }
    Ok(Database { names, descriptors: Tensor::f_stack(&rows, 0)? })
}

/// The descriptor `[D]` of the part of a photograph that a query searches with.
///
/// # Errors
/// The photograph cannot be decoded, or what [`Looker::look`] and [`describe`] return.
pub fn describe_query(
    looker: &Looker<'_>,
    query: &Query,
    images: &Images,
    whitening: Option<&Whitening>,
) -> Result<Tensor> {
    let path = images.get(&query.image).map_or(Path::new(&query.image), |path| path);
    match looker.look(path, Some(query.part))? {
        Seen::Maxima(maxima) => describe(&maxima, whitening),
        Seen::Nothing(trouble) => {
            Err(Error::data(format!("{}, which the query {} searches with: {trouble}", path.display(), query.name)))
        }
    }
}

fn for_each(
    looker: &Looker<'_>,
    images: &Images,
    left_out: &mut Vec<LeftOut>,
    proceed: &mut dyn FnMut() -> Result<()>,
    mut act: impl FnMut(&str, &Tensor) -> Result<()>,
) -> Result<()> {
    let _no_grad = no_grad_guard();
    for (name, path) in images {
        match looker.look(path, None)? {
            Seen::Maxima(maxima) => act(name, &maxima)?,
            Seen::Nothing(trouble) => left_out.push(LeftOut { image: name.clone(), trouble }),
        }
        proceed()?;
    }
    Ok(())
}

fn none_of(images: &Images) -> Error {
    let first = images.values().next().map(|path| format!(", {} for one", path.display())).unwrap_or_default();
    Error::data(format!("none of the {} photographs can be decoded{first}", images.len()))
}
