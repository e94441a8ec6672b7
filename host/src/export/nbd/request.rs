//! One request: from its typed form to its reply.

use std::ops::Range;
use std::rc::Rc;

use super::connection::Transmission;
use super::contexts::{Context, frozen};
use super::proto::{NbdErrno, Request, StatusExtent, StatusQuery, push_block_status, reply};
use super::send::ReplyWriter;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buf, BufMut, is_zero};
use crate::node::{Extent, ExtentKind, WriteFlags};

/// Flags of `base:allocation` (NBD protocol, "Metadata querying").
const STATE_HOLE: u32 = 1;
const STATE_ZERO: u32 = 2;
/// Flag of `qemu:dirty-bitmap`.
const STATE_DIRTY: u32 = 1;
/// Runs of zeros of at least this many bytes go out as holes: less saves nothing.
const HOLE_MIN_BYTES: usize = 4096;
/// Extents in one reply of block status; a client asks again from where it ends.
const STATUS_EXTENTS_MAX: usize = 4096;
/// Step in which a cache request reads ahead, bytes.
const CACHE_STEP_BYTES: u32 = 1 << 20;

/// Bytes that a request holds until its reply has been sent.
pub(super) fn held_bytes(request: &Request) -> usize {
    match request {
        Request::Read { len_bytes, .. } | Request::Write { len_bytes, .. } => *len_bytes as usize,
        _ => 0,
    }
}

/// Runs a request and queues its reply. `payload` is a write's data.
pub(super) async fn run(
    transmission: Rc<Transmission>,
    cookie: u64,
    request: Request,
    payload: Option<Buf>,
) {
    let held = held_bytes(&request);
    let this = &*transmission;
    match request {
        Request::Read { offset, len_bytes, dont_fragment } => {
            let result = this.drive.read(offset, BufMut::new(len_bytes as usize)).await;
            let result = result.map_err(|error| read_error(this, offset, len_bytes, error));
            finish(this, cookie, held, result, |writer, data| {
                push_read(this, writer, cookie, offset, data.freeze(), dont_fragment);
            });
        }
        Request::BlockStatus { offset, len_bytes, req_one } => {
            let result = block_status(this, offset, len_bytes, req_one).await;
            finish(this, cookie, held, result, |writer, contexts| {
                let query = StatusQuery { len_bytes, req_one };
                push_status(this, writer, cookie, query, contexts);
            });
        }
        other => {
            let result = run_plain(this, &other, payload).await;
            finish(this, cookie, held, result, |writer, ()| {
                writer.head(|output| this.session.push_success(output, cookie));
            });
        }
    }
}

/// A client keeps the size that it has seen. What has been cut off since can be read no more, which is no fault
/// of the request.
#[cold]
fn read_error(this: &Transmission, offset: u64, len_bytes: u32, error: Error) -> Error {
    match end_now(this) < offset + u64::from(len_bytes) {
        true => Error::new(ErrorKind::Io, "what is there now ends before: it has become smaller"),
        false => error,
    }
}

/// Where what the drive shows ends now; without a medium it has no end, but the requests fail.
fn end_now(this: &Transmission) -> u64 {
    this.drive.info().map_or(u64::MAX, |info| info.size_bytes)
}

/// Requests whose reply is only success or failure.
async fn run_plain(this: &Transmission, request: &Request, payload: Option<Buf>) -> Result<()> {
    let flags = |fua| WriteFlags { fua: fua || this.writethrough, ..WriteFlags::NONE };
    match *request {
        Request::Write { offset, fua, .. } => {
            let Some(payload) = payload else {
                return Err(Error::new(ErrorKind::Invalid, "a write without data"));
            };
            this.drive.write_in_task(offset, payload, flags(fua)).await
        }
        Request::WriteZeroes { offset, len_bytes, fua, no_hole, fast_zero } => {
            let flags = WriteFlags { no_unmap: no_hole, fast: fast_zero, ..flags(fua) };
            this.drive.zero(offset, len_bytes.into(), flags).await
        }
        Request::Trim { offset, len_bytes, fua } => {
            this.drive.discard(offset, len_bytes.into()).await?;
            if fua { this.drive.flush().await } else { Ok(()) }
        }
        Request::Flush => this.drive.flush().await,
        Request::Cache { offset, len_bytes } => {
            let mut done = 0;
            // A client that has gone needs no cache.
            while done < len_bytes && !this.replies.is_over() {
                let step = CACHE_STEP_BYTES.min(len_bytes - done);
                let at = offset + u64::from(done);
                this.drive.read(at, BufMut::new(step as usize)).await?;
                done += step;
            }
            Ok(())
        }
        Request::Read { .. } | Request::BlockStatus { .. } => Ok(()),
    }
}

