//! From a box of a picture to a square view: bilinear with antialiasing, in 16-bit arithmetic.
//!
//! In: RGB pixels, `[height, width, 3]` uint8, and a box whose edges may fall between pixels. Out: `[size, size, 3]` uint8.
//! The filter is a triangle as wide as the reduction, Pillow's `BILINEAR`; where the box ends inside the picture it sees the
//! pixels beyond, where the picture ends it is cut and made to sum to one again. Reading an axis backwards mirrors the view
//! for nothing.
//!
//! Rows are blended first, columns after. A value is a signed 8.8 fixed-point number around mid-gray, a weight counts in
//! 2^-15, and a product is rounded to 8.8: what AVX2's `pmulhrsw` does to sixteen values at once (`avx2.rs`). `weighted` is
//! the definition; `plain.rs` is made of it, gives the same bytes to the last, and serves processors without AVX2. Against exact
//! arithmetic a view is off by what rounding to whole levels costs, and a hundredth of a level.
//!
//! Memory: some rows of the view, kept from picture to picture.

mod avx2;
mod axis;
mod plain;
#[cfg(test)]
mod tests;

use axis::Axis;

/// One box of a picture along one axis, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Where it begins.
    pub start: f64,
    /// How long it is.
    pub extent: f64,
    /// Whether the view shows it from its end to its beginning.
    pub backwards: bool,
}

/// RGB pixels, `[height, width, 3]`, at the front of a buffer that may be longer.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// The bytes.
    pub rgb: &'a [u8],
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// What one thread needs to cut views, picture after picture.
#[derive(Debug, Default)]
pub struct Resampler {
    columns: Axis,
    rows: Axis,
    bands: avx2::Bands,
    line: Vec<i16>,
}

impl Resampler {
    /// Fills `view`, `[size, size, 3]`, with the box that `across` and `down` span. A box that reaches beyond the picture shows
    /// its edge there.
    ///
    /// # Panics
    /// `view` is not `size * size * 3` long, the picture is empty, or its buffer is too short for it.
    pub fn resample(&mut self, picture: Picture<'_>, across: Span, down: Span, view: &mut [u8], size: usize) {
        assert_eq!(view.len(), size * size * 3, "bytes of the view");
        assert!(picture.rgb.len() >= picture.width * picture.height * 3, "bytes of the picture");
        self.columns.set(across, size, picture.width);
        self.rows.set(down, size, picture.height);
        let Self { columns, rows, bands, line } = self;
        if !avx2::resample(picture, columns, rows, view, size, bands) {
            plain::resample(picture, columns, rows, view, size, line);
        }
    }

    /// Bytes that are kept for the next picture.
    pub fn kept_bytes(&self) -> usize {
        self.bands.bytes() + self.line.capacity() * size_of::<i16>()
    }
}

/// A byte as the arithmetic sees it: 8.8, around mid-gray.
fn level(byte: u8) -> i16 {
    i16::from_be_bytes([byte ^ 0x80, 0])
}

/// A value times a weight, rounded.
fn weighted(value: i16, weight: i16) -> i16 {
    const HALF: i32 = 1 << 14;
    ((i32::from(value) * i32::from(weight) + HALF) >> 15) as i16
}

/// A value as a byte, rounded.
fn byte(value: i16) -> u8 {
    const HALF: i16 = 1 << 7;
    value.saturating_add(HALF).to_be_bytes()[0] ^ 0x80
}
