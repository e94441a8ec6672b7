//! Keys and values that are not what they should be.

use expect_test::expect;

use super::check;

#[test]
fn unknown_keys() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1GiB"
sizze = "2GiB"
[drive.vda]
root = "disk"
writeable = true
[hosts]
workers = 2
"#,
        &expect![[r#"
            error: unknown key `sizze` in node `disk`
              --> DIR/graph.toml:5:1
               |
             5 | sizze = "2GiB"
               | ^^^^^
               = help: did you mean `size`? keys of driver `memory`: child, size, block-size, read-only, auto-read-only

            error: unknown key `writeable` in drive `vda`
              --> DIR/graph.toml:8:1
               |
             8 | writeable = true
               | ^^^^^^^^^
               = help: did you mean `writable`? keys of drives: root, writable

            error: unknown key `hosts` in the file
              --> DIR/graph.toml:9:2
               |
             9 | [hosts]
               |  ^^^^^
               = help: did you mean `host`? keys of the file: host, node, drive, bitmap, export

            3 errors in DIR/graph.toml"#]],
    );
}

#[test]
fn wrong_types() {
    check(
        r#"
[host]
workers = "two"
[node.disk]
driver = "memory"
size = true
[node.file]
driver = "file"
path = 7
direct = "yes"
[bitmap.b]
node = "disk"
granularity = "64kB"
"#,
        &expect![[r#"
            error: `workers` of `host` must be an integer, not a string
              --> DIR/graph.toml:3:11
               |
             3 | workers = "two"
               |           ^^^^^

            error: `size` of node `disk` must be a size, not a boolean
              --> DIR/graph.toml:6:8
               |
             6 | size = true
               |        ^^^^
               = help: write bytes or a string such as "64KiB" or "10GiB"

            error: `path` of node `file` must be a string, not an integer
              --> DIR/graph.toml:9:8
               |
             9 | path = 7
               |        ^

            error: `direct` of node `file` must be true or false, not a string
               --> DIR/graph.toml:10:10
                |
             10 | direct = "yes"
                |          ^^^^^

            error: `granularity` of bitmap `b` has the unit `kB`: units are binary, write `64KiB`
               --> DIR/graph.toml:13:15
                |
             13 | granularity = "64kB"
                |               ^^^^^^

            5 errors in DIR/graph.toml"#]],
    );
}

#[test]
fn unknown_drivers() {
    check(
        r#"
[node.disk]
driver = "flie"
path = "full.img"
[node.image]
driver = "nbd"
file = "disk"
[node.nothing]
size = 512
"#,
        &expect![[r#"
            error: unknown driver `flie`
              --> DIR/graph.toml:3:10
               |
             3 | driver = "flie"
               |          ^^^^^^
               = help: did you mean `file`? this release has: file, memory, null, raw, qcow2, plugin, plugin-view, pass, throttle, copy-on-read, backup

            error: driver `nbd` is not in this release
              --> DIR/graph.toml:6:10
               |
             6 | driver = "nbd"
               |          ^^^^^
               = help: this release has: file, memory, null, raw, qcow2, plugin, plugin-view, pass, throttle, copy-on-read, backup

            error: node `nothing` has no `driver`
              --> DIR/graph.toml:8:7
               |
             8 | [node.nothing]
               |       ^^^^^^^
               = help: add `driver = "file"`; this release has: file, memory, null, raw, qcow2, plugin, plugin-view, pass, throttle, copy-on-read, backup

            3 errors in DIR/graph.toml"#]],
    );
}

#[test]
fn sizes_that_do_not_fit() {
    check(
        r#"
[node.disk]
driver = "memory"
size = 1000
block-size = 512
[node.none]
driver = "null"
size = "3KiB"
block-size = "4KiB"
[node.huge]
driver = "memory"
size = "8EiB"
[node.part]
driver = "raw"
file = "disk"
offset = 100
"#,
        &expect![[r#"
            error: `size` of node `disk` is not a multiple of its block size
              --> DIR/graph.toml:4:8
               |
             4 | size = 1000
               |        ^^^^
             5 | block-size = 512
               |              --- the block size
               = help: the next multiple is 1024

            error: `size` of node `none` is not a multiple of its block size
              --> DIR/graph.toml:8:8
               |
             8 | size = "3KiB"
               |        ^^^^^^
             9 | block-size = "4KiB"
               |              ------ the block size
               = help: the next multiple is 4096

            error: `size` of node `huge` has the unknown unit `EiB`: units are KiB, MiB, GiB, TiB
               --> DIR/graph.toml:12:8
                |
             12 | size = "8EiB"
                |        ^^^^^^

            error: `offset` of node `part` must be a multiple of 512
               --> DIR/graph.toml:16:10
                |
             16 | offset = 100
                |          ^^^

            4 errors in DIR/graph.toml"#]],
    );
}

#[test]
fn limits_and_grants_that_cannot_be() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[node.a]
driver = "plugin"
plugin = "pass"
child.file = "disk"
on-fault = "bypass"
limits = { memory = "1KiB", call = "1h", in-flight = 0, hold = 5, cpus = 1 }
"#,
        &expect![[r#"
            error: `memory` of `limits` of node `a` must be 64KiB to 1GiB
               --> DIR/graph.toml:10:21
                |
             10 | limits = { memory = "1KiB", call = "1h", in-flight = 0, hold = 5, cpus = 1 }
                |                     ^^^^^^

            error: `call` of `limits` of node `a` must be 100us to 10s
               --> DIR/graph.toml:10:36
                |
             10 | limits = { memory = "1KiB", call = "1h", in-flight = 0, hold = 5, cpus = 1 }
                |                                    ^^^^

            error: `in-flight` of `limits` of node `a` must be 1 to 65535
               --> DIR/graph.toml:10:54
                |
             10 | limits = { memory = "1KiB", call = "1h", in-flight = 0, hold = 5, cpus = 1 }
                |                                                      ^

            error: `hold` of `limits` of node `a` has no unit: write "5ms" or "5s"
               --> DIR/graph.toml:10:64
                |
             10 | limits = { memory = "1KiB", call = "1h", in-flight = 0, hold = 5, cpus = 1 }
                |                                                                ^

            error: unknown key `cpus` in `limits` of node `a`
               --> DIR/graph.toml:10:67
                |
             10 | limits = { memory = "1KiB", call = "1h", in-flight = 0, hold = 5, cpus = 1 }
                |                                                                   ^^^^
                = help: did you mean `cpu`? keys of `limits`: memory, call, in-flight, hold, cpu, log

            5 errors in DIR/graph.toml"#]],
    );
}

#[test]
fn text_that_is_no_toml() {
    check(
        "[node.disk\ndriver = \"memory\"\n",
        &expect![[r#"
        error: not valid TOML: unclosed table, expected `]`
          --> DIR/graph.toml:1:11
           |
         1 | [node.disk
           |           ^

        1 error in DIR/graph.toml"#]],
    );
    check(
        "[node.disk]\ndriver = \"mem\u{1b}[31mory\"\n",
        &expect![[r#"
        error: not valid TOML: invalid basic string, expected non-double-quote visible characters, `\`
          --> DIR/graph.toml:2:14
           |
         2 | driver = "mem\u{1b}[31mory"
           |              ^^^^^^

        1 error in DIR/graph.toml"#]],
    );
}
