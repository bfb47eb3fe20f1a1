//! The request's body on its way to an endpoint, kept for another attempt while it is small enough.
//!
//! **Invariant:** nothing is kept beyond the limit; a body that outgrew it is sent once and never again.

use super::ends::{Downstream, Upstream};
use super::mirror::Copy;
use bytes::Bytes;
use gossamer_engine::{Error, Headers};
use std::task::{Context, Poll, ready};

/// A request's body.
#[derive(Default)]
pub struct Body {
    /// Chunks seen so far, if all of them are kept.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    limit: usize,
    /// Some bytes were not kept.
    lost: bool,
    /// Of `kept`, how many this attempt has sent.
    sent: usize,
    /// The client has sent all of it.
    complete: bool,
    trailers: Option<Headers>,
    /// This attempt has sent all of it, or need not send more.
    finished: bool,
    /// Bytes taken from the client.
    pub bytes: u64,
    /// Collects the same for mirrors.
    copy: Option<Box<Copy>>,
}

/// Which side failed.
#[derive(Debug)]
pub enum Side {
    /// The client's.
    Client(Error),
    /// The endpoint's.
    Endpoint(Error),
}

impl Body {
    /// A body of which up to `limit` bytes are kept. `complete`: there is none.
    pub fn new(limit: usize, complete: bool) -> Self {
        Body { limit, complete, finished: complete, ..Body::default() }
    }

    /// Copies the body as it comes, and sends the copy with its end.
    pub fn copy(&mut self, copy: Box<Copy>) {
        match self.complete {
            true => copy.send(None),
            false => self.copy = Some(copy),
        }
    }

    /// True when there is nothing to send at all.
    pub fn is_empty(&self) -> bool {
        self.complete && self.kept.is_empty() && self.trailers.is_none() && self.bytes == 0
    }

    /// This attempt has nothing more to send.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The client has sent everything.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Starts over for another attempt; false when bytes are gone.
    pub fn rewind(&mut self) -> bool {
        if self.lost {
            return false;
        }
        self.sent = 0;
        self.finished = self.is_empty();
        true
    }

    /// True when another attempt could send all of it again.
    pub fn can_rewind(&self) -> bool {
        !self.lost
    }

    /// The endpoint wants no more of it.
    pub fn abandon(&mut self) {
        self.finished = true;
    }

    /// No other attempt will be made: forget what was kept.
    pub fn commit(&mut self) {
        self.limit = 0;
        if self.sent == self.kept.len() && !self.kept.is_empty() {
            self.lost = true;
            self.kept = Vec::new();
            self.sent = 0;
        }
    }

    /// Moves as much as both sides allow. Ready when this attempt has sent everything.
    pub fn poll_send(
        &mut self,
        down: &mut Downstream<'_>,
        up: &mut Upstream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Side>> {
        while !self.finished {
            ready!(up.poll_capacity(cx)).map_err(Side::Endpoint)?;
            if let Some(chunk) = self.kept.get(self.sent).cloned() {
                self.sent += 1;
                self.send(up, chunk)?;
            } else if self.complete {
                up.send_end(self.trailers.as_ref()).map_err(Side::Endpoint)?;
                self.finished = true;
            } else {
                let Poll::Ready(chunk) = down.poll_data(cx) else {
                    // What was sent so far should not wait for what comes.
                    let _ = up.poll_flush(cx).map_err(Side::Endpoint)?;
                    return Poll::Pending;
                };
                match chunk.transpose().map_err(Side::Client)? {
                    Some(chunk) => self.take(down, up, chunk)?,
                    None => self.end(down),
                }
            }
        }
        up.poll_flush(cx).map_err(Side::Endpoint)
    }

    fn take(&mut self, down: &mut Downstream<'_>, up: &mut Upstream, chunk: Bytes) -> Result<(), Side> {
        self.bytes += chunk.len() as u64;
        if let Some(copy) = &mut self.copy
            && !copy.take(&chunk)
        {
            self.copy = None;
        }
        if down.is_end() {
            self.end(down);
        }
        if !self.lost && self.kept_bytes + chunk.len() <= self.limit {
            self.kept_bytes += chunk.len();
            self.kept.push(chunk.clone());
            self.sent = self.kept.len();
        } else {
            self.lost = true;
            self.kept = Vec::new();
            self.sent = 0;
        }
        self.send(up, chunk)
    }

    fn end(&mut self, down: &mut Downstream<'_>) {
        self.complete = true;
        self.trailers = down.take_trailers();
        if let Some(copy) = self.copy.take() {
            copy.send(self.trailers.as_ref());
        }
    }

    /// Sends a chunk, with the end if it is the last.
    fn send(&mut self, up: &mut Upstream, chunk: Bytes) -> Result<(), Side> {
        let last = self.complete && self.sent == self.kept.len() && self.trailers.is_none();
        up.send_data(chunk, last).map_err(Side::Endpoint)?;
        self.finished = last;
        Ok(())
    }
}
