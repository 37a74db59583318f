//! A network looks at photographs: from a file to the maxima of the regions of its map.
//!
//! In: image files, and for a query the part that is searched with. A photograph is resized so that its longest side has a fixed length,
//! without cropping; the part is cut out after that, its edges scaled and rounded. It goes through the network alone, up to a
//! convolution after batch norm and ReLU and before the pool. Out: the maxima `[R, C]`, from the cache where they are known.
//!
//! What can go wrong: a file that cannot be read, or a part that is too small for the network, are errors that name it; a photograph
//! that cannot be decoded, or is cut short, is [`Seen::Nothing`] with the reason (20 photographs of Paris 6k are so).

use super::cache::Cache;
use super::descriptor::maxima;
use super::truth::Part;
use crate::decode::{Orient, Photograph};
use crate::error::{Error, Result};
use crate::model::{Backbone, Normalizer};
use crate::shards::Trouble;
use std::path::Path;
use tch::Tensor;
use xxhash_rust::xxh3::Xxh3;

/// A network and how it looks.
#[derive(Debug)]
pub struct Looker<'a> {
    /// The network.
    pub backbone: &'a Backbone,
    /// What turns pixels into its input.
    pub normalizer: Normalizer,
    /// One of [`Backbone::map_layers`].
    pub layer: &'a str,
    /// Longest side of a photograph, in pixels.
    pub side: u32,
    /// Levels of regions.
    pub levels: i64,
    /// Where maxima are kept.
    pub cache: Option<Cache>,
}

/// What came of a file.
#[derive(Debug)]
pub enum Seen {
    /// Maxima `[R, C]`.
    Maxima(Tensor),
    /// It is no whole photograph.
    Nothing(Trouble),
}

impl Looker<'_> {
    /// Looks at a photograph, or at a part of it.
    ///
    /// # Errors
    /// Those above, and libtorch's own, all with the file.
    pub fn look(&self, path: &Path, part: Option<Part>) -> Result<Seen> {
        let bytes = std::fs::read(path).map_err(|error| Error::file("read", path, &error))?;
        let key = key(&bytes, part);
        if let Some(found) = self.cache.as_ref().and_then(|cache| cache.get(key)) {
            return Ok(Seen::Maxima(found));
        }
        let photograph = match Photograph::decode_whole(&bytes, Orient::AsStored) {
            Ok(photograph) => photograph,
            Err(trouble) => return Ok(Seen::Nothing(trouble)),
        };
        let map = self.map(&photograph, part).map_err(|error| in_file(error, path))?;
        let found = maxima(&map, self.levels)?;
        if let Some(cache) = &self.cache {
            cache.put(key, &found)?;
        }
        Ok(Seen::Maxima(found))
    }

    /// Activations `[C, H, W]` of a photograph, or of a part of it.
    pub fn map(&self, photograph: &Photograph, part: Option<Part>) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let stored = (photograph.width, photograph.height);
        let mut pixels = photograph.resized(fit(stored, self.side))?;
        if let Some(part) = part {
            let [left, top, right, bottom] = scaled(part, stored, self.side)?;
            pixels = pixels.f_narrow(0, top, bottom - top)?.f_narrow(1, left, right - left)?;
        }
        let pixels = pixels.f_to_device(self.backbone.device())?.f_unsqueeze(0)?;
        let map = self.backbone.forward_to(&self.normalizer.prepare(&pixels)?, self.layer)?;
        Ok(map.f_squeeze_dim(0)?)
    }
}

/// Width and height with the longest of them at `side`, rounded to the nearest (half to even, as numpy has it).
fn fit((width, height): (u32, u32), side: u32) -> (u32, u32) {
    let scale = f64::from(side) / f64::from(width.max(height));
    let fitted = |length: u32| ((f64::from(length) * scale).round_ties_even() as u32).max(1);
    (fitted(width), fitted(height))
}

