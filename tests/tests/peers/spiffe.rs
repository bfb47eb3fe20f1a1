//! go-spiffe takes our certificates for X.509-SVIDs and verifies them, and refuses them from another trust domain.

use crate::tools;
use gossamer_api::defaults::TRUST_DOMAIN;
use gossamer_api::process::tls::to_pem;
use gossamer_tests::mesh::Mesh;
use tokio::process::Command;

#[tokio::test]
async fn go_spiffe_accepts_an_issued_certificate() {
    let Some(svid) = tools::built("svid", "./svid") else { return };
    let mesh = Mesh::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (chain, anchors) = (folder.path().join("chain.pem"), folder.path().join("anchors.pem"));
    let credentials = mesh.credentials("web");
    let text: String = credentials.chain.iter().map(|der| to_pem("CERTIFICATE", der)).collect();
    std::fs::write(&chain, text).unwrap();
    std::fs::write(&anchors, mesh.anchors()).unwrap();
    let said = tools::run(Command::new(&svid).arg(TRUST_DOMAIN).arg(&chain).arg(&anchors)).await;
    assert_eq!(said.trim(), format!("spiffe://{TRUST_DOMAIN}/ns/test/sa/web"));
    let foreign = Command::new(&svid).arg("example.org").arg(&chain).arg(&anchors).output().await.unwrap();
    assert!(!foreign.status.success(), "another domain's bundle must not verify it");
}
