//! What a pipeline passes over on purpose: by header, by pixels, and because it came before.

use crate::run::{records, root, shoal, small_pipeline, start, steps};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::{DynamicImage, Rgb, RgbImage};
use serde_json::Value;
use shoal::batch::{Batch, Filling, Queues, Remembered, Ring, RingPlan, Sieve, fill};
use shoal::config::{Duplicates, FilterPlan, StreamPlan, ViewsPlan};
use shoal::decode::{Decoder, Filter};
use shoal::ingest::{RawSample, SampleMeta};
use shoal::shards::{Filtered, FilteredCounts, Rejection, SampleId};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

const SIDE: usize = 96;

fn sample(id: u64, pass: u64, image: Vec<u8>) -> RawSample {
    let key = format!("{id:06}");
    let meta = SampleMeta { id: SampleId(id), key, shard: Arc::from("a.tar"), offset: id * 512, pass, class: None };
    RawSample::new(meta, image.into())
}

fn views() -> ViewsPlan {
    ViewsPlan { size: SIDE as u32, resize: 110, ..ViewsPlan::default() }
}

fn decoder(plan: &FilterPlan) -> Decoder {
    Decoder::new(&views(), &StreamPlan::default()).with_filter(Filter::new(plan))
}

fn jpeg(picture: &RgbImage, quality: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(picture).expect("encodes in memory");
    bytes
}

/// The photographs of some shards of the repository, and which photograph each was cut from.
fn photographs(shards: impl Iterator<Item = usize>) -> Vec<(Vec<u8>, String)> {
    let mut photographs = Vec::new();
    for shard in shards {
        let file = fs::File::open(root().join(format!("shards/photos-{shard:06}.tar"))).expect("a shard");
        let mut members: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for member in tar::Archive::new(file).entries().expect("a tar") {
            let mut member = member.expect("a member");
            let name = member.path().expect("a name").display().to_string();
            member.read_to_end(members.entry(name).or_default()).expect("its bytes");
        }
        for (name, image) in members.iter().filter(|(name, _)| name.ends_with(".jpg")) {
            let about: Value = serde_json::from_slice(&members[&name.replace(".jpg", ".json")]).expect("JSON");
            photographs.push((image.clone(), about["parent"].as_str().expect("a name").to_owned()));
        }
    }
    photographs
}

/// Runs the stage on these samples: the ids that stay, what was passed over, and what was added to the memory.
fn run(plan: &FilterPlan, threads: usize, samples: Vec<RawSample>) -> (Vec<u64>, FilteredCounts, usize) {
    let ring = RingPlan { slots: 3, rows: 7, size: SIDE as u32, center: 1, train: true, pinned: false };
    let ring = Ring::new(ring).expect("memory");
    let (give, take) = tokio::sync::mpsc::channel(samples.len());
    for sample in samples {
        give.try_send(Ok(sample)).expect("there is room");
    }
    drop(give);
    let sieve = Sieve::new(plan, &Remembered::new(plan.remember), true);
    let filling = Filling { ring, decoder: decoder(plan), threads, sieve, queues: Arc::new(Queues::new(7, 1)) };
    let (give, batches) = std::sync::mpsc::sync_channel::<shoal::Result<Batch>>(1);
    let stage = std::thread::spawn(move || fill(filling, take, |_, _| Ok(()), &give));
    let (mut ids, mut filtered, mut added) = (Vec::new(), FilteredCounts::new(), 0);
    for batch in batches {
        let batch = batch.expect("no error in the stream");
        ids.extend(batch.samples.iter().map(|meta| meta.id.0));
        for (rule, count) in &batch.end.filtered {
            *filtered.entry(*rule).or_default() += count;
        }
        added += batch.end.added.len();
    }
    stage.join().expect("no panic").expect("the stage ends well");
    (ids, filtered, added)
}

fn judged(plan: &FilterPlan, image: Vec<u8>) -> Option<Filtered> {
    let mut center = vec![0; SIDE * SIDE * 3];
    match decoder(plan).decode_into(&sample(1, 0, image), Some(&mut center), None) {
        Ok(_) => None,
        Err(Rejection::Filtered(filtered)) => Some(filtered),
        Err(Rejection::Lost(trouble)) => panic!("{trouble}"),
    }
}

