//! Image files of every kind become the right views, and batches hold them in the order of the stream.

use bytes::Bytes;
use image::metadata::Orientation;
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use shoal::batch::{Batch, Filling, Queues, Ring, RingPlan, Sieve, fill};
use shoal::config::{StreamPlan, ViewsPlan};
use shoal::decode::{Augment, CropBox, Decoded, Decoder, Format};
use shoal::ingest::{RawSample, SampleMeta};
use shoal::shards::SampleId;
use shoal::shards::{Reason, Rejection, Trouble};
use std::sync::Arc;
use turbojpeg::{PixelFormat, Subsamp};

const SIDE: usize = 64;

fn views_plan() -> ViewsPlan {
    ViewsPlan { size: SIDE as u32, resize: 80, ..ViewsPlan::default() }
}

fn decoder() -> Decoder {
    Decoder::new(&views_plan(), &StreamPlan::default())
}

fn sample(id: u64, image: impl Into<Bytes>) -> RawSample {
    let meta = SampleMeta {
        id: SampleId(id),
        key: format!("{id:06}"),
        shard: Arc::from("pictures.tar"),
        offset: id * 512,
        pass: 0,
        class: None,
    };
    RawSample::new(meta, image.into())
}

fn both_views(decoder: &Decoder, sample: &RawSample) -> Result<(Decoded, Vec<u8>, Vec<u8>), Rejection> {
    let mut center = vec![0; SIDE * SIDE * 3];
    let mut train = center.clone();
    let decoded = decoder.decode_into(sample, Some(&mut center), Some(&mut train))?;
    Ok((decoded, center, train))
}

fn center_view(image: Vec<u8>) -> (Decoded, Vec<u8>) {
    let (decoded, center, _) = both_views(&decoder(), &sample(1, image)).expect("it decodes");
    (decoded, center)
}

fn rejected(image: Vec<u8>) -> Trouble {
    loss(both_views(&decoder(), &sample(1, image)).expect_err("it does not decode"))
}

fn loss(rejection: Rejection) -> Trouble {
    match rejection {
        Rejection::Lost(trouble) => trouble,
        Rejection::Filtered(filtered) => panic!("{filtered} without a filter"),
    }
}

/// A smooth picture without symmetry: a sky of one hue going over into another, a sun, and waves.
fn scene(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (u, v) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
        let sun = (-((u - 0.3).powi(2) + (v - 0.25).powi(2)) / 0.02).exp();
        let waves = (v * 9.0 + (u * 7.0).sin()).sin() * v;
        let channel = |base: f64, slope: f64, tint: f64| {
            (base + slope * v + 60.0 * u * tint + 90.0 * sun + 30.0 * waves).clamp(0.0, 255.0) as u8
        };
        Rgb([channel(60.0, 80.0, 1.0), channel(90.0, -30.0, 0.3), channel(150.0, -100.0, -0.8)])
    })
}

fn encode(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("encodes in memory");
    bytes.into_inner()
}

fn jpeg(picture: &RgbImage) -> Vec<u8> {
    jpeg_of(picture.as_raw(), picture.dimensions(), PixelFormat::RGB, Subsamp::Sub2x2, false)
}

fn jpeg_of(
    pixels: &[u8],
    (width, height): (u32, u32),
    format: PixelFormat,
    chroma: Subsamp,
    progressive: bool,
) -> Vec<u8> {
    let mut compressor = turbojpeg::Compressor::new().expect("a compressor");
    compressor.set_quality(95).expect("in range");
    compressor.set_subsamp(chroma).expect("supported");
    compressor.set_progressive(progressive).expect("supported");
    let (width, height) = (width as usize, height as usize);
    let picture = turbojpeg::Image { pixels, width, pitch: width * format.size(), height, format };
    compressor.compress_to_vec(picture).expect("encodes in memory")
}

fn with_orientation(jpeg: &[u8], exif: u8) -> Vec<u8> {
    let mut segment = b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    segment.extend_from_slice(&[exif, 0, 0, 0, 0, 0, 0, 0]);
    [&jpeg[..2], &segment, &jpeg[2..]].concat()
}

