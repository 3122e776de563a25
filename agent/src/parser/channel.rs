//! Messages over a stream socket, each with a file perhaps: kind, length, bytes.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::wire::{Kind, Writer};

/// Longest message, in bytes.
pub(super) const MAX_MESSAGE: usize = 16 << 20;
/// Bytes that are made room for before they have come.
const ROOM: usize = 1 << 16;
/// How often somebody who waits asks whether he still should.
const ASK: Duration = Duration::from_millis(50);
/// Room for the control message with one descriptor (cmsg(3): 16 bytes of header, 4 of data,
/// aligned to 8), and for more, so that a sender of several is seen.
const CONTROL: usize = 64;

/// Why nothing came, or could be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The other side is gone.
    Closed,
    /// The time for it was up.
    Time,
    /// What came is no message.
    Garbled,
}

/// A message that has come.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
    pub(super) file: Option<File>,
}

/// How long a side waits for the other.
pub(super) trait Patience {
    /// Whether waiting may go on; asked again and again.
    fn goes_on(&self) -> bool;
}

/// Until a time.
#[cfg(test)]
impl Patience for std::time::Instant {
    fn goes_on(&self) -> bool {
        Self::now() < *self
    }
}

/// One side of the conversation.
pub(super) struct Channel<'a> {
    socket: BorrowedFd<'a>,
    /// `None`: it waits in the kernel for as long as it takes.
    patience: Option<&'a dyn Patience>,
    /// Whether files are taken from the other side.
    takes_files: bool,
}

impl<'a> Channel<'a> {
    /// The parser's side: it waits for ever, and is handed files.
    pub(super) fn of_parser(socket: BorrowedFd<'a>) -> Self {
        Self {
            socket,
            patience: None,
            takes_files: true,
        }
    }

    /// The agent's side: it waits as long as it has patience, and takes no files.
    pub(super) fn of_agent(socket: BorrowedFd<'a>, patience: &'a dyn Patience) -> Self {
        Self {
            socket,
            patience: Some(patience),
            takes_files: false,
        }
    }

