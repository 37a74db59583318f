//! What a snapshot holds of a run, file by file, and how it comes back.
//!
//! | file | what |
//! |---|---|
//! | `model.safetensors` | the student, in the names of the published checkpoints |
//! | `assigner.safetensors` | the frozen copy that labels; none where classes are learnt |
//! | `encoder.safetensors` | the network that encoded the bank, where it is being clustered beside training |
//! | `head.safetensors` | the classifier of this cycle, or of classes; none where it is the centroids |
//! | `optimizer.safetensors` | momenta by the names of their weights, with those of a head of classes |
//! | `bank.arrow` | id, step, class, label, feature (f16) of every row; no row where the next cycle fills it anew, no file where classes are learnt |
//! | `clusters.safetensors` | whitening and centroids |
//! | `assignments.arrow` | id and cluster, with `refresh = "full"` |
//! | `seen.arrow` | images that the rules on duplicates know, oldest first; none where there are none |
//! | `cursor.json` | the position in the stream, and the run's counters |
//!
//! Of several ranks, each has written its own `bank`, `seen` and `cursor`, all but rank 0 under names like `bank.rank-3.arrow`; the
//! rest is the same on all, and rank 0's. Any number of ranks can go on from that.

use super::Trainer;
use super::progress::Progress;
use super::seen;
use crate::bank::{Bank, Capture};
use crate::batch::{Entry, Remembered, Standing};
use crate::cluster::Clustering;
use crate::cluster::assignments::Assignments;
use crate::config::{Refresh, ViewsPlan};
use crate::error::{Error, Result};
use crate::ingest::Cursor;
use crate::model::{Head, state};
use crate::shards::FilteredCounts;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Tensor};

/// `cursor.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Position {
    /// Where the stream goes on.
    pub cursor: Cursor,
    /// Where the run is.
    pub progress: Progress,
    /// Samples passed over on purpose so far, by rule.
    #[serde(default)]
    pub filtered: FilteredCounts,
    /// How many ranks trained.
    #[serde(default = "one")]
    pub ranks: usize,
}

fn one() -> usize {
    1
}

/// The name that a file of `rank` has: `bank.rank-3.arrow`, or `bank.arrow` for rank 0.
fn name_of(name: &str, rank: usize) -> String {
    match name.rsplit_once('.') {
        Some((stem, extension)) if rank > 0 => format!("{stem}.rank-{rank}.{extension}"),
        _ => name.to_owned(),
    }
}

impl Position {
    /// Reads `cursor.json` of a snapshot folder.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::read_of(folder, 0)
    }

    fn read_of(folder: &Path, rank: usize) -> Result<Self> {
        let path = folder.join(name_of("cursor.json", rank));
        let text = fs::read_to_string(&path).map_err(|error| Error::file("read", &path, &error))?;
        serde_json::from_str(&text).map_err(|error| Error::data(format!("{}: {error}", path.display())))
    }

    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self).map_err(|error| Error::data(format!("{}: {error}", path.display())))?;
        fs::write(path, text).map_err(|error| Error::file("write", path, &error))
    }
}

/// What a reader of `model.safetensors` alone has to know.
fn model_metadata(trainer: &Trainer) -> Result<BTreeMap<String, String>> {
    let mut metadata = trainer.student.metadata();
    metadata.insert("views".into(), views_metadata(&trainer.plan.views)?);
    metadata.insert("step".into(), trainer.progress.step.to_string());
    Ok(metadata)
}

/// What [`views_of`] reads, to stand under `views` in a header.
pub fn views_metadata(views: &ViewsPlan) -> Result<String> {
    serde_json::to_string(views).map_err(|error| Error::data(format!("cannot describe the views: {error}")))
}

/// The views that the network of a `model.safetensors` was trained on, from its header.
pub fn views_of(metadata: &BTreeMap<String, String>) -> Option<ViewsPlan> {
    serde_json::from_str(metadata.get("views")?).ok()
}

