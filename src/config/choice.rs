//! Values that a pipeline file names: each a closed set, an enum past `config`.
//!
//! In: a word of the file. Out: the variant, or an error that lists the words there are and suggests the nearest. What each choice costs
//! stands at the key that takes it, in `plan.rs`.

use super::set::nearest;
use serde::{Deserialize, Serialize};

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// Every value, as it stands in a pipeline file.
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            /// The value as it stands in a pipeline file.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                match text.as_str() {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(unknown_choice(&text, Self::NAMES)),
                }
            }
        }
    };
}

fn unknown_choice(text: &str, names: &[&str]) -> String {
    let mut message = format!("is not one of {}", names.join(", "));
    if let Some(name) = nearest(text, names.iter().copied()) {
        message.push_str(&format!("; did you mean `{name}`?"));
    }
    message
}

choice! {
    /// Who gives the next sample of the stream.
    Order {
        /// The open shards in turn, whoever is late: the order is a matter of seed and list alone.
        Exact = "exact",
        /// Whichever open shard has a sample: late ones do not hold up the others.
        Arrival = "arrival",
    }
}
choice! {
    /// Architectures by name.
    Arch {
        /// DeepCluster's AlexNet: 96-256-384-384-256, batch norm, no groups.
        AlexNet = "alexnet",
        /// VGG-16 with batch norm.
        Vgg16 = "vgg16",
        /// ResNet-18.
        ResNet18 = "resnet18",
        /// ResNet-50.
        ResNet50 = "resnet50",
        /// Four convolutions, for CPUs and tests.
        Small = "small",
    }
}
choice! {
    /// What the first convolution sees.
    Input {
        /// Two channels of image gradients from a fixed filter (paper, section 4.1: "Sobel").
        Sobel = "sobel",
        /// Normalised colour.
        Rgb = "rgb",
    }
}
choice! {
    /// Whose features fill the bank.
    Encoder {
        /// The frozen assigner's: no extra forward pass.
        Assigner = "assigner",
        /// The student's, in evaluation mode: a second forward pass.
        Student = "student",
        /// Those of the training pass, with its crops and dropout in them: free.
        Train = "train",
    }
}
choice! {
    /// How the bank is clustered.
    Method {
        /// Lloyd's k-means after PCA, whitening and L2 normalisation (paper, section 4.2).
        KMeans = "kmeans",
        /// Power Iteration Clustering on the graph of nearest neighbours: as many clusters as there turn out to be (paper, section 3.3
        /// and supplementary material).
        Pic = "pic",
    }
}
choice! {
    /// Who gives pseudo-labels between two clusterings.
    AssignerKind {
        /// A copy of the student taken at the last clustering.
        Frozen = "frozen",
        /// The student itself. Collapses; kept to show that it does.
        Live = "live",
    }
}
choice! {
    /// What is clustered at the end of a cycle.
    Refresh {
        /// The next `bank.capacity` samples of the stream, encoded by the student as it then is: costs their forward pass.
        /// Centroids and assigner are of one network.
        Refill = "refill",
        /// The bank as it has filled during the cycle: costs nothing, but its rows are of older networks than the assigner.
        /// Needs features that hold still between cycles: ops/bench/RESULTS.md shows what happens otherwise.
        Rolling = "rolling",
        /// The whole list, encoded anew by the student: the paper's method, for finite lists.
        Full = "full",
    }
}
choice! {
    /// Where k-means starts.
    Start {
        /// From k random rows, as the paper.
        Random = "random",
        /// From rows that lie apart (k-means++, or its parallel form).
        PlusPlus = "plusplus",
        /// From the centroids of the last cycle, where the features still allow it.
        Warm = "warm",
    }
}
choice! {
    /// What becomes of clusters without points: `cluster/kmeans/empties.rs` has the rules in full.
    Empties {
        /// A donor, drawn in proportion to its size, is split, also after the last assignment: none stays empty.
        Split = "split",
        /// As faiss and so the paper's code, number for number: clusters may be empty after the last assignment.
        Faiss = "faiss",
        /// As the paper's text: any cluster donates, and its points go to the nearer of the two (section 3.3).
        Paper = "paper",
        /// As `split`, and clusters of fewer than `cluster.small` points give way to parts of the largest (Online Deep Clustering).
        Odc = "odc",
    }
}
choice! {
    /// What the network learns to predict.
    Labels {
        /// The clusters of its own features (paper, section 3.2).
        Clusters = "clusters",
        /// The classes of the stream (`.cls`): supervised training, the top line of the paper's tables.
        Classes = "classes",
    }
}
choice! {
    /// How large clusters are kept from drowning small ones (paper, section 3.3, "trivial parametrization").
    Balance {
        /// Weights the loss of a sample by the inverse size of its cluster, bounded.
        Weight = "weight",
        /// Draws samples uniformly over clusters inside a window of batches.
        Sample = "sample",
        /// Does nothing.
        None = "none",
    }
}
choice! {
    /// What becomes of the classifier when the labels are renewed.
    HeadRenewal {
        /// A new one, as the paper.
        Reset = "reset",
        /// Its rows follow the clusters, matched through the assignments of the bank.
        Match = "match",
        /// The centroids themselves, which are not trained (DeepCluster-v2).
        Centroids = "centroids",
    }
}
choice! {
    /// Learning rate over steps.
    Schedule {
        /// The paper's: constant.
        Constant = "constant",
        /// Half a cosine down to zero at `train.steps`.
        Cosine = "cosine",
        /// Times `train.lr_gamma` at every `train.lr_step_size` steps.
        Step = "step",
    }
}
choice! {
    /// Whether shards are indexed by the way.
    Indexing {
        /// Each shard when it is first read completely, and again when it has changed.
        Auto = "auto",
        /// Never.
        Off = "off",
    }
}
choice! {
    /// The device that trains.
    DeviceKind {
        /// CUDA where it can be opened, else the CPU; says which and why.
        Auto = "auto",
        /// The CPU.
        Cpu = "cpu",
        /// CUDA, or an error.
        Cuda = "cuda",
    }
}
choice! {
    /// Arithmetic of forward and backward passes; weights, statistics and the optimiser stay in fp32.
    Precision {
        /// 32-bit floating point.
        Fp32 = "fp32",
        /// bfloat16 compute over fp32 weights.
        Bf16 = "bf16",
    }
}

choice! {
    /// Which images count as seen before.
    Duplicates {
        /// None.
        Off = "off",
        /// Those of the same bytes.
        Bytes = "bytes",
        /// Those of nearly the same pixels as well.
        Near = "near",
    }
}

choice! {
    /// Whether requests to object stores go unsigned.
    Anonymous {
        /// Where the environment holds no credentials.
        Auto = "auto",
        /// Also where it does: for public buckets.
        Always = "always",
        /// Never: without credentials in the environment, the machine's own role is asked for.
        Never = "never",
    }
}
choice! {
    /// What the keys of samples are in the metadata.
    MetadataKey {
        /// Told by each key: hashes, photo ids of more than 8 digits, line numbers padded to 8 digits or spelt by folder, zip and
        /// member. A key that could be two of these is unknown.
        Auto = "auto",
        /// Hashes, unpadded as YFCC100M has them.
        Hash = "hash",
        /// Photo ids.
        Id = "id",
        /// Line numbers.
        Line = "line",
    }
}
