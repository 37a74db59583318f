//! `shoal eval detection`: what a network is worth when it is fine-tuned to find the objects of VOC07.

use super::publish;
use crate::cli::network::{Network, NetworkArguments};
use crate::error::{Error, Result};
use crate::evaluate::detection::detector::{Detector, Trained};
use crate::evaluate::detection::find::{Finder, Output};
use crate::evaluate::detection::scene::{self, Scene, Sides, Source, Summary};
use crate::evaluate::detection::score::{self, ClassScore};
use crate::evaluate::detection::state::State;
use crate::evaluate::detection::train::{Options, Trainer};
use crate::evaluate::detection::{Stage, Watch};
use crate::evaluate::voc::devkit::{Devkit, Object, Task};
use crate::model::state::Metadata;
use crate::observe::console::{Console, say};
use crate::pipeline::start_runtime;
use crate::pipeline::stop::Stop;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;

/// The arguments of `shoal eval detection`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal eval detection --snapshot runs/yfcc --voc VOCdevkit --proposals selective_search_data --state det.safetensors
  shoal eval detection --snapshot alexnet.safetensors --voc VOCdevkit/VOC2007 --proposals selective_search_data \\
    --train fc6-8 --split train --test val --state det.safetensors --json

Fast R-CNN (Girshick, ICCV 2015) with the settings of its published code: the paper's own were never released. Regions are pooled from
the last convolution (1/16 of the image) to 6 x 6 (AlexNet) or 7 x 7 (VGG-16), and go through fc6, fc7 and two new layers. `all` trains
everything but conv1 (AlexNet), or conv1 and conv2 (VGG-16); `fc6-8` the linear layers alone. Statistics of batch norm stay.

