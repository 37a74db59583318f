//! How the map of a layer is averaged before it is probed.
//!
//! In: activations `[B, C, H, W]` after batch norm and ReLU, before max-pooling. Out: rows `[B, D]` of some 9,000 values, so that
//! probes of different layers have about as many weights. AlexNet and VGG-16 on images of 224 pixels are averaged by the windows of
//! their published probes (DeepCluster, Table 1; DeeperCluster for VGG-16); every other network and size by the finest square grid of at
//! most 9,600 values, which for the stages of ResNet-50 are the 9,216 and 8,192 that others use (Goyal et al., ICCV 2019). Linear
//! layers have rows already, and keep them.

use crate::config::Arch;
use crate::error::Result;
use tch::Tensor;

/// Values of the largest pooled map: those of conv1 of AlexNet (Table 1).
const MOST_VALUES: i64 = 9_600;
/// Side of the images that the windows are for.
const SIZE: u32 = 224;

/// How a map is averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// By windows; zeros beyond the edge count.
    Windows {
        /// Side of a window.
        kernel: i64,
        /// Pixels from one to the next.
        stride: i64,
        /// Zeros around the map.
        padding: i64,
    },
    /// To the finest square grid of at most 9,600 values.
    Grid,
}

impl Pooling {
    /// That of a layer of a network for images of `size` pixels.
    pub fn of(arch: Arch, size: u32, layer: &str) -> Self {
        let windows = match arch {
            _ if size != SIZE => None,
            Arch::AlexNet => alexnet(layer),
            Arch::Vgg16 => vgg(layer),
            Arch::Small | Arch::ResNet18 | Arch::ResNet50 => None,
        };
        windows.map_or(Self::Grid, |(kernel, stride, padding)| Self::Windows { kernel, stride, padding })
    }

    /// `[B, C, H, W]` to `[B, D]`; `[B, D]` stays.
    pub fn apply(self, activations: &Tensor) -> Result<Tensor> {
        let size = activations.size();
        let &[rows, channels, height, width] = size.as_slice() else { return Ok(activations.shallow_clone()) };
        let pooled = match self {
            Self::Windows { kernel, stride, padding } => {
                activations.f_avg_pool2d([kernel; 2], [stride; 2], [padding; 2], false, true, None)?
            }
            Self::Grid => {
                let mut side = height.min(width);
                while side > 1 && channels * side * side > MOST_VALUES {
                    side -= 1;
                }
                activations.f_adaptive_avg_pool2d([side, side])?
            }
        };
        Ok(pooled.f_reshape([rows, -1])?)
    }
}

/// Kernel, stride and padding for a layer of AlexNet.
fn alexnet(layer: &str) -> Option<(i64, i64, i64)> {
    match layer {
        "conv1" => Some((6, 6, 3)),
        "conv2" => Some((4, 4, 0)),
        "conv3" | "conv4" => Some((3, 3, 1)),
        "conv5" => Some((2, 2, 0)),
        _ => None,
    }
}

/// The same for VGG-16: windows that do not overlap, without padding.
fn vgg(layer: &str) -> Option<(i64, i64, i64)> {
    let (block, _) = layer.strip_prefix("conv")?.split_once('_')?;
    let kernel = match block {
        "1" => 18,
        "2" => 14,
        "3" => 9,
        "4" => 6,
        "5" => 3,
        _ => return None,
    };
    Some((kernel, kernel, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn pooled(arch: Arch, size: u32, layer: &str, map: [i64; 3]) -> i64 {
        let [channels, height, width] = map;
        let activations = Tensor::zeros([2, channels, height, width], (Kind::Float, Device::Cpu));
        let rows = Pooling::of(arch, size, layer).apply(&activations).expect("it pools");
        assert_eq!(rows.size()[0], 2);
        rows.size()[1]
    }

    #[test]
    fn published_probes_have_their_sizes() {
        let alexnet = [
            ("conv1", [96, 55, 55], 9_600),
            ("conv2", [256, 27, 27], 9_216),
            ("conv3", [384, 13, 13], 9_600),
            ("conv4", [384, 13, 13], 9_600),
            ("conv5", [256, 13, 13], 9_216),
        ];
        for (layer, map, dims) in alexnet {
            assert_eq!(pooled(Arch::AlexNet, 224, layer, map), dims, "{layer}");
        }
        let vgg =
            [(1, 64, 224, 9_216), (2, 128, 112, 8_192), (3, 256, 56, 9_216), (4, 512, 28, 8_192), (5, 512, 14, 8_192)];
        for (block, channels, side, dims) in vgg {
            assert_eq!(pooled(Arch::Vgg16, 224, &format!("conv{block}_1"), [channels, side, side]), dims, "{block}");
        }
        for (layer, channels, side, dims) in [
            ("conv1", 64, 112, 9_216),
            ("layer1", 256, 56, 9_216),
            ("layer2", 512, 28, 8_192),
            ("layer4", 2048, 7, 8_192),
        ] {
            assert_eq!(pooled(Arch::ResNet50, 224, layer, [channels, side, side]), dims, "{layer}");
        }
    }

    #[test]
    fn other_sizes_are_averaged_to_a_grid_and_rows_stay() -> Result<()> {
        assert_eq!(Pooling::of(Arch::AlexNet, 96, "conv1"), Pooling::Grid);
        assert_eq!(pooled(Arch::Small, 28, "conv4", [256, 4, 4]), 4_096);
        let rows = Tensor::zeros([2, 4_096], (Kind::Float, Device::Cpu));
        assert_eq!(Pooling::of(Arch::AlexNet, 224, "fc6").apply(&rows)?.size(), [2, 4_096]);
        Ok(())
    }

    #[test]
    fn zeros_beyond_the_edge_count() -> Result<()> {
        let ones = Tensor::ones([1, 384, 13, 13], (Kind::Float, Device::Cpu));
        let rows = Pooling::of(Arch::AlexNet, 224, "conv3").apply(&ones)?.view([384, 5, 5]);
        assert!((rows.double_value(&[0, 0, 0]) - 4.0 / 9.0).abs() < 1e-6);
        assert!((rows.double_value(&[0, 2, 2]) - 1.0).abs() < 1e-6);
        Ok(())
    }
}
