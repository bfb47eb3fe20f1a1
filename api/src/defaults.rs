//! Every default of the mesh: value, unit, reason, source. Constants only.

use std::time::Duration;

// ---- ports ---------------------------------------------------------------------------------------------------------

/// Where the proxy accepts what others send to its workload. Source: Linkerd (`LINKERD2_PROXY_INBOUND_LISTEN_ADDR`).
pub const INBOUND_PORT: u16 = 4143;
/// Where the proxy accepts what its workload sends. Source: Linkerd.
pub const OUTBOUND_PORT: u16 = 4140;
/// The tap API. Source: Linkerd (`CONTROL_LISTEN_ADDR`).
pub const TAP_PORT: u16 = 4190;
/// Metrics, probes, log level. Source: Linkerd (`ADMIN_LISTEN_ADDR`).
pub const ADMIN_PORT: u16 = 4191;
/// The identity service. Source: Linkerd.
pub const IDENTITY_PORT: u16 = 8080;
/// The destination service. Source: Linkerd.
pub const DESTINATION_PORT: u16 = 8086;
/// The policy services (`OutboundPolicies`, `InboundServerPolicies`). Source: Linkerd.
pub const POLICY_PORT: u16 = 8090;
/// The same without TLS, on the loopback of the destination service's pod: for `meshctl diagnostics`, by port-forward.
pub const QUERY_PORT: u16 = 8087;

