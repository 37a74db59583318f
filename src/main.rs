//! Runs one command and turns what it returns into text and an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    match shoal::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shoal::cli::report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
