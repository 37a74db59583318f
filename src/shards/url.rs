//! The address of one shard: a local path or an `http(s)://` URL.
//!
//! What is shown and stored is the *name*: the address without user, password, query and fragment, since those hold
//! credentials and signatures. The name is also the shard's identity (ids, cursor, ledger), so a URL that is signed anew stays
//! the same shard. The address itself is seen by [`super::source`] alone.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    Remote(Arc<str>),
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
        Self { name: without_secrets(url).into(), address: Address::Remote(url.into()) }
    }

    /// The address without credentials, signatures and fragment: what may be shown, and the identity of the shard.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether the bytes come over the network.
    pub fn is_remote(&self) -> bool {
        matches!(self.address, Address::Remote(_))
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Tells URLs apart that differ in their query alone, without showing it.
    pub(super) fn name_by_query(&mut self) {
        if let Address::Remote(url) = &self.address {
            let query = xxhash_rust::xxh3::xxh3_64(url.as_bytes());
            self.name = format!("{}?query={query:016x}", self.name).into();
        }
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

/// The URL without `user:password@`, `?query` and `#fragment`.
pub(super) fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
