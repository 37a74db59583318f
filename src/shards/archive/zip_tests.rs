//! Whole and damaged zips, read as samples: Python's, and some that this file writes.

use super::super::testing::{gzip, image};
use super::tests::{Read, keys, read, read_from};
use super::*;
use std::io::Write;

/// Four images `d/0.jpg` to `d/3.jpg` behind a folder `d/`, written by `zipfile` of Python 3.11 into a file:
///
/// ```python
/// z = zipfile.ZipFile(out, "w")
/// z.mkdir("d")
/// for i, method in enumerate([ZIP_STORED, ZIP_DEFLATED] * 2):
///     info = zipfile.ZipInfo(f"d/{i}.jpg"); info.compress_type = method
///     with z.open(info, "w", force_zip64=i > 1) as f: f.write(b"\xff\xd8\xff\xe0" + b"image %d" % i * (1 + 3 * i))
/// ```
const PYTHON: &str = "\
    504b03041400000000000000210000000000000000000000000002000000642f504b030414000000000000002100e15d43a20b000000\
    0b00000007000000642f302e6a7067ffd8ffe0696d6167652030504b030414000000080000002100d22de6830f000000200000000700\
    0000642f312e6a7067fb7fe3ff83ccdcc4f4540543ac1400504b03042d0000000000000021002d106afbffffffffffffffff07001400\
    642f322e6a70670100100035000000000000003500000000000000ffd8ffe0696d6167652032696d6167652032696d6167652032696d\
    6167652032696d6167652032696d6167652032696d6167652032504b03042d00000008000000210020439bc3ffffffffffffffff0700\
    1400642f332e6a7067010010004a000000000000000f00000000000000fb7fe3ff83ccdcc4f45405630a2900504b0102140314000000\
    000000002100000000000000000000000000020000000000000000001000ff4100000000642f504b0102140314000000000000002100\
    e15d43a20b0000000b000000070000000000000000000000800120000000642f302e6a7067504b0102140314000000080000002100d2\
    2de6830f00000020000000070000000000000000000000800150000000642f312e6a7067504b01022d032d0000000000000021002d10\
    6afb3500000035000000070000000000000000000000800184000000642f322e6a7067504b01022d032d00000008000000210020439b\
    c30f0000004a0000000700000000000000000000008001f2000000642f332e6a7067504b05060000000005000500040100003a010000\
    0000";
/// The same, written into a pipe: sizes and checksums stand behind the data.
const PYTHON_PIPE: &str = "\
    504b03041400000000000000210000000000000000000000000002000000642f504b0304140008000000000021000000000000000000\
    0000000007000000642f302e6a7067ffd8ffe0696d6167652030504b0708e15d43a20b0000000b000000504b03041400080008000000\
    210000000000000000000000000007000000642f312e6a7067fb7fe3ff83ccdcc4f4540543ac1400504b0708d22de6830f0000002000\
    0000504b03042d00080000000000210000000000ffffffffffffffff07001400642f322e6a7067010010000000000000000000000000\
    0000000000ffd8ffe0696d6167652032696d6167652032696d6167652032696d6167652032696d6167652032696d6167652032696d61\
    67652032504b07082d106afb35000000000000003500000000000000504b03042d00080008000000210000000000ffffffffffffffff\
    07001400642f332e6a70670100100000000000000000000000000000000000fb7fe3ff83ccdcc4f45405630a2900504b070820439bc3\
    0f000000000000004a00000000000000504b010214031400000000000000210000000000000000000000000002000000000000000000\
    1000ff4100000000642f504b0102140314000800000000002100e15d43a20b0000000b00000007000000000000000000000080012000\
    0000642f302e6a7067504b0102140314000800080000002100d22de6830f000000200000000700000000000000000000008001600000\
    00642f312e6a7067504b01022d032d0008000000000021002d106afb35000000350000000700000000000000000000008001a4000000\
    642f322e6a7067504b01022d032d00080008000000210020439bc30f0000004a00000007000000000000000000000080012a01000064\
    2f332e6a7067504b05060000000005000500040100008a0100000000";

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn python_image(i: usize) -> Vec<u8> {
    image(&format!("image {i}").repeat(1 + 3 * i))
}

fn is_python(read: &Read) -> bool {
    let images: Vec<_> = (0..4).map(python_image).collect();
    read.keys == keys("d", 0..4) && read.images == images
}

