//! Operators by name, through libtorch's stable C interface: one call steps all weights.
//!
//! Every slot of the argument stack is 64 bits: numbers and booleans as they are, doubles by their bits, a tensor or a list as
//! a handle, an absent optional as 0. The call takes over the handles it is given. A failed call returns 1 and writes
//! its reason to stderr, so the arguments are checked here first.

use crate::error::{Error, Result};
use std::ffi::{CStr, c_char, c_void};
use tch::{Kind, Tensor};

type Handle = *mut c_void;

unsafe extern "C" {
    fn aoti_torch_new_tensor_handle(tensor: *const c_void, new: *mut Handle) -> i32;
    fn torch_new_list_reserve_size(len: usize, list: *mut Handle) -> i32;
    fn torch_list_push_back(list: Handle, element: u64) -> i32;
    fn torch_call_dispatcher(name: *const c_char, overload: *const c_char, stack: *mut u64, version: u64) -> i32;
}

/// The interface of libtorch 2.11.0, as its headers encode it.
const ABI_VERSION: u64 = (2 << 56) | (11 << 48);

/// One step of stochastic gradient descent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdSettings {
    /// Learning rate.
    pub lr: f64,
    /// Momentum; 0 for none.
    pub momentum: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

/// Steps all `weights` at once: `m ← momentum · m + (g + decay · w)`, `w ← w − lr · m`.
///
/// `momenta` holds one tensor a weight, or none at all where `settings.momentum` is 0. Starting momenta are zero, which
/// makes the first step that of PyTorch's `SGD`. Gradient mode must be off.
pub fn fused_sgd(weights: &[Tensor], gradients: &[Tensor], momenta: &[Tensor], settings: SgdSettings) -> Result<()> {
    let with_momentum = settings.momentum != 0.0;
    if gradients.len() != weights.len() || (with_momentum && momenta.len() != weights.len()) {
        return Err(Error::device("optimiser: as many gradients and momenta as weights are needed"));
    }
    let used_momenta = if with_momentum { momenta } else { &[] };
    for (weight, gradient) in weights.iter().zip(gradients) {
        check_fit(weight, gradient, "gradient")?;
    }
    for (weight, momentum) in weights.iter().zip(used_momenta) {
        check_fit(weight, momentum, "momentum")?;
    }
    if weights.is_empty() {
        return Ok(());
    }
    let mut stack = [
        list_of(weights)?,
        list_of(gradients)?,
        list_of(used_momenta)?,
        settings.weight_decay.to_bits(),
        settings.momentum.to_bits(),
        settings.lr.to_bits(),
        0f64.to_bits(),   // dampening
        u64::from(false), // nesterov
        u64::from(false), // maximise
        u64::from(false), // is_first_step: momenta are zero then, which gives the same
        0,                // grad_scale
        0,                // found_inf
    ];
    call(c"aten::_fused_sgd_", &mut stack)
}

/// The kernel walks over the memory of all three alike.
fn check_fit(weight: &Tensor, other: &Tensor, what: &str) -> Result<()> {
    let fits = weight.kind() == Kind::Float
        && other.kind() == Kind::Float
        && weight.size() == other.size()
        && weight.device() == other.device();
    if fits {
        return Ok(());
    }
    Err(Error::device(format!(
        "optimiser: weight {:?} {:?} and {what} {:?} {:?} do not fit",
        weight.kind(),
        weight.size(),
        other.kind(),
        other.size()
    )))
}

fn call(operator: &CStr, stack: &mut [u64]) -> Result<()> {
    // SAFETY: the names are C strings; the stack holds one 64-bit slot for each argument of the operator's schema, in order,
    // and its handles are owned by us and given up here.
    let code = unsafe { torch_call_dispatcher(operator.as_ptr(), c"".as_ptr(), stack.as_mut_ptr(), ABI_VERSION) };
    if code != 0 {
        return Err(Error::device(format!("libtorch refused {}", operator.to_string_lossy())));
    }
    Ok(())
}

fn list_of(tensors: &[Tensor]) -> Result<u64> {
    let mut list: Handle = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the new handle.
    check(unsafe { torch_new_list_reserve_size(tensors.len(), &raw mut list) })?;
    for tensor in tensors {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: tch's C tensor and libtorch's handle both point to an `at::Tensor`; the new handle is a counted reference
        // of its own, which the list takes over.
        check(unsafe { aoti_torch_new_tensor_handle(tensor.as_ptr().cast(), &raw mut handle) })?;
        // SAFETY: both handles are alive and owned by us.
        check(unsafe { torch_list_push_back(list, handle as u64) })?;
    }
    Ok(list as u64)
}

fn check(code: i32) -> Result<()> {
    if code != 0 {
        return Err(Error::device("libtorch refused a tensor handle"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn equals_the_formula() -> Result<()> {
        let _guard = tch::no_grad_guard();
        let options = (Kind::Float, Device::Cpu);
        let weight = Tensor::f_arange(6, options)?.f_view([2, 3])?;
        let momentum = Tensor::f_zeros([2, 3], options)?;
        let settings = SgdSettings { lr: 0.1, momentum: 0.9, weight_decay: 0.01 };
        let mut expected: Vec<f64> = (0..6).map(f64::from).collect();
        let mut velocity = vec![0f64; 6];
        for step in 1..4 {
            let gradient = f64::from(step) * 0.5;
            fused_sgd(
                &[weight.shallow_clone()],
                &[Tensor::f_full([2, 3], gradient, options)?],
                &[momentum.shallow_clone()],
                settings,
            )?;
            for (value, speed) in expected.iter_mut().zip(&mut velocity) {
                *speed = 0.9 * *speed + (gradient + 0.01 * *value);
                *value -= 0.1 * *speed;
            }
        }
        let found = Vec::<f64>::try_from(weight.view([6]).to_kind(Kind::Double))?;
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
        Ok(())
    }

    #[test]
    fn needs_no_momenta_without_momentum() -> Result<()> {
        let _guard = tch::no_grad_guard();
        let weight = Tensor::f_ones([4], (Kind::Float, Device::Cpu))?;
        let settings = SgdSettings { lr: 0.5, momentum: 0.0, weight_decay: 0.0 };
        fused_sgd(&[weight.shallow_clone()], &[weight.copy()], &[], settings)?;
        assert_eq!(Vec::<f32>::try_from(weight)?, vec![0.5; 4]);
        Ok(())
    }

    #[test]
    fn refuses_shapes_that_do_not_fit() {
        let _guard = tch::no_grad_guard();
        let options = (Kind::Float, Device::Cpu);
        let settings = SgdSettings { lr: 0.5, momentum: 0.0, weight_decay: 0.0 };
        let result = fused_sgd(&[Tensor::ones([4], options)], &[Tensor::ones([3], options)], &[], settings);
        assert!(result.is_err());
    }
}
