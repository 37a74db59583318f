//! `ops/FAULTS.md` names tests that exist.

use crate::run::root;
use std::fs;
use std::path::Path;

/// The text of every Rust file below a folder, each with its path.
fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn every_test_of_the_table_exists() {
    let table = fs::read_to_string(root().join("ops/FAULTS.md")).unwrap();
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    sources(&root().join("tests"), &mut files);
    // `module::name`: a function of that name in a file or folder of that module
    let is_there = |test: &str| {
        let (module, name) = test.rsplit_once("::").unwrap();
        let (file, folder) = (format!("/{module}.rs"), format!("/{module}/"));
        let function = format!("fn {name}()");
        files.iter().any(|(path, text)| (path.ends_with(&file) || path.contains(&folder)) && text.contains(&function))
    };
    let quoted = table.split('`').skip(1).step_by(2);
    let missing: Vec<&str> = quoted.filter(|text| text.contains("::") && !is_there(text)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");

    let numbers = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse::<usize>().ok());
    assert_eq!(numbers.collect::<Vec<_>>(), (1..=37).collect::<Vec<_>>());
    let unshown = table.lines().filter(|line| line.starts_with("| ") && line[2..].starts_with(char::is_numeric));
    let unshown: Vec<&str> = unshown.filter(|line| !line.rsplit('|').nth(1).unwrap().contains("::")).collect();
    assert!(unshown.is_empty(), "rows without a test: {unshown:?}");
}
