//! Host memory that decoding threads fill and the trainer reads as a tensor, pinned where the device is CUDA.

use crate::error::{Error, Result};
use std::ffi::c_void;
use tch::{Device, Kind, Tensor};

unsafe extern "C" {
    fn aoti_torch_empty_strided_pinned(
        ndim: i64,
        sizes: *const i64,
        strides: *const i64,
        dtype: i32,
        device_type: i32,
        device_index: i32,
        new: *mut *mut c_void,
    ) -> i32;
    fn aoti_torch_dtype_uint8() -> i32;
    fn aoti_torch_device_type_cpu() -> i32;
}

/// The entries of a tensor of f32 on the host, without a copy; none if it is of another kind, elsewhere or not contiguous.
///
/// Whoever calls promises that nothing writes to the tensor, through this handle or another, while the slice lives.
pub fn floats(tensor: &Tensor) -> Option<&[f32]> {
    if tensor.kind() != Kind::Float || tensor.device() != Device::Cpu || !tensor.is_contiguous() || tensor.numel() == 0
    {
        return None;
    }
    // SAFETY: the tensor is contiguous, of f32 on the host, and lives as long as it is borrowed.
    Some(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), tensor.numel()) })
}

/// A block of bytes with a fixed address, owned by one tensor.
///
/// The bytes are written through [`HostBuffer::as_mut_slice`] and read through tensors over the same memory. Rust's rules
/// do not see the latter: whoever takes a tensor from [`HostBuffer::tensor`] promises not to let it, or a copy to a
/// device that was started from it, be at work while the bytes are written again. Here a slot keeps that promise: it goes
/// back to the decoders only after the batch made of it is dropped and its upload has ended.
#[derive(Debug)]
pub struct HostBuffer {
    bytes: Tensor,
}

impl HostBuffer {
    /// Allocates `len` bytes of zeros; `pinned` memory can be uploaded without blocking, and needs CUDA.
    pub fn new(len: usize, pinned: bool) -> Result<Self> {
        let bytes = if pinned { pinned_zeros(len)? } else { zeros(len)? };
        Ok(Self { bytes })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.numel()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let len = self.len();
        if len == 0 {
            return &mut [];
        }
        // SAFETY: the tensor is contiguous, of kind Uint8, owns `len` bytes, and lives as long as `self`, which is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.data_ptr().cast::<u8>(), len) }
    }

    /// The first `shape.product()` bytes as a tensor over the same memory: it shows what is written later, too.
    pub fn tensor(&self, shape: &[i64]) -> Result<Tensor> {
        let len: i64 = shape.iter().product();
        Ok(self.bytes.f_narrow(0, 0, len)?.f_view(shape)?)
    }
}

/// Ordinary memory, in large pages where the system gives them on request: batches are written all over.
fn zeros(len: usize) -> Result<Tensor> {
    let mut bytes = Tensor::f_empty([len as i64], (Kind::Uint8, Device::Cpu))?;
    let first = (bytes.data_ptr() as usize).next_multiple_of(LARGE_PAGE);
    let rest = (bytes.data_ptr() as usize + len).saturating_sub(first) / LARGE_PAGE * LARGE_PAGE;
    if rest > 0 {
        // SAFETY: the pages lie within memory that the tensor owns, and the advice changes nothing of what is read there.
        // It is no more than that: without large pages all is as before.
        let _ = unsafe { rustix::mm::madvise(first as *mut c_void, rest, rustix::mm::Advice::LinuxHugepage) };
    }
    let _ = bytes.f_zero_()?;
    Ok(bytes)
}

/// Bytes of a large page on x86-64.
const LARGE_PAGE: usize = 2 << 20;

/// Page-locked memory from libtorch's own allocator of it, which keeps what is given back for the next one.
///
/// `Tensor::pin_memory` would warn on stderr, each time, that tch still names a device to it.
fn pinned_zeros(len: usize) -> Result<Tensor> {
    let (size, stride) = (len as i64, 1);
    let mut handle = std::ptr::null_mut();
    // SAFETY: one dimension each is read from `size` and `stride`, and `handle` is a valid place for the new tensor.
    let code = unsafe {
        let (kind, cpu) = (aoti_torch_dtype_uint8(), aoti_torch_device_type_cpu());
        aoti_torch_empty_strided_pinned(1, &raw const size, &raw const stride, kind, cpu, 0, &raw mut handle)
    };
    if code != 0 || handle.is_null() {
        return Err(Error::device(format!("{len} bytes of page-locked memory cannot be had"))
            .with_hint("lower train.batch_size or views.size, or raise the limit of locked memory (ulimit -l)"));
    }
    // SAFETY: libtorch's handle and tch's both point to an `at::Tensor` on the heap, which is ours to delete.
    let mut bytes = unsafe { Tensor::from_ptr(handle.cast()) };
    let _ = bytes.f_zero_()?; // the same tensor again
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_the_tensor_shows() -> Result<()> {
        let mut buffer = HostBuffer::new(12, false)?;
        for (value, byte) in buffer.as_mut_slice().iter_mut().enumerate() {
            *byte = value as u8;
        }
        let tensor = buffer.tensor(&[2, 3])?;
        assert_eq!(Vec::<u8>::try_from(tensor.reshape([-1]))?, vec![0, 1, 2, 3, 4, 5]);
        Ok(())
    }
}
