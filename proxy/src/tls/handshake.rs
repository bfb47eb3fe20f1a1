//! The handshake of TLS 1.3: rustls decides, this moves its bytes, and takes the keys over at the end.

use super::{Session, Tls};
use bytes::BytesMut;
use gossamer_api::defaults;
use gossamer_api::process::tls::check_resumed;
use gossamer_engine::buffer::{Block, Size};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ServerConfig};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Accepts TLS on `io`, of which `first` was read already, within [`defaults::HANDSHAKE_TIMEOUT`]. `see` looks at what
/// was agreed on. Errors of TLS carry [`rustls::Error`].
pub async fn accept<T>(
    config: Arc<ServerConfig>,
    io: TcpStream,
    first: BytesMut,
    see: impl FnOnce(&CommonState) -> T,
) -> io::Result<(Tls, T)> {
    let connection = UnbufferedServerConnection::new(config).map_err(failed)?;
    within(server(connection, io, first, see)).await
}

/// Connects TLS over `io` to the server with the certificate of `name`, as [`accept`].
pub async fn connect<T>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: TcpStream,
    see: impl FnOnce(&CommonState) -> T,
) -> io::Result<(Tls, T)> {
    let connection = UnbufferedClientConnection::new(config, name).map_err(failed)?;
    within(client(connection, io, BytesMut::new(), see)).await
}

/// The same for both sides: their states are types of their own.
macro_rules! handshake {
    ($name:ident, $connection:ty, $side:path) => {
        async fn $name<T>(
            mut connection: $connection,
            mut io: TcpStream,
            first: BytesMut,
            see: impl FnOnce(&CommonState) -> T,
        ) -> io::Result<(Tls, T)> {
            let mut input = received(&first)?;
            drop(first);
            let mut output = Vec::new();
            let mut early = Vec::new();
            let mut ended = false;
            loop {
                let UnbufferedStatus { discard, state } = connection.process_tls_records(input.used());
                let next = match state {
                    Ok(ConnectionState::EncodeTlsData(state)) => {
                        encode(state, &mut output)?;
                        Next::Again
                    }
                    Ok(ConnectionState::TransmitTlsData(state)) => {
                        io.write_all(&output).await?;
                        output.clear();
                        state.done();
                        Next::Again
                    }
                    // The peer was so quick that its first data, or all of it, came with the end of the handshake.
                    Ok(ConnectionState::ReadTraffic(mut state)) => {
                        while let Some(record) = state.next_record() {
                            early.extend_from_slice(record.map_err(failed)?.payload);
                        }
                        Next::Again
                    }
                    Ok(ConnectionState::PeerClosed) => {
                        ended = true;
                        Next::Again
                    }
                    Ok(ConnectionState::BlockedHandshake) => Next::Read,
                    Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
                    Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) => Next::Failed(error),
                };
                input.start += discard;
                match next {
                    Next::Again => {}
                    Next::Read => read(&mut io, &mut input).await?,
                    Next::Done => break,
                    Next::Failed(error) => {
                        // The peer is told why, if it can be. Only what waits to be sent: rustls must not look for
                        // more in a buffer that it remembers otherwise.
                        while connection.wants_write()
                            && let Ok(ConnectionState::EncodeTlsData(state)) =
                                connection.process_tls_records(&mut []).state
                        {
                            encode(state, &mut output)?;
                        }
                        let _ = io.try_write(&output);
                        return Err(failed(error));
                    }
                }
            }
            check_resumed(&connection)?;
            let seen = see(&connection);
            let (secrets, session) = connection.dangerous_into_kernel_connection().map_err(failed)?;
            let tls = Tls::new(io, $side(session), secrets, input, early, ended)
                .ok_or_else(|| io::Error::other("a cipher that this proxy does not have"))?;
            Ok((tls, seen))
        }
    };
}

handshake!(server, UnbufferedServerConnection, Session::Server);
handshake!(client, UnbufferedClientConnection, Session::Client);

/// What a handshake does after a state of rustls.
enum Next {
    Again,
    Read,
    Done,
    Failed(rustls::Error),
}

/// What was read before the handshake.
fn received(first: &[u8]) -> io::Result<Block> {
    let size = [Size::Small, Size::Large].into_iter().find(|size| size.bytes() > first.len());
    let mut input = Block::take(size.ok_or_else(too_long)?);
    input.all()[..first.len()].copy_from_slice(first);
    input.end = first.len();
    Ok(input)
}

fn encode<Data>(mut state: EncodeTlsData<'_, Data>, output: &mut Vec<u8>) -> io::Result<()> {
    let at = output.len();
    let mut room = 512;
    loop {
        output.resize(at + room, 0);
        match state.encode(&mut output[at..]) {
            Ok(written) => {
                output.truncate(at + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(needed)) if needed.required_size > room => room = needed.required_size,
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// Reads more of a flight. One that does not fit into four records is no handshake of the mesh.
async fn read(io: &mut TcpStream, input: &mut Block) -> io::Result<()> {
    if input.start > 0 {
        let (start, end) = (input.start, input.end);
        input.all().copy_within(start..end, 0);
        (input.start, input.end) = (0, end - start);
    }
    if input.room().is_empty() {
        let mut larger = Block::take(Size::Large);
        if input.capacity() >= larger.capacity() {
            return Err(too_long());
        }
        larger.all()[..input.end].copy_from_slice(input.used());
        larger.end = input.end;
        *input = larger;
    }
    match io.read(input.room()).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            input.end += count;
            Ok(())
        }
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a handshake longer than 64 KiB")
}

fn failed(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(defaults::HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timed out"))?
}
