//! Clients by the hundred, and clients that misbehave: others are served on, and nothing is left.

use std::io::{Read, Write};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use blockloom_tests::nbd::{self, Client, Request, Stream, Terms, command, option};
use blockloom_tests::tools::{have, python};
use blockloom_tests::{Daemon, Random, eventually, pattern};

use crate::stack::STACKS;
use crate::{ENGINES, MIB, memory_disk, scratch, serve};

const MANY: usize = 200;

#[test]
fn two_hundred_clients_at_once() {
    for stack in [&STACKS[0], &STACKS[2], &STACKS[4]] {
        let scratch = scratch();
        let daemon = stack.serve(&scratch, 64 * MIB);
        let (start, middle) = (Barrier::new(MANY), Barrier::new(MANY));
        std::thread::scope(|scope| {
            for number in 0..MANY {
                let (daemon, start, middle) = (&daemon, &start, &middle);
                scope.spawn(move || {
                    start.wait();
                    let mut client = Client::open(daemon.uri("vda"));
                    // All of them are connected before any goes on.
                    middle.wait();
                    let at = number as u64 * 100_000;
                    let bytes = pattern(number as u64, 70_001);
                    assert_eq!(client.write(0, at, &bytes), 0);
                    middle.wait();
                    let others = (number + 1) % MANY;
                    let found = client.read(others as u64 * 100_000, 70_001);
                    assert!(found == Ok(pattern(others as u64, 70_001)), "{stack}: {others}");
                    client.disconnect();
                });
            }
        });
        daemon.finish();
    }
}

/// libnbd connects without blocking: the listener must take so many at once.
#[test]
fn two_hundred_libnbd_connections() {
    if !have(&["python-nbd"]) {
        return;
    }
    let scratch = scratch();
    let daemon = serve(&scratch, &memory_disk(64 * MIB), &[]);
    let script = "import nbd, sys\n\
        hs = [nbd.NBD() for _ in range(200)]\n\
        for h in hs: h.connect_uri(sys.argv[1])\n\
        bs = [nbd.Buffer.from_bytearray(bytearray([n % 250 + 1]) * 65536) for n in range(200)]\n\
        for n, h in enumerate(hs): h.aio_pwrite(bs[n], n * 65536)\n\
        for h in hs:\n\
        \x20   while h.aio_in_flight(): h.poll(-1)\n\
        for n, h in enumerate(hs):\n\
        \x20   assert hs[199 - n].pread(65536, n * 65536) == bytes([n % 250 + 1]) * 65536\n\
        for h in hs: h.shutdown()\n\
        print('agreed')\n";
    assert_eq!(python(script, &[daemon.uri("vda")]), "agreed\n");
    daemon.finish();
}

fn descriptors(daemon: &Daemon) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("/proc");
    entries.count()
}

