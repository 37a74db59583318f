//! SGD with momentum as named tensors, so that a snapshot can hold it.
//!
//! The network has one optimiser for the whole run, momentum included. A head of clusters has one without momentum that is made
//! anew with it, as in the paper's code; a head of classes, which is never renewed, has one like the network's. Weights must be
//! leaves that need gradients.

use crate::error::{Error, Result};
use crate::torch::{SgdSettings, fused_sgd};
use tch::Tensor;

/// Stochastic gradient descent over a fixed list of named weights.
#[derive(Debug)]
pub struct Sgd {
    names: Vec<String>,
    weights: Vec<Tensor>,
    momenta: Vec<Tensor>,
    momentum: f64,
    weight_decay: f64,
}

impl Sgd {
    /// Takes the weights (sharing their storage) with zero momenta.
    pub fn new(parameters: Vec<(String, Tensor)>, momentum: f64, weight_decay: f64) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let (names, weights): (Vec<_>, Vec<_>) = parameters.into_iter().unzip();
        let mut momenta = Vec::new();
        if momentum != 0.0 {
            for weight in &weights {
                momenta.push(weight.f_zeros_like()?);
            }
        }
        Ok(Self { names, weights, momenta, momentum, weight_decay })
    }

    /// Forgets the gradients.
    pub fn zero_grad(&mut self) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for weight in &self.weights {
            // Not tch's own: it detaches gradients, which those in the buckets of several ranks refuse.
            let mut gradient = weight.grad();
            if gradient.defined() {
                let _ = gradient.f_zero_()?;
            }
        }
        Ok(())
    }

    /// One step along the gradients; weights without one stay.
    pub fn step(&self, lr: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let mut weights = Vec::with_capacity(self.weights.len());
        let mut gradients = Vec::with_capacity(self.weights.len());
        let mut momenta = Vec::with_capacity(self.momenta.len());
        for (index, weight) in self.weights.iter().enumerate() {
            let gradient = weight.grad();
            if !gradient.defined() {
                continue;
            }
            weights.push(weight.shallow_clone());
            gradients.push(gradient);
            if let Some(momentum) = self.momenta.get(index) {
                momenta.push(momentum.shallow_clone());
            }
        }
        let settings = SgdSettings { lr, momentum: self.momentum, weight_decay: self.weight_decay };
        fused_sgd(&weights, &gradients, &momenta, settings)
    }

    /// The momenta by the names of their weights.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.names.iter().cloned().zip(self.momenta.iter().map(Tensor::shallow_clone)).collect()
    }

    /// Copies momenta in; every one must be there. None at all are those of a run that had no momentum: they start at zero.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        if state.is_empty() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        for (name, momentum) in self.names.iter().zip(&mut self.momenta) {
            let Some((_, saved)) = state.iter().find(|(saved_name, _)| saved_name == name) else {
                return Err(Error::data(format!("the optimiser's state lacks {name}")));
            };
            if saved.size() != momentum.size() {
                return Err(Error::data(format!("momentum {name} is {:?}, not {:?}", saved.size(), momentum.size())));
            }
            momentum.f_copy_(saved)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn descend(optimizer: &mut Sgd, weight: &Tensor, steps: usize) -> Result<()> {
        for _ in 0..steps {
            optimizer.zero_grad()?;
            (weight * weight).sum(Kind::Float).f_backward()?;
            optimizer.step(0.1)?;
        }
        Ok(())
    }

    #[test]
    fn goes_on_bit_for_bit_from_its_saved_state() -> Result<()> {
        let start = || Tensor::arange(5, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let straight = start();
        let mut optimizer = Sgd::new(vec![("w".into(), straight.shallow_clone())], 0.9, 1e-2)?;
        descend(&mut optimizer, &straight, 6)?;

        let first = start();
        let mut optimizer = Sgd::new(vec![("w".into(), first.shallow_clone())], 0.9, 1e-2)?;
        descend(&mut optimizer, &first, 3)?;
        let second = first.detach().copy().set_requires_grad(true);
        let mut resumed = Sgd::new(vec![("w".into(), second.shallow_clone())], 0.9, 1e-2)?;
        resumed.load_state(&optimizer.state())?;
        descend(&mut resumed, &second, 3)?;

        assert_eq!(Vec::<f32>::try_from(&straight.detach())?, Vec::<f32>::try_from(&second.detach())?);
        Ok(())
    }
}
