//! Makes the profile that release builds of the proxy are compiled with (`proxy/profile/rustc`): builds a proxy that counts
//! what it executes, sends it through the workloads, and keeps the counts of what was executed often.
//!
//! Functions are found again by compiler and name, their parts by the shape of the code: after a change its function is
//! compiled as if there were no profile, until this is run again.

use crate::control::Control;
use crate::driver::{Driver, Running};
use crate::peers::Certificates;
use crate::{Args, network, rounds, workload};
use anyhow::{Context, Result, ensure};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Milliseconds of each workload. More would only say the same with larger numbers.
const EACH: u64 = 1000;
/// What was executed less often, with tens of thousands of requests in each workload, no request passes through.
const OFTEN: u64 = 1000;

/// The counting proxy's binary; in a target folder of its own, as cargo does not see what sets it apart.
pub(crate) fn build() -> Result<PathBuf> {
    let (cargo, target) = (cargo()?, target()?);
    let counts = counts(&target);
    if counts.exists() {
        std::fs::remove_dir_all(&counts)?;
    }
    std::fs::create_dir_all(&counts)?;
    // The proxy gives its privileges away.
    std::fs::set_permissions(&counts, PermissionsExt::from_mode(0o777))?;
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "-p", "gossamer-proxy", "--target-dir"]).arg(&target);
    ensure!(build.env("GOSSAMER_COUNT_INTO", &counts).status()?.success(), "the counting proxy could not be built");
    Ok(target.join("release/gossamer-proxy"))
}

/// Runs the workloads and writes the profile.
pub(crate) async fn run(args: &Args) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("gossamer-train-").tempdir()?;
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    Certificates::make(folder.path())?;
    let control = Control::start(folder.path()).await?;
    let pair = Running::start(Driver::Gossamer, 1, folder.path(), &control, &network::proxy_binary()).await?;
    for workload in &workload::ALL {
        eprintln!("{}", workload.title);
        rounds::prepared(&control, &pair, workload, args.ms.unwrap_or(EACH)).await?;
    }
    // The counts are written when a program ends by itself.
    pair.end().await?;
    write(&counts(&target()?))
}

/// Makes the profile out of the counts that programs have left in a folder.
fn write(counts: &Path) -> Result<()> {
    let version = output(Command::new("rustc").arg("--version"))?;
    let version = version.split(' ').nth(1).context("rustc --version says no version")?;
    let host = output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let tool = Path::new(output(Command::new("rustc").args(["--print", "sysroot"]))?.trim())
        .join("lib/rustlib")
        .join(host.trim())
        .join("bin/llvm-profdata");
    ensure!(tool.exists(), "{} is missing: rustup component add llvm-tools", tool.display());
    let all = counts.join("all.proftext");
    output(Command::new(&tool).args(["merge", "--text", "--sparse", "--output"]).arg(&all).arg(counts))?;
    let (often, kept) = often(&std::fs::read_to_string(&all)?)?;
    let text = counts.join("often.proftext");
    std::fs::write(&text, often)?;
    let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../proxy/profile/{version}.profdata"));
    output(Command::new(&tool).args(["merge", "--output"]).arg(&profile).arg(&text))?;
    let size = std::fs::metadata(&profile)?.len() >> 10;
    println!("{}: {kept} functions, {size} KiB", profile.canonicalize()?.display());
    println!("cargo does not see that it has changed: `cargo clean --release`, then build and measure.");
    Ok(())
}

/// The functions of LLVM's text format that were executed often, and how many they are.
fn often(all: &str) -> Result<(String, usize)> {
    let start = all.find("\n# Func Hash:").context("no function was counted")?;
    let start = all[..start].rfind('\n').map_or(0, |end| end + 1);
    let (header, functions) = all.split_at(start);
    let counted: Vec<&str> = functions.split("\n\n").filter(|function| most(function) >= OFTEN).collect();
    ensure!(!counted.is_empty(), "nothing was executed often");
    Ok((format!("{header}{}\n", counted.join("\n\n")), counted.len()))
}

/// How often the busiest part of a function was executed.
fn most(function: &str) -> u64 {
    let counters = function.split_once("# Counter Values:\n").map_or("", |(_, counters)| counters);
    counters.lines().map_while(|line| line.parse().ok()).max().unwrap_or(0)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}

fn cargo() -> Result<std::ffi::OsString> {
    std::env::var_os("CARGO").context("this is for `cargo run --release -p gossamer-benches -- train`")
}

/// Where the counting proxy is built.
fn target() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().and_then(Path::parent).context("no target folder")?.join("train"))
}

fn counts(target: &Path) -> PathBuf {
    target.join("counts")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "# IR level Instrumentation Flag\n:ir\n\
        seldom\n# Func Hash:\n1\n# Num Counters:\n2\n# Counter Values:\n999\n0\n\n\
        often\n# Func Hash:\n2\n# Num Counters:\n2\n# Counter Values:\n1\n1000\n\
        # Num Value Kinds:\n1\n# ValueKind = IPVK_MemOPSize:\n1\n# NumValueSites:\n1\n0\n\n";

    #[test]
    fn what_is_executed_often_is_kept_with_the_header() {
        let (text, kept) = often(ALL).unwrap();
        assert_eq!(kept, 1);
        assert!(text.starts_with("# IR level Instrumentation Flag\n:ir\noften\n# Func Hash:\n2\n"), "{text}");
        assert!(!text.contains("seldom") && text.contains("# NumValueSites:\n1\n0\n"), "{text}");
    }

    #[test]
    fn counts_of_nothing_are_an_error() {
        for text in ["", ":ir\n", &ALL.replace("1000", "10")] {
            assert!(often(text).is_err(), "{text}");
        }
    }
}