/// A copy of `jpeg` whose frame header tells another size.
fn with_size(jpeg: &[u8], width: u16, height: u16) -> Vec<u8> {
    let mut bytes = jpeg.to_vec();
    let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).expect("a baseline frame");
    bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    bytes
}

/// Mean and largest distance in levels.
fn distance(a: &[u8], b: &[u8]) -> (f64, u8) {
    assert_eq!(a.len(), b.len());
    let gaps = || a.iter().zip(b).map(|(&a, &b)| a.abs_diff(b));
    (gaps().map(f64::from).sum::<f64>() / a.len() as f64, gaps().max().unwrap_or(0))
}

/// Crop and resize in float64: the triangle filter, widened by the reduction, normalised, taken inside the picture.
fn oracle(picture: &RgbImage, crop: CropBox) -> Vec<u8> {
    let taps = |start: f64, extent: f64, length: u32, i: usize| -> Vec<(u32, f64)> {
        let step = extent / SIDE as f64;
        let reach = step.max(1.0);
        let middle = start + (i as f64 + 0.5) * step;
        let weight = |p: u32| (1.0 - ((f64::from(p) + 0.5 - middle) / reach).abs()).max(0.0);
        let total: f64 = (0..length).map(weight).sum();
        (0..length).map(|p| (p, weight(p) / total)).filter(|&(_, w)| w > 0.0).collect()
    };
    let columns: Vec<_> = (0..SIDE).map(|i| taps(crop.left, crop.width, picture.width(), i)).collect();
    let mut view = Vec::new();
    for y in 0..SIDE {
        let rows = taps(crop.top, crop.height, picture.height(), y);
        for columns in &columns {
            for channel in 0..3 {
                let mut sum = 0.0;
                for &(y, wy) in &rows {
                    for &(x, wx) in columns {
                        sum += wy * wx * f64::from(picture.get_pixel(x, y)[channel]);
                    }
                }
                view.push(sum.round() as u8);
            }
        }
    }
    view
}

fn mirrored(view: &[u8]) -> Vec<u8> {
    let picture = RgbImage::from_raw(SIDE as u32, SIDE as u32, view.to_vec()).expect("a view");
    image::imageops::flip_horizontal(&picture).into_raw()
}

#[test]
fn views_are_those_of_a_plain_float64_resampler() {
    let augment = Augment::new(&views_plan(), StreamPlan::default().seed);
    for (width, height) in [(200, 150), (97, 331), (40, 30)] {
        let picture = scene(width, height);
        let png = encode(&picture.clone().into(), ImageFormat::Png);
        let mut flips = 0;
        for id in 0..6 {
            let (_, center, train) = both_views(&decoder(), &sample(id, png.clone())).expect("it decodes");
            let (_, worst) = distance(&center, &oracle(&picture, augment.center((width, height)).crop));
            assert!(worst <= 2, "center view of {width} × {height}: {worst} levels");
            let view = augment.train((width, height), 0, SampleId(id));
            let expected = oracle(&picture, view.crop);
            let expected = if view.mirror { mirrored(&expected) } else { expected };
            flips += usize::from(view.mirror);
            let (_, worst) = distance(&train, &expected);
            assert!(worst <= 2, "train view {id} of {width} × {height}: {worst} levels");
        }
        assert!((1..6).contains(&flips), "both kinds were seen");
    }
}

#[test]
fn a_scaled_jpeg_is_close_to_a_full_decode() {
    let picture = scene(800, 600);
    let file = sample(3, jpeg(&picture));
    let (scaled, scaled_center, scaled_train) = both_views(&decoder(), &file).expect("it decodes");
    let full = decoder().without_dct_scaling();
    let (whole, center, train) = both_views(&full, &file).expect("it decodes");
    assert!(scaled.eighths < Some(8), "{scaled:?}");
    assert_eq!(whole.eighths, Some(8));
    for (name, a, b) in [("center", scaled_center, center), ("train", scaled_train, train)] {
        let (mean, worst) = distance(&a, &b);
        assert!(mean < 1.0 && worst <= 8, "{name}: mean {mean}, worst {worst}");
    }
}

