//! Shards in object stores, from commands, and from the cache; lists that come over the network.

use crate::faults::{fetch, plan, shard};
use crate::run::{root, shoal, small_pipeline, start};
use crate::s3::Store;
use crate::server::{Reply, Server};
use bytes::Bytes;
use futures_util::StreamExt;
use shoal::config::{Anonymous, FetchPlan};
use shoal::ingest::{Cursor, Opening, Passes, RawSample, stream};
use shoal::shards::{Ledger, Loss, Reason, ShardList};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

fn at(store: &Store) -> FetchPlan {
    FetchPlan { endpoint: store.endpoint(), anonymous: Anonymous::Always, ..fetch() }
}

fn list(specs: &[&str], fetch: &FetchPlan) -> ShardList {
    ShardList::parse_with(&specs.iter().map(|&spec| spec.to_owned()).collect::<Vec<_>>(), fetch).unwrap()
}

fn names(specs: &[&str], fetch: &FetchPlan) -> Vec<String> {
    list(specs, fetch).shards.iter().map(ToString::to_string).collect()
}

/// One pass in the order of the list: samples, losses, and the ledger as it lies on disk.
async fn read(list: ShardList, fetch: &FetchPlan) -> (Vec<(String, Bytes)>, BTreeMap<Reason, u64>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let ledger = Arc::new(Ledger::open(&path, &plan()).unwrap());
    let samples = stream(Opening::new(list, &plan(), fetch, Passes::Once, Arc::clone(&ledger)));
    let samples = samples.filter_map(|sample| async { sample.ok() });
    let samples = samples.map(|sample| (sample.meta.key, sample.image)).collect().await;
    (samples, ledger.losses(), std::fs::read_to_string(&path).unwrap())
}

fn keys(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{name}{i:03}")).collect()
}

