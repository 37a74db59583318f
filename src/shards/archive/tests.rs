//! Whole and damaged tars, read as samples.

use super::super::sample::{Samples, Step};
use super::super::testing::{fetch, gzip, image, samples, tar_of, zstd};
use super::*;
use proptest::prelude::*;

/// What came of a shard: keys of samples, losses as (reason, key, offset), and the ending.
#[derive(Debug)]
pub(super) struct Read {
    pub keys: Vec<String>,
    pub lost: Vec<(Reason, Option<String>, u64)>,
    pub ending: Ending,
    pub images: Vec<Bytes>,
    pub places: Vec<(u64, u64)>,
}

pub(super) fn with_fetcher<T>(url: &ShardUrl, then: impl FnOnce(&Arc<Fetcher>, &Arc<Reading>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let fetcher = {
        let _entered = runtime.enter();
        Fetcher::new(std::slice::from_ref(url), &fetch()).unwrap()
    };
    then(&fetcher, &Reading::new(Arc::clone(url.name())))
}

pub(super) fn read_from(bytes: &[u8], offset: u64, most: u64) -> Read {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let url = ShardUrl::local(file.path());
    with_fetcher(&url, |fetcher, reading| {
        let mut read = Read {
            keys: Vec::new(),
            lost: Vec::new(),
            ending: Ending::complete(),
            images: Vec::new(),
            places: Vec::new(),
        };
        let opened = Archive::open(&url, fetcher, reading).map(|archive| Samples::new(archive, most));
        let opened = opened.and_then(|mut samples| samples.go_to(offset).map(|()| samples));
        let mut samples = match opened {
            Ok(samples) => samples,
            Err(trouble) => return Read { ending: Ending::failed(trouble), ..read },
        };
        loop {
            match samples.step() {
                Step::Sample(sample) => {
                    read.keys.push(sample.key);
                    read.images.push(sample.image);
                    read.places.push((sample.offset, sample.end));
                }
                Step::Lost(lost) => read.lost.push((lost.trouble.reason, lost.key, lost.offset)),
                Step::End(ending) => {
                    read.ending = ending;
                    return read;
                }
            }
        }
    })
}

pub(super) fn read(bytes: &[u8]) -> Read {
    read_from(bytes, 0, 1 << 20)
}

pub(super) fn keys(name: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|i| format!("{name}/{i}")).collect()
}

#[test]
fn wrappings_are_told_by_content() {
    let tar = samples("s", 5);
    let two_members = [gzip(&tar[..1_000]), gzip(&tar[1_000..])].concat();
    let two_frames = [zstd(&tar[..1_000]), zstd(&tar[1_000..])].concat();
    for bytes in [tar.clone(), gzip(&tar), zstd(&tar), two_members, two_frames] {
        let read = read(&bytes);
        assert_eq!(read.keys, keys("s", 0..5));
        assert_eq!((read.ending, read.lost.len()), (Ending::complete(), 0));
    }
}

#[test]
fn what_is_no_archive_fails_and_shows_how_it_begins() {
    let page = b"<!DOCTYPE html><title>Sign in</title>".repeat(30);
    for bytes in [page.clone(), gzip(&page), zstd(&page), b"short".to_vec()] {
        let read = read(&bytes);
        assert_eq!(read.ending.verdict, Verdict::Failed(Reason::NotAnArchive));
    }
    assert!(read(&page).ending.trouble.unwrap().detail.contains("<!DOCTYPE html>"));
    assert_eq!(read(b"").ending.verdict, Verdict::Failed(Reason::EmptyShard));
    let empty = read(&tar_of(&[]));
    assert_eq!((empty.ending.verdict, empty.lost), (Verdict::Complete, vec![(Reason::EmptyShard, None, 0)]));
}

