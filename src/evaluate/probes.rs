//! Probes as the paper trains them (section 4.2, Table 1): classifiers on frozen activations, by SGD over augmented images.
//!
//! In: rows `[B, D]` of a layer (see [`Pooling`](super::pooling::Pooling)) and classes, batch by batch. Out: logits, and a [`Tally`] of
//! what is right. A probe is a linear layer, or with hidden layers a perceptron (supplementary material: on the last layer). SGD has
//! momentum 0.9 and the learning rate lr0 / √(1 + lr0 · weight decay · t) at iteration t (Bottou, 2012). Many probes see the same
//! rows, each with settings of its own, and never each other.
//!
//! What can go wrong: rows of another width than a probe is for; a loss that is no number, which names the probe.

use crate::error::{Error, Result};
use crate::model::Named;
use crate::model::init::normal_values;
use crate::seed;
use crate::train::optimizer::Sgd;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, Tensor};

const MOMENTUM: f64 = 0.9;
const DROPOUT: f64 = 0.5;

/// How a probe is fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// First learning rate.
    pub lr: f64,
    /// Penalty on all weights, which also sets how fast the learning rate falls.
    pub weight_decay: f64,
    /// Widths of hidden layers, each with ReLU and dropout; none for a linear probe.
    pub hidden: Vec<i64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lr: 0.01, weight_decay: 1e-4, hidden: Vec::new() }
    }
}

impl Settings {
    /// At iteration `t`, counted from 0.
    pub fn learning_rate(&self, t: u64) -> f64 {
        self.lr / (1.0 + self.lr * self.weight_decay * t as f64).sqrt()
    }
}

/// A classifier of the rows of one layer.
#[derive(Debug)]
pub struct Probe {
    /// The layer.
    pub layer: String,
    /// How it is fitted.
    pub settings: Settings,
    /// Weight `[outputs, inputs]` and bias `[outputs]` of each layer, the logits' last.
    linears: Vec<(Tensor, Tensor)>,
    optimizer: Sgd,
    iteration: u64,
    seed: u64,
}

impl Probe {
    /// For rows of `dim` values and `classes` classes; weights depend on `seed` and the layer alone.
    pub fn new(layer: &str, dim: i64, classes: i64, settings: Settings, seed: u64, device: Device) -> Result<Self> {
        let widths: Vec<i64> = [&[dim], settings.hidden.as_slice(), &[classes]].concat();
        let mut linears = Vec::with_capacity(widths.len() - 1);
        let mut parameters = Named::new();
        for (number, pair) in widths.windows(2).enumerate() {
            let &[inputs, outputs] = pair else { continue };
            // As the network's own layers start: small where logits come out, else so that ReLU keeps the scale.
            let is_last = number + 2 == widths.len();
            let deviation = if is_last { 0.01 } else { (2.0 / inputs as f64).sqrt() };
            let name = format!("probe.{layer}.{number}");
            let values = normal_values(seed, &name, (inputs * outputs) as usize, deviation);
            let weight = Tensor::f_from_slice(&values)?.f_view([outputs, inputs])?.f_to_device(device)?;
            let weight = weight.f_set_requires_grad(true)?;
            let bias = Tensor::f_zeros([outputs], (Kind::Float, device))?.f_set_requires_grad(true)?;
            parameters.push((format!("{name}.weight"), weight.shallow_clone()));
            parameters.push((format!("{name}.bias"), bias.shallow_clone()));
            linears.push((weight, bias));
        }
        let optimizer = Sgd::new(parameters, MOMENTUM, settings.weight_decay)?;
        let seed = seed::of(seed, layer, 0);
        Ok(Self { layer: layer.to_owned(), settings, linears, optimizer, iteration: 0, seed })
    }

    /// One step on rows `[B, D]` and classes `[B]` of i64; the mean cross-entropy before it, a scalar on the device.
    pub fn train(&mut self, rows: &Tensor, classes: &Tensor) -> Result<Tensor> {
        if !self.settings.hidden.is_empty() {
            tch::manual_seed(seed::of(self.seed, "dropout", self.iteration) as i64);
        }
        self.optimizer.zero_grad()?;
        let logits = self.forward(rows, true)?;
        let loss = logits.f_cross_entropy_loss(classes, None::<Tensor>, Reduction::Mean, -100, 0.0)?;
        loss.f_backward()?;
        self.optimizer.step(self.settings.learning_rate(self.iteration))?;
        self.iteration += 1;
        Ok(loss.f_detach()?)
    }

