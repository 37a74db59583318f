//! DeepCluster's AlexNet (paper, section 3.4 and "Implementation details"): 96-256-384-384-256 maps, batch norm after
//! each convolution, no local response normalisation, no groups. Images of 224 pixels leave maps of 6 x 6; features are
//! the 4,096 of fc7.

use crate::model::plain::{ConvRow, FcRow, Pool, Table};

const POOL: Pool = Pool { kernel: 3, stride: 2, padding: 0 };

/// The layers.
pub(super) const TABLE: Table = Table {
    convs: &[
        ConvRow { name: "conv1", outputs: 96, kernel: 11, stride: 4, padding: 2, pool: Some(POOL) },
        ConvRow { name: "conv2", outputs: 256, kernel: 5, stride: 1, padding: 2, pool: Some(POOL) },
        ConvRow { name: "conv3", outputs: 384, kernel: 3, stride: 1, padding: 1, pool: None },
        ConvRow { name: "conv4", outputs: 384, kernel: 3, stride: 1, padding: 1, pool: None },
        ConvRow { name: "conv5", outputs: 256, kernel: 3, stride: 1, padding: 1, pool: Some(POOL) },
    ],
    average_to: None,
    fcs: &[FcRow { name: "fc6", outputs: 4096, dropout: true }, FcRow { name: "fc7", outputs: 4096, dropout: true }],
};
