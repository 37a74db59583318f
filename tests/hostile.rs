//! Image files cut, flipped, spliced and lying about their size: never a panic that escapes, never memory beyond the limit.
//!
//! A dozen and a half small pictures, one of each kind that is read, are damaged in every way that costs seconds, each in a
//! process whose memory is limited to what an image at the limit needs.

use crate::small_process;
use bytes::Bytes;
use image::{DynamicImage, ImageFormat, RgbImage};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shoal::config::{StreamPlan, ViewsPlan};
use shoal::decode::{Decoded, Decoder, read_jpeg, sniff};
use shoal::ingest::{RawSample, SampleMeta};
use shoal::shards::{Reason, Rejection, SampleId, Trouble};
use std::sync::Arc;
use turbojpeg::{PixelFormat, Subsamp};

const SIDE: usize = 32;
/// Pictures of more pixels are refused.
const LIMIT: u64 = 2_000_000;
/// Eight bytes a pixel, twice over, and tables: what a picture at the limit may need, far less than the claims below.
const ROOM: u64 = 128 << 20;

/// Decodes into both views. No picture over the limit may come out.
fn decode(decoder: &Decoder, image: &[u8]) -> Result<Decoded, Trouble> {
    let meta =
        SampleMeta { id: SampleId(1), key: String::new(), shard: Arc::from(""), offset: 0, pass: 0, class: None };
    let sample = RawSample::new(meta, Bytes::copy_from_slice(image));
    let (mut center, mut train) = ([0; SIDE * SIDE * 3], [0; SIDE * SIDE * 3]);
    let _ = (sniff(image), read_jpeg(image));
    let outcome = decoder.decode_into(&sample, Some(&mut center), Some(&mut train));
    if let Ok(decoded) = &outcome {
        let (width, height) = decoded.size;
        assert!(u64::from(width) * u64::from(height) <= LIMIT, "{decoded:?}");
    }
    outcome.map_err(|rejection| match rejection {
        Rejection::Lost(trouble) => trouble,
        Rejection::Filtered(by) => panic!("no filter is set, yet {by:?}"),
    })
}

fn decoder() -> Decoder {
    let views = ViewsPlan { size: SIDE as u32, resize: 36, ..ViewsPlan::default() };
    Decoder::new(&views, &StreamPlan { max_megapixels: LIMIT as f64 / 1e6, ..StreamPlan::default() })
}

/// A corner of a photograph of the repository.
fn photo() -> RgbImage {
    let file = std::fs::File::open(crate::run::root().join("shards/photos-000000.tar")).unwrap();
    let mut tar = tar::Archive::new(file);
    let mut first = tar.entries().unwrap().map(Result::unwrap).find(|entry| entry.size() > 100).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut first, &mut bytes).unwrap();
    image::load_from_memory(&bytes).unwrap().crop_imm(8, 8, 40, 30).to_rgb8()
}

fn jpeg(pixels: &[u8], format: PixelFormat, chroma: Subsamp, progressive: bool) -> Vec<u8> {
    let mut compressor = turbojpeg::Compressor::new().unwrap();
    compressor.set_quality(85).unwrap();
    compressor.set_subsamp(chroma).unwrap();
    compressor.set_progressive(progressive).unwrap();
    let picture = turbojpeg::Image { pixels, width: 40, pitch: 40 * format.size(), height: 30, format };
    compressor.compress_to_vec(picture).unwrap()
}

