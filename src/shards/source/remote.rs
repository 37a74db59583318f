//! What the reader of a remote shard needs of a server, whatever protocol it speaks.
//!
//! In: a range of bytes. Out: an [`Answer`] whose body is yet to come, or a [`Refusal`] that says whether another attempt may
//! help. Retries, patience, order and the checks that all bytes come from one version are the caller's: see `stretch.rs`.
//! No message of a server's holds credentials, queries or signatures.

use super::super::reason::Trouble;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use std::time::Duration;

/// Something on a server whose bytes can be asked for by range. One call is one attempt: retries, patience and order are the
/// caller's.
pub(super) trait Remote: Send + Sync + std::fmt::Debug {
    /// Bytes `from..to` (to the end where `to` is none); `tag` is the version that bytes so far came from: a server that has
    /// another one now must answer [`Refusal::Final`] with `Reason::ShardChanged`.
    fn get(&self, from: u64, to: Option<u64>, tag: Option<&str>) -> BoxFuture<'_, Result<Answer, Refusal>>;

    /// Whom requests go to: those to one host share its limits.
    fn host(&self) -> &str;
}

/// The head of an answer, and a body that is yet to come.
pub(super) struct Answer {
    /// Where the body begins: 0 from a server that ignores ranges.
    pub from: u64,
    /// Length of the whole object, where it is told.
    pub length: Option<u64>,
    /// The object's version: ETag, or else Last-Modified.
    pub tag: Option<String>,
    /// Whether the server honours ranges.
    pub ranges: bool,
    /// The bytes, or why they end too early.
    pub body: BoxStream<'static, Result<Bytes, String>>,
}

/// Why there is no answer, and whether another attempt may help: after the pause that the server asks for, if it does.
#[derive(Debug)]
pub(super) enum Refusal {
    Final(Trouble),
    Passing(Trouble, Option<Duration>),
}