fn keys_of(samples: &[(String, Bytes)]) -> Vec<String> {
    samples.iter().map(|(key, _)| key.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefixes_and_globs_are_listed_page_by_page() {
    let mut objects: Vec<_> = (0..8).map(|i| format!("b/a/s-{i}.tar")).collect();
    objects.extend(
        ["b/a/notes.txt", "b/a/deep/x.tar.gz", "b/a/deep/.hidden.tar", "b/ab.tar", "b/z.tgz"].map(str::to_owned),
    );
    let objects: Vec<_> = objects.iter().map(|path| (path.as_str(), Bytes::from_static(b"x"))).collect();
    let store = Store::start(&objects).await;
    let fetch = at(&store);
    let all: Vec<_> = (0..8).map(|i| format!("s3://b/a/s-{i}.tar")).collect();
    let below = [vec!["s3://b/a/deep/x.tar.gz".to_owned()], all.clone()].concat();
    assert_eq!(names(&["s3://b/a/"], &fetch), below);
    assert_eq!(store.state.lock().unwrap().pages, 4, "eleven keys");
    assert_eq!(names(&["s3://b/a/*.tar"], &fetch), all);
    assert_eq!(names(&["s3://b/a/s-[0-3].tar"], &fetch), all[..4]);
    assert_eq!(names(&["s3://b/a/**/*.tar.gz"], &fetch), ["s3://b/a/deep/x.tar.gz"]);
    assert_eq!(names(&["gs://b/a/s-{6,7}.tar::s3://b/ab.tar"], &fetch)[2], "s3://b/ab.tar");
    let whole = names(&["s3://b/"], &fetch);
    assert_eq!((whole.len(), &whole[9..]), (11, &["s3://b/ab.tar".to_owned(), "s3://b/z.tgz".to_owned()][..]));
    assert_eq!(names(&["s3://b"], &fetch), whole);
    for nothing in ["s3://b/none/", "s3://b/a/*.zst"] {
        let error = ShardList::parse_with(&[nothing.to_owned()], &fetch).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains(nothing), "{error}");
    }
    store.state.lock().unwrap().is_private = true;
    let error = ShardList::parse_with(&["s3://b/a/".to_owned()], &fetch).unwrap_err();
    assert!(error.to_string().contains("AccessDenied") && error.hint().is_some(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_of_a_store_are_read_through_busy_answers() {
    let store = Store::start(&[("b/0.tar", shard("a", 60)), ("b/1.tar", shard("b", 9))]).await;
    let fetch = at(&store);
    store.state.lock().unwrap().busy = 3;
    let (samples, losses, _) = read(list(&["s3://b/{0..1}.tar"], &fetch), &fetch).await;
    assert_eq!(keys_of(&samples), [keys("a", 60), keys("b", 9)].concat());
    assert_eq!(losses, BTreeMap::new());
    let counts = store.state.lock().unwrap();
    assert!(counts.signed == 0 && counts.unsigned > 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_store_refuses_is_lost_by_its_reason() {
    let store = Store::start(&[("b/0.tar", shard("a", 4))]).await;
    let fetch = at(&store);
    let (samples, losses, _) = read(list(&["s3://b/{0..1}.tar"], &fetch), &fetch).await;
    assert_eq!((samples.len(), losses), (4, BTreeMap::from([(Reason::NotFound, 1)])));
    store.state.lock().unwrap().is_private = true;
    let (_, losses, ledger) = read(list(&["s3://b/0.tar"], &fetch), &fetch).await;
    assert_eq!(losses, BTreeMap::from([(Reason::Forbidden, 1)]));
    assert!(ledger.contains("AccessDenied") && ledger.contains("asked anonymously"), "{ledger}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_a_store_goes_on_from_a_cursor() {
    let store = Store::start(&[("b/0.tar", shard("a", 90)), ("b/1.tar", shard("b", 40))]).await;
    let fetch = at(&store);
    let take = async |start: Cursor, count: usize| -> Vec<RawSample> {
        let (list, ledger) = (list(&["s3://b/*.tar"], &fetch), Arc::new(Ledger::in_memory(&plan())));
        let samples = stream(Opening { start, ..Opening::new(list, &plan(), &fetch, Passes::Endless, ledger) });
        pin!(samples).take(count).map(Result::unwrap).collect().await
    };
    let undisturbed = take(Cursor::default(), 150).await;
    for at in [3, 70, 128, 131] {
        let resumed = take(undisturbed[at].cursor.clone(), 15).await;
        for (resumed, expected) in resumed.iter().zip(&undisturbed[at + 1..]) {
            assert_eq!((&resumed.meta.key, &resumed.image), (&expected.meta.key, &expected.image));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_is_not_gone_on_with_after_a_restart() {
    let store = Store::start(&[("b/0.tar", shard("a", 90)), ("b/1.tar", shard("b", 90))]).await;
    let fetch = at(&store);
    let ledger = Arc::new(Ledger::in_memory(&plan()));
    let open = |start: Cursor| {
        let opening =
            Opening::new(list(&["s3://b/*.tar"], &fetch), &plan(), &fetch, Passes::Endless, Arc::clone(&ledger));
        stream(Opening { start, ..opening })
    };
    let first: Vec<RawSample> = pin!(open(Cursor::default())).take(40).map(Result::unwrap).collect().await;
    // as long as the one before: the store's version alone tells them apart
    store.put("b/0.tar", shard("n", 90));
    let text = serde_json::to_string(&first[39].cursor).unwrap();
    let rest = open(serde_json::from_str(&text).unwrap()).map(Result::unwrap);
    let rest = rest.take_while(|sample| std::future::ready(sample.meta.pass == 0));
    let rest: Vec<RawSample> = pin!(rest).collect().await;
    let mut of_other: Vec<&str> = first.iter().chain(&rest).map(|sample| sample.meta.key.as_str()).collect();
    of_other.retain(|key| !key.starts_with('a'));
    of_other.sort_unstable();
    assert_eq!(of_other, keys("b", 90));
    assert!(rest.iter().all(|sample| sample.meta.key.starts_with('b')), "what waited of the other is lost");
    assert!(ledger.losses().contains_key(&Reason::ShardChanged), "{:?}", ledger.losses());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_shard_is_made_of_two_versions() {
    let (old, new) = (shard("a", 300), shard("n", 300));
    let store = Store::start(&[("b/0.tar", old)]).await;
    let fetch = FetchPlan { ranges: 1, ..at(&store) };
    let plan = shoal::config::StreamPlan { buffer_mib: 1, shuffle: 1, ..plan() };
    let ledger = Arc::new(Ledger::in_memory(&plan));
    let list = list(&["s3://b/0.tar"], &fetch);
    let samples = stream(Opening::new(list, &plan, &fetch, Passes::Once, Arc::clone(&ledger)));
    let mut samples = pin!(samples);
    let first = samples.next().await.unwrap().unwrap();
    store.put("b/0.tar", new);
    let mut got = vec![first.meta.key];
    while let Some(sample) = samples.next().await {
        got.push(sample.unwrap().meta.key);
    }
    assert!(got.len() < 300 && got == keys("a", got.len()), "{got:?}");
    assert!(ledger.losses().contains_key(&Reason::ShardChanged), "{:?}", ledger.losses());
}

/// The program, with no credentials but these.
fn shoal_with(environment: &[(&str, &str)]) -> assert_cmd::Command {
    let mut command = shoal();
    for (name, _) in
        std::env::vars().filter(|(name, _)| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|p| name.starts_with(p)))
    {
        command.env_remove(name);
    }
    command.env("HOME", "/nonexistent").envs(environment.iter().copied());
    command
}

async fn check(environment: Vec<(&'static str, String)>, spec: &'static str) -> String {
    let output = tokio::task::spawn_blocking(move || {
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        shoal_with(&environment).args(["shards", "list", spec]).output().unwrap()
    });
    let output = output.await.unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_signed_where_the_environment_has_credentials() {
    let store = Store::start(&[("b/p/0.tar", shard("a", 2)), ("b/p/1.tar", shard("b", 2))]).await;
    let endpoint = || ("AWS_ENDPOINT_URL", store.endpoint());
    let said = check(vec![endpoint()], "s3://b/p/").await;
    assert!(said.contains("s3://b/p/1.tar  tar") && said.contains("first key b000"), "{said}");
    let counts = |store: &Store| {
        let state = store.state.lock().unwrap();
        (state.signed > 0, state.unsigned > 0)
    };
    assert_eq!(counts(&store), (false, true));
    {
        let mut state = store.state.lock().unwrap();
        (state.is_private, state.unsigned) = (true, 0);
    }
    let key = ("AWS_ACCESS_KEY_ID", "a-key".to_owned());
    let secret = ("AWS_SECRET_ACCESS_KEY", "hush-hush".to_owned());
    let said = check(vec![endpoint(), key.clone(), secret.clone()], "s3://b/p/*.tar").await;
    assert!(said.contains("s3://b/p/1.tar  tar") && !said.contains("hush-hush"), "{said}");
    assert_eq!(counts(&store), (true, false));
    let said = check(vec![endpoint()], "s3://b/p/0.tar").await;
    assert!(said.contains("forbidden") && said.contains("no credentials in the environment"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_profile_are_found_and_others_refused_with_the_way_out() {
    let store = Store::start(&[("b/0.tar", shard("a", 2))]).await;
    store.state.lock().unwrap().is_private = true;
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".aws");
    std::fs::create_dir(&folder).unwrap();
    let keys = "[work]\naws_access_key_id = a-key\naws_secret_access_key = hush-hush\n";
    std::fs::write(folder.join("credentials"), keys).unwrap();
    let endpoint = store.endpoint();
    let config = format!("[profile work]\nendpoint_url = {endpoint}\n[profile login]\nsso_session = me\n");
    std::fs::write(folder.join("config"), config).unwrap();
    let with = |profile: &str| vec![("HOME", home.path().display().to_string()), ("AWS_PROFILE", profile.to_owned())];
    let said = check(with("work"), "s3://b/0.tar").await;
    assert!(said.contains("s3://b/0.tar  tar") && !said.contains("hush-hush"), "{said}");
    assert!(store.state.lock().unwrap().unsigned == 0);
    let said = check(with("login"), "s3://b/0.tar").await;
    assert!(said.contains("sso_session") && said.contains("export-credentials --profile login"), "{said}");
    let said = check(with("nobody"), "s3://b/0.tar").await;
    assert!(said.contains("AWS_PROFILE is nobody"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_and_azure_speak_their_own_ways() {
    let store =
        Store::start(&[("b/p/0.tar", shard("a", 2)), ("b/p/1.tar", shard("b", 2)), ("b/q.tar", shard("c", 1))]).await;
    let said = check(vec![("GOOGLE_BASE_URL", store.endpoint())], "gs://b/p/").await;
    assert!(said.contains("gs://b/p/0.tar  tar") && said.contains("2 shards"), "{said}");
    let account = ("AZURE_STORAGE_ACCOUNT_NAME", "someone".to_owned());
    let said = check(vec![("AZURE_STORAGE_ENDPOINT", store.endpoint()), account], "az://b/p/*.tar").await;
    assert!(said.contains("az://b/p/1.tar  tar") && said.contains("2 shards"), "{said}");
    let said = check(vec![("AZURE_STORAGE_ENDPOINT", store.endpoint())], "az://b/q.tar").await;
    assert!(said.contains("settings in the environment"), "no account: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_come_over_the_network_and_may_not_run_commands() {
    let text = "# all\r\na-{0..1}.tar\r\n\r\n@more/inner.txt\r\nhttps://u:secret@h/x.tar?sig=secret\r\n";
    let store = Store::start(&[
        ("b/lists/all.txt", Bytes::from(text)),
        ("b/lists/more/inner.txt", Bytes::from("y.tar::s3://b/z.tar\n")),
        ("b/lists/bad.txt", Bytes::from("pipe:echo mine\n")),
    ])
    .await;
    store.state.lock().unwrap().busy = 1;
    let fetch = at(&store);
    let expected = |base: &str| {
        let beside = ["a-0.tar", "a-1.tar", "more/y.tar"].map(|name| format!("{base}{name}"));
        [&beside[..], &["s3://b/z.tar".to_owned(), "https://h/x.tar".to_owned()]].concat()
    };
    assert_eq!(names(&["@s3://b/lists/all.txt"], &fetch), expected("s3://b/lists/"));
    let address = store.server.address;
    let url = format!("@http://me:secret@{address}/b/lists/all.txt?token=secret");
    assert_eq!(names(&[&url], &fetch), expected(&format!("http://{address}/b/lists/")));
    for (list, what) in [("bad", "may not run commands"), ("none", "not_found")] {
        let spec = format!("@http://me:secret@{address}/b/lists/{list}.txt?token=secret");
        let error = ShardList::parse_with(&[spec], &fetch).unwrap_err();
        let said = format!("{error} {}", error.hint().unwrap_or_default());
        assert!(said.contains(what) && !said.contains("secret"), "{said}");
    }
    assert!(!format!("{:?}", list(&[&url], &fetch)).contains("secret"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_give_shards() {
    let folder = tempfile::tempdir().unwrap();
    for (name, count) in [("a", 5), ("b", 3)] {
        std::fs::write(folder.path().join(format!("{name}.tar")), shard(name, count)).unwrap();
    }
    let spec = format!("pipe:cat {}/{{a,b}}.tar", folder.path().display());
    let (samples, losses, _) = read(list(&[&spec], &fetch()), &fetch()).await;
    assert_eq!((keys_of(&samples), losses), ([keys("a", 5), keys("b", 3)].concat(), BTreeMap::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_is_named_with_its_last_words_and_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    std::fs::write(&path, shard("a", 9)).unwrap();
    let half = format!(
        "pipe:TOKEN=Quite-Secret; head -c 9000 {}; echo starting >&2; \
         echo \"no access for $TOKEN at https://h/x?sig=abcdef\" >&2; exit 7",
        path.display()
    );
    let silent = "pipe:sleep 60".to_owned();
    let missing = "pipe:no-such-program-here --token Quite-Secret".to_owned();
    let fetch = FetchPlan { timeout_s: 0.3, ..fetch() };
    let list = list(&[&half, &silent, &missing], &fetch);
    assert!(!format!("{list:?}").contains("Quite-Secret"));
    let (samples, losses, ledger) = read(list, &fetch).await;
    assert!(!samples.is_empty() && samples.len() < 9);
    assert!(losses[&Reason::CommandFailed] >= 3, "{losses:?}");
    for said in ["exit status: 7: no access for *** at https://h/x", "no byte for 0.3 s", "not found"] {
        assert!(ledger.contains(said), "{said} in {ledger}");
    }
    assert!(!ledger.contains("Quite-Secret") && !ledger.contains("abcdef"), "{ledger}");
    let entries: Vec<Loss> = ledger.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(entries.iter().all(|entry| entry.shard.starts_with("pipe:")));
}

/// Whether a process of this group is alive.
fn is_alive(group: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        fields.len() > 2 && fields[0] != "Z" && fields[2] == group
    })
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..3_000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not in 30 s: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_command_is_left_when_nobody_wants_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (tar, group) = (folder.path().join("a.tar"), folder.path().join("group"));
    std::fs::write(&tar, shard("a", 5)).unwrap();
    let spec = format!("pipe:echo $$ > {}; sleep 900 & cat {} | cat; sleep 900", group.display(), tar.display());
    let ledger = Arc::new(Ledger::in_memory(&plan()));
    let fetch = FetchPlan { timeout_s: 900.0, ..fetch() };
    let plan = shoal::config::StreamPlan { shuffle: 1, lanes: 1, ..plan() };
    let list = list(&[&spec], &fetch);
    let mut samples = Box::pin(stream(Opening::new(list, &plan, &fetch, Passes::Once, ledger)));
    assert!(samples.next().await.unwrap().is_ok());
    let number = std::fs::read_to_string(&group).unwrap().trim().to_owned();
    assert!(is_alive(&number));
    drop(samples);
    wait_until("the group is gone", || !is_alive(&number));
}

#[test]
fn nothing_of_a_command_outlives_a_killed_process() {
    let folder = tempfile::tempdir().unwrap();
    let group = folder.path().join("group");
    let spec = format!("pipe:sleep 900 & echo $$ > {}; sleep 900", group.display());
    let mut child = std::process::Command::new(crate::run::binary()).args(["shards", "check", &spec]).spawn().unwrap();
    let number = || std::fs::read_to_string(&group).unwrap_or_default().trim().to_owned();
    wait_until("the command runs", || !number().is_empty());
    assert!(is_alive(&number()));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the group is gone", || !is_alive(&number()));
}

/// A second pass costs a request a shard and no bytes.
async fn read_twice(specs: &[&str], fetch: &FetchPlan, requests: impl Fn() -> usize, bytes: impl Fn() -> usize) {
    let (first, losses, _) = read(list(specs, fetch), fetch).await;
    assert_eq!(losses, BTreeMap::new());
    let (requests_before, bytes_before) = (requests(), bytes());
    let (second, ..) = read(list(specs, fetch), fetch).await;
    assert_eq!((first.len(), second), (first.len(), first));
    assert_eq!(requests() - requests_before, 2);
    assert_eq!(bytes() - bytes_before, 2, "one byte for each version");
}

fn cached(folder: &Path, fetch: FetchPlan) -> FetchPlan {
    FetchPlan { cache: folder.join("cache").display().to_string(), ..fetch }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_passes_need_no_bytes_from_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::start(&[("b/0.tar", shard("a", 30)), ("b/1.tar", shard("b", 9))]).await;
    let fetch = cached(folder.path(), at(&store));
    let specs = ["s3://b/{0..1}.tar"];
    let requests = || store.state.lock().unwrap().unsigned;
    read_twice(&specs, &fetch, requests, || store.bytes_sent()).await;
    store.put("b/1.tar", shard("n", 7));
    let (samples, ..) = read(list(&specs, &fetch), &fetch).await;
    assert_eq!(keys_of(&samples), [keys("a", 30), keys("n", 7)].concat(), "another version is fetched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_passes_need_no_bytes_from_a_web_server_unless_it_tells_no_version() {
    let folder = tempfile::tempdir().unwrap();
    let objects = [shard("a", 30), shard("b", 9)];
    let server = Server::with(move |request| match request.path.as_str() {
        "/0.tar" => request.honest(&objects[0], Some("\"v\"")),
        "/1.tar" => request.honest(&objects[1], Some("\"v\"")),
        "/untold.tar" => request.honest(&objects[1], None),
        _ => Reply::status(404),
    })
    .await;
    let fetch = cached(folder.path(), fetch());
    let requests = || server.requests("/0.tar") + server.requests("/1.tar");
    let specs = [server.url("/0.tar"), server.url("/1.tar")];
    read_twice(&[&specs[0], &specs[1]], &fetch, requests, || server.bytes_sent()).await;
    for _ in 0..2 {
        let before = server.bytes_sent();
        let (samples, ..) = read(list(&[&server.url("/untold.tar")], &fetch), &fetch).await;
        assert!(samples.len() == 9 && server.bytes_sent() - before > 10_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runs_share_a_cache_and_one_of_them_may_be_killed() {
    let photos =
        |i: usize| -> Bytes { std::fs::read(root().join(format!("shards/photos-{i:06}.tar"))).unwrap().into() };
    let objects: Vec<Bytes> = (0..4).map(photos).collect();
    let expected: BTreeSet<Vec<u8>> = objects.iter().map(|object| object.to_vec()).collect();
    let server = Server::with(move |request| {
        let number: usize = request.path[1..2].parse().unwrap();
        let slowly = Some((32 << 10, Duration::from_millis(4)));
        Reply { trickle: slowly, ..request.honest(&objects[number], Some("\"v\"")) }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let pipeline = small_pipeline(folder.path());
    let settings = [
        format!("stream.shards=[\"http://{}/{{0..3}}.tar\"]", server.address),
        format!("fetch.cache={}", cache.display()),
        "fetch.cache_gib=1.0".to_owned(),
        "bank.capacity=300".to_owned(),
        "train.batch_size=100".to_owned(),
        "train.steps=9".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let files = |extension: &str| -> Vec<std::path::PathBuf> {
        let all = glob::glob(&format!("{}/**/*.{extension}", cache.display())).unwrap();
        all.map(Result::unwrap).collect()
    };
    tokio::task::block_in_place(|| {
        let mut killed = start(&pipeline, &folder.path().join("killed"), &settings);
        let mut other = start(&pipeline, &folder.path().join("other"), &settings);
        while files("partial").is_empty() {
            assert!(killed.try_wait().unwrap().is_none(), "the run has ended before it kept anything");
            std::thread::sleep(Duration::from_millis(2));
        }
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert!(other.wait().unwrap().success());

        assert!(start(&pipeline, &folder.path().join("third"), &settings).wait().unwrap().success());
        let before = server.bytes_sent();
        assert!(start(&pipeline, &folder.path().join("fourth"), &settings).wait().unwrap().success());
        let sent = server.bytes_sent() - before;
        assert!(sent < 100, "{sent} bytes, though all shards are kept");
    });
    assert_eq!(files("partial"), Vec::<std::path::PathBuf>::new(), "what the killed run left is gone");
    let kept: BTreeSet<Vec<u8>> = files("shard").iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert_eq!(kept, expected);
}
