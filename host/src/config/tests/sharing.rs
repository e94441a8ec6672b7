//! Who may use a node together.

use expect_test::expect;

use super::check;

#[test]
fn two_writers() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[drive.a]
root = "disk"
[drive.b]
root = "disk"
[export.a]
type = "nbd"
drive = "a"
listen = "unix:a"
writable = true
[export.b]
type = "nbd"
drive = "b"
listen = "unix:b"
writable = true
"#,
        &expect![[r#"
            error: drive `a` (edge `root`) and drive `b` (edge `root`) both write node `disk`
               --> graph.toml:8:8
                |
              6 | root = "disk"
                |        ------ drive `a` uses it here
               ...
              8 | root = "disk"
                |        ^^^^^^
               ...
             13 | writable = true
                |            ---- export `a` is writable
               ...
             18 | writable = true
                |            ---- export `b` is writable
                = help: give drive `b` a node of its own, or make export `b` `writable = false`

            1 error in graph.toml"#]],
    );
}

#[test]
fn writer_and_reader_of_drives() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[node.filter]
driver = "pass"
child.file = "disk"
[drive.a]
root = "filter"
[drive.b]
root = "disk"
[export.a]
type = "nbd"
drive = "a"
listen = "unix:a"
writable = true
"#,
        &expect![[r#"
            error: drive `b` (edge `root`) cannot share node `disk` with node `filter` (edge `file`), which writes it
               --> graph.toml:11:8
                |
              7 | child.file = "disk"
                |              ------ node `filter` uses it here
               ...
             11 | root = "disk"
                |        ^^^^^^
               ...
             16 | writable = true
                |            ---- export `a` is writable
                = help: give drive `b` a node of its own, or make export `a` `writable = false`

            1 error in graph.toml"#]],
    );
}

#[test]
fn readers_and_observers_are_fine() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[node.one]
driver = "raw"
file = "disk"
size = 512
[node.two]
driver = "raw"
file = "disk"
offset = 512
[drive.a]
root = "disk"
[drive.b]
root = "disk"
[drive.c]
root = "one"
[export.a]
type = "nbd"
drive = "a"
listen = "unix:a"
"#,
        &expect![["ok"]],
    );
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[node.filter]
driver = "pass"
child.file = "disk"
[drive.a]
root = "filter"
[export.a]
type = "nbd"
drive = "a"
listen = "unix:a"
writable = true
[export.also-a]
type = "nbd"
drive = "a"
listen = "unix:a"
writable = true
[export.below]
type = "nbd"
node = "disk"
listen = "unix:a"
"#,
        &expect!["ok"],
    );
}

#[test]
fn sections_do_not_share_writing() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[node.one]
driver = "raw"
file = "disk"
size = 512
[node.two]
driver = "raw"
file = "disk"
offset = 512
[export.one]
type = "nbd"
node = "one"
listen = "unix:a"
writable = true
"#,
        &expect![[r#"
            error: node `two` (edge `file`) cannot share node `disk` with node `one` (edge `file`), which writes it
               --> graph.toml:11:8
                |
              7 | file = "disk"
                |        ------ node `one` uses it here
               ...
             11 | file = "disk"
                |        ^^^^^^
               ...
             17 | writable = true
                |            ---- export `one` is writable
                = help: give node `two` a child of its own, or make export `one` `writable = false`

            1 error in graph.toml"#]],
    );
}

#[test]
fn grants_are_uses() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[node.filter]
driver = "plugin"
plugin = "x"
child.file = "disk"
grant.file = ["read", "write"]
[drive.a]
root = "filter"
[drive.b]
root = "disk"
"#,
        &expect![[r#"
            error: drive `b` (edge `root`) cannot share node `disk` with node `filter` (edge `file`), which writes it
               --> graph.toml:13:8
                |
              8 | child.file = "disk"
                |              ------ node `filter` uses it here
              9 | grant.file = ["read", "write"]
                |                       ------- node `filter` is granted `write`
               ...
             13 | root = "disk"
                |        ^^^^^^
                = help: give drive `b` a node of its own, or take `write` from `grant.file` of node `filter`

            1 error in graph.toml"#]],
    );
}

