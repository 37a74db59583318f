//! Who may see the page, and who may act.
//!
//! On a loopback address everybody on the machine may look, by a name of that machine: a page of somebody else's, whose name was made to point
//! here, may not. On any other address a token is wanted for everything that tells of the run. To act, the token is wanted always, and the
//! request must come from the page itself.

use axum::http::{HeaderMap, Method, header};
use std::net::{IpAddr, SocketAddr};

/// Least letters of a token that somebody chose.
pub(super) const SHORTEST_TOKEN: usize = 16;

/// What a request is judged by.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    /// Where the page listens.
    pub(super) address: SocketAddr,
    pub(super) token: String,
}

/// Paths that tell nothing of the run: the empty page, and whether it is well.
const OPEN: [&str; 6] = ["/", "/page.css", "/page.js", "/plot.js", "/healthz", "/readyz"];

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The token is missing or another.
    Token,
    /// It does not come from the page itself.
    Origin,
    /// It asks for a host that this is not.
    Host,
}

impl Guard {
    /// Whether only this machine can reach the page.
    pub(super) fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// Whether a request may be answered.
    pub(super) fn judge(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        let is_loopback = self.is_loopback();
        if is_loopback && !text(headers, header::HOST).is_none_or(is_local) {
            return Err(Refusal::Host);
        }
        let acts = method != Method::GET && method != Method::HEAD;
        if acts {
            let host = text(headers, header::HOST).unwrap_or_default();
            let from = text(headers, header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
            if from != Some(host) {
                return Err(Refusal::Origin);
            }
        }
        let needs_token = acts || !(is_loopback || OPEN.contains(&path));
        if needs_token && !self.has_token(headers) {
            return Err(Refusal::Token);
        }
        Ok(())
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let bearer = text(headers, header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let cookies = text(headers, header::COOKIE).unwrap_or_default().split(';');
        // one for each port that the browser has seen a page on
        let cookies = cookies.filter_map(|cookie| cookie.trim().strip_prefix("shoal-token-")?.split_once('='));
        bearer
            .into_iter()
            .chain(cookies.map(|(_, token)| token))
            .any(|given| is_same(given.as_bytes(), self.token.as_bytes()))
    }
}

/// Compares in a time that does not tell where they differ.
fn is_same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |differ, (left, right)| differ | (left ^ right)) == 0
}

/// Whether a host, with its port, is a name of this machine.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn guard(address: &str) -> Guard {
        Guard { address: address.parse().expect("an address"), token: TOKEN.to_owned() }
    }

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().expect("a value"))).collect()
    }

    #[test]
    fn on_loopback_everybody_may_look_by_a_name_of_the_machine() {
        let guard = guard("127.0.0.1:7878");
        for host in ["127.0.0.1:7878", "localhost:7878", "[::1]:7878", "localhost"] {
            assert_eq!(guard.judge(&Method::GET, "/", &headers(&[(header::HOST, host)])), Ok(()), "{host}");
        }
        for host in ["evil.example:7878", "10.0.0.1:7878", "localhost.evil.example"] {
            assert_eq!(guard.judge(&Method::GET, "/", &headers(&[(header::HOST, host)])), Err(Refusal::Host), "{host}");
        }
    }

    #[test]
    fn acting_takes_the_token_and_the_page_itself() {
        let guard = guard("127.0.0.1:7878");
        let judge = |origin: Option<&str>, token: Option<&str>| {
            let mut pairs = vec![(header::HOST, "127.0.0.1:7878")];
            pairs.extend(origin.map(|origin| (header::ORIGIN, origin)));
            pairs.extend(token.map(|token| (header::AUTHORIZATION, token)));
            guard.judge(&Method::POST, "/api/actions/stop", &headers(&pairs))
        };
        let (own, bearer) = (Some("http://127.0.0.1:7878"), Some("Bearer 0123456789abcdef"));
        assert_eq!(judge(own, bearer), Ok(()));
        assert_eq!(judge(own, None), Err(Refusal::Token));
        assert_eq!(judge(own, Some("Bearer 0123456789abcdeX")), Err(Refusal::Token));
        assert_eq!(judge(None, bearer), Err(Refusal::Origin));
        assert_eq!(judge(Some("http://evil.example"), bearer), Err(Refusal::Origin));
    }

    #[test]
    fn elsewhere_nothing_of_the_run_is_seen_without_the_token() {
        let guard = guard("0.0.0.0:7878");
        let host = (header::HOST, "box.example:7878");
        let judge = |path| guard.judge(&Method::GET, path, &headers(std::slice::from_ref(&host)));
        assert_eq!((judge("/healthz"), judge("/")), (Ok(()), Ok(())));
        for path in ["/api/state", "/metrics", "/snapshots/step-000000001/model.safetensors", "/filters.png"] {
            assert_eq!(judge(path), Err(Refusal::Token), "{path}");
        }
        let cookie = (header::COOKIE, "a=b; shoal-token-80=other; shoal-token-7878=0123456789abcdef");
        assert_eq!(guard.judge(&Method::GET, "/metrics", &headers(&[host, cookie])), Ok(()));
    }
}
