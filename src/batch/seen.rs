//! Images that went by, to tell whether another is one of them again.
//!
//! In: the [`Prints`] of images, in stream order. Out: why an image is a duplicate, or a new [`Entry`] to remember. The
//! last `filter.remember` entries are known ([`Seen`]), older ones are forgotten, oldest first; [`Remembered`] is the
//! same list without the means to search it, as a snapshot keeps it. What is decided depends on the entries and their
//! order alone.
//!
//! Two images are near where at most `near_bits` of their 128 bits differ. The bits are cut into `near_bits + 1` bands,
//! of which one at least is then equal; so only images that share a band are compared. Bands and the hash of the bytes
//! each have a table of chains, newest entry first. A chain ends where it comes to a forgotten entry, so nothing is ever
//! taken out. Memory: 32 bytes an entry, 4 for each table, and 32 in [`Remembered`]: about 100 an image in all.
//!
//! Of random 128-bit hashes a pair is within 6 bits once in 6 × 10²⁸; with a million remembered a 64-bit hash of other
//! bytes is met by chance once in 2 × 10¹³ images. What near photographs really are is another matter: see
//! `tests/filters.rs`.

use crate::config::{Duplicates, FilterPlan};
use crate::decode::Prints;
use crate::shards::{Filtered, SampleId};
use std::collections::VecDeque;

/// An image that was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose it is: the same sample in a later pass is no duplicate of itself.
    pub id: SampleId,
    /// XXH3 of its file.
    pub bytes: u64,
    /// The hash of its pixels; 0 where `filter.duplicates` does not ask for it.
    pub pixels: u128,
}

/// What becomes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It is passed over.
    Again(Filtered),
    /// The first of its kind, to be remembered.
    New(Entry),
    /// Remembered already, or nobody asks.
    Known,
}

/// The last entries, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Remembered {
    most: usize,
    entries: VecDeque<Entry>,
}

impl Remembered {
    /// None yet, and never more than `most`.
    pub fn new(most: usize) -> Self {
        Self { most, entries: VecDeque::new() }
    }

    /// Adds the newest, in order.
    pub fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            if self.entries.is_empty() {
                self.entries.reserve_exact(self.most); // doubling could take twice as much
            }
            if self.entries.len() == self.most {
                self.entries.pop_front();
            }
            if self.most > 0 {
                self.entries.push_back(entry);
            }
        }
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The last entries, and where to look for them.
#[derive(Debug)]
pub(super) struct Seen {
    most: usize,
    near_bits: u32,
    /// The entry with the number `n` stands at `n % most`.
    ring: Vec<Entry>,
    /// Entries ever added: the number of the next.
    total: u64,
    by_bytes: Chains,
    by_band: Vec<Chains>,
}

impl Seen {
    /// Goes on with what is remembered. `filter.remember` is at least 1.
    pub(super) fn new(plan: &FilterPlan, remembered: &Remembered) -> Self {
        let bands = match plan.duplicates {
            Duplicates::Near => plan.near_bits as usize + 1,
            Duplicates::Off | Duplicates::Bytes => 0,
        };
        let mut seen = Self {
            most: plan.remember.max(1),
            near_bits: plan.near_bits,
            ring: Vec::new(),
            total: 0,
            by_bytes: Chains::new(plan.remember.next_power_of_two().ilog2().clamp(10, 24)),
            by_band: (0..bands).map(|_| Chains::new(band_bits(bands))).collect(),
        };
        remembered.iter().for_each(|entry| seen.add(*entry));
        seen
    }

    /// Decides on the next image of the stream, and remembers it if it is new.
    pub(super) fn meet(&mut self, id: SampleId, prints: &Prints) -> Met {
        let Some(bytes) = prints.bytes else { return Met::Known };
        if let Some(twin) = self.entries(&self.by_bytes, bytes).find(|entry| entry.bytes == bytes) {
            return match (twin.id == id, prints.placeholder) {
                (true, _) => Met::Known,
                (false, true) => Met::Again(Filtered::Placeholder),
                (false, false) => Met::Again(Filtered::DuplicateBytes),
            };
        }
        let pixels = prints.pixels.unwrap_or(0);
        if prints.pixels.is_some() && self.has_near(pixels) {
            return Met::Again(Filtered::NearDuplicate);
        }
        let entry = Entry { id, bytes, pixels };
        self.add(entry);
        Met::New(entry)
    }