/// One file of each kind, by name.
fn gallery() -> Vec<(&'static str, Vec<u8>)> {
    let photo = photo();
    let picture = DynamicImage::from(photo.clone());
    let encode = |picture: &DynamicImage, format| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    let rgb = photo.as_raw();
    let baseline = jpeg(rgb, PixelFormat::RGB, Subsamp::Sub2x2, false);
    let orientation = b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let turned = [&baseline[..2], orientation, &baseline[2..]].concat();
    let inks: Vec<u8> = rgb.chunks(3).flat_map(|pixel| [255 - pixel[0], 255 - pixel[1], 255 - pixel[2], 0]).collect();
    let indices: Vec<u8> = picture.to_luma8().iter().map(|level| level / 64).collect();
    let lossless = encode(&picture, ImageFormat::WebP);
    vec![
        ("baseline JPEG", baseline),
        ("progressive JPEG", jpeg(rgb, PixelFormat::RGB, Subsamp::Sub2x1, true)),
        ("gray JPEG", jpeg(picture.to_luma8().as_raw(), PixelFormat::GRAY, Subsamp::Gray, false)),
        ("CMYK JPEG", jpeg(&inks, PixelFormat::CMYK, Subsamp::None, false)),
        ("turned JPEG", turned),
        ("PNG", encode(&picture, ImageFormat::Png)),
        ("PNG of 16 bits", encode(&picture.to_rgb16().into(), ImageFormat::Png)),
        ("PNG with alpha", encode(&picture.to_rgba8().into(), ImageFormat::Png)),
        ("PNG with a palette", png(&indices, 3, false)),
        ("interlaced PNG", png(picture.to_luma8().as_raw(), 0, true)),
        ("animated WebP", animated(&lossless)),
        ("lossy WebP", member("shards/damage.tar", "modern.webp")),
        ("lossless WebP", lossless),
        ("GIF", encode(&picture, ImageFormat::Gif)),
        ("BMP", encode(&picture, ImageFormat::Bmp)),
        ("TIFF", encode(&picture, ImageFormat::Tiff)),
        ("TIFF of 16 bits", encode(&picture.to_rgb16().into(), ImageFormat::Tiff)),
    ]
}

fn member(tar: &str, name: &str) -> Vec<u8> {
    let mut tar = tar::Archive::new(std::fs::File::open(crate::run::root().join(tar)).unwrap());
    let is_it = |entry: &tar::Entry<'_, std::fs::File>| entry.path_bytes().as_ref() == name.as_bytes();
    let mut entry = tar.entries().unwrap().map(Result::unwrap).find(is_it).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
    bytes
}

/// A PNG of 40 × 30 bytes, which are gray (colour type 0) or of a palette (3) of four colours.
fn png(pixels: &[u8], colour_type: u8, interlaced: bool) -> Vec<u8> {
    let whole = [(0, 0, 1, 1)];
    let adam7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)];
    let mut rows = Vec::new();
    for &(left, top, right, down) in if interlaced { &adam7[..] } else { &whole } {
        for y in (top..30).step_by(down) {
            rows.push(0);
            rows.extend((left..40).step_by(right).map(|x| pixels[y * 40 + x]));
        }
    }
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &rows).unwrap();
    let head = [0, 0, 0, 40, 0, 0, 0, 30, 8, colour_type, 0, 0, u8::from(interlaced)];
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    bytes.extend(chunk(b"IHDR", &head));
    if colour_type == 3 {
        bytes.extend(chunk(b"PLTE", &[0, 0, 0, 200, 30, 30, 30, 200, 30, 250, 250, 250]));
    }
    bytes.extend(chunk(b"IDAT", &packed.finish().unwrap()));
    bytes.extend(chunk(b"IEND", b""));
    bytes
}

fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut check = flate2::Crc::new();
    check.update(kind);
    check.update(content);
    let length = (content.len() as u32).to_be_bytes();
    [&length[..], kind, content, &check.sum().to_be_bytes()].concat()
}

/// An animation of two frames, each of them this lossless WebP.
fn animated(lossless: &[u8]) -> Vec<u8> {
    let part = |kind: &[u8; 4], content: &[u8]| {
        let mut bytes = [&kind[..], &(content.len() as u32).to_le_bytes(), content].concat();
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes
    };
    let frame = [&[0, 0, 0, 0, 0, 0, 39, 0, 0, 29, 0, 0, 100, 0, 0, 0][..], &lossless[12..]].concat();
    let parts = [
        part(b"VP8X", &[2, 0, 0, 0, 39, 0, 0, 29, 0, 0]),
        part(b"ANIM", &[255, 255, 255, 255, 0, 0]),
        part(b"ANMF", &frame),
        part(b"ANMF", &frame),
    ]
    .concat();
    [b"RIFF", &(parts.len() as u32 + 4).to_le_bytes()[..], b"WEBP", &parts].concat()
}