#[test]
fn what_the_views_do_not_need_is_left_out_without_a_trace() {
    let picture = scene(500, 375);
    let files = [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Sub1x2, Subsamp::Sub4x1, Subsamp::Gray]
        .into_iter()
        .flat_map(|sampling| [false, true].map(|progressive| (sampling, progressive)))
        .map(|(sampling, progressive)| jpeg_of(picture.as_raw(), (500, 375), PixelFormat::RGB, sampling, progressive));
    let (part, whole) = (decoder(), decoder().without_cropping());
    for (number, file) in files.enumerate() {
        for id in 0..12 {
            let turned = sample(id, with_orientation(&file, 1 + (id % 8) as u8));
            let (_, center, train) = both_views(&part, &turned).expect("it decodes");
            let (_, whole_center, whole_train) = both_views(&whole, &turned).expect("it decodes");
            for (name, a, b) in [("center", center, whole_center), ("train", train, whole_train)] {
                // A box that is counted from another corner can round a filter's weight the other way.
                let (_, worst) = distance(&a, &b);
                assert!(worst <= 1, "{name} view {id} of file {number}: {worst} levels");
            }
        }
    }
}

#[test]
fn every_orientation_is_turned_upright() {
    let upright = scene(160, 120);
    let (_, expected) = center_view(encode(&upright.clone().into(), ImageFormat::Png));
    for exif in 1..=8 {
        // The picture as a camera held that way stores it: the inverse orientation applied to the upright one.
        let inverse = Orientation::from_exif(match exif {
            6 => 8,
            8 => 6,
            own_inverse => own_inverse,
        });
        let mut stored = DynamicImage::from(upright.clone());
        stored.apply_orientation(inverse.expect("1 to 8 exist"));
        let (decoded, center) = center_view(with_orientation(&jpeg(&stored.to_rgb8()), exif));
        let (mean, _) = distance(&center, &expected);
        assert!(mean < 1.5, "orientation {exif}: {mean} levels off");
        assert_eq!((decoded.size, decoded.rotated), ((160, 120), exif != 1));
    }
}

#[test]
fn orientation_is_left_alone_on_request() {
    let file = with_orientation(&jpeg(&scene(160, 120)), 6);
    let stream = StreamPlan { exif: false, ..StreamPlan::default() };
    let decoder = Decoder::new(&views_plan(), &stream);
    let (decoded, _, _) = both_views(&decoder, &sample(1, file)).expect("it decodes");
    assert_eq!((decoded.size, decoded.rotated), ((160, 120), false));
}

#[test]
fn a_truncated_jpeg_keeps_its_pixels_and_none_of_the_image_before() {
    let picture = scene(320, 240);
    let whole = jpeg(&picture);
    let cut = whole[..whole.len() / 2].to_vec();
    let (_, expected) = center_view(whole.clone());

    let (decoded, center) = center_view(cut.clone());
    assert!(decoded.truncated);
    let upper = SIDE * SIDE * 3 / 4;
    let (mean, _) = distance(&center[..upper], &expected[..upper]);
    assert!(mean < 1.0, "the upper quarter was there: {mean} levels off");

    // The same thread decodes something bright and large, then the cut file again: no pixel of the former shows.
    let white = RgbImage::from_pixel(800, 600, Rgb([255, 255, 255]));
    center_view(jpeg(&white));
    assert_eq!(center_view(cut).1, center);
    assert!(!center_view(whole).0.truncated, "the warning does not stick");
}

#[test]
fn a_truncated_progressive_jpeg_keeps_its_pixels() {
    let picture = scene(320, 240);
    let whole = jpeg_of(picture.as_raw(), (320, 240), PixelFormat::RGB, Subsamp::Sub2x2, true);
    let (decoded, center) = center_view(whole[..whole.len() * 3 / 4].to_vec());
    let (mean, _) = distance(&center, &center_view(whole).1);
    assert!(decoded.truncated && mean < 12.0, "{decoded:?}, {mean} levels off");
}

