//! Which annotations an object of Kubernetes may have, and what they may hold.

use super::{Verdict, nearest};
use crate::kubernetes::Map;
use crate::settings::{Ports, parse_duration};
use serde_json::Value;

/// What an annotation may hold.
#[derive(Clone, Copy)]
pub(super) enum Form {
    Duration,
    Number,
    Ratio(f64),
    Boolean,
    Ports,
    Statuses,
    GrpcCodes,
    Accrual,
    Percent,
    HttpFault,
    GrpcFault,
}

/// Annotations of ours with values that can't be read are refused; Linkerd's, which are understood as well, may be
/// written for somebody else.
pub(super) fn annotations(object: &Value, known: &[&[(&str, Form)]], to: &mut Verdict) {
    let members = object["metadata"]["annotations"].as_object().into_iter().flatten();
    let annotations: Map = members.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect();
    for (key, value) in &annotations {
        let Some((prefix, name)) = key.split_once('/') else { continue };
        let (group, ours) = match (prefix.strip_suffix(".gossamer.io"), prefix.strip_suffix(".linkerd.io")) {
            (Some(group), _) => (group, true),
            (_, Some(group)) => (group.trim_end_matches(".alpha"), false),
            _ => continue,
        };
        if !GROUPS.contains(&group) {
            continue;
        }
        let wanted = format!("{group}/{name}");
        let Some((_, form)) = known.iter().copied().flatten().find(|(one, _)| *one == wanted) else {
            if ours {
                let names = known.iter().copied().flatten().map(|(one, _)| *one);
                let hint = nearest(&wanted, names).and_then(|one| one.split_once('/'));
                let hint = hint.map(|(group, name)| format!("; did you mean \"{group}.gossamer.io/{name}\"?"));
                to.warn(format!("annotation {key:?} is not known here and has no effect{}", hint.unwrap_or_default()));
            }
            continue;
        };
        let Err(expected) = form.check(value.trim()) else { continue };
        let (field, reason) = (format!("metadata.annotations[{key:?}]"), format!("{value:?} is not valid"));
        match ours {
            true => to.error(field, reason, format!("expected {expected}")),
            false => to.warn(format!("{field}: {reason} and is ignored; expected {expected}")),
        }
    }
}

impl Form {
    /// What is expected, if the value is something else.
    fn check(self, value: &str) -> Result<(), String> {
        let parts = || value.split(',').map(str::trim).filter(|part| !part.is_empty());
        let expect = |is: bool, what: &str| if is { Ok(()) } else { Err(what.to_string()) };
        match self {
            Form::Duration => expect(parse_duration(value).is_some(), "a duration as 500ms, 1s, 5m"),
            Form::Number => expect(value.parse::<u16>().is_ok(), "a number from 0 to 65535"),
            Form::Ratio(max) => {
                let is = value.parse::<f64>().is_ok_and(|ratio| (0.0..=max).contains(&ratio));
                expect(is, &format!("a number from 0 to {max}"))
            }
            Form::Boolean => expect(matches!(value, "true" | "false"), "true or false"),
            Form::Ports => value.parse::<Ports>().map(drop).map_err(|error| format!("ports and ranges{error}")),
            Form::Statuses => expect(parts().all(is_status), "statuses: 5xx, gateway-error, 503, 500-504"),
            Form::GrpcCodes => expect(
                parts().all(|part| GRPC_CODES.contains(&part.to_ascii_lowercase().as_str())),
                &GRPC_CODES.join(", "),
            ),
            Form::Percent => {
                expect(value.parse::<u32>().is_ok_and(|percent| percent <= 100), "a whole number from 0 to 100")
            }
            Form::HttpFault => {
                let is = value.parse::<u16>().is_ok_and(|status| (400..600).contains(&status));
                expect(is, "an HTTP status from 400 to 599")
            }
            Form::GrpcFault => {
                expect(value.parse::<u16>().is_ok_and(|code| (1..=16).contains(&code)), "a gRPC code from 1 to 16")
            }
            Form::Accrual => {
                expect(matches!(value, "consecutive" | "unified" | "none"), "consecutive, unified or none")
            }
        }
    }
}

fn is_status(part: &str) -> bool {
    let status = |text: &str| text.parse::<u16>().ok().filter(|status| (100..600).contains(status));
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    matches!(part, "5xx" | "gateway-error") || matches!((status(first), status(last)), (Some(a), Some(b)) if a <= b)
}

const GROUPS: &[&str] = &["retry", "timeout", "balancer", "config", "fault"];

pub(super) const ROUTE_ANNOTATIONS: &[(&str, Form)] = &[
    ("retry/http", Form::Statuses),
    ("retry/grpc", Form::GrpcCodes),
    ("retry/limit", Form::Number),
    ("retry/timeout", Form::Duration),
    ("timeout/request", Form::Duration),
    ("timeout/response", Form::Duration),
    ("timeout/idle", Form::Duration),
];

/// Only where it is a route's, and an abort in the route's own terms.
pub(super) const HTTP_FAULTS: &[(&str, Form)] = &[
    ("fault/abort", Form::HttpFault),
    ("fault/abort-percent", Form::Percent),
    ("fault/delay", Form::Duration),
    ("fault/delay-percent", Form::Percent),
];

pub(super) const GRPC_FAULTS: &[(&str, Form)] = &[
    ("fault/abort", Form::GrpcFault),
    ("fault/abort-percent", Form::Percent),
    ("fault/delay", Form::Duration),
    ("fault/delay-percent", Form::Percent),
];

/// What only a Service may have; it has those of its routes as well.
pub(super) const SERVICE_ANNOTATIONS: &[(&str, Form)] = &[
    ("config/opaque-ports", Form::Ports),
    ("balancer/failure-accrual", Form::Accrual),
    ("balancer/failure-accrual-consecutive-max-failures", Form::Number),
    ("balancer/failure-accrual-consecutive-min-penalty", Form::Duration),
    ("balancer/failure-accrual-consecutive-max-penalty", Form::Duration),
    ("balancer/failure-accrual-consecutive-jitter-ratio", Form::Ratio(100.0)),
    ("balancer/failure-accrual-success-rate-threshold", Form::Ratio(1.0)),
    ("balancer/failure-accrual-success-rate-window", Form::Duration),
    ("balancer/failure-accrual-success-rate-min-requests", Form::Number),
    ("balancer/failure-accrual-honor-retry-after", Form::Boolean),
    ("balancer/penalize-failures", Form::Boolean),
    ("balancer/load-biaser-penalty", Form::Duration),
    ("balancer/load-biaser-max-retry-after", Form::Duration),
];

const GRPC_CODES: &[&str] = &["cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"];
