//! YAML text to objects. Every failure has the line and the field.

use super::{Key, Kind, Metadata, Object, POLICY_GROUP};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt;

/// What is wrong in a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidObject {
    /// Line in the text, from 1.
    pub line: usize,
    /// `spec.ports[0].port`; may be empty.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for InvalidObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for InvalidObject {}

/// All objects of a text of one or more YAML documents (JSON too), each with the line where it begins. Objects of kinds
/// that the mesh does not read (a Deployment, a ConfigMap...) are left out. Fails with everything that is wrong.
pub fn parse_yaml(text: &str) -> Result<Vec<(usize, Object)>, Vec<InvalidObject>> {
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for (line, document) in documents(text) {
        if document.lines().all(|line| matches!(line.trim_start().as_bytes().first(), None | Some(b'#'))) {
            continue;
        }
        match parse_document(document) {
            Ok(parsed) => objects.extend(parsed.into_iter().map(|object| (line + 1, object))),
            Err(error) => errors.push(InvalidObject { line: error.line + line, ..error }),
        }
    }
    let mut seen = std::collections::BTreeMap::<Key, usize>::new();
    for (line, object) in &objects {
        if let Some(first) = seen.insert(object.key(), *line) {
            let reason = format!("{} is already in line {first}", object.key());
            errors.push(InvalidObject { line: *line, field: "metadata.name".into(), reason });
        }
    }
    errors.sort_by_key(|error| error.line);
    if errors.is_empty() { Ok(objects) } else { Err(errors) }
}

/// The kind of an object, if it is one that the mesh reads.
pub fn kind_of(api_version: &str, kind: &str) -> Option<Kind> {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    Some(match (group, kind) {
        ("", "Namespace") => Kind::Namespace,
        ("", "Node") => Kind::Node,
        ("", "Service") => Kind::Service,
        ("", "Pod") => Kind::Pod,
        ("discovery.k8s.io", "EndpointSlice") => Kind::EndpointSlice,
        ("gateway.networking.k8s.io", "HTTPRoute") => Kind::HttpRoute,
        ("gateway.networking.k8s.io", "GRPCRoute") => Kind::GrpcRoute,
        ("gateway.networking.k8s.io", "TCPRoute") => Kind::TcpRoute,
        ("gateway.networking.k8s.io", "TLSRoute") => Kind::TlsRoute,
        (POLICY_GROUP, "AuthorizationPolicy") => Kind::AuthorizationPolicy,
        _ => return None,
    })
}

/// The documents of a text, each with the number of lines before it. A `---` at the start of a line separates; inside
/// of a block scalar it cannot stand there, because those are indented.
pub fn documents(text: &str) -> Vec<(usize, &str)> {
    let (mut found, mut start, mut start_line, mut at) = (Vec::new(), 0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let next = at + line.len();
        if line.starts_with("---") && (line.trim_end().len() == 3 || line.as_bytes()[3].is_ascii_whitespace()) {
            found.push((start_line, &text[start..at]));
            (start, start_line) = (next, number + 1);
        }
        at = next;
    }
    found.push((start_line, &text[start..]));
    found
}

/// What tells one kind of object from another.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: Metadata,
}

fn parse_document(text: &str) -> Result<Vec<Object>, InvalidObject> {
    let head: Head = read(text)?;
    let Some(kind) = kind_of(&head.api_version, &head.kind) else { return Ok(Vec::new()) };
    if head.metadata.name.is_empty() {
        return Err(InvalidObject { line: 1, field: "metadata.name".into(), reason: "missing".into() });
    }
    let mut object = match kind {
        Kind::Namespace => Object::Namespace(read(text)?),
        Kind::Node => Object::Node(read(text)?),
        Kind::Service => Object::Service(read(text)?),
        Kind::Pod => Object::Pod(read(text)?),
        Kind::EndpointSlice => Object::EndpointSlice(read(text)?),
        Kind::HttpRoute => Object::HttpRoute(read(text)?),
        Kind::GrpcRoute => Object::GrpcRoute(read(text)?),
        Kind::TcpRoute => Object::TcpRoute(read(text)?),
        Kind::TlsRoute => Object::TlsRoute(read(text)?),
        Kind::AuthorizationPolicy => Object::AuthorizationPolicy(read(text)?),
    };
    let metadata = object.metadata_mut();
    if kind.is_cluster_wide() {
        metadata.namespace.clear();
    } else if metadata.namespace.is_empty() {
        metadata.namespace = "default".into();
    }
    Ok(vec![object])
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, InvalidObject> {
    let mut field = String::new();
    serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let path = error.path().to_string();
            if path != "." {
                field = path;
            }
            error.into_inner()
        })
    })
    .map_err(|error| {
        let error = error.without_snippet();
        let line = error.location().map_or(1, |at| usize::try_from(at.line()).unwrap_or(1));
        // The first line says what is wrong; the place is told already.
        let text = error.to_string();
        let reason = text.lines().next().unwrap_or("invalid").trim_start_matches("error: ");
        let reason = reason.rsplit_once(" at line ").map_or(reason, |(reason, _)| reason);
        let reason = reason.split_once(": ").filter(|(at, _)| at.starts_with("line ")).map_or(reason, |(_, rest)| rest);
        InvalidObject { line, field: std::mem::take(&mut field), reason: reason.to_string() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_several_documents() {
        let text = "# a file\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: demo}\nspec:\n  ports: [{port: 80, targetPort: http}]\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: web-0\n";
        let objects = parse_yaml(text).unwrap();
        let keys: Vec<_> = objects.iter().map(|(line, object)| (*line, object.key().to_string())).collect();
        assert_eq!(keys, [(3, "Service demo/web".to_string()), (13, "Pod default/web-0".to_string())]);
    }

    #[test]
    fn failures_have_line_and_field() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports:\n    - port: 80000\n";
        let errors = parse_yaml(text).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert_eq!((errors[0].line, errors[0].field.as_str()), (10, "spec.ports[0].port"), "{}", errors[0]);
    }

    #[test]
    fn a_misspelt_restriction_is_an_error() {
        let text = "apiVersion: policy.gossamer.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  from:\n    - networks: [{cidr: 10.0.0.0/8}]\n  port: [80]\n";
        let errors = parse_yaml(text).unwrap_err();
        assert_eq!(errors[0].line, 7, "{}", errors[0]);
        assert!(errors[0].reason.contains("port"), "{}", errors[0]);
    }

    #[test]
    fn the_same_name_twice_is_an_error() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n";
        assert!(parse_yaml(text).unwrap_err()[0].reason.contains("already in line 1"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[a-z:{}\\[\\]\\-\" \n0-9|&*#]{0,200}") {
            let _ = parse_yaml(&text);
        }
    }
}