/// A zip of these members, deflated or stored, with sizes before or behind the data.
fn zip_of(members: &[(&str, Vec<u8>)], is_deflated: bool, sizes_are_behind: bool) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let offset = bytes.len() as u32;
        let packed = if is_deflated { deflate(data) } else { data.clone() };
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let sizes = [crc.sum(), packed.len() as u32, data.len() as u32].map(u32::to_le_bytes).concat();
        let (flags, method) = (if sizes_are_behind { 8_u16 } else { 0 }, if is_deflated { 8_u16 } else { 0 });
        let before = if sizes_are_behind { vec![0; 12] } else { sizes.clone() };
        let common = [&[20, 0][..], &flags.to_le_bytes(), &method.to_le_bytes(), &[0; 4]].concat();
        let name_length = (name.len() as u16).to_le_bytes();
        bytes.extend([b"PK\x03\x04", &common[..], &before, &name_length, &[0; 2], name.as_bytes(), &packed].concat());
        if sizes_are_behind {
            bytes.extend([b"PK\x07\x08", &sizes[..]].concat());
        }
        directory.extend([b"PK\x01\x02", &[20, 0][..], &common, &sizes, &name_length, &[0; 12]].concat());
        directory.extend([&offset.to_le_bytes(), name.as_bytes()].concat());
    }
    let count = (members.len() as u16).to_le_bytes();
    let place = [directory.len() as u32, bytes.len() as u32].map(u32::to_le_bytes).concat();
    bytes.extend(directory);
    bytes.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &place, &[0; 2]].concat());
    bytes
}

fn deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn four(is_deflated: bool, sizes_are_behind: bool) -> Vec<u8> {
    let members = ["d/0.jpg", "d/1.jpg", "d/2.jpg", "d/3.jpg"].iter().enumerate();
    let members: Vec<_> = members.map(|(i, name)| (*name, python_image(i))).collect();
    zip_of(&members, is_deflated, sizes_are_behind)
}

fn reasons(read: &Read) -> Vec<(Reason, Option<&str>)> {
    read.lost.iter().map(|(reason, key, _)| (*reason, key.as_deref())).collect()
}

