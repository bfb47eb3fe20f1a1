//! What annotations of a pod and its namespace say, checked before anything is made of it. Pure.
//!
//! A key that nobody reads is a warning with the nearest one that exists; a value that can't be read is an error: a
//! workload must not run with a policy, a port list or a limit other than what was asked for.

use crate::linkerd;
use gossamer_api::defaults;
use gossamer_api::keys::{CONFIG_PREFIX, INJECT, PREFIX, PROXY_VERSION};
use gossamer_api::kubernetes::Map;
use gossamer_api::kubernetes::validate::distance;
use gossamer_api::process::log;
use gossamer_api::settings::{PROXY, Ports, Setting, parse_duration, text};
use ipnet::IpNet;
use std::collections::BTreeMap;

/// Knobs of the injection itself; all are annotations. The proxy's own are in [`PROXY`].
pub const INJECTION: &[Setting] = &[
    knob("image", IMAGE, String::new, "The proxy's image; empty: that of the installation"),
    knob("image-pull-policy", "Always, IfNotPresent or Never", || "IfNotPresent".into(), "When it is pulled"),
    knob("cpu-request", QUANTITY, String::new, "CPU that is set aside for the proxy"),
    knob("cpu-limit", QUANTITY, String::new, "CPU that it gets at most; above one core it also sets its threads"),
    knob("memory-request", QUANTITY, String::new, "Memory that is set aside for it"),
    knob("memory-limit", QUANTITY, String::new, "Memory that it gets at most"),
    knob("ephemeral-storage-request", QUANTITY, String::new, "Disk that is set aside for it (its log)"),
    knob("ephemeral-storage-limit", QUANTITY, String::new, "Disk that it gets at most"),
    knob(
        "require-identity-inbound-ports",
        PORTS,
        String::new,
        "Ports whose clients need an identity where no AuthorizationPolicy selects them",
    ),
    knob(
        "tap",
        SWITCH,
        || "enabled".into(),
        "Whether requests can be watched (from the pod's loopback, by port-forward)",
    ),
    knob("native-sidecar", SWITCH, || "enabled".into(), "An init container that goes on; disabled: a plain container"),
    knob(
        "redirect",
        "proxy or init",
        || "proxy".into(),
        "Who sets the redirection: the proxy's start, or an init container",
    ),
    knob(
        "wait-before-exit",
        "duration",
        || text(WAIT_BEFORE_EXIT),
        "How long a plain container goes on when its pod ends",
    ),
];

const fn knob(name: &'static str, form: &'static str, default: fn() -> String, help: &'static str) -> Setting {
    Setting { name, form, default, help, annotation: true }
}

/// As long as a removed endpoint may still be in use elsewhere. Only without native sidecars, which outlive the
/// application by themselves.
pub const WAIT_BEFORE_EXIT: std::time::Duration = std::time::Duration::from_secs(5);

const PORTS: &str = "ports and ranges, comma-separated";
const QUANTITY: &str = "a Kubernetes quantity";
const SWITCH: &str = "enabled or disabled";
const IMAGE: &str = "an image";

/// What is set for a workload: by its own annotations, else by its namespace's, else for the whole mesh. In each place
/// Linkerd's annotation counts where ours says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<&'static str, String>);

/// An annotation that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata.annotations[\"{key}\"] of the {place}: {value:?} is not valid: expected {form}{detail}")]
pub struct InvalidAnnotation {
    /// The annotation.
    pub key: String,
    /// Whose it is: `pod`, `namespace`, `mesh`.
    pub place: &'static str,
    /// What it holds.
    pub value: String,
    /// What it may hold.
    pub form: &'static str,
    /// What exactly is wrong, or empty.
    pub detail: String,
}

impl Settings {
    /// Reads them; `mesh` has names without prefix. Fails with everything that is wrong.
    pub fn read(pod: &Map, namespace: &Map, mesh: &Map) -> Result<Self, Vec<InvalidAnnotation>> {
        let (mut found, mut errors) = (BTreeMap::new(), Vec::new());
        for setting in all() {
            let key = format!("{CONFIG_PREFIX}/{}", setting.name);
            let said = |place: &'static str, by: &Map| {
                let ours = by.get(&key).map(|value| (key.clone(), value.trim().to_string()));
                ours.or_else(|| linkerd::value(by, setting.name)).map(|(key, value)| (place, key, value))
            };
            let of_mesh = || mesh.get(setting.name).map(|value| ("mesh", key.clone(), value.trim().to_string()));
            let said = said("pod", pod).or_else(|| said("namespace", namespace)).or_else(of_mesh);
            let Some((place, key, value)) = said else { continue };
            match check(setting, &value) {
                Ok(()) => drop(found.insert(setting.name, value)),
                Err(detail) => errors.push(InvalidAnnotation { key, place, value, form: setting.form, detail }),
            }
        }
        if errors.is_empty() { Ok(Settings(found)) } else { Err(errors) }
    }

    /// A setting that is set, and not to nothing.
    pub fn set(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// True when a setting has this value.
    pub fn is(&self, name: &str, value: &str) -> bool {
        self.0.get(name).is_some_and(|set| set == value)
    }

    /// The proxy's own settings that differ from their defaults, as environment variables.
    pub fn env(&self) -> impl Iterator<Item = (String, &str)> {
        let changed = |setting: &&Setting| {
            setting.annotation && self.0.get(setting.name).is_some_and(|value| *value != (setting.default)())
        };
        PROXY.iter().filter(changed).filter_map(|setting| Some((setting.env(), self.0.get(setting.name)?.as_str())))
    }

    /// The user that the proxy becomes.
    pub fn uid(&self) -> u32 {
        self.set("uid").and_then(|uid| uid.parse().ok()).unwrap_or(defaults::PROXY_UID)
    }

    /// Data threads for a CPU limit above one core; `None`: the default.
    pub fn workers(&self) -> Option<u64> {
        if self.set("workers").is_some() {
            return None;
        }
        let cores = quantity(self.set("cpu-limit")?)?.ceil().clamp(1.0, 64.0);
        (cores > 1.0).then_some(cores as u64)
    }
}

