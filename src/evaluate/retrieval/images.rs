//! A folder of photographs, each known by the name of its file.
//!
//! In: a folder. Out: its image files and those of the folders in it, by name without extension, in the order of the names: Oxford 5k
//! lies in one folder, Paris 6k in one for each landmark. Hidden files are left out. What can go wrong: a folder that cannot be read or holds no image, and two
//! files of one name, which the ground truth could not tell apart.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Extensions of image files, in lower case.
const EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "png", "webp", "bmp"];
/// Folders within folders, at most: links that lead back would have no end.
const DEPTH: usize = 8;

/// Image files by name.
pub type Images = BTreeMap<String, PathBuf>;

/// The image files of `folder`, with those of folders in it.
///
/// # Errors
/// It cannot be read, holds no image, or two of the same name.
pub fn images(folder: &Path) -> Result<Images> {
    let mut found = Images::new();
    collect(folder, DEPTH, &mut found)?;
    if found.is_empty() {
        return Err(Error::data(format!("{} holds no image", folder.display()))
            .with_hint(format!("images end in .{}; those of folders in it count", EXTENSIONS.join(", ."))));
    }
    Ok(found)
}

fn collect(folder: &Path, depth: usize, found: &mut Images) -> Result<()> {
    let trouble = |error| Error::file("list", folder, &error);
    for entry in fs::read_dir(folder).map_err(trouble)? {
        let path = entry.map_err(trouble)?.path();
        if path.is_dir() && depth > 0 {
            collect(&path, depth - 1, found)?;
            continue;
        }
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        if !extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if let Some(other) = found.insert(name.clone(), path.clone()) {
            return Err(Error::data(format!(
                "two images are called {name}: {} and {}",
                other.display(),
                path.display()
            ))
            .with_hint("the ground truth names images without folders: take one of them away"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_within_folders_are_one_set_of_names() {
        let root = tempfile::tempdir().expect("a temporary folder");
        assert!(images(root.path()).expect_err("nothing there").to_string().contains("no image"));
        for name in ["b.jpg", "defense/a.JPG", "defense/notes.txt", "c.png", "._b.jpg"] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, "").expect("a file");
        }
        let found = images(root.path()).expect("images");
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(found["a"], root.path().join("defense/a.JPG"));
        fs::write(root.path().join("defense/b.jpeg"), "").expect("a file");
        let error = images(root.path()).expect_err("two of a name").to_string();
        assert!(error.contains("b.jpg") && error.contains("defense/b.jpeg"), "{error}");
        assert!(images(&root.path().join("gone")).is_err());
    }
}
