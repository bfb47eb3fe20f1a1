//! Every label, annotation, header and protocol name that crosses a process boundary.

/// ALPN of a hop that starts with the transport header. Source: linkerd2-proxy transport-header.
pub const ALPN_TRANSPORT: &[u8] = b"transport.l5d.io/v1";
/// First bytes after the handshake of such a hop; then a big-endian u32 length and the protobuf header.
pub const TRANSPORT_PREFACE: &[u8] = b"transport.l5d.io/v1\r\n\r\n";

/// Who the client is, set by the inbound proxy; a client's own is stripped.
pub const HEADER_CLIENT_ID: &str = "l5d-client-id";
/// Why the proxy itself answered.
pub const HEADER_PROXY_ERROR: &str = "l5d-proxy-error";
/// Beside it: which request that was, for `meshctl why`.
pub const HEADER_REQUEST: &str = "gossamer-request";
/// Tells the other proxy to close the hop.
pub const HEADER_PROXY_CONNECTION: &str = "l5d-proxy-connection";
/// The version of an HTTP/1 message carried inside HTTP/2.
pub const HEADER_ORIG_PROTO: &str = "l5d-orig-proto";
/// The authority that discovery resolved; informational.
pub const HEADER_DST_CANONICAL: &str = "l5d-dst-canonical";
/// The caller demands this server identity.
pub const HEADER_REQUIRE_ID: &str = "l5d-require-id";

/// Prefix of our own annotations and labels.
pub const PREFIX: &str = "gossamer.io";
/// Prefix of settings on workloads.
pub const CONFIG_PREFIX: &str = "config.gossamer.io";
/// The audience of service-account tokens for our identity service. Source: Linkerd has `identity.l5d.io`.
pub const TOKEN_AUDIENCE: &str = "identity.gossamer.io";

/// `enabled` or `disabled`, on a namespace or a pod.
pub const INJECT: &str = "gossamer.io/inject";
/// The name of the proxy's container in a pod.
pub const PROXY_CONTAINER: &str = "gossamer-proxy";
/// On injected pods: the version of the proxy.
pub const PROXY_VERSION: &str = "gossamer.io/proxy-version";
/// On injected pods: whose mesh they belong to.
pub const CONTROL_NAMESPACE_LABEL: &str = "gossamer.io/control-plane-ns";
/// On injected pods, followed by the kind of their owner (`deployment`, `statefulset`...): its name. As Linkerd's.
pub const WORKLOAD_LABEL_PREFIX: &str = "gossamer.io/proxy-";
/// On the control plane's own objects: which part they are.
pub const CONTROL_PLANE_COMPONENT: &str = "gossamer.io/control-plane-component";
