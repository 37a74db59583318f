//! Fine-tunes a network to detect objects.
//!
//! In: scenes, and how long and how fast to learn. Out: the weights, in place, and the course of the loss. A step sees two
//! photographs, one of them perhaps mirrored, and 64 regions of each; order, mirrors, regions and dropout depend on the seed and
//! the step alone, so that a resumed training is the one that was never stopped. Photographs go through the convolutions one by
//! one, hence nothing is padded. Weights decay, biases learn twice as fast and do not decay, as in the published solvers.
//!
//! The state (weights, momenta, step) is written aside and renamed every ten minutes, at the end, and when asked to stop.

use super::detector::{Detector, Trained, loss};
use super::sampling::{self, Sample};
use super::scene::{Scene, Sides, View};
use super::state::State;
use super::{Stage, Watch};
use crate::error::{Error, Result};
use crate::evaluate::ahead::ahead;
use crate::evaluate::voc::devkit::Devkit;
use crate::model::{Mode, Normalizer};
use crate::seed;
use crate::train::optimizer::Sgd;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::time::{Duration, Instant};
use tch::Tensor;

const SAVE_EVERY: Duration = Duration::from_secs(600);

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// What is trained.
    pub trained: Trained,
    /// Steps.
    pub iterations: u64,
    /// Step size.
    pub lr: f64,
    /// Steps after which it falls to a tenth, each time.
    pub lr_step: u64,
    /// Of the gradients.
    pub momentum: f64,
    /// Of all weights but biases.
    pub weight_decay: f64,
    /// Photographs a step.
    pub images: usize,
    /// Regions a step, over all its photographs.
    pub regions: usize,
    /// How large photographs are seen.
    pub sides: Sides,
    /// Chooses everything that is random.
    pub seed: u64,
}

impl Default for Options {
    /// Those of the published code.
    fn default() -> Self {
        Self {
            trained: Trained::All,
            iterations: 40_000,
            lr: 1e-3,
            lr_step: 30_000,
            momentum: 0.9,
            weight_decay: 5e-4,
            images: 2,
            regions: 128,
            sides: Sides { shorter: 600, longest: 1000 },
            seed: 1,
        }
    }
}

/// A training.
#[derive(Debug)]
pub struct Trainer<'a> {
    detector: &'a Detector<'a>,
    normalizer: &'a Normalizer,
    kit: &'a Devkit,
    scenes: Vec<&'a Scene>,
    options: &'a Options,
    /// Weights, which decay, and biases.
    optimizers: [Sgd; 2],
}

impl<'a> Trainer<'a> {
    /// Prepares the weights; scenes on which there is nothing to learn are left out.
    ///
    /// # Errors
    /// No scene is left.
    pub fn new(
        detector: &'a Detector<'a>,
        normalizer: &'a Normalizer,
        kit: &'a Devkit,
        scenes: &'a [Scene],
        options: &'a Options,
    ) -> Result<Self> {
        let scenes: Vec<&Scene> = scenes.iter().filter(|scene| sampling::is_usable(scene)).collect();
        if scenes.is_empty() {
            return Err(Error::data("no photograph to train on has an object that is not difficult"));
        }
        let (biases, weights) =
            detector.train_only(options.trained)?.into_iter().partition(|(name, _)| name.ends_with(".bias"));
        let optimizers =
            [Sgd::new(weights, options.momentum, options.weight_decay)?, Sgd::new(biases, options.momentum, 0.0)?];
        Ok(Self { detector, normalizer, kit, scenes, options, optimizers })
    }

    /// Photographs that are trained on.
    pub fn images(&self) -> usize {
        self.scenes.len()
    }

