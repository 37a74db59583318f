//! The live page of a run, and the numbers that monitoring asks for.
//!
//! In: the folder of a run, whose files say what has happened, and of a run under way what [`Live`] shows. Out: a web page, JSON for it,
//! `/metrics`, `/healthz` and `/readyz`, on an address of its own, in a thread of its own and of low priority: the trainer never waits
//! for a client, and what it records is read from disk. What can go wrong: the address is taken, a token that is too short.

mod album;
mod answer;
mod clusters;
mod files;
mod guard;
mod routes;
mod server;
mod shared;
mod stages;
mod state;
mod tail;

use super::{Live, Meters, Photographs, run_calmly};
use crate::config::Plan;
use crate::error::{Error, Result};
use guard::{Guard, SHORTEST_TOKEN};
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use tokio::sync::oneshot;

/// Where the operator's own token is.
pub const TOKEN_VARIABLE: &str = "SHOAL_PAGE_TOKEN";

/// A run under way, as its page sees it.
#[derive(Debug)]
pub struct UnderWay {
    /// What it shows.
    pub live: Arc<Live>,
    /// Its numbers.
    pub meters: Arc<Meters>,
}

/// What a page is made of.
pub struct Opening {
    /// The folder of the run.
    pub run: PathBuf,
    /// Its plan.
    pub plan: Plan,
    /// What it is doing; none where it is not under way in this process.
    pub under_way: Option<UnderWay>,
    /// The way to its photographs.
    pub photographs: Arc<dyn Photographs>,
}

/// A page that is served until this is dropped.
#[derive(Debug)]
pub struct Page {
    /// Where it is, with the token that was drawn for it.
    pub url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Page {
    /// Serves the page on `address`, e.g. `127.0.0.1:7878`. The token is that of [`TOKEN_VARIABLE`], or drawn by chance.
    ///
    /// # Errors
    /// The address cannot be had; it is not loopback and there is no token; the token is too short.
    pub fn open(address: &str, opening: Opening) -> Result<Self> {
        let wanted = parse_address(address)?;
        let chosen = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
        check_token(wanted, chosen.as_deref())?;
        let listener = TcpListener::bind(wanted).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let taken = |error: std::io::Error| {
            Error::usage(format!("the page cannot be served on {address}: {error}"))
                .with_hint("--set observe.page=127.0.0.1:0 takes any free port, observe.page= is no page")
        };
        let listener = listener.map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        // A token that the operator chose is known, and need not stand in logs.
        let (url, token) = match chosen {
            Some(token) => (format!("http://{address}/"), token),
            None => {
                let token = draw_token()?;
                (format!("http://{address}/#token={token}"), token)
            }
        };
        let guard = Guard { address, token };
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            run_calmly();
            server::serve(listener, guard, opening, stopped);
        };
        let thread = Builder::new().name("page".into()).spawn(serve);
        let thread = thread.map_err(|error| Error::device(format!("cannot start a thread for the page: {error}")))?;
        Ok(Self { url, stop: Some(stop), thread: Some(thread) })
    }

    /// Whether it is still served: only a defect ends it.
    pub fn is_served(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been told already; the run does not depend on it
        }
    }
}

/// An address of numbers with a port.
///
/// # Errors
/// It is none.
pub fn parse_address(address: &str) -> Result<SocketAddr> {
    address.parse().map_err(|_| {
        Error::usage(format!("{address:?} is no address to serve a page on"))
            .with_hint("127.0.0.1:7878 is this machine only, 0.0.0.0:7878 every network it is in, port 0 any free port")
    })
}

fn check_token(address: SocketAddr, token: Option<&str>) -> Result<()> {
    let fits = |token: &str| {
        token.len() >= SHORTEST_TOKEN
            && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    };
    match token {
        Some(token) if !fits(token) => Err(Error::usage(format!(
            "{TOKEN_VARIABLE} is no good token: it needs {SHORTEST_TOKEN} letters, digits or any of -._~"
        ))
        .with_hint("openssl rand -hex 16")),
        None if !address.ip().is_loopback() => Err(Error::usage(format!(
            "{address} can be reached from elsewhere: such a page needs a token in {TOKEN_VARIABLE}"
        ))
        .with_hint("SHOAL_PAGE_TOKEN=$(openssl rand -hex 16), or 127.0.0.1 and a tunnel: ssh -L 7878:127.0.0.1:7878")),
        _ => Ok(()),
    }
}

/// 128 bits by chance, in hexadecimal.
fn draw_token() -> Result<String> {
    let mut bytes = [0; 16];
    let drawn = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    drawn.map_err(|error| Error::device(format!("no token can be drawn: {error}")).with_hint(TOKEN_VARIABLE))?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes everything
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_others_reach_needs_a_token() {
        let check = |address: &str, token| check_token(parse_address(address).expect("an address"), token);
        assert!(check("127.0.0.1:0", None).is_ok() && check("[::1]:0", None).is_ok());
        let refused = check("0.0.0.0:7878", None).expect_err("no token");
        assert!(refused.to_string().contains(TOKEN_VARIABLE) && refused.exit_code() == 2, "{refused}");
        assert!(check("0.0.0.0:7878", Some("0123456789abcdef")).is_ok());
        for bad in ["0123456789abcde", "0123456789 abcdef", "0123456789abc;def=", "abcdefghijklmno+=="] {
            assert!(check("127.0.0.1:0", Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_no_address_and_tokens_differ() -> Result<()> {
        for bad in ["localhost:7878", "127.0.0.1", "7878"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
        let (one, other) = (draw_token()?, draw_token()?);
        assert_eq!((one.len(), one == other), (32, false));
        Ok(())
    }
}
