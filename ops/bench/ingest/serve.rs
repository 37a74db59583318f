//! A small HTTP/1.1 server for the bench: files of one folder, ranges, keep-alive, a thread a connection.
//!
//! File contents go from the page cache to the socket inside the kernel (`std::io::copy`), so that the server costs little
//! of the cores that are measured; `ops/bench/ingest.py` reports its share.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write, copy};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

/// Serves the files of `folder` until the process is ended.
pub fn serve(folder: &str) -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(folder);
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    println!("http://{}", listener.local_addr()?);
    for connection in listener.incoming() {
        let (folder, connection) = (folder.clone(), connection?);
        std::thread::spawn(move || {
            // A client that has hung up ends its thread only.
            let _ = answer_all(&folder, connection);
        });
    }
    Ok(())
}

fn answer_all(folder: &Path, connection: TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut requests = BufReader::new(connection.try_clone()?);
    let mut answers = connection;
    loop {
        let mut first = String::new();
        if requests.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut range = None;
        loop {
            let mut line = String::new();
            requests.read_line(&mut line)?;
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("range")
            {
                range = value.trim().strip_prefix("bytes=").and_then(parse_range);
            }
        }
        let mut words = first.split_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
        let name = Path::new(path).file_name().unwrap_or_default();
        let Ok(mut file) = File::open(folder.join(name)) else {
            answers.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let length = file.metadata()?.len();
        let (from, to) = range.unwrap_or((0, u64::MAX));
        let end = to.saturating_add(1).min(length);
        let status = match range {
            Some(_) if from >= end => {
                write!(
                    answers,
                    "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{length}\r\nContent-Length: 0\r\n\r\n"
                )?;
                continue;
            }
            Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{length}", end - 1),
            None => "200 OK".to_owned(),
        };
        let count = end - from;
        write!(
            answers,
            "HTTP/1.1 {status}\r\nContent-Length: {count}\r\nAccept-Ranges: bytes\r\nETag: \"{length:x}\"\r\nContent-Type: application/x-tar\r\n\r\n"
        )?;
        if method != "HEAD" {
            file.seek(SeekFrom::Start(from))?;
            copy(&mut file.take(count), &mut answers)?;
        }
    }
}

/// `a-b` or `a-`, first and last byte.
fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (from, to) = text.split_once('-')?;
    let to = if to.is_empty() { u64::MAX } else { to.parse().ok()? };
    Some((from.parse().ok()?, to))
}
