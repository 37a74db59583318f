//! JPEG through libjpeg-turbo, scaled while it is decoded.
//!
//! The inverse DCT of a block can give n × n pixels instead of 8 × 8, which saves much of the work on a photograph that
//! is at least twice as large as its views. [`eighths_for`] chooses n; [`Jpeg::decode`] fills a buffer that is used
//! again and again.
//!
//! A file that is cut short or corrupt in places still gives pixels: libjpeg fills what is missing with the last
//! colours or gray and warns. Such pixels are kept and the warning is reported. What libjpeg-turbo refuses altogether
//! (and CMYK, which it does not turn into RGB) is left to the `image` crate.

use super::Pixels;
use super::augment::CropBox;
use crate::shards::{Reason, Trouble};
use turbojpeg::{Colorspace, Decompressor, PixelFormat, ScalingFactor};

/// A progressive file of a few kB can ask for thousands of passes over the picture; real ones have about ten.
const MAX_SCANS: u32 = 100;

/// A decompressor, to be kept by one thread and used for many images.
///
/// After an error inside a header libjpeg-turbo goes on in the middle of that header with the next file, and refuses
/// every file from then on. So the decompressor is put back only after an orderly end, and made anew when it is
/// missing.
#[derive(Debug, Default)]
pub(super) struct Jpeg {
    turbo: Option<Decompressor>,
}

/// Why there are no pixels.
#[derive(Debug)]
pub(super) enum Refusal {
    /// CMYK or YCCK.
    Inks,
    /// In libjpeg-turbo's words.
    Failed(String),
}

impl Refusal {
    /// Which of two reasons to give where the `image` crate refuses the file as well: libjpeg's words on a file that
    /// both find broken.
    pub(super) fn over(self, other: Trouble) -> Trouble {
        match self {
            Self::Failed(detail) if other.reason == Reason::DecodeFailed => Trouble { detail, ..other },
            Self::Failed(_) | Self::Inks => other,
        }
    }
}

impl From<turbojpeg::Error> for Refusal {
    fn from(error: turbojpeg::Error) -> Self {
        match error {
            turbojpeg::Error::TurboJpegError(text) => Self::Failed(text),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl Jpeg {
    /// Decodes at `eighths / 8` of the stored size into `rgb`, and says whether data were missing or corrupt.
    ///
    /// `stored` is the size that the caller found in the header; a file where libjpeg reads another one is refused.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        stored: (u32, u32),
        eighths: u8,
        rgb: Vec<u8>,
    ) -> Result<(Pixels, bool), Refusal> {
        let mut turbo = self.turbo.take().map_or_else(new_decompressor, Ok)?;
        let decoded = decode_with(&mut turbo, bytes, stored, eighths, rgb)?;
        self.turbo = Some(turbo);
        Ok(decoded)
    }
}

fn new_decompressor() -> Result<Decompressor, turbojpeg::Error> {
    let mut turbo = Decompressor::new()?;
    turbo.set_scan_limit(MAX_SCANS)?;
    Ok(turbo)
}

fn decode_with(
    turbo: &mut Decompressor,
    bytes: &[u8],
    stored: (u32, u32),
    eighths: u8,
    mut rgb: Vec<u8>,
) -> Result<(Pixels, bool), Refusal> {
    let header = turbo.read_header(bytes)?;
    if matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK) {
        return Err(Refusal::Inks);
    }
    if (header.width, header.height) != (stored.0 as usize, stored.1 as usize) {
        return Err(Refusal::Failed("its header gives two sizes".to_owned()));
    }
    let factor = if header.is_lossless { ScalingFactor::ONE } else { ScalingFactor::new(usize::from(eighths), 8) };
    turbo.set_scaling_factor(factor)?;
    let (width, height) = (factor.scale(header.width), factor.scale(header.height));
    let len = width * height * 3;
    if rgb.len() < len {
        rgb.resize(len, 0);
    }
    let pixels = &mut rgb[..len];
    let target = turbojpeg::Image { pixels, width, pitch: width * 3, height, format: PixelFormat::RGB };
    let truncated = match turbo.decompress(bytes, target) {
        Ok(()) => false,
        Err(turbojpeg::Error::TurboJpegError(text)) if is_warning(&text) => true,
        Err(error) => return Err(error.into()),
    };
    let scale = factor.num() as f64 / factor.denom() as f64;
    Ok((Pixels { rgb, width: width as u32, height: height as u32, scale }, truncated))
}

/// Whether libjpeg's words are those of a warning, after which every row of the picture has been written.
///
/// The crate gives warnings and errors alike as an error with libjpeg's text. An error ends the work and its text
/// replaces that of any warning before it, so a warning's text means that nothing worse came after. A warning in the
/// header alone would leave no pixels, but [`decode_with`] has read the header without one by then.
fn is_warning(text: &str) -> bool {
    const WARNINGS: [&str; 5] = [
        "Premature end of JPEG file",
        "Corrupt JPEG data: ",
        "Inconsistent progression sequence for component ",
        "Invalid SOS parameters for sequential JPEG",
        "Warning: unknown JFIF revision number ",
    ];
    WARNINGS.iter().any(|warning| text.starts_with(warning))
}

/// The smallest scale, in eighths, at which every box still has `size` pixels on both sides; 8 if there is none below.
pub(super) fn eighths_for(crops: impl Iterator<Item = CropBox>, size: u32) -> u8 {
    let shortest = crops.map(|crop| crop.width.min(crop.height)).fold(f64::INFINITY, f64::min);
    SCALES.into_iter().find(|&eighths| shortest * f64::from(eighths) / 8.0 >= f64::from(size)).unwrap_or(8)
}

/// Scales in use, in eighths: those for which libjpeg-turbo has SIMD code.
///
/// The others are plain C and cost more than a larger scale here: on 500-pixel photographs 3/8 took 0.41 ms and 4/8
/// 0.35 ms, 5/8, 6/8 and 7/8 took 0.67, 0.80 and 1.05 ms and the full size 0.45 ms.
const SCALES: [u8; 4] = [1, 2, 4, 8];

#[cfg(test)]
mod tests {
    use super::*;

    fn square(side: f64) -> CropBox {
        CropBox { left: 0.0, top: 0.0, width: side, height: side }
    }

    #[test]
    fn the_smallest_scale_that_covers_every_box_is_chosen() {
        let eighths = |sides: &[f64]| eighths_for(sides.iter().map(|&side| square(side)), 224);
        assert_eq!(eighths(&[448.0]), 4);
        assert_eq!(eighths(&[1792.0]), 1);
        assert_eq!(eighths(&[1792.0, 895.0]), 4);
        assert_eq!(eighths(&[1792.0, 447.0]), 8);
        assert_eq!(eighths(&[224.0]), 8);
        assert_eq!(eighths(&[100.0]), 8, "nothing is enlarged while it is decoded");
        assert_eq!(eighths(&[]), 1, "where no view is wanted the cheapest will do");
        let strip = CropBox { width: 10_000.0, ..square(448.0) };
        assert_eq!(eighths_for([strip].into_iter(), 224), 4, "the shorter side decides");
    }
}
