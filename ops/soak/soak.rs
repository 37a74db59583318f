//! Streams and decodes for as long as it lives, and writes down every sample that came out: what `ops/soak/soak.sh` kills.
//!
//! `soak STATE LIST [--once] [--rate N] [--set KEY=VALUE]...` runs the whole left half of the program (ingest, decode, batch)
//! on the shards of LIST. `STATE/samples.log` gets a line `pass shard offset digest` for each image, the digest over the
//! pixels of its center view; `STATE/position.json` says how much of the log is good and where the stream goes on. The
//! second is written aside and renamed, so that a SIGKILL at any moment leaves the two in step: started again, this
//! cuts the log back to the position and goes on from there, as a training run does with a snapshot.
//!
//! With `--once` it reads the list one time, in order, and ends: the reference. `--rate` holds it to so many images/s.
//! Losses go to `STATE/ledger.jsonl`. It ends with an error where the stream does.

#![allow(clippy::print_stderr)] // a driver of a test talks to whoever started it
use serde::{Deserialize, Serialize};
use shoal::config::Plan;
use shoal::ingest::{Cursor, Passes, Share};
use shoal::pipeline::feed::{Feed, FeedPlan, Filters, Next};
use shoal::pipeline::start_runtime;
use shoal::pipeline::stop::Stop;
use shoal::shards::{Ledger, ShardList};
use shoal::torch::device::place;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const BATCH: usize = 64;
/// Batches between two positions on disk.
const COMMIT_EVERY: u64 = 16;
const PIPELINE: &str = r#"
[stream]
lanes = 8
shuffle = 2000
max_loss_rate = 1.0
[fetch]
timeout_s = 4.0
retries = 12
[views]
size = 64
resize = 72
[device]
kind = "cpu"
threads = 1
decode_threads = 1
"#;

struct Arguments {
    state: PathBuf,
    once: bool,
    rate: f64,
    set: Vec<String>,
}

/// How much of the log is good, and where the stream goes on after it.
#[derive(Default, Serialize, Deserialize)]
struct Position {
    log_bytes: u64,
    images: u64,
    cursor: Cursor,
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let plan = Plan::parse(PIPELINE, Path::new("soak"), &arguments.set)?;
    let list = ShardList::parse(&plan.stream.shards)?;
    std::fs::create_dir_all(&arguments.state)?;
    let position_path = arguments.state.join("position.json");
    let mut position = match std::fs::read(&position_path) {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(_) => Position::default(),
    };
    let log_path = arguments.state.join("samples.log");
    let mut log = OpenOptions::new().create(true).truncate(false).write(true).open(log_path)?;
    log.set_len(position.log_bytes)?;
    log.seek(SeekFrom::End(0))?;

    let runtime = start_runtime()?;
    let stop = Stop::default();
    stop.on_signals(runtime.handle())?;
    let ledger = Arc::new(Ledger::open(&arguments.state.join("ledger.jsonl"), &plan.stream)?);
    let feed = FeedPlan {
        share: Share::whole(),
        passes: if arguments.once { Passes::Once } else { Passes::Endless },
        start: position.cursor.clone(),
        batch_size: BATCH,
        center_views: Some(shoal::decode::CenterCrops::Middle),
        train_views: false,
        held: 1,
        filters: Filters::None,
    };
    let mut feed = Feed::open(runtime.handle(), &plan, &place(&plan.device)?, list, &ledger, feed)?;

    let started = Instant::now();
    let mut batches = 0;
    let mut images = 0_usize;
    while let Next::Batch(batch) = feed.next(&stop)? {
        let pixels = Vec::<u8>::try_from(batch.center()?.flatten(0, -1))?;
        let mut lines = String::new();
        for (sample, row) in batch.samples.iter().zip(pixels.chunks_exact(pixels.len() / batch.samples.len())) {
            let shard = sample.shard.rsplit('/').next().unwrap_or_default();
            let digest = xxhash_rust::xxh3::xxh3_64(row) as u32;
            writeln!(lines, "{} {shard} {} {digest:08x}", sample.pass, sample.offset)?;
        }
        log.write_all(lines.as_bytes())?;
        position.log_bytes += lines.len() as u64;
        position.images += batch.samples.len() as u64;
        position.cursor = batch.end.cursor.clone();
        images += batch.samples.len();
        drop(batch);
        batches += 1;
        if batches % COMMIT_EVERY == 0 {
            commit(&position, &position_path)?;
        }
        let due = Duration::from_secs_f64(images as f64 / arguments.rate);
        std::thread::sleep(due.saturating_sub(started.elapsed()).min(Duration::from_secs(1)));
    }
    commit(&position, &position_path)?;
    eprintln!("soak: {} images, {} of them by this process", position.images, images);
    Ok(())
}

/// Writes the position aside and renames it. The log was written before, and outlives the process in the system's cache.
fn commit(position: &Position, path: &Path) -> Result<()> {
    let aside = path.with_extension("new");
    serde_json::to_writer(File::create(&aside)?, position)?;
    std::fs::rename(&aside, path)?;
    Ok(())
}

fn arguments() -> Result<Arguments> {
    let mut found = Arguments { state: PathBuf::new(), once: false, rate: f64::INFINITY, set: Vec::new() };
    let mut names = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // cargo adds it
            "--once" => found.once = true,
            "--rate" => found.rate = arguments.next().ok_or("--rate needs a number")?.parse()?,
            "--set" => found.set.push(arguments.next().ok_or("--set needs KEY=VALUE")?),
            _ => names.push(argument),
        }
    }
    let Ok([state, list]) = <[String; 2]>::try_from(names) else {
        return Err("usage: soak STATE LIST [--once] [--rate N] [--set KEY=VALUE]...".into());
    };
    found.state = state.into();
    found.set.push(format!("stream.shards={list}"));
    Ok(found)
}
