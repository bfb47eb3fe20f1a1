//! What Linkerd's API cannot carry: extensions, their names, and what stands for them in a route.
//!
//! **Invariant:** an extension that is not understood is not told, so that its route goes on missing it: a request is
//! never treated by half of what was asked for.

use super::mesh::{self as proto, extension::Kind, rewrite};
use super::route::header_name;
use super::{Decoded, InvalidMessage, each, narrow, required};
use crate::defaults;
use crate::policy::{
    Backend, BackendTarget, Delay, Extension, ExtensionName, Extensions, Failure, Filter, HeaderEdit, Load, Meta,
    Mirror, OutboundPolicy, PathModifier, Queue, Rewrite, Target,
};
use http::HeaderValue;
use prost::Message;
use std::time::Duration;

// ---- the question --------------------------------------------------------------------------------------------------

/// Asks for the extensions of a target's routes.
pub fn watch_extensions_to_proto(workload: &str, target: &Target) -> proto::WatchExtensions {
    proto::WatchExtensions { source_workload: workload.to_string(), target: target.to_string() }
}

/// The workload (JSON) and what it wants to reach.
pub fn watch_extensions_from_proto(from: proto::WatchExtensions) -> Decoded<(String, Target)> {
    let target = match from.target.parse() {
        Ok(addr) => Target::Addr(addr),
        Err(_) if from.target.is_empty() => return Err(InvalidMessage::missing("target")),
        Err(_) => Target::Authority(from.target),
    };
    Ok((from.source_workload, target))
}

// ---- names ---------------------------------------------------------------------------------------------------------

/// The name of an extension.
pub fn extension_name(of: &Extension) -> ExtensionName {
    // A mirror or a delay that is missing harms nobody who asked for something else.
    ExtensionName { id: extension_to_proto(of).id, required: is_required(of) }
}

fn is_required(extension: &Extension) -> bool {
    match extension {
        Extension::Rewrite(_) | Extension::ResponseHeaders(_) => true,
        Extension::Mirror(_) | Extension::Delay(_) => false,
    }
}

/// What stands for an extension in a route.
pub(super) fn marker(name: ExtensionName, grpc: bool) -> Failure {
    Failure {
        status: if grpc { 13 } else { 500 },
        message: format!("{MARKER}{:016x} is needed, and this proxy does not know extensions", name.id),
        ratio: (u32::from(name.required), 1),
    }
}

/// An injected failure, or the extension that it stands for.
pub(super) fn failure_or_name(failure: Failure) -> Filter {
    let id = failure.message.strip_prefix(MARKER).and_then(|rest| u64::from_str_radix(rest.get(..16)?, 16).ok());
    match id {
        Some(id) => Filter::Named(ExtensionName { id, required: failure.ratio.0 > 0 }),
        None => Filter::Fail(failure),
    }
}

const MARKER: &str = "gossamer.io/extension=";

// ---- the answer ----------------------------------------------------------------------------------------------------

/// All extensions of a target's routes.
pub fn extensions_to_proto(policy: &OutboundPolicy) -> proto::ExtensionSet {
    let mut extensions: Vec<_> = policy
        .filters()
        .filter_map(|filter| match filter {
            Filter::Extension(extension) => Some(extension_to_proto(extension)),
            _ => None,
        })
        .collect();
    extensions.sort_by_key(|extension| extension.id);
    extensions.dedup();
    proto::ExtensionSet { extensions }
}

/// Those that are understood, and why others are not.
pub fn extensions_from_proto(from: proto::ExtensionSet) -> (Extensions, Vec<InvalidMessage>) {
    let (mut known, mut problems) = (Extensions::new(), Vec::new());
    for (at, extension) in from.extensions.into_iter().enumerate() {
        let id = extension.id;
        match extension_from_proto(extension) {
            Ok(extension) => drop(known.insert(id, extension)),
            Err(error) => problems.push(error.within(&format!("extensions[{at}]"))),
        }
    }
    (known, problems)
}

fn extension_to_proto(from: &Extension) -> proto::Extension {
    let kind = match from {
        Extension::Rewrite(rewrite) => Kind::Rewrite(proto::Rewrite {
            host: rewrite.host.clone().unwrap_or_default(),
            path: rewrite.path.as_ref().map(|path| match path {
                PathModifier::Full(path) => rewrite::Path::FullPath(path.clone()),
                PathModifier::Prefix(path) => rewrite::Path::Prefix(path.clone()),
            }),
        }),
        Extension::Mirror(mirror) => Kind::Mirror(mirror_to_proto(mirror)),
        Extension::Delay(delay) => Kind::Delay(proto::Delay {
            microseconds: u64::try_from(delay.time.as_micros()).unwrap_or(u64::MAX),
            share: Some(share_to_proto(delay.ratio)),
        }),
        Extension::ResponseHeaders(edit) => Kind::ResponseHeaders(proto::HeaderEdit {
            set: headers_to_proto(&edit.set),
            add: headers_to_proto(&edit.add),
            remove: edit.remove.clone(),
        }),
    };
    let mut message = proto::Extension { id: 0, kind: Some(kind) };
    message.id = fnv1a(&message.encode_to_vec());
    message
}

