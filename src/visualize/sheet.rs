//! Contact sheets: clusters as rows, the photographs nearest to each centroid as thumbnails (paper, figure 4).
//!
//! In: plain data, a [`Sheet`] of rows with a caption and thumbnails of any size. Out: one picture, dark on light, in
//! which all thumbnails are squares of `side` pixels, cut from the middle. Helpers choose the clusters, the photographs
//! nearest to a centroid, and describe a cluster. What can go wrong: ids that name no cluster, a sheet without rows.

use super::text::Pen;
use crate::error::{Error, Result};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use indicatif::HumanCount;
use std::collections::BTreeMap;

const PAPER: Rgb<u8> = Rgb([252, 252, 250]);
const INK: Rgb<u8> = Rgb([24, 26, 31]);
const QUIET_INK: Rgb<u8> = Rgb([74, 79, 89]);
const HAIRLINE: Rgb<u8> = Rgb([222, 222, 218]);
const ACCENT: Rgb<u8> = Rgb([38, 110, 150]);

const MARGIN: u32 = 40;
const GAP: u32 = 6;
const ROW_GAP: u32 = 25;
const HEADER: u32 = 84;
const TITLE_SIZE: f32 = 34.0;
const SUBTITLE_SIZE: f32 = 19.0;
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

/// One cluster of a contact sheet.
#[derive(Clone, Debug)]
pub struct SheetRow {
    /// Its number.
    pub cluster: usize,
    /// Samples in it.
    pub size: u64,
    /// What else is known of it, in lines.
    pub caption: String,
    /// Photographs, nearest to the centroid first.
    pub thumbnails: Vec<RgbImage>,
}

/// Which clusters a sheet shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The largest ones.
    Largest(usize),
    /// Evenly spread from the largest to the smallest.
    Spread(usize),
    /// These.
    These(Vec<usize>),
}

impl Choice {
    /// The chosen clusters of a clustering with these sizes; empty ones only where they are asked for by number.
    pub fn clusters(&self, sizes: &[u64]) -> Result<Vec<usize>> {
        let mut by_size: Vec<usize> = (0..sizes.len()).filter(|cluster| sizes[*cluster] > 0).collect();
        by_size.sort_by_key(|cluster| (std::cmp::Reverse(sizes[*cluster]), *cluster));
        match self {
            Self::Largest(rows) => by_size.truncate(*rows),
            Self::Spread(rows) if *rows < by_size.len() => {
                let last = by_size.len() - 1;
                let intervals = rows.saturating_sub(1).max(1);
                by_size = (0..*rows).map(|row| by_size[row * last / intervals]).collect();
            }
            Self::Spread(_) => {}
            Self::These(clusters) => {
                if let Some(unknown) = clusters.iter().find(|cluster| **cluster >= sizes.len()) {
                    return Err(Error::usage(format!("there is no cluster {unknown}"))
                        .with_hint(format!("clusters are numbered from 0 to {}", sizes.len().saturating_sub(1))));
                }
                by_size.clone_from(clusters);
            }
        }
        Ok(by_size)
    }
}

/// The samples of `cluster` nearest to its centroid, at most `count`, as indices into `clusters` and `distances`.
pub fn nearest(cluster: usize, clusters: &[u32], distances: &[f32], count: usize) -> Vec<usize> {
    let members = clusters.iter().zip(distances).enumerate().filter(|(_, (found, _))| **found as usize == cluster);
    let mut members: Vec<(usize, f32)> = members.map(|(sample, (_, distance))| (sample, *distance)).collect();
    members.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    members.truncate(count);
    members.into_iter().map(|(sample, _)| sample).collect()
}

/// A caption: mean distance to the centroid and, where samples have classes, the commonest one's share and the entropy.
pub fn describe(mean_distance: f64, classes: &[i64]) -> String {
    let mut caption = format!("distance {mean_distance:.3}");
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for class in classes {
        *counts.entry(*class).or_default() += 1;
    }
    let Some((class, count)) = counts.iter().max_by_key(|(class, count)| (**count, -**class)) else { return caption };
    let share = |count: usize| count as f64 / classes.len() as f64;
    let entropy: f64 = counts.values().map(|count| -share(*count) * share(*count).ln()).sum();
    caption.push_str(&format!("\n{:.0} % class {class}\nentropy {:.2}", 100.0 * share(*count), entropy.abs()));
    caption
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
        self.draw_header(&mut canvas, &pen);

        let largest = self.rows.iter().map(|row| row.size).max().unwrap_or(0);
        for (index, row) in self.rows.iter().enumerate() {
            let top = MARGIN + HEADER + index as u32 * (row_height + ROW_GAP);
            if index > 0 {
                fill(&mut canvas, MARGIN, top - ROW_GAP / 2 - 1, width - 2 * MARGIN, 1, HAIRLINE);
            }
            draw_caption(&mut canvas, &pen, row, top, caption_width, largest);
            for (column, picture) in row.thumbnails.iter().enumerate() {
                let left = first_column + column as u32 * (side + GAP);
                imageops::replace(&mut canvas, &square(picture, side), i64::from(left), i64::from(top));
            }
        }
        Ok(canvas)
    }

    fn draw_header(&self, canvas: &mut RgbImage, pen: &Pen) {
        let left = MARGIN as f32;
        let limit = canvas.width() as f32 - 2.0 * left;
        let title = pen.fit(&self.title, TITLE_SIZE, limit);
        pen.draw(canvas, &title, left, (MARGIN + 24) as f32, TITLE_SIZE, INK);
        let subtitle = pen.fit(&self.subtitle, SUBTITLE_SIZE, limit);
        pen.draw(canvas, &subtitle, left, (MARGIN + 52) as f32, SUBTITLE_SIZE, QUIET_INK);
    }

    fn caption_width(&self, pen: &Pen) -> u32 {
        let lines = self.rows.iter().flat_map(|row| row.caption.lines());
        let names = self.rows.iter().map(|row| pen.width(&name(row), NAME_SIZE));
        let widest = lines.map(|line| pen.width(line, CAPTION_SIZE)).chain(names).fold(0.0, f32::max);
        let [narrowest, broadest] = CAPTION_WIDTHS;
        widest.clamp(narrowest, broadest).ceil() as u32
    }

    /// The number, the size with its bar, and the caption's lines.
    fn caption_height(&self) -> u32 {
        let lines = self.rows.iter().map(|row| row.caption.lines().count()).max().unwrap_or(0);
        57 + (CAPTION_LEADING * lines as f32).ceil() as u32
    }
}

