//! Everything that libjpeg-turbo does not read, through the `image` crate: PNG, WebP, GIF, BMP, TIFF, CMYK and odd
//! JPEG.
//!
//! Out come 8-bit RGB pixels at full size and the orientation. Gray and palettes are spread to RGB, 16 bits and floats
//! are rounded to 8, transparency is laid over white; of animations the first frame is taken, of several pages the
//! first. The size is checked against the limit when the header is read, and the decoder's own memory is limited too.

use super::header::{Format, check_pixels};
use super::turn::Turn;
use super::{Filter, Pixels, check_known};
use crate::shards::{Reason, Rejection, Trouble};
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use std::io::Cursor;

/// What a file of another format gives.
pub(super) struct Other {
    pub(super) pixels: Pixels,
    /// Brings the pixels upright.
    pub(super) turn: Turn,
    /// Whether the file holds anything but 8-bit RGB.
    pub(super) converted: bool,
}

/// Decodes an image file; `known` is why it could not be decoded before, if that is known.
pub(super) fn decode(
    bytes: &[u8],
    format: Format,
    max_pixels: u64,
    filter: &Filter,
    known: Option<Reason>,
) -> Result<Other, Rejection> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), image_format(format));
    reader.limits(limits(max_pixels));
    let mut decoder = reader.into_decoder().map_err(|error| rejected(&error))?;
    let (width, height) = decoder.dimensions();
    check_pixels(width, height, max_pixels)?;
    filter.check_size((width, height))?;
    check_known(known)?;
    // A broken EXIF block is no reason to lose the picture.
    let turn = decoder.orientation().map(Turn::from).unwrap_or_default();
    let converted = decoder.original_color_type() != ColorType::Rgb8.into();
    let picture = DynamicImage::from_decoder(decoder).map_err(|error| rejected(&error))?;
    let rgb = if picture.color().has_alpha() { over_white(&picture) } else { picture.into_rgb8().into_raw() };
    Ok(Other { pixels: Pixels { rgb, width, height, origin: (0, 0), scale: 1.0 }, turn, converted })
}

fn image_format(format: Format) -> ImageFormat {
    match format {
        Format::Jpeg => ImageFormat::Jpeg,
        Format::Png => ImageFormat::Png,
        Format::WebP => ImageFormat::WebP,
        Format::Gif => ImageFormat::Gif,
        Format::Bmp => ImageFormat::Bmp,
        Format::Tiff => ImageFormat::Tiff,
    }
}

/// Eight bytes a pixel are 16-bit RGBA; the rest is for tables and rows.
fn limits(max_pixels: u64) -> Limits {
    const TABLES: u64 = 16 << 20;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_pixels.saturating_mul(8).saturating_add(TABLES));
    limits
}

fn rejected(error: &ImageError) -> Trouble {
    let reason = match error {
        ImageError::Limits(_) => Reason::TooManyPixels,
        ImageError::Unsupported(_) => Reason::UnsupportedFormat,
        _ => Reason::DecodeFailed,
    };
    Trouble::new(reason, error.to_string())
}

/// Lays the picture over white: `colour × alpha + 255 × (1 - alpha)`, rounded.
fn over_white(picture: &DynamicImage) -> Vec<u8> {
    let rgba = picture.to_rgba8();
    let mut rgb = Vec::with_capacity(rgba.len() / 4 * 3);
    for &image::Rgba([red, green, blue, alpha]) in rgba.pixels() {
        let blend = |colour: u8| {
            let (colour, alpha) = (u32::from(colour), u32::from(alpha));
            ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        };
        rgb.extend_from_slice(&[blend(red), blend(green), blend(blue)]);
    }
    rgb
}
