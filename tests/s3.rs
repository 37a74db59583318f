//! An object store of the test's own: the part of S3's protocol that reads, and as much of Azure's as differs from it.
//!
//! Objects by range, with ETag and `If-Match`; lists of keys by prefix and delimiter, in small pages with continuation tokens; errors
//! in XML; busy answers; buckets that want a signature. Names are in lower case, since requests are looked at that way.
//! It does not check signatures, only counts requests with and without one.

use crate::server::{Reply, Request, Server};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// A running store.
pub struct Store {
    pub server: Server,
    pub state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub struct State {
    /// By path: `/bucket/key`.
    objects: BTreeMap<String, (Bytes, u32)>,
    /// Keys in one page of a list.
    page: usize,
    /// Whether requests without a signature are refused.
    pub is_private: bool,
    /// So many answers to come say that the store is busy.
    pub busy: usize,
    /// Requests with and without a signature.
    pub signed: usize,
    pub unsigned: usize,
    pub pages: usize,
    /// How long an object is kept back.
    pub delay: Duration,
    /// Objects that were asked for at once, at most.
    pub most_in_flight: usize,
}

impl Store {
    pub async fn start(objects: &[(&str, Bytes)]) -> Self {
        let objects = objects.iter().map(|(path, bytes)| (format!("/{path}"), (bytes.clone(), 1))).collect();
        let state = Arc::new(Mutex::new(State { objects, page: 3, ..State::default() }));
        let shared = Arc::clone(&state);
        let server = Server::with(move |request| shared.lock().unwrap().reply(request)).await;
        Self { server, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// Another version of an object.
    pub fn put(&self, path: &str, bytes: Bytes) {
        let mut state = self.state.lock().unwrap();
        let version = state.objects.get(&format!("/{path}")).map_or(0, |(_, version)| *version);
        state.objects.insert(format!("/{path}"), (bytes, version + 1));
    }

    /// Takes an object away.
    pub fn remove(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(&format!("/{path}"));
    }

    /// Bytes of bodies that were sent.
    pub fn bytes_sent(&self) -> usize {
        self.server.bytes_sent()
    }
}

impl State {
    fn reply(&mut self, request: &Request) -> Reply {
        let is_signed = request.head.contains("\nauthorization:");
        match is_signed {
            true => self.signed += 1,
            false => self.unsigned += 1,
        }
        if self.busy > 0 {
            self.busy -= 1;
            return error(503, "SlowDown").with("retry-after", "0");
        }
        if self.is_private && !is_signed {
            return error(403, "AccessDenied");
        }
        let target = request.head.split(' ').nth(1).unwrap();
        let query: BTreeMap<String, String> = reqwest::Url::parse(&format!("http://host{target}"))
            .unwrap()
            .query_pairs()
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        if query.contains_key("list-type") || query.contains_key("comp") {
            return self.list(request.path.trim_end_matches('/'), &query);
        }
        let Some((object, version)) = self.objects.get(&decoded(&request.path)) else {
            return error(404, "NoSuchKey");
        };
        let tag = format!("\"v{version}\"");
        let wanted = request.head.lines().find_map(|line| line.strip_prefix("if-match: "));
        if wanted.is_some_and(|wanted| wanted != tag) {
            return error(412, "PreconditionFailed");
        }
        self.most_in_flight = self.most_in_flight.max(request.in_flight);
        Reply { delay: self.delay, ..request.honest(object, Some(&tag)).with("last-modified", DATE) }
    }

    fn list(&mut self, bucket: &str, query: &BTreeMap<String, String>) -> Reply {
        self.pages += 1;
        let root = format!("{bucket}/");
        let prefix = query.get("prefix").map_or("", String::as_str);
        let after = query.get("continuation-token").or(query.get("marker")).map_or("", String::as_str);
        let mut names = BTreeSet::new();
        for key in self.objects.keys().filter_map(|path| path.strip_prefix(&root)) {
            let Some(rest) = key.strip_prefix(prefix) else { continue };
            match rest.split_once('/').filter(|_| query.contains_key("delimiter")) {
                Some((folder, _)) => names.insert(format!("{prefix}{folder}/")),
                None => names.insert(key.to_owned()),
            };
        }
        let left: Vec<_> = names.into_iter().filter(|name| name.as_str() > after).collect();
        let shown = &left[..left.len().min(self.page)];
        let next = (left.len() > shown.len()).then(|| shown.last().unwrap().clone());
        let is_folder = |name: &&String| query.contains_key("delimiter") && name.ends_with('/');
        let folder = |name: &String| tag("CommonPrefixes", &tag("Prefix", name));
        let folders: String = shown.iter().filter(is_folder).map(folder).collect();
        let keys = shown.iter().filter(|name| !is_folder(name));
        if query.contains_key("comp") {
            let blob = |name: &String| {
                let properties = tag("Last-Modified", DATE) + &tag("Content-Length", "1") + &tag("Content-Type", "x");
                tag("Blob", &(tag("Name", name) + &tag("Properties", &(properties + &tag("Etag", "x")))))
            };
            let blobs = tag("Blobs", &keys.map(blob).collect::<String>());
            return xml(200, &tag("EnumerationResults", &(blobs + &tag("NextMarker", &next.unwrap_or_default()))));
        }
        let object = |name: &String| {
            let size = self.objects.get(&format!("{root}{name}")).map_or(0, |(bytes, _)| bytes.len()).to_string();
            let about = tag("LastModified", "1994-11-06T08:49:37.000Z") + &tag("ETag", "x") + &tag("Size", &size);
            tag("Contents", &(tag("Key", name) + &about))
        };
        let mut result = tag("IsTruncated", &next.is_some().to_string()) + &keys.map(object).collect::<String>();
        result += &folders;
        if let Some(next) = next {
            result += &tag("NextContinuationToken", &next);
        }
        xml(200, &tag("ListBucketResult", &result))
    }
}

/// A path without percent signs: Google's protocol encodes all but letters and digits.
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let byte = u8::from_str_radix(&part[..2], 16).unwrap();
        text + &char::from(byte).to_string() + &part[2..]
    })
}

fn tag(name: &str, text: &str) -> String {
    format!("<{name}>{text}</{name}>")
}

fn xml(status: u16, text: &str) -> Reply {
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{text}");
    Reply::new(status, body.into_bytes().into()).with("content-type", "application/xml")
}

fn error(status: u16, code: &str) -> Reply {
    xml(status, &tag("Error", &(tag("Code", code) + &tag("Message", "as the test wants it"))))
}
