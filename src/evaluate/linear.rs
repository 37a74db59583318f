//! Linear probe: multinomial logistic regression on frozen features.
//!
//! In go train and test features `[N, D]` with labels; out comes the share of test rows that the best linear classifier gets
//! right. Columns are standardised by the train set, in a copy of f32. The loss, mean cross-entropy plus `l2 / 2 · |W|²`, is convex, so L-BFGS
//! over the whole set from zero finds its one minimum without a learning rate or a seed. Loss and gradient are
//! summed over blocks of rows.

use super::lbfgs;
use super::{Classes, check_sets};
use crate::cluster::{block, blocks};
use crate::error::{Error, Result};
use tch::{Kind, Tensor};

/// How to fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Penalty on the squared weights, biases excepted.
    pub l2: f64,
    /// Most iterations of L-BFGS.
    pub iterations: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { l2: 1e-3, iterations: 200 }
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Share of test rows classified rightly.
    pub accuracy: f64,
    /// The same of the train rows: far above `accuracy` where the penalty is too small for their number.
    pub train_accuracy: f64,
    /// Loss on the train rows, in nats, with its penalty.
    pub loss: f64,
    /// Iterations done.
    pub iterations: usize,
    /// Test rows.
    pub tested: usize,
    /// Classes of the train set.
    pub classes: usize,
}

/// Fits a classifier to `train` `[N, D]` and tries it on `test` `[M, D]`.
pub fn accuracy(
    train: &Tensor,
    train_labels: &[i64],
    test: &Tensor,
    test_labels: &[i64],
    options: Options,
) -> Result<Report> {
    let _no_grad = tch::no_grad_guard();
    check_sets(train, train_labels, test, test_labels)?;
    if options.l2.is_nan() || options.l2 < 0.0 {
        return Err(Error::usage("the penalty of a linear probe is below 0"));
    }
    let device = train.device();
    let classes = Classes::of(train_labels);
    let scaler = Scaler::fit(train)?;
    let rows = scaler.apply(train)?;
    let targets = classes.number(train_labels)?.f_to_device(device)?;
    // Weights [C, D] beside biases [C, 1].
    let start = Tensor::f_zeros([classes.len(), train.size2()?.1 + 1], (Kind::Double, device))?;
    let minimum = lbfgs::minimize(&start, options.iterations, |parameters| {
        loss_and_gradient(&rows, &targets, parameters, options.l2)
    })?;
    if !minimum.value.is_finite() {
        return Err(Error::data("the features of the train set are not finite"));
    }
    let test_targets = classes.number(test_labels)?.f_to_device(device)?;
    Ok(Report {
        accuracy: share_right(&scaler.apply(test)?, &test_targets, &minimum.point)?,
        train_accuracy: share_right(&rows, &targets, &minimum.point)?,
        loss: minimum.value,
        iterations: minimum.iterations,
        tested: test_labels.len(),
        classes: classes.len() as usize,
    })
}

/// Mean and deviation of each column, f32 `[D]`.
struct Scaler {
    mean: Tensor,
    /// One over the deviation; 1 for a constant column.
    scale: Tensor,
}

impl Scaler {
    fn fit(rows: &Tensor) -> Result<Self> {
        let (count, width) = rows.size2()?;
        let mut sum = Tensor::f_zeros([width], (Kind::Double, rows.device()))?;
        for range in blocks(count, 8 * width, rows.device()) {
            let block = block(rows, range, rows.device(), Kind::Double)?;
            let _ = sum.f_add_(&block.f_sum_dim_intlist(0, false, Kind::Double)?)?;
        }
        let mean = sum.f_div_scalar(count)?;
        let mut squares = mean.f_zeros_like()?;
        for range in blocks(count, 8 * width, rows.device()) {
            let centred = block(rows, range, rows.device(), Kind::Double)?.f_sub(&mean)?;
            let _ = squares.f_add_(&centred.f_square()?.f_sum_dim_intlist(0, false, Kind::Double)?)?;
        }
        let deviation = squares.f_div_scalar(count)?.f_sqrt()?;
        // What rounding leaves of a constant column counts as constant.
        let varies = deviation.f_gt_tensor(&mean.f_abs()?.f_mul_scalar(1e-9)?)?;
        let scale = deviation.f_reciprocal()?.f_where_self(&varies, &mean.f_ones_like()?)?;
        Ok(Self { mean: mean.f_to_kind(Kind::Float)?, scale: scale.f_to_kind(Kind::Float)? })
    }

