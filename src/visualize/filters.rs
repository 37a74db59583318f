//! First-layer filters as pictures (paper, Figure 3).
//!
//! In: the weights of the first convolution, `[outputs, inputs, kernel, kernel]`. Out: a tile for each filter, its smallest weight black
//! and its largest white. Three inputs are the colours of one square. Two are the gradients along x and along y that a Sobel front
//! gives: two grey squares side by side. What can go wrong: another number of inputs.

use super::mosaic::{Mosaic, Panel, Tile};
use crate::error::{Error, Result};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use tch::{Device, Kind, Tensor};

/// Pixels between the two squares of a filter of gradients, at the scale of the kernel.
const SEAM: u32 = 1;

/// Tiles of at least `side` pixels across a kernel: every weight is a block of whole pixels.
///
/// # Errors
/// The filters have neither two inputs nor three.
pub fn tiles(weight: &Tensor, side: u32) -> Result<Vec<RgbImage>> {
    let (outputs, inputs, kernel, _) = weight.size4()?;
    if ![2, 3].contains(&inputs) {
        return Err(Error::usage(format!(
            "filters of {inputs} inputs cannot be shown: of RGB there are 3, of Sobel 2"
        )));
    }
    let weights =
        Vec::<f32>::try_from(weight.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_flatten(0, -1)?)?;
    let scale = side.div_ceil(kernel as u32).max(1);
    let per_filter = (inputs * kernel * kernel) as usize;
    Ok(weights
        .chunks_exact(per_filter)
        .take(outputs as usize)
        .map(|filter| tile(filter, kernel as u32, scale))
        .collect())
}

/// All filters of a network under its name.
///
/// # Errors
/// As [`tiles`].
pub fn panel(weight: &Tensor, name: &str, side: u32) -> Result<Panel> {
    let (count, inputs, kernel, _) = weight.size4()?;
    let seen = if inputs == 2 { "gradients along x | along y" } else { "RGB" };
    let tiles = tiles(weight, side)?.into_iter().map(|picture| Tile { picture, label: String::new() });
    let title = format!("{name} · {count} filters of {kernel} × {kernel} · {seen}");
    Ok(Panel { title, tiles: tiles.collect() })
}

/// The filters of several networks side by side.
pub fn mosaic(panels: Vec<Panel>) -> Mosaic {
    Mosaic {
        title: "Filters of the first layer".to_owned(),
        subtitle: "each from its smallest weight, black, to its largest, white".to_owned(),
        panels,
    }
}

/// One filter, `[inputs, kernel, kernel]`.
fn tile(filter: &[f32], kernel: u32, scale: u32) -> RgbImage {
    let grey = normalised(filter);
    let area = (kernel * kernel) as usize;
    let at = |input: usize, x: u32, y: u32| grey[input * area + (y * kernel + x) as usize];
    let small = match grey.len() / area {
        2 => RgbImage::from_fn(2 * kernel + SEAM, kernel, |x, y| match x {
            _ if x < kernel => Rgb([at(0, x, y); 3]),
            _ if x < kernel + SEAM => super::canvas::PAPER,
            _ => Rgb([at(1, x - kernel - SEAM, y); 3]),
        }),
        _ => RgbImage::from_fn(kernel, kernel, |x, y| Rgb([0, 1, 2].map(|input| at(input, x, y)))),
    };
    imageops::resize(&small, small.width() * scale, small.height() * scale, FilterType::Nearest)
}

/// From the smallest, black, to the largest, white; mid-grey where all are the same.
fn normalised(filter: &[f32]) -> Vec<u8> {
    let (low, high) =
        filter.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &w| (low.min(w), high.max(w)));
    let grey = |weight: f32| match high - low {
        range if range > 0.0 => (255.0 * (weight - low) / range).round() as u8,
        _ => 128,
    };
    filter.iter().map(|&weight| grey(weight)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_the_three_inputs_each_filter_from_black_to_white() -> Result<()> {
        // 2 filters x 3 inputs x 2 x 2; the second is ten times the first
        let first: Vec<f32> = (0..12).map(|at| at as f32).collect();
        let all: Vec<f32> = first.iter().copied().chain(first.iter().map(|weight| weight * 10.0 - 3.0)).collect();
        let tiles = tiles(&Tensor::from_slice(&all).view([2, 3, 2, 2]), 5)?;
        assert_eq!(tiles[0], tiles[1], "each is normalised by itself");
        assert_eq!(tiles[0].dimensions(), (6, 6), "whole blocks of pixels");
        let grey = |weight: f32| (255.0 * weight / 11.0).round() as u8;
        assert_eq!(tiles[0].get_pixel(0, 0).0, [0.0, 4.0, 8.0].map(grey));
        assert_eq!(tiles[0].get_pixel(5, 5).0, [3.0, 7.0, 11.0].map(grey));
        assert_eq!(tiles[0].get_pixel(5, 0).0, [1.0, 5.0, 9.0].map(grey));
        Ok(())
    }

    #[test]
    fn gradients_stand_side_by_side_and_a_filter_of_nothing_is_grey() -> Result<()> {
        let tiles = tiles(&Tensor::from_slice(&[0_f32, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]).view([1, 2, 2, 2]), 2)?;
        assert_eq!(tiles[0].dimensions(), (5, 2));
        assert_eq!((tiles[0].get_pixel(0, 1).0, tiles[0].get_pixel(4, 1).0), ([0; 3], [255; 3]));
        let zeros = Tensor::zeros([1, 3, 2, 2], (Kind::Float, Device::Cpu));
        assert_eq!(super::tiles(&zeros, 2)?[0].get_pixel(1, 1).0, [128; 3]);
        assert!(super::tiles(&Tensor::zeros([1, 5, 2, 2], (Kind::Float, Device::Cpu)), 2).is_err());
        Ok(())
    }
}
