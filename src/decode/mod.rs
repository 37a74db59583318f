//! From the bytes of an image file to the pixels of its views.
//!
//! A [`Decoder`] takes a [`RawSample`], tells its format by content, checks its size before anything is allocated,
//! decodes it once, and writes a center view and a train view, `[S, S, 3]` uint8 each, straight into memory that the
//! caller owns: rows of a batch. It works on any number of threads at once; what a thread needs again and again
//! (decompressor, buffers) it keeps.
//!
//! Whatever the bytes are, the answer is a value: views and what is worth noting about them ([`Decoded`]), or the
//! reason why there are none ([`Rejection`]). A decoder that panics on a hostile file costs that file only.

mod augment;
mod counters;
mod filter;
mod fingerprint;
mod header;
mod jpeg;
mod other;
mod photograph;
mod turn;

pub use augment::{Augment, CenterCrops, CropBox, View};
pub use counters::{Counters, DecodeStats, Part};
pub use filter::{Filter, Prints};
pub use header::{Format, JpegHeader, read_jpeg, sniff};
pub use photograph::{Orient, Photograph};
pub use turn::Turn;

use crate::config::{StreamPlan, ViewsPlan};
use crate::ingest::{RawSample, SampleMeta};
use crate::shards::metadata::Licences;
use crate::shards::{Notice, Reason, Rejection, Trouble};
use crate::torch::resample::{self, Resampler};
use counters::Clock;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Turns samples into views.
#[derive(Clone, Debug)]
pub struct Decoder {
    augment: Augment,
    max_pixels: u64,
    exif: bool,
    dct_scaling: bool,
    cropping: bool,
    filter: Filter,
    licences: Option<Arc<Licences>>,
    classes: Option<usize>,
    counters: Arc<Counters>,
}

/// What is worth noting about an image that was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What it is.
    pub format: Format,
    /// Its full size (width, height) when upright, in pixels.
    pub size: (u32, u32),
    /// For JPEG through libjpeg-turbo: it was decoded at this many eighths of its size.
    pub eighths: Option<u8>,
    /// Its file is cut short or corrupt in places, and what was there is kept.
    pub truncated: bool,
    /// It was turned upright by its EXIF orientation.
    pub rotated: bool,
    /// It is not 8-bit RGB in its file: gray, palette, CMYK, alpha, 16 bits.
    pub converted: bool,
    /// What the rules on duplicates compare; empty where the center view was not wanted.
    pub prints: Prints,
}

impl Decoded {
    /// What the ledger counts of it.
    pub fn notices(&self) -> Vec<Notice> {
        let notices = [
            (self.truncated, Notice::TruncatedPixels),
            (self.rotated, Notice::Rotated),
            (self.converted, Notice::Converted),
        ];
        notices.into_iter().filter(|(found, _)| *found).map(|(_, notice)| notice).collect()
    }
}

/// Pixels as a file stores them, or the part of them that the views need: `[height, width, 3]`, at the front of a buffer
/// that may be longer.
struct Pixels {
    rgb: Vec<u8>,
    width: u32,
    height: u32,
    /// Where they begin in the picture (left, top), in pixels of their own size.
    origin: (u32, u32),
    /// Their size over that in the file, where they were scaled while they were decoded.
    scale: f64,
}

/// What one thread uses again and again.
#[derive(Default)]
struct Scratch {
    jpeg: jpeg::Jpeg,
    resampler: Resampler,
    rgb: Vec<u8>,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// A thread keeps its pixel buffer up to this size, about 5,000 × 4,000 pixels.
const KEPT_BYTES: usize = 64 << 20;

impl Decoder {
    /// Views by `views`; limits, EXIF and seed by `stream`.
    pub fn new(views: &ViewsPlan, stream: &StreamPlan) -> Self {
        Self {
            augment: Augment::new(views, stream.seed),
            max_pixels: (stream.max_megapixels * 1e6) as u64,
            exif: stream.exif,
            dct_scaling: true,
            cropping: true,
            filter: Filter::default(),
            licences: None,
            classes: None,
            counters: Arc::default(),
        }
    }

    /// Decodes every JPEG at full size, so that a bench can show what scaling saves.
    #[must_use]
    pub fn without_dct_scaling(self) -> Self {
        Self { dct_scaling: false, ..self }
    }

    /// Decodes every JPEG from corner to corner, so that a bench can show what leaving out saves.
    #[must_use]
    pub fn without_cropping(self) -> Self {
        Self { cropping: false, ..self }
    }

    /// Passes over what `filter` names: by the header before anything is decoded, by pixels where the center view is wanted.
    #[must_use]
    pub fn with_filter(self, filter: Filter) -> Self {
        Self { filter, ..self }
    }

