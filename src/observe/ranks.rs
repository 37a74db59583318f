//! Of several ranks that train one run: what each says of itself, for the page and the numbers of rank 0.
//!
//! In: a [`Report`] of every rank with each record of training. Out: their sums, which never fall, and how each did between the last
//! two. Between records the others are as they were at the last one. Nothing can go wrong.

use super::Totals;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;

/// What a rank says of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Its machine.
    pub host: String,
    /// Samples lost, by reason, with those of earlier processes.
    pub losses: BTreeMap<String, u64>,
    /// Samples passed over, by rule, as `losses`.
    pub filtered: BTreeMap<String, u64>,
    /// What its process has done.
    pub totals: Totals,
    /// For how long its process has waited for batches of its own, in seconds.
    pub waited_s: f64,
    /// What its shards are at, in words.
    pub shards: String,
}

/// The last two reports of each rank.
#[derive(Debug, Default)]
pub(super) struct Reports {
    before: Option<Round>,
    last: Option<Round>,
}

#[derive(Debug)]
struct Round {
    at: Instant,
    reports: Vec<Report>,
}

/// How a rank did between its last two reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RankView {
    /// Its number.
    pub rank: usize,
    /// Its machine.
    pub host: String,
    /// Megabytes that it read, in a second.
    pub megabytes_per_s: f64,
    /// Images that it decoded, in a second.
    pub images_per_s: f64,
    /// Share of the time that it waited for batches of its own, while the others waited for it.
    pub waiting: f64,
    /// What its shards are at, in words.
    pub shards: String,
}

impl Reports {
    /// Takes in the reports of all ranks, in order.
    pub(super) fn hear(&mut self, reports: Vec<Report>) {
        self.before = self.last.replace(Round { at: Instant::now(), reports });
    }

    /// What the ranks other than 0 had done.
    pub(super) fn others(&self) -> Totals {
        let mut totals = Totals::default();
        self.last.iter().flat_map(|round| round.reports.iter().skip(1)).for_each(|report| totals.add(&report.totals));
        totals
    }

    /// For how long each has waited for its batches, in seconds.
    pub(super) fn waited_s(&self) -> Vec<f64> {
        self.last.iter().flat_map(|round| round.reports.iter().map(|report| report.waited_s)).collect()
    }

    /// How each did, by its number; none before all have reported twice.
    pub(super) fn views(&self) -> Vec<RankView> {
        let (Some(before), Some(last)) = (&self.before, &self.last) else { return Vec::new() };
        let seconds = (last.at - before.at).as_secs_f64().max(f64::MIN_POSITIVE);
        let pairs = before.reports.iter().zip(&last.reports).enumerate();
        let view = |(rank, (from, to)): (usize, (&Report, &Report))| RankView {
            rank,
            host: to.host.clone(),
            megabytes_per_s: to.totals.bytes.saturating_sub(from.totals.bytes) as f64 / 1e6 / seconds,
            images_per_s: to.totals.decoding.tried.saturating_sub(from.totals.decoding.tried) as f64 / seconds,
            waiting: ((to.waited_s - from.waited_s) / seconds).clamp(0.0, 1.0),
            shards: to.shards.clone(),
        };
        pairs.map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::live::Decoding;
    use std::time::Duration;

    fn report(bytes: u64, tried: u64, waited_s: f64) -> Report {
        let decoding = Decoding { tried, ..Decoding::default() };
        Report { totals: Totals { bytes, decoding, ..Totals::default() }, waited_s, ..Report::default() }
    }

    #[test]
    fn others_are_added_up_and_each_is_seen_by_what_came_last() {
        let mut reports = Reports::default();
        assert!(reports.views().is_empty());
        assert_eq!(reports.others(), Totals::default());
        reports.hear(vec![report(1_000_000, 10, 0.0), report(2_000_000, 20, 1.0), report(5_000_000, 50, 0.5)]);
        assert!(reports.views().is_empty(), "of one report there is no rate");
        reports.hear(vec![report(9_000_000, 90, 0.0), report(6_000_000, 40, 4.0), report(5_000_000, 50, 0.5)]);
        let last = reports.last.as_mut().expect("just heard");
        last.at = reports.before.as_ref().expect("heard before").at + Duration::from_secs(4);
        assert_eq!((reports.others().bytes, reports.others().decoding.tried), (11_000_000, 90));
        assert_eq!(reports.waited_s(), [0.0, 4.0, 0.5]);
        let seen = reports.views();
        let numbers: Vec<_> = seen.iter().map(|view| (view.megabytes_per_s, view.images_per_s, view.waiting)).collect();
        assert_eq!(numbers, [(2.0, 20.0, 0.0), (1.0, 5.0, 0.75), (0.0, 0.0, 0.0)]);
    }
}
