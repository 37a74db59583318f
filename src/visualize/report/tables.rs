//! Tables of a run: what it is, what was measured of it beside what others published, and what was not measured.

use super::document::{Block, Row, Section};
use super::published::{self, Published};
use crate::config::{Arch, Plan};
use crate::evaluate::results::Evaluation;
use crate::train::record::Record;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// What marks a number that wants checking.
const RECALLED: &str = " (from memory)";

/// Facts of the run itself.
pub(super) fn run(plan: &Plan, records: &[Record]) -> Vec<Block> {
    let last_step = records.iter().rev().find_map(|record| match record {
        Record::Step(step) => Some(step),
        _ => None,
    });
    let last_cycle = records.iter().rev().find_map(|record| match record {
        Record::Cycle(cycle) => Some(cycle),
        _ => None,
    });
    let mut facts = vec![
        (
            "network",
            format!("{}, {} input, {} pixels", plan.model.arch.name(), plan.model.input.name(), plan.views.size),
        ),
        ("shards", plan.stream.shards.join(" ")),
    ];
    if let Some(step) = last_step {
        facts.push(("steps", step.step.to_string()));
        facts.push(("images trained on", step.images.to_string()));
        facts.push(("loss", format!("{:.3}", step.loss)));
    }
    if let Some(cycle) = last_cycle {
        facts.push(("clusterings", cycle.cycle.to_string()));
        facts.push(("clusters", plan.cluster.k.to_string()));
        let known = |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |value| format!("{value:.3}"));
        facts.push(("NMI with the cycle before", known(cycle.nmi_prev)));
        facts.push(("NMI with labels", known(cycle.nmi_labels)));
    }
    let rows = facts.into_iter().map(|(what, is)| Row { cells: vec![what.to_owned(), is], ours: false }).collect();
    vec![Block::Table { head: vec![String::new(), String::new()], rows }]
}

/// Whether two evaluations measured the same thing: the same protocol on the same data in the same way.
pub(super) fn same(one: &Evaluation, other: &Evaluation) -> bool {
    const TELLING: [&str; 9] = [
        "/voc",
        "/layer",
        "/train",
        "/test",
        "/ten_crops",
        "/images",
        "/protocol",
        "/settings/train",
        "/settings/stride",
    ];
    let agree = |key: &&str| one.report.pointer(key) == other.report.pointer(key);
    one.protocol == other.protocol && TELLING.iter().all(agree)
}

/// One section for each table that the evaluations have numbers for.
pub(super) fn sections(plan: &Plan, evaluations: &[Evaluation]) -> Vec<Section> {
    let mut sections = Vec::new();
    for evaluation in of(evaluations, "probes") {
        sections.push(Section { title: "Linear probes (Table 1)".to_owned(), blocks: probes(plan, evaluation) });
    }
    let frozen: Vec<&Evaluation> = of(evaluations, "knn").chain(of(evaluations, "linear")).collect();
    if !frozen.is_empty() {
        sections.push(Section { title: "Frozen features".to_owned(), blocks: vec![accuracies(&frozen)] });
    }
    if let Some(blocks) = voc(evaluations) {
        sections.push(Section { title: "PASCAL VOC (Tables 2 to 4)".to_owned(), blocks });
    }
    let retrieved: Vec<&Evaluation> = of(evaluations, "retrieval").collect();
    if !retrieved.is_empty() {
        sections.push(Section { title: "Instance retrieval (Table 5)".to_owned(), blocks: retrieval(&retrieved) });
    }
    sections
}

