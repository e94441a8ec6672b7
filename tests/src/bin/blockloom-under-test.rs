//! The `blockloom` program, built as part of the tests so that they run what they were compiled with.

use std::process::ExitCode;

fn main() -> ExitCode {
    blockloom::cli::main()
}
