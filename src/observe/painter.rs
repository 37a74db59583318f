//! Pictures for TensorBoard, drawn beside training: a contact sheet after each clustering, the first filters after each snapshot.
//!
//! In: the folder of a run, and a way to its photographs. Out: images in an event file of their own, `tensorboard/pictures`: two writers
//! cannot share a file. The thread is of low priority, and where it is behind a newer picture takes the place of the one that waits:
//! training waits only at the end of a run, for the last ones. What can go wrong is logged: a run does not end for a picture.

use super::tensorboard::EventFile;
use super::{Photographs, Record, run_calmly};
use crate::cluster::assignments::{self, Assignments};
use crate::error::{Error, Result};
use crate::model::Backbone;
use crate::visualize::choice::{Choice, Clusters, Order, Sort};
use crate::visualize::filters;
use crate::visualize::sheet::Sheet;
use image::RgbImage;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

/// Clusters on a sheet, and photographs of each.
const SHEET: (usize, usize) = (10, 8);
/// Side of a photograph on a sheet, in pixels.
const PHOTOGRAPH: u32 = 96;
/// Least side of a filter, in pixels.
const FILTER: u32 = 44;

/// What is to be drawn: the newest of each kind.
#[derive(Debug, Default)]
struct Wanted {
    /// The clusters after a step.
    sheet: Option<u64>,
    /// The filters of a snapshot, by its step and folder.
    filters: Option<(u64, PathBuf)>,
    /// Nothing will be added.
    is_over: bool,
}

/// Where the trainer leaves what is to be drawn.
#[derive(Debug, Default)]
struct Desk {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

/// The thread that draws; dropping it waits for what is left to be drawn.
#[derive(Debug)]
pub struct Painter {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread needs.
struct Drawing {
    desk: Arc<Desk>,
    run: PathBuf,
    photographs: Arc<dyn Photographs>,
    events: EventFile,
}

impl Painter {
    /// Starts the thread for the run in `run`, whose pictures are of steps from `first_step` on.
    ///
    /// # Errors
    /// The event file cannot be made, or the system has no more threads.
    pub fn start(run: &Path, first_step: u64, photographs: Arc<dyn Photographs>) -> Result<Self> {
        let events = EventFile::create(&run.join("tensorboard/pictures"), first_step)?;
        let desk = Arc::new(Desk::default());
        let drawing = Drawing { desk: Arc::clone(&desk), run: run.to_owned(), photographs, events };
        let thread = Builder::new().name("painter".into()).spawn(move || drawing.draw_all());
        let thread = thread.map_err(|error| Error::device(format!("cannot start a thread for pictures: {error}")))?;
        Ok(Self { desk, thread: Some(thread) })
    }

    /// Draws what a record is of, if it is of anything.
    pub fn record(&self, record: &Record) {
        let mut wanted = self.desk.lock();
        match record {
            Record::Cycle(cycle) => wanted.sheet = Some(cycle.step),
            Record::Snapshot(snapshot) => wanted.filters = Some((snapshot.step, PathBuf::from(&snapshot.path))),
            Record::Step(_) | Record::Alarm(_) => return,
        }
        self.desk.changed.notify_one();
    }
}

impl Drop for Painter {
    fn drop(&mut self) {
        self.desk.lock().is_over = true;
        self.desk.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been told already
        }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to draw; none once all is drawn and nothing more will come.
    fn take(&self) -> Option<Wanted> {
        let is_idle = |wanted: &mut Wanted| wanted.sheet.is_none() && wanted.filters.is_none() && !wanted.is_over;
        let mut wanted = self.changed.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
        let taken = Wanted { sheet: wanted.sheet.take(), filters: wanted.filters.take(), is_over: wanted.is_over };
        (taken.sheet.is_some() || taken.filters.is_some()).then_some(taken)
    }
}

impl Drawing {
    fn draw_all(mut self) {
        run_calmly();
        while let Some(wanted) = self.desk.take() {
            if let Err(error) = self.draw(&wanted) {
                tracing::warn!("no picture for TensorBoard: {error}");
            }
        }
    }

