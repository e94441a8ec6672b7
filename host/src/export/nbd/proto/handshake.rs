//! Fixed newstyle negotiation as a state machine.

use super::context::{ContextRequest, Selection, push_listed};
use super::export_info::{ExportDirectory, ExportInfo};
use super::limits::{
    MAX_DRAINED_OPTION_BYTES, MAX_OPTION_DATA_BYTES, MAX_OPTIONS, OUTPUT_FLUSH_BYTES,
};
use super::option::{
    InfoRequest, OptionError, parse_string, push_final_reply, push_info, push_listing,
};
use super::session::Session;
use super::wire;

/// One connection's negotiation.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    /// What has arrived of the message that `state` waits for.
    partial: Vec<u8>,
    options_seen: usize,
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured: bool,
    selection: Option<Selection>,
}

/// What one call of [`Handshake::feed`] achieved.
#[derive(Debug, PartialEq, Eq)]
pub struct Progress {
    /// Input bytes used up. The rest is to be fed again, or belongs to the transmission phase.
    pub consumed_bytes: usize,
    /// What the connection loop does next.
    pub step: Step,
}

/// What the connection loop does after [`Handshake::feed`].
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the output, receive more, feed it.
    Receive,
    /// Send and clear the output, then feed the rest of the input.
    Send,
    /// Open the export, send the output, and go on with requests, of which some may be in the rest
    /// of the input. If the export cannot be opened, drop the connection without sending.
    Transmission(Box<Session>),
    /// Send the output and close.
    Close,
}

#[derive(Clone, Copy, Debug)]
enum State {
    ClientFlags,
    OptionHeader,
    /// The data of an option is collected, then parsed.
    OptionData(OptionHeader),
    /// The data of an option is thrown away, then the option is answered.
    SkipData(OptionHeader, usize),
    Over,
}

#[derive(Clone, Copy, Debug)]
struct OptionHeader {
    option: u32,
    data_len_bytes: usize,
}

impl Handshake {
    /// Starts a negotiation; the greeting is appended to `output`.
    pub fn start(output: &mut Vec<u8>) -> Self {
        let flags = wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES;
        output.extend_from_slice(&wire::GREETING_MAGIC.to_be_bytes());
        output.extend_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
        output.extend_from_slice(&flags.to_be_bytes());
        Self {
            state: State::ClientFlags,
            partial: Vec::new(),
            options_seen: 0,
            fixed_newstyle: false,
            no_zeroes: false,
            structured: false,
            selection: None,
        }
    }

    /// Takes what the client sent, cut anywhere, and appends answers to `output`, which holds only
    /// what is not sent yet. After [`Step::Transmission`] and [`Step::Close`] nothing is consumed any
    /// more.
    pub fn feed(
        &mut self,
        input: &[u8],
        directory: &dyn ExportDirectory,
        output: &mut Vec<u8>,
    ) -> Progress {
        let mut rest = input;
        let step = loop {
            if let Some(step) = self.advance(&mut rest, directory, output) {
                break step;
            }
        };
        if matches!(step, Step::Transmission(_) | Step::Close) {
            self.state = State::Over;
        }
        Progress { consumed_bytes: input.len() - rest.len(), step }
    }

    /// Completes what `state` waits for, or says what that takes.
    fn advance(
        &mut self,
        input: &mut &[u8],
        directory: &dyn ExportDirectory,
        output: &mut Vec<u8>,
    ) -> Option<Step> {
        match self.state {
            State::ClientFlags => match self.collect_array(input) {
                Some(flags) => self.take_client_flags(u32::from_be_bytes(flags)),
                None => Some(Step::Receive),
            },
            State::OptionHeader if !input.is_empty() && output.len() >= OUTPUT_FLUSH_BYTES => {
                Some(Step::Send)
            }
            State::OptionHeader => match self.collect_array(input) {
                Some(header) => self.take_option_header(header),
                None => Some(Step::Receive),
            },
            State::OptionData(header) => match self.collect(input, header.data_len_bytes) {
                Some(data) => self.take_option_data(header, &data, directory, output),
                None => Some(Step::Receive),
            },
            State::SkipData(header, left_bytes) => {
                let skipped = left_bytes.min(input.len());
                *input = &input[skipped..];
                self.state = State::SkipData(header, left_bytes - skipped);
                if skipped < left_bytes {
                    return Some(Step::Receive);
                }
                self.answer_skipped(header, directory, output)
            }
            State::Over => Some(Step::Close),
        }
    }

