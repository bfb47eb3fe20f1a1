//! What can be set at installation: typed, with defaults, from files and from `--set`. A key that does not exist gets
//! the nearest that does.
//!
//! **Invariant:** what is stored in the cluster is what people set, not the defaults: an upgrade brings new defaults.

use crate::error::{CommandError, Context, Result};
use gossamer_api::defaults;
use gossamer_api::process::log;
use gossamer_api::workload::Identity;
use gossamer_injector::settings::{self, Settings, quantity};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)] // KEYS has a line about each.
pub struct Values {
    /// Where the control plane lives; not a value but the option `--control-namespace`, as for every other command.
    #[serde(skip)]
    pub namespace: String,
    pub version: String,
    pub control_image: String,
    pub proxy_image: String,
    pub image_pull_policy: PullPolicy,
    pub image_pull_secrets: Vec<String>,
    pub high_availability: bool,
    pub replicas: u16,
    pub trust_domain: String,
    pub cluster_domain: String,
    pub cluster_networks: String,
    pub external_issuer: bool,
    pub default_inbound_policy: String,
    pub webhook_failure_policy: FailurePolicy,
    pub gateway_api_crds: Crds,
    pub log_level: String,
    pub log_format: String,
    pub cpu_request: String,
    pub memory_request: String,
    pub memory_limit: String,
    pub node_selector: BTreeMap<String, String>,
    pub priority_class_name: String,
    /// Settings of every proxy that does not say otherwise: names of annotations `config.gossamer.io/NAME`.
    pub proxy: BTreeMap<String, String>,
}

/// As in a container's `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Only if the node has none.
    IfNotPresent,
    /// For every pod.
    Always,
    /// The node must have it.
    Never,
}

/// What happens to a pod while no injector answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailurePolicy {
    /// It starts without a proxy.
    Ignore,
    /// It is not made.
    Fail,
}

/// When Gateway API's own definitions are part of the installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Crds {
    /// When the cluster has none, or has them from us.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Each key with one line about it, in the order of the help.
pub const KEYS: &[(&str, &str)] = &[
    ("version", "Tag of both images"),
    ("controlImage", "Image of the control plane, without tag"),
    ("proxyImage", "Image of the proxy, without tag"),
    ("imagePullPolicy", "IfNotPresent, Always or Never"),
    ("imagePullSecrets", "Names of secrets to pull the control plane's image with"),
    ("highAvailability", "As --ha: three replicas, spread, with disruption budgets; no pod without a proxy"),
    ("replicas", "Of each part of the control plane"),
    ("trustDomain", "In every identity"),
    ("clusterDomain", "The DNS suffix of services"),
    ("clusterNetworks", "Networks where nothing passes without discovery"),
    ("externalIssuer", "The secret gossamer-identity-issuer is made by others, as cert-manager"),
    ("defaultInboundPolicy", "Who may reach a workload that has no policy"),
    ("webhookFailurePolicy", "Without an injector, pods start without a proxy (Ignore) or not at all (Fail)"),
    ("gatewayApiCrds", "HTTPRoute and GRPCRoute come along: auto (if the cluster has none), always or never"),
    ("logLevel", "What the control plane logs: LEVEL or TARGET=LEVEL, comma-separated"),
    ("logFormat", "How it logs: plain or json"),
    ("cpuRequest", "Of each part of the control plane; empty is none"),
    ("memoryRequest", "Of each part of the control plane; empty is none"),
    ("memoryLimit", "Of each part of the control plane; empty is none"),
    ("nodeSelector", "Labels of the control plane's nodes"),
    ("priorityClassName", "Priority of the control plane's pods; empty is the cluster's default"),
    ("proxy", "Settings of every proxy, by the names of the annotations config.gossamer.io/NAME: proxy.NAME=VALUE"),
];

