//! The shards of a run: specs in, addresses out.
//!
//! A spec is a path, an `http(s)://` URL, a glob, a folder (every archive within), or `@list.txt` with one spec a line; braces
//! multiply it and `::` joins several. A relative path in a list is looked for in the current directory first, then beside
//! the list. Duplicates are removed and counted. What does not exist at all is refused here, with the way out; where some of a brace range is
//! missing, the missing shards stay in the list, so that the ledger counts them.

use super::expand::{expand_braces, split_joined};
use super::url::{ShardUrl, without_secrets};
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Lists that name lists that name lists...: a circle.
const DEEPEST: usize = 8;
const ARCHIVES: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"];
const SPEC_HINT: &str = "a spec is a path, a glob, a folder, an http(s):// URL or @list.txt";

/// The shards of a run, in the order of their specs.
#[derive(Clone, Debug)]
pub struct ShardList {
    /// Every shard once.
    pub shards: Vec<ShardUrl>,
    /// How many more times shards were named.
    pub duplicates: usize,
    specs: Vec<String>,
}

impl ShardList {
    /// Reads specs, and the lists and folders that they name.
    ///
    /// # Errors
    /// Malformed specs; paths, globs and folders with nothing there; unreadable lists; an empty list.
    pub fn parse(specs: &[String]) -> Result<Self> {
        let mut found = Vec::new();
        for spec in specs {
            collect(spec, None, 0, &mut found)?;
        }
        let named = found.len();
        let mut seen = HashSet::new();
        found.retain(|shard| seen.insert(shard.clone()));
        tell_queries_apart(&mut found);
        if found.is_empty() {
            return Err(Error::usage("the list of shards is empty").with_hint(SPEC_HINT));
        }
        Ok(Self { duplicates: named - found.len(), shards: found, specs: specs.to_vec() })
    }

    /// The same specs, read again: a list that grew has new shards at its end.
    ///
    /// # Errors
    /// As [`ShardList::parse`].
    pub fn reload(&self) -> Result<Self> {
        Self::parse(&self.specs)
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

/// Adds what `spec` stands for. `beside` is the folder of the list that holds the spec.
fn collect(spec: &str, beside: Option<&Path>, depth: usize, found: &mut Vec<ShardUrl>) -> Result<()> {
    for part in split_joined(spec) {
        let part = part.trim();
        if part.is_empty() {
            return Err(Error::usage(format!("shard spec \"{}\": empty", without_secrets(spec))).with_hint(SPEC_HINT));
        }
        if let Some(list) = part.strip_prefix('@') {
            collect_list(list, beside, depth, found)?;
            continue;
        }
        let items = expand_braces(part)?;
        let mut present = 0;
        for item in &items {
            if collect_item(item, beside, found)? {
                present += 1;
            } else if !item.contains(['*', '?', '[']) {
                // missing, and the ledger will say so; a pattern that matches nothing names no shard
                found.push(ShardUrl::local(beside.unwrap_or(Path::new("")).join(item)));
            }
        }
        if present == 0 {
            let what = if items.len() == 1 { "there is nothing" } else { "none of its shards exists" };
            return Err(Error::data(format!("shard spec \"{}\": {what}", without_secrets(part))).with_hint(format!(
                "check the path; relative ones start at {}",
                std::env::current_dir().unwrap_or_default().display()
            )));
        }
    }
    Ok(())
}

/// Adds what one brace-free spec stands for; false if nothing is there.
fn collect_item(item: &str, beside: Option<&Path>, found: &mut Vec<ShardUrl>) -> Result<bool> {
    if item.starts_with("http://") || item.starts_with("https://") {
        if reqwest::Url::parse(item).is_err() {
            return Err(Error::usage(format!("shard spec \"{}\": not a URL", without_secrets(item))));
        }
        found.push(ShardUrl::remote(item));
        return Ok(true);
    }
    let path = item.strip_prefix("file://").unwrap_or(item);
    if let Some((scheme, _)) = path.split_once("://") {
        return Err(Error::usage(format!("shard spec \"{}\": {scheme}:// is not read", without_secrets(item)))
            .with_hint("use the store's https:// address, or mount it"));
    }
    for base in bases(path, beside) {
        let candidate = base.join(path);
        let Ok(metadata) = std::fs::metadata(&candidate) else {
            if path.contains(['*', '?', '[']) && collect_glob(&candidate, found)? {
                return Ok(true);
            }
            continue;
        };
        if metadata.is_dir() {
            return collect_folder(&candidate, found);
        }
        if candidate.extension().is_some_and(|extension| extension == "txt") {
            return Err(Error::usage(format!("shard spec \"{item}\": a text file is no shard"))
                .with_hint(format!("if it is a list of shards, write @{item}")));
        }
        found.push(ShardUrl::local(candidate));
        return Ok(true);
    }
    Ok(false)
}

/// Where a relative path is looked for, in order.
fn bases<'a>(path: &str, beside: Option<&'a Path>) -> Vec<&'a Path> {
    let here = Path::new("");
    match beside {
        Some(folder) if Path::new(path).is_relative() => vec![here, folder],
        _ => vec![here],
    }
}

