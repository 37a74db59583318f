//! Specs and the shards that they stand for.

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
fn folders_are_shards_and_where_they_are_classes_they_have_numbers() {
    let files = ["dog/x.jpg", "ant/deep/y.png", "cat/readme.txt", "top.jpg", ".git/z.jpg"];
    let folder = folder_with(&files);
    let at = |spec: &str| {
        let list = parse(&[&format!("{spec}{}", folder.path().display())]).unwrap();
        let classes: Vec<Option<i64>> = list.shards.iter().map(ShardUrl::class).collect();
        (names(&list, folder.path()), classes)
    };
    let top = folder.path().display();
    let named = |spec: &str| vec![format!("{spec}{top}"), format!("{spec}ant"), format!("{spec}dog")];
    assert_eq!(at("images:"), (named("images:"), vec![None; 3]));
    // one without images has its number all the same
    let mut numbered = named("classes:");
    numbered[0] = format!("images:{top}");
    assert_eq!(at("classes:"), (numbered, vec![None, Some(0), Some(2)]));
}

#[test]
fn a_list_file_has_comments_other_line_ends_and_paths_beside_it() {
    let folder = folder_with(&["s-08.tar", "s-09.tar", "s-10.tar", "more/x.tar"]);
    let inner = "\u{feff}# all of them\r\n\r\n s-{08..10}.tar \r\nhttps://host/y.tar\r\n@more/inner.txt\r\ns-*.tar\r\n";
    std::fs::write(folder.path().join("list.txt"), inner).unwrap();
    std::fs::write(folder.path().join("more/inner.txt"), "x.tar\n").unwrap();
    let list = parse(&[&format!("@{}/list.txt", folder.path().display())]).unwrap();
    assert_eq!(names(&list, folder.path()), ["s-08.tar", "s-09.tar", "s-10.tar", "https://host/y.tar", "more/x.tar"]);
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
        ("ftp://host/a.tar".to_owned(), 2),
        ("s3://".to_owned(), 2),
        ("s3://key:secret@bucket/a.tar".to_owned(), 2),
        ("s3://bucket/a.tar?X-Amz-Signature=1".to_owned(), 2),
        ("https://***@host/a.tar".to_owned(), 2),
        ("pipe:".to_owned(), 2),
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
    let list = parse(&["https://h/get?id=1", "https://h/get?id=2", "https://u:p@h/x.tar?sig=3", "https://h/get?id=1"])
        .unwrap();
    assert_eq!((list.shards.len(), list.duplicates), (3, 1));
    assert_ne!(list.shards[0].name(), list.shards[1].name());
    assert!(list.shards.iter().all(|shard| !shard.to_string().contains("id=")), "{:?}", list.shards);
    assert_eq!(list.shards[2].to_string(), "https://h/x.tar");
}

#[test]
fn shards_that_differ_in_more_than_a_signature_are_never_taken_for_one() {
    let again = ["https://h/a?X-Amz-Signature=1", "https://h/a?X-Amz-Signature=2", "pipe:cat -u a", "pipe:cat -u b"];
    let list = parse(&again).unwrap();
    assert_eq!((list.shards.len(), list.duplicates), (3, 1));
    assert_eq!(parse(&["https://h/a?md5=1&expires=2", "https://h/a?md5=3&expires=4"]).unwrap().duplicates, 1);
    assert_eq!(parse(&["https://h/a?key=1.tar", "https://h/a?key=2.tar"]).unwrap().shards.len(), 2);
    for twins in
        [["https://h/a?md5=s3cret", "https://h/a?md5=other"], ["pipe:get --pass s3cret", "pipe:get --pass other"]]
    {
        let error = parse(&twins).unwrap_err();
        assert!(error.exit_code() == 2 && error.hint().is_some() && !error.to_string().contains("s3cret"), "{error}");
        assert_eq!(parse(&[twins[0], twins[0]]).unwrap().duplicates, 1);
    }
}
