//! gRPC's own [interoperability tests](https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md): grpc-go's
//! client calls grpc-go's server through a pair of proxies with mutual TLS between them.

use crate::tools;
use gossamer_tests::mesh::Mesh;
use gossamer_tests::{expect, loopback};
use std::process::Stdio;
use tokio::process::Command;

/// All that the client has, but for those that need an account with a cloud, and `pick_first_unary`: its own server never
/// gives the name that it wants, with or without a mesh.
const CASES: &[&str] = &[
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "rpc_soak",
    // A new connection each time.
    "channel_soak",
    "orca_per_rpc",
    "orca_oob",
];

/// The client's balancer that keeps the load reports which the orca cases look at.
const ORCA: &str = r#"{"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}"#;

#[tokio::test]
async fn grpc_cannot_tell_that_there_is_a_mesh() {
    let client = tools::built("interop-client", "google.golang.org/grpc/interop/client");
    let server = tools::built("interop-server", "google.golang.org/grpc/interop/server");
    let (Some(client), Some(server)) = (client, server) else { return };
    let mesh = Mesh::start().await;
    // It listens on all addresses and can't be told otherwise.
    let port = loopback::quiet_port();
    let mut serve = Command::new(&server);
    let _server = serve.args(["-port", &port.to_string()]).stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let target = format!("echo:{port}");
    let echo = mesh.workload("echo").port(port).start().await;
    let shop = mesh.workload("shop").calls(&target).start().await;
    expect::eventually("the server listens", || async { tokio::net::TcpStream::connect((echo.ip, port)).await.ok() })
        .await;
    let to = shop.to(&target);
    let (host, to_port) = (to.ip().to_string(), to.port().to_string());
    for case in CASES {
        let arguments = ["-server_host", &host, "-server_port", &to_port, "-test_case", case];
        let mut command = Command::new(&client);
        if case.starts_with("orca") {
            command.args(["-service_config_json", ORCA]);
        }
        tools::run(command.args(arguments)).await;
        eprintln!("{case}: ok");
    }
    let metrics = echo.metrics().await;
    let all = metrics.sum("request_total", &[("direction", "inbound")]);
    let secured = metrics.sum("request_total", &[("direction", "inbound"), ("tls", "true")]);
    // timeout_on_sleeping_server may end before its request has left.
    assert!(all == secured && all >= CASES.len() as f64 - 1.0, "{secured} of {all} requests came with mutual TLS");
}
