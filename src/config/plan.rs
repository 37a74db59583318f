//! The typed plan of a run: what a pipeline file says, with every default filled in.
//!
//! Each field is a key of the pipeline file (`[section] key`); its comment says what the value costs. Past this module nobody
//! sees strings: names of choices are enums. Defaults are those of the paper where it has them (section numbers are the
//! ECCV 2018 text), otherwise what was measured best on a stream.

use serde::{Deserialize, Serialize};

use super::choice::*;

/// A whole pipeline file, every key resolved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// Where the photographs come from.
    pub stream: StreamPlan,
    /// How bytes come over the network.
    pub fetch: FetchPlan,
    /// What is cut from each photograph.
    pub views: ViewsPlan,
    /// The network.
    pub model: ModelPlan,
    /// The rolling features.
    pub bank: BankPlan,
    /// How features become labels.
    pub cluster: ClusterPlan,
    /// How labels become weights.
    pub train: TrainPlan,
    /// What is kept, and when.
    pub snapshot: SnapshotPlan,
    /// What is shown.
    pub observe: ObservePlan,
    /// Where it runs.
    pub device: DevicePlan,
    /// What is passed over on purpose.
    pub filter: FilterPlan,
    /// How several ranks train together.
    pub ranks: RanksPlan,
}

/// `[stream]`: which shards, in which order, and how much may be lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamPlan {
    /// Shards: paths (relative to the current directory), URLs, `{000..127}`, `a::b`, globs, folders, `@list.txt`.
    pub shards: Vec<String>,
    /// Fixes order, views, initial weights, dropout: the same seed and list give the same run.
    pub seed: u64,
    /// Shards open at once, interleaved sample by sample. Each is a thread and a few MiB.
    pub lanes: usize,
    /// Samples (still compressed) in the shuffle buffer: about 120 kB each for 500-pixel photographs.
    pub shuffle: usize,
    /// MiB of compressed members read ahead of the stream, over all lanes. The shuffle buffer comes on top: `shuffle` times
    /// the size of an image, and at most `shuffle_mib`.
    pub buffer_mib: usize,
    /// Largest member read, in MiB; larger ones are skipped and counted.
    pub max_member_mib: usize,
    /// Largest image decoded, in megapixels, read from its header.
    pub max_megapixels: f64,
    /// Share of samples lost, over the last `loss_window`, at which the run stops with exit code 3.
    pub max_loss_rate: f64,
    /// Samples over which that share is taken.
    pub loss_window: usize,
    /// Turns pixels upright by their EXIF orientation.
    pub exif: bool,
    /// Share of the samples of one shard, of 100 or more, that may be lost while it is read. Beyond it the rest of the shard
    /// is passed over. Losses in decoding do not count here: they are heard of too late to decide an order.
    pub max_shard_loss: f64,
    /// Whether the run keeps what it learns of each sample (offset, sizes, verdict) under RUN/index.
    pub index: Indexing,
    /// Who gives the next sample.
    pub order: Order,
    /// One weight for each entry of `shards`, which are then lists of their own, mixed in these proportions; none makes one list of
    /// all.
    pub weights: Vec<f64>,
    /// MiB of images in the shuffle buffer, at which it counts as full before `shuffle` is reached; 0 is no limit.
    pub shuffle_mib: usize,
    /// Reads a list that grows: each shard once, and then those that appear.
    pub follow: bool,
    /// Seconds between two looks for new shards, with `follow`.
    pub follow_every_s: f64,
    /// Seconds without a change until a file counts as whole, with `follow`.
    pub follow_settle_s: f64,
}

impl Default for StreamPlan {
    fn default() -> Self {
        Self {
            shards: Vec::new(),
            seed: 31,
            lanes: 8,
            shuffle: 5_000,
            buffer_mib: 256,
            max_member_mib: 64,
            max_megapixels: 100.0,
            max_loss_rate: 0.1,
            loss_window: 1_000,
            exif: true,
            max_shard_loss: 0.5,
            index: Indexing::Auto,
            order: Order::Exact,
            weights: Vec::new(),
            shuffle_mib: 1_024,
            follow: false,
            follow_every_s: 10.0,
            follow_settle_s: 5.0,
        }
    }
}

