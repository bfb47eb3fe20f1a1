//! A real server that speaks first: [NATS](https://github.com/nats-io/nats-server) on a port of which nobody has said what
//! it speaks, and its own client. Linkerd's users wait ten seconds here, or declare the port.

use crate::tools;
use gossamer_tests::client::Raw;
use gossamer_tests::expect;
use gossamer_tests::mesh::{Mesh, Proxy};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

const TARGET: &str = "queue:24222";

#[tokio::test]
async fn nats_works_at_once_on_any_port() {
    let server = tools::built("nats-server", "github.com/nats-io/nats-server/v2");
    let (Some(server), Some(client)) = (server, tools::built("nats", "./nats")) else { return };
    let mesh = Mesh::start().await;
    let queue = mesh.workload("queue").port(24222).start().await;
    let shop = mesh.workload("shop").calls(TARGET).impatient().start().await;
    let patient = mesh.workload("patient").calls(TARGET).set("detect-patience", "5s").start().await;
    let mut serve = Command::new(&server);
    serve.args(["--addr", &queue.ip.to_string(), "--port", "24222"]);
    let _server = serve.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    expect::eventually("the server listens", || async { tokio::net::TcpStream::connect((queue.ip, 24222)).await.ok() })
        .await;
    let greeted = async |from: &Proxy| {
        let start = Instant::now();
        let mut raw = Raw::connect(from.to(TARGET)).await;
        let hello = raw.line().await;
        assert!(hello.starts_with("INFO {"), "{hello}");
        start.elapsed()
    };
    let mut all = Vec::new();
    for _ in 0..6 {
        all.push(greeted(&shop).await);
    }
    eprintln!("first line of NATS through two proxies: {all:?}");
    assert!(all[0] < Duration::from_secs(2), "{all:?}");
    let (first, later) = (greeted(&patient).await, greeted(&patient).await);
    let patience = Duration::from_secs(5);
    assert!(first > patience / 2 && later < patience, "once it has spoken first, none waits: {first:?}, {later:?}");
    let said = tools::run(Command::new(&client).arg(shop.to(TARGET).to_string())).await;
    eprintln!("a NATS client connects within {} s and gets its answers", said.trim());
    assert!(said.trim().parse::<f64>().unwrap() < 2.0, "{said}");
    let metrics = queue.metrics().await;
    let opened = [("direction", "inbound"), ("peer", "src"), ("tls", "true")];
    assert!(metrics.sum("tcp_open_total", &opened) >= 4.0, "with mutual TLS: {}", metrics.text);
}
