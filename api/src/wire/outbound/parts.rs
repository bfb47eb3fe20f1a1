//! Where routes lead to, with breakers, backoff and timeouts.

use super::*;

pub(super) fn backend_to_proto(from: &Backend) -> proto::Backend {
    use backend::{BalanceP2c, EndpointDiscovery, Kind, balance_p2c, endpoint_discovery};
    let kind = match &from.target {
        BackendTarget::Invalid => None,
        BackendTarget::Forward(endpoint) => Some(Kind::Forward(endpoint_to_proto(endpoint))),
        BackendTarget::Balance { authority, load } => Some(Kind::Balancer(BalanceP2c {
            discovery: Some(EndpointDiscovery {
                kind: Some(endpoint_discovery::Kind::Dst(backend::endpoint_discovery::DestinationGet {
                    path: authority.clone(),
                })),
            }),
            load: Some(match load.penalty {
                None => balance_p2c::Load::PeakEwma(balance_p2c::PeakEwma {
                    default_rtt: Some(duration_to_proto(load.default_rtt)),
                    decay: Some(duration_to_proto(load.decay)),
                }),
                Some(penalty) => balance_p2c::Load::PenaltyPeakEwma(balance_p2c::PenaltyPeakEwma {
                    default_rtt: Some(duration_to_proto(load.default_rtt)),
                    decay: Some(duration_to_proto(load.decay)),
                    penalty: Some(duration_to_proto(penalty.penalty)),
                    max_retry_after: Some(duration_to_proto(penalty.max_retry_after)),
                    penalty_decay: Some(duration_to_proto(penalty.decay)),
                }),
            }),
        })),
    };
    proto::Backend {
        metadata: Some(meta_to_proto(&from.meta)),
        kind,
        queue: Some(proto::Queue {
            capacity: from.queue.capacity,
            failfast_timeout: Some(duration_to_proto(from.queue.failfast)),
        }),
    }
}

pub(super) fn backend_from_proto(from: proto::Backend) -> Decoded<Backend> {
    use backend::{Kind, endpoint_discovery};
    let target = match from.kind {
        None => BackendTarget::Invalid,
        Some(Kind::Forward(addr)) => BackendTarget::Forward(Box::new(endpoint_from_proto(addr).within("forward")?)),
        Some(Kind::Balancer(balancer)) => {
            let endpoint_discovery::Kind::Dst(discovery) =
                required(balancer.discovery.and_then(|discovery| discovery.kind), "balancer.discovery")?;
            BackendTarget::Balance {
                authority: discovery.path,
                load: load_from_proto(balancer.load).within("balancer")?,
            }
        }
    };
    let queue = from.queue.unwrap_or(proto::Queue { capacity: defaults::QUEUE_CAPACITY, failfast_timeout: None });
    Ok(Backend {
        meta: meta_required(from.metadata)?,
        queue: Queue {
            capacity: queue.capacity,
            failfast: duration_from_proto(queue.failfast_timeout, "queue.failfast_timeout")?
                .unwrap_or(defaults::QUEUE_FAILFAST),
        },
        target,
    })
}

pub(super) fn load_from_proto(from: Option<backend::balance_p2c::Load>) -> Decoded<Load> {
    use backend::balance_p2c::Load as Kind;
    let or = |duration, field, default| Ok(duration_from_proto(duration, field)?.unwrap_or(default));
    let (default_rtt, decay, penalty) = match from {
        None => (None, None, None),
        Some(Kind::PeakEwma(peak)) => (peak.default_rtt, peak.decay, None),
        Some(Kind::PenaltyPeakEwma(peak)) => {
            // The defaults are linkerd2-proxy's (client-policy lib.rs).
            let penalty = LoadPenalty {
                penalty: or(peak.penalty, "penalty", Duration::from_secs(5))?,
                max_retry_after: or(peak.max_retry_after, "max_retry_after", Duration::from_secs(300))?,
                decay: or(peak.penalty_decay, "penalty_decay", Duration::from_secs(10))?,
            };
            (peak.default_rtt, peak.decay, Some(penalty))
        }
    };
    Ok(Load {
        default_rtt: or(default_rtt, "default_rtt", defaults::EWMA_DEFAULT_RTT)?,
        decay: or(decay, "decay", defaults::EWMA_DECAY)?,
        penalty,
    })
}

