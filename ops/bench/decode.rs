//! How many photographs one core turns into two views in a second: as a run does, without scaling inside the JPEG decoder,
//! and without leaving out what the views do not need.
//!
//! `cargo bench --bench decode -- [--size 224] [--runs 7] SHARD.tar...` reads every JPEG of the shards (by default
//! `shards/photos-*.tar`) into memory, then decodes all of them on one thread, the three ways in turn, and prints medians
//! over the runs. Rates are per second of the thread's CPU time, so that a busy machine does not count.
//! `ops/bench/decode.sh` runs its Python peers on the same files as well.

#![allow(clippy::print_stdout)] // a bench is for its output
#[path = "jpegs.rs"]
mod jpegs;

use jpegs::read_jpegs;
use shoal::config::{StreamPlan, ViewsPlan};
use shoal::decode::{Decoder, read_jpeg};
use shoal::ingest::RawSample;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut size = 224;
    let mut runs = 7;
    let mut shards = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // cargo adds it
            "--size" => size = arguments.next().ok_or("--size needs a number")?.parse()?,
            "--runs" => runs = arguments.next().ok_or("--runs needs a number")?.parse()?,
            _ => shards.push(argument),
        }
    }
    if shards.is_empty() {
        for path in glob::glob("shards/photos-*.tar")? {
            shards.push(path?.display().to_string());
        }
    }
    let samples = read_jpegs(&shards)?;
    if samples.is_empty() {
        return Err(format!("no JPEG in {shards:?}: name a shard of photographs").into());
    }
    describe(&samples);

    let views = ViewsPlan { size, resize: size * 256 / 224, ..ViewsPlan::default() };
    let scaled = Decoder::new(&views, &StreamPlan::default());
    let unscaled = Decoder::new(&views, &StreamPlan::default()).without_dct_scaling();
    let uncropped = Decoder::new(&views, &StreamPlan::default()).without_cropping();
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for run in 0..=runs {
        for (decoder, rates) in [&scaled, &unscaled, &uncropped].into_iter().zip(&mut rates) {
            let rate = images_per_second(decoder, &samples, size)?;
            if run > 0 {
                rates.push(rate); // the first run warms caches and buffers
            }
        }
    }
    println!("two views of {size} pixels, per core, median of {runs} runs (slowest to fastest):");
    for ((name, decoder), rates) in
        [("shoal", &scaled), ("without scaling", &unscaled), ("without cropping", &uncropped)]
            .into_iter()
            .zip(&mut rates)
    {
        rates.sort_by(f64::total_cmp);
        let stats = decoder.counters().read();
        println!(
            "  {name:<16} {:6.1} images/s ({:.1} to {:.1}); wall time: {}",
            rates[rates.len() / 2],
            rates[0],
            rates[rates.len() - 1],
            stats.per_image(),
        );
        println!("          images by eighths 1 to 8: {:?}", stats.eighths.map(|count| count / (runs as u64 + 1)));
    }
    Ok(())
}

fn images_per_second(decoder: &Decoder, samples: &[RawSample], size: u32) -> Result<f64, Box<dyn std::error::Error>> {
    let mut center = vec![0; size as usize * size as usize * 3];
    let mut train = center.clone();
    let started = thread_seconds()?;
    for sample in samples {
        decoder.decode_into(sample, Some(&mut center), Some(&mut train))?;
    }
    Ok(samples.len() as f64 / (thread_seconds()? - started))
}

/// CPU time of this thread, from Linux's scheduler statistics: the first number is nanoseconds on a core.
fn thread_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: u64 = statistics.split_whitespace().next().ok_or("schedstat is empty")?.parse()?;
    Ok(nanoseconds as f64 * 1e-9)
}

fn describe(samples: &[RawSample]) {
    let started = Instant::now();
    let mut longest: Vec<u32> = samples
        .iter()
        .filter_map(|sample| read_jpeg(&sample.image))
        .map(|header| header.width.max(header.height))
        .collect();
    let header_us = started.elapsed().as_secs_f64() * 1e6 / samples.len() as f64;
    longest.sort_unstable();
    let bytes: usize = samples.iter().map(|sample| sample.image.len()).sum();
    println!(
        "{} JPEGs, longest side {} pixels (median; {} to {}), {} kB on average; {header_us:.1} µs to read a header",
        samples.len(),
        longest[longest.len() / 2],
        longest[0],
        longest[longest.len() - 1],
        bytes / samples.len() / 1000
    );
}
