//! Archives cut at every byte and flipped at every bit: never a panic, never a silent end.
//!
//! What is allowed is decided by a second, strict reading of the same bytes (`strict.rs`). Where that finds nothing wrong, ours
//! must be complete and give the same samples; where it stops, ours must say that something is wrong, and give what lies
//! before. In compressed archives any change must be noticed, or change nothing.

use crate::strict::{Sample, Strict, sum_of};
use shoal::config::FetchPlan;
use shoal::shards::archive::{Archive, Ending, Verdict};
use shoal::shards::sample::{Lost, Samples, Step};
use shoal::shards::source::Fetcher;
use shoal::shards::{Reading, Reason, ShardList, ShardSample, ShardUrl};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Larger members than this are passed over.
const MOST: u64 = 1 << 20;

/// Key, offset, end, image, class.
type Plain = (String, u64, u64, Vec<u8>, Option<i64>);

/// Reads archives from memory by way of a file.
struct Reader {
    file: File,
    url: ShardUrl,
    fetcher: Arc<Fetcher>,
    _runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

/// All that came of one archive.
#[derive(Debug)]
struct Outcome {
    samples: Vec<Plain>,
    losses: Vec<Lost>,
    ending: Ending,
}

impl Reader {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged.tar");
        let file = File::create(&path).unwrap();
        let list = ShardList::parse(&[path.display().to_string()]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let fetcher = {
            let _inside = runtime.enter();
            Fetcher::new(&list.shards, &FetchPlan::default()).unwrap()
        };
        Self { file, url: list.shards[0].clone(), fetcher, _runtime: runtime, _folder: folder }
    }

    /// Puts these bytes into the file and walks them.
    fn walk(&self, bytes: &[u8], most_steps: usize) -> Outcome {
        self.file.set_len(bytes.len() as u64).unwrap();
        self.file.write_all_at(bytes, 0).unwrap();
        self.walk_file(most_steps)
    }

    /// Walks the file with one byte of it changed.
    fn walk_with(&self, at: usize, byte: u8, instead_of: u8, most_steps: usize) -> Outcome {
        self.file.write_all_at(&[byte], at as u64).unwrap();
        let outcome = self.walk_file(most_steps);
        self.file.write_all_at(&[instead_of], at as u64).unwrap();
        outcome
    }

    /// Walks to the end. There are only so many steps in so many uncompressed bytes.
    fn walk_file(&self, most_steps: usize) -> Outcome {
        let reading = Reading::new(Arc::clone(self.url.name()));
        let mut outcome = Outcome {
            samples: Vec::new(),
            losses: Vec::new(),
            ending: Ending { verdict: Verdict::Complete, trouble: None },
        };
        let mut samples = match Archive::open(&self.url, &self.fetcher, &reading) {
            Ok(archive) => Samples::new(archive, MOST),
            Err(trouble) => {
                outcome.ending = Ending::failed(trouble);
                return outcome;
            }
        };
        for _ in 0..most_steps {
            match samples.step() {
                Step::Sample(ShardSample { key, offset, end, image, class, .. }) => {
                    outcome.samples.push((key, offset, end, image.to_vec(), class));
                }
                Step::Lost(lost) => outcome.losses.push(lost),
                Step::End(ending) => {
                    assert_eq!(samples.step(), Step::End(ending.clone()), "an end is an end");
                    outcome.ending = ending;
                    return outcome;
                }
            }
        }
        panic!("no end after {most_steps} steps");
    }
}

impl Outcome {
    /// Whether whoever reads the ledger would think that all is well with the archive itself.
    fn is_quiet(&self) -> bool {
        let of_the_contents = [Reason::NoImage, Reason::EmptyShard, Reason::MemberTooLarge];
        self.ending.verdict == Verdict::Complete
            && self.losses.iter().all(|lost| of_the_contents.contains(&lost.trouble.reason))
    }

