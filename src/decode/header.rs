//! What an image says of itself before any of it is decoded: its format, told by content, and, for JPEG, its size,
//! components and orientation.
//!
//! In come bytes of any kind, out come a [`Format`] or the reason why there is none, and a [`JpegHeader`]. Nothing here
//! allocates by what a file claims, reads past its end, or panics: every length is checked against the bytes that are
//! there.

use crate::shards::{Reason, Trouble};
use image::metadata::Orientation;

/// Formats that are read, told by their first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JPEG, of any kind.
    Jpeg,
    /// PNG, also animated: its default image.
    Png,
    /// WebP, lossy or lossless.
    WebP,
    /// GIF: its first frame.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF: its first page.
    Tiff,
}

impl Format {
    /// As it stands in an index.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
        }
    }
}

/// What a JPEG says in front of its first scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JpegHeader {
    /// Pixels in a row, as stored.
    pub width: u32,
    /// Rows, as stored.
    pub height: u32,
    /// 1 for gray, 3 for colour, 4 for CMYK and YCCK.
    pub components: u8,
    /// Its frame is progressive: several scans refine the whole picture.
    pub progressive: bool,
    /// EXIF orientation; none where there is no EXIF block, or a broken one.
    pub orientation: Option<Orientation>,
}

/// Tells the format of `bytes`, or what they are instead.
pub fn sniff(bytes: &[u8]) -> Result<Format, Trouble> {
    if bytes.is_empty() {
        return Err(Trouble::new(Reason::EmptyImage, "no bytes"));
    }
    let known = [
        (&b"\xff\xd8\xff"[..], Format::Jpeg),
        (b"\x89PNG\r\n\x1a\n", Format::Png),
        (b"GIF87a", Format::Gif),
        (b"GIF89a", Format::Gif),
        (b"II*\0", Format::Tiff),
        (b"MM\0*", Format::Tiff),
    ];
    if let Some((_, format)) = known.into_iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Ok(format);
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Ok(Format::WebP);
    }
    if is_bitmap(bytes) {
        return Ok(Format::Bmp);
    }
    if let Some(name) = foreign_image(bytes) {
        return Err(Trouble::new(Reason::UnsupportedFormat, format!("{name} is not among the formats read")));
    }
    Err(Trouble::new(Reason::NotAnImage, describe(bytes)))
}

/// "BM" begins many a text as well: the length of the second header settles it.
fn is_bitmap(bytes: &[u8]) -> bool {
    let Some(length) = bytes.get(14..18).and_then(|field| field.try_into().ok()).map(u32::from_le_bytes) else {
        return false;
    };
    bytes.starts_with(b"BM") && matches!(length, 12 | 16 | 40 | 52 | 56 | 64 | 108 | 124)
}

fn foreign_image(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8) == Some(b"ftyp") {
        return match bytes.get(8..12)? {
            b"avif" | b"avis" => Some("AVIF"),
            b"heic" | b"heix" | b"hevc" | b"mif1" | b"msf1" => Some("HEIF"),
            _ => None,
        };
    }
    let known = [
        (&b"\0\0\0\x0cJXL \r\n\x87\n"[..], "JPEG XL"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"8BPS", "Photoshop"),
        (b"\0\0\x01\0", "a Windows icon"),
        (b"II+\0", "BigTIFF"),
        (b"MM\0+", "BigTIFF"),
        (b"qoif", "QOI"),
        (b"DDS ", "DDS"),
        (b"<svg", "SVG"),
    ];
    known.into_iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, name)| name)
}

/// A few words for the ledger on bytes that are no image.
fn describe(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(256)];
    if start.iter().all(|&byte| byte == 0) {
        return format!("{} bytes, beginning with zeros", bytes.len());
    }
    let text = String::from_utf8_lossy(start);
    let text = text.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if text.starts_with("<!doctype html") || text.starts_with("<html") {
        return "an HTML page".to_owned();
    }
    if text.starts_with("<?xml") {
        return "an XML document".to_owned();
    }
    if !text.contains('\u{fffd}') && text.chars().all(|c| !c.is_control() || c.is_whitespace()) {
        return "plain text".to_owned();
    }
    format!("unknown first bytes {:02x?}", &bytes[..bytes.len().min(8)])
}

/// Refuses an image of more than `max_pixels`, or of none.
pub(super) fn check_pixels(width: u32, height: u32, max_pixels: u64) -> Result<(), Trouble> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(Trouble::new(Reason::DecodeFailed, format!("its header says {width} × {height} pixels")));
    }
    if pixels > max_pixels {
        let megapixels = pixels as f64 * 1e-6;
        let detail = format!(
            "{width} × {height} is {megapixels:.1} megapixels, stream.max_megapixels is {}",
            max_pixels as f64 * 1e-6
        );
        return Err(Trouble::new(Reason::TooManyPixels, detail));
    }
    Ok(())
}

