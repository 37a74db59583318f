//! A web server for shards, as good or bad as a test wants it.
//!
//! It speaks HTTP/1.1 with connections that stay open, ranges, `If-Range`, ETags and chunked bodies. What it says to a
//! request is a [`Reply`] that the test makes: an honest one by [`Request::honest`], then spoilt in any way. Tests that
//! need no more give each path a list of [`Answer`]s; the last one is given again and again.

use bytes::Bytes;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How one request is answered.
#[derive(Clone)]
pub enum Answer {
    /// 200 and the body; 206 where a range is asked for.
    Whole(Vec<u8>),
    /// 200 and the body, whatever range is asked for.
    NoRanges(Vec<u8>),
    /// A status without a body.
    Status(u16),
    /// 200 with the whole length, then so many bytes, then the connection closes.
    Cut(Vec<u8>, usize),
    /// 200 with the whole length, then so many bytes, then silence.
    Stall(Vec<u8>, usize),
}

/// What a client asks for.
#[derive(Clone)]
pub struct Request {
    pub path: String,
    /// How many came before it for this path.
    pub number: usize,
    /// First byte, and last where it is named.
    pub range: Option<(usize, Option<usize>)>,
    pub if_range: Option<String>,
    /// All headers, in lower case.
    pub head: String,
    /// Requests that the server is answering, this one among them.
    pub in_flight: usize,
}

/// What the server says.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    /// The length that is told; none for a chunked body.
    pub length: Option<usize>,
    pub body: Bytes,
    /// Before the head.
    pub delay: Duration,
    /// Bytes at a time, with a pause after each.
    pub trickle: Option<(usize, Duration)>,
    pub then: Then,
}

/// After the body.
#[derive(Clone, Copy, PartialEq)]
pub enum Then {
    KeepOpen,
    Close,
    Silence,
}

impl Request {
    /// The bytes asked for, of an object with this ETag; all of them if it is not the version that the client has.
    pub fn honest(&self, object: &Bytes, etag: Option<&str>) -> Reply {
        let mut reply = Reply::new(200, object.clone());
        if let Some(etag) = etag {
            reply.headers.push(("etag", etag.to_owned()));
        }
        let is_other_version = self.if_range.as_deref().is_some_and(|known| Some(known) != etag);
        match self.range {
            Some((first, _)) if first >= object.len() => {
                reply = Reply::status(416);
                reply.headers.push(("content-range", format!("bytes */{}", object.len())));
            }
            Some((first, last)) if !is_other_version => {
                let end = last.map_or(object.len(), |last| object.len().min(last + 1));
                reply.status = 206;
                reply.headers.push(("content-range", format!("bytes {first}-{}/{}", end - 1, object.len())));
                reply.body = object.slice(first..end);
                reply.length = Some(end - first);
            }
            _ => {}
        }
        reply
    }
}

impl Reply {
    pub fn new(status: u16, body: Bytes) -> Self {
        let (headers, length) = (Vec::new(), Some(body.len()));
        Self { status, headers, length, body, delay: Duration::ZERO, trickle: None, then: Then::KeepOpen }
    }

    pub fn status(status: u16) -> Self {
        Self::new(status, Bytes::new())
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(old, _)| *old != name);
        self.headers.push((name, value.into()));
        self
    }

    /// Only so many bytes of what was promised, and `then`.
    pub fn cut(mut self, sent: usize, then: Then) -> Self {
        self.body.truncate(sent);
        self.then = then;
        self
    }

    /// Without a length.
    pub fn chunked(mut self) -> Self {
        self.length = None;
        self
    }
}

