//! The shards of a run: specs in, addresses out.
//!
//! A spec is a path, a URL (`http(s)://`, `s3://`, `gs://`, `az://`), a glob, a folder or a prefix of a store that ends with `/` (every
//! archive within), `images:FOLDER` or `images:PREFIX` (`images.rs`), the same with `classes:`, `pipe:COMMAND`, or `@list.txt` with one spec a line, from a file or a server;
//! braces multiply it and `::` joins several. A relative path in a list is looked for in the current directory first, then beside the list. Duplicates are removed and
//! counted; shards that cannot be told apart are refused. What does not exist at all is refused here, with the way out; where some of a
//! brace range is missing, the missing shards stay in the list, so that the ledger counts them. Reading a list may ask the network, and blocks while it does.

use super::expand::{expand_braces, expand_command, split_joined};
use super::images::{Folders, collect_images, collect_stored, is_closed};
use super::source::{Lookup, SCHEMES};
use super::url::{CLASSES, IMAGES, ShardUrl};
use crate::config::FetchPlan;
use crate::error::{Error, Result};
use crate::secrets::{PIPE, shown, was_stored};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Lists that name lists that name lists...: a circle.
const DEEPEST: usize = 8;
const ARCHIVES: [&str; 6] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".zip"];
const SPEC_HINT: &str = "a spec is a path, a glob, a folder, a URL (http, https, s3, gs, az), images:FOLDER, classes:FOLDER, pipe:COMMAND or @list.txt";
const WILD: [char; 3] = ['*', '?', '['];

/// The shards of a run, in the order of their specs.
#[derive(Clone, Debug)]
pub struct ShardList {
    /// Every shard once.
    pub shards: Vec<ShardUrl>,
    /// How many more times shards were named.
    pub duplicates: usize,
    specs: Specs,
    fetch: FetchPlan,
}

/// Specs as they were given, with their secrets.
#[derive(Clone)]
struct Specs(Vec<String>);

impl std::fmt::Debug for Specs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|spec| shown(spec))).finish()
    }
}

impl ShardList {
    /// As [`ShardList::parse_with`], where no pipeline says how the network is to be used.
    ///
    /// # Errors
    /// As [`ShardList::parse_with`].
    pub fn parse(specs: &[String]) -> Result<Self> {
        Self::parse_with(specs, &FetchPlan::default())
    }

    /// Reads specs, and the lists, folders and stores that they name. Blocks while the network is asked.
    ///
    /// # Errors
    /// Malformed specs; paths, globs, folders and prefixes with nothing there; unreadable lists; an empty list.
    pub fn parse_with(specs: &[String], fetch: &FetchPlan) -> Result<Self> {
        let mut collector = Collector { found: Vec::new(), lookup: Lookup::new(fetch) };
        for spec in specs {
            collector.spec(spec, Beside::Nothing, 0)?;
        }
        let mut found = collector.found;
        let named = found.len();
        let mut seen: HashMap<Arc<str>, usize> = HashMap::new();
        for (at, shard) in found.iter().enumerate() {
            let first = *seen.entry(Arc::clone(shard.name())).or_insert(at);
            if !found[first].is_same(shard) {
                let what = format!("two shards cannot be told apart: secrets left out, both are called \"{shard}\"");
                return Err(Error::usage(what).with_hint(
                    "name a folder once; add to a URL a parameter that its server ignores, as in &n=2, \
                     and to a command a comment, as in # 2",
                ));
            }
        }
        found.retain(|shard| seen.remove(shard.name()).is_some());
        if found.is_empty() {
            return Err(Error::usage("the list of shards is empty").with_hint(SPEC_HINT));
        }
        let duplicates = named - found.len();
        Ok(Self { duplicates, shards: found, specs: Specs(specs.to_vec()), fetch: fetch.clone() })
    }

    /// The same specs, read again: a list that grew has new shards at its end. Blocks as [`ShardList::parse_with`].
    ///
    /// # Errors
    /// As [`ShardList::parse_with`].
    pub fn reload(&self) -> Result<Self> {
        Self::parse_with(&self.specs.0, &self.fetch)
    }