fn headers_to_proto(from: &[(String, Vec<u8>)]) -> Vec<proto::Header> {
    from.iter().map(|(name, value)| proto::Header { name: name.clone(), value: value.clone() }).collect()
}

/// As everywhere, a header that HTTP cannot carry is refused where it arrives.
fn headers_from_proto(from: Vec<proto::Header>, field: &str) -> Decoded<Vec<(String, Vec<u8>)>> {
    each(from, field, |header| {
        HeaderValue::from_bytes(&header.value).map_err(|error| InvalidMessage::new("value", error))?;
        Ok((header_name(&header.name)?, header.value))
    })
}

fn mirror_to_proto(from: &Mirror) -> proto::Mirror {
    let authority = match &from.backend.target {
        BackendTarget::Balance { authority, .. } => authority.clone(),
        BackendTarget::Forward(_) | BackendTarget::Invalid => String::new(),
    };
    let (namespace, name, port) = match &from.backend.meta {
        Meta::Resource { namespace, name, port, .. } => (namespace.clone(), name.clone(), *port),
        Meta::Default(name) => (String::new(), name.clone(), 0),
    };
    let share = Some(share_to_proto(from.ratio));
    proto::Mirror { authority, namespace, name, port: u32::from(port), share }
}

fn extension_from_proto(from: proto::Extension) -> Decoded<Extension> {
    Ok(match required(from.kind, "kind")? {
        Kind::Rewrite(rewrite) => Extension::Rewrite(rewrite_from_proto(rewrite)?),
        Kind::Mirror(mirror) => Extension::Mirror(mirror_from_proto(mirror)?),
        Kind::Delay(delay) => Extension::Delay(Delay {
            time: Duration::from_micros(delay.microseconds),
            ratio: share_from_proto(delay.share)?,
        }),
        Kind::ResponseHeaders(edit) => Extension::ResponseHeaders(HeaderEdit {
            set: headers_from_proto(edit.set, "set")?,
            add: headers_from_proto(edit.add, "add")?,
            remove: each(edit.remove, "remove", |name| header_name(&name))?,
        }),
    })
}

/// Checked here, so that whoever writes it to a connection need not.
fn rewrite_from_proto(from: proto::Rewrite) -> Decoded<Rewrite> {
    let host = Some(from.host).filter(|host| !host.is_empty());
    if let Some(host) = &host {
        host.parse::<http::uri::Authority>().map_err(|error| InvalidMessage::new("host", error))?;
    }
    let valid = |path: &str| path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b'?');
    let path = match from.path {
        None => None,
        Some(rewrite::Path::FullPath(path)) if path.starts_with('/') && valid(&path) => Some(PathModifier::Full(path)),
        Some(rewrite::Path::Prefix(path)) if (path.is_empty() || path.starts_with('/')) && valid(&path) => {
            Some(PathModifier::Prefix(path))
        }
        Some(_) => return Err(InvalidMessage::new("path", "is no absolute path")),
    };
    Ok(Rewrite { host, path })
}

fn mirror_from_proto(from: proto::Mirror) -> Decoded<Mirror> {
    if from.authority.is_empty() {
        return Err(InvalidMessage::missing("authority"));
    }
    let load = Load { default_rtt: defaults::EWMA_DEFAULT_RTT, decay: defaults::EWMA_DECAY, penalty: None };
    let backend = Backend {
        meta: Meta::service(&from.namespace, &from.name, narrow(from.port, "port")?),
        queue: Queue { capacity: defaults::QUEUE_CAPACITY, failfast: defaults::QUEUE_FAILFAST },
        target: BackendTarget::Balance { authority: from.authority, load },
    };
    Ok(Mirror { backend, ratio: share_from_proto(from.share)? })
}

fn share_to_proto((numerator, denominator): (u32, u32)) -> proto::Share {
    proto::Share { numerator, denominator }
}

fn share_from_proto(from: Option<proto::Share>) -> Decoded<(u32, u32)> {
    match from {
        None => Ok((1, 1)),
        Some(proto::Share { numerator, denominator }) if denominator > 0 && numerator <= denominator => {
            Ok((numerator, denominator))
        }
        Some(proto::Share { numerator, denominator }) => {
            Err(InvalidMessage::new("share", format_args!("{numerator}/{denominator} is no share")))
        }
    }
}

