//! Mutual information adjusted for chance (Vinh, Epps and Bailey, JMLR 2010).
//!
//! Two clusterings that have nothing in common still share some information, the more the smaller their clusters are. AMI takes
//! off what clusterings of the same sizes would share by chance: 0 for those, 1 for equal ones, below 0 for less than chance.

use super::agreement::{Contingency, Normalizer, entropy};
use rayon::prelude::*;

impl Contingency {
    /// Mutual information of two labels of these sizes, dealt out at random, in nats.
    pub fn expected_information(&self) -> f64 {
        let (rows, columns) = (by_size(&self.rows), by_size(&self.columns));
        let pairs: Vec<_> = rows.iter().flat_map(|row| columns.iter().map(move |column| (*row, *column))).collect();
        let parts: Vec<f64> = pairs
            .par_iter()
            .map(|((row, rows), (column, columns))| (rows * columns) as f64 * expected_share(*row, *column, self.total))
            .collect();
        parts.iter().sum()
    }

    /// Adjusted mutual information, with the same mean of the entropies as [`Contingency::nmi`].
    pub fn ami(&self, normalizer: Normalizer) -> f64 {
        let (first, second) = (entropy(&self.rows), entropy(&self.columns));
        if first == 0.0 && second == 0.0 {
            return 1.0;
        }
        let expected = self.expected_information();
        let most = normalizer.mean(first, second) - expected;
        // Where chance explains all there is (every sample a cluster of its own), the quotient is of two roundings.
        let most = if most < 0.0 { most.min(-f64::EPSILON) } else { most.max(f64::EPSILON) };
        (self.mutual_information() - expected) / most
    }
}

/// Sizes that occur, and how often.
fn by_size(sizes: &[u64]) -> Vec<(u64, u64)> {
    let mut sizes: Vec<u64> = sizes.iter().copied().filter(|&size| size > 0).collect();
    sizes.sort_unstable();
    sizes.chunk_by(|left, right| left == right).map(|run| (run[0], run.len() as u64)).collect()
}

/// What one pair of clusters of `row` and `column` samples adds on average: their overlap has the hypergeometric distribution.
fn expected_share(row: u64, column: u64, total: u64) -> f64 {
    let fixed = ln_factorial(row) + ln_factorial(column) + ln_factorial(total - row) + ln_factorial(total - column)
        - ln_factorial(total);
    let least = (row + column).saturating_sub(total).max(1);
    (least..=row.min(column))
        .map(|both| {
            let chance = fixed
                - ln_factorial(both)
                - ln_factorial(row - both)
                - ln_factorial(column - both)
                - ln_factorial(total + both - row - column);
            let share = both as f64 / total as f64;
            let information = (total as f64 * both as f64 / (row as f64 * column as f64)).ln();
            share * information * chance.exp()
        })
        .sum()
}

/// `ln n!`, by Stirling's series where it is exact to the last bits.
fn ln_factorial(n: u64) -> f64 {
    if n < 20 {
        return (2..=n).map(|factor| factor as f64).product::<f64>().ln();
    }
    let n = n as f64;
    let inverse_square = 1.0 / (n * n);
    let tail = (1.0 / 12.0 - inverse_square * (1.0 / 360.0 - inverse_square / 1260.0)) / n;
    n * n.ln() - n + 0.5 * (std::f64::consts::TAU * n).ln() + tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(first: &[u32], second: &[u32]) -> Contingency {
        Contingency::new(first.iter().copied().zip(second.iter().copied()))
    }

    #[test]
    fn factorials() {
        let mut sum = 0.0;
        for n in 1..=200_u64 {
            sum += (n as f64).ln();
            assert!((ln_factorial(n) - sum).abs() < 1e-12 * sum.max(1.0), "{n}");
        }
        assert_eq!(ln_factorial(0), 0.0);
    }

    #[test]
    fn equal_clusterings_have_one_and_single_clusters_are_defined() {
        let labels = [0, 0, 1, 1, 1, 2, 3, 3];
        assert!((table(&labels, &labels).ami(Normalizer::Arithmetic) - 1.0).abs() < 1e-12);
        assert_eq!(table(&[0, 0, 0], &[1, 1, 1]).ami(Normalizer::Geometric), 1.0);
        assert!(table(&[0, 0, 0, 0], &[0, 1, 2, 2]).ami(Normalizer::Arithmetic).abs() < 1e-12);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        /// Against the mean over every way of dealing the second labels out.
        #[test]
        fn what_is_expected_is_the_mean_over_all_orders(
            first in prop::collection::vec(0_u32..3, 6),
            second in prop::collection::vec(0_u32..3, 6),
        ) {
            let mut order = second.clone();
            let (mut sum, mut orders) = (0.0, 0.0);
            permute(&mut order, 0, &mut |order| {
                sum += table(&first, order).mutual_information();
                orders += 1.0;
            });
            prop_assert!((table(&first, &second).expected_information() - sum / orders).abs() < 1e-10);
        }
    }

    fn permute(items: &mut [u32], from: usize, visit: &mut impl FnMut(&[u32])) {
        if from == items.len() {
            return visit(items);
        }
        for with in from..items.len() {
            items.swap(from, with);
            permute(items, from + 1, visit);
            items.swap(from, with);
        }
    }
}
