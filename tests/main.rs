//! The integration tests: one binary, since each process that loads libtorch costs half a second. One module for each thing
//! that a user does.

mod commands;
mod filters;
mod faults;
mod interop;
mod ledger;
mod lies;
mod order;
mod pictures;
mod pipelines;
mod resume;
mod run;
mod s3;
mod server;
mod stores;
mod stream;
