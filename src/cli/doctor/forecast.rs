//! What a pipeline will do on this machine, from a probe of its list: how fast the link, the cores and the network are,
//! which of them is the narrowest, how long a pass takes, and how much memory it needs.
//!
//! In: a plan. Out: checks, a problem of the list first. The figures are those of a short trial: a page cache that is
//! warm, or a network that is busy, makes others of them.

use super::probe::{Probe, probe};
use super::{Check, checks};
use crate::config::{Balance, Labels, Plan};
use crate::decode::{DecodeStats, Decoder, Format, read_jpeg, sniff};
use crate::error::{Error, Result};
use crate::model::{Backbone, Mode, Normalizer};
use crate::observe::console::span;
use crate::shards::ShardList;
use crate::torch::device::{Placement, place, set_threads};
use crate::train::upload::IN_FLIGHT;
use indicatif::{HumanBytes, HumanCount};
use rayon::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Decoding goes over the probe again until it has taken this long.
const TRIAL: Duration = Duration::from_millis(500);
/// Slots that are being filled or wait, beside those that the trainer holds or copies.
const OTHER_SLOTS: usize = 2;

/// Every check that follows from the list.
pub(super) fn forecast(list: &ShardList, plan: &Plan) -> Vec<Check> {
    let probe = match probe(list, plan) {
        Ok(probe) => probe,
        Err(error) => return vec![Check::fail("list", error.to_string(), error.hint().unwrap_or("check the network"))],
    };
    let mut all = vec![list_check(list, &probe)];
    if probe.samples.is_empty() {
        return all;
    }
    match Trial::run(plan, &probe) {
        Ok(trial) => all.extend(trial.checks(plan, list, &probe)),
        Err(error) => {
            all.push(Check::fail("forecast", error.to_string(), error.hint().unwrap_or("see the checks above")));
        }
    }
    all
}

/// What the list is, and the first thing that is wrong with it.
fn list_check(list: &ShardList, probe: &Probe) -> Check {
    let mut value = format!("{} shards", HumanCount(list.shards.len() as u64));
    if list.duplicates > 0 {
        value = format!("{value} ({} more are named twice, and read once)", list.duplicates);
    }
    let Some((shard, trouble)) = probe.lost.first() else {
        return Check::ok("list", format!("{value}; {} samples of {} read", probe.samples.len(), probe.shards));
    };
    let value =
        format!("{value}; {} losses in a probe of {}, first {shard}: {trouble}", probe.lost.len(), probe.shards);
    let hint = "`shoal shards check` reads all of it and accounts for every byte";
    if probe.samples.is_empty() { Check::fail("list", value, hint) } else { Check::warn("list", value, hint) }
}

/// What came of trying the probe on this machine.
struct Trial {
    codecs: BTreeMap<&'static str, usize>,
    stats: DecodeStats,
    /// Images a second that the decoding threads turn into views.
    decode_rate: f64,
    mean_bytes: f64,
    mean_pixels: f64,
    /// Images a second of the network's own work.
    train_rate: f64,
    feature_dim: u64,
    placement: Placement,
}

impl Trial {
    fn run(plan: &Plan, probe: &Probe) -> Result<Self> {
        let placement = place(&plan.device)?;
        set_threads(&placement);
        let mut codecs = BTreeMap::new();
        for sample in &probe.samples {
            *codecs.entry(codec(&sample.image)).or_default() += 1;
        }
        let (stats, decode_rate, pixels) = decode(plan, probe, placement.decode_threads)?;
        let (train_rate, feature_dim) = train(plan, &placement)?;
        let bytes: usize = probe.samples.iter().map(|sample| sample.image.len()).sum();
        Ok(Self {
            codecs,
            stats,
            decode_rate,
            mean_bytes: bytes as f64 / probe.samples.len() as f64,
            mean_pixels: pixels,
            train_rate,
            feature_dim,
            placement,
        })
    }

