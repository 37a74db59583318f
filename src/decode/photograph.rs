//! A whole photograph at its full size: what evaluations look at that need more of it than a square view.
//!
//! In: the bytes of an image file of any format that the decoders of training read. Out: 8-bit RGB, or the trouble that the
//! ledger would name. Boxes and masks that come with a data set count in pixels as the file stores them, so whether a
//! photograph is turned upright by its EXIF orientation is the caller's choice.

use super::header::{self, Format, read_jpeg, sniff};
use super::jpeg::Jpeg;
use super::turn::Turn;
use super::{Filter, Pixels, other};
use crate::error::{Error, Result};
use crate::shards::{Reason, Rejection, Trouble};
use std::path::Path;
use tch::Tensor;

/// Megapixels of the largest photograph that is read.
const MAX_PIXELS: u64 = 100_000_000;

/// Pixels row by row, three bytes each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Photograph {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// `[height, width, 3]`: red, green, blue.
    pub rgb: Vec<u8>,
}

/// What becomes of the EXIF orientation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orient {
    /// Pixels as they are to be seen.
    Upright,
    /// Pixels as the file stores them.
    AsStored,
}

impl Photograph {
    /// Reads and decodes a file.
    ///
    /// # Errors
    /// It cannot be read or decoded; the error names it.
    pub fn open(path: &Path, orient: Orient) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| Error::file("read", path, &error))?;
        Self::decode(&bytes, orient)
            .map_err(|trouble| Error::data(format!("{}: {}: {}", path.display(), trouble.reason, trouble.detail)))
    }

    /// Decodes the bytes of a file. One that is cut short gives what is there.
    ///
    /// # Errors
    /// What training would lose it for.
    pub fn decode(bytes: &[u8], orient: Orient) -> Result<Self, Trouble> {
        let format = sniff(bytes)?;
        let (pixels, turn) = match format {
            Format::Jpeg => jpeg(bytes)?,
            format => decode_other(bytes, format)?,
        };
        let Pixels { mut rgb, width, height, .. } = pixels;
        rgb.truncate(width as usize * height as usize * 3);
        let stored = Self { width, height, rgb };
        match orient {
            Orient::Upright => Ok(stored.turned(turn)),
            Orient::AsStored => Ok(stored),
        }
    }

    /// As [`Photograph::decode`], but a JPEG that is cut short is refused, as Pillow refuses it.
    ///
    /// # Errors
    /// What training would lose it for, or the end is missing.
    pub fn decode_whole(bytes: &[u8], orient: Orient) -> Result<Self, Trouble> {
        if sniff(bytes)? == Format::Jpeg && !header::has_end(bytes) {
            return Err(Trouble::new(Reason::DecodeFailed, "the file is cut short"));
        }
        Self::decode(bytes, orient)
    }

    /// `[H, W, 3]` uint8.
    pub fn tensor(&self) -> Result<Tensor> {
        let shape = [i64::from(self.height), i64::from(self.width), 3];
        Ok(Tensor::f_from_slice(&self.rgb)?.f_view(shape)?)
    }

    /// `[height, width, 3]` uint8 after bilinear resampling with antialiasing, as Pillow's.
    pub fn resized(&self, (width, height): (u32, u32)) -> Result<Tensor> {
        let pixels = self.tensor()?;
        if (width, height) == (self.width, self.height) {
            return Ok(pixels);
        }
        let planes = pixels.f_permute([2, 0, 1])?.f_unsqueeze(0)?;
        let sides = [i64::from(height), i64::from(width)];
        let resized = planes.f_internal_upsample_bilinear2d_aa(sides, false, None, None)?;
        Ok(resized.f_squeeze_dim(0)?.f_permute([1, 2, 0])?.f_contiguous()?)
    }

    fn turned(self, turn: Turn) -> Self {
        if turn == Turn::default() {
            return self;
        }
        let (width, height) = turn.turn_size((self.width, self.height));
        let (pixels, _) = self.rgb.as_chunks::<3>();
        let mut rgb = Vec::with_capacity(self.rgb.len());
        for y in 0..height {
            let y = if turn.mirror_y { height - 1 - y } else { y };
            for x in 0..width {
                let x = if turn.mirror_x { width - 1 - x } else { x };
                let (row, column) = if turn.transpose { (x, y) } else { (y, x) };
                rgb.extend_from_slice(&pixels[row as usize * self.width as usize + column as usize]);
            }
        }
        Self { width, height, rgb }
    }
}

