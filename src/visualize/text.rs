//! Lines of text on a picture.
//!
//! In: a string, a size in pixels, a colour. Out: pixels blended over what is there, or the width that they would take.
//! The typeface is embedded in the binary; what can go wrong is only that it cannot be parsed.

use crate::error::{Error, Result};
use ab_glyph::{Font, FontRef, GlyphId, PxScale, ScaleFont};
use image::{Rgb, RgbImage};

/// A typeface that draws on pictures.
pub(super) struct Pen {
    font: FontRef<'static>,
}

impl Pen {
    pub(super) fn new() -> Result<Self> {
        let font = FontRef::try_from_slice(epaint_default_fonts::UBUNTU_LIGHT)
            .map_err(|e| Error::data(format!("the embedded typeface cannot be read: {e}")))?;
        Ok(Self { font })
    }

    /// Width of a line in pixels.
    pub(super) fn width(&self, text: &str, size: f32) -> f32 {
        self.glyphs(text, size).last().map_or(0.0, |(_, _, end)| *end)
    }

    /// The text, cut with an ellipsis where it is wider than `limit`.
    pub(super) fn fit(&self, text: &str, size: f32, limit: f32) -> String {
        if self.width(text, size) <= limit {
            return text.to_owned();
        }
        let mut kept: Vec<char> = text.chars().collect();
        while kept.pop().is_some() {
            let shortened = kept.iter().collect::<String>().trim_end().to_owned() + "…";
            if self.width(&shortened, size) <= limit {
                return shortened;
            }
        }
        String::new()
    }

    /// Draws a line whose letters stand on `baseline`.
    pub(super) fn draw(&self, canvas: &mut RgbImage, text: &str, left: f32, baseline: f32, size: f32, ink: Rgb<u8>) {
        let scale = PxScale::from(size);
        for (id, start, _) in self.glyphs(text, size) {
            let glyph = id.with_scale_and_position(scale, ab_glyph::point(left + start, baseline));
            let Some(outline) = self.font.outline_glyph(glyph) else { continue };
            let corner = outline.px_bounds().min;
            outline.draw(|x, y, coverage| {
                let (x, y) = (corner.x as i64 + i64::from(x), corner.y as i64 + i64::from(y));
                let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
                if let Some(pixel) = canvas.get_pixel_mut_checked(x, y) {
                    blend(pixel, ink, coverage.clamp(0.0, 1.0));
                }
            });
        }
    }

    /// Glyphs with the start and end of each on the line.
    fn glyphs(&self, text: &str, size: f32) -> Vec<(GlyphId, f32, f32)> {
        let scaled = self.font.as_scaled(PxScale::from(size));
        let mut out: Vec<(GlyphId, f32, f32)> = Vec::new();
        for letter in text.chars() {
            let id = scaled.glyph_id(letter);
            let start = out.last().map_or(0.0, |(last, _, end)| end + scaled.kern(*last, id));
            out.push((id, start, start + scaled.h_advance(id)));
        }
        out
    }
}

fn blend(pixel: &mut Rgb<u8>, ink: Rgb<u8>, coverage: f32) {
    for (under, over) in pixel.0.iter_mut().zip(ink.0) {
        let mixed = f32::from(*under) * (1.0 - coverage) + f32::from(over) * coverage;
        *under = mixed.round() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_leaves_ink_where_it_is_put_and_nowhere_else() -> Result<()> {
        let pen = Pen::new()?;
        let white = Rgb([255, 255, 255]);
        let mut canvas = RgbImage::from_pixel(200, 40, white);
        pen.draw(&mut canvas, "cluster 17", 10.0, 30.0, 20.0, Rgb([0, 0, 0]));
        let end = 10.0 + pen.width("cluster 17", 20.0);
        let inked: Vec<(u32, u32)> =
            canvas.enumerate_pixels().filter(|(_, _, pixel)| **pixel != white).map(|(x, y, _)| (x, y)).collect();
        assert!(inked.len() > 200, "{}", inked.len());
        assert!(inked.iter().all(|(x, y)| (9..=end as u32 + 1).contains(x) && (10..36).contains(y)));
        Ok(())
    }

    #[test]
    fn long_text_is_cut_to_fit_and_text_past_the_edge_is_clipped() -> Result<()> {
        let pen = Pen::new()?;
        let fitted = pen.fit("a caption that is far too long for its column", 16.0, 100.0);
        assert!(fitted.ends_with('…'), "{fitted}");
        assert!(pen.width(&fitted, 16.0) <= 100.0);
        assert_eq!(pen.fit("short", 16.0, 100.0), "short");
        pen.draw(&mut RgbImage::new(8, 8), "outside", -20.0, 4.0, 16.0, Rgb([255, 0, 0]));
        Ok(())
    }
}