/// Source: draft-eastlake-fnv. Names only have to differ among the routes of one service, whose author gains nothing by
/// a collision.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::super::{outbound_policy_from_proto, outbound_policy_to_proto};
    use super::*;
    use crate::policy::{Distribution, HttpRoute, HttpRoutes, HttpRule, OutboundProtocol, RouteBackend};

    fn backend() -> Backend {
        let load = Load { default_rtt: defaults::EWMA_DEFAULT_RTT, decay: defaults::EWMA_DECAY, penalty: None };
        let queue = Queue { capacity: defaults::QUEUE_CAPACITY, failfast: defaults::QUEUE_FAILFAST };
        let target = BackendTarget::Balance { authority: "web.demo.svc.cluster.local:80".into(), load };
        Backend { meta: Meta::service("demo", "web", 80), queue, target }
    }

    fn extensions() -> Vec<Extension> {
        let rewrite = |host: Option<&str>, path| Extension::Rewrite(Rewrite { host: host.map(str::to_string), path });
        vec![
            rewrite(Some("example.org"), None),
            rewrite(None, Some(PathModifier::Full("/all".into()))),
            rewrite(Some("a:80"), Some(PathModifier::Prefix("/new".into()))),
            rewrite(None, Some(PathModifier::Prefix(String::new()))),
            Extension::Mirror(Mirror { backend: backend(), ratio: (1, 3) }),
            Extension::Delay(Delay { time: Duration::from_millis(5), ratio: (0, 100) }),
            Extension::ResponseHeaders(HeaderEdit {
                set: vec![("x-a".into(), b"1".to_vec())],
                add: vec![("x-b".into(), b"2".to_vec())],
                remove: vec!["x-c".into()],
            }),
        ]
    }

    fn policy(filters: Vec<Filter>, grpc: bool) -> OutboundPolicy {
        let backends = Distribution::First(vec![RouteBackend { backend: backend(), filters: filters.clone() }]);
        let rule = HttpRule { filters, backends, ..HttpRule::default() };
        let route = HttpRoute { meta: Meta::named("r"), hosts: Vec::new(), rules: vec![rule], grpc };
        let http = HttpRoutes { routes: vec![route], breaker: None };
        let protocol = if grpc { OutboundProtocol::Grpc(http) } else { OutboundProtocol::Http1(http) };
        OutboundPolicy { meta: Meta::named("s"), protocol }
    }

    #[test]
    fn a_route_and_its_extensions_travel_apart_and_meet_again() {
        for grpc in [false, true] {
            let filters: Vec<_> = extensions().into_iter().map(|e| Filter::Extension(Box::new(e))).collect();
            let told = policy(filters, grpc);
            let mut heard = outbound_policy_from_proto(outbound_policy_to_proto(&told)).unwrap();
            assert!(heard.filters().all(|filter| matches!(filter, Filter::Named(_))), "{heard:?}");
            assert!(!heard.clone().resolve(&Extensions::new()));
            let (known, problems) = extensions_from_proto(extensions_to_proto(&told));
            assert_eq!((known.len(), problems.len()), (extensions().len(), 0));
            assert!(heard.resolve(&known));
            assert_eq!(heard, told);
        }
    }

    #[test]
    fn who_does_not_know_extensions_fails_only_what_must_not_pass_without() {
        for extension in extensions() {
            let failure = marker(extension_name(&extension), false);
            assert_eq!(failure.ratio.0 > 0, is_required(&extension), "{failure:?}");
        }
    }

    #[test]
    fn another_content_is_another_name() {
        let mut ids: Vec<_> = extensions().iter().map(|extension| extension_name(extension).id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), extensions().len());
    }

    #[test]
    fn an_ordinary_failure_stays_one() {
        for message in
            ["", "gossamer.io/extension=", "gossamer.io/extension=xyz", "gossamer.io/extension=é123456789abcdef"]
        {
            let failure = Failure { status: 500, message: message.into(), ratio: (1, 1) };
            assert_eq!(failure_or_name(failure.clone()), Filter::Fail(failure));
        }
    }

    #[test]
    fn what_is_not_understood_is_not_told() {
        use rewrite::Path::{FullPath, Prefix};
        let rewrite = |host: &str, path| Some(Kind::Rewrite(proto::Rewrite { host: host.into(), path: Some(path) }));
        let too_much = Some(proto::Share { numerator: 2, denominator: 1 });
        let kinds = [
            None,
            rewrite("", FullPath("no-slash".into())),
            rewrite("", FullPath("/a\r\nb".into())),
            rewrite("", Prefix("/a b".into())),
            rewrite("", Prefix("/a?b".into())),
            rewrite("a/b", FullPath("/".into())),
            Some(Kind::Mirror(proto::Mirror::default())),
            Some(Kind::ResponseHeaders(proto::HeaderEdit {
                set: vec![proto::Header { name: "a".into(), value: b"1\r\nb: 2".to_vec() }],
                ..proto::HeaderEdit::default()
            })),
            Some(Kind::Delay(proto::Delay { share: too_much, ..proto::Delay::default() })),
        ];
        let count = kinds.len();
        let extensions = kinds.into_iter().zip(0..).map(|(kind, id)| proto::Extension { id, kind }).collect();
        let (known, problems) = extensions_from_proto(proto::ExtensionSet { extensions });
        assert_eq!((known.len(), problems.len()), (0, count));
    }
}
