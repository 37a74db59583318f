//! Tiles in a grid, under titles: filters of the first layer, pictures of what filters look for.
//!
//! In: panels of tiles, each tile with or without a word below it. Out: one picture; panels stand side by side. What can go wrong: there
//! is no tile.

use super::canvas::{HEADER, INK, MARGIN, PAPER, QUIET_INK, draw_header, header_width};
use super::text::Pen;
use crate::error::{Error, Result};
use image::{RgbImage, imageops};

const GAP: u32 = 5;
const PANEL_GAP: u32 = 48;
const PANEL_TITLE: f32 = 21.0;
const PANEL_HEADER: u32 = 34;
const LABEL: f32 = 14.0;
const LABEL_HEIGHT: u32 = 20;

/// Panels side by side.
#[derive(Clone, Debug, Default)]
pub struct Mosaic {
    /// What it shows.
    pub title: String,
    /// How it was made.
    pub subtitle: String,
    /// From left to right.
    pub panels: Vec<Panel>,
}

/// A grid of tiles.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Row by row.
    pub tiles: Vec<Tile>,
}

/// A picture of a grid, all of which are as large as the largest.
#[derive(Clone, Debug)]
pub struct Tile {
    /// What is shown, as it is.
    pub picture: RgbImage,
    /// Below it; may be empty.
    pub label: String,
}

/// How a panel is laid out.
struct Layout {
    columns: u32,
    tile: (u32, u32),
    size: (u32, u32),
}

impl Mosaic {
    /// Draws it. A panel is about as wide as it is high, or `columns` tiles wide where that is given.
    pub fn render(&self, columns: Option<u32>) -> Result<RgbImage> {
        if self.panels.iter().all(|panel| panel.tiles.is_empty()) {
            return Err(Error::data(format!("there is nothing to show: {}", self.title)));
        }
        let pen = Pen::new()?;
        let layouts: Vec<Layout> = self.panels.iter().map(|panel| panel.layout(columns, &pen)).collect();
        let inner: u32 = layouts.iter().map(|layout| layout.size.0 + PANEL_GAP).sum::<u32>() - PANEL_GAP;
        let inner = inner.max(header_width(&pen, &self.title, &self.subtitle));
        let height = layouts.iter().map(|layout| layout.size.1).max().unwrap_or(0);
        let mut canvas = RgbImage::from_pixel(inner + 2 * MARGIN, MARGIN + HEADER + height + MARGIN, PAPER);
        draw_header(&mut canvas, &pen, &self.title, &self.subtitle);
        let mut left = MARGIN;
        for (panel, layout) in self.panels.iter().zip(&layouts) {
            panel.draw(&mut canvas, &pen, left, layout);
            left += layout.size.0 + PANEL_GAP;
        }
        Ok(canvas)
    }
}

impl Panel {
    fn layout(&self, columns: Option<u32>, pen: &Pen) -> Layout {
        let widest = self.tiles.iter().map(|tile| tile.picture.width()).max().unwrap_or(1);
        let highest = self.tiles.iter().map(|tile| tile.picture.height()).max().unwrap_or(1);
        let label = if self.tiles.iter().any(|tile| !tile.label.is_empty()) { LABEL_HEIGHT } else { 0 };
        let tile = (widest, highest + label);
        let count = self.tiles.len() as u32;
        let as_wide_as_high = (f64::from(count) * f64::from(tile.1) / f64::from(tile.0)).sqrt().ceil() as u32;
        let columns = columns.unwrap_or(as_wide_as_high).clamp(1, count.max(1));
        let rows = count.div_ceil(columns);
        let title = if self.title.is_empty() { 0 } else { PANEL_HEADER };
        let width = (columns * (tile.0 + GAP)).saturating_sub(GAP);
        let height = title + (rows * (tile.1 + GAP)).saturating_sub(GAP);
        Layout { columns, tile, size: (width.max(pen.width(&self.title, PANEL_TITLE).ceil() as u32), height) }
    }

    fn draw(&self, canvas: &mut RgbImage, pen: &Pen, left: u32, layout: &Layout) {
        let mut top = MARGIN + HEADER;
        if !self.title.is_empty() {
            pen.draw(canvas, &self.title, left as f32, (top + 18) as f32, PANEL_TITLE, INK);
            top += PANEL_HEADER;
        }
        for (at, tile) in self.tiles.iter().enumerate() {
            let x = left + at as u32 % layout.columns * (layout.tile.0 + GAP);
            let y = top + at as u32 / layout.columns * (layout.tile.1 + GAP);
            imageops::replace(canvas, &tile.picture, i64::from(x), i64::from(y));
            let label = pen.fit(&tile.label, LABEL, layout.tile.0 as f32);
            let baseline = y + tile.picture.height() + LABEL_HEIGHT - 6;
            pen.draw(canvas, &label, x as f32, baseline as f32, LABEL, QUIET_INK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn panel(count: usize, side: u32, label: &str) -> Panel {
        let picture = RgbImage::from_pixel(side, side, Rgb([200, 10, 10]));
        let tile = Tile { picture, label: label.to_owned() };
        Panel { title: "conv1".into(), tiles: vec![tile; count] }
    }

    #[test]
    fn all_tiles_are_there_and_none_covers_another() -> Result<()> {
        let panels = vec![panel(7, 20, ""), panel(5, 33, "filter 3")];
        let picture = Mosaic { title: "Filters".into(), subtitle: "of a run".into(), panels }.render(None)?;
        let red = picture.pixels().filter(|pixel| pixel.0 == [200, 10, 10]).count();
        assert_eq!(red, 7 * 20 * 20 + 5 * 33 * 33);
        assert!(picture.pixels().any(|pixel| pixel.0 == INK.0), "titles are written");
        Ok(())
    }

    #[test]
    fn nothing_to_show_is_an_error_that_names_it() {
        let empty = Mosaic { title: "Filters of nothing".into(), panels: vec![Panel::default()], ..Mosaic::default() };
        assert!(empty.render(None).expect_err("no tile").to_string().contains("Filters of nothing"));
    }
}
