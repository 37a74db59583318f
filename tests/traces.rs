//! Traces for a collector of OpenTelemetry: what arrives, and that a collector that is away costs nothing but them.

use crate::commands::text;
use crate::run::{binary, root, small_pipeline};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

/// Takes what is sent to it; the bodies of requests for traces.
fn collector() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let (give, bodies) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let give = give.clone();
            std::thread::spawn(move || take_requests(stream.expect("a connection"), |body| _ = give.send(body)));
        }
    });
    (address, bodies)
}

fn take_requests(mut stream: std::net::TcpStream, mut give: impl FnMut(Value)) {
    let mut reader = BufReader::new(stream.try_clone().expect("another handle"));
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        assert!(first.starts_with("POST /v1/traces "), "{first}");
        give(serde_json::from_slice(&body).expect("JSON"));
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}")
            .expect("an answer");
    }
}

fn pretrain(folder: &Path, endpoint: &str) {
    let run = Command::new(binary())
        .current_dir(root())
        .args(["pretrain", "--no-bar", text(&small_pipeline(folder)), "--run", text(&folder.join("run"))])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_SERVICE_NAME", "shoal-of-a-test")
        .output()
        .expect("the program starts");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(crate::run::records(&folder.join("run"), "step").len(), 48);
}

#[test]
fn steps_clusterings_snapshots_and_shards_arrive_at_a_collector() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (address, bodies) = collector();
    pretrain(folder.path(), &address);
    let bodies: Vec<Value> = bodies.try_iter().collect();
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let resources: Vec<Value> = bodies.iter().flat_map(|body| list(body, "resourceSpans")).collect();
    assert!(resources.iter().all(|of| of["resource"].to_string().contains("shoal-of-a-test")));
    let scopes = resources.iter().flat_map(|of| list(of, "scopeSpans"));
    let spans: Vec<Value> = scopes.flat_map(|scope| list(&scope, "spans")).collect();
    let by_id: BTreeMap<&str, &str> =
        spans.iter().filter_map(|span| Some((span["spanId"].as_str()?, span["name"].as_str()?))).collect();
    let nested: BTreeSet<(&str, &str)> = spans
        .iter()
        .filter_map(|span| {
            let parent = span["parentSpanId"].as_str().unwrap_or_default();
            Some((by_id.get(parent).copied().unwrap_or("-"), span["name"].as_str()?))
        })
        .collect();
    for pair in [
        ("-", "train"),
        ("-", "wait"),
        ("-", "cycle"),
        ("cycle", "encode"),
        ("cycle", "cluster"),
        ("snapshot", "write"),
        ("-", "shard"),
    ] {
        assert!(nested.contains(&pair), "{pair:?} is not in {nested:?}");
    }
    let trained = spans.iter().filter(|span| span["name"] == "train").count();
    assert_eq!(trained, 48, "a span for each step");
}

#[test]
fn a_collector_that_is_away_costs_only_its_traces() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    pretrain(folder.path(), &format!("http://{nobody}"));
}
