//! The checks, each a function from nothing, a folder or some bytes to one [`Check`].

use super::Check;
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::pipeline::start_runtime;
use crate::shards::ShardList;
use crate::shards::audit::{Glance, glance};
use crate::torch::cuda;
use futures_util::{StreamExt, TryStreamExt};
use indicatif::HumanBytes;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tch::{Cuda, Device, Kind, Tensor};
use turbojpeg::{Image, PixelFormat, Subsamp};

/// The libtorch that tch 0.24 is made for.
const LIBTORCH: &str = "2.11.";
const GIB: u64 = 1 << 30;
/// Shards of a list that are looked at one by one.
const FIRST_SHARDS: usize = 3;

/// Which libtorch is loaded, and from where.
pub(super) fn libtorch() -> Check {
    let name = "libtorch";
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let loaded = maps
        .lines()
        .find_map(|line| line.find('/').map(|at| &line[at..]).filter(|path| path.ends_with("/libtorch_cpu.so")));
    let built_with = env!("SHOAL_LIBTORCH_LIB");
    let library = loaded.map_or_else(|| Path::new(built_with).join("libtorch_cpu.so"), PathBuf::from);
    let folder = library.parent().unwrap_or(Path::new("/"));
    let hint = "ops/setup.sh installs libtorch 2.11.0; LIBTORCH names another place at build time";
    match libtorch_version(folder) {
        Some(version) if version.starts_with(LIBTORCH) => Check::ok(name, format!("{version} in {}", folder.display())),
        Some(version) => Check::fail(name, format!("{version} in {}, not {LIBTORCH}x", folder.display()), hint),
        None => Check::warn(name, format!("of unknown version in {}", folder.display()), hint),
    }
}

/// The version that stands beside the libraries: `build-version` in libtorch's archive, `version.py` in PyPI's wheel.
fn libtorch_version(lib: &Path) -> Option<String> {
    let parent = lib.parent()?;
    if let Ok(text) = fs::read_to_string(parent.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let text = fs::read_to_string(parent.join("version.py")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(value.trim_matches(['\'', '"']).to_owned())
}

/// Cores, vector instructions, and how fast libtorch multiplies matrices with them.
pub(super) fn cpu() -> Check {
    let name = "CPU";
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let vectors = vector_instructions();
    match multiply_speed() {
        Ok(speed) => {
            let value = format!("{cores} cores with {vectors}, {speed:.0} GFLOP/s in fp32");
            if vectors == "no vector instructions" {
                return Check::warn(name, value, "training will crawl: a CPU with AVX2 is several times faster");
            }
            Check::ok(name, value)
        }
        Err(error) => Check::fail(name, format!("libtorch cannot multiply: {error}"), "run ops/setup.sh again"),
    }
}

#[cfg(target_arch = "x86_64")]
fn vector_instructions() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx512f") {
        return "AVX-512";
    }
    if std::arch::is_x86_feature_detected!("avx2") { "AVX2" } else { "no vector instructions" }
}

#[cfg(not(target_arch = "x86_64"))]
fn vector_instructions() -> &'static str {
    std::env::consts::ARCH
}

/// Billions of additions and multiplications a second, at best of a few tries.
fn multiply_speed() -> Result<f64> {
    const SIDE: i64 = 512;
    let matrix = Tensor::f_ones([SIDE, SIDE], (Kind::Float, Device::Cpu))?;
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        let product = matrix.f_matmul(&matrix)?;
        best = best.min(start.elapsed());
        let corner = product.f_double_value(&[0, 0])?;
        if corner != SIDE as f64 {
            return Err(Error::device(format!("a sum of {SIDE} ones is {corner}")));
        }
    }
    Ok(2.0 * (SIDE as f64).powi(3) / best.as_secs_f64() / 1e9)
}

/// CUDA, in the loader's own words.
pub(super) fn cuda(is_needed: bool) -> Check {
    let trouble = match cuda::open() {
        Ok(()) if Cuda::is_available() => {
            let cudnn = if Cuda::cudnn_is_available() { "cuDNN" } else { "no cuDNN" };
            return Check::ok("CUDA", format!("{} device(s), {cudnn}", Cuda::device_count()));
        }
        Ok(()) => "libtorch_cuda is loaded, but finds no device or driver (see nvidia-smi)".to_owned(),
        Err(loader) => loader,
    };
    if is_needed {
        return Check::fail(
            "CUDA",
            trouble,
            "ops/setup.sh --cuda installs its libraries; or set device.kind = \"cpu\"",
        );
    }
    Check::warn("CUDA", trouble, "the CPU trains; for a GPU run ops/setup.sh --cuda")
}