    fn has_near(&self, pixels: u128) -> bool {
        let is_near = |entry: &Entry| (entry.pixels ^ pixels).count_ones() <= self.near_bits;
        let mut bands = self.by_band.iter().enumerate();
        bands.any(|(band, chains)| self.entries(chains, band_key(pixels, band, self.by_band.len())).any(is_near))
    }

    /// The entries of one chain that are not forgotten, newest first.
    fn entries<'a>(&'a self, chains: &'a Chains, key: u64) -> impl Iterator<Item = &'a Entry> {
        let mut number = chains.newest(key);
        std::iter::from_fn(move || {
            let at = number?;
            if self.total - at > self.most as u64 {
                return None;
            }
            let place = (at % self.most as u64) as usize;
            number = at.checked_sub(u64::from(chains.back[place])).filter(|before| *before < at);
            Some(&self.ring[place])
        })
    }

    fn add(&mut self, entry: Entry) {
        let place = (self.total % self.most as u64) as usize;
        match self.ring.get_mut(place) {
            Some(oldest) => *oldest = entry,
            None => {
                if self.ring.is_empty() {
                    self.ring.reserve_exact(self.most);
                }
                self.ring.push(entry);
            }
        }
        self.by_bytes.add(entry.bytes, self.total, place, self.most);
        let bands = self.by_band.len();
        for (band, chains) in self.by_band.iter_mut().enumerate() {
            chains.add(band_key(entry.pixels, band, bands), self.total, place, self.most);
        }
        self.total += 1;
    }
}

/// Entries by one key, chained from the newest to the oldest.
#[derive(Debug)]
struct Chains {
    mask: u64,
    /// By key: the number of the newest entry, plus 1; 0 where there is none.
    heads: Vec<u64>,
    /// By place in the ring: how many entries earlier the next one of the chain was added; 0 at its end.
    back: Vec<u32>,
}

impl Chains {
    fn new(bits: u32) -> Self {
        Self { mask: (1 << bits) - 1, heads: vec![0; 1 << bits], back: Vec::new() }
    }

    fn newest(&self, key: u64) -> Option<u64> {
        self.heads[(key & self.mask) as usize].checked_sub(1)
    }

    fn add(&mut self, key: u64, number: u64, place: usize, most: usize) {
        let before = self.newest(key).map_or(0, |before| number - before);
        // an entry so far back is forgotten by the time that anybody looks
        let back = u32::try_from(before).ok().filter(|back| (*back as usize) < most).unwrap_or(0);
        match self.back.get_mut(place) {
            Some(slot) => *slot = back,
            None => {
                if self.back.is_empty() {
                    self.back.reserve_exact(most);
                }
                self.back.push(back);
            }
        }
        self.heads[(key & self.mask) as usize] = number + 1;
    }
}

/// Bits of a band that are looked up; the others of a wide band need no table of their own.
fn band_bits(bands: usize) -> u32 {
    (128 / bands.max(1) as u32).min(20)
}