    /// Sends a message.
    pub(super) fn send(
        &self,
        kind: Kind,
        content: &Writer,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(), Lost> {
        let mut bytes = Vec::with_capacity(8 + content.0.len());
        bytes.extend_from_slice(&(kind as u32).to_le_bytes());
        bytes.extend_from_slice(&(content.0.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&content.0);
        let (mut rest, mut file) = (bytes.as_slice(), file);
        while !rest.is_empty() {
            let flags = libc::MSG_NOSIGNAL | self.flags();
            let sent = self.patiently(libc::POLLOUT, || send(self.socket, rest, file, flags))?;
            file = None;
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits for the next message.
    pub(super) fn receive(&self) -> Result<Message, Lost> {
        let mut head = [0; 8];
        let mut file = None;
        self.fill(&mut head, &mut file)?;
        let [a, b, c, d, e, f, g, h] = head;
        let kind = Kind::of(u32::from_le_bytes([a, b, c, d])).ok_or(Lost::Garbled)?;
        let length = u32::from_le_bytes([e, f, g, h]) as usize;
        if length > MAX_MESSAGE {
            return Err(Lost::Garbled);
        }
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let come = bytes.len();
            let room = (length - come).min(come.max(ROOM));
            bytes.resize(come + room, 0);
            let more = bytes.get_mut(come..).unwrap_or_default();
            self.fill(more, &mut file)?;
        }
        Ok(Message { kind, bytes, file })
    }

    fn fill(&self, mut buffer: &mut [u8], file: &mut Option<File>) -> Result<(), Lost> {
        while !buffer.is_empty() {
            let flags = libc::MSG_CMSG_CLOEXEC | self.flags();
            let (count, come) = self.patiently(libc::POLLIN, || {
                receive(self.socket, buffer, self.takes_files, flags)
            })?;
            if count == 0 {
                return Err(Lost::Closed);
            }
            *file = file.take().or(come);
            buffer = buffer.get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }

    fn flags(&self) -> libc::c_int {
        self.patience.map_or(0, |_| libc::MSG_DONTWAIT)
    }

    /// Does it, as soon as the socket is ready for it.
    fn patiently<T>(
        &self,
        event: libc::c_short,
        mut work: impl FnMut() -> io::Result<T>,
    ) -> Result<T, Lost> {
        loop {
            if let Some(patience) = self.patience {
                self.wait(event, patience)?;
            }
            match work() {
                Ok(done) => return Ok(done),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock if self.patience.is_some() => {}
                    _ => return Err(Lost::Closed),
                },
            }
        }
    }

    fn wait(&self, events: libc::c_short, patience: &dyn Patience) -> Result<(), Lost> {
        // Asked each time: one who sends byte by byte must not be waited for for ever.
        while patience.goes_on() {
            let mut poll = libc::pollfd {
                fd: self.socket.as_raw_fd(),
                events,
                revents: 0,
            };
            // SAFETY: one valid pollfd.
            if unsafe { libc::poll(&raw mut poll, 1, ASK.as_millis() as libc::c_int) } == 1 {
                return Ok(());
            }
        }
        Err(Lost::Time)
    }
}

/// Sends what fits, with the file.
fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    file: Option<BorrowedFd<'_>>,
    flags: libc::c_int,
) -> io::Result<usize> {
    let mut piece = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = [0_u64; CONTROL / 8];
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    if let Some(file) = file {
        let size = size_of::<libc::c_int>() as u32;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: computes sizes only.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as _;
        // SAFETY: the control buffer is aligned, and large enough for a header and a descriptor.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as _;
            libc::CMSG_DATA(header)
                .cast::<libc::c_int>()
                .write_unaligned(file.as_raw_fd());
        }
    }
    // SAFETY: the message and all that it points to live until the call returns.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives what has come, and the file that came with it.
fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    takes_files: bool,
    flags: libc::c_int,
) -> io::Result<(usize, Option<File>)> {
    let mut piece = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut control = [const { MaybeUninit::<u64>::uninit() }; CONTROL / 8];
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    if takes_files {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = CONTROL as _;
    }
    // SAFETY: the message and all that it points to are ours and live until the call returns.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok((count, files(&message).into_iter().next()))
}

/// The files in a control message: all of them, so that what is not wanted is closed.
fn files(message: &libc::msghdr) -> Vec<File> {
    let mut files = Vec::new();
    // SAFETY: the kernel has filled the control buffer in, and says how far; without one there is
    // no header.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: not null, so it is a header in the control buffer.
    while let Some(header) = unsafe { next.as_ref() } {
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: computes sizes only.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            let bytes = header.cmsg_len.saturating_sub(empty);
            for index in 0..bytes / size_of::<libc::c_int>() {
                // SAFETY: the header says that it holds so many descriptors, which the kernel has
                // just given to us alone.
                let fd = unsafe {
                    let data = libc::CMSG_DATA(next).cast::<libc::c_int>();
                    OwnedFd::from_raw_fd(data.add(index).read_unaligned())
                };
                files.push(File::from(fd));
            }
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    files
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_message_and_its_file_arrive() {
        let (agent, parser) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        let content = Writer(vec![7; 300_000]);
        let patience = soon();
        let got = std::thread::scope(|scope| {
            let parser = scope.spawn(|| Channel::of_parser(parser.as_fd()).receive().unwrap());
            Channel::of_agent(agent.as_fd(), &patience)
                .send(Kind::WantTable, &content, Some(file.as_fd()))
                .unwrap();
            parser.join().unwrap()
        });
        assert_eq!((got.kind, got.bytes), (Kind::WantTable, content.0));
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        got.file.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }

    #[test]
    fn the_agent_takes_no_file() {
        let (agent, parser) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        Channel::of_parser(parser.as_fd())
            .send(Kind::Done, &Writer::default(), Some(file.as_fd()))
            .unwrap();
        let got = Channel::of_agent(agent.as_fd(), &soon()).receive().unwrap();
        assert!(got.kind == Kind::Done && got.file.is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [[0xff; 8], [8, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [0; 8]] {
            let (agent, mut parser) = UnixStream::pair().unwrap();
            parser.write_all(&bytes).unwrap();
            let got = Channel::of_agent(agent.as_fd(), &soon()).receive();
            assert_eq!(got.unwrap_err(), Lost::Garbled, "{bytes:?}");
        }
        let (agent, mut parser) = UnixStream::pair().unwrap();
        parser.write_all(&[6, 0, 0]).unwrap();
        drop(parser);
        let got = Channel::of_agent(agent.as_fd(), &soon()).receive();
        assert_eq!(got.unwrap_err(), Lost::Closed);
    }

    #[test]
    fn patience_ends() {
        let (agent, _parser) = UnixStream::pair().unwrap();
        let now = Instant::now();
        let channel = Channel::of_agent(agent.as_fd(), &now);
        assert_eq!(channel.receive().unwrap_err(), Lost::Time);
        // Nobody reads: what the socket's buffers do not hold waits, and not for ever.
        let much = Writer(vec![0; 8 << 20]);
        let sent = channel.send(Kind::WantNames, &much, None);
        assert_eq!(sent.unwrap_err(), Lost::Time);
    }
}
