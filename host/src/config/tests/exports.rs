//! Drives, bitmaps and exports.

use expect_test::expect;

use super::super::{ListenAddr, listen};
use super::check;

#[test]
fn drives() {
    check(
        "[drive.a]\nroot = 5\nrot = \"x\"\n[drive.b]\nroot = \"#x.file\"\n",
        &expect![[r##"
            error: `root` of drive `a` must be a string, not an integer
              --> graph.toml:2:8
               |
             2 | root = 5
               |        ^

            error: unknown key `rot` in drive `a`
              --> graph.toml:3:1
               |
             3 | rot = "x"
               | ^^^
               = help: did you mean `root`? keys of drives: root, writable

            error: `#x.file` is no name that can be referred to
              --> graph.toml:5:8
               |
             5 | root = "#x.file"
               |        ^^^^^^^^^
               = help: give the inline node a name: move it to a table `[node.NAME]` of its own

            3 errors in graph.toml"##]],
    );
}

#[test]
fn bitmaps() {
    check(
        r#"
[node.m]
driver = "memory"
size = 0
[drive.a]
root = "m"
[bitmap.none]
[bitmap.both]
node = "m"
drive = "a"
[bitmap.small]
node = "m"
granularity = 256
[bitmap.odd]
node = "m"
granularity = "3MiB"
[bitmap.large]
node = "m"
granularity = "4GiB"
[bitmap.root]
node = "m"
persist = "root"
[bitmap.meta]
node = "m"
persist = "meta"
[bitmap.of-node]
node = "m"
persist = { node = "m" }
[bitmap.never]
node = "m"
persist = "never"
enabled = "yes"
"#,
        &expect![[r#"
            error: bitmap `none` has neither `drive` nor `node`
              --> graph.toml:7:9
               |
             7 | [bitmap.none]
               |         ^^^^
               = help: add `drive = "ID"`, or `node = "NAME"`

            error: bitmap `both` has both `drive` and `node`
               --> graph.toml:10:1
                |
              9 | node = "m"
                | ---- the other one
             10 | drive = "a"
                | ^^^^^
                = help: it belongs to a drive or to a node: remove one of the two

            error: `granularity` of bitmap `small` must be a power of two, 512 to 2GiB
               --> graph.toml:13:15
                |
             13 | granularity = 256
                |               ^^^

            error: `granularity` of bitmap `odd` must be a power of two, 512 to 2GiB
               --> graph.toml:16:15
                |
             16 | granularity = "3MiB"
                |               ^^^^^^

            error: `granularity` of bitmap `large` must be a power of two, 512 to 2GiB
               --> graph.toml:19:15
                |
             19 | granularity = "4GiB"
                |               ^^^^^^

            error: `persist = "root"` of bitmap `root` needs a drive, and it has a node
               --> graph.toml:22:11
                |
             21 | node = "m"
                |        --- the node
             22 | persist = "root"
                |           ^^^^^^
                = help: write `persist = { node = "NODE" }`, or give the bitmap a drive

            error: `persist = "meta"` of bitmap `meta` needs a drive, and it has a node
               --> graph.toml:25:11
                |
             24 | node = "m"
                |        --- the node
             25 | persist = "meta"
                |           ^^^^^^
                = help: write `persist = { node = "NODE" }`, or give the bitmap a drive

            error: node `m` cannot keep bitmap `of-node`: its driver is `memory`, and only `qcow2` keeps bitmaps
               --> graph.toml:28:20
                |
             28 | persist = { node = "m" }
                |                    ^^^
                = help: write `persist = "none"`

            error: `persist` of bitmap `never` cannot be "never"
               --> graph.toml:31:11
                |
             31 | persist = "never"
                |           ^^^^^^^
                = help: write "none", "root", "meta" or `{ node = "NODE" }`

            error: `enabled` of bitmap `never` must be true or false, not a string
               --> graph.toml:32:11
                |
             32 | enabled = "yes"
                |           ^^^^^

            10 errors in graph.toml"#]],
    );
}

#[test]
fn exports() {
    check(
        r#"
[node.m]
driver = "memory"
size = 0
[export.a]
[export.b]
type = "fuse"
drive = "nodrive"
listen = "tcp:foo"
mountpoint = "/mnt"
[export.c]
type = "nfs"
node = "m"
listen = "unix:x"
[export.d]
type = "nbd"
node = "m"
listen = "unix:x"
name = "a\nb"
description = "tab\t"
writable = 1
bitmaps = "daily"
[export.e]
type = "nbd"
node = "m"
listen = "unix:x"
bitmaps = [1, "none", "none"]
"#,
        &expect![[r#"
            error: export `a` has no `type`
              --> graph.toml:5:9
               |
             5 | [export.a]
               |         ^
               = help: add `type = "nbd"`

            error: export `a` has neither `drive` nor `node`
              --> graph.toml:5:9
               |
             5 | [export.a]
               |         ^
               = help: add `drive = "ID"`, or `node = "NAME"`

            error: export `a` has no `listen`
              --> graph.toml:5:9
               |
             5 | [export.a]
               |         ^
               = help: add `listen = "unix:/path/to/socket"`

            error: export type `fuse` is not in this release
              --> graph.toml:7:8
               |
             7 | type = "fuse"
               |        ^^^^^^
               = help: this release has: nbd

            error: export `b` refers to drive `nodrive`, which does not exist
              --> graph.toml:8:9
               |
             8 | drive = "nodrive"
               |         ^^^^^^^^^
               = help: drives of this file: (none)

            error: `listen` of export `b` has no port: write "tcp:HOST:PORT", for example "tcp:127.0.0.1:10809"
              --> graph.toml:9:10
               |
             9 | listen = "tcp:foo"
               |          ^^^^^^^^^

            error: unknown export type `nfs`
               --> graph.toml:12:8
                |
             12 | type = "nfs"
                |        ^^^^^
                = help: this release has: nbd

            error: `a\nb` cannot be the name of an export
               --> graph.toml:19:8
                |
             19 | name = "a\nb"
                |        ^^^^^^
                = help: it has a control character

            error: `tab\t` cannot be the description of an export
               --> graph.toml:20:15
                |
             20 | description = "tab\t"
                |               ^^^^^^^
                = help: it has a control character

            error: `writable` of export `d` must be true or false, not an integer
               --> graph.toml:21:12
                |
             21 | writable = 1
                |            ^

            error: `bitmaps` of export `d` must be an array, not a string
               --> graph.toml:22:11
                |
             22 | bitmaps = "daily"
                |           ^^^^^^^

            error: an item of `bitmaps` of export `e` must be a string, not an integer
               --> graph.toml:27:12
                |
             27 | bitmaps = [1, "none", "none"]
                |            ^

            error: export `e` refers to bitmap `none`, which does not exist
               --> graph.toml:27:15
                |
             27 | bitmaps = [1, "none", "none"]
                |               ^^^^^^
                = help: bitmaps of this file: (none)

            error: export `e` lists bitmap `none` twice
               --> graph.toml:27:23
                |
             27 | bitmaps = [1, "none", "none"]
                |               ------ first here
                |                       ^^^^^^

            14 errors in graph.toml"#]],
    );
}

#[test]
fn listen_addresses() {
    let check = |text: &str, expected: &str| {
        let found = match text.parse::<ListenAddr>() {
            Ok(addr) => format!("{addr}"),
            Err(wrong) => wrong.to_string(),
        };
        assert_eq!(found, expected, "{text}");
    };
    check("unix:/run/x", "unix:/run/x");
    check("tcp:localhost:1", "tcp:localhost:1");
    check("tcp:[::]:65535", "tcp:[::]:65535");
    check("unix:", "has no path: write \"unix:/path/to/socket\"");
    check("/run/x", "is no address: write \"unix:PATH\" or \"tcp:HOST:PORT\"");
    check("tcp:host", "has no port: write \"tcp:HOST:PORT\", for example \"tcp:127.0.0.1:10809\"");
    for port in ["0", "65536", "+1", "", "x"] {
        check(&format!("tcp:h:{port}"), "has a wrong port: ports are 1 to 65535");
    }
    check("tcp:::1:5", "has an IPv6 address without brackets: write \"tcp:[ADDRESS]:PORT\"");
    check("tcp:[x]:5", "has no IPv6 address in its brackets");
    check("tcp:a b:5", "has a wrong host: write a name or an address");
    check(&format!("unix:{}", "x".repeat(108)), &listen::too_long());
}
