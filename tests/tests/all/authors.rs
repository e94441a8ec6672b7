//! What the program offers to plugin authors: a crate for a new plugin, and a test of any plugin.

use std::path::Path;
use std::process::{Command, Output};

use blockloom::plugin::bundled_names;

use crate::{program, scratch};

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
    format!("{out}{err}")
}

/// A cargo that knows nothing of the one that runs this test.
fn cargo(dir: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let shown = name.to_string_lossy();
        let is_outer = shown.starts_with("CARGO") && shown != "CARGO_HOME";
        if is_outer || ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"].contains(&&*shown)
        {
            command.env_remove(&name);
        }
    }
    command.current_dir(dir);
    command
}

#[test]
fn a_new_plugin_builds_passes_its_tests_and_keeps_the_rules() {
    let scratch = scratch();
    let dir = scratch.path("my-filter");
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk");
    let made = run(Command::new(program())
        .args(["plugin", "new", "my-filter", "--path"])
        .arg(&dir)
        .arg("--sdk")
        .arg(&sdk));
    assert!(made.status.success(), "{}", text(&made));
    for arguments in [
        &["test", "--offline", "--quiet"][..],
        &["build", "--offline", "--release", "--target", "wasm32-unknown-unknown"],
    ] {
        let output = run(cargo(&dir).args(arguments));
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    }
    let wasm = dir.join("target/wasm32-unknown-unknown/release/my_filter.wasm");
    let shown = run(Command::new(program()).args(["plugin", "inspect"]).arg(&wasm));
    let shown = text(&shown);
    assert!(shown.contains("plugin    my-filter 0.1.0\n"), "{shown}");
    assert!(shown.contains("kinds     write, zero, discard\n"), "{shown}");
    let tested = run(Command::new(program()).args(["plugin", "test", "--cases", "8"]).arg(&wasm));
    assert!(tested.status.success(), "{}", text(&tested));
    let again =
        run(Command::new(program()).args(["plugin", "new", "my-filter", "--path"]).arg(&dir));
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains("is there already"), "{}", text(&again));
}

#[test]
fn what_is_no_name_is_refused() {
    let output = run(Command::new(program()).args(["plugin", "new", "../Evil"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("`../Evil` is no name for a plugin"), "{}", text(&output));
}

/// What the command line says and makes no sense is no failure at run time.
#[test]
fn a_wrong_command_line_is_told_from_a_failure() {
    let check = |arguments: &[&str], expect: &str| {
        let output = blockloom_plugin(arguments);
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {shown}");
        assert!(shown.contains(expect), "{arguments:?}: {shown}");
    };
    check(&["new", "Bad_Name"], "`Bad_Name` is no name for a plugin");
    check(&["inspect", "nosuch"], "there is no bundled plugin `nosuch`");
    check(&["inspect", "/nonexistent/x.wasm"], "/nonexistent/x.wasm");
    for command in ["test", "bench"] {
        check(&[command, "throttle", "--config", "{"], "--config is not JSON");
        check(&[command, "throttle", "--config", r#"{"iosp":1}"#], "`iosp`: unknown key");
    }
}

#[test]
fn bundled_plugins_keep_the_rules() {
    let cases = std::env::var("BLOCKLOOM_PLUGIN_CASES").unwrap_or_else(|_| "16".to_owned());
    for name in bundled_names() {
        let config = match name {
            "backup" => r#"{"min-cluster-size":"4KiB"}"#,
            "delay" => r#"{"read":"1ms","write":"1ms","jitter":"1ms"}"#,
            "error" => r#"{"probability":0.2,"kinds":["read","write","flush"]}"#,
            "protect" => r#"{"ranges":[{"offset":"16KiB","length":1000}]}"#,
            "xor" => r#"{"key":"some key"}"#,
            _ => "{}",
        };
        let mut command = Command::new(program());
        command
            .args(["--log", "off", "plugin", "test", name, "--config", config, "--cases", &cases]);
        let output = run(&mut command);
        let shown = text(&output);
        assert!(output.status.success(), "{shown}");
        let start = format!("PASS  plugin `{name}`: {cases} cases from seed 1, ");
        assert!(shown.starts_with(&start), "{shown}");
        let never_fails = shown.ends_with(" 0 without a fault below\n");
        assert_eq!(never_fails, !["error", "protect"].contains(&name), "{shown}");
    }
}

fn blockloom_plugin(arguments: &[&str]) -> Output {
    run(Command::new(program()).arg("plugin").args(arguments))
}

#[test]
fn a_plugin_is_measured_beside_the_native_pass_through() {
    let arguments = ["--rounds", "2", "--requests", "64"];
    let table = blockloom_plugin(&[&["bench", "pass"][..], &arguments].concat());
    let shown = text(&table);
    assert!(table.status.success(), "{shown}");
    for part in ["load  ", "ms/KiB", "new store", "pass, native", "plugin, called", "calls/turn"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json = |plugin: &str, config: &str| -> serde_json::Value {
        let measured = blockloom_plugin(
            &[&["bench", plugin, "--config", config, "--json"][..], &arguments].concat(),
        );
        assert!(measured.status.success(), "{}", text(&measured));
        serde_json::from_slice(&measured.stdout).expect("JSON")
    };
    let rows = |figures: &serde_json::Value, way: &str, depth: u64| -> Vec<(String, f64, f64)> {
        let rows = figures["requests"].as_array().expect("rows").iter();
        let rows = rows.filter(|row| row["way"] == way && row["depth"] == depth);
        let number = |row: &serde_json::Value, name: &str| row[name].as_f64().expect("a number");
        rows.map(|row| {
            assert!(number(row, "best-ns") > 0.0 && number(row, "median-ns") > 0.0, "{row}");
            let kind = row["kind"].as_str().expect("a kind").to_owned();
            (kind, number(row, "calls-per-turn"), number(row, "events-per-turn"))
        })
        .collect()
    };
    let both =
        |calls, events| ["read", "write"].map(|kind| (kind.to_owned(), calls, events)).to_vec();
    let pass = json("pass", "{}");
    assert_eq!(rows(&pass, "plugin, called", 1), both(1.0, 1.0));
    assert_eq!(rows(&pass, "plugin, called", 32), both(1.0, 32.0), "one call a turn");
    assert_eq!(rows(&pass, "no filter", 32), both(0.0, 0.0));
    assert!(pass["load-ms"]["best-per-kib"].as_f64().is_some_and(|it| it > 0.0), "{pass}");
    assert!(pass["new-store-us"]["median"].as_f64().is_some_and(|it| it > 0.0), "{pass}");
    // Its rules let everything pass; called all the same it forwards.
    let quiet = json("error", "{\"kinds\":[\"flush\"]}");
    assert_eq!(rows(&quiet, "plugin, not called", 32), both(0.0, 0.0));
    assert_eq!(rows(&quiet, "plugin, called", 32), both(1.0, 32.0));
    let refused = blockloom_plugin(&["bench", "xor"]);
    assert!(text(&refused).contains("`key`: is required"), "{}", text(&refused));
}