    /// Moves input to `partial` until that has `len_bytes`, and then hands it out.
    fn collect(&mut self, input: &mut &[u8], len_bytes: usize) -> Option<Vec<u8>> {
        let missing = len_bytes.saturating_sub(self.partial.len());
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.partial.extend_from_slice(taken);
        *input = rest;
        (taken.len() == missing).then(|| std::mem::take(&mut self.partial))
    }

    fn collect_array<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        self.collect(input, N)?.try_into().ok()
    }

    fn take_client_flags(&mut self, flags: u32) -> Option<Step> {
        let fixed_newstyle = u32::from(wire::FLAG_FIXED_NEWSTYLE);
        let no_zeroes = u32::from(wire::FLAG_NO_ZEROES);
        if flags & !(fixed_newstyle | no_zeroes) != 0 {
            return Some(Step::Close);
        }
        self.fixed_newstyle = flags & fixed_newstyle != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        self.state = State::OptionHeader;
        None
    }

    fn take_option_header(&mut self, bytes: [u8; wire::OPTION_HEADER_BYTES]) -> Option<Step> {
        let magic = u64::from_be_bytes(wire::field(&bytes, 0));
        let option = u32::from_be_bytes(wire::field(&bytes, 8));
        let data_len_bytes = u32::from_be_bytes(wire::field(&bytes, 12)) as usize;
        if magic != wire::OPTION_MAGIC || data_len_bytes > MAX_DRAINED_OPTION_BYTES {
            return Some(Step::Close);
        }
        self.options_seen += 1;
        // Plain newstyle has no other option, and no way to answer one.
        let answerable = self.fixed_newstyle || option == wire::OPT_EXPORT_NAME;
        if self.options_seen > MAX_OPTIONS || !answerable {
            return Some(Step::Close);
        }
        if option == wire::OPT_SET_META_CONTEXT {
            // Whatever comes of it, the selection before it no longer holds.
            self.selection = None;
        }
        let header = OptionHeader { option, data_len_bytes };
        self.state = if has_data(option) && data_len_bytes <= MAX_OPTION_DATA_BYTES {
            State::OptionData(header)
        } else {
            State::SkipData(header, data_len_bytes)
        };
        None
    }

    /// Answers an option whose data does not matter.
    fn answer_skipped(
        &mut self,
        header: OptionHeader,
        directory: &dyn ExportDirectory,
        output: &mut Vec<u8>,
    ) -> Option<Step> {
        let OptionHeader { option, data_len_bytes } = header;
        let start = output.len();
        let result = match option {
            wire::OPT_EXPORT_NAME => return Some(Step::Close),
            wire::OPT_ABORT => Ok(()),
            _ if has_data(option) => Err(OptionError::TooBig("option data is longer than 64 KiB")),
            wire::OPT_LIST | wire::OPT_STRUCTURED_REPLY if data_len_bytes > 0 => {
                Err(OptionError::Invalid("option takes no data"))
            }
            wire::OPT_LIST => {
                push_listing(output, directory);
                Ok(())
            }
            wire::OPT_STRUCTURED_REPLY => {
                self.structured = true;
                Ok(())
            }
            _ => Err(OptionError::Unsupported),
        };
        push_final_reply(output, start, option, &result);
        self.state = State::OptionHeader;
        (option == wire::OPT_ABORT).then_some(Step::Close)
    }

    fn take_option_data(
        &mut self,
        header: OptionHeader,
        data: &[u8],
        directory: &dyn ExportDirectory,
        output: &mut Vec<u8>,
    ) -> Option<Step> {
        let option = header.option;
        if option == wire::OPT_EXPORT_NAME {
            return Some(self.answer_export_name(data, directory, output));
        }
        let start = output.len();
        let result = match option {
            wire::OPT_INFO | wire::OPT_GO => self.answer_info(option, data, directory, output),
            _ => self.answer_contexts(option, data, directory, output).map(|()| None),
        };
        let (result, session) = match result {
            Ok(session) => (Ok(()), session),
            Err(error) => (Err(error), None),
        };
        push_final_reply(output, start, option, &result);
        self.state = State::OptionHeader;
        session.map(|session| Step::Transmission(Box::new(session)))
    }

    /// This option has no error reply: what cannot be served ends the connection.
    fn answer_export_name(
        &self,
        data: &[u8],
        directory: &dyn ExportDirectory,
        output: &mut Vec<u8>,
    ) -> Step {
        let session =
            parse_string(data).and_then(|name| self.open(name, look_up(directory, name)?));
        let Ok(session) = session else {
            return Step::Close;
        };
        let flags = session.info.transmission_flags(self.structured);
        output.extend_from_slice(&session.info.size_bytes.to_be_bytes());
        output.extend_from_slice(&flags.to_be_bytes());
        if !self.no_zeroes {
            output.extend_from_slice(&[0; wire::EXPORT_NAME_PADDING_BYTES]);
        }
        Step::Transmission(Box::new(session))
    }

    /// Answers `OPT_INFO` and `OPT_GO`; the latter returns the session.
    fn answer_info(
        &self,
        option: u32,
        data: &[u8],
        directory: &dyn ExportDirectory,
        output: &mut Vec<u8>,
    ) -> Result<Option<Session>, OptionError> {
        let request = InfoRequest::parse(data)?;
        let info = look_up(directory, request.export)?;
        if option == wire::OPT_INFO {
            push_info(output, option, &request, &info, self.structured);
            return Ok(None);
        }
        let session = self.open(request.export, info)?;
        push_info(output, option, &request, &session.info, self.structured);
        Ok(Some(session))
    }

    fn answer_contexts(
        &mut self,
        option: u32,
        data: &[u8],
        directory: &dyn ExportDirectory,
        output: &mut Vec<u8>,
    ) -> Result<(), OptionError> {
        if !self.structured {
            return Err(OptionError::Invalid(
                "metadata contexts need structured replies; negotiate those first",
            ));
        }
        let request = ContextRequest::parse(data)?;
        let info = look_up(directory, request.export)?;
        if option == wire::OPT_LIST_META_CONTEXT {
            push_listed(output, &request, &info);
        } else {
            let selection = Selection::new(&request, &info)?;
            selection.push(output);
            self.selection = Some(selection);
        }
        Ok(())
    }

    fn open(&self, name: &str, info: ExportInfo) -> Result<Session, OptionError> {
        let contexts = match &self.selection {
            Some(selection) => selection.resolve(name, &info)?,
            None => Vec::new(),
        };
        Ok(Session { export: name.to_owned(), structured: self.structured, contexts, info })
    }
}

fn look_up(directory: &dyn ExportDirectory, name: &str) -> Result<ExportInfo, OptionError> {
    directory.lookup(name).ok_or_else(|| OptionError::unknown_export(name))
}

/// Whether the data of `option` is of interest.
fn has_data(option: u32) -> bool {
    matches!(
        option,
        wire::OPT_EXPORT_NAME
            | wire::OPT_INFO
            | wire::OPT_GO
            | wire::OPT_LIST_META_CONTEXT
            | wire::OPT_SET_META_CONTEXT
    )
}

#[cfg(test)]
mod tests;
