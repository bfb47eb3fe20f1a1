//! Whether a mesh on a cluster is well: findings, each with what is wrong and what to do.
//!
//! [`cluster`] is what the mesh needs of its cluster, [`control_plane`] its own parts, [`data_plane`] the proxies. Only
//! reads, but for a pod and a policy that are made in the API server's mind alone (dry run), to see that the webhook answers.
//!
//! **Invariant:** one that can't be found out is a problem too, never silently fine.

pub mod cluster;
pub mod control_plane;
pub mod data_plane;
mod trust;

use crate::cluster::Cluster;
use crate::error::{CommandError, Result};
use crate::output::{Format, paint};
use serde_json::json;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

/// One line of the report.
pub struct Finding {
    /// What it belongs to.
    pub category: &'static str,
    /// What should be true.
    pub what: String,
    /// What is wrong, and what to do.
    pub problem: Option<(String, String)>,
    /// The mesh works all the same.
    pub warning: bool,
}

/// Findings of one category.
pub struct Findings {
    category: &'static str,
    all: Vec<Finding>,
}

impl Findings {
    /// None yet.
    pub fn of(category: &'static str) -> Self {
        Findings { category, all: Vec::new() }
    }

    /// Adds one. The problem: what is wrong, and what to do.
    pub fn add(&mut self, what: impl Into<String>, problem: Option<(String, impl Into<String>)>) {
        let problem = problem.map(|(problem, hint)| (problem, hint.into()));
        self.all.push(Finding { category: self.category, what: what.into(), problem, warning: false });
    }

    /// Adds one that does not fail the check.
    pub fn warn(&mut self, what: impl Into<String>, problem: Option<(String, impl Into<String>)>) {
        self.add(what, problem);
        if let Some(last) = self.all.last_mut() {
            last.warning = true;
        }
    }

    /// True when nothing has failed.
    pub fn is_fine(&self) -> bool {
        self.all.iter().all(Finding::is_fine)
    }

    /// What was found.
    pub fn into_vec(self) -> Vec<Finding> {
        self.all
    }
}

impl Finding {
    fn is_fine(&self) -> bool {
        self.problem.is_none() || self.warning
    }
}

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only what is needed before an installation.
    pub pre: bool,
    /// Proxies of this namespace only.
    pub namespace: Option<String>,
    /// How long the control plane may take to become ready.
    pub wait: Duration,
}

/// Looks at all of it; again and again until the control plane is ready or `wait` is over.
pub async fn check(cluster: &Cluster, scope: &Scope) -> Vec<Finding> {
    let deadline = Instant::now() + scope.wait;
    let mut told = false;
    loop {
        let first = cluster::check(cluster, scope.pre).await;
        if scope.pre || !first.is_fine() {
            return first.into_vec();
        }
        let second = control_plane::check(cluster).await;
        if second.is_fine() || Instant::now() >= deadline {
            let third = data_plane::check(cluster, scope.namespace.as_deref()).await;
            return [first, second, third].into_iter().flat_map(Findings::into_vec).collect();
        }
        if !told && std::io::stderr().is_terminal() {
            told = true;
            eprintln!("waiting for the control plane, at most {} s", scope.wait.as_secs());
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// A certificate is renewed after 70 % of a day; with less than this left, in seconds, renewal has failed for hours.
pub(crate) const CERTIFICATE_LEFT: i64 = 3 * 3600;
/// Between two looks; a look costs some ten requests.
const ROUND: Duration = Duration::from_millis(250);

/// Prints them; the exit code says whether all is well.
pub fn report(findings: &[Finding], format: Format) -> Result<ExitCode> {
    let failed = findings.iter().filter(|finding| !finding.is_fine()).count();
    if format == Format::Json {
        let one = |f: &Finding| {
            let (error, hint) = f.problem.clone().unzip();
            let (ok, warning) = (f.is_fine(), f.warning && f.problem.is_some());
            json!({ "category": f.category, "check": f.what, "ok": ok, "warning": warning, "error": error, "hint": hint })
        };
        let checks: Vec<_> = findings.iter().map(one).collect();
        println!("{:#}", json!({ "ok": failed == 0, "checks": checks }));
    } else {
        let mut category = "";
        for finding in findings {
            if finding.category != category {
                let gap = if category.is_empty() { "" } else { "\n" };
                category = finding.category;
                println!("{gap}{}", paint(category, "1"));
            }
            match &finding.problem {
                None => println!("{} {}", paint("√", "32"), finding.what),
                Some((problem, hint)) => {
                    let mark = if finding.warning { paint("!", "33") } else { paint("×", "31") };
                    println!("{mark} {}\n    {problem}", finding.what);
                    if !hint.is_empty() {
                        println!("    {} {hint}", paint("hint:", "36"));
                    }
                }
            }
        }
    }
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        _ if format == Format::Json => Err(CommandError::problems("")),
        n => Err(CommandError::problems(format!("{n} of {} checks failed", findings.len()))),
    }
}