#[test]
fn zips_of_python_are_read_from_any_sample_on() {
    for hex in [PYTHON, PYTHON_PIPE] {
        let zip = bytes_of(hex);
        for bytes in [zip.clone(), gzip(&zip)] {
            let whole = read(&bytes);
            assert!(is_python(&whole) && whole.lost.is_empty(), "{whole:?}");
            assert_eq!(whole.ending, Ending::complete());
            for (i, (offset, end)) in whole.places.iter().enumerate() {
                let rest = read_from(&bytes, *offset, 1 << 20);
                assert_eq!((rest.keys, rest.lost.len(), rest.ending), (keys("d", i..4), 0, Ending::complete()));
                let behind = read_from(&bytes, *end, 1 << 20);
                assert_eq!((behind.keys, behind.ending.verdict), (keys("d", i + 1..4), Verdict::Complete));
            }
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    for hex in [PYTHON, PYTHON_PIPE] {
        let zip = bytes_of(hex);
        for cut in 1..zip.len() {
            let read = read(&zip[..cut]);
            assert_ne!(read.ending.verdict, Verdict::Complete, "{cut}");
            assert_eq!(read.keys, keys("d", 0..read.keys.len()), "{cut}");
            assert_eq!(read.images, (0..read.keys.len()).map(python_image).collect::<Vec<_>>(), "{cut}");
            // the directory begins behind the last image
            let whole = read.places.iter().filter(|(_, end)| *end as usize <= cut).count();
            assert_eq!(whole, read.keys.len(), "{cut}");
        }
    }
}

#[test]
fn no_wrong_byte_is_passed_over_in_silence() {
    for hex in [PYTHON, PYTHON_PIPE] {
        let zip = bytes_of(hex);
        for at in 0..zip.len() {
            for flip in [1 << (at % 8), 0xff] {
                let mut bytes = zip.clone();
                bytes[at] ^= flip;
                let read = read(&bytes);
                let is_told = !read.lost.is_empty() || read.ending.verdict != Verdict::Complete;
                assert!(is_told || is_python(&read), "byte {at} ^ {flip}: {read:?}");
                let is_one = |image: &Bytes| (0..4).any(|i| *image == python_image(i));
                assert!(read.images.iter().all(is_one), "byte {at} ^ {flip}: {read:?}");
            }
        }
    }
}

#[test]
fn a_damaged_member_costs_itself_alone() {
    for (is_deflated, sizes_are_behind) in [(false, false), (false, true), (true, false), (true, true)] {
        let zip = four(is_deflated, sizes_are_behind);
        let places = read(&zip).places;
        let mut bytes = zip.clone();
        bytes[places[2].0 as usize + 30 + 7 + 8] ^= 0x20;
        let read = read(&bytes);
        assert!(reasons(&read).iter().all(|(_, key)| key.is_none_or(|key| key == "d/2")), "{read:?}");
        assert!(reasons(&read).contains(&(Reason::ChecksumMismatch, Some("d/2"))), "{read:?}");
        assert!(["d/0", "d/1", "d/3"].iter().all(|key| read.keys.iter().any(|it| it == key)), "{read:?}");
    }
}

#[test]
fn what_cannot_be_read_is_said_to_be_unsupported() {
    for sizes_are_behind in [false, true] {
        let zip = four(true, sizes_are_behind);
        let places = read(&zip).places;
        // flag 0 is encryption; method 12 is bzip2
        for (at, value) in [(6, 1), (8, 12)] {
            let mut bytes = zip.clone();
            let byte = &mut bytes[places[1].0 as usize + at];
            *byte = if at == 6 { *byte | value } else { value };
            let read = read(&bytes);
            assert_eq!(read.keys, ["d/0", "d/2", "d/3"]);
            assert_eq!(reasons(&read), [(Reason::UnsupportedMember, Some("d/1"))]);
            assert_eq!(read.ending, Ending::complete());
        }
    }
}

#[test]
fn reading_goes_on_behind_garbage() {
    let zip = four(false, false);
    let places = read(&zip).places;
    let (before, behind) = zip.split_at(places[2].0 as usize);
    for garbage in [b"PK\x03\x04 is how a member begins".to_vec(), vec![0xab; 200_000]] {
        let read = read(&[before, &garbage, behind].concat());
        assert_eq!(read.keys, ["d/0", "d/2", "d/3"]);
        assert_eq!(reasons(&read)[..2], [(Reason::GarbledHeader, Some("d/1")), (Reason::GarbledHeader, None)]);
        assert_eq!(read.lost[1].2, places[2].0);
    }
    // a size that leads beyond the end
    let mut bytes = zip.clone();
    bytes[places[1].0 as usize + 21] = 0x7f;
    let read = read(&bytes);
    assert_eq!(read.keys, ["d/0", "d/2", "d/3"]);
    assert_eq!(reasons(&read)[0], (Reason::GarbledHeader, Some("d/1")));
}

#[test]
fn bombs_are_not_inflated() {
    let bomb = [image(""), vec![0; 30_000_000]].concat();
    for sizes_are_behind in [false, true] {
        let mut zip = zip_of(&[("a.jpg", bomb.clone()), ("b.jpg", image("b"))], true, sizes_are_behind);
        let large = read_from(&zip, 0, 10_000);
        assert_eq!((large.keys, large.ending), (vec!["b".to_owned()], Ending::complete()));
        assert_eq!(large.lost, [(Reason::MemberTooLarge, Some("a".to_owned()), 0)]);
        if !sizes_are_behind {
            zip[22..26].copy_from_slice(&5_000_u32.to_le_bytes());
            let lying = read_from(&zip, 0, 10_000);
            assert_eq!(lying.keys, ["b"]);
            assert_eq!(reasons(&lying)[0], (Reason::ChecksumMismatch, Some("a")));
        }
    }
}

#[test]
fn the_directory_has_the_last_word() {
    let empty = read(&zip_of(&[], false, false));
    assert_eq!(reasons(&empty), [(Reason::EmptyShard, None)]);
    assert_eq!(empty.ending, Ending::complete());

    let zip = four(false, false);
    let trailing = read(&[&zip[..], b"more"].concat());
    assert_eq!((trailing.keys.len(), reasons(&trailing)), (4, vec![(Reason::TrailingData, None)]));
    assert_eq!(read(&[&zip[..], &[0; 999]].concat()).ending, Ending::complete());

    // a member that nobody removed from the directory
    let places = read(&zip).places;
    let missing = read(&[&zip[..places[1].0 as usize], &zip[places[1].1 as usize..]].concat());
    assert_eq!(missing.keys, ["d/0", "d/2", "d/3"]);
    assert_eq!(reasons(&missing), [(Reason::DirectoryMismatch, None)]);

    let side = [("__MACOSX/d/._0.jpg", image("fork")), ("d/", Vec::new()), ("d/._0.jpg", image("fork"))];
    let members = [&side[..], &[("d/0.jpg", image("0")), ("d/0.cls", b"7".to_vec())]].concat();
    let read = read(&zip_of(&members, true, false));
    assert_eq!((read.keys, read.lost.len(), read.ending), (keys("d", 0..1), 0, Ending::complete()));
}
