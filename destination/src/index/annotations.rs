//! What annotations say: settings of workloads and namespaces, retries, timeouts and breakers of services and routes.
//!
//! Each is understood under our prefix and under Linkerd's, with Linkerd's meaning; ours wins where both are given. One
//! that can't be read is ignored and reported.

use gossamer_api::defaults;
use gossamer_api::kubernetes::Map;
use gossamer_api::policy::{
    Backoff, Breaker, Delay, Extension, Failure, Filter, Load, LoadPenalty, Retry, SuccessRate, Timeouts,
};
use gossamer_api::settings::{Ports, parse_duration};
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

/// A setting of a workload, namespace or service (`config.gossamer.io/NAME`).
pub(super) fn config<T: FromStr<Err: Display>>(from: &Map, name: &str, problems: &mut Vec<String>) -> Option<T> {
    read(from, &["config"], name, problems, |value| value.parse::<T>().map_err(|e| e.to_string()))
}

/// Ports whose clients need an identity; Linkerd's name is another.
pub(super) fn require_identity(from: &Map, problems: &mut Vec<String>) -> Option<Ports> {
    let ours = config(from, "require-identity-inbound-ports", problems);
    ours.or_else(|| config(from, "proxy-require-identity-inbound-ports", problems))
}

/// Timeouts (`timeout.gossamer.io/{request,response,idle}`).
pub(super) fn timeouts(from: &Map, problems: &mut Vec<String>) -> Timeouts {
    let mut timeout = |name| read(from, &["timeout"], name, problems, duration).filter(|t| !t.is_zero());
    Timeouts { request: timeout("request"), response: timeout("response"), idle: timeout("idle") }
}

/// Retries (`retry.gossamer.io/{http,grpc,limit,timeout}`); `None` when nothing is said.
pub(super) fn retry(from: &Map, problems: &mut Vec<String>) -> Option<Retry> {
    let http = read(from, &["retry"], "http", problems, statuses);
    let grpc = read(from, &["retry"], "grpc", problems, grpc_codes);
    let limit = read(from, &["retry"], "limit", problems, |v| v.parse::<u16>().map_err(|e| e.to_string()));
    let timeout = read(from, &["retry"], "timeout", problems, duration).filter(|t| !t.is_zero());
    if http.is_none() && grpc.is_none() && limit.is_none() && timeout.is_none() {
        return None;
    }
    Some(Retry {
        // Linkerd's: one, once any retry annotation is there.
        limit: limit.map_or(1, u32::from),
        max_body: defaults::RETRY_MAX_BODY,
        statuses: http.unwrap_or_default(),
        grpc_codes: grpc.unwrap_or_default(),
        timeout,
        backoff: Some(retry_backoff()),
    })
}

/// Faults for tests of those who call (`fault.gossamer.io/{delay,abort}`, for a share of requests with `-percent`). An
/// abort is an HTTP status, or a gRPC code on a gRPC route.
pub(super) fn faults(from: &Map, grpc: bool, problems: &mut Vec<String>) -> Vec<Filter> {
    let percent = |name: &str, problems: &mut Vec<String>| {
        let share = read(from, FAULT, name, problems, |v| match v.parse::<u32>() {
            Ok(percent) if percent <= 100 => Ok(percent),
            _ => Err("a whole number from 0 to 100".into()),
        });
        (share.unwrap_or(100), 100)
    };
    let status = |value: &str| match value.parse::<u16>() {
        Ok(code) if grpc && (1..=16).contains(&code) => Ok(code),
        Ok(status) if !grpc && (400..600).contains(&status) => Ok(status),
        _ if grpc => Err("a gRPC code from 1 to 16".into()),
        _ => Err("an HTTP status from 400 to 599".into()),
    };
    let mut faults = Vec::new();
    if let Some(status) = read(from, FAULT, "abort", problems, status) {
        let message = "by the route's annotation".into();
        faults.push(Filter::Fail(Failure { status, message, ratio: percent("abort-percent", problems) }));
    }
    if let Some(time) = read(from, FAULT, "delay", problems, duration) {
        let delay = Extension::Delay(Delay { time, ratio: percent("delay-percent", problems) });
        faults.push(Filter::Extension(Box::new(delay)));
    }
    faults
}

/// Waits between attempts. Source: Linkerd's policy controller (25 to 250 ms, jitter 1).
pub(super) fn retry_backoff() -> Backoff {
    Backoff {
        min: defaults::RETRY_BACKOFF_MIN,
        max: defaults::RETRY_BACKOFF_MAX,
        jitter: 1.0,
        respect_retry_after: false,
    }
}

