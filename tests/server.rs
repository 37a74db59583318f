//! A web server for shards, as good or bad as a test wants it.
//!
//! Each path has a list of answers; the last one is given again and again. Requests are counted by path.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

/// A running server.
pub struct Server {
    address: std::net::SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Vec<Answer>>,
    requests: HashMap<String, usize>,
}

impl Server {
    pub async fn start(answers: impl IntoIterator<Item = (&str, Vec<Answer>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = answers.into_iter().map(|(path, answers)| (path.to_owned(), answers)).collect();
        let state = Arc::new(Mutex::new(State { answers, requests: HashMap::new() }));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&shared)));
            }
        });
        Self { address, state }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://user:secret@{}{path}?signature=secret", self.address)
    }

    pub fn requests(&self, path: &str) -> usize {
        self.state.lock().unwrap().requests.get(path).copied().unwrap_or(0)
    }
}

/// Answers one request, then closes the connection. A client that leaves early is no failure.
async fn serve(mut socket: TcpStream, state: Arc<Mutex<State>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = socket.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let target = head.split(' ').nth(1).unwrap();
    let path = target.split('?').next().unwrap().to_owned();
    let from =
        head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let answer = {
        let mut state = state.lock().unwrap();
        *state.requests.entry(path.clone()).or_default() += 1;
        match state.answers.get_mut(&path) {
            None => Answer::Status(404),
            Some(answers) if answers.len() > 1 => answers.remove(0),
            Some(answers) => answers[0].clone(),
        }
    };
    let (status, body, sent) = match answer {
        Answer::Status(status) => (status, Vec::new(), 0),
        Answer::Whole(body) => match from {
            Some(from) => {
                let rest = body[from..].to_vec();
                let range = format!("content-range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
                let _ = socket.write_all(head_of(206, rest.len(), &range).as_bytes()).await;
                let _ = socket.write_all(&rest).await;
                return;
            }
            None => (200, body.clone(), body.len()),
        },
        Answer::NoRanges(body) => (200, body.clone(), body.len()),
        Answer::Cut(body, sent) | Answer::Stall(body, sent) if sent > body.len() => {
            panic!("{sent} bytes of {}", body.len())
        }
        Answer::Cut(body, sent) => (200, body, sent),
        Answer::Stall(body, sent) => {
            let _ = socket.write_all(head_of(200, body.len(), "").as_bytes()).await;
            let _ = socket.write_all(&body[..sent]).await;
            // silence until the client leaves
            let _ = socket.read_u8().await;
            return;
        }
    };
    let _ = socket.write_all(head_of(status, body.len(), "").as_bytes()).await;
    let _ = socket.write_all(&body[..sent]).await;
}

fn head_of(status: u16, length: usize, more: &str) -> String {
    format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n{more}connection: close\r\n\r\n")
}
