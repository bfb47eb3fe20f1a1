//! Finds the rule that a request falls under. Everything is compiled once and sorted by precedence, so that the first
//! match is the answer; a request allocates nothing.
//!
//! **Invariant:** an expression that does not compile never matches, and is listed by [`Router::problems`].

use gossamer_api::policy::{HostMatch, PathMatch, RequestMatch, ValueMatch};
use gossamer_engine::RequestHead;
use regex::bytes::{Regex, RegexBuilder};
use std::borrow::Cow;
use std::cmp::Reverse;

/// The rule that a request falls under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Index of the route.
    pub route: usize,
    /// Index of the rule in its route.
    pub rule: usize,
    /// Bytes of the path that a prefix matched, without a final slash; `None` when no prefix was matched.
    pub prefix_len: Option<usize>,
}

/// Compiled routes in order of precedence.
///
/// The order is Gateway API's: exact host, longest suffix, any host; exact path, longest prefix, expression, any path;
/// with a method; more headers; more query parameters; then the order in which they were given. The specification
/// leaves expressions open: here they come after prefixes, but before the prefix `/`, which says nothing.
#[derive(Debug, Default)]
pub struct Router {
    entries: Vec<Entry>,
    /// The first entry takes everything: one comparison per request, the case without configuration.
    catch_all: Option<Found>,
    problems: Vec<String>,
}

impl Router {
    /// Compiles routes, each with its hosts (none: all) and its rules' matches (none: everything).
    pub fn new<'a, R>(routes: impl IntoIterator<Item = (&'a [HostMatch], R)>) -> Self
    where
        R: IntoIterator<Item = &'a [RequestMatch]>,
    {
        let mut entries = Vec::new();
        let mut problems = Vec::new();
        let anything = RequestMatch::default();
        for (route, (hosts, rules)) in routes.into_iter().enumerate() {
            let hosts: Vec<Host> =
                if hosts.is_empty() { vec![Host::Any] } else { hosts.iter().map(Host::new).collect() };
            for (rule, matches) in rules.into_iter().enumerate() {
                let matches = if matches.is_empty() { std::slice::from_ref(&anything) } else { matches };
                for a_match in matches {
                    match Test::new(a_match) {
                        Ok(test) => entries.extend(hosts.iter().map(|host| {
                            let found = Found { route, rule, prefix_len: test.path.prefix_len() };
                            Entry { host: host.clone(), test: test.clone(), found }
                        })),
                        Err(why) => problems.push(format!("route {route}, rule {rule}: {why}")),
                    }
                }
            }
        }
        // Stable: what was given first wins among equals.
        entries.sort_by_key(|entry| Reverse(entry.precedence()));
        let catch_all = entries.first().filter(|entry| entry.takes_everything()).map(|entry| entry.found);
        Router { entries, catch_all, problems }
    }

    /// The rule for a request; `None` when nothing matches.
    #[inline]
    pub fn find(&self, head: &RequestHead) -> Option<Found> {
        if self.catch_all.is_some() {
            return self.catch_all;
        }
        let (host, path) = (head.authority().map(host_of), head.path_only());
        let matches = |entry: &&Entry| entry.test.matches(head, path, || entry.host.matches(host));
        self.entries.iter().find(matches).map(|entry| entry.found)
    }

    /// What was left out because it could not be compiled, for the log.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// The host of an authority: without port and without the root's dot.
