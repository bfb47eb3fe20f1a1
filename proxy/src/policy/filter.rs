//! Applies a rule's filters: header edits, rewrites, redirects, injected failures. Semantics are Gateway API's.
//!
//! **Invariant:** no filter can change how a message is framed: hop-by-hop fields and `content-length` are left alone,
//! and a name or value that is not valid in HTTP is not written.

use crate::policy::route::Found;
use gossamer_api::policy::{Extension, Filter, HeaderEdit, PathModifier, Redirect, Rewrite};
use gossamer_engine::{Headers, RequestHead, ResponseHead};

/// The proxy answers by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With a redirect.
    Redirect {
        /// 3xx.
        status: u16,
        /// The `location` field.
        location: String,
    },
    /// With a failure: injected, or because a redirect cannot be composed.
    Fail {
        /// HTTP status, or gRPC code in a gRPC route.
        status: u16,
        /// For the client.
        message: String,
    },
    /// With a failure: what must be done to the request is not known.
    Missing(u64),
}

/// Applies what concerns requests, in order. `roll(n)` is a random number below `n`.
pub fn apply_request(
    filters: &[Filter],
    head: &mut RequestHead,
    found: &Found,
    roll: &mut dyn FnMut(u32) -> u32,
) -> Result<(), Answer> {
    for filter in filters {
        match filter {
            Filter::RequestHeaders(edit) => edit_request(edit, head),
            Filter::Redirect(redirect) => match location(redirect, head, found)? {
                Some(location) => {
                    let status = if redirect.status == 0 { DEFAULT_REDIRECT } else { redirect.status };
                    return Err(Answer::Redirect { status, location });
                }
                // It points to itself: the client would come back for ever.
                None => continue,
            },
            Filter::Fail(failure) => {
                let (numerator, denominator) = failure.ratio;
                if numerator > 0 && (numerator >= denominator || roll(denominator) < numerator) {
                    return Err(Answer::Fail { status: failure.status, message: failure.message.clone() });
                }
            }
            Filter::Extension(extension) => {
                if let Extension::Rewrite(rewrite) = &**extension {
                    apply_rewrite(rewrite, head, found)?;
                }
            }
            Filter::Named(name) if name.required => return Err(Answer::Missing(name.id)),
            // Mirrors and delays are no matter of the head.
            Filter::Named(_) | Filter::ResponseHeaders(_) => {}
        }
    }
    Ok(())
}

/// Applies what concerns responses, in order.
pub fn apply_response(filters: &[Filter], head: &mut ResponseHead) {
    for filter in filters {
        if let Filter::ResponseHeaders(edit) = filter {
            edit_headers(edit, &mut head.headers);
        }
    }
}

/// `host` is the authority: setting it changes where the request says it goes, adding a second one is impossible, and
/// a request keeps one.
fn edit_request(edit: &HeaderEdit, head: &mut RequestHead) {
    edit_headers(edit, &mut head.headers);
    for (name, value) in &edit.set {
        if name.eq_ignore_ascii_case("host") && is_authority(value) {
            head.set_authority(std::str::from_utf8(value).unwrap_or_default());
        }
    }
}

/// Gateway API, `HTTPURLRewriteFilter`: the query stays.
fn apply_rewrite(rewrite: &Rewrite, head: &mut RequestHead, found: &Found) -> Result<(), Answer> {
    if let Some(path) = &rewrite.path {
        let path = new_path(path, head, found, "a rewrite")?;
        head.set_path(&path);
    }
    if let Some(host) = &rewrite.host {
        head.set_authority(host);
    }
    Ok(())
}

/// Adds, sets, removes, in this order: so the API says.
fn edit_headers(edit: &HeaderEdit, headers: &mut Headers) {
    for (name, value) in &edit.add {
        if may_edit(name) && is_value(value) {
            headers.append(name, value);
        }
    }
    for (name, value) in &edit.set {
        if may_edit(name) && is_value(value) {
            // Stored names are lower case; only one that is not needs a copy to be found.
            if name.bytes().any(|b| b.is_ascii_uppercase()) {
                headers.set(&name.to_ascii_lowercase(), value);
            } else {
                headers.set(name, value);
            }
        }
    }
    for name in &edit.remove {
        if may_edit(name) {
            headers.retain(|found, _| !found.eq_ignore_ascii_case(name.as_bytes()));
        }
    }
}

