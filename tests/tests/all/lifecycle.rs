//! Start, end, and what is left behind.

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use blockloom_tests::nbd::{Client, Request, command};
use blockloom_tests::qmp::Qmp;
use blockloom_tests::{Daemon, Killed, eventually, pattern};
use rustix::process::{Pid, Signal, kill_process};

use crate::stack::STACKS;
use crate::{ENGINES, MIB, file_disk, memory_disk, program, scratch, serve, try_serve};

/// Blocks of 4 KiB that one writer writes over and over.
const BLOCKS: u64 = 1024;

/// Writes blocks in turn, each time with another pattern, until the server takes no more. Gives for
/// each write whether it was acknowledged.
fn write_until_the_end(
    uri: &str,
    at: u64,
    acknowledged: &AtomicU64,
    all_are_there: &Barrier,
) -> Vec<bool> {
    const DEPTH: usize = 16;
    let mut client = Client::open(uri);
    all_are_there.wait();
    let mut writes: Vec<bool> = Vec::new();
    let mut done = 0;
    loop {
        while writes.len() < done + DEPTH {
            let number = writes.len() as u64;
            let payload = &pattern(at + number, 4096);
            let offset = at + number % BLOCKS * 4096;
            let request =
                Request { command: command::WRITE, flags: 0, offset, len_bytes: 4096, payload };
            if client.try_send(&request).is_err() {
                break;
            }
            writes.push(false);
        }
        // Whatever the server took it also answers, and then it closes the connection.
        let Ok(reply) = client.try_receive(0) else { return writes };
        assert_eq!(reply.errno, 0);
        // Cookies count from 1.
        writes[reply.cookie as usize - 1] = true;
        done += 1;
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

/// Each block holds its last acknowledged write, or a later one that was on its way at the end.
fn check_written(file: &[u8], at: u64, writes: &[bool]) {
    for block in 0..BLOCKS as usize {
        let numbers: Vec<_> = (block..writes.len()).step_by(BLOCKS as usize).collect();
        let Some(newest) = numbers.iter().rposition(|number| writes[*number]) else { continue };
        let found = &file[block * 4096..][..4096];
        let fits = numbers[newest..].iter().any(|it| found == pattern(at + *it as u64, 4096));
        assert!(fits, "the acknowledged write number {} is lost", numbers[newest]);
    }
}

fn requests_in(log: &str, line: &str, kind: &str) -> u64 {
    let line = log.lines().find(|it| it.contains(line)).unwrap_or_else(|| panic!("{log}"));
    let before = line.split(&format!(" {kind} (")).next().expect("a part");
    before.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// SIGTERM under load: requests that were taken are answered, the exit is clean, data is in the file,
/// and the log counts all of them.
fn check_terminate_under_load(listen: &str, engine: &str) {
    let scratch = scratch();
    let path = scratch.sparse_image("disk.img", 64 * MIB);
    let text = file_disk(&path, true).replace("unix:nbd.sock", listen)
        + "[bitmap.daily]\ndrive = \"vda\"\ngranularity = 4096\n";
    let daemon = serve(&scratch, &text, &["--engine", engine]);
    let uri = daemon.uri("vda").to_owned();
    let (acknowledged, all_are_there) = (AtomicU64::new(0), Barrier::new(4));
    let (done, log) = std::thread::scope(|scope| {
        let writer = |index: u64| {
            let (uri, acknowledged, all) = (&uri, &acknowledged, &all_are_there);
            scope.spawn(move || write_until_the_end(uri, index * 8 * MIB, acknowledged, all))
        };
        let writers: Vec<_> = (0..4).map(writer).collect();
        eventually("writes are under way", || {
            (acknowledged.load(Ordering::Relaxed) > 2000).then_some(())
        });
        let log = daemon.finish();
        (writers.into_iter().map(|it| it.join().expect("a writer")).collect::<Vec<_>>(), log)
    });
    let total = done.iter().flatten().filter(|acknowledged| **acknowledged).count() as u64;
    let counted = requests_in(&log, "drive `vda` → node `disk`", "write");
    assert!(counted >= total, "{counted} counted, {total} acknowledged: {log}");
    assert!(log.contains("bitmap `daily` of drive `vda`"), "{log}");
    for (at, writes) in (0..).step_by(8 << 20).zip(&done) {
        check_written(&scratch.peek("disk.img", at, (BLOCKS * 4096) as usize), at, writes);
    }
}

#[test]
fn sigterm_under_load_ends_in_order() {
    for engine in ENGINES {
        check_terminate_under_load("unix:nbd.sock", engine);
        let port = crate::exports::free_port();
        check_terminate_under_load(&format!("tcp:127.0.0.1:{port}"), engine);
    }
}

/// A client that is connected and silent keeps nobody from ending.
#[test]
fn sigterm_and_sigint_end_an_idle_server() {
    for signal in [Signal::TERM, Signal::INT] {
        let scratch = scratch();
        let daemon = serve(&scratch, &memory_disk(MIB), &[]);
        let mut client = Client::open(daemon.uri("vda"));
        let mut silent = blockloom_tests::nbd::connect(daemon.uri("vda")).expect("connect");
        assert_eq!(client.write(0, 0, b"x"), 0);
        daemon.signal(signal);
        let ended = daemon.wait();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
        assert_eq!(client.stream().read_to_close(), b"");
        silent.read_to_close();
        assert!(!scratch.path("nbd.sock").exists(), "the socket is removed");
        assert!(ended.log.contains("1 write (1 bytes)"), "{}", ended.log);
    }
}

/// Requests that a throttle holds back do not hold up the end: they are let go.
#[test]
fn sigterm_lets_held_requests_go() {
    for filter in ["driver = \"throttle\"", "driver = \"plugin\"\nplugin = \"throttle\""] {
        let scratch = scratch();
        let text = memory_disk(MIB).replace("root = \"disk\"", "root = \"slow\"")
            + &format!(
                "[node.slow]\n{filter}\nchild.file = \"disk\"\n\
                 config = {{ iops = 1, burst = \"1s\" }}\n"
            );
        let daemon = serve(&scratch, &text, &[]);
        let mut client = Client::open(daemon.uri("vda"));
        for block in 0..100 {
            let payload = &[1; 512];
            let offset = block * 512;
            client.send(&Request {
                command: command::WRITE,
                flags: 0,
                offset,
                len_bytes: 512,
                payload,
            });
        }
        // The first passes in the burst; all the others were sent before it was answered.
        assert_eq!(client.receive(0).errno, 0);
        let begin = std::time::Instant::now();
        daemon.finish();
        assert!(begin.elapsed().as_secs() < 10, "{filter}: took {:?}", begin.elapsed());
        let answered = std::iter::from_fn(|| client.try_receive(0).ok()).count();
        assert!(answered > 0, "{filter}: {answered} of 99 were answered");
    }
}

/// A second SIGTERM ends at once what a first one cannot: here requests take half a minute.
#[test]
fn sigterm_twice_does_not_wait() {
    let scratch = scratch();
    let text =
        memory_disk(MIB).replace("driver = \"memory\"", "driver = \"null\"\nlatency = \"25s\"");
    let daemon = serve(&scratch, &text, &[]);
    let mut client = Client::open(daemon.uri("vda"));
    client.send(&Request {
        command: command::READ,
        flags: 0,
        offset: 0,
        len_bytes: 512,
        payload: &[],
    });
    // Answered after the read was taken: both are on one connection.
    assert_eq!(client.plain(77, 0, 0, 0), 22);
    let begin = std::time::Instant::now();
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("ending: 1 clients");
    daemon.signal(Signal::TERM);
    let ended = daemon.wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    assert!(ended.log.contains("ending without waiting"), "{}", ended.log);
    assert!(begin.elapsed().as_secs() < 15, "took {:?}", begin.elapsed());
}

#[test]
fn sigusr1_reports_and_goes_on() {
    let scratch = scratch();
    let daemon = STACKS[1].serve(&scratch, MIB);
    let mut client = Client::open(daemon.uri("vda"));
    assert_eq!(client.write(0, 0, &[1; 8192]), 0);
    client.read(0, 512).expect("read");
    daemon.signal(Signal::USR1);
    let log = daemon.wait_for_log("bitmap `node` of node `disk`: 2 granules of 4096 dirty");
    assert!(log.contains("drive `vda` → node `top` (root): 1 read (512 bytes), 1 write"), "{log}");
    assert!(log.contains("node `top` → node `disk` (file): 1 read (512 bytes), 1 write"), "{log}");
    assert_eq!(client.write(0, 0, b"still here"), 0);
    daemon.finish();
}

/// Killed without warning and started again on the same image: what was flushed is there, the old
/// socket is replaced, and the dead server's locks are gone.
#[test]
fn a_killed_server_starts_again() {
    for stack in [&STACKS[0], &STACKS[1], &STACKS[4], &STACKS[5]] {
        let scratch = scratch();
        let bytes = pattern(8, 3 << 20);
        let daemon = stack.serve(&scratch, 16 * MIB);
        let mut client = Client::open(daemon.uri("vda"));
        assert_eq!(client.write(0, 4097, &bytes), 0);
        assert_eq!(client.plain(command::FLUSH, 0, 0, 0), 0);
        // Some more on its way when the end comes.
        for block in 0..64 {
            let payload = &[9; 4096];
            let offset = 8 * MIB + block * 4096;
            client.send(&Request {
                command: command::WRITE,
                flags: 0,
                offset,
                len_bytes: 4096,
                payload,
            });
        }
        daemon.kill();
        client.stream().read_to_close();
        assert!(scratch.path("nbd.sock").exists(), "nobody could remove the socket");
        let daemon = stack.serve(&scratch, 16 * MIB);
        let mut client = Client::open(daemon.uri("vda"));
        assert!(client.read(4097, 3 << 20).as_ref() == Ok(&bytes), "{stack}");
        for block in 0..64 {
            let found = client.read(8 * MIB + block * 4096, 4096).expect("read");
            assert!(found == [9; 4096] || found == [0; 4096], "{stack}: a torn block {block}");
        }
        daemon.finish();
    }
}

fn refused(text: &str, scratch: &blockloom_tests::Scratch) -> String {
    let refused = Daemon::try_start(crate::program(), &scratch.graph("second.toml", text), &[]);
    let refused = refused.err().expect("refused");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    refused.stderr
}

#[test]
fn a_live_servers_socket_is_left_alone() {
    let scratch = scratch();
    let daemon = serve(&scratch, &memory_disk(MIB), &[]);
    let stderr = refused(&memory_disk(MIB), &scratch);
    assert!(stderr.contains("nbd.sock") && stderr.contains("another server"), "{stderr}");
    // Unharmed.
    let mut client = Client::open(daemon.uri("vda"));
    assert_eq!(client.write(0, 0, b"x"), 0);
    daemon.finish();
    // Nor is that of another program.
    let foreign = UnixListener::bind(scratch.path("nbd.sock")).expect("bind");
    let stderr = refused(&memory_disk(MIB), &scratch);
    assert!(stderr.contains("nbd.sock"), "{stderr}");
    drop(foreign);
    // Its owner is gone: now it is replaced.
    serve(&scratch, &memory_disk(MIB), &[]).finish();
}

#[test]
fn what_is_no_socket_is_never_removed() {
    let scratch = scratch();
    let path = scratch.path("nbd.sock");
    let target = scratch.path("target");
    std::fs::write(&target, "precious").expect("write");
    let make: [&dyn Fn(); 3] = [
        &|| std::fs::write(&path, "precious").expect("write"),
        &|| std::fs::create_dir(&path).expect("make a directory"),
        &|| std::os::unix::fs::symlink(&target, &path).expect("link"),
    ];
    for make in make {
        make();
        let was = path.symlink_metadata().expect("metadata").file_type();
        let stderr = refused(&memory_disk(MIB), &scratch);
        assert!(stderr.contains("nbd.sock"), "{stderr}");
        assert_eq!(path.symlink_metadata().expect("metadata").file_type(), was);
        assert_eq!(std::fs::read_to_string(&target).expect("read"), "precious");
        let removed =
            if was.is_dir() { std::fs::remove_dir(&path) } else { std::fs::remove_file(&path) };
        removed.expect("remove");
    }
}

/// An image that is not there, and a way into nowhere: the file and the key are named.
#[test]
fn what_is_missing_is_named() {
    let scratch = scratch();
    let missing = file_disk(&scratch.image("missing.img"), true);
    let refused = try_serve(&scratch, &missing, &[]).err().expect("refused");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("missing.img"), "{}", refused.stderr);
    assert!(!scratch.image("missing.img").exists());
    assert!(!scratch.path("nbd.sock").exists());
}

/// Whoever has read the log is gone: what would be logged is lost, and nothing else.
#[test]
fn a_log_that_nobody_reads_ends_nothing() {
    let scratch = scratch();
    let socket = scratch.path("control.sock");
    let text = memory_disk(MIB)
        + "[node.image]\ndriver = \"qcow2\"\ncreate = { size = \"1MiB\" }\n\
           file = { driver = \"file\", path = \"disk.qcow2\" }\n\
           [bitmap.kept]\nnode = \"image\"\npersist = { node = \"image\" }\n";
    let graph = scratch.graph("graph.toml", &text);
    let mut command = Command::new(program());
    command.args(["serve", "--workers", "1", "--control"]).arg(&socket).arg(&graph);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Killed::from(command.spawn().expect("the program"));
    let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
    assert!(stdout.lines().map_while(Result::ok).any(|line| line == "ready"));
    drop(child.stderr.take());
    // One more than may be there is logged.
    let clients: Vec<_> = (0..16).map(|_| Qmp::open(&socket)).collect();
    let is_greeted = || {
        let client = UnixStream::connect(&socket).expect("it listens");
        let first = BufReader::new(client).lines().next().and_then(Result::ok);
        first.is_some_and(|line| line.contains("\"QMP\""))
    };
    assert!(!is_greeted());
    drop(clients);
    eventually("there is room again", || is_greeted().then_some(()));
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::TERM).expect("send a signal");
    let status = eventually("it ends", || child.try_wait().expect("wait"));
    assert_eq!(status.code(), Some(0));
    let listed = Command::new(program())
        .args(["image", "bitmap", "--list", "--output", "json"])
        .arg(scratch.path("disk.qcow2"))
        .output()
        .expect("the program");
    let listed = String::from_utf8_lossy(&listed.stdout);
    assert!(listed.contains("kept") && !listed.contains("in-use"), "{listed}");
}
