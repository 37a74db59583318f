//! Contact sheets: clusters or filters as rows, photographs as thumbnails (paper, Figures 4 and 5).
//!
//! In: plain data, a [`Sheet`] of rows with a caption and thumbnails of any size. Out: one picture, dark on light, in
//! which all thumbnails are squares of `side` pixels, cut from the middle. `choice.rs` says which clusters and photographs they are.
//! What can go wrong: a sheet without rows.

use super::canvas::{ACCENT, HAIRLINE, HEADER, INK, MARGIN, PAPER, QUIET_INK, draw_header, fill, square};
use super::text::Pen;
use crate::error::{Error, Result};
use image::{RgbImage, imageops};

const GAP: u32 = 6;
const ROW_GAP: u32 = 25;
const NAME_SIZE: f32 = 25.0;
const CAPTION_SIZE: f32 = 17.0;
const CAPTION_LEADING: f32 = 21.0;
const CAPTION_WIDTHS: [f32; 2] = [130.0, 240.0];
const CAPTION_GAP: u32 = 28;

/// A contact sheet to be drawn.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    /// What it shows.
    pub title: String,
    /// Where it is from: run, step, NMI.
    pub subtitle: String,
    /// Clusters, from top to bottom.
    pub rows: Vec<SheetRow>,
}

/// One row of a contact sheet.
#[derive(Clone, Debug)]
pub struct SheetRow {
    /// What it shows.
    pub name: String,
    /// How much of its bar is full, of 1; none draws no bar.
    pub share: Option<f64>,
    /// What else is known of it, in lines.
    pub caption: String,
    /// Photographs, from left to right.
    pub thumbnails: Vec<RgbImage>,
}

impl Sheet {
    /// Draws the sheet with thumbnails of `side` pixels.
    pub fn render(&self, side: u32) -> Result<RgbImage> {
        if self.rows.is_empty() {
            return Err(Error::data("a contact sheet needs at least one cluster that is not empty"));
        }
        let pen = Pen::new()?;
        let columns = self.rows.iter().map(|row| row.thumbnails.len()).max().unwrap_or(0) as u32;
        let caption_width = self.caption_width(&pen);
        let first_column = MARGIN + caption_width + CAPTION_GAP;
        let [narrowest, _] = CAPTION_WIDTHS;
        let content_right = (first_column + columns * (side + GAP)).saturating_sub(GAP);
        let width = content_right.max(MARGIN + 3 * narrowest as u32) + MARGIN;

        let row_height = side.max(self.caption_height());
        let heights = (row_height + ROW_GAP) * self.rows.len() as u32 - ROW_GAP;
        let mut canvas = RgbImage::from_pixel(width, MARGIN + HEADER + heights + MARGIN, PAPER);
        draw_header(&mut canvas, &pen, &self.title, &self.subtitle);

        for (index, row) in self.rows.iter().enumerate() {
            let top = MARGIN + HEADER + index as u32 * (row_height + ROW_GAP);
            if index > 0 {
                fill(&mut canvas, MARGIN, top - ROW_GAP / 2 - 1, width - 2 * MARGIN, 1, HAIRLINE);
            }
            draw_caption(&mut canvas, &pen, row, top, caption_width);
            for (column, picture) in row.thumbnails.iter().enumerate() {
                let left = first_column + column as u32 * (side + GAP);
                imageops::replace(&mut canvas, &square(picture, side), i64::from(left), i64::from(top));
            }
        }
        Ok(canvas)
    }

    fn caption_width(&self, pen: &Pen) -> u32 {
        let lines = self.rows.iter().flat_map(|row| row.caption.lines());
        let names = self.rows.iter().map(|row| pen.width(&row.name, NAME_SIZE));
        let widest = lines.map(|line| pen.width(line, CAPTION_SIZE)).chain(names).fold(0.0, f32::max);
        let [narrowest, broadest] = CAPTION_WIDTHS;
        widest.clamp(narrowest, broadest).ceil() as u32
    }

