//! The search for the nearest centroid of each point of a chunk: what one thread does in an assignment.
//!
//! Bounds say which groups of panels need to be looked at; there the screens say which centroids need to be measured.

use super::lloyd::{CHUNK, ROUNDING};
use super::screen::{Columns, Fine, Screen};
use super::sums::Change;
use crate::torch::aligned::Aligned;
use crate::torch::bounds::{self, Bound, FLAGS};
use crate::torch::rows::{PRODUCTS, squared_distance};
use crate::torch::scores::{COLUMNS, ROWS, Scorer};
use std::ops::Range;

/// Panels that a block of rows is taken to before the next block is: they stay in the second cache, the block in the first.
const PANELS: usize = 64;

/// Rows of a block that must be wanted for all to be taken.
const DENSE: u32 = 48;
/// Numbers that hold the flags of a block.
const BLOCK_FLAGS: usize = ROWS / FLAGS;

/// A flag for each point of a chunk.
type Flags = [u16; CHUNK / FLAGS];

/// What one thread works on: a chunk of points.
pub(super) struct Chunk<'c> {
    pub(super) first: usize,
    pub(super) labels: &'c mut [u32],
    pub(super) distances: &'c mut [f32],
    /// For each group of panels, of each point.
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
    codes: Aligned<i16>,
    known: Vec<Option<Fine>>,
}

impl FineRows {
    fn new(rows: usize, width: usize) -> Self {
        Self { codes: Aligned::new(0, rows * width), known: vec![None; rows] }
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
    floor: i32,
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
        let mut wanted = self.possible(chunk, found);
        let own = if self.own_first { self.take_own(chunk, &mut wanted) } else { Vec::new() };
        let mut highest = vec![i32::MIN; rows * groups];
        let mut work = Work::new(self, chunk.first, found);
        let mut pairs = 0;
        let mut look = |group: usize, rows_there: &[u32]| {
            pairs += rows_there.len() as u64;
            let highest = &mut highest[group * rows..][..rows];
            rows_there.chunks(ROWS).for_each(|block| work.score(block, self.panels_of(group), Some(&mut *highest)));
        };
        own.iter().enumerate().for_each(|(group, rows)| look(group, rows));
        // Where most rows of a block are wanted, all are taken as they lie, to one group after the other.
        let all: Vec<u32> = (0..rows as u32).collect();
        for (block, rows) in all.chunks_exact(ROWS).enumerate() {
            for (group, flags) in wanted.iter_mut().enumerate() {
                let flags = &mut flags[block * BLOCK_FLAGS..][..BLOCK_FLAGS];
                if flags.iter().map(|flags| flags.count_ones()).sum::<u32>() >= DENSE {
                    flags.fill(0);
                    look(group, rows);
                }
            }
        }
        let mut rest = Vec::with_capacity(rows);
        for (group, flags) in wanted.iter().enumerate() {
            rest.clear();
            for (block, &flags) in flags.iter().enumerate() {
                let mut flags = flags;
                while flags != 0 {
                    rest.push((block * FLAGS) as u32 + flags.trailing_zeros());
                    flags &= flags - 1;
                }
            }
            look(group, &rest);
        }
        self.look_at_all(chunk.first, found);
        self.renew(chunk, &highest);
        pairs
    }

    /// Lowers bounds by what centroids have moved; the flags of the rows, for each group of panels, that may have come nearer to it than
    /// to their own centroid.
    fn possible(&self, chunk: &mut Chunk<'_>, found: &[Found]) -> Vec<Flags> {
        let rows = found.len();
        let own = |found: &Found| round_up(f64::from(found.distance).sqrt() * (1.0 + ROUNDING) * self.scale);
        let limits: Vec<u16> = found.iter().map(own).collect();
        let mut stays = [0; CHUNK / FLAGS];
        for (row, &label) in chunk.labels.iter().enumerate() {
            stays[row / FLAGS] |= u16::from(self.moved[label as usize] == 0.0) << (row % FLAGS);
        }
        let groups = chunk.bounds.chunks_exact_mut(rows).zip(&self.drift);
        let flags = groups.map(|(bounds, &drift)| {
            let mut flags = [0; CHUNK / FLAGS];
            bounds::lower(bounds, drift, &limits, &mut flags);
            if drift == 0 {
                flags.iter_mut().zip(&stays).for_each(|(flags, stays)| *flags &= !stays);
            }
            flags
        });
        flags.collect()
    }

    /// Takes from what is wanted the rows of each group whose own centroid is in it.
    fn take_own(&self, chunk: &Chunk<'_>, wanted: &mut [Flags]) -> Vec<Vec<u32>> {
        let mut own = vec![Vec::new(); wanted.len()];
        for (row, &label) in chunk.labels.iter().enumerate() {
            let group = self.group_of[label as usize] as usize;
            let flag = 1 << (row % FLAGS);
            if wanted[group][row / FLAGS] & flag != 0 {
                wanted[group][row / FLAGS] &= !flag;
                own[group].push(row as u32);
            }
        }
        own
    }

    /// Makes bounds of the highest scores, where there are any.
    fn renew(&self, chunk: &mut Chunk<'_>, highest: &[i32]) {
        let rows = chunk.labels.len();
        let points = chunk.first..chunk.first + rows;
        let (squares, margins): (Vec<f32>, Vec<f32>) =
            points.map(|point| self.screen.bound(point, self.columns)).unzip();
        let bound = Bound {
            squares: &squares,
            margins: &margins,
            twice_step: self.columns.twice_step(),
            scale: (self.scale * (1.0 - 1e-6)) as f32,
        };
        for (bounds, highest) in chunk.bounds.chunks_exact_mut(rows).zip(highest.chunks_exact(rows)) {
            bounds::set(highest, &bound, bounds);
        }
    }

