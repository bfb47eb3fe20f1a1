//! Gateway API's own mesh conformance suite; `tests/conformance/README.md` says what it is. With short timeouts, but for a
//! report: `MESH_K8S_REPORT=FILE` has it written there, with the suite's own.

use gossamer_tests::cluster::{Cluster, ok, text, tools};

/// All 22 tests of the mesh. Where the suite's images and CRDs can't be had (they lie beside the cluster's scripts) it says so.
pub(crate) fn gateway_api_conformance(cluster: &Cluster) {
    let prepare = tools().map(|tools| tools.with_file_name("gateway-conformance").join("prepare"));
    let Some(prepare) = prepare.filter(|prepare| prepare.is_file()) else {
        assert!(std::env::var_os("CI").is_none(), "under CI the conformance suite is not skipped");
        println!("SKIPPED: no ../shared/gateway-conformance, which prepares a cluster for the suite");
        return;
    };
    let how = match std::env::var("MESH_K8S_REPORT") {
        Ok(file) => format!("tests/conformance/run --report-output={file}"),
        Err(_) => "FAST=1 tests/conformance/run".to_string(),
    };
    // The cluster's name is its folder's. What prepares it reads the suite's module where Go keeps it, and does not fetch it.
    let script = format!(
        "(cd tests/conformance && go mod download sigs.k8s.io/gateway-api/conformance) >&2
        export K8S_NAME=$(basename \"$(dirname \"$(dirname \"$KUBECONFIG\")\")\")\n{} >&2\n{how}",
        prepare.display()
    );
    let output = cluster.shell(&script);
    // What it brought goes again, so that `uninstall` has only ours to remove. Gateway API's definitions are its own by now,
    // and ours come back.
    let clean = "kubectl get ns -o name | { grep gateway-conformance || true; } | xargs -r kubectl delete --wait=false
        kubectl delete crd -l '!app.kubernetes.io/part-of' --ignore-not-found
        kubectl delete validatingadmissionpolicies,validatingadmissionpolicybindings --all
        meshctl upgrade | kubectl apply -f -";
    ok(cluster.shell(clean));
    let said = text(&output.stdout);
    let failed: Vec<_> = said.lines().filter(|line| line.trim_start().starts_with("--- FAIL")).collect();
    assert!(output.status.success(), "{failed:#?}\n{said}\n{}", text(&output.stderr));
    let passed = said.lines().filter(|line| line.starts_with("    --- PASS: TestMesh/Mesh")).count();
    assert!(passed >= 22, "{passed} of 22 ran\n{said}");
}
