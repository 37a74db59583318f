//! The search for the nearest centroid of each point of a chunk: what one thread does in an assignment.
//!
//! Bounds say which groups of panels need to be looked at; there the screens say which centroids need to be measured.

use super::lloyd::ROUNDING;
use super::screen::{Columns, Fine, Screen};
use super::sums::Change;
use crate::torch::rows::squared_distance;
use crate::torch::scores::{self, COLUMNS, ROWS, Scored};

/// What one thread works on: a chunk of points.
pub(super) struct Chunk<'c> {
    pub(super) first: usize,
    pub(super) labels: &'c mut [u32],
    pub(super) distances: &'c mut [f32],
    pub(super) bounds: &'c mut [u16],
}

/// At least so many steps of a bound.
pub(super) fn round_up(steps: f64) -> u16 {
    (steps.ceil() + 1.0).min(f64::from(u16::MAX)) as u16
}

/// What one thread found out about a chunk.
pub(super) struct Searched {
    /// Sum of squared distances.
    pub(super) objective: f64,
    /// Pairs of a point and a group of panels that were looked at.
    pub(super) searched: u64,
    /// Distances measured in floats.
    pub(super) measured: u64,
    pub(super) changes: Vec<Change>,
}

/// Finer copies of the points of a chunk, each made when it is first wanted.
struct FineRows {
    codes: Vec<i16>,
    known: Vec<Option<Fine>>,
}

impl FineRows {
    fn new(rows: usize, width: usize) -> Self {
        Self { codes: vec![0; rows * width], known: vec![None; rows] }
    }
}

/// What all threads share.
pub(super) struct Task<'t> {
    pub(super) screen: &'t Screen<'t>,
    pub(super) centroids: &'t [f32],
    pub(super) width: usize,
    pub(super) columns: &'t Columns,
    pub(super) together: usize,
    pub(super) moved: &'t [f64],
    /// How far the farthest centroid of each group of panels has gone, in steps of a bound.
    pub(super) drift: Vec<u16>,
    pub(super) scale: f64,
    pub(super) is_first: bool,
    /// Bounds are kept and made: not in the first assignment.
    pub(super) bounded: bool,
    /// The group of a point's own centroid comes first: what is nearest lies there as a rule, and the sooner it is found, the fewer
    /// pass the screen.
    pub(super) own_first: bool,
    /// The group of panels that each centroid is in.
    pub(super) group_of: &'t [u32],
}

/// The nearest centroid of a point so far.
#[derive(Clone, Copy)]
struct Found {
    distance: f32,
    centroid: u32,
    /// Steps at or below it are of centroids that are farther.
    floor: i16,
    /// Distances measured so far.
    measured: u32,
}

