//! A program to be meshed in namespaces: small servers and clients on the standard library alone, which know nothing of
//! the mesh. `probe http|greeter PORT`, `probe get|intercepted HOST PORT 4|6`, `probe greet HOST PORT`.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["http", port] => serve(port.parse()?, head),
        ["greeter", port] => serve(port.parse()?, greet_back),
        ["get", host, port, version] => get(host, port.parse()?, version == "6"),
        ["intercepted", host, port, version] => intercepted(host, port.parse()?, version == "6"),
        ["greet", host, port] => greet(host, port.parse()?),
        _ => Err("see the source".into()),
    }
}

type Handler = fn(TcpStream) -> std::io::Result<()>;

/// The IPv6 listener takes IPv4 as well.
fn serve(port: u16, handler: Handler) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    for io in listener.incoming().flatten() {
        std::thread::spawn(move || handler(io));
    }
    Ok(())
}

/// Answers with the head of the request.
fn head(io: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(io.try_clone()?);
    let (mut text, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line)? > 2 {
        text += &line;
        line.clear();
    }
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", text.len());
    (&io).write_all((head + &text).as_bytes())
}

/// Speaks first, then echoes a line.
fn greet_back(mut io: TcpStream) -> std::io::Result<()> {
    io.write_all(b"220 ready\r\n")?;
    let mut line = String::new();
    BufReader::new(io.try_clone()?).read_line(&mut line)?;
    io.write_all(line.as_bytes())
}

fn connect(host: &str, port: u16, v6: bool) -> Result<(TcpStream, SocketAddr), Box<dyn Error>> {
    let addr = (host, port).to_socket_addrs()?.find(|addr| addr.is_ipv6() == v6).ok_or("no such address")?;
    let io = TcpStream::connect_timeout(&addr, Duration::from_secs(5))?;
    io.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok((io, addr))
}

/// Prints the address and the answer.
fn get(host: &str, port: u16, v6: bool) -> Result<(), Box<dyn Error>> {
    let (mut io, addr) = connect(host, port, v6)?;
    io.write_all(b"GET / HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    io.read_to_string(&mut answer)?;
    println!("{}\n{answer}", addr.ip());
    if answer.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(answer.into()) }
}

/// Succeeds if a request that no proxy lets pass is answered by one.
fn intercepted(host: &str, port: u16, v6: bool) -> Result<(), Box<dyn Error>> {
    let (mut io, _) = connect(host, port, v6)?;
    io.write_all(b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n")?;
    let mut answer = String::new();
    io.read_to_string(&mut answer)?;
    if answer.contains("l5d-proxy-error: bad-request") { Ok(()) } else { Err(answer.into()) }
}

/// Prints the seconds until the server's greeting.
fn greet(host: &str, port: u16) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let (io, _) = connect(host, port, false)?;
    let mut reader = BufReader::new(io.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let took = start.elapsed();
    (&io).write_all(b"hello\n")?;
    let mut echo = String::new();
    reader.read_line(&mut echo)?;
    if (line.as_str(), echo.as_str()) != ("220 ready\r\n", "hello\n") {
        return Err(format!("{line:?} {echo:?}").into());
    }
    println!("{}", took.as_secs_f64());
    Ok(())
}