fn host_of(authority: &str) -> &str {
    let host = match authority.strip_prefix('[') {
        Some(rest) => match rest.find(']') {
            Some(end) => &authority[..end + 2],
            None => authority,
        },
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.strip_suffix('.').unwrap_or(host)
}

#[derive(Debug)]
struct Entry {
    host: Host,
    test: Test,
    found: Found,
}

impl Entry {
    /// Compared as a tuple; greater goes first.
    fn precedence(&self) -> impl Ord + use<> {
        let test = &self.test;
        (self.host.rank(), test.path.rank(), test.method.is_some(), test.headers.len(), test.query.len())
    }

    fn takes_everything(&self) -> bool {
        let Test { path, method, headers, query } = &self.test;
        matches!((&self.host, path), (Host::Any, Path::Any))
            && method.is_none()
            && headers.is_empty()
            && query.is_empty()
    }
}

#[derive(Clone, Debug)]
enum Host {
    Any,
    Exact(Box<str>),
    /// With its first dot.
    Suffix(Box<str>),
}

impl Host {
    fn new(host: &HostMatch) -> Self {
        match host {
            HostMatch::Exact(name) => Host::Exact(name.strip_suffix('.').unwrap_or(name).into()),
            HostMatch::Suffix(name) => Host::Suffix(format!(".{}", name.trim_matches('.')).into()),
        }
    }

    fn rank(&self) -> (u8, usize) {
        match self {
            Host::Exact(_) => (2, 0),
            Host::Suffix(suffix) => (1, suffix.len()),
            Host::Any => (0, 0),
        }
    }

    fn matches(&self, host: Option<&str>) -> bool {
        match (self, host) {
            (Host::Any, _) => true,
            (_, None) => false,
            (Host::Exact(name), Some(host)) => name.eq_ignore_ascii_case(host),
            (Host::Suffix(suffix), Some(host)) => {
                let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
                host.len() > suffix.len() && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
            }
        }
    }
}

/// A compiled [`RequestMatch`].
#[derive(Clone, Debug)]
struct Test {
    path: Path,
    method: Option<Box<str>>,
    headers: Box<[(Box<str>, Value)]>,
    query: Box<[(Box<str>, Value)]>,
}

impl Test {
    fn new(request: &RequestMatch) -> Result<Self, String> {
        let path = match &request.path {
            None => Path::Any,
            Some(PathMatch::Exact(path)) => Path::Exact(path.as_str().into()),
            Some(PathMatch::Prefix(prefix)) => match prefix.trim_end_matches('/') {
                "" => Path::Any,
                prefix => Path::Prefix(prefix.into()),
            },
            Some(PathMatch::Regex(pattern)) => Path::Regex(whole(pattern)?),
            Some(PathMatch::Rpc { service, method }) if service.is_empty() && method.is_empty() => Path::Any,
            Some(PathMatch::Rpc { service, method }) => {
                Path::Rpc { service: service.as_str().into(), method: method.as_str().into() }
            }
        };
        let headers = request.headers.iter().map(|h| Ok((h.name.to_ascii_lowercase().into(), Value::new(&h.value)?)));
        let query = request.query.iter().map(|q| Ok((q.name.as_str().into(), Value::new(&q.value)?)));
        Ok(Test {
            path,
            method: request.method.as_deref().map(Into::into),
            headers: headers.collect::<Result<_, String>>()?,
            query: query.collect::<Result<_, String>>()?,
        })
    }

    /// The host is looked at when method and path fit, which tells most entries apart for less; expressions come last.
    fn matches(&self, head: &RequestHead, path: &str, host: impl FnOnce() -> bool) -> bool {
        let last = matches!(self.path, Path::Regex(_));
        self.method.as_deref().is_none_or(|method| method == head.method.as_str())
            && (last || self.path.matches(path))
            && host()
            && (!last || self.path.matches(path))
            && self.headers.iter().all(|(name, value)| header_matches(head, name, value))
            && self.query.iter().all(|(name, value)| query_matches(head.query().unwrap_or_default(), name, value))
    }
}

#[derive(Clone, Debug)]
enum Path {
    /// Also the prefix `/`.
    Any,
    Exact(Box<str>),
    /// Without a final slash.
    Prefix(Box<str>),
    Regex(Regex),
    /// At least one of them is not empty.
    Rpc {
        service: Box<str>,
        method: Box<str>,
    },
}

impl Path {
    /// A gRPC method is as good as an exact path, a service as a prefix, and a method of any service as an expression.
    fn rank(&self) -> (u8, usize, usize) {
        match self {
            Path::Any => (0, 0, 0),
            Path::Regex(_) => (1, 0, 0),
            Path::Prefix(prefix) => (2, prefix.len(), 0),
            Path::Exact(path) => (3, path.len(), 0),
            Path::Rpc { service, method } if service.is_empty() => (1, 0, method.len()),
            Path::Rpc { service, method } if method.is_empty() => (2, service.len(), 0),
            Path::Rpc { service, method } => (3, service.len(), method.len()),
        }
    }

    fn prefix_len(&self) -> Option<usize> {
        match self {
            Path::Any => Some(0),
            Path::Prefix(prefix) => Some(prefix.len()),
            Path::Exact(_) | Path::Regex(_) | Path::Rpc { .. } => None,
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Path::Any => true,
            Path::Exact(exact) => **exact == *path,
            Path::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Path::Regex(regex) => regex.is_match(path.as_bytes()),
            Path::Rpc { service, method } => {
                let Some((s, m)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else { return false };
                (service.is_empty() || **service == *s) && (method.is_empty() || **method == *m)
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Value {
    Exact(Box<[u8]>),
    Regex(Regex),
}

impl Value {
    fn new(value: &ValueMatch) -> Result<Self, String> {
        Ok(match value {
            ValueMatch::Exact(bytes) => Value::Exact(bytes.as_slice().into()),
            ValueMatch::Regex(pattern) => Value::Regex(whole(pattern)?),
        })
    }

    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Value::Exact(exact) => **exact == *value,
            Value::Regex(regex) => regex.is_match(value),
        }
    }
}

/// Any value of a repeated header will do, as in linkerd2-proxy. `host` is the authority.
fn header_matches(head: &RequestHead, name: &str, value: &Value) -> bool {
    match name {
        "host" | ":authority" => head.authority().is_some_and(|authority| value.matches(authority.as_bytes())),
        _ => head.headers.get_all(name).any(|found| value.matches(found)),
    }
}

/// The first parameter of that name counts (Gateway API, `HTTPQueryParamMatch`), percent-decoded.
fn query_matches(query: &str, name: &str, value: &Value) -> bool {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(found, _)| *decode(found) == *name.as_bytes())
        .is_some_and(|(_, found)| value.matches(&decode(found)))
}

/// Decodes `application/x-www-form-urlencoded`; copies only what is encoded at all.
fn decode(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if memchr::memchr2(b'%', b'+', bytes).is_none() {
        return Cow::Borrowed(bytes);
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = tail;
        decoded.push(match first {
            b'+' => b' ',
            b'%' => match tail {
                [high, low, after @ ..] => match (hex(*high), hex(*low)) {
                    (Some(high), Some(low)) => {
                        rest = after;
                        high << 4 | low
                    }
                    _ => b'%',
                },
                _ => b'%',
            },
            byte => *byte,
        });
    }
    Cow::Owned(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|value| value as u8)
}

/// Compiles an expression for the whole value. Classes such as `\d` are ASCII: targets and headers are.
fn whole(pattern: &str) -> Result<Regex, String> {
    let compile = |pattern: &str| {
        RegexBuilder::new(pattern).unicode(false).size_limit(REGEX_BYTES).dfa_size_limit(REGEX_BYTES).build()
    };
    // By itself first: `a)|(b` would break out of the anchors, and compile.
    compile(pattern)
        .and_then(|_| compile(&format!(r"\A(?:{pattern})\z")))
        .map_err(|why| format!("regular expression {pattern:?}: {}", why.to_string().replace('\n', " ")))
}

/// A bound on the memory of one expression.
const REGEX_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_api::policy::{HeaderMatch, QueryMatch};
    use proptest::prelude::*;

    fn request(target: &str) -> RequestHead {
        let mut head = RequestHead::default();
        let (host, path) = target.split_once('/').unwrap();
        if !host.is_empty() {
            head.set_authority(host);
        }
        head.set_path(&format!("/{path}"));
        head
    }

    fn path(path: PathMatch) -> RequestMatch {
        RequestMatch { path: Some(path), ..Default::default() }
    }

    fn prefix(text: &str) -> RequestMatch {
        path(PathMatch::Prefix(text.into()))
    }

    fn exact(text: &str) -> RequestMatch {
        path(PathMatch::Exact(text.into()))
    }

    fn regex(text: &str) -> RequestMatch {
        path(PathMatch::Regex(text.into()))
    }

    fn rpc(service: &str, method: &str) -> RequestMatch {
        path(PathMatch::Rpc { service: service.into(), method: method.into() })
    }

    /// A router of one route whose rules have one match each.
    fn rules(matches: &[RequestMatch]) -> Router {
        Router::new([(&[][..], matches.iter().map(std::slice::from_ref))])
    }

    /// A router of routes with one host each and one rule for everything.
    fn hosts(hosts: &[HostMatch]) -> Router {
        Router::new(hosts.iter().map(|host| (std::slice::from_ref(host), [&[][..]])))
    }

    fn rule(router: &Router, head: &RequestHead) -> Option<usize> {
        router.find(head).map(|found| found.rule)
    }

    #[test]
    fn one_route_for_everything_takes_everything() {
        let router = Router::new([(&[][..], [&[][..]])]);
        assert_eq!(router.catch_all, Some(Found { route: 0, rule: 0, prefix_len: Some(0) }));
        assert_eq!(router.find(&RequestHead::default()), router.catch_all);
        assert_eq!(Router::default().find(&request("h/")), None);
        let two = rules(&[prefix("/"), exact("/a")]);
        assert_eq!(two.catch_all, None);
    }

    #[test]
    fn a_prefix_matches_whole_segments() {
        for (pattern, path, expect) in [
            ("/foo", "/foo", true),
            ("/foo", "/foo/", true),
            ("/foo", "/foo/bar", true),
            ("/foo", "/foobar", false),
            ("/foo", "/fo", false),
            ("/foo", "/foo?a=b", true),
            ("/foo/", "/foo", true),
            ("/foo/", "/foo/bar", true),
            ("/foo/", "/foobar", false),
            ("/foo", "/Foo", false),
            ("/", "/anything", true),
        ] {
            let found = rules(&[prefix(pattern)]).find(&request(&format!("h{path}")));
            assert_eq!(found.is_some(), expect, "{pattern} {path}");
            if let Some(found) = found {
                assert_eq!(found.prefix_len, Some(pattern.trim_end_matches('/').len()));
            }
        }
    }

    #[test]
    fn the_most_specific_path_wins_whatever_the_order() {
        let router =
            rules(&[prefix("/"), regex("/a/[0-9]+"), prefix("/a"), prefix("/a/b"), exact("/a/b"), regex("/x.*")]);
        for (path, expect) in [("/a/b", 4), ("/a/b/c", 3), ("/a/1", 2), ("/a", 2), ("/xy", 5), ("/z", 0)] {
            assert_eq!(rule(&router, &request(&format!("h{path}"))), Some(expect), "{path}");
        }
    }

    #[test]
    fn method_headers_and_query_break_ties_in_that_order() {
        let header = |name: &str| HeaderMatch { name: name.into(), value: ValueMatch::Exact(b"1".to_vec()) };
        let query = |name: &str| QueryMatch { name: name.into(), value: ValueMatch::Exact(b"1".to_vec()) };
        let router = rules(&[
            RequestMatch { query: vec![query("q"), query("r")], ..Default::default() },
            RequestMatch { headers: vec![header("A")], ..Default::default() },
            RequestMatch { headers: vec![header("a"), header("b")], ..Default::default() },
            RequestMatch { method: Some("GET".into()), ..Default::default() },
        ]);
        let mut head = request("h/?q=1&r=1");
        head.headers.append("a", "1");
        head.headers.append("b", "1");
        assert_eq!(rule(&router, &head), Some(3));
        head.method = gossamer_engine::message::Method::POST;
        assert_eq!(rule(&router, &head), Some(2));
        head.headers.remove("b");
        assert_eq!(rule(&router, &head), Some(1));
        head.headers.remove("a");
        assert_eq!(rule(&router, &head), Some(0));
        head.set_path("/?q=1");
        assert_eq!(rule(&router, &head), None);
    }

    #[test]
    fn the_first_of_equals_wins() {
        assert_eq!(rule(&rules(&[prefix("/a"), prefix("/a")]), &request("h/a")), Some(0));
    }

    #[test]
    fn the_most_specific_host_wins() {
        let router = hosts(&[
            HostMatch::Suffix("example.com".into()),
            HostMatch::Suffix("a.example.com".into()),
            HostMatch::Exact("x.a.example.com".into()),
        ]);
        for (host, expect) in [
            ("x.a.example.com", Some(2)),
            ("X.A.Example.COM:8080", Some(2)),
            ("x.a.example.com.", Some(2)),
            ("y.a.example.com", Some(1)),
            ("a.example.com", Some(0)),
            ("example.com", None),
            ("badexample.com", None),
            ("", None),
            ("[::1]:80", None),
        ] {
            let found = router.find(&request(&format!("{host}/")));
            assert_eq!(found.map(|found| found.route), expect, "{host}");
        }
        let six = hosts(&[HostMatch::Exact("[::1]".into())]);
        assert!(six.find(&request("[::1]:80/")).is_some());
    }

    #[test]
    fn a_host_without_a_matching_rule_leaves_the_request_to_others() {
        let (any, one) = (prefix("/"), exact("/only"));
        let name = HostMatch::Exact("h".into());
        let router = Router::new([
            (&[][..], [std::slice::from_ref(&any)]),
            (std::slice::from_ref(&name), [std::slice::from_ref(&one)]),
        ]);
        assert_eq!(router.find(&request("h/only")).unwrap().route, 1);
        assert_eq!(router.find(&request("h/other")).unwrap().route, 0);
    }

    #[test]
    fn expressions_match_the_whole_value() {
        let router = rules(&[regex(r"/foo/\d+|/bar")]);
        for (path, expect) in [("/foo/12", true), ("/foo/12/x", false), ("/bar", true), ("/bar2", false)] {
            assert_eq!(router.find(&request(&format!("h{path}"))).is_some(), expect, "{path}");
        }
        assert!(rules(&[regex("(?i)/FOO.*")]).find(&request("h/fooä")).is_some());
    }

    #[test]
    fn a_bad_expression_never_matches_and_is_reported() {
        for pattern in ["(", "a)|(b", "x{1000000000}"] {
            let router = rules(&[regex(pattern), exact("/b")]);
            assert_eq!(router.problems().len(), 1, "{pattern}");
            assert!(router.problems()[0].contains("rule 0"), "{:?}", router.problems());
            assert_eq!(rule(&router, &request("h/b")), Some(1));
            assert_eq!(rule(&router, &request("h/x")), None);
        }
    }

    #[test]
    fn grpc_methods_match_service_and_method() {
        let router = rules(&[rpc("", ""), rpc("", "Get"), rpc("p.S", ""), rpc("p.S", "Get")]);
        for (path, expect) in [("/p.S/Get", 3), ("/p.S/Put", 2), ("/p.T/Get", 1), ("/p.T/Put", 0)] {
            assert_eq!(rule(&router, &request(&format!("h{path}"))), Some(expect), "{path}");
        }
        assert_eq!(rule(&rules(&[rpc("p.S", "")]), &request("h/p.S")), None);
    }

    #[test]
    fn the_first_query_parameter_counts_decoded() {
        let test = |pattern: ValueMatch, target: &str| {
            let query = vec![QueryMatch { name: "a b".into(), value: pattern }];
            rules(&[RequestMatch { query, ..Default::default() }]).find(&request(target)).is_some()
        };
        let exact = || ValueMatch::Exact("ü".into());
        assert!(test(exact(), "h/?x=1&a+b=%C3%bc"));
        assert!(test(exact(), "h/?a%20b=%C3%BC&a+b=2"));
        assert!(!test(exact(), "h/?a+b=2&a+b=%C3%BC"));
        assert!(!test(exact(), "h/?A+b=%C3%BC"));
        assert!(test(ValueMatch::Regex("[0-9]*".into()), "h/?a+b"));
        assert!(test(ValueMatch::Regex("%.%2".into()), "h/?a+b=%x%2"));
    }

    #[test]
    fn the_host_header_is_the_authority() {
        let header = HeaderMatch { name: "Host".into(), value: ValueMatch::Exact(b"h:1".to_vec()) };
        let router = rules(&[RequestMatch { headers: vec![header], ..Default::default() }]);
        assert!(router.find(&request("h:1/")).is_some());
        assert!(router.find(&request("h/")).is_none());
    }

    proptest! {
        #[test]
        fn any_request_is_answered(target in "[^/]{0,20}/\\PC{0,40}", pattern in "\\PC{0,20}") {
            let matches = [regex(&pattern), prefix(&pattern), exact(&pattern), rpc(&pattern, ""),
                RequestMatch {
                    query: vec![QueryMatch { name: pattern.clone(), value: ValueMatch::Regex(pattern.clone()) }],
                    ..Default::default()
                }];
            let router = rules(&matches);
            let _ = router.find(&request(&target));
            let _ = hosts(&[HostMatch::Suffix(pattern.clone()), HostMatch::Exact(pattern)]).find(&request(&target));
        }

        /// The sorted list gives what a search for the best of all matches gives.
        #[test]
        fn the_longest_prefix_wins(patterns in proptest::collection::vec("(/[ab]){0,3}/?", 1..6), path in "(/[ab]){1,4}") {
            let matches: Vec<_> = patterns.iter().map(|p| prefix(p)).collect();
            let best = patterns
                .iter()
                .map(|p| p.trim_end_matches('/'))
                .filter(|p| path == *p || path.starts_with(&format!("{p}/")))
                .map(str::len)
                .max();
            prop_assert_eq!(rules(&matches).find(&request(&format!("h{path}"))).and_then(|f| f.prefix_len), best);
        }
    }
}