#[test]
fn every_kind_of_picture_is_read_undamaged() {
    for (name, file) in gallery() {
        let decoded = decode(&decoder(), &file).unwrap_or_else(|trouble| panic!("{name}: {trouble}"));
        let size = match name {
            "turned JPEG" => (30, 40),
            "lossy WebP" => decoded.size,
            _ => (40, 30),
        };
        assert_eq!((decoded.size, decoded.truncated), (size, false), "{name}");
    }
}

#[test]
fn a_picture_cut_at_any_byte_is_a_value() {
    small_process::run("hostile::a_picture_cut_at_any_byte_is_a_value", ROOM, || {
        let decoder = decoder();
        for (name, file) in gallery() {
            for length in 0..file.len() {
                let outcome = decode(&decoder, &file[..length]);
                let is_silent = outcome.is_ok_and(|decoded| !decoded.truncated);
                // only what nobody reads may go without a word: end markers, checksums, a second frame
                let needed = if name == "animated WebP" { file.len() / 2 } else { file.len() * 7 / 8 };
                assert!(!is_silent || length > needed, "{name} cut after {length} bytes");
            }
            assert!(decode(&decoder, &file).is_ok(), "{name}: what came before left no trace");
        }
    });
}

#[test]
fn flipped_and_spliced_pictures_are_values() {
    small_process::run("hostile::flipped_and_spliced_pictures_are_values", ROOM, || {
        let (decoder, gallery) = (decoder(), gallery());
        let mut random = ChaCha8Rng::seed_from_u64(3);
        for (_, file) in &gallery {
            for _ in 0..400 {
                let mut damaged = file.clone();
                for _ in 0..random.random_range(1..6) {
                    // half of them near the front, where the headers are
                    let reach = if random.random() { damaged.len() } else { damaged.len().min(64) };
                    let at = random.random_range(0..reach);
                    damaged[at] =
                        if random.random() { random.random() } else { damaged[at] ^ (1 << random.random_range(0..8)) };
                }
                let _ = decode(&decoder, &damaged);
            }
            for _ in 0..100 {
                let (_, other) = &gallery[random.random_range(0..gallery.len())];
                let (front, back) = (random.random_range(0..file.len()), random.random_range(0..other.len()));
                let _ = decode(&decoder, &[&file[..front], &other[back..]].concat());
            }
        }
        for (name, file) in &gallery {
            assert!(decode(&decoder, file).is_ok(), "{name}: what came before left no trace");
        }
    });
}

#[test]
fn a_jpeg_of_many_scans_is_refused_before_it_is_decoded() {
    let (_, file) = gallery().into_iter().find(|(name, _)| *name == "progressive JPEG").expect("one of them");
    let at = |mark: [u8; 2]| file.windows(2).rposition(|pair| pair == mark).expect("a mark");
    let (last_scan, end) = (at([0xff, 0xda]), at([0xff, 0xd9]));
    let with = |more: usize| [&file[..end], &file[last_scan..end].repeat(more), &file[end..]].concat();
    assert!(decode(&decoder(), &with(50)).is_ok(), "a scan again and again is odd, and allowed");
    let refused = decode(&decoder(), &with(5_000)).expect_err("too many");
    assert_eq!(refused.reason, Reason::TooManyPixels);
    assert!(refused.detail.contains("more than 100 scans"), "{refused}");
}

