//! What the operator sees on standard error while a run trains.
//!
//! In: records and messages. Out: on a terminal a bar that the latest `step` record fills, with everything else printed
//! above it; elsewhere plain lines, one every ten seconds and one for each cycle, snapshot and alarm. Log lines of
//! `tracing` go through [`LogWriter`], which takes the bar off the screen while it writes, so that neither shreds the
//! other. What can go wrong: nothing that matters; a closed standard error is ignored.

use super::{CycleRecord, Record, StepRecord};
use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// The bar on the screen. A process has one terminal, hence one of these: log lines from anywhere must step around it.
static ON_SCREEN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// The operator's view of a run.
#[derive(Debug)]
pub struct Console {
    bar: Option<ProgressBar>,
    total_steps: Option<u64>,
    last_line: Option<Instant>,
}

impl Console {
    /// Shows a bar if `bar` (the caller knows whether standard error is a terminal), else plain lines.
    ///
    /// `total_steps` is where the run ends, if it does; `done` is the step that it goes on from.
    pub fn new(total_steps: Option<u64>, done: u64, bar: bool) -> Self {
        let bar = bar.then(|| new_bar(total_steps, done));
        on_screen(|shown| shown.clone_from(&bar));
        Self { bar, total_steps, last_line: None }
    }

    /// Shows one record.
    pub fn record(&mut self, record: &Record) {
        match record {
            Record::Step(step) => self.step(step),
            Record::Cycle(cycle) => say(&cycle_line(cycle)),
            Record::Snapshot(snapshot) => {
                let size = HumanBytes(snapshot.bytes);
                say(&format!("snapshot: {} ({size}, {:.1} s)", snapshot.path, snapshot.seconds));
            }
            Record::Alarm(alarm) => {
                say(&format!("ALARM ({}) at step {}: {}", alarm.alarm, HumanCount(alarm.step), alarm.message));
            }
        }
    }

    /// Shows how far something is that makes no records; as seldom as other plain lines where there is no bar.
    pub fn note(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
            return;
        }
        if self.last_line.is_some_and(|at| at.elapsed() < PLAIN_EVERY) {
            return;
        }
        self.last_line = Some(Instant::now());
        say(text);
    }

    /// As [`Console::note`], for something that is `done` of `total`.
    pub fn progress(&mut self, done: u64, total: u64, text: &str) {
        let Some(bar) = &self.bar else {
            self.note(&format!("{}/{} · {text}", HumanCount(done), HumanCount(total)));
            return;
        };
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(text.to_owned());
    }

    fn step(&mut self, record: &StepRecord) {
        let Some(bar) = &self.bar else {
            let total = self.total_steps.map(|total| format!("/{}", HumanCount(total))).unwrap_or_default();
            self.note(&format!("step {}{total} · {}", HumanCount(record.step), step_text(record)));
            return;
        };
        bar.set_position(record.step);
        let mut text = step_text(record);
        if self.total_steps.is_some() {
            text.push_str(&format!(" · {} left", HumanDuration(bar.eta())));
        }
        bar.set_message(text);
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            on_screen(|shown| *shown = None);
            bar.finish_and_clear();
        }
    }
}

fn new_bar(total_steps: Option<u64>, done: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total_steps, ProgressDrawTarget::stderr_with_hz(8));
    let template = match total_steps {
        Some(_) => "{bar:10.cyan/dim} {human_pos}/{human_len} · {wide_msg}",
        None => "{spinner} step {human_pos} · {wide_msg}",
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.set_style(style.progress_chars("━╸─")),
        Err(error) => tracing::debug!("the bar keeps its default style: {error}"),
    }
    bar.set_position(done);
    bar.reset_eta();
    bar.set_message("starting");
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// Prints a line on standard error, above the bar if there is one.
pub fn say(line: &str) {
    above_the_bar(|| {
        // A closed standard error must not stop a run that writes its records to files.
        let _ = writeln!(io::stderr().lock(), "{line}");
    });
}

fn on_screen<R>(act: impl FnOnce(&mut Option<ProgressBar>) -> R) -> R {
    act(&mut ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner))
}

