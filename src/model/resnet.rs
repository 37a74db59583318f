//! ResNet-18 and ResNet-50 as torchvision defines and names them, without the last linear layer.
//!
//! In: `[B, C, H, W]`, any size. Out: the global average of the last map, `[B, 512]` or `[B, 2048]`. In a bottleneck
//! the 3 x 3 convolution carries the stride. The average is of activations, so a ReLU after it changes nothing.

use crate::error::Result;
use crate::model::init::{Builder, ConvShape};
use crate::model::layers::{BatchNorm2d, Conv2d, Pass};
use crate::model::script::{Script, Value};
use crate::model::taps::Taps;
use tch::Tensor;

const STAGES: [&str; 4] = ["layer1", "layer2", "layer3", "layer4"];

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Two blocks a stage, of two 3 x 3 convolutions each.
    Eighteen,
    /// 3, 4, 6, 3 bottlenecks.
    Fifty,
}

impl Depth {
    fn blocks(self) -> [usize; 4] {
        match self {
            Self::Eighteen => [2, 2, 2, 2],
            Self::Fifty => [3, 4, 6, 3],
        }
    }

    /// Channels that leave a block, as a multiple of its width.
    fn expansion(self) -> i64 {
        match self {
            Self::Eighteen => 1,
            Self::Fifty => 4,
        }
    }
}

/// A convolution without bias, and its norm.
#[derive(Debug)]
struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm2d,
}

impl ConvNorm {
    fn forward(&self, x: &Tensor, pass: Pass) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x, pass)?, pass)
    }

    fn script(&self, conv: &str, norm: &str, x: &str, script: &mut Script) -> Value {
        let x = script.conv(x, conv, self.conv.bias.is_some(), self.conv.stride, self.conv.padding);
        script.batch_norm(&x, norm)
    }
}

/// Names of a convolution and its norm, and their shape; padding keeps the side.
struct ConvNormRow<'a> {
    conv: &'a str,
    norm: &'a str,
    channels: (i64, i64),
    kernel: i64,
    stride: i64,
}

fn conv_norm(row: &ConvNormRow<'_>, builder: &mut Builder) -> Result<ConvNorm> {
    let &ConvNormRow { channels: (inputs, outputs), kernel, stride, .. } = row;
    let shape = ConvShape { inputs, outputs, kernel, stride, padding: kernel / 2, bias: false };
    Ok(ConvNorm { conv: builder.conv(row.conv, shape)?, norm: builder.batch_norm(row.norm, outputs)? })
}

/// A residual block: convolutions in a row, and a shortcut around them.
#[derive(Debug)]
struct Block {
    path: Vec<ConvNorm>,
    shortcut: Option<ConvNorm>,
}

impl Block {
    fn new(depth: Depth, name: &str, inputs: i64, width: i64, stride: i64, builder: &mut Builder) -> Result<Self> {
        let outputs = width * depth.expansion();
        // (inputs, outputs), kernel, stride
        let path: &[((i64, i64), i64, i64)] = match depth {
            Depth::Eighteen => &[((inputs, width), 3, stride), ((width, width), 3, 1)],
            Depth::Fifty => &[((inputs, width), 1, 1), ((width, width), 3, stride), ((width, outputs), 1, 1)],
        };
        let mut convs = Vec::with_capacity(path.len());
        for (position, &(channels, kernel, stride)) in path.iter().enumerate() {
            let number = position + 1;
            let (conv, norm) = (format!("{name}.conv{number}"), format!("{name}.bn{number}"));
            convs.push(conv_norm(&ConvNormRow { conv: &conv, norm: &norm, channels, kernel, stride }, builder)?);
        }
        if stride == 1 && inputs == outputs {
            return Ok(Self { path: convs, shortcut: None });
        }
        let (conv, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
        let row = ConvNormRow { conv: &conv, norm: &norm, channels: (inputs, outputs), kernel: 1, stride };
        Ok(Self { path: convs, shortcut: Some(conv_norm(&row, builder)?) })
    }

    /// What its last ReLU is applied to.
    fn drive(&self, x: &Tensor, pass: Pass) -> Result<Tensor> {
        let last = self.path.len() - 1;
        let mut y = x.shallow_clone();
        for (position, layer) in self.path.iter().enumerate() {
            y = layer.forward(&y, pass)?;
            if position < last {
                y = y.f_relu()?;
            }
        }
        let around = match &self.shortcut {
            Some(layer) => layer.forward(x, pass)?,
            None => x.shallow_clone(),
        };
        Ok(y.f_add(&around)?)
    }

    /// What [`Block::drive`] and its ReLU do to `x`, as text; the tensor that it leaves.
    fn script(&self, name: &str, x: &str, script: &mut Script) -> Value {
        let last = self.path.len() - 1;
        let mut y = x.to_owned();
        for (position, layer) in self.path.iter().enumerate() {
            let number = position + 1;
            y = layer.script(&format!("{name}.conv{number}"), &format!("{name}.bn{number}"), &y, script);
            if position < last {
                y = script.relu(&y);
            }
        }
        let around = match &self.shortcut {
            Some(layer) => layer.script(&format!("{name}.downsample.0"), &format!("{name}.downsample.1"), x, script),
            None => x.to_owned(),
        };
        let sum = script.add(&y, &around);
        script.relu(&sum)
    }
}

/// A ResNet with weights.
#[derive(Debug)]
pub(super) struct ResNet {
    stem: ConvNorm,
    stages: Vec<Vec<Block>>,
    feature_dim: i64,
}

impl ResNet {
    pub(super) fn norms_mut(&mut self) -> Vec<&mut BatchNorm2d> {
        let blocks = self.stages.iter_mut().flatten();
        let in_blocks = blocks.flat_map(|block| block.path.iter_mut().chain(&mut block.shortcut));
        std::iter::once(&mut self.stem).chain(in_blocks).map(|layer| &mut layer.norm).collect()
    }

