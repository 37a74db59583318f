//! A map of features: near on it is near in the network's eyes, with photographs where there is room.
//!
//! In: rows of features, and what group each is of. Out: a place in the plane for each, by their two main directions or by t-SNE
//! (van der Maaten, JMLR 2014, from the crate bhtsne), and a picture of them. The plane is divided into cells as large as a thumbnail; of the points
//! in a cell the one nearest to its middle shows its photograph, so that none covers another. What can go wrong: fewer than three rows,
//! rows that are all the same.

use super::canvas::{GROUPS, HAIRLINE, HEADER, INK, MARGIN, PAPER, QUIET_INK, draw_header, fill, header_width, square};
use super::text::Pen;
use crate::cluster::whiten::Whitening;
use crate::error::{Error, Result};
use image::{Rgb, RgbImage, imageops};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// Dimensions that neighbours are sought in.
const NEIGHBOUR_DIMENSIONS: usize = 50;
/// How many neighbours count, at most.
const PERPLEXITY: f32 = 30.0;
const EPOCHS: usize = 1_000;
/// Barnes and Hut's: how coarsely far points are taken together.
const THETA: f32 = 0.5;
const FRAME: u32 = 3;
const LEGEND: u32 = 30;
const LEGEND_SIZE: f32 = 17.0;

/// How rows become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// The two directions of largest variance
    Pca,
    /// Neighbours stay neighbours: t-SNE
    Tsne,
}

/// Places `[N, 2]` of rows `[N, D]` of any float kind.
pub fn places(rows: &Tensor, method: Method) -> Result<Vec<[f32; 2]>> {
    let _no_grad = tch::no_grad_guard();
    let count = rows.size2()?.0;
    if count < 3 {
        return Err(Error::data(format!("{count} rows make no map")));
    }
    let flat = main_directions(rows)?;
    if method == Method::Pca {
        return Ok(flat);
    }
    let near = Whitening::fit(rows, NEIGHBOUR_DIMENSIONS, Device::Cpu)?.apply_all(rows)?;
    let width = near.size2()?.1 as usize;
    let entries = Vec::<f32>::try_from(near.f_flatten(0, -1)?)?;
    let points: Vec<&[f32]> = entries.chunks_exact(width).collect();
    // A start from the main directions makes the outcome the same each time, and keeps what is far apart apart.
    let start: Vec<f32> = flat.iter().flatten().map(|entry| entry * 1e-2).collect();
    let distance = |left: &&[f32], right: &&[f32]| {
        left.iter().zip(*right).map(|(left, right)| (left - right).powi(2)).sum::<f32>().sqrt()
    };
    let found = bhtsne::tSNE::<f32, &[f32], 2>::new(&points)
        .perplexity(PERPLEXITY.min((count - 1) as f32 / 3.0))
        .epochs(EPOCHS)
        .initial_embedding(start)
        .barnes_hut(THETA, distance)
        .embedding();
    Ok(found.chunks_exact(2).map(|place| [place[0], place[1]]).collect())
}

/// The two directions of largest variance, each scaled to variance one.
fn main_directions(rows: &Tensor) -> Result<Vec<[f32; 2]>> {
    let whitening = Whitening::fit(rows, 2, Device::Cpu)?;
    let moved = rows.f_to_kind(Kind::Float)?.f_sub(whitening.mean())?;
    let flat = moved.f_matmul(&whitening.projection().f_tr()?)?;
    let flat = flat.f_pad([0, 2 - whitening.output_dim(), 0, 0], "constant", 0.0)?;
    let entries = Vec::<f32>::try_from(flat.f_flatten(0, -1)?)?;
    Ok(entries.chunks_exact(2).map(|place| [place[0], place[1]]).collect())
}

/// A map to be drawn.
#[derive(Clone, Debug, Default)]
pub struct Map {
    /// What it shows.
    pub title: String,
    /// Where it is from.
    pub subtitle: String,
    /// Where each point is, in any unit.
    pub places: Vec<[f32; 2]>,
    /// Which group each is of, where it is of one.
    pub groups: Vec<Option<usize>>,
    /// What groups are called; colours are told for the first ten.
    pub names: Vec<String>,
    /// Width and height in pixels of what lies below the title.
    pub size: (u32, u32),
    /// Side of a photograph in pixels.
    pub side: u32,
}

impl Map {
    /// Points whose photographs are shown, with the cell of each.
    pub fn shown(&self) -> Vec<(usize, (u32, u32))> {
        let cell = self.side + FRAME;
        let mut nearest: HashMap<(u32, u32), (f32, usize)> = HashMap::new();
        for (point, (x, y)) in self.pixels().into_iter().enumerate() {
            let at = ((x / cell as f32) as u32, (y / cell as f32) as u32);
            let middle = |index: u32| (index as f32 + 0.5) * cell as f32;
            let off = (x - middle(at.0)).powi(2) + (y - middle(at.1)).powi(2);
            let held = nearest.entry(at).or_insert((off, point));
            if off < held.0 {
                *held = (off, point);
            }
        }
        let mut shown: Vec<_> = nearest.into_iter().map(|(at, (_, point))| (point, at)).collect();
        shown.sort_unstable();
        shown
    }

