//! The socket: its clients come, each on threads of its own, and go.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::clients::{Client, Clients, line};
use super::commands;
use super::context::Context;
use super::error::QmpError;
use super::events;
use super::json::{COMMAND_BOUNDS, Reader};
use super::protocol::{Conversation, greeting};
use super::registry::Registry;
use crate::block_on;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::io::{LocalListener, LocalStream, background};
use crate::limits::{CONTROL_CLIENTS_MAX, CONTROL_GRACE, CONTROL_STALL_TIME};

/// Bytes that are received at once from a client.
const RECEIVE_BYTES: usize = 16 << 10;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who may control a host, and where.
#[derive(Clone, Debug)]
pub struct ControlOptions {
    /// The socket's file. That of a server that has died is replaced.
    pub path: PathBuf,
    /// The users that may connect; when empty, whoever may use the socket's file: its owner alone (mode 0600).
    pub uids: Vec<u32>,
}

struct Shared {
    host: Arc<Host>,
    registry: Registry,
    clients: Arc<Clients>,
    uids: Vec<u32>,
    quit: Box<dyn Fn() + Send + Sync>,
}

/// A control socket of a host. Dropping it ends it.
pub struct Control {
    shared: Arc<Shared>,
    /// `None` once it has been stopped. Its file goes with the last reference, which the accepting thread has.
    listener: Option<Arc<LocalListener>>,
    accepting: Arc<Accepting>,
}

/// Whether somebody is still accepting: the socket's file goes with it.
#[derive(Default)]
struct Accepting {
    has_ended: Mutex<bool>,
    changed: Condvar,
}

impl Control {
    /// Opens the socket. `quit` is called when a client asks for the host's end, which is somebody else's to
    /// bring about ([`Host::end`]).
    ///
    /// # Errors
    /// When the socket cannot be made, or somebody listens there; `ENOMEM` when no thread can be started.
    pub fn start(
        host: Arc<Host>,
        options: ControlOptions,
        quit: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self> {
        let ControlOptions { path, uids } = options;
        // Who may connect is asked for each connection then.
        let mode = if uids.is_empty() { 0o600 } else { 0o666 };
        let listening = |error| Error::os(format!("cannot listen on {}", path.display()), &error);
        let listener = Arc::new(LocalListener::bind(&path, mode).map_err(listening)?);
        let clients = Arc::new(Clients::default());
        let no_thread = |error| Error::os("cannot start a thread for the control socket", &error);
        let (mut notices, listeners) = (host.events(), Arc::clone(&clients));
        let tell = move || {
            while let Some(notice) = block_on(notices.next()) {
                events::tell(&listeners, notice);
            }
        };
        background("control-events", tell).map_err(no_thread)?;
        let shared = Arc::new(Shared {
            host,
            registry: commands::registry(),
            clients,
            uids,
            quit: Box::new(quit),
        });
        let accepting = Arc::<Accepting>::default();
        let (acceptor, ending) = (Arc::clone(&shared), Arc::clone(&accepting));
        let accepted = Arc::clone(&listener);
        let accept = move || {
            accept_all(&acceptor, &accepted);
            drop((acceptor, accepted));
            *ending.has_ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
            ending.changed.notify_all();
        };
        background("control", accept).map_err(no_thread)?;
        Ok(Self { shared, listener: Some(listener), accepting })
    }

    /// Takes no more clients.
    pub fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.stop();
        }
    }

    /// Ends all conversations: commands in progress end and are answered, as far as clients take answers, for
    /// [`CONTROL_GRACE`]. The socket's file is gone then.
    pub fn finish(self) {
        drop(self);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop();
        self.shared.clients.end();
        self.shared.clients.wait(CONTROL_GRACE);
        let has_ended = self.accepting.has_ended.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self
            .accepting
            .changed
            .wait_timeout_while(has_ended, CONTROL_GRACE, |has_ended| !*has_ended);
    }
}

fn accept_all(shared: &Arc<Shared>, listener: &LocalListener) {
    loop {
        match listener.accept() {
            Ok(Some(stream)) => receive(shared, stream),
            Ok(None) => return,
            Err(error) => {
                // A shortage of descriptors, which others may end.
                tracing::warn!("the control socket takes no client: {error}");
                if listener.is_stopped_within(ACCEPT_PAUSE) {
                    return;
                }
            }
        }
    }
}

/// Begins a conversation, or says why not.
fn receive(shared: &Arc<Shared>, stream: LocalStream) {
    let refuse = |stream: &LocalStream, desc: String| {
        tracing::warn!("control: {desc}");
        // It may have gone, and what is so short fits any socket.
        let _ = stream.send_all(&line(&QmpError::generic(desc).answer()));
    };
    if !shared.uids.is_empty() {
        let allowed = |uid: &u32| shared.uids.contains(uid);
        match stream.peer_uid() {
            Ok(uid) if allowed(&uid) => {}
            Ok(uid) => return refuse(&stream, format!("user {uid} may not control this host")),
            Err(error) => return refuse(&stream, format!("who connects is unknown: {error}")),
        }
    }
    if let Err(error) = stream.set_send_timeout(CONTROL_STALL_TIME) {
        return refuse(&stream, format!("the connection is of no use: {error}"));
    }
    let client = match shared.clients.enter(stream) {
        Ok(client) => client,
        Err(stream) => {
            let desc =
                format!("there are {CONTROL_CLIENTS_MAX} clients already: no more are served");
            return refuse(&stream, desc);
        }
    };
    let (ours, theirs) = (Arc::clone(shared), Arc::clone(&client));
    let started = background("control-client", move || converse(&ours, &theirs));
    if let Err(error) = started {
        client.give_up(&format!("no thread can be started for it: {error}"));
        shared.clients.leave(&client);
    }
}

/// A client from its greeting to its end.
fn converse(shared: &Arc<Shared>, client: &Arc<Client>) {
    let (sender, clients) = (Arc::clone(client), Arc::clone(&shared.clients));
    let started = background("control-send", move || {
        send_all(&sender);
        clients.thread_ended(&sender);
    });
    if let Err(error) = started {
        client.give_up(&format!("no thread can be started for it: {error}"));
        return shared.clients.leave(client);
    }
    client.output.answer(line(&greeting()));
    let context = Context { host: &shared.host, registry: &shared.registry, quit: &*shared.quit };
    let (mut reader, mut conversation) = (Reader::new(COMMAND_BOUNDS), Conversation::default());
    let mut buf = [0; RECEIVE_BYTES];
    'connected: while let Ok(count @ 1..) = client.stream.recv(&mut buf) {
        let mut input = &buf[..count];
        while let Some(read) = reader.read(&mut input) {
            let was_negotiated = conversation.is_negotiated();
            let answer = line(&match read {
                Ok(value) => conversation.answer(&context, value),
                Err(error) => QmpError::generic(error).answer(),
            });
            let is_there = match was_negotiated == conversation.is_negotiated() {
                true => client.output.answer(answer),
                false => shared.clients.begin_to_tell(client, &answer),
            };
            if !is_there {
                break 'connected;
            }
        }
    }
    client.output.end();
    shared.clients.thread_ended(client);
}

/// Sends what is queued, until there will be no more; then the client has gone.
fn send_all(client: &Arc<Client>) {
    while let Some(line) = client.output.next() {
        if let Err(error) = client.stream.send_all(&line) {
            let is_stalled = error.kind() == std::io::ErrorKind::WouldBlock;
            if is_stalled {
                client.give_up("it reads nothing");
            }
            break;
        }
        client.output.sent(&line);
    }
    client.output.give_up();
    client.stream.shutdown();
}
