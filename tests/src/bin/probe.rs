//! A program to be meshed in namespaces: small servers and clients, blocking, which know nothing of
//! the mesh. `probe http|greeter|count|reset PORT`, `probe fail STATUS PORT`, `probe get|intercepted HOST PORT 4|6`,
//! `probe greet|half-close|broken|answer HOST PORT`,
//! `probe load new|kept HOST PORT PATH RATE SECONDS [HEADER: VALUE]...` (SECONDS `-`: until standard input ends), `probe sleep [SECONDS]`,
//! `probe sniff WORD...`, `probe processes|memory NAME`, `probe kill NAME VARIABLE=VALUE`.

use serde_json::json;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["http", port] => serve(port.parse()?, head),
        ["fail", status, port] => fail(status.parse()?, port.parse()?),
        ["greeter", port] => serve(port.parse()?, greet_back),
        ["count", port] => serve(port.parse()?, count),
        ["reset", port] => serve(port.parse()?, reset),
        ["half-close", host, port] => half_close(host, port.parse()?),
        ["broken", host, port] => broken(host, port.parse()?),
        ["get", host, port, version] => get(host, port.parse()?, version == "6"),
        ["intercepted", host, port, version] => intercepted(host, port.parse()?, version == "6"),
        ["greet", host, port] => greet(host, port.parse()?),
        ["answer", host, port] => answer(host, port.parse()?),
        ["load", how, host, port, path, rate, seconds, ref headers @ ..] => {
            let port = port.parse()?;
            let addr = lookup(host, port)?;
            let target = Target { host, port, addr, path, headers };
            let end = match seconds {
                "-" => End::Told(input_ended()),
                seconds => End::After(Duration::from_secs_f64(seconds.parse()?)),
            };
            load(&target, how == "kept", rate.parse()?, end)
        }
        ["sleep", seconds] => sleep(Duration::from_secs_f64(seconds.parse()?)),
        ["sleep"] => sleep(Duration::MAX),
        ["sniff", ref words @ ..] => sniff(words),
        ["processes", name] => processes(name, statuses),
        ["memory", name] => processes(name, memory),
        ["kill", name, variable] => processes(name, |pid| kill(pid, variable)),
        _ => Err("see the source".into()),
    }
}

/// A container's first process has no default action for signals, so it ends by being killed.
fn sleep(time: Duration) -> Result<(), Box<dyn Error>> {
    std::thread::sleep(time);
    Ok(())
}

/// The IPv6 listener takes IPv4 as well.
fn serve(
    port: u16,
    handler: impl Fn(TcpStream) -> std::io::Result<()> + Copy + Send + 'static,
) -> Result<(), Box<dyn Error>> {
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

/// Answers everything with a status, and its name as kubetool's server says it.
fn fail(status: u16, port: u16) -> Result<(), Box<dyn Error>> {
    serve(port, move |io| {
        let (mut reader, mut line) = (BufReader::new(io.try_clone()?), String::new());
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        let body = json!({ "name": std::env::var("HOSTNAME").unwrap_or_default() }).to_string();
        let head = format!("HTTP/1.1 {status} Failed\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        (&io).write_all((head + &body).as_bytes())
    })
}

/// Speaks first, then echoes a line.
fn greet_back(mut io: TcpStream) -> std::io::Result<()> {
    io.write_all(b"220 ready\r\n")?;
    let mut line = String::new();
    BufReader::new(io.try_clone()?).read_line(&mut line)?;
    io.write_all(line.as_bytes())
}

/// Answers with the number of bytes, once there are no more.
fn count(mut io: TcpStream) -> std::io::Result<()> {
    let bytes = std::io::copy(&mut io, &mut std::io::sink())?;
    io.write_all(format!("{bytes} bytes").as_bytes())
}

/// Breaks the connection at the first byte.
fn reset(mut io: TcpStream) -> std::io::Result<()> {
    io.read_exact(&mut [0])?;
    socket2::SockRef::from(&io).set_linger(Some(Duration::ZERO))
}

/// Sends a megabyte and ends its own direction only; prints what comes back.
fn half_close(host: &str, port: u16) -> Result<(), Box<dyn Error>> {
    let (mut io, _) = connect(host, port, false)?;
    io.write_all(&vec![0x7f; 1_000_000])?;
    io.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    io.read_to_string(&mut answer)?;
    println!("{answer}");
    Ok(())
}

/// Succeeds if the other end breaks the connection instead of ending it.
fn broken(host: &str, port: u16) -> Result<(), Box<dyn Error>> {
    let (mut io, _) = connect(host, port, false)?;
    io.write_all(&[0x7f])?;
    match io.read(&mut [0]) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// Says back whatever the server says, on one connection for as long as that lasts.
fn answer(host: &str, port: u16) -> Result<(), Box<dyn Error>> {
    let (io, _) = connect(host, port, false)?;
    io.set_read_timeout(None)?;
    std::io::copy(&mut &io, &mut &io)?;
    Ok(())
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

/// When a load is over.
enum End {
    After(Duration),
    Told(Arc<AtomicBool>),
}

/// True once standard input has ended.
fn input_ended() -> Arc<AtomicBool> {
    let ended = Arc::<AtomicBool>::default();
    let tell = ended.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        tell.store(true, Ordering::Relaxed);
    });
    ended
}

/// What is asked for.
struct Target<'a> {
    host: &'a str,
    port: u16,
    addr: SocketAddr,
    path: &'a str,
    headers: &'a [&'a str],
}