#[test]
fn a_jpeg_cut_before_its_pixels_is_rejected() {
    let whole = jpeg(&scene(64, 64));
    for len in [3, 20, 150] {
        assert_eq!(rejected(whole[..len].to_vec()).reason, Reason::DecodeFailed, "{len} bytes");
    }
}

#[test]
fn a_jpeg_with_stray_bytes_between_its_markers_is_read() {
    let whole = jpeg(&scene(160, 120));
    let tables = whole.windows(2).position(|pair| pair == [0xff, 0xdb]).expect("quantisation tables");
    let stray = [&whole[..tables], b"\0\x01", &whole[tables..]].concat();
    let (decoded, center) = center_view(stray);
    assert!(decoded.truncated, "libjpeg warns of it, and so it is counted");
    assert_eq!(center, center_view(whole).1);
}

#[test]
fn cmyk_and_gray_jpegs_have_their_colours() {
    // Adobe's inks are stored inverted: 255 is none. With no black, an ink is the complement of its light.
    let inks: Vec<u8> = [200, 100, 50, 255].repeat(96 * 96);
    let file = jpeg_of(&inks, (96, 96), PixelFormat::CMYK, Subsamp::None, false);
    let (decoded, center) = center_view(file);
    assert!(decoded.converted && decoded.eighths.is_none());
    let (_, worst) = distance(&center, &[200, 100, 50].repeat(SIDE * SIDE));
    assert!(worst <= 4, "CMYK is {worst} levels off: {:?}", &center[..3]);

    let gray = DynamicImage::from(scene(160, 120)).into_luma8();
    let file = jpeg_of(gray.as_raw(), (160, 120), PixelFormat::GRAY, Subsamp::Gray, false);
    let (decoded, center) = center_view(file);
    assert!(decoded.converted);
    let expected = center_view(encode(&gray.into(), ImageFormat::Png)).1;
    assert!(distance(&center, &expected).0 < 1.0);
    assert!(center.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b));
}

#[test]
fn lossless_formats_agree_to_the_last_bit() {
    let picture = DynamicImage::from(scene(160, 120));
    let (_, expected) = center_view(encode(&picture, ImageFormat::Png));
    let formats =
        [(ImageFormat::WebP, Format::WebP), (ImageFormat::Bmp, Format::Bmp), (ImageFormat::Tiff, Format::Tiff)];
    for (encoder, format) in formats {
        let (decoded, center) = center_view(encode(&picture, encoder));
        assert_eq!((decoded.format, decoded.size, decoded.converted), (format, (160, 120), false));
        assert_eq!(center, expected, "{format:?}");
    }
}

#[test]
fn sixteen_bits_are_rounded_to_eight() {
    let picture = DynamicImage::from(scene(160, 120));
    let (decoded, center) = center_view(encode(&picture.to_rgb16().into(), ImageFormat::Png));
    assert!(decoded.converted);
    assert_eq!(center, center_view(encode(&picture, ImageFormat::Png)).1);
}

#[test]
fn transparency_is_laid_over_white() {
    let layer = RgbaImage::from_pixel(96, 96, Rgba([200, 100, 0, 51]));
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let (decoded, center) = center_view(encode(&layer.clone().into(), format));
        assert!(decoded.converted);
        // a fifth of the colour, four fifths of white
        assert_eq!(center, [244, 224, 204].repeat(SIDE * SIDE), "{format:?}");
    }
}

#[test]
fn the_first_frame_of_an_animation_is_taken() {
    let mut file = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut file);
    for colour in [[255, 0, 0, 255], [0, 0, 255, 255]] {
        let frame = RgbaImage::from_pixel(96, 96, Rgba(colour));
        encoder.encode_frame(image::Frame::new(frame)).expect("encodes in memory");
    }
    drop(encoder);
    let (decoded, center) = center_view(file);
    assert_eq!(decoded.format, Format::Gif);
    assert_eq!(center, [255, 0, 0].repeat(SIDE * SIDE));

    let (decoded, center) = center_view(animated_webp([[0, 255, 0], [0, 0, 255]]));
    assert_eq!(decoded.format, Format::WebP);
    assert_eq!(center, [0, 255, 0].repeat(SIDE * SIDE));
}

