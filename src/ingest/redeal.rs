//! What is left of the lists, dealt anew among another number of ranks.
//!
//! In: the cursors of all ranks of a run, of the same moment. Out: as many cursors as are asked for, which together read exactly
//! what those would have read of the passes under way, nothing lost and nothing twice; after that come ordinary passes. Ranks may
//! stand in different passes: from the hindmost to the foremost each pass has its rest dealt on its own. Portions that are left
//! are dealt, and split where they are few, as shards are (`share.rs`); the samples that wait in shuffle buffers go round in turn.
//!
//! Refused: cursors that are not those of ranks 0, 1, ... of one world, passes over lists that differ from rank to rank, and shards
//! dealt anew so often within a pass that their parts cannot be counted.

use super::cursor::{Checkpoint, Cursor, Place, Point};
use super::pass::Rules;
use super::share::{Portion, Share, deal};
use super::shuffle::permutation;
use super::stream::{Opening, Running};
use crate::error::{Error, Result};
use crate::shards::fingerprint;
use crate::shards::index::Stamp;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Where one rank stands in one list.
#[derive(Debug)]
pub(super) struct RankState {
    pub rules: Rules,
    pub point: Point,
    /// Portions of its pass that are not read to their end.
    pub rest: Vec<Portion>,
}

/// What is left of one pass over one list, of all ranks.
struct Left {
    names: Arc<[Arc<str>]>,
    portions: Vec<Portion>,
    waiting: Vec<Place>,
    stamps: BTreeMap<usize, Stamp>,
    draws: u64,
}

/// Deals what the ranks of `cursors` have left of `opening`'s lists to `world` ranks; share and start of `opening` are not
/// looked at. Needs a tokio runtime: it reads as much again as going on from the cursors would.
///
/// # Errors
/// What going on from a cursor reports, and cursors that do not belong together.
pub async fn redeal(opening: &Opening, cursors: &[Cursor], world: u32) -> Result<Vec<Cursor>> {
    let old_world = u32::try_from(cursors.len()).unwrap_or(u32::MAX);
    let mut lists: Vec<Vec<RankState>> = Vec::new();
    let mut mixed = 0;
    for (rank, start) in (0..old_world).zip(cursors) {
        let share = Share::new(rank, old_world)?;
        let running = Running::start(Opening { share, start: start.clone(), ..opening.clone() }, u64::MAX).await?;
        mixed = running.mixed().max(mixed);
        for (list, state) in running.states().enumerate() {
            match lists.get_mut(list) {
                Some(states) => states.push(state),
                None => lists.push(vec![state]),
            }
        }
    }
    let mut dealt = Vec::with_capacity(world as usize);
    for rank in 0..world {
        let share = Share::new(rank, world)?;
        let mut points = Vec::with_capacity(lists.len());
        for states in &lists {
            points.push(rank_point(states, share)?);
        }
        let checkpoint = Checkpoint { seed: opening.plan.seed, share, mixed, lists: points };
        dealt.push(Cursor { checkpoint: Some(Arc::new(checkpoint)), ..Cursor::default() });
    }
    Ok(dealt)
}

/// Where a rank of the new world begins in a list.
fn rank_point(states: &[RankState], share: Share) -> Result<Point> {
    let passes = states.iter().map(|state| state.point.pass);
    let first = passes.clone().min().unwrap_or(0);
    let later = states.iter().flat_map(|state| &state.point.later).map(|point| point.pass);
    let last = passes.chain(later).max().unwrap_or(0);
    let mut points = VecDeque::new();
    for pass in first..=last {
        points.push_back(deal_pass(pass, left_of(pass, states)?, &states[0].rules, share)?);
    }
    let mut point = points.pop_front().unwrap_or_default();
    point.later = points;
    Ok(point)
}

