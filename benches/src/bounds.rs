//! What must be reached. The only place with these numbers; a missed one is explained, never loosened.

use crate::driver::Driver;

/// At most this many times the peer's cost, in the same round.
pub(crate) struct Ratio {
    /// Rows that it holds for.
    pub workload: &'static str,
    /// Whose cost ours is divided by.
    pub peer: Driver,
    /// The bound.
    pub at_most: f64,
}

const fn ratio(workload: &'static str, peer: Driver, at_most: f64) -> Ratio {
    Ratio { workload, peer, at_most }
}

use Driver::{Haproxy, Linkerd, Nginx, TlsRelay};

/// CPU of our pair against others'.
pub(crate) const CPU: &[Ratio] = &[
    ratio("h1-1", Nginx, 1.05),
    ratio("h1-1", Haproxy, 1.05),
    ratio("h1-1", TlsRelay, 1.35),
    ratio("h1-1", Linkerd, 0.65),
    ratio("h1-32", Nginx, 0.75),
    ratio("h1-32", Haproxy, 0.70),
    ratio("h1-32", TlsRelay, 1.0),
    ratio("h1-32", Linkerd, 0.45),
    ratio("h1-256", Nginx, 0.50),
    ratio("h1-256", Haproxy, 0.55),
    ratio("h1-256", TlsRelay, 0.75),
    ratio("h1-256", Linkerd, 0.38),
    ratio("h2", Nginx, 0.40),
    ratio("h2", Haproxy, 1.4),
    ratio("h2", TlsRelay, 2.1),
    ratio("h2", Linkerd, 0.50),
    ratio("grpc", Nginx, 0.40),
    ratio("grpc", Haproxy, 1.4),
    ratio("grpc", TlsRelay, 2.1),
    ratio("grpc", Linkerd, 0.50),
    ratio("open-1000", Nginx, 1.05),
    ratio("open-1000", Haproxy, 0.82),
    ratio("open-1000", TlsRelay, 1.15),
    ratio("open-1000", Linkerd, 0.58),
    ratio("connect", Nginx, 0.85),
    ratio("connect", Haproxy, 0.8),
    ratio("connect", Linkerd, 0.55),
    ratio("bulk", Nginx, 0.65),
    ratio("bulk", Haproxy, 0.7),
    ratio("bulk", TlsRelay, 0.85),
    ratio("bulk", Linkerd, 0.62),
];

/// What our pair adds to the median latency of `direct`, against what others add.
pub(crate) const LATENCY: &[Ratio] =
    &[ratio("open-1000", Nginx, 1.1), ratio("open-1000", Haproxy, 0.8), ratio("open-1000", Linkerd, 0.6)];

/// Resident memory of one proxy of ours at rest, in MiB: the most that the larger of the two was seen to have.
pub(crate) const REST_MIB: f64 = 7.0;
/// The same against linkerd2-proxy's.
pub(crate) const REST_LINKERD: f64 = 0.34;
/// What an idle connection adds to both proxies together, in KiB.
pub(crate) const IDLE_KIB: f64 = 2.0;
/// Under 256 busy connections, in MiB.
pub(crate) const BUSY_MIB: f64 = 14.0;
/// After all connections are gone, against rest.
pub(crate) const AFTER: f64 = 1.25;
/// The stripped binary, in MiB.
pub(crate) const BINARY_MIB: f64 = 8.0;
/// From start to the first answer, in ms.
pub(crate) const START_MS: f64 = 80.0;
