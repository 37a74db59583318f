//! The network that a command measures or exports, and its features over a shard list.
//!
//! `--snapshot S` is a run folder (its latest snapshot), a snapshot folder, a `.safetensors` file, or `random:ARCH`: an
//! untrained network, the yardstick of every evaluation.

use crate::config::{DeviceKind, DevicePlan, Plan, ViewsPlan};
use crate::error::{Error, Result};
use crate::ingest::SampleMeta;
use crate::model::{Backbone, Normalizer, state};
use crate::observe::console::say;
use crate::pipeline::encode::Encoding;
use crate::shards::{Ledger, ShardList};
use crate::snapshot::Snapshot;
use crate::torch::device::{Placement, place, set_threads};
use crate::train::state::views_of;
use crate::train::upload::DeviceBatch;
use indicatif::{HumanCount, ProgressBar};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Images encoded at once.
const BATCH_SIZE: usize = 128;

/// Which network, and how it runs.
#[derive(Debug, clap::Args)]
pub(super) struct NetworkArguments {
    /// The network: a run, a snapshot, a .safetensors file, or random:ARCH[:INPUT[:SIZE]], e.g. random:alexnet
    #[arg(long, value_name = "S")]
    snapshot: String,
    /// Pipeline file whose [views], [stream] and, for random:ARCH, [model] and seed are used; by default a run's own
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// Set a key of the pipeline, e.g. stream.seed=7 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "pipeline")]
    set: Vec<String>,
    /// Where to compute
    #[arg(long, default_value = "auto", value_parser = ["auto", "cpu", "cuda"])]
    device: String,
}

/// Which network, and which of its features.
#[derive(Debug, clap::Args)]
pub(super) struct FeatureArguments {
    #[command(flatten)]
    network: NetworkArguments,
    /// Layer whose features are taken (after batch norm and ReLU, average-pooled to at most 9,600 values); by default the
    /// feature that is clustered
    #[arg(long)]
    layer: Option<String>,
    /// Images encoded at once
    #[arg(long, default_value_t = BATCH_SIZE)]
    batch_size: usize,
}

/// An opened network.
#[derive(Debug)]
pub(super) struct Network {
    backbone: Backbone,
    placement: Placement,
    /// What it is, for people.
    pub(super) origin: String,
    plan: Plan,
    step: Option<u64>,
    layer: Option<String>,
    batch_size: usize,
}

impl NetworkArguments {
    /// What `--snapshot` takes, with the defaults of everything else.
    pub(super) fn of(snapshot: &str) -> Self {
        Self { snapshot: snapshot.to_owned(), pipeline: None, set: Vec::new(), device: "auto".to_owned() }
    }

    /// Opens it.
    pub(super) fn open(&self) -> Result<Network> {
        let mut plan = match &self.pipeline {
            Some(path) => Plan::load(path, &self.set)?,
            None => match Path::new(&self.snapshot).join("pipeline.toml") {
                path if path.is_file() => Plan::load(&path, &[])?,
                _ => Plan::default(),
            },
        };
        plan.device = DevicePlan { kind: device_kind(&self.device), ..plan.device };
        let placement = place(&plan.device)?;
        set_threads(&placement);
        let (backbone, views, step) = match self.snapshot.strip_prefix("random:") {
            Some(spec) => {
                let (backbone, views) = self.random(spec, &plan, &placement)?;
                (backbone, views, None)
            }
            None => self.trained(&plan, &placement)?,
        };
        plan.views = views;
        let origin = self.snapshot.clone();
        Ok(Network { backbone, placement, origin, plan, step, layer: None, batch_size: BATCH_SIZE })
    }

