//! Feeds damaged tars and pictures to the reader of tars and to the decoders, for so many seconds.
//!
//! `fuzz SECONDS FINDINGS [--seed N] FILE...` takes as its corpus the files, and the members of those that are tars. It
//! mutates without looking at coverage: flips, numbers that hurt, blocks moved, cut, doubled and spliced; in half of the tars it sets the
//! checksums right again, so that what lies behind them is reached. A tar is judged by the strict reading of
//! `tests/strict.rs`, a picture by the limits of the decoder (`judge.rs`). The input at hand lies in `FINDINGS/current`, and so is there
//! when the process is ended by a signal, by the limit of its memory, or by its own watch over single inputs that take too
//! long. A complaint or a panic that escapes is stored as `FINDINGS/tar-N` or `picture-N`, and ends it with code 1 at the end.

#![allow(clippy::print_stdout)] // its findings are its output
#[path = "judge.rs"]
mod judge;
#[path = "../../tests/strict.rs"]
mod strict;

use judge::{Judge, Outcome};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Bytes of address space beyond what the program takes at its start.
const ROOM: u64 = 512 << 20;
const LONGEST_INPUT: usize = 256 << 10;
const TOO_LONG: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let mut names = Vec::new();
    let mut seed = 1;
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seed" => seed = arguments.next().ok_or("--seed needs a number")?.parse()?,
            _ => names.push(argument),
        }
    }
    let [seconds, findings, files @ ..] = &names[..] else {
        return Err("usage: fuzz SECONDS FINDINGS [--seed N] FILE...".into());
    };
    let ends = Instant::now() + Duration::from_secs(seconds.parse()?);
    std::fs::create_dir_all(findings)?;
    let corpus = Corpus::read(files)?;
    println!("fuzz: {} tars, {} pictures, seed {seed}", corpus.tars.len(), corpus.pictures.len());
    let mut fuzzer = Fuzzer::new(findings.into(), seed)?;
    limit_memory()?;
    std::panic::set_hook(Box::new(|_| {})); // what escapes is counted; what does not is the decoder's business

    let mut shown = Instant::now();
    while Instant::now() < ends {
        fuzzer.one(&corpus)?;
        if shown.elapsed() > Duration::from_secs(60) {
            shown = Instant::now();
            println!("{}", fuzzer.summary());
        }
    }
    println!("{}", fuzzer.summary());
    if fuzzer.found > 0 {
        return Err(format!("{} findings in {findings}", fuzzer.found).into());
    }
    std::fs::remove_file(Path::new(findings).join("current"))?;
    Ok(())
}

struct Corpus {
    tars: Vec<Vec<u8>>,
    pictures: Vec<Vec<u8>>,
}

impl Corpus {
    fn read(files: &[String]) -> Result<Self> {
        let mut corpus = Self { tars: Vec::new(), pictures: Vec::new() };
        for name in files {
            let bytes = std::fs::read(name)?;
            if !name.ends_with(".tar") {
                corpus.pictures.push(bytes);
                continue;
            }
            let mut tar = tar::Archive::new(&bytes[..]);
            for entry in tar.entries()? {
                let mut member = Vec::new();
                // a damaged tar gives what it has
                let Ok(_) = entry.and_then(|mut entry| entry.read_to_end(&mut member)) else { break };
                if shoal::decode::sniff(&member).is_ok() && member.len() <= LONGEST_INPUT {
                    corpus.pictures.push(member);
                }
            }
            corpus.tars.push(bytes[..bytes.len().min(LONGEST_INPUT)].to_vec());
        }
        if corpus.tars.is_empty() || corpus.pictures.is_empty() {
            return Err("the corpus needs tars and pictures".into());
        }
        Ok(corpus)
    }
}

struct Fuzzer {
    findings: PathBuf,
    random: ChaCha8Rng,
    tar: PathBuf,
    judge: Judge,
    watch: Arc<AtomicU64>,
    tars: u64,
    pictures: u64,
    decoded: u64,
    caught: u64,
    found: u64,
    slowest: Duration,
}

impl Fuzzer {
    fn new(findings: PathBuf, seed: u64) -> Result<Self> {
        let tar = findings.join("current");
        let judge = Judge::new(&tar)?;
        let watch = Arc::new(AtomicU64::new(0));
        watch_over(Arc::clone(&watch));
        Ok(Self {
            findings,
            random: ChaCha8Rng::seed_from_u64(seed),
            tar,
            judge,
            watch,
            tars: 0,
            pictures: 0,
            decoded: 0,
            caught: 0,
            found: 0,
            slowest: Duration::ZERO,
        })
    }