/// A running server.
pub struct Server {
    pub address: SocketAddr,
    state: Arc<State>,
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

struct State {
    handler: Box<Handler>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    requests: HashMap<String, usize>,
    in_flight: usize,
    bytes: usize,
}

impl Server {
    pub async fn start(answers: impl IntoIterator<Item = (&str, Vec<Answer>)>) -> Self {
        let answers: HashMap<String, Vec<Answer>> =
            answers.into_iter().map(|(path, answers)| (path.to_owned(), answers)).collect();
        Self::with(move |request| match answers.get(&request.path) {
            None => Reply::status(404),
            Some(answers) => answers[request.number.min(answers.len() - 1)].clone().reply(request),
        })
        .await
    }

    pub async fn with(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), handler).await
    }

    pub async fn at(address: SocketAddr, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { handler: Box::new(handler), counts: Mutex::default() });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                tokio::spawn(serve(socket, Arc::clone(&shared)));
            }
        });
        Self { address, state }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://user:secret@{}{path}?signature=secret", self.address)
    }

    pub fn requests(&self, path: &str) -> usize {
        self.state.counts.lock().unwrap().requests.get(path).copied().unwrap_or(0)
    }

    /// Bytes of bodies that were sent.
    pub fn bytes_sent(&self) -> usize {
        self.state.counts.lock().unwrap().bytes
    }
}

impl Answer {
    fn reply(self, request: &Request) -> Reply {
        match self {
            Self::Status(status) => Reply::status(status),
            Self::Whole(body) => request.honest(&body.into(), None),
            Self::NoRanges(body) => Reply::new(200, body.into()),
            Self::Cut(body, sent) => Reply::new(200, body.into()).cut(sent, Then::Close),
            Self::Stall(body, sent) => Reply::new(200, body.into()).cut(sent, Then::Silence),
        }
    }
}

/// Answers requests until the client leaves or a reply closes the connection.
async fn serve(socket: TcpStream, state: Arc<State>) {
    let mut socket = BufReader::new(socket);
    while let Some(head) = read_head(&mut socket).await {
        let request = state.arrive(&head);
        let reply = (state.handler)(&request);
        let then = reply.then;
        state.counts.lock().unwrap().bytes += reply.body.len();
        let written = reply.write(socket.get_mut()).await;
        if then == Then::Silence {
            // until the client leaves
            let _ = socket.read_u8().await;
        }
        state.counts.lock().unwrap().in_flight -= 1;
        if written.is_err() || then != Then::KeepOpen {
            return;
        }
    }
}

async fn read_head(socket: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

impl State {
    fn arrive(&self, head: &str) -> Request {
        let path = head.split(' ').nth(1).unwrap().split('?').next().unwrap().to_owned();
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let range = header("range").map(|range| {
            let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            (first.parse().unwrap(), last.parse().ok())
        });
        let mut counts = self.counts.lock().unwrap();
        let requests = counts.requests.entry(path.clone()).or_default();
        let number = *requests;
        *requests += 1;
        counts.in_flight += 1;
        let in_flight = counts.in_flight;
        Request { path, number, range, if_range: header("if-range"), head: head.to_lowercase(), in_flight }
    }
}

impl Reply {
    async fn write(self, socket: &mut TcpStream) -> std::io::Result<()> {
        tokio::time::sleep(self.delay).await;
        let mut head = format!("HTTP/1.1 {} x\r\n", self.status);
        match self.length {
            Some(length) => head.push_str(&format!("content-length: {length}\r\n")),
            None => head.push_str("transfer-encoding: chunked\r\n"),
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.then == Then::Close {
            head.push_str("connection: close\r\n");
        }
        head.push_str("\r\n");
        socket.write_all(head.as_bytes()).await?;
        let (step, pause) = self.trickle.unwrap_or((64 * 1024, Duration::ZERO));
        for piece in self.body.chunks(step) {
            if self.length.is_none() {
                socket.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            }
            socket.write_all(piece).await?;
            if self.length.is_none() {
                socket.write_all(b"\r\n").await?;
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        if self.length.is_none() && self.then == Then::KeepOpen {
            socket.write_all(b"0\r\n\r\n").await?;
        }
        Ok(())
    }
}