/// Lossless frames of 96 × 96 pixels, one colour each, in the container's extended layout.
fn animated_webp(colours: [[u8; 3]; 2]) -> Vec<u8> {
    let chunk = |name: &[u8], body: &[u8]| {
        let padding = vec![0; body.len() % 2];
        [name, &(body.len() as u32).to_le_bytes(), body, &padding].concat()
    };
    let mut body = b"WEBP".to_vec();
    body.extend(chunk(b"VP8X", &[2, 0, 0, 0, 95, 0, 0, 95, 0, 0]));
    body.extend(chunk(b"ANIM", &[0; 6]));
    for colour in colours {
        let still = encode(&RgbImage::from_pixel(96, 96, Rgb(colour)).into(), ImageFormat::WebP);
        // at the origin, 100 ms, drawn over what was there without blending
        let place = [0, 0, 0, 0, 0, 0, 95, 0, 0, 95, 0, 0, 100, 0, 0, 2];
        body.extend(chunk(b"ANMF", &[&place, &still[12..]].concat()));
    }
    chunk(b"RIFF", &body)
}

/// Address space ever used by this process, in bytes.
fn peak_address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).expect("Linux");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    kib * 1024
}

#[test]
fn a_bomb_is_rejected_by_its_header() {
    let small = RgbImage::new(8, 8);
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new(&mut png)
        .write_image(&small, 8, 8, ExtendedColorType::Rgb8)
        .expect("encodes in memory");
    png[16..20].copy_from_slice(&64_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&64_000u32.to_be_bytes());
    // CRC-32 of the changed header chunk, bit by bit
    let crc = !png[12..29].iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let mut gif = encode(&small.clone().into(), ImageFormat::Gif);
    gif[6..10].copy_from_slice(&[0xff; 4]);

    let before = peak_address_space();
    for bomb in [png, gif, with_size(&jpeg(&small), 64_000, 64_000)] {
        let rejected = rejected(bomb);
        assert_eq!(rejected.reason, Reason::TooManyPixels, "{rejected}");
        assert!(rejected.detail.contains("megapixels"), "{rejected}");
    }
    let grown = peak_address_space() - before;
    assert!(grown < 4 << 30, "64,000 × 64,000 × 3 bytes are 12 GB; {grown} more were taken");
}

#[test]
fn an_error_in_one_header_does_not_spoil_the_next_file() {
    let good = jpeg(&scene(120, 90));
    let mut bad = good.clone();
    let table = bad.windows(2).position(|pair| pair == [0xff, 0xc4]).expect("a Huffman table");
    bad[table + 5..table + 21].fill(0xff);
    assert_eq!(rejected(bad).detail, "Bogus Huffman table definition");
    assert_eq!(center_view(good).0.eighths, Some(8), "libjpeg-turbo is still at work");
}

#[test]
fn what_is_no_image_is_named() {
    assert_eq!(rejected(Vec::new()).reason, Reason::EmptyImage);
    assert_eq!(rejected(b"<html><body>404</body></html>".to_vec()).reason, Reason::NotAnImage);
    assert_eq!(rejected(vec![0; 5000]).reason, Reason::NotAnImage);
    let png = encode(&scene(96, 96).into(), ImageFormat::Png);
    assert_eq!(rejected(png[..png.len() / 2].to_vec()).reason, Reason::DecodeFailed);
}