    /// Draws it with the photographs of points, by their numbers.
    pub fn render(&self, photographs: &HashMap<usize, RgbImage>) -> Result<RgbImage> {
        let pen = Pen::new()?;
        let legend = if self.names.is_empty() { 0 } else { LEGEND };
        let width = self.size.0.max(header_width(&pen, &self.title, &self.subtitle));
        let top = MARGIN + HEADER;
        let mut canvas = RgbImage::from_pixel(width + 2 * MARGIN, top + self.size.1 + legend + MARGIN, PAPER);
        draw_header(&mut canvas, &pen, &self.title, &self.subtitle);
        for (point, (x, y)) in self.pixels().into_iter().enumerate() {
            fill(&mut canvas, MARGIN + x as u32, top + y as u32, 3, 3, self.colour(point));
        }
        let cell = self.side + FRAME;
        for (point, (column, row)) in self.shown() {
            let Some(photograph) = photographs.get(&point) else { continue };
            let (left, above) = (MARGIN + column * cell, top + row * cell);
            // the group's colour below its photograph
            fill(&mut canvas, left, above, self.side, cell - 1, self.colour(point));
            imageops::replace(&mut canvas, &square(photograph, self.side), i64::from(left), i64::from(above));
        }
        self.draw_legend(&mut canvas, &pen, top + self.size.1);
        Ok(canvas)
    }

    fn draw_legend(&self, canvas: &mut RgbImage, pen: &Pen, top: u32) {
        let mut left = MARGIN;
        for (name, colour) in self.names.iter().zip(GROUPS) {
            fill(canvas, left, top + 14, 14, 14, Rgb(colour));
            pen.draw(canvas, name, (left + 20) as f32, (top + 27) as f32, LEGEND_SIZE, QUIET_INK);
            left += 20 + pen.width(name, LEGEND_SIZE).ceil() as u32 + 24;
        }
        if self.names.len() > GROUPS.len() {
            pen.draw(canvas, "other groups are grey", left as f32, (top + 27) as f32, LEGEND_SIZE, INK);
        }
    }

    fn colour(&self, point: usize) -> Rgb<u8> {
        let group = self.groups.get(point).copied().flatten();
        group.and_then(|group| GROUPS.get(group)).map_or(HAIRLINE, |colour| Rgb(*colour))
    }

    /// Places in pixels, so that almost all lie well inside: what lies far out is brought to the edge.
    fn pixels(&self) -> Vec<(f32, f32)> {
        let scale = |axis: usize, length: u32| {
            let mut sorted: Vec<f32> = self.places.iter().map(|place| place[axis]).collect();
            sorted.sort_by(f32::total_cmp);
            let outside = sorted.len() / 200;
            let (low, high) = match sorted.as_slice() {
                [] => (0.0, 1.0),
                sorted => (sorted[outside], sorted[sorted.len() - 1 - outside]),
            };
            let last = (length / (self.side + FRAME) * (self.side + FRAME)) as f32 - 1.0;
            move |place: &[f32; 2]| ((place[axis] - low) / (high - low).max(f32::MIN_POSITIVE) * last).clamp(0.0, last)
        };
        let (x, y) = (scale(0, self.size.0), scale(1, self.size.1));
        self.places.iter().map(|place| (x(place), y(place))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::normal;

    /// Three groups of rows that lie far from each other.
    fn groups(each: i64) -> Tensor {
        let centers = Tensor::eye(8, (Kind::Float, Device::Cpu)).narrow(0, 0, 3) * 20.0;
        normal(3, 3 * each, 8) + centers.repeat_interleave_self_int(each, 0, None::<i64>)
    }

    /// How many of the points have a nearest neighbour of their own group.
    fn loyal(places: &[[f32; 2]], each: usize) -> usize {
        let far = |a: &[f32; 2], b: &[f32; 2]| (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2);
        let nearest = |at: usize| {
            let others = (0..places.len()).filter(|other| *other != at);
            others.min_by(|a, b| far(&places[at], &places[*a]).total_cmp(&far(&places[at], &places[*b])))
        };
        (0..places.len()).filter(|&at| nearest(at).is_some_and(|near| near / each == at / each)).count()
    }

    #[test]
    fn groups_stay_together_on_the_map_and_it_is_the_same_each_time() -> Result<()> {
        let rows = groups(40);
        for method in [Method::Pca, Method::Tsne] {
            let found = places(&rows, method)?;
            assert_eq!(loyal(&found, 40), 120, "{method:?}");
        }
        let half = rows.to_kind(Kind::Half);
        assert_eq!(places(&half, Method::Pca)?, places(&half, Method::Pca)?);
        assert!(places(&rows.narrow(0, 0, 2), Method::Pca).is_err());
        Ok(())
    }

    #[test]
    fn one_photograph_a_cell_and_none_beyond_the_edge() -> Result<()> {
        let places = (0..400).map(|at| [(at % 20) as f32, (at / 20) as f32]).collect();
        let map = Map { places, groups: vec![Some(1); 400], size: (330, 220), side: 30, ..Map::default() };
        let shown = map.shown();
        assert_eq!(shown.len(), 10 * 6);
        let red = RgbImage::from_pixel(30, 30, Rgb([200, 0, 0]));
        let photographs = shown.iter().map(|(point, _)| (*point, red.clone())).collect();
        let picture = map.render(&photographs)?;
        assert_eq!(picture.pixels().filter(|pixel| pixel.0 == [200, 0, 0]).count(), 60 * 30 * 30);
        Ok(())
    }
}
