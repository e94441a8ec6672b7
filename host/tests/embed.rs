//! Runs the example of embedding, so that it stays true.
#![allow(unreachable_pub, dead_code, reason = "the example is a program of its own")]

#[path = "../examples/embed.rs"]
mod embed;

#[test]
fn example_runs() {
    embed::main().expect("the example ends well");
}