    fn checks(&self, plan: &Plan, list: &ShardList, probe: &Probe) -> Vec<Check> {
        let count = probe.samples.len();
        let share = |(name, found): (&&str, &usize)| format!("{:.0} % {name}", 100.0 * *found as f64 / count as f64);
        let mut codecs: Vec<(&&str, &usize)> = self.codecs.iter().collect();
        codecs.sort_by(|a, b| b.1.cmp(a.1));
        let codecs = codecs.into_iter().map(share).collect::<Vec<String>>().join(", ");
        let (kilobytes, megapixels) = (self.mean_bytes / 1e3, self.mean_pixels / 1e6);
        let images =
            Check::ok("images", format!("{codecs}; {kilobytes:.0} kB and {megapixels:.2} megapixels on average"))
                .with_numbers(
                    json!({"codecs": self.codecs, "mean_bytes": self.mean_bytes, "mean_pixels": self.mean_pixels}),
                );
        let images = match self.stats.rejected.iter().max_by_key(|(_, count)| **count) {
            Some((reason, _)) => Check {
                status: super::Status::Warn,
                hint: Some(format!(
                    "some of the probe do not decode, most of them by {reason}: see `shoal shards check`"
                )),
                ..images
            },
            None => images,
        };

        let bytes_per_s = probe.bytes as f64 / probe.time.as_secs_f64();
        let link_rate = bytes_per_s / self.mean_bytes;
        let link =
            format!("{}/s over {} connections: {link_rate:.0} images/s", HumanBytes(bytes_per_s as u64), probe.shards);
        let threads = self.placement.decode_threads;
        let cores = format!(
            "{threads} threads turn {:.0} images/s into two views; {} and thread",
            self.decode_rate,
            self.stats.per_image()
        );
        let device = if self.placement.device == Device::Cpu { "the CPU" } else { "the GPU" };
        let network = format!("{device} labels and trains on about {:.0} images/s", self.train_rate);

        // On a CPU the network and the decoders share the cores.
        let shares_cores = self.placement.device == Device::Cpu;
        let working =
            if shares_cores { 1.0 / (1.0 / self.train_rate + 1.0 / self.decode_rate) } else { self.train_rate };
        let rates = [("the link", link_rate), ("decoding", self.decode_rate), ("the network", self.train_rate)];
        let narrowest = rates.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |(name, _)| name);
        let rate = link_rate.min(self.decode_rate).min(working);
        let total = probe.samples_a_shard.map(|samples| samples * list.shards.len() as f64);
        let pass = match total {
            Some(total) => format!(
                "about {} samples, {} a pass at {rate:.0} images/s; {narrowest} is the narrowest",
                HumanCount(total as u64),
                span(Duration::from_secs_f64(total / rate.max(1e-9)))
            ),
            None => format!(
                "{rate:.0} images/s; {narrowest} is the narrowest; the servers tell no lengths, so the samples are not counted"
            ),
        };
        vec![
            images,
            Check::ok("link", link).with_numbers(json!({"bytes_per_s": bytes_per_s, "images_per_s": link_rate})),
            Check::ok("decoding", cores).with_numbers(json!({"threads": threads, "images_per_s": self.decode_rate})),
            Check::ok("network", network).with_numbers(json!({"images_per_s": self.train_rate})),
            Check::ok("pass", pass)
                .with_numbers(json!({"samples": total, "images_per_s": rate, "narrowest": narrowest})),
            self.memory(plan),
        ]
    }

    /// What the pipeline holds beside the network and its activations.
    fn memory(&self, plan: &Plan) -> Check {
        let held = if plan.train.balance == Balance::Sample { plan.train.balance_window } else { 1 };
        let side = u64::from(plan.views.size);
        let slots = (held + IN_FLIGHT + OTHER_SLOTS) as u64 * plan.train.batch_size as u64 * side * side * 3 * 2;
        let shuffle = (plan.stream.shuffle as f64 * self.mean_bytes) as u64;
        let buffer = (plan.stream.buffer_mib as u64) << 20;
        let bank = match plan.train.labels {
            Labels::Clusters => plan.bank.capacity as u64 * self.feature_dim * 2,
            Labels::Classes => 0,
        };
        let needed = slots + shuffle + buffer + bank;
        let value = format!(
            "{} beside the network: batches {}, shuffle buffer {}, read ahead {}, bank {}",
            HumanBytes(needed),
            HumanBytes(slots),
            HumanBytes(shuffle),
            HumanBytes(buffer),
            HumanBytes(bank)
        );
        let numbers = json!({"bytes": needed, "batches": slots, "shuffle": shuffle, "buffer": buffer, "bank": bank});
        let check = match checks::usable_memory() {
            Some(usable) if needed > usable => {
                let hint = format!("only {} are usable: lower bank.capacity or stream.shuffle", HumanBytes(usable));
                Check::fail("memory needed", value, hint)
            }
            _ => Check::ok("memory needed", value),
        };
        check.with_numbers(numbers)
    }
}

