//! A connection of mutual TLS 1.3. rustls does the handshake, verifies the peer and derives the keys; the records in
//! between are sealed and opened here, each byte moved once: from where the reader finds it to where the socket wants it.
//!
//! **Invariant:** after a record that was not sealed with the peer's key, or that has no place here, nothing more is
//! read or written. A stream that ends without the peer's word for it is an error, never an end.

mod handshake;
mod records;
#[cfg(test)]
mod tests;

pub use handshake::{accept, connect};

use gossamer_engine::buffer::{Block, Size};
use records::{Alert, Content, Key};
use rustls::ExtractedSecrets;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Records opened ahead of the reader: as many as a block holds.
pub const AHEAD: usize = 16;
/// Most bytes of a message about tickets or keys. A ticket of rustls has some 1-2 KiB, with the client's certificates.
const MESSAGE: usize = 32 * 1024;
/// New keys that a peer may ask for without sending anything. Source: rustls' own bound.
const KEY_UPDATES: u8 = 32;
/// A key update that asks for none in return, as a handshake message. Source: RFC 8446, section 4.6.3.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// What goes on after the handshake: new keys, and tickets for the next one.
pub enum Session {
    /// We connected.
    Client(KernelConnection<ClientConnectionData>),
    /// We accepted.
    Server(KernelConnection<ServerConnectionData>),
}

/// A connection after its handshake. Idle, it holds no buffer.
pub struct Tls {
    io: TcpStream,
    session: Session,
    incoming: Key,
    outgoing: Key,
    /// Sealed records of the peer; those before its start are opened.
    input: Block,
    /// Where plaintext lies in `input`, in order.
    opened: [(u32, u32); AHEAD],
    /// Which of them are still to be read.
    unread: std::ops::Range<u8>,
    /// How much the next read asks for.
    ask: Size,
    /// Sealed records of ours, not yet taken by the socket.
    output: Block,
    reading: State,
    writing: State,
    /// A message about tickets or keys that has not come whole yet.
    message: Vec<u8>,
    /// New keys since the last data.
    updates: u8,
    /// The peer wants our key replaced before the next record.
    update_owed: bool,
    /// Records that a key of ours seals.
    rekey_after: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Failed(Failure),
}

/// Why a connection failed; kept to be said again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The socket did.
    Socket(io::ErrorKind),
    /// The peer broke the protocol.
    Ours(Alert),
    /// The peer said that we did; its number for it.
    Theirs(u8),
}

impl Failure {
    fn error(self) -> io::Error {
        match self {
            Failure::Socket(kind) => kind.into(),
            Failure::Ours(alert) => io::Error::new(io::ErrorKind::InvalidData, format!("TLS of the peer: {alert:?}")),
            Failure::Theirs(number) => {
                io::Error::new(io::ErrorKind::ConnectionAborted, format!("the peer ended TLS with alert {number}"))
            }
        }
    }
}

impl Tls {
    /// `input`: what was read and is not opened. `early`: what was opened already, `ended`: up to the peer's end.
    fn new(
        io: TcpStream,
        session: Session,
        secrets: ExtractedSecrets,
        input: Block,
        early: Vec<u8>,
        ended: bool,
    ) -> Option<Tls> {
        let mut tls = Tls {
            io,
            session,
            incoming: Key::new(secrets.rx)?,
            outgoing: Key::new(secrets.tx)?,
            input,
            opened: [(0, 0); AHEAD],
            unread: 0..0,
            ask: Size::Small,
            output: Block::default(),
            reading: if ended { State::Ended } else { State::Open },
            writing: State::Open,
            message: Vec::new(),
            updates: 0,
            update_owed: false,
            rekey_after: records::REKEY_AFTER,
        };
        tls.put_before(&early)?;
        Some(tls)
    }