    /// Passes over photographs of other licences, before anything else is looked at.
    #[must_use]
    pub fn with_licences(self, licences: Option<Arc<Licences>>) -> Self {
        Self { licences, ..self }
    }

    /// Cuts other center views than the middle.
    #[must_use]
    pub fn with_centers(self, centers: CenterCrops) -> Self {
        Self { augment: self.augment.with_centers(centers), ..self }
    }

    /// Center views of one photograph.
    pub fn centers(&self) -> usize {
        self.augment.count()
    }

    /// Loses samples without a class from 0 to `classes` - 1, before they are decoded: nothing can be learnt from them.
    #[must_use]
    pub fn with_classes(self, classes: Option<usize>) -> Self {
        Self { classes, ..self }
    }

    /// Side of the views, in pixels.
    pub fn size(&self) -> u32 {
        self.augment.size()
    }

    /// What this decoder and its clones have done so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Decodes `sample` once and writes the views that are asked for, `[S, S, 3]` each, all center views one after the other; with
    /// none, only checks that it decodes.
    ///
    /// The train view depends on (`stream.seed`, pass, id) of the sample. When the sample is rejected, the views hold
    /// anything.
    ///
    /// # Panics
    ///
    /// Never: a panic inside a decoder is given back as [`Reason::DecodeFailed`].
    pub fn decode_into(
        &self,
        sample: &RawSample,
        center: Option<&mut [u8]>,
        train: Option<&mut [u8]>,
    ) -> Result<Decoded, Rejection> {
        // Taken out and put back only after success or an orderly refusal: what a panic leaves behind is dropped.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut scratch = SCRATCH.take().unwrap_or_default();
            let outcome = self.decode_with(&mut scratch, sample, center, train);
            SCRATCH.set(Some(scratch));
            outcome
        }))
        .unwrap_or_else(|_| Err(Trouble::new(Reason::DecodeFailed, "the decoder panicked on it").into()));
        self.counters.add(&outcome);
        outcome
    }

    fn decode_with(
        &self,
        scratch: &mut Scratch,
        sample: &RawSample,
        center: Option<&mut [u8]>,
        train: Option<&mut [u8]>,
    ) -> Result<Decoded, Rejection> {
        if let Some(licences) = &self.licences {
            licences.judge(&sample.meta.shard, &sample.meta.key)?;
        }
        if let Some(classes) = self.classes {
            check_class(sample.meta.class, classes)?;
        }
        let mut clock = Clock::start(&self.counters);
        let kinds = [center.is_some().then_some(Kind::Center), train.is_some().then_some(Kind::Train)];
        let format = sniff(&sample.image)?;
        self.filter.check_bytes(sample.image.len())?;
        let mut picture = match format {
            Format::Jpeg => self.jpeg_pixels(scratch, sample, kinds, &mut clock)?,
            format => self.other_pixels(sample, format, kinds)?,
        };
        clock.lap(Part::Decode);

        let mut prints = Prints::default();
        let side = self.size() as usize;
        let targets = kinds.into_iter().zip(std::mem::take(&mut picture.views)).zip([center, train]);
        let mut targets = targets.filter_map(|((kind, views), target)| Some((kind?, views, target?)));
        let outcome = targets.try_for_each(|(kind, views, target)| {
            for (view, target) in views.into_iter().zip(target.chunks_exact_mut(side * side * 3)) {
                self.render(scratch, &picture, view, target, &mut clock);
            }
            if let (Kind::Center, Some(target)) = (kind, target.get(..side * side * 3)) {
                let bytes = sample.image.len();
                self.filter.check_pixels(target, side, bytes)?;
                prints = self.filter.prints(&sample.image, target, side);
                clock.lap(Part::Filter);
            }
            Ok::<(), Rejection>(())
        });
        picture.notes.prints = prints;
        scratch.keep(picture.pixels.rgb);
        outcome?;
        Ok(picture.notes)
    }

    fn jpeg_pixels(
        &self,
        scratch: &mut Scratch,
        sample: &RawSample,
        kinds: Kinds,
        clock: &mut Clock<'_>,
    ) -> Result<Picture, Rejection> {
        let bytes = &sample.image;
        let header =
            read_jpeg(bytes).ok_or_else(|| Trouble::new(Reason::DecodeFailed, "it ends before its size is told"))?;
        let stored = (header.width, header.height);
        header::check_pixels(header.width, header.height, self.max_pixels)?;
        header::check_scans(bytes, &header, self.max_pixels)?;
        self.filter.check_size(stored)?;
        let turn = self.turn(header.orientation.map(Turn::from).unwrap_or_default());
        let upright = turn.turn_size(stored);
        let views = self.views(kinds, upright, &sample.meta);
        let crops = views.iter().flatten().map(|view| turn.to_stored(view.crop, stored));
        let eighths = if self.dct_scaling { jpeg::eighths_for(crops.clone(), self.size()) } else { 8 };
        let part = if self.cropping { jpeg::part_for(crops, eighths, self.size()) } else { None };
        clock.lap(Part::Header);
        check_known(sample.known)?;

        let converted = header.components != 3;
        let buffer = std::mem::take(&mut scratch.rgb);
        let (pixels, truncated) = match scratch.jpeg.decode(bytes, stored, eighths, part, buffer) {
            Ok(decoded) => decoded,
            Err(refusal) => {
                let mut picture = self.other_pixels(sample, Format::Jpeg, kinds).map_err(|other| match other {
                    Rejection::Lost(other) => refusal.over(other).into(),
                    filtered => filtered,
                })?;
                picture.notes.converted = converted;
                picture.notes.truncated = !header::has_end(bytes);
                return Ok(picture);
            }
        };
        let notes = Decoded {
            format: Format::Jpeg,
            size: upright,
            eighths: Some((pixels.scale * 8.0) as u8),
            truncated,
            rotated: turn != Turn::default(),
            converted,
            prints: Prints::default(),
        };
        Ok(Picture { pixels, turn, notes, views })
    }

    fn other_pixels(&self, sample: &RawSample, format: Format, kinds: Kinds) -> Result<Picture, Rejection> {
        let other::Other { pixels, turn, converted } =
            other::decode(&sample.image, format, self.max_pixels, &self.filter, sample.known)?;
        let turn = self.turn(turn);
        let notes = Decoded {
            format,
            size: turn.turn_size((pixels.width, pixels.height)),
            eighths: None,
            truncated: false,
            rotated: turn != Turn::default(),
            converted,
            prints: Prints::default(),
        };
        let views = self.views(kinds, notes.size, &sample.meta);
        Ok(Picture { pixels, turn, notes, views })
    }

    fn turn(&self, by_exif: Turn) -> Turn {
        if self.exif { by_exif } else { Turn::default() }
    }

    fn views(&self, kinds: Kinds, upright: (u32, u32), meta: &SampleMeta) -> [Vec<View>; 2] {
        kinds.map(|kind| match kind {
            None => Vec::new(),
            Some(Kind::Center) => self.augment.centers(upright, meta.pass, meta.id),
            Some(Kind::Train) => vec![self.augment.train(upright, meta.pass, meta.id)],
        })
    }

    fn render(&self, scratch: &mut Scratch, picture: &Picture, view: View, target: &mut [u8], clock: &mut Clock<'_>) {
        let Picture { pixels, turn, notes, .. } = picture;
        let stored = turn.turn_size(notes.size);
        let crop = turn.to_stored(view.crop, stored).scaled(pixels.scale).seen_from(pixels.origin);
        let turn = if view.mirror { turn.then_mirror() } else { *turn };
        let size = self.size();
        let picture =
            resample::Picture { rgb: &pixels.rgb, width: pixels.width as usize, height: pixels.height as usize };
        augment::resample(&mut scratch.resampler, picture, crop, turn.mirrors(), target, size);
        clock.lap(Part::Resize);
        turn.transpose(target, size as usize);
        clock.lap(Part::Turn);
    }
}

