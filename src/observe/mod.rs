//! One record, many listeners.
//!
//! In: what the trainer says of a run, as [`Record`]s. Out: lines of `metrics.jsonl`, TensorBoard event files, a bar or
//! plain lines on standard error, numbers for monitoring ([`Meters`]), and a closing [`Summary`]. Beside the records, the [`Heartbeat`]
//! tells what a run waits for when it stands still, the [`CollapseWatch`] judges its labels, the [`Painter`] draws, and a [`Page`]
//! shows all of it in a browser. What can go wrong: the disk.

mod collapse;
pub mod console;
mod controls;
mod heartbeat;
mod live;
mod meters;
mod metrics;
pub mod page;
mod painter;
mod photographs;
mod ranks;
mod summary;
mod tensorboard;

pub use crate::train::record::*;
pub use collapse::{Collapse, CollapseWatch};
pub use console::LogWriter;
pub use controls::Controls;
pub use heartbeat::{Activity, Heartbeat, Stage};
pub use live::{Beside, Live, Rates, Sources, Totals, stream_words};
pub use meters::{Baseline, METRICS, Meters};
pub use page::{Page, UnderWay};
pub use painter::Painter;
pub use photographs::{NoPhotographs, Photographs};
pub use ranks::{RankView, Report};
pub use summary::{Hardware, Stages, Summary};
pub use tensorboard::Histogram;

use crate::config::Plan;
use crate::decode::Counters;
use crate::error::Result;
use crate::train::progress::Progress;

use self::metrics::Metrics;
use console::Console;
use photographs::run_calmly;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tensorboard::EventFile;

/// Bins of a histogram in TensorBoard.
const BINS: usize = 30;

/// Hands each record to every listener. The trainer owns it.
#[derive(Debug)]
pub struct Observer {
    metrics: Option<Metrics>,
    events: Option<EventFile>,
    console: Option<Console>,
    summary: Summary,
    meters: Option<Arc<Meters>>,
    painter: Option<Painter>,
    decoders: Option<Arc<Counters>>,
    run: PathBuf,
    first_step: u64,
    batch_size: usize,
    started: Instant,
}

impl Observer {
    /// Opens the listeners of the run in `run_dir`, which exists.
    ///
    /// `resumed` is where the run goes on from, if it does: later records of an earlier session are
    /// forgotten. `bar` asks for a bar on standard error, which must be a terminal.
    pub fn open(run_dir: &Path, plan: &Plan, resumed: Option<&Progress>, bar: bool) -> Result<Self> {
        let done = resumed.map_or(0, |progress| progress.step);
        let first_step = resumed.map_or(0, |progress| progress.step + 1);
        let events = match plan.observe.tensorboard {
            true => Some(EventFile::create(&run_dir.join("tensorboard"), first_step)?),
            false => None,
        };
        let total_steps = (plan.train.steps > 0).then_some(plan.train.steps);
        Ok(Self {
            metrics: Some(Metrics::open(
                &run_dir.join("metrics.jsonl"),
                resumed.map(|progress| (progress.step, progress.cycle)),
            )?),
            events,
            console: Some(Console::new(total_steps, done, bar)),
            ..Self::silent(run_dir, plan, resumed)
        })
    }

    /// Without listeners: for ranks that leave the telling to rank 0.
    pub fn silent(run_dir: &Path, plan: &Plan, resumed: Option<&Progress>) -> Self {
        Self {
            metrics: None,
            events: None,
            console: None,
            summary: Summary::from_step(resumed.map_or(0, |progress| progress.step)),
            meters: None,
            painter: None,
            decoders: None,
            run: run_dir.to_owned(),
            first_step: resumed.map_or(0, |progress| progress.step + 1),
            batch_size: plan.train.batch_size,
            started: Instant::now(),
        }
    }

