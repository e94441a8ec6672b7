//! The `blockloom` program, built as part of the tests so that they run what they were compiled with.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: blockloom::cli::Allocator = blockloom::cli::Allocator;

fn main() -> ExitCode {
    blockloom::cli::main()
}