    /// Untrained: the network that a run of the pipeline would start with, or a plain one.
    fn random(&self, spec: &str, plan: &Plan, placement: &Placement) -> Result<(Backbone, ViewsPlan)> {
        let (seed, device, precision) = (plan.stream.seed, placement.device, plan.device.precision);
        if self.pipeline.is_none() {
            let backbone = Backbone::random(spec, seed, device, precision)?;
            let views = views_for(backbone.size());
            return Ok((backbone, views));
        }
        if spec != plan.model.arch.name() {
            return Err(Error::usage(format!(
                "random:{spec}, but the pipeline has model.arch = {:?}",
                plan.model.arch.name()
            ))
            .with_hint(format!("random:{}, or --set model.arch={spec}", plan.model.arch.name())));
        }
        let backbone = Backbone::new(&plan.model, plan.views.size, seed, device, precision)?;
        Ok((backbone, plan.views.clone()))
    }

    /// From a file, with its views and the steps of training behind it.
    fn trained(&self, plan: &Plan, placement: &Placement) -> Result<(Backbone, ViewsPlan, Option<u64>)> {
        let file = model_file(Path::new(&self.snapshot))?;
        let backbone = Backbone::open(&file, placement.device, plan.device.precision)?;
        let (_, metadata) = state::read_safetensors(&file)?;
        let views = match views_of(&metadata) {
            _ if self.pipeline.is_some() => plan.views.clone(),
            Some(views) => views,
            None => views_for(backbone.size()),
        };
        if views.size != backbone.size() {
            return Err(Error::usage(format!(
                "views.size = {}, but the network takes {}",
                views.size,
                backbone.size()
            )));
        }
        let step = metadata.get("step").and_then(|step| step.parse().ok());
        Ok((backbone, views, step))
    }
}

impl FeatureArguments {
    /// The latest snapshot of a run, with the defaults of everything else.
    pub(super) fn of(run: &Path, layer: Option<String>) -> Self {
        Self { network: NetworkArguments::of(&run.display().to_string()), layer, batch_size: BATCH_SIZE }
    }

    /// Opens it.
    pub(super) fn open(&self) -> Result<Network> {
        let network = self.network.open()?;
        if let Some(layer) = &self.layer {
            check_layer(&network.backbone, layer)?;
        }
        Ok(Network { layer: self.layer.clone(), batch_size: self.batch_size, ..network })
    }
}

impl Network {
    /// The run that it comes from, where a whole run was named.
    pub(super) fn run(&self) -> Option<&Path> {
        let path = Path::new(&self.origin);
        path.join("pipeline.toml").is_file().then_some(path)
    }

    /// Steps of training behind it, where its file tells.
    pub(super) fn step(&self) -> Option<u64> {
        self.step
    }

    /// The network itself.
    pub(super) fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// The pipeline that it is used with; its views are those of the network.
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where it runs.
    pub(super) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// What turns pixels into its input.
    pub(super) fn normalizer(&self) -> Result<Normalizer> {
        Normalizer::new(&self.plan.views.mean, &self.plan.views.std, self.placement.device)
    }

    /// Images that it takes at once.
    pub(super) fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// The layer whose features are taken; none is the clustered feature.
    pub(super) fn layer(&self) -> Option<&str> {
        self.layer.as_deref()
    }

    /// Hands `each` the samples and `[B, D]` features of every image of the shards, once, in list order.
    pub(super) fn encode(
        &self,
        shards: &[String],
        each: impl FnMut(&[SampleMeta], &Tensor) -> Result<()>,
    ) -> Result<()> {
        let ledger = Arc::new(Ledger::in_memory(&self.plan.stream));
        self.encoding().run(ShardList::parse_with(shards, &self.plan.fetch)?, &ledger, each)?;
        say_losses(&ledger);
        Ok(())
    }

    /// Hands `each` the batches of the shards with the `[B, 3, S, S]` images that the network takes, once, in list order, until it has
    /// enough, and shows how many images that were.
    ///
    /// # Errors
    /// No image decodes.
    pub(super) fn batches(
        &self,
        shards: &[String],
        mut each: impl FnMut(&DeviceBatch, &Tensor) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let ledger = Arc::new(Ledger::in_memory(&self.plan.stream));
        let bar = ProgressBar::new_spinner();
        let mut seen = 0;
        self.encoding().batches(ShardList::parse_with(shards, &self.plan.fetch)?, &ledger, |batch, images| {
            seen += batch.samples.len() as u64;
            bar.set_message(format!("{} images", HumanCount(seen)));
            bar.tick();
            each(batch, images)
        })?;
        bar.finish_and_clear();
        say_losses(&ledger);
        if seen == 0 {
            return Err(Error::data(format!("{} hold no image that decodes", shards.join(" "))));
        }
        Ok(())
    }

