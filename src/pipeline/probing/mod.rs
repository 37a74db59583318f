//! Probes of many layers at once: one pass of a frozen network over a stream feeds them all.
//!
//! In: a network, labelled lists to fit and to test on, layers and settings. Out: top-1 and top-5 of every probe after every epoch.
//! Train views are shifted crops with mirroring, in the order of the stream; an epoch is a pass over the list. Probes of one layer with
//! different settings share its rows, so that a grid of settings costs one forward pass as well.
//!
//! It can be interrupted: weights, momenta, the position in the stream and what was measured so far go to a folder, written aside
//! and renamed; going on gives what a run without a break would have given.
//!
//! What can go wrong: samples without labels (left out and counted), none with one, too many losses, settings other than those of the
//! folder.

mod choice;

pub use choice::{Choice, Event, Outcome, Test};

use super::feed::{Feed, FeedPlan, Filters, Next};
use super::start_runtime;
use super::stop::Stop;
use crate::config::Plan;
use crate::decode::CenterCrops;
use crate::error::{Error, Result};
use crate::evaluate::pooling::Pooling;
use crate::evaluate::probes::{Probe, Tally, check_finite};
use crate::ingest::{Cursor, Passes, SampleMeta, Share};
use crate::model::state::{Metadata, read_safetensors, replace_safetensors};
use crate::model::{Backbone, Mode, Named, Normalizer};
use crate::shards::{Ledger, ShardList};
use crate::torch::device::Placement;
use crate::train::upload::{DeviceBatch, Uploader};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};
use tokio::runtime::Runtime;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Steps between two looks at the losses: each look waits for the device.
const LOOK_EVERY: u64 = 20;

/// A network that is probed.
#[derive(Debug)]
pub struct Probing<'a> {
    /// Gives `[stream]`, `[views]`, `[fetch]` and the precision.
    pub plan: &'a Plan,
    /// Where it runs.
    pub placement: &'a Placement,
    /// The network.
    pub backbone: &'a Backbone,
    /// What is probed, and how.
    pub choice: Choice,
    /// Labelled shards to fit on.
    pub train: ShardList,
    /// The classes in them, in order.
    pub classes: Vec<i64>,
    /// What is tested on.
    pub test: Test,
    /// Where an interrupted run is kept.
    pub state: Option<PathBuf>,
}

/// What of a run is on disk beside its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Position {
    choice: Choice,
    epoch: u64,
    images: u64,
    iteration: u64,
    cursor: Cursor,
    /// The epoch that follows, where this one is fitted and waits for its test.
    due: Option<u64>,
    outcomes: Vec<Outcome>,
}

/// A run under way.
struct Run<'a> {
    probing: &'a Probing<'a>,
    runtime: Runtime,
    stop: Stop,
    normalizer: Normalizer,
    numbers: BTreeMap<i64, i64>,
    probes: Vec<Probe>,
    position: Position,
}

impl Probing<'_> {
    /// Fits and tests, and tells `watch` of it.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after Ctrl-C, with the state written where there is a folder for it; otherwise what the module says.
    pub fn run(&self, watch: &mut dyn FnMut(Event<'_>)) -> Result<Vec<Outcome>> {
        let runtime = start_runtime()?;
        let stop = Stop::default();
        stop.on_signals(runtime.handle())?;
        let views = &self.plan.views;
        let numbers = self.classes.iter().zip(0..).map(|(&class, number)| (class, number)).collect();
        let position = Position {
            choice: self.choice.clone(),
            epoch: 0,
            images: 0,
            iteration: 0,
            cursor: Cursor::default(),
            due: None,
            outcomes: Vec::new(),
        };
        let normalizer = Normalizer::new(&views.mean, &views.std, self.placement.device)?;
        let mut run = Run { probing: self, runtime, stop, normalizer, numbers, probes: Vec::new(), position };
        run.make_probes()?;
        run.resume()?;
        run.fit(watch)?;
        if let Some(folder) = &self.state {
            remove(folder)?;
        }
        Ok(run.position.outcomes)
    }

    fn is_held_out(&self, sample: &SampleMeta) -> bool {
        match self.test {
            Test::List(_) => false,
            Test::HeldOut(one_in) => xxh3_64_with_seed(&sample.id.0.to_le_bytes(), 0).is_multiple_of(one_in.max(1)),
        }
    }
}

