//! Who is connected, and what is told to all of them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::output::{Line, Output};
use super::qapi::{QapiEvent, emit_object};
use crate::io::{LocalStream, wall_clock};
use crate::limits::CONTROL_CLIENTS_MAX;

/// A connection.
pub(crate) struct Client {
    number: u64,
    pub(crate) stream: LocalStream,
    pub(crate) output: Output,
    /// It has negotiated, and is told events.
    is_listening: AtomicBool,
    /// Threads that are still at it.
    threads: AtomicUsize,
}

impl Client {
    /// Ends the connection at once.
    pub(crate) fn give_up(&self, why: &str) {
        if self.output.give_up() {
            tracing::warn!("control client {}: {why}: its connection ends", self.number);
        }
        self.stream.shutdown();
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Clients {
    all: Mutex<Vec<Arc<Client>>>,
    changed: Condvar,
    next_number: AtomicU64,
}

/// A JSON value as a line.
pub(crate) fn line(value: &Value) -> Line {
    let mut bytes = value.to_string().into_bytes();
    bytes.extend_from_slice(b"\r\n");
    bytes.into()
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a client with two threads in; gives its connection back if there are too many.
    pub(crate) fn enter(&self, stream: LocalStream) -> Result<Arc<Client>, LocalStream> {
        let mut all = self.lock();
        if all.len() >= CONTROL_CLIENTS_MAX {
            return Err(stream);
        }
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(Client {
            number,
            stream,
            output: Output::default(),
            is_listening: AtomicBool::new(false),
            threads: AtomicUsize::new(2),
        });
        all.push(Arc::clone(&client));
        Ok(client)
    }

    /// One of a client's threads has ended. With the last one it is gone.
    pub(crate) fn thread_ended(&self, client: &Arc<Client>) {
        if client.threads.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.leave(client);
        }
    }

    /// Lets a client go.
    pub(crate) fn leave(&self, client: &Arc<Client>) {
        self.lock().retain(|other| !Arc::ptr_eq(other, client));
        self.changed.notify_all();
    }

    /// Answers a client that has negotiated, and tells it all events after that. Whether it is still there.
    pub(crate) fn begin_to_tell(&self, client: &Client, answer: &Line) -> bool {
        let _all = self.lock();
        client.is_listening.store(true, Ordering::Release);
        client.output.event(answer)
    }

    /// Tells an event to all who listen. One that has no room for it is let go: nobody waits for it.
    pub(crate) fn emit<E: QapiEvent>(&self, event: E) {
        let now = wall_clock();
        let timestamp = json!({"seconds": now.as_secs(), "microseconds": now.subsec_micros()});
        let value = json!({"timestamp": timestamp, "event": E::NAME, "data": emit_object(event)});
        let line = line(&value);
        for client in self.lock().iter() {
            if client.is_listening.load(Ordering::Acquire) && !client.output.event(&line) {
                client.give_up("it does not read its events");
            }
        }
    }

    /// Ends all conversations: what has been asked is answered, and no more is.
    pub(crate) fn end(&self) {
        for client in self.lock().iter() {
            client.stream.shutdown_receive();
        }
    }

    /// Waits for all clients to have gone; those who have not by then are let go.
    pub(crate) fn wait(&self, grace: Duration) {
        let has_any = |all: &mut Vec<Arc<Client>>| !all.is_empty();
        let waited = self.changed.wait_timeout_while(self.lock(), grace, has_any);
        let (all, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let rest: Vec<_> = all.clone();
        drop(all);
        rest.iter().for_each(|client| client.give_up("it does not read its last answer"));
    }
}
