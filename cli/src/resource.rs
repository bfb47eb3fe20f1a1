//! What a command line names, in kubectl's words: `deploy`, `deploy/web`, `sts db cache`, `web-1`; and on this machine
//! plain names of services and replicas. Pure.

use crate::error::{CommandError, Result};
use crate::place::Workload;
use std::fmt;

/// Kinds by label name in metrics, with what else kubectl calls them.
const KINDS: &[(&str, &[&str])] = &[
    ("deployment", &["deploy", "deployments"]),
    ("statefulset", &["sts", "statefulsets"]),
    ("daemonset", &["ds", "daemonsets"]),
    ("job", &["jobs"]),
    ("cronjob", &["cj", "cronjobs"]),
    ("replicaset", &["rs", "replicasets"]),
    ("pod", &["po", "pods"]),
    ("namespace", &["ns", "namespaces"]),
    ("service", &["svc", "services"]),
    ("route", &["routes", "httproute", "httproutes", "grpcroute", "grpcroutes"]),
];

/// One thing, or all of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// A kind's label name; empty: a workload of any kind.
    pub kind: &'static str,
    /// Empty: all of the kind.
    pub name: String,
}

/// `deployment` for `deploy`.
pub fn kind(text: &str) -> Option<&'static str> {
    let text = text.to_ascii_lowercase();
    KINDS.iter().find(|(kind, others)| *kind == text || others.contains(&text.as_str())).map(|(kind, _)| *kind)
}

/// `deploy` for `deployment`.
pub fn short(kind: &str) -> &str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or(kind, |(kind, others)| match *kind {
        "job" | "route" => kind,
        _ => others[0],
    })
}

/// Reads `KIND`, `KIND NAME...`, `KIND/NAME...` and plain names.
pub fn parse(words: &[String]) -> Result<Vec<Resource>> {
    let mut found = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        if let Some((kind_text, name)) = word.split_once('/') {
            let kind = kind(kind_text).ok_or_else(|| {
                let known: Vec<_> = KINDS.iter().map(|(kind, _)| short(kind)).collect();
                CommandError::usage(format!("{kind_text:?} is no kind of workload"))
                    .hint(format!("kinds are {}", known.join(", ")))
            })?;
            if name.is_empty() {
                return Err(
                    CommandError::usage(format!("{word:?} has no name")).hint(format!("all of them: {kind_text}"))
                );
            }
            found.push(Resource { kind, name: name.into() });
            continue;
        }
        let Some(kind) = kind(word) else {
            found.push(Resource { kind: "", name: word.clone() });
            continue;
        };
        // `deploy web api`: names up to the next kind.
        let mut named = false;
        while let Some(name) = words.next_if(|next| !next.contains('/') && self::kind(next).is_none()) {
            found.push(Resource { kind, name: name.clone() });
            named = true;
        }
        if !named {
            found.push(Resource { kind, name: String::new() });
        }
    }
    Ok(found)
}

/// A single resource, for `--from` and `--to`.
pub fn one(text: &str) -> Result<Resource> {
    let mut found = parse(&[text.to_string()])?;
    found.pop().ok_or_else(|| CommandError::usage("a resource is needed: deploy/web"))
}

impl Resource {
    /// True when it names this workload, or something that it belongs to. Services and routes select by other means.
    pub fn means(&self, workload: &Workload) -> bool {
        let (name, namespace) = match self.name.split_once('.') {
            // `web.shop`, unless something is really called so.
            Some((name, namespace)) if namespace == workload.namespace => (name, namespace),
            _ => (self.name.as_str(), workload.namespace.as_str()),
        };
        let owner = &workload.owner;
        let fits = |found: &str| name.is_empty() || name == found || self.name == found;
        namespace == workload.namespace
            && match self.kind {
                "" => fits(&owner.name) || fits(&workload.pod),
                "pod" => fits(&workload.pod),
                "namespace" => fits(&workload.namespace),
                "service" | "route" => true,
                "cronjob" => owner.kind == "job" && cron_job(&owner.name).is_some_and(fits),
                // On this machine a workload has no kind.
                kind => (owner.kind.is_empty() || owner.kind == kind) && fits(&owner.name),
            }
    }
}

/// The CronJob that made a Job, by the name's end: the minute that it was scheduled for.
pub fn cron_job(job: &str) -> Option<&str> {
    let (name, minute) = job.rsplit_once('-')?;
    (minute.len() >= 8 && minute.bytes().all(|b| b.is_ascii_digit())).then_some(name)
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.name.as_str()) {
            ("", name) => write!(f, "called {name:?}"),
            (kind, "") => write!(f, "of kind {kind}"),
            (kind, name) => write!(f, "{}/{name}", short(kind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Owner;

    fn check(words: &str, expect: &[(&'static str, &str)]) {
        let words: Vec<String> = words.split_whitespace().map(str::to_string).collect();
        let expect: Vec<_> = expect.iter().map(|(kind, name)| Resource { kind, name: name.to_string() }).collect();
        assert_eq!(parse(&words).unwrap(), expect, "{words:?}");
    }

    #[test]
    fn resources_are_named_as_for_kubectl() {
        check("", &[]);
        check("deploy", &[("deployment", "")]);
        check("deploy/web po/web-1", &[("deployment", "web"), ("pod", "web-1")]);
        check("deploy web api sts", &[("deployment", "web"), ("deployment", "api"), ("statefulset", "")]);
        check("web web-1.demo", &[("", "web"), ("", "web-1.demo")]);
        check("svc/api Namespaces", &[("service", "api"), ("namespace", "")]);
        assert!(parse(&["depoy/web".into()]).is_err());
        assert!(parse(&["deploy/".into()]).is_err());
    }

    #[test]
    fn a_workload_is_meant_by_owner_pod_and_whole_name() {
        let web = |kind: &str| Workload {
            namespace: "demo".into(),
            owner: Owner { kind: kind.into(), name: "web".into() },
            pod: "web-1".into(),
            ..Default::default()
        };
        let means = |text: &str, kind: &str| one(text).unwrap().means(&web(kind));
        for text in ["web", "web-1", "web.demo", "deploy/web", "pod/web-1.demo", "ns/demo", "deploy", "po"] {
            assert!(means(text, ""), "{text}");
            assert!(means(text, "deployment"), "{text}");
        }
        for text in ["we", "web-2", "web.default", "ns/default"] {
            assert!(!means(text, "") && !means(text, "deployment"), "{text}");
        }
        assert!(!means("sts/web", "deployment"));
        let job = Workload { owner: Owner { kind: "job".into(), name: "backup-29400001".into() }, ..web("") };
        assert!(one("cj/backup").unwrap().means(&job) && !one("cj/back").unwrap().means(&job));
    }
}