    /// Lays what was opened during the handshake before what was not. `None`: it does not fit.
    fn put_before(&mut self, early: &[u8]) -> Option<()> {
        if early.is_empty() {
            return Some(());
        }
        let whole = early.len() + self.input.used().len();
        let size = [Size::Small, Size::Large, Size::Bulk].into_iter().find(|size| size.bytes() >= whole)?;
        let mut input = Block::take(size);
        input.all().get_mut(..early.len())?.copy_from_slice(early);
        let rest = self.input.used();
        input.all().get_mut(early.len()..whole)?.copy_from_slice(rest);
        (input.start, input.end) = (early.len(), whole);
        self.input = input;
        (self.opened[0], self.unread) = ((0, early.len() as u32), 0..1);
        Some(())
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.io
    }

    /// Ready when a read gives something, or may.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let whole = || match records::length(&self.input.bytes()[self.input.start..self.input.end]) {
            Ok(Some(length)) => self.input.end - self.input.start >= length,
            Ok(None) => false,
            Err(_) => true,
        };
        match self.unread.is_empty() && self.reading == State::Open && !whole() {
            true => self.io.poll_read_ready(cx),
            false => Poll::Ready(Ok(())),
        }
    }

    /// Opens as many records as are there. False at the end of the stream; otherwise [`slices`](Self::slices) has
    /// something.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            if !self.unread.is_empty() {
                return Poll::Ready(Ok(true));
            }
            match self.reading {
                State::Open => {}
                State::Ended => return Poll::Ready(Ok(false)),
                State::Failed(failure) => return Poll::Ready(Err(failure.error())),
            }
            if let Err(alert) = self.open() {
                self.fail(alert);
            } else if self.unread.is_empty() && self.reading == State::Open {
                ready!(self.poll_receive(cx));
            }
        }
    }

    /// What was opened and not consumed, in order.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; AHEAD]) -> usize {
        let mut count = 0;
        for &(start, end) in self.unread.clone().filter_map(|at| self.opened.get(usize::from(at))) {
            slices[count] = IoSlice::new(&self.input.bytes()[start as usize..end as usize]);
            count += 1;
        }
        count
    }

    /// The first `count` bytes of [`slices`](Self::slices) were taken.
    pub fn consume(&mut self, mut count: usize) {
        while let Some((start, end)) = self.opened.get_mut(usize::from(self.unread.start))
            && !self.unread.is_empty()
        {
            let part = count.min((*end - *start) as usize);
            *start += part as u32;
            count -= part;
            if start != end {
                return;
            }
            self.unread.start += 1;
        }
        if self.input.is_empty() {
            self.input = Block::default();
        }
    }

    /// Opens the records that are there whole.
    fn open(&mut self) -> Result<(), Alert> {
        self.unread = 0..0;
        while usize::from(self.unread.end) < AHEAD && self.reading == State::Open {
            let Some(length) = records::length(self.input.used())? else { break };
            let Some(record) = self.input.used().get_mut(..length) else { break };
            let (content, count) = self.incoming.open(record)?;
            let body = self.input.start + records::BODY;
            self.input.start += length;
            if content != Content::Handshake && !self.message.is_empty() {
                // Nothing may come between the parts of a message.
                return Err(Alert::UnexpectedMessage);
            }
            match content {
                Content::Data if count > 0 => {
                    self.opened[usize::from(self.unread.end)] = (body as u32, (body + count) as u32);
                    self.unread.end += 1;
                    self.updates = 0;
                }
                Content::Data => {}
                Content::Alert => {
                    let &[_, number] = &self.input.bytes()[body..body + count] else {
                        return Err(Alert::DecodeError);
                    };
                    match number {
                        0 => self.reading = State::Ended,
                        // `user_canceled`: the end follows. Source: RFC 8446, section 6.1.
                        90 => {}
                        _ => {
                            self.reading = State::Failed(Failure::Theirs(number));
                            self.writing = self.reading;
                        }
                    }
                }
                Content::Handshake => {
                    if count == 0 || self.message.len() + count > MESSAGE {
                        return Err(Alert::UnexpectedMessage);
                    }
                    self.message.extend_from_slice(&self.input.bytes()[body..body + count]);
                    self.messages()?;
                }
            }
        }
        Ok(())
    }

    /// Follows the messages about tickets and keys that have come whole.
    fn messages(&mut self) -> Result<(), Alert> {
        let all = std::mem::take(&mut self.message);
        let mut rest = &all[..];
        while let [kind, a, b, c, behind @ ..] = rest {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if length > MESSAGE {
                return Err(Alert::DecodeError);
            }
            let Some((body, behind)) = behind.split_at_checked(length) else { break };
            match (kind, &mut self.session) {
                (4, Session::Client(session)) => {
                    session.handle_new_session_ticket(body).map_err(|_| Alert::DecodeError)?;
                }
                (24, session) => {
                    // What follows must be sealed with the new key. Source: RFC 8446, section 5.1.
                    if !behind.is_empty() {
                        return Err(Alert::UnexpectedMessage);
                    }
                    match body {
                        [0] => {}
                        [1] => self.update_owed = true,
                        [_] => return Err(Alert::IllegalParameter),
                        _ => return Err(Alert::DecodeError),
                    }
                    self.updates += 1;
                    if self.updates > KEY_UPDATES {
                        return Err(Alert::UnexpectedMessage);
                    }
                    let next = match session {
                        Session::Client(session) => session.update_rx_secret(),
                        Session::Server(session) => session.update_rx_secret(),
                    };
                    self.incoming = next.ok().and_then(Key::new).ok_or(Alert::InternalError)?;
                }
                _ => return Err(Alert::UnexpectedMessage),
            }
            rest = behind;
        }
        self.message = rest.to_vec();
        Ok(())
    }

    /// Reads sealed records. What goes wrong is in `reading`.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.io.poll_read_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                self.reading = State::Failed(Failure::Socket(error.kind()));
                return Poll::Ready(());
            }
            Poll::Pending => {
                if self.input.is_empty() {
                    self.input = Block::default();
                }
                return Poll::Pending;
            }
        }
        let rest = self.input.used().len();
        if rest == self.input.capacity() && rest > 0 {
            self.ask = self.ask.more();
        }
        if self.input.capacity() < self.ask.bytes() {
            let mut larger = Block::take(self.ask);
            larger.all()[..rest].copy_from_slice(self.input.used());
            self.input = larger;
        } else if self.input.start > 0 {
            let (start, end) = (self.input.start, self.input.end);
            self.input.all().copy_within(start..end, 0);
        }
        (self.input.start, self.input.end) = (0, rest);
        let mut buf = ReadBuf::new(self.input.room());
        let room = buf.remaining();
        let polled = std::pin::Pin::new(&mut self.io).poll_read(cx, &mut buf);
        let count = buf.filled().len();
        match polled {
            Poll::Ready(Ok(())) if count > 0 => {
                self.input.end += count;
                if count == room {
                    self.ask = self.ask.more();
                } else if self.input.end < self.ask.less().bytes() {
                    self.ask = self.ask.less();
                }
            }
            // Nobody said that this is the end.
            Poll::Ready(Ok(())) => self.reading = State::Failed(Failure::Socket(io::ErrorKind::UnexpectedEof)),
            Poll::Ready(Err(error)) => self.reading = State::Failed(Failure::Socket(error.kind())),
            Poll::Pending => {
                if self.input.is_empty() {
                    self.input = Block::default();
                }
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Ends the connection for what the peer did, and tells it if that can be done at once.
    fn fail(&mut self, alert: Alert) {
        self.reading = State::Failed(Failure::Ours(alert));
        if self.writing == State::Open && self.output.is_empty() {
            let mut record = [0; 2 + records::OVERHEAD];
            if self.outgoing.seal(Content::Alert, &[2, alert as u8], &mut record).is_ok() {
                let _ = self.io.try_write(&record);
            }
        }
        self.writing = self.reading;
    }

    /// Gives the socket what is sealed.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let State::Failed(failure) = self.writing {
            return Poll::Ready(Err(failure.error()));
        }
        while !self.output.is_empty() {
            let polled = std::pin::Pin::new(&mut self.io).poll_write(cx, self.output.used());
            let failure = match ready!(polled) {
                Ok(0) => Failure::Socket(io::ErrorKind::WriteZero),
                Ok(count) => {
                    self.output.start += count;
                    continue;
                }
                Err(error) => Failure::Socket(error.kind()),
            };
            self.writing = State::Failed(failure);
            self.output = Block::default();
            return Poll::Ready(Err(failure.error()));
        }
        self.output = Block::default();
        Poll::Ready(Ok(()))
    }

    /// Seals a new key's announcement into `output`, and takes the key.
    fn update(&mut self) -> Result<(), Alert> {
        let room = self.output.room();
        let count = self.outgoing.seal(Content::Handshake, &KEY_UPDATE, room)?;
        self.output.end += count;
        let next = match &mut self.session {
            Session::Client(session) => session.update_tx_secret(),
            Session::Server(session) => session.update_tx_secret(),
        };
        self.outgoing = next.ok().and_then(Key::new).ok_or(Alert::InternalError)?;
        self.update_owed = false;
        Ok(())
    }

    /// Seals as much of `pieces` as a block takes. Returns how much.
    fn seal(&mut self, mut pieces: &mut [IoSlice<'_>]) -> Result<usize, Alert> {
        let all: usize = pieces.iter().map(|piece| piece.len()).sum();
        let size =
            [Size::Small, Size::Large].into_iter().find(|size| all <= size.bytes() / records::FULL * records::PLAIN);
        self.output = Block::take(size.unwrap_or(Size::Bulk));
        let mut left = all;
        while left > 0 {
            let room = self.output.room().len();
            if self.update_owed || self.outgoing.used() >= self.rekey_after {
                if room < KEY_UPDATE.len() + records::OVERHEAD {
                    break;
                }
                self.update()?;
                continue;
            }
            let count = left.min(records::PLAIN).min(room.saturating_sub(records::OVERHEAD));
            if count == 0 {
                break;
            }
            let length = self.outgoing.seal_pieces(&mut pieces, count, self.output.room())?;
            self.output.end += length;
            left -= count;
        }
        Ok(all - left)
    }

    /// As [`AsyncWrite::poll_write_vectored`]: what was taken may need a flush.
    fn poll_pieces(&mut self, cx: &mut Context<'_>, pieces: &mut [IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        if self.writing == State::Ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pieces.iter().all(|piece| piece.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        match self.seal(pieces) {
            Ok(count) => match self.poll_drain(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Ready(Ok(count)),
            },
            Err(alert) => {
                self.output = Block::default();
                self.fail(alert);
                Poll::Ready(Err(Failure::Ours(alert).error()))
            }
        }
    }
}

