//! Stream sockets: listeners, and connections that are received from and sent to without blocking.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Poll, ready};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, listen, recv, sendmsg, socket_with, sockopt,
};

use super::{Drained, Interest, Io, SourceKey, worker};

/// Connections that the kernel keeps for us to accept.
const BACKLOG: i32 = 128;

/// A listening socket, bound but not yet watched; may move to the worker that accepts.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// A unix socket's file and its (device, inode), to remove it at the end if it is still ours.
    path: Option<(PathBuf, (u64, u64))>,
    tcp: Option<SocketAddr>,
}

impl Listener {
    /// Listens on a unix socket. The socket of a dead server is replaced, that of a live one is not.
    ///
    /// # Errors
    /// `AddrInUse` when somebody listens there or when something else lies at `path`; the operating
    /// system's otherwise.
    pub fn unix(path: &Path) -> io::Result<Self> {
        Self::unix_with_mode(path, None)
    }

    /// As [`Listener::unix`], where only who the mode lets may connect; without one, the process's mask says.
    pub(super) fn unix_with_mode(path: &Path, mode: Option<Mode>) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        // Two servers that start at once must not each take the other's socket for a dead one.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = parent.unwrap_or_else(|| Path::new("."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let guard = rustix::fs::open(directory, flags, Mode::empty())?;
        rustix::fs::flock(&guard, FlockOperation::LockExclusive)?;
        if let Some(reason) = socket_in_use(path) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, reason));
        }
        match rustix::fs::unlink(path) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let fd = new_socket(AddressFamily::UNIX)?;
        if let Some(mode) = mode {
            // The file takes it from the socket, less the process's mask.
            rustix::fs::fchmod(&fd, mode)?;
        }
        bind(&fd, &address)?;
        if let Some(mode) = mode {
            rustix::fs::chmod(path, mode)?;
        }
        listen(&fd, BACKLOG)?;
        let metadata = rustix::fs::stat(path)?;
        let identity = (metadata.st_dev, metadata.st_ino);
        Ok(Self { fd, path: Some((path.to_owned(), identity)), tcp: None })
    }

    /// Listens on a TCP address; port 0 takes a free one.
    ///
    /// # Errors
    /// The operating system's.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = new_socket(family)?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        bind(&fd, &address)?;
        listen(&fd, BACKLOG)?;
        let bound = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
        Ok(Self { fd, path: None, tcp: Some(bound) })
    }

    /// The TCP address that it listens on.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Begins to watch it on the current worker.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(self) -> io::Result<AttachedListener> {
        let io = worker::current_io()?;
        let key = io.watch(self.fd.as_fd())?;
        Ok(AttachedListener { listener: self, io, key })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some((path, identity)) = &self.path else { return };
        let ours = rustix::fs::stat(path).is_ok_and(|now| (now.st_dev, now.st_ino) == *identity);
        if ours {
            let _ = rustix::fs::unlink(path);
        }
    }
}

/// A listener on its worker.
pub struct AttachedListener {
    listener: Listener,
    io: Rc<dyn Io>,
    key: SourceKey,
}

impl AttachedListener {
    /// Waits for the next connection; what it returns may move to another worker.
    ///
    /// # Errors
    /// The operating system's: those of one connection (`ECONNABORTED`) or a shortage (`EMFILE`).
    pub async fn accept(&self) -> io::Result<OwnedFd> {
        poll_fn(|cx| {
            loop {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                match accept_with(&self.listener.fd, flags) {
                    Ok(fd) => {
                        if self.listener.tcp.is_some() {
                            // Replies must not wait for the peer's acknowledgements.
                            let _ = sockopt::set_tcp_nodelay(&fd, true);
                        }
                        return Poll::Ready(Ok(fd));
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => {
                        self.io.clear_ready(self.key, Interest::Read, Drained::Surely);
                        ready!(self.io.poll_ready(self.key, Interest::Read, cx));
                    }
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
            }
        })
        .await
    }
}

impl Drop for AttachedListener {
    fn drop(&mut self) {
        self.io.unwatch(self.listener.fd.as_fd(), self.key);
    }
}

fn new_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(family, SocketType::STREAM, flags, None)?)
}

/// Why a unix socket cannot be made at `path`: somebody listens there, or it is something else.
/// `None` when nothing is there, or the socket of a dead server.
pub fn socket_in_use(path: &Path) -> Option<String> {
    use std::os::unix::fs::FileTypeExt;
    let metadata = std::fs::symlink_metadata(path).ok()?;
    if !metadata.file_type().is_socket() {
        return Some("a file that is no socket lies there".into());
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Ok(_) | Err(_) => Some("another server listens there".into()),
    }
}

/// A connected socket on its worker.
pub struct Stream {
    fd: OwnedFd,
    io: Rc<dyn Io>,
    key: SourceKey,
}

impl Stream {
    /// Watches a non-blocking connected socket on the current worker.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(fd: OwnedFd) -> io::Result<Self> {
        let io = worker::current_io()?;
        let key = io.watch(fd.as_fd())?;
        Ok(Self { fd, io, key })
    }

    /// Receives what has arrived, at least one byte; 0 is the end of the stream.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| {
            loop {
                ready!(self.io.poll_ready(self.key, Interest::Read, cx));
                match recv(&self.fd, &mut *buf, RecvFlags::DONTWAIT) {
                    Ok((count, _)) => {
                        // A stream that gave less than was asked for is empty; the next arrival is
                        // signalled anew.
                        if count > 0 && count < buf.len() {
                            self.io.clear_ready(self.key, Interest::Read, Drained::Likely);
                        }
                        return Poll::Ready(Ok(count));
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => {
                        self.io.clear_ready(self.key, Interest::Read, Drained::Surely);
                    }
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
            }
        })
        .await
    }

    /// Sends some of `parts`, at least one byte.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        poll_fn(|cx| {
            loop {
                ready!(self.io.poll_ready(self.key, Interest::Write, cx));
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                match sendmsg(&self.fd, parts, &mut SendAncillaryBuffer::default(), flags) {
                    Ok(count) => return Poll::Ready(Ok(count)),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => {
                        self.io.clear_ready(self.key, Interest::Write, Drained::Surely);
                    }
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
            }
        })
        .await
    }

    /// Ends what is received: a waiting [`Stream::recv`] sees the end of the stream.
    pub fn shutdown_receive(&self) {
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Read);
    }

    /// Ends both directions.
    pub fn shutdown(&self) {
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.io.unwatch(self.fd.as_fd(), self.key);
    }
}
