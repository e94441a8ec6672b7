//! Image locks: whoever writes an image is alone with it, readers share.

use std::process::{Command, Stdio};

use blockloom_tests::nbd::Client;
use blockloom_tests::tools::{fail, have, qemu_io, succeed};
use blockloom_tests::{Killed, Scratch, eventually};

use crate::{ENGINES, MIB, file_disk, scratch, serve, try_serve};

/// A second graph on the same image, with a socket of its own.
fn second(scratch: &Scratch, writable: bool) -> String {
    file_disk(&scratch.image("disk.img"), writable).replace("nbd.sock", "second.sock")
}

fn check_second_is_refused(scratch: &Scratch, writable: bool) {
    let refused = try_serve(scratch, &second(scratch, writable), &[]).err();
    let refused = refused.unwrap_or_else(|| panic!("served twice, writable {writable}"));
    assert_ne!(refused.code, Some(0));
    let stderr = refused.stderr;
    assert!(stderr.contains("disk.img") && stderr.contains("another process"), "{stderr}");
}

#[test]
fn two_servers_share_an_image_only_to_read() {
    for engine in ENGINES {
        let scratch = scratch();
        let path = scratch.sparse_image("disk.img", MIB);
        let writer = serve(&scratch, &file_disk(&path, true), &["--engine", engine]);
        check_second_is_refused(&scratch, true);
        check_second_is_refused(&scratch, false);
        writer.finish();
        let reader = serve(&scratch, &file_disk(&path, false), &["--engine", engine]);
        let other = serve(&scratch, &second(&scratch, false), &["--engine", engine]);
        for daemon in [&reader, &other] {
            assert_eq!(Client::open(daemon.uri("vda")).read(0, 512), Ok(vec![0; 512]));
        }
        other.finish();
        check_second_is_refused(&scratch, true);
        reader.finish();
        serve(&scratch, &second(&scratch, true), &["--engine", engine]).finish();
    }
}

/// `check` says who has an image, where the file names it, and takes no lock: the writer is not disturbed.
#[test]
fn a_check_tells_of_locks() {
    let scratch = scratch();
    let path = scratch.sparse_image("disk.img", MIB);
    let check = |text: &str| {
        let graph = scratch.graph("checked.toml", text);
        let output = Command::new(crate::program()).arg("check").arg(graph).output();
        let output = output.expect("the program");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let [reads, writes] = [false, true].map(|writable| second(&scratch, writable));
    let ok = (Some(0), String::new());
    assert_eq!((check(&reads), check(&writes)), (ok.clone(), ok.clone()));
    let reader = serve(&scratch, &file_disk(&path, false), &[]);
    assert_eq!(check(&reads), ok);
    let (code, said) = check(&writes);
    assert_eq!(code, Some(2), "{said}");
    let lines: Vec<&str> = said.lines().take(2).collect();
    assert!(lines[0].contains("disk.img`: another process has the image open"), "{said}");
    assert!(lines[1].ends_with("checked.toml:3:8"), "{said}");
    reader.finish();
    let writer = serve(&scratch, &file_disk(&path, true), &[]);
    assert_eq!((check(&reads).0, check(&writes).0), (Some(2), Some(2)));
    let unlocked = reads.replace("path = ", "locking = \"off\"\npath = ");
    assert_eq!(check(&unlocked), ok);
    assert_eq!(Client::open(writer.uri("vda")).write(0, 0, &[1; 512]), 0);
    writer.finish();
}

/// QEMU's tools heed the lock of a server that writes, and need none beside one that reads.
#[test]
fn qemu_tools_heed_the_lock() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = scratch();
    let path = scratch.sparse_image("disk.img", MIB);
    let image = path.to_str().expect("UTF-8");
    let copy = scratch.image("copy.img");
    let copy = copy.to_str().expect("UTF-8");
    let writer = serve(&scratch, &file_disk(&path, true), &[]);
    // (`qemu-img info` of a raw image reads nothing, and is refused by QEMU's own writers neither.)
    let refusals = [
        fail("qemu-img", ["convert", "-f", "raw", "-O", "raw", image, copy]),
        fail("qemu-img", ["resize", "-f", "raw", image, "2M"]),
        fail("qemu-io", ["-f", "raw", "-c", "write 0 512", image]),
    ];
    for stderr in refusals {
        assert!(stderr.contains("lock"), "{stderr}");
    }
    succeed("qemu-img", ["info", "-U", "-f", "raw", image]);
    writer.finish();
    succeed("qemu-img", ["convert", "-f", "raw", "-O", "raw", image, copy]);
    qemu_io(image, &["write -P 6 0 512"]);
    let reader = serve(&scratch, &file_disk(&path, false), &[]);
    succeed("qemu-img", ["info", "-f", "raw", image]);
    succeed("qemu-img", ["convert", "-f", "raw", "-O", "raw", image, copy]);
    let stderr = fail("qemu-io", ["-f", "raw", "-c", "write 0 512", image]);
    assert!(stderr.contains("lock"), "{stderr}");
    assert_eq!(Client::open(reader.uri("vda")).read(0, 512), Ok(vec![6; 512]));
    reader.finish();
}

/// A qemu-storage-daemon; killed when dropped.
struct StorageDaemon(Killed);

impl StorageDaemon {
    fn start(scratch: &Scratch, read_only: bool) -> Self {
        let image = scratch.image("disk.img");
        let switch = if read_only { "on" } else { "off" };
        let node =
            format!("driver=file,node-name=disk,filename={},read-only={switch}", image.display());
        let socket = scratch.path("qsd.sock");
        let server = format!("addr.type=unix,addr.path={}", socket.display());
        let writable = if read_only { "off" } else { "on" };
        let export = format!("type=nbd,id=e,node-name=disk,name=e,writable={writable}");
        let child = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &node, "--nbd-server", &server, "--export", &export])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut daemon = Self(child.expect("start qemu-storage-daemon").into());
        let uri = format!("nbd+unix:///e?socket={}", socket.display());
        eventually("qemu-storage-daemon serves", || {
            assert!(daemon.0.try_wait().expect("wait").is_none(), "qemu-storage-daemon ended");
            blockloom_tests::nbd::connect(&uri).ok()
        });
        daemon
    }
}

/// And the other way round: an image that qemu-storage-daemon writes is not served.
#[test]
fn qemu_storage_daemon_and_the_server_heed_each_other() {
    if !have(&["qemu-storage-daemon"]) {
        return;
    }
    let scratch = scratch();
    let path = scratch.sparse_image("disk.img", MIB);
    let storage_daemon = StorageDaemon::start(&scratch, false);
    check_second_is_refused(&scratch, true);
    check_second_is_refused(&scratch, false);
    drop(storage_daemon);
    let storage_daemon = StorageDaemon::start(&scratch, true);
    check_second_is_refused(&scratch, true);
    serve(&scratch, &second(&scratch, false), &[]).finish();
    drop(storage_daemon);
    let writer = serve(&scratch, &file_disk(&path, true), &[]);
    let server = format!("addr.type=unix,addr.path={}", scratch.path("third.sock").display());
    for switches in ["read-only=on", "read-only=off"] {
        let node = format!("driver=file,node-name=disk,filename={},{switches}", path.display());
        let writable = if switches.ends_with("off") { "on" } else { "off" };
        let export = format!("type=nbd,id=e,node-name=disk,writable={writable}");
        let options = ["--blockdev", &node, "--nbd-server", &server, "--export", &export];
        let stderr = fail("qemu-storage-daemon", options);
        assert!(stderr.contains("lock"), "{stderr}");
    }
    writer.finish();
}
