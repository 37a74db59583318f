//! A shard on a web server.
//!
//! In: an `http(s)://` address and a range of bytes. Out: the head of the answer, checked against what was asked for, and
//! its body. A status, a `Content-Range` or a length that does not fit is a [`Refusal`]: final where the server says that
//! it will stay so (401, 403, 404, 410, 412), passing where it may not (408, 429, 5xx, a wrong range, no connection at
//! all). No message holds the URL, and a redirect does not tell it to another host.

use super::super::reason::{Reason, Trouble};
use super::remote::{Answer, Refusal, Remote};
use crate::error::{Error, Result};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A client for all shards.
pub(super) fn client(patience: Duration) -> Result<reqwest::Client> {
    super::provide_tls();
    reqwest::Client::builder()
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(patience)
        // With HTTP/2 all shards of a host share one window: those that wait for their turn would starve the others.
        .http1_only()
        // The address that redirects may be a signed one.
        .referer(false)
        .build()
        .map_err(|error| {
            Error::data(format!("cannot set up HTTP: {}", causes(error)))
                .with_hint("are the system's certificates installed (package ca-certificates)?")
        })
}

/// One object on a web server.
pub(super) struct HttpShard {
    client: reqwest::Client,
    url: Url,
    host: String,
}

impl std::fmt::Debug for HttpShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HttpShard({})", self.host)
    }
}

impl HttpShard {
    /// The object at this address.
    pub(super) fn new(client: reqwest::Client, address: &str) -> Result<Self, Trouble> {
        let url =
            Url::parse(address).map_err(|error| Trouble::new(Reason::Unreachable, format!("no valid URL: {error}")))?;
        let host =
            format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
        Ok(Self { client, url, host })
    }
}

impl Remote for HttpShard {
    fn get(&self, from: u64, to: Option<u64>, tag: Option<&str>) -> BoxFuture<'_, Result<Answer, Refusal>> {
        let range = match to {
            Some(to) => format!("bytes={from}-{}", to.saturating_sub(1)),
            None => format!("bytes={from}-"),
        };
        let mut request = self.client.get(self.url.clone()).header(RANGE, range);
        // Dates and weak tags may be the same for different bytes: with these the answer's tag is all that is compared.
        if let Some(tag) = tag.filter(|tag| tag.starts_with('"')) {
            request = request.header(IF_RANGE, tag);
        }
        Box::pin(async move {
            let response = request.send().await.map_err(no_answer)?;
            answer(response, from, to)
        })
    }

    fn host(&self) -> &str {
        &self.host
    }
}

fn answer(response: Response, from: u64, to: Option<u64>) -> Result<Answer, Refusal> {
    let status = response.status();
    let headers = response.headers();
    let body_length = response.content_length();
    let (begins, length) = match status {
        StatusCode::PARTIAL_CONTENT => {
            let length = ContentRange::of(headers).and_then(|range| range.checked(from, to, body_length));
            let length = length.map_err(|detail| Refusal::Passing(Trouble::new(Reason::HttpStatus, detail), None))?;
            (from, Some(length))
        }
        StatusCode::OK => (0, body_length),
        // an empty object has no byte that a range could begin at
        StatusCode::RANGE_NOT_SATISFIABLE if from == 0 => (0, Some(0)),
        _ => return Err(refusal(status, headers)),
    };
    let tag = text(headers, &ETAG).or_else(|| text(headers, &LAST_MODIFIED)).map(str::to_owned);
    let ranges = status != StatusCode::OK;
    let body = match status {
        StatusCode::RANGE_NOT_SATISFIABLE => futures_util::stream::empty().boxed(),
        _ => response.bytes_stream().map_err(causes).boxed(),
    };
    Ok(Answer { from: begins, length, tag, ranges, body })
}

/// What it means that no answer came.
fn no_answer(error: reqwest::Error) -> Refusal {
    match error.is_redirect() {
        true => Refusal::Final(Trouble::new(Reason::HttpStatus, causes(error))),
        false => Refusal::Passing(Trouble::new(Reason::Unreachable, causes(error)), None),
    }
}