/// `[fetch]`: how bytes come over the network. None of it changes what arrives, or in which order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FetchPlan {
    /// Attempts after the first at bytes that do not come; every byte that does counts anew.
    pub retries: u32,
    /// Seconds without a byte until a connection counts as dead.
    pub timeout_s: f64,
    /// Longest pause between two attempts, in seconds, also where a server asks for a longer one.
    pub max_pause_s: f64,
    /// Minutes for which attempts go on, beyond `retries`, while no server can be reached that could be before.
    pub outage_minutes: f64,
    /// KiB a second, over `timeout_s`, below which a connection counts as dead too; 0 is no such limit.
    pub min_kib_per_s: f64,
    /// MiB of the largest range that is asked for at once.
    pub range_mib: f64,
    /// Ranges of one shard in flight or waiting to be read.
    pub ranges: usize,
    /// MiB of such ranges over all shards, beyond the one that each shard may always hold.
    pub buffer_mib: usize,
    /// Requests in flight to one server; fewer while it refuses some.
    pub connections: usize,
    /// Whether a range that the reader waits for, and that takes much longer than this server usually does, is asked for a second
    /// time: one in twenty requests at most.
    pub hedge: bool,
    /// Address of the object store, in place of the provider's own, for every `s3://`, `gs://` or `az://` of the list. Empty
    /// for what the environment says (`AWS_ENDPOINT_URL`), or else the provider.
    pub endpoint: String,
    /// Whether requests to object stores are signed.
    pub anonymous: Anonymous,
    /// Folder for whole shards that came over the network, so that later passes read them there. Empty for none.
    pub cache: String,
    /// GiB that the cache may take: the shards used least recently make room.
    pub cache_gib: f64,
}

impl Default for FetchPlan {
    fn default() -> Self {
        Self {
            retries: 8,
            timeout_s: 30.0,
            max_pause_s: 30.0,
            outage_minutes: 30.0,
            min_kib_per_s: 4.0,
            range_mib: 4.0,
            ranges: 4,
            buffer_mib: 128,
            connections: 32,
            hedge: true,
            endpoint: String::new(),
            anonymous: Anonymous::Auto,
            cache: String::new(),
            cache_gib: 100.0,
        }
    }
}

/// `[views]`: the two crops of each photograph (paper, section 3.4 and facts on its transforms).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ViewsPlan {
    /// Side of both views in pixels: time grows with its square.
    pub size: u32,
    /// Short side of the photograph before the center crop.
    pub resize: u32,
    /// Share of the area that a random crop covers, smallest and largest.
    pub area: [f64; 2],
    /// Aspect ratio of a random crop, smallest and largest.
    pub aspect: [f64; 2],
    /// Share of train views that are mirrored.
    pub flip: f64,
    /// Channel means in 0..1, subtracted.
    pub mean: [f64; 3],
    /// Channel deviations in 0..1, divided by.
    pub std: [f64; 3],
}

impl Default for ViewsPlan {
    fn default() -> Self {
        Self {
            size: 224,
            resize: 256,
            area: [0.08, 1.0],
            aspect: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        }
    }
}

/// `[model]`: the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelPlan {
    /// Architecture.
    pub arch: Arch,
    /// What the first convolution sees.
    pub input: Input,
    /// Dropout probability, where the architecture has dropout.
    pub dropout: f64,
}

impl Default for ModelPlan {
    fn default() -> Self {
        Self { arch: Arch::AlexNet, input: Input::Sobel, dropout: 0.5 }
    }
}

/// `[bank]`: the features that are clustered, `capacity` of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BankPlan {
    /// Rows. Memory is `capacity × D × 2` bytes: 8 GB for a million rows of AlexNet.
    pub capacity: usize,
    /// Dimensions to which a fixed random projection takes features before they are kept; 0 keeps them as they are.
    pub projection: usize,
    /// Whose features they are, with `cluster.refresh = "rolling"`.
    pub encoder: Encoder,
}

impl Default for BankPlan {
    fn default() -> Self {
        Self { capacity: 500_000, projection: 0, encoder: Encoder::Assigner }
    }
}