fn band_key(pixels: u128, band: usize, bands: usize) -> u64 {
    (pixels >> (band * (128 / bands))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(duplicates: Duplicates, remember: usize) -> FilterPlan {
        FilterPlan { duplicates, remember, near_bits: 6, ..FilterPlan::default() }
    }

    fn prints(bytes: u64, pixels: u128) -> Prints {
        Prints { bytes: Some(bytes), pixels: Some(pixels), placeholder: false }
    }

    fn seen(duplicates: Duplicates, remember: usize) -> Seen {
        Seen::new(&plan(duplicates, remember), &Remembered::new(remember))
    }

    #[test]
    fn the_first_stays_in_every_pass_and_the_others_never_do() {
        let mut seen = seen(Duplicates::Bytes, 10);
        let only_bytes = |bytes| Prints { pixels: None, ..prints(bytes, 0) };
        assert!(matches!(seen.meet(SampleId(1), &only_bytes(77)), Met::New(_)));
        for _ in 0..2 {
            assert_eq!(seen.meet(SampleId(2), &only_bytes(77)), Met::Again(Filtered::DuplicateBytes));
            assert_eq!(seen.meet(SampleId(1), &only_bytes(77)), Met::Known);
        }
        let placeholder = Prints { placeholder: true, ..only_bytes(77) };
        assert_eq!(seen.meet(SampleId(3), &placeholder), Met::Again(Filtered::Placeholder));
        assert_eq!(seen.meet(SampleId(3), &Prints::default()), Met::Known, "no rule asks");
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut seen = seen(Duplicates::Near, 3);
        let far = |number: u64| u128::from(number) * 0x0123_4567_89ab_cdef_1111_2222_4444_8888;
        for number in 1..=4 {
            assert!(matches!(seen.meet(SampleId(number), &prints(number, far(number))), Met::New(_)));
        }
        assert_eq!(seen.meet(SampleId(9), &prints(2, 0)), Met::Again(Filtered::DuplicateBytes));
        assert_eq!(seen.meet(SampleId(9), &prints(99, far(2) ^ 0b111)), Met::Again(Filtered::NearDuplicate));
        assert!(matches!(seen.meet(SampleId(9), &prints(1, far(1))), Met::New(_)), "three came after it");
    }

    #[test]
    fn random_prints_are_never_near() {
        let mut seen = seen(Duplicates::Near, 20_000);
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            xxhash_rust::xxh3::xxh3_128(&state.to_le_bytes())
        };
        for id in 0..100_000 {
            let pixels = random();
            assert!(matches!(seen.meet(SampleId(id), &prints(pixels as u64, pixels)), Met::New(_)), "{id}");
        }
        assert_eq!((seen.ring.len(), seen.by_bytes.back.len()), (20_000, 20_000), "memory does not grow");
        assert!(seen.by_band.iter().all(|chains| chains.back.len() == 20_000));
    }

    proptest! {
        /// Against every entry compared with every other, for small hashes that meet often, with a restart in between.
        #[test]
        fn it_decides_as_a_search_through_all_of_them(
            images in proptest::collection::vec((0_u64..40, 0_u64..30, 0_u128..4096), 1..120),
            remember in 1_usize..20,
            near_bits in 0_u32..4,
            restart in 0_usize..120,
        ) {
            let plan = FilterPlan { near_bits, ..plan(Duplicates::Near, remember) };
            let mut remembered = Remembered::new(remember);
            let mut seen = Seen::new(&plan, &remembered);
            let mut all: Vec<Entry> = Vec::new();
            for (number, (id, bytes, small)) in images.into_iter().enumerate() {
                if number == restart {
                    seen = Seen::new(&plan, &remembered);
                }
                let pixels = small * 0x0000_8000_0010_0000_0200_0000_0040_0001; // over all the bands
                let (id, known) = (SampleId(id), &all[all.len().saturating_sub(remember)..]);
                let twin = known.iter().rev().find(|entry| entry.bytes == bytes);
                let near = known.iter().any(|entry| (entry.pixels ^ pixels).count_ones() <= near_bits);
                let expected = match twin {
                    Some(twin) if twin.id == id => Met::Known,
                    Some(_) => Met::Again(Filtered::DuplicateBytes),
                    None if near => Met::Again(Filtered::NearDuplicate),
                    None => Met::New(Entry { id, bytes, pixels }),
                };
                let met = seen.meet(id, &prints(bytes, pixels));
                prop_assert_eq!(met, expected);
                if let Met::New(entry) = met {
                    all.push(entry);
                    remembered.extend([entry]);
                }
            }
        }
    }
}
