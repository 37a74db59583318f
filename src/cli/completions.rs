//! `shoal completions SHELL`.

use crate::error::Result;
use clap::CommandFactory;
use clap_complete::Shell;

/// The arguments of `shoal completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  shoal completions bash > ~/.local/share/bash-completion/completions/shoal")]
pub(super) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Arguments::command(), "shoal", &mut script);
    super::print(String::from_utf8_lossy(&script).trim_end())
}
