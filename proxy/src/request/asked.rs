//! What a client may ask for by headers where the route allows it: `l5d-retry-*` and `l5d-*timeout`.
//!
//! Source: linkerd2-proxy (outbound/src/http/logical/policy/route/extensions.rs), values and all. A value that is not
//! understood asks for nothing. Without the route's permission the headers are ordinary ones.

use gossamer_api::defaults;
use gossamer_api::policy::{Backoff, Retry, Timeouts};
use gossamer_engine::Headers;
use std::time::Duration;

/// A route's retries and timeouts as one request wants them.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// When and how often again.
    pub retry: Option<Retry>,
    /// How long.
    pub timeouts: Timeouts,
}

/// Takes what a client asks for out of its headers; `None`: nothing.
pub fn take(headers: &mut Headers, retry: Option<&Retry>, timeouts: Timeouts) -> Option<Box<Asked>> {
    if !headers.iter().any(|(name, _)| name.starts_with(b"l5d-")) {
        return None;
    }
    let statuses = value(headers, "l5d-retry-http").map(|list| list.split(',').filter_map(statuses).collect());
    let grpc_codes = value(headers, "l5d-retry-grpc").map(|list| list.split(',').filter_map(grpc_code).collect());
    let limit = value(headers, "l5d-retry-limit").and_then(|limit| limit.parse().ok());
    let timeout = value(headers, "l5d-retry-timeout").and_then(|text| duration(&text));
    let mut asked = Asked { retry: retry.cloned(), timeouts };
    if statuses.is_some() || grpc_codes.is_some() || limit.is_some() || timeout.is_some() {
        let retry = asked.retry.get_or_insert_with(retry_of_clients);
        retry.statuses = statuses.unwrap_or(std::mem::take(&mut retry.statuses));
        retry.grpc_codes = grpc_codes.unwrap_or(std::mem::take(&mut retry.grpc_codes));
        retry.limit = limit.unwrap_or(retry.limit);
        retry.timeout = timeout.or(retry.timeout);
    }
    let mut limit = |name| value(headers, name).and_then(|text| duration(&text));
    let (short, explicit) = (limit("l5d-timeout"), limit("l5d-request-timeout"));
    asked.timeouts.request = explicit.or(short).or(timeouts.request);
    asked.timeouts.response = limit("l5d-response-timeout").or(timeouts.response);
    Some(Box::new(asked))
}

/// Where the route has no retries of its own.
fn retry_of_clients() -> Retry {
    let (min, max) = (defaults::RETRY_BACKOFF_MIN, defaults::RETRY_BACKOFF_MAX);
    Retry {
        limit: 1,
        max_body: defaults::RETRY_MAX_BODY,
        statuses: Vec::new(),
        grpc_codes: Vec::new(),
        timeout: None,
        backoff: Some(Backoff { min, max, jitter: 1.0, respect_retry_after: false }),
    }
}

/// The first of that name; all of them go.
fn value(headers: &mut Headers, name: &str) -> Option<String> {
    let value = headers.get_str(name).map(str::to_string);
    headers.remove(name);
    value
}

/// `5xx`, `gateway-error`, `503` or `500-504`.
fn statuses(condition: &str) -> Option<(u16, u16)> {
    let status = |text: &str| text.parse().ok().filter(|status| (100..600).contains(status));
    match condition {
        _ if condition.eq_ignore_ascii_case("5xx") => Some((500, 599)),
        _ if condition.eq_ignore_ascii_case("gateway-error") => Some((502, 504)),
        _ => {
            let (first, last) = condition.split_once('-').unwrap_or((condition, condition));
            Some((status(first)?, status(last)?)).filter(|(first, last)| first <= last)
        }
    }
}

fn grpc_code(condition: &str) -> Option<u16> {
    const CODES: [(&str, u16); 5] =
        [("cancelled", 1), ("deadline-exceeded", 4), ("resource-exhausted", 8), ("internal", 13), ("unavailable", 14)];
    CODES.iter().find(|(name, _)| condition.eq_ignore_ascii_case(name)).map(|(_, code)| *code)
}