impl Task<'_> {
    /// Gives every point of a chunk its nearest centroid.
    pub(super) fn run(&self, mut chunk: Chunk<'_>) -> Searched {
        let before = chunk.labels.to_vec();
        let mut found: Vec<Found> = (0..before.len()).map(|row| self.own(&chunk, row)).collect();
        let searched =
            if self.bounded { self.search(&mut chunk, &mut found) } else { self.search_all(&chunk, &mut found) };
        let measured = found.iter().map(|found| u64::from(found.measured)).sum();
        for (row, found) in found.into_iter().enumerate() {
            (chunk.labels[row], chunk.distances[row]) = (found.centroid, found.distance);
        }
        let now = chunk.labels.iter().zip(before).enumerate();
        let changes = now.filter(|(_, (to, from))| self.is_first || *to != from).map(|(row, (&to, from))| Change {
            point: (chunk.first + row) as u32,
            from: (!self.is_first).then_some(from),
            to,
        });
        let changes = changes.collect();
        let objective = chunk.distances.iter().map(|&distance| f64::from(distance)).sum();
        Searched { objective, searched, measured, changes }
    }

    fn distance(&self, point: usize, centroid: u32) -> f32 {
        squared_distance(self.screen.point(point), &self.centroids[centroid as usize * self.width..][..self.width])
    }

    /// Looks for nearer centroids where bounds do not rule them out, and renews the bounds of the others; how many pairs of a point and
    /// a group of panels that were.
    fn search(&self, chunk: &mut Chunk<'_>, found: &mut [Found]) -> u64 {
        let (rows, groups) = (found.len(), self.drift.len());
        let mut first: Vec<Vec<u32>> = vec![Vec::new(); groups];
        let mut wanted = first.clone();
        let mut possible = vec![0; groups.div_ceil(scores::FLAGS)];
        for (row, found) in found.iter().enumerate() {
            let stays = self.moved[chunk.labels[row] as usize] == 0.0;
            let own = round_up(f64::from(found.distance).sqrt() * (1.0 + ROUNDING) * self.scale);
            let bounds = &mut chunk.bounds[row * groups..][..groups];
            scores::lower_bounds(bounds, &self.drift, own, &mut possible);
            for (block, &flags) in possible.iter().enumerate() {
                let mut flags = flags;
                while flags != 0 {
                    let group = block * scores::FLAGS + flags.trailing_zeros() as usize;
                    flags &= flags - 1;
                    if stays && self.drift[group] == 0 {
                        continue;
                    }
                    let is_own = self.own_first && group == self.group_of[found.centroid as usize] as usize;
                    if is_own { first[group].push(row as u32) } else { wanted[group].push(row as u32) }
                }
            }
        }
        let mut fine = FineRows::new(rows, self.width);
        let mut highest = vec![i16::MIN; rows * groups];
        for wanted in [&first, &wanted] {
            for (group, rows) in wanted.iter().enumerate() {
                for panel in self.panels_of(group) {
                    for rows in rows.chunks(ROWS) {
                        let scored = self.score(chunk.first, panel, rows, found, &mut fine);
                        for (&row, &steps) in rows.iter().zip(&scored.highest) {
                            let highest = &mut highest[row as usize * groups + group];
                            *highest = steps.max(*highest);
                        }
                    }
                }
            }
        }
        self.look_at_all(chunk.first, found);
        for row in 0..rows {
            let highest = &highest[row * groups..][..groups];
            if highest.iter().any(|&steps| steps > i16::MIN) {
                let bound = self.screen.bound(chunk.first + row, self.columns, self.scale as f32);
                scores::set_bounds(highest, bound, &mut chunk.bounds[row * groups..][..groups]);
            }
        }
        first.iter().chain(&wanted).map(|rows| rows.len() as u64).sum()
    }

    /// Looks for nearer centroids in every panel.
    fn search_all(&self, chunk: &Chunk<'_>, found: &mut [Found]) -> u64 {
        let rows: Vec<u32> = (0..found.len() as u32).collect();
        let mut fine = FineRows::new(rows.len(), self.width);
        for panel in 0..self.columns.panels() {
            for rows in rows.chunks(ROWS) {
                self.score(chunk.first, panel, rows, found, &mut fine);
            }
        }
        self.look_at_all(chunk.first, found);
        (rows.len() * self.drift.len()) as u64
    }

    fn panels_of(&self, group: usize) -> std::ops::Range<usize> {
        group * self.together..((group + 1) * self.together).min(self.columns.panels())
    }

    /// Measures every centroid for points whose floor is so low that steps tell nothing.
    fn look_at_all(&self, first: usize, found: &mut [Found]) {
        for (row, found) in found.iter_mut().enumerate() {
            if found.floor == i16::MIN {
                for &centroid in &self.columns.ids {
                    self.offer(first + row, centroid, found);
                }
            }
        }
    }

    /// What is known of a point before a search.
    fn own(&self, chunk: &Chunk<'_>, row: usize) -> Found {
        if self.is_first {
            return Found { distance: f32::INFINITY, centroid: u32::MAX, floor: i16::MIN, measured: 0 };
        }
        let (point, centroid) = (chunk.first + row, chunk.labels[row]);
        let stays = self.moved[centroid as usize] == 0.0;
        let distance = if stays { chunk.distances[row] } else { self.distance(point, centroid) };
        Found { distance, centroid, floor: self.screen.floor(point, self.columns, distance), measured: 0 }
    }

    /// Screens up to six rows of the chunk in one panel, and measures what may be nearer.
    fn score(&self, first: usize, panel: usize, rows: &[u32], found: &mut [Found], fine: &mut FineRows) -> Scored {
        let mut scored = Scored::default();
        let row_at = |at: usize| rows[at.min(rows.len() - 1)] as usize;
        let codes = std::array::from_fn(|at| self.screen.codes(first + row_at(at)));
        let floors = std::array::from_fn(|at| found[row_at(at)].floor);
        scores::score(codes, &floors, &self.columns.panel(panel), &mut scored);
        for (at, &row) in rows.iter().enumerate() {
            let row = row as usize;
            let mut above = scored.above[at];
            while above != 0 {
                let column = above.trailing_zeros() as usize;
                above &= above - 1;
                // The floor may have risen since.
                let found = &mut found[row];
                if let Some(&centroid) = self.columns.ids.get(panel * COLUMNS + column)
                    && scored.scores[at][column] > found.floor
                    && centroid != found.centroid
                    && self.may_be_nearer(first, row, panel * COLUMNS + column, found, fine)
                {
                    self.offer(first + row, centroid, found);
                }
            }
        }
        scored
    }

    /// Whether the centroid of a column may be as near to a row of the chunk as the nearest so far, by finer copies.
    fn may_be_nearer(&self, first: usize, row: usize, column: usize, found: &Found, fine: &mut FineRows) -> bool {
        if found.floor == i16::MIN {
            return true; // nothing is known yet
        }
        let codes = &mut fine.codes[row * self.width..][..self.width];
        let point = fine.known[row].get_or_insert_with(|| self.screen.fine(first + row, codes));
        self.columns.may_reach(column, point, codes, self.screen.score(first + row, found.distance))
    }

    /// Takes a centroid that is nearer than the nearest so far, or as near and of a lower number.
    fn offer(&self, point: usize, centroid: u32, found: &mut Found) {
        if centroid == found.centroid {
            return;
        }
        found.measured = found.measured.wrapping_add(1);
        let distance = self.distance(point, centroid);
        if distance < found.distance || (distance == found.distance && centroid < found.centroid) {
            let floor = self.screen.floor(point, self.columns, distance);
            *found = Found { distance, centroid, floor, ..*found };
        }
    }
}
