//! A miniature of YFCC100M in the layouts that it is met in: real photographs, names as they are there, licences, attribution.

use crate::run::{pretrain, root, shoal, small_pipeline, steps};
use futures_util::StreamExt;
use shoal::config::{FetchPlan, FilterPlan, MetadataKey, StreamPlan};
use shoal::decode::Decoder;
use shoal::ingest::{Cursor, Opening, Passes, RawSample, stream};
use shoal::pipeline::used::{Extent, UsedByRun};
use shoal::shards::metadata::{LICENCES, Licences};
use shoal::shards::{Filtered, Ledger, Reason, Rejection, ShardList};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A photograph of the miniature.
struct Photo {
    hash: String,
    id: u64,
    line: u64,
    licence: &'static str,
    jpeg: Vec<u8>,
}

/// Bytes in hexadecimal as YFCC100M prints them: without padding.
fn unpadded(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:x}")).collect()
}

/// The first photographs of the repository under YFCC100M's names: hashes of 16 bytes, ids of 10 digits, spread line numbers.
fn photos() -> Vec<Photo> {
    let file = std::fs::File::open(root().join("shards/photos-000000.tar")).unwrap();
    let mut photos = Vec::new();
    for entry in tar::Archive::new(file).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut jpeg = Vec::new();
        entry.read_to_end(&mut jpeg).unwrap();
        if !jpeg.starts_with(b"\xff\xd8\xff") || photos.len() == 60 {
            continue;
        }
        let i = photos.len() as u64;
        let digest = xxhash_rust::xxh3::xxh3_128(&i.to_le_bytes()).to_le_bytes();
        photos.push(Photo {
            hash: unpadded(&digest),
            id: 6_985_418_911 + 7 * i,
            line: 12_345_000 + 333 * i,
            licence: LICENCES[i as usize % 6],
            jpeg,
        });
    }
    assert_eq!(photos.len(), 60);
    photos
}

/// Metadata of all but the last photograph, and of some that are not there.
fn write_metadata(path: &Path, photos: &[Photo]) {
    let mut text = String::new();
    for photo in &photos[..photos.len() - 1] {
        let Photo { hash, id, line, licence, .. } = photo;
        let _ = writeln!(
            text,
            "{line}\t{id}\t{hash}\t1@N00\tAnn+{id}\t2010-01-01 00:00:00.0\t1\tCamera\tTitle%20{id}\t\t\t\t\t\t\t\
             http://www.flickr.com/photos/1@N00/{id}/\thttp://farm1.staticflickr.com/{id}.jpg\tAttribution License\t\
             http://creativecommons.org/licenses/{licence}/2.0/\t1\t1\tab\tcd\tjpg\t0"
        );
    }
    text.push_str("a line of something else\n");
    for i in 0..500_u64 {
        let _ = writeln!(text, "{i}\t{}\t{i:x}{}\t", 9_000_000_000 + i, "0\t".repeat(21) + "0");
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("zst") => std::fs::write(path, zstd::encode_all(text.as_bytes(), 1).unwrap()),
        _ => std::fs::write(path, text),
    }
    .unwrap();
}

/// Names and contents.
type Members<'a> = Vec<(String, &'a [u8])>;

fn tar_of(members: &Members<'_>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A zip of stored members.
fn zip_of(members: &Members<'_>) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let offset = (bytes.len() as u32).to_le_bytes();
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let sizes = [crc.sum(), data.len() as u32, data.len() as u32].map(u32::to_le_bytes).concat();
        let common = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &sizes, &(name.len() as u16).to_le_bytes()].concat();
        bytes.extend([b"PK\x03\x04", &common[..], &[0; 2], name.as_bytes(), data].concat());
        directory.extend([b"PK\x01\x02\x14\0", &common[..], &[0; 12], &offset, name.as_bytes()].concat());
    }
    let count = (members.len() as u16).to_le_bytes();
    let place = [directory.len() as u32, bytes.len() as u32].map(u32::to_le_bytes).concat();
    bytes.extend(directory);
    bytes.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &place, &[0; 2]].concat());
    bytes
}

/// Writes files of many members each; `place` gives file and member of a photograph.
fn write_archives(
    folder: &Path,
    photos: &[Photo],
    pack: fn(&Members<'_>) -> Vec<u8>,
    place: impl Fn(&Photo) -> (String, String),
) {
    let mut archives: BTreeMap<String, Members<'_>> = BTreeMap::new();
    for photo in photos {
        let (archive, member) = place(photo);
        archives.entry(archive).or_default().push((member, &photo.jpeg));
    }
    for (archive, members) in archives {
        let path = folder.join(archive);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, pack(&members)).unwrap();
    }
}

