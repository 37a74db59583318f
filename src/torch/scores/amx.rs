//! Scores with AMX: a product of two tiles, of sixteen rows by 64 coordinates by sixteen columns, with an instruction.
//!
//! The kernel of the system lets a process use tiles when it has asked for it, and a thread's tiles have no shape until they are
//! given one ([`Tiles`]). Rust's own functions for all this are not stable yet; the instructions are written out.

use super::{COLUMNS, Panel, ROWS, Scorer, TOGETHER};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::ffi::c_long;
use std::marker::PhantomData;

/// Coordinates that a tile holds of a row.
pub(super) const DEPTH: usize = 64;
/// Rows of a tile.
const TILE_ROWS: usize = 16;

/// Whether the processor has AMX for bytes, and the system lets this process use it.
pub(super) fn is_here() -> bool {
    const TILES: u32 = 1 << 24;
    const BYTES: u32 = 1 << 25;
    let has = __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & (TILES | BYTES) == TILES | BYTES;
    has && may_use_tiles()
}

/// Asks Linux (5.16 and later) for the use of tiles, for every thread of the process.
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: c_long = 158;
    const REQUEST_PERMISSION: c_long = 0x1023;
    const TILE_DATA: c_long = 18;
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    // SAFETY: this request takes a number and touches no memory; older kernels refuse it.
    unsafe { syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

/// The tiles of this thread, shaped as [`Scorer`] wants them until this is dropped. Nothing else that uses tiles, as libtorch may,
/// must run on the thread meanwhile; it cannot go to another one.
pub(super) struct Tiles(PhantomData<*const ()>);

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// Only where [`is_here`] says so.
    pub(super) fn new() -> Self {
        let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.row_bytes[..8].fill(DEPTH as u16);
        shapes.rows[..8].fill(TILE_ROWS as u8);
        // SAFETY: 64 bytes that describe eight tiles of sixteen rows of 64 bytes, the largest that there are.
        unsafe { asm!("ldtilecfg [{shapes}]", shapes = in(reg) &raw const shapes, options(nostack, readonly)) };
        Self(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `new` has found that there are tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

impl Scorer<'_> {
    /// # Safety
    /// The processor must have AMX and AVX-512 F and BW, its tiles must be there, and the panel must be as wide as the rows.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn score_with_amx(&mut self, floors: &[i32; ROWS], panel: &Panel<'_>) -> u64 {
        let rows = self.block().as_ptr();
        let tile = TILE_ROWS * self.width;
        // Four tiles of rows by one of columns: four sums, so that none waits for itself. Rows beyond the block are computed too.
        // SAFETY: the block has four times sixteen rows of the width, a multiple of 64; the panel 1,024 bytes for each 64 of it;
        // the scores four times sixteen rows of 64 bytes. Nothing but the scores is written.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{columns} + {line}*1]",
                "tileloadd tmm5, [{first} + {width}*1]",
                "tileloadd tmm6, [{second} + {width}*1]",
                "tileloadd tmm7, [{third} + {width}*1]",
                "tdpbusd tmm0, tmm5, tmm4",
                "tileloadd tmm5, [{fourth} + {width}*1]",
                "tdpbusd tmm1, tmm6, tmm4",
                "tdpbusd tmm2, tmm7, tmm4",
                "tdpbusd tmm3, tmm5, tmm4",
                "add {columns}, 1024",
                "add {first}, 64",
                "add {second}, 64",
                "add {third}, 64",
                "add {fourth}, 64",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{scores} + {line}*1], tmm0",
                "tilestored [{scores} + {line}*1 + 1024], tmm1",
                "tilestored [{scores} + {line}*1 + 2048], tmm2",
                "tilestored [{scores} + {line}*1 + 3072], tmm3",
                columns = inout(reg) panel.coordinates.as_ptr() => _,
                first = inout(reg) rows => _,
                second = inout(reg) rows.add(tile) => _,
                third = inout(reg) rows.add(2 * tile) => _,
                fourth = inout(reg) rows.add(3 * tile) => _,
                steps = inout(reg) self.width / DEPTH => _,
                scores = in(reg) self.scores.as_mut_ptr(),
                width = in(reg) self.width,
                line = in(reg) COLUMNS * TOGETHER,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
            self.finish_with_avx512(floors, panel)
        }
    }
}
