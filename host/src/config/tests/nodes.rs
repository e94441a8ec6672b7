//! Nodes: drivers and their options.

use expect_test::expect;

use super::check;

#[test]
fn unknown_key_with_suggestion() {
    check(
        "[node.disk]\ndriver = \"memory\"\nsise = \"1GiB\"\nsize = 5\n",
        &expect![[r#"
            error: unknown key `sise` in node `disk`
              --> graph.toml:3:1
               |
             3 | sise = "1GiB"
               | ^^^^
               = help: did you mean `size`? keys of driver `memory`: child, size, block-size, read-only, auto-read-only

            1 error in graph.toml"#]],
    );
}

#[test]
fn every_error_at_once() {
    check(
        r#"
[node.disk]
driver = "memory"
size = true
block-size = 3
bogus = 1

[node.other]
driver = "fil"

[drive.vda]
root = "disc"
"#,
        &expect![[r#"
            error: `size` of node `disk` must be a size, not a boolean
              --> graph.toml:4:8
               |
             4 | size = true
               |        ^^^^
               = help: write bytes or a string such as "64KiB" or "10GiB"

            error: `block-size` of node `disk` must be a power of two, 1 to 4096
              --> graph.toml:5:14
               |
             5 | block-size = 3
               |              ^

            error: unknown key `bogus` in node `disk`
              --> graph.toml:6:1
               |
             6 | bogus = 1
               | ^^^^^
               = help: keys of driver `memory`: child, size, block-size, read-only, auto-read-only

            error: unknown driver `fil`
              --> graph.toml:9:10
               |
             9 | driver = "fil"
               |          ^^^^^
               = help: did you mean `file`? this release has: file, memory, null, raw, qcow2, plugin, plugin-view, pass, throttle, copy-on-read, backup

            error: drive `vda` refers to node `disc`, which does not exist
               --> graph.toml:12:8
                |
             12 | root = "disc"
                |        ^^^^^^
                = help: did you mean `disk`? nodes of this file: disk, other

            5 errors in graph.toml"#]],
    );
}

#[test]
fn driver() {
    check(
        r#"
[node.a]
path = "x"
[node.b]
driver = "nbd"
[node.c]
driver = "throtle"
[node.d]
driver = 7
[node.f]
drivr = "file"
[node]
e = 5
"#,
        &expect![[r#"
            error: node `a` has no `driver`
              --> graph.toml:2:7
               |
             2 | [node.a]
               |       ^
               = help: add `driver = "file"`; this release has: file, memory, null, raw, qcow2, plugin, plugin-view, pass, throttle, copy-on-read, backup

            error: driver `nbd` is not in this release
              --> graph.toml:5:10
               |
             5 | driver = "nbd"
               |          ^^^^^
               = help: this release has: file, memory, null, raw, qcow2, plugin, plugin-view, pass, throttle, copy-on-read, backup

            error: unknown driver `throtle`
              --> graph.toml:7:10
               |
             7 | driver = "throtle"
               |          ^^^^^^^^^
               = help: did you mean `throttle`? this release has: file, memory, null, raw, qcow2, plugin, plugin-view, pass, throttle, copy-on-read, backup

            error: `driver` of node `d` must be a string, not an integer
              --> graph.toml:9:10
               |
             9 | driver = 7
               |          ^

            error: node `f` has no `driver`
               --> graph.toml:10:7
                |
             10 | [node.f]
                |       ^
                = help: is `drivr` meant to be `driver`? this release has: file, memory, null, raw, qcow2, plugin, plugin-view, pass, throttle, copy-on-read, backup

            error: node `e` must be a table, not an integer
               --> graph.toml:13:5
                |
             13 | e = 5
                |     ^

            6 errors in graph.toml"#]],
    );
}

#[test]
fn file_options() {
    check(
        r#"
[node.a]
driver = "file"
[node.b]
driver = "file"
path = ""
size = "1GiB"
locking = "no"
direct = "yes"
create = "1GB"
read-only = 1
"#,
        &expect![[r#"
            error: node `a` has no `path`
              --> graph.toml:2:7
               |
             2 | [node.a]
               |       ^
               = help: add `path = "disk.img"`

            error: `path` of node `b` is no path: it is empty or has a zero byte
              --> graph.toml:6:8
               |
             6 | path = ""
               |        ^^

            error: `size` of node `b` is not a key of driver `file`: a file has the size it has
              --> graph.toml:7:1
               |
             7 | size = "1GiB"
               | ^^^^
               = help: to have it made if it does not exist, write `create = "10GiB"`

            error: `locking` of node `b` cannot be `no`
              --> graph.toml:8:11
               |
             8 | locking = "no"
               |           ^^^^
               = help: did you mean `on`? possible values: auto, on, off

            error: `direct` of node `b` must be true or false, not a string
              --> graph.toml:9:10
               |
             9 | direct = "yes"
               |          ^^^^^

            error: `create` of node `b` has the unit `GB`: units are binary, write `1GiB`
               --> graph.toml:10:10
                |
             10 | create = "1GB"
                |          ^^^^^

            error: `read-only` of node `b` must be true or false, not an integer
               --> graph.toml:11:13
                |
             11 | read-only = 1
                |             ^

            7 errors in graph.toml"#]],
    );
}

#[test]
fn memory_and_null_options() {
    check(
        r#"
[node.a]
driver = "memory"
size = 1000
block-size = 512
[node.b]
driver = "null"
[node.c]
driver = "null"
size = 0
latency = 5
read-zeroes = "maybe"
block-size = 8192
"#,
        &expect![[r#"
            error: `size` of node `a` is not a multiple of its block size
              --> graph.toml:4:8
               |
             4 | size = 1000
               |        ^^^^
             5 | block-size = 512
               |              --- the block size
               = help: the next multiple is 1024

            error: node `b` has no `size`
              --> graph.toml:6:7
               |
             6 | [node.b]
               |       ^
               = help: add `size = "1GiB"`

            error: `latency` of node `c` has no unit: write "5ms" or "5s"
               --> graph.toml:11:11
                |
             11 | latency = 5
                |           ^

            error: `read-zeroes` of node `c` must be true or false, not a string
               --> graph.toml:12:15
                |
             12 | read-zeroes = "maybe"
                |               ^^^^^^^

            error: `block-size` of node `c` must be a power of two, 1 to 4096
               --> graph.toml:13:14
                |
             13 | block-size = 8192
                |              ^^^^

            5 errors in graph.toml"#]],
    );
}

#[test]
fn raw_options() {
    check(
        r#"
[node.m]
driver = "memory"
size = "1MiB"
[node.a]
driver = "raw"
[node.b]
driver = "raw"
file = "m"
offset = 100
size = 513
[node.c]
driver = "raw"
child.file = "m"
[node.d]
driver = "raw"
file = 3
[node.e]
driver = "raw"
file = "m"
offset = "512KiB"
size = "1MiB"
[node.f]
driver = "raw"
file = { driver = "raw", file = "m", offset = 512 }
offset = "1MiB"
[node.g]
driver = "raw"
file = "nowhere"
offset = 9223372036854775296
size = 512
"#,
        &expect![[r#"
            error: node `a` has no `file`
              --> graph.toml:5:7
               |
             5 | [node.a]
               |       ^
               = help: add `file = "NODE"`

            error: `offset` of node `b` must be a multiple of 512
               --> graph.toml:10:10
                |
             10 | offset = 100
                |          ^^^

            error: `size` of node `b` must be a multiple of 512
               --> graph.toml:11:8
                |
             11 | size = 513
                |        ^^^

            error: `child` of node `c` is not how driver `raw` names its child
               --> graph.toml:14:1
                |
             14 | child.file = "m"
                | ^^^^^
                = help: write `file = "NODE"`, or `file = { driver = … }`

            error: child `file` of node `d` must be the name of a node or a table, not an integer
               --> graph.toml:17:8
                |
             17 | file = 3
                |        ^

            error: the section of node `e` ends at 1536KiB of node `m`, which has 1MiB
               --> graph.toml:22:8
                |
             20 | file = "m"
                |        --- the child
               ...
             22 | size = "1MiB"
                |        ^^^^^^
                = help: make the section smaller, or the child larger

            error: the section of node `f` begins at 1MiB of node `#f.file`, which has 1048064
               --> graph.toml:26:10
                |
             25 | file = { driver = "raw", file = "m", offset = 512 }
                | ---- the child
             26 | offset = "1MiB"
                |          ^^^^^^
                = help: make the section smaller, or the child larger

            error: child `file` of node `g` refers to node `nowhere`, which does not exist
               --> graph.toml:29:8
                |
             29 | file = "nowhere"
                |        ^^^^^^^^^
                = help: nodes of this file: m, a, b, c, d, e, f, g

            error: the section of node `g` ends past 2^63 - 1 bytes
               --> graph.toml:31:8
                |
             30 | offset = 9223372036854775296
                |          ------------------- it begins here
             31 | size = 512
                |        ^^^

            9 errors in graph.toml"#]],
    );
}

#[test]
fn unnamed_nodes() {
    check(
        r#"
[node.a]
driver = "raw"
file = { driver = "file", pth = "x" }
[node.b]
driver = "raw"
file = { driver = "raw", file = { size = 1 } }
[node.c]
driver = "raw"
file = '#a.file'
"#,
        &expect![[r#"
            error: node `#a.file` has no `path`
              --> graph.toml:4:1
               |
             4 | file = { driver = "file", pth = "x" }
               | ^^^^
               = help: add `path = "disk.img"`

            error: unknown key `pth` in node `#a.file`
              --> graph.toml:4:27
               |
             4 | file = { driver = "file", pth = "x" }
               |                           ^^^
               = help: did you mean `path`? keys of driver `file`: path, create, direct, locking, discard, read-only, auto-read-only

            error: node `#b.file/file` has no `driver`
              --> graph.toml:7:26
               |
             7 | file = { driver = "raw", file = { size = 1 } }
               |                          ^^^^
               = help: add `driver = "file"`; this release has: file, memory, null, raw, qcow2, plugin, plugin-view, pass, throttle, copy-on-read, backup

            error: `#a.file` is no name that can be referred to
               --> graph.toml:10:8
                |
             10 | file = '#a.file'
                |        ^^^^^^^^^
                = help: give the inline node a name: move it to a table `[node.NAME]` of its own

            4 errors in graph.toml"#]],
    );
}

#[test]
fn names() {
    check(
        r#"
[node.1st]
driver = "memory"
size = 0
[node."a b"]
driver = "memory"
size = 0
[drive."ü"]
[export.""]
type = "nbd"
drive = "ü"
listen = "unix:x"
[bitmap."fine: ünï"]
drive = "ü"
[bitmap."not\u0007"]
drive = "ü"
"#,
        &expect![[r#"
            error: `1st` cannot be the name of a node
              --> graph.toml:2:7
               |
             2 | [node.1st]
               |       ^^^
               = help: a name is a letter, then letters, digits, `-`, `.` and `_`, 127 at most

            error: `a b` cannot be the name of a node
              --> graph.toml:5:7
               |
             5 | [node."a b"]
               |       ^^^^^
               = help: a name is a letter, then letters, digits, `-`, `.` and `_`, 127 at most

            error: `ü` cannot be the name of a drive
              --> graph.toml:8:8
               |
             8 | [drive."ü"]
               |        ^^^
               = help: a name is a letter, then letters, digits, `-`, `.` and `_`, 127 at most

            error: `` cannot be the name of an export
              --> graph.toml:9:9
               |
             9 | [export.""]
               |         ^^
               = help: a name is a letter, then letters, digits, `-`, `.` and `_`, 127 at most

            error: `not\u{7}` cannot be the name of a bitmap
               --> graph.toml:15:9
                |
             15 | [bitmap."not\u0007"]
                |         ^^^^^^^^^^^
                = help: it has a control character

            5 errors in graph.toml"#]],
    );
}

#[test]
fn overlays() {
    let good = r#"
[node.disk]
driver = "file"
path = "disk.img"
[node.base]
driver = "memory"
size = "1MiB"
[node.overlay]
driver = "memory"
block-size = 512
child.backing = { driver = "pass", child.file = "base" }
[node.top]
driver = "memory"
child.backing = "overlay"
[node.longer]
driver = "memory"
size = "2GiB"
block-size = 4096
child.backing = "disk"
"#;
    check(good, &expect!["ok"]);
    check(
        r#"
[node.base]
driver = "memory"
size = 1000
[node.a]
driver = "memory"
child.file = "base"
[node.b]
driver = "memory"
child.backin = "base"
child.backing = "bass"
[node.c]
driver = "memory"
backing = "base"
[node.d]
driver = "memory"
child = "base"
[node.e]
driver = "memory"
child = {}
[node.f]
driver = "memory"
child.backing = "f"
"#,
        &expect![[r#"
            error: node `a` has no child `file`
              --> graph.toml:7:7
               |
             7 | child.file = "base"
               |       ^^^^
               = help: children of driver `memory`: backing

            error: node `b` has no child `backin`
               --> graph.toml:10:7
                |
             10 | child.backin = "base"
                |       ^^^^^^
                = help: did you mean `backing`? children of driver `memory`: backing

            error: child `backing` of node `b` refers to node `bass`, which does not exist
               --> graph.toml:11:17
                |
             11 | child.backing = "bass"
                |                 ^^^^^^
                = help: did you mean `base`? nodes of this file: base, a, b, c, d, e, f

            error: `backing` of node `c` is not how driver `memory` names its backing
               --> graph.toml:14:1
                |
             14 | backing = "base"
                | ^^^^^^^
                = help: for an overlay write `child.backing = "NODE"`, or `child.backing = { driver = … }`

            error: `child` of node `d` must be a table, not a string
               --> graph.toml:17:9
                |
             17 | child = "base"
                |         ^^^^^^

            error: node `e` has no `size`
               --> graph.toml:18:7
                |
             18 | [node.e]
                |       ^
                = help: add `size = "1GiB"`

            error: nodes are below themselves: f → f
               --> graph.toml:23:17
                |
             23 | child.backing = "f"
                |                 ^^^
                = help: point one of these children elsewhere

            7 errors in graph.toml"#]],
    );
    check(
        r#"
[node.disk]
driver = "file"
path = "disk.img"
create = "1GiB"
[node.base]
driver = "memory"
size = 1000
[node.a]
driver = "memory"
child.backing = { driver = "raw", file = "disk" }
[node.b]
driver = "memory"
child.backing = "a"
[node.c]
driver = "memory"
block-size = 512
child.backing = "base"
[node.d]
driver = "memory"
child.backing = { driver = "raw", file = "dusk" }
[node.e]
driver = "memory"
size = true
child.backing = "disk"
"#,
        &expect![[r#"
            error: node `a` has no `size`, and that of its backing, node `#a.backing`, is known only when it is opened
               --> graph.toml:9:7
                |
              9 | [node.a]
                |       ^
               ...
             11 | child.backing = { driver = "raw", file = "disk" }
                |       ------- the backing
                = help: add `size = "1GiB"`

            error: node `c` has no `size`, and that of its backing, node `base`, 1000, is not a multiple of its block size
               --> graph.toml:15:7
                |
             15 | [node.c]
                |       ^
               ...
             18 | child.backing = "base"
                |                 ------ the backing
                = help: add `size = 1024`

            error: child `file` of node `#d.backing` refers to node `dusk`, which does not exist
               --> graph.toml:21:42
                |
             21 | child.backing = { driver = "raw", file = "dusk" }
                |                                          ^^^^^^
                = help: did you mean `disk`? nodes of this file: disk, base, a, b, c, d, e

            error: `size` of node `e` must be a size, not a boolean
               --> graph.toml:24:8
                |
             24 | size = true
                |        ^^^^
                = help: write bytes or a string such as "64KiB" or "10GiB"

            4 errors in graph.toml"#]],
    );
}