    /// The name, the bar, and the caption's lines.
    fn caption_height(&self) -> u32 {
        let lines = self.rows.iter().map(|row| row.caption.lines().count()).max().unwrap_or(0);
        36 + (CAPTION_LEADING * lines as f32).ceil() as u32
    }
}

fn draw_caption(canvas: &mut RgbImage, pen: &Pen, row: &SheetRow, top: u32, width: u32) {
    let left = MARGIN as f32;
    let limit = width as f32;
    pen.draw(canvas, &pen.fit(&row.name, NAME_SIZE, limit), left, (top + 19) as f32, NAME_SIZE, INK);
    if let Some(share) = row.share {
        fill(canvas, MARGIN, top + 29, width, 3, HAIRLINE);
        fill(canvas, MARGIN, top + 29, (f64::from(width) * share.clamp(0.0, 1.0)).round() as u32, 3, ACCENT);
    }
    let mut baseline = (top + 51) as f32;
    for line in row.caption.lines() {
        pen.draw(canvas, &pen.fit(line, CAPTION_SIZE, limit), left, baseline, CAPTION_SIZE, QUIET_INK);
        baseline += CAPTION_LEADING;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    /// A smooth field of colour with a disc in it, in the proportions of a photograph.
    fn scene(cluster: usize, index: usize) -> RgbImage {
        let (width, height) = if index.is_multiple_of(3) { (150, 224) } else { (224, 160) };
        let hue = cluster as f32 * 0.9;
        RgbImage::from_fn(width, height, |x, y| {
            let (u, v) = (x as f32 / width as f32 - 0.5, y as f32 / height as f32 - 0.5);
            let is_disc = u.hypot(v) < 0.15 + 0.02 * index as f32;
            let channel = |phase: f32| {
                let wave = (hue + phase + v * 1.5 + index as f32 * 0.08).sin();
                let light = if is_disc { 205.0 } else { 125.0 };
                (light + 45.0 * wave) as u8
            };
            Rgb([channel(0.0), channel(2.1), channel(4.2)])
        })
    }

    fn sheet(rows: usize, columns: usize) -> Sheet {
        let rows = (0..rows).map(|row| {
            let columns = if row + 1 == rows { columns / 2 } else { columns };
            SheetRow {
                name: format!("cluster {}", 17 * row + 3),
                share: Some(1.0 / (row as f64 + 1.0)),
                caption: format!("{} images\ndistance 0.214\nentropy 0.56", 2_412 / (row + 1)),
                thumbnails: (0..columns).map(|index| scene(row, index)).collect(),
            }
        });
        Sheet {
            title: "Clusters of runs/demo".into(),
            subtitle: "step 1,200 · cycle 4 · 100 clusters over 6,000 images · NMI to the last cycle 0.612".into(),
            rows: rows.collect(),
        }
    }

    #[test]
    fn thumbnails_stand_in_their_rows_on_light_paper() -> Result<()> {
        let picture = sheet(7, 10).render(112)?;
        assert_eq!(*picture.get_pixel(0, 0), PAPER);
        let first_right = picture.width() - MARGIN - 1;
        let expected = square(&scene(0, 9), 112);
        assert_eq!(picture.get_pixel(first_right, MARGIN + HEADER + 60), expected.get_pixel(111, 60));
        assert_eq!(*picture.get_pixel(first_right, picture.height() - MARGIN - 60), PAPER, "the last row is half full");
        Ok(())
    }

    #[test]
    fn a_sheet_of_one_small_cluster_has_room_for_its_captions() -> Result<()> {
        let picture = sheet(1, 2).render(32)?;
        assert!(picture.width() >= 400 && picture.height() >= 200, "{:?}", picture.dimensions());
        assert!(Sheet::default().render(32).is_err());
        Ok(())
    }
}