    /// A list for each of the specs, read again. Blocks as [`ShardList::parse_with`].
    ///
    /// # Errors
    /// As [`ShardList::parse_with`].
    pub fn by_spec(&self) -> Result<Vec<Self>> {
        self.specs.0.iter().map(|spec| Self::parse_with(std::slice::from_ref(spec), &self.fetch)).collect()
    }

    /// Changes when a shard comes, goes or moves.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.shards.iter().map(|shard| &**shard.name()))
    }
}

/// A hash over names, in order, as 16 hexadecimal digits.
pub(crate) fn fingerprint<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for name in names {
        hash.update(name.as_bytes());
        hash.update(b"\n");
    }
    format!("{:016x}", hash.digest())
}

/// Where the list is that a spec stands in.
#[derive(Clone, Copy)]
enum Beside<'a> {
    /// On the command line, or in a pipeline file.
    Nothing,
    Folder(&'a Path),
    /// A list from the network: its address up to the last `/`.
    Url(&'a str),
}

impl Beside<'_> {
    /// A relative spec of a list from the network is beside it.
    fn place(self, item: &str) -> String {
        match self {
            Self::Url(base) if !item.contains("://") && !item.starts_with('/') => format!("{base}{item}"),
            _ => item.to_owned(),
        }
    }

    fn folder(self) -> Option<PathBuf> {
        match self {
            Self::Folder(folder) => Some(folder.to_owned()),
            Self::Nothing | Self::Url(_) => None,
        }
    }
}

/// The shards so far.
struct Collector<'a> {
    found: Vec<ShardUrl>,
    lookup: Lookup<'a>,
}