impl Default for Values {
    fn default() -> Self {
        Values {
            namespace: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            control_image: "gossamer/control".into(),
            proxy_image: "gossamer/proxy".into(),
            image_pull_policy: PullPolicy::IfNotPresent,
            image_pull_secrets: Vec::new(),
            high_availability: false,
            replicas: 1,
            trust_domain: defaults::TRUST_DOMAIN.into(),
            cluster_domain: defaults::CLUSTER_DOMAIN.into(),
            cluster_networks: defaults::CLUSTER_NETWORKS.into(),
            external_issuer: false,
            default_inbound_policy: defaults::INBOUND_POLICY.into(),
            webhook_failure_policy: FailurePolicy::Ignore,
            gateway_api_crds: Crds::Auto,
            log_level: "warn,gossamer=info".into(),
            log_format: "plain".into(),
            cpu_request: "10m".into(),
            memory_request: "20Mi".into(),
            memory_limit: "250Mi".into(),
            node_selector: BTreeMap::new(),
            priority_class_name: String::new(),
            proxy: BTreeMap::new(),
        }
    }
}

/// What people set: a tree with only the keys that they named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides(Map<String, Value>);

impl Overrides {
    /// Reads YAML.
    pub fn parse(text: &str, source: &str) -> Result<Self> {
        if text.lines().all(|line| matches!(line.trim_start().as_bytes().first(), None | Some(b'#'))) {
            return Ok(Overrides::default());
        }
        let value: Value = serde_saphyr::from_str(text).map_err(|error| {
            CommandError::failed(format!("{source}: {}", error.to_string().lines().next().unwrap_or_default()))
        })?;
        let Value::Object(map) = value else {
            return Err(CommandError::failed(format!("{source}: it has to be a mapping of keys to values")));
        };
        let overrides = Overrides(map);
        overrides.check_keys(source)?;
        Ok(overrides)
    }

    /// Reads a file of YAML.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).context(path.display())?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Takes over what the other one has.
    pub fn merge(&mut self, other: Overrides) {
        merge(&mut self.0, other.0);
    }

    /// `key=value`; the key may have dots.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(CommandError::usage(format!("--set {assignment}: expected key=value")));
        };
        let mut tree = Map::new();
        if let Some((map, name)) = key.split_once('.').filter(|(map, _)| OPEN.contains(map)) {
            tree.insert(map.into(), serde_json::json!({ name: text }));
            self.merge(Overrides(tree));
            return self.values("").map(drop);
        }
        let defaults = defaults_tree();
        let Some(default) = lookup(&defaults, key) else { return Err(unknown("--set", key)) };
        let value = match default {
            Value::String(_) => Value::String(text.to_string()),
            Value::Array(_) if !text.trim_start().starts_with('[') => {
                text.split(',').filter(|item| !item.is_empty()).map(|item| Value::String(item.trim().into())).collect()
            }
            _ => serde_saphyr::from_str(text).map_err(|_| wrong(key, text, default))?,
        };
        insert(&mut tree, key, value);
        self.merge(Overrides(tree));
        // Said here, where the flag is known; of the value itself only what its type does not tell.
        self.values("").map(drop).map_err(|error| match error.hints.is_empty() {
            true => wrong(key, text, default),
            false => error,
        })
    }

    /// The defaults with these on top, for a control plane in `namespace`.
    pub fn values(&self, namespace: &str) -> Result<Values> {
        let mut tree = defaults_tree();
        let ha = self.0.get("highAvailability").and_then(Value::as_bool).unwrap_or(false);
        if ha {
            tree.insert("replicas".into(), 3.into());
            tree.insert("webhookFailurePolicy".into(), "Fail".into());
        }
        merge(&mut tree, self.0.clone());
        // In YAML a port is a number and a switch is true.
        for name in OPEN {
            let map = tree.get_mut(*name).and_then(Value::as_object_mut);
            for value in map.into_iter().flat_map(Map::values_mut).filter(|one| one.is_number() || one.is_boolean()) {
                *value = Value::String(value.to_string());
            }
        }
        let values: Values = serde_json::from_value(Value::Object(tree)).context("values")?;
        values.check()?;
        Ok(Values { namespace: namespace.to_string(), ..values })
    }

    /// As it is stored.
    pub fn to_yaml(&self) -> Result<String> {
        if self.0.is_empty() {
            return Ok("{}\n".into());
        }
        serde_saphyr::to_string(&self.0).context("values")
    }

    fn check_keys(&self, source: &str) -> Result<()> {
        let defaults = defaults_tree();
        leaves(&self.0, "", &mut |key| match lookup(&defaults, key) {
            Some(_) => Ok(()),
            // Maps of names that people choose.
            None if key.split_once('.').is_some_and(|(map, _)| OPEN.contains(&map)) => Ok(()),
            None => Err(unknown(source, key)),
        })
    }
}

