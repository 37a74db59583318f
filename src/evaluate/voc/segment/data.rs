//! Photographs and masks of a list, as the kit stores them, decoded at each draw.
//!
//! In: a kit and the name of a split. Out: pixels `[H, W, 3]` and classes `[H, W]`. A mask is a PNG in the colours of VOC, with a palette or
//! without; a colour that is none of them is an error with its place, and so are a mask and a photograph that differ in size.

use super::measure::LABELS;
use crate::decode::{Orient, Photograph};
use crate::error::{Error, Result};
use crate::evaluate::voc::devkit::{Devkit, Task};
use std::path::{Path, PathBuf};

/// The number of what counts neither way.
pub const VOID: u8 = 255;

/// Class of each pixel, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// `[height, width]`: 0 background, 1 to 20 the classes of the kit, 255 void.
    pub classes: Vec<u8>,
}

/// One list.
#[derive(Debug)]
pub struct Photographs {
    name: String,
    files: Vec<(PathBuf, PathBuf)>,
}

impl Photographs {
    /// Reads the list of `train`, `val` or `trainval`.
    ///
    /// # Errors
    /// There is no such list, or a file of it is missing.
    pub fn list(kit: &Devkit, name: &str) -> Result<Self> {
        let mut files = Vec::new();
        for image in kit.names(Task::Segmentation, name)? {
            let (photograph, mask) = (kit.image(&image), kit.class_mask(&image));
            for path in [&photograph, &mask] {
                if !path.is_file() {
                    return Err(Error::data(format!("{} is missing, which {name}.txt names", path.display())));
                }
            }
            files.push((photograph, mask));
        }
        Ok(Self { name: name.to_owned(), files })
    }

    /// What the list is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Photographs.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none; a list of the kit is never empty.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// A photograph and its mask.
    pub fn read(&self, row: usize) -> Result<(Photograph, Mask)> {
        let (path, mask_path) = &self.files[row];
        let photograph = Photograph::open(path, Orient::AsStored)?;
        let mask = Mask::open(mask_path)?;
        if (photograph.width, photograph.height) != (mask.width, mask.height) {
            return Err(Error::data(format!(
                "{} is of {} x {} pixels, and its mask of {} x {}",
                path.display(),
                photograph.width,
                photograph.height,
                mask.width,
                mask.height
            )));
        }
        Ok((photograph, mask))
    }
}

impl Mask {
    /// Reads a mask.
    ///
    /// # Errors
    /// It cannot be decoded, or has a colour that VOC does not.
    pub fn open(path: &Path) -> Result<Self> {
        let Photograph { width, height, rgb } = Photograph::open(path, Orient::AsStored)?;
        let colours: Vec<([u8; 3], u8)> = (0..LABELS as u8).chain([VOID]).map(|value| (colour(value), value)).collect();
        let (pixels, _) = rgb.as_chunks::<3>();
        let mut classes = Vec::with_capacity(pixels.len());
        for (at, pixel) in pixels.iter().enumerate() {
            let Some((_, class)) = colours.iter().find(|(colour, _)| colour == pixel) else {
                let (x, y) = (at % width as usize, at / width as usize);
                let what =
                    format!("{}: the colour {pixel:?} of column {x}, row {y} is no class of VOC", path.display());
                return Err(
                    Error::data(what).with_hint("masks are the PNGs of SegmentationClass, in their own colours")
                );
            };
            classes.push(*class);
        }
        Ok(Self { width, height, classes })
    }
}

/// The colour map of VOC: bits 0, 3 and 6 of a number are the highest bits of red, 1, 4 and 7 of green, 2 and 5 of blue.
fn colour(value: u8) -> [u8; 3] {
    let mut channels = [0; 3];
    for bit in 0..8 {
        channels[bit % 3] |= (value >> bit & 1) << (7 - bit / 3);
    }
    channels
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};

    #[test]
    fn colours_are_those_of_the_kit() {
        // Aeroplane, bicycle, bird, boat, tvmonitor, void, as the kit's documentation draws them.
        let expected = [
            (1, [128, 0, 0]),
            (2, [0, 128, 0]),
            (3, [128, 128, 0]),
            (4, [0, 0, 128]),
            (20, [0, 64, 128]),
            (255, [224, 224, 192]),
        ];
        for (value, expected) in expected {
            assert_eq!(colour(value), expected);
        }
    }

    #[test]
    fn masks_are_read_by_their_colours_and_others_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("m.png");
        let mut picture = RgbImage::from_pixel(3, 2, Rgb(colour(8)));
        picture.put_pixel(2, 1, Rgb(colour(VOID)));
        picture.save(&path).expect("a file");
        let found = Mask::open(&path).expect("a mask");
        assert_eq!((found.width, found.height, found.classes), (3, 2, vec![8, 8, 8, 8, 8, VOID]));
        picture.put_pixel(1, 0, Rgb([1, 2, 3]));
        picture.save(&path).expect("a file");
        let error = Mask::open(&path).expect_err("no colour of VOC").to_string();
        assert!(error.contains("column 1, row 0") && error.contains("m.png"), "{error}");
    }
}
