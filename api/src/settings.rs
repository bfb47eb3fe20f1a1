//! Every knob of the proxy: one entry gives its environment variable, annotation, default, help and parser.
//!
//! Text becomes typed values once, at start. A bad value names the knob, the value, the accepted form and where it
//! came from.

use crate::defaults;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// One knob.
pub struct Setting {
    /// `words-with-hyphens`; environment `MESH_WORDS_WITH_HYPHENS`, annotation `config.gossamer.io/words-with-hyphens`.
    pub name: &'static str,
    /// What a value looks like, for help and errors.
    pub form: &'static str,
    /// The value when nothing is set, as it would be written.
    pub default: fn() -> String,
    /// One line.
    pub help: &'static str,
    /// May be set per workload by annotation. The others belong to whoever starts the proxy.
    pub annotation: bool,
}

macro_rules! settings {
    ($($name:literal $form:literal $ann:ident $default:expr => $help:literal;)*) => {
        &[$(Setting { name: $name, form: $form, default: || $default, help: $help, annotation: settings!(@ $ann) }),*]
    };
    (@ annotation) => { true };
    (@ process) => { false };
}

/// Every knob of the proxy, in the order of the README's table.
pub const PROXY: &[Setting] = settings! {
    "outbound-listen" "address:port, comma-separated" process format!("127.0.0.1:{p},[::1]:{p}", p = defaults::OUTBOUND_PORT) => "Where the workload's connections are taken";
    "inbound-listen" "address:port, comma-separated" process format!("0.0.0.0:{p},[::]:{p}", p = defaults::INBOUND_PORT) => "Where connections to the workload are taken";
    "admin-listen" "address:port" process format!("0.0.0.0:{}", defaults::ADMIN_PORT) => "Metrics, probes, log level";
    "tap-listen" "address:port, or empty for none" process format!("127.0.0.1:{}", defaults::TAP_PORT) => "The tap API; whoever reaches it sees requests, so not other pods";
    "forward" "local-address=host:port, comma-separated" process String::new() => "Explicit local ports for targets, where connections are not redirected";
    "redirect" "true or false" process "false".into() => "Set the redirection of this network namespace at start";
    "socket-mark" "number" process "0".into() => "Mark on the proxy's own sockets that exempts them from redirection; 0: by user id";
    "identity-addr" "host:port" process String::new() => "The identity service";
    "identity-name" "identity" process String::new() => "The identity that the identity service must show";
    "destination-addr" "host:port" process String::new() => "The destination service";
    "destination-name" "identity" process String::new() => "The identity that the destination service must show";
    "policy-addr" "host:port" process String::new() => "The policy service; empty: the destination service's address";
    "policy-name" "identity" process String::new() => "The identity that the policy service must show";
    "trust-anchors" "PEM, or a file's path" process String::new() => "Roots of trust; empty: no identity, no meshed traffic";
    "local-identity" "identity" process String::new() => "The identity to ask for";
    "token-file" "path" process String::new() => "The token that proves it; read anew for each request";
    "state-dir" "path" process String::new() => "Where the newest roots of trust are kept for a proxy that is started again; empty: nowhere";
    "control-namespace" "namespace" process String::new() => "Where the control plane lives; its addresses and names, and ours, then follow from it (default where a service account is given: gossamer)";
    "cluster-domain" "DNS suffix" process defaults::CLUSTER_DOMAIN.into() => "The end of every service's name";
    "trust-domain" "DNS suffix" process defaults::TRUST_DOMAIN.into() => "The end of every identity";
    "service-account" "name" process String::new() => "The workload's service account, which names its identity";
    "namespace" "name" process String::new() => "The workload's namespace";
    "pod" "name" process String::new() => "The workload's pod";
    "node" "name" process String::new() => "The workload's node";
    "workload" "JSON: {\"ns\":…,\"pod\":…}" process String::new() => "Which workload this proxy stands beside";
    "inbound-ips" "addresses, comma-separated" process String::new() => "The workload's addresses; empty: where connections arrived";
    "cluster-networks" "networks, comma-separated" process defaults::CLUSTER_NETWORKS.into() => "Networks where nothing passes without discovery";
    "uid" "number" annotation defaults::PROXY_UID.to_string() => "The user that the proxy becomes when the redirection is set; its connections pass";
    "default-inbound-policy" "all-unauthenticated, all-authenticated, cluster-unauthenticated, cluster-authenticated, deny or audit" annotation defaults::INBOUND_POLICY.into() => "Who may reach the workload where no policy says so";
    "opaque-ports" "ports and ranges, comma-separated" annotation list(defaults::OPAQUE_PORTS) => "Ports whose bytes are not looked at";
    "skip-inbound-ports" "ports and ranges, comma-separated" annotation String::new() => "Inbound ports that bypass the proxy";
    "skip-outbound-ports" "ports and ranges, comma-separated" annotation String::new() => "Outbound ports that bypass the proxy";
    "skip-subnets" "networks, comma-separated" annotation String::new() => "Clients whose connections to the workload bypass the proxy: networks of containers within it";
    "outbound-connect-timeout" "duration" annotation text(defaults::OUTBOUND_CONNECT_TIMEOUT) => "TCP connect to an endpoint";
    "inbound-connect-timeout" "duration" annotation text(defaults::INBOUND_CONNECT_TIMEOUT) => "TCP connect to the workload";
    "detect-patience" "duration" annotation text(defaults::DETECT_PATIENCE) => "Silence of a client after which its connection is forwarded as it is";
    "workers" "number" annotation defaults::WORKERS.to_string() => "Threads that move data";
    "shutdown-grace-period" "duration" annotation text(defaults::SHUTDOWN_GRACE) => "How long a stopping proxy waits for what is in flight";
    "admin-shutdown" "enabled or disabled" annotation "disabled".into() => "Whether POST /shutdown works (from loopback only)";
    "access-log" "json, apache or off" annotation "off".into() => "A line for every request on standard output";
    "log-level" "LEVEL or TARGET=LEVEL, comma-separated: warn,gossamer_proxy::balance=debug" annotation "warn,gossamer=info".into() => "What the proxy logs: off, error, warn, info, debug or trace, of all or of modules whose names begin so";
    "log-format" "plain or json" annotation "plain".into() => "How it logs";
};