/// The breaker (`balancer.gossamer.io/failure-accrual*`): on by default, `none` turns it off.
pub(super) fn breaker(from: &Map, problems: &mut Vec<String>) -> Option<Breaker> {
    let mode = read(from, BALANCER, "failure-accrual", problems, |value| match value {
        "consecutive" | "unified" | "none" => Ok(value.to_string()),
        _ => Err("consecutive, unified or none".into()),
    });
    if mode.as_deref() == Some("none") {
        return None;
    }
    let default = default_breaker();
    let consecutive = |name: &str| format!("failure-accrual-consecutive-{name}");
    let rate = |name: &str| format!("failure-accrual-success-rate-{name}");
    let number = |v: &str| v.parse::<u32>().map_err(|e| e.to_string());
    let max_failures = read(from, BALANCER, &consecutive("max-failures"), problems, number);
    let min = read(from, BALANCER, &consecutive("min-penalty"), problems, duration).filter(|d| !d.is_zero());
    let max = read(from, BALANCER, &consecutive("max-penalty"), problems, duration);
    let jitter = read(from, BALANCER, &consecutive("jitter-ratio"), problems, |v| match v.parse::<f32>() {
        Ok(ratio) if (0.0..=100.0).contains(&ratio) => Ok(ratio),
        _ => Err("a number from 0 to 100".into()),
    });
    let respect = read(from, BALANCER, "failure-accrual-honor-retry-after", problems, boolean);
    let min = min.unwrap_or(default.backoff.min);
    let max = max.unwrap_or(default.backoff.max);
    if min > max {
        problems.push(format!("failure-accrual: min-penalty {min:?} is longer than max-penalty {max:?}"));
    }
    let success_rate = (mode.as_deref() == Some("unified")).then(|| SuccessRate {
        threshold: read(from, BALANCER, &rate("threshold"), problems, |v| match v.parse::<f64>() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
            _ => Err("a number from 0 to 1".into()),
        })
        .unwrap_or(0.8),
        window: read(from, BALANCER, &rate("window"), problems, duration)
            .filter(|window| *window >= Duration::from_millis(10))
            .unwrap_or(Duration::from_secs(10)),
        min_requests: read(from, BALANCER, &rate("min-requests"), problems, number).unwrap_or(5).min(1_000_000),
    });
    Some(Breaker {
        max_failures: max_failures.unwrap_or(default.max_failures),
        backoff: Backoff {
            min,
            max: max.max(min),
            jitter: jitter.unwrap_or(default.backoff.jitter),
            respect_retry_after: respect.unwrap_or(false),
        },
        success_rate,
        min_ready: 1,
    })
}

/// The breaker of everything that says nothing else. Linkerd has none there.
pub(super) fn default_breaker() -> Breaker {
    Breaker {
        max_failures: defaults::BREAKER_MAX_FAILURES,
        backoff: Backoff {
            min: defaults::BREAKER_MIN_PENALTY,
            max: defaults::BREAKER_MAX_PENALTY,
            jitter: defaults::BREAKER_JITTER,
            respect_retry_after: false,
        },
        success_rate: None,
        min_ready: 1,
    }
}

/// How load is judged (`balancer.gossamer.io/{penalize-failures,load-biaser-*}`).
pub(super) fn load(from: &Map, problems: &mut Vec<String>) -> Load {
    let penalize = read(from, BALANCER, "penalize-failures", problems, boolean).unwrap_or(false);
    let penalty = read(from, BALANCER, "load-biaser-penalty", problems, duration);
    let retry_after = read(from, BALANCER, "load-biaser-max-retry-after", problems, duration);
    Load {
        penalty: penalize.then(|| LoadPenalty {
            penalty: penalty.unwrap_or(Duration::from_secs(5)),
            max_retry_after: retry_after.unwrap_or(Duration::from_secs(300)),
            decay: defaults::EWMA_DECAY,
        }),
        ..default_load()
    }
}

/// Linkerd's.
pub(super) fn default_load() -> Load {
    Load { default_rtt: defaults::EWMA_DEFAULT_RTT, decay: defaults::EWMA_DECAY, penalty: None }
}

/// Ours first, so that it wins.
fn read<T>(
    from: &Map,
    groups: &[&str],
    name: &str,
    problems: &mut Vec<String>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let keys = ["gossamer.io", "linkerd.io"]
        .iter()
        .flat_map(|domain| groups.iter().map(move |group| format!("{group}.{domain}/{name}")));
    let (key, value) = keys.into_iter().find_map(|key| from.get(&key).map(|value| (key, value.trim())))?;
    match parse(value) {
        Ok(value) => Some(value),
        Err(reason) => {
            problems.push(format!("annotation {key}: {value:?} is ignored: {reason}"));
            None
        }
    }
}

