//! `shoal serve RUN`: the page of a run that is not under way here.

use crate::config::Plan;
use crate::error::{Error, Result};
use crate::observe::console::say;
use crate::observe::page::Opening;
use crate::observe::{NoPhotographs, Page, Photographs};
use crate::pipeline::find::Nearby;
use crate::pipeline::start_runtime;
use crate::pipeline::stop::Stop;
use crate::shards::ShardList;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The arguments of `shoal serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal serve runs/demo
  shoal serve runs/demo --address 127.0.0.1:0
  SHOAL_PAGE_TOKEN=$(openssl rand -hex 16) shoal serve /data/yfcc --address 0.0.0.0:7878

The page shows curves, clusters with their photographs, filters, losses, snapshots and the pipeline, as they are on disk. A run that trains
serves its own page, with what moves and with actions: observe.page = \"127.0.0.1:7878\". Ctrl-C ends it.")]
pub(super) struct Arguments {
    /// The folder of the run
    run: PathBuf,
    /// Where to serve; port 0 is any free port. Other addresses than this machine's own take a token in SHOAL_PAGE_TOKEN
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7878")]
    address: String,
    /// Where to look for the photographs, by default the run's own shards (repeatable)
    #[arg(long, value_name = "LIST")]
    shards: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let run = &arguments.run;
    let file = run.join("pipeline.toml");
    if !file.is_file() {
        return Err(Error::data(format!("{} is not the folder of a run: it has no pipeline.toml", run.display()))
            .with_hint("name the folder that `shoal pretrain --run` was given"));
    }
    let mut plan = Plan::load(&file, &[])?;
    if !arguments.shards.is_empty() {
        plan.stream.shards.clone_from(&arguments.shards);
    }
    // A run that was copied from elsewhere has no shards here: all the rest of it can be shown.
    let photographs: Arc<dyn Photographs> = match ShardList::parse_with(&plan.stream.shards, &plan.fetch) {
        Ok(list) => Arc::new(Nearby::of(&plan, list, run)),
        Err(error) => {
            tracing::warn!("clusters are shown without their photographs, which --shards may name: {error}");
            Arc::new(NoPhotographs)
        }
    };
    let opening = Opening { run: run.clone(), plan, under_way: None, photographs };
    let runtime = start_runtime()?;
    let stop = Stop::default();
    stop.on_signals(runtime.handle())?;
    let page = Page::open(&arguments.address, opening)?;
    say(&format!("page: {} (Ctrl-C ends it)", page.url));
    while !stop.is_requested() {
        if !page.is_served() {
            return Err(Error::Stage { stage: "page", what: "it has ended by itself".into() });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
