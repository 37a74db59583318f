//! VGG-16 with batch norm, as DeepCluster trains it (paper, section 4.5): configuration D, and one dropout, between fc6
//! and fc7. Images of 224 pixels leave maps of 7 x 7; features are the 4,096 of fc7.

use crate::model::plain::{ConvRow, FcRow, Pool, Table};

const POOL: Option<Pool> = Some(Pool { kernel: 2, stride: 2, padding: 0 });

const fn conv(name: &'static str, outputs: i64, pool: Option<Pool>) -> ConvRow {
    ConvRow { name, outputs, kernel: 3, stride: 1, padding: 1, pool }
}

/// The layers.
pub(super) const TABLE: Table = Table {
    convs: &[
        conv("conv1_1", 64, None),
        conv("conv1_2", 64, POOL),
        conv("conv2_1", 128, None),
        conv("conv2_2", 128, POOL),
        conv("conv3_1", 256, None),
        conv("conv3_2", 256, None),
        conv("conv3_3", 256, POOL),
        conv("conv4_1", 512, None),
        conv("conv4_2", 512, None),
        conv("conv4_3", 512, POOL),
        conv("conv5_1", 512, None),
        conv("conv5_2", 512, None),
        conv("conv5_3", 512, POOL),
    ],
    average_to: None,
    fcs: &[FcRow { name: "fc6", outputs: 4096, dropout: false }, FcRow { name: "fc7", outputs: 4096, dropout: true }],
};
