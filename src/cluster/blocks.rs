//! Blocks of rows: how every large computation here keeps its memory bounded.

use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// Bytes that the largest intermediate of a blocked computation takes on a host, where the allocator hands larger pieces
/// back to the system each time, and fetching them anew costs more than the arithmetic.
const HOST_BLOCK_BYTES: i64 = 16 << 20;
/// The same on a GPU, which wants large products and whose memory libtorch keeps.
const DEVICE_BLOCK_BYTES: i64 = 128 << 20;

/// The ranges `(start, len)` that cover `rows` rows, each of which needs `row_bytes` of intermediate memory on `device`.
pub(crate) fn blocks(rows: i64, row_bytes: i64, device: Device) -> impl Iterator<Item = (i64, i64)> {
    let bytes = if device == Device::Cpu { HOST_BLOCK_BYTES } else { DEVICE_BLOCK_BYTES };
    let len = (bytes / row_bytes.max(1)).max(1);
    (0..rows).step_by(len as usize).map(move |start| (start, len.min(rows - start)))
}

/// Rows `start .. start + len` of a matrix on `device`, as `kind`.
pub(crate) fn block(rows: &Tensor, (start, len): (i64, i64), device: Device, kind: Kind) -> Result<Tensor> {
    Ok(rows.f_narrow(0, start, len)?.f_to_device(device)?.f_to_kind(kind)?)
}

/// These rows of a matrix, on its device.
pub(crate) fn gather(matrix: &Tensor, rows: &[i64]) -> Result<Tensor> {
    Ok(matrix.f_index_select(0, &Tensor::f_from_slice(rows)?.f_to_device(matrix.device())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_row_once_however_large_a_row_is() {
        for (rows, row_bytes) in [(0, 8), (1, 8), (1000, 1 << 20), (3, 1 << 40)] {
            let mut next = 0;
            for (start, len) in blocks(rows, row_bytes, Device::Cpu) {
                assert!(start == next && len > 0);
                next += len;
            }
            assert_eq!(next, rows);
        }
    }
}