/// Left, top, right and bottom of a part after the resize, within the photograph.
fn scaled(part: Part, stored: (u32, u32), side: u32) -> Result<[i64; 4]> {
    let (width, height) = fit(stored, side);
    let scale = f64::from(side) / f64::from(stored.0.max(stored.1));
    let edge = |edge: f64, most: u32| ((edge * scale).round_ties_even() as i64).clamp(0, i64::from(most));
    let (left, right) = (edge(part.left, width), edge(part.right, width));
    let (top, bottom) = (edge(part.top, height), edge(part.bottom, height));
    if right <= left || bottom <= top {
        let Part { left, top, right, bottom } = part;
        return Err(Error::data(format!(
            "nothing is left of the box {left} {top} {right} {bottom} on a photograph of {} x {} pixels resized to {width} x {height}",
            stored.0, stored.1
        ))
        .with_hint("boxes of the ground truth count in pixels of the files in --images: do they belong together?"));
    }
    Ok([left, top, right, bottom])
}

fn key(bytes: &[u8], part: Option<Part>) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(bytes);
    if let Some(Part { left, top, right, bottom }) = part {
        for edge in [left, top, right, bottom] {
            hash.update(&edge.to_le_bytes());
        }
    }
    hash.digest128()
}

/// Names the file, and what helps against too little memory or too few pixels.
fn in_file(error: Error, path: &Path) -> Error {
    let name = path.display();
    match error {
        Error::Device { what, .. } => Error::device(format!("{name}: {what}"))
            .with_hint("lower --side if memory is short; raise it if the picture is too small for the network"),
        Error::Data { what, hint } => Error::Data { what: format!("{name}: {what}"), hint },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Precision;
    use tch::Device;

    #[test]
    fn the_longest_side_is_fitted_and_boxes_go_with_it() -> Result<()> {
        assert_eq!(fit((1024, 768), 512), (512, 384));
        assert_eq!(fit((768, 1024), 1024), (768, 1024));
        assert_eq!(fit((300, 200), 1024), (1024, 683));
        assert_eq!(fit((5000, 1), 100), (100, 1));
        let part = Part { left: 136.5, top: 34.1, right: 648.5, bottom: 955.7 };
        // Halved: 68.25, 17.05, 324.25, 477.85.
        assert_eq!(scaled(part, (768, 1024), 512)?, [68, 17, 324, 478]);
        let beyond = Part { left: 10.0, top: 10.0, right: 3000.0, bottom: 3000.0 };
        assert_eq!(scaled(beyond, (200, 100), 100)?, [5, 5, 100, 50]);
        let outside = Part { left: 300.0, top: 0.0, right: 400.0, bottom: 50.0 };
        assert!(scaled(outside, (200, 100), 100).expect_err("outside").to_string().contains("200 x 100"));
        Ok(())
    }

    #[test]
    fn a_part_is_looked_at_as_if_it_were_all_there_is() -> Result<()> {
        let backbone = Backbone::random("small:rgb:32", 1, Device::Cpu, Precision::Fp32)?;
        let looker = |side| -> Result<Looker<'_>> {
            let normalizer = Normalizer::new(&[0.5; 3], &[0.25; 3], Device::Cpu)?;
            Ok(Looker { backbone: &backbone, normalizer, layer: "conv4", side, levels: 3, cache: None })
        };
        let rgb: Vec<u8> = (0..96 * 64 * 3).map(|i| (i * 31 % 251) as u8).collect();
        let whole = Photograph { width: 96, height: 64, rgb };
        let rows = whole.rgb.chunks(96 * 3).skip(8).take(40);
        let cut =
            Photograph { width: 48, height: 40, rgb: rows.flat_map(|row| &row[16 * 3..64 * 3]).copied().collect() };
        let part = Part { left: 16.0, top: 8.0, right: 64.0, bottom: 48.0 };
        let (found, expected) = (looker(96)?.map(&whole, Some(part))?, looker(48)?.map(&cut, None)?);
        assert!(found.allclose(&expected, 1e-5, 1e-5, false));
        assert_ne!(looker(96)?.map(&whole, None)?.size(), found.size());
        Ok(())
    }
}
