//! Members grouped into samples by WebDataset's rule.
//!
//! A sample is a run of files with the same key: the path up to the first dot after the last slash. What follows the dot is
//! the extension, compared in lower case. Hidden files, names without a dot and `__meta__` entries belong to no sample. A key that comes again later
//! is another sample; so is one that goes on in the next shard.
//!
//! A sample is whole when the next one begins or the archive ends properly. Where the archive is cut or garbled, the sample it
//! happened in is lost with it, since nobody knows what is missing. The image of a sample is its first member with an
//! image's extension, otherwise its first member whose content begins like one; decoding looks at contents alone.

use super::archive::{Archive, Data, Ending, Member, Next};
use super::reason::{Notice, Reason, Trouble};
use bytes::Bytes;
use std::collections::VecDeque;

const IMAGE_EXTENSIONS: [&str; 11] = ["jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "img"];
/// A `.cls` member holds one integer.
const LONGEST_CLASS: u64 = 64;

/// One sample of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSample {
    /// WebDataset key.
    pub key: String,
    /// Byte offset of its first member's header in the uncompressed archive.
    pub offset: u64,
    /// Byte offset of whatever follows its last member.
    pub end: u64,
    /// The image file, undecoded.
    pub image: Bytes,
    /// The integer in its `.cls` member, or the number of its folder where folders are classes.
    pub class: Option<i64>,
    /// What was odd about it.
    pub notices: Vec<Notice>,
    /// Why its image could not be decoded before, where somebody who reads it knows that from an index.
    pub known: Option<Reason>,
}

/// Something lost on the way through a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// WebDataset key, where there is one.
    pub key: Option<String>,
    /// Byte offset in the uncompressed tar.
    pub offset: u64,
    /// Why.
    pub trouble: Trouble,
}

/// What comes next in a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A whole sample.
    Sample(ShardSample),
    /// A sample or a member that is lost; the shard goes on.
    Lost(Lost),
    /// The end; the same again if asked again.
    End(Ending),
}

/// The samples of one shard, in the order of the archive.
pub struct Samples {
    archive: Archive,
    most: u64,
    group: Option<Group>,
    ready: VecDeque<Step>,
    /// Of samples without one of their own.
    class: Option<i64>,
    from_the_start: bool,
    found_any: bool,
}

/// A sample whose members are still coming.
struct Group {
    key: String,
    offset: u64,
    end: u64,
    extensions: Vec<String>,
    image: Option<Bytes>,
    image_by_content: Option<Bytes>,
    class: Option<i64>,
    notices: Vec<Notice>,
    trouble: Option<Trouble>,
}

impl Samples {
    /// The samples of an archive; members of more than `most` bytes are not read.
    pub fn new(archive: Archive, most: u64) -> Self {
        let ready = VecDeque::new();
        Self { archive, most, group: None, ready, class: None, from_the_start: true, found_any: false }
    }

    /// Gives samples without a `.cls` this class.
    pub fn with_class(self, class: Option<i64>) -> Self {
        Self { class, ..self }
    }

    /// Goes on at the offset or end of a sample, as [`Archive::go_to`].
    ///
    /// # Errors
    /// The shard ends before that byte, or cannot be read from there.
    pub fn go_to(&mut self, offset: u64) -> Result<(), Trouble> {
        self.group = None;
        self.ready.clear();
        self.from_the_start = self.from_the_start && !self.found_any && offset == 0;
        self.archive.go_to(offset)
    }

    /// The archive beneath.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// What comes next.
    pub fn step(&mut self) -> Step {
        loop {
            if let Some(step) = self.ready.pop_front() {
                self.found_any |= matches!(step, Step::Sample(_));
                return step;
            }
            match self.archive.step() {
                Next::Member(member) => self.take(member),
                Next::Damage(offset, trouble) => {
                    let is_within = trouble.reason == Reason::GarbledHeader;
                    if is_within {
                        self.give_up_group(&trouble);
                    } else {
                        self.finish_group();
                    }
                    self.ready.push_back(Step::Lost(Lost { key: None, offset, trouble }));
                }
                Next::End(ending) => self.end(ending),
            }
        }
    }

    fn end(&mut self, ending: Ending) {
        match &ending.trouble {
            Some(trouble) => self.give_up_group(trouble),
            None => self.finish_group(),
        }
        let is_empty = self.ready.is_empty() && !self.found_any && self.from_the_start;
        if is_empty && ending.trouble.is_none() {
            let trouble = Trouble::new(Reason::EmptyShard, "no sample in it");
            self.ready.push_back(Step::Lost(Lost { key: None, offset: 0, trouble }));
            self.from_the_start = false;
        }
        self.ready.push_back(Step::End(ending));
    }

    fn take(&mut self, member: Member) {
        let name = if member.is_alone { split_file_name(&member.name) } else { split_name(&member.name) };
        let Some((key, extension)) = name else {
            return;
        };
        if member.is_alone || self.group.as_ref().is_some_and(|group| group.key != key) {
            self.finish_group();
        }
        let group = self.group.get_or_insert_with(|| Group::new(key, member.offset));
        group.take(extension, &mut self.archive, self.most);
        group.end = self.archive.member_end();
    }

