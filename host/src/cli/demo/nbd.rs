//! A guest's side of NBD, as small as it can be: one request after the other, simple replies.

use std::path::Path;

use crate::export::nbd::proto::wire;
use crate::io::LocalStream;

/// An export that is open.
pub(super) struct Disk {
    stream: LocalStream,
    cookie: u64,
}

impl Disk {
    /// Opens an export of who listens at a unix socket.
    ///
    /// # Errors
    /// In words.
    pub(super) fn open(socket: &Path, export: &str) -> Result<Self, String> {
        let stream = LocalStream::connect(socket).map_err(|error| error.to_string())?;
        let disk = Self { stream, cookie: 0 };
        disk.receive(wire::GREETING_BYTES)?;
        let mut hello = Vec::new();
        let flags = wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES;
        hello.extend(u32::from(flags).to_be_bytes());
        hello.extend(wire::OPTION_MAGIC.to_be_bytes());
        hello.extend(wire::OPT_GO.to_be_bytes());
        let name_bytes = u32::try_from(export.len()).map_err(|error| error.to_string())?;
        hello.extend((4 + name_bytes + 2).to_be_bytes());
        hello.extend(name_bytes.to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0_u16.to_be_bytes());
        disk.send(&hello)?;
        loop {
            let header = disk.receive(wire::OPTION_REPLY_HEADER_BYTES)?;
            let (kind, len) = (be32(&header[12..]), be32(&header[16..]));
            let words = disk.receive(len as usize)?;
            match kind {
                wire::REP_ACK => return Ok(disk),
                wire::REP_INFO => {}
                _ => return Err(String::from_utf8_lossy(&words).into_owned()),
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), String> {
        self.stream.send_all(bytes).map_err(|error| error.to_string())
    }

    fn receive(&self, len: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; len];
        let mut at = 0;
        while at < len {
            let count = self.stream.recv(&mut bytes[at..]).map_err(|error| error.to_string())?;
            if count == 0 {
                return Err("the server has ended the connection".into());
            }
            at += count;
        }
        Ok(bytes)
    }

    fn request(&mut self, command: u16, offset: u64, len: u32) -> Vec<u8> {
        self.cookie += 1;
        let mut header = Vec::with_capacity(wire::REQUEST_HEADER_BYTES);
        header.extend(wire::REQUEST_MAGIC.to_be_bytes());
        header.extend(0_u16.to_be_bytes());
        header.extend(command.to_be_bytes());
        header.extend(self.cookie.to_be_bytes());
        header.extend(offset.to_be_bytes());
        header.extend(len.to_be_bytes());
        header
    }

    fn reply(&self) -> Result<(), String> {
        let reply = self.receive(wire::SIMPLE_REPLY_BYTES)?;
        match be32(&reply[4..]) {
            0 => Ok(()),
            errno => Err(format!("the server answers with error {errno}")),
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// In words.
    pub(super) fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, String> {
        let header = self.request(wire::CMD_READ, offset, len);
        self.send(&header)?;
        self.reply()?;
        self.receive(len as usize)
    }

    /// Writes.
    ///
    /// # Errors
    /// In words.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let len = u32::try_from(bytes.len()).map_err(|error| error.to_string())?;
        let mut message = self.request(wire::CMD_WRITE, offset, len);
        message.extend(bytes);
        self.send(&message)?;
        self.reply()
    }

    /// Says that it goes.
    pub(super) fn close(mut self) {
        let header = self.request(wire::CMD_DISC, 0, 0);
        // It may have gone.
        let _ = self.send(&header);
    }
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}