    /// Logits `[B, C]` of rows `[B, D]`, without a graph.
    pub fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        self.forward(rows, false)
    }

    fn forward(&self, rows: &Tensor, trains: bool) -> Result<Tensor> {
        let mut x = rows.shallow_clone();
        for (number, (weight, bias)) in self.linears.iter().enumerate() {
            if number > 0 {
                x = x.f_relu()?.f_dropout(DROPOUT, trains)?;
            }
            x = x.f_linear(weight, Some(bias))?;
        }
        Ok(x)
    }

    /// Weights and momenta under names that begin with `prefix`.
    pub fn state(&self, prefix: &str) -> Named {
        let mut state = Named::new();
        for (number, (weight, bias)) in self.linears.iter().enumerate() {
            state.push((format!("{prefix}.{number}.weight"), weight.detach()));
            state.push((format!("{prefix}.{number}.bias"), bias.detach()));
        }
        let momenta = self.optimizer.state().into_iter();
        state.extend(momenta.map(|(name, tensor)| (format!("{prefix}.momentum.{name}"), tensor)));
        state
    }

    /// Goes on from what [`Probe::state`] gave after `iteration` steps.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn load_state(&mut self, prefix: &str, iteration: u64, state: &[(String, Tensor)]) -> Result<()> {
        let mut targets = Named::new();
        for (number, (weight, bias)) in self.linears.iter().enumerate() {
            targets.push((format!("{prefix}.{number}.weight"), weight.detach()));
            targets.push((format!("{prefix}.{number}.bias"), bias.detach()));
        }
        crate::model::state::copy_into(&targets, state)?;
        let start = format!("{prefix}.momentum.");
        let momenta: Named = state
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(&start)?.to_owned(), tensor.shallow_clone())))
            .collect();
        self.optimizer.load_state(&momenta)?;
        self.iteration = iteration;
        Ok(())
    }
}

/// What is right of the images seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Images.
    pub images: u64,
    /// Those whose class has the highest score.
    pub top1: u64,
    /// Those whose class is among the five highest scores.
    pub top5: u64,
    /// Sum of their cross-entropies, of the middle crop where there are ten.
    pub loss: f64,
}

impl Tally {
    /// Counts a batch: logits `[B · crops, C]`, the crops of an image one after the other, and classes `[B]`, of which -1 is none of
    /// them. Scores of several crops are the mean of their softmax (section 4.2 of the paper: 10 crops).
    pub fn add(&mut self, logits: &Tensor, classes: &Tensor, crops: i64) -> Result<()> {
        let (images, count) = (classes.size1()?, logits.size2()?.1);
        let logits = logits.f_view([images, crops, count])?;
        let scores = logits.f_softmax(-1, Kind::Float)?.f_mean_dim(1, false, Kind::Float)?;
        let wanted = classes.f_unsqueeze(1)?;
        let best = scores.f_topk(count.min(5), 1, true, true)?.1;
        let hits = best.f_eq_tensor(&wanted)?;
        let total = |hits: Tensor| -> Result<u64> { Ok(i64::try_from(hits.f_sum(Kind::Int64)?)? as u64) };
        self.images += images as u64;
        self.top1 += total(hits.f_narrow(1, 0, 1)?)?;
        self.top5 += total(hits)?;
        let middle = if crops == 10 { 4 } else { 0 };
        let losses = logits.f_select(1, middle)?.f_log_softmax(-1, Kind::Float)?;
        let known = classes.f_ge(0)?;
        let picked = losses.f_gather(1, &wanted.f_clamp_min(0)?, false)?.f_squeeze_dim(1)?;
        self.loss -= f64::try_from(picked.f_mul(&known)?.f_sum(Kind::Double)?)?;
        Ok(())
    }

    /// Share of images whose class has the highest score.
    pub fn top1_share(&self) -> f64 {
        self.top1 as f64 / self.images.max(1) as f64
    }

    /// Share of images whose class is among the five highest.
    pub fn top5_share(&self) -> f64 {
        self.top5 as f64 / self.images.max(1) as f64
    }
}

