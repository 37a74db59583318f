//! Training of a [`Segmenter`]: steps of SGD on a few whole photographs each, that can be left and gone on with at any of them.
//!
//! In: a list of photographs and masks, [`Settings`]. Photographs come one after the other, since their sizes differ, in an order that is
//! shuffled once, round and round; the gradients of a step are their mean. Every draw is keyed by the number of its photograph.

use super::Settings;
use super::data::{Photographs, VOID};
use super::measure::Confusion;
use super::network::Segmenter;
use crate::error::{Error, Result};
use crate::evaluate::ahead::ahead;
use crate::evaluate::voc::classify::{Flow, Step, order};
use crate::evaluate::voc::state::{fitted, load_fitted};
use crate::model::{Backbone, Mode, Named, Normalizer};
use crate::seed;
use crate::train::optimizer::Sgd;
use tch::{Device, Kind, Reduction, Tensor};

/// A network being fine-tuned.
#[derive(Debug)]
pub struct Fit {
    network: Segmenter,
    optimizer: Sgd,
    settings: Settings,
    done: u64,
}

impl Fit {
    /// Before its first step.
    pub fn new(pretrained: &Backbone, settings: &Settings) -> Result<Self> {
        settings.check()?;
        let network = Segmenter::new(pretrained, settings)?;
        let optimizer = Sgd::new(network.trained(), settings.momentum, settings.weight_decay)?;
        Ok(Self { network, optimizer, settings: *settings, done: 0 })
    }

    /// Trains to the last step, or until `watch`, which sees each of them, wants a pause.
    ///
    /// # Errors
    /// A photograph or a mask that cannot be read, a loss that is no number.
    pub fn run(
        &mut self,
        photographs: &Photographs,
        normalizer: &Normalizer,
        mut watch: impl FnMut(Step) -> Flow,
    ) -> Result<()> {
        let Settings { batch_size, seed, iterations, lr, .. } = self.settings;
        let order = order(photographs.len(), seed);
        let each_step = batch_size as u64;
        let make = |draw: u64| Ok((draw, photographs.read(order[(draw % order.len() as u64) as usize])?));
        let mut sum = 0.0;
        ahead(self.done * each_step..iterations * each_step, make, |(draw, (photograph, mask))| {
            if draw % each_step == 0 {
                self.optimizer.zero_grad()?;
                sum = 0.0;
            }
            let device = self.network.backbone().device();
            let pixels = photograph.tensor()?.f_unsqueeze(0)?.f_to_device(device)?;
            let shape = [1, i64::from(mask.height), i64::from(mask.width)];
            let classes = Tensor::f_from_slice(&mask.classes)?.f_view(shape)?.f_to_device(device)?;
            // Keyed by the photograph, for dropout.
            tch::manual_seed(seed::of(seed, "segmentation", draw) as i64);
            let scores = self.network.scores(&normalizer.prepare(&pixels)?, Mode::FineTune)?;
            let loss = loss(&scores, &classes)?.f_div_scalar(batch_size as i64)?;
            loss.f_backward()?;
            sum += loss.f_double_value(&[])?;
            if (draw + 1) % each_step != 0 {
                return Ok(true);
            }
            self.optimizer.step(lr)?;
            self.done += 1;
            if !sum.is_finite() {
                let what = format!("the loss is no number after {} iterations at a learning rate of {lr}", self.done);
                return Err(Error::usage(what).with_hint("lower --lr"));
            }
            Ok(watch(Step { done: self.done, loss: sum }) == Flow::GoOn)
        })
    }

    /// What the network tells of the pixels of a list; `go_on` is told how many photographs are done.
    ///
    /// # Errors
    /// A photograph that cannot be read; an interruption, where `go_on` says no.
    pub fn measure(
        &self,
        photographs: &Photographs,
        normalizer: &Normalizer,
        mut go_on: impl FnMut(usize) -> bool,
    ) -> Result<Confusion> {
        let _no_grad = tch::no_grad_guard();
        let mut found = Confusion::default();
        let mut done = 0;
        ahead(
            0..photographs.len(),
            |row| photographs.read(row),
            |(photograph, mask)| {
                let pixels = photograph.tensor()?.f_unsqueeze(0)?.f_to_device(self.network.backbone().device())?;
                let scores = self.network.scores(&normalizer.prepare(&pixels)?, Mode::Eval)?;
                let told = scores.f_argmax(1, false)?.f_to_kind(Kind::Uint8)?.f_to_device(Device::Cpu)?;
                found.add(&mask.classes, &Vec::<u8>::try_from(told.f_flatten(0, -1)?)?)?;
                done += 1;
                Ok(go_on(done))
            },
        )?;
        if done < photographs.len() {
            return Err(Error::Interrupted { snapshot: None });
        }
        Ok(found)
    }

    /// The network as it is.
    pub fn network(&self) -> &Segmenter {
        &self.network
    }

    /// Steps done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Whether it has come to its last step.
    pub fn is_complete(&self) -> bool {
        self.done == self.settings.iterations
    }

    /// Weights that are trained, and their momenta as `momentum.NAME`.
    pub fn state(&self) -> Named {
        fitted(self.network.trained(), &self.optimizer)
    }

    /// Goes on from [`Fit::state`] after `done` steps.
    pub fn load_state(&mut self, saved: &[(String, Tensor)], done: u64) -> Result<()> {
        load_fitted(&self.network.trained(), &mut self.optimizer, saved)?;
        self.done = done;
        Ok(())
    }
}

/// Cross-entropy of `[B, 21, H, W]` scores, averaged over the pixels of `[B, H, W]` uint8 that are not void; 0 where all are.
pub fn loss(scores: &Tensor, classes: &Tensor) -> Result<Tensor> {
    let none: Option<&Tensor> = None;
    let targets = classes.f_to_kind(Kind::Int64)?;
    let sum = scores.f_cross_entropy_loss(&targets, none, Reduction::Sum, i64::from(VOID), 0.0)?;
    let counted = classes.f_ne(i64::from(VOID))?.f_sum(Kind::Float)?.f_clamp_min(1.0)?;
    Ok(sum.f_div(&counted)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn void_pixels_give_no_gradient() -> Result<()> {
        let scores = Tensor::zeros([1, 21, 1, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let classes = Tensor::from_slice(&[4u8, VOID, 0]).view([1, 1, 3]);
        let found = loss(&scores, &classes)?;
        assert!((found.double_value(&[]) - 21f64.ln()).abs() < 1e-6);
        found.f_backward()?;
        assert_eq!(scores.grad().select(3, 1).abs().max().double_value(&[]), 0.0);
        assert!((scores.grad().double_value(&[0, 4, 0, 0]) - (1.0 / 21.0 - 1.0) / 2.0).abs() < 1e-6);
        let nothing = Tensor::full([1, 1, 3], i64::from(VOID), (Kind::Uint8, Device::Cpu));
        assert_eq!(loss(&scores, &nothing)?.double_value(&[]), 0.0);
        Ok(())
    }
}
