//! One connection on its worker: handshake, then requests until the client goes or the host ends.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::contexts::Context;
use super::directory::Directory;
use super::proto::{ExportDirectory, Handshake, Session, Step, Verdict, check, decode_header};
use super::receive::Receiver;
use super::request::{held_bytes, run};
use super::send::Replies;
use super::served::{Client, Served};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{LocalDrive, LocalGraph};
use crate::io::{Stream, plug, spawn, spawn_boxed, turn_now, until};
use crate::limits::{NBD_BYTES_MAX, NBD_REQUESTS_MAX};

/// Length of a request's header, bytes.
const HEADER_BYTES: usize = 28;

/// A connection that has chosen its export.
pub(super) struct Transmission {
    pub(super) session: Box<Session>,
    pub(super) drive: LocalDrive,
    /// Selected contexts with their ids.
    pub(super) contexts: Vec<(u32, Context)>,
    pub(super) replies: Replies,
    /// Writes are durable when they are answered, whatever the client asks for.
    pub(super) writethrough: bool,
    /// The last to go: with it the export counts the client as gone.
    client: Client,
}

/// Serves a connection to its end; `opened` is told what it has opened.
pub(super) async fn serve(
    stream: Rc<Stream>,
    (directory, handshake_time): (&Directory, Duration),
    graph: &Rc<LocalGraph>,
    opened: impl Fn(&Arc<Served>),
) {
    let mut receiver = Receiver::new();
    let deadline = turn_now() + handshake_time;
    let open = |session: Box<Session>| {
        let transmission = open(session, directory, graph)?;
        opened(transmission.client.served());
        Ok(transmission)
    };
    let handshake = handshake(&stream, &mut receiver, directory, open);
    match until(deadline, handshake).await {
        None => tracing::info!("an NBD client did not finish its handshake in time"),
        Some(Err(error)) => tracing::debug!("NBD handshake: {error}"),
        Some(Ok(None)) => {}
        Some(Ok(Some(transmission))) => transmit(stream, receiver, Rc::new(transmission)).await,
    }
}

async fn send_all(stream: &Stream, output: &mut Vec<u8>) -> io::Result<()> {
    let mut sent = 0;
    while sent < output.len() {
        sent += stream.send(&[IoSlice::new(&output[sent..])]).await?;
    }
    output.clear();
    Ok(())
}

/// Negotiates; `None` when the client only looked around.
async fn handshake(
    stream: &Stream,
    receiver: &mut Receiver,
    directory: &dyn ExportDirectory,
    open: impl FnOnce(Box<Session>) -> Result<Transmission>,
) -> io::Result<Option<Transmission>> {
    let mut output = Vec::new();
    let mut handshake = Handshake::start(&mut output);
    loop {
        let progress = handshake.feed(receiver.unread(), directory, &mut output);
        receiver.consume(progress.consumed_bytes);
        match progress.step {
            Step::Receive => {
                send_all(stream, &mut output).await?;
                if !receiver.fill(stream).await? {
                    return Ok(None);
                }
            }
            Step::Send => send_all(stream, &mut output).await?,
            Step::Close => {
                send_all(stream, &mut output).await?;
                return Ok(None);
            }
            Step::Transmission(session) => {
                let transmission = open(session).map_err(io::Error::other)?;
                send_all(stream, &mut output).await?;
                return Ok(Some(transmission));
            }
        }
    }
}

fn open(
    session: Box<Session>,
    directory: &Directory,
    graph: &Rc<LocalGraph>,
) -> Result<Transmission> {
    let not_found = || {
        let message = format!("export `{}` is gone", session.info.name);
        Error::new(ErrorKind::NotFound, message)
    };
    let client = directory.open(&session.info.name).ok_or_else(not_found)?;
    let drive = LocalDrive::open(graph, client.served().drive())?;
    let mut available = directory.contexts(client.served());
    let mut contexts = Vec::with_capacity(session.contexts.len());
    for selected in &session.contexts {
        // The graph may have changed since the handshake listed them: go by name.
        let name = session.info.contexts.get(selected.index).ok_or_else(not_found)?;
        let at = available.iter().position(|(known, _)| known == name).ok_or_else(not_found)?;
        contexts.push((selected.id, available.swap_remove(at).1));
    }
    let replies = Replies::default();
    let writethrough = client.served().export.writethrough;
    Ok(Transmission { session, drive, contexts, replies, writethrough, client })
}

async fn transmit(stream: Rc<Stream>, mut receiver: Receiver, transmission: Rc<Transmission>) {
    let (sender_stream, sender) = (Rc::clone(&stream), Rc::clone(&transmission));
    let name = transmission.session.info.name.clone();
    tracing::debug!("a client uses export `{name}`");
    spawn(async move {
        sender.replies.run(&sender_stream).await;
        // What was sent still arrives; the client sees the end after it.
        sender_stream.shutdown();
        tracing::debug!("a client of export `{name}` is gone");
    });
    if let Err(error) = receive_requests(&stream, &mut receiver, &transmission).await {
        tracing::debug!("export `{}`: {error}", transmission.session.info.name);
    }
    transmission.replies.finish();
    transmission.replies.drained().await;
}

/// Polls a request once at once: most end there. What does not becomes a task, which is polled again in
/// this turn and leaves its own waker.
async fn start(request: impl Future<Output = ()> + 'static) {
    let mut request = Box::pin(request);
    let ready = poll_fn(|cx| Poll::Ready(request.as_mut().poll(cx).is_ready())).await;
    if !ready {
        spawn_boxed(request);
    }
}

async fn receive_requests(
    stream: &Stream,
    receiver: &mut Receiver,
    transmission: &Rc<Transmission>,
) -> io::Result<()> {
    let replies = &transmission.replies;
    while !replies.is_broken() {
        let Some(bytes) = receiver.unread().first_chunk::<HEADER_BYTES>() else {
            if !receiver.fill(stream).await? {
                return Ok(());
            }
            continue;
        };
        let header = decode_header(bytes).map_err(|error| io::Error::other(error.to_string()))?;
        receiver.consume(HEADER_BYTES);
        match check(&header, &transmission.session) {
            Verdict::Disconnect => return Ok(()),
            Verdict::Close => return Err(io::Error::other("the client broke the protocol")),
            Verdict::Reject { errno, reason, payload_bytes } => {
                replies.room(0, NBD_REQUESTS_MAX, NBD_BYTES_MAX).await;
                replies.begin(0);
                let arrived = receiver.discard(stream, payload_bytes as usize).await;
                replies.end(0, |writer| {
                    writer.head(|output| {
                        transmission.session.push_failure(output, header.cookie, errno, reason);
                    });
                });
                if !arrived? {
                    return Ok(());
                }
            }
            Verdict::Accept(request) => {
                let held = held_bytes(&request);
                replies.room(held, NBD_REQUESTS_MAX, NBD_BYTES_MAX).await;
                let payload = match &request {
                    super::proto::Request::Write { len_bytes, .. } => {
                        let Some(payload) = receiver.payload(stream, *len_bytes as usize).await?
                        else {
                            return Ok(());
                        };
                        Some(payload.freeze())
                    }
                    _ => None,
                };
                replies.begin(held);
                let plug = (receiver.unread().len() >= HEADER_BYTES).then(plug);
                start(run(Rc::clone(transmission), header.cookie, request, payload)).await;
                drop(plug);
                replies.yield_to_sender().await;
            }
        }
    }
    Ok(())
}