/// What a status other than success means.
pub(super) fn refusal(status: StatusCode, headers: &HeaderMap) -> Refusal {
    let trouble = |reason| Trouble::new(reason, format!("HTTP status {status}"));
    match status.as_u16() {
        404 | 410 => Refusal::Final(trouble(Reason::NotFound)),
        401 | 403 => Refusal::Final(Trouble::new(
            Reason::Forbidden,
            format!("HTTP status {status}: the credentials or the signature of the URL may be wrong or have expired"),
        )),
        412 => Refusal::Final(Trouble::new(Reason::ShardChanged, "the server has another version now")),
        416 => Refusal::Final(Trouble::new(Reason::ShardChanged, "shorter than it was")),
        408 | 425 | 429 | 500..=599 => Refusal::Passing(trouble(Reason::HttpStatus), asked_pause(headers)),
        _ => Refusal::Final(trouble(Reason::HttpStatus)),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `Content-Range: bytes FIRST-LAST/LENGTH`.
struct ContentRange {
    first: u64,
    last: u64,
    length: u64,
}

impl ContentRange {
    fn of(headers: &HeaderMap) -> Result<Self, String> {
        let value = text(headers, &CONTENT_RANGE).unwrap_or_default();
        Self::parse(value).ok_or_else(|| {
            let shown: String = value.chars().take(60).collect();
            format!("the server sent a part of the shard as \"{shown}\", which does not say what part")
        })
    }

    fn parse(value: &str) -> Option<Self> {
        let (range, length) = value.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let range = Self { first: number(first)?, last: number(last)?, length: number(length)? };
        (range.first <= range.last && range.last < range.length).then_some(range)
    }

    /// Length of the whole object, if this is the beginning of what was asked for, and the body is as long as it says. A server may
    /// send less than was asked for: the rest is asked for after it.
    fn checked(&self, from: u64, to: Option<u64>, body_length: Option<u64>) -> Result<u64, String> {
        let Self { first, last, length } = *self;
        if first != from || to.is_some_and(|to| last >= to) {
            let asked = to.map_or_else(|| format!("{from}-"), |to| format!("{from}-{}", to - 1));
            return Err(format!("asked for bytes {asked}, the server sent {first}-{last}"));
        }
        if let Some(body_length) = body_length.filter(|&body_length| body_length != last - first + 1) {
            return Err(format!("the server sent {body_length} bytes as bytes {first}-{last}"));
        }
        Ok(length)
    }
}

/// The pause that a busy server asks for, as seconds or as a date.
fn asked_pause(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, &RETRY_AFTER)?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(Duration::from_secs(http_date(value)?).saturating_sub(now))
}

/// Seconds since 1970 of a date such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn http_date(value: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = value.strip_suffix(" GMT")?.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|&month| month == name)? as u64;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    // years and months from March on, so that the leap day is the last of a year
    let (years, months) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let days_to_month = (153 * months + 2) / 5;
    let days_to_year = 365 * years + years / 4 - years / 100 + years / 400;
    let days_to_1970 = 719_468;
    let days = (days_to_year + days_to_month + day - 1).checked_sub(days_to_1970)?;
    Some(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
}

/// What lies behind an error of the HTTP client, without the URL.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_seconds() {
        // from `date -u -d '...' +%s`
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Tue, 29 Feb 2028 23:59:59 GMT"), Some(1_835_481_599));
        assert_eq!(http_date("Wed, 01 Mar 2000 00:00:00 GMT"), Some(951_868_800));
        for wrong in
            ["", "soon", "Sun, 06 Nov 1994 08:49 GMT", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 06 Nov 94 1:2:3 GMT"]
        {
            assert_eq!(http_date(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ranges_are_believed_only_where_they_fit() {
        let checked = |value: &str, body_length| ContentRange::parse(value)?.checked(10, Some(20), body_length).ok();
        assert_eq!(checked("bytes 10-19/100", Some(10)), Some(100));
        assert_eq!(checked("bytes 10-19/100", None), Some(100));
        assert_eq!(checked("bytes 10-14/15", Some(5)), Some(15), "less than asked for");
        for wrong in ["bytes 11-19/100", "bytes 10-20/100", "bytes 0-19/100", "bytes 10-19/15", "bytes 19-10/100"] {
            assert_eq!(checked(wrong, None), None, "{wrong}");
        }
        for wrong in ["", "bytes */100", "bytes 10-19/*", "10-19/100", "items 10-19/100"] {
            assert_eq!(checked(wrong, None), None, "{wrong}");
        }
        assert_eq!(checked("bytes 10-19/100", Some(9)), None);
        assert_eq!(checked("bytes 10-19/100", Some(11)), None);
    }
}