fn collect_list(list: &str, beside: Option<&Path>, depth: usize, found: &mut Vec<ShardUrl>) -> Result<()> {
    if list.contains("://") {
        return Err(Error::usage(format!("shard list \"@{}\": lists are local files", without_secrets(list)))
            .with_hint("download it, then name the file"));
    }
    if depth == DEEPEST {
        return Err(Error::usage(format!("shard list \"@{list}\": lists nested more than {DEEPEST} deep"))
            .with_hint("does a list name itself?"));
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
    for line in text.trim_start_matches('\u{feff}').lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        collect(line, path.parent(), depth + 1, found)?;
    }
    Ok(())
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
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|source| Error::file("read", folder, &source))? {
        let entry = entry.map_err(|source| Error::file("read", folder, &source))?;
        entries.push(entry.path());
    }
    entries.sort();
    let before = found.len();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let is_link = path.is_symlink();
        if path.is_dir() && !is_link {
            collect_folder(&path, found)?;
        } else if path.is_file() && !name.starts_with('.') && ARCHIVES.iter().any(|ending| name.ends_with(ending)) {
            found.push(ShardUrl::local(path));
        }
    }
    Ok(found.len() > before)
}

/// Distinct URLs that share a name differ in what a name leaves out.
fn tell_queries_apart(shards: &mut [ShardUrl]) {
    let mut bearers: HashMap<_, usize> = HashMap::new();
    for shard in shards.iter() {
        *bearers.entry(shard.name().clone()).or_default() += 1;
    }
    for shard in shards {
        if bearers.get(shard.name()).is_some_and(|&count| count > 1) {
            shard.name_by_query();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(specs: &[&str]) -> Result<ShardList> {
        ShardList::parse(&specs.iter().map(|&spec| spec.to_owned()).collect::<Vec<_>>())
    }

    fn names(list: &ShardList, folder: &Path) -> Vec<String> {
        let folder = format!("{}/", folder.display());
        list.shards.iter().map(|shard| shard.to_string().replace(&folder, "")).collect()
    }

    fn folder_with(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        folder
    }

    #[test]
    fn folders_are_walked_in_order() {
        let folder = folder_with(&["b.tar", "a.tar.gz", "sub/c.TAR.ZST", "sub/note.txt", "z.tgz", ".hidden.tar"]);
        let list = parse(&[folder.path().to_str().unwrap()]).unwrap();
        assert_eq!(names(&list, folder.path()), ["a.tar.gz", "b.tar", "sub/c.TAR.ZST", "z.tgz"]);
    }

    #[test]
    fn a_list_file_has_comments_other_line_ends_and_paths_beside_it() {
        let folder = folder_with(&["s-08.tar", "s-09.tar", "s-10.tar", "more/x.tar"]);
        let inner =
            "\u{feff}# all of them\r\n\r\n s-{08..10}.tar \r\nhttps://host/y.tar\r\n@more/inner.txt\r\ns-*.tar\r\n";
        std::fs::write(folder.path().join("list.txt"), inner).unwrap();
        std::fs::write(folder.path().join("more/inner.txt"), "x.tar\n").unwrap();
        let list = parse(&[&format!("@{}/list.txt", folder.path().display())]).unwrap();
        assert_eq!(
            names(&list, folder.path()),
            ["s-08.tar", "s-09.tar", "s-10.tar", "https://host/y.tar", "more/x.tar"]
        );
        assert_eq!(list.duplicates, 3);
    }

    #[test]
    fn a_list_that_grew_is_read_again() {
        let folder = folder_with(&["a.tar"]);
        let list = parse(&[folder.path().to_str().unwrap()]).unwrap();
        assert_eq!(list.reload().unwrap().fingerprint(), list.fingerprint());
        std::fs::write(folder.path().join("b.tar"), b"").unwrap();
        let grown = list.reload().unwrap();
        assert_eq!(grown.shards.len(), 2);
        assert_ne!(grown.fingerprint(), list.fingerprint());
    }

    #[test]
    fn missing_members_of_a_range_stay_to_be_counted() {
        let folder = folder_with(&["s-0.tar", "s-2.tar"]);
        let list = parse(&[&format!("{}/s-{{0..2}}.tar", folder.path().display())]).unwrap();
        assert_eq!(names(&list, folder.path()), ["s-0.tar", "s-1.tar", "s-2.tar"]);
    }

    #[test]
    fn errors_name_the_spec_and_a_way_out() {
        let folder = folder_with(&["list.txt", "loop.txt"]);
        let at = |name: &str| format!("{}/{name}", folder.path().display());
        std::fs::write(at("loop.txt"), "@loop.txt\n").unwrap();
        let cases = [
            ("no/such/shard.tar".to_owned(), 3),
            ("no/such/{00..99}.tar".to_owned(), 3),
            ("no/such/*.tar".to_owned(), 3),
            ("@no/such/list.txt".to_owned(), 3),
            (folder.path().display().to_string(), 3),
            (at("list.txt"), 2),
            (format!("@{}", at("loop.txt")), 2),
            (format!("@{}", at("list.txt")), 2),
            ("s3://bucket/a.tar".to_owned(), 2),
            ("a{0..1.tar".to_owned(), 2),
            ("a.tar::".to_owned(), 3),
            ("https://".to_owned(), 2),
            (String::new(), 2),
        ];
        for (spec, exit_code) in cases {
            let error = parse(&[&spec]).unwrap_err();
            assert_eq!(error.exit_code(), exit_code, "{spec}: {error}");
            assert!(error.hint().is_some() || spec == "https://", "{spec}: {error}");
        }
        assert_eq!(parse(&[]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn urls_that_differ_in_their_query_are_two_shards_without_showing_it() {
        let list =
            parse(&["https://h/get?id=1", "https://h/get?id=2", "https://u:p@h/x.tar?sig=3", "https://h/get?id=1"])
                .unwrap();
        assert_eq!((list.shards.len(), list.duplicates), (3, 1));
        assert_ne!(list.shards[0].name(), list.shards[1].name());
        assert!(list.shards.iter().all(|shard| !shard.to_string().contains("id=")), "{:?}", list.shards);
        assert_eq!(list.shards[2].to_string(), "https://h/x.tar");
    }
}
