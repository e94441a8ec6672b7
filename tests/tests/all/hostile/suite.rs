//! `plugin test` finds what is wrong with a plugin, and shows the shortest sequence that goes wrong.

use std::process::Command;

use super::guest::Guest;
use crate::{program, scratch};

#[test]
fn a_plugin_that_traps_is_found_with_one_request() {
    let guest = Guest { poll: "unreachable", poll_one: "unreachable", ..Guest::PASS };
    let scratch = scratch();
    let path = scratch.image_of("trap.wasm", &guest.module());
    let mut command = Command::new(program());
    command.args(["--log", "off", "plugin", "test", "--cases", "1"]).arg(path);
    let output = command.output().expect("the program");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.starts_with("FAIL  plugin ") && shown.contains("it has failed: "), "{shown}");
    assert!(shown.ends_with("\nagain: --seed 1 --cases 1\n"), "{shown}");
    let rounds: Vec<&str> = shown.lines().filter(|line| line.starts_with(' ')).collect();
    assert_eq!(rounds.len(), 1, "{shown}");
    assert!(!rounds[0].contains(';'), "one request: {shown}");
}
