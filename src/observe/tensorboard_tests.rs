//! Event files are read back here by a reader that shares no code with the writer: a bitwise CRC, a generic parser of
//! protobuf's wire format.

use super::*;

/// One field of a message: its number, and its payload (varints and fixed-width values as little-endian bytes).
type Field = (u32, Vec<u8>);

fn bitwise_crc32c(data: &[u8]) -> u32 {
    let mut remainder = 0xffff_ffff_u32;
    for byte in data {
        for bit in 0..8 {
            let feedback = (remainder ^ u32::from(byte >> bit)) & 1;
            remainder = (remainder >> 1) ^ (0x82f6_3b78 * feedback);
        }
    }
    remainder ^ 0xffff_ffff
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at(len);
    *bytes = tail;
    head
}

fn read_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for position in 0.. {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << (7 * position);
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn fields(mut bytes: &[u8]) -> Vec<Field> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = read_varint(&mut bytes);
        let payload = match key & 7 {
            0 => read_varint(&mut bytes).to_le_bytes().to_vec(),
            1 => take(&mut bytes, 8).to_vec(),
            2 => {
                let len = read_varint(&mut bytes) as usize;
                take(&mut bytes, len).to_vec()
            }
            5 => take(&mut bytes, 4).to_vec(),
            other => panic!("wire type {other}"),
        };
        out.push(((key >> 3) as u32, payload));
    }
    out
}

fn field(message: &[u8], number: u32) -> Vec<u8> {
    fields(message).into_iter().find(|(found, _)| *found == number).expect("the field is there").1
}

fn unmask(masked: u32) -> u32 {
    masked.wrapping_sub(0xa282_ead8).rotate_left(15)
}

fn read_events(path: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(path).expect("the event file is readable");
    let mut rest = file.as_slice();
    let mut events = Vec::new();
    while !rest.is_empty() {
        let length = take(&mut rest, 8);
        let length_crc = u32::from_le_bytes(take(&mut rest, 4).try_into().expect("4 bytes"));
        assert_eq!(unmask(length_crc), bitwise_crc32c(length));
        let data = take(&mut rest, u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize);
        let data_crc = u32::from_le_bytes(take(&mut rest, 4).try_into().expect("4 bytes"));
        assert_eq!(unmask(data_crc), bitwise_crc32c(data));
        events.push(data.to_vec());
    }
    events
}

fn double(bytes: &[u8]) -> f64 {
    f64::from_le_bytes(bytes.try_into().expect("8 bytes"))
}

#[test]
fn the_checksum_is_castagnolis() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    // RFC 3720, B.4: 32 bytes of zeros, 32 bytes of ones
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
}

#[test]
fn what_is_written_is_read_back_by_an_independent_reader() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut events = EventFile::create(folder.path(), 301)?;
    events.scalars(310, &[("train/loss", 5.25), ("train/lr", 0.05)])?;
    let histogram = Histogram::of(&[1.0, 2.0, 2.0, 5.0], 4).expect("there are values");
    events.histogram(310, "sizes", &histogram)?;

    let found = read_events(&events.path);
    assert_eq!(found.len(), 4);
    assert_eq!(field(&found[0], 3), b"brain.Event:2");
    assert_eq!(field(&found[1], 2), 301_u64.to_le_bytes());
    assert_eq!(field(&field(&found[1], 7), 1), 1_u64.to_le_bytes());

    let scalars: Vec<(String, f32)> = fields(&field(&found[2], 5))
        .into_iter()
        .map(|(_, value)| {
            let tag = String::from_utf8(field(&value, 1)).expect("a tag is text");
            (tag, f32::from_le_bytes(field(&value, 2).try_into().expect("4 bytes")))
        })
        .collect();
    assert_eq!(scalars, [("train/loss".to_owned(), 5.25), ("train/lr".to_owned(), 0.05)]);

    let bins = field(&field(&field(&found[3], 5), 1), 5);
    assert_eq!(double(&field(&bins, 1)), 1.0);
    assert_eq!(double(&field(&bins, 3)), 4.0);
    assert_eq!(double(&field(&bins, 5)), 34.0);
    let counts: Vec<f64> = field(&bins, 7).chunks(8).map(double).collect();
    assert_eq!(counts, [3.0, 0.0, 0.0, 1.0]);
    Ok(())
}

#[test]
fn a_resumed_run_leaves_the_older_file_alone() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = EventFile::create(folder.path(), 0)?;
    let before = fs::read(&first.path).expect("the first file");
    let second = EventFile::create(folder.path(), 100)?;
    assert_ne!(first.path, second.path);
    assert_eq!(fs::read(&first.path).expect("the first file"), before);
    Ok(())
}

#[test]
fn equal_values_make_one_full_bin() {
    let histogram = Histogram::of(&[3.0, 3.0], 5).expect("there are values");
    assert_eq!(histogram.counts.iter().sum::<f64>(), 2.0);
    assert!(histogram.limits.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", histogram.limits);
    assert!(Histogram::of(&[], 5).is_none());
}

#[test]
fn a_picture_is_a_png_with_its_size() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut events = EventFile::create(folder.path(), 0)?;
    let picture = RgbImage::from_fn(7, 5, |x, y| image::Rgb([x as u8, y as u8, 9]));
    events.picture(12, "cycle/clusters", &picture)?;
    let found = read_events(&events.path);
    let value = field(&field(&found[2], 5), 1);
    assert_eq!(field(&value, 1), b"cycle/clusters");
    let body = field(&value, 4);
    let sizes = [1, 2, 3].map(|number| u64::from_le_bytes(field(&body, number).try_into().expect("8 bytes")));
    assert_eq!(sizes, [5, 7, 3], "height, width, channels");
    let decoded = image::load_from_memory(&field(&body, 4)).expect("a PNG").to_rgb8();
    assert_eq!(decoded, picture);
    Ok(())
}
