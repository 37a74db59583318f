//! Host memory that decoding threads fill and the trainer reads as a tensor, pinned where the device is CUDA.

use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// A block of bytes with a fixed address, owned by one tensor.
///
/// Exactly one owner writes: `as_mut_slice` needs `&mut self`, and tensors made by [`HostBuffer::tensor`] are used
/// by the trainer alone, which gives the buffer back to the decoders only when it is done with them.
#[derive(Debug)]
pub struct HostBuffer {
    bytes: Tensor,
}

impl HostBuffer {
    /// Allocates `len` bytes; `pinned` memory can be uploaded without blocking, and needs CUDA.
    pub fn new(len: usize, pinned: bool) -> Result<Self> {
        let bytes = Tensor::f_zeros([len as i64], (Kind::Uint8, Device::Cpu))?;
        let bytes = if pinned { bytes.f_pin_memory(Device::Cuda(0))? } else { bytes };
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

    /// The first `shape.product()` bytes as a tensor over the same memory.
    pub fn tensor(&self, shape: &[i64]) -> Result<Tensor> {
        let len: i64 = shape.iter().product();
        Ok(self.bytes.f_narrow(0, 0, len)?.f_view(shape)?)
    }
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
