//! Linkerd's annotations for workloads: which of our settings each one is, or why there is none. Pure.
//!
//! **Invariant:** every one of Linkerd's is in this list, so that none is ignored in silence.

use gossamer_api::kubernetes::Map;

/// An annotation of Linkerd's.
pub struct Theirs {
    /// As it is written; with a final `*` all that begin so.
    pub key: &'static str,
    /// What it is here.
    pub means: Means,
}

/// What an annotation of Linkerd's is here.
pub enum Means {
    /// This setting, with the same values.
    Same(&'static str),
    /// This setting, with other words for the same.
    Words(&'static str, &'static [(&'static str, &'static str)]),
    /// This setting, in seconds.
    Seconds(&'static str),
    /// Nothing, for this reason.
    Nothing(&'static str),
}

/// All of them, in the order of Linkerd's documentation.
pub const LINKERD: &[Theirs] = &[
    same("config.linkerd.io/opaque-ports", "opaque-ports"),
    same("config.linkerd.io/skip-inbound-ports", "skip-inbound-ports"),
    same("config.linkerd.io/skip-outbound-ports", "skip-outbound-ports"),
    same("config.linkerd.io/skip-subnets", "skip-subnets"),
    same("config.linkerd.io/default-inbound-policy", "default-inbound-policy"),
    same("config.linkerd.io/proxy-require-identity-inbound-ports", "require-identity-inbound-ports"),
    same("config.linkerd.io/image-pull-policy", "image-pull-policy"),
    same("config.linkerd.io/proxy-cpu-request", "cpu-request"),
    same("config.linkerd.io/proxy-cpu-limit", "cpu-limit"),
    same("config.linkerd.io/proxy-memory-request", "memory-request"),
    same("config.linkerd.io/proxy-memory-limit", "memory-limit"),
    same("config.linkerd.io/proxy-ephemeral-storage-request", "ephemeral-storage-request"),
    same("config.linkerd.io/proxy-ephemeral-storage-limit", "ephemeral-storage-limit"),
    same("config.linkerd.io/proxy-uid", "uid"),
    same("config.linkerd.io/proxy-log-format", "log-format"),
    same("config.linkerd.io/proxy-outbound-connect-timeout", "outbound-connect-timeout"),
    same("config.linkerd.io/proxy-inbound-connect-timeout", "inbound-connect-timeout"),
    same("config.linkerd.io/shutdown-grace-period", "shutdown-grace-period"),
    same("config.linkerd.io/proxy-admin-shutdown", "admin-shutdown"),
    same("config.linkerd.io/access-log", "access-log"),
    words("config.linkerd.io/proxy-enable-native-sidecar", "native-sidecar", ON),
    words("config.beta.linkerd.io/proxy-enable-native-sidecar", "native-sidecar", ON),
    words("config.alpha.linkerd.io/proxy-enable-native-sidecar", "native-sidecar", ON),
    Theirs { key: "config.alpha.linkerd.io/proxy-wait-before-exit-seconds", means: Means::Seconds("wait-before-exit") },
    words("viz.linkerd.io/disable-tap", "tap", &[("true", "disabled"), ("false", "enabled")]),
    nothing("linkerd.io/inject", "two meshes may share a cluster, and each is asked for itself: gossamer.io/inject"),
    nothing("config.linkerd.io/proxy-image", "it names Linkerd's proxy; ours is config.gossamer.io/image"),
    nothing("config.linkerd.io/proxy-version", "it is Linkerd's version; ours is config.gossamer.io/image"),
    nothing("config.linkerd.io/proxy-log-level", "it names Linkerd's modules; ours is config.gossamer.io/log-level"),
    nothing("config.linkerd.io/proxy-log-http-headers", "headers are never logged; meshctl tap shows them on request"),
    nothing("config.linkerd.io/proxy-gid", "the proxy's group has the number of its user, and nothing depends on it"),
    nothing(
        "config.linkerd.io/proxy-cpu-ratio-limit",
        "one thread moves more than a core of most workloads asks for; config.gossamer.io/workers or cpu-limit add some",
    ),
    nothing(
        "config.linkerd.io/proxy-outbound-discovery-cache-unused-timeout",
        "what is known is kept for an hour, so that it outlives an outage of the control plane; its number is bounded",
    ),
    nothing(
        "config.linkerd.io/proxy-inbound-discovery-cache-unused-timeout",
        "what is known is kept for an hour, so that it outlives an outage of the control plane; its number is bounded",
    ),
    nothing(
        "config.linkerd.io/proxy-disable-outbound-protocol-detect-timeout",
        "a silent client is forwarded after 20 ms, whoever speaks first: config.gossamer.io/detect-patience",
    ),
    nothing(
        "config.linkerd.io/proxy-disable-inbound-protocol-detect-timeout",
        "a silent client is forwarded after 20 ms, whoever speaks first: config.gossamer.io/detect-patience",
    ),
    nothing("config.linkerd.io/proxy-await", "the application always waits: before, it would send plain text"),
    nothing(
        "config.linkerd.io/proxy-additional-env",
        "every setting of the proxy has an annotation; others would let a workload undo its redirection",
    ),
    nothing("config.linkerd.io/proxy-metrics-hostname-labels", "metrics have the authority that was asked for"),
    nothing("config.linkerd.io/inbound-port", PORTS),
    nothing("config.linkerd.io/outbound-port", PORTS),
    nothing("config.linkerd.io/control-port", PORTS),
    nothing("config.linkerd.io/admin-port", PORTS),
    nothing("config.linkerd.io/pod-inbound-ports", "the kernel tells which ports are listened on"),
    nothing("config.linkerd.io/enable-external-profiles", "there are no ServiceProfiles"),
    nothing("config.linkerd.io/enable-gateway", "there is no gateway between clusters"),
    nothing(
        "config.linkerd.io/close-wait-timeout",
        "connections end with their proxy; the kernel's table is not touched",
    ),
    nothing("config.linkerd.io/enable-debug-sidecar", DEBUG),
    nothing("config.linkerd.io/debug-image*", DEBUG),
    nothing(
        "config.linkerd.io/admission-webhooks",
        "it is a label of namespaces: config.gossamer.io/admission-webhooks",
    ),
    nothing("resource.opentelemetry.io/*", "proxies send no spans; they pass on trace headers"),
];

const ON: &[(&str, &str)] = &[("true", "enabled"), ("false", "disabled")];
const PORTS: &str = "proxies know each other's ports, which are the same everywhere";
const DEBUG: &str = "kubectl debug adds a container to a pod that runs";

const fn same(key: &'static str, ours: &'static str) -> Theirs {
    Theirs { key, means: Means::Same(ours) }
}

const fn words(key: &'static str, ours: &'static str, words: &'static [(&'static str, &'static str)]) -> Theirs {
    Theirs { key, means: Means::Words(ours, words) }
}

const fn nothing(key: &'static str, why: &'static str) -> Theirs {
    Theirs { key, means: Means::Nothing(why) }
}

impl Theirs {
    /// Our setting.
    pub fn ours(&self) -> Option<&'static str> {
        match self.means {
            Means::Same(ours) | Means::Words(ours, _) | Means::Seconds(ours) => Some(ours),
            Means::Nothing(_) => None,
        }
    }

    /// A value in our words; one that is none of theirs stays, and is found to be wrong.
    fn translate(&self, value: &str) -> String {
        match self.means {
            Means::Words(_, words) => {
                words.iter().find(|(theirs, _)| *theirs == value).map_or(value, |(_, ours)| ours).into()
            }
            Means::Seconds(_) => format!("{value}s"),
            Means::Same(_) | Means::Nothing(_) => value.into(),
        }
    }

    fn is(&self, key: &str) -> bool {
        match self.key.strip_suffix('*') {
            Some(prefix) => key.starts_with(prefix),
            None => key == self.key,
        }
    }
}

/// What Linkerd's annotations say of one of our settings: the key, and the value in our words.
pub fn value(annotations: &Map, ours: &str) -> Option<(String, String)> {
    let mut theirs = LINKERD.iter().filter(|theirs| theirs.ours() == Some(ours));
    theirs.find_map(|theirs| Some((theirs.key.into(), theirs.translate(annotations.get(theirs.key)?.trim()))))
}

/// Warnings for those that have no effect here, each with the reason.
pub fn without_effect(annotations: &Map) -> impl Iterator<Item = String> + '_ {
    annotations.keys().filter_map(|key| {
        let Means::Nothing(why) = LINKERD.iter().find(|theirs| theirs.is(key))?.means else { return None };
        Some(format!("annotation {key:?} has no effect: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings;

    fn map(of: &[(&str, &str)]) -> Map {
        of.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
    }

    #[test]
    fn what_they_mean_is_a_setting() {
        for theirs in LINKERD {
            let known = theirs.ours().is_none_or(|ours| settings::all().any(|setting| setting.name == ours));
            assert!(known, "{}", theirs.key);
        }
    }

    #[test]
    fn values_are_put_into_our_words() {
        let all = map(&[
            ("config.alpha.linkerd.io/proxy-wait-before-exit-seconds", "7"),
            ("viz.linkerd.io/disable-tap", "true"),
            ("config.beta.linkerd.io/proxy-enable-native-sidecar", "maybe"),
        ]);
        let said = |ours| value(&all, ours).map(|(_, value)| value);
        assert_eq!(said("wait-before-exit").as_deref(), Some("7s"));
        assert_eq!(said("tap").as_deref(), Some("disabled"));
        assert_eq!((said("native-sidecar").as_deref(), said("uid")), (Some("maybe"), None));
    }

    #[test]
    fn what_has_no_effect_says_why() {
        let all = map(&[
            ("config.linkerd.io/debug-image-version", "1"),
            ("config.linkerd.io/proxy-image", "cr.l5d.io/linkerd/proxy"),
            ("config.linkerd.io/skip-inbound-ports", "1"),
            ("linkerd.io/created-by", "linkerd/cli"),
        ]);
        let warnings: Vec<_> = without_effect(&all).collect();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(
            warnings[0].ends_with("has no effect: kubectl debug adds a container to a pod that runs"),
            "{warnings:?}"
        );
    }
}
