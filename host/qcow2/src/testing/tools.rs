//! `qemu-img` and `qemu-io` as oracles.
//!
//! A test first asks [`have`]. A missing tool is said aloud and the test returns; with
//! `BLOCKLOOM_REQUIRE_TOOLS=1` it fails instead.

use std::process::{Command, Output, Stdio};

/// Longest run of a tool, seconds.
const TOOL_SECONDS: &str = "60";

/// Whether all of `programs` are installed.
///
/// # Panics
/// When one is missing and `BLOCKLOOM_REQUIRE_TOOLS=1`.
pub fn have(programs: &[&str]) -> bool {
    let installed = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let missing: Vec<_> = programs.iter().filter(|program| !installed(program)).collect();
    if missing.is_empty() {
        return true;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let required = std::env::var("BLOCKLOOM_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
    assert!(!required, "{test} needs {missing:?}");
    // Past the capture of the test's output: a skip must be seen.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test} needs {missing:?}");
    false
}

/// Runs a tool to its end.
///
/// # Panics
/// When it cannot be started.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg(TOOL_SECONDS).arg(program).args(arguments).stdin(Stdio::null());
    command.output().expect("run a tool under `timeout`")
}

/// Runs a tool that must succeed; gives its stdout.
///
/// # Panics
/// When it fails; its output is shown.
pub fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}\n{stdout}\n{stderr}");
    stdout
}

/// `qemu-img check --output=json`, whatever it finds.
///
/// # Panics
/// When it says no JSON.
pub fn qemu_check(path: &str) -> serde_json::Value {
    let output = run("qemu-img", &["check", "-f", "qcow2", "--output=json", path]);
    let (stdout, stderr) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(stdout).unwrap_or_else(|error| panic!("{path}: {error}\n{stderr}"))
}

/// `qemu-img info --output=json`.
///
/// # Panics
/// When it fails.
pub fn qemu_info(path: &str) -> serde_json::Value {
    let stdout = succeed("qemu-img", &["info", "-f", "qcow2", "--output=json", path]);
    serde_json::from_str(&stdout).expect("JSON")
}