    fn finish_group(&mut self) {
        let Some(group) = self.group.take() else {
            return;
        };
        let step = match group.image.or(group.image_by_content) {
            Some(image) => Step::Sample(ShardSample {
                key: group.key,
                offset: group.offset,
                end: group.end,
                image,
                class: group.class.or(self.class),
                notices: group.notices,
                known: None,
            }),
            None => {
                let members = format!("members: {}", group.extensions.join(", "));
                let trouble = group.trouble.unwrap_or_else(|| Trouble::new(Reason::NoImage, members));
                Step::Lost(Lost { key: Some(group.key), offset: group.offset, trouble })
            }
        };
        self.ready.push_back(step);
    }

    /// The sample that damage befell is lost with it.
    fn give_up_group(&mut self, trouble: &Trouble) {
        if let Some(group) = self.group.take() {
            let begins = || Trouble::new(trouble.reason, "the sample at which the damage begins");
            let trouble = group.trouble.unwrap_or_else(begins);
            self.ready.push_back(Step::Lost(Lost { key: Some(group.key), offset: group.offset, trouble }));
        }
    }
}

impl Group {
    fn new(key: String, offset: u64) -> Self {
        Self {
            key,
            offset,
            end: offset,
            extensions: Vec::new(),
            image: None,
            image_by_content: None,
            class: None,
            notices: Vec::new(),
            trouble: None,
        }
    }

    fn take(&mut self, extension: String, archive: &mut Archive, most: u64) {
        if self.extensions.contains(&extension) {
            self.notices.push(Notice::RepeatedExtension);
            return;
        }
        if extension == "cls" {
            match class(archive.data(LONGEST_CLASS)) {
                Some(class) => self.class = Some(class),
                None => self.notices.push(Notice::BadClass),
            }
        } else if self.image.is_none() && IMAGE_EXTENSIONS.contains(&extension.as_str()) {
            self.image = self.read(archive, most);
        } else if self.image.is_none() && self.image_by_content.is_none() && looks_like_image(archive.head()) {
            self.image_by_content = self.read(archive, most);
        }
        self.extensions.push(extension);
    }

    fn read(&mut self, archive: &mut Archive, most: u64) -> Option<Bytes> {
        match archive.data(most) {
            Data::Whole(data) => Some(data),
            Data::TooLarge(size) => {
                let detail = format!("{size} bytes, stream.max_member_mib allows {most}");
                self.trouble = Some(Trouble::new(Reason::MemberTooLarge, detail));
                None
            }
            Data::Damaged(trouble) => {
                self.trouble = Some(trouble);
                None
            }
            // the archive tells of the cut next, which gives up the group
            Data::Cut => None,
        }
    }
}

fn class(data: Data) -> Option<i64> {
    match data {
        Data::Whole(data) => std::str::from_utf8(&data).ok()?.trim().parse().ok(),
        Data::TooLarge(_) | Data::Damaged(_) | Data::Cut => None,
    }
}

/// Key and lower-cased extension of a member; none if it belongs to no sample.
pub(super) fn split_name(name: &str) -> Option<(String, String)> {
    let first = name.split('/').next().unwrap_or_default();
    if first.len() >= 4 && first.starts_with("__") && first.ends_with("__") {
        return None;
    }
    let base_at = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base_at + name[base_at..].find('.')?;
    if dot == base_at {
        return None;
    }
    Some((name[..dot].to_owned(), name[dot + 1..].to_lowercase()))
}

/// Key and lower-cased extension of a file that is a sample of its own: the key is all but the last extension.
fn split_file_name(name: &str) -> Option<(String, String)> {
    let (key, extension) = name.rsplit_once('.')?;
    Some((key.to_owned(), extension.to_lowercase()))
}

/// Whether a name has the extension of an image.
pub(super) fn is_image_name(name: &str) -> bool {
    split_file_name(name).is_some_and(|(_, extension)| IMAGE_EXTENSIONS.contains(&extension.as_str()))
}

/// Whether bytes begin like an image of a common format.
pub(super) fn looks_like_image(head: &[u8]) -> bool {
    let is_riff_webp = head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP");
    let is_bitmap = head.starts_with(b"BM") && head.get(6..10) == Some(&[0; 4]);
    let magics: [&[u8]; 6] = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II\x2a\0", b"MM\0\x2a"];
    is_riff_webp || is_bitmap || magics.iter().any(|magic| head.starts_with(magic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_as_in_webdataset() {
        let cases = [
            ("a.jpg", Some(("a", "jpg"))),
            ("./a.JPG", Some(("./a", "jpg"))),
            ("dir.v1/a.seg.PNG", Some(("dir.v1/a", "seg.png"))),
            ("a.", Some(("a", ""))),
            ("noext", None),
            ("dir.v1/noext", None),
            (".DS_Store", None),
            ("dir/._a.jpg", None),
            ("__meta__", None),
            ("__meta__/info.json", None),
            ("__half.jpg", Some(("__half", "jpg"))),
            ("größe/é.jpg", Some(("größe/é", "jpg"))),
        ];
        for (name, expected) in cases {
            let split = split_name(name);
            assert_eq!(split.as_ref().map(|(key, extension)| (key.as_str(), extension.as_str())), expected, "{name}");
        }
    }

    #[test]
    fn contents_tell_images() {
        for head in
            [&b"\xff\xd8\xff\xe0"[..], b"RIFF\0\0\0\0WEBPVP8 ", b"GIF89a", b"BM\x10\0\0\0\0\0\0\0", b"II\x2a\0\x08"]
        {
            assert!(looks_like_image(head), "{head:?}");
        }
        for head in [&b""[..], b"<html>", b"BMW is a car make", b"{\"a\": 1}", b"\xff\xd8"] {
            assert!(!looks_like_image(head), "{head:?}");
        }
    }
}
