//! Foreign tools: qemu-img, qemu-io, nbdcopy, nbdinfo, fio, and Python with libnbd's module.
//!
//! A test first names what it needs with [`have`]. A missing tool is said aloud and the test returns;
//! with `BLOCKLOOM_REQUIRE_TOOLS=1` it fails instead.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Longest run of a tool, seconds; `timeout` of the coreutils ends it then: kindly, and soon after by force, as
/// fio would wait for its requests.
const TOOL_LIMITS: [&str; 2] = ["--kill-after=5", "120"];
/// Distributions put `nbd.py` with this interpreter, whatever `python3` is first on the path.
pub const PYTHON: &str = "/usr/bin/python3";

/// Whether all of `programs` are installed; `python-nbd` stands for Python with its `nbd` module,
/// `python-qemu-qmp` for its `qemu.qmp`.
///
/// # Panics
/// When one is missing and `BLOCKLOOM_REQUIRE_TOOLS=1`.
pub fn have(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|program| !is_installed(program)).collect();
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

fn is_installed(program: &str) -> bool {
    let runs = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    match program {
        "python-nbd" => runs(PYTHON, &["-c", "import nbd"]),
        "python-qemu-qmp" => runs(PYTHON, &["-c", "import qemu.qmp"]),
        _ => runs(program, &["--version"]),
    }
}

/// Runs a tool to its end.
///
/// # Panics
/// When it cannot be started.
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Output {
    let mut command = Command::new("timeout");
    command.args(TOOL_LIMITS).arg(program).args(arguments).stdin(Stdio::null());
    command.output().expect("run a tool under `timeout`")
}

/// Runs a tool that must succeed; gives its stdout.
///
/// # Panics
/// When it fails; its output is shown.
pub fn succeed<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let output = run(program, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// Runs a tool that must fail of itself; gives its stderr.
///
/// # Panics
/// When it succeeds, is killed, or runs out of time.
pub fn fail<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let output = run(program, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    assert!(matches!(code, Some(1..=123)), "{program} should have failed: {code:?}\n{stderr}");
    stderr
}

/// `qemu-io -f raw TARGET -c COMMAND…`; every command must succeed.
///
/// # Panics
/// When one fails; the output is shown.
pub fn qemu_io(target: &str, commands: &[&str]) -> String {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let output = succeed("qemu-io", ["-f", "raw"].into_iter().chain(commands).chain([target]));
    let failed = ["failed", "Pattern verification", "error"];
    assert!(!failed.iter().any(|word| output.contains(word)), "{output}");
    output
}

/// `qemu-img compare` of two raw images, which must be equal.
///
/// # Panics
/// When they differ.
pub fn compare(left: &str, right: &str) {
    let output = succeed("qemu-img", ["compare", "-f", "raw", "-F", "raw", left, right]);
    assert!(output.contains("identical"), "{output}");
}

/// `fio` with these `key=value` options (without dashes), as JSON.
///
/// # Panics
/// When it fails, finds an error, or says no JSON.
pub fn fio(options: &[&str]) -> Value {
    let dashed = options.iter().map(|option| format!("--{option}"));
    let output = succeed("fio", dashed.chain(["--output-format=json".to_owned()]));
    let json = output.find('{').map_or("", |start| &output[start..]);
    let report: Value = serde_json::from_str(json).unwrap_or_else(|_| panic!("{output}"));
    for job in report["jobs"].as_array().expect("jobs") {
        assert_eq!(job["error"], 0, "{job}");
    }
    report
}

/// One range of `nbdinfo --map`: offset, length, type.
pub type MapRange = (u64, u64, u64);

/// `nbdinfo --map=CONTEXT`, with neighbours of one type joined.
///
/// # Panics
/// When it fails or says no JSON.
pub fn nbd_map(uri: &str, context: &str) -> Vec<MapRange> {
    let output = succeed("nbdinfo", ["--json", &format!("--map={context}"), uri]);
    let list: Value = serde_json::from_str(&output).unwrap_or_else(|_| panic!("{output}"));
    let mut map: Vec<MapRange> = Vec::new();
    for entry in list.as_array().expect("a list") {
        let field = |name: &str| entry[name].as_u64().expect("a number");
        let (offset, length, kind) = (field("offset"), field("length"), field("type"));
        match map.last_mut() {
            Some(last) if last.2 == kind => last.1 += length,
            _ => map.push((offset, length, kind)),
        }
    }
    map
}

/// Runs a Python script that has libnbd's module as `nbd` and its arguments in `sys.argv[1:]`; gives
/// its stdout.
///
/// # Panics
/// When it fails; the traceback is shown.
pub fn python(script: &str, arguments: &[&str]) -> String {
    succeed(PYTHON, ["-c", script].into_iter().chain(arguments.iter().copied()))
}
