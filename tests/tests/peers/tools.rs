//! Finds or builds the peers' programs.
//!
//! **Invariant:** under CI a peer that is missing fails its test; elsewhere it is skipped, and said so.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Mutex;
use tokio::process::Command;

/// A program of the Go module, or `None` where it can't be had.
pub(crate) fn built(name: &str, package: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("MESH_PEERS_BIN") {
        let path = Path::new(&folder).join(name);
        assert!(path.is_file(), "{} is missing, and MESH_PEERS_BIN says that it is there", path.display());
        return Some(path);
    }
    let Some(go) = installed("go") else { return missing(name, "it is built with go, which is not installed") };
    let path = gossamer_tests::mesh::program().with_file_name("peers").join(name);
    // One at a time: they share most of what has to be compiled.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _turn = BUILDING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let mut build = std::process::Command::new(go);
    build.current_dir(module).args(["build", "-buildvcs=false", "-o"]).arg(&path).arg(package);
    let built = build.output().unwrap();
    match built.status.success() {
        true => Some(path),
        false => missing(name, &String::from_utf8_lossy(&built.stderr)),
    }
}

/// A program of the system, or `None`.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Fails under CI; otherwise says that nothing was tested.
pub(crate) fn missing(name: &str, why: &str) -> Option<PathBuf> {
    assert!(std::env::var_os("CI").is_none(), "{name} can't be had: {why}");
    skipped(name, why);
    None
}

/// Not by a macro, whose words are only shown when a test fails.
pub(crate) fn skipped(name: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {name}: {why}");
}

/// Runs a program to its end and shows what it said if it fails.
pub(crate) async fn run(command: &mut Command) -> String {
    let shown = format!("{:?}", command.as_std());
    let output = command.kill_on_drop(true).output();
    let Output { status, stdout, stderr } = tokio::time::timeout(DEADLINE, output)
        .await
        .unwrap_or_else(|_| panic!("{shown}: still running after {DEADLINE:?}"))
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{shown}: {status}\n{out}\n{err}");
    out.into_owned()
}

/// Peers run many cases in one go.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(120);
