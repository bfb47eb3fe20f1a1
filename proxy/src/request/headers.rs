//! What the proxy changes in headers: hop-by-hop fields go, the mesh's own come and go. Request in, response out.

use gossamer_api::keys;
use gossamer_engine::{Headers, RequestHead, ResponseHead, Version};

/// Fields that belong to one connection only. Source: RFC 9110 section 7.6.1.
fn is_hop_by_hop(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => true,
        // Only `trailers` means something beyond one connection.
        b"te" => !value.eq_ignore_ascii_case(b"trailers"),
        _ => false,
    }
}

/// The protocol that a message would switch to, if it asks for an upgrade properly: `Upgrade` named in `Connection`.
pub fn upgrade(headers: &Headers) -> Option<Vec<u8>> {
    let protocol = headers.get("upgrade")?;
    let named = tokens(headers).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    // HTTP/2 by upgrade is obsolete (RFC 9113 section 3.1) and would hide requests from the proxy.
    (named && !protocol.eq_ignore_ascii_case(b"h2c")).then(|| protocol.to_vec())
}

fn tokens(headers: &Headers) -> impl Iterator<Item = &[u8]> {
    headers.get_all("connection").flat_map(|value| value.split(|b| *b == b',')).map(<[u8]>::trim_ascii)
}

/// Removes what must not travel on. One pass when there is no `Connection` field, which is the usual case.
pub fn strip(headers: &mut Headers) {
    let named: Vec<Vec<u8>> = tokens(headers)
        .map(<[u8]>::to_ascii_lowercase)
        // A client must not be able to remove what the mesh relies on, nor framing.
        .filter(|token| !token.starts_with(b"l5d-") && token != b"content-length" && token != b"host")
        .collect();
    headers.retain(|name, value| !is_hop_by_hop(name, value) && !named.iter().any(|token| token == name));
}

/// A request from our workload: strips what only proxies may say.
pub fn outbound(head: &mut RequestHead) {
    strip(&mut head.headers);
    head.headers.retain(|name, _| {
        !name.starts_with(b"l5d-")
            || (name != keys::HEADER_ORIG_PROTO.as_bytes()
                && name != keys::HEADER_CLIENT_ID.as_bytes()
                && name != keys::HEADER_PROXY_CONNECTION.as_bytes()
                && name != keys::HEADER_PROXY_ERROR.as_bytes())
    });
}

/// A request to our workload: restores the client's HTTP version, says who the client is. True: it came as HTTP/1
/// inside HTTP/2.
pub fn inbound(head: &mut RequestHead, client: Option<&str>) -> bool {
    strip(&mut head.headers);
    let original = head.headers.get(keys::HEADER_ORIG_PROTO).map(|value| {
        let version = if value.starts_with(b"HTTP/1.0") { Version::Http10 } else { Version::Http11 };
        (version, value.ends_with(b"absolute-form"))
    });
    let was_upgraded = match original {
        Some((version, absolute_form)) if head.version == Version::Http2 => {
            head.version = version;
            head.absolute_form = absolute_form;
            true
        }
        _ => false,
    };
    head.headers.retain(|name, _| {
        !name.starts_with(b"l5d-")
            || (name != keys::HEADER_ORIG_PROTO.as_bytes()
                && name != keys::HEADER_CLIENT_ID.as_bytes()
                && name != keys::HEADER_PROXY_CONNECTION.as_bytes()
                && name != keys::HEADER_PROXY_ERROR.as_bytes()
                && name != keys::HEADER_REQUIRE_ID.as_bytes())
    });
    if let Some(client) = client {
        head.headers.append(keys::HEADER_CLIENT_ID, client);
    }
    was_upgraded
}

/// What tells the other proxy which HTTP/1 version this request has. Source: linkerd2-proxy orig_proto.rs.
pub fn original_version(head: &RequestHead) -> Option<&'static str> {
    match (head.version, head.absolute_form) {
        (Version::Http10, false) => Some("HTTP/1.0"),
        (Version::Http10, true) => Some("HTTP/1.0; absolute-form"),
        (Version::Http11, false) => Some("HTTP/1.1"),
        (Version::Http11, true) => Some("HTTP/1.1; absolute-form"),
        (Version::Http2, _) => None,
    }
}

/// A response from an endpoint. True: the other proxy asks to close the hop.
pub fn response(head: &mut ResponseHead) -> bool {
    if head.status != 101 {
        strip(&mut head.headers);
    }
    let close = head.headers.get(keys::HEADER_PROXY_CONNECTION).is_some_and(|value| value == b"close");
    head.headers.retain(|name, _| {
        !name.starts_with(b"l5d-")
            || (name != keys::HEADER_ORIG_PROTO.as_bytes() && name != keys::HEADER_PROXY_CONNECTION.as_bytes())
    });
    close
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        fields.iter().for_each(|(name, value)| headers.append(name, value));
        headers
    }

    fn names(headers: &Headers) -> Vec<String> {
        headers.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
    }

    #[test]
    fn connection_and_what_it_names_go() {
        let mut h = headers(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("te", "trailers"),
            ("accept", "*/*"),
        ]);
        strip(&mut h);
        assert_eq!(names(&h), ["te", "accept"]);
    }

    #[test]
    fn a_client_cannot_remove_identity_or_framing_by_naming_them() {
        let mut h = headers(&[
            ("connection", "l5d-client-id, content-length"),
            ("content-length", "3"),
            ("l5d-client-id", "x"),
        ]);
        strip(&mut h);
        assert_eq!(names(&h), ["content-length", "l5d-client-id"]);
    }

    #[test]
    fn a_workload_learns_its_client_from_the_proxy_alone() {
        let mut head = RequestHead::default();
        head.headers = headers(&[("l5d-client-id", "forged")]);
        inbound(&mut head, None);
        assert!(head.headers.is_empty());
        head.headers.append("l5d-client-id", "forged");
        inbound(&mut head, Some("web"));
        assert_eq!(head.headers.get_all("l5d-client-id").collect::<Vec<_>>(), [b"web"]);
    }

    #[test]
    fn http1_inside_http2_becomes_http1_again() {
        let mut head = RequestHead::default();
        head.version = Version::Http2;
        head.headers = headers(&[("l5d-orig-proto", "HTTP/1.0; absolute-form")]);
        assert!(inbound(&mut head, None));
        assert_eq!((head.version, head.absolute_form), (Version::Http10, true));
    }

    #[test]
    fn only_a_named_upgrade_is_one() {
        assert_eq!(
            upgrade(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])),
            Some(b"websocket".to_vec())
        );
        assert_eq!(upgrade(&headers(&[("upgrade", "websocket")])), None);
        assert_eq!(upgrade(&headers(&[("connection", "upgrade"), ("upgrade", "h2c")])), None);
    }
}
