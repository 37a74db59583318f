//! Where the entries of maps lie on the photograph, along one axis, and how they meet again after upsampling.
//!
//! In: windows of convolutions and pools (kernel, stride, padding). Out: the offsets at which maps are cut to fit each other. An
//! entry stands for the point at the centre of what it sees; two maps fit where the same point has the same place. The photograph is
//! padded with zeros so widely that every pixel has a score (100 before the first convolution in the published networks).

use super::Stride;
use crate::config::Arch;
use crate::error::{Error, Result};

/// Zeros before the first pixel of the photograph, the padding of the first convolution included.
const PADDING: i64 = 100;

/// Entry `i` of a map lies at `scale * i + origin`, in pixels of the photograph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    scale: f64,
    origin: f64,
}

impl Axis {
    /// The photograph itself.
    pub(super) const PHOTOGRAPH: Self = Self { scale: 1.0, origin: 0.0 };

    /// After a window has moved over it.
    pub(super) fn window(self, kernel: i64, stride: i64, padding: i64) -> Self {
        let centre = (kernel - 1) as f64 / 2.0 - padding as f64;
        Self { scale: self.scale * stride as f64, origin: self.origin + self.scale * centre }
    }

    /// After a transposed convolution without padding.
    pub(super) fn upsampled(self, kernel: i64, stride: i64) -> Self {
        let scale = self.scale / stride as f64;
        Self { scale, origin: self.origin - scale * (kernel - 1) as f64 / 2.0 }
    }

    /// Pixels between two entries.
    pub(super) fn stride(self) -> i64 {
        self.scale as i64
    }

    /// The entry at which `other`, of the same scale, begins.
    ///
    /// # Errors
    /// The two do not meet at an entry of this one.
    pub(super) fn start_of(self, other: Self) -> Result<i64> {
        let start = (other.origin - self.origin) / self.scale;
        if self.scale != other.scale || start < 0.0 || start.fract() != 0.0 {
            return Err(Error::usage(format!("maps {self:?} and {other:?} do not meet")));
        }
        Ok(start as i64)
    }
}

/// What of a network is scored.
#[derive(Debug)]
pub(super) struct Layout {
    /// Zeros around the photograph: before its first and after its last row and column.
    pub(super) padding: [i64; 2],
    /// Layers whose maps are scored once they are pooled, the coarsest last, with the axis of each after its pool.
    pub(super) taps: Vec<(&'static str, Axis)>,
    /// Kernel and stride of the pool after each of them.
    pub(super) pool: (i64, i64),
    /// What the maps of each are multiplied by before they are scored, and channels that are: of the coarsest first, after fc7.
    pub(super) scored: Vec<(f64, i64)>,
    /// Side of the kernel that fc6 becomes.
    pub(super) fc6: i64,
    /// Kernel of the last upsampling; its stride is that of the finest scores.
    pub(super) last_kernel: i64,
}

impl Layout {
    /// # Errors
    /// A network without this stride, or without fc6 and fc7.
    pub(super) fn of(arch: Arch, stride: Stride) -> Result<Self> {
        match (arch, stride) {
            (Arch::AlexNet, Stride::ThirtyTwo) => {
                // conv1 pads 2 itself.
                let first = Axis { scale: 1.0, origin: -(PADDING - 2) as f64 };
                let conv5 = first.window(11, 4, 2).window(3, 2, 0).window(3, 2, 0);
                let taps = vec![("conv5", conv5.window(3, 2, 0))];
                let scored = vec![(1.0, 4096)];
                Ok(Self { padding: padding(2), taps, pool: (3, 2), scored, fc6: 6, last_kernel: 63 })
            }
            (Arch::Vgg16, _) => {
                let mut axis = Axis { scale: 1.0, origin: -(PADDING - 1) as f64 }.window(3, 1, 1);
                let mut taps = Vec::new();
                for layer in ["conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"] {
                    axis = axis.window(2, 2, 0);
                    taps.push((layer, axis));
                }
                let (layers, last_kernel) = match stride {
                    Stride::ThirtyTwo => (1, 64),
                    Stride::Sixteen => (2, 32),
                    Stride::Eight => (3, 16),
                };
                taps.drain(..taps.len() - layers);
                let scored = [(1.0, 4096), (1e-2, 512), (1e-4, 256)][..layers].to_vec();
                Ok(Self { padding: padding(1), taps, pool: (2, 2), scored, fc6: 7, last_kernel })
            }
            (Arch::AlexNet, _) => {
                Err(Error::usage("AlexNet is segmented at stride 32 alone").with_hint("--fcn 32s, or a VGG-16"))
            }
            (other, _) => Err(Error::usage(format!("{} has no fc6 and fc7 to make convolutions of", other.name()))
                .with_hint("segmentation is for alexnet and vgg16")),
        }
    }
}

impl Layout {
    /// Values that fc6 takes.
    pub(super) fn fc6_inputs(&self) -> i64 {
        let maps = if self.fc6 == 6 { 256 } else { 512 };
        maps * self.fc6 * self.fc6
    }

    /// Entries of the maps of each tap after its pool, along a line of `pixels`.
    #[cfg(test)]
    pub(super) fn lengths(&self, pixels: i64) -> Vec<i64> {
        let padded = pixels + self.padding.iter().sum::<i64>();
        let pooled = |length: i64| (length - self.pool.0) / self.pool.1 + 1;
        if self.fc6 == 6 {
            return vec![pooled(pooled(pooled((padded + 4 - 11) / 4 + 1)))];
        }
        let mut lengths = vec![padded];
        (0..5).for_each(|at| lengths.push(pooled(lengths[at])));
        lengths.split_off(6 - self.taps.len())
    }
}

/// Pools that end inside a map leave its last entries out, where the published ones reach beyond it: more zeros there make up for that.
fn padding(of_first_convolution: i64) -> [i64; 2] {
    let before = PADDING - of_first_convolution;
    [before, before + 32]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets from the coarsest map to the photograph.
    fn offsets(arch: Arch, stride: Stride) -> Result<Vec<i64>> {
        let layout = Layout::of(arch, stride)?;
        let (_, coarsest) = layout.taps[layout.taps.len() - 1];
        let mut axis = coarsest.window(layout.fc6, 1, 0);
        let mut found = Vec::new();
        for (_, finer) in layout.taps.iter().rev().skip(1) {
            axis = axis.upsampled(4, 2);
            found.push(finer.start_of(axis)?);
        }
        let last = axis.upsampled(layout.last_kernel, axis.scale as i64);
        found.push(last.start_of(Axis::PHOTOGRAPH)?);
        Ok(found)
    }

    #[test]
    fn offsets_are_those_of_the_published_networks() -> Result<()> {
        assert_eq!(offsets(Arch::AlexNet, Stride::ThirtyTwo)?, [18]);
        assert_eq!(offsets(Arch::Vgg16, Stride::ThirtyTwo)?, [19]);
        assert_eq!(offsets(Arch::Vgg16, Stride::Sixteen)?, [5, 27]);
        assert_eq!(offsets(Arch::Vgg16, Stride::Eight)?, [5, 9, 31]);
        Ok(())
    }

    #[test]
    fn other_networks_are_refused_by_name() {
        for (arch, stride, word) in [(Arch::AlexNet, Stride::Eight, "32s"), (Arch::Small, Stride::ThirtyTwo, "alexnet")]
        {
            let error = Layout::of(arch, stride).expect_err(word);
            assert!(error.hint().is_some_and(|hint| hint.contains(word)), "{error}");
        }
    }
}