fn jpeg(bytes: &[u8]) -> Result<(Pixels, Turn), Trouble> {
    let Some(header) = read_jpeg(bytes) else { return decode_other(bytes, Format::Jpeg) };
    header::check_pixels(header.width, header.height, MAX_PIXELS)?;
    header::check_scans(bytes, &header, MAX_PIXELS)?;
    let turn = header.orientation.map(Turn::from).unwrap_or_default();
    match Jpeg::default().decode(bytes, (header.width, header.height), 8, None, Vec::new()) {
        Ok((pixels, _)) => Ok((pixels, turn)),
        Err(refusal) => decode_other(bytes, Format::Jpeg).map_err(|other| refusal.over(other)),
    }
}

fn decode_other(bytes: &[u8], format: Format) -> Result<(Pixels, Turn), Trouble> {
    match other::decode(bytes, format, MAX_PIXELS, &Filter::default(), None) {
        Ok(other::Other { pixels, turn, .. }) => Ok((pixels, turn)),
        Err(Rejection::Lost(trouble)) => Err(trouble),
        // The filter that is given names nothing, and so passes over nothing.
        Err(Rejection::Filtered(filtered)) => unreachable!("no filter, yet {filtered:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::metadata::Orientation;
    use image::{DynamicImage, ImageFormat, RgbImage};

    fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).expect("an encoder");
        bytes.into_inner()
    }

    fn numbered(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(9 * x) as u8, (5 * y) as u8, (x + y) as u8]))
    }

    #[test]
    fn all_of_a_photograph_is_there() {
        let picture = numbered(23, 17);
        let png = Photograph::decode(&encoded(&picture, ImageFormat::Png), Orient::Upright).expect("a PNG");
        assert_eq!((png.width, png.height, &png.rgb), (23, 17, picture.as_raw()));
        let jpeg = Photograph::decode(&encoded(&picture, ImageFormat::Jpeg), Orient::Upright).expect("a JPEG");
        assert_eq!((jpeg.width, jpeg.height, jpeg.rgb.len()), (23, 17, picture.as_raw().len()));
        let off: u64 = jpeg.rgb.iter().zip(picture.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        assert!(off < 8 * jpeg.rgb.len() as u64, "{off}");
        assert_eq!(png.tensor().expect("a tensor").size(), [17, 23, 3]);
    }

    #[test]
    fn a_jpeg_cut_short_gives_what_is_there_unless_the_whole_of_it_is_wanted() {
        let bytes = encoded(&numbered(64, 48), ImageFormat::Jpeg);
        let cut = &bytes[..bytes.len() - 40];
        assert!(Photograph::decode(cut, Orient::AsStored).is_ok());
        let trouble = Photograph::decode_whole(cut, Orient::AsStored).expect_err("its end is missing");
        assert!(trouble.detail.contains("cut short"), "{trouble}");
        let whole = Photograph::decode_whole(&bytes, Orient::AsStored).expect("all of it");
        assert_eq!(whole, Photograph::decode(&bytes, Orient::AsStored).expect("all of it"));
        assert!(Photograph::decode_whole(&[], Orient::AsStored).is_err());
    }

    #[test]
    fn halving_averages_with_the_triangle_of_pillow() {
        // A triangle of width 4 over columns 0, 8, 16, ...: inside, the mean of the two that a pixel covers.
        let picture = RgbImage::from_fn(16, 4, |x, _| image::Rgb([8 * x as u8; 3]));
        let picture = Photograph { width: 16, height: 4, rgb: picture.into_raw() };
        let half = picture.resized((8, 2)).expect("a tensor");
        assert_eq!(half.size(), [2, 8, 3]);
        for column in 1..7 {
            assert_eq!(half.int64_value(&[1, column, 0]), 8 * (2 * column) + 4);
        }
        assert_eq!(picture.resized((16, 4)).expect("a tensor"), picture.tensor().expect("a tensor"));
    }

    #[test]
    fn it_is_turned_as_the_image_crate_turns_it() {
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).expect("1 to 8 exist");
            let stored = numbered(5, 3);
            let mut upright = DynamicImage::from(stored.clone());
            upright.apply_orientation(orientation);
            let turned = Photograph { width: 5, height: 3, rgb: stored.into_raw() }.turned(Turn::from(orientation));
            assert_eq!((turned.width, turned.height), (upright.width(), upright.height()));
            assert_eq!(turned.rgb, upright.to_rgb8().into_raw(), "orientation {exif}");
        }
    }

    #[test]
    fn a_file_that_is_no_image_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notes.jpg");
        std::fs::write(&path, "no pixels here").expect("a file");
        let error = Photograph::open(&path, Orient::Upright).expect_err("it is text").to_string();
        assert!(error.contains("notes.jpg"), "{error}");
        assert!(Photograph::open(&folder.path().join("gone.jpg"), Orient::Upright).is_err());
    }
}