    fn encoding(&self) -> Encoding<'_> {
        Encoding {
            plan: &self.plan,
            placement: &self.placement,
            backbone: &self.backbone,
            layer: self.layer(),
            batch_size: self.batch_size,
        }
    }

    /// `[N, D]` features of every labelled image of the shards, and their labels.
    ///
    /// # Errors
    /// No image has a label.
    pub(super) fn labelled_features(&self, shards: &[String]) -> Result<(Tensor, Vec<i64>)> {
        let (mut features, mut labels) = (Vec::new(), Vec::new());
        let mut unlabelled = 0u64;
        self.encode(shards, |samples, rows| {
            let kept: Vec<i64> =
                (0..samples.len() as i64).filter(|row| samples[*row as usize].class.is_some()).collect();
            unlabelled += (samples.len() - kept.len()) as u64;
            labels.extend(samples.iter().filter_map(|sample| sample.class));
            let kept = Tensor::f_from_slice(&kept)?.f_to_device(rows.device())?;
            features.push(rows.f_index_select(0, &kept)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?);
            Ok(())
        })?;
        if labels.is_empty() {
            return Err(Error::data(format!("no image of {} has a label", shards.join(" ")))
                .with_hint("labels are integers in .cls members; `shoal shards pack` writes them from class folders"));
        }
        if unlabelled > 0 {
            say(&format!("{unlabelled} images without a label are left out"));
        }
        Ok((Tensor::f_cat(&features, 0)?, labels))
    }
}

fn say_losses(ledger: &Ledger) {
    let lost: Vec<_> = ledger.losses().iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    if !lost.is_empty() {
        say(&format!("lost: {}", lost.join(", ")));
    }
}

/// The usual views of `size` pixels: the short side is resized to 8/7 of it first, as 256 is for 224.
fn views_for(size: u32) -> ViewsPlan {
    ViewsPlan { size, resize: size * 8 / 7, ..ViewsPlan::default() }
}

/// Endings of files that PyTorch writes, the longest of several first.
const PYTHON_FORMATS: [&str; 6] = [".pth.tar", ".pth", ".pt", ".pkl", ".ckpt", ".bin"];

/// The `model.safetensors` that a run, a snapshot or a file stands for.
pub(super) fn model_file(path: &Path) -> Result<PathBuf> {
    if path.is_dir() {
        return Snapshot::open(path)?.file("model.safetensors");
    }
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return Ok(path.to_path_buf());
    }
    let file = path.to_string_lossy();
    if let Some(stem) = PYTHON_FORMATS.iter().find_map(|ending| file.strip_suffix(ending)) {
        let what = format!("{file} is in a format of Python's, and shoal reads .safetensors");
        let hint = format!("convert it: .peers/bin/python ops/import.py {file} {stem}.safetensors");
        return Err(Error::usage(what).with_hint(hint));
    }
    Err(Error::usage(format!("{} is no run, no snapshot and no .safetensors file", path.display()))
        .with_hint("or random:ARCH for an untrained network"))
}

pub(super) fn device_kind(name: &str) -> DeviceKind {
    match name {
        "cpu" => DeviceKind::Cpu,
        "cuda" => DeviceKind::Cuda,
        _ => DeviceKind::Auto,
    }
}

/// Refuses a layer that the network lacks.
pub(super) fn check_layer(backbone: &Backbone, layer: &str) -> Result<()> {
    let layers = backbone.layers();
    if layers.contains(&layer) {
        return Ok(());
    }
    Err(Error::usage(format!("there is no layer {layer}")).with_hint(format!("one of {}", layers.join(", "))))
}