#[test]
fn damaged_files_never_panic_and_leave_the_decoder_usable() {
    let mut files = vec![jpeg(&scene(120, 90)), with_orientation(&jpeg(&scene(90, 120)), 7)];
    let small = DynamicImage::from(scene(60, 45));
    files.extend([ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Gif].map(
        |format| {
            let picture = if format == ImageFormat::Gif { small.to_rgba8().into() } else { small.clone() };
            encode(&picture, format)
        },
    ));
    let decoder = decoder();
    let reference = both_views(&decoder, &sample(0, files[0].clone())).expect("it decodes");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    let mut lost = 0;
    for round in 0..40 {
        for file in &files {
            let mut damaged = file.clone();
            for _ in 0..=round % 8 {
                // mostly in the first bytes, where lengths and sizes stand
                let range = if round % 2 == 0 { damaged.len().min(200) } else { damaged.len() };
                damaged[random(range)] = random(256) as u8;
            }
            damaged.truncate(damaged.len() - random(2) * random(file.len()));
            match both_views(&decoder, &sample(0, damaged)) {
                Ok(_) => {}
                Err(rejected) => {
                    assert_ne!(loss(rejected).detail, "the decoder panicked on it");
                    lost += 1;
                }
            }
        }
    }
    assert!(lost > 40, "some damage is fatal");
    let again = both_views(&decoder, &sample(0, files[0].clone())).expect("it decodes");
    assert!(again == reference, "{:?} became {:?}", reference.0, again.0);
    assert_eq!(decoder.counters().read().rejected.values().sum::<u64>(), lost);
}

/// Twenty samples of which numbers 3, 4, 11 and 19 are no images.
fn stream() -> Vec<RawSample> {
    let picture = |id: u64| RgbImage::from_pixel(70, 70, Rgb([10 * id as u8, 255 - 10 * id as u8, 77]));
    (0..20)
        .map(|id| match id {
            3 | 4 | 11 | 19 => sample(id, &b"<html></html>"[..]),
            _ if id % 2 == 0 => sample(id, encode(&picture(id).into(), ImageFormat::Png)),
            _ => sample(id, jpeg(&picture(id))),
        })
        .collect()
}

fn run(
    threads: usize,
    slots: usize,
    rows: usize,
    samples: Vec<shoal::Result<RawSample>>,
) -> (Vec<shoal::Result<Batch>>, Vec<u64>) {
    let plan = RingPlan { slots, rows, size: SIDE as u32, center: 1, train: true, pinned: false };
    let ring = Ring::new(plan).expect("memory");
    let (sample_sender, sample_receiver) = tokio::sync::mpsc::channel(2);
    let (batch_sender, batch_receiver) = std::sync::mpsc::sync_channel(1);
    let feeder = std::thread::spawn(move || {
        for sample in samples {
            if sample_sender.blocking_send(sample).is_err() {
                break;
            }
        }
    });
    let stage = std::thread::spawn(move || {
        let mut lost = Vec::new();
        let filling =
            Filling { ring, decoder: decoder(), threads, sieve: Sieve::default(), queues: Arc::new(Queues::new(8, 1)) };
        let note = |sample: &RawSample, outcome: &Result<Decoded, Rejection>| {
            lost.extend(outcome.is_err().then_some(sample.meta.id.0));
            Ok(())
        };
        fill(filling, sample_receiver, note, &batch_sender).expect("the stage runs");
        lost
    });
    let batches: Vec<_> = batch_receiver.iter().collect();
    feeder.join().expect("no panic");
    (batches, stage.join().expect("no panic"))
}

fn bytes_of(tensor: &tch::Tensor) -> Vec<u8> {
    Vec::<u8>::try_from(tensor.reshape([-1])).expect("bytes")
}

