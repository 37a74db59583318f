//! Activations picked up on the way through a network: one pass gives as many layers as are wanted, and goes no further than
//! the last of them.

use tch::Tensor;

/// Which layers are wanted, and what has come of them.
#[derive(Debug)]
pub(super) struct Taps<'a> {
    wanted: &'a [&'a str],
    before_relu: bool,
    found: Vec<Option<Tensor>>,
}

impl<'a> Taps<'a> {
    /// A name may stand there twice.
    pub(super) fn new(wanted: &'a [&'a str]) -> Self {
        Self { wanted, before_relu: false, found: wanted.iter().map(|_| None).collect() }
    }

    /// As [`Taps::new`], for what the last ReLU of each layer is applied to.
    pub(super) fn before_relu(wanted: &'a [&'a str]) -> Self {
        Self { before_relu: true, ..Self::new(wanted) }
    }

    /// Keeps what the layer `name` gives, or its `drive` before ReLU, where it is wanted; true once everything wanted is there. Without a
    /// wish the pass goes to its end.
    pub(super) fn offer(&mut self, name: &str, drive: &Tensor, activation: &Tensor) -> bool {
        let kept = if self.before_relu { drive } else { activation };
        for (wanted, found) in self.wanted.iter().zip(&mut self.found) {
            if *wanted == name {
                *found = Some(kept.shallow_clone());
            }
        }
        !self.found.is_empty() && self.found.iter().all(Option::is_some)
    }

    /// The activations in the order of the wishes; those of layers that the network lacks are left out.
    pub(super) fn into_found(self) -> Vec<Tensor> {
        self.found.into_iter().flatten().collect()
    }
}
