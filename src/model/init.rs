//! Builds layers under their names on disk, and draws their first weights.
//!
//! In: a seed (or none, when a file will fill the weights), a device, layers by name. Out: the layers, and the lists of
//! parameters and buffers in the order of creation. The initialisers are DeepCluster's, written out because tch's
//! differ from PyTorch's: convolutions N(0, √(2 / (k² · outputs))), which is also torchvision's for ResNets; batch norm
//! 1 and 0; linear N(0, 0.01); biases 0.
//!
//! A weight depends on (seed, name) alone: a ChaCha12 stream keyed by xxh3 of the name, turned normal by the polar
//! method in f64 and rounded to f32. It is the same for every device and order of creation, and on every machine up to
//! the last bit of its logarithm.

use crate::error::Result;
use crate::model::layers::{BatchNorm2d, Conv2d, Linear};
use crate::world::World;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Tensors under their names on disk.
pub type Named = Vec<(String, Tensor)>;

/// The shape of a square convolution.
pub(super) struct ConvShape {
    pub(super) inputs: i64,
    pub(super) outputs: i64,
    pub(super) kernel: i64,
    pub(super) stride: i64,
    pub(super) padding: i64,
    pub(super) bias: bool,
}

/// Makes layers and remembers their tensors.
pub(super) struct Builder {
    seed: Option<u64>,
    device: Device,
    parameters: Named,
    buffers: Named,
}

impl Builder {
    /// Without a seed all random weights are 0: a file is about to fill them.
    pub(super) fn new(seed: Option<u64>, device: Device) -> Self {
        Self { seed, device, parameters: Vec::new(), buffers: Vec::new() }
    }

    /// Parameters and buffers made so far, in order.
    pub(super) fn finish(self) -> (Named, Named) {
        (self.parameters, self.buffers)
    }

    /// Makes `NAME.weight` and perhaps `NAME.bias`.
    pub(super) fn conv(&mut self, name: &str, shape: ConvShape) -> Result<Conv2d> {
        let ConvShape { inputs, outputs, kernel, stride, padding, bias } = shape;
        let deviation = (2.0 / (kernel * kernel * outputs) as f64).sqrt();
        let weight = self.normal(&format!("{name}.weight"), &[outputs, inputs, kernel, kernel], deviation)?;
        let bias = if bias { Some(self.constant(&format!("{name}.bias"), outputs, 0.0)?) } else { None };
        Ok(Conv2d { weight, bias, stride, padding })
    }

    /// Makes `NAME.weight`, `NAME.bias`, `NAME.running_mean`, `NAME.running_var`.
    pub(super) fn batch_norm(&mut self, name: &str, channels: i64) -> Result<BatchNorm2d> {
        Ok(BatchNorm2d {
            weight: self.constant(&format!("{name}.weight"), channels, 1.0)?,
            bias: self.constant(&format!("{name}.bias"), channels, 0.0)?,
            running_mean: self.buffer(&format!("{name}.running_mean"), channels, 0.0)?,
            running_var: self.buffer(&format!("{name}.running_var"), channels, 1.0)?,
            world: World::alone(),
        })
    }

    /// Makes `NAME.weight` and `NAME.bias`.
    pub(super) fn linear(&mut self, name: &str, inputs: i64, outputs: i64) -> Result<Linear> {
        Ok(Linear {
            weight: self.normal(&format!("{name}.weight"), &[outputs, inputs], 0.01)?,
            bias: self.constant(&format!("{name}.bias"), outputs, 0.0)?,
        })
    }

    fn normal(&mut self, name: &str, shape: &[i64], deviation: f64) -> Result<Tensor> {
        let values = match self.seed {
            Some(seed) => {
                let count = shape.iter().product::<i64>() as usize;
                Tensor::f_from_slice(&normal_values(seed, name, count, deviation))?.f_view(shape)?
            }
            None => Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?,
        };
        self.parameter(name, &values)
    }

    fn constant(&mut self, name: &str, len: i64, value: f64) -> Result<Tensor> {
        let values = Tensor::f_full([len], value, (Kind::Float, Device::Cpu))?;
        self.parameter(name, &values)
    }

    fn parameter(&mut self, name: &str, values: &Tensor) -> Result<Tensor> {
        let values = channels_last_on_cuda(&values.f_to_device(self.device)?)?;
        let parameter = values.f_set_requires_grad(true)?;
        self.parameters.push((name.to_owned(), parameter.shallow_clone()));
        Ok(parameter)
    }

    fn buffer(&mut self, name: &str, len: i64, value: f64) -> Result<Tensor> {
        let buffer = Tensor::f_full([len], value, (Kind::Float, self.device))?;
        self.buffers.push((name.to_owned(), buffer.shallow_clone()));
        Ok(buffer)
    }
}

/// Lays the kernels of a convolution out as cuDNN wants them beside channels-last images; other tensors stay as they
/// are.
fn channels_last_on_cuda(weight: &Tensor) -> Result<Tensor> {
    if !weight.device().is_cuda() || weight.dim() != 4 {
        return Ok(weight.shallow_clone());
    }
    Ok(weight.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
}

/// `count` draws from N(0, deviation²) that depend on (seed, name) alone.
pub(crate) fn normal_values(seed: u64, name: &str, count: usize, deviation: f64) -> Vec<f32> {
    let mut random = ChaCha12Rng::seed_from_u64(xxh3_64_with_seed(name.as_bytes(), seed));
    // in (-1, 1), never 0
    let mut uniform = || (f64::from(random.next_u32()) + 0.5) / f64::from(1u32 << 31) - 1.0;
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let (x, y) = (uniform(), uniform());
        let square = x * x + y * y;
        if square >= 1.0 {
            continue;
        }
        let scale = deviation * (-2.0 * square.ln() / square).sqrt();
        values.push((x * scale) as f32);
        values.push((y * scale) as f32);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_normal() {
        let deviation = 0.01;
        let values = normal_values(7, "classifier.1.weight", 200_001, deviation);
        assert_eq!(values.len(), 200_001);
        let count = values.len() as f64;
        let moment = |power: i32| values.iter().map(|&v| (f64::from(v) / deviation).powi(power)).sum::<f64>() / count;
        // the deviation of the p-th sample moment is √(E[z^2p] - E[z^p]²)/√n; the bounds are five of it
        assert!(moment(1).abs() < 5.0 * (1.0 / count).sqrt());
        assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / count).sqrt());
        assert!(moment(3).abs() < 5.0 * (15.0 / count).sqrt());
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / count).sqrt());
        // neighbours, which share a draw of the polar method, are uncorrelated
        let products: f64 = values.windows(2).map(|pair| f64::from(pair[0]) * f64::from(pair[1])).sum();
        assert!((products / count / deviation / deviation).abs() < 5.0 * (1.0 / count).sqrt());
    }

    #[test]
    fn draws_depend_on_seed_and_name_alone() {
        let draw = |seed, name| normal_values(seed, name, 5, 1.0);
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_eq!(draw(1, "a"), normal_values(1, "a", 9, 1.0)[..5], "a longer tensor begins the same");
    }
}
