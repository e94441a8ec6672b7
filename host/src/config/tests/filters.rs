//! Plugins, the host's own filters, and the instances that nodes share.

use expect_test::expect;

use super::check;

#[test]
fn plugin_options() {
    check(
        r#"
[node.m]
driver = "memory"
size = 0
[node.a]
driver = "plugin"
[node.b]
driver = "plugin"
plugin = "dir/thing"
file = "m"
on-fault = "restart"
limits = { memory = "1KiB", call = "1m", in-flight = 0, hold = 5, more = 1 }
instance = "a b"
config = 5
[node.c]
driver = "plugin"
plugin = "pass"
child.file = "m"
child."x.y" = "m"
grant.fil = ["read"]
grant.file = ["read", "wite", "read", 5]
on-fault = "explode"
config = { a = inf, b = 99999999999999999999, c = [nan] }
[node.d]
driver = "plugin"
plugin = "./my.wasm"
child.source = "m"
grant.file = "read"
limits = 5
"#,
        &expect![[r#"
            error: node `a` has no `plugin`
              --> graph.toml:5:7
               |
             5 | [node.a]
               |       ^
               = help: add `plugin = "throttle"`

            error: node `a` has no `child.file`
              --> graph.toml:5:7
               |
             5 | [node.a]
               |       ^
               = help: add `child.file = "NODE"`

            error: `plugin` of node `b` is neither a bundled plugin nor a file
              --> graph.toml:9:10
               |
             9 | plugin = "dir/thing"
               |          ^^^^^^^^^^^
               = help: write a bundled plugin's name, or the path of a file that ends in `.wasm`

            error: `file` of node `b` is not how a filter names its child
               --> graph.toml:10:1
                |
             10 | file = "m"
                | ^^^^
                = help: write `child.file = "NODE"`, or `child.file = { driver = … }`

            error: `memory` of `limits` of node `b` must be 64KiB to 1GiB
               --> graph.toml:12:21
                |
             12 | limits = { memory = "1KiB", call = "1m", in-flight = 0, hold = 5, more = 1 }
                |                     ^^^^^^

            error: `call` of `limits` of node `b` must be 100us to 10s
               --> graph.toml:12:36
                |
             12 | limits = { memory = "1KiB", call = "1m", in-flight = 0, hold = 5, more = 1 }
                |                                    ^^^^

            error: `in-flight` of `limits` of node `b` must be 1 to 65535
               --> graph.toml:12:54
                |
             12 | limits = { memory = "1KiB", call = "1m", in-flight = 0, hold = 5, more = 1 }
                |                                                      ^

            error: `hold` of `limits` of node `b` has no unit: write "5ms" or "5s"
               --> graph.toml:12:64
                |
             12 | limits = { memory = "1KiB", call = "1m", in-flight = 0, hold = 5, more = 1 }
                |                                                                ^

            error: unknown key `more` in `limits` of node `b`
               --> graph.toml:12:67
                |
             12 | limits = { memory = "1KiB", call = "1m", in-flight = 0, hold = 5, more = 1 }
                |                                                                   ^^^^
                = help: keys of `limits`: memory, call, in-flight, hold, cpu, log

            error: `a b` cannot be the name of an instance
               --> graph.toml:13:12
                |
             13 | instance = "a b"
                |            ^^^^^
                = help: a name is a letter, then letters, digits, `-`, `.` and `_`, 127 at most

            error: `config` of node `b` must be a table, not an integer
               --> graph.toml:14:10
                |
             14 | config = 5
                |          ^

            error: `x.y` cannot be the name of a child
               --> graph.toml:19:7
                |
             19 | child."x.y" = "m"
                |       ^^^^^
                = help: a child's name is a letter, then letters, digits, `-` and `_`

            error: node `c` grants `fil`, which is no child of it
               --> graph.toml:20:7
                |
             20 | grant.fil = ["read"]
                |       ^^^
                = help: did you mean `file`? children: file, x.y

            error: an item of `grant.file` of node `c` cannot be `wite`
               --> graph.toml:21:23
                |
             21 | grant.file = ["read", "wite", "read", 5]
                |                       ^^^^^^
                = help: did you mean `write`? possible values: read, write-unchanged, write, discard, resize

            error: `grant.file` of node `c` lists a grant twice
               --> graph.toml:21:31
                |
             21 | grant.file = ["read", "wite", "read", 5]
                |               ------ first here
                |                               ^^^^^^

            error: an item of `grant.file` of node `c` must be one of read, write-unchanged, write, discard, resize, not an integer
               --> graph.toml:21:39
                |
             21 | grant.file = ["read", "wite", "read", 5]
                |                                       ^

            error: `on-fault = "explode"` of node `c` is no fault policy
               --> graph.toml:22:12
                |
             22 | on-fault = "explode"
                |            ^^^^^^^^^
                = help: write "restart", "bypass" or "fail", which is the default

            error: `config` of node `c` has a number that is not finite
               --> graph.toml:23:16
                |
             23 | config = { a = inf, b = 99999999999999999999, c = [nan] }
                |                ^^^

            error: `config` of node `c` has an integer that does not fit 64 bits
               --> graph.toml:23:25
                |
             23 | config = { a = inf, b = 99999999999999999999, c = [nan] }
                |                         ^^^^^^^^^^^^^^^^^^^^

            error: `config` of node `c` has a number that is not finite
               --> graph.toml:23:52
                |
             23 | config = { a = inf, b = 99999999999999999999, c = [nan] }
                |                                                    ^^^

            error: node `d` has no `child.file`
               --> graph.toml:24:7
                |
             24 | [node.d]
                |       ^
                = help: add `child.file = "NODE"`

            error: `grant.file` of node `d` must be an array, not a string
               --> graph.toml:28:14
                |
             28 | grant.file = "read"
                |              ^^^^^^

            error: `limits` of node `d` must be a table, not an integer
               --> graph.toml:29:10
                |
             29 | limits = 5
                |          ^

            23 errors in graph.toml"#]],
    );
}

#[test]
fn native_filter_options() {
    check(
        r#"
[node.m]
driver = "memory"
size = 0
[node.a]
driver = "throttle"
child.file = "m"
grant.file = ["read"]
limits = {}
on-fault = "fail"
iops = 5
[node.b]
driver = "pass"
file = "m"
[node.c]
driver = "pass"
child.other = "m"
child.file = "m"
"#,
        &expect![[r#"
            error: `grant` of node `a` is for plugins: this driver is the host's own
              --> graph.toml:8:1
               |
             8 | grant.file = ["read"]
               | ^^^^^
               = help: remove it, or write `driver = "plugin"`

            error: `limits` of node `a` is for plugins: this driver is the host's own
              --> graph.toml:9:1
               |
             9 | limits = {}
               | ^^^^^^
               = help: remove it, or write `driver = "plugin"`

            error: `on-fault` of node `a` is for plugins: this driver is the host's own
               --> graph.toml:10:1
                |
             10 | on-fault = "fail"
                | ^^^^^^^^
                = help: remove it, or write `driver = "plugin"`

            error: unknown key `iops` in node `a`
               --> graph.toml:11:1
                |
             11 | iops = 5
                | ^^^^
                = help: keys of driver `throttle`: child, instance, config, read-only, auto-read-only

            error: `file` of node `b` is not how a filter names its child
               --> graph.toml:14:1
                |
             14 | file = "m"
                | ^^^^
                = help: write `child.file = "NODE"`, or `child.file = { driver = … }`

            error: node `c` has 2 children: 1 at most
               --> graph.toml:17:7
                |
             17 | child.other = "m"
                |       ^^^^^

            6 errors in graph.toml"#]],
    );
}

#[test]
fn instances() {
    check(
        r#"
[node.m]
driver = "memory"
size = 0
[node.a]
driver = "plugin"
plugin = "x"
child.file = "m"
instance = "i"
config = { a = 1 }
[node.b]
driver = "plugin"
plugin = "y"
child.file = "m"
instance = "i"
config = { a = 1 }
[node.c]
driver = "plugin"
plugin = "x"
child.file = "m"
instance = "i"
config = { a = 2 }
[node.d]
driver = "plugin"
plugin = "x"
child.file = "m"
instance = "i"
config = { a = 1 }
limits = { memory = "1MiB" }
[node.e]
driver = "pass"
child.file = "m"
instance = "i"
[node.f]
driver = "plugin"
plugin = "x"
child.file = "m"
instance = "i"
config = { a = 1 }
"#,
        &expect![[r#"
            error: nodes `a` and `b` share instance `i`, but differ in `plugin`
               --> graph.toml:13:10
                |
              7 | plugin = "x"
                |          --- node `a`
               ...
             13 | plugin = "y"
                |          ^^^
                = help: make them the same, or give the nodes instances of their own

            error: nodes `a` and `c` share instance `i`, but differ in `config`
               --> graph.toml:22:1
                |
             10 | config = { a = 1 }
                | ------ node `a`
               ...
             22 | config = { a = 2 }
                | ^^^^^^
                = help: make them the same, or give the nodes instances of their own

            error: nodes `a` and `d` share instance `i`, but differ in `limits`
               --> graph.toml:27:12
                |
              9 | instance = "i"
                |            --- node `a`
               ...
             27 | instance = "i"
                |            ^^^
                = help: make them the same, or give the nodes instances of their own

            error: nodes `a` and `e` share instance `i`, but differ in `driver`
               --> graph.toml:33:12
                |
              9 | instance = "i"
                |            --- node `a`
               ...
             33 | instance = "i"
                |            ^^^
                = help: make them the same, or give the nodes instances of their own

            4 errors in graph.toml"#]],
    );
}
