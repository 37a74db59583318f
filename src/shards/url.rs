//! The address of one shard: a local path, an `http(s)://` URL, an object of a store (`s3://`, `gs://`, `az://`), a folder of images,
//! or a command.
//!
//! What is shown and stored is the *name*: the address without user, password, query and fragment, since those hold
//! credentials and signatures. The name is also the shard's identity (ids, cursor, ledger), so a URL that is signed anew stays
//! the same shard; parameters that are no signature enter it as a hash. The address itself is seen by [`super::source`] alone.

use super::source::SCHEMES;
use crate::secrets::{PIPE, identifying_query, identity, shown, unsigned};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Before a folder whose image files are samples.
pub(super) const IMAGES: &str = "images:";
/// Before a folder whose folders are classes, with image files in them.
pub(super) const CLASSES: &str = "classes:";

/// The address of one shard. `Display` and `Debug` never show credentials.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ShardUrl {
    name: Arc<str>,
    address: Address,
}

/// Where the bytes are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Local(PathBuf),
    /// `http(s)://`
    Remote(Arc<str>),
    /// `s3://`, `gs://` or `az://`, bucket and key
    Store(Arc<str>),
    /// Standard output of a command of `sh`
    Pipe(Arc<str>),
    /// The image files of a folder, or the images below a prefix of a store
    Images(ImageFolder),
}

/// A folder whose image files are samples, or a prefix of a store whose objects are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct ImageFolder {
    /// A path, or the address of a prefix without the `/` at its end.
    root: PathBuf,
    /// The folder within `root`, with all below it; none for the files of `root` itself.
    within: Option<PathBuf>,
    /// The class of all its images, where folders are classes.
    class: Option<i64>,
}

impl ImageFolder {
    /// The files of a folder itself.
    pub(super) fn flat(root: &Path) -> Self {
        Self { root: root.to_owned(), within: None, class: None }
    }

    /// A folder in `root`, with all below it.
    pub(super) fn deep(root: &Path, within: impl Into<PathBuf>) -> Self {
        Self { root: root.to_owned(), within: Some(within.into()), class: None }
    }

    /// The same folder, all of whose images are of a class.
    pub(super) fn of_class(self, class: i64) -> Self {
        Self { class: Some(class), ..self }
    }

    /// Where its files are.
    pub(super) fn path(&self) -> PathBuf {
        self.within.as_ref().map_or_else(|| self.root.clone(), |within| self.root.join(within))
    }

    /// The address of the prefix, with the `/` at its end, of one that lies in a store.
    pub(super) fn prefix(&self) -> Option<String> {
        let is_stored = SCHEMES.iter().any(|scheme| self.root.to_str().is_some_and(|root| root.starts_with(scheme)));
        is_stored.then(|| format!("{}/", self.path().display()))
    }

    /// Whether folders within belong to it.
    pub(super) fn is_deep(&self) -> bool {
        self.within.is_some()
    }

    /// The name of a file as part of a key: its path from the root of the spec.
    pub(super) fn key_of(&self, file: &Path) -> String {
        let within = self.within.as_deref().unwrap_or(Path::new(""));
        within.join(file).to_string_lossy().into_owned()
    }
}

impl ShardUrl {
    /// A file.
    pub fn local(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let path = path.strip_prefix(".").map(Path::to_path_buf).unwrap_or(path);
        Self { name: path.to_string_lossy().into(), address: Address::Local(path) }
    }

    /// An `http://` or `https://` URL.
    pub fn remote(url: &str) -> Self {
        let mut name = shown(url);
        if let Some(query) = identifying_query(url) {
            name.push_str(&format!("?query={:016x}", xxh3_64(query.as_bytes())));
        }
        Self { name: name.into(), address: Address::Remote(url.into()) }
    }

    /// An object of a store: `s3://bucket/key`, `gs://bucket/key` or `az://container/key`.
    pub fn stored(url: &str) -> Self {
        Self { name: shown(url).into(), address: Address::Store(url.into()) }
    }

