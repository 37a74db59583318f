//! Networks without branches: convolutions with batch norm and ReLU, pools between, linear layers on top.
//!
//! AlexNet, VGG and `small` are tables of this. In: `[B, C, H, W]`. Out: the last linear layer before its ReLU,
//! `[B, D]`. Names on disk count modules as PyTorch's `nn.Sequential` does: each row takes a place for its convolution,
//! norm, ReLU and pool (`features.N`), or for its dropout, linear and ReLU (`classifier.N`).

use crate::error::{Error, Result};
use crate::model::affine::{Affine, Sweep};
use crate::model::init::{Builder, ConvShape};
use crate::model::layers::{BatchNorm2d, Conv2d, Linear, Pass};
use crate::model::script::{Script, Value};
use crate::model::taps::Taps;
use tch::Tensor;

/// A max-pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    pub(super) kernel: i64,
    pub(super) stride: i64,
    pub(super) padding: i64,
}

/// A convolution with batch norm and ReLU, and the pool after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvRow {
    pub(super) name: &'static str,
    pub(super) outputs: i64,
    pub(super) kernel: i64,
    pub(super) stride: i64,
    pub(super) padding: i64,
    pub(super) pool: Option<Pool>,
}

/// A linear layer, and whether dropout precedes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct FcRow {
    pub(super) name: &'static str,
    pub(super) outputs: i64,
    pub(super) dropout: bool,
}

/// An architecture.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) convs: &'static [ConvRow],
    /// Averages the last map to this side, so that any size of image gives the same features; without it the first
    /// linear layer has the size of the map.
    pub(super) average_to: Option<i64>,
    pub(super) fcs: &'static [FcRow],
}

impl Table {
    /// Side of the map that the linear layers see, before averaging, for images of `size` pixels; none if nothing is
    /// left.
    pub(super) fn last_side(&self, size: i64) -> Option<i64> {
        let mut side = size;
        for row in self.convs {
            side = shrink(side, row.kernel, row.stride, row.padding)?;
            if let Some(pool) = row.pool {
                side = shrink(side, pool.kernel, pool.stride, pool.padding)?;
            }
        }
        (side >= self.average_to.unwrap_or(1)).then_some(side)
    }
}

/// Side of a map after a window moved over it; none if the window does not fit.
fn shrink(side: i64, kernel: i64, stride: i64, padding: i64) -> Option<i64> {
    let room = side + 2 * padding - kernel;
    (room >= 0).then_some(room / stride + 1)
}

#[derive(Debug)]
struct ConvBlock {
    row: ConvRow,
    /// N of `features.N`, where its convolution is; its norm is at N + 1.
    place: i64,
    conv: Conv2d,
    norm: BatchNorm2d,
}

impl ConvBlock {
    /// Convolution and norm: what ReLU is applied to.
    fn drive(&self, x: &Tensor, pass: Pass) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x, pass)?, pass)
    }

    /// The pool after it, where there is one.
    fn pool(&self, x: &Tensor) -> Result<Tensor> {
        let Some(Pool { kernel, stride, padding }) = self.row.pool else { return Ok(x.shallow_clone()) };
        Ok(x.f_max_pool2d([kernel; 2], [stride; 2], [padding; 2], [1, 1], false)?)
    }

    fn affine(&self) -> Result<Affine> {
        let ConvRow { name, kernel, stride, padding, .. } = self.row;
        let bias = self.conv.bias.as_ref().ok_or_else(|| Error::device(format!("{name} has no bias")))?;
        Ok(Affine {
            name,
            weight: self.conv.weight.shallow_clone(),
            bias: bias.shallow_clone(),
            statistics: Some((self.norm.running_mean.shallow_clone(), self.norm.running_var.shallow_clone())),
            sweep: Some(Sweep { kernel, stride, padding }),
        })
    }
}

#[derive(Debug)]
struct FcBlock {
    row: FcRow,
    /// N of `classifier.N`.
    place: i64,
    linear: Linear,
}

impl FcBlock {
    fn affine(&self) -> Affine {
        Affine {
            name: self.row.name,
            weight: self.linear.weight.shallow_clone(),
            bias: self.linear.bias.shallow_clone(),
            statistics: None,
            sweep: None,
        }
    }
}

/// A table with weights.
#[derive(Debug)]
pub(super) struct Plain {
    convs: Vec<ConvBlock>,
    average_to: Option<i64>,
    fcs: Vec<FcBlock>,
    dropout: f64,
}

impl Plain {
    pub(super) fn norms_mut(&mut self) -> Vec<&mut BatchNorm2d> {
        self.convs.iter_mut().map(|block| &mut block.norm).collect()
    }

    /// `side` is [`Table::last_side`] of the images that the linear layers are for.
    pub(super) fn new(table: &Table, channels: i64, side: i64, dropout: f64, builder: &mut Builder) -> Result<Self> {
        let mut convs = Vec::with_capacity(table.convs.len());
        let (mut inputs, mut place) = (channels, 0);
        for &row in table.convs {
            let ConvRow { outputs, kernel, stride, padding, .. } = row;
            let shape = ConvShape { inputs, outputs, kernel, stride, padding, bias: true };
            let conv = builder.conv(&format!("features.{place}"), shape)?;
            let norm = builder.batch_norm(&format!("features.{}", place + 1), outputs)?;
            convs.push(ConvBlock { row, place, conv, norm });
            inputs = outputs;
            place += 3 + i64::from(row.pool.is_some());
        }

        let side = table.average_to.unwrap_or(side);
        let mut fcs = Vec::with_capacity(table.fcs.len());
        (inputs, place) = (inputs * side * side, 0);
        for &row in table.fcs {
            place += i64::from(row.dropout);
            let linear = builder.linear(&format!("classifier.{place}"), inputs, row.outputs)?;
            fcs.push(FcBlock { row, place, linear });
            inputs = row.outputs;
            place += 2;
        }
        Ok(Self { convs, average_to: table.average_to, fcs, dropout })
    }