fn duration(value: &str) -> Result<Duration, String> {
    parse_duration(value).ok_or_else(|| "a duration as 500ms, 1s, 5m".into())
}

fn boolean(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "true or false".into())
}

fn statuses(value: &str) -> Result<Vec<(u16, u16)>, String> {
    let status = |text: &str| match text.parse::<u16>() {
        Ok(status) if (100..600).contains(&status) => Ok(status),
        _ => Err(format!("{text:?} is no status")),
    };
    let one = |part: &str| match part {
        "5xx" => Ok((500, 599)),
        "gateway-error" => Ok((502, 504)),
        _ => {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (status(first)?, status(last)?);
            if first <= last { Ok((first, last)) } else { Err(format!("{part:?} runs backwards")) }
        }
    };
    parts(value).map(one).collect()
}

fn grpc_codes(value: &str) -> Result<Vec<u16>, String> {
    let one = |part: &str| match part.to_ascii_lowercase().as_str() {
        "cancelled" => Ok(1),
        "deadline-exceeded" => Ok(4),
        "resource-exhausted" => Ok(8),
        "internal" => Ok(13),
        "unavailable" => Ok(14),
        _ => {
            Err(format!("{part:?} is none of cancelled, deadline-exceeded, internal, resource-exhausted, unavailable"))
        }
    };
    parts(value).map(one).collect()
}

fn parts(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|part| !part.is_empty())
}

const FAULT: &[&str] = &["fault"];
/// Linkerd keeps its younger annotations under an `alpha` name.
const BALANCER: &[&str] = &["balancer", "balancer.alpha"];

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Map {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn retries_as_linkerd_writes_them() {
        let mut problems = Vec::new();
        assert_eq!(retry(&Map::new(), &mut problems), None);
        let from = map(&[("retry.linkerd.io/http", "5xx,404,409-410"), ("retry.linkerd.io/grpc", "unavailable")]);
        let retry = retry(&from, &mut problems).unwrap();
        assert_eq!(retry.statuses, [(500, 599), (404, 404), (409, 410)]);
        assert_eq!((retry.grpc_codes, retry.limit), (vec![14], 1));
        assert!(problems.is_empty());
    }

    #[test]
    fn ours_wins_and_nonsense_is_reported() {
        let mut problems = Vec::new();
        let from = map(&[
            ("timeout.linkerd.io/request", "1s"),
            ("timeout.gossamer.io/request", "2s"),
            ("timeout.linkerd.io/idle", "soon"),
        ]);
        let timeouts = timeouts(&from, &mut problems);
        assert_eq!((timeouts.request, timeouts.idle), (Some(Duration::from_secs(2)), None));
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn faults_have_a_share_and_speak_the_routes_language() {
        let mut problems = Vec::new();
        assert_eq!(faults(&Map::new(), false, &mut problems), []);
        let from = map(&[
            ("fault.gossamer.io/abort", "503"),
            ("fault.gossamer.io/delay", "150ms"),
            ("fault.gossamer.io/delay-percent", "10"),
        ]);
        let [Filter::Fail(abort), Filter::Extension(delay)] = &faults(&from, false, &mut problems)[..] else {
            panic!()
        };
        assert_eq!((abort.status, abort.ratio), (503, (100, 100)));
        let expected = Delay { time: Duration::from_millis(150), ratio: (10, 100) };
        assert_eq!(**delay, Extension::Delay(expected));
        assert_eq!(faults(&from, true, &mut problems).len(), 1);
        assert!(problems[0].contains("a gRPC code"), "{problems:?}");
    }

    #[test]
    fn the_breaker_is_on_unless_turned_off() {
        let mut problems = Vec::new();
        assert_eq!(breaker(&Map::new(), &mut problems), Some(default_breaker()));
        assert_eq!(breaker(&map(&[("balancer.gossamer.io/failure-accrual", "none")]), &mut problems), None);
        let from = map(&[
            ("balancer.linkerd.io/failure-accrual", "unified"),
            ("balancer.linkerd.io/failure-accrual-consecutive-max-failures", "3"),
            ("balancer.alpha.linkerd.io/failure-accrual-success-rate-threshold", "0.5"),
        ]);
        let breaker = breaker(&from, &mut problems).unwrap();
        assert_eq!((breaker.max_failures, breaker.success_rate.unwrap().threshold), (3, 0.5));
        assert!(problems.is_empty());
    }
}