#[test]
fn writable_over_read_only() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
read-only = true
[node.filter]
driver = "pass"
child.file = "disk"
[drive.a]
root = "filter"
[export.a]
type = "nbd"
drive = "a"
listen = "unix:a"
writable = true
"#,
        &expect![[r#"
            error: export `a` is writable, but node `disk` is read-only
               --> graph.toml:15:12
                |
              5 | read-only = true
                |             ---- read-only here
               ...
             15 | writable = true
                |            ^^^^
                = help: remove `read-only = true` from node `disk`, or make export `a` `writable = false`

            1 error in graph.toml"#]],
    );
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
read-only = true
[node.filter]
driver = "plugin"
plugin = "x"
child.file = "disk"
grant.file = ["discard"]
"#,
        &expect![[r#"
            error: node `filter` is granted `discard`, but node `disk` is read-only
               --> graph.toml:10:15
                |
              5 | read-only = true
                |             ---- read-only here
               ...
             10 | grant.file = ["discard"]
                |               ^^^^^^^^^
                = help: remove `read-only = true` from node `disk`, or take `discard` from `grant.file` of node `filter`

            1 error in graph.toml"#]],
    );
}

#[test]
fn writer_of_a_backing() {
    check(
        r#"
[node.base]
driver = "memory"
size = "1MiB"
[node.overlay]
driver = "memory"
child.backing = "base"
[export.base]
type = "nbd"
node = "base"
listen = "unix:a"
writable = true
[export.overlay]
type = "nbd"
node = "overlay"
listen = "unix:b"
writable = true
"#,
        &expect![[r#"
            error: node `overlay` (edge `backing`) cannot share node `base` with export `base` (edge `node`), which writes it
               --> graph.toml:10:8
                |
              7 | child.backing = "base"
                |                 ------ node `overlay` uses it here
               ...
             10 | node = "base"
                |        ^^^^^^
               ...
             12 | writable = true
                |            ---- export `base` is writable
                = help: give export `base` a node of its own, or make export `base` `writable = false`

            1 error in graph.toml"#]],
    );
}

#[test]
fn writer_of_a_backing_that_is_only_shown() {
    check(
        r#"
[node.base]
driver = "memory"
size = "1MiB"
[node.overlay]
driver = "memory"
child.backing = "base"
[export.base]
type = "nbd"
node = "base"
listen = "unix:a"
writable = true
[export.overlay]
type = "nbd"
node = "overlay"
listen = "unix:b"
"#,
        &expect!["ok"],
    );
}

/// The target of copies that come before writes, shown beside the writer of what it stands on.
#[test]
fn writer_of_the_backing_of_a_target() {
    let fleecing = r#"
[node.disk]
driver = "memory"
size = "1MiB"
[node.fleece]
driver = "memory"
child.backing = "disk"
[node.before]
driver = "plugin"
plugin = "x"
child.file = "disk"
child.target = "fleece"
grant.file = ["read"]
grant.target = ["write"]
[drive.vda]
root = "before"
[export.vda]
type = "nbd"
drive = "vda"
listen = "unix:a"
writable = true
[export.fleece]
type = "nbd"
node = "fleece"
listen = "unix:b"
"#;
    check(fleecing, &expect!["ok"]);
    // Who writes the target itself minds what its backing does.
    check(
        &format!("{fleecing}writable = true\n"),
        &expect![[r#"
        error: node `fleece` (edge `backing`) cannot share node `disk` with node `before` (edge `file`), which writes it
           --> graph.toml:11:14
            |
          7 | child.backing = "disk"
            |                 ------ node `fleece` uses it here
           ...
         11 | child.file = "disk"
            |              ^^^^^^
           ...
         21 | writable = true
            |            ---- export `vda` is writable
            = help: give node `before` a child of its own, or make export `vda` `writable = false`

        error: export `fleece` (edge `node`) and node `before` (edge `target`) both write node `fleece`
           --> graph.toml:24:8
            |
         12 | child.target = "fleece"
            |                -------- node `before` uses it here
           ...
         14 | grant.target = ["write"]
            |                 ------- node `before` is granted `write`
           ...
         24 | node = "fleece"
            |        ^^^^^^^^
           ...
         26 | writable = true
            |            ---- export `fleece` is writable
            = help: give export `fleece` a node of its own, or make export `fleece` `writable = false`

        2 errors in graph.toml"#]],
    );
}