#[test]
fn headers_and_colours_decide_before_anything_is_trained_on() {
    let plan =
        FilterPlan { min_side: 100, max_aspect: 2.5, uniform: 50.0, uniform_bytes: 20_000, ..FilterPlan::default() };
    let leaf = |width, height| {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * y % 251) as u8, (x * 3 % 256) as u8, (y * 5 % 256) as u8]))
    };
    let png = |picture: RgbImage| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        DynamicImage::from(picture).write_to(&mut bytes, image::ImageFormat::Png).expect("encodes in memory");
        bytes.into_inner()
    };
    for encode in [&|picture| jpeg(&picture, 90), &png as &dyn Fn(RgbImage) -> Vec<u8>] {
        assert_eq!(judged(&plan, encode(leaf(120, 100))), None);
        assert_eq!(judged(&plan, encode(leaf(120, 99))), Some(Filtered::TooSmall));
        assert_eq!(judged(&plan, encode(leaf(100, 251))), Some(Filtered::TooElongated));
        // in blocks: as noise it makes a PNG of more than `uniform_bytes`
        let gray = RgbImage::from_fn(160, 120, |x, y| Rgb([120 + (x / 8 * 7 % 5 + y / 8 * 11 % 4) as u8; 3]));
        assert_eq!(judged(&plan, encode(gray)), Some(Filtered::Uniform));
    }
    let small = jpeg(&leaf(120, 100), 90);
    for (min_bytes, expected) in [(small.len(), None), (small.len() + 1, Some(Filtered::TooFewBytes))] {
        let plan = FilterPlan { min_bytes, ..FilterPlan::default() };
        assert_eq!(judged(&plan, small.clone()), expected);
    }
    assert_eq!(judged(&FilterPlan::default(), jpeg(&leaf(9, 300), 90)), None, "by default everything stays");
}

#[test]
fn only_a_piece_of_sky_among_1800_photographs_is_of_one_colour() {
    let plan = FilterPlan { uniform: 50.0, ..FilterPlan::default() };
    let uniform = photographs(0..8).into_iter().filter(|(image, _)| judged(&plan, image.clone()).is_some());
    let uniform: Vec<String> = uniform.map(|(_, parent)| parent).collect();
    assert_eq!(
        uniform,
        ["gcompris-monuments-worms-cathedral"],
        "a crop of 71 x 126 pixels: a roof's edge under the sky"
    );
}

#[test]
fn a_placeholder_stays_once_and_a_photograph_of_its_length_stays() {
    let photos: Vec<Vec<u8>> = photographs(0..1).into_iter().take(12).map(|(image, _)| image).collect();
    let placeholder = photos[0].clone();
    let mut same_length = photos[1].clone();
    same_length.resize(placeholder.len().max(same_length.len()), 0);
    let padded = {
        let mut padded = placeholder.clone();
        padded.resize(same_length.len(), 0);
        padded
    };
    let plan = FilterPlan { placeholders: vec![padded.len()], ..FilterPlan::default() };
    let order = [&padded, &photos[2], &padded, &same_length, &photos[2], &padded];
    for threads in [1, 3] {
        let samples = (0..12).map(|id| sample(id % 6, id / 6, order[id as usize % 6].clone())).collect();
        let (ids, filtered, added) = run(&plan, threads, samples);
        assert_eq!(ids, [0, 1, 3, 4, 0, 1, 3, 4], "a second file of the same bytes stays where its length is its own");
        assert_eq!((filtered, added), (FilteredCounts::from([(Filtered::Placeholder, 4)]), 2));
    }
}

/// Photographs, of which every third comes again: as it is, coded anew, or smaller.
fn stream_with_copies() -> Vec<Vec<u8>> {
    let mut stream = Vec::new();
    for (number, (image, _)) in photographs(0..1).into_iter().take(60).enumerate() {
        let picture = || image::load_from_memory(&image).expect("a photograph").into_rgb8();
        let copy = match number % 9 {
            0 => Some(image.clone()),
            3 => Some(jpeg(&picture(), 60)),
            6 => {
                let (width, height) = (image::load_from_memory(&image).expect("it").width(), picture().height());
                let smaller = image::imageops::resize(&picture(), width * 2 / 3, height * 2 / 3, FilterType::Lanczos3);
                Some(jpeg(&smaller, 85))
            }
            _ => None,
        };
        stream.push(image);
        stream.extend(copy);
    }
    stream
}

#[test]
fn copies_are_passed_over_in_stream_order_for_any_number_of_threads() {
    let stream = stream_with_copies();
    let count = stream.len() as u64;
    let samples = || {
        let twice = (0..2).flat_map(|pass| stream.iter().enumerate().map(move |(id, image)| (pass, id, image)));
        twice.map(|(pass, id, image)| sample(id as u64, pass, image.clone())).collect::<Vec<_>>()
    };
    for duplicates in [Duplicates::Off, Duplicates::Bytes, Duplicates::Near] {
        let plan = FilterPlan { duplicates, ..FilterPlan::default() };
        let expected = run(&plan, 1, samples());
        for threads in [2, 5] {
            assert_eq!(run(&plan, threads, samples()), expected);
        }
        let (ids, filtered, added) = expected;
        let half = ids.len() / 2;
        assert_eq!(ids[..half], ids[half..], "the first to come stays, in every pass");
        let passed_over = |rule| filtered.get(&rule).copied().unwrap_or(0);
        let exact = if duplicates == Duplicates::Off { 0 } else { 2 * 7 };
        assert_eq!(passed_over(Filtered::DuplicateBytes), exact, "{duplicates:?}");
        let near = passed_over(Filtered::NearDuplicate);
        assert!(if duplicates == Duplicates::Near { (20..=28).contains(&near) } else { near == 0 }, "{near}");
        assert_eq!(ids.len() as u64, 2 * count - exact - near);
        assert_eq!(added, if duplicates == Duplicates::Off { 0 } else { half }, "remembered once");
    }
}

