//! An HTTP/2 server without TLS that answers every request with its own content: for h2spec and for load generators.
//!
//! `cargo run -p gossamer-engine --example h2_echo -- 127.0.0.1:8080`, then `h2spec --strict -h 127.0.0.1 -p 8080`.

use bytes::Bytes;
use gossamer_engine::h2::{self, Stream};
use gossamer_engine::{Error, RequestHead, ResponseHead};
use tokio::net::TcpListener;
use tokio::task::{LocalSet, spawn_local};

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(&address).await?;
        eprintln!("listening on {}", listener.local_addr()?);
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let (driver, mut accept) = h2::server(socket, Bytes::new(), h2::Config::default());
            spawn_local(async move {
                if let Err(error) = driver.await {
                    eprintln!("{error}");
                }
            });
            spawn_local(async move {
                while let Some((head, stream)) = accept.accept().await {
                    spawn_local(echo(head, stream));
                }
            });
        }
    })
}

async fn echo(request: RequestHead, mut stream: Stream) -> Result<(), Error> {
    let mut response = ResponseHead::new(200);
    response.headers.append("content-type", request.headers.get("content-type").unwrap_or(b"text/plain"));
    if stream.is_end_stream() {
        stream.send_response(&response, false)?;
        return stream.send_data(Bytes::from_static(b"hello\n"), true);
    }
    stream.send_response(&response, false)?;
    while let Some(data) = stream.data().await {
        stream.capacity().await?;
        stream.send_data(data?, false)?;
    }
    match stream.take_trailers() {
        Some(trailers) => stream.send_trailers(&trailers),
        None => stream.send_data(Bytes::new(), true),
    }
}
