//! Kubernetes objects as people write them: YAML in, the same with some things added or removed out. Keys keep their
//! order; what nobody here knows is kept.
//!
//! Scalars are read as `kubectl` reads them (YAML 1.1: `yes` is true, `0644` is octal) and written so that it reads the
//! same again. Comments are not kept.

use crate::error::{CommandError, Result};
use gossamer_injector::inject::Addition;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Number, Value};
use std::fmt;
use std::path::{Path, PathBuf};

/// A document, or a part of one.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Nothing.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// Any number.
    Number(Number),
    /// Text.
    Text(String),
    /// Elements.
    List(Vec<Node>),
    /// Members, in their order.
    Map(Vec<(String, Node)>),
}

/// The objects of a YAML (or JSON) text; empty documents are left out. `source` is named in errors.
pub fn read(text: &str, source: &str) -> Result<Vec<Node>> {
    let mut found = Vec::new();
    for (line, document) in gossamer_api::kubernetes::documents(text) {
        if document.lines().all(|line| matches!(line.trim_start().as_bytes().first(), None | Some(b'#'))) {
            continue;
        }
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        let node = serde_saphyr::from_str_with_options::<Node>(document, options).map_err(|error| {
            let error = error.without_snippet();
            let at = error.location().map_or(1, |at| at.line()) + line as u64;
            let reason = error.to_string();
            CommandError::failed(format!("{source}:{at}: {}", reason.lines().next().unwrap_or("invalid YAML")))
        })?;
        if node != Node::Null {
            found.push(node);
        }
    }
    Ok(found)
}

/// The objects as one YAML text.
pub fn write(nodes: &[Node]) -> Result<String> {
    let mut text = String::new();
    for node in nodes {
        if !text.is_empty() {
            text += "---\n";
        }
        text += &serde_saphyr::to_string(node).map_err(|error| CommandError::failed(format!("as YAML: {error}")))?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

/// The texts of files, of all YAML and JSON files below folders, and of standard input (`-`), each with its name.
pub fn open(paths: &[PathBuf]) -> Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let text =
                std::io::read_to_string(std::io::stdin()).map_err(|error| unreadable("standard input", error))?;
            texts.push(("standard input".into(), text));
        } else if path.is_dir() {
            let before = texts.len();
            folder(path, &mut texts)?;
            if texts.len() == before {
                let message = format!("{} has no file that ends in .yaml, .yml or .json", path.display());
                return Err(CommandError::failed(message));
            }
        } else {
            texts.push(file(path)?);
        }
    }
    Ok(texts)
}

fn folder(path: &Path, texts: &mut Vec<(String, String)>) -> Result<()> {
    let entries = std::fs::read_dir(path).map_err(|error| unreadable(path.display(), error))?;
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for entry in entries {
        let is_manifest = entry.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|one| ext == *one));
        if entry.is_dir() {
            folder(&entry, texts)?;
        } else if is_manifest {
            texts.push(file(&entry)?);
        }
    }
    Ok(())
}

fn file(path: &Path) -> Result<(String, String)> {
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(path.display(), error))?;
    Ok((path.display().to_string(), text))
}

fn unreadable(what: impl fmt::Display, error: std::io::Error) -> CommandError {
    CommandError::failed(format!("{what} can't be read: {error}"))
}

impl Node {
    /// A member of a map.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Node::Map(members) => members.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        match self {
            Node::Map(members) => members.iter_mut().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Text of a member, or nothing.
    pub fn text(&self, key: &str) -> &str {
        match self.get(key) {
            Some(Node::Text(text)) => text,
            _ => "",
        }
    }

    /// Follows names.
    pub fn at_mut(&mut self, path: &[&str]) -> Option<&mut Node> {
        path.iter().try_fold(self, |node, name| node.get_mut(name))
    }

    /// Sets a member of a map; anything else becomes a map.
    pub fn set(&mut self, key: &str, value: Node) {
        if !matches!(self, Node::Map(_)) {
            *self = Node::Map(Vec::new());
        }
        let Node::Map(members) = self else { return };
        match members.iter_mut().find(|(name, _)| name == key) {
            Some((_, present)) => *present = value,
            None => members.push((key.to_string(), value)),
        }
    }

    /// The map under a name, made where there is none.
    pub fn map(&mut self, key: &str) -> &mut Node {
        if !matches!(self.get(key), Some(Node::Map(_))) {
            self.set(key, Node::Map(Vec::new()));
        }
        self.get_mut(key).expect("it was set in the line above")
    }

    /// Keeps the members of a map, or the elements of a list, for which this is true. True when something went.
    pub fn retain(&mut self, keep: impl Fn(&str, &Node) -> bool) -> bool {
        match self {
            Node::Map(members) => {
                let before = members.len();
                members.retain(|(key, value)| keep(key, value));
                members.len() < before
            }
            Node::List(elements) => {
                let before = elements.len();
                elements.retain(|value| keep("", value));
                elements.len() < before
            }
            _ => false,
        }
    }

    /// True for a map or list without anything in it.
    pub fn is_empty(&self) -> bool {
        match self {
            Node::Map(members) => members.is_empty(),
            Node::List(elements) => elements.is_empty(),
            _ => false,
        }
    }

