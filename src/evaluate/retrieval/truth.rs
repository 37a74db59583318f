//! The ground truth of the Oxford and Paris buildings (Philbin et al., CVPR 2007 and 2008), as its authors hand it out.
//!
//! In: a folder with four lists for each query `Q`: `Q_query.txt` holds one line with the name of the photograph that is searched with
//! (`oxc1_` before it in Oxford) and a box on it: left, top, right and bottom in pixels; `Q_good.txt`, `Q_ok.txt` and `Q_junk.txt` name
//! photographs, one a line. Out: the queries in the order of their names. Good and ok count as positives; junk is passed over.
//!
//! What can go wrong is said with the file: a list that is missing or makes no sense, a query whose photograph is not there or that has
//! nothing to find. A positive that is not there is no error: it counts, and is not found, as in the program of the authors.

use super::images::Images;
use crate::error::{Error, Result};
use crate::evaluate::precision::Relevance;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What Oxford writes before the name of a photograph.
const OXFORD_PREFIX: &str = "oxc1_";
const QUERY_SUFFIX: &str = "_query.txt";

/// Part of a photograph, in pixels of its file from the top left corner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// First column.
    pub left: f64,
    /// First row.
    pub top: f64,
    /// One past the last column.
    pub right: f64,
    /// One past the last row.
    pub bottom: f64,
}

/// What is searched with, and what should be found.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Before `_query.txt`.
    pub name: String,
    /// Name of its photograph.
    pub image: String,
    /// What of it is searched with.
    pub part: Part,
    /// Good and ok.
    pub positives: BTreeSet<String>,
    /// Neither for nor against.
    pub junk: BTreeSet<String>,
}

impl Query {
    /// What a photograph is for this query. One that is listed both ways is junk.
    pub fn relevance(&self, image: &str) -> Relevance {
        if self.junk.contains(image) {
            Relevance::Junk
        } else if self.positives.contains(image) {
            Relevance::Positive
        } else {
            Relevance::Negative
        }
    }
}

/// The queries of the lists in `folder`, over `images`.
///
/// # Errors
/// Those above.
pub fn queries(folder: &Path, images: &Images) -> Result<Vec<Query>> {
    let mut names = BTreeSet::new();
    let trouble = |error| Error::file("list", folder, &error);
    for entry in fs::read_dir(folder).map_err(trouble)? {
        let name = entry.map_err(trouble)?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(QUERY_SUFFIX)).map(str::to_owned));
    }
    if names.is_empty() {
        return Err(Error::data(format!("{} holds no query", folder.display())).with_hint(
            "it should hold the lists NAME_query.txt, NAME_good.txt, NAME_ok.txt and NAME_junk.txt of each query",
        ));
    }
    names.into_iter().map(|name| query(folder, name, images)).collect()
}

/// Positives of `queries` that `images` lack.
pub fn absent<'a>(queries: &'a [Query], images: &Images) -> BTreeSet<&'a str> {
    let listed = queries.iter().flat_map(|query| &query.positives);
    listed.filter(|image| !images.contains_key(*image)).map(String::as_str).collect()
}