impl Collector<'_> {
    /// Adds what a spec stands for.
    fn spec(&mut self, spec: &str, beside: Beside<'_>, depth: usize) -> Result<()> {
        for part in split_joined(spec) {
            let part = part.trim();
            if part.is_empty() {
                return Err(bad(spec, "empty").with_hint(SPEC_HINT));
            }
            if was_stored(part) {
                return Err(bad(part, "was stored without its credentials")
                    .with_hint("name the shards as the pipeline file does that the run was begun with: it has them"));
            }
            if let Some(list) = part.strip_prefix('@') {
                self.list(&beside.place(list), beside, depth)?;
            } else if let Some(command) = part.strip_prefix(PIPE) {
                self.command(command.trim(), beside)?;
            } else {
                self.items(part, beside)?;
            }
        }
        Ok(())
    }

    /// Adds what the braces of a spec stand for.
    fn items(&mut self, part: &str, beside: Beside<'_>) -> Result<()> {
        let items = expand_braces(part)?;
        let mut present = 0;
        for item in &items {
            if self.item(&beside.place(item), beside)? {
                present += 1;
            } else if !item.contains(WILD) && !is_remote(&beside.place(item)) {
                // missing, and the ledger will say so; a pattern that matches nothing names no shard
                self.found.push(ShardUrl::local(beside.folder().unwrap_or_default().join(item)));
            }
        }
        if present > 0 {
            return Ok(());
        }
        let what = if items.len() == 1 { "there is nothing" } else { "none of its shards exists" };
        let hint = match is_remote(part) {
            true if part.starts_with(IMAGES) || part.starts_with(CLASSES) => {
                "check the bucket and the prefix, which is that of a folder".into()
            }
            true => {
                "check the bucket and the prefix; below a prefix only archives count (.tar, .tar.gz, .tar.zst, .zip)"
                    .into()
            }
            false => {
                let here = std::env::current_dir().unwrap_or_default();
                format!("check the path; relative ones start at {}", here.display())
            }
        };
        Err(Error::data(format!("shard spec \"{}\": {what}", shown(part))).with_hint(hint))
    }

    /// Adds what one brace-free spec stands for; false if nothing is there.
    fn item(&mut self, item: &str, beside: Beside<'_>) -> Result<bool> {
        if item.starts_with("http://") || item.starts_with("https://") {
            if reqwest::Url::parse(item).is_err() {
                return Err(bad(item, "not a URL"));
            }
            self.found.push(ShardUrl::remote(item));
            return Ok(true);
        }
        if SCHEMES.iter().any(|scheme| item.starts_with(scheme)) {
            return self.stored(item);
        }
        let of_images = item.strip_prefix(IMAGES).map(|folder| (folder, Folders::Parts));
        let of_classes = || item.strip_prefix(CLASSES).map(|folder| (folder, Folders::Classes));
        if let Some((folder, folders)) = of_images.or_else(of_classes) {
            if SCHEMES.iter().any(|scheme| folder.starts_with(scheme)) {
                bucket_of(folder)?;
                return collect_stored(folder, folders, &mut self.lookup, &mut self.found);
            }
            if folder.contains("://") {
                return Err(bad(item, "neither a folder nor a prefix of a store")
                    .with_hint("images: and classes: read local folders and s3://, gs://, az:// prefixes"));
            }
            return collect_images(folder, folders, &bases(folder, beside), &mut self.found);
        }
        let path = item.strip_prefix("file://").unwrap_or(item);
        if let Some((scheme, _)) = path.split_once("://") {
            return Err(bad(item, &format!("{scheme}:// is not read"))
                .with_hint("use the store's https:// address, mount it, or read it with pipe:COMMAND"));
        }
        for base in bases(path, beside) {
            let candidate = base.join(path);
            let Ok(metadata) = std::fs::metadata(&candidate) else {
                if path.contains(WILD) && collect_glob(&candidate, &mut self.found)? {
                    return Ok(true);
                }
                continue;
            };
            if metadata.is_dir() {
                return collect_folder(&candidate, &mut self.found);
            }
            if candidate.extension().is_some_and(|extension| extension == "txt") {
                return Err(
                    bad(item, "a text file is no shard").with_hint(format!("if it is a list of shards, write @{item}"))
                );
            }
            self.found.push(ShardUrl::local(candidate));
            return Ok(true);
        }
        Ok(false)
    }

    /// Adds an object of a store, or those that a glob or a prefix stands for.
    fn stored(&mut self, item: &str) -> Result<bool> {
        let key = bucket_of(item)?;
        if key.split_once('?').is_some_and(|(_, query)| query.contains('=')) {
            return Err(bad(item, "a store's address has no query").with_hint("a signed URL begins with https://"));
        }
        let root = item.len() - key.len();
        let fixed = key.find(WILD).unwrap_or(key.len());
        if fixed == key.len() && !key.is_empty() && !key.ends_with('/') {
            self.found.push(ShardUrl::stored(item));
            return Ok(true);
        }
        let is_flat = fixed < key.len() && !key[fixed..].contains('/') && !key[fixed..].contains("**");
        let pattern =
            glob::Pattern::new(key).map_err(|error| bad(item, error.msg).with_hint("* and ? and [abc] are wild"))?;
        let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::default() };
        let before = self.found.len();
        for found in self.lookup.keys(&item[..root + fixed], is_flat)? {
            let is_meant = match fixed == key.len() {
                true => is_archive(found.rsplit('/').next().unwrap_or_default()),
                false => !found.ends_with('/') && pattern.matches_with(&found, options),
            };
            if is_meant {
                let separator = if root == item.len() && !item.ends_with('/') { "/" } else { "" };
                self.found.push(ShardUrl::stored(&format!("{}{separator}{found}", &item[..root])));
            }
        }
        Ok(self.found.len() > before)
    }

    fn command(&mut self, command: &str, beside: Beside<'_>) -> Result<()> {
        if command.is_empty() {
            return Err(bad(PIPE, "no command").with_hint(SPEC_HINT));
        }
        if let Beside::Url(base) = beside {
            return Err(bad(&format!("{PIPE}{command}"), "a list from the network may not run commands")
                .with_hint(format!("download the list beside {} and read it first", shown(base))));
        }
        self.found.extend(expand_command(command)?.iter().map(|command| ShardUrl::pipe(command)));
        Ok(())
    }

    fn list(&mut self, list: &str, beside: Beside<'_>, depth: usize) -> Result<()> {
        if depth == DEEPEST {
            return Err(Error::usage(format!(
                "shard list \"@{}\": lists nested more than {DEEPEST} deep",
                shown(list)
            ))
            .with_hint("does a list name itself?"));
        }
        if is_remote(list) {
            let text = self.lookup.text(list)?;
            let path = list.split(['?', '#']).next().unwrap_or_default();
            let base = &path[..path.rfind('/').map_or(0, |slash| slash + 1)];
            return self.lines(&text, Beside::Url(base), depth);
        }
        if let Some((scheme, _)) = list.split_once("://") {
            return Err(Error::usage(format!("shard list \"@{}\": {scheme}:// is not read", shown(list)))
                .with_hint("download it, then name the file"));
        }
        let candidates = bases(list, beside);
        let path = candidates.iter().map(|base| base.join(list)).find(|path| path.is_file());
        let path = path.unwrap_or_else(|| PathBuf::from(list));
        let bytes = std::fs::read(&path).map_err(|source| {
            Error::file("read", &path, &source).with_hint("@ names a text file with one shard spec a line")
        })?;
        let text = String::from_utf8(bytes).map_err(|_| {
            Error::data(format!("shard list {} is not UTF-8 text", path.display()))
                .with_hint("for a shard, leave out the @")
        })?;
        self.lines(&text, path.parent().map_or(Beside::Nothing, Beside::Folder), depth)
    }

    fn lines(&mut self, text: &str, beside: Beside<'_>, depth: usize) -> Result<()> {
        for line in text.trim_start_matches('\u{feff}').lines() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                self.spec(line, beside, depth + 1)?;
            }
        }
        Ok(())
    }
}

