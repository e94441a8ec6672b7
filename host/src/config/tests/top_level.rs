//! The file's own tables, and its syntax.

use expect_test::expect;

use super::super::*;
use super::{EXAMPLE, KITCHEN_SINK, check, good};

#[test]
fn empty_file() {
    check("", &expect![["ok"]]);
}

#[test]
fn syntax() {
    check(
        "[node.a\ndriver = 5\n",
        &expect![[r#"
        error: not valid TOML: unclosed table, expected `]`
          --> graph.toml:1:8
           |
         1 | [node.a
           |        ^

        1 error in graph.toml"#]],
    );
    check(
        "[node.a]\ndriver = \n",
        &expect![[r#"
            error: not valid TOML: there is no value after `=`
              --> graph.toml:2:10
               |
             2 | driver =
               |          ^

            1 error in graph.toml"#]],
    );
    check(
        "x = \"unterminated",
        &expect![[r#"
        error: not valid TOML: invalid basic string, expected `"`
          --> graph.toml:1:18
           |
         1 | x = "unterminated
           |                  ^

        1 error in graph.toml"#]],
    );
}

#[test]
fn repeated_names() {
    check(
        "[node.a]\ndriver = \"null\"\nsize = 0\n\n[node.a]\ndriver = \"null\"\n",
        &expect![[r#"
            error: the table `a` is given a second time
              --> graph.toml:5:7
               |
             1 | [node.a]
               |       - first used here
              ...
             5 | [node.a]
               |       ^
               = help: every name is used once: rename this one, or remove it

            1 error in graph.toml"#]],
    );
    check(
        "[node.a]\nsize = 1\nx.size = 2\nsize = 3\n",
        &expect![[r#"
        error: the key `size` is given a second time
          --> graph.toml:4:1
           |
         2 | size = 1
           | ---- first used here
          ...
         4 | size = 3
           | ^^^^
           = help: every name is used once: rename this one, or remove it

        1 error in graph.toml"#]],
    );
    check(
        "[node]\na = { size = 1, size = 2 }\n",
        &expect![[r#"
        error: the key `size` is given a second time
          --> graph.toml:2:17
           |
         2 | a = { size = 1, size = 2 }
           |                 ^^^^
           = help: every name is used once: rename this one, or remove it

        1 error in graph.toml"#]],
    );
}

#[test]
fn unknown_tables() {
    check(
        "[nodes.a]\n[[export]]\n[Drive.a]\n[hots]\n",
        &expect![[r#"
        error: unknown key `nodes` in the file
          --> graph.toml:1:2
           |
         1 | [nodes.a]
           |  ^^^^^
           = help: did you mean `node`? keys of the file: host, node, drive, bitmap, export

        error: `export` must be a table, not an array
          --> graph.toml:2:1
           |
         2 | [[export]]
           | ^^^^^^^^^^

        error: unknown key `Drive` in the file
          --> graph.toml:3:2
           |
         3 | [Drive.a]
           |  ^^^^^
           = help: did you mean `drive`? keys of the file: host, node, drive, bitmap, export

        error: unknown key `hots` in the file
          --> graph.toml:4:2
           |
         4 | [hots]
           |  ^^^^
           = help: did you mean `host`? keys of the file: host, node, drive, bitmap, export

        4 errors in graph.toml"#]],
    );
    check(
        "node = 5\n[drive]\na = 5\n",
        &expect![[r#"
        error: `node` must be a table, not an integer
          --> graph.toml:1:8
           |
         1 | node = 5
           |        ^

        error: drive `a` must be a table, not an integer
          --> graph.toml:3:5
           |
         3 | a = 5
           |     ^

        2 errors in graph.toml"#]],
    );
}

#[test]
fn host() {
    check(
        "[host]\nworkers = 65\nengine = \"uring\"\npoll = \"2ms\"\nthreads = 1\n",
        &expect![[r#"
        error: `workers` of `host` must be 1 to 64
          --> graph.toml:2:11
           |
         2 | workers = 65
           |           ^^

        error: `engine` of `host` cannot be `uring`
          --> graph.toml:3:10
           |
         3 | engine = "uring"
           |          ^^^^^^^
           = help: possible values: auto, io-uring, threads

        error: `poll` of `host` must be at most 1ms; 0 is no polling
          --> graph.toml:4:8
           |
         4 | poll = "2ms"
           |        ^^^^^

        error: unknown key `threads` in `host`
          --> graph.toml:5:1
           |
         5 | threads = 1
           | ^^^^^^^
           = help: keys of `host`: workers, engine, poll

        4 errors in graph.toml"#]],
    );
    check(
        "[host]\nworkers = -1\nengine = 5\npoll = true\n",
        &expect![[r#"
            error: `workers` of `host` must not be negative
              --> graph.toml:2:11
               |
             2 | workers = -1
               |           ^^

            error: `engine` of `host` must be one of auto, io-uring, threads, not an integer
              --> graph.toml:3:10
               |
             3 | engine = 5
               |          ^

            error: `poll` of `host` must be a time such as "5ms", not a boolean
              --> graph.toml:4:8
               |
             4 | poll = true
               |        ^^^^

            3 errors in graph.toml"#]],
    );
    check("[host]\nworkers = 64\nengine = \"auto\"\npoll = 0\n", &expect![["ok"]]);
}

#[test]
fn kitchen_sink() {
    let spec = good(KITCHEN_SINK);
    assert_eq!(spec.host.workers.map(|it| it.value), Some(4));
    let names: Vec<&str> = spec.nodes.iter().map(|node| node.name.value.as_str()).collect();
    assert_eq!(
        names,
        ["disk", "pass", "slow", "ram", "part", "#part.file", "#part.file/file", "native"]
    );
    let order: Vec<&str> =
        spec.build_order().into_iter().map(|node| node.name.value.as_str()).collect();
    assert_eq!(
        order,
        ["#part.file/file", "disk", "ram", "#part.file", "pass", "native", "part", "slow"]
    );
    let config = spec.node("slow").and_then(|node| node.driver.config()).expect("a config");
    assert_eq!(config.json["tiers"][0]["at"], 1.5);
    let at = |path: &str| {
        let span = config.span_of(path);
        &KITCHEN_SINK[span.start..span.end]
    };
    assert_eq!(at("/bps"), "bps");
    assert_eq!(at("tiers[1].at"), "at");
    assert_eq!(at("/tiers/1"), "{ at = 2 }");
    assert_eq!(at("/tiers/7/at"), "tiers");
    assert_eq!(at(""), "config");
    assert_eq!(at("nothing"), "config");
}

#[test]
fn example() {
    let spec = good(EXAMPLE);
    let DriverSpec::Plugin(plugin) = &spec.nodes[1].driver else { panic!("no plugin") };
    assert_eq!(plugin.limits, PluginLimits::default());
    assert_eq!(plugin.on_fault.value, OnFault::Fail);
    let export = spec.export("vda").expect("the export");
    assert_eq!(export.name.value, "vda");
    assert_eq!(spec.root_of(&export.scope).map(|node| node.name.value.as_str()), Some("slow"));
}
