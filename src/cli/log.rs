//! Where diagnostics go: stderr, for people or as JSON, without shredding the progress bar; and traces, where a collector is named.

use super::traces::{self, Traces};
use crate::error::Result;
use crate::observe::LogWriter;
use clap::ValueEnum;
use std::io::IsTerminal;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// How diagnostics are written.
#[derive(Debug, clap::Args)]
pub(super) struct LogArguments {
    /// Form of diagnostics on stderr
    #[arg(long, global = true, value_enum, default_value = "human")]
    log_format: LogFormat,
    /// More diagnostics (twice: all of them); RUST_LOG overrides it
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

/// Starts the diagnostics of this process; traces end when what it returns is dropped.
pub(super) fn start(arguments: &LogArguments) -> Result<Option<Traces>> {
    let level = match arguments.verbose {
        0 => "shoal=info,warn",
        1 => "shoal=debug,info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let lines = fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(|| LogWriter);
    let lines = match arguments.log_format {
        LogFormat::Human => lines.with_target(false).without_time().compact().with_filter(filter).boxed(),
        LogFormat::Json => lines.json().with_filter(filter).boxed(),
    };
    let (layer, traces) = traces::start()?.unzip();
    tracing_subscriber::registry().with(lines).with(layer).init();
    Ok(traces)
}