/// Ports whose servers speak first, opaque without being looked at: SMTP, submission, MySQL, Galera, PostgreSQL,
/// Redis, Elasticsearch transport, memcached. Source: Linkerd's `opaquePorts` (FEATURES 2.1).
pub const OPAQUE_PORTS: &[u16] = &[25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

/// The user that a proxy runs as in Kubernetes, and whose traffic is not redirected. Source: Linkerd `proxyUID`.
pub const PROXY_UID: u32 = 2102;
/// The mark on the proxy's own sockets where users can't tell it from the application (a user namespace maps only
/// one). Any value that others do not use; "GM" in ASCII.
pub const SOCKET_MARK: u32 = 0x474d;

/// Networks that belong to the mesh's cluster: a new destination in there is never passed on without discovery.
/// Source: Linkerd `clusterNetworks`.
pub const CLUSTER_NETWORKS: &str = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8";
/// The DNS suffix of services. Source: Kubernetes.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// The namespace that the control plane lives in.
pub const CONTROL_NAMESPACE: &str = "gossamer";

// ---- detection -----------------------------------------------------------------------------------------------------

/// How long a silent client delays its connection before the endpoint is dialled and whichever side speaks first is
/// forwarded. Long enough for the first flight of a local client, too short to be noticed by a human.
/// Linkerd waits 10 s; Envoy's `listener_filters_timeout` is 15 s.
pub const DETECT_PATIENCE: Duration = Duration::from_millis(20);
/// How long the rest of a request line, a preface or a ClientHello may take once it has begun; then it is forwarded as it
/// is. Source: Linkerd's detect timeout, 10 s.
pub const DETECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes looked at before a protocol is called opaque. A post-quantum ClientHello has about 1.8 KiB; padded ones 4.
pub const DETECT_BYTES: usize = 16 * 1024;

// ---- connections ---------------------------------------------------------------------------------------------------

/// TCP connect to another proxy or an address outside. Source: Linkerd `outboundConnectTimeout`.
pub const OUTBOUND_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// TCP connect to the workload beside us. Source: Linkerd `inboundConnectTimeout` (100 ms).
pub const INBOUND_CONNECT_TIMEOUT: Duration = Duration::from_millis(100);
/// TLS handshake, both sides. Generous for a loaded peer; bounded so that a silent peer holds nothing for long.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// First wait after a failed connect to an endpoint. Source: linkerd2-proxy env.rs.
pub const CONNECT_BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait after failed connects. Linkerd has 60 s outbound, 10 s inbound; an endpoint that is back should be used.
pub const CONNECT_BACKOFF_MAX: Duration = Duration::from_secs(10);
/// TCP keep-alive on accepted and dialled sockets. Source: Linkerd `*_KEEPALIVE` 10 s.
pub const TCP_KEEPALIVE: Duration = Duration::from_secs(10);
/// Between the kernel's further questions when the first was not answered. With its own 75 s a peer that is gone would be
/// noticed after 85 s, however short the user timeout is: it is looked at only when a question is due.
pub const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// TCP_USER_TIMEOUT: unacknowledged data older than this ends the connection. Source: Linkerd 30 s.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections accepted at once per listener. A bound on memory: 10,000 idle ones cost 20 MiB.
pub const MAX_CONNECTIONS: usize = 20_000;
/// How long an HTTP/1 connection to an endpoint stays pooled unused. Source: Linkerd's h1 pool idle 3 s.
pub const POOL_IDLE: Duration = Duration::from_secs(3);
/// Idle HTTP/1 connections kept per endpoint. As many as a busy workload has at once: with fewer, every burst beyond
/// them opens new ones (Linkerd keeps 10,000).
pub const POOL_SIZE: usize = 1024;
/// HTTP/2 keep-alive ping interval on the hop, while requests are under way. Source: Linkerd `HTTP2_KEEP_ALIVE_INTERVAL`.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long the answer to a ping may take. Source: Linkerd 3 s.
pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Heads of messages, HTTP/1 and HTTP/2. Source: hyper's and nginx's large limits (64 KiB).
pub const HEAD_BYTES: usize = 64 * 1024;
/// HTTP/2 connections to one endpoint: another is made when all streams of one are taken (1000 for a proxy of ours, often
/// 100 for applications). Eight carry more than an endpoint serves at once.
pub const H2_CONNECTIONS: usize = 8;
/// Streams that a peer may have open on one HTTP/2 connection.
pub const H2_MAX_STREAMS: u32 = 1024;

// ---- discovery -----------------------------------------------------------------------------------------------------

/// How long a destination without traffic stays known. Linkerd forgets after 5 s and then depends on the control
/// plane; a known service must outlive an outage (PERFORMANCE: "known services keep working for hours").
pub const DISCOVERY_IDLE: Duration = Duration::from_secs(3600);
/// Destinations remembered at once.
pub const DISCOVERY_CACHE: usize = 10_000;
/// How long a new destination waits for the control plane before its requests fail with the reason.
/// PERFORMANCE: "the rest fails within 1 s".
pub const DISCOVERY_TIMEOUT: Duration = Duration::from_millis(900);
/// First and longest wait between attempts to reach the control plane.
pub const CONTROL_BACKOFF_MIN: Duration = Duration::from_millis(100);
/// See [`CONTROL_BACKOFF_MIN`]. Linkerd has 10 s; shorter, so that new destinations work soon after an outage.
pub const CONTROL_BACKOFF_MAX: Duration = Duration::from_secs(3);
/// TCP_USER_TIMEOUT of connections with the control plane: a peer that is gone is noticed by the kernel, with its third
/// question. Nothing of the process runs for that, which at rest is most of what it would do.
pub const CONTROL_USER_TIMEOUT: Duration = Duration::from_secs(15);
/// HTTP/2 pings of a proxy to the control plane find what the kernel can't: a service that hangs on a node that lives.
/// Rare, since the kubelet finds it as well, and each ping is work for both.
pub const CONTROL_PING_INTERVAL: Duration = Duration::from_secs(60);
/// How long the answer to such a ping may take: longer than a control plane that is short of the processor needs.
pub const CONTROL_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a service of the control plane must be away before the pod's events say so: a new version of it is no news.
pub const CONTROL_AWAY: Duration = Duration::from_secs(5);

// ---- balancing -----------------------------------------------------------------------------------------------------

/// The latency assumed of an endpoint not yet measured. Source: Linkerd 30 ms (Finagle).
pub const EWMA_DEFAULT_RTT: Duration = Duration::from_millis(30);
/// The window of the peak-EWMA. Source: Linkerd 10 s.
pub const EWMA_DECAY: Duration = Duration::from_secs(10);
/// Requests that may wait for an endpoint. A cold service gets all its first requests while its connection is made: 100,
/// as Linkerd's policy controller sends, would refuse the rest of a burst. Source: linkerd2-proxy env.rs (10,000, which
/// is what its proxy really uses); they cost some 2 KiB each.
pub const QUEUE_CAPACITY: u32 = 10_000;
/// How long they may. Source: Linkerd's policy controller sends 3 s.
pub const QUEUE_FAILFAST: Duration = Duration::from_secs(3);
/// How long they may when every endpoint has just refused: long enough for a process that is restarted, short enough for
/// the reason to reach whoever waits.
pub const REFUSED_FAILFAST: Duration = Duration::from_secs(1);
/// How long they may after the last endpoint went. A kubelet that is started anew calls all of its pods unready for a moment.
pub const EMPTIED_FAILFAST: Duration = Duration::from_secs(1);
/// Failures in a row that eject an endpoint. Source: Linkerd failure accrual (7); there it is off by default.
pub const BREAKER_MAX_FAILURES: u32 = 7;
/// First probation. Source: Linkerd.
pub const BREAKER_MIN_PENALTY: Duration = Duration::from_secs(1);
/// Longest probation. Source: Linkerd.
pub const BREAKER_MAX_PENALTY: Duration = Duration::from_secs(60);
/// Jitter of the probation. Source: Linkerd.
pub const BREAKER_JITTER: f32 = 0.5;

// ---- retries -------------------------------------------------------------------------------------------------------

/// Retries per request where they are safe. One is enough to step around one bad endpoint.
pub const RETRY_LIMIT: u32 = 2;
/// Bytes of a request body kept for a retry. Source: Linkerd's policy controller.
pub const RETRY_MAX_BODY: usize = 64 * 1024;
/// First wait between attempts. Source: Linkerd 25 ms.
pub const RETRY_BACKOFF_MIN: Duration = Duration::from_millis(25);
/// Longest wait between attempts. Source: Linkerd 250 ms.
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_millis(250);
/// Retries as a share of requests. Source: Finagle, Linkerd ServiceProfile (0.2).
pub const RETRY_BUDGET_RATIO: f32 = 0.2;
/// Retries always allowed. Source: Finagle, Linkerd (10/s).
pub const RETRY_BUDGET_MIN_PER_SECOND: u32 = 10;
/// The window of the budget. Source: Finagle, Linkerd (10 s).
pub const RETRY_BUDGET_WINDOW: Duration = Duration::from_secs(10);
/// Copies of requests that a data thread has in flight: 8 MiB at most with the longest bodies.
pub const MIRRORS_IN_FLIGHT: usize = 128;
/// Longest body that is copied, as for retries.
pub const MIRROR_MAX_BODY: usize = RETRY_MAX_BODY;
/// How long a copy may take: what is slower counts as failed.
pub const MIRROR_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest delay that is injected: a typo must not hold requests for ever.
pub const DELAY_MAX: Duration = Duration::from_secs(60);

// ---- inbound -------------------------------------------------------------------------------------------------------

/// Who may reach a workload that has no policy. Source: Linkerd.
pub const INBOUND_POLICY: &str = "all-unauthenticated";

// ---- identity ------------------------------------------------------------------------------------------------------

/// A workload certificate's life. Source: Linkerd, Istio.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Added before and after for clocks that differ. Source: Linkerd 20 s.
pub const CLOCK_SKEW: Duration = Duration::from_secs(20);
/// Share of its life after which a certificate is renewed. Source: linkerd2-proxy identity-client.
pub const CERTIFICATE_REFRESH_RATIO: f64 = 0.7;
/// The issuer made on first start.
pub const ISSUER_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// The root made on first start. Ten years: rotation is a live operation, expiry an outage.
pub const ANCHOR_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The trust domain. Source: Linkerd (cluster domain).
pub const TRUST_DOMAIN: &str = "cluster.local";

// ---- lifecycle -----------------------------------------------------------------------------------------------------

/// How long a draining process waits for what is in flight. Source: Linkerd `shutdown-grace-period` 2 m.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(120);
/// How long clients have to take the answer that tells them of it, when the grace period ended before their request
/// did: a round trip across the world, and some.
pub const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Threads that move data. One: a sidecar's share is below one core, and a second costs 1.3x (PERFORMANCE).
pub const WORKERS: usize = 1;

// ---- tap -----------------------------------------------------------------------------------------------------------

/// Tap sessions at once.
pub const TAP_SESSIONS: usize = 16;
/// Events queued per session; more are dropped and counted.
pub const TAP_QUEUE: usize = 1024;
/// Failed or tapped requests that a proxy remembers for `meshctl why`: half a kilobyte each, nothing while all goes well.
pub const REMEMBERED: usize = 512;

// ---- in a pod ------------------------------------------------------------------------------------------------------

/// The proxy's image, without its version.
pub const PROXY_IMAGE: &str = "gossamer/proxy";
/// The proxy in its image.
pub const PROXY_PROGRAM: &str = "/gossamer-proxy";
/// Where the token is mounted. Kubernetes mounts the API server's token at this path of every container that has
/// nothing there.
pub const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where a proxy in a pod keeps what its container must find again when it is started anew. Short: it is in each pod object.
pub const STATE_DIR: &str = "/state";