    /// What a command of `sh` writes to its standard output.
    pub fn pipe(command: &str) -> Self {
        let spec = format!("{PIPE}{command}");
        let name = format!("{} #{:016x}", shown(&spec), xxh3_64(identity(&spec).as_bytes()));
        Self { name: name.into(), address: Address::Pipe(command.into()) }
    }

    /// A folder of images.
    pub(super) fn images(folder: ImageFolder) -> Self {
        let spec = if folder.class.is_some() { CLASSES } else { IMAGES };
        Self { name: format!("{spec}{}", folder.path().display()).into(), address: Address::Images(folder) }
    }

    /// The class of all its samples that have none of their own.
    pub fn class(&self) -> Option<i64> {
        self.folder().and_then(|folder| folder.class)
    }

    pub(super) fn folder(&self) -> Option<&ImageFolder> {
        match &self.address {
            Address::Images(folder) => Some(folder),
            Address::Local(_) | Address::Remote(_) | Address::Store(_) | Address::Pipe(_) => None,
        }
    }

    /// The address without credentials, signatures and fragment: what may be shown, and the identity of the shard.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether two shards of one name are one shard: their addresses differ in signatures at most.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (&self.address, &other.address) {
            (one, other) if one == other => true,
            (Address::Remote(one), Address::Remote(other)) => unsigned(one) == unsigned(other),
            (Address::Pipe(one), Address::Pipe(other)) => {
                unsigned(&format!("{PIPE}{one}")) == unsigned(&format!("{PIPE}{other}"))
            }
            _ => false,
        }
    }

    /// Whether the bytes come over the network.
    pub fn is_remote(&self) -> bool {
        match &self.address {
            Address::Remote(_) | Address::Store(_) => true,
            Address::Images(folder) => folder.prefix().is_some(),
            Address::Local(_) | Address::Pipe(_) => false,
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }
}

impl fmt::Display for ShardUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for ShardUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardUrl({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_are_not_shown() {
        let url = ShardUrl::remote("https://me:pa@ss@host:8443/a%20b/c@d.tar?X-Amz-Signature=secret#x");
        assert_eq!(url.to_string(), "https://host:8443/a%20b/c@d.tar");
        assert_eq!(format!("{url:?}"), "ShardUrl(https://host:8443/a%20b/c@d.tar)");
    }

    #[test]
    fn the_same_file_has_one_name() {
        assert_eq!(ShardUrl::local("./a.tar"), ShardUrl::local("a.tar"));
    }

    #[test]
    fn a_store_has_no_queries_and_a_key_any_sign() {
        assert_eq!(ShardUrl::stored("s3://bucket/a/b#1.tar").to_string(), "s3://bucket/a/b#1.tar");
    }

    #[test]
    fn commands_that_differ_in_what_is_not_shown_are_two_shards() {
        let [one, two] = ["a", "b"].map(|id| ShardUrl::pipe(&format!("curl 'https://h/get?id={id}&token=x'")));
        assert_ne!(one.name(), two.name());
        let again = ShardUrl::pipe("curl 'https://h/get?id=a&token=y'");
        assert_eq!(one.name(), again.name());
        assert!(one.to_string().starts_with("pipe:curl 'https://h/get' #"), "{one}");
    }

    proptest! {
        #[test]
        fn a_url_signed_anew_is_the_same_shard(old in "[0-9a-f]{8,40}", new in "[0-9a-f]{8,40}", id in "[a-z0-9]{1,9}") {
            for form in [
                "https://h/a.tar?id=ID&X-Amz-Signature=KEY&X-Amz-Date=KEY",
                "https://KEY:KEY@h/a.tar?Expires=KEY&Signature=KEY&Key-Pair-Id=KEY&id=ID",
                "https://h/a.tar?sv=KEY&se=KEY&id=ID&sig=KEY",
                "https://h/a.tar?id=ID&token=KEY",
            ] {
                let name = |key: &str, id: &str| ShardUrl::remote(&form.replace("KEY", key).replace("ID", id)).to_string();
                prop_assert_eq!(name(&old, &id), name(&new, &id));
                prop_assert_ne!(name(&old, &id), name(&old, "another-one"));
                let shown = name(&old, &id);
                prop_assert!(!shown.contains(&["=", &old].concat()));
            }
        }
    }
}
