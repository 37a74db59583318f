//! How ranks find each other: the store, who is there, and whether all mean the same run.
//!
//! While ranks are missing, those that are there name them every ten seconds; before that they wait for the way to rank 0 (`way.rs`). What can go wrong: the port is taken, a
//! rank does not come, two claim one number, or they were started with different numbers of ranks, programs or pipelines.

use super::{Launch, way};
use crate::error::{Error, Result};
use crate::torch::c10d::Store;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

/// Between two looks for ranks that are missing.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// Between two lines about them.
pub(super) const TELL: Duration = Duration::from_secs(10);

/// Where ranks have met.
pub(super) struct Met {
    /// The store, which rank 0 keeps.
    pub(super) store: Store,
    /// Its place, for people.
    pub(super) store_is_at: String,
    /// The address by which the others reach this rank; none where gloo is to find it.
    pub(super) host: Option<String>,
}

/// Opens the store and waits until all ranks have come.
///
/// Rank 0 keeps the store, at MASTER_ADDR and MASTER_PORT. Where the launcher has a store of its own there, as torchrun has, rank 0 leaves
/// a note in it where to find hers: that of an earlier start leads nowhere, or to a process that is about to end, and then is looked at
/// again. (Counting starts would not do: each machine's torchrun counts its own.)
pub(super) fn call(launch: &Launch, timeout: Duration, agreed: &str) -> Result<Met> {
    let started = Instant::now();
    way::await_store(launch, timeout).map_err(|error| unreachable(launch, &error))?;
    let (store, host, port) = match (launch.launcher_keeps_store, launch.rank) {
        (false, 0) => {
            let kept = Store::keep(&launch.host, launch.port, timeout).map_err(|error| cannot_keep(launch, &error))?;
            (sign(kept.0, launch, agreed)?, launch.host.clone(), kept.1)
        }
        (false, _) => {
            let store =
                Store::reach(&launch.host, launch.port, timeout).map_err(|error| unreachable(launch, &error))?;
            (sign(store, launch, agreed)?, launch.host.clone(), launch.port)
        }
        (true, 0) => {
            let (store, host, port) = keep_beside_launcher(launch, timeout)?;
            (sign(store, launch, agreed)?, host, port)
        }
        (true, _) => find_by_launcher(launch, timeout, agreed)?,
    };
    let here = Here { host: hostname(), address: address_towards(&host, port) };
    store.set(&format!("here-{}", launch.rank), serde_json::json!(here).to_string().as_bytes())?;
    wait_for_all(&store, launch, started, timeout)?;
    let address = match std::env::var_os("GLOO_SOCKET_IFNAME") {
        Some(_) => None,
        None => reachable_address(&store, launch.size, here, port)?,
    };
    Ok(Met { store, store_is_at: format!("{host}:{port}"), host: address.map(|address| address.to_string()) })
}

/// Enters this rank into the store of all.
///
/// # Errors
/// Ranks were started with different numbers of them, two claim the same one, or they do not mean the same run.
fn sign(store: Store, launch: &Launch, agreed: &str) -> Result<Store> {
    let store = store.under("shoal")?;
    let (rank, size) = (launch.rank, launch.size);
    let first_size = first_to_say(&store, "size", &size.to_string())?;
    if first_size != size.to_string() {
        return Err(Error::usage(format!(
            "rank {rank} was started as one of {size} ranks, others as one of {first_size}"
        ))
        .with_hint("give every process the same WORLD_SIZE"));
    }
    if store.add(&format!("rank-{rank}"), 1)? > 1 {
        return Err(Error::usage(format!("two processes claim to be rank {rank} of {size}"))
            .with_hint("give every process a RANK of its own, and every run a MASTER_PORT of its own"));
    }
    if first_to_say(&store, "agreed", agreed)? != agreed {
        return Err(Error::usage(format!(
            "rank {rank} was started with another program, pipeline or kind of device than the others"
        ))
        .with_hint("start all ranks with the same command line, on machines that all have GPUs, or none"));
    }
    Ok(store)
}

/// What is left in a launcher's store.
const NOTE: &str = "shoal/store";

fn keep_beside_launcher(launch: &Launch, timeout: Duration) -> Result<(Store, String, u16)> {
    let agent = Store::reach(&launch.host, launch.port, timeout).map_err(|error| unreachable(launch, &error))?;
    // A launcher on this very machine may be known by a name that means the machine to itself.
    let host = match address_towards(&launch.host, launch.port) {
        Some(address) if !address.is_loopback() => address.to_string(),
        _ => launch.host.clone(),
    };
    let (store, port) = Store::keep(&host, 0, timeout)?;
    let note = serde_json::json!(Note { host: host.clone(), port });
    agent.set(NOTE, note.to_string().as_bytes())?;
    Ok((store, host, port))
}