    /// Makes an addition, as a JSON patch would.
    pub fn add(&mut self, addition: &Addition) {
        let Some((last, path)) = addition.path.split_last() else { return };
        let mut node = self;
        for name in path {
            node = match node {
                Node::List(_) => return,
                map => {
                    if map.get(name).is_none() {
                        map.set(name, Node::Map(Vec::new()));
                    }
                    let Some(next) = map.get_mut(name) else { return };
                    next
                }
            };
        }
        let value = Node::from(&addition.value);
        match node {
            Node::List(elements) => {
                let at = last.parse::<usize>().unwrap_or(elements.len()).min(elements.len());
                elements.insert(at, value);
            }
            map => map.set(last, value),
        }
    }
}

/// Names first, as people write it; the rest in the order of the letters.
impl From<&Value> for Node {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Node::Null,
            Value::Bool(value) => Node::Bool(*value),
            Value::Number(number) => Node::Number(number.clone()),
            Value::String(text) => Node::Text(text.clone()),
            Value::Array(elements) => Node::List(elements.iter().map(Node::from).collect()),
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().map(|(key, value)| (key.clone(), Node::from(value))).collect();
                members.sort_by_key(|(key, _)| ["name", "image"].iter().position(|one| one == key).unwrap_or(2));
                Node::Map(members)
            }
        }
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Node::Null => serializer.serialize_unit(),
            Node::Bool(value) => serializer.serialize_bool(*value),
            Node::Number(number) => number.serialize(serializer),
            Node::Text(text) => serializer.serialize_str(text),
            Node::List(elements) => serializer.collect_seq(elements),
            Node::Map(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                members.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        // JSON, which is what the API server is sent, has no infinity.
        Ok(Number::from_f64(value).map_or(Node::Null, Node::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            list.push(element);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = members.next_entry::<Node, Node>()? {
            let key = match key {
                Node::Text(text) => text,
                Node::Bool(value) => value.to_string(),
                Node::Number(number) => number.to_string(),
                _ => return Err(serde::de::Error::custom("a key has to be text")),
            };
            map.push((key, value));
        }
        Ok(Node::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(text: &str) -> String {
        let nodes = read(text, "test").unwrap();
        let written = write(&nodes).unwrap();
        assert_eq!(read(&written, "written").unwrap(), nodes, "{written}");
        written
    }

    #[test]
    fn keys_keep_their_order() {
        assert_eq!(
            again("kind: A\nb: 1\na:\n  z: [1, 2]\n  w: {}\n"),
            "kind: A\nb: 1\na:\n  z:\n  - 1\n  - 2\n  w: {}\n"
        );
    }

    #[test]
    fn text_that_looks_like_something_else_stays_text() {
        for text in [
            "yes",
            "no",
            "on",
            "off",
            "y",
            "n",
            "Y",
            "True",
            "null",
            "~",
            "",
            " ",
            "1e3",
            "0x1",
            "0o7",
            "0644",
            "1_000",
            "1:30",
            "2020-01-01",
            ".inf",
            ".nan",
            "-",
            "- a",
            "a: b",
            "a #b",
            "#a",
            "!a",
            "&a",
            "*a",
            "@a",
            "`a",
            "%a",
            "{a",
            "[a",
            "a\\b",
            "\"a\"",
            "'a'",
            "a\tb",
            "=",
            "<<",
            "?",
            "? a",
            "|",
            ">",
            "a:",
            ":a",
            "1.",
            "+1",
            "-1",
            "1.0",
            "#!/bin/sh\nset -e\n  echo \"$1\"\n\n\n",
            "a\n",
            "\na",
            "a\n\n",
            "  indented\nless\n",
            "trailing \nspace\n",
            "tab\n\tstart\n",
            "no newline\nat end",
            "\u{1f98b}",
            "a\u{7}b",
            "\r\n",
            "---",
            "--- a",
            "...",
        ] {
            let nodes = [Node::Map(vec![("a".into(), Node::Text(text.into())), ("b".into(), Node::Null)])];
            let written = write(&nodes).unwrap();
            assert_eq!(read(&written, "written").unwrap(), nodes, "{text:?}\n{written}");
        }
    }

    #[test]
    fn scalars_are_read_as_kubectl_does() {
        let nodes = read("[yes, 0644, 0x1F, 1e3, 1.5, ~, 18446744073709551615, -7]", "test").unwrap();
        let json = serde_json::to_string(&nodes[0]).unwrap();
        assert_eq!(json, "[true,420,31,1000.0,1.5,null,18446744073709551615,-7]");
    }

    #[test]
    fn anchors_and_several_documents_are_understood() {
        let text = "# nothing\n---\na: &x {b: 1}\nc: *x\n---\n---\nlong: >\n  folded\n  text\n";
        assert!(again(text).starts_with("a:\n  b: 1\nc:\n  b: 1\n---\nlong: "), "{}", again(text));
    }

    #[test]
    fn errors_have_file_and_line() {
        let error = read("a: 1\n---\nb: [\n", "web.yaml").unwrap_err().to_string();
        assert!(error.starts_with("web.yaml:"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_survives(text in "\\PC{0,20}(\n[ \t]?\\PC{0,20}){0,3}") {
            let nodes = [Node::Map(vec![("a".into(), Node::List(vec![Node::Text(text.clone())]))])];
            proptest::prop_assert_eq!(read(&write(&nodes).unwrap(), "written").unwrap(), nodes);
        }
    }
}