impl AsyncRead for Tls {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 || !ready!(self.poll_fill(cx))? {
            return Poll::Ready(Ok(()));
        }
        while buf.remaining() > 0
            && !self.unread.is_empty()
            && let Some(&(start, end)) = self.opened.get(usize::from(self.unread.start))
        {
            let (start, end) = (start as usize, end as usize);
            let count = buf.remaining().min(end - start);
            buf.put_slice(&self.input.bytes()[start..start + count]);
            self.consume(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tls {
    fn poll_write(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_pieces(cx, &mut [IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Sealing uses them up, so they are copied; more than this at once nobody has.
        let mut pieces = [IoSlice::new(&[]); 64];
        let count = bufs.len().min(pieces.len());
        pieces[..count].copy_from_slice(&bufs[..count]);
        self.poll_pieces(cx, &mut pieces[..count])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    fn poll_shutdown(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        if self.writing == State::Open {
            self.output = Block::take(Size::Small);
            let this = &mut *self;
            if let Ok(count) = this.outgoing.seal(Content::Alert, &[1, Alert::CloseNotify as u8], this.output.room()) {
                this.output.end = count;
            }
            this.writing = State::Ended;
            ready!(self.poll_drain(cx))?;
        }
        std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("io", &self.io).finish_non_exhaustive()
    }
}