/// Every annotation under `config.gossamer.io/`.
pub fn all() -> impl Iterator<Item = &'static Setting> {
    PROXY.iter().filter(|setting| setting.annotation).chain(INJECTION)
}

/// True for the annotation of a setting.
pub fn is_known(key: &str) -> bool {
    let name = key.strip_prefix(CONFIG_PREFIX).and_then(|rest| rest.strip_prefix('/'));
    name.is_some_and(|name| all().any(|setting| setting.name == name))
}

/// Warnings for annotations without effect: keys that look like ours and are none, each with the nearest one, and those of
/// Linkerd's that mean nothing here.
pub fn without_effect(annotations: &Map) -> Vec<String> {
    let mut warnings = unknown_keys(annotations);
    warnings.extend(linkerd::without_effect(annotations));
    warnings
}

/// What is wrong with values.
pub fn invalid(annotations: &Map) -> Vec<InvalidAnnotation> {
    Settings::read(annotations, &Map::new(), &Map::new()).err().unwrap_or_default()
}

/// Warnings for keys that look like ours and are none, each with the nearest one.
pub fn unknown_keys(annotations: &Map) -> Vec<String> {
    let known = || {
        let settings = all().map(|setting| format!("{CONFIG_PREFIX}/{}", setting.name));
        [INJECT, PROXY_VERSION].into_iter().map(String::from).chain(settings)
    };
    let mut warnings = Vec::new();
    for key in annotations.keys() {
        let Some((prefix, _)) = key.split_once('/') else { continue };
        let ours = [PREFIX, CONFIG_PREFIX].into_iter().any(|own| distance(prefix, own) <= 2);
        if !ours || known().any(|one| one == *key) {
            continue;
        }
        let nearest = known().map(|one| (distance(key, &one), one)).min();
        warnings.push(match nearest {
            Some((far, one)) if far <= 1 + key.len() / 5 => {
                format!("annotation {key:?} is not known and has no effect; did you mean {one:?}?")
            }
            _ => format!("annotation {key:?} is not known and has no effect"),
        });
    }
    warnings
}

/// What is wrong with a value, or nothing. An empty value means the default where that is empty.
fn check(setting: &Setting, value: &str) -> Result<(), String> {
    if value.is_empty() && (setting.default)().is_empty() {
        return Ok(());
    }
    let ok = |is: bool| if is { Ok(()) } else { Err(String::new()) };
    match (setting.name, setting.form) {
        ("workers", _) => match value.parse::<u8>() {
            Ok(1..=64) => Ok(()),
            _ => Err("; 1 to 64".into()),
        },
        // Root is who sets the redirection, and half of all applications: its connections can't be the ones that pass.
        ("uid", _) => match value.parse::<u32>() {
            Ok(1..=4_294_967_294) => Ok(()),
            _ => Err("; 1 to 4294967294".into()),
        },
        (_, "duration") => parse_duration(value).map(drop).ok_or("; for example 500ms, 1s, 5m".into()),
        (_, PORTS) => value.parse::<Ports>().map(drop),
        (_, "networks, comma-separated") => {
            let mut bad =
                value.split(',').map(str::trim).filter(|one| !one.is_empty() && one.parse::<IpNet>().is_err());
            bad.next().map_or(Ok(()), |one| Err(format!("; {one:?} is no network as 172.17.0.0/16")))
        }
        (_, QUANTITY) => match quantity(value) {
            Some(amount) if amount > 0.0 => Ok(()),
            _ => Err("; for example 100m, 20Mi".into()),
        },
        (_, IMAGE) => ok(value.len() <= 512 && value.bytes().all(|b| b.is_ascii_graphic())),
        ("log-level", _) => ok(log::check(value).is_ok()),
        (_, words) => {
            let mut words = words.split(", ").flat_map(|part| part.split(" or "));
            ok(words.any(|word| word == value))
        }
    }
}

