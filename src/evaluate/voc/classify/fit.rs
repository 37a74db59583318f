//! Training: steps of SGD on batches of random crops, that can be left and gone on with at any of them.
//!
//! In: a split, a [`Classifier`], [`Settings`]. Photographs come in one order, shuffled once, round and round. Every draw is keyed by
//! the number of its step, so that a fit that was interrupted goes on as if it had not been; on one thread, two fits of one seed
//! are equal bit for bit.

use super::Settings;
use super::crops::Cropper;
use super::data::Split;
use super::network::Classifier;
use crate::error::{Error, Result};
use crate::evaluate::ahead::ahead;
use crate::evaluate::voc::state::{fitted, load_fitted};
use crate::model::{Backbone, Mode, Named, Normalizer};
use crate::seed;
use crate::train::optimizer::Sgd;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::time::{Duration, Instant};
use tch::{Kind, Reduction, Tensor};

/// Steps between two looks at the loss, each of which waits for the device; fewer where they take longer than [`LOOK_AFTER`].
const LOOK_EVERY: u64 = 20;

const LOOK_AFTER: Duration = Duration::from_millis(250);

/// Sum over classes of the cross-entropy of each sigmoid, over the size of the batch; `counts` is 0 where a label counts neither way. All `[B, 20]`.
pub fn loss(logits: &Tensor, targets: &Tensor, counts: &Tensor) -> Result<Tensor> {
    let none: Option<&Tensor> = None;
    let sum = logits.f_binary_cross_entropy_with_logits(targets, Some(counts), none, Reduction::Sum)?;
    Ok(sum.f_div_scalar(logits.size()[0])?)
}

/// Scales all gradients down together to a norm of at most `limit`; the norm that they had, `[]`. Weights without a gradient are passed over.
pub fn clip_gradients(weights: &[(String, Tensor)], limit: f64) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let gradients: Vec<Tensor> = weights.iter().map(|(_, weight)| weight.grad()).filter(Tensor::defined).collect();
    let norms = gradients.iter().map(|gradient| gradient.f_norm()).collect::<Result<Vec<_>, _>>()?;
    if norms.is_empty() {
        return Err(Error::usage("there is no gradient to clip"));
    }
    let norm = Tensor::f_stack(&norms, 0)?.f_norm()?;
    let factor = norm.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(limit)?.f_clamp_max(1.0)?;
    for mut gradient in gradients {
        let _ = gradient.f_mul_(&factor)?;
    }
    Ok(norm)
}

/// How far a fit is.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Steps done.
    pub done: u64,
    /// Mean loss of the last few.
    pub loss: f64,
}

/// What a watcher of a fit wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The next step.
    GoOn,
    /// To have the fit back, as it is now.
    Pause,
}

/// A network being fine-tuned.
#[derive(Debug)]
pub struct Fit {
    classifier: Classifier,
    optimizer: Sgd,
    settings: Settings,
    done: u64,
}

impl Fit {
    /// Before its first step.
    pub fn new(pretrained: &Backbone, settings: &Settings) -> Result<Self> {
        settings.check()?;
        let classifier = Classifier::new(pretrained, settings)?;
        let optimizer = Sgd::new(classifier.trained(), settings.momentum, settings.weight_decay)?;
        Ok(Self { classifier, optimizer, settings: *settings, done: 0 })
    }

    /// Trains to the last step, or until `watch` wants a pause.
    ///
    /// # Errors
    /// A photograph that cannot be decoded, a loss that is no number.
    pub fn run(
        &mut self,
        split: &Split,
        normalizer: &Normalizer,
        threads: usize,
        mut watch: impl FnMut(Step) -> Flow,
    ) -> Result<()> {
        let Settings { batch_size, area, seed, iterations, .. } = self.settings;
        let size = self.classifier.backbone().size();
        let cropper = Cropper::new(size, area, seed::of(seed, "voc crops", 0), threads)?;
        let order = order(split.len(), seed);
        let make = |iteration: u64| -> Result<(u64, Tensor, Tensor, Tensor)> {
            let first = iteration * batch_size as u64;
            let place = |at: usize| order[((first + at as u64) % order.len() as u64) as usize];
            let rows: Vec<usize> = (0..batch_size).map(place).collect();
            let (targets, counts) = split.targets(&rows)?;
            Ok((iteration, cropper.one_each(split, &rows, first)?, targets, counts))
        };
        let (mut losses, mut looked) = (Vec::new(), Instant::now());
        ahead(self.done..iterations, make, |(iteration, pixels, targets, counts)| {
            let device = self.classifier.backbone().device();
            let images = normalizer.prepare(&pixels.f_to_device(device)?)?;
            losses.push(self.step(&images, &targets.f_to_device(device)?, &counts.f_to_device(device)?)?);
            self.done = iteration + 1;
            let due = self.done.is_multiple_of(LOOK_EVERY) || looked.elapsed() >= LOOK_AFTER;
            if !due && self.done != iterations {
                return Ok(true);
            }
            looked = Instant::now();
            let loss = Tensor::f_stack(&losses, 0)?.f_mean(Kind::Double)?.f_double_value(&[])?;
            losses.clear();
            if !loss.is_finite() {
                let lr = self.settings.lr;
                let what = format!("the loss is no number after {} iterations at a learning rate of {lr}", self.done);
                return Err(Error::usage(what).with_hint("lower --lr"));
            }
            Ok(watch(Step { done: self.done, loss }) == Flow::GoOn)
        })
    }

