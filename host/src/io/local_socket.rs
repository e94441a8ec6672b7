//! A unix socket for the control path: who waits for it blocks, on a thread of its own.
#![allow(
    unsafe_code,
    reason = "SO_PEERCRED, which rustix reads into a process number that may not be 0"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::Mode;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, connect, recv, send, shutdown, socket_with,
};

use super::net::Listener;

/// A listening unix socket. Its file goes with it.
pub struct LocalListener {
    listener: Listener,
    /// Readable once nobody is to be accepted any more.
    stop: OwnedFd,
}

impl LocalListener {
    /// Listens at `path`, as [`Listener::unix`]. `mode` says who may connect; nobody else ever could.
    ///
    /// # Errors
    /// As there.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        let listener = Listener::unix_with_mode(path, Some(Mode::from_raw_mode(mode)))?;
        Ok(Self { listener, stop: eventfd(0, EventfdFlags::CLOEXEC)? })
    }

    /// Waits for the next connection; `None` once it has been stopped.
    ///
    /// # Errors
    /// The operating system's: a shortage (`EMFILE`).
    pub fn accept(&self) -> io::Result<Option<LocalStream>> {
        loop {
            let mut fds = [
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !fds[0].revents().is_empty() {
                return Ok(None);
            }
            match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(fd) => return Ok(Some(LocalStream { fd })),
                Err(
                    rustix::io::Errno::INTR
                    | rustix::io::Errno::AGAIN
                    | rustix::io::Errno::CONNABORTED,
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether it has been stopped, now or within this time.
    pub fn is_stopped_within(&self, time: Duration) -> bool {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let time = Timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.stop, PollFlags::IN)];
        poll(&mut fds, Some(&time)).is_ok_and(|ready| ready > 0)
    }

    /// Ends [`Self::accept`].
    pub fn stop(&self) {
        // It can only be full, and then it is readable, too.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }
}

/// A connected unix socket, used by any thread.
pub struct LocalStream {
    fd: OwnedFd,
}

impl LocalStream {
    /// Connects to who listens at `path`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        connect(&fd, &SocketAddrUnix::new(path)?)?;
        Ok(Self { fd })
    }

    /// The user at the other end, when it connected.
    ///
    /// # Errors
    /// The operating system's.
    pub fn peer_uid(&self) -> io::Result<u32> {
        let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len_bytes = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: both pointers are to locals of the sizes that the kernel is told.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &raw mut len_bytes,
            )
        };
        if result == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
    }

    /// How long a send may wait for the other end to receive.
    ///
    /// # Errors
    /// The operating system's.
    pub fn set_send_timeout(&self, timeout: Duration) -> io::Result<()> {
        Ok(set_socket_timeout(&self.fd, Timeout::Send, Some(timeout))?)
    }

    /// Receives what has arrived, at least one byte; 0 is the end of the stream.
    ///
    /// # Errors
    /// The operating system's.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(&self.fd, &mut *buf, RecvFlags::empty()) {
                Ok((count, _)) => return Ok(count),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether something can be received, the end of the stream too, now or within this time.
    pub fn is_ready_within(&self, time: Duration) -> bool {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let time = Timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        poll(&mut fds, Some(&time)).is_ok_and(|ready| ready > 0)
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// The operating system's; `WouldBlock` when the other end does not receive for too long.
    pub fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(&self.fd, bytes, SendFlags::NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Ends what is received: a waiting [`Self::recv`] sees the end of the stream.
    pub fn shutdown_receive(&self) {
        let _ = shutdown(self.fd.as_fd(), Shutdown::Read);
    }

    /// Ends both directions.
    pub fn shutdown(&self) {
        let _ = shutdown(self.fd.as_fd(), Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_its_owner_may_connect_from_the_first_moment() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        for mode in [0o600, 0o666] {
            let listener = LocalListener::bind(&path, mode).expect("a listener");
            let permissions = std::fs::metadata(&path).expect("a socket").permissions();
            assert_eq!(permissions.mode() & 0o777, mode);
            drop(listener);
            assert!(!path.exists());
        }
    }

    #[test]
    fn both_ends() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = LocalListener::bind(&path, 0o600).expect("a listener");
        let client = LocalStream::connect(&path).expect("a connection");
        let server = listener.accept().expect("no error").expect("a connection");
        assert_eq!(server.peer_uid().expect("a user"), rustix::process::getuid().as_raw());
        client.send_all(b"hello").expect("sent");
        let mut buf = [0; 16];
        assert!(server.is_ready_within(Duration::ZERO));
        assert_eq!(server.recv(&mut buf).expect("received"), 5);
        assert!(!server.is_ready_within(Duration::ZERO));
        client.shutdown();
        assert_eq!(server.recv(&mut buf).expect("the end"), 0);

        server.set_send_timeout(Duration::from_millis(10)).expect("a time");
        let stalled = LocalStream::connect(&path).expect("a connection");
        let peer = listener.accept().expect("no error").expect("a connection");
        peer.set_send_timeout(Duration::from_millis(10)).expect("a time");
        let error = peer.send_all(&vec![0; 16 << 20]).expect_err("nobody receives");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(stalled);

        listener.stop();
        assert!(listener.accept().expect("no error").is_none());
    }
}
