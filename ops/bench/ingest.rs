//! The Rust side of `ops/bench/ingest.sh`: shoal's stages left of the trainer, a bare loop over libjpeg-turbo, and a server.
//!
//! - `ingest ours --views both|train SHARD...`: shards → ingest → decode → batch as a run wires them, without a network
//!   behind; batches of 256 views of 224 pixels.
//! - `ingest bare --views none|train|both SHARD...`: every core decodes JPEGs that are in memory already, and does nothing
//!   else (`none`: full decode with the turbojpeg crate), or cuts the views as well.
//! - `ingest serve DIR`: HTTP/1.1 on 127.0.0.1 with ranges and keep-alive; the first line of stdout is its address.
//!
//! The first two print one line of JSON: images, seconds (after a warm-up that empties what was read
//! ahead while the first batch was awaited), seconds to the first batch since
//! INGEST_STARTED (seconds since 1970).

#![allow(clippy::print_stdout)] // a bench is for its output
#[path = "jpegs.rs"]
mod jpegs;
#[path = "ingest/serve.rs"]
mod serve;

use jpegs::read_jpegs;
use shoal::config::{DeviceKind, DevicePlan, Plan, StreamPlan, ViewsPlan};
use shoal::decode::Decoder;
use shoal::ingest::{Cursor, Passes, RawSample, Share};
use shoal::pipeline::feed::{Feed, FeedPlan, Filters, Next};
use shoal::pipeline::stop::Stop;
use shoal::shards::{Ledger, ShardList};
use shoal::torch::device::place;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const BATCH: usize = 256;

struct Options {
    views: String,
    seconds: f64,
    threads: usize,
    rest: Vec<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let what = arguments.next().ok_or("what: ours, bare or serve")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options { views: "both".into(), seconds: 5.0, threads: cores, rest: Vec::new() };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--views" => options.views = value()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--threads" => options.threads = value()?.parse()?,
            _ => options.rest.push(argument),
        }
    }
    match what.as_str() {
        "ours" => ours(&options),
        "bare" => bare(&options),
        "serve" => serve::serve(options.rest.first().ok_or("serve: which folder?")?),
        other => Err(format!("{other}: not ours, bare or serve").into()),
    }
}

fn stream_plan(shards: &[String]) -> StreamPlan {
    StreamPlan { shards: shards.to_vec(), shuffle: 0, ..StreamPlan::default() }
}

fn ours(options: &Options) -> Result<(), Box<dyn Error>> {
    let stream = stream_plan(&options.rest);
    let plan = Plan { stream, ..Plan::default() };
    let list = ShardList::parse(&plan.stream.shards)?;
    let ledger = Arc::new(Ledger::in_memory(&plan.stream));
    let runtime = shoal::pipeline::start_runtime()?;
    let device = DevicePlan { kind: DeviceKind::Cpu, decode_threads: options.threads, ..DevicePlan::default() };
    let feed_plan = FeedPlan {
        share: Share::whole(),
        passes: Passes::Endless,
        start: Cursor::default(),
        batch_size: BATCH,
        center_views: (options.views == "both").then_some(shoal::decode::CenterCrops::Middle),
        train_views: true,
        held: 1,
        filters: Filters::None,
    };
    let mut feed = Feed::open(runtime.handle(), &plan, &place(&device)?, list, &ledger, feed_plan)?;
    let stop = Stop::default();
    let mut next = || match feed.next(&stop)? {
        Next::Batch(batch) => Ok::<usize, Box<dyn Error>>(batch.samples.len()),
        Next::End | Next::Stopped => Err("the stream has ended".into()),
    };
    next()?;
    let first = since_start()?;
    let warming = Instant::now();
    let mut batches = 0;
    while batches < 4 || warming.elapsed().as_secs_f64() < 1.5 {
        next()?;
        batches += 1;
    }
    let mut images = 0;
    let started = Instant::now();
    while started.elapsed().as_secs_f64() < options.seconds {
        images += next()?;
    }
    let time = started.elapsed();
    report(images, time, Some(first), &feed.sources().decoders.read().per_image());
    Ok(())
}

fn bare(options: &Options) -> Result<(), Box<dyn Error>> {
    let samples = read_jpegs(&options.rest)?;
    let plan = stream_plan(&options.rest);
    let decoder = Decoder::new(&ViewsPlan::default(), &plan);
    let started = Instant::now();
    let counts: Result<Vec<usize>, String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads)
            .map(|worker| {
                let (decoder, samples) = (&decoder, &samples[..]);
                scope.spawn(move || {
                    let mut decode = one_of(&options.views, decoder).map_err(|error| error.to_string())?;
                    let mut count = 0;
                    for sample in samples.iter().cycle().skip(worker * samples.len() / options.threads) {
                        if started.elapsed().as_secs_f64() >= options.seconds {
                            break;
                        }
                        decode(sample).map_err(|error| error.to_string())?;
                        count += 1;
                    }
                    Ok::<usize, String>(count)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().map_err(|_| "a worker panicked".to_owned())?).collect()
    });
    report(counts?.iter().sum(), started.elapsed(), None, &decoder.counters().read().per_image());
    Ok(())
}

type Work<'a> = Box<dyn FnMut(&RawSample) -> Result<(), Box<dyn Error>> + 'a>;

/// What a bare loop does with one JPEG.
fn one_of<'a>(views: &str, decoder: &'a Decoder) -> Result<Work<'a>, Box<dyn Error>> {
    if views == "none" {
        let mut turbo = turbojpeg::Decompressor::new()?;
        let mut pixels = Vec::new();
        return Ok(Box::new(move |sample| {
            let header = turbo.read_header(&sample.image)?;
            let (width, height, pitch) = (header.width, header.height, header.width * 3);
            pixels.resize(pitch * height, 0);
            let format = turbojpeg::PixelFormat::RGB;
            turbo.decompress(
                &sample.image,
                turbojpeg::Image { pixels: &mut pixels[..], width, pitch, height, format },
            )?;
            Ok(())
        }));
    }
    let both = views == "both";
    let row = (decoder.size() * decoder.size() * 3) as usize;
    let (mut center, mut train) = (vec![0; row], vec![0; row]);
    Ok(Box::new(move |sample| {
        decoder.decode_into(sample, both.then_some(&mut center[..]), Some(&mut train))?;
        Ok(())
    }))
}

/// Seconds since whoever measures started this process.
fn since_start() -> Result<f64, Box<dyn Error>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    Ok(std::env::var("INGEST_STARTED").map_or(Ok(now), |text| text.parse())?).map(|started: f64| now - started)
}

fn report(images: usize, time: Duration, first_batch_s: Option<f64>, parts: &str) {
    let seconds = time.as_secs_f64();
    println!(
        "{}",
        serde_json::json!({"images": images, "seconds": seconds, "first_batch_s": first_batch_s, "note": parts})
    );
}
