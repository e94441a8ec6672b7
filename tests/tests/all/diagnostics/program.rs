//! How the program tells of errors, and that `check` changes nothing.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use expect_test::expect;

use super::Place;
use crate::program;

fn run(arguments: &[&str], graph: &Path) -> Output {
    Command::new(program()).args(arguments).arg(graph).output().expect("the program")
}

const THREE_ERRORS: &str = r#"
[node.a]
driver = "memory"
size = 1000
block-size = 512
[node.b]
driver = "file"
path = "missing.img"
[node.c]
driver = "plugin"
plugin = "throttle"
child.file = "a"
config = { iops = "fast" }
"#;

#[test]
fn the_program_reports_errors_on_stderr_and_exits_with_2() {
    let place = Place::new();
    let graph = place.0.graph("graph.toml", &THREE_ERRORS.replace("1000", "1024"));
    let said = ["check", "serve"].map(|command| {
        let output = run(&[command], &graph);
        assert_eq!(output.status.code(), Some(2), "{command}: {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        place.plain(&String::from_utf8_lossy(&output.stderr))
    });
    assert_eq!(said[0], said[1]);
    expect![[r#"
        error: file `missing.img` does not exist
          --> DIR/graph.toml:8:8
           |
         8 | path = "missing.img"
           |        ^^^^^^^^^^^^^
           = help: to have it made, sparse, add its size: `create = "10GiB"`

        error: `iops` in `config` of node `c`: expected a whole number, found "fast"
           --> DIR/graph.toml:13:12
            |
         13 | config = { iops = "fast" }
            |            ^^^^

        2 errors in DIR/graph.toml
    "#]]
    .assert_eq(&said[0]);
}

/// What is wrong with the file's own text, with files, and with a plugin's configuration: one report.
#[test]
fn all_errors_come_at_once() {
    let found = Place::new().check_error(THREE_ERRORS);
    let heads: Vec<_> = found.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(
        heads,
        [
            "error: `size` of node `a` is not a multiple of its block size",
            "error: file `missing.img` does not exist",
            "error: `iops` in `config` of node `c`: expected a whole number, found \"fast\"",
        ]
    );
}

/// All that is wrong in one `config` of a filter of the host's own, and in an export of a kind that is not there.
#[test]
fn all_errors_of_one_table_come_at_once() {
    let text = r#"
[node.m]
driver = "memory"
size = 65536
[node.t]
driver = "throttle"
child.file = "m"
config = { iopz = 1, bps = "x", iops = -3 }
[node.c]
driver = "copy-on-read"
child.file = "t"
config = { a = 1, b = 2 }
[export.e]
type = "fuse"
drive = "nodrive"
listen = "tcp:foo"
"#;
    let expect = [
        ("`iopz` in `config` of node `t`: unknown key", "8:12"),
        ("`bps` in `config` of node `t`: expected bytes a second", "8:22"),
        ("`iops` in `config` of node `t`: expected a whole number", "8:33"),
        ("`a` in `config` of node `c`: `copy-on-read` has no configuration", "12:12"),
        ("`b` in `config` of node `c`: `copy-on-read` has no configuration", "12:19"),
        ("export type `fuse` is not in this release", "14:8"),
        ("export `e` refers to drive `nodrive`", "15:9"),
        ("`listen` of export `e` has no port", "16:10"),
    ];
    let found = Place::new().check_error(text);
    let lines: Vec<&str> = found.lines().collect();
    let errors = lines.windows(2).filter_map(|pair| {
        let at = pair[1].trim_start().strip_prefix("--> DIR/graph.toml:")?;
        Some((pair[0].strip_prefix("error: ")?, at))
    });
    let told: Vec<(&str, &str)> = errors.collect();
    assert_eq!(told.len(), expect.len(), "{found}");
    for ((said, at), (head, place)) in told.into_iter().zip(expect) {
        assert!(said.starts_with(head) && at == place, "{head} at {place}: {found}");
    }
}

#[test]
fn a_graph_file_that_is_not_there() {
    let place = Place::new();
    for command in ["check", "serve", "graph"] {
        let output = run(&[command], &place.0.path("gone.toml"));
        assert_eq!(output.status.code(), Some(2), "{command}: {output:?}");
        let stderr = place.plain(&String::from_utf8_lossy(&output.stderr));
        assert_eq!(
            stderr,
            "error: cannot read `DIR/gone.toml`: No such file or directory (os error 2)\n"
        );
    }
    let output = run(&["serve", "--workers", "0"], &place.0.path("gone.toml"));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

/// `check` makes no file, binds nothing, and leaves the socket of a dead server where it is.
#[test]
fn a_check_changes_nothing() {
    let place = Place::new();
    drop(UnixListener::bind(place.0.path("stale.sock")).expect("a server that ends"));
    let text = r#"
[node.new]
driver = "file"
path = "new.img"
create = "1MiB"
[node.full]
driver = "plugin"
plugin = "pass"
child.file = { driver = "file", path = "full.img" }
[export.a]
type = "nbd"
node = "new"
listen = "unix:stale.sock"
writable = true
[export.b]
type = "nbd"
node = "full"
listen = "unix:new.sock"
writable = true
"#;
    let graph = place.0.graph("graph.toml", text);
    let names = || {
        let entries = std::fs::read_dir(place.dir()).expect("the directory");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string()).collect();
        names.sort();
        names
    };
    let before = names();
    let output = run(&["check"], &graph);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(place.plain(&String::from_utf8_lossy(&output.stdout)), "DIR/graph.toml: ok\n");
    assert_eq!(names(), before);
    let image = std::fs::read(place.0.path("full.img")).expect("the image");
    assert!(image.iter().all(|byte| *byte == 7));
}

#[test]
fn errors_that_nobody_can_be_told_change_no_exit_code() {
    let place = Place::new();
    let graph = place.0.graph("graph.toml", THREE_ERRORS);
    let graph = graph.to_str().expect("UTF-8");
    let missing = place.0.path("missing").display().to_string();
    for (arguments, code) in [
        (vec!["check", graph], 2),
        (vec!["serve", graph], 2),
        (vec!["ctl", "--control", &missing, "query-version"], 1),
        (vec!["graph", "--control", &missing], 1),
        (vec!["image", "info", &missing], 1),
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a full disk");
        let mut command = Command::new(program());
        let output = command.args(&arguments).stderr(full).output().expect("the program");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}
