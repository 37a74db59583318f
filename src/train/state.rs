//! What a snapshot holds of a run, file by file, and how it comes back.
//!
//! | file | what |
//! |---|---|
//! | `model.safetensors` | the student, in the names of the published checkpoints |
//! | `assigner.safetensors` | the frozen copy that labels |
//! | `head.safetensors` | the classifier of this cycle |
//! | `optimizer.safetensors` | momenta by the names of their weights |
//! | `bank.arrow` | id, step, class, label, feature (f16) of every row; no row where the next cycle fills it anew |
//! | `clusters.safetensors` | whitening and centroids |
//! | `assignments.arrow` | id and cluster, with `refresh = "full"` |
//! | `seen.arrow` | images that the rules on duplicates know, oldest first; none where there are none |
//! | `cursor.json` | the position in the stream, and the run's counters |

use super::Trainer;
use super::optimizer::Sgd;
use super::progress::Progress;
use super::seen;
use crate::bank::Bank;
use crate::batch::Standing;
use crate::cluster::Clustering;
use crate::cluster::assignments::Assignments;
use crate::config::{Refresh, ViewsPlan};
use crate::error::{Error, Result};
use crate::ingest::Cursor;
use crate::model::{Head, state};
use crate::shards::FilteredCounts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

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
}

impl Position {
    /// Reads `cursor.json` of a snapshot folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("cursor.json");
        let text = fs::read_to_string(&path).map_err(|error| Error::file("read", &path, &error))?;
        serde_json::from_str(&text).map_err(|error| Error::data(format!("{}: {error}", path.display())))
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("cursor.json");
        let text = serde_json::to_string(self).map_err(|error| Error::data(format!("{}: {error}", path.display())))?;
        fs::write(&path, text).map_err(|error| Error::file("write", &path, &error))
    }
}

/// What a reader of `model.safetensors` alone has to know.
fn model_metadata(trainer: &Trainer) -> Result<BTreeMap<String, String>> {
    let mut metadata = trainer.student.metadata();
    let views = serde_json::to_string(&trainer.plan.views)
        .map_err(|error| Error::data(format!("cannot describe the views: {error}")))?;
    metadata.insert("views".into(), views);
    metadata.insert("step".into(), trainer.progress.step.to_string());
    Ok(metadata)
}

/// The views that the network of a `model.safetensors` was trained on, from its header.
pub fn views_of(metadata: &BTreeMap<String, String>) -> Option<ViewsPlan> {
    serde_json::from_str(metadata.get("views")?).ok()
}

impl Trainer {
    /// Writes everything that is needed to go on from `standing` into `folder`.
    pub fn save(&mut self, folder: &Path, standing: &Standing) -> Result<()> {
        self.interval.settle(&mut self.progress)?;
        super::labels::check_finite(self.progress.loss_sum, self.progress.step)?;
        self.check_weights()?;
        let none = BTreeMap::new();
        state::write_safetensors(&folder.join("model.safetensors"), &self.student.state()?, &model_metadata(self)?)?;
        state::write_safetensors(
            &folder.join("assigner.safetensors"),
            &self.assigner.state()?,
            &self.assigner.metadata(),
        )?;
        state::write_safetensors(&folder.join("optimizer.safetensors"), &self.optimizer.state(), &none)?;
        if let Some((head, _)) = &self.head {
            state::write_safetensors(&folder.join("head.safetensors"), &head.parameters(), &none)?;
        }
        if let Some(clustering) = &self.clustering {
            state::write_safetensors(&folder.join("clusters.safetensors"), &clustering.named_tensors()?, &none)?;
        }
        if let Some(assignments) = &self.full_assignments {
            assignments.write(&folder.join("assignments.arrow"))?;
        }
        self.bank.write(&folder.join("bank.arrow"))?;
        if !standing.remembered.is_empty() {
            seen::write(&folder.join("seen.arrow"), &standing.remembered)?;
        }
        let (cursor, filtered) = (standing.cursor.clone(), standing.filtered.clone());
        Position { cursor, progress: self.progress.clone(), filtered }.write(folder)
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

    /// Takes everything back from `folder`; how far the stream has come.
    pub fn restore(&mut self, folder: &Path) -> Result<Standing> {
        let position = Position::read(folder)?;
        let remembered = seen::read(&folder.join("seen.arrow"), self.plan.filter.remember)?;
        let standing = Standing { cursor: position.cursor, filtered: position.filtered, remembered };
        let read = |name: &str| state::read_safetensors(&folder.join(name)).map(|(tensors, _)| tensors);
        self.student.load_state(&read("model.safetensors")?)?;
        self.assigner.load_state(&read("assigner.safetensors")?)?;
        self.optimizer.load_state(&read("optimizer.safetensors")?)?;
        self.bank = Bank::read(&folder.join("bank.arrow"), self.plan.bank.capacity)?;
        self.progress = position.progress;
        if self.progress.clustered_at.is_none() {
            return Ok(standing);
        }
        let clusters = self.plan.cluster.k as i64;
        let head = Head::new(self.student.feature_dim(), clusters, 0, self.device, self.plan.device.precision)?;
        state::copy_into(&head.parameters(), &read("head.safetensors")?)?;
        let optimizer = Sgd::new(head.parameters(), 0.0, self.plan.train.weight_decay)?;
        self.head = Some((head, optimizer));
        let clustering = Clustering::from_named_tensors(&read("clusters.safetensors")?, self.device)?;
        self.weights = self.weights_for(&clustering)?;
        self.clustering = Some(clustering);
        if self.plan.cluster.refresh == Refresh::Full {
            let assignments = Assignments::read(&folder.join("assignments.arrow"))?;
            self.labels_by_id = assignments.by_id();
            self.full_assignments = Some(assignments);
        }
        Ok(standing)
    }
}
