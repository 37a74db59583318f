//! What can be asked of the page, and who may.

use super::answer::Refused;
use super::shared::Shared;
use super::state::{self, Moving};
use super::{clusters, files, stages};
use crate::observe::UnderWay;
use crate::train::record::Record;
use crate::visualize::curves::curves;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;

/// Nothing from elsewhere, and no frame around it.
const CONTENT_POLICY: &str =
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let text =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], text) });
    Router::new()
        .route("/", text("text/html; charset=utf-8", include_str!("assets/page.html")))
        .route("/page.css", text("text/css; charset=utf-8", include_str!("assets/page.css")))
        .route("/page.js", text("text/javascript; charset=utf-8", include_str!("assets/page.js")))
        .route("/plot.js", text("text/javascript; charset=utf-8", include_str!("assets/plot.js")))
        .route("/api/state", get(state_now))
        .route("/api/curves", get(all_curves))
        .route("/api/clusters", get(clusters::list))
        .route("/api/clusters/{cluster}", get(clusters::one))
        .route("/api/thumbnails", get(clusters::thumbnails))
        .route("/api/snapshots", get(files::snapshots))
        .route("/api/ledger", get(files::ledger))
        .route("/api/actions/{action}", post(act))
        .route("/snapshots/{name}/{file}", get(files::download))
        .route("/filters.png", get(files::filters))
        .route("/api/pictures", get(files::pictures))
        .route("/pictures/{name}", get(files::picture))
        .route("/pipeline.toml", get(files::pipeline))
        .route("/metrics", get(numbers))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .layer(from_fn_with_state(Arc::clone(&shared), guarded))
        .with_state(shared)
}

/// Refuses who may not, and says to browsers what the page is made of.
async fn guarded(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let verdict = shared.guard.judge(request.method(), request.uri().path(), request.headers());
    let mut response = match verdict {
        Ok(()) => next.run(request).await,
        Err(refusal) => Refused::from(refusal).into_response(),
    };
    let headers = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// `/api/state`
async fn state_now(State(shared): State<Arc<Shared>>) -> Result<Json<state::State>, Refused> {
    let found = shared.work(|shared| {
        // What the trainer is about comes first: a pause that is seen has all of its steps in the records.
        let doing = shared.under_way.as_ref().map(|under_way| stages::doing(&under_way.live));
        let found = shared.with_records(|records| {
            let under_way = shared.under_way.as_ref().zip(doing);
            let moving = under_way.map(|(under_way, doing)| moving(shared, under_way, doing, records));
            state::of(&shared.run, &shared.plan, records, moving)
        });
        Ok(state::State { takes_token: !shared.guard.is_loopback(), ..found? })
    });
    found.await.map(Json)
}

fn moving(shared: &Shared, under_way: &UnderWay, doing: stages::Doing, records: &[Record]) -> Moving {
    let live = &under_way.live;
    Moving {
        paused: live.controls.is_paused(),
        stage: Some(doing),
        stages: stages::stages(live, &shared.rates(), state::last_steps(records)),
        waits_for: Some(live.waits_for()),
        ranks: live.ranks(),
        snapshot_age_s: Some(live.snapshot_age().as_secs_f64()),
    }
}

/// `/api/curves`
async fn all_curves(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refused> {
    let found = shared.work(|shared| {
        let curves = shared.with_records(|records| curves(&[(shared.run.display().to_string(), records)]))?;
        let series = |series: &crate::visualize::plot::Series| {
            let points: Vec<[f64; 2]> = series.points.iter().map(|point| [point.x, point.y]).collect();
            json!({"name": series.name, "points": points})
        };
        let curve = |curve: &crate::visualize::curves::Curve| {
            let series: Vec<Value> = curve.series.iter().map(series).collect();
            json!({"name": curve.name, "title": curve.title, "y": curve.y, "series": series})
        };
        Ok(Value::Array(curves.iter().map(curve).collect()))
    });
    found.await.map(Json)
}

/// `/api/actions/ACTION`: the guard has seen to who asks.
async fn act(State(shared): State<Arc<Shared>>, Path(action): Path<String>) -> Result<&'static str, Refused> {
    let Some(UnderWay { live, .. }) = &shared.under_way else {
        return Err(Refused::later("the run is not under way here"));
    };
    let said = match action.as_str() {
        "snapshot" => {
            live.controls.ask_for_snapshot();
            "a snapshot is written after this step, if there was one since the last"
        }
        "pause" => {
            live.controls.pause(true);
            "paused after this step"
        }
        "resume" => {
            live.controls.pause(false);
            "it goes on"
        }
        "stop" => {
            live.controls.ask_to_stop();
            "it stops after this step, with a snapshot"
        }
        _ => return Err(Refused::missing(format!("there is no action {action}"))),
    };
    tracing::info!("asked from the page: {action}");
    Ok(said)
}

/// `/metrics`
async fn numbers(State(shared): State<Arc<Shared>>) -> Result<Response, Refused> {
    let Some(UnderWay { live, meters }) = &shared.under_way else {
        return Err(Refused::missing("the run is not under way here, and has no numbers that move"));
    };
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], meters.render(live)).into_response())
}

/// `/readyz`: whether the run has come as far as a step since the process began.
async fn readiness(State(shared): State<Arc<Shared>>) -> Result<&'static str, Refused> {
    match &shared.under_way {
        Some(UnderWay { live, .. }) if !live.activity.has_stepped() => {
            let doing = stages::doing(live);
            Err(Refused::later(format!("not yet: {} {}\n", doing.doing, doing.detail)))
        }
        _ => Ok("ready\n"),
    }
}