    /// Tells every listener.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        self.summary.add(record, self.batch_size);
        self.console.iter_mut().for_each(|console| console.record(record));
        self.metrics.as_mut().map(|metrics| metrics.append(record)).transpose()?;
        self.meters.iter().for_each(|meters| meters.record(record));
        self.painter.iter().for_each(|painter| painter.record(record));
        let Some(events) = &mut self.events else { return Ok(()) };
        match record {
            Record::Step(step) => step_events(events, step),
            Record::Cycle(cycle) => cycle_events(events, cycle),
            Record::Snapshot(snapshot) => {
                let bytes = snapshot.bytes as f64;
                events.scalars(
                    snapshot.step,
                    &[
                        ("snapshot/bytes", bytes),
                        ("snapshot/seconds", snapshot.seconds),
                        ("snapshot/stood_s", snapshot.stood_s),
                    ],
                )
            }
            Record::Alarm(alarm) => events.scalars(alarm.step, &[(&format!("alarm/{}", alarm.alarm), 1.0)]),
        }
    }

    /// Shows how far something is that makes no records.
    pub fn note(&mut self, text: &str) {
        self.console.iter_mut().for_each(|console| console.note(text));
    }

    /// Tells records to these, too.
    pub fn tell(&mut self, meters: Arc<Meters>) {
        self.meters = Some(meters);
    }

    /// Has pictures drawn of what records are of.
    ///
    /// # Errors
    /// As [`Painter::start`].
    pub fn draw_with(&mut self, photographs: &Arc<dyn Photographs>) -> Result<()> {
        self.painter = Some(Painter::start(&self.run, self.first_step, Arc::clone(photographs))?);
        Ok(())
    }

    /// Tells the closing table what the run computes with.
    pub fn runs_on(&mut self, hardware: Hardware, decoders: Arc<Counters>) {
        self.summary.hardware = hardware;
        self.decoders = Some(decoders);
    }

    /// What this session has done so far.
    pub fn summary(&self) -> Summary {
        let decoding = self.decoders.as_ref().map(|counters| counters.read());
        Summary { wall: self.started.elapsed(), decoding, ..self.summary.clone() }
    }
}

fn step_events(events: &mut EventFile, record: &StepRecord) -> Result<()> {
    let lost: u64 = record.losses.values().sum();
    let filtered: u64 = record.filtered.values().sum();
    let mut values = vec![
        ("train/loss", record.loss),
        ("train/lr", record.lr),
        ("labels/entropy", record.label_entropy),
        ("labels/largest_share", record.largest_share),
        ("speed/images_per_s", record.images_per_s),
        ("speed/wait_data_s", record.wait_data_s),
        ("speed/assign_s", record.assign_s),
        ("speed/train_s", record.train_s),
        ("stream/pass", record.pass as f64),
        ("stream/lost", lost as f64),
        ("stream/filtered", filtered as f64),
    ];
    values.extend(record.accuracy.map(|accuracy| ("train/accuracy", accuracy)));
    events.scalars(record.step, &values)
}

fn cycle_events(events: &mut EventFile, record: &CycleRecord) -> Result<()> {
    let mut values = vec![
        ("cycle/objective", record.objective),
        ("cycle/empty", record.empty as f64),
        ("cycle/largest_share", record.largest_share),
        ("cycle/entropy", record.entropy),
        ("cycle/bank_age", record.bank_age),
        ("cycle/seconds", record.seconds),
        ("cycle/stood_s", record.stood_s),
    ];
    let measured =
        [("nmi_prev", record.nmi_prev), ("nmi_labels", record.nmi_labels), ("reassigned", record.reassigned)];
    let measured = measured.map(|(name, value)| (format!("cycle/{name}"), value));
    values.extend(measured.iter().filter_map(|(name, value)| Some((name.as_str(), (*value)?))));
    events.scalars(record.step, &values)?;

    let sizes: Vec<f64> = record.sizes.iter().map(|size| *size as f64).collect();
    match Histogram::of(&sizes, BINS) {
        Some(histogram) => events.histogram(record.step, "cycle/sizes", &histogram),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn every_listener_hears_of_a_cycle() -> Result<()> {
        let run = tempfile::tempdir().expect("a temporary folder");
        let mut observer = Observer::open(run.path(), &Plan::default(), None, false)?;
        let record = Record::Cycle(CycleRecord {
            step: 150,
            cycle: 1,
            rows: 6,
            objective: 0.5,
            nmi_prev: None,
            nmi_labels: Some(0.4),
            reassigned: None,
            empty: 0,
            largest_share: 0.5,
            entropy: 1.0,
            sizes: vec![3, 2, 1],
            bank_age: 10.0,
            iterations: 20,
            seconds: 1.5,
            stood_s: 1.5,
        });
        observer.record(&record)?;

        let line = fs::read_to_string(run.path().join("metrics.jsonl")).expect("metrics");
        assert!(line.starts_with(r#"{"kind":"cycle","step":150,"#), "{line}");
        assert_eq!(serde_json::from_str::<Record>(&line).expect("a record"), record);
        let events = fs::read_dir(run.path().join("tensorboard")).expect("event files").next();
        let events = fs::read(events.expect("one file").expect("readable").path()).expect("events");
        for tag in ["cycle/nmi_labels", "cycle/sizes"] {
            assert!(events.windows(tag.len()).any(|bytes| bytes == tag.as_bytes()), "{tag}");
        }
        assert!(!events.windows(14).any(|bytes| bytes == b"cycle/nmi_prev"));
        assert_eq!(observer.summary().cycles, 1);
        Ok(())
    }
}
