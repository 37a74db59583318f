//! What a list of shards asks of the network: the text of another list, and the keys of a store.
//!
//! In: an address. Out: text, or keys in order. Lists are read by blocking code, within a runtime and outside of one: the requests run
//! on a small runtime of their own while the caller waits. Each is tried again as `[fetch]` says, and none is sent to a host
//! that asked to be left alone, whoever it told so; what cannot be had is an error that shows no credentials.

use super::hosts::{Host, Hosts};
use super::remote::{Refusal, Remote};
use super::store::{SCHEMES, Stores};
use super::{HttpShard, Rules, http};
use crate::config::FetchPlan;
use crate::error::{Error, Result};
use crate::secrets::shown;
use crate::shards::{Reason, Trouble};
use futures_util::{FutureExt, StreamExt};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// Bytes of the longest list: some million shards.
const LONGEST_LIST: usize = 256 << 20;
/// Keys below one prefix: more shards than anybody has.
const MOST_KEYS: usize = 10_000_000;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Asks the network for what a list needs. Nothing is opened before the first question.
#[derive(Debug)]
pub(in crate::shards) struct Lookup<'a> {
    plan: &'a FetchPlan,
    asking: Option<Asking>,
}

#[derive(Debug)]
struct Asking {
    runtime: Runtime,
    stores: Arc<Stores>,
    rules: Rules,
    hosts: Hosts,
}

impl<'a> Lookup<'a> {
    pub(in crate::shards) fn new(plan: &'a FetchPlan) -> Self {
        Self { plan, asking: None }
    }

    /// The text at an `http(s)://` address, or in a store.
    ///
    /// # Errors
    /// Why it cannot be read: not there, too long, no text.
    pub(in crate::shards) fn text(&mut self, address: &str) -> Result<String> {
        let name = shown(address);
        let Asking { runtime, stores, rules, hosts } = self.asking()?;
        let remote: Result<Arc<dyn Remote>, Trouble> = match SCHEMES.iter().any(|scheme| address.starts_with(scheme)) {
            true => stores.object(address).map(|object| Arc::new(object) as _),
            false => HttpShard::new(http::client(rules.patience)?, address).map(|shard| Arc::new(shard) as _),
        };
        let patient = rules.clone();
        let text = remote.and_then(|remote| {
            let host = hosts.named(remote.host());
            wait(runtime, async move { patient.persist(&host, || text(&*remote, &patient)).await })
        });
        text.map_err(|trouble| {
            Error::data(format!("shard list {name}: {trouble}"))
                .with_hint("@ names a text file with one shard spec a line")
        })
    }

    /// The keys that begin with the one of this address, in order. `is_flat` leaves out those with a `/` after that.
    ///
    /// # Errors
    /// Why they cannot be listed.
    pub(in crate::shards) fn keys(&mut self, address: &str, is_flat: bool) -> Result<Vec<String>> {
        let (mut keys, _) = self.listing(address, is_flat)?;
        keys.sort_unstable();
        Ok(keys)
    }

    /// What lies directly below the prefix of this address, which ends with a `/`: keys, and beginnings of further keys up to a
    /// `/`, which is left out; both in order.
    ///
    /// # Errors
    /// Why it cannot be listed.
    pub(in crate::shards) fn below(&mut self, address: &str) -> Result<(Vec<String>, Vec<String>)> {
        let (mut keys, mut folders) = self.listing(address, true)?;
        keys.sort_unstable();
        folders.sort_unstable();
        Ok((keys, folders))
    }

    fn listing(&mut self, address: &str, is_flat: bool) -> Result<(Vec<String>, Vec<String>)> {
        let name = shown(address);
        let Asking { runtime, stores, rules, hosts } = self.asking()?;
        let patient = rules.clone();
        let listed = stores.bucket(address).and_then(|(bucket, prefix)| {
            let prefix = prefix.to_owned();
            let host = hosts.named(bucket.host());
            wait(runtime, async move {
                let (mut keys, mut folders, mut next) = (Vec::new(), Vec::new(), None);
                loop {
                    let page = || timeout(patient.patience, bucket.page(&prefix, is_flat, next.clone()));
                    let answer = || page().map(|page| page.unwrap_or_else(|_| Err(patient.silence())));
                    let page = patient.persist(&host, answer).await?;
                    keys.extend(page.keys.into_iter().map(|(key, _)| key));
                    folders.extend(page.folders);
                    if keys.len() + folders.len() > MOST_KEYS {
                        return Err(Trouble::new(Reason::Unreadable, format!("more than {MOST_KEYS} keys")));
                    }
                    if page.after.is_none() {
                        return Ok((keys, folders));
                    }
                    next = page.after;
                }
            })
        });
        listed.map_err(|trouble| {
            Error::data(format!("shard spec \"{name}\": its keys cannot be listed: {trouble}")).with_hint(
                "check the bucket, the credentials in the environment, fetch.anonymous and fetch.endpoint; \
                 where listing is forbidden, name the keys, as in {000..127}.tar",
            )
        })
    }

