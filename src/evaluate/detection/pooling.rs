//! Max pooling over regions of interest: from a map and boxes of any size to small maps of one size (Girshick, ICCV 2015,
//! section 2.1), with the bins of the published layer and its gradient.
//!
//! In: a map `[C, H, W]`, and regions in pixels of the image. Out: `[R, C, S, S]`, through which gradients reach the map. A bin
//! takes the maximum of the cells that it touches, on ties the first one; a bin that lies beside the map is 0.
//!
//! No cell is looked at once for each region: maxima of all windows of 1, 2, 4, ... cells are made by doubling, and a bin is
//! covered by four of them. Maxima are of keys that hold a value and its place, so that the place comes out; values, and the
//! gradient, then go through a gather.

use crate::error::Result;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Bits of a key that say which cell it is.
const PLACE_BITS: i64 = 31;

/// A box in pixels of the image that the map was made of, from the middle of its first to that of its last pixel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// First column.
    pub left: f32,
    /// First row.
    pub top: f32,
    /// Last column.
    pub right: f32,
    /// Last row.
    pub bottom: f32,
}

/// Bins `[R, C, side, side]` of `regions` on `map` `[C, H, W]`, whose cells are `1 / scale` pixels apart.
///
/// # Errors
/// libtorch's own, such as memory.
pub fn max_pool(map: &Tensor, regions: &[Region], side: i64, scale: f32) -> Result<Tensor> {
    let (channels, height, width) = map.size3()?;
    let bins = Bins::of(regions, side, scale, (height, width));
    let rows = map.f_permute([1, 2, 0])?.f_contiguous()?;
    let places = {
        let _no_grad = tch::no_grad_guard();
        let keys = bins.keys(&keys(&rows)?)?;
        keys.f_bitwise_and((1i64 << PLACE_BITS) - 1)?.f_neg()?.f_add_scalar(height * width - 1)?
    };
    let values = rows.f_view([height * width, channels])?.f_gather(0, &places, false)?;
    let is_empty = Tensor::f_from_slice(&bins.is_empty)?.f_to_device(map.device())?.f_unsqueeze(1)?;
    let values = values.f_masked_fill(&is_empty, 0.0)?;
    Ok(values.f_view([regions.len() as i64, side, side, channels])?.f_permute([0, 3, 1, 2])?.f_contiguous()?)
}

/// Whole numbers `[H, W, C]` in the order of the values, and among equal values with the first cell on top.
fn keys(rows: &Tensor) -> Result<Tensor> {
    let (height, width, _) = rows.size3()?;
    // Adding 0 makes one zero of the two. Bits of positive floats are in the order of their values, of negative ones the other way.
    let bits =
        rows.f_detach()?.f_to_kind(Kind::Float)?.f_add_scalar(0.0)?.f_view_dtype(Kind::Int)?.f_to_kind(Kind::Int64)?;
    let order = bits.f_bitwise_xor(0x7fff_ffff)?.f_where_self(&bits.f_lt(0)?, &bits)?;
    let places = Tensor::f_arange(height * width, (Kind::Int64, rows.device()))?.f_view([height, width, 1])?;
    let from_the_end = places.f_neg()?.f_add_scalar(height * width - 1)?;
    Ok(order.f_mul_scalar(1i64 << PLACE_BITS)?.f_add(&from_the_end)?)
}

/// Bins by the size of the windows that cover them: those of `2^k` rows and `2^l` columns under `(k, l)`.
struct Bins {
    count: i64,
    is_empty: Vec<bool>,
    by_size: BTreeMap<(u32, u32), Covered>,
}

/// Bins of one size class.
#[derive(Default)]
struct Covered {
    /// Which bins.
    bins: Vec<i64>,
    /// First cells `(row, column)` of four windows, one in each corner of the bin.
    corners: [Vec<(i64, i64)>; 4],
}

impl Bins {
    fn of(regions: &[Region], side: i64, scale: f32, (height, width): (i64, i64)) -> Self {
        let count = regions.len() as i64 * side * side;
        let mut bins = Self { count, is_empty: vec![true; count as usize], by_size: BTreeMap::new() };
        let mut bin = 0;
        for region in regions {
            let rows = spans(region.top, region.bottom, side, scale, height);
            let columns = spans(region.left, region.right, side, scale, width);
            for &row in &rows {
                for &column in &columns {
                    bins.add(bin, row, column);
                    bin += 1;
                }
            }
        }
        bins
    }

    fn add(&mut self, bin: i64, (top, bottom): (i64, i64), (left, right): (i64, i64)) {
        if bottom <= top || right <= left {
            return;
        }
        self.is_empty[bin as usize] = false;
        let size = ((bottom - top).ilog2(), (right - left).ilog2());
        let (last_row, last_column) = (bottom - (1 << size.0), right - (1 << size.1));
        let covered = self.by_size.entry(size).or_default();
        covered.bins.push(bin);
        let corners = [(top, left), (top, last_column), (last_row, left), (last_row, last_column)];
        for (list, corner) in covered.corners.iter_mut().zip(corners) {
            list.push(corner);
        }
    }

