//! Assignments in which all clusters have the same share, by Sinkhorn's iterations (Cuturi, NeurIPS 2013; used for labels by
//! Asano et al., ICLR 2020, and by SwAV, Caron et al., NeurIPS 2020, section 3.1).
//!
//! In go points and centroids; out comes one price for each centroid. Soft assignments `exp(score / ε)`, with the score
//! `x·c - |c|²/2` that is largest for the nearest centroid, are scaled in turn so that each point gives 1 and each centroid
//! gets `N / k`; what the scaling of a centroid comes to is its price. A point then goes where score less price is largest:
//! also a point that was not there when the prices were made. Nothing of size `N × k` is kept: each iteration makes the scores anew,
//! by blocks, in single precision, and adds up in double.
//!
//! The smaller ε, the nearer the hard labels are to equal shares, and the more iterations that takes.

use super::blocks::{block, blocks};
use super::kmeans::host_labels;
use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Softness of the assignments, in units of the score: SwAV's.
pub const EPSILON: f64 = 0.05;
/// Scalings: SwAV makes 3 on a batch; hard labels of a whole bank want more.
pub const ITERATIONS: usize = 20;

/// The prices `[k]` of `centroids` `[k, d]` for `points` `[N, d]`, f32, on their device.
pub fn prices(points: &Tensor, centroids: &Tensor, epsilon: f64, iterations: usize) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    if epsilon <= 0.0 {
        return Err(Error::usage("Sinkhorn's iterations need an epsilon above 0"));
    }
    let (count, k, device) = (points.size2()?.0, centroids.size2()?.0, points.device());
    let share = count as f64 / k as f64;
    let mut logs = Tensor::f_zeros([k], (Kind::Double, device))?;
    for _ in 0..iterations {
        let scaled = logs.f_to_kind(Kind::Float)?;
        let mut held = Tensor::f_zeros([k], (Kind::Double, device))?;
        for range in blocks(count, 12 * k, device) {
            let scores = scores(&block(points, range, device, Kind::Float)?, centroids)?;
            let soft = scores.f_div_scalar(epsilon)?.f_add(&scaled)?.f_softmax(1, Kind::Float)?;
            held = held.f_add(&soft.f_sum_dim_intlist(0, false, Kind::Double)?)?;
        }
        // A centroid that gets next to nothing must not make its price infinite.
        logs = logs.f_sub(&held.f_div_scalar(share)?.f_clamp_min(1e-30)?.f_log()?)?;
        logs = logs.f_sub(&logs.f_mean(Kind::Double)?)?;
    }
    Ok(logs.f_mul_scalar(-epsilon)?.f_to_kind(Kind::Float)?)
}

/// Where score less price is largest, for each of `points` `[N, d]`: labels `[N]` of i64 and squared distances `[N]` of f32.
pub fn assign(points: &Tensor, centroids: &Tensor, prices: &Tensor) -> Result<(Tensor, Tensor)> {
    let _no_grad = tch::no_grad_guard();
    let (count, width) = points.size2()?;
    let (k, device) = (centroids.size2()?.0, points.device());
    let labels = Tensor::f_empty([count], (Kind::Int64, device))?;
    let distances = Tensor::f_empty([count], (Kind::Float, device))?;
    for (start, len) in blocks(count, 8 * k.max(width), device) {
        let rows = block(points, (start, len), device, Kind::Float)?;
        let best = scores(&rows, centroids)?.f_sub(prices)?.f_argmax(1, false)?;
        let squared = super::kmeans::distances_to_own(&rows, centroids, &best)?;
        labels.f_narrow(0, start, len)?.f_copy_(&best)?;
        distances.f_narrow(0, start, len)?.f_copy_(&Tensor::f_from_slice(&squared)?.f_to_device(device)?)?;
    }
    Ok((labels, distances))
}