/// The miniature in every layout: a spec for each.
fn write_layouts(folder: &Path, photos: &[Photo]) -> Vec<String> {
    let of = |name: &str| folder.join(name);
    // tars by the first character of the hash, zips by its first as jfolz has them, zips by line, and the files themselves
    write_archives(&of("tars"), photos, tar_of, |photo| {
        (format!("{}.tar", &photo.hash[..1]), format!("{}.jpg", photo.hash))
    });
    write_archives(&of("jfolz"), photos, zip_of, |photo| {
        (format!("{}.zip", &photo.hash[..3]), format!("{}.jpg", photo.hash))
    });
    write_archives(&of("lines"), photos, zip_of, |photo| {
        let line = format!("{:08}", photo.line);
        (format!("{}/{}.zip", &line[..2], &line[2..5]), format!("{}.jpg", &line[5..]))
    });
    write_archives(&of("ids"), photos, tar_of, |photo| {
        (format!("{}.tar", photo.id % 3), format!("flickr/{}.jpg", photo.id))
    });
    for photo in photos {
        let hash = &photo.hash;
        let path = of("images").join(&hash[..3]).join(&hash[3..6]);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(format!("{hash}.jpg")), &photo.jpeg).unwrap();
    }
    std::fs::write(of("images/readme.txt"), "not an image").unwrap();
    let names = ["tars", "jfolz", "lines", "ids"].iter().map(|name| of(name).display().to_string());
    names.chain([format!("images:{}", of("images").display())]).collect()
}

fn plan() -> StreamPlan {
    StreamPlan { lanes: 3, shuffle: 16, ..StreamPlan::default() }
}

/// `count` samples from a cursor on.
async fn read(
    list: &ShardList,
    start: Cursor,
    count: usize,
    passes: Passes,
) -> (Vec<RawSample>, BTreeMap<Reason, u64>) {
    let ledger = Arc::new(Ledger::in_memory(&plan()));
    let opening = Opening::new(list.clone(), &plan(), &FetchPlan::default(), passes, Arc::clone(&ledger));
    let samples = stream(Opening { start, ..opening });
    let samples = samples.map(|sample| sample.unwrap()).take(count).collect().await;
    (samples, ledger.losses())
}

#[tokio::test]
async fn every_layout_gives_every_photograph_once_from_any_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let photos = photos();
    let expected: BTreeSet<&[u8]> = photos.iter().map(|photo| photo.jpeg.as_slice()).collect();
    for spec in write_layouts(folder.path(), &photos) {
        let list = ShardList::parse(std::slice::from_ref(&spec)).unwrap();
        let (samples, losses) = read(&list, Cursor::default(), 2 * photos.len(), Passes::Endless).await;
        assert!(losses.is_empty(), "{spec}: {losses:?}");
        for pass in samples.chunks(photos.len()) {
            let images: BTreeSet<&[u8]> = pass.iter().map(|sample| &*sample.image).collect();
            assert_eq!(images, expected, "{spec}");
            assert_eq!(pass.iter().map(|sample| sample.meta.id).collect::<BTreeSet<_>>().len(), photos.len(), "{spec}");
        }
        for at in [0, 7, 30, 59, 60, 95] {
            let text = serde_json::to_string(&samples[at].cursor).unwrap();
            let (rest, _) = read(&list, serde_json::from_str(&text).unwrap(), 20, Passes::Endless).await;
            let order = |samples: &[RawSample]| samples.iter().map(|sample| sample.meta.id).collect::<Vec<_>>();
            let undisturbed = order(&samples[at + 1..samples.len().min(at + 21)]);
            assert_eq!(order(&rest)[..undisturbed.len()], undisturbed, "{spec} after {at}");
        }
    }
}

#[tokio::test]
async fn files_added_to_a_folder_leave_the_others_their_identity() {
    let folder = tempfile::tempdir().unwrap();
    let photos = photos();
    for photo in &photos[..9] {
        std::fs::write(folder.path().join(format!("{}.jpg", photo.hash)), &photo.jpeg).unwrap();
    }
    let list = ShardList::parse(&[format!("images:{}", folder.path().display())]).unwrap();
    assert_eq!(list.shards.len(), 1);
    let ids = |samples: &[RawSample]| -> BTreeMap<String, _> {
        samples.iter().map(|sample| (sample.meta.key.clone(), sample.meta.id)).collect()
    };
    let (before, _) = read(&list, Cursor::default(), 99, Passes::Once).await;
    std::fs::write(folder.path().join("new.JPG"), &photos[9].jpeg).unwrap();
    std::fs::write(folder.path().join(format!("{}.png", photos[0].hash)), b"another of that name").unwrap();
    std::fs::remove_file(folder.path().join(format!("{}.jpg", photos[8].hash))).unwrap();
    let (after, losses) = read(&list, Cursor::default(), 99, Passes::Once).await;
    assert_eq!((before.len(), after.len(), losses.len()), (9, 10, 0));
    let (before, after) =
        (before, after.into_iter().filter(|sample| sample.image.starts_with(b"\xff\xd8")).collect::<Vec<_>>());
    let (before, after) = (ids(&before), ids(&after));
    for photo in &photos[..8] {
        assert_eq!(before[&photo.hash], after[&photo.hash]);
    }
    assert!(after.contains_key("new"));
}

