//! Several ranks: together they read everything once a pass, evenly, and what is left can be dealt to more or fewer of them.

use super::*;

fn rank_stream(
    list: &ShardList,
    plan: &StreamPlan,
    (rank, world): (u32, u32),
    start: Cursor,
) -> impl Stream<Item = Result<RawSample>> + Send + use<> {
    let share = Share::new(rank, world).unwrap();
    stream_with(Opening { share, ..opening(list, plan, &ledger(), start) }, 5)
}

#[test]
fn few_shards_are_shared_evenly() {
    let folder = tempfile::tempdir().unwrap();
    // one huge, some empty, fewer than ranks
    for sizes in [&[100][..], &[64, 0, 3], &[10, 10, 10, 10, 10]] {
        let shards: Vec<_> =
            sizes.iter().enumerate().map(|(i, &size)| (format!("{i}.tar"), samples(&format!("s{i}"), size))).collect();
        let folder = folder.path().join(sizes.len().to_string());
        std::fs::create_dir(&folder).unwrap();
        let list = list_of(&folder, &shards);
        let plan = StreamPlan { lanes: 4, shuffle: 8, max_loss_rate: 1.0, ..plan() };
        let ranks: Vec<_> = (0..4)
            .map(|rank| block_on(take_passes(rank_stream(&list, &plan, (rank, 4), Cursor::default()), 0)))
            .collect();
        assert_eq!(sorted_keys(ranks.iter().flatten()), keys_of(sizes));
        let counts: Vec<usize> = ranks.iter().map(Vec::len).collect();
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= sizes.len(), "{sizes:?}: {counts:?}");
    }
}

#[test]
fn a_rank_without_a_sample_in_a_pass_goes_on_into_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[1]);
    for rank in 0..3 {
        let got = block_on(take(rank_stream(&list, &plan(), (rank, 3), Cursor::default()), 4));
        let passes: Vec<u64> = got.iter().map(|sample| sample.meta.pass).collect();
        assert!(passes.windows(2).all(|pair| pair[1] == pair[0] + 3), "{passes:?}");
    }
}

#[test]
fn a_shard_is_lost_once_for_all_ranks_that_share_it() {
    let folder = tempfile::tempdir().unwrap();
    let no_image = crate::shards::testing::tar_of(&[("a.jpg", b"\xff\xd8\xff".to_vec()), ("b.txt", b"x".to_vec())]);
    let list = list_of(folder.path(), &[("0.tar".to_owned(), no_image), ("1.tar".to_owned(), samples("s", 9))]);
    let plan = StreamPlan { max_loss_rate: 1.0, ..plan() };
    let mut losses = 0;
    for rank in 0..3 {
        let ledger = ledger();
        let opening = Opening::new(list.clone(), &plan, &fetch(), Passes::Once, Arc::clone(&ledger));
        let part = block_on(take(stream(Opening { share: Share::new(rank, 3).unwrap(), ..opening }), 20));
        assert!((3..=4).contains(&part.len()));
        losses += ledger.losses().get(&Reason::NoImage).copied().unwrap_or(0);
    }
    assert_eq!(losses, 1);
}

#[test]
fn a_cursor_of_another_rank_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let list = mixed(folder.path(), &[9, 9]);
    let sample = block_on(take(rank_stream(&list, &plan(), (1, 3), Cursor::default()), 2)).pop().unwrap();
    let error =
        block_on(async { pin!(rank_stream(&list, &plan(), (1, 2), sample.cursor)).next().await.unwrap().unwrap_err() });
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("rank 1 of 3, this is rank 1 of 2"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn a_run_goes_on_with_more_or_fewer_ranks(
        sizes in prop::collection::vec(1_usize..16, 1..7),
        taken in prop::collection::vec(0_usize..60, 1..5),
        worlds in prop::collection::vec(1_u32..6, 1..3),
        lanes in 1_usize..4,
        shuffle in 0_usize..12,
        by_arrival: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let list = mixed(folder.path(), &sizes);
        let order = if by_arrival { Order::Arrival } else { Order::Exact };
        let plan = StreamPlan { lanes, shuffle, order, ..plan() };
        let opening = opening(&list, &plan, &ledger(), Cursor::default());
        let mut got = Vec::new();
        let mut cursors = vec![Cursor::default(); taken.len()];
        // ranks that are as far apart as chance wills, dealt anew once or twice
        for world in worlds {
            let before = cursors.len() as u32;
            for rank in 0..before {
                let cursor = &mut cursors[rank as usize];
                let count = taken[rank as usize % taken.len()];
                let samples = block_on(take(rank_stream(&list, &plan, (rank, before), cursor.clone()), count));
                if let Some(last) = samples.last() {
                    *cursor = last.cursor.clone();
                }
                got.extend(samples);
            }
            cursors = block_on(redeal(&opening, &cursors, world)).unwrap();
            let text = serde_json::to_string(&cursors).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Vec<Cursor>>(&text).unwrap(), &cursors);
        }
        let last = got.iter().map(|sample| sample.meta.pass).max().unwrap_or(0) + 1;
        let world = cursors.len() as u32;
        for (rank, cursor) in (0..world).zip(cursors) {
            got.extend(block_on(take_passes(rank_stream(&list, &plan, (rank, world), cursor), last)));
        }
        for pass in 0..=last {
            prop_assert_eq!(sorted_keys(got.iter().filter(|sample| sample.meta.pass == pass)), keys_of(&sizes), "pass {}", pass);
        }
    }
}
