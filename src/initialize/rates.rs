//! How fast the layers of a network change under training, and making that equal (Krähenbühl et al., section 3.2).
//!
//! The rate of a layer is the root of the mean squared gradient of its weights over the root of their mean square: what share of itself a step
//! of a given learning rate changes. Gradients are of single images, of a random linear function of the features, η · z with
//! η ~ N(0, 1) drawn for each image, so that no labels are needed.
//!
//! `equalize` scales weights and leaves the function as it is, up to one factor of all features: the statistics of batch norm are
//! scaled along, and where there is none, ReLU and pools hand the scale through to the next layer, whose bias follows. A layer whose
//! weights are scaled by s then has its gradient divided by s and its rate by s², all but that common factor: s is the root of its rate
//! over the geometric mean. The paper's damped iteration has the same fixed point; this one is there after a step, and further ones
//! mend rounding.

use super::Images;
use crate::error::{Error, Result};
use crate::model::init::normal_values;
use crate::model::{Affine, Backbone, Mode};
use crate::seed;
use tch::{Kind, Tensor};

/// Images whose gradients are taken.
const IMAGES: usize = 32;
/// Rates this near to each other, the largest over the smallest, are equal.
const EQUAL: f64 = 1.01;
/// Steps, at most.
const STEPS: usize = 10;

/// The rate of each affine layer, from the image up, by the gradients of up to 32 of `images`.
///
/// # Errors
/// A network with branches, and gradients that are 0 or not finite, with the name of the layer.
pub fn rates(backbone: &Backbone, images: &Images, seed: u64) -> Result<Vec<f64>> {
    let affines = backbone.affines()?;
    let weights: Vec<Tensor> = affines.iter().map(|affine| affine.weight.shallow_clone()).collect();
    let mut squares = vec![0.0; weights.len()];
    let mut taken = 0;
    images.each(|chunk| {
        for row in 0..chunk.size()[0].min((IMAGES - taken) as i64) {
            let features = backbone.forward(&chunk.f_narrow(0, row, 1)?, Mode::Eval)?;
            let draw = normal_values(seed::of(seed, "rates", taken as u64), "direction", features.numel(), 1.0);
            let direction = Tensor::f_from_slice(&draw)?.f_to_device(features.device())?;
            let value = features.f_view([-1])?.f_dot(&direction)?;
            for (sum, gradient) in squares.iter_mut().zip(Tensor::f_run_backward(&[value], &weights, false, false)?) {
                *sum += mean_square(&gradient)?;
            }
            taken += 1;
        }
        Ok(())
    })?;
    let rate = |(affine, sum): (&Affine, f64)| {
        let rate = (sum / taken as f64 / mean_square(&affine.weight)?).sqrt();
        if rate > 0.0 && rate.is_finite() {
            return Ok(rate);
        }
        Err(Error::data(format!(
            "the weights of {} change at a rate of {rate}: images or weights are all 0",
            affine.name
        )))
    };
    affines.iter().zip(squares).map(rate).collect()
}

/// Scales the layers of `backbone` to equal rates. Gives those before and after, as multiples of their geometric mean.
pub(super) fn equalize(
    backbone: &Backbone,
    images: &Images,
    seed: u64,
    tell: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let affines = backbone.affines()?;
    let before = relative(&rates(backbone, images, seed)?);
    let mut now = before.clone();
    for step in 1..=STEPS {
        if spread(&now) < EQUAL {
            break;
        }
        tell(&format!("rates of change, step {step}"))?;
        scale(&affines, &now)?;
        now = relative(&rates(backbone, images, seed)?);
    }
    Ok((before, now))
}

/// Scales the weights of each layer by the root of its relative rate, and what follows from it so that the function stays.
fn scale(affines: &[Affine], rates: &[f64]) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let mut output = 1.0; // what the input of a layer has been scaled by, then its output
    for (affine, rate) in affines.iter().zip(rates) {
        let scale = rate.sqrt();
        output *= scale;
        let _ = affine.weight.shallow_clone().f_mul_scalar_(scale)?;
        let _ = affine.bias.shallow_clone().f_mul_scalar_(output)?;
        if let Some((mean, variance)) = &affine.statistics {
            let _ = mean.shallow_clone().f_mul_scalar_(output)?;
            let _ = variance.shallow_clone().f_mul_scalar_(output * output)?;
            output = 1.0;
        }
    }
    Ok(())
}

fn relative(rates: &[f64]) -> Vec<f64> {
    let mean = (rates.iter().map(|rate| rate.ln()).sum::<f64>() / rates.len().max(1) as f64).exp();
    rates.iter().map(|rate| rate / mean).collect()
}

fn spread(rates: &[f64]) -> f64 {
    let largest = rates.iter().copied().fold(0.0, f64::max);
    let smallest = rates.iter().copied().fold(f64::INFINITY, f64::min);
    largest / smallest
}

fn mean_square(values: &Tensor) -> Result<f64> {
    Ok(values.f_detach()?.f_to_kind(Kind::Double)?.f_square()?.f_mean(Kind::Double)?.f_double_value(&[])?)
}