    fn asking(&mut self) -> Result<&Asking> {
        if self.asking.is_none() {
            let rules = Rules::new(self.plan)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("lists")
                .enable_all()
                .build()
                .map_err(|error| Error::device(format!("cannot start the I/O threads: {error}")))?;
            let stores = Arc::new(Stores::new(self.plan, rules.patience));
            let hosts = Hosts::new(self.plan.connections, rules.longest_pause);
            self.asking = Some(Asking { runtime, stores, rules, hosts });
        }
        self.asking.as_ref().ok_or_else(|| Error::Stage { stage: "shards", what: "no runtime for lists".to_owned() })
    }
}

impl Drop for Lookup<'_> {
    fn drop(&mut self) {
        if let Some(asking) = self.asking.take() {
            // may be dropped by async code, which cannot wait for threads
            asking.runtime.shutdown_background();
        }
    }
}

/// Waits for the outcome of a task: blocking, also where the caller is a thread of another runtime.
fn wait<T: Send + 'static>(
    runtime: &Runtime,
    task: impl Future<Output = Result<T, Trouble>> + Send + 'static,
) -> Result<T, Trouble> {
    let (done, outcome) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        let _ = done.send(task.await); // whoever asked waits for it
    });
    outcome.recv().unwrap_or_else(|_| Err(Trouble::new(Reason::Unreachable, "the request was given up")))
}

impl Rules {
    /// Asks until there is an answer, the attempts run out, or the server says that more are useless.
    pub(super) async fn persist<T, A>(&self, host: &Arc<Host>, ask: impl Fn() -> A) -> Result<T, Trouble>
    where
        A: Future<Output = Result<T, Refusal>>,
    {
        let mut pause = FIRST_PAUSE;
        for attempt in 0_u32.. {
            let slot = host.enter(|| tracing::debug!("the host of a list asked to be left alone for a while")).await;
            let (trouble, asked_pause) = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(Refusal::Final(trouble)) => return Err(trouble),
                Err(Refusal::Passing(trouble, asked_pause)) => (trouble, asked_pause),
            };
            slot.refused(trouble.reason == Reason::Unreachable, asked_pause);
            drop(slot);
            if attempt == self.retries {
                return Err(trouble);
            }
            tracing::debug!(attempt, %trouble, "will ask again for a list");
            if asked_pause.is_none_or(|asked| asked.is_zero()) {
                tokio::time::sleep(pause.min(self.longest_pause)).await;
                pause = pause.saturating_mul(2);
            }
        }
        Err(Trouble::new(Reason::Unreachable, "no attempt was made"))
    }

    pub(super) fn silence(&self) -> Refusal {
        let detail = format!("no answer for {} s", self.patience.as_secs_f64());
        Refusal::Passing(Trouble::new(Reason::Unreachable, detail), None)
    }
}

async fn text(remote: &dyn Remote, rules: &Rules) -> Result<String, Refusal> {
    let mut answer = timeout(rules.patience, remote.get(0, None, None)).await.map_err(|_| rules.silence())??;
    let mut bytes = Vec::new();
    let cut = |why: String| Refusal::Passing(Trouble::new(Reason::ConnectionLost, why), None);
    while let Some(chunk) = timeout(rules.patience, answer.body.next()).await.map_err(|_| rules.silence())? {
        bytes.extend_from_slice(&chunk.map_err(cut)?);
        if bytes.len() > LONGEST_LIST {
            let what = format!("longer than {} MiB", LONGEST_LIST >> 20);
            return Err(Refusal::Final(Trouble::new(Reason::Unreadable, what)));
        }
    }
    if answer.length.is_some_and(|length| length != bytes.len() as u64) {
        return Err(cut(format!("ends after {} bytes", bytes.len())));
    }
    String::from_utf8(bytes).map_err(|_| Refusal::Final(Trouble::new(Reason::Unreadable, "is not UTF-8 text")))
}
