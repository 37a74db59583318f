//! Where diagnostics go: stderr, for people or as JSON, without shredding the progress bar.

use crate::observe::LogWriter;
use clap::ValueEnum;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

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

/// Starts the diagnostics of this process.
pub(super) fn start(arguments: &LogArguments) {
    let level = match arguments.verbose {
        0 => "shoal=info,warn",
        1 => "shoal=debug,info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(|| LogWriter);
    match arguments.log_format {
        LogFormat::Human => lines.with_target(false).without_time().compact().init(),
        LogFormat::Json => lines.json().init(),
    }
}