fn bad(spec: &str, what: &str) -> Error {
    Error::usage(format!("shard spec \"{}\": {what}", shown(spec)))
}

/// Refuses the address of something in a store whose bucket has no name; what follows that name.
fn bucket_of(address: &str) -> Result<&str> {
    let (_, place) = address.split_once("://").unwrap_or_default();
    let (bucket, key) = place.split_once('/').unwrap_or((place, ""));
    if bucket.is_empty() || bucket.contains(WILD) || bucket.contains('@') {
        return Err(bad(address, "not the name of a bucket")
            .with_hint("as in s3://bucket/key; credentials come from the environment"));
    }
    Ok(key)
}

/// Whether a spec is the address of something on a server.
fn is_remote(spec: &str) -> bool {
    let spec = spec.strip_prefix(IMAGES).or_else(|| spec.strip_prefix(CLASSES)).unwrap_or(spec);
    spec.starts_with("http://") || spec.starts_with("https://") || SCHEMES.iter().any(|scheme| spec.starts_with(scheme))
}

/// Where a relative path is looked for, in order.
fn bases(path: &str, beside: Beside<'_>) -> Vec<PathBuf> {
    let here = PathBuf::new();
    match beside.folder() {
        Some(folder) if Path::new(path).is_relative() => vec![here, folder],
        _ => vec![here],
    }
}

/// Whether a file of this name is looked at where a folder is named.
fn is_archive(name: &str) -> bool {
    let name = name.to_lowercase();
    !name.starts_with('.') && ARCHIVES.iter().any(|ending| name.ends_with(ending))
}

fn collect_glob(pattern: &Path, found: &mut Vec<ShardUrl>) -> Result<bool> {
    let text = pattern.to_string_lossy();
    let paths = glob::glob(&text).map_err(|error| Error::usage(format!("shard spec \"{text}\": {}", error.msg)))?;
    let before = found.len();
    for path in paths {
        let path = path.map_err(|error| Error::file("read", error.path(), error.error()))?;
        if path.is_dir() {
            collect_folder(&path, found)?;
        } else {
            found.push(ShardUrl::local(path));
        }
    }
    Ok(found.len() > before)
}

/// Every archive in a folder and the folders within, sorted by name.
fn collect_folder(folder: &Path, found: &mut Vec<ShardUrl>) -> Result<bool> {
    let failed = |source| Error::file("read", folder, &source);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    let before = found.len();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_link = path.is_symlink();
        if path.is_dir() && !is_link {
            if std::fs::read_dir(&path).is_err_and(|source| is_closed(&path, &source)) {
                continue;
            }
            collect_folder(&path, found)?;
        } else if path.is_file() && is_archive(&name) {
            found.push(ShardUrl::local(path));
        }
    }
    Ok(found.len() > before)
}

#[cfg(test)]
mod tests;
