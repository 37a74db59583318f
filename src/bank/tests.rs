//! A bank against a plain list that follows the same rules.

use super::*;
use crate::world::tests::of_ranks;
use proptest::prelude::*;

/// A row whose entries tell its id and its step.
fn feature(id: u64, step: u64) -> [f32; 3] {
    [id as f32, step as f32, -0.5]
}

fn push(bank: &mut Bank, ids: &[u64], step: u64) -> Result<()> {
    let entries: Vec<f32> = ids.iter().flat_map(|&id| feature(id, step)).collect();
    let features = Tensor::from_slice(&entries).view([-1, 3]);
    bank.push(&entries_of(ids, None), &features, step)
}

/// Samples that this rank has read, those with even ids of a class of the same number.
pub(crate) fn entries_of(ids: &[u64], labels: Option<Vec<u32>>) -> Entries {
    let classes = ids.iter().map(|&id| (id % 2 == 0).then_some(id as i64)).collect();
    Entries { labels, ..Entries::of_one(ids.iter().copied().map(SampleId).collect(), classes) }
}

fn read(path: &Path, capacity: usize) -> Result<Bank> {
    Bank::read(&[path.to_path_buf()], capacity, &World::alone())
}

fn entries(bank: &Bank) -> Result<Vec<f32>> {
    Ok(Vec::<f32>::try_from(bank.rows()?.reshape([-1]))?)
}

fn assert_same(left: &Bank, right: &Bank) -> Result<()> {
    assert_eq!(entries(left)?, entries(right)?);
    assert_eq!((left.next, left.ids(), left.steps()), (right.next, right.ids(), right.steps()));
    assert_eq!((left.classes(), left.labels()), (right.classes(), right.labels()));
    assert_eq!(left.slots, right.slots);
    Ok(())
}

#[test]
fn the_oldest_sample_makes_room_and_a_known_one_keeps_its_place_and_label() -> Result<()> {
    let mut bank = Bank::new(3, 3)?;
    push(&mut bank, &[1, 2, 3], 0)?;
    bank.relabel(&[7, 8, 9])?;
    push(&mut bank, &[4, 2], 5)?;
    assert_eq!(bank.ids(), [4, 2, 3].map(SampleId));
    assert_eq!(bank.steps(), [5, 5, 0]);
    assert_eq!(bank.labels(), [None, Some(8), Some(9)]);
    assert_eq!(bank.classes(), [Some(4), Some(2), None]);
    assert_eq!(entries(&bank)?, [feature(4, 5), feature(2, 5), feature(3, 0)].concat());
    assert_eq!(bank.mean_age(6), (1.0 + 1.0 + 6.0) / 3.0);
    Ok(())
}

#[test]
fn what_cannot_be_clustered_is_refused_or_cut() -> Result<()> {
    let mut bank = Bank::new(2, 1)?;
    let push_value = |bank: &mut Bank, value: f64| {
        let value = Tensor::from_slice(&[value]).view([1, 1]).to_kind(Kind::BFloat16);
        bank.push(&entries_of(&[1], None), &value, 3)
    };
    assert!(push_value(&mut bank, f64::NAN).is_err());
    assert!(push_value(&mut bank, f64::INFINITY).is_err());
    push_value(&mut bank, -1e6)?;
    assert_eq!(entries(&bank)?, [-65_504.0]);
    let zeros = |rows: i64, width: i64| Tensor::zeros([rows, width], (Kind::Float, Device::Cpu));
    assert!(bank.push(&entries_of(&[1], None), &zeros(1, 2), 3).is_err());
    assert!(bank.push(&entries_of(&[1], None), &zeros(2, 1), 3).is_err());
    Ok(())
}