/// Name, tensors, and what stands in the header.
type TensorFile = (&'static str, Vec<(String, Tensor)>, BTreeMap<String, String>);

/// Everything that is needed to go on, as it was at one step: to be written while training goes on.
#[derive(Debug)]
pub struct Saved {
    files: Vec<TensorFile>,
    assignments: Option<Arc<Assignments>>,
    bank: Option<Capture>,
    remembered: Remembered,
    position: Position,
    rank: usize,
}

/// What a snapshot says of the stream.
#[derive(Debug)]
pub struct Restored {
    /// Where this rank goes on, if there are as many ranks as there were.
    pub standing: Standing,
    /// Where all ranks were, on rank 0 where there are more or fewer now: to be dealt anew.
    pub to_deal: Option<Vec<Cursor>>,
    /// How many ranks there were.
    pub ranks: usize,
}

impl Saved {
    /// Writes it into `folder`, of several ranks what is of this one; the names of its files.
    pub fn write(self, folder: &Path) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (name, tensors, metadata) in &self.files {
            state::write_safetensors(&folder.join(name), tensors, metadata)?;
            names.push((*name).to_owned());
        }
        if let Some(assignments) = &self.assignments {
            assignments.write(&folder.join("assignments.arrow"))?;
            names.push("assignments.arrow".to_owned());
        }
        let mut own = |name: &str| {
            names.push(name_of(name, self.rank));
            folder.join(name_of(name, self.rank))
        };
        if let Some(bank) = self.bank {
            bank.write(&own("bank.arrow"))?;
        }
        if !self.remembered.is_empty() {
            seen::write(&own("seen.arrow"), &self.remembered)?;
        }
        self.position.write(&own("cursor.json"))?;
        Ok(names)
    }
}