    fn draw(&mut self, wanted: &Wanted) -> Result<()> {
        if let Some((step, path)) = &wanted.filters {
            let picture = first_filters(&self.run.join(path), &format!("step {step}"))?;
            self.events.picture(*step, "snapshot/filters", &picture)?;
        }
        if let Some(step) = wanted.sheet
            && let Some(picture) = sheet(&self.run, step, &*self.photographs)?
        {
            self.events.picture(step, "cycle/clusters", &picture)?;
        }
        Ok(())
    }
}

/// The clusters of a cycle; none where no photograph can be found near at hand.
fn sheet(run: &Path, step: u64, photographs: &dyn Photographs) -> Result<Option<RgbImage>> {
    let assignments = Assignments::read(&assignments::of_cycle(run, Some(step))?)?;
    let clusters = Clusters::of(&assignments);
    let picked = clusters.pick(&Choice::Spread(SHEET.0), Sort::Size, Order::Nearest, SHEET.1)?;
    let found = photographs.find(&clusters.ids(&picked), PHOTOGRAPH)?;
    if found.is_empty() {
        return Ok(None);
    }
    let found = found.into_iter().map(|(id, (_, picture))| (id, picture)).collect();
    let sheet = Sheet {
        title: format!("Clusters after step {step}"),
        subtitle: format!(
            "{} clusters of {} images, from the largest to the smallest · nearest to the centroid first",
            clusters.count(),
            assignments.ids.len()
        ),
        rows: clusters.rows(&picked, &found),
    };
    sheet.render(PHOTOGRAPH).map(Some)
}

/// The first filters of a snapshot, under a name.
pub(super) fn first_filters(snapshot: &Path, name: &str) -> Result<RgbImage> {
    let weight = Backbone::first_filters_of(&snapshot.join("model.safetensors"))?;
    filters::mosaic(vec![filters::panel(&weight, name, FILTER)?]).render(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::AlarmRecord;
    use crate::shards::SampleId;
    use serde_json::json;
    use std::collections::{HashMap, HashSet};
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Has every photograph, once it is let go on.
    struct Slow {
        begun: Sender<()>,
        go_on: Mutex<Receiver<()>>,
    }

    impl Photographs for Slow {
        fn find(&self, wanted: &HashSet<SampleId>, side: u32) -> Result<HashMap<SampleId, (String, RgbImage)>> {
            self.begun.send(()).expect("the test listens");
            self.go_on.lock().expect("no panic").recv().expect("the test goes on");
            Ok(wanted.iter().map(|id| (*id, (String::new(), RgbImage::new(side, side)))).collect())
        }
    }

    fn cycle(run: &Path, step: u64) -> Record {
        let assignments = Assignments {
            ids: (0..6).map(SampleId).collect(),
            clusters: vec![0, 1, 0, 1, 1, 0],
            distances: vec![0.5; 6],
            classes: vec![None; 6],
            ..Assignments::default()
        };
        std::fs::create_dir_all(run.join(assignments::FOLDER)).expect("a folder");
        let path = run.join(assignments::FOLDER).join(assignments::file_name(step));
        assignments.write(&path).expect("assignments");
        let line = json!({"kind": "cycle", "step": step, "cycle": 1, "rows": 6, "objective": 0.5, "nmi_prev": null, "nmi_labels": null,
            "reassigned": null, "empty": 0, "largest_share": 0.5, "entropy": 0.7, "sizes": [3, 3], "bank_age": 0.0, "iterations": 3,
            "seconds": 1.0});
        serde_json::from_value(line).expect("a record")
    }

    #[test]
    fn one_that_is_behind_draws_the_newest_and_the_last() -> Result<()> {
        let run = tempfile::tempdir().expect("a temporary folder");
        let ((begun, begins), (go_on, goes_on)) = (channel(), channel());
        let painter = Painter::start(run.path(), 0, Arc::new(Slow { begun, go_on: Mutex::new(goes_on) }))?;
        painter.record(&cycle(run.path(), 1));
        begins.recv().expect("the first picture is begun");
        (2..=9).for_each(|step| painter.record(&cycle(run.path(), step)));
        painter.record(&Record::Alarm(AlarmRecord { step: 9, alarm: "test".into(), message: String::new() }));
        (0..9).for_each(|_| _ = go_on.send(()));
        drop(painter);
        assert_eq!(begins.try_iter().count(), 1, "the last of those that waited");
        let events = std::fs::read_dir(run.path().join("tensorboard/pictures")).expect("a folder").next();
        let bytes = std::fs::read(events.expect("a file").expect("readable").path()).expect("events");
        let tag = b"cycle/clusters";
        assert_eq!(bytes.windows(tag.len()).filter(|part| part == tag).count(), 2);
        Ok(())
    }
}