/// The same files, but their headers claim 65,535 × 65,535 pixels (16,383 where a format knows no more).
fn giants() -> Vec<(&'static str, Vec<u8>)> {
    let mut giants = Vec::new();
    for (name, mut file) in gallery() {
        let intact = file.clone();
        let place = |bytes: &[u8]| intact.windows(bytes.len()).position(|window| window == bytes);
        match name {
            "baseline JPEG" | "progressive JPEG" | "gray JPEG" | "CMYK JPEG" | "turned JPEG" => {
                let frame = place(&[0xff, 0xc0]).or(place(&[0xff, 0xc2])).unwrap();
                file[frame + 5..frame + 9].fill(0xff);
            }
            "GIF" => {
                let frame = place(&[0x2c, 0, 0, 0, 0, 40, 0, 30, 0]).unwrap();
                file[6..10].fill(0xff);
                file[frame + 5..frame + 9].fill(0xff);
            }
            "BMP" => {
                file[18..22].copy_from_slice(&65_535_u32.to_le_bytes());
                file[22..26].copy_from_slice(&65_535_u32.to_le_bytes());
            }
            "TIFF" | "TIFF of 16 bits" => {
                for (tag, side) in [(0x100_u16, 40_u32), (0x101, 30)] {
                    let entry = [&tag.to_le_bytes()[..], &[4, 0, 1, 0, 0, 0], &side.to_le_bytes()].concat();
                    let at = place(&entry).unwrap();
                    file[at + 8..at + 12].copy_from_slice(&65_535_u32.to_le_bytes());
                }
            }
            "animated WebP" => file[24..30].copy_from_slice(&[0xfe, 0xff, 0, 0xfe, 0xff, 0]),
            // 14 bits each, one less than the side
            "lossless WebP" => file[21..25].copy_from_slice(&[0xfe, 0xbf, 0xff, 0x0f]),
            "lossy WebP" => {
                let key_frame = place(&[0x9d, 0x01, 0x2a]).unwrap();
                file[key_frame + 3..key_frame + 7].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
            }
            _ => {
                let head = [&65_535_u32.to_be_bytes()[..], &65_535_u32.to_be_bytes(), &file[24..29]].concat();
                file.splice(8..33, chunk(b"IHDR", &head));
            }
        }
        giants.push((name, file));
    }
    giants
}

#[test]
fn giants_are_refused_by_their_headers() {
    small_process::run("hostile::giants_are_refused_by_their_headers", ROOM, || {
        for (name, file) in giants() {
            let trouble = decode(&decoder(), &file).expect_err(name);
            // a TIFF says how many strips it has as well, and contradicts itself
            let is_tiff = name.starts_with("TIFF") && trouble.reason == Reason::DecodeFailed;
            assert!(is_tiff || trouble.reason == Reason::TooManyPixels, "{name}: {trouble}");
        }
    });
}

#[test]
fn a_frame_larger_than_its_canvas_is_refused() {
    small_process::run("hostile::a_frame_larger_than_its_canvas_is_refused", ROOM, || {
        let still = gallery().into_iter().find(|(name, _)| *name == "GIF").unwrap().1;
        let frame = still.windows(2).position(|window| window == [0x2c, 0]).unwrap();
        let mut file = still.clone();
        file[frame + 5..frame + 9].fill(0xff);
        assert!(decode(&decoder(), &file).is_err());
        let moving = gallery().into_iter().find(|(name, _)| *name == "animated WebP").unwrap().1;
        let frame = moving.windows(4).position(|window| window == b"ANMF").unwrap();
        let mut file = moving.clone();
        file[frame + 14..frame + 20].copy_from_slice(&[0xfe, 0x3f, 0, 0xfe, 0x3f, 0]);
        assert!(decode(&decoder(), &file).is_err());
    });
}

/// A PNG whose text and colour profile unpack to far more than its pixels.
#[test]
fn what_is_packed_beside_the_pixels_is_not_unpacked_without_limit() {
    small_process::run("hostile::what_is_packed_beside_the_pixels_is_not_unpacked_without_limit", ROOM, || {
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        for _ in 0..512 {
            std::io::Write::write_all(&mut packed, &[b' '; 1 << 20]).unwrap();
        }
        let packed = packed.finish().unwrap();
        let plain = gallery().into_iter().find(|(name, _)| *name == "PNG").unwrap().1;
        for (kind, head) in [(b"zTXt", &b"k\0\0"[..]), (b"iCCP", b"k\0\0"), (b"iTXt", b"k\0\x01\0\0\0")] {
            let bomb = chunk(kind, &[head, &packed].concat());
            let file = [&plain[..33], &bomb, &plain[33..]].concat();
            let _ = decode(&decoder(), &file);
        }
        assert!(decode(&decoder(), &plain).is_ok());
    });
}
