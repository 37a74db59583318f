//! Activations picked up on the way through a network: one pass gives as many layers as are wanted, and goes no further than
//! the last of them.

use tch::Tensor;

/// Which layers are wanted, and what has come of them.
#[derive(Debug)]
pub(super) struct Taps<'a> {
    wanted: &'a [&'a str],
    found: Vec<Option<Tensor>>,
}

impl<'a> Taps<'a> {
    /// A name may stand there twice.
    pub(super) fn new(wanted: &'a [&'a str]) -> Self {
        Self { wanted, found: wanted.iter().map(|_| None).collect() }
    }

    /// Keeps the activation of the layer `name` where it is wanted; true once everything wanted is there. Without a wish the pass
    /// goes to its end.
    pub(super) fn offer(&mut self, name: &str, activation: &Tensor) -> bool {
        for (wanted, found) in self.wanted.iter().zip(&mut self.found) {
            if *wanted == name {
                *found = Some(activation.shallow_clone());
            }
        }
        !self.found.is_empty() && self.found.iter().all(Option::is_some)
    }

    /// The activations in the order of the wishes; those of layers that the network lacks are left out.
    pub(super) fn into_found(self) -> Vec<Tensor> {
        self.found.into_iter().flatten().collect()
    }
}