/// What nobody has measured yet: a line for each, with the command and what it needs.
pub(super) fn missing(run: &Path, plan: &Plan, evaluations: &[Evaluation]) -> Vec<Block> {
    let snapshot = format!("--snapshot {}", run.display());
    let all = [
        ("probes", "--train LIST --test LIST", "labelled shards (ImageNet, Places)"),
        ("knn", "--train LIST --test LIST", "labelled shards"),
        ("voc07", "--voc DIR", "VOCdevkit/VOC2007, trainval and test"),
        ("detection", "--voc DIR", "VOCdevkit/VOC2007, and selective-search proposals for published numbers"),
        ("segmentation", "--voc DIR", "VOCdevkit/VOC2012"),
        ("retrieval", "--images DIR --truth DIR --whiten-images DIR", "Oxford5k and Paris6k with their lists"),
    ];
    let has_linear_layers = !matches!(plan.model.arch, Arch::ResNet18 | Arch::ResNet50);
    let lacking: Vec<Row> = all
        .into_iter()
        .filter(|(protocol, ..)| has_linear_layers || !["detection", "segmentation"].contains(protocol))
        .filter(|(protocol, ..)| of(evaluations, protocol).next().is_none())
        .map(|(protocol, data, needs)| {
            let command = format!("shoal eval {protocol} {snapshot} {data}");
            Row { cells: vec![command, needs.to_owned()], ours: false }
        })
        .collect();
    if lacking.is_empty() {
        return Vec::new();
    }
    vec![Block::Table { head: vec!["command".to_owned(), "needs".to_owned()], rows: lacking }]
}

fn of<'a>(evaluations: &'a [Evaluation], protocol: &str) -> impl Iterator<Item = &'a Evaluation> + use<'a> {
    let protocol = protocol.to_owned();
    evaluations.iter().filter(move |evaluation| evaluation.protocol == protocol)
}

/// Lists of shards or a folder, as they were given.
fn data(evaluation: &Evaluation, key: &str) -> String {
    match evaluation.report.get(key) {
        Some(Value::Array(parts)) => parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    }
}

/// A run's own row is named by the step of its snapshot.
fn our_name(evaluation: &Evaluation) -> String {
    evaluation.step.map_or_else(|| "this run".to_owned(), |step| format!("this run, step {step}"))
}

fn percent(share: Option<f64>, digits: usize) -> String {
    share.map_or_else(String::new, |share| format!("{:.digits$}", 100.0 * share))
}

