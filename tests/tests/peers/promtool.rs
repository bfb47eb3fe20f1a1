//! `promtool check metrics`: names, types, help texts and units as Prometheus wants them.
//!
//! One name it would like to be another; it is Linkerd's, and dashboards and alerts count on it.

use crate::tools;
use gossamer_tests::mesh::Mesh;
use gossamer_tests::{app, client};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const LINKERDS: &str = "response_latency_ms metric names should not contain abbreviated units";

#[tokio::test]
async fn promtool_is_content_with_a_scrape() {
    let found = tools::installed("promtool");
    let Some(promtool) = found.or_else(|| tools::missing("promtool", "it is in the package prometheus")) else {
        return;
    };
    let mesh = Mesh::start().await;
    let web = mesh.workload("web").serve(8080, app::http("web").handler()).serve(5000, app::echo()).start().await;
    let shop = mesh.workload("shop").calls("web:8080").calls("nobody:80").start().await;
    assert_eq!(client::get(shop.to("web:8080"), "web", "/status/404").await.status, 404);
    let _ = client::try_get(shop.to("nobody:80"), "nobody", "/").await;
    for proxy in [&web, &shop] {
        let text = proxy.metrics().await.text;
        assert!(text.contains("request_total{"), "there is something to check:\n{text}");
        let mut check = Command::new(&promtool);
        check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = check.kill_on_drop(true).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let problems: Vec<_> = said.lines().filter(|line| !line.is_empty() && *line != LINKERDS).collect();
        // 0: content, 3: opinions about names; anything else: it could not read the text.
        assert!(matches!(output.status.code(), Some(0 | 3)) && problems.is_empty(), "{}: {said}", output.status);
    }
}