    /// The highest key `[bins, C]` in each bin of a map of keys `[H, W, C]`; empty bins have the key 0.
    fn keys(&self, map: &Tensor) -> Result<Tensor> {
        let (_, _, channels) = map.size3()?;
        let mut found = Tensor::f_zeros([self.count, channels], (Kind::Int64, map.device()))?;
        let most = |axis: fn(&(u32, u32)) -> u32| self.by_size.keys().map(axis).max();
        let (Some(most_rows), Some(most_columns)) = (most(|size| size.0), most(|size| size.1)) else {
            return Ok(found);
        };
        let mut tall = map.shallow_clone();
        for rows in 0..=most_rows {
            if rows > 0 {
                tall = doubled(&tall, 0, 1 << (rows - 1))?;
            }
            let mut windows = tall.shallow_clone();
            for columns in 0..=most_columns {
                if columns > 0 {
                    windows = doubled(&windows, 1, 1 << (columns - 1))?;
                }
                if let Some(covered) = self.by_size.get(&(rows, columns)) {
                    let bins = Tensor::f_from_slice(&covered.bins)?.f_to_device(map.device())?;
                    let _ = found.f_index_copy_(0, &bins, &covered.keys(&windows)?)?;
                }
            }
        }
        Ok(found)
    }
}

impl Covered {
    fn keys(&self, windows: &Tensor) -> Result<Tensor> {
        let (_, width, channels) = windows.size3()?;
        let flat = windows.f_reshape([-1, channels])?;
        let mut highest: Option<Tensor> = None;
        for corners in &self.corners {
            let places: Vec<i64> = corners.iter().map(|(row, column)| row * width + column).collect();
            let keys = flat.f_index_select(0, &Tensor::f_from_slice(&places)?.f_to_device(flat.device())?)?;
            highest = Some(match highest {
                Some(highest) => highest.f_maximum(&keys)?,
                None => keys,
            });
        }
        Ok(highest.unwrap_or(flat))
    }
}

/// Maxima of windows twice as long along `axis`, of those `length` cells long.
fn doubled(windows: &Tensor, axis: i64, length: i64) -> Result<Tensor> {
    let count = windows.size()[axis as usize] - length;
    Ok(windows.f_narrow(axis, 0, count)?.f_maximum(&windows.f_narrow(axis, length, count)?)?)
}

/// First and one past the last cell of each bin along one axis. Everything is rounded as the published layer rounds it, in single
/// precision.
fn spans(first: f32, last: f32, side: i64, scale: f32, cells: i64) -> Vec<(i64, i64)> {
    let first = (first * scale).round() as i64;
    let last = (last * scale).round() as i64;
    let bin = (last - first + 1).max(1) as f32 / side as f32;
    let span = |at: i64| {
        let (start, end) = ((at as f32 * bin).floor() as i64, ((at + 1) as f32 * bin).ceil() as i64);
        ((start + first).clamp(0, cells), (end + first).clamp(0, cells))
    };
    (0..side).map(span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use tch::Device;

    /// The layer from its definition, cell by cell: values and places.
    fn by_cells(map: &Tensor, region: Region, side: i64, scale: f32) -> Vec<(f64, Option<[i64; 3]>)> {
        let (channels, height, width) = map.size3().expect("a map");
        let rows = spans(region.top, region.bottom, side, scale, height);
        let columns = spans(region.left, region.right, side, scale, width);
        let mut bins = Vec::new();
        for channel in 0..channels {
            for &(top, bottom) in &rows {
                for &(left, right) in &columns {
                    let mut best: (f64, Option<[i64; 3]>) = (0.0, None);
                    for row in top..bottom {
                        for column in left..right {
                            let value = map.double_value(&[channel, row, column]);
                            if best.1.is_none() || value > best.0 {
                                best = (value, Some([channel, row, column]));
                            }
                        }
                    }
                    bins.push(best);
                }
            }
        }
        bins
    }

    #[test]
    fn values_and_gradients_are_those_of_the_definition() -> Result<()> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        // Few values, of both signs and with both zeros, so that there are ties.
        let values: Vec<f32> =
            (0..3 * 9 * 13).map(|_| [-2.0, -0.5, -0.0, 0.0, 0.25, 3.0][rng.random_range(0..6)]).collect();
        let map = Tensor::from_slice(&values).reshape([3, 9, 13]).set_requires_grad(true);
        let mut regions = Vec::new();
        for _ in 0..40 {
            let (left, top) = (rng.random_range(-20.0..230.0f32), rng.random_range(-20.0..160.0f32));
            let (width, height) = (rng.random_range(0.0..200.0f32), rng.random_range(0.0..150.0f32));
            regions.push(Region { left, top, right: left + width, bottom: top + height });
        }
        let pooled = max_pool(&map, &regions, 6, 1.0 / 16.0)?;
        assert_eq!(pooled.size(), [40, 3, 6, 6]);
        let weights = Tensor::arange(pooled.numel() as i64, (Kind::Float, Device::Cpu)).remainder(7.0);
        (pooled.reshape([-1]) * &weights).sum(Kind::Float).backward();

        let gradient = map.grad();
        let mut expected = vec![0.0; values.len()];
        let mut at = 0;
        for region in regions {
            for (value, place) in by_cells(&map.detach(), region, 6, 1.0 / 16.0) {
                let found = pooled.reshape([-1]).double_value(&[at]);
                assert_eq!(found, value, "bin {at} of {region:?}");
                if let Some([channel, row, column]) = place {
                    expected[((channel * 9 + row) * 13 + column) as usize] += weights.double_value(&[at]);
                }
                at += 1;
            }
        }
        let found: Vec<f64> = Vec::try_from(gradient.reshape([-1]).to_kind(Kind::Double))?;
        assert_eq!(found, expected);
        Ok(())
    }

    #[test]
    fn no_region_is_no_row() -> Result<()> {
        let map = Tensor::ones([2, 3, 4], (Kind::Float, Device::Cpu));
        assert_eq!(max_pool(&map, &[], 6, 0.1)?.size(), [0, 2, 6, 6]);
        Ok(())
    }
}
