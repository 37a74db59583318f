//! The images that each filter answers most (paper, Figures 4 and 5), of any number of images in bounded memory.
//!
//! In: batches of scores, `[B, F]`, and how to make a thumbnail of a row of the batch. Out: for each filter its best images, the best first. A
//! thumbnail is made only for an image that is among the best so far, and is let go with it.

use crate::shards::SampleId;
use image::RgbImage;
use std::sync::Arc;

/// An image among the best.
#[derive(Clone, Debug)]
pub struct Found {
    /// How much the filter answers it.
    pub score: f32,
    /// Which one.
    pub id: SampleId,
    /// Its name in the shard.
    pub key: String,
    /// Shared by all filters that it is among the best of.
    pub picture: Arc<RgbImage>,
}

/// The best images of some filters.
#[derive(Debug)]
pub struct Best {
    each: usize,
    filters: Vec<Vec<Found>>,
    seen: u64,
}

impl Best {
    /// The `each` best for so many filters.
    pub fn new(filters: usize, each: usize) -> Self {
        Self { each, filters: vec![Vec::new(); filters], seen: 0 }
    }

    /// Offers an image with a score for each filter. Of equal scores the image that came first stays.
    pub fn offer<E>(
        &mut self,
        id: SampleId,
        key: &str,
        scores: &[f32],
        picture: impl FnOnce() -> Result<RgbImage, E>,
    ) -> Result<(), E> {
        self.seen += 1;
        let (each, mut picture, mut made) = (self.each, Some(picture), None);
        for (found, &score) in self.filters.iter_mut().zip(scores) {
            let is_full = found.len() == each;
            if score.is_nan() || each == 0 || (is_full && found.last().is_some_and(|worst| score <= worst.score)) {
                continue;
            }
            if let Some(picture) = picture.take() {
                made = Some(Arc::new(picture()?));
            }
            let Some(picture) = &made else { continue };
            let at = found.partition_point(|other| other.score >= score);
            found.insert(at, Found { score, id, key: key.to_owned(), picture: Arc::clone(picture) });
            found.truncate(each);
        }
        Ok(())
    }

    /// Images offered.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// For each filter its best, the best first.
    pub fn filters(&self) -> &[Vec<Found>] {
        &self.filters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn the_best_are_kept_in_their_order_with_few_pictures_made() {
        let mut best = Best::new(2, 3);
        let mut made = 0;
        let scores: Vec<[f32; 2]> = (0..100_u32).map(|at| [(at * 37 % 101) as f32, -(at as f32)]).collect();
        for (at, scores) in scores.iter().enumerate() {
            let offered = best.offer(SampleId(at as u64), &at.to_string(), scores, || {
                made += 1;
                Ok::<_, Infallible>(RgbImage::new(1, 1))
            });
            let Ok(()) = offered;
        }
        let ids = |filter: usize| best.filters()[filter].iter().map(|found| found.id.0).collect::<Vec<_>>();
        let mut sorted: Vec<u64> = (0..100).collect();
        sorted.sort_by(|&a, &b| scores[b as usize][0].total_cmp(&scores[a as usize][0]));
        assert_eq!(ids(0), sorted[..3]);
        assert_eq!(ids(1), [0, 1, 2]);
        assert_eq!(best.seen(), 100);
        assert!(made < 25, "{made} pictures for six places");
    }

    #[test]
    fn no_number_and_no_place_are_left_out_and_of_equals_the_first_stays() {
        let mut best = Best::new(1, 1);
        for (id, score) in [(0, f32::NAN), (1, 2.0), (2, 2.0)] {
            let Ok(()) = best.offer(SampleId(id), "k", &[score], || Ok::<_, Infallible>(RgbImage::new(1, 1)));
        }
        assert_eq!(best.filters()[0].iter().map(|found| found.id.0).collect::<Vec<_>>(), [1]);
    }
}
