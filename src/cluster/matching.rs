//! One-to-one matching of two sets of clusters for the largest total overlap.
//!
//! In goes the sparse table of overlaps; out comes a partner for every row, as far as columns last. The method is the
//! Hungarian one on sparse rows: from each row in turn, a shortest augmenting path by Dijkstra over reduced costs, in whole
//! numbers and therefore exact. Pairs without overlap are worth nothing, so no edge is kept for them: a row may end without
//! a partner, and those left over are paired in order, which loses nothing. Memory follows the cells of the table, not
//! `k × k`.

use super::agreement::Contingency;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The column matched to each row. `None` only where there are more rows than columns.
pub fn match_by_overlap(table: &Contingency) -> Vec<Option<u32>> {
    let mut search = Search::new(table);
    for row in 0..table.rows.len() {
        search.augment(row);
    }
    let mut free_columns = (0..table.columns.len()).filter(|&column| search.row_of[column].is_none());
    let partners = search.column_of.iter().map(|column| column.or_else(|| free_columns.next()));
    partners.map(|column| column.map(|column| column as u32)).collect()
}

/// Where a shortest path ends.
#[derive(Clone, Copy)]
enum End {
    /// At a column without a partner.
    Column(usize),
    /// At a row that gives its partner up.
    Row(usize),
}

/// The state of the matching.
///
/// `row_price[r] + column_price[c] >= overlap(r, c)` always, with equality for matched pairs; prices are never negative, and
/// zero for what is unmatched once its turn has come. Such prices prove that no other matching overlaps more.
struct Search {
    /// `(column, overlap)` by row.
    edges: Vec<Vec<(usize, i64)>>,
    row_price: Vec<i64>,
    column_price: Vec<i64>,
    column_of: Vec<Option<usize>>,
    row_of: Vec<Option<usize>>,
    /// Distance of each column in the present search, `i64::MAX` if not reached.
    distance: Vec<i64>,
    /// The row from which each column is reached.
    reached_from: Vec<usize>,
}

impl Search {
    fn new(table: &Contingency) -> Self {
        let mut edges = vec![Vec::new(); table.rows.len()];
        for &(row, column, samples) in &table.cells {
            edges[row as usize].push((column as usize, samples as i64));
        }
        let row_price = edges.iter().map(|edges| edges.iter().map(|edge| edge.1).max().unwrap_or(0)).collect();
        Self {
            row_price,
            column_price: vec![0; table.columns.len()],
            column_of: vec![None; table.rows.len()],
            row_of: vec![None; table.columns.len()],
            distance: vec![i64::MAX; table.columns.len()],
            reached_from: vec![0; table.columns.len()],
            edges,
        }
    }

    /// Matches one more row, or finds that someone has to go without.
    fn augment(&mut self, root: usize) {
        let mut heap = BinaryHeap::new();
        let mut tree_rows = vec![(root, 0)];
        let mut tree_columns = Vec::new();
        let mut touched = Vec::new();
        let (mut end, mut length) = (End::Row(root), self.row_price[root]);
        let mut next_row = Some((root, 0));
        while let Some((row, row_distance)) = next_row.take() {
            for &(column, overlap) in &self.edges[row] {
                let distance = row_distance + self.row_price[row] + self.column_price[column] - overlap;
                if distance >= length.min(self.distance[column]) {
                    continue;
                }
                if self.distance[column] == i64::MAX {
                    touched.push(column);
                }
                self.distance[column] = distance;
                self.reached_from[column] = row;
                if self.row_of[column].is_none() {
                    (end, length) = (End::Column(column), distance);
                } else {
                    heap.push(Reverse((distance, column)));
                }
            }
            while let Some(Reverse((distance, column))) = heap.pop() {
                if distance >= length {
                    break;
                }
                let Some(row) = self.row_of[column].filter(|_| distance == self.distance[column]) else { continue };
                tree_columns.push((column, distance));
                tree_rows.push((row, distance));
                if distance + self.row_price[row] < length {
                    (end, length) = (End::Row(row), distance + self.row_price[row]);
                }
                next_row = Some((row, distance));
                break;
            }
        }

        for (row, distance) in tree_rows {
            self.row_price[row] -= (length - distance).max(0);
        }
        for (column, distance) in tree_columns {
            self.column_price[column] += (length - distance).max(0);
        }
        self.flip(end);
        for column in touched {
            self.distance[column] = i64::MAX;
        }
    }

    /// Exchanges matched and unmatched pairs along the path that ends at `end`, back to its root.
    fn flip(&mut self, end: End) {
        let mut column = match end {
            End::Column(column) => column,
            End::Row(row) => match self.column_of[row].take() {
                Some(column) => column,
                None => return,
            },
        };
        loop {
            let row = self.reached_from[column];
            self.row_of[column] = Some(row);
            match self.column_of[row].replace(column) {
                Some(freed) => column = freed,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(overlaps: &[Vec<u64>]) -> Contingency {
        let mut pairs = Vec::new();
        for (row, overlaps) in overlaps.iter().enumerate() {
            for (column, &samples) in overlaps.iter().enumerate() {
                pairs.extend(std::iter::repeat_n((row as u32, column as u32), samples as usize));
            }
        }
        let mut table = Contingency::new(pairs.into_iter());
        table.rows.resize(overlaps.len(), 0);
        table.columns.resize(overlaps[0].len(), 0);
        table
    }

    /// The best total overlap of rows `row..` with the columns not yet used, by trying everything.
    fn best(overlaps: &[Vec<u64>], row: usize, used: &mut Vec<bool>) -> u64 {
        if row == overlaps.len() {
            return 0;
        }
        let mut largest = best(overlaps, row + 1, used);
        for column in 0..used.len() {
            if !used[column] {
                used[column] = true;
                largest = largest.max(overlaps[row][column] + best(overlaps, row + 1, used));
                used[column] = false;
            }
        }
        largest
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn no_matching_overlaps_more(
            overlaps in (1_usize..7, 1_usize..7).prop_flat_map(|(rows, columns)| {
                let overlap = prop_oneof![2 => Just(0_u64), 1 => 1_u64..4, 1 => 1_u64..40];
                prop::collection::vec(prop::collection::vec(overlap, columns), rows)
            }),
        ) {
            let partners = match_by_overlap(&table(&overlaps));
            let columns = overlaps[0].len();
            let mut used = vec![false; columns];
            let mut total = 0;
            for (row, partner) in partners.iter().enumerate() {
                let Some(column) = partner.map(|column| column as usize) else { continue };
                prop_assert!(!used[column], "column {} twice", column);
                used[column] = true;
                total += overlaps[row][column];
            }
            prop_assert_eq!(used.iter().filter(|used| **used).count(), overlaps.len().min(columns));
            prop_assert_eq!(total, best(&overlaps, 0, &mut vec![false; columns]));
        }
    }

    #[test]
    fn ten_thousand_renamed_clusters_find_their_old_names() {
        let k = 10_000_u32;
        let renamed = |cluster: u32| (cluster * 7919 + 13) % k;
        let pairs = (0..20 * k).map(|sample| {
            let cluster = sample % k;
            // A quarter of the samples scatters over the other clusters.
            if (sample / k + sample) % 4 == 3 { (cluster, (sample / 3 * 31) % k) } else { (cluster, renamed(cluster)) }
        });
        let table = Contingency::new(pairs);
        let partners = match_by_overlap(&table);
        let kept = (0..k).filter(|&cluster| partners[cluster as usize] == Some(renamed(cluster))).count();
        assert_eq!(kept, k as usize);
    }
}