/// Encodes and decodes a picture of known pixels.
pub(super) fn jpeg() -> Check {
    match jpeg_round_trip() {
        Ok(megapixels) => Check::ok("JPEG", format!("libjpeg-turbo with SIMD, {megapixels:.0} megapixels/s on a core")),
        Err(error) => {
            Check::fail("JPEG", error.to_string(), "the decoder is built in: build again with cmake and nasm")
        }
    }
}

/// Megapixels decoded a second.
fn jpeg_round_trip() -> Result<f64> {
    const SIDE: usize = 512;
    // A gradient with grain: as much to decode as a photograph has.
    let grain = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 27) as usize;
    let pixel = |i: usize| [i % SIDE / 4, i / SIDE / 4, 64].map(|value| (value + grain(i)) as u8);
    let pixels: Vec<u8> = (0..SIDE * SIDE).flat_map(pixel).collect();
    let image =
        Image { pixels: pixels.as_slice(), width: SIDE, pitch: 3 * SIDE, height: SIDE, format: PixelFormat::RGB };
    let trouble = |error: turbojpeg::Error| Error::device(format!("libjpeg-turbo: {error}"));
    let encoded = turbojpeg::compress(image, 90, Subsamp::Sub2x2).map_err(trouble)?;
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        let decoded = turbojpeg::decompress(&encoded, PixelFormat::RGB).map_err(trouble)?;
        best = best.min(start.elapsed());
        let difference: u64 = decoded.pixels.iter().zip(&pixels).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        let mean = difference as f64 / pixels.len() as f64;
        if decoded.pixels.len() != pixels.len() || mean > 4.0 {
            return Err(Error::device(format!("decoded pixels are off by {mean:.1} of 255 on average")));
        }
    }
    Ok((SIDE * SIDE) as f64 / best.as_secs_f64() / 1e6)
}

/// Memory that may still be used: the machine's, or less where a container sets a limit.
pub(super) fn memory() -> Check {
    let Some(available) = available_memory() else {
        return Check::warn("memory", "unknown: /proc/meminfo cannot be read", "watch the size of the process");
    };
    let limit = memory_limit();
    let usable = limit.map_or(available, |limit| available.min(limit));
    let value = match limit {
        Some(limit) => format!("{} usable (the container's limit is {})", HumanBytes(usable), HumanBytes(limit)),
        None => format!("{} usable", HumanBytes(usable)),
    };
    if usable < 4 * GIB {
        return Check::warn("memory", value, "lower bank.capacity, stream.shuffle and stream.buffer_mib");
    }
    Check::ok("memory", value)
}

/// Bytes that may still be used.
pub(super) fn usable_memory() -> Option<u64> {
    let available = available_memory()?;
    Some(memory_limit().map_or(available, |limit| available.min(limit)))
}

fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The smallest limit of this process's control groups, versions 1 and 2.
fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut smallest: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        // Inside a container the group's path is often that of the host, and its limit stands at the root.
        for folder in Path::new(group.trim_start_matches('/')).ancestors() {
            let path = Path::new(root).join(folder).join(file);
            let limit = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
            // Version 1 writes "no limit" as a number near 2^63.
            let limit = limit.filter(|limit| *limit < 1 << 60);
            smallest = [smallest, limit].into_iter().flatten().min();
        }
    }
    smallest
}

/// Room for the run, and whether its folder takes writes, renames and syncs.
pub(super) fn disk(run_dir: &Path) -> Vec<Check> {
    let absolute = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    let Some(folder) = absolute.ancestors().find(|folder| folder.is_dir()) else {
        return vec![Check::fail(
            "disk",
            format!("{} has no parent folder", absolute.display()),
            "choose another --run",
        )];
    };
    vec![free_space(folder), write_probe(folder)]
}