#[test]
fn a_bank_of_another_capacity_takes_the_newest_entries() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("bank.arrow");
    let mut bank = Bank::new(4, 3)?;
    push(&mut bank, &[1, 2, 3, 4, 5, 6], 0)?;
    bank.capture()?.write(&path)?;
    let mut smaller = read(&path, 2)?;
    assert_eq!(smaller.ids(), [5, 6].map(SampleId));
    push(&mut smaller, &[7], 1)?;
    assert_eq!(smaller.ids(), [7, 6].map(SampleId));
    let mut larger = read(&path, 5)?;
    assert_eq!(larger.ids(), [3, 4, 5, 6].map(SampleId));
    push(&mut larger, &[7, 8], 1)?;
    assert_eq!(larger.ids(), [8, 4, 5, 6, 7].map(SampleId));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Against a plain list that follows the same rules; and written and read, the bank goes on as if nothing had been.
    #[test]
    fn a_bank_is_a_ring_of_distinct_samples(
        capacity in 1_usize..6,
        batches in prop::collection::vec(prop::collection::vec(0_u64..9, 1..8), 1..8),
    ) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("bank.arrow");
        let mut bank = Bank::new(capacity, 3).expect("a bank");
        let mut oldest_first: Vec<(u64, u64)> = Vec::new();
        for (step, batch) in batches.iter().enumerate() {
            push(&mut bank, batch, step as u64).expect("a push");
            for &id in batch {
                if let Some(entry) = oldest_first.iter_mut().find(|entry| entry.0 == id) {
                    entry.1 = step as u64;
                    continue;
                }
                if oldest_first.len() == capacity {
                    oldest_first.remove(0);
                }
                oldest_first.push((id, step as u64));
            }
            let start = if bank.len() == capacity { bank.next } else { 0 };
            let entries = entries(&bank).expect("rows");
            for (rank, &(id, step)) in oldest_first.iter().enumerate() {
                let slot = (start + rank) % bank.len();
                prop_assert_eq!((bank.ids()[slot], bank.steps()[slot]), (SampleId(id), step));
                prop_assert_eq!(&entries[slot * 3..slot * 3 + 3], &feature(id, step));
            }
            bank.capture().and_then(|capture| capture.write(&path)).expect("a file");
            let copy = read(&path, capacity).expect("the same bank");
            assert_same(&bank, &copy).expect("rows");
            bank = copy;
        }
    }
}

/// What rank `rank` of `size` has read of a batch that is dealt in turn.
fn dealt(ids: &[u64], size: usize, labels: &[u32]) -> Entries {
    let readers = (0..ids.len()).map(|row| (row % size, row / size)).collect();
    Entries { readers, ..entries_of(ids, Some(labels.to_vec())) }
}

#[test]
fn ranks_hold_the_bank_of_one_and_any_number_of_them_reads_it_again() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let batches: Vec<Vec<u64>> = vec![(0..12).collect(), (8..21).collect(), vec![3, 30, 31, 3, 32], (40..44).collect()];
    let labels = |batch: &[u64]| batch.iter().map(|&id| id as u32 * 2).collect::<Vec<_>>();
    let mut one = Bank::new(17, 3)?;
    for (step, batch) in batches.iter().enumerate() {
        let rows: Vec<f32> = batch.iter().flat_map(|&id| feature(id, step as u64)).collect();
        one.push(&dealt(batch, 1, &labels(batch)), &Tensor::from_slice(&rows).view([-1, 3]), step as u64)?;
    }
    let path = |rank: usize| folder.path().join(format!("bank-{rank}.arrow"));
    let (all, ids, steps, labels_of_one, next) =
        (entries(&one)?, one.ids().to_vec(), one.steps().to_vec(), one.labels().to_vec(), one.next);
    let of_rank =
        |rank: usize, size: usize| all.chunks(3).skip(rank).step_by(size).flatten().copied().collect::<Vec<_>>();
    of_ranks(4, |world| {
        let mut bank = Bank::shared(17, 3, world)?;
        for (step, batch) in batches.iter().enumerate() {
            let own = batch.iter().skip(world.rank()).step_by(4);
            let rows: Vec<f32> = own.flat_map(|&id| feature(id, step as u64)).collect();
            bank.push(&dealt(batch, 4, &labels(batch)), &Tensor::from_slice(&rows).view([-1, 3]), step as u64)?;
        }
        assert_eq!((bank.ids(), bank.steps(), bank.labels()), (&ids[..], &steps[..], &labels_of_one[..]));
        assert_eq!(entries(&bank)?, of_rank(world.rank(), 4));
        bank.capture()?.write(&path(world.rank()))
    });
    let paths: Vec<PathBuf> = (0..4).map(path).collect();
    assert_same(&Bank::read(&paths, 17, &World::alone())?, &one)?;
    for size in [2, 3] {
        of_ranks(size, |world| {
            let bank = Bank::read(&paths, 17, world)?;
            assert_eq!((bank.ids(), bank.next), (&ids[..], next));
            assert_eq!(entries(&bank)?, of_rank(world.rank(), size));
            Ok(())
        });
    }
    let smaller = Bank::read(&paths, 5, &World::alone())?;
    assert_eq!(smaller.len(), 5);
    assert!(Bank::read(&paths[..3], 17, &World::alone()).is_err(), "a part is missing");
    let swapped = [paths[1].clone(), paths[0].clone(), paths[2].clone(), paths[3].clone()];
    assert!(Bank::read(&swapped, 17, &World::alone()).is_err());
    Ok(())
}