#[tokio::test]
async fn licences_are_found_whatever_the_keys_are() {
    let folder = tempfile::tempdir().unwrap();
    let photos = photos();
    let specs = write_layouts(folder.path(), &photos);
    let metadata = folder.path().join("yfcc100m_dataset.tsv.zst");
    write_metadata(&metadata, &photos);
    let wanted = vec!["by".to_owned(), "by-nc-sa".to_owned()];
    let by_bytes: BTreeMap<&[u8], &Photo> = photos.iter().map(|photo| (photo.jpeg.as_slice(), photo)).collect();
    for spec in specs {
        let metadata = metadata.display().to_string();
        let filter = FilterPlan { licences: wanted.clone(), metadata, ..FilterPlan::default() };
        let licences = Licences::open(&filter).unwrap();
        let decoder = Decoder::new(&shoal::config::ViewsPlan::default(), &plan()).with_licences(licences);
        let list = ShardList::parse(std::slice::from_ref(&spec)).unwrap();
        for sample in read(&list, Cursor::default(), 99, Passes::Once).await.0 {
            let photo = by_bytes[&*sample.image];
            let outcome = decoder.decode_into(&sample, None, None).map(drop);
            let expected = if photo.line == photos[59].line {
                Err(Rejection::Filtered(Filtered::UnknownLicence))
            } else if wanted.iter().any(|licence| licence == photo.licence) {
                Ok(())
            } else {
                Err(Rejection::Filtered(Filtered::Licence))
            };
            assert_eq!(outcome, expected, "{spec}: {}", sample.meta.key);
        }
    }
}

#[test]
fn a_table_is_made_anew_when_the_metadata_change() {
    let folder = tempfile::tempdir().unwrap();
    let mut photos = photos();
    let metadata = folder.path().join("meta.tsv");
    write_metadata(&metadata, &photos);
    let filter = FilterPlan {
        licences: vec!["by".into()],
        metadata: metadata.display().to_string(),
        metadata_key: MetadataKey::Hash,
        ..FilterPlan::default()
    };
    let judge = |photo: &Photo| Licences::open(&filter).unwrap().unwrap().judge("x.tar", &photo.hash);
    assert_eq!(judge(&photos[0]), Ok(()));
    let table = folder.path().join("meta.tsv.names-hash");
    let made = std::fs::metadata(&table).unwrap().modified().unwrap();
    assert_eq!(judge(&photos[1]), Err(Filtered::Licence.into()));
    assert_eq!(std::fs::metadata(&table).unwrap().modified().unwrap(), made, "used again");
    photos[1].licence = "by";
    write_metadata(&metadata, &photos);
    assert_eq!(judge(&photos[1]), Ok(()));
    std::fs::write(&metadata, "photo_id\turl\n1\thttp://host\n").unwrap();
    assert!(Licences::open(&filter).unwrap_err().to_string().contains("line 1 has 2 fields"));
}

/// The second column of an attribution, without its header.
fn credited(text: &str) -> BTreeSet<u64> {
    let lines = text.lines().skip(1);
    lines.map(|line| line.split('\t').nth(1).unwrap().parse().unwrap()).collect()
}