/// Refuses a JPEG that sends its decoder over the picture so often that it would take minutes: the only limit on time that
/// there is, since nothing stops a decoder that is at work. Scans of real progressive files are about ten.
pub(super) fn check_scans(bytes: &[u8], header: &JpegHeader, max_pixels: u64) -> Result<(), Trouble> {
    let pixels = u64::from(header.width) * u64::from(header.height);
    let most = (MOST_VISITS * max_pixels / pixels.max(1)).min(MOST_SCANS);
    let scans = scans(bytes, header).take(MOST_SCANS as usize + 1).count() as u64;
    if scans > most {
        let megapixels = pixels as f64 * 1e-6;
        let many = if scans > MOST_SCANS { "more than " } else { "" };
        let scans = scans.min(MOST_SCANS);
        let limit = max_pixels as f64 * 1e-6;
        let detail =
            format!("{many}{scans} scans of {megapixels:.1} megapixels, stream.max_megapixels = {limit} allows {most}");
        return Err(Trouble::new(Reason::TooManyPixels, detail));
    }
    Ok(())
}

/// Scans that are read of any JPEG, as libjpeg-turbo's own tools limit them.
const MOST_SCANS: u64 = 100;
/// Pixels that all scans of a JPEG may visit, in largest images: a fraction of a minute.
const MOST_VISITS: u64 = 20;

/// The scans of a JPEG; one where the first has all components at full precision, since nothing behind it is read.
fn scans<'a>(bytes: &'a [u8], header: &JpegHeader) -> impl Iterator<Item = ()> + use<'a> {
    let (mut rest, mut is_over) = (bytes.get(2..).unwrap_or_default(), false);
    let (components, is_progressive) = (header.components, header.progressive);
    std::iter::from_fn(move || {
        while !is_over && let Some((marker, segment, after)) = next_segment(rest) {
            rest = after;
            match marker {
                SOS => {
                    is_over = !is_progressive && segment.first().is_none_or(|&count| count >= components);
                    return Some(());
                }
                EOI => is_over = true,
                _ => {}
            }
        }
        None
    })
}

/// Reads the segments of a JPEG up to its first scan; none if no frame header comes before that.
///
/// Bytes between segments that belong to none are stepped over, as libjpeg does.
pub fn read_jpeg(bytes: &[u8]) -> Option<JpegHeader> {
    let mut frame = None;
    let mut progressive = false;
    let mut orientation = None;
    let mut rest = bytes.get(2..)?;
    while let Some((marker, segment, after)) = next_segment(rest) {
        rest = after;
        match marker {
            SOS | EOI => break,
            APP1 if orientation.is_none() => orientation = exif_orientation(segment),
            _ if is_frame_header(marker) && frame.is_none() => {
                frame = Some(frame_header(segment)?);
                progressive = PROGRESSIVE.contains(&marker);
            }
            _ => {}
        }
    }
    let (width, height, components) = frame?;
    Some(JpegHeader { width, height, components, progressive, orientation })
}

/// Whether a JPEG has an end marker behind its first scan, where its data cannot look like one.
pub(super) fn has_end(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let Some((marker, _, after)) = next_segment(rest) {
        rest = after;
        if marker == SOS {
            return rest.windows(2).any(|pair| pair == [0xff, EOI]);
        }
    }
    false
}

const APP1: u8 = 0xe1;
const SOS: u8 = 0xda;
const EOI: u8 = 0xd9;
/// SOF2, SOF6, SOF10, SOF14.
const PROGRESSIVE: [u8; 4] = [0xc2, 0xc6, 0xca, 0xce];

/// SOF0 to SOF15; the three numbers left out are DHT, JPG and DAC.
fn is_frame_header(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

/// The next marker, the bytes of its segment (as many as are there), and what follows.
fn next_segment(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let mut at = 0;
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        at += bytes.get(at..)?.iter().position(|&byte| byte != 0xff)?;
        let marker = bytes[at];
        at += 1;
        match marker {
            0x00 => continue,
            // TEM, RST0 to RST7, SOI and EOI stand alone
            0x01 | 0xd0..=0xd9 => return Some((marker, &[], &bytes[at..])),
            _ => {}
        }
        let length = usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let end = (at + length.max(2)).min(bytes.len());
        return Some((marker, &bytes[at + 2..end], &bytes[end..]));
    }
}

fn frame_header(segment: &[u8]) -> Option<(u32, u32, u8)> {
    let &[_precision, height_high, height_low, width_high, width_low, components, ..] = segment else {
        return None;
    };
    let height = u16::from_be_bytes([height_high, height_low]);
    let width = u16::from_be_bytes([width_high, width_low]);
    Some((width.into(), height.into(), components))
}

