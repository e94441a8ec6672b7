//! The `blockloom` program.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: blockloom::cli::Allocator = blockloom::cli::Allocator;

fn main() -> ExitCode {
    blockloom::cli::main()
}