    /// Looks for nearer centroids in every panel.
    fn search_all(&self, chunk: &Chunk<'_>, found: &mut [Found]) -> u64 {
        let rows: Vec<u32> = (0..found.len() as u32).collect();
        let panels = self.columns.panels();
        let mut work = Work::new(self, chunk.first, found);
        for first in (0..panels).step_by(PANELS) {
            for rows in rows.chunks(ROWS) {
                work.score(rows, first..(first + PANELS).min(panels), None);
            }
        }
        self.look_at_all(chunk.first, found);
        (rows.len() * self.drift.len()) as u64
    }

    fn panels_of(&self, group: usize) -> Range<usize> {
        group * self.together..((group + 1) * self.together).min(self.columns.panels())
    }

    /// Measures every centroid for points whose floor is so low that steps tell nothing.
    fn look_at_all(&self, first: usize, found: &mut [Found]) {
        for (row, found) in found.iter_mut().enumerate() {
            if found.floor == i32::MIN {
                for &centroid in &self.columns.ids {
                    self.offer(first + row, centroid, found);
                }
            }
        }
    }

    /// What is known of a point before a search.
    fn own(&self, chunk: &Chunk<'_>, row: usize) -> Found {
        if self.is_first {
            return Found { distance: f32::INFINITY, centroid: u32::MAX, floor: i32::MIN, measured: 0 };
        }
        let (point, centroid) = (chunk.first + row, chunk.labels[row]);
        let stays = self.moved[centroid as usize] == 0.0;
        let distance = if stays { chunk.distances[row] } else { self.distance(point, centroid) };
        Found { distance, centroid, floor: self.screen.floor(point, self.columns, distance), measured: 0 }
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

/// What a thread has at hand while it goes through a chunk.
struct Work<'w> {
    task: &'w Task<'w>,
    /// The first point of the chunk.
    first: usize,
    found: &'w mut [Found],
    fine: FineRows,
    scorer: Scorer<'w>,
}

impl<'w> Work<'w> {
    fn new(task: &'w Task<'w>, first: usize, found: &'w mut [Found]) -> Self {
        let fine = FineRows::new(found.len(), task.width);
        Self { task, first, found, fine, scorer: task.screen.scorer() }
    }

    /// Screens up to [`ROWS`] rows of the chunk in some panels, and measures what may be nearer; raises what is the `highest` score of
    /// each row.
    fn score(&mut self, rows: &[u32], panels: Range<usize>, mut highest: Option<&mut [i32]>) {
        let Some(&lowest) = rows.first() else { return };
        let are_together = self.scorer.take(self.task.screen.codes_from(self.first), rows);
        let mut floors = [i32::MAX; ROWS];
        for (floor, &row) in floors.iter_mut().zip(rows) {
            *floor = self.found[row as usize].floor;
        }
        for panel in panels {
            let mut hits = self.scorer.score(&floors, &self.task.columns.panel(panel));
            while hits != 0 {
                let at = hits.trailing_zeros() as usize;
                hits &= hits - 1;
                self.measure(rows[at] as usize, at, panel);
                floors[at] = self.found[rows[at] as usize].floor;
            }
            let Some(highest) = &mut highest else { continue };
            let scores = self.scorer.highest();
            if are_together {
                let highest = highest[lowest as usize..].iter_mut();
                highest.zip(scores).for_each(|(highest, &score)| *highest = score.max(*highest));
            } else {
                rows.iter().zip(scores).for_each(|(&row, &score)| {
                    highest[row as usize] = score.max(highest[row as usize]);
                });
            }
        }
    }

    /// Measures the centroids of a panel that may be nearer to a row of the chunk, which is the scorer's row `at`.
    fn measure(&mut self, row: usize, at: usize, panel: usize) {
        let mut above = self.scorer.above(at);
        while above != 0 {
            let mut columns = [0; PRODUCTS];
            let mut count = 0;
            while above != 0 && count < PRODUCTS {
                let column = above.trailing_zeros() as usize;
                above &= above - 1;
                // The floor may have risen since, and the last columns may be nobody's.
                let centroid = self.task.columns.ids.get(panel * COLUMNS + column);
                let is_other = centroid.is_some_and(|&centroid| centroid != self.found[row].centroid);
                if is_other && self.scorer.score_of(at, column) > self.found[row].floor {
                    columns[count] = panel * COLUMNS + column;
                    count += 1;
                }
            }
            self.measure_some(row, columns, count);
        }
    }

    /// Measures the centroids of the first `count` of four columns where finer copies do not rule them out.
    fn measure_some(&mut self, row: usize, columns: [usize; PRODUCTS], count: usize) {
        if count == 0 {
            return;
        }
        let Task { screen, columns: all, width, .. } = self.task;
        let (point, found) = (self.first + row, &mut self.found[row]);
        let mut may_be_nearer = [true; PRODUCTS];
        // Below is what is known of nothing.
        if found.floor > i32::MIN {
            let codes = &mut self.fine.codes[row * width..][..*width];
            let fine = self.fine.known[row].get_or_insert_with(|| screen.fine(point, codes));
            may_be_nearer = all.may_reach(columns, fine, codes, screen.score(point, found.distance));
        }
        for at in 0..count {
            if may_be_nearer[at] {
                self.task.offer(point, all.ids[columns[at]], found);
            }
        }
    }
}