/// `[cluster]`: how the bank becomes labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterPlan {
    /// Steps between two clusterings; 0 means one pass over the list, known after the first pass (`refresh = "full"` only).
    pub every_steps: u64,
    /// Clusters. The paper's best is 10,000 for 1.3 M images (Fig. 2c).
    pub k: usize,
    /// Algorithm.
    pub method: Method,
    /// Who labels between two clusterings.
    pub assigner: AssignerKind,
    /// What is clustered.
    pub refresh: Refresh,
    /// Iterations of k-means; the paper's 20.
    pub iterations: usize,
    /// Stops k-means once an iteration lowers the objective by less than this share of it.
    pub tolerance: f64,
    /// Centroids of length one.
    pub spherical: bool,
    /// Dimensions kept by PCA; the paper's 256.
    pub pca: usize,
    /// Where k-means starts.
    pub start: Start,
    /// What becomes of empty clusters.
    pub empties: Empties,
    /// Points below which a cluster is small, for `empties = "odc"`; 20 there.
    pub small: usize,
    /// Cluster beside training, and let the new labels take over `overlap_steps` later.
    pub overlap: bool,
    /// Steps from the beginning of a clustering beside training until its labels take over; 0 for half of `every_steps`.
    pub overlap_steps: u64,
    /// Coarse clusters within which the k are found (DeeperCluster); 0 for one level.
    pub coarse: usize,
    /// Equal shares for all clusters, by Sinkhorn's iterations.
    pub balanced: bool,
    /// Neighbours of a row, for `method = "pic"`; the paper's 5.
    pub neighbours: usize,
    /// Width of the kernel over distances, for `method = "pic"`; the paper's 0.2.
    pub sigma: f64,
}

impl Default for ClusterPlan {
    fn default() -> Self {
        Self {
            every_steps: 5_000,
            k: 10_000,
            method: Method::KMeans,
            assigner: AssignerKind::Frozen,
            refresh: Refresh::Refill,
            iterations: 20,
            tolerance: 0.0,
            spherical: false,
            pca: 256,
            start: Start::Random,
            empties: Empties::Split,
            small: 20,
            overlap: false,
            overlap_steps: 0,
            coarse: 0,
            balanced: false,
            neighbours: 5,
            sigma: 0.2,
        }
    }
}

impl ClusterPlan {
    /// Steps from the beginning of a clustering beside training until its labels take over.
    pub fn steps_beside(&self) -> u64 {
        if self.overlap_steps == 0 { self.every_steps / 2 } else { self.overlap_steps }
    }
}

/// `[train]`: how labels become weights (paper, section 4.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainPlan {
    /// What the network learns to predict.
    pub labels: Labels,
    /// With `labels = "classes"`: how many there are, numbered from 0; 0 learns it from the list, which is read once for that.
    pub classes: usize,
    /// Photographs a step.
    pub batch_size: usize,
    /// Steps until the run is done; 0 goes on until told to stop.
    pub steps: u64,
    /// Learning rate; the paper's 0.05 for a batch of 256.
    pub lr: f64,
    /// Momentum of the network; a head of clusters has none, as in the paper's code.
    pub momentum: f64,
    /// L2 penalty.
    pub weight_decay: f64,
    /// Learning rate over steps.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Factor of `schedule = "step"`.
    pub lr_gamma: f64,
    /// Steps between two factors of `schedule = "step"`.
    pub lr_step_size: u64,
    /// How clusters are balanced.
    pub balance: Balance,
    /// Largest weight of `balance = "weight"`, as a multiple of the mean.
    pub balance_limit: f64,
    /// Batches in the window of `balance = "sample"`.
    pub balance_window: usize,
    /// What becomes of the head at a cycle.
    pub head: HeadRenewal,
    /// What logits are divided by, with `head = "centroids"`; 0.1 in DeepCluster-v2.
    pub temperature: f64,
}

impl Default for TrainPlan {
    fn default() -> Self {
        Self {
            labels: Labels::Clusters,
            classes: 0,
            batch_size: 256,
            steps: 0,
            lr: 0.05,
            momentum: 0.9,
            weight_decay: 1e-5,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            lr_gamma: 0.1,
            lr_step_size: 100_000,
            balance: Balance::Weight,
            balance_limit: 10.0,
            balance_window: 16,
            head: HeadRenewal::Match,
            temperature: 0.1,
        }
    }
}

impl TrainPlan {
    /// With `labels = "classes"`: how many there are, where it is known.
    pub fn known_classes(&self) -> Option<usize> {
        (self.labels == Labels::Classes && self.classes > 0).then_some(self.classes)
    }
}

/// `[snapshot]`: what is kept, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnapshotPlan {
    /// Steps between two snapshots; 0 is never by steps.
    pub every_steps: u64,
    /// Minutes between two snapshots; 0 is never by time.
    pub every_minutes: f64,
    /// Newest snapshots kept.
    pub keep_last: usize,
    /// Snapshots at multiples of this many steps are kept for good; 0 is none.
    pub keep_every: u64,
}

impl Default for SnapshotPlan {
    fn default() -> Self {
        Self { every_steps: 5_000, every_minutes: 60.0, keep_last: 3, keep_every: 0 }
    }
}

