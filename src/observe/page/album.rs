//! Thumbnails that the page has shown: found once, kept as JPEG, the oldest given up.
//!
//! In: ids of samples. Out: small JPEGs with their keys, of those that can be found near at hand. One search goes on at a time; what was not
//! found is not looked for again for a while, since an index learns of a shard when it has been read.

use crate::error::{Error, Result};
use crate::observe::Photographs;
use crate::shards::SampleId;
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Side in pixels: sharp on a screen of two pixels to a point.
const SIDE: u32 = 160;
const QUALITY: u8 = 82;
/// Thumbnails kept, some 6 kB each.
const MOST: usize = 2_000;
/// Until something that was not found is looked for again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// A photograph as the page shows it.
#[derive(Debug)]
pub(super) struct Thumbnail {
    pub(super) key: String,
    pub(super) jpeg: Vec<u8>,
}

/// The thumbnails so far.
pub(super) struct Album {
    photographs: Arc<dyn Photographs>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    found: HashMap<SampleId, Arc<Thumbnail>>,
    order: VecDeque<SampleId>,
    missed: HashMap<SampleId, Instant>,
}

impl Album {
    pub(super) fn new(photographs: Arc<dyn Photographs>) -> Self {
        Self { photographs, kept: Mutex::default() }
    }

    /// Those of `wanted` that can be found. Blocks.
    pub(super) fn find(&self, wanted: &HashSet<SampleId>) -> Result<HashMap<SampleId, Arc<Thumbnail>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.missed.retain(|_, since| since.elapsed() < AGAIN_AFTER);
        let is_new = |id: &&SampleId| !kept.found.contains_key(id) && !kept.missed.contains_key(id);
        let lacking: HashSet<SampleId> = wanted.iter().filter(is_new).copied().collect();
        if !lacking.is_empty() {
            let found = self.photographs.find(&lacking, SIDE)?;
            kept.missed.extend(lacking.iter().filter(|id| !found.contains_key(id)).map(|id| (*id, Instant::now())));
            for (id, (key, picture)) in found {
                kept.keep(id, Thumbnail { key, jpeg: encode(&picture)? });
            }
        }
        Ok(wanted.iter().filter_map(|id| Some((*id, Arc::clone(kept.found.get(id)?)))).collect())
    }
}

impl Kept {
    fn keep(&mut self, id: SampleId, thumbnail: Thumbnail) {
        if self.order.len() >= MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.found.remove(&oldest);
        }
        self.order.push_back(id);
        self.found.insert(id, Arc::new(thumbnail));
    }
}

fn encode(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut jpeg = Vec::new();
    let encoded = JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(picture);
    encoded.map_err(|error| Error::data(format!("cannot encode a thumbnail: {error}")))?;
    Ok(jpeg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// Has the even ones, and counts what it is asked for.
    #[derive(Default)]
    struct Even(AtomicUsize);

    impl Photographs for Even {
        fn find(&self, wanted: &HashSet<SampleId>, side: u32) -> Result<HashMap<SampleId, (String, RgbImage)>> {
            self.0.fetch_add(wanted.len(), Relaxed);
            let even = wanted.iter().filter(|id| id.0 % 2 == 0);
            Ok(even.map(|id| (*id, (id.0.to_string(), RgbImage::new(side, side)))).collect())
        }
    }

    #[test]
    fn each_is_looked_for_once_whether_it_is_there_or_not() -> Result<()> {
        let even = Arc::new(Even::default());
        let album = Album::new(Arc::clone(&even) as Arc<dyn Photographs>);
        for _ in 0..3 {
            let found = album.find(&(0..10).map(SampleId).collect())?;
            assert_eq!(found.len(), 5);
            assert!(found[&SampleId(4)].key == "4" && found[&SampleId(4)].jpeg.starts_with(&[0xff, 0xd8]));
        }
        assert_eq!(even.0.load(Relaxed), 10);
        Ok(())
    }

    #[test]
    fn the_oldest_are_given_up() -> Result<()> {
        let album = Album::new(Arc::new(Even::default()));
        for start in 0..12 {
            album.find(&(start * 400..(start + 1) * 400).map(SampleId).collect())?;
        }
        let kept = album.kept.lock().expect("no panic");
        assert_eq!((kept.found.len(), kept.order.len()), (MOST, MOST));
        assert!(kept.found.contains_key(&SampleId(4_798)) && !kept.found.contains_key(&SampleId(0)));
        Ok(())
    }
}
