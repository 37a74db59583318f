//! Points that ranks hold together: row `g` of all lies with rank `g % ranks`, as row `g / ranks` of its own.
//!
//! In a world of one they are a matrix like any other. Rows are numbered over all ranks alike, so that what is drawn by number does not
//! depend on how many ranks there are. Every call but those that only look must be made by all ranks.

use super::blocks::gather;
use crate::error::{Error, Result};
use crate::torch::c10d::Reduction;
use crate::world::World;
use tch::{Device, Kind, Tensor};

/// `[N, d]` of f32, of which this rank has every so-many-th row.
#[derive(Debug)]
pub struct Points {
    own: Tensor,
    world: World,
    count: i64,
}

impl Points {
    /// All of them, here.
    pub fn alone(points: &Tensor) -> Result<Self> {
        Self::shared(points, &World::alone(), points.size2()?.0)
    }

    /// This rank's rows `own` of `count` in all.
    pub fn shared(own: &Tensor, world: &World, count: i64) -> Result<Self> {
        let (rank, size) = (world.rank() as i64, world.size() as i64);
        let expected = (count - rank + size - 1).div_euclid(size).max(0);
        if own.size2()?.0 != expected {
            return Err(Error::device(format!(
                "{expected} of {count} points belong to rank {rank}, not {}",
                own.size()[0]
            )));
        }
        Ok(Self { own: own.f_to_kind(Kind::Float)?.f_contiguous()?, world: world.clone(), count })
    }

    /// The rows of this rank, contiguous.
    pub fn own(&self) -> &Tensor {
        &self.own
    }

    /// The ranks.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// `N`.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// `d`.
    pub fn width(&self) -> usize {
        self.own.size().last().map_or(0, |width| *width as usize)
    }

    /// Where they lie.
    pub fn device(&self) -> Device {
        self.own.device()
    }

    /// These rows of all, on every rank.
    pub fn gather(&self, rows: &[i64]) -> Result<Tensor> {
        if self.world.is_alone() {
            return gather(&self.own, rows);
        }
        let (rank, size) = (self.world.rank() as i64, self.world.size() as i64);
        let here = |row: &&(i64, i64)| row.1 % size == rank;
        let numbered: Vec<(i64, i64)> = (0..).zip(rows.iter().copied()).collect();
        let (places, own): (Vec<i64>, Vec<i64>) =
            numbered.iter().filter(here).map(|(place, row)| (*place, row / size)).unzip();
        let shape = [rows.len() as i64, self.width() as i64];
        let mut all = Tensor::f_zeros(shape, (Kind::Float, self.device()))?;
        if !places.is_empty() {
            let places = Tensor::f_from_slice(&places)?.f_to_device(self.device())?;
            let _ = all.f_index_copy_(0, &places, &gather(&self.own, &own)?)?;
        }
        self.world.reduce(&all, Reduction::Sum)?; // one rank has a row, all others zeros
        Ok(all)
    }

    /// All of them, on every rank.
    pub fn whole(&self) -> Result<Tensor> {
        self.interleave(&self.own)
    }

    /// All of them on rank 0, none on the others.
    pub fn whole_on_first(&self) -> Result<Tensor> {
        if self.world.is_alone() {
            return self.whole();
        }
        let size = self.world.size() as i64;
        let is_first = self.world.is_first();
        let held = |rank: i64| (self.count - rank + size - 1).div_euclid(size).max(0);
        let mut sends = vec![0; size as usize];
        sends[0] = self.own.size2()?.0;
        let takes: Vec<i64> = (0..size).map(|rank| if is_first { held(rank) } else { 0 }).collect();
        let own = self.own.f_to_device(Device::Cpu)?;
        let parts = self.world.exchange(&own, &sends, &takes)?;
        if !is_first {
            return Ok(parts);
        }
        let whole = Tensor::f_empty([self.count, self.width() as i64], (Kind::Float, Device::Cpu))?;
        let mut start = 0;
        for (rank, rows) in (0..size).zip(takes) {
            whole.f_slice(0, rank, None::<i64>, size)?.f_copy_(&parts.f_narrow(0, start, rows)?)?;
            start += rows;
        }
        Ok(whole.f_to_device(self.device())?)
    }

    /// What every rank has for its rows, for the rows of all.
    pub fn of_all_labels(&self, own: Vec<u32>) -> Result<Vec<u32>> {
        if self.world.is_alone() {
            return Ok(own);
        }
        let own: Vec<i64> = own.into_iter().map(i64::from).collect();
        let all = Vec::<i64>::try_from(self.interleave(&Tensor::f_from_slice(&own)?)?)?;
        Ok(all.into_iter().map(|label| label as u32).collect())
    }

    /// The same for distances.
    pub fn of_all_distances(&self, own: Vec<f32>) -> Result<Vec<f32>> {
        if self.world.is_alone() {
            return Ok(own);
        }
        Ok(Vec::try_from(self.interleave(&Tensor::f_from_slice(&own)?)?)?)
    }

    /// `[n, ...]` of this rank, one entry a row, to `[N, ...]` of all.
    fn interleave(&self, own: &Tensor) -> Result<Tensor> {
        if self.world.is_alone() {
            return Ok(own.shallow_clone());
        }
        let most = self.count.div_euclid(self.world.size() as i64) + 1;
        let mut shape = own.size();
        let held = std::mem::replace(&mut shape[0], most);
        let padded = Tensor::f_zeros(shape.as_slice(), (own.kind(), own.device()))?;
        padded.f_narrow(0, 0, held)?.f_copy_(own)?;
        let all = self.world.gather(&padded)?.f_transpose(0, 1)?.f_contiguous()?;
        Ok(all.f_flatten(0, 1)?.f_narrow(0, 0, self.count)?.f_contiguous()?)
    }
}
