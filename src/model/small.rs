//! Four convolutions for CPUs and tests: images of 28 to 96 pixels, 256 features.
//!
//! The first convolution halves the image and two pools halve it again, so that most of the work is done on few pixels:
//! 12 million multiplications for an image of 28 pixels, 58 million for one of 64. The last map is averaged to 2 x 2,
//! hence any size of image fits the same weights.

use crate::model::plain::{ConvRow, FcRow, Pool, Table};

const POOL: Option<Pool> = Some(Pool { kernel: 3, stride: 2, padding: 1 });

/// The layers.
pub(super) const TABLE: Table = Table {
    convs: &[
        ConvRow { name: "conv1", outputs: 32, kernel: 5, stride: 2, padding: 2, pool: None },
        ConvRow { name: "conv2", outputs: 64, kernel: 3, stride: 1, padding: 1, pool: POOL },
        ConvRow { name: "conv3", outputs: 128, kernel: 3, stride: 1, padding: 1, pool: POOL },
        ConvRow { name: "conv4", outputs: 256, kernel: 3, stride: 1, padding: 1, pool: None },
    ],
    average_to: Some(2),
    fcs: &[FcRow { name: "fc5", outputs: 256, dropout: true }],
};
