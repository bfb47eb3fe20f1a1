//! `-l`: labels as kubectl selects by them. The grammar is the API server's (`k8s.io/apimachinery/pkg/labels`), so that
//! what is understood here means the same there. Pure.

use kube::core::{Expression, Selector};
use std::collections::BTreeSet;

/// Which workloads, by their labels.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Labels {
    /// Only workloads with these labels, as for kubectl: app=web, tier!=db, 'env in (a,b)', 'env notin (a)', canary, '!canary'
    #[arg(short = 'l', long, value_name = "LABELS", value_parser = parse)]
    selector: Option<Selector>,
}

impl Labels {
    /// All of them have to hold.
    pub fn selector(&self) -> Selector {
        self.selector.clone().unwrap_or_default()
    }

    /// True when some were given.
    pub fn is_given(&self) -> bool {
        self.selector.as_ref().is_some_and(|selector| !selector.selects_all())
    }
}

/// Reads a selector; an empty one selects everything.
pub fn parse(text: &str) -> Result<Selector, String> {
    let mut words = Words { rest: text.trim() };
    let mut all = Vec::new();
    if words.rest.is_empty() {
        return Ok(Selector::default());
    }
    loop {
        all.push(words.requirement()?);
        match words.next() {
            "" => return Ok(all.into_iter().collect()),
            "," => {}
            other => return Err(format!("{other:?} where a comma or the end was expected")),
        }
    }
}

struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    /// The next word or operator; empty at the end.
    fn next(&mut self) -> &'a str {
        let text = self.rest.trim_start();
        let sign = ["==", "!=", "=", "!", ",", "(", ")"].into_iter().find(|sign| text.starts_with(sign));
        let word = || text.find(|c: char| c.is_whitespace() || "=!,()".contains(c)).unwrap_or(text.len());
        let (next, rest) = text.split_at(sign.map_or_else(word, str::len));
        self.rest = rest;
        next
    }

    fn peek(&self) -> &'a str {
        Words { rest: self.rest }.next()
    }

    fn requirement(&mut self) -> Result<Expression, String> {
        let first = self.next();
        if first == "!" {
            return Ok(Expression::DoesNotExist(key(self.next())?));
        }
        let key = key(first)?;
        if matches!(self.peek(), "" | ",") {
            return Ok(Expression::Exists(key));
        }
        match self.next() {
            "=" | "==" => Ok(Expression::Equal(key, self.value()?)),
            "!=" => Ok(Expression::NotEqual(key, self.value()?)),
            "in" => Ok(Expression::In(key, self.values()?)),
            "notin" => Ok(Expression::NotIn(key, self.values()?)),
            other => Err(format!("{other:?} after {key:?} is none of =, ==, !=, in, notin")),
        }
    }

    /// One value, which may be empty.
    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            "" | "," | ")" => Ok(String::new()),
            _ => value(self.next()),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        if self.next() != "(" {
            return Err("in and notin need values in parentheses: env in (a,b)".into());
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            match self.next() {
                "," => {}
                ")" => return Ok(values),
                "" => return Err("a parenthesis is not closed".into()),
                other => return Err(format!("{other:?} among values, which commas separate")),
            }
        }
    }
}

/// `name` or `prefix/name`. Source: Kubernetes, "Labels and Selectors", syntax and character set.
fn key(text: &str) -> Result<String, String> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let part =
        |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') && ends(part);
    let prefix_fits = prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(part));
    match !matches!(text, "in" | "notin") && prefix_fits && is_name(name) {
        true => Ok(text.into()),
        false if text.is_empty() => Err("a label's name is missing".into()),
        false => Err(format!("{text:?} is no name of a label")),
    }
}

fn value(text: &str) -> Result<String, String> {
    match is_name(text) {
        true => Ok(text.into()),
        false => Err(format!("{text:?} is no value of a label")),
    }
}

fn is_name(text: &str) -> bool {
    text.len() <= 63 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) && ends(text)
}

fn ends(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::SelectorExt;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split_whitespace().map(|pair| pair.split_once('=').unwrap()).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn every_operator_selects_as_kubectl_does() {
        let pods = ["", "app=web", "app=db", "app=web env=", "app=web env=a example.com/tier=front", "env=b"];
        for (text, selected) in [
            ("", "111111"),
            ("app", "011110"),
            ("!app", "100001"),
            ("! app", "100001"),
            ("app=web", "010110"),
            ("app==web", "010110"),
            (" app = web ", "010110"),
            ("app!=web", "101001"),
            ("app in (web,db)", "011110"),
            ("app in(web , db)", "011110"),
            ("app notin (web)", "101001"),
            ("env=", "000100"),
            ("env in ()", "000100"),
            ("env in (,a)", "000110"),
            ("app=web,env", "000110"),
            ("app=web, env!=a", "010100"),
            ("example.com/tier=front,!canary", "000010"),
            ("env=in", "000000"),
        ] {
            let selector = parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            let found: String = pods.iter().map(|pod| if selector.matches(&labels(pod)) { '1' } else { '0' }).collect();
            assert_eq!(found, selected, "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("app=web,", "missing"),
            (",", "\",\" is no name"),
            ("=web", "no name"),
            ("app web", "\"web\" after \"app\""),
            ("app in web", "parentheses"),
            ("app in (web", "not closed"),
            ("app in (web db)", "among values"),
            ("app=web db", "a comma"),
            ("in (a)", "no name"),
            ("app=we/b", "no value"),
            ("app=-web", "no value"),
            ("Example.com/app", "no name"),
            ("a/b/c", "no name"),
            ("!app=web", "a comma"),
            ("app>1", "no name"),
            ("app=ü", "no value"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    fn expression() -> impl Strategy<Value = Expression> {
        let name = "[a-zA-Z0-9]([-a-zA-Z0-9_.]{0,8}[a-zA-Z0-9])?";
        let key = ("([a-z0-9]{1,4}\\.)?[a-z]{1,4}/", name, any::<bool>())
            .prop_map(|(prefix, name, whole)| if whole { prefix + &name } else { name })
            .prop_filter("operators", |key| !matches!(key.as_str(), "in" | "notin"));
        let value = prop_oneof![4 => name.prop_map(String::from), 1 => Just(String::new()), 1 => Just("in".into())];
        let values = proptest::collection::btree_set(value.clone(), 1..4);
        (key, value, values, 0..6).prop_map(|(key, value, values, kind)| match kind {
            0 => Expression::Exists(key),
            1 => Expression::DoesNotExist(key),
            2 => Expression::Equal(key, value),
            3 => Expression::NotEqual(key, value),
            4 => Expression::In(key, values),
            _ => Expression::NotIn(key, values),
        })
    }

    proptest! {
        /// As it goes to the API server.
        #[test]
        fn what_is_printed_is_read_back(all in proptest::collection::vec(expression(), 0..5)) {
            let selector: Selector = all.into_iter().collect();
            prop_assert_eq!(parse(&selector.to_string()), Ok(selector));
        }

        #[test]
        fn anything_is_read_or_refused(text in "[ a-c/.!=(),in\u{fc}-]{0,30}") {
            if let Ok(selector) = parse(&text) {
                prop_assert_eq!(parse(&selector.to_string()), Ok(selector));
            }
        }
    }
}