impl Values {
    /// What types can't say.
    fn check(&self) -> Result<()> {
        let policies = [
            "all-unauthenticated",
            "all-authenticated",
            "cluster-unauthenticated",
            "cluster-authenticated",
            "deny",
            "audit",
        ];
        if !policies.contains(&self.default_inbound_policy.as_str()) {
            let nearest = nearest(&self.default_inbound_policy, policies.iter().copied());
            return Err(CommandError::usage(format!(
                "defaultInboundPolicy: {:?} is none",
                self.default_inbound_policy
            ))
            .hint(format!("did you mean {nearest}? There are {}", policies.join(", "))));
        }
        let known = || settings::all().map(|setting| setting.name);
        if let Some(name) = self.proxy.keys().find(|name| !known().any(|known| known == name.as_str())) {
            let nearest = nearest(name, known());
            return Err(CommandError::usage(format!("there is no value \"proxy.{name}\""))
                .hint(format!("did you mean proxy.{nearest}? manifests/settings.md lists all settings of proxies")));
        }
        if let Some(error) =
            Settings::read(&BTreeMap::new(), &BTreeMap::new(), &self.proxy).err().and_then(|e| e.into_iter().next())
        {
            let name = error.key.rsplit('/').next().unwrap_or_default();
            return Err(CommandError::usage(format!("proxy.{name}: {:?} is not valid{}", error.value, error.detail))
                .hint(format!("expected {}", error.form)));
        }
        let both = self.proxy.get(INBOUND_POLICY).filter(|policy| **policy != self.default_inbound_policy);
        if let Some(policy) = both.filter(|_| self.default_inbound_policy != defaults::INBOUND_POLICY) {
            let ours = &self.default_inbound_policy;
            return Err(CommandError::usage(format!(
                "defaultInboundPolicy: {ours:?}, but proxy.{INBOUND_POLICY}: {policy:?}"
            ))
            .hint("they are two names of one value: give one of them"));
        }
        self.check_texts()?;
        if self.replicas == 0 {
            return Err(CommandError::usage("replicas: 0 would be no control plane"));
        }
        Ok(())
    }

    /// Texts that a program would refuse at its start, or the API server when the objects are applied.
    fn check_texts(&self) -> Result<()> {
        let wrong = |key: &str, value: &str, expected: &str| {
            Err(CommandError::usage(format!("{key}: {value:?} is not valid")).hint(format!("expected {expected}")))
        };
        for (key, amount) in [
            ("cpuRequest", &self.cpu_request),
            ("memoryRequest", &self.memory_request),
            ("memoryLimit", &self.memory_limit),
        ] {
            if !amount.is_empty() && quantity(amount).is_none_or(|amount| amount <= 0.0) {
                return wrong(key, amount, "a Kubernetes quantity as 100m or 20Mi, or nothing");
            }
        }
        if let Some(bad) = self.cluster_networks.split(',').find(|one| one.trim().parse::<IpNet>().is_err()) {
            return wrong("clusterNetworks", bad, "networks as 10.0.0.0/8, separated by commas");
        }
        for (key, domain) in [("trustDomain", &self.trust_domain), ("clusterDomain", &self.cluster_domain)] {
            if Identity::service_account("a", "b", "c", domain).is_err() {
                return wrong(key, domain, "a DNS name in lower case, as cluster.local");
            }
        }
        if self.log_format.parse::<log::Format>().is_err() {
            return wrong("logFormat", &self.log_format, "plain or json");
        }
        match log::check(&self.log_level) {
            Err(error) if !self.log_level.is_empty() => {
                wrong("logLevel", &self.log_level, &format!("a filter: {error}"))
            }
            _ => Ok(()),
        }
    }

