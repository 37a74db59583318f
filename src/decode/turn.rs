//! Turning and mirroring: from pixels as a file stores them to the picture as it is to be seen.
//!
//! The eight EXIF orientations are one transposition, or none, followed by a mirroring left to right, top to bottom,
//! both or none. Crop boxes are drawn in the upright picture and brought back to stored pixels. A square view is cut there,
//! mirrored by reading backwards, and then transposed in place, which costs less than turning the whole picture.

use super::augment::CropBox;
use image::metadata::Orientation;

/// `upright = mirror_y(mirror_x(transpose(stored)))`, each of the three done or left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Rows become columns.
    pub transpose: bool,
    /// Left becomes right.
    pub mirror_x: bool,
    /// Top becomes bottom.
    pub mirror_y: bool,
}

impl From<Orientation> for Turn {
    fn from(orientation: Orientation) -> Self {
        let (transpose, mirror_x, mirror_y) = match orientation {
            Orientation::NoTransforms => (false, false, false),
            Orientation::FlipHorizontal => (false, true, false),
            Orientation::Rotate180 => (false, true, true),
            Orientation::FlipVertical => (false, false, true),
            Orientation::Rotate90FlipH => (true, false, false),
            Orientation::Rotate90 => (true, true, false),
            Orientation::Rotate270FlipH => (true, true, true),
            Orientation::Rotate270 => (true, false, true),
        };
        Self { transpose, mirror_x, mirror_y }
    }
}

impl Turn {
    /// This turn, and then a mirroring left to right.
    #[must_use]
    pub fn then_mirror(self) -> Self {
        Self { mirror_x: !self.mirror_x, ..self }
    }

    /// `(width, height)` of the upright picture from those of the stored one, and the other way round.
    pub fn turn_size(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.transpose { (height, width) } else { (width, height) }
    }

    /// Where a box of the upright picture lies among the stored pixels, of which there are `stored` = (width, height).
    pub fn to_stored(self, upright: CropBox, stored: (u32, u32)) -> CropBox {
        let (width, height) = self.turn_size(stored);
        let mut found = upright;
        if self.mirror_y {
            found.top = f64::from(height) - found.top - found.height;
        }
        if self.mirror_x {
            found.left = f64::from(width) - found.left - found.width;
        }
        if self.transpose {
            found = CropBox { left: found.top, top: found.left, width: found.height, height: found.width };
        }
        found
    }

    /// Which axes of the stored pixels a view is read from backwards, columns and rows, before [`Turn::transpose`].
    pub fn mirrors(self) -> (bool, bool) {
        if self.transpose { (self.mirror_y, self.mirror_x) } else { (self.mirror_x, self.mirror_y) }
    }

    /// Transposes a square view, `[size, size, 3]`, in place, where the turn has that.
    pub fn transpose(self, view: &mut [u8], size: usize) {
        if !self.transpose {
            return;
        }
        let (pixels, _) = view.as_chunks_mut::<3>();
        for y in 0..size {
            for x in 0..y {
                pixels.swap(y * size + x, x * size + y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, RgbImage};

    fn numbered(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, (7 * x + 31 * y) as u8]))
    }

    /// A view, `[size, size, 3]`, read backwards as the turn says, and transposed.
    fn apply(turn: Turn, view: &mut [u8], size: usize) {
        let (pixels, _) = view.as_chunks_mut::<3>();
        let (columns, rows) = turn.mirrors();
        if columns {
            pixels.chunks_exact_mut(size).for_each(<[[u8; 3]]>::reverse);
        }
        if rows {
            let lines: Vec<[u8; 3]> = pixels.chunks_exact(size).rev().flatten().copied().collect();
            pixels.copy_from_slice(&lines);
        }
        turn.transpose(view, size);
    }

    #[test]
    fn all_orientations_agree_with_the_image_crate() {
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).expect("1 to 8 exist");
            for size in [1, 4, 5] {
                let mut view = numbered(size, size).into_raw();
                apply(Turn::from(orientation), &mut view, size as usize);
                let mut reference = DynamicImage::from(numbered(size, size));
                reference.apply_orientation(orientation);
                assert_eq!(view, reference.to_rgb8().into_raw(), "orientation {exif}, side {size}");
            }
        }
    }

    #[test]
    fn a_box_of_the_upright_picture_is_found_among_stored_pixels() {
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).expect("1 to 8 exist");
            let turn = Turn::from(orientation);
            let stored = numbered(9, 6);
            let mut upright = DynamicImage::from(stored.clone());
            upright.apply_orientation(orientation);
            assert_eq!(turn.turn_size((9, 6)), (upright.width(), upright.height()));

            let wanted = CropBox { left: 1.0, top: 2.0, width: 3.0, height: 3.0 };
            let found = turn.to_stored(wanted, (9, 6));
            let cut = |image: &RgbImage, place: CropBox| {
                let (left, top) = (place.left as u32, place.top as u32);
                image::imageops::crop_imm(image, left, top, place.width as u32, place.height as u32).to_image()
            };
            let mut view = cut(&stored, found).into_raw();
            apply(turn, &mut view, 3);
            assert_eq!(view, cut(&upright.to_rgb8(), wanted).into_raw(), "orientation {exif}");
        }
    }
}
