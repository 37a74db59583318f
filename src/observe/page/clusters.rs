//! Clusters for the page: which there are, who is in one, and thumbnails of samples.

use super::answer::Refused;
use super::shared::Shared;
use crate::cluster::assignments::Assignments;
use crate::shards::SampleId;
use crate::visualize::choice::{Choice, Clusters, Order, Sort};
use axum::Json;
use axum::extract::{Path, Query, State};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Clusters of one answer, at most.
const MOST_CLUSTERS: usize = 100;
/// Members of a cluster in a list of clusters.
const PREVIEW: usize = 8;
/// Members of one cluster in an answer, at most.
const MOST_MEMBERS: usize = 60;
/// Thumbnails of one answer, at most.
const MOST_THUMBNAILS: usize = 200;

/// The clusters after a cycle.
#[derive(Debug, Default, Serialize)]
pub(super) struct Found {
    step: Option<u64>,
    /// Clusters that are not empty.
    count: usize,
    samples: usize,
    clusters: Vec<ClusterView>,
}

#[derive(Debug, Serialize)]
struct ClusterView {
    cluster: usize,
    size: usize,
    /// Distance, and where classes are known purity and entropy.
    description: String,
    members: Vec<Member>,
}

/// A sample in a cluster.
#[derive(Debug, Serialize)]
pub(super) struct Member {
    /// In hexadecimal: numbers of 64 bits do not survive in JavaScript.
    id: String,
    distance: f32,
    class: Option<i64>,
}

/// Which clusters are asked for.
#[derive(Debug, Deserialize)]
pub(super) struct Wish {
    #[serde(default)]
    from: usize,
    #[serde(default = "some")]
    count: usize,
    #[serde(default)]
    sort: Sort,
}

fn some() -> usize {
    12
}

/// `/api/clusters`
pub(super) async fn list(State(shared): State<Arc<Shared>>, Query(wish): Query<Wish>) -> Result<Json<Found>, Refused> {
    let found = shared.work(move |shared| {
        let Some((step, assignments)) = shared.assignments()? else { return Ok(Found::default()) };
        let clusters = Clusters::of(&assignments);
        let count = wish.count.min(MOST_CLUSTERS);
        let first = Choice::First(wish.from.saturating_add(count));
        let shown = clusters.choose(&first, wish.sort)?.into_iter().skip(wish.from);
        let view = |cluster: usize| ClusterView {
            cluster,
            size: clusters.size(cluster),
            description: clusters.describe(cluster).replace('\n', " · "),
            members: members(&assignments, &clusters.members(cluster, Order::Nearest, PREVIEW)),
        };
        Ok(Found {
            step: Some(step),
            count: clusters.count(),
            samples: assignments.ids.len(),
            clusters: shown.map(view).collect(),
        })
    });
    found.await.map(Json)
}

/// In which order members of a cluster come.
#[derive(Debug, Deserialize)]
pub(super) struct MemberWish {
    #[serde(default)]
    order: Order,
}

/// `/api/clusters/N`
pub(super) async fn one(
    State(shared): State<Arc<Shared>>,
    Path(cluster): Path<usize>,
    Query(wish): Query<MemberWish>,
) -> Result<Json<Vec<Member>>, Refused> {
    let found = shared.work(move |shared| {
        let Some((_, assignments)) = shared.assignments()? else {
            return Err(Refused::missing("there are no clusters yet"));
        };
        let clusters = Clusters::of(&assignments);
        if clusters.size(cluster) == 0 {
            return Err(Refused::missing(format!("cluster {cluster} is empty, or there is none")));
        }
        Ok(members(&assignments, &clusters.members(cluster, wish.order, MOST_MEMBERS)))
    });
    found.await.map(Json)
}

fn members(assignments: &Assignments, rows: &[usize]) -> Vec<Member> {
    let member = |&row: &usize| Member {
        id: format!("{:016x}", assignments.ids[row].0),
        distance: assignments.distances[row],
        class: assignments.classes[row],
    };
    rows.iter().map(member).collect()
}

/// Which thumbnails are asked for: ids with commas between them.
#[derive(Debug, Deserialize)]
pub(super) struct ThumbnailWish {
    ids: String,
}

/// A thumbnail, as it can stand in an `img`.
#[derive(Debug, Serialize)]
pub(super) struct ThumbnailView {
    key: String,
    src: String,
}

/// `/api/thumbnails`
pub(super) async fn thumbnails(
    State(shared): State<Arc<Shared>>,
    Query(wish): Query<ThumbnailWish>,
) -> Result<Json<HashMap<String, ThumbnailView>>, Refused> {
    let parse = |id: &str| u64::from_str_radix(id, 16).map(SampleId);
    let ids: Result<HashSet<SampleId>, _> = wish.ids.split(',').filter(|id| !id.is_empty()).map(parse).collect();
    let ids = ids.map_err(|_| Refused::unclear("ids are hexadecimal numbers with commas between them"))?;
    if ids.len() > MOST_THUMBNAILS {
        return Err(Refused::unclear(format!("at most {MOST_THUMBNAILS} thumbnails at once")));
    }
    // Searches wait for each other here, where they take no worker from other answers.
    let turn = Arc::clone(&shared.search).lock_owned().await;
    let find = move |shared: &Shared| {
        let _turn = turn;
        Ok(shared.album.find(&ids)?)
    };
    let found = shared.work(find).await?;
    let view = |(id, thumbnail): (SampleId, Arc<super::album::Thumbnail>)| {
        let src = format!("data:image/jpeg;base64,{}", STANDARD.encode(&thumbnail.jpeg));
        (format!("{:016x}", id.0), ThumbnailView { key: thumbnail.key.clone(), src })
    };
    Ok(Json(found.into_iter().map(view).collect()))
}