fn list(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}

/// A duration as settings are written: `20ms`, `1s`, `5m`, `24h`, `7d`.
pub fn text(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if ms > 0 && ms.is_multiple_of(size) {
            return format!("{}{unit}", ms / size);
        }
    }
    format!("{ms}ms")
}

/// Reads a duration: an integer and `ms`, `s`, `m`, `h` or `d` (Linkerd's form); a bare 0 is allowed.
pub fn parse_duration(value: &str) -> Option<Duration> {
    let value = value.trim();
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = value[..digits].parse().ok()?;
    let ms = match &value[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if number == 0 => 1,
        _ => return None,
    };
    number.checked_mul(ms).map(Duration::from_millis)
}

/// Reads a Gateway API duration (GEP-2257): `1m30s`, `500ms`.
pub fn parse_gep_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |unit| digits + unit);
        sum = sum.checked_add(parse_duration(&rest[..unit])?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(sum)
}

impl Setting {
    /// The environment variable.
    pub fn env(&self) -> String {
        format!("MESH_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }
}

/// A value that a knob does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{source_name}: {value:?} is not valid: expected {form}{detail}")]
pub struct InvalidSetting {
    /// The variable, flag or annotation.
    pub source_name: String,
    /// What it holds.
    pub value: String,
    /// What it may hold.
    pub form: &'static str,
    /// What exactly is wrong, or empty.
    pub detail: String,
}

/// Ports and port ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// True when the port is among them.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|&(first, last)| (first..=last).contains(&port))
    }

    /// First and last of each range.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(value: &str) -> Result<Self, String> {
        let port = |text: &str| match text.trim().parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("; {text:?} is no port")),
        };
        let mut ranges = Vec::new();
        for part in value.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (port(first)?, port(last)?);
            if first > last {
                return Err(format!("; {part:?} runs backwards"));
            }
            ranges.push((first, last));
        }
        Ok(Ports(ranges))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

