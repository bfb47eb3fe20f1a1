//! A TCP connection without TLS. The runtime is told of one that was just accepted only when it has to be waited for: a
//! client that asks one thing, is answered at once and leaves costs a registration less, with its two system calls.

use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use socket2::SockRef;
use std::cell::RefCell;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// How late it may be noticed that a client has left which still waits for its first answer.
const LATE: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug)]
pub struct Plain {
    state: State,
    /// What is written next waits for the end of the stream.
    held: bool,
}

#[derive(Debug)]
enum State {
    /// The runtime does not know it. `looked`: it was asked once whether the client has left.
    Fresh {
        io: std::net::TcpStream,
        looked: bool,
    },
    Registered(TcpStream),
    /// The runtime could not be told.
    Lost,
}

impl From<TcpStream> for Plain {
    fn from(io: TcpStream) -> Self {
        Plain { state: State::Registered(io), held: false }
    }
}

impl Plain {
    /// What a fresh connection's client has said already, as much as there is room for; `WouldBlock` if nothing.
    pub fn receive<'a>(&self, room: &'a mut [MaybeUninit<u8>]) -> io::Result<&'a [u8]> {
        let ((bytes, _), _) = rustix::net::recv(self.fd()?, room, RecvFlags::empty())?;
        Ok(bytes)
    }

    /// Known to the runtime.
    pub fn into_tcp(mut self) -> io::Result<TcpStream> {
        self.register()?;
        match self.state {
            State::Registered(io) => Ok(io),
            State::Fresh { .. } | State::Lost => Err(lost()),
        }
    }

    /// What the runtime knows; tells it, if it is not told yet.
    fn register(&mut self) -> io::Result<&mut TcpStream> {
        if !matches!(self.state, State::Registered(_)) {
            self.tell()?;
        }
        match &mut self.state {
            State::Registered(io) => Ok(io),
            State::Fresh { .. } | State::Lost => Err(lost()),
        }
    }

    #[cold]
    fn tell(&mut self) -> io::Result<()> {
        if let State::Fresh { io, .. } = std::mem::replace(&mut self.state, State::Lost) {
            let told = TcpStream::from_std(io);
            self.state = State::Registered(told.inspect_err(|error| tracing::warn!(%error, "a connection is lost"))?);
        }
        Ok(())
    }

    /// Ready when a read may give something.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.register()?.poll_read_ready(cx)
    }

    /// The same for who only wants to know whether the client has left: on a fresh connection for the second time only,
    /// which the task is woken for a moment later.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let State::Fresh { looked: looked @ false, .. } = &mut self.state {
            *looked = true;
            look_later(cx.waker().clone());
            return Poll::Pending;
        }
        self.poll_readable(cx)
    }

    /// The socket.
    pub fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.state {
            State::Fresh { io, .. } => Ok(io.as_fd()),
            State::Registered(io) => Ok(io.as_fd()),
            State::Lost => Err(lost()),
        }
    }

    /// What is written next may wait for the shutdown that follows it.
    pub fn hold(&mut self) {
        self.held = true;
    }
}