Proposals: selective search as published with Fast R-CNN (voc_2007_trainval.mat, voc_2007_test.mat), JSON lines such as
{\"image\": \"000005\", \"boxes\": [[xmin, ymin, xmax, ymax], ...]}, or text with one `000005 xmin ymin xmax ymax` a line; pixels count from 1
as in the annotations. Without any, shoal takes windows of its own, which find fewer objects: such numbers do not compare with the paper's.

With --state, Ctrl-C leaves a file from which the same command goes on; detections are then kept beside it, unless --detections says
where.")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    network: NetworkArguments,
    /// VOCdevkit, or its folder VOC2007
    #[arg(long, value_name = "DIR")]
    voc: PathBuf,
    /// Object proposals: a file, or a folder with voc_2007_SPLIT.mat, .jsonl or .txt (repeatable)
    #[arg(long, value_name = "DIR_OR_FILE")]
    proposals: Vec<PathBuf>,
    /// Windows a photograph, at most, where there are no --proposals
    #[arg(long, value_name = "N", default_value_t = 2000, conflicts_with = "proposals")]
    windows: usize,
    /// What is trained: the linear layers, or convolutions too
    #[arg(long, default_value = "all", value_parser = ["fc6-8", "all"])]
    train: String,
    /// Split to train on
    #[arg(long, default_value = "trainval")]
    split: String,
    /// Split to measure on
    #[arg(long, default_value = "test")]
    test: String,
    /// Steps of training
    #[arg(long, value_name = "N", default_value_t = 40_000)]
    iterations: u64,
    /// Step size
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Steps after which it falls to a tenth, each time
    #[arg(long, value_name = "N", default_value_t = 30_000)]
    lr_step: u64,
    /// Of the gradients
    #[arg(long, default_value_t = 0.9)]
    momentum: f64,
    /// Of all weights but biases
    #[arg(long, default_value_t = 5e-4)]
    weight_decay: f64,
    /// Regions a step, half of them on each of two photographs
    #[arg(long, value_name = "N", default_value_t = 128)]
    regions: usize,
    /// What the shorter side of a photograph becomes, in pixels,
    #[arg(long, value_name = "PIXELS", default_value_t = 600)]
    side: u32,
    /// unless its longer one would become more than this
    #[arg(long, value_name = "PIXELS", default_value_t = 1000)]
    max_side: u32,
    /// Chooses order, regions, dropout and the first weights of the new layers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File to keep the training in, and to go on from (.safetensors)
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Write what was found to a file of JSON lines
    #[arg(long, value_name = "FILE")]
    detections: Option<PathBuf>,
    /// Results as JSON
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    network: String,
    arch: &'static str,
    train: &'static str,
    /// The kit.
    voc: PathBuf,
    /// Where boxes came from.
    proposals: String,
    splits: BTreeMap<String, Summary>,
    /// Photographs with something to learn from.
    trained_images: usize,
    iterations: u64,
    /// Mean loss in each tenth of the training.
    losses: Vec<f64>,
    /// Mean over classes of the precision at eleven recalls: the measure of VOC07.
    map: Option<f64>,
    /// The same of the area under the curve: the measure of VOC10 and later.
    map_area: Option<f64>,
    classes: Vec<ClassScore>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let options = arguments.options()?;
    let kit = Devkit::open(&arguments.voc, "VOC2007")?;
    let network = arguments.network.open()?;
    let backbone = network.backbone();
    let (detector, normalizer) = (Detector::new(backbone, options.seed)?, network.normalizer()?);
    let runtime = start_runtime()?;
    let mut show = Show::default();
    show.stop.on_signals(runtime.handle())?;

    let mut splits = BTreeMap::new();
    let (train, test) = arguments.scenes(&kit, &mut splits, &mut show)?;
    let mut trainer = Trainer::new(&detector, &normalizer, &kit, &train, &options)?;
    let origin = arguments.origin(&network, &options, [&train, &test])?;
    let mut state = match &arguments.state {
        Some(path) => State::open(path, origin.clone())?,
        None => State::new(origin.clone()),
    };
    if state.iteration > 0 {
        say(&format!("going on after iteration {} of {}", state.iteration, options.iterations));
    }
    trainer.load(&mut state)?;
    trainer.run(&mut state, arguments.state.as_deref(), &mut show)?;
    show.rest();

    let finder = Finder { detector: &detector, normalizer: &normalizer, kit: &kit, sides: options.sides };
    let beside = arguments.state.as_ref().map(|path| path.with_extension("detections.jsonl"));
    let path = arguments.detections.as_ref().or(beside.as_ref());
    let output = path.map(|path| Output { path, origin: &origin, goes_on: arguments.state.is_some() });
    let found = finder.run(&test, output, &mut show)?;
    show.rest();

    let objects: Vec<&[Object]> = test.iter().map(|scene| scene.objects.as_slice()).collect();
    let classes = score::by_class(&found, &objects);
    let report = Report {
        network: network.origin.clone(),
        arch: backbone.plan().arch.name(),
        train: options.trained.name(),
        voc: kit.root().to_owned(),
        proposals: arguments.source_name(),
        splits,
        trained_images: trainer.images(),
        iterations: state.iteration,
        losses: state.losses.means(),
        map: score::mean(&classes, |class| class.ap),
        map_area: score::mean(&classes, |class| class.ap_area),
        classes,
    };
    publish(&network, "detection", &report, arguments.json, Report::text)
}

impl Arguments {
    fn options(&self) -> Result<Options> {
        let positive = |name: &str, is_positive: bool| match is_positive {
            true => Ok(()),
            false => Err(Error::usage(format!("--{name} must be above 0"))),
        };
        positive("iterations", self.iterations > 0)?;
        positive("lr", self.lr > 0.0 && self.lr.is_finite())?;
        positive("lr-step", self.lr_step > 0)?;
        positive("side", self.side > 0)?;
        positive("windows", self.windows > 0)?;
        if self.regions < 8 {
            return Err(Error::usage(
                "--regions must be 8 or more: a quarter of them is on objects, on each of two photographs",
            ));
        }
        if self.max_side < self.side {
            return Err(Error::usage(format!("--max-side {} is less than --side {}", self.max_side, self.side)));
        }
        Ok(Options {
            trained: if self.train == "all" { Trained::All } else { Trained::Linear },
            iterations: self.iterations,
            lr: self.lr,
            lr_step: self.lr_step,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            regions: self.regions,
            sides: Sides { shorter: self.side, longest: self.max_side },
            seed: self.seed,
            ..Options::default()
        })
    }