fn name(row: &SheetRow) -> String {
    format!("cluster {}", row.cluster)
}

fn draw_caption(canvas: &mut RgbImage, pen: &Pen, row: &SheetRow, top: u32, width: u32, largest: u64) {
    let left = MARGIN as f32;
    let limit = width as f32;
    pen.draw(canvas, &pen.fit(&name(row), NAME_SIZE, limit), left, (top + 19) as f32, NAME_SIZE, INK);

    let share = if largest > 0 { row.size as f64 / largest as f64 } else { 0.0 };
    fill(canvas, MARGIN, top + 29, width, 3, HAIRLINE);
    fill(canvas, MARGIN, top + 29, (f64::from(width) * share).round() as u32, 3, ACCENT);

    let mut baseline = (top + 51) as f32;
    let unit = if row.size == 1 { "image" } else { "images" };
    let size = format!("{} {unit}", HumanCount(row.size));
    for line in std::iter::once(size.as_str()).chain(row.caption.lines()) {
        pen.draw(canvas, &pen.fit(line, CAPTION_SIZE, limit), left, baseline, CAPTION_SIZE, QUIET_INK);
        baseline += CAPTION_LEADING;
    }
}

fn fill(canvas: &mut RgbImage, left: u32, top: u32, width: u32, height: u32, colour: Rgb<u8>) {
    for y in top..(top + height).min(canvas.height()) {
        for x in left..(left + width).min(canvas.width()) {
            canvas.put_pixel(x, y, colour);
        }
    }
}

/// The middle of a picture as a square of `side` pixels.
fn square(picture: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let short = width.min(height);
    if short == 0 {
        return RgbImage::from_pixel(side, side, HAIRLINE);
    }
    let middle = imageops::crop_imm(picture, (width - short) / 2, (height - short) / 2, short, short).to_image();
    if short == side {
        return middle;
    }
    imageops::resize(&middle, side, side, FilterType::CatmullRom)
}

#[cfg(test)]
mod tests {
    use super::*;

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
                cluster: 17 * row + 3,
                size: 2_412 / (row as u64 + 1),
                caption: describe(0.214 + 0.031 * row as f64, &[4, 4, 4, row as i64]),
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

    #[test]
    fn clusters_are_chosen_by_size_or_number() -> Result<()> {
        let sizes = [5, 0, 9, 1, 7, 3];
        assert_eq!(Choice::Largest(3).clusters(&sizes)?, [2, 4, 0]);
        assert_eq!(Choice::Spread(3).clusters(&sizes)?, [2, 0, 3]);
        assert_eq!(Choice::Spread(1).clusters(&sizes)?, [2]);
        assert_eq!(Choice::Spread(9).clusters(&sizes)?, [2, 4, 0, 5, 3]);
        assert_eq!(Choice::These(vec![3, 1]).clusters(&sizes)?, [3, 1]);
        assert_eq!(Choice::These(vec![6]).clusters(&sizes).map_err(|e| e.exit_code()), Err(2));
        Ok(())
    }

    #[test]
    fn the_nearest_of_a_cluster_come_first() {
        let clusters = [1, 0, 1, 1, 0, 1];
        let distances = [0.5, 0.1, 0.2, 0.9, 0.3, 0.2];
        assert_eq!(nearest(1, &clusters, &distances, 3), [2, 5, 0]);
        assert_eq!(nearest(7, &clusters, &distances, 3), [0_usize; 0]);
    }

    #[test]
    fn a_caption_tells_purity_and_entropy_by_hand() {
        // Three quarters and one quarter: -(0.75 ln 0.75 + 0.25 ln 0.25) = 0.5623
        assert_eq!(describe(0.25, &[4, 4, 9, 4]), "distance 0.250\n75 % class 4\nentropy 0.56");
        assert_eq!(describe(0.25, &[2]), "distance 0.250\n100 % class 2\nentropy 0.00");
        assert_eq!(describe(0.25, &[]), "distance 0.250");
    }
}