/// The knobs as text, from the environment, over their defaults.
#[derive(Clone, Debug, Default)]
pub struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// Takes `MESH_*` from the process's environment.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// Takes variables from a function (tests, the injector).
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        Values(PROXY.iter().filter_map(|s| lookup(&s.env()).map(|value| (s.name, value))).collect())
    }

    fn setting(name: &str) -> &'static Setting {
        PROXY.iter().find(|s| s.name == name).expect("callers name knobs of the table; a test reads all of them")
    }

    /// The text of a knob, set or default.
    pub fn text(&self, name: &str) -> String {
        let setting = Self::setting(name);
        self.0.get(setting.name).cloned().unwrap_or_else(setting.default)
    }

    /// A knob through any parser.
    pub fn parse_with<T, E: fmt::Display>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, InvalidSetting> {
        let value = self.text(name);
        parse(value.trim()).map_err(|error| {
            let setting = Self::setting(name);
            let detail = error.to_string();
            InvalidSetting { source_name: setting.env(), value: value.clone(), form: setting.form, detail }
        })
    }

    /// A knob whose type reads itself.
    pub fn parse<T: FromStr>(&self, name: &str) -> Result<T, InvalidSetting> {
        self.parse_with(name, |value| value.parse::<T>().map_err(|_| ""))
    }

    /// `None` when empty.
    pub fn optional<T: FromStr>(&self, name: &str) -> Result<Option<T>, InvalidSetting>
    where
        T::Err: fmt::Display,
    {
        if self.text(name).trim().is_empty() {
            return Ok(None);
        }
        self.parse_with(name, |value| value.parse::<T>().map_err(|error| format!("; {error}"))).map(Some)
    }

    /// A duration.
    pub fn duration(&self, name: &str) -> Result<Duration, InvalidSetting> {
        self.parse_with(name, |value| parse_duration(value).ok_or("; for example 500ms, 1s, 5m"))
    }

    /// Comma-separated values.
    pub fn list<T: FromStr>(&self, name: &str) -> Result<Vec<T>, InvalidSetting> {
        self.parse_with(name, |value| {
            let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(|part| part.parse::<T>().map_err(|_| format!("; {part:?} is not one"))).collect()
        })
    }

    /// Ports and ranges.
    pub fn ports(&self, name: &str) -> Result<Ports, InvalidSetting> {
        self.parse_with(name, |value| value.parse::<Ports>())
    }

    /// One of the two words.
    pub fn either(&self, name: &str, yes: &str, no: &str) -> Result<bool, InvalidSetting> {
        self.parse_with(name, |value| match value {
            v if v == yes => Ok(true),
            v if v == no => Ok(false),
            _ => Err(""),
        })
    }

    /// Listening addresses.
    pub fn addresses(&self, name: &str) -> Result<Vec<SocketAddr>, InvalidSetting> {
        self.list(name)
    }

    /// A value that may be given inline or as a file's path; inline when it has the marker.
    pub fn inline_or_file(&self, name: &str, marker: &str) -> Result<String, InvalidSetting> {
        self.parse_with(name, |value| {
            if value.is_empty() || value.contains(marker) {
                return Ok(value.to_string());
            }
            std::fs::read_to_string(Path::new(value)).map_err(|error| format!("; the file can't be read: {error}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_reads_back() {
        let values = Values::default();
        for name in ["outbound-connect-timeout", "inbound-connect-timeout", "detect-patience", "shutdown-grace-period"]
        {
            values.duration(name).unwrap();
        }
        for name in ["opaque-ports", "skip-inbound-ports", "skip-outbound-ports"] {
            values.ports(name).unwrap();
        }
        assert!(values.ports("opaque-ports").unwrap().contains(3306));
        assert_eq!(values.addresses("outbound-listen").unwrap().len(), 2);
        values.parse::<usize>("workers").unwrap();
        values.list::<ipnet::IpNet>("cluster-networks").unwrap();
        values.list::<ipnet::IpNet>("skip-subnets").unwrap();
        assert!(!values.either("redirect", "true", "false").unwrap());
    }

    #[test]
    fn a_bad_value_names_knob_value_and_form() {
        let values = Values::from_lookup(|name| (name == "MESH_OPAQUE_PORTS").then(|| "25,9-7".to_string()));
        let error = values.ports("opaque-ports").unwrap_err().to_string();
        assert_eq!(
            error,
            "MESH_OPAQUE_PORTS: \"25,9-7\" is not valid: expected ports and ranges, comma-separated; \"9-7\" runs backwards"
        );
    }

    #[test]
    fn durations_print_as_they_are_read() {
        for (value, ms) in [("20ms", 20), ("1s", 1000), ("5m", 300_000), ("2h", 7_200_000), ("1d", 86_400_000)] {
            let duration = parse_duration(value).unwrap();
            assert_eq!((duration.as_millis(), text(duration).as_str()), (ms, value));
        }
        assert!(parse_duration("1").is_none() && parse_duration("s").is_none() && parse_duration("1.5s").is_none());
    }

    #[test]
    fn durations_of_the_gateway_api_have_several_parts() {
        assert_eq!(parse_gep_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_gep_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_gep_duration("0s"), Some(Duration::ZERO));
        for bad in ["", "1", "s", "1x", "1.5s", "-1s"] {
            assert_eq!(parse_gep_duration(bad), None, "{bad}");
        }
    }
}
