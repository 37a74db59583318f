//! Rows of length one.

use crate::error::Result;
use tch::{Kind, Tensor};

/// Shortest row that is scaled; shorter ones stay at the origin.
const SHORTEST: f64 = 1e-12;

/// `rows` `[N, d]` of f32 scaled to length one; gradients go through.
pub fn unit_rows(rows: &Tensor) -> Result<Tensor> {
    let lengths = rows.f_square()?.f_sum_dim_intlist(1, true, Kind::Float)?.f_sqrt()?;
    Ok(rows.f_div(&lengths.f_clamp_min(SHORTEST)?)?)
}
