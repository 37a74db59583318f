//! JPEG through libjpeg-turbo, scaled while it is decoded.
//!
//! Only the part that the views need is decoded: columns beside it are read, but neither transformed nor coloured, and
//! rows below it are not read at all. On 500-pixel photographs of 56 kB that saves 12 % of the decoding for two views and
//! 27 % for a train view alone. (Plain upsampling would save 5 % and the fast DCT 3 %, for other pixels: not used.)
//!
//! The inverse DCT of a block can give n × n pixels instead of 8 × 8, which saves much of the work on a photograph that
//! is at least twice as large as its views. [`eighths_for`] chooses n; [`Jpeg::decode`] fills a buffer that is used
//! again and again.
//!
//! A file that is cut short or corrupt in places still gives pixels: libjpeg fills what is missing with the last
//! colours or gray and warns. Such pixels are kept and the warning is reported. What libjpeg-turbo refuses altogether
//! (and CMYK, which it does not turn into RGB) is left to the `image` crate.

use super::Pixels;
use super::augment::{self, CropBox};
use crate::shards::{Reason, Trouble};
use crate::torch::turbo::{TurboDecoder, TurboHeader, TurboPart};

/// Scans that libjpeg-turbo is to refuse; [`super::header::check_scans`] has counted them before.
const MAX_SCANS: u32 = 100;

/// A decompressor, to be kept by one thread and used for many images.
///
/// After an error inside a header libjpeg-turbo goes on in the middle of that header with the next file, and refuses
/// every file from then on. So the decompressor is put back only after an orderly end, and made anew when it is
/// missing.
#[derive(Debug, Default)]
pub(super) struct Jpeg {
    turbo: Option<TurboDecoder>,
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

impl From<String> for Refusal {
    fn from(words: String) -> Self {
        Self::Failed(words)
    }
}

/// The part of a picture that its views need, in pixels after scaling; edges lie where the resampling filter ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Needed {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Jpeg {
    /// Decodes at `eighths / 8` of the stored size into `rgb`, at least the part that is needed (all of it for none), and
    /// says whether data were missing or corrupt.
    ///
    /// `stored` is the size that the caller found in the header; a file where libjpeg reads another one is refused.
    /// Damage below the last row that is needed is not seen, except that a file that does not end as a JPEG does is read
    /// to its end.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        stored: (u32, u32),
        eighths: u8,
        needed: Option<Needed>,
        mut rgb: Vec<u8>,
    ) -> Result<(Pixels, bool), Refusal> {
        let mut turbo = self.turbo.take().map_or_else(|| TurboDecoder::new(MAX_SCANS), Ok)?;
        let mut part = None;
        let choose = |header: TurboHeader| {
            let chosen = choose_part(header, stored, eighths, needed, ends_whole(bytes))?;
            part = Some(chosen);
            Ok::<TurboPart, Refusal>(chosen)
        };
        let truncated = turbo.decode(bytes, choose, &mut rgb)?;
        self.turbo = Some(turbo);
        let TurboPart { eighths, left, top, width, height } =
            part.ok_or_else(|| Refusal::Failed("no part was decoded".to_owned()))?;
        let scale = f64::from(eighths) / 8.0;
        Ok((Pixels { rgb, width, height, origin: (left, top), scale }, truncated))
    }
}

/// Whether the mark that ends a JPEG is there, in its last bytes.
fn ends_whole(bytes: &[u8]) -> bool {
    const LAST: usize = 32;
    bytes[bytes.len().saturating_sub(LAST)..].windows(2).any(|mark| mark == [0xff, 0xd9])
}

fn choose_part(
    header: TurboHeader,
    stored: (u32, u32),
    eighths: u8,
    needed: Option<Needed>,
    may_end_early: bool,
) -> Result<TurboPart, Refusal> {
    if header.inks {
        return Err(Refusal::Inks);
    }
    if (header.width, header.height) != stored {
        return Err(Refusal::Failed("its header gives two sizes".to_owned()));
    }
    let eighths = if header.lossless { 8 } else { eighths };
    let scaled = |length: u32| (u64::from(length) * u64::from(eighths)).div_ceil(8) as u32;
    let (width, height) = (scaled(header.width), scaled(header.height));
    let whole = TurboPart { eighths, left: 0, top: 0, width, height };
    let (Some(needed), Some(step), false) = (needed, header.column_step, header.lossless) else { return Ok(whole) };
    let step = scaled(step);
    let left = (needed.left.max(0.0) as u32).min(width - 1) / step * step;
    let top = (needed.top.max(0.0) as u32).min(height - 1);
    let right = (needed.right.ceil() as u32).clamp(left + 1, width);
    let bottom = if may_end_early { (needed.bottom.ceil() as u32).clamp(top + 1, height) } else { height };
    Ok(TurboPart { left, top, width: right - left, height: bottom - top, ..whole })
}

/// What all of `crops`, boxes at full size, need of the picture at `eighths`; none where there is no crop.
///
/// Beside the reach of the filter it takes in [`BLUR`] pixels, so that what is decoded is to the bit what the whole picture
/// would hold there.
pub(super) fn part_for(crops: impl Iterator<Item = CropBox>, eighths: u8, size: u32) -> Option<Needed> {
    let bounds = crops.map(|crop| {
        let crop = crop.scaled(f64::from(eighths) / 8.0);
        let (beside, above) = (BLUR + augment::reach(crop.width, size), BLUR + augment::reach(crop.height, size));
        Needed {
            left: crop.left - beside,
            top: crop.top - above,
            right: crop.left + crop.width + beside,
            bottom: crop.top + crop.height + above,
        }
    });
    bounds.reduce(|a, b| Needed {
        left: a.left.min(b.left),
        top: a.top.min(b.top),
        right: a.right.max(b.right),
        bottom: a.bottom.max(b.bottom),
    })
}

/// Colours of half resolution are interpolated from their neighbours; at the edge of a part these are missing.
const BLUR: f64 = 4.0;

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

    #[test]
    fn a_part_holds_what_is_needed_and_begins_where_libjpeg_can() {
        let header = TurboHeader { width: 500, height: 375, inks: false, lossless: false, column_step: Some(16) };
        let crops = || [CropBox { left: 60.0, top: 30.0, width: 224.0, height: 300.0 }, square(224.0)].into_iter();
        let part = |crops, may_end_early| {
            choose_part(header, (500, 375), 8, part_for(crops, 8, 224), may_end_early).expect("a part")
        };
        let first = part(crops().take(1).collect::<Vec<_>>().into_iter(), true);
        assert_eq!((first.left % 16, first.left), (0, 48));
        assert!(first.top < 30 && first.top > 20 && first.left + first.width > 284 && first.left + first.width < 300);
        assert!(first.top + first.height > 330 && first.top + first.height < 345);
        let both = part(crops().collect::<Vec<_>>().into_iter(), true);
        assert_eq!((both.left, both.top), (0, 0), "the other box begins in the corner");
        let cut_short = part(crops().collect::<Vec<_>>().into_iter(), false);
        assert_eq!(cut_short.height, 375, "read to its end, so that the damage is seen");
        let whole = choose_part(header, (500, 375), 4, None, true).expect("a part");
        assert_eq!(whole, TurboPart { eighths: 4, left: 0, top: 0, width: 250, height: 188 });
    }

    #[test]
    fn the_end_of_a_jpeg_may_have_something_behind_it() {
        assert!(ends_whole(b"....\xff\xd9"));
        assert!(ends_whole(b"....\xff\xd9\0\0\r\n"));
        assert!(!ends_whole(b"\xff\xd8...."));
        assert!(!ends_whole(b""));
    }
}