pub(super) fn breaker_to_proto(from: &Breaker) -> proto::FailureAccrual {
    let backoff = Some(backoff_to_proto(&from.backoff));
    let kind = match from.success_rate {
        None => failure_accrual::Kind::ConsecutiveFailures(failure_accrual::ConsecutiveFailures {
            max_failures: from.max_failures,
            backoff,
        }),
        // The bounds are linkerd2-proxy's.
        Some(rate) => failure_accrual::Kind::Unified(failure_accrual::Unified {
            success_rate_threshold: if rate.threshold.is_nan() { 0.0 } else { rate.threshold.clamp(0.0, 1.0) },
            decay: Some(duration_to_proto(rate.window.max(Duration::from_millis(10)))),
            min_requests: rate.min_requests.min(1_000_000),
            max_consecutive_failures: from.max_failures,
            backoff,
        }),
    };
    proto::FailureAccrual {
        ejection: Some(proto::EjectionConfig { min_ready_endpoints: from.min_ready }),
        kind: Some(kind),
    }
}

/// A kind of breaker that this version does not know ejects nothing: the traffic goes on.
pub(super) fn breaker_or_none(from: Option<proto::FailureAccrual>) -> Decoded<Option<Breaker>> {
    from.filter(|accrual| accrual.kind.is_some()).map(breaker_from_proto).transpose()
}

pub(super) fn breaker_from_proto(from: proto::FailureAccrual) -> Decoded<Breaker> {
    let backoff = |backoff| backoff_from_proto(required(backoff, "")?).within("backoff");
    // Never the last one, whatever the wire says: a failing answer tells more than none.
    let min_ready = from.ejection.map_or(1, |ejection| ejection.min_ready_endpoints).max(1);
    Ok(match required(from.kind, "kind")? {
        failure_accrual::Kind::ConsecutiveFailures(failures) => Breaker {
            max_failures: failures.max_failures,
            backoff: backoff(failures.backoff)?,
            success_rate: None,
            min_ready,
        },
        failure_accrual::Kind::Unified(unified) => {
            let threshold = unified.success_rate_threshold;
            if !(0.0..=1.0).contains(&threshold) {
                return Err(InvalidMessage::new(
                    "unified.success_rate_threshold",
                    format_args!("{threshold} is not between 0 and 1"),
                ));
            }
            let rate = SuccessRate {
                threshold,
                window: duration_from_proto(unified.decay, "unified.decay")?.unwrap_or(Duration::from_secs(10)),
                min_requests: unified.min_requests,
            };
            Breaker {
                max_failures: unified.max_consecutive_failures,
                backoff: backoff(unified.backoff)?,
                success_rate: (threshold > 0.0).then_some(rate),
                min_ready,
            }
        }
    })
}

pub(super) fn backoff_to_proto(from: &Backoff) -> proto::ExponentialBackoff {
    // linkerd2-proxy: 0 < max, min <= max, 0 <= jitter <= 100.
    let max = from.max.max(from.min).max(Duration::from_millis(1));
    proto::ExponentialBackoff {
        min_backoff: Some(duration_to_proto(from.min)),
        max_backoff: Some(duration_to_proto(max)),
        jitter_ratio: if from.jitter.is_nan() { 0.0 } else { from.jitter.clamp(0.0, 100.0) },
        respect_retry_after_hint: from.respect_retry_after,
    }
}

pub(super) fn backoff_from_proto(from: proto::ExponentialBackoff) -> Decoded<Backoff> {
    let min = required(duration_from_proto(from.min_backoff, "min_backoff")?, "min_backoff")?;
    let max = required(duration_from_proto(from.max_backoff, "max_backoff")?, "max_backoff")?;
    if max < min || max.is_zero() {
        return Err(InvalidMessage::new("max_backoff", "is less than min_backoff, or nothing"));
    }
    if !(0.0..=100.0).contains(&from.jitter_ratio) {
        return Err(InvalidMessage::new("jitter_ratio", format_args!("{} is not 0 to 100", from.jitter_ratio)));
    }
    Ok(Backoff { min, max, jitter: from.jitter_ratio, respect_retry_after: from.respect_retry_after_hint })
}

pub(super) fn timeouts_to_proto(from: &Timeouts) -> TimeoutsProto {
    TimeoutsProto {
        response: from.response.map(duration_to_proto),
        request: from.request.map(duration_to_proto),
        idle: from.idle.map(duration_to_proto),
    }
}

/// As in linkerd2-proxy, the field of older control planes counts where the newer one is not set.
pub(super) fn timeouts_from_proto(
    from: Option<TimeoutsProto>,
    legacy: Option<prost_types::Duration>,
) -> Decoded<Timeouts> {
    let from = from.unwrap_or_default();
    Ok(Timeouts {
        request: duration_from_proto(from.request.or(legacy), "timeouts.request")?,
        response: duration_from_proto(from.response, "timeouts.response")?,
        idle: duration_from_proto(from.idle, "timeouts.idle")?,
    })
}