    /// What is wrong with it, given the strict reading of the same bytes.
    fn complaint(&self, tar: &[u8]) -> Option<String> {
        let strict = Strict::read(tar);
        let certain: Vec<Plain> = strict.samples(tar).into_iter().filter_map(plain).collect();
        if strict.is_whole && self.samples != certain {
            return Some(format!("a whole archive gave {self:?}\ninstead of {certain:?}"));
        }
        if strict.is_whole != self.is_quiet() {
            return Some(format!("whole: {}, yet {self:?}", strict.is_whole));
        }
        if !self.samples.starts_with(&certain) {
            return Some(format!("{self:?}\nlacks some of {certain:?}"));
        }
        None
    }
}

/// A sample of the strict reading as ours gives it; none if it has no image, or too large a one.
fn plain(sample: Sample) -> Option<Plain> {
    let Sample { key, offset, end, parts } = sample;
    let names = ["jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "img"];
    let looks = |data: &[u8]| data.starts_with(b"\xff\xd8\xff") || data.starts_with(b"\x89PNG\r\n\x1a\n");
    let named = parts.iter().find(|(extension, _)| names.contains(&extension.as_str()));
    let (_, image) = named.or_else(|| parts.iter().find(|(_, data)| looks(data)))?;
    let class = parts.iter().find(|(extension, _)| extension == "cls");
    let class = class.and_then(|(_, data)| std::str::from_utf8(data).ok()?.trim().parse().ok());
    (image.len() as u64 <= MOST).then(|| (key, offset as u64, end as u64, image.clone(), class))
}

fn image(text: &str) -> Vec<u8> {
    [b"\xff\xd8\xff\xe0", text.as_bytes()].concat()
}

/// A header of any kind, with a right checksum.
fn header(name: &str, kind: u8, size: u64, magic: &[u8; 8]) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[156] = kind;
    header[257..265].copy_from_slice(magic);
    summed(header)
}

fn summed(mut header: [u8; 512]) -> [u8; 512] {
    let sum = sum_of(&header);
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

const GNU: &[u8; 8] = b"ustar  \0";
const POSIX: &[u8; 8] = b"ustar\x0000";

fn member(name: &str, kind: u8, magic: &[u8; 8], data: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, kind, data.len() as u64, magic).to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn pax_record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let length = (rest.len()..).find(|length| length.to_string().len() + rest.len() == *length).unwrap();
    format!("{length}{rest}")
}

/// A small archive with everything in it that tars have.
fn odd_tar() -> Vec<u8> {
    let long = format!("a folder/{}.jpg", "long-name-".repeat(12));
    let mut base_256 = header("wide.jpg", b'0', 0, GNU);
    base_256[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    let mut sparse = header("holes.jpg", b'S', 512, GNU);
    sparse[482] = 1; // one more block of its map follows
    let pax = [pax_record("path", "größe/p.jpg"), pax_record("size", "20"), pax_record("mtime", "1.5")].concat();
    let posix_long = [pax_record("path", &"deep/".repeat(30)), pax_record("comment", "x y\nz")].concat();
    let mut bytes = [
        member("folder/", b'5', GNU, b""),
        member("a.jpg", b'0', GNU, &image("first")),
        member("a.cls", b'0', GNU, b"7"),
        member("a.json", 0, GNU, b"{}"),
        member("b.seg.png", b'0', GNU, b"\x89PNG\r\n\x1a\nmask"),
        member("b.jpg", b'0', GNU, &image(&"second".repeat(20))),
        member("././@LongLink", b'L', GNU, format!("{long}\0").as_bytes()),
        member("cut-name.jpg", b'0', GNU, &image("third")),
        member("global", b'g', POSIX, pax_record("comment", "for all").as_bytes()),
        member("PaxHeaders/p", b'x', POSIX, pax.as_bytes()),
    ]
    .concat();
    // its size stands in the extension alone
    bytes.extend_from_slice(&header("p.jpg", b'0', 0, POSIX));
    bytes.extend_from_slice(&[&image("sixteen bytes..")[..], b"!"].concat());
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend_from_slice(&summed(base_256));
    bytes.extend_from_slice(&image("wide!"));
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend_from_slice(&summed(sparse));
    bytes.extend_from_slice(&[[0; 512], [1; 512]].concat());
    for more in [
        member("a-link.jpg", b'2', GNU, b""),
        member("a-twin.jpg", b'1', GNU, b""),
        member("empty.jpg", b'0', GNU, b""),
        member("PaxHeaders/d", b'x', POSIX, posix_long.as_bytes()),
        member("deep", b'5', POSIX, b""),
        member("__meta__/about.json", b'0', GNU, b"{}"),
        member("volume", b'V', GNU, b""),
        member("a.jpg", b'0', GNU, &image("the same key again")),
        member("a.JPG", b'0', GNU, &image("and the same extension")),
        member("lone.txt", b'0', GNU, b"no image"),
        member("z.jpg", b'7', POSIX, &image("last")),
        vec![0; 1024],
    ] {
        bytes.extend_from_slice(&more);
    }
    bytes
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn everything_that_tars_have_is_read() {
    let tar = odd_tar();
    let outcome = Reader::new().walk(&tar, 100);
    assert_eq!(outcome.complaint(&tar), None);
    let keys: Vec<&str> = outcome.samples.iter().map(|(key, ..)| key.as_str()).collect();
    let long = format!("a folder/{}", "long-name-".repeat(12));
    assert_eq!(keys, ["a", "b", &long, "größe/p", "wide", "empty", "a", "z"]);
    assert_eq!(outcome.samples[3].3.len(), 20, "the size of the pax header");
    assert_eq!(outcome.losses.len(), 1, "lone.txt has no image");
    for wrapped in [gzip(&tar), zstd(&tar)] {
        assert_eq!(Reader::new().walk(&wrapped, 100).samples, outcome.samples);
    }
}

#[test]
fn a_tar_cut_at_any_byte_says_so_and_gives_what_was_whole() {
    let (reader, tar) = (Reader::new(), odd_tar());
    for length in 0..tar.len() {
        let cut = &tar[..length];
        let outcome = reader.walk(cut, 100);
        assert_eq!(outcome.complaint(cut), None, "cut after {length} bytes");
        let certain = Strict::read(cut).samples(cut).into_iter().filter_map(plain).count();
        assert_eq!(outcome.samples.len(), certain, "cut after {length} bytes");
    }
}

#[test]
fn a_bit_flipped_anywhere_in_a_tar_is_told_or_is_in_the_data() {
    let (reader, mut tar) = (Reader::new(), odd_tar());
    reader.walk(&tar, 100);
    let data: Vec<_> = Strict::read(&tar).members.into_iter().map(|member| member.data).collect();
    let images: Vec<Vec<u8>> = data.iter().map(|range| tar[range.clone()].to_vec()).collect();
    for at in 0..tar.len() {
        let is_data = data.iter().any(|range| range.contains(&at));
        let intact = tar[at];
        for bit in bits(intact, at) {
            tar[at] = intact ^ (1 << bit);
            let outcome = reader.walk_with(at, tar[at], intact, 200);
            assert_eq!(outcome.complaint(&tar), None, "bit {bit} of byte {at}");
            let is_genuine = |sample: &Plain| images.contains(&sample.3);
            let altered = outcome.samples.iter().filter(|sample| !is_genuine(sample)).count();
            // in the digits of a size, a flip may lengthen or shorten an image within its last block
            let is_size = String::from_utf8_lossy(&tar[at.saturating_sub(9)..at]).contains("size=");
            assert!(altered <= usize::from(is_data || is_size), "bit {bit} of byte {at}: {outcome:?}");
            tar[at] = intact;
        }
    }
}

/// All bits of a byte that says something; one, each time another, of a zero.
fn bits(byte: u8, at: usize) -> std::ops::Range<usize> {
    if byte == 0 { at % 8..at % 8 + 1 } else { 0..8 }
}

#[test]
fn a_compressed_tar_cut_at_any_byte_says_so() {
    let (reader, tar) = (Reader::new(), odd_tar());
    let whole = reader.walk(&tar, 100).samples;
    for packed in [gzip(&tar), zstd(&tar)] {
        for length in 0..packed.len() {
            let outcome = reader.walk(&packed[..length], 100);
            assert!(!outcome.is_quiet(), "cut after {length} bytes: {outcome:?}");
            assert!(whole.starts_with(&outcome.samples), "cut after {length} bytes: {outcome:?}");
        }
    }
}

#[test]
fn a_bit_flipped_in_a_compressed_tar_is_told_or_changes_nothing() {
    let (reader, tar) = (Reader::new(), odd_tar());
    let whole = reader.walk(&tar, 100).samples;
    for packed in [gzip(&tar), zstd(&tar)] {
        reader.walk(&packed, 100);
        for (at, &byte) in packed.iter().enumerate() {
            for bit in 0..8 {
                let outcome = reader.walk_with(at, byte ^ (1 << bit), byte, 10_000);
                assert!(!outcome.is_quiet() || outcome.samples == whole, "bit {bit} of byte {at}: {outcome:?}");
            }
        }
    }
}

/// Sizes that no memory holds, in every place where a tar tells a size.
#[test]
fn a_size_told_by_a_header_is_no_reason_to_allocate() {
    crate::small_process::run("damage::a_size_told_by_a_header_is_no_reason_to_allocate", 64 << 20, || {
        let reader = Reader::new();
        let good = member("a.jpg", b'0', GNU, &image("first"));
        let huge = 8 << 30;
        let mut largest = header("b.jpg", b'0', 0, GNU);
        largest[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        let pax = |value: &str| [member("x", b'x', POSIX, pax_record("size", value).as_bytes()), good.clone()].concat();
        let claims = [
            header("b.jpg", b'0', huge - 1, GNU).to_vec(),
            summed(largest).to_vec(),
            header("././@LongLink", b'L', huge - 1, GNU).to_vec(),
            header("././@LongLink", b'K', huge - 1, GNU).to_vec(),
            header("x", b'x', huge - 1, POSIX).to_vec(),
            header("g", b'g', huge - 1, POSIX).to_vec(),
            pax("8589934592"),
            pax("18446744073709551615"),
            pax("99999999999999999999999"),
            vec![member("x", b'x', POSIX, b""); 1_000].concat(),
        ];
        for claim in claims {
            let tar = [&good[..], &claim, &image("and then it ends")].concat();
            let outcome = reader.walk(&tar, 10_000);
            assert_eq!(outcome.complaint(&tar), None);
            for packed in [gzip(&tar), zstd(&tar)] {
                assert!(!reader.walk(&packed, 10_000).is_quiet());
            }
        }
    });
}