/// [`prices`], and the labels and distances by them, on the host.
pub fn balance(points: &Tensor, centroids: &Tensor) -> Result<(Tensor, Vec<u32>, Vec<f32>)> {
    let prices = prices(points, centroids, EPSILON, ITERATIONS)?;
    let (labels, distances) = assign(points, centroids, &prices)?;
    let distances = Vec::<f32>::try_from(distances.f_to_device(Device::Cpu)?)?;
    Ok((prices, host_labels(&labels)?, distances))
}

/// `x·c - |c|²/2` of each row and centroid.
fn scores(rows: &Tensor, centroids: &Tensor) -> Result<Tensor> {
    let offsets = centroids.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?.f_mul_scalar(-0.5)?;
    Ok(offsets.f_addmm(rows, &centroids.f_tr()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::kmeans::{self, Options, count_labels};
    use crate::cluster::samples::{normal, unit};

    #[test]
    fn prices_are_those_of_plain_loops_in_double_precision() -> Result<()> {
        let (points, centroids) = (unit(1, 90, 4), unit(2, 7, 4) * 0.8);
        let found = prices(&points, &centroids, 0.05, 3)?;
        let loops = |tensor: &Tensor| Vec::<Vec<f64>>::try_from(tensor.to_kind(Kind::Double)).expect("a matrix");
        let score = |point: &[f64], centroid: &[f64]| -> f64 {
            point.iter().zip(centroid).map(|(x, c)| x * c - c * c / 2.0).sum::<f64>()
        };
        let (points, centroids) = (loops(&points), loops(&centroids));
        let mut plan: Vec<Vec<f64>> = points
            .iter()
            .map(|point| centroids.iter().map(|centroid| (score(point, centroid) / 0.05).exp()).collect())
            .collect();
        let mut scale = [1.0; 7];
        for _ in 0..3 {
            for row in &mut plan {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|entry| *entry /= sum);
            }
            for column in 0..7 {
                let sum: f64 = plan.iter().map(|row| row[column]).sum::<f64>() / (90.0 / 7.0);
                plan.iter_mut().for_each(|row| row[column] /= sum);
                scale[column] *= sum;
            }
        }
        let logs = scale.map(|scale: f64| 0.05 * scale.ln());
        let mean = logs.iter().sum::<f64>() / 7.0;
        for (found, expected) in Vec::<f32>::try_from(found)?.iter().zip(logs) {
            assert!((f64::from(*found) - (expected - mean)).abs() < 1e-5, "{found} {expected}");
        }
        Ok(())
    }

    #[test]
    fn clusters_of_very_different_size_get_nearly_equal_shares() -> Result<()> {
        // One direction has three quarters of the points.
        let pull = Tensor::from_slice(&[1.0_f32; 900].map(|one| one * 3.0)).view([900, 1]);
        let points = normal(3, 1_200, 8);
        points.narrow(0, 0, 900).narrow(1, 0, 1).copy_(&pull);
        let points = crate::torch::unit_rows(&points)?;
        let start = unit(4, 12, 8);
        let found = kmeans::cluster(&points, Some(&start), Options { k: 12, iterations: 1, ..Options::default() })?;
        let (prices, labels, distances) = balance(&points, &found.centroids)?;
        let sizes = count_labels(&labels, 12);
        let (most, before) = (sizes.iter().max(), found.sizes.iter().max());
        assert!(sizes.iter().all(|&size| (60..160).contains(&size)), "{sizes:?} around 100, from {:?}", found.sizes);
        assert!(most < before);
        let (again, squared) = assign(&points.narrow(0, 100, 50), &found.centroids, &prices)?;
        assert_eq!(host_labels(&again)?, labels[100..150]);
        assert_eq!(Vec::<f32>::try_from(squared)?, distances[100..150]);
        let free = assign(&points, &found.centroids, &prices.zeros_like())?;
        assert_eq!(free.0, kmeans::nearest(&points, &found.centroids)?.0);
        Ok(())
    }
}