fn exif_orientation(segment: &[u8]) -> Option<Orientation> {
    Orientation::from_exif_chunk(segment.strip_prefix(b"Exif\0\0")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SOI, APP1 with a big-endian EXIF block of one entry, SOF0 of 640 × 480, SOS.
    fn jpeg_head(orientation: u8) -> Vec<u8> {
        let mut bytes = vec![0xff, 0xd8, 0xff, 0xe1, 0, 34];
        bytes.extend_from_slice(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0");
        bytes.extend_from_slice(&[orientation, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&[0xff, 0xc0, 0, 17, 8, 1, 224, 2, 128, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1]);
        bytes.extend_from_slice(&[0xff, 0xda, 0, 12, 3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0]);
        bytes
    }

    #[test]
    fn formats_are_told_by_content() {
        assert_eq!(sniff(&jpeg_head(1)), Ok(Format::Jpeg));
        assert_eq!(sniff(b"\x89PNG\r\n\x1a\n...."), Ok(Format::Png));
        assert_eq!(sniff(b"RIFF\x10\0\0\0WEBPVP8 "), Ok(Format::WebP));
        let reason = |bytes: &[u8]| sniff(bytes).expect_err("not an image that is read").reason;
        assert_eq!(reason(b""), Reason::EmptyImage);
        assert_eq!(reason(b"RIFF\x10\0\0\0WAVEfmt "), Reason::NotAnImage);
        assert_eq!(reason(b"BMW makes cars, and this is a text on them"), Reason::NotAnImage);
        assert_eq!(reason(b"\0\0\0\x1cftypavif\0\0\0\0"), Reason::UnsupportedFormat);
        let page = sniff(b"\n <!DOCTYPE html><title>404</title>").expect_err("a page");
        assert_eq!((page.reason, page.detail.as_str()), (Reason::NotAnImage, "an HTML page"));
    }

    #[test]
    fn size_and_orientation_of_a_jpeg_are_read() {
        let header = read_jpeg(&jpeg_head(6)).expect("a whole header");
        assert_eq!((header.width, header.height, header.components), (640, 480, 3));
        assert_eq!(header.orientation, Some(Orientation::Rotate90));
        assert!(!header.progressive);
        let mut progressive = jpeg_head(6);
        progressive[39] = 0xc2;
        assert!(read_jpeg(&progressive).expect("a whole header").progressive);
    }

    #[test]
    fn a_broken_exif_block_is_ignored() {
        let header = read_jpeg(&jpeg_head(9)).expect("orientation 9 does not exist, the frame does");
        assert_eq!(header.orientation, None);
        let mut bytes = jpeg_head(6);
        bytes[13] = b'?'; // neither "II" nor "MM"
        assert_eq!(read_jpeg(&bytes).expect("the frame is whole").orientation, None);
    }

    #[test]
    fn a_header_cut_short_is_no_header() {
        let bytes = jpeg_head(6);
        let frame_end = 2 + 36 + 2 + 8;
        for len in 0..frame_end {
            assert_eq!(read_jpeg(&bytes[..len]), None, "cut after {len} bytes");
        }
        assert!(read_jpeg(&bytes[..frame_end]).is_some());
    }

    #[test]
    fn scans_are_counted_where_there_can_be_several() {
        let head = |progressive: bool, components: u8| JpegHeader {
            progressive,
            components,
            ..read_jpeg(&jpeg_head(1)).expect("a whole header")
        };
        let scan = [0xff, 0xda, 0, 8, 1, 1, 0, 1, 63, 0, 7, 0xff, 0, 9, 0xff, 0xd0, 9];
        let bytes = [jpeg_head(1), scan.repeat(150), vec![0xff, EOI], scan.to_vec()].concat();
        let count = |header: &JpegHeader| scans(&bytes, header).count();
        assert_eq!(count(&head(true, 3)), 151, "none behind the end");
        assert_eq!(count(&head(false, 3)), 1, "the first scan has all three components");
        assert_eq!(count(&head(false, 4)), 151);
        let refused = check_scans(&bytes, &head(true, 3), 100_000_000).expect_err("too many");
        assert!(refused.detail.starts_with("more than 100 scans of 0.3 megapixels"), "{refused}");

        let few = [jpeg_head(1), scan.repeat(20), vec![0xff, EOI]].concat();
        assert_eq!(check_scans(&few, &head(true, 3), 640 * 480 * 2), Ok(()));
        let refused = check_scans(&few, &head(true, 3), 640 * 480).expect_err("21 visits");
        assert_eq!(refused.detail, "21 scans of 0.3 megapixels, stream.max_megapixels = 0.3072 allows 20");
    }

    #[test]
    fn too_many_pixels_are_named() {
        assert_eq!(check_pixels(10_000, 10_000, 100_000_000), Ok(()));
        let bomb = check_pixels(64_000, 64_000, 100_000_000).expect_err("4096 megapixels");
        assert_eq!(bomb.reason, Reason::TooManyPixels);
        assert!(bomb.detail.contains("4096.0 megapixels"), "{bomb}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut jpeg = vec![0xff, 0xd8, 0xff];
            jpeg.extend_from_slice(&bytes);
            let _ = (sniff(&bytes), read_jpeg(&jpeg));
        }

        #[test]
        fn every_marker_inside_a_real_head_is_survived(at in 2usize..69, marker in any::<u8>()) {
            let mut bytes = jpeg_head(6);
            bytes[at] = 0xff;
            if let Some(next) = bytes.get_mut(at + 1) {
                *next = marker;
            }
            let _ = read_jpeg(&bytes);
        }
    }
}
