//! Moves bytes between a connection's state and its transport: one task, one turn at a time.
//!
//! A turn reads what is there and decodes all of it before any stream's task runs; those tasks then write into the
//! out-buffer, and the driver's next turn, behind them in the run queue, writes their frames in one go.

use std::future::Future;
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::connection::{ABUSE_WINDOW, ALIVE_PING, Connection, OUT_LIMIT};
use super::stream::Shared;
use super::{code, frame};
use crate::buffer;
use crate::error::Error;

/// What one read asks for: four TLS records. Against two, large contents over TCP cost a quarter less CPU. More would
/// let a chunk of a few KiB, which is a slice of this buffer, hold more memory than it has bytes.
const READ: usize = buffer::LARGE;
/// What one turn reads before others have theirs.
const READ_PER_TURN: usize = 4 * READ;
/// Slices per write.
const SLICES: usize = 32;
/// After the last frame, how long and how much to wait for the peer to close: closing first, with bytes unread, would
/// make the kernel reset the connection and could destroy what the peer has not read yet.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// How long a peer may take to answer the ping that follows the first GOAWAY.
const FAREWELL: Duration = Duration::from_secs(2);

/// A connection's task: run it (`spawn_local`) for anything to happen. It ends when the connection is finished, with
/// an error when the peer broke the protocol or the transport failed. Dropping it fails all streams.
///
/// Needs tokio's timer.
#[must_use = "nothing is sent or received unless the driver runs"]
pub struct Driver<S> {
    io: S,
    shared: Shared,
    buffer: BytesMut,
    phase: Phase,
    /// The last turn left the writing to this one.
    deferred: bool,
    /// The transport may hold bytes that it has taken but not sent.
    flushing: bool,
    second: Instant,
    alive: Option<KeepAlive>,
    /// Until when a peer may answer the ping after the first GOAWAY.
    farewell: Option<Pin<Box<Sleep>>>,
}

enum Phase {
    Run,
    Close(Close),
    Done,
}

/// The end of a connection: write what is left, say that no more comes, wait for the peer to close.
struct Close {
    result: Result<(), Error>,
    written: bool,
    discarded: usize,
    deadline: Pin<Box<Sleep>>,
}