/// What a sample is, in words that operators use.
fn codec(image: &[u8]) -> &'static str {
    match sniff(image) {
        Ok(Format::Jpeg) => match read_jpeg(image) {
            Some(header) if header.components == 1 => "gray JPEG",
            Some(header) if header.components == 4 => "CMYK JPEG",
            Some(header) if header.progressive => "progressive JPEG",
            _ => "JPEG",
        },
        Ok(Format::Png) => "PNG",
        Ok(Format::WebP) => "WebP",
        Ok(Format::Gif) => "GIF",
        Ok(Format::Bmp) => "BMP",
        Ok(Format::Tiff) => "TIFF",
        Err(trouble) => trouble.reason.name(),
    }
}

/// Decodes the probe into both views on `threads` threads: counters, images a second, mean pixels of an image.
fn decode(plan: &Plan, probe: &Probe, threads: usize) -> Result<(DecodeStats, f64, f64)> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Error::device(format!("cannot start {threads} decoding threads: {error}")))?;
    let decoder = Decoder::new(&plan.views, &plan.stream);
    let view_bytes = (plan.views.size * plan.views.size * 3) as usize;
    let mut pixels = 0.0;
    let mut images = 0;
    let started = Instant::now();
    while started.elapsed() < TRIAL {
        let sizes: Vec<(u32, u32)> = pool.install(|| {
            let views = || (vec![0; view_bytes], vec![0; view_bytes]);
            let decoded = probe.samples.par_iter().map_init(views, |(center, train), sample| {
                decoder.decode_into(sample, Some(center), Some(train)).ok().map(|decoded| decoded.size)
            });
            decoded.flatten().collect()
        });
        let sum: f64 = sizes.iter().map(|&(width, height)| f64::from(width) * f64::from(height)).sum();
        pixels = sum / sizes.len().max(1) as f64;
        images += probe.samples.len();
    }
    Ok((decoder.counters().read(), images as f64 / started.elapsed().as_secs_f64(), pixels))
}

/// Images a second through a forward pass of the assigner, where there is one, and a forward and backward pass of the student; and the length
/// of a feature. Optimiser, clustering and snapshots are left out.
fn train(plan: &Plan, placement: &Placement) -> Result<(f64, u64)> {
    let device = placement.device;
    let (rows, steps) =
        if device == Device::Cpu { (plan.train.batch_size.min(16), 1) } else { (plan.train.batch_size, 5) };
    let network = Backbone::new(&plan.model, plan.views.size, plan.stream.seed, device, plan.device.precision)?;
    let normalizer = Normalizer::new(&plan.views.mean, &plan.views.std, device)?;
    let side = i64::from(plan.views.size);
    let pixels = Tensor::f_randint(256, [rows as i64, side, side, 3], (Kind::Uint8, device))?;
    let step = || -> Result<()> {
        let images = normalizer.prepare(&pixels)?;
        if plan.train.labels == Labels::Clusters {
            let _features = tch::no_grad(|| network.forward(&images, Mode::Eval))?;
        }
        let loss = network.forward(&images, Mode::Train)?.f_mean(Kind::Float)?;
        loss.f_backward()?;
        loss.f_double_value(&[])?; // waits for the device
        Ok(())
    };
    step()?; // the first step allocates, and chooses algorithms
    let started = Instant::now();
    for _ in 0..steps {
        step()?;
    }
    let rate = (steps * rows) as f64 / started.elapsed().as_secs_f64();
    Ok((rate, network.feature_dim() as u64))
}