fn query(folder: &Path, name: String, images: &Images) -> Result<Query> {
    let path = folder.join(format!("{name}{QUERY_SUFFIX}"));
    let text = read(&path)?;
    let refuse = |why: String| {
        Error::data(format!("{}: {why}", path.display()))
            .with_hint("it should hold the name of a photograph, and left, top, right and bottom of a box on it")
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let &[image, ref edges @ ..] = words.as_slice() else { return Err(refuse("it is empty".into())) };
    let numbers = edges.iter().map(|edge| edge.parse::<f64>().ok().filter(|edge| edge.is_finite()));
    let numbers: Vec<f64> = numbers.collect::<Option<_>>().unwrap_or_default();
    let &[left, top, right, bottom] = numbers.as_slice() else {
        return Err(refuse(format!("four numbers should follow {image}, found {:?}", edges.join(" "))));
    };
    if left < 0.0 || top < 0.0 || right <= left || bottom <= top {
        return Err(refuse(format!("the box {left} {top} {right} {bottom} is empty, or not on the photograph")));
    }
    let short = image.strip_prefix(OXFORD_PREFIX).unwrap_or(image);
    let Some(image) = [image, short].into_iter().find(|&image| images.contains_key(image)) else {
        return Err(Error::data(format!("{}: the photograph {short} is not among the images", path.display()))
            .with_hint("--images is the folder of the photographs that the lists of --truth name"));
    };
    let list = |kind: &str| names(&folder.join(format!("{name}_{kind}.txt")));
    let mut positives = list("good")?;
    positives.append(&mut list("ok")?);
    if positives.is_empty() {
        return Err(Error::data(format!(
            "the query {name} has nothing to find: {name}_good.txt and {name}_ok.txt are empty"
        )));
    }
    let (image, junk) = (image.to_owned(), list("junk")?);
    Ok(Query { image, part: Part { left, top, right, bottom }, positives, junk, name })
}

fn names(path: &Path) -> Result<BTreeSet<String>> {
    Ok(read(path)?.split_whitespace().map(str::to_owned).collect())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Error::file("read", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with one query of Oxford, of which `query` is the line.
    fn lists(query: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (kind, text) in [
            ("query", query),
            ("good", "all_souls_000026\nall_souls_000091\n"),
            ("ok", "all_souls_000013\n"),
            ("junk", "all_souls_000140\nall_souls_000091\n\n"),
        ] {
            fs::write(folder.path().join(format!("all_souls_1_{kind}.txt")), text).expect("a file");
        }
        folder
    }

    fn there() -> Images {
        ["all_souls_000013", "all_souls_000026"].map(|name| (name.to_owned(), "x.jpg".into())).into()
    }

    const LINE: &str = "oxc1_all_souls_000013 136.5 34.1 648.5 955.7\n";

    #[test]
    fn a_query_of_oxford() -> Result<()> {
        let folder = lists(LINE);
        let found = queries(folder.path(), &there())?;
        assert_eq!(found.len(), 1);
        let query = &found[0];
        assert_eq!((query.name.as_str(), query.image.as_str()), ("all_souls_1", "all_souls_000013"));
        assert_eq!(query.part, Part { left: 136.5, top: 34.1, right: 648.5, bottom: 955.7 });
        assert_eq!(query.positives.len(), 3);
        let is = |number: u32| query.relevance(&format!("all_souls_{number:06}"));
        assert_eq!([13, 26, 140, 91, 1].map(is), {
            use Relevance::{Junk, Negative, Positive};
            [Positive, Positive, Junk, Junk, Negative]
        });
        assert_eq!(absent(&found, &there()), BTreeSet::from(["all_souls_000091"]));
        // Where the prefix belongs to the name it stays.
        let mut named = there();
        named.insert("oxc1_all_souls_000013".into(), "y.jpg".into());
        assert_eq!(queries(folder.path(), &named)?[0].image, "oxc1_all_souls_000013");
        Ok(())
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (line, words) in [
            ("", "empty"),
            ("oxc1_all_souls_000013 1 2 3", "four numbers"),
            ("oxc1_all_souls_000013 1 2 3 4 5", "four numbers"),
            ("oxc1_all_souls_000013 1 2 x 4", "four numbers"),
            ("oxc1_all_souls_000013 1 2 1 4", "box"),
            ("oxc1_all_souls_000013 -1 2 1 4", "box"),
            ("oxc1_all_souls_000014 1 2 3 4", "all_souls_000014 is not among the images"),
        ] {
            let error = queries(lists(line).path(), &there()).expect_err(words).to_string();
            assert!(error.contains(words) && error.contains("all_souls_1_query.txt"), "{error}");
        }
        let refused = |spoil: &dyn Fn(&Path)| {
            let folder = lists(LINE);
            spoil(folder.path());
            queries(folder.path(), &there()).expect_err("it is spoilt").to_string()
        };
        let gone = refused(&|folder| fs::remove_file(folder.join("all_souls_1_junk.txt")).expect("removed"));
        assert!(gone.contains("all_souls_1_junk.txt"), "{gone}");
        let nothing = refused(&|folder| {
            for kind in ["good", "ok"] {
                fs::write(folder.join(format!("all_souls_1_{kind}.txt")), "\n").expect("a file");
            }
        });
        assert!(nothing.contains("all_souls_1 has nothing to find"), "{nothing}");
        let none = refused(&|folder| fs::remove_file(folder.join("all_souls_1_query.txt")).expect("removed"));
        assert!(none.contains("no query"), "{none}");
    }
}