fn find_by_launcher(launch: &Launch, timeout: Duration, agreed: &str) -> Result<(Store, String, u16)> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let started = Instant::now();
    let agent = Store::reach(&launch.host, launch.port, timeout).map_err(|error| unreachable(launch, &error))?;
    let mut last = Error::device("rank 0 has left no note in the launcher's store");
    while started.elapsed() < timeout {
        if agent.has(NOTE)? {
            let note: Note = serde_json::from_slice(&agent.get(NOTE)?)
                .map_err(|error| Error::device(format!("rank 0 has left no note in the launcher's store: {error}")))?;
            // One that leads nowhere is not worth c10d's words, which are many.
            let store = way::look(&note.host, note.port, false)
                .map_err(|error| {
                    let (rank, host, port) = (launch.rank, &note.host, note.port);
                    Error::device(format!("rank {rank} does not reach the store of rank 0 at {host}:{port}: {error}"))
                })
                .and_then(|()| Store::reach(&note.host, note.port, PATIENCE));
            match store.and_then(|store| sign(store, launch, agreed)) {
                Ok(store) => return Ok((store, note.host, note.port)),
                Err(error) => last = error,
            }
        }
        std::thread::sleep(LOOK);
    }
    Err(last)
}

/// Where rank 0 keeps the store.
#[derive(Serialize, Deserialize)]
struct Note {
    host: String,
    port: u16,
}

/// What a rank says of itself.
#[derive(Serialize, Deserialize)]
struct Here {
    host: String,
    address: Option<IpAddr>,
}

/// The address by which others reach this rank. Where the name in MASTER_ADDR means the machine to itself, as many `/etc/hosts` have it,
/// the way to a rank on another machine tells.
fn reachable_address(store: &Store, size: usize, here: Here, port: u16) -> Result<Option<IpAddr>> {
    if !here.address.is_some_and(|address| address.is_loopback()) {
        return Ok(here.address);
    }
    for rank in 0..size {
        let other: Here = serde_json::from_slice(&store.get(&format!("here-{rank}"))?)
            .map_err(|error| Error::device(format!("rank {rank} says nothing of itself: {error}")))?;
        if let Some(address) = other.address.filter(|address| other.host != here.host && !address.is_loopback()) {
            return Ok(address_towards(&address.to_string(), port));
        }
    }
    Ok(here.address)
}

fn wait_for_all(store: &Store, launch: &Launch, started: Instant, timeout: Duration) -> Result<()> {
    let mut missing: Vec<usize> = (0..launch.size).collect();
    let mut told = started;
    loop {
        let mut still = Vec::new();
        for &rank in &missing {
            // Rank 0, which keeps the store, may give up a moment earlier.
            let has_come = store.has(&format!("here-{rank}")).map_err(|error| {
                let what =
                    format!("{} of {} did not come, and rank 0 has ended ({error})", words(&missing), launch.size);
                Error::device(what).with_hint("look at the logs of those processes")
            })?;
            if !has_come {
                still.push(rank);
            }
        }
        missing = still;
        if missing.is_empty() {
            return Ok(());
        }
        let words = words(&missing);
        if started.elapsed() > timeout {
            return Err(Error::device(format!(
                "{words} of {} did not come within {} s",
                launch.size,
                timeout.as_secs()
            ))
            .with_hint("look at the log of those processes; ranks.timeout_s is how long ranks wait for each other"));
        }
        if told.elapsed() > TELL {
            told = Instant::now();
            tracing::warn!("waiting for {words} of {} since {}", launch.size, super::seconds(started));
        }
        std::thread::sleep(LOOK);
    }
}

/// "rank 3", "ranks 3, 5 and 6", "ranks 3, 4, 5, 6 and 20 others".
pub(super) fn words(ranks: &[usize]) -> String {
    const NAMED: usize = 4;
    let text = |ranks: &[usize]| ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match ranks {
        [one] => format!("rank {one}"),
        [few @ .., last] if ranks.len() <= NAMED => format!("ranks {} and {last}", text(few)),
        _ => format!("ranks {} and {} others", text(&ranks[..NAMED]), ranks.len() - NAMED),
    }
}

/// What the first of all ranks says under `key`: what this one says, if it is the first.
fn first_to_say(store: &Store, key: &str, here: &str) -> Result<String> {
    if store.add(&format!("{key}-said"), 1)? == 1 {
        store.set(key, here.as_bytes())?;
    }
    Ok(String::from_utf8_lossy(&store.get(key)?).into_owned())
}

fn cannot_keep(launch: &Launch, error: &Error) -> Error {
    let place = format!("{}:{}", launch.host, launch.port);
    Error::usage(format!("rank 0 cannot keep the store of the ranks at {place}: {error}")).with_hint(
        "is another run at this port? choose another MASTER_PORT; MASTER_ADDR must be an address of rank 0's machine",
    )
}

fn unreachable(launch: &Launch, error: &dyn Display) -> Error {
    let (rank, place) = (launch.rank, format!("{}:{}", launch.host, launch.port));
    Error::device(format!("rank {rank} does not reach the store of the ranks at {place}: {error}")).with_hint(
        "does rank 0 run, on the machine that MASTER_ADDR names, with the same MASTER_PORT, and does no firewall stand between?",
    )
}

/// The address of this machine on the way to another; none where the way is not known.
fn address_towards(host: &str, port: u16) -> Option<IpAddr> {
    let at: SocketAddr = (host, port).to_socket_addrs().ok()?.next()?;
    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // Nothing is sent: the kernel only chooses the way.
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(at).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The name of this machine, for people.
pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn ranks_are_named_as_far_as_one_can_read_them() {
        assert_eq!(words(&[3]), "rank 3");
        assert_eq!(words(&[3, 5]), "ranks 3 and 5");
        assert_eq!(words(&[3, 5, 6, 9]), "ranks 3, 5, 6 and 9");
        assert_eq!(words(&(0..20).collect::<Vec<_>>()), "ranks 0, 1, 2, 3 and 16 others");
    }
}