    /// Who may reach a workload that says nothing.
    pub fn inbound_policy(&self) -> &str {
        self.proxy.get(INBOUND_POLICY).unwrap_or(&self.default_inbound_policy)
    }

    /// The control plane's image.
    pub fn control(&self) -> String {
        format!("{}:{}", self.control_image, self.version)
    }

    /// The proxy's image.
    pub fn proxy(&self) -> String {
        format!("{}:{}", self.proxy_image, self.version)
    }
}

const INBOUND_POLICY: &str = "default-inbound-policy";
/// Maps whose keys are people's own.
const OPEN: &[&str] = &["nodeSelector", "proxy"];

fn defaults_tree() -> Map<String, Value> {
    match serde_json::to_value(Values::default()) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn lookup<'a>(tree: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => tree.get(key),
        Some((first, rest)) => lookup(tree.get(first)?.as_object()?, rest),
    }
}

fn insert(tree: &mut Map<String, Value>, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(tree.insert(key.into(), value)),
        Some((first, rest)) => {
            let inner = tree.entry(first).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(present)), Value::Object(new)) => merge(present, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

fn leaves(tree: &Map<String, Value>, prefix: &str, check: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
    for (key, value) in tree {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Object(inner) if !inner.is_empty() => leaves(inner, &path, check)?,
            _ => check(&path)?,
        }
    }
    Ok(())
}

fn wrong(key: &str, text: &str, default: &Value) -> CommandError {
    let help = KEYS.iter().find(|(known, _)| *known == key).map_or("", |(_, help)| help);
    CommandError::usage(format!("--set {key}: {text:?} does not fit")).hint(format!("{help}; the default is {default}"))
}

fn unknown(source: &str, key: &str) -> CommandError {
    let nearest = nearest(key, KEYS.iter().map(|(key, _)| *key));
    CommandError::usage(format!("{source}: there is no value {key:?}"))
        .hint(format!("did you mean {nearest}? `meshctl install --help` lists all"))
}

/// The candidate with the fewest letters to change.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> &'a str {
    candidates.min_by_key(|candidate| distance(word, candidate)).unwrap_or_default()
}

