//! A stream to a server, over a unix socket or TCP.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::DEADLINE;

/// A stream to a server: what [`connect`] gives.
#[derive(Debug)]
pub enum Stream {
    /// Over a unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    /// Ends what this side sends.
    ///
    /// # Panics
    /// When the stream is broken.
    pub fn end_sending(&self) {
        let ended = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
        };
        ended.expect("shut down");
    }

    /// Receives and drops bytes for `time`; whether the server closes the stream before that.
    ///
    /// # Panics
    /// When the stream is broken in another way.
    pub fn ends_within(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut ended = false;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if ended || left.is_zero() {
                break;
            }
            self.set_timeout(left);
            match self.read(&mut [0; 4096]) {
                Ok(count) => ended = count == 0,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => ended = true,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
            }
        }
        self.set_timeout(DEADLINE);
        ended
    }

    fn set_timeout(&self, time: Duration) {
        let set = match self {
            Self::Unix(stream) => stream.set_read_timeout(Some(time)),
            Self::Tcp(stream) => stream.set_read_timeout(Some(time)),
        };
        set.expect("set a timeout");
    }

    /// Everything that the server still sends, until it closes the stream.
    ///
    /// # Panics
    /// When it does not close it within [`DEADLINE`].
    pub fn read_to_close(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the server keeps the connection open: {error}"),
        }
        bytes
    }
}

/// A stream to the server of an NBD URI (unix or TCP), with nothing said yet. Whatever waits for the
/// server gives up after [`DEADLINE`].
///
/// # Errors
/// When nobody listens.
///
/// # Panics
/// When the URI is none that the daemon prints.
pub fn connect(uri: &str) -> io::Result<Stream> {
    let timeout = Some(DEADLINE);
    if let Some((_, socket)) = uri.split_once("?socket=") {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(timeout)?;
        stream.set_write_timeout(timeout)?;
        return Ok(Stream::Unix(stream));
    }
    let rest = uri.strip_prefix("nbd://").unwrap_or_else(|| panic!("no NBD URI: {uri}"));
    let (address, _) = rest.split_once('/').unwrap_or((rest, ""));
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)?;
    Ok(Stream::Tcp(stream))
}
