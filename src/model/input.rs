//! From decoded pixels to what a network takes: uint8 `[B, S, S, 3]` to normalised float `[B, 3, S, S]`, on the device.
//!
//! The batch was decoded channels-last, so turning its axes is a view: the result is a channels-last tensor and no
//! pixel moves twice. It is fp32 under every precision; layers cast on their own.

use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Subtracts means and divides by deviations, channel by channel (`views.mean`, `views.std`).
#[derive(Debug)]
pub struct Normalizer {
    /// `[3, 1, 1]`, on the device: uploading it at each step would wait for the device.
    scale: Tensor,
    /// `[3, 1, 1]`
    shift: Tensor,
}

impl Normalizer {
    /// Means and deviations are of pixels in 0..1.
    ///
    /// # Errors
    /// A deviation that is not positive.
    pub fn new(mean: &[f64; 3], std: &[f64; 3], device: Device) -> Result<Self> {
        if let Some(deviation) = std.iter().find(|&&deviation| !(deviation > 0.0 && deviation.is_finite())) {
            return Err(Error::usage(format!("views.std must be positive, found {deviation}")));
        }
        let per_channel = |values: [f64; 3]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(&values.map(|value| value as f32))?.f_view([3, 1, 1])?.f_to_device(device)?)
        };
        let scale = std.map(|deviation| 1.0 / (255.0 * deviation));
        let shift = [0, 1, 2].map(|channel| -mean[channel] / std[channel]);
        Ok(Self { scale: per_channel(scale)?, shift: per_channel(shift)? })
    }

    /// `[B, S, S, 3]` uint8 on this device to `[B, 3, S, S]` fp32, channels-last.
    pub fn prepare(&self, pixels: &Tensor) -> Result<Tensor> {
        let shape = pixels.size();
        if shape.len() != 4 || shape[3] != 3 || pixels.kind() != Kind::Uint8 {
            let what = format!("pixels must be uint8 [B, H, W, 3], found {:?} {shape:?}", pixels.kind());
            return Err(Error::usage(what));
        }
        let images = pixels.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)?;
        Ok(images.f_mul(&self.scale)?.f_add(&self.shift)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_become_normalised_planes() -> Result<()> {
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let pixels: Vec<u8> = (0..2 * 3 * 3 * 3).map(|i| (i * 53 % 256) as u8).collect();
        let tensor = Tensor::from_slice(&pixels).reshape([2, 3, 3, 3]);
        let images = Normalizer::new(&mean, &std, Device::Cpu)?.prepare(&tensor)?;
        assert_eq!(images.size(), [2, 3, 3, 3]);
        assert_eq!(images.stride(), [27, 1, 9, 3], "channels-last, like the pixels");
        for (index, &pixel) in pixels.iter().enumerate() {
            let (channel, place) = (index % 3, index / 3);
            let expected = (f64::from(pixel) / 255.0 - mean[channel]) / std[channel];
            let at = [place / 9, channel, place / 3 % 3, place % 3].map(|i| i as i64);
            assert!((images.double_value(&at) - expected).abs() < 1e-5);
        }
        Ok(())
    }

    #[test]
    fn other_shapes_and_deviations_are_refused() -> Result<()> {
        assert!(Normalizer::new(&[0.5; 3], &[0.2, 0.0, 0.2], Device::Cpu).is_err());
        let normalizer = Normalizer::new(&[0.5; 3], &[0.2; 3], Device::Cpu)?;
        let planes_first = Tensor::zeros([2, 3, 8, 8], (Kind::Uint8, Device::Cpu));
        let error = normalizer.prepare(&planes_first).expect_err("[B, 3, H, W] is not what decoders give");
        assert!(error.to_string().contains("[2, 3, 8, 8]"), "{error}");
        Ok(())
    }
}
