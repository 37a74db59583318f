//! `shoal` pre-trains convolutional networks, without labels, on an endless stream of photographs.
//!
//! It is DeepCluster (Caron et al., ECCV 2018) brought from epochs to streams: every N
//! steps features of the images that pass by fill a bank, the bank is clustered, and the network learns to predict the cluster
//! of each image.
//!
//! # One way through
//!
//! ```text
//! shard list ──> shards ──> ingest ──> decode ──> batch ──> train <──> labels <──> cluster <──> bank
//!               (which)    (bytes)   (pixels)   (pinned)     │                                  ^
//!                                                            ├──> bank (features) ──────────────┘
//!                                                            ├──> snapshot        (everything needed to go on)
//!                                                            └──> observe         (one record, many listeners)
//! ```
//!
//! Each arrow is one bounded channel with one named type, defined in the module that sends it:
//! [`ingest::RawSample`] → [`batch::Batch`] → [`observe::Record`]. Data flows one way: a module may import what is left of
//! it, never what is right of it. [`pipeline`] joins the stages and reads top to bottom like this drawing.
//!
//! # Threads
//!
//! tokio moves bytes; one blocking thread per open shard reads `tar` over `zstd` or `flate2`; a private rayon pool
//! decodes (nothing inside a rayon job may block); one trainer thread owns every tensor. Every channel is bounded, so a
//! slow stage slows those before it and nothing piles up.
//!
//! # Ranks
//!
//! Several processes may train one run. Each is the whole drawing, over its part of the list; [`world`] is what they have in common:
//! trainers average gradients, the bank and its clustering are spread over all, and whatever decides what happens next is put to the
//! vote. In a world of one every such call gives at once what it was given.

pub mod config;
pub mod error;
pub mod seed;
pub(crate) mod secrets;
pub(crate) mod table;

pub mod torch;
pub mod world;

pub mod shards;
pub mod ingest;
pub mod decode;
pub mod batch;
pub mod model;
pub mod bank;
pub mod cluster;
pub mod initialize;
pub mod train;
pub mod snapshot;
pub mod export;
pub mod evaluate;
pub mod visualize;
pub mod observe;

pub mod pipeline;
pub mod cli;

pub use error::{Error, Result};