/// Stops where a loss is no number, naming the probe.
pub fn check_finite(loss: f64, probe: &Probe) -> Result<()> {
    if loss.is_finite() {
        return Ok(());
    }
    let what = format!("the loss of the probe of {} with lr = {} is {loss}", probe.layer, probe.settings.lr);
    Err(Error::data(what).with_hint("a lower --lr"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::normal;

    fn settings(hidden: &[i64]) -> Settings {
        Settings { lr: 0.1, weight_decay: 1e-3, hidden: hidden.to_vec() }
    }

    fn probe(settings: Settings) -> Result<Probe> {
        Probe::new("conv1", 6, 3, settings, 5, Device::Cpu)
    }

    #[test]
    fn the_rate_falls_as_bottou_s() {
        let settings = settings(&[]);
        assert!((settings.learning_rate(0) - 0.1).abs() < 1e-15);
        assert!((settings.learning_rate(30_000) - 0.1 / 2.0).abs() < 1e-12); // √(1 + 0.1 · 0.001 · 30,000) = 2
    }

    /// The gradient of the cross-entropy, decay and momentum written out in float64.
    #[test]
    fn steps_are_those_of_sgd_by_hand() -> Result<()> {
        let (rows, classes) = (normal(1, 8, 6), Tensor::from_slice(&[0i64, 1, 2, 0, 1, 2, 2, 2]));
        let mut probe = probe(settings(&[]))?;
        let double = |tensor: &Tensor| tensor.detach().to_kind(Kind::Double).copy();
        let (mut weight, mut bias) = (double(&probe.linears[0].0), double(&probe.linears[0].1));
        let (mut weight_momentum, mut bias_momentum) = (weight.zeros_like(), bias.zeros_like());
        let wide = rows.to_kind(Kind::Double);
        for t in 0..7 {
            let _ = probe.train(&rows, &classes)?;
            let shares = (wide.matmul(&weight.tr()) + &bias).softmax(1, Kind::Double);
            let residual = (shares - classes.one_hot(3).to_kind(Kind::Double)) / 8.0;
            weight_momentum = weight_momentum * 0.9 + residual.tr().matmul(&wide) + &weight * 1e-3;
            bias_momentum = bias_momentum * 0.9 + residual.sum_dim_intlist(0, false, Kind::Double) + &bias * 1e-3;
            let lr = 0.1 / (1.0 + 0.1 * 1e-3 * f64::from(t)).sqrt();
            weight -= &weight_momentum * lr;
            bias -= &bias_momentum * lr;
        }
        let off = |found: &Tensor, expected: &Tensor| (double(found) - expected).abs().max().double_value(&[]);
        assert!(off(&probe.linears[0].0, &weight) < 1e-6 && off(&probe.linears[0].1, &bias) < 1e-6);
        Ok(())
    }

    #[test]
    fn it_goes_on_bit_for_bit_from_its_state() -> Result<()> {
        for hidden in [&[][..], &[7, 4]] {
            let (rows, classes) = (normal(2, 8, 6), Tensor::from_slice(&[0i64, 1, 2, 0, 1, 2, 2, 2]));
            let mut straight = probe(settings(hidden))?;
            for _ in 0..6 {
                let _ = straight.train(&rows, &classes)?;
            }
            let mut first = probe(settings(hidden))?;
            for _ in 0..4 {
                let _ = first.train(&rows, &classes)?;
            }
            let state: Named = first.state("p").into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
            let mut second = probe(settings(hidden))?;
            assert!(second.load_state("q", 4, &state).is_err());
            second.load_state("p", 4, &state)?;
            for _ in 0..2 {
                let _ = second.train(&rows, &classes)?;
            }
            assert_eq!(straight.logits(&rows)?, second.logits(&rows)?, "{hidden:?}");
        }
        Ok(())
    }

    #[test]
    fn perceptrons_tell_what_no_line_can() -> Result<()> {
        let rows = Tensor::from_slice2(&[[0f32, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat([16, 1]);
        let classes = Tensor::from_slice(&[0i64, 1, 1, 0]).repeat([16]);
        let right = |hidden: &[i64]| -> Result<f64> {
            let settings = Settings { lr: 0.1, weight_decay: 0.0, hidden: hidden.to_vec() };
            let mut probe = Probe::new("conv1", 2, 2, settings, 3, Device::Cpu)?;
            for _ in 0..400 {
                let _ = probe.train(&rows, &classes)?;
            }
            let mut tally = Tally::default();
            tally.add(&probe.logits(&rows)?, &classes, 1)?;
            Ok(tally.top1_share())
        };
        assert!(right(&[])? < 0.9);
        assert_eq!(right(&[32])?, 1.0);
        Ok(())
    }

    #[test]
    fn ten_crops_are_averaged_after_their_softmax() -> Result<()> {
        // Nine crops are sure of nothing and lean to class 0; one is very sure of class 1.
        let mut logits = vec![[0.1f32, 0.0, -9.0, -9.0, -9.0, -9.0, -9.0]; 9];
        logits.push([-20.0, 20.0, -9.0, -9.0, -9.0, -9.0, -9.0]);
        let logits = Tensor::from_slice(logits.as_flattened()).view([10, 7]);
        let mut tally = Tally::default();
        tally.add(&logits, &Tensor::from_slice(&[1i64]), 10)?;
        assert_eq!((tally.images, tally.top1, tally.top5), (1, 1, 1));
        let expected = (0.1f64.exp() + 1.0 + 5.0 * (-9f64).exp()).ln();
        assert!((tally.loss - expected).abs() < 1e-5, "{}", tally.loss);
        tally.add(&logits, &Tensor::from_slice(&[-1i64]), 10)?;
        assert_eq!((tally.images, tally.top1, tally.top5), (2, 1, 1), "an unknown class is never right");
        Ok(())
    }
}