#[test]
fn names_and_sizes_in_extension_headers() {
    let long = format!("{}/{}", "d".repeat(150), "n".repeat(150));
    let gnu = tar_of(&[("a.jpg", image("a")), (&format!("{long}.jpg"), image("b")), ("z.jpg", image("z"))]);
    assert_eq!(read(&gnu).keys, ["a", &long, "z"]);

    // a PAX path with line ends in another value, and a size that its ustar header does not tell
    let mut builder = ::tar::Builder::new(Vec::new());
    let data = image("pax");
    let size = data.len().to_string();
    let records = [("comment", &b"x\n9 size=0\n"[..]), ("path", b"p\xc3\xa4x.jpg"), ("size", size.as_bytes())];
    builder.append_pax_extensions(records).unwrap();
    let mut header = ::tar::Header::new_ustar();
    header.set_path("short.jpg").unwrap();
    header.set_size(0);
    header.set_cksum();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1_024);
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend_from_slice(&tar_of(&[("z.jpg", image("z"))]));
    let read = read(&bytes);
    assert_eq!((read.keys.as_slice(), read.ending), (&["päx".to_owned(), "z".to_owned()][..], Ending::complete()));
}

#[test]
fn every_cut_is_noticed_and_costs_no_whole_sample() {
    let tar = samples("s", 4);
    let ends: Vec<usize> = {
        let mut archive = ::tar::Archive::new(tar.as_slice());
        let ends = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.raw_file_position() + entry.size().next_multiple_of(512)) as usize
        });
        ends.skip(1).step_by(2).collect()
    };
    let end_of_data = *ends.last().unwrap();
    for cut in (1..tar.len()).filter(|cut| cut % 128 == 0 || cut % 512 == 1) {
        let read = read(&tar[..cut]);
        if cut < 512 {
            assert_eq!(read.ending.verdict, Verdict::Failed(Reason::NotAnArchive), "{cut}");
            continue;
        }
        assert_eq!(read.ending.verdict, Verdict::TruncatedAt(cut as u64), "{cut}");
        assert_eq!(read.ending.trouble.unwrap().reason, Reason::TruncatedShard);
        // the sample before the next one's header is whole for certain; the one at the cut is given up
        let whole = ends.iter().filter(|&&end| end + 512 <= cut && end < end_of_data).count();
        assert_eq!(read.keys, keys("s", 0..whole), "{cut}");
        assert_eq!(
            read.lost,
            [(Reason::TruncatedShard, Some(format!("s/{whole}")), if whole == 0 { 0 } else { ends[whole - 1] as u64 })]
        );
    }
}

#[test]
fn compressed_shards_that_are_cut_or_corrupt_keep_what_came_before() {
    let tar = samples("s", 60);
    for packed in [gzip(&tar), zstd(&tar)] {
        let cut = read(&packed[..packed.len() - 5]);
        assert!(matches!(cut.ending.verdict, Verdict::TruncatedAt(_)), "{:?}", cut.ending);
        assert!(cut.keys.len() > 30 && cut.keys == keys("s", 0..cut.keys.len()));
        let mut corrupt = packed.clone();
        let checksum = corrupt.len() - if packed[0] == 0x1f { 8 } else { 4 };
        corrupt[checksum] ^= 0xff;
        let corrupt = read(&corrupt);
        assert!(matches!(corrupt.ending.verdict, Verdict::TruncatedAt(_)), "{:?}", corrupt.ending);
        assert_eq!(corrupt.ending.trouble.unwrap().reason, Reason::CorruptCompression);
    }
}

#[test]
fn reading_goes_on_behind_garbage() {
    let (one, two) = (samples("one", 3), samples("two", 3));
    let body = &one[..one.len() - 1_024];
    for garbage in [vec![0xab; 512], vec![0xab; 5_120], vec![0; 512]] {
        let read = read(&[body, &garbage, &two].concat());
        assert_eq!(read.keys, [keys("one", 0..2), keys("two", 0..3)].concat());
        assert_eq!(read.ending, Ending::complete());
        let lost: Vec<_> = read.lost.iter().map(|(reason, key, _)| (*reason, key.as_deref())).collect();
        assert_eq!(lost, [(Reason::GarbledHeader, Some("one/2")), (Reason::GarbledHeader, None)]);
        assert_eq!(read.lost[1].2, body.len() as u64);
    }
    let rest_lost = read(&[body, &[0xab; 2_000]].concat());
    assert_eq!(rest_lost.keys, keys("one", 0..2));
    assert_eq!(rest_lost.ending.verdict, Verdict::TruncatedAt(body.len() as u64 + 2_000));
}

