//! The command line: one file a command. Results go to stdout, everything else to stderr.
//!
//! Exit codes: 0 done, 2 usage or pipeline file, 3 data, 4 device or libtorch, 130 interrupted with a snapshot written.

mod attribution;
mod cluster;
mod completions;
mod doctor;
mod embed;
mod eval;
mod export;
mod init;
mod inspect;
mod log;
mod network;
mod pretrain;
mod progress;
mod serve;
mod shards;
mod show;
mod sweep;
mod traces;

use crate::error::{Error, Result};
use clap::{Parser, Subcommand};
use std::io::{ErrorKind, Write};

/// Pre-trains convolutional networks, without labels, on an endless stream of photographs.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, propagate_version = true, max_term_width = 110, after_help = AFTER_HELP)]
struct Arguments {
    #[command(flatten)]
    log: log::LogArguments,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  shoal pretrain demo                            train on the photographs that come with shoal
  shoal pretrain yfcc.toml --run runs/yfcc       start a run, or go on with the one in runs/yfcc
  shoal inspect runs/yfcc                        how far it is
  shoal show sheet --run runs/yfcc --out s.png   look at its clusters

Exit codes: 0 done, 2 usage or pipeline file, 3 data, 4 device or libtorch, 130 interrupted (snapshot written).";

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a run, or go on with the one in its folder.
    Pretrain(pretrain::Arguments),
    /// What a shard list holds; account for every byte of it; make shards from a folder
    #[command(subcommand)]
    Shards(shards::Command),
    /// Write the features of every image of a list to an Arrow file.
    Embed(embed::Arguments),
    /// Divide a file of features into clusters; take a balanced subset.
    Cluster(cluster::Arguments),
    /// Train with every combination of some settings, and measure each run.
    Sweep(sweep::Arguments),
    /// Write a network whose first weights follow from images.
    Init(init::Arguments),
    /// Measure a network or a clustering.
    #[command(subcommand)]
    Eval(eval::Command),
    /// Make pictures.
    #[command(subcommand)]
    Show(show::Command),
    /// Show a run in the browser: curves, clusters, filters, losses, snapshots
    Serve(serve::Arguments),
    /// Write a network in another format.
    Export(export::Arguments),
    /// Names, shapes and kinds in a file; the progress of a run.
    Inspect(inspect::Arguments),
    /// Check libtorch, CUDA, decoders, disk and the list: one line each, with a hint
    Doctor(doctor::DoctorArgs),
    /// Print completions for a shell.
    Completions(completions::Arguments),
}

/// Parses the command line and runs one command.
pub fn run() -> Result<()> {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Command::Pretrain(_)) {
        pretrain::claim_gpu()?; // before there are threads
    }
    let _traces = log::start(&arguments.log)?;
    match arguments.command {
        Command::Pretrain(arguments) => pretrain::run(&arguments),
        Command::Shards(command) => shards::run(&command),
        Command::Embed(arguments) => embed::run(&arguments),
        Command::Cluster(arguments) => cluster::run(&arguments),
        Command::Sweep(arguments) => sweep::run(&arguments),
        Command::Init(arguments) => init::run(&arguments),
        Command::Eval(command) => eval::run(&command),
        Command::Show(command) => show::run(&command),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    }
}

/// Tells the operator what went wrong, and the way out.
pub fn report(error: &Error) {
    let mut stderr = std::io::stderr().lock();
    // Where stderr is gone, there is nobody to tell.
    let _ = writeln!(stderr, "error: {error}");
    if let Some(hint) = error.hint() {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}

/// Writes a result to stdout; a reader that has gone away is no error.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written =
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::data(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a value as JSON to stdout.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Error::data(format!("cannot write JSON: {error}")))?;
    print(&text)
}