    /// Trains from where `state` is to the end; the state is kept in `file` if there is one.
    ///
    /// # Errors
    /// A photograph cannot be read, the loss is no number any more, the file cannot be written, or [`Error::Interrupted`].
    pub fn run(&mut self, state: &mut State, file: Option<&Path>, watch: &mut dyn Watch) -> Result<()> {
        let Options { iterations, images, .. } = *self.options;
        if state.iteration >= iterations {
            return Ok(());
        }
        let (kit, sides) = (self.kit, self.options.sides);
        let deck = Deck::new(&self.scenes, self.options.seed, state.iteration * images as u64);
        let items = deck.take(((iterations - state.iteration) * images as u64) as usize);
        let make = move |(scene, is_mirrored): (&'a Scene, bool)| Ok((scene, scene.view(kit, sides, is_mirrored)?));
        let mut saved = Instant::now();
        let mut pending: Vec<(&Scene, View)> = Vec::with_capacity(images);
        ahead(items, make, |viewed| {
            pending.push(viewed);
            if pending.len() < images {
                return Ok(true);
            }
            let loss = self.step(&pending, state.iteration)?;
            pending.clear();
            state.iteration += 1;
            state.losses.add(loss, state.iteration, iterations);
            watch.told(Stage::Training, (state.iteration as usize, iterations as usize), Some(loss));
            let (is_last, is_stopped) = (state.iteration == iterations, watch.is_stopped());
            if let Some(file) = file.filter(|_| is_last || is_stopped || saved.elapsed() > SAVE_EVERY) {
                state.write(file, self.detector, &self.optimizers)?;
                saved = Instant::now();
            }
            if is_stopped && !is_last {
                return Err(Error::Interrupted { snapshot: file.map(Path::to_path_buf) });
            }
            Ok(true)
        })
    }

    /// Takes over the weights and momenta of a state.
    pub fn load(&mut self, state: &mut State) -> Result<()> {
        state.load(self.detector, &mut self.optimizers)
    }

    /// One step; its loss.
    fn step(&mut self, viewed: &[(&Scene, View)], iteration: u64) -> Result<f64> {
        let Options { regions, lr, lr_step, seed, images, .. } = *self.options;
        let mut rng = ChaCha8Rng::seed_from_u64(seed::of(seed, "detection regions", iteration));
        tch::manual_seed(seed::of(seed, "detection dropout", iteration) as i64);
        let device = self.detector.backbone().device();
        let (mut pooled, mut samples, mut targets): (Vec<Tensor>, Vec<Sample>, Vec<[f32; 4]>) = Default::default();
        for (scene, view) in viewed {
            let drawn = sampling::draw(scene, regions / images, &mut rng);
            let on_view: Vec<_> = drawn.iter().map(|sample| scene.region(sample.region, view)).collect();
            let image = self.normalizer.prepare(&view.pixels.f_to_device(device)?)?;
            let map = self.detector.map(&image, Mode::FineTune)?;
            pooled.push(self.detector.pool(&map, &on_view)?);
            targets.extend(drawn.iter().map(|sample| sample.correction(view.is_mirrored)));
            samples.extend(drawn);
        }
        let (logits, corrections) = self.detector.judge(&Tensor::f_cat(&pooled, 0)?, Mode::FineTune)?;
        let loss = loss(&logits, &corrections, &samples, &targets)?;
        let value = loss.f_double_value(&[])?;
        if !value.is_finite() {
            return Err(Error::usage(format!("the loss is {value} at iteration {}", iteration + 1))
                .with_hint("lower --lr; networks that were never trained need a lower one than the published"));
        }
        for optimizer in &mut self.optimizers {
            optimizer.zero_grad()?;
        }
        loss.f_backward()?;
        let falls = i32::try_from(iteration / lr_step.max(1)).unwrap_or(i32::MAX);
        let lr = lr * 0.1f64.powi(falls);
        let [weights, biases] = &self.optimizers;
        weights.step(lr)?;
        biases.step(2.0 * lr)?;
        Ok(value)
    }
}

/// Scenes in the order of training: each twice in an epoch, once mirrored, shuffled anew for each.
struct Deck<'a> {
    scenes: Vec<&'a Scene>,
    seed: u64,
    next: u64,
    epoch: Option<u64>,
    order: Vec<usize>,
}

impl<'a> Deck<'a> {
    fn new(scenes: &[&'a Scene], seed: u64, next: u64) -> Self {
        Self { scenes: scenes.to_vec(), seed, next, epoch: None, order: Vec::new() }
    }
}

impl<'a> Iterator for Deck<'a> {
    type Item = (&'a Scene, bool);

    fn next(&mut self) -> Option<Self::Item> {
        let views = 2 * self.scenes.len() as u64;
        let epoch = self.next / views;
        if self.epoch != Some(epoch) {
            self.epoch = Some(epoch);
            self.order = (0..views as usize).collect();
            let mut rng = ChaCha8Rng::seed_from_u64(seed::of(self.seed, "detection order", epoch));
            self.order.shuffle(&mut rng);
        }
        let at = self.order[(self.next % views) as usize];
        self.next += 1;
        Some((self.scenes[at / 2], at % 2 == 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_shows_each_photograph_once_as_it_is_and_once_mirrored() {
        let scene = |name: String| Scene { name, size: (9, 9), objects: vec![], proposals: vec![] };
        let scenes: Vec<Scene> = (0..7).map(|number| scene(number.to_string())).collect();
        let scenes: Vec<&Scene> = scenes.iter().collect();
        let seen = |from: u64, count: usize| -> Vec<(String, bool)> {
            let deck = Deck::new(&scenes, 3, from);
            deck.take(count).map(|(scene, mirrored)| (scene.name.clone(), mirrored)).collect()
        };
        let all = seen(0, 28);
        for epoch in all.chunks(14) {
            let mut sorted = epoch.to_vec();
            sorted.sort();
            sorted.dedup();
            assert_eq!(sorted.len(), 14);
        }
        assert_ne!(all[..14], all[14..], "each epoch has its own order");
        assert_eq!(seen(9, 10), all[9..19], "from anywhere it goes on as it would have");
    }
}