fn above_the_bar<R>(write: impl FnOnce() -> R) -> R {
    let bar = on_screen(|shown| shown.clone());
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// Standard error for `tracing_subscriber::fmt().with_writer(LogWriter)`: each event is written above the bar.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        above_the_bar(|| io::stderr().lock().write_all(buffer)).map(|()| buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// What matters most comes first: all of it fits beside a short bar in 80 columns.
fn step_text(record: &StepRecord) -> String {
    let waiting = 100.0 * record.waiting().unwrap_or(0.0);
    let lost: u64 = record.losses.values().sum();
    let mut text = format!("{:.0} images/s · loss {:.3}", record.images_per_s, record.loss);
    if let Some(accuracy) = record.accuracy {
        text.push_str(&format!(" · accuracy {:.1} %", 100.0 * accuracy));
    }
    if let Some(next) = record.next_cycle {
        text.push_str(&format!(" · cycle in {}", HumanCount(next.saturating_sub(record.step))));
    }
    if let Some(share) = record.pass_share {
        text.push_str(&format!(" · pass {}: {:.0} %", record.pass + 1, 100.0 * share));
    }
    text.push_str(&format!(" · wait {waiting:.0} % · lost {}", HumanCount(lost)));
    let filtered: u64 = record.filtered.values().sum();
    if filtered > 0 {
        text.push_str(&format!(" · filtered {}", HumanCount(filtered)));
    }
    text
}

fn cycle_line(record: &CycleRecord) -> String {
    let mut text = format!(
        "cycle {} at step {}: {} rows · objective {:.4}",
        record.cycle,
        HumanCount(record.step),
        HumanCount(record.rows as u64),
        record.objective
    );
    if let Some(nmi) = record.nmi_prev {
        text.push_str(&format!(" · NMI to the last cycle {nmi:.3}"));
    }
    if let Some(reassigned) = record.reassigned {
        text.push_str(&format!(" · {:.0} % reassigned", 100.0 * reassigned));
    }
    if let Some(nmi) = record.nmi_labels {
        text.push_str(&format!(" · NMI to the labels {nmi:.3}"));
    }
    let largest = 100.0 * record.largest_share;
    text.push_str(&format!(" · {} empty · largest {largest:.1} % · {:.1} s", record.empty, record.seconds));
    if record.stood_s < record.seconds {
        text.push_str(&format!(", {:.1} of them beside training", record.seconds - record.stood_s));
    }
    text
}

/// A time span in words, to two units at most.
pub(crate) fn span(time: Duration) -> String {
    if time < Duration::from_secs(60) {
        return format!("{:.1} s", time.as_secs_f64());
    }
    HumanDuration(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn record() -> StepRecord {
        StepRecord {
            step: 12_340,
            images: 3_159_040,
            loss: 5.3124,
            lr: 0.05,
            images_per_s: 811.6,
            wait_data_s: 0.01,
            assign_s: 0.06,
            train_s: 0.13,
            label_entropy: 7.0,
            largest_share: 0.01,
            accuracy: None,
            losses: BTreeMap::from([("corrupt".into(), 1_000), ("too_large".into(), 234)]),
            filtered: BTreeMap::from([("too_small".into(), 20)]),
            pass: 1,
            pass_share: Some(0.344),
            ids: String::new(),
            next_cycle: Some(15_000),
        }
    }

    #[test]
    fn a_step_says_all_that_an_operator_asks_for() {
        assert_eq!(
            step_text(&record()),
            "812 images/s · loss 5.312 · cycle in 2,660 · pass 2: 34 % · wait 5 % · lost 1,234 · filtered 20"
        );
    }

    #[test]
    fn a_step_of_supervised_training_says_how_many_are_right() {
        let supervised = StepRecord { accuracy: Some(0.8125), next_cycle: None, ..record() };
        let text = step_text(&supervised);
        assert!(text.starts_with("812 images/s · loss 5.312 · accuracy 81.2 % · pass 2: 34 %"), "{text}");
    }

    #[test]
    fn plain_lines_keep_their_distance() {
        let mut console = Console::new(Some(60_000), 0, false);
        console.step(&record());
        let first = console.last_line;
        console.step(&record());
        assert_eq!(console.last_line, first);
    }

    #[test]
    fn log_lines_are_taken_whole() -> io::Result<()> {
        let line = b"a line of the log, written by a test\n";
        assert_eq!(LogWriter.make_writer().write(line)?, line.len());
        Ok(())
    }
}