    /// Standardised rows `[N, D]` of f32, on the device of the train set.
    fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let (count, width) = rows.size2()?;
        let device = self.mean.device();
        let standardised = Tensor::f_empty([count, width], (Kind::Float, device))?;
        for range in blocks(count, 4 * width, device) {
            let block = block(rows, range, device, Kind::Float)?.f_sub(&self.mean)?.f_mul(&self.scale)?;
            standardised.f_narrow(0, range.0, range.1)?.f_copy_(&block)?;
        }
        Ok(standardised)
    }
}

/// Scores `[B, C]` of standardised rows, f32.
fn scores(rows: &Tensor, parameters: &Tensor) -> Result<Tensor> {
    let parameters = parameters.f_to_kind(Kind::Float)?;
    let width = parameters.size2()?.1 - 1;
    let weights = parameters.f_narrow(1, 0, width)?.f_contiguous()?;
    Ok(parameters.f_select(1, width)?.f_addmm(rows, &weights.f_tr()?)?)
}

/// Loss of standardised rows with its penalty, and its gradient `[C, D + 1]`.
fn loss_and_gradient(rows: &Tensor, targets: &Tensor, parameters: &Tensor, l2: f64) -> Result<(f64, Tensor)> {
    let (count, width) = rows.size2()?;
    let classes = parameters.size2()?.0;
    let mut gradient = parameters.f_zeros_like()?;
    let mut loss = 0.0;
    for (start, len) in blocks(count, 4 * width.max(classes), rows.device()) {
        let block = rows.f_narrow(0, start, len)?;
        let targets = targets.f_narrow(0, start, len)?.f_unsqueeze(1)?;
        let log_shares = scores(&block, parameters)?.f_log_softmax(1, Kind::Float)?;
        loss -= f64::try_from(log_shares.f_gather(1, &targets, false)?.f_sum(Kind::Double)?)?;
        // d loss / d scores is the predicted distribution, less 1 at the target.
        let mut residual = log_shares.f_exp()?;
        let minus_one = Tensor::f_full([len, 1], -1.0, (Kind::Float, rows.device()))?;
        let _ = residual.f_scatter_add_(1, &targets, &minus_one)?;
        let residual = residual.f_tr()?.f_contiguous()?;
        let _ = gradient.f_narrow(1, 0, width)?.f_add_(&residual.f_matmul(&block)?)?;
        let _ = gradient.f_narrow(1, width, 1)?.f_add_(&residual.f_sum_dim_intlist(1, true, Kind::Double)?)?;
    }
    let _ = gradient.f_div_scalar_(count)?;
    let weights = parameters.f_narrow(1, 0, width)?;
    let _ = gradient.f_narrow(1, 0, width)?.f_add_(&weights.f_mul_scalar(l2)?)?;
    let penalty = l2 / 2.0 * f64::try_from(weights.f_square()?.f_sum(Kind::Double)?)?;
    Ok((loss / count as f64 + penalty, gradient))
}