    /// Runs to the end, or until `taps` have all that they want: activations after ReLU and before pooling.
    pub(super) fn forward(&self, images: &Tensor, pass: Pass, taps: &mut Taps<'_>) -> Result<Tensor> {
        let mut x = images.shallow_clone();
        for block in &self.convs {
            let drive = block.drive(&x, pass)?;
            x = drive.f_relu()?;
            if taps.offer(block.row.name, &drive, &x) {
                return Ok(x);
            }
            drop(drive);
            x = block.pool(&x)?;
        }
        x = self.flatten(&x)?;
        self.check_width(&x, images)?;
        self.connect(&x, pass, taps)
    }

    /// What the affine layer at `position`, counted over convolutions and linear layers, sees of `images`.
    pub(super) fn input_of(&self, images: &Tensor, position: usize, pass: Pass) -> Result<Tensor> {
        let mut x = images.shallow_clone();
        for block in self.convs.iter().take(position) {
            x = block.pool(&block.drive(&x, pass)?.f_relu()?)?;
        }
        let Some(before) = position.checked_sub(self.convs.len()) else { return Ok(x) };
        x = self.flatten(&x)?;
        self.check_width(&x, images)?;
        for block in self.fcs.iter().take(before) {
            x = block.linear.forward(&x, pass.kind())?.f_relu()?;
        }
        Ok(x)
    }

    /// The affine layers, from the image up.
    pub(super) fn affines(&self) -> Result<Vec<Affine>> {
        let convs = self.convs.iter().map(ConvBlock::affine);
        convs.chain(self.fcs.iter().map(|block| Ok(block.affine()))).collect()
    }

    /// Last maps to rows of what the first linear layer takes.
    fn flatten(&self, maps: &Tensor) -> Result<Tensor> {
        let maps = match self.average_to {
            Some(side) => maps.f_adaptive_avg_pool2d([side; 2])?,
            None => maps.shallow_clone(),
        };
        Ok(maps.f_flatten(1, -1)?)
    }

    /// The linear layers alone: flattened last maps `[B, W]` to features `[B, D]`.
    pub(super) fn connect(&self, flat: &Tensor, pass: Pass, taps: &mut Taps<'_>) -> Result<Tensor> {
        let mut x = flat.shallow_clone();
        let last = self.fcs.len() - 1;
        for (position, block) in self.fcs.iter().enumerate() {
            if block.row.dropout {
                x = x.f_dropout(self.dropout, pass.drops_out())?;
            }
            x = block.linear.forward(&x, pass.kind())?;
            let active = x.f_relu()?;
            if taps.offer(block.row.name, &x, &active) {
                return Ok(active);
            }
            if position < last {
                x = active;
            }
        }
        Ok(x)
    }

    /// What [`Plain::forward`] does to `images`, up to its end or to `layer`, as text; the tensor that it leaves.
    pub(super) fn script(&self, images: &str, layer: Option<&str>, script: &mut Script) -> Value {
        let mut x = images.to_owned();
        for block in &self.convs {
            let ConvRow { stride, padding, .. } = block.row;
            x = script.conv(&x, &format!("features.{}", block.place), true, stride, padding);
            x = script.batch_norm(&x, &format!("features.{}", block.place + 1));
            x = script.relu(&x);
            if layer == Some(block.row.name) {
                return x;
            }
            if let Some(Pool { kernel, stride, padding }) = block.row.pool {
                x = script.max_pool(&x, kernel, stride, padding);
            }
        }
        if let Some(side) = self.average_to {
            x = script.average_to(&x, side);
        }
        x = script.flatten(&x);
        let last = self.fcs.len() - 1;
        for (position, block) in self.fcs.iter().enumerate() {
            if block.row.dropout {
                x = script.dropout(&x, self.dropout);
            }
            x = script.linear(&x, &format!("classifier.{}", block.place));
            let wanted = layer == Some(block.row.name);
            if wanted || position < last {
                x = script.relu(&x);
            }
            if wanted {
                return x;
            }
        }
        x
    }

    /// Convolutional layers, from the image up.
    pub(super) fn convs(&self) -> Vec<&'static str> {
        self.convs.iter().map(|block| block.row.name).collect()
    }

    /// Linear layers fit one size of image: says so instead of a product of matrices that does not fit.
    fn check_width(&self, flat: &Tensor, images: &Tensor) -> Result<()> {
        let (found, expected) = (flat.size()[1], self.fcs[0].linear.weight.size()[1]);
        if found == expected {
            return Ok(());
        }
        let shape = images.size();
        let what = format!(
            "images of {} x {} pixels give {found} values to {}, which takes {expected}",
            shape[2], shape[3], self.fcs[0].row.name
        );
        Err(Error::usage(what).with_hint("set views.size to the size that the network was built for"))
    }

    /// Width of the features.
    pub(super) fn feature_dim(&self) -> i64 {
        self.fcs[self.fcs.len() - 1].row.outputs
    }

    /// Names of its layers, from the image up.
    pub(super) fn layers(&self) -> Vec<&'static str> {
        self.convs().into_iter().chain(self.fcs.iter().map(|block| block.row.name)).collect()
    }
}