    fn one(&mut self, corpus: &Corpus) -> Result<()> {
        let is_tar = self.random.random_range(0..3) == 0;
        let pool = if is_tar { &corpus.tars } else { &corpus.pictures };
        let mut input = pool[self.random.random_range(0..pool.len())].clone();
        let other = &pool[self.random.random_range(0..pool.len())];
        if is_tar {
            // a few members are enough, and faster
            let blocks = input.len() / 512;
            let from = self.random.random_range(0..blocks) * 512;
            input.drain(..if self.random.random() { from } else { 0 });
            input.truncate(self.random.random_range(1..64) * 512);
            input.resize(input.len() + 1024, 0);
        }
        mutate(&mut input, other, &mut self.random);
        if is_tar && self.random.random() {
            mend_checksums(&mut input);
        }
        std::fs::write(&self.tar, &input)?;

        self.watch.fetch_add(1, Ordering::SeqCst);
        let started = Instant::now();
        let outcome =
            catch_unwind(AssertUnwindSafe(|| if is_tar { self.judge.read(&input) } else { self.decode(&input) }));
        self.slowest = self.slowest.max(started.elapsed());
        if is_tar {
            self.tars += 1;
        } else {
            self.pictures += 1;
        }
        let complaint = outcome.unwrap_or_else(|_| Some("a panic escaped".to_owned()));
        if let Some(complaint) = complaint {
            self.found += 1;
            let kind = if is_tar { "tar" } else { "picture" };
            let path = self.findings.join(format!("{kind}-{}", self.found));
            std::fs::write(&path, &input)?;
            println!("{}: {complaint}", path.display());
        }
        Ok(())
    }

    fn decode(&mut self, picture: &[u8]) -> Option<String> {
        match self.judge.decode(picture) {
            Outcome::Decoded => self.decoded += 1,
            Outcome::Caught => self.caught += 1,
            Outcome::Refused => {}
            Outcome::Wrong(what) => return Some(what),
        }
        None
    }

    fn summary(&self) -> String {
        let Self { tars, pictures, decoded, caught, found, slowest, .. } = self;
        format!(
            "fuzz: {tars} tars, {pictures} pictures ({decoded} decoded, {caught} panics caught by the decoder); slowest {slowest:.1?}; {found} findings"
        )
    }
}

/// Ends the process where one input takes too long: the input is in `current`.
fn watch_over(count: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let mut last = 0;
        loop {
            std::thread::sleep(TOO_LONG);
            let now = count.load(Ordering::SeqCst);
            if now == last && now > 0 {
                println!("fuzz: input {now} takes longer than {TOO_LONG:?}");
                std::process::abort();
            }
            last = now;
        }
    });
}

fn limit_memory() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmSize")).ok_or("no VmSize")?;
    let taken: u64 = line.split_whitespace().nth(1).ok_or("no VmSize")?.parse()?;
    let limit = Rlimit { current: Some(taken * 1024 + ROOM), maximum: getrlimit(Resource::As).maximum };
    Ok(setrlimit(Resource::As, limit)?)
}

/// Damages `input` in one to eight ways.
fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut ChaCha8Rng) {
    const HURTFUL: [u64; 12] =
        [0, 1, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 62, u64::MAX];
    for _ in 0..random.random_range(1..9) {
        if input.is_empty() {
            return;
        }
        let reach = if random.random() { input.len() } else { input.len().min(1024) };
        let at = random.random_range(0..reach);
        let length = random.random_range(1..=64.min(input.len() - at));
        match random.random_range(0..9) {
            0 | 1 => input[at] ^= 1 << random.random_range(0..8),
            2 => input[at] = random.random(),
            3 => {
                let number = HURTFUL[random.random_range(0..HURTFUL.len())];
                let width = [1, 2, 4, 8][random.random_range(0..4)].min(input.len() - at);
                let bytes = if random.random() { number.to_le_bytes() } else { number.reverse_bits().to_be_bytes() };
                input[at..at + width].copy_from_slice(&bytes[..width]);
            }
            4 => input.truncate(at),
            5 => drop(input.drain(at..at + length)),
            6 => {
                let piece = input[at..at + length].to_vec();
                let to = random.random_range(0..=input.len());
                input.splice(to..to, piece);
            }
            7 => {
                let from = random.random_range(0..other.len());
                let piece = &other[from..(from + 16 * length).min(other.len())];
                let end = (at + piece.len()).min(input.len());
                input.splice(at..end, piece.iter().copied());
            }
            _ => {
                // digits of a size, kinds of a header: in place, in a block
                let block = at / 512 * 512;
                let field = [124, 156, 257, 345, 482][random.random_range(0..5)];
                let digit = b"01234567xgLKSV5\0 \x80"[random.random_range(0..18)];
                if let Some(byte) = input.get_mut(block + field + random.random_range(0..11)) {
                    *byte = digit;
                }
            }
        }
    }
    input.truncate(LONGEST_INPUT);
}

/// Writes the right checksum into every block that has something like one.
fn mend_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512) {
        let looks_like_header = block[148..154].iter().all(|byte| (b'0'..=b'7').contains(byte));
        if looks_like_header {
            let sum = format!("{:06o}\0 ", strict::sum_of(block));
            block[148..156].copy_from_slice(sum.as_bytes());
        }
    }
}
