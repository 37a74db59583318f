//! Files of a run for the page: snapshots to download, the latest lines of the ledger, the pipeline.

use super::answer::Refused;
use super::shared::Shared;
use crate::error::{Error, Result};
use crate::observe::painter::first_filters;
use crate::snapshot;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use image::ImageFormat;
use serde::Serialize;
use serde_json::Value;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path as FilePath;
use std::sync::Arc;
use tokio::io::AsyncReadExt;

/// The folder of a run for pictures that somebody has drawn.
const PICTURES: &str = "pictures";
/// Bytes at the ends of the ledgers of all ranks that are looked at,
const LEDGER_END: u64 = 64 << 10;
/// and of one of them at least.
const LEDGER_LINE: u64 = 1 << 10;
/// Lines of the ledger shown.
const LEDGER_LINES: usize = 30;
/// Bytes of a download that are in memory.
const CHUNK: usize = 64 << 10;

/// A snapshot on disk.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotView {
    name: String,
    bytes: u64,
    files: Vec<FileView>,
}

#[derive(Debug, Serialize)]
struct FileView {
    name: String,
    bytes: u64,
}

/// `/api/snapshots`: the newest first.
pub(super) async fn snapshots(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<SnapshotView>>, Refused> {
    let found = shared.work(|shared| {
        let folders = snapshot::folders(&shared.run)?;
        // one that retention has just taken is no longer there to be listed
        Ok(folders.iter().rev().filter_map(|folder| view(folder).ok()).collect())
    });
    found.await.map(Json)
}

fn view(folder: &FilePath) -> std::io::Result<SnapshotView> {
    let mut files = Vec::new();
    for entry in folder.read_dir()? {
        let entry = entry?;
        files.push(FileView { name: entry.file_name().to_string_lossy().into_owned(), bytes: entry.metadata()?.len() });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(SnapshotView { name, bytes: files.iter().map(|file| file.bytes).sum(), files })
}

/// `/snapshots/NAME/FILE`, a piece at a time.
pub(super) async fn download(
    State(shared): State<Arc<Shared>>,
    Path((name, file)): Path<(String, String)>,
) -> Result<Response, Refused> {
    let missing = || Refused::missing(format!("there is no snapshots/{name}/{file}"));
    // Only what is listed can be had: no name leads out of the folder.
    let folders = snapshot::folders(&shared.run)?;
    let folder =
        folders.iter().find(|folder| folder.file_name().is_some_and(|known| *known == *name)).ok_or_else(missing)?;
    let known = view(folder).map_err(|_| missing())?;
    let bytes = known.files.iter().find(|known| known.name == file).ok_or_else(missing)?.bytes;
    let mut reader = tokio::fs::File::open(folder.join(&file)).await.map_err(|_| missing())?;
    let pieces = async_stream::try_stream! {
        loop {
            let mut piece = vec![0; CHUNK];
            let read = reader.read(&mut piece).await?;
            if read == 0 {
                break;
            }
            piece.truncate(read);
            yield piece;
        }
    };
    let pieces: std::pin::Pin<Box<dyn futures_util::Stream<Item = std::io::Result<Vec<u8>>> + Send>> = Box::pin(pieces);
    let attachment = format!("attachment; filename=\"{name}-{file}\"");
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, bytes.to_string()),
        (header::CONTENT_DISPOSITION, attachment),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// `/filters.png`: the first filters of the newest snapshot.
pub(super) async fn filters(State(shared): State<Arc<Shared>>) -> Result<Response, Refused> {
    let png = shared.work(|shared| {
        let folders = snapshot::folders(&shared.run)?;
        let newest = folders.last().ok_or_else(|| Refused::missing("there is no snapshot yet"))?;
        let name = newest.file_name().unwrap_or_default().to_string_lossy();
        let mut png = Cursor::new(Vec::new());
        let encoded = first_filters(newest, &name)?.write_to(&mut png, ImageFormat::Png);
        encoded.map_err(|error| Refused::defect(&error))?;
        Ok(png.into_inner())
    });
    Ok(([(header::CONTENT_TYPE, "image/png")], png.await?).into_response())
}

/// `/api/pictures`: names of what `shoal show ... --out RUN/pictures/NAME` has drawn.
pub(super) async fn pictures(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<String>>, Refused> {
    shared.work(|shared| Ok(pictures_of(&shared.run))).await.map(Json)
}

fn pictures_of(run: &FilePath) -> Vec<String> {
    let Ok(entries) = run.join(PICTURES).read_dir() else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| picture_kind(name).is_some()).collect();
    names.sort();
    names
}

fn picture_kind(name: &str) -> Option<&'static str> {
    match name.rsplit_once('.')?.1 {
        "png" => Some("image/png"),
        "svg" => Some("image/svg+xml"),
        _ => None,
    }
}

/// `/pictures/NAME`: only what is listed can be had.
pub(super) async fn picture(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<Response, Refused> {
    let found = shared.work(move |shared| {
        let missing = || Refused::missing(format!("there is no {PICTURES}/{name}"));
        let kind = picture_kind(&name).filter(|_| pictures_of(&shared.run).contains(&name)).ok_or_else(missing)?;
        let bytes = std::fs::read(shared.run.join(PICTURES).join(&name)).map_err(|_| missing())?;
        Ok(([(header::CONTENT_TYPE, kind)], bytes))
    });
    Ok(found.await?.into_response())
}

/// `/api/ledger`: the latest losses of all ranks, and shards that did not end well, the newest first.
pub(super) async fn ledger(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<Value>>, Refused> {
    shared.work(|shared| Ok(ledger_end(&shared.run)?)).await.map(Json)
}

fn ledger_end(run: &FilePath) -> Result<Vec<Value>> {
    let pattern = format!("{}/ledger*.jsonl", glob::Pattern::escape(&run.to_string_lossy()));
    let paths: Vec<_> = glob::glob(&pattern).into_iter().flatten().flatten().collect();
    let most = LEDGER_END / paths.len().max(1) as u64;
    let mut lines = Vec::new();
    for path in paths {
        lines.extend(last_lines(&path, most.max(LEDGER_LINE))?);
    }
    lines.sort_by(|one, other| time_of(other).total_cmp(&time_of(one)));
    lines.truncate(LEDGER_LINES);
    Ok(lines)
}

fn time_of(line: &Value) -> f64 {
    line["time"].as_f64().unwrap_or_default()
}

/// What is worth telling of the last `most` bytes of a ledger, the newest first.
fn last_lines(path: &FilePath, most: u64) -> Result<Vec<Value>> {
    let failed = |error: std::io::Error| Error::file("read", path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most))).map_err(failed)?;
    let mut end = Vec::new();
    file.take(most).read_to_end(&mut end).map_err(failed)?;
    // the first line may be half of one, and so may the last
    let lines = end.split(|&byte| byte == b'\n').rev().filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let is_told = |line: &Value| line["kind"] != "shard" || line["verdict"] != "complete";
    Ok(lines.filter(is_told).take(LEDGER_LINES).collect())
}

/// `/pipeline.toml`
pub(super) async fn pipeline(State(shared): State<Arc<Shared>>) -> Result<Response, Refused> {
    let path = shared.run.join("pipeline.toml");
    let text = tokio::fs::read_to_string(&path).await.map_err(|error| Error::file("read", &path, &error))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_ledger_is_its_losses_the_newest_first() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(ledger_end(folder.path())?.is_empty());
        let loss = |offset: usize| {
            format!(
                "{{\"kind\":\"loss\",\"shard\":\"a.tar\",\"offset\":{offset},\"reason\":\"corrupt\",\"time\":{offset}}}\n"
            )
        };
        let whole = "{\"kind\":\"shard\",\"shard\":\"a.tar\",\"verdict\":\"complete\",\"time\":2001}\n";
        let cut = "{\"kind\":\"shard\",\"shard\":\"b.tar\",\"verdict\":\"truncated\",\"time\":2002}\n";
        let losses: String = (0..2_000).map(loss).collect();
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).expect("a ledger");
        write("ledger.jsonl", losses + whole + cut + "{\"kind\":\"lo");
        let found = ledger_end(folder.path())?;
        assert_eq!(found.len(), LEDGER_LINES);
        assert_eq!((&found[0]["shard"], &found[1]["offset"]), (&Value::from("b.tar"), &Value::from(1_999)));
        write("ledger.rank-1.jsonl", loss(1_997) + &loss(5_000));
        let found = ledger_end(folder.path())?;
        assert_eq!(found.len(), LEDGER_LINES);
        let times: Vec<f64> = found.iter().take(6).map(time_of).collect();
        assert_eq!(times, [5_000.0, 2_002.0, 1_999.0, 1_998.0, 1_997.0, 1_997.0]);
        Ok(())
    }
}
