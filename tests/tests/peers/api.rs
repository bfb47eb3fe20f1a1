//! Linkerd's public proto alone, in another language: protoc's Go code calls every method of the three services and of
//! the proxy's tap, with a certificate that it has asked for itself.

use crate::tools;
use gossamer_tests::app;
use gossamer_tests::mesh::{Mesh, identity_of, service_identity};
use tokio::process::Command;

#[tokio::test]
async fn a_client_of_the_public_proto_can_call_every_method() {
    let Some(api) = tools::built("api", "./api") else { return };
    let mesh = Mesh::start().await;
    let web = mesh.workload("web").serve(8080, app::http("web").handler()).start().await;
    let shop = mesh.workload("shop").calls("web:8080").start().await;
    let service = mesh.standalone.resolve("web", "test").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let anchors = folder.path().join("anchors.pem");
    std::fs::write(&anchors, mesh.anchors()).unwrap();
    let (name, token) = (identity_of("web").to_string(), mesh.token("web"));
    let [identity, destination] = mesh.control_plane().map(|addr| addr.to_string());
    let own = [service_identity("gossamer-identity"), service_identity("gossamer-destination")];
    let [identity_name, destination_name] = own.map(|name| name.to_string());
    let workload = serde_json::json!({ "ns": "test", "pod": web.name }).to_string();
    let (target, tap, url) = (format!("{service}:8080"), shop.tap().to_string(), shop.to("web:8080").to_string());
    let url = format!("http://{url}/bytes/7");
    let said = Command::new(&api)
        .arg(&anchors)
        .args([name.as_str(), token.secret(), workload.as_str(), &identity, &identity_name])
        .args([&destination, &destination_name, "web.test.svc.cluster.local:8080", &target, &tap, &url])
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{out}\n{err}");
    for expected in [
        format!("Identity.Certify {name}"),
        format!("Destination.Get {name}"),
        "Destination.GetProfile web.test.svc.cluster.local".to_string(),
        "OutboundPolicies.Get web".to_string(),
        "OutboundPolicies.Watch web".to_string(),
        "InboundServerPolicies.GetPort ".to_string(),
        "InboundServerPolicies.WatchPort ".to_string(),
        "Tap.Observe [/bytes/7 200 end]".to_string(),
    ] {
        assert!(out.lines().any(|line| line.starts_with(&expected)), "{expected:?} in {out}");
    }
}