/// `0`, `100ms`, `2s`, `1m`, `1h`, `1d`.
fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let count = text[..digits].parse::<u64>().ok()?;
    let unit: u64 = match &text[digits..] {
        "" if count == 0 => 1,
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    // What is longer is no limit, and must not overflow the clock.
    let millis = count.checked_mul(unit).filter(|millis| *millis <= 365 * 86_400_000)?;
    Some(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        fields.iter().for_each(|(name, value)| headers.append(name, value));
        headers
    }

    fn asked(fields: &[(&str, &str)], retry: Option<&Retry>, timeouts: Timeouts) -> (Option<Box<Asked>>, usize) {
        let mut headers = headers(fields);
        let asked = take(&mut headers, retry, timeouts);
        (asked, headers.len())
    }

    const MS: fn(u64) -> Option<Duration> = |ms| Some(Duration::from_millis(ms));

    #[test]
    fn retries_are_asked_for_and_the_headers_go() {
        let fields = [
            ("accept", "*/*"),
            ("l5d-retry-http", "5xx,404,gateway-error,200-299,9,abc,504-500"),
            ("l5d-retry-grpc", "Unavailable,internal,ok"),
            ("l5d-retry-limit", "3"),
            ("l5d-retry-timeout", "20ms"),
        ];
        let (asked, left) = asked(&fields, None, Timeouts::default());
        let retry = asked.unwrap().retry.unwrap();
        assert_eq!(left, 1);
        assert_eq!(retry.statuses, [(500, 599), (404, 404), (502, 504), (200, 299)]);
        assert_eq!((&retry.grpc_codes[..], retry.limit, retry.timeout), (&[14, 13][..], 3, MS(20)));
        assert_eq!((retry.max_body, retry.backoff.unwrap().max), (64 * 1024, Duration::from_millis(250)));
    }

    #[test]
    fn what_is_not_asked_for_stays_the_routes() {
        let own = Retry { limit: 5, statuses: vec![(500, 500)], backoff: None, ..retry_of_clients() };
        let timeouts = Timeouts { request: MS(1000), response: MS(900), idle: MS(800) };
        let (change, _) = asked(&[("l5d-retry-limit", "0"), ("l5d-timeout", "2s")], Some(&own), timeouts);
        let expect = Asked {
            retry: Some(Retry { limit: 0, ..own.clone() }),
            timeouts: Timeouts { request: MS(2000), ..timeouts },
        };
        assert_eq!(change, Some(Box::new(expect)));
        let (same, left) = asked(&[("l5d-retry-limit", "x"), ("l5d-timeout", "soon")], Some(&own), timeouts);
        assert_eq!((same.unwrap(), left), (Box::new(Asked { retry: Some(own.clone()), timeouts }), 0));
        let (none, _) = asked(&[("accept", "*/*")], Some(&own), timeouts);
        assert_eq!(none, None);
        let (alone, _) = asked(&[("l5d-response-timeout", "1s")], None, timeouts);
        assert_eq!((alone.as_ref().unwrap().retry.clone(), alone.unwrap().timeouts.response), (None, MS(1000)));
        let both = [("l5d-request-timeout", "3s"), ("l5d-timeout", "1s")];
        assert_eq!(asked(&both, None, timeouts).0.unwrap().timeouts.request, MS(3000), "the longer name counts");
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, expect) in [
            ("0", MS(0)),
            ("10ms", MS(10)),
            (" 2s ", MS(2000)),
            ("1m", MS(60_000)),
            ("1h", MS(3_600_000)),
            ("1d", MS(86_400_000)),
            ("1", None),
            ("", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
            ("18446744073709551ms", None),
        ] {
            assert_eq!(duration(text), expect, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_taken(text in "[0-9a-zA-Z,. -]{0,24}|\\PC{0,12}") {
            let names = ["l5d-retry-http", "l5d-retry-grpc", "l5d-retry-limit", "l5d-retry-timeout", "l5d-timeout",
                "l5d-request-timeout", "l5d-response-timeout"];
            let (asked, left) = asked(&names.map(|name| (name, text.as_str())), None, Timeouts::default());
            prop_assert_eq!(left, 0);
            for (first, last) in asked.into_iter().filter_map(|asked| asked.retry).flat_map(|retry| retry.statuses) {
                prop_assert!(100 <= first && first <= last && last < 600);
            }
        }
    }
}
