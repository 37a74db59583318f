//! L-BFGS (Nocedal and Wright, "Numerical Optimization", algorithms 3.5 and 7.5) for smooth convex functions of a tensor.
//!
//! In go a starting point and a function that gives value and gradient; out comes the minimum. The line search finds steps
//! that meet the strong Wolfe conditions, so the curvature pairs stay positive. Where rounding hides any further descent, the
//! point reached is the answer.

use crate::error::Result;
use std::collections::VecDeque;
use tch::{Kind, Tensor};

/// Curvature pairs remembered.
const MEMORY: usize = 10;
/// Largest entry of the gradient at which the minimum counts as found.
const FLAT: f64 = 1e-6;
/// Descent of the value, relative to itself, below which it counts as rounding.
const ROUNDING: f64 = 1e-9;
/// Share of the promised descent that a step has to bring (first Wolfe condition).
const ENOUGH_DESCENT: f64 = 1e-4;
/// Share of the slope that may be left after a step (second Wolfe condition).
const SLOPE_LEFT: f64 = 0.9;
/// Most evaluations in one line search.
const TRIES: usize = 25;

/// Where the search ended.
#[derive(Debug)]
pub(super) struct Minimum {
    pub(super) point: Tensor,
    pub(super) value: f64,
    pub(super) iterations: usize,
}

/// A point with value and gradient, and how steep the function is there along the search direction.
struct Trial {
    point: Tensor,
    value: f64,
    gradient: Tensor,
    slope: f64,
}

/// The minimum of `function`, which gives value and gradient at a point of the shape and kind (f64) of `start`.
pub(super) fn minimize(
    start: &Tensor,
    iterations: usize,
    mut function: impl FnMut(&Tensor) -> Result<(f64, Tensor)>,
) -> Result<Minimum> {
    let mut point = start.shallow_clone();
    let (mut value, mut gradient) = function(&point)?;
    let mut pairs: VecDeque<(Tensor, Tensor)> = VecDeque::new();
    for iteration in 0..iterations {
        if f64::try_from(gradient.f_abs()?.f_max()?)? <= FLAT {
            return Ok(Minimum { point, value, iterations: iteration });
        }
        let direction = descent_direction(&gradient, &pairs)?;
        let slope = dot(&gradient, &direction)?;
        // Without a known curvature, a first step of length one at most.
        let first_step = if pairs.is_empty() { 1.0 / slope.abs().sqrt().max(1.0) } else { 1.0 };
        let here = Trial { point: point.shallow_clone(), value, gradient: gradient.shallow_clone(), slope };
        let Some(there) = line_search(&here, &direction, first_step, &mut function)? else {
            return Ok(Minimum { point, value, iterations: iteration });
        };
        let descent = value - there.value;
        let moved = there.point.f_sub(&point)?;
        let bent = there.gradient.f_sub(&gradient)?;
        if dot(&moved, &bent)? > 0.0 {
            if pairs.len() == MEMORY {
                pairs.pop_front();
            }
            pairs.push_back((moved, bent));
        }
        (point, value, gradient) = (there.point, there.value, there.gradient);
        if descent <= ROUNDING * value.abs() {
            return Ok(Minimum { point, value, iterations: iteration + 1 });
        }
    }
    Ok(Minimum { point, value, iterations })
}

/// The gradient times the inverse curvature that the pairs describe, downhill.
fn descent_direction(gradient: &Tensor, pairs: &VecDeque<(Tensor, Tensor)>) -> Result<Tensor> {
    let mut direction = gradient.f_neg()?;
    let mut shares = Vec::with_capacity(pairs.len());
    for (moved, bent) in pairs.iter().rev() {
        let share = dot(moved, &direction)? / dot(moved, bent)?;
        direction = direction.f_sub(&bent.f_mul_scalar(share)?)?;
        shares.push(share);
    }
    if let Some((moved, bent)) = pairs.back() {
        direction = direction.f_mul_scalar(dot(moved, bent)? / dot(bent, bent)?)?;
    }
    for ((moved, bent), share) in pairs.iter().zip(shares.into_iter().rev()) {
        let correction = share - dot(bent, &direction)? / dot(moved, bent)?;
        direction = direction.f_add(&moved.f_mul_scalar(correction)?)?;
    }
    Ok(direction)
}

/// A step along `direction` that meets both Wolfe conditions: bracketed by growing, then found by bisection.
///
/// None where no step within reach lowers the value. A step that only lowers it serves where the tries run out.
fn line_search(
    from: &Trial,
    direction: &Tensor,
    first_step: f64,
    function: &mut impl FnMut(&Tensor) -> Result<(f64, Tensor)>,
) -> Result<Option<Trial>> {
    if from.slope >= 0.0 {
        return Ok(None);
    }
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut step = first_step;
    let mut best: Option<Trial> = None;
    for _ in 0..TRIES {
        let point = from.point.f_add(&direction.f_mul_scalar(step)?)?;
        let (value, gradient) = function(&point)?;
        let slope = dot(&gradient, direction)?;
        let enough = value <= from.value + ENOUGH_DESCENT * step * from.slope;
        if enough && slope.abs() <= SLOPE_LEFT * from.slope.abs() {
            return Ok(Some(Trial { point, value, gradient, slope }));
        }
        if !enough || slope > 0.0 {
            high = step;
        } else {
            low = step;
        }
        if enough && best.as_ref().is_none_or(|best| value < best.value) {
            best = Some(Trial { point, value, gradient, slope });
        }
        step = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * step };
    }
    Ok(best)
}

fn dot(left: &Tensor, right: &Tensor) -> Result<f64> {
    Ok(f64::try_from(left.f_mul(right)?.f_sum(Kind::Double)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn a_badly_scaled_bowl_is_found_at_its_bottom() -> Result<()> {
        let curvature = Tensor::logspace(-1, 2, 30, 10.0, (Kind::Double, Device::Cpu));
        let bottom = Tensor::linspace(-3, 4, 30, (Kind::Double, Device::Cpu));
        let minimum = minimize(&bottom.zeros_like(), 500, |point| {
            let offset = point - &bottom;
            let gradient = &curvature * &offset;
            Ok((dot(&gradient, &offset)? / 2.0, gradient))
        })?;
        assert!(minimum.iterations > 5 && minimum.iterations < 500, "{} {}", minimum.iterations, minimum.value);
        assert!(minimum.point.allclose(&bottom, 1e-4, 1e-3, false), "{:?}", Vec::<f64>::try_from(&minimum.point));
        Ok(())
    }

    #[test]
    fn a_minimum_at_the_start_and_a_gradient_that_lies_end_the_search() -> Result<()> {
        let start = Tensor::zeros([3], (Kind::Double, Device::Cpu));
        let minimum = minimize(&start, 10, |point| Ok((dot(point, point)?, point * 2.0)))?;
        assert_eq!(minimum.iterations, 0);
        let uphill = minimize(&start, 10, |point| Ok((f64::try_from(point.sum(Kind::Double))?, -point.ones_like())))?;
        assert_eq!((uphill.iterations, uphill.value), (0, 0.0));
        Ok(())
    }
}