impl Run<'_> {
    /// Makes the probes, after one image has told their widths.
    fn make_probes(&mut self) -> Result<()> {
        let Probing { backbone, choice, plan, placement, classes, .. } = self.probing;
        let side = i64::from(backbone.size());
        let image = Tensor::f_zeros([1, 3, side, side], (Kind::Float, placement.device))?;
        let rows = self.rows(&image)?;
        for ((layer, settings), rows) in choice.probes.iter().zip(rows) {
            let dimensions = rows.size2()?.1;
            let (count, seed) = (classes.len() as i64, plan.stream.seed);
            self.probes.push(Probe::new(layer, dimensions, count, settings.clone(), seed, placement.device)?);
            let (layer, settings) = (layer.clone(), settings.clone());
            self.position.outcomes.push(Outcome { layer, settings, dimensions, epochs: Vec::new() });
        }
        Ok(())
    }

    /// Pooled rows `[B, D]` for every probe, from one pass; probes of a layer share them.
    fn rows(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let _guard = tch::no_grad_guard();
        let Probing { backbone, choice, .. } = self.probing;
        let layers = choice.layers();
        let mut rows = BTreeMap::new();
        for (layer, map) in layers.iter().zip(backbone.activations(images, &layers, Mode::Eval)?) {
            rows.insert(*layer, Pooling::of(backbone.plan().arch, backbone.size(), layer).apply(&map)?);
        }
        Ok(choice.probes.iter().filter_map(|(layer, _)| Some(rows.get(layer.as_str())?.shallow_clone())).collect())
    }

    fn fit(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let epochs = self.probing.choice.epochs;
        if self.position.epoch >= epochs {
            return Ok(());
        }
        let mut feed = self.open(self.probing.train.clone(), Passes::Endless, CenterCrops::Shifted)?;
        let mut uploader = Uploader::new(self.probing.placement.device);
        let mut losses = Losses::new(self.probes.len());
        while self.position.epoch < epochs {
            if let Some(next) = self.position.due {
                self.test(watch)?;
                self.position = Position { epoch: next, images: 0, due: None, ..self.position.clone() };
                if let Some(folder) = &self.probing.state {
                    self.save(folder)?;
                }
                continue;
            }
            let batch = match feed.next(&self.stop)? {
                Next::Batch(batch) => uploader.upload(*batch)?,
                Next::End => return Err(Error::data("the stream of train images has ended")),
                Next::Stopped => return Err(self.interrupted()),
            };
            let epoch = self.position.epoch;
            let next = batch.samples.iter().map(|sample| sample.pass).max().unwrap_or(epoch);
            self.step(&batch, epochs, &mut losses)?;
            self.position.cursor = batch.end.cursor.clone();
            if self.position.iteration.is_multiple_of(LOOK_EVERY) {
                let means = losses.take()?;
                for (loss, probe) in means.iter().zip(&self.probes) {
                    check_finite(*loss, probe)?;
                }
                watch(Event::Fitting { epoch, images: self.position.images, losses: &means });
            }
            self.position.due = (next > epoch).then_some(next);
        }
        Ok(())
    }

    /// One step of every probe on the images of this batch that are fitted on.
    fn step(&mut self, batch: &DeviceBatch, epochs: u64, losses: &mut Losses) -> Result<()> {
        let is_fitted = |sample: &SampleMeta| sample.pass < epochs && !self.probing.is_held_out(sample);
        let Some((rows, classes)) = self.kept(batch, 1, is_fitted)? else { return Ok(()) };
        for ((probe, rows), sum) in self.probes.iter_mut().zip(&rows).zip(&mut losses.sums) {
            let loss = probe.train(rows, &classes)?;
            *sum = Some(match sum.take() {
                Some(sum) => sum.f_add(&loss)?,
                None => loss,
            });
        }
        self.position.iteration += 1;
        self.position.images += classes.size1()? as u64;
        losses.steps += 1;
        Ok(())
    }

    /// Rows for every probe and classes `[B]` of the labelled images of a batch that `wanted` keeps; none where there are none.
    fn kept(
        &self,
        batch: &DeviceBatch,
        crops: i64,
        wanted: impl Fn(&SampleMeta) -> bool,
    ) -> Result<Option<(Vec<Tensor>, Tensor)>> {
        let device = self.probing.placement.device;
        let (mut places, mut classes) = (Vec::new(), Vec::new());
        for (place, sample) in batch.samples.iter().enumerate() {
            let Some(class) = sample.class.filter(|_| wanted(sample)) else { continue };
            places.extend((0..crops).map(|crop| place as i64 * crops + crop));
            classes.push(self.numbers.get(&class).copied().unwrap_or(-1));
        }
        if classes.is_empty() {
            return Ok(None);
        }
        let pixels = match classes.len() == batch.samples.len() {
            true => batch.center_views()?.shallow_clone(),
            false => batch.center_views()?.f_index_select(0, &Tensor::f_from_slice(&places)?.f_to_device(device)?)?,
        };
        let rows = self.rows(&self.normalizer.prepare(&pixels)?)?;
        Ok(Some((rows, Tensor::f_from_slice(&classes)?.f_to_device(device)?)))
    }

    /// Tests every probe as it is.
    fn test(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let centers = if self.probing.choice.ten_crops { CenterCrops::Ten } else { CenterCrops::Middle };
        let list = match &self.probing.test {
            Test::List(list) => list.clone(),
            Test::HeldOut(_) => self.probing.train.clone(),
        };
        let held_out = matches!(self.probing.test, Test::HeldOut(_));
        let mut feed = self.open(list, Passes::Once, centers)?;
        let mut uploader = Uploader::new(self.probing.placement.device);
        let mut tallies = vec![Tally::default(); self.probes.len()];
        let crops = centers.count() as i64;
        loop {
            let batch = match feed.next(&self.stop)? {
                Next::Batch(batch) => uploader.upload(*batch)?,
                Next::End => break,
                Next::Stopped => return Err(self.interrupted()),
            };
            let is_tested = |sample: &SampleMeta| !held_out || self.probing.is_held_out(sample);
            let Some((rows, classes)) = self.kept(&batch, crops, is_tested)? else { continue };
            for ((probe, rows), tally) in self.probes.iter().zip(&rows).zip(&mut tallies) {
                tally.add(&probe.logits(rows)?, &classes, crops)?;
            }
            watch(Event::Testing {
                epoch: self.position.epoch,
                images: tallies.first().map_or(0, |tally| tally.images),
            });
        }
        if tallies.iter().any(|tally| tally.images == 0) {
            return Err(Error::data("no test image has a label").with_hint("labels are integers in .cls members"));
        }
        for ((outcome, tally), probe) in self.position.outcomes.iter_mut().zip(tallies).zip(&self.probes) {
            check_finite(tally.loss, probe)?;
            outcome.epochs.push(tally);
        }
        watch(Event::Tested(&self.position.outcomes));
        Ok(())
    }

    fn open(&self, list: ShardList, passes: Passes, centers: CenterCrops) -> Result<Feed> {
        let Probing { plan, placement, choice, .. } = self.probing;
        let start = match passes {
            Passes::Endless => self.position.cursor.clone(),
            Passes::Once => Cursor::default(),
        };
        let batch_size = match centers {
            CenterCrops::Ten => choice.batch_size.div_ceil(10),
            CenterCrops::Middle | CenterCrops::Shifted => choice.batch_size,
        };
        let feed = FeedPlan {
            share: Share::whole(),
            passes,
            start,
            batch_size,
            center_views: Some(centers),
            train_views: false,
            held: 1,
            filters: Filters::None,
        };
        let ledger = Arc::new(Ledger::in_memory(&plan.stream));
        Feed::open(self.runtime.handle(), plan, placement, list, &ledger, feed)
    }

    /// Writes the state, where it is wanted, and the error that says so.
    fn interrupted(&self) -> Error {
        let Some(folder) = &self.probing.state else { return Error::Interrupted { snapshot: None } };
        match self.save(folder) {
            Ok(()) => Error::Interrupted { snapshot: Some(folder.clone()) },
            Err(error) => error,
        }
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let mut tensors = Named::new();
        for (number, probe) in self.probes.iter().enumerate() {
            tensors.extend(probe.state(&format!("probe-{number}")));
        }
        let text = serde_json::to_string(&self.position)
            .map_err(|error| Error::data(format!("cannot write the position: {error}")))?;
        std::fs::create_dir_all(folder).map_err(|error| Error::file("make", folder, &error))?;
        replace_safetensors(&state_file(folder), &tensors, &Metadata::from([("position".to_owned(), text)]))
    }

    fn resume(&mut self) -> Result<()> {
        let Some(path) = self.probing.state.as_deref().map(state_file).filter(|path| path.is_file()) else {
            return Ok(());
        };
        let (tensors, metadata) = read_safetensors(&path)?;
        let text = metadata.get("position").map(String::as_str).unwrap_or_default();
        let position: Position = serde_json::from_str(text)
            .map_err(|error| Error::data(format!("{} holds no position: {error}", path.display())))?;
        if position.choice != self.probing.choice {
            let what = format!("{} was written with other settings", path.display());
            return Err(Error::usage(what).with_hint("give the same as before, or another --state"));
        }
        for (number, probe) in self.probes.iter_mut().enumerate() {
            probe.load_state(&format!("probe-{number}"), position.iteration, &tensors)?;
        }
        self.position = position;
        Ok(())
    }
}

/// Sums of losses on the device, read now and then.
struct Losses {
    sums: Vec<Option<Tensor>>,
    steps: u64,
}

impl Losses {
    fn new(probes: usize) -> Self {
        Self { sums: (0..probes).map(|_| None).collect(), steps: 0 }
    }

    /// Means since the last time.
    fn take(&mut self) -> Result<Vec<f64>> {
        let steps = std::mem::take(&mut self.steps).max(1) as f64;
        let mut means = Vec::with_capacity(self.sums.len());
        for sum in &mut self.sums {
            means.push(match sum.take() {
                Some(sum) => f64::try_from(sum.f_to_device(Device::Cpu)?)? / steps,
                None => 0.0,
            });
        }
        Ok(means)
    }
}

fn state_file(folder: &Path) -> PathBuf {
    folder.join("probes.safetensors")
}

/// A finished run needs its state no longer.
fn remove(folder: &Path) -> Result<()> {
    let path = state_file(folder);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", &path, &error)),
        _ => Ok(()),
    }
}
