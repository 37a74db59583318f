//! Ranks as threads of one process, over the real engine on the loopback.

use super::*;
use std::net::TcpListener;

/// What `work` gives on each of `size` ranks.
pub(crate) fn ranks<T: Send>(size: usize, work: impl Fn(&World) -> Result<T> + Sync) -> Vec<Result<T>> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
    let run = |rank: usize| {
        let launch = Launch {
            rank,
            size,
            local_rank: rank,
            local_size: size,
            host: "127.0.0.1".into(),
            port,
            launcher_keeps_store: false,
        };
        let plan = RanksPlan { timeout_s: 60.0, ..RanksPlan::default() };
        let world = World::join(&launch, &plan, Device::Cpu, "the same", |error| panic!("{error}"))?;
        let outcome = work(&world);
        world.part(outcome.as_ref().map(|_| ()));
        outcome
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}

/// The same, where nothing goes wrong.
pub(crate) fn of_ranks<T: Send>(size: usize, work: impl Fn(&World) -> Result<T> + Sync) -> Vec<T> {
    ranks(size, work).into_iter().map(|outcome| outcome.expect("no error")).collect()
}

#[test]
fn ranks_add_gather_and_exchange() {
    let found = of_ranks(3, |world| {
        let rank = world.rank() as i64;
        let sum = world.sum(&[1.0, rank as f64])?;
        let largest = world.largest(&[rank, -rank])?;
        let bytes = world.gather_bytes(&vec![rank as u8; world.rank()])?;
        // Rank r sends r rows to rank 0, none to rank 1, one to rank 2.
        let rows = Tensor::arange(rank + 1, (Kind::Int64, Device::Cpu)) + 10 * rank;
        let takes = [[0, 1, 2], [0, 0, 0], [1, 1, 1]][world.rank()];
        let taken = world.exchange(&rows.view([-1, 1]), &[rank, 0, 1], &takes)?;
        let (all, not_all) = (world.all(true)?, world.all(rank != 1)?);
        Ok((sum, largest, bytes, Vec::<i64>::try_from(taken.reshape([-1]))?, all, not_all))
    });
    for (rank, (sum, largest, bytes, taken, all, not_all)) in found.into_iter().enumerate() {
        assert_eq!((sum, largest, all, not_all), (vec![3.0, 3.0], vec![2, 0], true, false));
        assert_eq!(bytes, [vec![], vec![1], vec![2, 2]]);
        assert_eq!(taken, [vec![10, 20, 21], vec![], vec![0, 11, 22]][rank]);
    }
}

/// Small tensors go in few hops, large ones round gloo's ring: with any number of ranks both must say the same.
#[test]
fn few_hops_give_what_the_ring_gives() {
    const LARGE: i64 = 40_000; // above 128 KiB in every kind of number below
    for size in 2..=7 {
        let found = of_ranks(size, |world| {
            let rank = world.rank() as i64;
            for kind in [Kind::Int64, Kind::Float, Kind::Double] {
                // whole numbers, which every order of adding sums to the same
                let large = (Tensor::arange(LARGE, (kind, Device::Cpu)) * (rank + 1)).remainder(1_009);
                for reduction in [Reduction::Sum, Reduction::Min, Reduction::Max] {
                    let (ring, hops) = (large.copy(), large.narrow(0, 0, 100).copy());
                    world.reduce(&ring, reduction)?;
                    world.reduce(&hops, reduction)?;
                    assert_eq!(hops, ring.narrow(0, 0, 100), "{size} ranks, {kind:?}, {reduction:?}");
                }
                let (ring, hops) = (world.gather(&large)?, world.gather(&large.narrow(0, 0, 100))?);
                assert_eq!(hops, ring.narrow(1, 0, 100), "{size} ranks, {kind:?}");
            }
            // fractions: another order of adding gives other last bits, but to all ranks the same
            let fractions = [1.0 / (rank + 3) as f64, 1e9 / (rank + 7) as f64];
            let sums = world.sum(&fractions)?;
            assert_eq!(world.gather(&Tensor::zeros([3, 0], (Kind::Float, Device::Cpu)))?.size(), [size as i64, 3, 0]);
            Ok(sums.into_iter().map(f64::to_bits).collect::<Vec<u64>>())
        });
        assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{size} ranks: {found:?}");
    }
}