#[test]
fn a_list_and_a_run_have_an_attribution() {
    let folder = tempfile::tempdir().unwrap();
    let photos = photos();
    let specs = write_layouts(folder.path(), &photos);
    let metadata = folder.path().join("meta.tsv");
    write_metadata(&metadata, &photos);

    let all = shoal().args(["shards", "attribution", &specs[2], "--metadata"]).arg(&metadata).assert().code(3);
    let text = String::from_utf8(all.get_output().stdout.clone()).unwrap();
    assert_eq!(credited(&text), photos[..59].iter().map(|photo| photo.id).collect());
    assert!(
        text.contains("\tTitle 6985418911\tAnn 6985418911\thttp://www.flickr.com/photos/1@N00/6985418911/\t"),
        "{text}"
    );
    assert!(String::from_utf8_lossy(&all.get_output().stderr).contains("1 photographs are not in"));

    // a run on zips by hash, of two licences: it is past its first pass
    let run = folder.path().join("run");
    let pipeline = small_pipeline(folder.path());
    let settings = [
        format!("stream.shards=[\"{}\"]", specs[1]),
        "filter.licences=[\"by\", \"by-sa\"]".to_owned(),
        format!("filter.metadata={}", metadata.display()),
        "bank.capacity=16".to_owned(),
        "cluster.every_steps=3".to_owned(),
        "train.steps=6".to_owned(),
    ];
    pretrain(&pipeline, &run, &settings);
    assert_eq!(steps(&run).len(), 6);
    let out: PathBuf = folder.path().join("credits.tsv");
    shoal().args(["shards", "attribution"]).arg(&run).arg("--out").arg(&out).assert().success();
    let wanted = photos[..59].iter().filter(|photo| ["by", "by-sa"].contains(&photo.licence));
    assert_eq!(credited(&std::fs::read_to_string(&out).unwrap()), wanted.map(|photo| photo.id).collect());
}

#[test]
fn an_attribution_names_what_went_into_batches_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut photos = photos();
    let good: BTreeSet<u64> = photos.iter().map(|photo| photo.id).collect();
    let small = image::RgbImage::from_pixel(30, 200, image::Rgb([90, 120, 10]));
    let mut narrow = std::io::Cursor::new(Vec::new());
    small.write_to(&mut narrow, image::ImageFormat::Jpeg).unwrap();
    let spoilt = [photos[3].jpeg.clone(), narrow.into_inner(), photos[4].jpeg[..200].to_vec()];
    for (i, jpeg) in (60..).zip(spoilt) {
        let digest = xxhash_rust::xxh3::xxh3_128(&i.to_string().into_bytes()).to_le_bytes();
        let (hash, id) = (unpadded(&digest), 6_985_418_911 + 7 * i);
        photos.push(Photo { hash, id, line: 12_345_000 + 333 * i, licence: "by", jpeg });
    }
    let [copy, too_narrow, broken] = [60, 61, 62].map(|i: usize| photos[i].id);
    let specs = write_layouts(folder.path(), &photos);
    let metadata = folder.path().join("meta.tsv");
    write_metadata(&metadata, &photos);
    let pipeline = small_pipeline(folder.path());
    let settings = |steps: u32| {
        [
            format!("stream.shards=[\"{}\"]", specs[3]),
            "stream.max_loss_rate=0.5".to_owned(),
            "filter.min_side=40".to_owned(),
            "filter.duplicates=bytes".to_owned(),
            format!("filter.metadata={}", metadata.display()),
            "bank.capacity=16".to_owned(),
            "cluster.every_steps=100".to_owned(),
            "train.batch_size=8".to_owned(),
            format!("train.steps={steps}"),
        ]
    };

    // within the first pass: the last ids are those of the last step, by its own digest
    let run = folder.path().join("short");
    pretrain(&pipeline, &run, &settings(3));
    let used = UsedByRun::open(&run).unwrap();
    assert!(matches!(used.extent(), Extent::UpTo(_)));
    let mut ids = Vec::new();
    used.each(|sample| {
        assert!(![too_narrow, broken].contains(&sample.key.trim_start_matches("flickr/").parse().unwrap()));
        ids.push(sample.id);
        Ok(())
    })
    .unwrap();
    assert!(ids.len() % 8 == 0 && (24..60).contains(&ids.len()), "{}", ids.len());
    let mut batches = ids.rchunks(8);
    for (step, _, told) in steps(&run).iter().rev() {
        let batch = batches.next().unwrap();
        let digest =
            batch.iter().fold(0, |digest, id| xxhash_rust::xxh3::xxh3_64_with_seed(&id.0.to_le_bytes(), digest));
        assert_eq!(told, &format!("{digest:016x}"), "step {step}");
    }

    // past the first pass: all that can be used, of two files of the same bytes one
    let run = folder.path().join("long");
    pretrain(&pipeline, &run, &settings(20));
    assert_eq!(UsedByRun::open(&run).unwrap().extent(), &Extent::Pass);
    let told = shoal().args(["shards", "attribution"]).arg(&run).assert().success();
    let mut named = credited(&String::from_utf8_lossy(&told.get_output().stdout));
    let original = photos[3].id;
    assert!(named.contains(&original) != named.contains(&copy), "the first of both in the stream");
    named.remove(&copy);
    named.insert(original);
    assert_eq!(named, good);
}