/// Letters to insert, remove or replace, case aside (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(assignments: &[&str]) -> Result<Values> {
        let mut overrides = Overrides::default();
        for assignment in assignments {
            overrides.set(assignment)?;
        }
        overrides.values("gossamer")
    }

    #[test]
    fn every_value_is_in_the_help_and_nothing_else() {
        let mut keys = Vec::new();
        leaves(&defaults_tree(), "", &mut |key| {
            keys.push(key.to_string());
            Ok(())
        })
        .unwrap();
        let mut listed: Vec<_> = KEYS.iter().map(|(key, _)| key.to_string()).collect();
        keys.sort();
        listed.sort();
        assert_eq!(keys, listed);
    }

    #[test]
    fn set_knows_types_and_dots() {
        let values = set(&[
            "replicas=2",
            "version=1.10",
            "proxy.log-level=debug",
            "imagePullSecrets=a,b",
            "nodeSelector.example.org/a=b",
        ]);
        let values = values.unwrap();
        assert_eq!((values.replicas, values.version.as_str()), (2, "1.10"));
        assert_eq!(
            (values.proxy["log-level"].as_str(), values.node_selector["example.org/a"].as_str()),
            ("debug", "b")
        );
        assert_eq!(values.image_pull_secrets, ["a", "b"]);
    }

    #[test]
    fn a_wrong_key_gets_the_nearest() {
        let error = set(&["replica=2"]).unwrap_err();
        assert_eq!(error.message, "--set: there is no value \"replica\"");
        assert!(error.hints[0].starts_with("did you mean replicas?"), "{:?}", error.hints);
        let error = set(&["proxy.loglevel=debug"]).unwrap_err();
        assert!(error.hints[0].starts_with("did you mean proxy.log-level?"), "{:?}", error.hints);
        let error = Overrides::parse("replica: 1\n", "v.yaml").unwrap_err();
        assert!(error.message.starts_with("v.yaml") && error.hints[0].contains("replicas"), "{error:?}");
    }

    #[test]
    fn a_wrong_value_says_what_fits() {
        for bad in ["replicas=many", "webhookFailurePolicy=fail", "replicas=0", "externalIssuer=yep"] {
            let error = set(&[bad]).unwrap_err();
            assert!(!error.hints.is_empty(), "{bad}: {error}");
        }
        assert!(set(&["defaultInboundPolicy=all-authenticatd"]).is_err());
    }

    #[test]
    fn settings_of_proxies_are_checked_as_their_annotations_are() {
        for (bad, expected) in [
            ("proxy.opaque-ports=abc", "expected ports and ranges"),
            ("proxy.access-log=yes", "expected json, apache or off"),
            ("proxy.memory-limit=much", "expected a Kubernetes quantity"),
            ("proxy.workers=0", "expected number"),
        ] {
            let error = set(&[bad]).unwrap_err();
            assert!(error.hints[0].starts_with(expected), "{bad}: {error:?}");
        }
        // Those of the injection as well as the proxy's own, and YAML's own types.
        let values = set(&["proxy.cpu-request=10m", "proxy.native-sidecar=disabled", "proxy.opaque-ports="]).unwrap();
        assert_eq!(values.proxy["cpu-request"], "10m");
        let yaml = Overrides::parse("proxy: {workers: 2, skip-outbound-ports: 5432}\n", "v.yaml").unwrap();
        assert_eq!(yaml.values("gossamer").unwrap().proxy["skip-outbound-ports"], "5432");
    }

    #[test]
    fn what_a_program_would_refuse_at_its_start_is_refused_here() {
        for (bad, key) in [
            ("cpuRequest=ten", "cpuRequest"),
            ("clusterNetworks=10.0.0.0/8,x", "clusterNetworks"),
            ("trustDomain=not a name", "trustDomain"),
            ("logFormat=xml", "logFormat"),
            ("logLevel=a=b=c", "logLevel"),
        ] {
            let error = set(&[bad]).unwrap_err();
            assert!(error.to_string().contains(key) && !error.hints.is_empty(), "{bad}: {error:?}");
        }
        set(&["logLevel=", "memoryLimit=", "trustDomain=example.org"]).unwrap();
    }

    #[test]
    fn one_value_has_one_meaning_under_its_two_names() {
        assert_eq!(set(&["proxy.default-inbound-policy=deny"]).unwrap().inbound_policy(), "deny");
        assert_eq!(set(&["defaultInboundPolicy=deny"]).unwrap().inbound_policy(), "deny");
        let error = set(&["defaultInboundPolicy=deny", "proxy.default-inbound-policy=audit"]).unwrap_err();
        assert!(error.hints[0].contains("one of them") || error.to_string().contains("proxy"), "{error:?}");
    }

    #[test]
    fn what_is_stored_is_only_what_was_set() {
        let mut overrides = Overrides::parse("highAvailability: true\nproxy: {log-level: debug}\n", "v.yaml").unwrap();
        overrides.set("replicas=5").unwrap();
        let stored = overrides.to_yaml().unwrap();
        assert_eq!(Overrides::parse(&stored, "stored").unwrap(), overrides);
        assert!(!stored.contains("namespace"), "{stored}");
        let values = overrides.values("gossamer").unwrap();
        assert_eq!((values.replicas, values.webhook_failure_policy), (5, FailurePolicy::Fail));
        assert_eq!(Overrides::default().to_yaml().unwrap(), "{}\n");
    }
}
