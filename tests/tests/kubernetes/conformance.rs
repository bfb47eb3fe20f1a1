//! Gateway API's own mesh conformance suite, with short timeouts; `tests/conformance/README.md` says what it is.

use gossamer_tests::cluster::{Cluster, text, tools};

/// All 23 tests. Where the suite's images and CRDs can't be had (they lie beside the cluster's scripts) it says so.
pub(crate) fn gateway_api_conformance(cluster: &Cluster) {
    let prepare = tools().map(|tools| tools.with_file_name("gateway-conformance").join("prepare"));
    let Some(prepare) = prepare.filter(|prepare| prepare.is_file()) else {
        assert!(std::env::var_os("CI").is_none(), "under CI the conformance suite is not skipped");
        println!("SKIPPED: no ../shared/gateway-conformance, which prepares a cluster for the suite");
        return;
    };
    // The cluster's name is its folder's.
    let script = format!(
        "export K8S_NAME=$(basename \"$(dirname \"$(dirname \"$KUBECONFIG\")\")\")\n{} >&2\nFAST=1 tests/conformance/run",
        prepare.display()
    );
    let output = cluster.shell(&script);
    let said = text(&output.stdout);
    let failed: Vec<_> = said.lines().filter(|line| line.trim_start().starts_with("--- FAIL")).collect();
    assert!(output.status.success(), "{failed:#?}\n{said}\n{}", text(&output.stderr));
    let passed = said.lines().filter(|line| line.starts_with("    --- PASS: TestMesh/Mesh")).count();
    assert!(passed >= 23, "{passed} of 23 ran\n{said}");
}