fn finish<T>(
    this: &Transmission,
    cookie: u64,
    held: usize,
    result: Result<T>,
    success: impl FnOnce(&mut ReplyWriter<'_>, T),
) {
    this.replies.end(held, |writer| match result {
        Ok(value) => success(writer, value),
        Err(error) => {
            tracing::debug!("export `{}`: {error}", this.session.info.name);
            let errno = NbdErrno::from_errno(error.errno());
            writer.head(|output| {
                this.session.push_failure(output, cookie, errno, &error.to_string());
            });
        }
    });
}

fn push_read(
    this: &Transmission,
    writer: &mut ReplyWriter<'_>,
    cookie: u64,
    offset: u64,
    data: Buf,
    whole: bool,
) {
    let len = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    if !this.session.structured || whole || data.is_empty() {
        writer.head(|out| this.session.push_read_header(out, cookie, offset, len(data.len())));
        writer.data(data);
        return;
    }
    let mut at = 0;
    while at < data.len() {
        let (end, hole) = next_run(&data, at);
        let (from, size, done) = (offset + at as u64, len(end - at), end == data.len());
        if hole {
            writer.head(|out| out.extend(reply::hole_chunk(cookie, from, size, done)));
        } else {
            writer.head(|out| out.extend(reply::data_chunk_header(cookie, from, size, done)));
            writer.data(data.slice(at..end));
        }
        at = end;
    }
}

/// Where the run of zero blocks, or of others, that begins at `at` ends; whether it is zeros.
fn next_run(data: &[u8], at: usize) -> (usize, bool) {
    let mut blocks = data[at..].chunks(HOLE_MIN_BYTES);
    let is_hole = |block: &[u8]| block.len() == HOLE_MIN_BYTES && is_zero(block);
    let first = blocks.next().is_some_and(is_hole);
    let same = blocks.take_while(|block| is_hole(block) == first).count();
    ((at + (same + 1) * HOLE_MIN_BYTES).min(data.len()), first)
}

async fn block_status(
    this: &Transmission,
    offset: u64,
    len: u32,
    req_one: bool,
) -> Result<Vec<(u32, Vec<StatusExtent>)>> {
    let mut answers = Vec::with_capacity(this.contexts.len());
    for (id, context) in &this.contexts {
        let extents = match context {
            Context::Allocation => allocation(this, offset, len, req_one).await?,
            Context::Depth => depth(this, offset, len, req_one).await?,
            Context::Dirty(shown) => {
                let end = offset + u64::from(len);
                dirty(shown.dirty(&this.drive, offset..end), offset..end, req_one)
            }
            Context::Frozen(still) => {
                let within = offset..offset + u64::from(len);
                dirty(frozen(still.as_ref(), within.clone()), within, req_one)
            }
        };
        answers.push((*id, extents));
    }
    Ok(answers)
}

async fn allocation(
    this: &Transmission,
    offset: u64,
    len: u32,
    req_one: bool,
) -> Result<Vec<StatusExtent>> {
    let behind = allocation_flags(ExtentKind::Unreadable);
    along(this, (offset, len, req_one), behind, async |at, len| {
        let extents = this.drive.block_status_shown(at, len).await?.into_iter();
        let flags = |extent: Extent| allocation_flags(extent.kind);
        Ok(extents.map(|it| StatusExtent { len_bytes: it.len, flags: flags(it) }).collect())
    })
    .await
}

/// What `qemu:allocation-depth` says (QEMU, `docs/interop/nbd.rst`): the number of the layer, from the top, 1 on;
/// 0 where no layer has the bytes.
async fn depth(
    this: &Transmission,
    offset: u64,
    len: u32,
    req_one: bool,
) -> Result<Vec<StatusExtent>> {
    along(this, (offset, len, req_one), 0, async |at, len| {
        let layers = this.drive.layers(at, len).await?.into_iter();
        Ok(layers.map(|it| StatusExtent { len_bytes: it.len, flags: it.depth }).collect())
    })
    .await
}

/// What `ask` says of a range, piece by piece; of what has been cut off since the client came, `behind`.
async fn along(
    this: &Transmission,
    (offset, len, req_one): (u64, u32, bool),
    behind: u32,
    ask: impl AsyncFn(u64, u64) -> Result<Vec<StatusExtent>>,
) -> Result<Vec<StatusExtent>> {
    let mut answer = Vec::new();
    let end = offset + u64::from(len);
    let mut at = offset;
    loop {
        let there = end_now(this).clamp(at, end);
        if at == there || answer.len() >= STATUS_EXTENTS_MAX {
            break;
        }
        let extents = match ask(at, there - at).await {
            Ok(extents) => extents,
            // It has become smaller meanwhile.
            Err(_) if end_now(this) < there => continue,
            Err(error) => return Err(error),
        };
        at += extents.iter().map(|extent| extent.len_bytes).sum::<u64>();
        answer.extend(extents);
        if req_one {
            return Ok(answer);
        }
    }
    if answer.len() < STATUS_EXTENTS_MAX && at < end {
        answer.push(StatusExtent { len_bytes: end - at, flags: behind });
    }
    Ok(answer)
}

/// What `base:allocation` says of an extent (NBD protocol, "Metadata querying").
fn allocation_flags(kind: ExtentKind) -> u32 {
    match kind {
        // What lies below shows there, so it need not be zero: clients may not skip it.
        ExtentKind::Data | ExtentKind::Unallocated => 0,
        ExtentKind::Zero => STATE_ZERO,
        ExtentKind::Hole => STATE_HOLE | STATE_ZERO,
        // Neither data nor zero: clients that have a backing of their own keep that.
        ExtentKind::Unreadable => STATE_HOLE,
    }
}

/// What a `qemu:dirty-bitmap` says of `asked`, of which `dirty` are the dirty ranges.
fn dirty(
    dirty: impl Iterator<Item = Range<u64>>,
    asked: Range<u64>,
    req_one: bool,
) -> Vec<StatusExtent> {
    let mut answer = Vec::new();
    let mut at = asked.start;
    for range in dirty {
        if range.start > at {
            answer.push(StatusExtent { len_bytes: range.start - at, flags: 0 });
        }
        answer.push(StatusExtent { len_bytes: range.end - range.start, flags: STATE_DIRTY });
        at = range.end;
        if req_one || answer.len() >= STATUS_EXTENTS_MAX {
            return answer;
        }
    }
    if at < asked.end {
        answer.push(StatusExtent { len_bytes: asked.end - at, flags: 0 });
    }
    answer
}

fn push_status(
    this: &Transmission,
    writer: &mut ReplyWriter<'_>,
    cookie: u64,
    query: StatusQuery,
    contexts: Vec<(u32, Vec<StatusExtent>)>,
) {
    let last = contexts.len().saturating_sub(1);
    writer.head(|output| {
        let begin = output.len();
        for (at, (id, extents)) in contexts.into_iter().enumerate() {
            if push_block_status(output, cookie, id, query, extents, at == last).is_err() {
                output.truncate(begin);
                let message = "block status gave no extents";
                this.session.push_failure(output, cookie, NbdErrno::from_errno(5), message);
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_backing_shows_is_not_said_to_be_zero() {
        let flags = [ExtentKind::Data, ExtentKind::Zero, ExtentKind::Hole, ExtentKind::Unallocated]
            .map(allocation_flags);
        assert_eq!(flags, [0, STATE_ZERO, STATE_HOLE | STATE_ZERO, 0]);
        assert_eq!(allocation_flags(ExtentKind::Unreadable), STATE_HOLE);
    }

    #[test]
    fn runs_of_zero_blocks_are_found() {
        let mut data = vec![0; 3 * HOLE_MIN_BYTES + 10];
        data[HOLE_MIN_BYTES] = 1;
        let mut runs = Vec::new();
        let mut at = 0;
        while at < data.len() {
            let (end, hole) = next_run(&data, at);
            runs.push((end, hole));
            at = end;
        }
        let block = HOLE_MIN_BYTES;
        let expect =
            [(block, true), (2 * block, false), (3 * block, true), (3 * block + 10, false)];
        assert_eq!(runs, expect, "a tail shorter than a block is data");
    }
}