/// A Kubernetes quantity as a number.
pub fn quantity(text: &str) -> Option<f64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let factor = match &text[digits..] {
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    text[..digits].parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(of: &[(&str, &str)]) -> Map {
        of.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
    }

    #[test]
    fn the_workload_wins_over_its_namespace_and_both_over_the_mesh() {
        let pod = map(&[("config.gossamer.io/log-level", "debug")]);
        let namespace = map(&[("config.gossamer.io/log-level", "warn"), ("config.gossamer.io/access-log", "json")]);
        let settings =
            Settings::read(&pod, &namespace, &map(&[("access-log", "off"), ("cpu-request", "10m")])).unwrap();
        let env: Vec<_> = settings.env().collect();
        assert_eq!(env, [("MESH_ACCESS_LOG".into(), "json"), ("MESH_LOG_LEVEL".into(), "debug")]);
        assert_eq!(settings.set("cpu-request"), Some("10m"));
    }

    #[test]
    fn linkerds_annotation_counts_where_ours_says_nothing() {
        let pod = map(&[("config.linkerd.io/skip-inbound-ports", "9090"), ("config.linkerd.io/access-log", "apache")]);
        let namespace = map(&[("config.gossamer.io/skip-inbound-ports", "1"), ("config.linkerd.io/proxy-uid", "7")]);
        let settings = Settings::read(&pod, &namespace, &Map::new()).unwrap();
        assert_eq!((settings.set("skip-inbound-ports"), settings.uid()), (Some("9090"), 7));
        let both = map(&[("config.linkerd.io/access-log", "apache"), ("config.gossamer.io/access-log", "json")]);
        assert_eq!(Settings::read(&both, &pod, &Map::new()).unwrap().set("access-log"), Some("json"));
        let bad = map(&[("config.linkerd.io/default-inbound-policy", "dney")]);
        let error = Settings::read(&Map::new(), &bad, &Map::new()).unwrap_err()[0].to_string();
        assert!(
            error.starts_with("metadata.annotations[\"config.linkerd.io/default-inbound-policy\"] of the namespace"),
            "{error}"
        );
    }

    #[test]
    fn every_default_is_a_value() {
        for setting in all() {
            check(setting, &(setting.default)()).unwrap_or_else(|error| panic!("{}: {error}", setting.name));
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_the_form() {
        let refuse = |name: &str, value: &str| {
            let pod = map(&[(&format!("config.gossamer.io/{name}"), value)]);
            Settings::read(&pod, &Map::new(), &Map::new()).unwrap_err()[0].to_string()
        };
        assert_eq!(
            refuse("default-inbound-policy", "dney"),
            "metadata.annotations[\"config.gossamer.io/default-inbound-policy\"] of the pod: \"dney\" is not valid: \
             expected all-unauthenticated, all-authenticated, cluster-unauthenticated, cluster-authenticated, deny or audit"
        );
        for (name, value) in [
            ("cpu-limit", "1 core"),
            ("memory-limit", "-1"),
            ("workers", "0"),
            ("uid", "0"),
            ("uid", "root"),
            ("skip-subnets", "172.17.0.0/16,x"),
            ("tap", "no"),
            ("opaque-ports", "80,x"),
            ("shutdown-grace-period", "5"),
            ("native-sidecar", "true"),
            ("image", "a b"),
            ("image-pull-policy", "always"),
            ("log-level", ""),
            ("log-level", "inof"),
            ("log-level", "warn,gossamer_proxy[{client}]=debug"),
        ] {
            assert!(refuse(name, value).contains("expected"), "{name}={value}");
        }
    }

    #[test]
    fn a_misspelt_key_gets_the_nearest_one() {
        let warnings = unknown_keys(&map(&[
            ("config.gossamer.io/opaque-port", "80"),
            ("config.gosamer.io/cpu-limit", "1"),
            ("config.gossamer.io/cpu-limit", "1"),
            ("config.gossamer.io/something-else-entirely", "1"),
            ("gossamer.io/injcet", "enabled"),
            ("gossamer.io/inject", "enabled"),
            ("prometheus.io/scrape", "true"),
        ]));
        let hints: Vec<_> = warnings.iter().map(|text| text.split("did you mean ").nth(1).unwrap_or("none")).collect();
        assert_eq!(
            hints,
            [
                "\"config.gossamer.io/cpu-limit\"?",
                "\"config.gossamer.io/opaque-ports\"?",
                "none",
                "\"gossamer.io/inject\"?"
            ]
        );
    }

    #[test]
    fn threads_follow_a_limit_above_one_core() {
        let workers = |of: &[(&str, &str)]| Settings::read(&Map::new(), &Map::new(), &map(of)).unwrap().workers();
        assert_eq!(workers(&[("cpu-limit", "500m")]), None);
        assert_eq!(workers(&[("cpu-limit", "1500m")]), Some(2));
        assert_eq!(workers(&[("cpu-limit", "4"), ("workers", "1")]), None);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(key in ".{0,40}", value in ".{0,40}") {
            let pod = map(&[(&key, &value), (&format!("config.gossamer.io/{key}"), &value)]);
            let _ = unknown_keys(&pod);
            for setting in all() {
                let _ = check(setting, &value);
            }
        }
    }
}