/// Refuses an image that could not be decoded before: after all that its header and the settings decide.
fn check_class(class: Option<i64>, classes: usize) -> Result<(), Trouble> {
    let what = match class {
        Some(class) if usize::try_from(class).is_ok_and(|class| class < classes) => return Ok(()),
        Some(class) => format!("class {class}, where train.classes = {classes}"),
        None => "no class".to_owned(),
    };
    Err(Trouble::new(Reason::Unlabelled, what))
}

fn check_known(known: Option<Reason>) -> Result<(), Trouble> {
    known.map_or(Ok(()), |reason| Err(Trouble::new(reason, "as when it was read before")))
}

/// Which of the two kinds of views.
#[derive(Clone, Copy)]
enum Kind {
    Center,
    Train,
}

/// Those that are wanted.
type Kinds = [Option<Kind>; 2];

/// A decoded image before its views are cut.
struct Picture {
    pixels: Pixels,
    turn: Turn,
    notes: Decoded,
    /// Boxes of the upright picture at full size, for each kind.
    views: [Vec<View>; 2],
}

impl Scratch {
    fn keep(&mut self, rgb: Vec<u8>) {
        let fits = rgb.capacity() <= KEPT_BYTES;
        if fits && rgb.capacity() > self.rgb.capacity() {
            self.rgb = rgb;
        }
        if self.resampler.kept_bytes() > KEPT_BYTES {
            self.resampler = Resampler::default();
        }
    }
}
