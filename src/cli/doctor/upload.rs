//! How fast batches go up to a GPU, and whether the copy runs beside the work that is queued already.
//!
//! In: nothing. Out: a check where there is CUDA, none elsewhere.

use super::Check;
use crate::error::Result;
use crate::torch::HostBuffer;
use crate::torch::cuda::{self, Event, SideStream, copy_without_waiting};
use serde_json::json;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Two views of 256 images of 224 pixels.
const BYTES: usize = 2 * 256 * 224 * 224 * 3;
const COPIES: usize = 8;
const GIGA: f64 = 1e9;

/// Copies from pinned and from pageable memory, alone and beside matrix products.
pub(super) fn upload() -> Option<Check> {
    if !cuda::is_usable() {
        return None;
    }
    let name = "upload";
    Some(match measure() {
        Ok(found) => {
            let [pinned, pageable] = [found.pinned_s, found.pageable_s].map(|s| (COPIES * BYTES) as f64 / s / GIGA);
            let overlap = found.overlap();
            let value = format!(
                "{pinned:.1} GB/s from pinned memory, {pageable:.1} GB/s from pageable; {:.0} % of the copy beside computing",
                100.0 * overlap
            );
            let numbers = json!({"pinned_gb_per_s": pinned, "pageable_gb_per_s": pageable, "overlap": overlap});
            Check::ok(name, value).with_numbers(numbers)
        }
        Err(error) => Check::fail(name, error.to_string(), "pinned memory and CUDA streams are needed: see nvidia-smi"),
    })
}

/// Seconds of [`COPIES`] copies and of some matrix products.
struct Found {
    pinned_s: f64,
    pageable_s: f64,
    products_s: f64,
    both_s: f64,
}

impl Found {
    /// Share of the shorter of the two that the longer one hides.
    fn overlap(&self) -> f64 {
        let hidden = self.pinned_s + self.products_s - self.both_s;
        (hidden / self.pinned_s.min(self.products_s)).clamp(0.0, 1.0)
    }
}

fn measure() -> Result<Found> {
    let device = Device::Cuda(0);
    let shape = [BYTES as i64];
    let (pinned, pageable) =
        (HostBuffer::new(BYTES, true)?.tensor(&shape)?, HostBuffer::new(BYTES, false)?.tensor(&shape)?);
    let room = Tensor::f_empty(shape, (Kind::Uint8, device))?;
    let matrix = Tensor::f_ones([4096, 4096], (Kind::Float, device))?;
    let stream = SideStream::get()?;
    stream.wait_for(&Event::record()?)?;
    let copies = |from: &Tensor| -> Result<Event> {
        stream.run(|| (0..COPIES).try_for_each(|_| copy_without_waiting(from, &room)))?;
        stream.record()
    };
    let products = || -> Result<Event> {
        for _ in 0..COPIES {
            let _product = matrix.f_matmul(&matrix)?;
        }
        Event::record()
    };
    // Once without a clock: the first call of each loads code and allocates.
    copies(&pinned)?.wait()?;
    products()?.wait()?;

    let timed = |work: &dyn Fn() -> Result<()>| -> Result<f64> {
        let started = Instant::now();
        work()?;
        Ok(started.elapsed().as_secs_f64())
    };
    Ok(Found {
        pinned_s: timed(&|| copies(&pinned)?.wait())?,
        pageable_s: timed(&|| copies(&pageable)?.wait())?,
        products_s: timed(&|| products()?.wait())?,
        both_s: timed(&|| {
            let (computed, copied) = (products()?, copies(&pinned)?);
            computed.wait()?;
            copied.wait()
        })?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_the_hidden_share_of_the_shorter() {
        let found = |both_s| Found { pinned_s: 2.0, pageable_s: 4.0, products_s: 3.0, both_s };
        assert_eq!(found(5.0).overlap(), 0.0);
        assert_eq!(found(4.0).overlap(), 0.5);
        assert_eq!(found(3.0).overlap(), 1.0);
    }
}
