//! Connections of the page, each with bounds: how many there are, how long one may take to ask, how long it may last.
//!
//! A client that is slow or gone costs one of the places, and nothing else: the thread is the page's own.

use super::Opening;
use super::guard::Guard;
use super::routes::router;
use super::shared::Shared;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{interval, sleep, timeout};

/// Connections at once.
const CONNECTIONS: usize = 256;
/// Time for a request's head, also the longest silence between two requests.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest life of a connection: a large snapshot over a slow line.
const LIFE: Duration = Duration::from_secs(3_600);
/// Threads that read files and decode photographs.
const WORKERS: usize = 4;
/// Between two readings of the counters.
const READ_EVERY: Duration = Duration::from_secs(2);
/// For what is under way when the page ends.
const LAST_MOMENTS: Duration = Duration::from_secs(1);

/// Serves until `stopped` resolves.
pub(super) fn serve(listener: TcpListener, guard: Guard, opening: Opening, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .thread_name("page-worker")
        .max_blocking_threads(WORKERS)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tracing::warn!("the page cannot be served: {error}"),
    };
    runtime.block_on(async {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::warn!("the page cannot be served: {error}"),
        };
        let shared = Arc::new(Shared::new(guard, opening));
        let routes = router(Arc::clone(&shared));
        tokio::select! {
            () = accept_all(&listener, &routes) => {}
            () = read_counters(&shared) => {}
            _ = stopped => {}
        }
    });
    runtime.shutdown_timeout(LAST_MOMENTS);
}

async fn accept_all(listener: &tokio::net::TcpListener, routes: &Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let routes = routes.clone();
                tokio::spawn(async move {
                    let _place = place;
                    converse(stream, routes).await;
                });
            }
            Err(error) => {
                tracing::debug!("a connection to the page failed: {error}");
                sleep(Duration::from_millis(100)).await; // out of file descriptors, say
            }
        }
    }
}

async fn converse(stream: TcpStream, routes: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    match timeout(LIFE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a client of the page: {error}"),
        Err(_) => tracing::debug!("a client of the page took too long"),
    }
}

/// Keeps rates and histograms up to date.
async fn read_counters(shared: &Shared) {
    let mut moments = interval(READ_EVERY);
    loop {
        moments.tick().await;
        if let Some(under_way) = &shared.under_way {
            shared.rates().read(under_way.live.totals());
            under_way.meters.upkeep();
        }
    }
}
