//! The integration tests: one binary, since each process that loads libtorch costs half a second. One module for each thing
//! that a user does.

mod cluster;
mod commands;
mod damage;
mod detection;
mod export;
mod faults;
mod filters;
mod hedge;
mod hostile;
mod index;
mod init;
mod interop;
mod ledger;
mod lies;
mod matrix;
mod objects;
mod order;
mod pictures;
mod pipelines;
mod probes;
mod resume;
mod retrieval;
mod run;
mod s3;
mod segmentation;
mod server;
mod show;
mod small_process;
mod stores;
mod stream;
mod strict;
mod supervised;
mod sweep;
mod voc07;
mod yfcc;
