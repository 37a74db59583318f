//! Several lists in one stream: shares as the weights say, each list's passes whole, and on from any cursor.

use super::*;

/// Two folders of these sizes, as specs; the keys of the second begin with `t`.
fn two_lists(folder: &Path) -> ShardList {
    for (name, sizes) in [("a", [9, 4, 7]), ("b", [5, 3, 6])] {
        std::fs::create_dir(folder.join(name)).unwrap();
        for (i, size) in sizes.into_iter().enumerate() {
            std::fs::write(folder.join(format!("{name}/{i}.tar")), samples(&format!("{name}{i}"), size)).unwrap();
        }
    }
    let specs = ["a", "b"].map(|name| folder.join(name).display().to_string());
    ShardList::parse(&specs).unwrap()
}

#[test]
fn each_list_has_its_share_and_its_own_whole_passes() {
    let folder = tempfile::tempdir().unwrap();
    let list = two_lists(folder.path());
    let plan = StreamPlan { lanes: 3, shuffle: 8, weights: vec![3.0, 1.0], ..plan() };
    let got = block_on(take(run(&list, &plan, &ledger(), 1_000, Cursor::default()), 2_000));
    let of = |name: &'static str| move |sample: &&RawSample| sample.meta.key.starts_with(name);
    // the deviation of the count is sqrt(2000 * 3 / 16) = 19
    let first = got.iter().filter(of("a")).count();
    assert!(first.abs_diff(1_500) < 5 * 19, "{first}");
    for (name, size) in [("a", 20), ("b", 14)] {
        let samples: Vec<&RawSample> = got.iter().filter(of(name)).collect();
        for (pass, samples) in samples.chunks_exact(size).enumerate() {
            assert!(samples.iter().all(|sample| sample.meta.pass == pass as u64));
            let mut keys = sorted_keys(samples.iter().copied());
            keys.dedup();
            assert_eq!(keys.len(), size);
        }
    }
}

#[test]
fn a_mixed_stream_goes_on_from_every_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let list = two_lists(folder.path());
    for order in [Order::Exact, Order::Arrival] {
        let plan = StreamPlan { lanes: 4, shuffle: 8, weights: vec![1.0, 2.0], order, ..plan() };
        let undisturbed = block_on(take(run(&list, &plan, &ledger(), 5, Cursor::default()), 100));
        for at in (0..80).step_by(7) {
            let rest = block_on(take(run(&list, &plan, &ledger(), 5, undisturbed[at].cursor.clone()), 90));
            let expected = &undisturbed[at + 1..];
            if order == Order::Exact {
                assert!(rest.iter().zip(expected).all(|(a, b)| identity(a) == identity(b)), "after {at}");
                continue;
            }
            // whose turn it is stays the same, and so do the samples of each pass
            let list_of = |sample: &RawSample| sample.meta.key.as_bytes()[0];
            assert!(rest.iter().zip(expected).all(|(a, b)| list_of(a) == list_of(b)), "after {at}");
            let seen = undisturbed[..=at].iter().chain(&rest);
            let in_first = seen.filter(|sample| sample.meta.pass == 0 && list_of(sample) == b'a');
            let keys = sorted_keys(in_first);
            assert!(keys.len() == 20 && keys.windows(2).all(|pair| pair[0] != pair[1]), "{keys:?}");
        }
    }
}

#[test]
fn once_reads_all_lists_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let list = two_lists(folder.path());
    let plan = StreamPlan { weights: vec![1.0, 1.0], ..plan() };
    let stream = stream(Opening::new(list, &plan, &fetch(), Passes::Once, ledger()));
    let keys: Vec<String> = block_on(take(stream, 100)).into_iter().map(|sample| sample.meta.key).collect();
    assert_eq!((keys.len(), &*keys[0], &*keys[33]), (34, "a0/0", "b2/5"));
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let list = two_lists(folder.path());
    let sample = block_on(take(run(&list, &plan(), &ledger(), 5, Cursor::default()), 3)).pop().unwrap();
    for (weights, cursor) in [(vec![1.0; 3], Cursor::default()), (vec![1.0; 2], sample.cursor)] {
        let plan = StreamPlan { weights, ..plan() };
        let error =
            block_on(async { pin!(run(&list, &plan, &ledger(), 5, cursor)).next().await.unwrap().unwrap_err() });
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("lists") || error.to_string().contains("weights"), "{error}");
    }
}
