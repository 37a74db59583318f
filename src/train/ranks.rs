//! What the trainers of several ranks have in common: weights, and the running statistics of batch norm.
//!
//! Weights begin alike and get the same averaged gradients, so they stay alike, which is checked now and then. Running statistics are
//! averaged after every step: whoever encodes for the bank must be the same network on all ranks. The dice of a rank are its own.

use super::Trainer;
use super::optimizer::Sgd;
use crate::error::{Error, Result};
use crate::model::Head;
use crate::seed;
use crate::torch::c10d::Reduction;
use tch::{Device, Tensor};
use xxhash_rust::xxh3::Xxh3;

impl Trainer {
    /// Photographs of a batch that this rank has.
    pub fn own_batch(&self) -> usize {
        self.plan.train.batch_size / self.world.size()
    }

    /// The seed of what is drawn on this rank alone. Rank 0 draws what one rank alone would.
    pub(super) fn own_seed(&self) -> u64 {
        match self.world.rank() {
            0 => self.plan.stream.seed,
            rank => seed::of(self.plan.stream.seed, "rank", rank as u64),
        }
    }

    /// Puts a head to work, whose gradients are averaged with those of the network.
    pub(super) fn put_head(&mut self, head: (Head, Sgd)) -> Result<()> {
        self.reducer = None;
        let weights = self.student.parameters().into_iter().chain(head.0.parameters());
        let weights: Vec<Tensor> = weights.map(|(_, weight)| weight).filter(Tensor::requires_grad).collect();
        self.head = Some(head);
        self.reducer = self.world.reducer(&weights)?;
        Ok(())
    }

    /// After a step: the same statistics on all ranks, and now and then a look at whether weights are.
    pub(super) fn agree(&mut self) -> Result<()> {
        if self.world.is_alone() {
            return Ok(());
        }
        self.average_buffers()?;
        let every = self.plan.ranks.check_every;
        if every > 0 && self.progress.step.is_multiple_of(every) {
            self.compare_weights()?;
        }
        Ok(())
    }

    /// With `ranks.sync_batch_norm` they are the same already.
    fn average_buffers(&self) -> Result<()> {
        if self.plan.ranks.sync_batch_norm {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let buffers: Vec<Tensor> = self.student.buffers().into_iter().map(|(_, buffer)| buffer).collect();
        if buffers.is_empty() {
            return Ok(());
        }
        let flat = buffers.iter().map(|buffer| Ok(buffer.f_reshape([-1])?)).collect::<Result<Vec<_>>>()?;
        let flat = Tensor::f_cat(&flat, 0)?;
        self.world.reduce(&flat, Reduction::Sum)?;
        let mean = flat.f_div_scalar(self.world.size() as i64)?;
        let mut start = 0;
        for mut buffer in buffers {
            let len = buffer.numel() as i64;
            buffer.f_copy_(&mean.f_narrow(0, start, len)?.f_view_as(&buffer)?)?;
            start += len;
        }
        Ok(())
    }

    /// # Errors
    /// The weights of some rank are not those of rank 0.
    pub fn compare_weights(&self) -> Result<()> {
        if self.world.is_alone() {
            return Ok(());
        }
        let others = self.world.at_odds(&self.digest()?.to_le_bytes())?;
        if others.is_empty() {
            return Ok(());
        }
        Err(Error::device(format!("the weights of ranks {others:?} are not those of rank 0 at step {}", self.progress.step))
            .with_hint("a processor or a GPU of these machines computes otherwise than the rest: go back to the last snapshot without it"))
    }

    /// A digest of all weights of the network.
    fn digest(&self) -> Result<u64> {
        let _guard = tch::no_grad_guard();
        let mut hasher = Xxh3::new();
        for (_, weight) in self.student.parameters() {
            let values = Vec::<f32>::try_from(weight.f_detach()?.f_to_device(Device::Cpu)?.f_reshape([-1])?)?;
            hasher.update(bytemuck::cast_slice(&values));
        }
        Ok(hasher.digest())
    }
}
