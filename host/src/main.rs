//! The `blockloom` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    blockloom::cli::main()
}
