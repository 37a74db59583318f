//! Photographs ranked for a query by their descriptors, and what the ranking is worth.
//!
//! In: descriptors of length one, `[N, D]` of the photographs and `[D]` of the query. Out: the photographs from the most similar on, by
//! the dot product, and the average precision of Oxford buildings. The photograph that the query was cut from stays among them and
//! counts, as in the published protocol. Equal similarities keep the order of the names.

use super::truth::Query;
use crate::error::{Error, Result};
use crate::evaluate::precision::by_trapezia;
use tch::Tensor;

/// The database.
#[derive(Debug)]
pub struct Database {
    /// Names of the photographs, in the order of the rows.
    pub names: Vec<String>,
    /// `[N, D]`, f64.
    pub descriptors: Tensor,
}

/// One place of a ranking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Row of the database.
    pub row: usize,
    /// Dot product with the query.
    pub similarity: f64,
}

impl Database {
    /// All photographs, the most similar to `descriptor` `[D]` first.
    pub fn rank(&self, descriptor: &Tensor) -> Result<Vec<Place>> {
        let similarities = Vec::<f64>::try_from(self.descriptors.f_mv(descriptor)?)?;
        let places = similarities.into_iter().enumerate().map(|(row, similarity)| Place { row, similarity });
        let mut places: Vec<Place> = places.collect();
        places.sort_by(|left, right| right.similarity.total_cmp(&left.similarity));
        Ok(places)
    }

    /// Average precision of a ranking, in `[0, 1]`; positives that the database lacks count as not found.
    ///
    /// # Errors
    /// The query has nothing to find.
    pub fn precision(&self, query: &Query, ranking: &[Place]) -> Result<f64> {
        let relevances = ranking.iter().map(|place| query.relevance(&self.names[place.row]));
        by_trapezia(relevances, query.positives.len())
            .ok_or_else(|| Error::data(format!("the query {} has nothing to find", query.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::retrieval::truth::Part;

    #[test]
    fn a_ranking_by_hand() -> Result<()> {
        let names = ["near", "same", "far", "junk", "tie"].map(str::to_owned).to_vec();
        let descriptors = Tensor::from_slice(&[0.8, 0.6, 1.0, 0.0, -1.0, 0.0, 0.96, 0.28, 0.8, 0.6_f64]).view([5, 2]);
        let database = Database { names, descriptors };
        let ranking = database.rank(&Tensor::from_slice(&[1.0_f64, 0.0]))?;
        let order: Vec<&str> = ranking.iter().map(|place| database.names[place.row].as_str()).collect();
        assert_eq!(order, ["same", "junk", "near", "tie", "far"]);
        assert_eq!(ranking[1].similarity, 0.96);
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let mut query = Query {
            name: "q".into(),
            image: "same".into(),
            part: Part { left: 0.0, top: 0.0, right: 1.0, bottom: 1.0 },
            positives: set(&["same", "tie"]),
            junk: set(&["junk"]),
        };
        // Hit, passed over, miss, hit, miss: 1/2 · 1 + 1/2 · (1/2 + 2/3)/2.
        assert!((database.precision(&query, &ranking)? - (0.5 + 0.5 * (0.5 + 2.0 / 3.0) / 2.0)).abs() < 1e-12);
        // With one that is nowhere, thirds: 1/3 · 1 + 1/3 · (1/2 + 2/3)/2.
        query.positives.insert("gone".into());
        assert!((database.precision(&query, &ranking)? - (1.0 + 0.5 * (0.5 + 2.0 / 3.0)) / 3.0).abs() < 1e-12);
        query.positives.clear();
        assert!(database.precision(&query, &ranking).is_err());
        Ok(())
    }
}
