//! The public client library of QEMU, `qemu.qmp`, drives the socket: its library and its shell.

use std::io::Write;
use std::process::{Command, Stdio};

use blockloom_tests::tools;

use super::Controlled;

const LIBRARY: &str = r#"
import asyncio, sys
from qemu.qmp import QMPClient, ExecuteError

async def main():
    client = QMPClient('blockloom')
    await client.connect(sys.argv[1])
    names = [it['name'] for it in await client.execute('query-commands')]
    assert 'query-block' in names, names
    with client.listener('BLOCK_DIRTY_BITMAP_CHANGED') as events:
        await client.execute('block-dirty-bitmap-add', {'node': 'vda', 'name': 'b'})
        event = await asyncio.wait_for(events.get(), 30)
        assert event['data']['what'] == 'added', event
    try:
        await client.execute('block-dirty-bitmap-add', {'node': 'vda', 'name': 'b'})
    except ExecuteError as error:
        assert error.error_class == 'GenericError', error
        print(error)
    path = sys.argv[1] + '.nbd'
    addr = {'type': 'unix', 'data': {'path': path}}
    await client.execute('nbd-server-start', {'addr': addr})
    node = {'driver': 'null-co', 'node-name': 'n', 'size': 65536}
    export = {'type': 'nbd', 'id': 'e', 'node-name': 'n', 'name': 'n'}
    actions = [{'type': 'blockdev-add', 'data': node}, {'type': 'block-export-add', 'data': export}]
    await client.execute('transaction', {'actions': actions})
    exports = await client.execute('query-block-exports')
    assert ('e', 'n') in [(it['id'], it['node-name']) for it in exports], exports
    with client.listener('BLOCK_EXPORT_DELETED') as events:
        await client.execute('block-export-del', {'id': 'e'})
        event = await asyncio.wait_for(events.get(), 30)
        assert event['data'] == {'id': 'e'}, event
    await client.execute('blockdev-del', {'node-name': 'n'})
    await client.execute('nbd-server-stop')
    replies = await asyncio.gather(*(client.execute('query-block') for _ in range(20)))
    assert all(reply[0]['dirty-bitmaps'][0]['name'] == 'b' for reply in replies)
    await client.disconnect()

asyncio.run(main())
"#;

#[test]
fn the_library_drives_it() {
    if !tools::have(&["python-qemu-qmp"]) {
        return;
    }
    let host = Controlled::memory();
    let output = tools::python(LIBRARY, &[&host.socket.display().to_string()]);
    assert_eq!(output.trim(), "Bitmap already exists: b");
    host.finish();
}

const JOBS: &str = r#"
import asyncio, sys
from qemu.qmp import QMPClient, ExecuteError

async def main():
    client = QMPClient('blockloom')
    await client.connect(sys.argv[1])
    names = ('JOB_STATUS_CHANGE', 'BLOCK_JOB_READY', 'BLOCK_JOB_COMPLETED')
    with client.listener(names) as events:
        async def until(name):
            while True:
                event = await asyncio.wait_for(events.get(), 60)
                if event['event'] == name:
                    return event['data']
        await client.execute('blockdev-mirror', {
            'device': 'vda', 'target': 'tgt', 'sync': 'full', 'auto-dismiss': False})
        ready = await until('BLOCK_JOB_READY')
        assert ready['device'] == 'vda' and ready['type'] == 'mirror', ready
        job, = await client.execute('query-block-jobs')
        assert job['ready'] and job['len'] == job['offset'], job
        await client.execute('job-complete', {'id': 'vda'})
        done = await until('BLOCK_JOB_COMPLETED')
        assert 'error' not in done, done
        while (await client.execute('query-jobs'))[0]['status'] != 'concluded':
            pass
        await client.execute('job-dismiss', {'id': 'vda'})
        await client.execute('block-stream', {'device': 'top', 'job-id': 's'})
        assert (await until('BLOCK_JOB_COMPLETED'))['type'] == 'stream'
        while (await until('JOB_STATUS_CHANGE'))['status'] != 'null':
            pass
    try:
        await client.execute('block-job-pause', {'device': 's'})
    except ExecuteError as error:
        print(error.error_class, error)
    shown, = await client.execute('query-block')
    print(shown['inserted']['node-name'])
    await client.disconnect()

asyncio.run(main())
"#;

#[test]
fn the_library_follows_jobs() {
    if !tools::have(&["python-qemu-qmp"]) || !super::jobs::scene::can_start() {
        return;
    }
    let host = super::jobs::scene::host("");
    let output = tools::python(JOBS, &[&host.socket.display().to_string()]);
    assert_eq!(output.trim(), "DeviceNotActive Block job 's' not found\ntgt");
    host.finish();
}

/// Where packages of the user are.
fn user_base() -> String {
    tools::python("import site; print(site.getuserbase())", &[]).trim().to_owned()
}

#[test]
fn its_shell_drives_it() {
    if !tools::have(&["python-qemu-qmp"]) {
        return;
    }
    let host = Controlled::memory();
    let mut shell = Command::new("timeout")
        .args(["60", tools::PYTHON, "-m", "qemu.qmp.qmp_shell"])
        .arg(&host.socket)
        // It keeps a history there; what the user has installed lies where it did.
        .env("HOME", host.scratch.path(""))
        .env("PYTHONUSERBASE", user_base())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run the shell");
    let mut input = shell.stdin.take().expect("stdin is piped");
    let lines = "block-dirty-bitmap-add node=vda name=b granularity=4096\nquery-block\n";
    input.write_all(lines.as_bytes()).expect("send");
    drop(input);
    let output = shell.wait_with_output().expect("its end");
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("\"return\": {}"), "{stdout}\n{stderr}");
    assert!(stdout.contains("\"granularity\": 4096"), "{stdout}\n{stderr}");
    host.finish();
}