#[test]
fn data_behind_the_end_are_told() {
    let (one, two) = (samples("one", 3), samples("two", 3));
    let joined = read(&[one.clone(), two].concat());
    assert_eq!((joined.keys, joined.ending), (keys("one", 0..3), Ending::complete()));
    assert_eq!(joined.lost, [(Reason::TrailingData, None, one.len() as u64)]);
    let padded = read(&[one, vec![0; 9_000]].concat());
    assert_eq!((padded.keys.len(), padded.lost.len(), padded.ending), (3, 0, Ending::complete()));
}

#[test]
fn samples_by_the_rule() {
    let long_png = [b"\x89PNG\r\n\x1a\n", [7; 50].as_slice()].concat();
    let tar = tar_of(&[
        ("a.txt", b"a caption".to_vec()),
        ("._a.jpg", image("resource fork")),
        ("a.JPG", image("a")),
        ("a.cls", b" 12\n".to_vec()),
        ("b.json", b"{}".to_vec()),
        ("__key__", b"meta".to_vec()),
        ("c.jpg", image("c")),
        ("c.jpg", image("again")),
        ("c.cls", b"twelve".to_vec()),
        ("d.photo", long_png.clone()),
        ("a.webp", image("another a")),
        ("e.jpg", Vec::new()),
        ("f.jpg", vec![1; 3_000]),
    ]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tar).unwrap();
    let url = ShardUrl::local(file.path());
    let steps = with_fetcher(&url, |fetcher, reading| {
        let mut samples = Samples::new(Archive::open(&url, fetcher, reading).unwrap(), 2_000);
        let mut steps = Vec::new();
        loop {
            match samples.step() {
                Step::End(ending) => return (steps, ending),
                step => steps.push(step),
            }
        }
    });
    let shown: Vec<String> = steps
        .0
        .iter()
        .map(|step| match step {
            Step::Sample(sample) => {
                let notices: Vec<_> = sample.notices.iter().map(|notice| notice.name()).collect();
                format!("{} {} {:?} {}", sample.key, sample.image.len(), sample.class, notices.join(","))
            }
            Step::Lost(lost) => format!("{} {}", lost.key.as_deref().unwrap_or("-"), lost.trouble.reason),
            Step::End(_) => String::new(),
        })
        .collect();
    assert_eq!(
        shown,
        [
            "a 5 Some(12) ",
            "b no_image",
            "c 5 None repeated_extension,bad_class",
            "d 58 None ",
            "a 13 None ",
            "e 0 None ",
            "f member_too_large",
        ]
    );
    assert_eq!(steps.1, Ending::complete());
}

#[test]
fn going_on_at_any_sample_gives_the_rest() {
    let tar = samples("s", 6);
    let mut archive = ::tar::Archive::new(tar.as_slice());
    let offsets: Vec<u64> = archive.entries().unwrap().map(|entry| entry.unwrap().raw_header_position()).collect();
    for bytes in [tar.clone(), gzip(&tar), zstd(&tar)] {
        for (i, &offset) in offsets.iter().step_by(2).enumerate() {
            let rest = read_from(&bytes, offset, 1 << 20);
            assert_eq!((rest.keys, rest.ending.verdict), (keys("s", i..6), Verdict::Complete));
        }
        let beyond = read_from(&bytes, tar.len() as u64 + 512, 1 << 20);
        assert!(beyond.keys.is_empty() && beyond.ending.verdict != Verdict::Complete, "{:?}", beyond.ending);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the damage, reading ends, and what it gives is in order and was there. (Zeros are left out: they can forge an end.)
    #[test]
    fn damage_never_invents_samples(at in 0_usize..9_000, length in 1_usize..2_000, byte in 1_u8.., cut in 512_usize..12_000) {
        let mut tar = samples("s", 6);
        let at = at.min(tar.len() - 1);
        let end = (at + length).min(tar.len());
        tar[at..end].fill(byte);
        tar.truncate(cut);
        let read = read(&tar);
        let numbers: Vec<usize> = read.keys.iter().filter_map(|key| key.strip_prefix("s/")?.parse().ok()).collect();
        prop_assert!(numbers.is_sorted());
        if cut < samples("s", 6).len() - 512 {
            prop_assert_ne!(read.ending.verdict, Verdict::Complete);
        }
    }
}
