//! The way to the machine of rank 0: its name may not be known yet, as that of a pod that has just been made, and it may come late.
//!
//! c10d would wait without a word. What can go wrong: the name stays unknown, or nobody listens there.

use super::Launch;
use super::roll::{LOOK, TELL};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Between two looks, once there have been some.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a machine may take to answer before it is asked again.
const ANSWER: Duration = Duration::from_secs(2);

/// Waits until the place where ranks meet has an address, and, unless it is this rank who opens it, until it is open.
///
/// # Errors
/// It was not in `timeout`; why not.
pub(super) fn await_store(launch: &Launch, timeout: Duration) -> io::Result<()> {
    let started = Instant::now();
    let (mut told, mut pause) = (started, LOOK);
    loop {
        let Err(why) = look(&launch.host, launch.port, launch.opens_store()) else { return Ok(()) };
        if started.elapsed() > timeout {
            return Err(why);
        }
        if told.elapsed() > TELL {
            told = Instant::now();
            let (rank, host, port) = (launch.rank, &launch.host, launch.port);
            tracing::warn!("rank {rank} has waited for {host}:{port} since {}: {why}", super::seconds(started));
        }
        // A thousand ranks must not hold up the one that they wait for.
        std::thread::sleep(pause);
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Whether a place has an address, and, unless this rank is to open it, is open.
pub(super) fn look(host: &str, port: u16, is_opened_here: bool) -> io::Result<()> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        if is_opened_here {
            return Ok(());
        }
        match TcpStream::connect_timeout(&address, ANSWER) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn who_opens_the_place_needs_its_address_and_the_others_need_it_open() -> io::Result<()> {
        let socket = TcpListener::bind("127.0.0.1:0")?;
        let port = socket.local_addr()?.port();
        look("127.0.0.1", port, false)?;
        drop(socket);
        assert_eq!(look("127.0.0.1", port, false).map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionRefused));
        look("127.0.0.1", port, true)?;
        // reserved for names that there are not (RFC 2606)
        assert!(look("rank-0.invalid", port, true).is_err());
        Ok(())
    }
}