#[test]
fn what_rank_0_finds_and_what_it_fails_by_is_told_to_all() {
    let found = of_ranks(2, |world| {
        let halves = || Ok(vec![Tensor::from_slice(&[1.5_f32, 2.5]).view([2, 1]), Tensor::from_slice(&[7_i64])]);
        let told = world.on_first(Device::Cpu, halves)?;
        let refused = world.on_first(Device::Cpu, || Err(Error::data("no rows").with_hint("take some")));
        let refused = refused.expect_err("rank 0 failed");
        Ok((
            told[0].size(),
            told[0].double_value(&[1, 0]),
            told[1].int64_value(&[0]),
            refused.to_string(),
            refused.hint().is_some(),
        ))
    });
    for (rank, (shape, value, number, refused, has_hint)) in found.into_iter().enumerate() {
        assert_eq!((shape, value, number, has_hint), (vec![2, 1], 2.5, 7, true));
        assert!(refused.ends_with("no rows") && refused.starts_with("rank 0: ") == (rank == 1), "{refused}");
    }
}

#[test]
fn a_patient_meeting_waits_for_the_last_and_notes_are_read_by_all() {
    let found = of_ranks(3, |world| {
        if world.rank() == 2 {
            std::thread::sleep(Duration::from_millis(300));
            world.post("note", b"late")?;
        }
        let started = Instant::now();
        world.meet()?;
        Ok((world.await_post("note")?, started.elapsed()))
    });
    assert!(found.iter().all(|(note, _)| note == b"late"));
    assert!(found[0].1 > Duration::from_millis(200) && found[1].1 > Duration::from_millis(200), "{found:?}");
}

#[test]
fn calls_of_a_world_aside_never_meet_those_of_the_first() {
    let found = of_ranks(2, |world| {
        let aside = world.aside("cluster")?;
        let rank = world.rank() as f64;
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| (0..50).map(|_| aside.sum(&[1.0 + rank])).collect::<Result<Vec<_>>>());
            let here = (0..50).map(|_| world.sum(&[100.0])).collect::<Result<Vec<_>>>()?;
            Ok((here, beside.join().expect("a thread")?))
        })
    });
    for (here, beside) in found {
        assert!(here.iter().all(|sum| sum == &[200.0]) && beside.iter().all(|sum| sum == &[3.0]));
    }
}

#[test]
fn a_rank_that_fails_ends_the_others_with_its_number_and_its_reason() {
    let found = ranks(3, |world| {
        if world.rank() == 1 {
            return Err(Error::data("the shards are gone"));
        }
        world.sum(&[1.0]).map(|_| ())
    });
    for (rank, outcome) in found.into_iter().enumerate() {
        let error = outcome.expect_err("nobody goes on");
        let (code, text) = (error.exit_code(), error.to_string());
        match rank {
            1 => assert_eq!((code, text.as_str()), (3, "the shards are gone")),
            _ => {
                assert!(code == 4 && text.contains("rank 1 ") && text.contains("the shards are gone"), "{code} {text}")
            }
        }
    }
}

#[test]
fn the_gradient_of_a_sum_over_ranks_is_the_sum_of_their_gradients() {
    let found = of_ranks(2, |world| {
        let weight = 1.0 + world.rank() as f64;
        let part = Tensor::from_slice(&[weight as f32, 3.0]).set_requires_grad(true);
        let sum = world.sum_with_gradient(&part)?;
        let loss = (&sum * weight).sum(Kind::Float);
        loss.f_backward()?;
        Ok((Vec::<f32>::try_from(sum.detach())?, Vec::<f32>::try_from(part.grad())?))
    });
    assert!(found.iter().all(|(sum, gradient)| sum == &[3.0, 6.0] && gradient == &[3.0, 3.0]), "{found:?}");
}

#[test]
fn a_reducer_averages_gradients_in_buckets_step_after_step() {
    let found = of_ranks(2, |world| {
        let own = world.rank() as f32;
        let layers: Vec<Tensor> = (0..5_i64)
            .map(|layer| {
                Tensor::full([300, 1_000], 0.01 * layer as f64, (Kind::Float, Device::Cpu)).set_requires_grad(true)
            })
            .collect();
        let mut reducer = world.reducer(&layers)?.expect("two ranks");
        let mut gradients = Vec::new();
        for step in 0..3 {
            layers.iter().for_each(|layer| {
                let mut gradient = layer.grad();
                if gradient.defined() {
                    let _ = tch::no_grad(|| gradient.zero_());
                }
            });
            let mut loss = Tensor::zeros([], (Kind::Float, Device::Cpu));
            for layer in &layers {
                loss += (layer * f64::from(own + step as f32)).sum(Kind::Float);
            }
            world.backward(|| {
                reducer.prepare()?;
                Ok(loss.f_backward()?)
            })?;
            gradients
                .push(layers.iter().map(|layer| layer.grad().mean(Kind::Float).double_value(&[])).collect::<Vec<_>>());
        }
        Ok(gradients)
    });
    for gradients in found {
        for (step, gradients) in gradients.into_iter().enumerate() {
            assert!(
                gradients.iter().all(|gradient| (gradient - 0.5 - step as f64).abs() < 1e-5),
                "{step} {gradients:?}"
            );
        }
    }
}