fn published_rows<const N: usize>(rows: &[Published<N>]) -> Vec<Row> {
    let row = |row: &Published<N>| {
        let name = if row.recalled { format!("{}{RECALLED}", row.method) } else { row.method.to_owned() };
        let numbers = row.numbers.iter().map(|number| number.map_or_else(String::new, |number| format!("{number:.1}")));
        Row { cells: [name].into_iter().chain(numbers).collect(), ours: false }
    };
    rows.iter().map(row).collect()
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn probes(plan: &Plan, evaluation: &Evaluation) -> Vec<Block> {
    let (train, test) = (data(evaluation, "train"), data(evaluation, "test"));
    let empty = Vec::new();
    let layers = evaluation.report.get("layers").and_then(Value::as_array).unwrap_or(&empty);
    let name = |layer: &Value| layer.get("layer").and_then(Value::as_str).unwrap_or_default().to_owned();
    let share = |layer: &Value, key: &str| layer.get(key).and_then(Value::as_f64);
    let names: Vec<String> = layers.iter().map(name).collect();
    let mut blocks = vec![Block::Paragraph(format!("Top-1 in %, fitted on {train}, tested on {test}."))];

    let ours = Row {
        cells: [our_name(evaluation)]
            .into_iter()
            .chain(layers.iter().map(|layer| percent(share(layer, "top1"), 1)))
            .collect(),
        ours: true,
    };
    let is_table_1 = plan.model.arch == Arch::AlexNet && names == ["conv1", "conv2", "conv3", "conv4", "conv5"];
    let mut rows = Vec::new();
    if is_table_1 {
        let is_places = train.to_lowercase().contains("places");
        rows.extend(published_rows(if is_places { &published::PLACES } else { &published::IMAGENET }));
        let set = if is_places { "Places205" } else { "ImageNet" };
        blocks.push(Block::Paragraph(format!(
            "The other rows are published numbers on {set}: they compare where the data are the same."
        )));
    }
    rows.push(ours);
    let head = [String::from("method")].into_iter().chain(names).collect();
    blocks.push(Block::Table { head, rows });

    let detail = |layer: &Value| Row {
        cells: vec![
            name(layer),
            layer.get("dimensions").map(Value::to_string).unwrap_or_default(),
            percent(share(layer, "top1"), 2),
            percent(share(layer, "top5"), 2),
            percent(share(layer, "best_top1"), 2),
        ],
        ours: false,
    };
    let head = texts(&["layer", "values", "top-1, %", "top-5, %", "best epoch's top-1, %"]);
    blocks.push(Block::Table { head, rows: layers.iter().map(detail).collect() });
    blocks
}

fn accuracies(evaluations: &[&Evaluation]) -> Block {
    let row = |evaluation: &&Evaluation| Row {
        cells: vec![
            data(evaluation, "protocol"),
            data(evaluation, "layer"),
            data(evaluation, "test"),
            percent(evaluation.report.get("accuracy").and_then(Value::as_f64), 2),
        ],
        ours: false,
    };
    let head = texts(&["protocol", "layer", "test images", "accuracy, %"]);
    Block::Table { head, rows: evaluations.iter().map(row).collect() }
}

/// One row over classification, detection and segmentation, with what was trained in each.
fn voc(evaluations: &[Evaluation]) -> Option<Vec<Block>> {
    let mut cells = vec![String::new(); published::VOC_COLUMNS.len()];
    let (mut newest, mut kits) = (None, BTreeSet::new());
    for (place, protocol) in ["voc07", "detection", "segmentation"].into_iter().enumerate() {
        for evaluation in of(evaluations, protocol) {
            let report = &evaluation.report;
            let trained = ["/train", "/settings/train"].into_iter().find_map(|key| report.pointer(key)?.as_str());
            let trains_all = trained == Some("all");
            let measures = ["map", "mean_average_precision", "mean_iu"];
            let measure = measures.into_iter().find_map(|key| report.get(key)?.as_f64());
            cells[2 * place + usize::from(trains_all)] = percent(measure, 1);
            newest = Some(evaluation);
            kits.insert(data(evaluation, "voc"));
        }
    }
    let ours = our_name(newest?);
    let mut rows = published_rows(&published::VOC);
    rows.push(Row { cells: [ours].into_iter().chain(cells).collect(), ours: true });
    let head = ["method"].into_iter().chain(published::VOC_COLUMNS).map(str::to_owned).collect();
    let kits = kits.into_iter().collect::<Vec<_>>().join(" and ");
    let words = format!(
        "Classification (mAP), detection (mAP) and segmentation (mean IU) in %; this run's on {kits}. Published rows are of AlexNet \
         on the sets themselves: they compare where the data are the same."
    );
    Some(vec![Block::Paragraph(words), Block::Table { head, rows }])
}

fn retrieval(evaluations: &[&Evaluation]) -> Vec<Block> {
    let mut rows = published_rows(&published::RETRIEVAL);
    for evaluation in evaluations {
        let images = data(evaluation, "images");
        let found = percent(evaluation.report.get("mean_average_precision").and_then(Value::as_f64), 1);
        let is_paris = images.to_lowercase().contains("paris");
        let cells = if is_paris { [String::new(), found] } else { [found, String::new()] };
        let name = format!("{} ({images})", our_name(evaluation));
        rows.push(Row { cells: [name].into_iter().chain(cells).collect(), ours: true });
    }
    let words =
        "Mean average precision in %, R-MAC. Published rows are of VGG-16 at 1,024 pixels on Oxford5k and Paris6k.";
    vec![Block::Paragraph(words.to_owned()), Block::Table { head: texts(&["method", "Oxford", "Paris"]), rows }]
}
