//! The fixed filter in front of a network with `model.input = "sobel"` (paper, section 4.1): colour away, gradients in.
//!
//! In: `[B, 3, H, W]` normalised RGB. Out: `[B, 2, H, W]` signed gradients along x and y of the mean of the channels,
//! with zeros outside the image, so its border responds. It works on fp32 tensors under every precision, since it
//! subtracts almost equal numbers. Its weights never change; they go to disk as `sobel.0.*` and `sobel.1.*`, as
//! DeepCluster's checkpoints hold them.

use crate::error::Result;
use crate::model::init::Named;
use crate::model::script::{Script, Value};
use tch::{Device, Kind, Tensor};

/// Cross-correlation kernels: gradient along x, then along y, row by row.
const KERNELS: [f32; 18] =
    [1.0, 0.0, -1.0, 2.0, 0.0, -2.0, 1.0, 0.0, -1.0, 1.0, 2.0, 1.0, 0.0, 0.0, 0.0, -1.0, -2.0, -1.0];

/// The filter, on one device.
#[derive(Debug)]
pub(super) struct Sobel {
    /// `[1, 3, 1, 1]`, all 1/3.
    gray: Tensor,
    /// `[2, 1, 3, 3]`
    gradients: Tensor,
}

impl Sobel {
    pub(super) fn new(device: Device) -> Result<Self> {
        let gray = Tensor::f_full([1, 3, 1, 1], 1.0 / 3.0, (Kind::Float, device))?;
        let gradients = Tensor::f_from_slice(&KERNELS)?.f_view([2, 1, 3, 3])?.f_to_device(device)?;
        Ok(Self { gray, gradients })
    }

    /// `[B, 3, H, W]` to `[B, 2, H, W]`, in fp32.
    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let no_bias = None::<&Tensor>;
        let gray = images.f_to_kind(Kind::Float)?.f_conv2d(&self.gray, no_bias, [1, 1], [0, 0], [1, 1], 1)?;
        Ok(gray.f_conv2d(&self.gradients, no_bias, [1, 1], [1, 1], [1, 1], 1)?)
    }

    /// What [`Sobel::forward`] does to `images`, as text; the tensor that it leaves.
    pub(super) fn script(images: &str, script: &mut Script) -> Value {
        let gray = script.conv(images, "sobel.0", true, 1, 0);
        script.conv(&gray, "sobel.1", true, 1, 1)
    }

    /// The weights under their names on disk.
    pub(super) fn state(&self) -> Result<Named> {
        let zeros = |len: i64| Tensor::f_zeros([len], (Kind::Float, self.gray.device()));
        Ok(vec![
            ("sobel.0.weight".to_owned(), self.gray.shallow_clone()),
            ("sobel.0.bias".to_owned(), zeros(1)?),
            ("sobel.1.weight".to_owned(), self.gradients.shallow_clone()),
            ("sobel.1.bias".to_owned(), zeros(2)?),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gray value at (y, x), zero outside.
    fn gray(pixels: &[f32], side: i64, y: i64, x: i64) -> f64 {
        if y < 0 || x < 0 || y >= side || x >= side {
            return 0.0;
        }
        let at = |channel: i64| f64::from(pixels[((channel * side + y) * side + x) as usize]);
        (at(0) + at(1) + at(2)) / 3.0
    }

    #[test]
    fn it_is_the_gradient_of_the_channel_mean_with_zeros_outside() -> Result<()> {
        let side = 7;
        let pixels: Vec<f32> = (0..3 * side * side).map(|i| ((i * 37 % 101) as f32) / 20.0 - 2.5).collect();
        let images = Tensor::from_slice(&pixels).reshape([1, 3, side, side]);
        let output = Sobel::new(Device::Cpu)?.forward(&images)?;
        assert_eq!(output.size(), [1, 2, side, side]);
        for y in 0..side {
            for x in 0..side {
                let at = |dy: i64, dx: i64| gray(&pixels, side, y + dy, x + dx);
                let along_x = (at(-1, -1) + 2.0 * at(0, -1) + at(1, -1)) - (at(-1, 1) + 2.0 * at(0, 1) + at(1, 1));
                let along_y = (at(-1, -1) + 2.0 * at(-1, 0) + at(-1, 1)) - (at(1, -1) + 2.0 * at(1, 0) + at(1, 1));
                assert!((output.double_value(&[0, 0, y, x]) - along_x).abs() < 1e-5);
                assert!((output.double_value(&[0, 1, y, x]) - along_y).abs() < 1e-5);
            }
        }
        Ok(())
    }
}