/// Share of standardised rows whose highest score is that of their class.
fn share_right(rows: &Tensor, targets: &Tensor, parameters: &Tensor) -> Result<f64> {
    let (count, width) = rows.size2()?;
    let classes = parameters.size2()?.0;
    let mut right = 0;
    for (start, len) in blocks(count, 4 * width.max(classes), rows.device()) {
        let hits = scores(&rows.f_narrow(0, start, len)?, parameters)?
            .f_argmax(1, false)?
            .f_eq_tensor(&targets.f_narrow(0, start, len)?)?;
        right += i64::try_from(hits.f_sum(Kind::Int64)?)?;
    }
    Ok(right as f64 / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::normal;
    use tch::Device;

    /// Rows around one center a class; a constant column, and one of a scale of its own.
    fn sample(count: i64, spread: f64, seed: u64) -> (Tensor, Vec<i64>) {
        let labels: Vec<i64> = (0..count).map(|row| row % 4 * 3 - 1).collect();
        let numbers = Tensor::from_slice(&labels.iter().map(|label| (label + 1) / 3).collect::<Vec<_>>());
        let rows = normal(1, 4, 10).index_select(0, &numbers) + normal(seed, count, 10) * spread;
        let _ = rows.select(1, 3).fill_(0.1);
        let stretched = rows.select(1, 5) * 1e4 + 1e5;
        rows.select(1, 5).copy_(&stretched);
        (rows, labels)
    }

    #[test]
    fn separated_classes_are_told_apart_and_noise_is_not() -> Result<()> {
        let ((train, labels), (test, test_labels)) = (sample(400, 0.3, 2), sample(200, 0.3, 3));
        let report = accuracy(&train, &labels, &test, &test_labels, Options::default())?;
        assert!(report.accuracy > 0.97 && report.train_accuracy > 0.97, "{report:?}");
        assert!(report.iterations < 200 && report.classes == 4 && report.tested == 200, "{report:?}");
        assert_eq!(report, accuracy(&train, &labels, &test, &test_labels, Options::default())?);
        let (noise, _) = sample(200, 1e6, 4);
        let report = accuracy(&train, &labels, &noise, &test_labels, Options::default())?;
        assert!(report.accuracy < 0.5, "{report:?}");
        Ok(())
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() -> Result<()> {
        let (rows, labels) = sample(50, 1.0, 5);
        let classes = Classes::of(&labels);
        let targets = classes.number(&labels)?;
        let rows = Scaler::fit(&rows)?.apply(&rows)?;
        let point = (normal(8, classes.len(), 11) * 0.3).to_kind(Kind::Double);
        let (_, gradient) = loss_and_gradient(&rows, &targets, &point, 0.1)?;
        for (row, column) in [(0, 0), (2, 5), (3, 10)] {
            let loss_at = |offset: f64| -> Result<f64> {
                let moved = point.copy();
                let _ = moved.get(row).get(column).g_add_scalar_(offset);
                Ok(loss_and_gradient(&rows, &targets, &moved, 0.1)?.0)
            };
            let slope = (loss_at(1e-2)? - loss_at(-1e-2)?) / 2e-2;
            let found = gradient.double_value(&[row, column]);
            assert!((slope - found).abs() < 1e-3 * (1.0 + found.abs()), "{slope} {found}");
        }
        Ok(())
    }

    #[test]
    fn at_the_minimum_the_gradient_vanishes() -> Result<()> {
        let (rows, labels) = sample(300, 1.5, 6);
        let classes = Classes::of(&labels);
        let targets = classes.number(&labels)?;
        let rows = Scaler::fit(&rows)?.apply(&rows)?;
        let start = Tensor::zeros([classes.len(), 11], (Kind::Double, Device::Cpu));
        let at = |point: &Tensor| loss_and_gradient(&rows, &targets, point, 1e-2);
        let minimum = lbfgs::minimize(&start, 200, at)?;
        let steepest = f64::try_from(at(&minimum.point)?.1.abs().max())?;
        assert!(steepest < 1e-3, "{steepest} after {} iterations", minimum.iterations);
        assert!(minimum.value < at(&start)?.0);
        Ok(())
    }

    #[test]
    fn features_that_are_not_finite_are_refused() {
        let (rows, labels) = sample(50, 1.0, 7);
        let _ = rows.get(3).fill_(f64::NAN);
        let error = accuracy(&rows, &labels, &rows, &labels, Options::default()).expect_err("a NaN");
        assert!(error.to_string().contains("not finite"), "{error}");
    }
}
