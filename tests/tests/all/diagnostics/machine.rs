//! What the file asks of this machine and cannot have: files, plugins, addresses.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use blockloom::host::{Overrides, start};
use expect_test::expect;

use super::{Place, check};

#[test]
fn files_missing_and_too_small() {
    check(
        r#"
[node.missing]
driver = "file"
path = "missing.img"
[node.directory]
driver = "file"
path = "."
[node.nowhere]
driver = "file"
path = "nowhere/new.img"
create = "1MiB"
[node.beyond]
driver = "raw"
file = { driver = "file", path = "full.img" }
offset = "768KiB"
size = "512KiB"
"#,
        &expect![[r#"
            error: file `missing.img` does not exist
              --> DIR/graph.toml:4:8
               |
             4 | path = "missing.img"
               |        ^^^^^^^^^^^^^
               = help: to have it made, sparse, add its size: `create = "10GiB"`

            error: `.` is a directory, not a file
              --> DIR/graph.toml:7:8
               |
             7 | path = "."
               |        ^^^

            error: file `nowhere/new.img` cannot be made: directory `DIR/nowhere` does not exist
               --> DIR/graph.toml:10:8
                |
             10 | path = "nowhere/new.img"
                |        ^^^^^^^^^^^^^^^^^
                = help: make the directory first, or correct the path

            error: the section of node `beyond` ends at 1280KiB of node `#beyond.file`, which has 1MiB
               --> DIR/graph.toml:16:8
                |
             14 | file = { driver = "file", path = "full.img" }
                | ---- the child
               ...
             16 | size = "512KiB"
                |        ^^^^^^^^
                = help: make the section smaller, or the child larger

            4 errors in DIR/graph.toml"#]],
    );
}

#[test]
fn plugins_that_are_none() {
    let place = Place::new();
    std::fs::write(place.0.path("text.wasm"), "hello").expect("a file");
    std::fs::write(place.0.path("empty.wasm"), b"\0asm\x01\0\0\0").expect("a file");
    place.check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[node.a]
driver = "plugin"
plugin = "throtle"
child.file = "disk"
[node.b]
driver = "plugin"
plugin = "missing.wasm"
child.file = "a"
[node.c]
driver = "plugin"
plugin = "text.wasm"
child.file = "b"
[node.d]
driver = "plugin"
plugin = "empty.wasm"
child.file = "c"
"#,
        &expect![[r#"
            error: no bundled plugin is called `throtle`
              --> DIR/graph.toml:7:10
               |
             7 | plugin = "throtle"
               |          ^^^^^^^^^
               = help: did you mean `throttle`? bundled plugins: backup, copy-on-read, delay, error, log, pass, protect, stats, throttle, xor; a file's name ends in `.wasm`

            error: plugin `missing.wasm` cannot be loaded: cannot read plugin `DIR/missing.wasm`: No such file or directory (os error 2)
               --> DIR/graph.toml:11:10
                |
             11 | plugin = "missing.wasm"
                |          ^^^^^^^^^^^^^^

            error: plugin `text.wasm` cannot be loaded: plugin `DIR/text.wasm`: it is no WebAssembly file
               --> DIR/graph.toml:15:10
                |
             15 | plugin = "text.wasm"
                |          ^^^^^^^^^^^

            error: plugin `empty.wasm` cannot be loaded: plugin `DIR/empty.wasm`: it does not export `blockloom:filter/control@0.1.0`: it is no Blockloom filter; export one with blockloom_sdk::export_filter!
               --> DIR/graph.toml:19:10
                |
             19 | plugin = "empty.wasm"
                |          ^^^^^^^^^^^^

            4 errors in DIR/graph.toml"#]],
    );
}

#[test]
fn configurations_that_the_plugin_refuses() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[node.a]
driver = "plugin"
plugin = "throttle"
child.file = "disk"
config = { iops = "fast" }
[node.b]
driver = "plugin"
plugin = "throttle"
child.file = "a"
config = { iosp = 5 }
[node.c]
driver = "throttle"
child.file = "b"
[node.c.config]
bps = "1MiB"
bps-read = "1MiB"
[node.d]
driver = "plugin"
plugin = "pass"
child.file = "c"
config.level = 1
"#,
        &expect![[r#"
            error: `iops` in `config` of node `a`: expected a whole number, found "fast"
              --> DIR/graph.toml:9:12
               |
             9 | config = { iops = "fast" }
               |            ^^^^

            error: `iosp` in `config` of node `b`: unknown key; known are: iops, iops-max, iops-max-length, iops-read, iops-read-max, iops-read-max-length, iops-write, iops-write-max, iops-write-max-length, bps, bps-max, bps-max-length, bps-read, bps-read-max, bps-read-max-length, bps-write, bps-write-max, bps-write-max-length, iops-size, burst
               --> DIR/graph.toml:14:12
                |
             14 | config = { iosp = 5 }
                |            ^^^^

            error: `bps` in `config` of node `c`: limits reads and writes together; give either it or bps-read and bps-write
               --> DIR/graph.toml:19:1
                |
             19 | bps = "1MiB"
                | ^^^

            error: `level` in `config` of node `d`: unknown key; none is known here
               --> DIR/graph.toml:25:8
                |
             25 | config.level = 1
                |        ^^^^^

            4 errors in DIR/graph.toml"#]],
    );
}

#[test]
fn a_socket_in_use() {
    let place = Place::new();
    let _server = UnixListener::bind(place.0.path("a.sock")).expect("a server");
    std::fs::write(place.0.path("file.sock"), "no socket").expect("a file");
    place.check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[export.a]
type = "nbd"
node = "disk"
listen = "unix:a.sock"
[export.b]
type = "nbd"
node = "disk"
listen = "unix:file.sock"
[export.c]
type = "nbd"
node = "disk"
listen = "unix:nowhere/c.sock"
"#,
        &expect![[r#"
            error: export `a` cannot listen on `unix:a.sock`: another server listens there
              --> DIR/graph.toml:8:10
               |
             8 | listen = "unix:a.sock"
               |          ^^^^^^^^^^^^^

            error: export `b` cannot listen on `unix:file.sock`: a file that is no socket lies there
               --> DIR/graph.toml:12:10
                |
             12 | listen = "unix:file.sock"
                |          ^^^^^^^^^^^^^^^^

            error: export `c` cannot listen on `unix:nowhere/c.sock`: directory `DIR/nowhere` does not exist
               --> DIR/graph.toml:16:10
                |
             16 | listen = "unix:nowhere/c.sock"
                |          ^^^^^^^^^^^^^^^^^^^^^

            3 errors in DIR/graph.toml"#]],
    );
    assert_eq!(std::fs::read(place.0.path("file.sock")).expect("the file"), b"no socket");
}

#[test]
fn a_port_in_use() {
    let place = Place::new();
    let server = TcpListener::bind("127.0.0.1:0").expect("a server");
    let port = server.local_addr().expect("an address").port();
    let text = format!(
        "[node.disk]\ndriver = \"memory\"\nsize = \"1MiB\"\n\
         [export.a]\ntype = \"nbd\"\nnode = \"disk\"\nlisten = \"tcp:127.0.0.1:{port:05}\"\n"
    );
    let found = place.check_error(&text);
    assert_eq!(found, place.start_error(&text));
    let found = found.replace(&format!("{port:05}"), "PORT").replace(&port.to_string(), "PORT");
    expect![[r#"
        error: export `a` cannot listen on `tcp:127.0.0.1:PORT`: Address already in use (os error 98)
          --> DIR/graph.toml:7:10
           |
         7 | listen = "tcp:127.0.0.1:PORT"
           |          ^^^^^^^^^^^^^^^^^^^^^

        1 error in DIR/graph.toml"#]].assert_eq(&found);
}

#[test]
fn an_image_that_is_locked() {
    let place = Place::new();
    let text = "[node.disk]\ndriver = \"file\"\npath = \"full.img\"\n\
                [drive.vda]\nroot = \"disk\"\nwritable = true\n";
    let graph = place.0.graph("first.toml", text);
    let (first, _) = start(&graph, Overrides::default()).expect("the first");
    expect![[r#"
        error: file `full.img`: another process has the image open and stands against `write` (another server or a QEMU tool): stop it, or serve a copy
          --> DIR/graph.toml:3:8
           |
         3 | path = "full.img"
           |        ^^^^^^^^^^

        1 error in DIR/graph.toml"#]].assert_eq(&place.start_error(text));
    let readers = text.replace("writable = true", "writable = false");
    expect![[r#"
        error: file `full.img`: another process has the image open and stands against `write` (another server or a QEMU tool): stop it, or serve a copy
          --> DIR/graph.toml:3:8
           |
         3 | path = "full.img"
           |        ^^^^^^^^^^

        1 error in DIR/graph.toml"#]].assert_eq(&place.start_error(&readers));
    first.shutdown().expect("an end");
    let (second, _) = start(&graph, Overrides::default()).expect("the second");
    second.shutdown().expect("an end");
}
