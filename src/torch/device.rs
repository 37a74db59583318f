//! The choice of the device that trains, and of how many threads libtorch may use.

use super::cuda;
use crate::config::{DeviceKind, DevicePlan};
use crate::error::{Error, Result};
use std::thread::available_parallelism;
use tch::{Cuda, Device};

/// Where a run computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The device.
    pub device: Device,
    /// Why this one, for people.
    pub reason: String,
    /// CPU threads of libtorch.
    pub torch_threads: usize,
    /// CPU threads that decode.
    pub decode_threads: usize,
}

/// Chooses as the plan says. `kind = "cuda"` fails where CUDA cannot be used; `"auto"` says what it took and why.
pub fn place(plan: &DevicePlan) -> Result<Placement> {
    place_among(plan, 1)
}

/// The same for one of several processes that share this machine: each takes its part of the threads, unless the plan says how many.
pub fn place_among(plan: &DevicePlan, processes: usize) -> Result<Placement> {
    let (device, reason) = choose(plan.kind)?;
    let cores = (available_parallelism().map_or(1, usize::from) / processes.max(1)).max(1);
    let (torch_threads, decode_threads) = match device {
        Device::Cpu => (cores, cores),
        _ => (2.min(cores), cores.saturating_sub(2).max(1)),
    };
    Ok(Placement {
        device,
        reason,
        torch_threads: if plan.threads > 0 { plan.threads } else { torch_threads },
        decode_threads: if plan.decode_threads > 0 { plan.decode_threads } else { decode_threads },
    })
}

fn choose(kind: DeviceKind) -> Result<(Device, String)> {
    if kind == DeviceKind::Cpu {
        return Ok((Device::Cpu, "device.kind = \"cpu\"".into()));
    }
    let trouble = match cuda::open() {
        Err(text) => text,
        Ok(()) if !Cuda::is_available() => "libtorch_cuda is loaded, but it finds no CUDA device or driver".to_owned(),
        Ok(()) => {
            Cuda::cudnn_set_benchmark(true);
            return Ok((Device::Cuda(0), format!("{} CUDA device(s) found", Cuda::device_count())));
        }
    };
    if kind == DeviceKind::Cuda {
        return Err(Error::device(format!("device.kind = \"cuda\", but CUDA cannot be used: {trouble}"))
            .with_hint("`shoal doctor` says more; `ops/setup.sh --cuda` installs libtorch's CUDA libraries; or set device.kind = \"cpu\""));
    }
    Ok((Device::Cpu, format!("CUDA cannot be used: {trouble}")))
}

/// Applies the number of threads to libtorch; call before the first tensor operation of the trainer.
pub fn set_threads(placement: &Placement) {
    tch::set_num_threads(i32::try_from(placement.torch_threads).unwrap_or(i32::MAX));
}