fn free_space(folder: &Path) -> Check {
    let found = match rustix::fs::statvfs(folder) {
        Ok(found) => found,
        Err(error) => return Check::warn("disk", format!("{}: {error}", folder.display()), "check with df"),
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let value = format!("{} free in {}", HumanBytes(free), folder.display());
    if free < 4 * GIB {
        let hint = "a snapshot with a large bank takes gigabytes: free some, lower snapshot.keep_last, or choose another --run";
        return Check::warn("disk", value, hint);
    }
    Check::ok("disk", value)
}

fn write_probe(folder: &Path) -> Check {
    let name = "disk writes";
    match probe(folder) {
        Ok(time) => Check::ok(name, format!("write, sync and rename of 1 MiB in {:.1} ms", 1e3 * time.as_secs_f64())),
        Err(error) => Check::fail(
            name,
            format!("{}: {error}", folder.display()),
            "snapshots need a folder that you may write to: choose another --run",
        ),
    }
}

/// What a snapshot does, in small.
fn probe(folder: &Path) -> std::io::Result<Duration> {
    let probe = tempfile::Builder::new().prefix(".shoal-doctor-").tempdir_in(folder)?;
    let start = Instant::now();
    let aside = probe.path().join("aside");
    let mut file = File::create(&aside)?;
    file.write_all(&vec![0x5a; 1 << 20])?;
    file.sync_all()?;
    fs::rename(&aside, probe.path().join("named"))?;
    File::open(probe.path())?.sync_all()?;
    let time = start.elapsed();
    probe.close()?;
    Ok(time)
}

/// How the first shards of a pipeline begin.
pub(super) fn shards(list: &ShardList, plan: &Plan) -> Vec<Check> {
    let mut first = list.clone();
    first.shards.truncate(FIRST_SHARDS);
    glances(&first, plan).unwrap_or_else(|error| {
        let hint = error.hint().unwrap_or("check stream.shards and the network").to_owned();
        vec![Check::fail("stream.shards", error.to_string(), hint)]
    })
}

fn glances(list: &ShardList, plan: &Plan) -> Result<Vec<Check>> {
    start_runtime()?.block_on(async {
        let glances = glance(list, &plan.stream, &plan.fetch)?;
        glances.map(|glance| glance.map(|glance| shard(&glance))).try_collect().await
    })
}

fn shard(glance: &Glance) -> Check {
    let name = format!("shard {}", glance.shard);
    match &glance.beginning {
        Ok(beginning) if beginning.first_key.is_none() => Check::fail(name, "no sample in it", "write it again"),
        Ok(beginning) => Check::ok(name, beginning.wrapping.name()),
        Err(trouble) => Check::fail(name, trouble.to_string(), "check stream.shards and the network"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Status;
    use crate::shards::testing::{list_of, samples, zstd};

    #[test]
    fn shards_are_told_by_what_is_in_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let tar = samples("a", 1);
        let shards = [("a.tar", tar.clone()), ("b.tar", zstd(&tar)), ("c.tar", b"\n<!doctype html>".to_vec())];
        let list = list_of(folder.path(), &shards.map(|(name, data)| (name.to_owned(), data)));
        let mut plan = Plan::default();
        plan.stream.shards = list.shards.iter().map(ToString::to_string).collect();
        let checks = super::shards(&list, &plan);
        assert_eq!(checks.iter().map(|check| check.status).collect::<Vec<_>>(), [Status::Ok, Status::Ok, Status::Fail]);
        assert_eq!((checks[0].value.as_str(), checks[1].value.as_str()), ("tar", "tar.zst"));
        assert!(checks[2].value.contains("not_an_archive"), "{checks:?}");

        plan.stream.shards = vec!["nowhere/*.tar".into()];
        assert_eq!(crate::cli::doctor::of_list(&plan)[0].status, Status::Fail);
    }

    #[test]
    fn a_folder_that_takes_no_writes_fails() {
        let checks = disk(Path::new("/proc/shoal/run"));
        assert_eq!(checks.last().map(|check| check.status), Some(Status::Fail), "{checks:?}");
    }

    #[test]
    fn cuda_is_only_missed_where_it_is_asked_for() {
        if cuda::is_usable() {
            assert_eq!(cuda(true).status, Status::Ok);
            return;
        }
        assert_eq!((cuda(false).status, cuda(true).status), (Status::Warn, Status::Fail));
        let reason = cuda(true).value;
        assert!(reason.contains(".so") || reason.contains("nvidia-smi"), "not the loader's own words: {reason}");
    }

    #[test]
    fn the_version_is_read_from_the_wheel_or_the_archive() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let lib = folder.path().join("lib");
        assert_eq!(libtorch_version(&lib), None);
        fs::write(folder.path().join("version.py"), "debug = False\n__version__ = '2.11.0+cu130'\n")?;
        assert_eq!(libtorch_version(&lib).as_deref(), Some("2.11.0+cu130"));
        fs::write(folder.path().join("build-version"), "2.10.0\n")?;
        assert_eq!(libtorch_version(&lib).as_deref(), Some("2.10.0"));
        Ok(())
    }
}