    /// One step; the loss before it, without its history.
    fn step(&mut self, images: &Tensor, targets: &Tensor, counts: &Tensor) -> Result<Tensor> {
        // Keyed by the step, for dropout.
        tch::manual_seed(seed::of(self.settings.seed, "voc step", self.done) as i64);
        let loss = loss(&self.classifier.logits(images, Mode::FineTune)?, targets, counts)?;
        self.optimizer.zero_grad()?;
        loss.f_backward()?;
        let _ = clip_gradients(&self.classifier.trained(), self.settings.clip)?;
        self.optimizer.step(self.settings.lr_at(self.done))?;
        Ok(loss.f_detach()?)
    }

    /// The network as it is.
    pub fn classifier(&self) -> &Classifier {
        &self.classifier
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
        fitted(self.classifier.trained(), &self.optimizer)
    }

    /// Goes on from [`Fit::state`] after `done` steps.
    pub fn load_state(&mut self, saved: &[(String, Tensor)], done: u64) -> Result<()> {
        load_fitted(&self.classifier.trained(), &mut self.optimizer, saved)?;
        self.done = done;
        Ok(())
    }
}

/// The numbers below `count` in the order of `seed` (Fisher and Yates).
pub(in crate::evaluate::voc) fn order(count: usize, seed: u64) -> Vec<usize> {
    let mut random = ChaCha12Rng::seed_from_u64(seed::of(seed, "voc order", 0));
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        // Of 2^64 draws, some numbers get one more than others: nothing that could be seen.
        order.swap(last, (random.next_u64() % (last as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::super::Trained;
    use super::super::data::tests::kit_of;
    use super::*;
    use crate::config::{Arch, Input, ModelPlan, Precision};
    use crate::evaluate::voc::devkit::Presence;
    use tch::Device;

    /// Without dropout: its draws come from the one generator of the process, which other tests use at the same time.
    fn small() -> Result<Backbone> {
        let plan = ModelPlan { arch: Arch::Small, input: Input::Rgb, dropout: 0.0 };
        Backbone::new(&plan, 32, 3, Device::Cpu, Precision::Fp32)
    }

    fn normalizer() -> Result<Normalizer> {
        Normalizer::new(&[0.5; 3], &[0.25; 3], Device::Cpu)
    }

    fn split() -> Result<Split> {
        use Presence::{Difficult, Present};
        kit_of(&[(&[1], Present), (&[2, 4], Present), (&[4], Difficult), (&[1, 2], Present), (&[7], Present)])
    }

    fn settings() -> Settings {
        Settings { iterations: 6, batch_size: 3, lr: 0.05, halve_every: 4, ..Settings::default() }
    }

    fn fitted(settings: &Settings) -> Result<Fit> {
        let mut fit = Fit::new(&small()?, settings)?;
        fit.run(&split()?, &normalizer()?, 1, |_| Flow::GoOn)?;
        assert!(fit.is_complete());
        Ok(fit)
    }

    #[test]
    fn the_loss_is_summed_over_classes_and_averaged_over_the_batch() -> Result<()> {
        let logits = Tensor::from_slice(&[2.0f32, -1.0, 0.5, 3.0]).reshape([2, 2]).set_requires_grad(true);
        let targets = Tensor::from_slice(&[1.0f32, 0.0, 1.0, 1.0]).reshape([2, 2]);
        let counts = Tensor::from_slice(&[1.0f32, 1.0, 1.0, 0.0]).reshape([2, 2]);
        // -ln σ(2), -ln(1 - σ(-1)), -ln σ(0.5); the last one does not count.
        let softplus = |x: f64| x.exp().ln_1p();
        let expected = (softplus(-2.0) + softplus(-1.0) + softplus(-0.5)) / 2.0;
        let found = loss(&logits, &targets, &counts)?;
        assert!((found.double_value(&[]) - expected).abs() < 1e-6);
        found.f_backward()?;
        assert_eq!(logits.grad().double_value(&[1, 1]), 0.0, "no gradient where the label is ignored");
        let sigmoid = 1.0 / (1.0 + (-2.0f64).exp());
        assert!((logits.grad().double_value(&[0, 0]) - (sigmoid - 1.0) / 2.0).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn gradients_are_clipped_together() -> Result<()> {
        let weight = |values: &[f32]| Tensor::from_slice(values).set_requires_grad(true);
        let (a, b) = (weight(&[1.0, 1.0]), weight(&[1.0]));
        // Gradients (3, 0) and 4: a norm of 5.
        (a.get(0) * 3.0 + a.get(1) * 0.0 + b.get(0) * 4.0).f_backward()?;
        let named = [("a".to_owned(), a.shallow_clone()), ("b".to_owned(), b.shallow_clone())];
        let norm = |limit: f64| clip_gradients(&named, limit).map(|norm| norm.double_value(&[]));
        assert_eq!(norm(5.5)?, 5.0);
        assert_eq!(a.grad().double_value(&[0]), 3.0, "a norm below the limit stays");
        assert_eq!(norm(2.5)?, 5.0);
        assert!((a.grad().double_value(&[0]) - 1.5).abs() < 1e-5 && (b.grad().double_value(&[0]) - 2.0).abs() < 1e-5);
        Ok(())
    }

    #[test]
    fn frozen_weights_stay_and_the_others_move() -> Result<()> {
        for (train, norm_affine) in
            [(Trained::LinearLayers, false), (Trained::LinearLayers, true), (Trained::All, false)]
        {
            let settings = Settings { train, norm_affine, ..settings() };
            let before = Classifier::new(&small()?, &settings)?;
            let fit = fitted(&settings)?;
            let trained: Vec<String> = fit.classifier().trained().into_iter().map(|(name, _)| name).collect();
            for ((name, now), (_, then)) in fit.classifier().backbone().state()?.iter().zip(before.backbone().state()?)
            {
                assert_eq!(now != &then, trained.contains(name), "{name} with {settings:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn an_interrupted_fit_goes_on_bit_for_bit() -> Result<()> {
        let settings = Settings { train: Trained::All, iterations: 24, ..settings() };
        let straight = fitted(&settings)?;
        let mut first = Fit::new(&small()?, &settings)?;
        first.run(&split()?, &normalizer()?, 1, |_| Flow::Pause)?;
        assert!((1..=LOOK_EVERY).contains(&first.done()), "{}", first.done());
        let mut second = Fit::new(&small()?, &settings)?;
        second.load_state(&first.state(), first.done())?;
        second.run(&split()?, &normalizer()?, 2, |_| Flow::GoOn)?;
        for ((name, expected), (_, found)) in straight.state().iter().zip(second.state()) {
            assert_eq!(expected, &found, "{name}");
        }
        let other = fitted(&Settings { seed: 32, ..settings })?;
        assert_ne!(straight.state()[0].1, other.state()[0].1);
        Ok(())
    }

    #[test]
    fn an_order_holds_every_number_once() {
        let mut found = order(57, 1);
        assert_ne!(found, order(57, 2));
        assert_ne!(found, (0..57).collect::<Vec<_>>());
        found.sort_unstable();
        assert_eq!(found, (0..57).collect::<Vec<_>>());
    }

    #[test]
    fn a_loss_that_is_no_number_is_an_error() -> Result<()> {
        // A step so large that the next logits overflow.
        let settings = Settings { lr: 1e30, clip: 1e30, train: Trained::All, ..settings() };
        let mut fit = Fit::new(&small()?, &settings)?;
        let error = fit.run(&split()?, &normalizer()?, 1, |_| Flow::GoOn).expect_err("it diverges");
        assert!(error.to_string().contains("no number") && error.hint().is_some(), "{error}");
        Ok(())
    }
}