/// Once, and again if need be: what is tested is the mesh, not the cluster's DNS.
fn lookup(host: &str, port: u16) -> Result<SocketAddr, Box<dyn Error>> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match (host, port).to_socket_addrs().map(|mut addresses| addresses.next()) {
            Ok(Some(addr)) => return Ok(addr),
            other if Instant::now() > deadline => return Err(format!("{host}: {other:?}").into()),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Asks at a steady rate and prints what came of it as JSON: how many answers of each status (0: none at all), how many
/// of each server (the member `name` of the answer), how long the slowest took, the first few failures.
fn load(target: &Target<'_>, kept: bool, rate: f64, end: End) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let (mut statuses, mut servers) = (BTreeMap::<u16, u64>::new(), BTreeMap::<String, u64>::new());
    let (mut failures, mut slowest) = (Vec::new(), Duration::ZERO);
    let mut connection = None;
    for n in 0.. {
        let over = match &end {
            End::After(time) => n >= (rate * time.as_secs_f64()) as u64,
            End::Told(ended) => ended.load(Ordering::Relaxed),
        };
        if over {
            break;
        }
        let due = Duration::from_secs_f64(n as f64 / rate);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        let began = Instant::now();
        let answer = ask(target, &mut connection, kept);
        slowest = slowest.max(began.elapsed());
        let (status, text) = answer.unwrap_or_else(|error| (0, error.to_string()));
        *statuses.entry(status).or_default() += 1;
        if status != 200 && failures.len() < 5 {
            failures.push(format!("{:.1} s: {status}: {}", began.duration_since(start).as_secs_f64(), text.trim()));
        }
        if let Some(name) = text.split("\"name\":\"").nth(1).and_then(|rest| rest.split('"').next()) {
            *servers.entry(name.to_string()).or_default() += 1;
        }
    }
    let statuses: BTreeMap<String, u64> = statuses.into_iter().map(|(status, n)| (status.to_string(), n)).collect();
    let slowest_ms = slowest.as_millis() as u64;
    println!("{}", json!({ "statuses": statuses, "servers": servers, "slowest_ms": slowest_ms, "failures": failures }));
    Ok(())
}

/// One request; on the connection of the last one if it is still there.
fn ask(target: &Target<'_>, kept: &mut Option<TcpStream>, keep: bool) -> Result<(u16, String), Box<dyn Error>> {
    let io = match kept.take() {
        Some(io) => io,
        None => {
            let io = TcpStream::connect_timeout(&target.addr, Duration::from_secs(10))?;
            io.set_read_timeout(Some(Duration::from_secs(10)))?;
            io.set_nodelay(true)?;
            io
        }
    };
    let mut head = format!("GET {} HTTP/1.1\r\nhost: {}:{}\r\n", target.path, target.host, target.port);
    if !keep {
        head += "connection: close\r\n";
    }
    head.extend(target.headers.iter().map(|header| format!("{header}\r\n")));
    (&io).write_all((head + "\r\n").as_bytes())?;
    let mut reader = BufReader::new(io.try_clone()?);
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line)? > 2 {
        head += &line.to_ascii_lowercase();
        line.clear();
    }
    let status = head.split(' ').nth(1).ok_or("closed without an answer")?.parse()?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = Vec::new();
    match length {
        Some(length) => drop(reader.take(length.trim().parse()?).read_to_end(&mut body)?),
        None => drop(reader.read_to_end(&mut body)?),
    }
    if keep && length.is_some() && !head.contains("connection: close") {
        *kept = Some(io);
    }
    let reason = head.lines().find(|line| line.starts_with("l5d-proxy-error")).unwrap_or_default();
    Ok((status, format!("{reason} {}", String::from_utf8_lossy(&body))))
}

/// Prints each word once that is in a packet on any link of this network namespace. Needs NET_RAW. `_` stands for `-`:
/// the words as they are given here are in this pod's object, which the API server and etcd send each other.
fn sniff(words: &[&str]) -> Result<(), Box<dyn Error>> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, recv, socket};
    let flags = SockFlag::SOCK_CLOEXEC;
    let packets = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    let mut left: Vec<_> = words.iter().map(|word| word.replace('_', "-")).collect();
    let mut packet = vec![0; 65536];
    loop {
        let size = recv(std::os::fd::AsRawFd::as_raw_fd(&packets), &mut packet, nix::sys::socket::MsgFlags::empty())?;
        left.retain(|word| {
            let heard = packet[..size].windows(word.len()).any(|window| window == word.as_bytes());
            if heard {
                println!("{word}");
            }
            !heard
        });
    }
}

/// Prints something about every process of a program.
fn processes(name: &str, tell: impl Fn(u32) -> std::io::Result<String>) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let program = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let program = String::from_utf8_lossy(program.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
        if program.rsplit('/').next() == Some(name) {
            println!("{}\n", tell(pid)?.trim());
        }
    }
    Ok(())
}

/// Of all threads.
fn statuses(pid: u32) -> std::io::Result<String> {
    let mut all = String::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        all += &std::fs::read_to_string(thread?.path().join("status"))?;
        all.push('\n');
    }
    Ok(all)
}

/// Ends it, if its environment has this variable.
fn kill(pid: u32, variable: &str) -> std::io::Result<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ"))?;
    if !environment.split(|byte| *byte == 0).any(|one| one == variable.as_bytes()) {
        return Ok(String::new());
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::SIGKILL)?;
    Ok(format!("killed {pid}"))
}

/// In MiB.
fn memory(pid: u32) -> std::io::Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let words = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    let role = String::from_utf8_lossy(words.split(|byte| *byte == 0).nth(1).unwrap_or_default()).into_owned();
    let mib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.trim().split(' ').next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    };
    let (rss, anonymous, pss) = (mib("Rss:"), mib("Anonymous:"), mib("Pss:"));
    Ok(format!("{role} RSS {rss:.1} anonymous {anonymous:.1} PSS {pss:.1} MiB"))
}
