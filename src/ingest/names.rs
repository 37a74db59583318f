//! The names of a list's shards in a file: each as the number of bytes that it shares with the name before, and the rest.
//!
//! Names of shards differ in their last digits: a hundred thousand of them take a megabyte where they would take ten, in
//! every snapshot. A count that the name before does not have, or that cuts a character, is refused.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};
use std::sync::Arc;

pub(super) fn serialize<S: Serializer>(names: &Arc<[Arc<str>]>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut before = "";
    serializer.collect_seq(names.iter().map(|name| {
        let shared = shared_bytes(before, name);
        before = name;
        (shared, &name[shared..])
    }))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[Arc<str>]>, D::Error> {
    let mut names: Vec<Arc<str>> = Vec::new();
    for (shared, rest) in Vec::<(usize, String)>::deserialize(deserializer)? {
        let before = names.last().map_or("", |name| &**name);
        let Some(beginning) = before.get(..shared) else {
            return Err(D::Error::custom(format!("a name shares {shared} bytes with \"{before}\"")));
        };
        let name: Arc<str> = format!("{beginning}{rest}").into();
        names.push(name);
    }
    Ok(names.into())
}

/// Bytes at the beginning of both, up to a whole character.
fn shared_bytes(one: &str, other: &str) -> usize {
    let mut shared = 0;
    for (a, b) in one.chars().zip(other.chars()) {
        if a != b {
            break;
        }
        shared += a.len_utf8();
    }
    shared
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};
    use std::sync::Arc;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Names(#[serde(with = "super")] Arc<[Arc<str>]>);

    proptest! {
        #[test]
        fn names_come_back(names in prop::collection::vec("[abäß\u{1F41F}]{0,6}", 0..20)) {
            let names = Names(names.into_iter().map(Arc::from).collect());
            let text = serde_json::to_string(&names).unwrap();
            prop_assert_eq!(serde_json::from_str::<Names>(&text).unwrap(), names);
        }
    }

    #[test]
    fn many_names_take_little_room() {
        let names = (0..100_000).map(|i| format!("https://bucket.example.org/photos/2026/shard-{i:06}.tar.zst").into());
        let text = serde_json::to_string(&Names(names.collect())).unwrap();
        assert!(text.len() < 2_000_000, "{}", text.len());
    }

    #[test]
    fn what_the_name_before_does_not_have_is_refused() {
        for text in [r#"[[1, "a"]]"#, r#"[[0, "ä"], [1, "x"]]"#] {
            assert!(serde_json::from_str::<Names>(text).is_err());
        }
    }
}