fn header(command: u16, offset: u64, len_bytes: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(0_u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(7_u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len_bytes.to_be_bytes());
    bytes
}

/// A name, and what a client does last.
type Vanish = (&'static str, fn(&mut Client));

/// Ways to vanish with an open connection.
const VANISH: [Vanish; 6] = [
    ("with nothing under way", |_| {}),
    ("in a header", |client| send(client, &header(command::WRITE, 0, 4096)[..11])),
    ("before a payload", |client| send(client, &header(command::WRITE, 0, 1 << 20))),
    ("in a payload", |client| {
        send(client, &header(command::WRITE, 0, 1 << 20));
        send(client, &[0xaa; 70_000]);
    }),
    ("with an answer not received", |client| send(client, &header(command::READ, 0, 64 << 20))),
    ("with many answers not received", |client| {
        send(client, &header(command::READ, 4096, 1 << 20).repeat(500));
    }),
];

fn send(client: &mut Client, bytes: &[u8]) {
    client.stream().write_all(bytes).expect("send");
}

/// Clients vanish in the middle of a request, again and again: another client is served meanwhile,
/// nothing of what was half sent is written, and descriptors and memory come back.
#[test]
fn clients_that_vanish_leave_nothing_behind() {
    for stack in [&STACKS[1], &STACKS[4]] {
        let scratch = scratch();
        let daemon = stack.serve(&scratch, 64 * MIB);
        let dirty = "qemu:dirty-bitmap:node";
        let terms = Terms { contexts: &[dirty], ..Terms::default() };
        let mut other = Client::with(daemon.uri("vda"), &terms).expect("open");
        let before = descriptors(&daemon);
        for (way, vanish) in VANISH {
            for _ in 0..10 {
                let mut client = Client::open(daemon.uri("vda"));
                vanish(&mut client);
                drop(client);
                assert_eq!(other.read(0, 4096), Ok(vec![0; 4096]), "{stack}, {way}");
            }
            let what = format!("{stack}: descriptors of clients that vanished {way} are closed");
            eventually(&what, || (descriptors(&daemon) == before).then_some(()));
        }
        assert_eq!(other.flagged(dirty), [], "{stack}: half of a write is no write");
        assert!(daemon.resident_bytes() < 256 * MIB, "{stack}: {}", daemon.resident_bytes());
        assert_eq!(other.write(0, 0, b"goes on"), 0);
        daemon.finish();
    }
}

/// One client asks for much more than it receives: what it can hold is bounded.
#[test]
fn a_client_that_does_not_receive_is_bounded() {
    for engine in ENGINES {
        let scratch = scratch();
        let daemon = serve(&scratch, &memory_disk(64 * MIB), &["--engine", engine]);
        let mut filler = Client::open(daemon.uri("vda"));
        assert_eq!(filler.write(0, 0, &pattern(1, 64 << 20)), 0);
        let before = daemon.resident_bytes();
        let mut greedy = Client::open(daemon.uri("vda"));
        // All at once: one by one they would not fit into the socket.
        send(&mut greedy, &header(command::READ, 0, 1 << 20).repeat(1000));
        // The server has begun to answer; what it does further, it does before it answers the other.
        let mut first = [0; 16];
        greedy.stream().read_exact(&mut first).expect("the beginning of an answer");
        for _ in 0..50 {
            filler.read(0, 1 << 20).expect("read");
        }
        let grown = daemon.resident_bytes().saturating_sub(before);
        assert!(grown < 128 * MIB, "{engine}: {grown} bytes for one client");
        drop(greedy);
        daemon.finish();
    }
}

/// Announcing a write costs the server nothing until its data comes.
#[test]
fn announced_writes_cost_no_memory() {
    let scratch = scratch();
    let daemon = serve(&scratch, &memory_disk(64 * MIB), &[]);
    let mut clients: Vec<_> = (0..30).map(|_| Client::open(daemon.uri("vda"))).collect();
    for client in &mut clients {
        send(client, &header(command::WRITE, 0, 64 << 20));
        send(client, &[1; 4096]);
    }
    let mut other = Client::open(daemon.uri("vda"));
    for _ in 0..50 {
        assert_eq!(other.write(0, 0, &[1; 4096]), 0);
    }
    let resident = daemon.resident_bytes();
    assert!(resident < 256 * MIB, "{resident} bytes for 30 announced writes");
    drop(clients);
    daemon.finish();
}

fn greeted(uri: &str) -> Stream {
    let mut stream = nbd::connect(uri).expect("connect");
    stream.read_exact(&mut [0; 18]).expect("greeting");
    stream
}

/// Bytes that are no NBD, at each stage: the connection ends or is refused, the server goes on.
#[test]
fn garbage_ends_only_its_own_connection() {
    let scratch = scratch();
    let daemon = serve(&scratch, &memory_disk(MIB), &[]);
    let uri = daemon.uri("vda");
    let before = descriptors(&daemon);
    for seed in 0..20 {
        let mut garbage = vec![0; 5000];
        let mut random = Random::new(seed);
        garbage.fill_with(|| random.next_u64() as u8);
        // The server may close before all is sent.
        let mut stream = nbd::connect(uri).expect("connect");
        let _ = stream.write_all(&garbage);
        stream.read_to_close();
        let mut stream = greeted(uri);
        let _ = stream.write_all(&3_u32.to_be_bytes()).and_then(|()| stream.write_all(&garbage));
        stream.read_to_close();
        let mut client = Client::open(uri);
        let _ = client.stream().write_all(&garbage);
        client.stream().read_to_close();
    }
    let mut stream = nbd::connect(uri).expect("connect");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("send");
    stream.read_to_close();
    // An option that is announced longer than any can be.
    let mut stream = greeted(uri);
    stream.write_all(&3_u32.to_be_bytes()).expect("send");
    stream.write_all(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").expect("send");
    stream.end_sending();
    stream.read_to_close();
    // Leaving in order before an export is chosen.
    let mut stream = greeted(uri);
    stream.write_all(&3_u32.to_be_bytes()).expect("send");
    nbd::send_option(&mut stream, option::ABORT, &[]);
    nbd::collect_replies(&mut stream, option::ABORT).expect("an acknowledgement");
    stream.read_to_close();
    assert_eq!(Client::open(uri).write(0, 0, b"x"), 0);
    eventually("all descriptors are closed", || (descriptors(&daemon) == before).then_some(()));
    daemon.finish();
}

/// Clients that never get through the handshake are sent away, whether silent or slow; they keep
/// nobody else waiting.
#[test]
fn a_slow_handshake_ends() {
    let scratch = scratch();
    let daemon = serve(&scratch, &memory_disk(MIB), &[]);
    let mut silent: Vec<_> = (0..100).map(|_| greeted(daemon.uri("vda"))).collect();
    let mut slow = greeted(daemon.uri("vda"));
    let begin = Instant::now();
    // A list request, again and again, a byte at a time.
    let request = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
    let bytes = [0, 0, 0, 3].iter().chain(request.iter().cycle());
    for byte in bytes {
        let sent = slow.write_all(&[*byte]);
        let closed = sent.is_err() || slow.ends_within(Duration::from_millis(200));
        if closed {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(40), "a slow handshake goes on");
        assert_eq!(Client::open(daemon.uri("vda")).read(0, 512), Ok(vec![0; 512]));
    }
    assert!(begin.elapsed() > Duration::from_secs(5), "a slow handshake has some time");
    silent.iter_mut().for_each(|stream| drop(stream.read_to_close()));
    daemon.finish();
}

/// What was asked before the client ended its side is still answered.
#[test]
fn a_half_closed_connection_is_answered() {
    for engine in ENGINES {
        let scratch = scratch();
        let daemon = serve(&scratch, &memory_disk(16 * MIB), &["--engine", engine]);
        let mut client = Client::open(daemon.uri("vda"));
        for number in 0..20 {
            let payload = &[number + 1; 5000];
            let offset = u64::from(number) * 5000;
            let (command, len_bytes) = (command::WRITE, 5000);
            client.send(&Request { command, flags: 0, offset, len_bytes, payload });
        }
        client.stream().end_sending();
        for _ in 0..20 {
            assert_eq!(client.receive(0).errno, 0, "{engine}");
        }
        assert_eq!(client.stream().read_to_close(), b"");
        let found = Client::open(daemon.uri("vda")).read(95_000, 5000);
        assert_eq!(found, Ok(vec![20; 5000]), "{engine}");
        daemon.finish();
    }
}