    /// The photographs of both splits; says what they hold.
    fn scenes(
        &self,
        kit: &Devkit,
        splits: &mut BTreeMap<String, Summary>,
        show: &mut Show,
    ) -> Result<(Vec<Scene>, Vec<Scene>)> {
        let source = match self.proposals.as_slice() {
            [] => {
                say("no --proposals: windows of shoal's own are taken, which find fewer objects than selective search");
                Source::Windows(self.windows)
            }
            paths => Source::Files(paths.to_vec()),
        };
        // A list that is missing is said before work begins.
        for split in [&self.split, &self.test] {
            kit.names(Task::Main, split)?;
        }
        let mut read = |split: &str| -> Result<Vec<Scene>> {
            let scenes = scene::read(kit, split, &source, show)?;
            show.rest();
            let found = scene::summary(&scenes);
            say(&format!(
                "{split}: {} photographs with {} objects and {} difficult ones; {:.0} proposals a photograph find {:.1} % of the objects",
                found.images,
                found.objects,
                found.difficult,
                found.proposals,
                100.0 * found.recall
            ));
            splits.insert(split.to_owned(), found);
            Ok(scenes)
        };
        Ok((read(&self.split)?, read(&self.test)?))
    }

    fn source_name(&self) -> String {
        if self.proposals.is_empty() {
            return "windows of shoal's own".into();
        }
        self.proposals.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }

    /// All that detections depend on.
    fn origin(&self, network: &Network, options: &Options, [train, test]: [&[Scene]; 2]) -> Result<Metadata> {
        let entries = [
            ("snapshot", network.origin.clone()),
            ("weights", network.backbone().fingerprint()?),
            ("arch", network.backbone().plan().arch.name().to_owned()),
            ("train", options.trained.name().to_owned()),
            ("iterations", options.iterations.to_string()),
            ("lr", options.lr.to_string()),
            ("lr-step", options.lr_step.to_string()),
            ("momentum", options.momentum.to_string()),
            ("weight-decay", options.weight_decay.to_string()),
            ("regions", options.regions.to_string()),
            ("side", options.sides.shorter.to_string()),
            ("max-side", options.sides.longest.to_string()),
            ("seed", options.seed.to_string()),
            ("split", self.split.clone()),
            ("test", self.test.clone()),
            ("photographs and proposals to train on", scene::digest(train)),
            ("photographs and proposals to test on", scene::digest(test)),
        ];
        Ok(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

impl Report {
    fn text(&self) -> String {
        let percent = |ap: Option<f64>| ap.map_or_else(|| "-".to_owned(), |ap| format!("{:.1}", 100.0 * ap));
        let mut lines = vec![format!("{:<12} {:>8} {:>8} {:>8} {:>8}", "class", "objects", "found", "AP", "AP area")];
        for class in &self.classes {
            let ClassScore { class, objects, found, ap, ap_area, .. } = class;
            lines.push(format!("{class:<12} {objects:>8} {found:>8} {:>8} {:>8}", percent(*ap), percent(*ap_area)));
        }
        let (map, area) = (percent(self.map), percent(self.map_area));
        lines.push(format!(
            "mAP {map} % (11 points), {area} % (area): {} of {}, {} iterations on {} photographs, proposals: {}",
            self.train, self.network, self.iterations, self.trained_images, self.proposals
        ));
        lines.join("\n")
    }
}

/// What is going on, on stderr, and whether somebody asked to stop.
#[derive(Default)]
struct Show {
    stop: Stop,
    console: Option<Console>,
    /// Of the last hundred steps or so.
    loss: Option<f64>,
}

impl Show {
    /// Takes the bar off the screen.
    fn rest(&mut self) {
        self.console = None;
    }
}

impl Watch for Show {
    fn is_stopped(&self) -> bool {
        self.stop.is_requested()
    }

    fn told(&mut self, stage: Stage, (done, total): (usize, usize), loss: Option<f64>) {
        let console = self.console.get_or_insert_with(|| {
            Console::new(Some(total as u64), done.saturating_sub(1) as u64, std::io::stderr().is_terminal())
        });
        if let Some(loss) = loss {
            self.loss = Some(self.loss.map_or(loss, |mean| mean + 0.01 * (loss - mean)));
        }
        let text = match (stage, self.loss) {
            (Stage::Proposing, _) => "photographs get windows".to_owned(),
            (Stage::Training, Some(loss)) => format!("iterations · loss {loss:.3}"),
            (Stage::Training, None) => "iterations".to_owned(),
            (Stage::Testing, _) => "photographs searched".to_owned(),
        };
        console.progress(done as u64, total as u64, &text);
    }
}