/// Fields that frame a message or belong to one hop (RFC 9110, 7.6.1), and the authority.
const UNTOUCHED: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn may_edit(name: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(token) && !UNTOUCHED.iter().any(|other| other.eq_ignore_ascii_case(name))
}

fn is_value(value: &[u8]) -> bool {
    value.iter().all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f))
}

fn is_authority(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|&b| b.is_ascii_graphic() && !b"/?#@\\".contains(&b))
}

/// Composes the `location` of a redirect (Gateway API, `HTTPRequestRedirectFilter`). `None`: it is where we are.
///
/// The port is the filter's; else, with the filter's scheme, that scheme's own; else the request's. A scheme's own port
/// is not written.
fn location(redirect: &Redirect, head: &RequestHead, found: &Found) -> Result<Option<String>, Answer> {
    let scheme = redirect.scheme.as_deref().unwrap_or(head.scheme.as_str());
    let (host, port) = head.authority().map_or((None, None), |authority| {
        let (host, port) = split_authority(authority);
        (Some(host), port)
    });
    let host = redirect.host.as_deref().or(host);
    let port = redirect.port.or(if redirect.scheme.is_some() { None } else { port });
    let port = port.filter(|port| !matches!((scheme, port), ("http", 80) | ("https", 443)));

    let mut location = String::new();
    match host {
        Some(host) => {
            location.extend([scheme, "://", host]);
            if let Some(port) = port {
                location.push(':');
                location.push_str(itoa::Buffer::new().format(port));
            }
        }
        // HTTP/1.0 knows no host: relative to where the client is, if nothing else is asked for.
        None if redirect.scheme.is_none() && redirect.port.is_none() => {}
        None => return Err(fail(400, "a redirect to another scheme or port needs a host in the request")),
    }
    match &redirect.path {
        None => location.push_str(head.path()),
        Some(path) => location.push_str(&new_path(path, head, found, "a redirect")?),
    }
    if !is_value(location.as_bytes()) {
        return Err(fail(500, "a redirect's location is not valid"));
    }
    // One that names nothing but a status asks for exactly that.
    let Redirect { scheme, host: new, port: to, path, .. } = redirect;
    let names = scheme.is_some() || new.is_some() || to.is_some() || path.is_some();
    let here = names && host.is_some_and(|_| is_here(&location, head));
    Ok((!here).then_some(location))
}

/// The path that a modifier makes of a request's, with its query unless the modifier brings one.
fn new_path(modifier: &PathModifier, head: &RequestHead, found: &Found, what: &str) -> Result<String, Answer> {
    let mut new = String::with_capacity(head.path().len() + 32);
    match modifier {
        PathModifier::Full(path) => new.push_str(path),
        PathModifier::Prefix(replacement) => {
            let rest = found.prefix_len.and_then(|len| head.path_only().get(len..));
            let Some(rest) = rest else {
                return Err(fail(500, &format!("{what} replaces a prefix where none was matched")));
            };
            let joined = rest.is_empty() || rest.starts_with('/');
            new.push_str(if rest.is_empty() { replacement } else { replacement.trim_end_matches('/') });
            if !joined {
                new.push('/');
            }
            new.push_str(rest);
            if new.is_empty() {
                new.push('/');
            }
        }
    }
    if let (Some(query), false) = (head.query(), new.contains('?')) {
        new.extend(["?", query]);
    }
    Ok(new)
}

fn fail(status: u16, message: &str) -> Answer {
    Answer::Fail { status, message: message.to_string() }
}