    pub(super) fn new(depth: Depth, channels: i64, builder: &mut Builder) -> Result<Self> {
        let row = ConvNormRow { conv: "conv1", norm: "bn1", channels: (channels, 64), kernel: 7, stride: 2 };
        let stem = conv_norm(&row, builder)?;
        let mut stages = Vec::with_capacity(STAGES.len());
        let mut inputs = 64;
        for (position, (stage, blocks)) in STAGES.iter().zip(depth.blocks()).enumerate() {
            let width = 64 << position;
            let mut stage_blocks = Vec::with_capacity(blocks);
            for number in 0..blocks {
                let stride = if number == 0 && position > 0 { 2 } else { 1 };
                stage_blocks.push(Block::new(depth, &format!("{stage}.{number}"), inputs, width, stride, builder)?);
                inputs = width * depth.expansion();
            }
            stages.push(stage_blocks);
        }
        Ok(Self { stem, stages, feature_dim: inputs })
    }

    /// Runs to the end, or until `taps` have all that they want.
    pub(super) fn forward(&self, images: &Tensor, pass: Pass, taps: &mut Taps<'_>) -> Result<Tensor> {
        let drive = self.stem.forward(images, pass)?;
        let mut x = drive.f_relu()?;
        if taps.offer("conv1", &drive, &x) {
            return Ok(x);
        }
        drop(drive);
        x = x.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
        for (name, blocks) in STAGES.iter().zip(&self.stages) {
            let Some((last, others)) = blocks.split_last() else { continue };
            for block in others {
                x = block.drive(&x, pass)?.f_relu()?;
            }
            let drive = last.drive(&x, pass)?;
            x = drive.f_relu()?;
            if taps.offer(name, &drive, &x) {
                return Ok(x);
            }
        }
        Ok(x.f_adaptive_avg_pool2d([1, 1])?.f_flatten(1, -1)?)
    }

    /// What [`ResNet::forward`] does to `images`, up to its end or to `layer`, as text; the tensor that it leaves.
    pub(super) fn script(&self, images: &str, layer: Option<&str>, script: &mut Script) -> Value {
        let mut x = self.stem.script("conv1", "bn1", images, script);
        x = script.relu(&x);
        if layer == Some("conv1") {
            return x;
        }
        x = script.max_pool(&x, 3, 2, 1);
        for (stage, blocks) in STAGES.iter().zip(&self.stages) {
            for (number, block) in blocks.iter().enumerate() {
                x = block.script(&format!("{stage}.{number}"), &x, script);
            }
            if layer == Some(stage) {
                return x;
            }
        }
        x = script.average_to(&x, 1);
        script.flatten(&x)
    }

    /// Width of the features.
    pub(super) fn feature_dim(&self) -> i64 {
        self.feature_dim
    }

    /// Names of its layers, from the image up.
    pub(super) fn layers() -> Vec<&'static str> {
        [&["conv1"][..], &STAGES].concat()
    }
}