struct KeepAlive {
    interval: Duration,
    timeout: Duration,
    heard: Instant,
    pinged: bool,
    /// Nothing was heard for an interval, in which nobody minded; no timer runs until somebody does.
    quiet: bool,
    sleep: Pin<Box<Sleep>>,
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        let mut connection = self.shared.borrow_mut();
        let error = connection.end_of_transport(Error::Cancelled);
        connection.die(error);
        connection.out.clear();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Driver<S> {
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match std::mem::replace(&mut this.phase, Phase::Done) {
                Phase::Run => {
                    this.shared.borrow_mut().begin_turn(cx.waker());
                    let turn = this.poll_turn(cx);
                    // With a turn to come already, nobody needs to ask for one.
                    if !this.deferred {
                        this.shared.borrow_mut().end_turn();
                    }
                    let Poll::Ready(result) = turn else {
                        this.phase = Phase::Run;
                        return Poll::Pending;
                    };
                    let deadline = Box::pin(tokio::time::sleep(LINGER));
                    this.phase = Phase::Close(Close { result, written: false, discarded: 0, deadline });
                }
                Phase::Close(mut close) => {
                    if this.poll_close(cx, &mut close).is_pending() && close.deadline.as_mut().poll(cx).is_pending() {
                        this.phase = Phase::Close(close);
                        return Poll::Pending;
                    }
                    this.buffer = BytesMut::new();
                    return Poll::Ready(close.result);
                }
                Phase::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub(super) fn new(io: S, shared: Shared, prefix: &[u8]) -> Self {
        let now = Instant::now();
        let alive = shared.borrow().config.keep_alive.map(|(interval, timeout)| KeepAlive {
            interval,
            timeout,
            heard: now,
            pinged: false,
            quiet: false,
            sleep: Box::pin(tokio::time::sleep(interval)),
        });
        Driver {
            io,
            shared,
            buffer: BytesMut::from(prefix),
            phase: Phase::Run,
            deferred: false,
            flushing: false,
            second: now,
            alive,
            farewell: None,
        }
    }

    /// True once the peer has said how many streams it takes.
    pub fn is_settled(&self) -> bool {
        self.shared.borrow().peer.seen
    }

    /// One turn; ready when the connection is over.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Err(error) = self.read(cx) {
            let mut connection = self.shared.borrow_mut();
            let error = connection.end_of_transport(error);
            // A peer that leaves when nothing is going on has said all it wanted to.
            let quiet = matches!(error, Error::Io(_)) && connection.open == 0;
            connection.die(error.clone());
            return Poll::Ready(if quiet { Ok(()) } else { Err(error) });
        }
        if let Err(error) = self.keep_alive(cx) {
            self.shared.borrow_mut().die(error.clone());
            return Poll::Ready(Err(error));
        }
        self.farewell(cx);
        let mut connection = self.shared.borrow_mut();
        let woke = std::mem::take(&mut connection.woke);
        if woke && !self.deferred && !connection.out.is_empty() && connection.out.len() < OUT_LIMIT / 2 {
            // Those who were woken will have more to write: let them.
            self.deferred = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.deferred = false;
        drop(connection);
        match self.poll_write(cx) {
            Poll::Ready(Ok(())) if self.shared.borrow().finished() => {
                let mut connection = self.shared.borrow_mut();
                let error = connection.end_of_transport(Error::Refused);
                connection.die(error);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => {
                let mut connection = self.shared.borrow_mut();
                let error = connection.end_of_transport(error.into());
                connection.die(error.clone());
                Poll::Ready(Err(error))
            }
        }
    }

    /// Reads and decodes what is there.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let mut left = READ_PER_TURN;
        if !self.buffer.is_empty() {
            // What protocol detection has read, in the first turn.
            self.receive()?;
        }
        loop {
            if self.buffer.capacity() == 0 {
                self.buffer = buffer::take(READ);
            }
            self.buffer.reserve(READ);
            let mut limited = (&mut self.buffer).limit(READ);
            match pin!(self.io.read_buf(&mut limited)).poll(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(Error::Io(std::io::ErrorKind::UnexpectedEof)),
                Poll::Ready(Ok(n)) => {
                    self.receive()?;
                    left = left.saturating_sub(n);
                    if let Some(alive) = &mut self.alive {
                        alive.heard = Instant::now();
                        alive.pinged = false;
                        if std::mem::take(&mut alive.quiet) {
                            alive.sleep.as_mut().reset(alive.heard + alive.interval);
                        }
                    }
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
            if left == 0 {
                cx.waker().wake_by_ref();
                break;
            }
        }
        if self.buffer.is_empty() {
            // An idle connection holds no buffer.
            let buffer = std::mem::take(&mut self.buffer);
            if buffer.capacity() > 0 {
                buffer::give(buffer, READ);
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Error> {
        let mut connection = self.shared.borrow_mut();
        if let Err(fatal) = connection.receive(&mut self.buffer) {
            let last = connection.last_peer_id;
            frame::write_goaway(&mut connection.out, last, fatal.code);
            connection.die(Error::GoAway(fatal.code));
            return Err(match fatal.code {
                code::ENHANCE_YOUR_CALM => Error::Flood(fatal.why),
                _ => Error::Malformed(fatal.why),
            });
        }
        // Counting starts anew every second.
        let abuse = &mut connection.abuse;
        if abuse.resets | abuse.useless != 0 {
            let now = Instant::now();
            if now - self.second >= ABUSE_WINDOW {
                self.second = now;
                abuse.resets = 0;
                abuse.useless = 0;
            }
        }
        Ok(())
    }

    /// Pings a peer that has been silent, and gives up on one that stays so. One that was left alone while no stream was
    /// open is asked together with the first that is.
    fn keep_alive(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let Some(alive) = &mut self.alive else { return Ok(()) };
        let ping = |alive: &mut KeepAlive, now: Instant| {
            alive.pinged = true;
            frame::write_ping(&mut self.shared.borrow_mut().out, false, ALIVE_PING);
            alive.sleep.as_mut().reset(now + alive.timeout);
        };
        let wanted = self.shared.borrow().wants_alive();
        if alive.quiet && wanted {
            alive.quiet = false;
            ping(alive, Instant::now());
        }
        while !alive.quiet && alive.sleep.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let due = alive.heard + alive.interval;
            if now < due {
                alive.sleep.as_mut().reset(due);
            } else if !alive.pinged && !wanted {
                alive.quiet = true;
            } else if alive.pinged {
                return Err(Error::Unresponsive);
            } else {
                ping(alive, now);
            }
        }
        Ok(())
    }

    /// Sends the last GOAWAY to a peer that does not answer the ping which was to tell when it is time.
    fn farewell(&mut self, cx: &mut Context<'_>) {
        if !self.shared.borrow().goaway_ping {
            self.farewell = None;
            return;
        }
        let sleep = self.farewell.get_or_insert_with(|| Box::pin(tokio::time::sleep(FAREWELL)));
        if sleep.as_mut().poll(cx).is_ready() {
            self.shared.borrow_mut().last_goaway();
        }
    }

    /// Writes until nothing is left or the transport takes no more. Ready when everything is written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut connection = self.shared.borrow_mut();
        loop {
            if connection.pump() {
                cx.waker().wake_by_ref();
            }
            if connection.out.is_empty() {
                break;
            }
            while !connection.out.is_empty() {
                let n = ready!(write_once(&mut self.io, cx, &connection))?;
                if n == 0 {
                    return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
                }
                self.flushing = true;
                connection.out.advance(n);
            }
            connection.abuse.answers = 0;
        }
        if self.flushing {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.flushing = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when there is nothing to wait for any more. Why the connection ended is known already, so errors are not.
    fn poll_close(&mut self, cx: &mut Context<'_>, close: &mut Close) -> Poll<()> {
        if !close.written {
            let written = match ready!(self.poll_write(cx)) {
                Ok(()) => ready!(Pin::new(&mut self.io).poll_shutdown(cx)),
                error => error,
            };
            if written.is_err() {
                return Poll::Ready(());
            }
            close.written = true;
        }
        while close.discarded < LINGER_BYTES {
            self.buffer.clear();
            self.buffer.reserve(4096);
            match ready!(pin!(self.io.read_buf(&mut self.buffer)).poll(cx)) {
                Ok(n) if n > 0 => close.discarded += n,
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

fn write_once<S: AsyncWrite + Unpin>(
    io: &mut S,
    cx: &mut Context<'_>,
    connection: &Connection,
) -> Poll<std::io::Result<usize>> {
    if !io.is_write_vectored() {
        return Pin::new(io).poll_write(cx, connection.out.next());
    }
    let mut slices = [IoSlice::new(&[]); SLICES];
    match connection.out.slices(&mut slices) {
        1 => Pin::new(io).poll_write(cx, &slices[0]),
        count => Pin::new(io).poll_write_vectored(cx, &slices[..count]),
    }
}

impl<S> std::fmt::Debug for Driver<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}
