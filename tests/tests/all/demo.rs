//! `blockloom demo`: the whole story in one run.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{program, scratch};

fn start(temporary: &Path) -> Child {
    let mut command = Command::new(program());
    command.args(["--log", "error", "demo"]).env("TMPDIR", temporary).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run the demonstration")
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).expect("a directory").next().is_none()
}

/// The bytes of `3 MiB`.
fn bytes(number: &str, unit: &str) -> u64 {
    let unit = match unit {
        "KiB" => 1_024.0,
        "MiB" => 1_048_576.0,
        other => panic!("{other}"),
    };
    (number.parse::<f64>().expect("a number") * unit) as u64
}

#[test]
fn everything_is_restored_and_nothing_is_left() {
    let scratch = scratch();
    let temporary = scratch.path("");
    let begun = Instant::now();
    let output = start(&temporary).wait_with_output().expect("its end");
    let shown = String::from_utf8(output.stdout).expect("text");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{shown}\n{errors}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(is_empty(&temporary));
    for image in ["full", "first", "second"] {
        assert!(
            shown.contains(&format!("`{image}.qcow2` restores what the disk showed")),
            "{shown}"
        );
    }
    assert!(shown.contains("of the guest, none failed."), "{shown}");
    // What is copied is what the guest has changed; QEMU's rules say more, and miss what came after a snapshot.
    for image in ["first", "second"] {
        let row = shown.lines().find(|line| line.trim_start().starts_with(image)).expect("a row");
        let words: Vec<&str> = row.split_whitespace().collect();
        let [changed, copied, by_qemu] = [1, 3, 5].map(|at| bytes(words[at], words[at + 1]));
        assert_eq!(changed, copied, "{row}");
        assert!(by_qemu > copied, "{row}");
        assert_eq!(row.contains("missed") && !row.contains("nothing"), image == "first", "{row}");
    }
}

#[test]
fn interrupted_it_leaves_nothing() {
    let scratch = scratch();
    let temporary = scratch.path("");
    let mut child = start(&temporary);
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let is_at_work = |line: &String| line.starts_with("3. ");
    lines.by_ref().map(|line| line.expect("a line")).find(is_at_work).expect("the third step");
    assert!(!is_empty(&temporary));
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process number");
    kill_process(pid, Signal::INT).expect("a signal");
    lines.for_each(drop);
    let mut errors = String::new();
    child.stderr.take().expect("stderr is piped").read_to_string(&mut errors).expect("text");
    assert_eq!(child.wait().expect("its end").code(), Some(1), "{errors}");
    assert!(errors.contains("error: interrupted"), "{errors}");
    assert!(is_empty(&temporary));
}
