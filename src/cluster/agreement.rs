//! How much two ways of dividing the same samples agree (paper, section 4.1: NMI).
//!
//! In go two labels for each sample; out come mutual information, its normalisations, purity and the share of samples that
//! changed cluster. The table of overlaps is kept sparse: at most one cell for each sample, whatever the number of clusters.
//! Entropies are in nats.

/// How often each pair of labels occurs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contingency {
    /// `(row, column, samples)` of every pair that occurs, by row and then by column.
    pub cells: Vec<(u32, u32, u64)>,
    /// Samples by first label.
    pub rows: Vec<u64>,
    /// Samples by second label.
    pub columns: Vec<u64>,
    /// Samples.
    pub total: u64,
}

/// Which mean of the two entropies NMI divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalizer {
    /// `√(H(A) H(B))`: the paper's.
    Geometric,
    /// `(H(A) + H(B)) / 2`: scikit-learn's default since 0.22.
    Arithmetic,
}

impl Normalizer {
    pub(super) fn mean(self, first: f64, second: f64) -> f64 {
        match self {
            Self::Geometric => (first * second).sqrt(),
            Self::Arithmetic => (first + second) / 2.0,
        }
    }
}

impl Contingency {
    /// Counts pairs of labels.
    pub fn new(pairs: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut codes: Vec<u64> = pairs.map(|(row, column)| u64::from(row) << 32 | u64::from(column)).collect();
        codes.sort_unstable();
        let mut table = Self { cells: Vec::new(), rows: Vec::new(), columns: Vec::new(), total: codes.len() as u64 };
        for run in codes.chunk_by(|left, right| left == right) {
            let (row, column) = ((run[0] >> 32) as u32, run[0] as u32);
            let samples = run.len() as u64;
            table.cells.push((row, column, samples));
            add_at(&mut table.rows, row, samples);
            add_at(&mut table.columns, column, samples);
        }
        table
    }

    /// Mutual information of the two labels.
    pub fn mutual_information(&self) -> f64 {
        let total = self.total as f64;
        let mut information = 0.0;
        for &(row, column, samples) in &self.cells {
            let joint = samples as f64;
            let independent = self.rows[row as usize] as f64 * self.columns[column as usize] as f64;
            information += joint / total * (joint * total / independent).ln();
        }
        information.max(0.0)
    }

    /// Mutual information divided by a mean of the entropies, in 0..1; 1 if both put all samples into one cluster.
    pub fn nmi(&self, normalizer: Normalizer) -> f64 {
        let (first, second) = (entropy(&self.rows), entropy(&self.columns));
        if first == 0.0 && second == 0.0 {
            return 1.0;
        }
        let mean = normalizer.mean(first, second);
        if mean == 0.0 {
            return 0.0;
        }
        (self.mutual_information() / mean).min(1.0)
    }

    /// Share of samples whose second label is the commonest one of their first label; 0 without samples.
    pub fn purity(&self) -> f64 {
        let mut commonest = vec![0; self.rows.len()];
        for &(row, _, samples) in &self.cells {
            commonest[row as usize] = samples.max(commonest[row as usize]);
        }
        commonest.iter().sum::<u64>() as f64 / self.total.max(1) as f64
    }

    /// Share of samples outside the pairs of a matching: `partners[row]` is the column that a row continues in, as
    /// [`super::matching::match_by_overlap`] finds it.
    pub fn moved_share(&self, partners: &[Option<u32>]) -> f64 {
        let stayed = self.cells.iter().filter(|(row, column, _)| partners[*row as usize] == Some(*column));
        let stayed: u64 = stayed.map(|(_, _, samples)| samples).sum();
        1.0 - stayed as f64 / self.total.max(1) as f64
    }
}

/// Entropy of a distribution given by its counts.
pub fn entropy(counts: &[u64]) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let mut entropy = 0.0;
    for &count in counts.iter().filter(|&&count| count > 0) {
        let share = count as f64 / total;
        entropy -= share * share.ln();
    }
    entropy.max(0.0)
}

/// Numbers labels of any value from 0, in the order of their values.
pub fn compact(labels: &[i64]) -> Vec<u32> {
    let mut values = labels.to_vec();
    values.sort_unstable();
    values.dedup();
    labels.iter().map(|label| values.partition_point(|value| value < label) as u32).collect()
}

fn add_at(counts: &mut Vec<u64>, index: u32, samples: u64) {
    let index = index as usize;
    if counts.len() <= index {
        counts.resize(index + 1, 0);
    }
    counts[index] += samples;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::matching::match_by_overlap;

    fn table(first: &[i64], second: &[i64]) -> Contingency {
        Contingency::new(compact(first).into_iter().zip(compact(second)))
    }

    fn assert_close(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-12, "{left} is not {right}");
    }

    #[test]
    fn nmi_by_hand() {
        // A = {0,0,0,1,1,1}, B = {0,0,1,1,2,2}: the joint shares are 1/3, 1/6, 1/6, 1/3, so
        // I = 2·(1/3)·ln 2 + 2·(1/6)·ln 1, H(A) = ln 2, H(B) = ln 3.
        let table = table(&[0, 0, 0, 1, 1, 1], &[0, 0, 1, 1, 2, 2]);
        let information = 2.0 / 3.0 * 2_f64.ln();
        assert_close(table.mutual_information(), information);
        assert_close(table.nmi(Normalizer::Geometric), information / (2_f64.ln() * 3_f64.ln()).sqrt());
        assert_close(table.nmi(Normalizer::Arithmetic), information / ((2_f64.ln() + 3_f64.ln()) / 2.0));
        assert_close(table.purity(), 4.0 / 6.0);
    }

    #[test]
    fn names_do_not_matter_and_unrelated_or_single_clusters_agree_as_defined() {
        let same = table(&[0, 0, 1, 1], &[9, 9, -4, -4]);
        assert_close(same.nmi(Normalizer::Geometric), 1.0);
        assert_close(same.moved_share(&match_by_overlap(&same)), 0.0);
        assert_close(table(&[0, 0, 1, 1], &[0, 1, 0, 1]).nmi(Normalizer::Geometric), 0.0);
        assert_close(table(&[0, 0, 0], &[1, 1, 1]).nmi(Normalizer::Geometric), 1.0);
        assert_close(table(&[0, 0, 0], &[0, 1, 2]).nmi(Normalizer::Arithmetic), 0.0);
    }

    #[test]
    fn reassigned_counts_what_no_matching_explains() {
        // {0: 3 to a, 1 to b}, {1: 2 to a, 2 to b}: matched 0 with a and 1 with b, three of eight have moved.
        let table = table(&[0, 0, 0, 0, 1, 1, 1, 1], &[0, 0, 0, 1, 0, 0, 1, 1]);
        assert_close(table.moved_share(&match_by_overlap(&table)), 3.0 / 8.0);
    }

    #[test]
    fn entropy_of_equal_clusters_is_the_log_of_their_number() {
        assert_close(entropy(&[5, 5, 0, 5, 5]), 4_f64.ln());
        assert_close(entropy(&[7]), 0.0);
    }
}