#[test]
fn batches_hold_the_decodable_samples_in_stream_order_for_any_number_of_threads() {
    let expected: Vec<u64> = (0..20).filter(|id| ![3, 4, 11, 19].contains(id)).collect();
    let alone: Vec<_> = stream().iter().filter_map(|sample| both_views(&decoder(), sample).ok()).collect();
    for threads in [1, 3] {
        let (batches, lost) = run(threads, 8, 5, stream().into_iter().map(Ok).collect());
        assert_eq!(lost, [3, 4, 11, 19]);
        let batches: Vec<Batch> = batches.into_iter().map(|batch| batch.expect("no error in the stream")).collect();
        let lengths: Vec<usize> = batches.iter().map(|batch| batch.samples.len()).collect();
        assert_eq!(lengths, [5, 5, 5, 1], "the last one is short");
        let ids: Vec<u64> = batches.iter().flat_map(|batch| batch.samples.iter().map(|meta| meta.id.0)).collect();
        assert_eq!(ids, expected);
        let mut views = alone.iter();
        for batch in &batches {
            let (center, train) = (batch.center().expect("made"), batch.train().expect("made"));
            assert_eq!(center.size(), [batch.samples.len() as i64, SIDE as i64, SIDE as i64, 3]);
            let row = SIDE * SIDE * 3;
            let (center, train) = (bytes_of(&center), bytes_of(&train));
            for (center, train) in center.chunks(row).zip(train.chunks(row)) {
                let (_, expected_center, expected_train) = views.next().expect("as many as ids");
                assert!(center == expected_center && train == expected_train);
            }
        }
    }
}

#[test]
fn a_trainer_that_hangs_up_ends_the_stage_though_all_slots_are_used() {
    let plan = RingPlan { slots: 1, rows: 2, size: SIDE as u32, center: 1, train: false, pinned: false };
    let ring = Ring::new(plan).expect("memory");
    let (sample_sender, sample_receiver) = tokio::sync::mpsc::channel(20);
    for sample in stream() {
        sample_sender.try_send(Ok(sample)).expect("there is room");
    }
    let (batch_sender, batch_receiver) = std::sync::mpsc::sync_channel(1);
    let stage = std::thread::spawn(move || {
        fill(
            Filling {
                ring,
                decoder: decoder(),
                threads: 1,
                sieve: Sieve::default(),
                queues: Arc::new(Queues::new(8, 1)),
            },
            sample_receiver,
            |_, _| Ok(()),
            &batch_sender,
        )
    });
    let batch = batch_receiver.recv().expect("a batch");
    drop(batch_receiver);
    drop(batch);
    stage.join().expect("no panic").expect("an orderly end");
}

#[test]
fn whoever_takes_note_may_end_the_run() {
    let plan = RingPlan { slots: 4, rows: 2, size: SIDE as u32, center: 1, train: false, pinned: false };
    let ring = Ring::new(plan).expect("memory");
    let (sample_sender, sample_receiver) = tokio::sync::mpsc::channel(20);
    for sample in stream() {
        sample_sender.try_send(Ok(sample)).expect("there is room");
    }
    let (batch_sender, batch_receiver) = std::sync::mpsc::sync_channel(4);
    let note = |_: &RawSample, outcome: &Result<Decoded, Rejection>| match outcome {
        Ok(_) => Ok(()),
        Err(rejected) => Err(shoal::Error::data(format!("too many losses: {rejected}"))),
    };
    fill(
        Filling { ring, decoder: decoder(), threads: 1, sieve: Sieve::default(), queues: Arc::new(Queues::new(8, 1)) },
        sample_receiver,
        note,
        &batch_sender,
    )
    .expect("it ends");
    drop(batch_sender);
    let batches: Vec<_> = batch_receiver.iter().collect();
    assert_eq!(batches.len(), 2, "samples 0 and 1, then number 3 is lost");
    let error = batches[1].as_ref().expect_err("the loss");
    assert_eq!(error.to_string(), "too many losses: not_an_image (an HTML page)");
}

#[test]
fn an_error_of_the_stream_comes_after_the_batches_before_it() {
    let mut samples: Vec<shoal::Result<RawSample>> = stream().into_iter().take(3).map(Ok).collect();
    samples.push(Err(shoal::Error::data("the list is empty")));
    let (batches, _) = run(1, 3, 2, samples);
    assert_eq!(batches.len(), 2);
    assert_eq!(batches[0].as_ref().map(|batch| batch.samples.len()).ok(), Some(2));
    assert_eq!(batches[1].as_ref().err().map(ToString::to_string).as_deref(), Some("the list is empty"));
}