/// True when a location is the request's own target.
fn is_here(location: &str, head: &RequestHead) -> bool {
    let (host, port) = split_authority(head.authority().unwrap_or_default());
    let port = port.filter(|port| !matches!((head.scheme.as_str(), port), ("http", 80) | ("https", 443)));
    location
        .strip_prefix(head.scheme.as_str())
        .and_then(|rest| rest.strip_prefix("://"))
        .and_then(|rest| rest.strip_suffix(head.path()))
        .is_some_and(|authority| split_authority(authority) == (host, port))
}

/// Host (with the brackets of an IPv6 address) and port.
fn split_authority(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

/// Gateway API's default.
const DEFAULT_REDIRECT: u16 = 302;

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_api::policy::{ExtensionName, Failure};
    use gossamer_engine::message::Scheme;
    use proptest::prelude::*;

    const FOUND: Found = Found { route: 0, rule: 0, prefix_len: Some(4) };

    fn never(_: u32) -> u32 {
        u32::MAX
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
        pairs.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect()
    }

    fn show(headers: &Headers) -> String {
        let line = |(n, v): (&[u8], &[u8])| format!("{}={}", String::from_utf8_lossy(n), String::from_utf8_lossy(v));
        headers.iter().map(line).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn set_replaces_add_appends_remove_deletes() {
        let mut head = RequestHead::default();
        for (name, value) in [("a", "1"), ("a", "2"), ("b", "1"), ("c", "1")] {
            head.headers.append(name, value);
        }
        let edit = HeaderEdit {
            set: pairs(&[("A", "3"), ("new", "1")]),
            // What is added and set has one value; what is added and removed none.
            add: pairs(&[("B", "2"), ("a", "4"), ("new", "5"), ("c", "6")]),
            remove: vec!["C".into(), "none".into()],
        };
        apply_request(&[Filter::RequestHeaders(edit.clone())], &mut head, &FOUND, &mut never).unwrap();
        assert_eq!(show(&head.headers), "b=1 b=2 a=3 new=1");

        let mut head = ResponseHead::new(200);
        head.headers.append("c", "1");
        apply_response(&[Filter::RequestHeaders(edit.clone())], &mut head);
        assert_eq!(show(&head.headers), "c=1");
        apply_response(&[Filter::ResponseHeaders(edit)], &mut head);
        assert_eq!(show(&head.headers), "b=2 a=3 new=1");
    }

    #[test]
    fn framing_is_out_of_reach() {
        let mut head = RequestHead::default();
        head.set_authority("h");
        head.headers.append("content-length", "5");
        let bad = pairs(&[
            ("Content-Length", "9"),
            ("transfer-encoding", "chunked"),
            ("connection", "x"),
            ("x", "a\r\nb: c"),
            ("y z", "1"),
            ("", "1"),
            (":path", "/"),
            ("host", "a b"),
        ]);
        let edit = HeaderEdit { set: bad.clone(), add: bad, remove: vec!["content-length".into(), "host".into()] };
        apply_request(&[Filter::RequestHeaders(edit)], &mut head, &FOUND, &mut never).unwrap();
        assert_eq!((show(&head.headers).as_str(), head.authority()), ("content-length=5", Some("h")));
    }

    #[test]
    fn setting_host_changes_the_authority() {
        let mut head = RequestHead::default();
        let edit = HeaderEdit { set: pairs(&[("Host", "other:8080")]), ..Default::default() };
        apply_request(&[Filter::RequestHeaders(edit)], &mut head, &FOUND, &mut never).unwrap();
        assert_eq!((show(&head.headers).as_str(), head.authority()), ("", Some("other:8080")));
    }

    #[test]
    fn a_failure_is_injected_for_its_share() {
        let filter = |ratio| [Filter::Fail(Failure { status: 503, message: "no".into(), ratio })];
        let mut head = RequestHead::default();
        let mut fails = |ratio, rolled| apply_request(&filter(ratio), &mut head, &FOUND, &mut |_| rolled).is_err();
        assert!(fails((1, 10), 0));
        assert!(!fails((1, 10), 1));
        assert!(!fails((0, 10), 0));
        assert!(fails((10, 10), 9));
        assert!(fails((1, 0), 5));
        assert!(!fails((0, 0), 0));
        let answer = apply_request(&filter((1, 1)), &mut head, &FOUND, &mut never);
        assert_eq!(answer, Err(Answer::Fail { status: 503, message: "no".into() }));
    }

    /// `http(s)://AUTHORITY/PATH` through a redirect.
    fn redirected(redirect: &Redirect, url: &str, prefix_len: Option<usize>) -> Result<(), Answer> {
        let mut head = RequestHead::default();
        let rest = match url.strip_prefix("https://") {
            Some(rest) => {
                head.scheme = Scheme::Https;
                rest
            }
            None => url.strip_prefix("http://").unwrap(),
        };
        let slash = rest.find('/').unwrap();
        if slash > 0 {
            head.set_authority(&rest[..slash]);
        }
        head.set_path(&rest[slash..]);
        apply_request(
            &[Filter::Redirect(redirect.clone())],
            &mut head,
            &Found { route: 0, rule: 0, prefix_len },
            &mut never,
        )
    }

    fn to(redirect: Redirect, url: &str, expect: &str) {
        let expect = match expect {
            "" => Ok(()),
            location => Err(Answer::Redirect { status: 302, location: location.into() }),
        };
        assert_eq!(redirected(&redirect, url, Some(4)), expect, "{url} {redirect:?}");
    }

    #[test]
    fn a_location_keeps_what_the_filter_does_not_name() {
        let host = |host: &str| Redirect { host: Some(host.into()), ..Default::default() };
        let port = |port| Redirect { port: Some(port), ..Default::default() };
        let scheme = |scheme: &str| Redirect { scheme: Some(scheme.into()), ..Default::default() };
        to(host("example.org"), "http://echo/a?b=c", "http://example.org/a?b=c");
        to(host("example.org"), "http://echo:80/", "http://example.org/");
        to(host("example.org"), "http://echo:8080/", "http://example.org:8080/");
        to(host("echo"), "http://echo:8080/", "");
        to(scheme("https"), "http://echo/a", "https://echo/a");
        to(scheme("https"), "http://echo:8080/a", "https://echo/a");
        to(scheme("https"), "http://[::1]:8080/a", "https://[::1]/a");
        to(scheme("http"), "http://echo/a", "");
        to(port(8083), "http://echo/a", "http://echo:8083/a");
        to(port(8083), "http://echo:80/a", "http://echo:8083/a");
        to(port(80), "http://echo:8080/a", "http://echo/a");
        to(port(80), "http://echo/a", "");
        to(port(443), "https://echo:8080/a", "https://echo/a");
        to(port(443), "http://echo/a", "http://echo:443/a");
        to(port(80), "https://echo/a", "https://echo:80/a");
        let both = Redirect { scheme: Some("https".into()), port: Some(8443), ..Default::default() };
        to(both, "http://echo/a", "https://echo:8443/a");
        to(Redirect::default(), "http://echo/a", "http://echo/a");
    }

    #[test]
    fn a_path_is_replaced_whole_or_by_prefix() {
        let full = |path: &str| Redirect { path: Some(PathModifier::Full(path.into())), ..Default::default() };
        to(full("/new"), "http://h/foo/bar?q", "http://h/new?q");
        to(full("/new?x=1"), "http://h/foo?q", "http://h/new?x=1");
        to(full("/new"), "http:///foo", "/new");
        let prefix = |path: &str| Redirect { path: Some(PathModifier::Prefix(path.into())), ..Default::default() };
        // The table of Gateway API's `HTTPPathModifier`.
        for (path, replacement, expect) in [
            ("/foo/bar", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/xyz/", "/xyz/bar"),
            ("/foo", "/xyz", "/xyz"),
            ("/foo/", "/xyz", "/xyz/"),
            ("/foo/bar", "", "/bar"),
            ("/foo/", "", "/"),
            ("/foo", "", "/"),
            ("/foo/", "/", "/"),
            ("/foo", "/", "/"),
            ("/foo/bar?q=1", "/xyz", "/xyz/bar?q=1"),
        ] {
            to(prefix(replacement), &format!("http://h{path}"), &format!("http://h{expect}"));
        }
        assert!(matches!(redirected(&prefix("/x"), "http://h/foo", None), Err(Answer::Fail { status: 500, .. })));
    }

    /// A request's target, rewritten.
    fn rewritten(rewrite: Rewrite, url: &str, prefix_len: Option<usize>) -> Result<String, Answer> {
        let (host, path) = url.split_at(url.find('/').unwrap());
        let mut head = RequestHead::default();
        head.set_authority(host);
        head.set_path(path);
        let filters = [Filter::Extension(Box::new(Extension::Rewrite(rewrite)))];
        apply_request(&filters, &mut head, &Found { route: 0, rule: 0, prefix_len }, &mut never)?;
        Ok(format!("{}{}", head.authority().unwrap(), head.path()))
    }

    #[test]
    fn a_rewrite_changes_where_a_request_says_it_goes() {
        let prefix = |path: &str| Rewrite { host: None, path: Some(PathModifier::Prefix(path.into())) };
        let full = |path: &str| Rewrite { host: None, path: Some(PathModifier::Full(path.into())) };
        for (rewrite, url, expect) in [
            (prefix("/one"), "h/foo/two", "h/one/two"),
            (prefix("/"), "h/foo/three?q=1", "h/three?q=1"),
            (prefix("/"), "h/foo", "h/"),
            (prefix(""), "h/foo", "h/"),
            (prefix("/new/"), "h/foo/", "h/new/"),
            (full("/all"), "h/foo/bar?q=1", "h/all?q=1"),
            (Rewrite { host: Some("other:81".into()), path: None }, "h/foo?q", "other:81/foo?q"),
            (Rewrite { host: Some("o".into()), ..full("/") }, "h/foo", "o/"),
        ] {
            assert_eq!(rewritten(rewrite, url, Some(4)), Ok(expect.to_string()), "{url}");
        }
        // A rule for everything matches the prefix `/`.
        assert_eq!(rewritten(prefix("/v1"), "h/a/b", Some(0)), Ok("h/v1/a/b".into()));
        assert!(matches!(rewritten(prefix("/x"), "h/foo", None), Err(Answer::Fail { status: 500, .. })));
    }

    #[test]
    fn what_is_not_known_lets_nothing_pass_if_it_must_not() {
        for required in [false, true] {
            let filters = [Filter::Named(ExtensionName { id: 7, required })];
            let answer = apply_request(&filters, &mut RequestHead::default(), &FOUND, &mut never);
            assert_eq!(answer, if required { Err(Answer::Missing(7)) } else { Ok(()) });
        }
    }

    #[test]
    fn without_a_host_another_scheme_is_impossible() {
        let redirect = Redirect { scheme: Some("https".into()), ..Default::default() };
        assert!(matches!(redirected(&redirect, "http:///a", None), Err(Answer::Fail { status: 400, .. })));
    }

    #[test]
    fn the_status_is_the_filters() {
        let redirect = Redirect { host: Some("o".into()), status: 308, ..Default::default() };
        let answer = redirected(&redirect, "http://h/", None);
        assert_eq!(answer, Err(Answer::Redirect { status: 308, location: "http://o/".into() }));
    }

    proptest! {
        #[test]
        fn any_redirect_is_answered(host in "\\PC{0,12}", path in "\\PC{0,12}", authority in "[^/]{0,12}", len in 0..20usize) {
            for path in [PathModifier::Full(path.clone()), PathModifier::Prefix(path)] {
                let redirect = Redirect { host: Some(host.clone()), path: Some(path), ..Default::default() };
                let _ = redirected(&redirect, &format!("http://{authority}/foo/ü?q"), Some(len));
            }
        }
    }
}