/// `[observe]`: what is shown and written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObservePlan {
    /// Steps between two `step` records.
    pub every_steps: u64,
    /// Writes TensorBoard event files.
    pub tensorboard: bool,
    /// Writes pictures of clusters and filters to them.
    pub pictures: bool,
    /// Address of the live page; empty is none.
    pub page: String,
    /// Share of the new labels in one cluster at which the collapse alarm fires.
    pub collapse_share: f64,
    /// Stops the run when it does.
    pub collapse_stop: bool,
}

impl Default for ObservePlan {
    fn default() -> Self {
        Self {
            every_steps: 10,
            tensorboard: true,
            pictures: true,
            page: String::new(),
            collapse_share: 0.5,
            collapse_stop: false,
        }
    }
}

/// `[device]`: where it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DevicePlan {
    /// The device that trains.
    pub kind: DeviceKind,
    /// CPU threads of libtorch; 0 chooses (on a CPU: all cores; beside a GPU: 2).
    pub threads: usize,
    /// CPU threads that decode; 0 chooses (on a CPU: all cores; beside a GPU: all but 2).
    pub decode_threads: usize,
    /// Arithmetic.
    pub precision: Precision,
}

impl Default for DevicePlan {
    fn default() -> Self {
        Self { kind: DeviceKind::Auto, threads: 0, decode_threads: 0, precision: Precision::Fp32 }
    }
}

/// `[ranks]`: how several ranks train together. Everything else in the file is of all ranks: `train.batch_size` and `bank.capacity` are
/// divided among them. How many there are is no key: the launcher says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RanksPlan {
    /// Seconds that a rank waits in a call for the others, and for all of them to come when it starts; a rank that gives no sign of
    /// life is given up after 15 of them.
    pub timeout_s: f64,
    /// MiB of gradients averaged at once, while the backward pass goes on.
    pub bucket_mib: usize,
    /// Batch norm over the batch of all ranks instead of each rank's part.
    pub sync_batch_norm: bool,
    /// Steps between two comparisons of all ranks' weights; 0 is never.
    pub check_every: u64,
}

impl Default for RanksPlan {
    fn default() -> Self {
        Self { timeout_s: 600.0, bucket_mib: 25, sync_batch_norm: false, check_every: 500 }
    }
}

/// `[filter]`: what is passed over on purpose, counted by rule and no loss. Trains on; evaluations take every sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilterPlan {
    /// Pixels that the shorter side must have, by the header; 0 is off.
    pub min_side: u32,
    /// Longer side over shorter side, at most, by the header; 0 is off.
    pub max_aspect: f64,
    /// Bytes that an image file must have; 0 is off.
    pub min_bytes: usize,
    /// Lengths in bytes of what a server gives for photographs that are gone. A file of such a length is passed over if a file
    /// of the very same bytes came before: real photographs of that length stay.
    pub placeholders: Vec<usize>,
    /// Variance of luma, in squared levels, below which 95 of 100 columns and rows of the center view make a picture of one
    /// colour; 0 is off.
    pub uniform: f64,
    /// Only smaller files can be of one colour.
    pub uniform_bytes: usize,
    /// Which images count as seen before.
    pub duplicates: Duplicates,
    /// With `duplicates = "near"`: bits of 128 by which the hashes of near duplicates differ at most.
    pub near_bits: u32,
    /// Images remembered to be compared with, about 100 bytes each; the snapshot holds 32 of them.
    pub remember: usize,
    /// Licences of photographs trained on, as `["by", "by-sa"]`; others, and those nobody knows, are passed over. Empty is any.
    pub licences: Vec<String>,
    /// YFCC100M's metadata, which know the licences: tab-separated lines, plain, `.gz` or `.zst`. A table is made beside them, once:
    /// 24 bytes a line, or 8 with `metadata_key`.
    pub metadata: String,
    /// What the keys of samples are in the metadata.
    pub metadata_key: MetadataKey,
}

impl Default for FilterPlan {
    fn default() -> Self {
        Self {
            min_side: 0,
            max_aspect: 0.0,
            min_bytes: 0,
            placeholders: Vec::new(),
            uniform: 0.0,
            uniform_bytes: 20_000,
            duplicates: Duplicates::Off,
            near_bits: 6,
            remember: 1_000_000,
            licences: Vec::new(),
            metadata: String::new(),
            metadata_key: MetadataKey::Auto,
        }
    }
}