#[test]
fn crops_of_different_photographs_are_never_near() {
    let plan = FilterPlan { duplicates: Duplicates::Near, ..FilterPlan::default() };
    let decoder = decoder(&plan);
    let mut prints: Vec<(u128, String)> = Vec::new();
    let mut center = vec![0; SIDE * SIDE * 3];
    for (id, (image, parent)) in photographs(0..8).into_iter().enumerate() {
        let decoded = decoder.decode_into(&sample(id as u64, 0, image), Some(&mut center), None).expect("a photograph");
        prints.push((decoded.prints.pixels.expect("asked for"), parent));
    }
    let mut distances: BTreeMap<(bool, u32), u32> = BTreeMap::new();
    for (at, (one, parent)) in prints.iter().enumerate() {
        for (other, other_parent) in &prints[..at] {
            *distances.entry((parent == other_parent, (one ^ other).count_ones())).or_default() += 1;
        }
    }
    let pairs = |same: bool, most: u32| distances.range((same, 0)..=(same, most)).map(|(_, count)| count).sum::<u32>();
    assert_eq!(prints.len(), 1_800);
    assert_eq!(pairs(false, 16), 0, "of 1.6 million pairs, at more than twice the default distance");
    assert!(pairs(true, 6) > 0, "some crops of one photograph are nearly the same");
}

/// What a step record says was passed over, by step.
fn filtered(run: &Path) -> HashMap<u64, Value> {
    let step = |record: &Value| (record["step"].as_u64().expect("a step"), record["filtered"].clone());
    records(run, "step").iter().map(step).collect()
}

/// A shard of photographs with copies among them.
fn shard_with_copies(path: &Path) {
    let mut builder = tar::Builder::new(fs::File::create(path).expect("a file"));
    for (number, image) in stream_with_copies().into_iter().enumerate() {
        let mut header = tar::Header::new_gnu();
        header.set_size(image.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("{number:04}.jpg"), image.as_slice()).expect("it is written");
    }
    builder.finish().expect("it is written");
}

#[test]
fn killed_and_started_again_a_run_passes_over_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shard = folder.path().join("copies.tar");
    shard_with_copies(&shard);
    let shards = format!("stream.shards={}", shard.display());
    // so few are remembered that the memory goes round
    let more = [
        "--set",
        &shards,
        "--set",
        "filter.duplicates=near",
        "--set",
        "filter.remember=25",
        "--set",
        "filter.min_side=150",
    ];
    let pipeline = small_pipeline(folder.path());
    let whole = folder.path().join("whole");
    assert!(start(&pipeline, &whole, &more).wait().expect("a child").success());
    let last = filtered(&whole)[&48].clone();
    for rule in ["duplicate_bytes", "near_duplicate", "too_small"] {
        assert!(last[rule].as_u64() > Some(2), "{last}");
    }

    let killed = folder.path().join("killed");
    for until in [5, 19, 33] {
        let mut child = start(&pipeline, &killed, &more);
        while steps(&killed).last().is_none_or(|step| step.0 < until) {
            assert!(child.try_wait().expect("a child").is_none(), "it ended by itself");
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        child.kill().expect("kill -9");
        child.wait().expect("a child");
    }
    assert!(start(&pipeline, &killed, &more).wait().expect("a child").success());
    assert_eq!(steps(&killed), steps(&whole));
    assert_eq!(filtered(&killed), filtered(&whole));
}

#[test]
fn a_run_that_passes_over_everything_ends_with_a_word() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = small_pipeline(folder.path());
    let run = folder.path().join("run");
    let mut command = shoal();
    command.args(["pretrain", "--no-bar"]).arg(&pipeline).arg("--run").arg(&run);
    let output = command.args(["--set", "filter.min_side=5000"]).output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("225 too_small") && text.contains("[filter]"), "{text}");
}

#[test]
fn a_check_counts_what_a_pipeline_passes_over() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = small_pipeline(folder.path());
    let text = fs::read_to_string(&pipeline).expect("the pipeline") + "[filter]\nmin_side = 150\nuniform = 50.0\n";
    fs::write(&pipeline, text).expect("a temporary folder can be written");
    let mut command = shoal();
    command.args(["shards", "check", "shards/photos-000000.tar", "--json", "--pipeline"]).arg(&pipeline);
    let output = command.output().expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sizes = photographs(0..1).into_iter().map(|(image, _)| image::load_from_memory(&image).expect("a photograph"));
    let small = sizes.filter(|picture| picture.width().min(picture.height()) < 150).count();
    assert!(small > 0);
    assert_eq!(found[0]["filtered"], serde_json::json!({ "too_small": small }));
    assert_eq!(found[0]["samples"], 225 - small);
}