fn lost() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl AsyncRead for Plain {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.register()?).poll_read(cx, buf)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let State::Fresh { io, .. } = &this.state {
            match send(io, bytes, this.held) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
        let held = this.held;
        let io = this.register()?;
        if !held {
            return Pin::new(io).poll_write(cx, bytes);
        }
        loop {
            ready!(io.poll_write_ready(cx))?;
            match io.try_io(Interest::WRITABLE, || send(io, bytes, true)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.held {
            let _ = SockRef::from(&self.fd()?).set_tcp_cork(true);
        }
        if let State::Fresh { io, .. } = &mut self.state {
            match io.write_vectored(pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
        Pin::new(self.register()?).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.fd()?).shutdown(Shutdown::Write))
    }
}

/// Sends what the kernel takes at once; `more`: it may wait for what follows.
fn send(io: &impl AsFd, bytes: &[u8], more: bool) -> io::Result<usize> {
    let flags = if more { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
    Ok(rustix::io::retry_on_intr(|| rustix::net::send(io, bytes, flags))?)
}

thread_local! {
    /// Who is to look again.
    static LOOKING: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// Wakes a task a moment later, together with all others that want to be woken then.
fn look_later(waker: Waker) {
    let first = LOOKING.with_borrow_mut(|waiting| {
        waiting.push(waker);
        waiting.len() == 1
    });
    if first {
        let all = WakeAll;
        tokio::task::spawn_local(async move {
            tokio::time::sleep(LATE).await;
            drop(all);
        });
    }
}

/// Wakes them when it is dropped: then also if the runtime ends first, so that the next one on this thread begins anew.
struct WakeAll;

impl Drop for WakeAll {
    fn drop(&mut self) {
        let waiting = LOOKING.try_with(RefCell::take).unwrap_or_default();
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// A listener's connections, one after the other.
pub struct Arrivals {
    listener: AsyncFd<std::net::TcpListener>,
}

impl Arrivals {
    /// Of a listener that does not block.
    #[expect(deprecated, reason = "what is deprecated is that any type is taken; this one owns its descriptor")]
    pub fn new(listener: std::net::TcpListener) -> io::Result<Self> {
        Ok(Arrivals { listener: AsyncFd::with_interest(listener, Interest::READABLE)? })
    }

    /// The next one, and who it is from. Cancel safe.
    pub async fn next(&self) -> io::Result<(Plain, SocketAddr)> {
        self.listener.async_io(Interest::READABLE, accept).await
    }
}

/// The next connection of a listener; `WouldBlock` if there is none.
fn accept(listener: &std::net::TcpListener) -> io::Result<(Plain, SocketAddr)> {
    let (io, client) = rustix::net::acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let client = client.and_then(|client| client.try_into().ok()).ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((Plain { state: State::Fresh { io: io.into(), looked: false }, held: false }, client))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::io::Read;
    use tokio::io::AsyncWriteExt;
    use tokio::task::LocalSet;

    /// A client, and its connection as it was accepted.
    async fn connected() -> (std::net::TcpStream, Plain) {
        let listener = super::super::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (plain, from) = Arrivals::new(listener).unwrap().next().await.unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        (client, plain)
    }

    fn is_fresh(plain: &Plain) -> bool {
        matches!(plain.state, State::Fresh { .. })
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_answered_at_once_is_never_waited_for() {
        let answered = async {
            let (mut client, mut plain) = connected().await;
            let mut room = [MaybeUninit::uninit(); 64];
            assert_eq!(plain.receive(&mut room).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            client.write_all(b"question").unwrap();
            assert_eq!(plain.receive(&mut room).unwrap(), b"question");
            assert!(poll_fn(|cx| Poll::Ready(plain.poll_end(cx))).await.is_pending());
            plain.hold();
            plain.write_all(b"answer").await.unwrap();
            plain.shutdown().await.unwrap();
            assert!(is_fresh(&plain));
            drop(plain);
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"answer");
        };
        LocalSet::new().run_until(answered).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_leaves_before_it_is_answered_is_noticed_a_moment_later() {
        let left = async {
            let (client, mut plain) = connected().await;
            drop(client);
            let before = tokio::time::Instant::now();
            poll_fn(|cx| plain.poll_end(cx)).await.unwrap();
            assert!(!is_fresh(&plain) && before.elapsed() <= 2 * LATE);
        };
        LocalSet::new().run_until(left).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_ended_before_it_looked_again_keeps_nobody_else_from_it() {
        let ended = async {
            let (_client, mut plain) = connected().await;
            assert!(poll_fn(|cx| Poll::Ready(plain.poll_end(cx))).await.is_pending());
        };
        LocalSet::new().run_until(ended).await;
        let left = async {
            let (client, mut plain) = connected().await;
            drop(client);
            tokio::time::timeout(10 * LATE, poll_fn(|cx| plain.poll_end(cx))).await.unwrap().unwrap();
        };
        LocalSet::new().run_until(left).await;
    }

    #[tokio::test]
    async fn what_the_kernel_does_not_take_at_once_is_waited_for() {
        for held in [false, true] {
            let (mut client, mut plain) = connected().await;
            if held {
                plain.hold();
            }
            // More than both kernels' buffers hold.
            let all = vec![7; 32 << 20];
            let count = all.len();
            let reader = tokio::task::spawn_blocking(move || {
                let mut got = Vec::new();
                client.read_to_end(&mut got).unwrap();
                got.len()
            });
            let pieces = &mut [IoSlice::new(&all[..5]), IoSlice::new(&all[5..1000])];
            let first = poll_fn(|cx| Pin::new(&mut plain).poll_write_vectored(cx, pieces)).await.unwrap();
            plain.write_all(&all[first..]).await.unwrap();
            assert!(!is_fresh(&plain));
            plain.shutdown().await.unwrap();
            assert_eq!(reader.await.unwrap(), count);
        }
    }
}