fn deal_pass(pass: u64, left: Left, rules: &Rules, share: Share) -> Result<Point> {
    let order = permutation(rules.seed, pass, left.portions.len());
    let parts = deal(&order, pass, share, rules.lanes);
    let portions = parts.iter().map(|part| left.portions[part.shard].split(part.member, part.every));
    let portions: Vec<Portion> = portions.collect::<Result<_>>()?;
    let waiting = left.waiting.into_iter().skip(share.rank() as usize).step_by(share.world() as usize);
    Ok(Point {
        pass,
        fingerprint: fingerprint(left.names.iter().map(|name| &**name)),
        shards: left.names,
        order: Some(portions.into()),
        waiting: waiting.collect(),
        stamps: left.stamps,
        draws: left.draws,
        ..Point::default()
    })
}

/// What all ranks together have left of a pass.
fn left_of(pass: u64, states: &[RankState]) -> Result<Left> {
    let names = names_of(pass, states)?;
    let mut left = Left { portions: Vec::new(), waiting: Vec::new(), stamps: BTreeMap::new(), draws: 0, names };
    for RankState { rules, point, rest } in states {
        if point.pass > pass {
            continue;
        }
        let later = point.later.iter().find(|later| later.pass == pass);
        let (under_way, mut portions) = match later {
            _ if point.pass == pass => (Some(point), rest.clone()),
            Some(later) => (Some(later), later.order.as_deref().unwrap_or_default().to_vec()),
            None => (None, rules.order(pass, left.names.len())),
        };
        let mut waiting = under_way.map(|point| point.waiting.clone()).unwrap_or_default();
        let mut stamps = under_way.map(|point| point.stamps.clone()).unwrap_or_default();
        if rules.follows {
            let numbers = renumber(&left.names, point);
            portions.iter_mut().for_each(|portion| portion.shard = numbers[portion.shard]);
            waiting.iter_mut().for_each(|place| place.shard = numbers[place.shard]);
            stamps = stamps.into_iter().map(|(shard, stamp)| (numbers[shard], stamp)).collect();
            let seen: HashSet<usize> = numbers.into_iter().collect();
            let unseen = (0..left.names.len()).filter(|number| !seen.contains(number));
            portions.extend(unseen.map(|number| rules.appeared(number, &left.names[number])));
        }
        left.portions.extend(portions);
        left.waiting.extend(waiting);
        left.stamps.extend(stamps);
        left.draws += under_way.map_or(0, |point| point.draws);
    }
    Ok(left)
}

/// The shards of a pass, on which all ranks must agree, but for those that appeared in a list that is followed.
fn names_of(pass: u64, states: &[RankState]) -> Result<Arc<[Arc<str>]>> {
    if states.iter().any(|state| state.rules.follows) {
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut known = HashSet::new();
        for name in states.iter().flat_map(|state| state.point.shards.iter()) {
            if known.insert(name) {
                names.push(Arc::clone(name));
            }
        }
        return Ok(names.into());
    }
    let points = || states.iter().flat_map(|state| std::iter::once(&state.point).chain(&state.point.later));
    let mut of_pass: Vec<&Point> = points().filter(|point| point.pass == pass).collect();
    if of_pass.is_empty() {
        of_pass = points().collect();
    }
    let agree = of_pass.windows(2).all(|pair| pair[0].fingerprint == pair[1].fingerprint);
    match of_pass.first() {
        Some(point) if agree => Ok(Arc::clone(&point.shards)),
        _ => Err(Error::data(format!("the ranks read different lists in pass {pass}"))
            .with_hint("go on with as many ranks as there were until the pass is over")),
    }
}

/// The numbers, in the list of all ranks, of the shards that one rank knows.
fn renumber(names: &[Arc<str>], point: &Point) -> Vec<usize> {
    let numbers: HashMap<&str, usize> = names.iter().enumerate().map(|(number, name)| (&**name, number)).collect();
    point.shards.iter().filter_map(|name| numbers.get(&**name).copied()).collect()
}