/// Copies on the host, which later steps leave alone.
fn copies(tensors: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>> {
    let _guard = tch::no_grad_guard();
    let copy = |(name, tensor): (String, Tensor)| -> Result<(String, Tensor)> {
        let tensor = tensor.f_detach()?;
        let mut copied = Tensor::f_empty(tensor.size(), (tensor.kind(), Device::Cpu))?;
        copied.f_copy_(&tensor)?;
        Ok((name, copied))
    };
    tensors.into_iter().map(copy).collect()
}

impl Trainer {
    /// Everything that is needed to go on from `standing`.
    pub fn capture(&mut self, standing: &Standing) -> Result<Saved> {
        self.interval.settle(&mut self.progress, &self.world)?;
        super::labels::check_finite(self.progress.loss_sum, self.progress.step)?;
        self.check_weights()?;
        let (cursor, filtered) = (standing.cursor.clone(), standing.filtered.clone());
        Ok(Saved {
            files: if self.world.is_first() { self.common_files()? } else { Vec::new() },
            assignments: self.full_assignments.clone().filter(|_| self.world.is_first()),
            bank: self.learns_clusters().then(|| self.bank.capture()).transpose()?,
            remembered: standing.remembered.clone(),
            position: Position { cursor, progress: self.progress.clone(), filtered, ranks: self.world.size() },
            rank: self.world.rank(),
        })
    }

    /// What is the same on all ranks.
    fn common_files(&self) -> Result<Vec<TensorFile>> {
        let none = BTreeMap::new;
        let mut files = vec![
            ("model.safetensors", copies(self.student.state()?)?, model_metadata(self)?),
            ("optimizer.safetensors", copies(self.momenta())?, none()),
        ];
        if let Some(assigner) = &self.assigner {
            files.push(("assigner.safetensors", copies(assigner.state()?)?, assigner.metadata()));
        }
        if let Some(beside) = &self.beside {
            // Nothing writes to it.
            files.push(("encoder.safetensors", beside.encoder.state()?, beside.encoder.metadata()));
        }
        if let Some((head, _)) = &self.head
            && !head.parameters().is_empty()
        {
            files.push(("head.safetensors", copies(head.parameters())?, none()));
        }
        if let Some(clustering) = &self.clustering {
            files.push(("clusters.safetensors", clustering.named_tensors()?, none()));
        }
        Ok(files)
    }

    /// The momenta of the network, and of the head where it has some.
    fn momenta(&self) -> Vec<(String, Tensor)> {
        let head = self.head.as_ref().map(|(_, optimizer)| optimizer.state());
        self.optimizer.state().into_iter().chain(head.into_iter().flatten()).collect()
    }

    /// A step can overflow after its loss was measured: such weights must not pass for a good snapshot.
    fn check_weights(&self) -> Result<()> {
        for (name, weight) in self.student.state()? {
            if !bool::try_from(weight.f_isfinite()?.f_all()?)? {
                return Err(Error::data(format!("the weights {name} are not finite at step {}", self.progress.step))
                    .with_hint("go back to the last snapshot with a lower train.lr"));
            }
        }
        Ok(())
    }

    /// Takes everything back from `folder`, which as many ranks have written as may be; what it says of the stream.
    pub fn restore(&mut self, folder: &Path) -> Result<Restored> {
        let position = Position::read(folder)?;
        let ranks = position.ranks;
        let standing = self.restore_stream(folder, ranks)?;
        let read = |name: &str| state::read_safetensors(&folder.join(name)).map(|(tensors, _)| tensors);
        self.student.load_state(&read("model.safetensors")?)?;
        let momenta = read("optimizer.safetensors")?;
        self.optimizer.load_state(&momenta)?;
        self.progress = position.progress;
        if !self.learns_clusters() {
            let (head, optimizer) = self.head.as_mut().ok_or_else(super::no_labels)?;
            state::copy_into(&head.parameters(), &read("head.safetensors")?)?;
            optimizer.load_state(&momenta)?;
            return Ok(standing);
        }
        self.assigner()?.load_state(&read("assigner.safetensors")?)?;
        let banks: Vec<PathBuf> = (0..ranks).map(|rank| folder.join(name_of("bank.arrow", rank))).collect();
        self.bank = Bank::read(&banks, self.plan.bank.capacity, &self.world)?;
        if self.progress.clustered_at.is_none() {
            return Ok(standing);
        }
        let clustering = Clustering::from_named_tensors(&read("clusters.safetensors")?, self.device)?;
        let head = if folder.join("head.safetensors").exists() {
            let (dim, k) = (self.student.feature_dim(), clustering.k() as i64);
            let head = Head::new(dim, k, 0, self.device, self.plan.device.precision)?;
            state::copy_into(&head.parameters(), &read("head.safetensors")?)?;
            head
        } else {
            self.prototypes(&clustering)?
        };
        self.put_head(self.with_optimizer(head)?)?;
        self.weights = self.weights_for(&clustering)?;
        self.clustering = Some(clustering);
        if self.plan.cluster.refresh == Refresh::Full {
            let assignments = Assignments::read(&folder.join("assignments.arrow"))?;
            self.labels_by_id = assignments.by_id();
            self.full_assignments = Some(Arc::new(assignments));
        }
        if self.progress.beside_since.is_some() {
            let encoder = self.student.duplicate()?;
            encoder.load_state(&read("encoder.safetensors")?)?;
            self.cluster_beside(encoder)?;
        }
        Ok(standing)
    }

    /// The stream of this rank. Where there are more or fewer ranks than before, counts go to the ranks in turn, what was seen goes to
    /// all, and positions have to be dealt anew.
    fn restore_stream(&self, folder: &Path, ranks: usize) -> Result<Restored> {
        let (rank, size) = (self.world.rank(), self.world.size());
        let seen_by = |rank: usize| seen::read(&folder.join(name_of("seen.arrow", rank)), self.plan.filter.remember);
        if ranks == size {
            let position = Position::read_of(folder, rank)?;
            let (cursor, filtered) = (position.cursor, position.filtered);
            let standing = Standing { cursor, filtered, remembered: seen_by(rank)? };
            return Ok(Restored { standing, to_deal: None, ranks });
        }
        let mut standing = Standing::new(&self.plan.filter);
        let seen = (0..ranks).map(seen_by).collect::<Result<Vec<_>>>()?;
        standing.remembered.extend(oldest_first(&seen));
        let mut cursors = Vec::with_capacity(ranks);
        for old in 0..ranks {
            if old % size != rank && rank > 0 {
                continue;
            }
            let position = Position::read_of(folder, old)?;
            if old % size == rank {
                for (rule, count) in position.filtered {
                    *standing.filtered.entry(rule).or_default() += count;
                }
            }
            cursors.push(position.cursor);
        }
        Ok(Restored { standing, to_deal: (rank == 0).then_some(cursors), ranks })
    }
}

/// What several ranks remember, in turn, each once.
fn oldest_first(seen: &[Remembered]) -> Vec<Entry> {
    let mut lists: Vec<_> = seen.iter().map(Remembered::iter).collect();
    let mut known = HashSet::new();
    let mut merged = Vec::new();
    loop {
        let round: Vec<&Entry> = lists.iter_mut().filter_map(Iterator::next).collect();
        if round.is_empty() {
            return merged;
        }
        merged.extend(round.into_iter().filter(|entry| known.insert(entry.id)).copied());
    }
}
