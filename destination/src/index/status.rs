//! What people should know of their objects: whether a route is in force, and what names something that is not there.

use super::Index;
use gossamer_api::kubernetes::{Action, IntOrString, Key, Kind, Name, ParentRef};

/// Something that holds of a route, or does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `Accepted`, `ResolvedRefs`, `PartiallyInvalid`.
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// In one word, of Gateway API's list.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

fn condition(kind: &'static str, problem: Option<(&'static str, String)>, well: &'static str) -> Condition {
    match problem {
        Some((reason, message)) => Condition { kind, holds: false, reason, message },
        None => Condition { kind, holds: true, reason: well, message: String::new() },
    }
}

impl Index {
    /// What holds of a route with regard to a parent; `None` for a parent that is not a Service, or an unknown route.
    pub fn route_conditions(&self, key: &Key, parent: &ParentRef) -> Option<Vec<Condition>> {
        let route = self.routes.get(key)?;
        let (service, port) = super::routes::service_parent(parent, &key.name.namespace)?;
        let mut conditions = vec![
            condition("Accepted", self.refused(&service, port), "Accepted"),
            condition("ResolvedRefs", self.unresolved(route), "ResolvedRefs"),
        ];
        // Backends have a condition of their own.
        let problems: Vec<_> =
            self.problems(key).iter().filter(|problem| !problem.starts_with("backend ")).map(String::as_str).collect();
        if !problems.is_empty() {
            // Present only where it holds (Gateway API).
            let message = shorten(&problems.join("; "));
            conditions.push(Condition { kind: "PartiallyInvalid", holds: true, reason: "UnsupportedValue", message });
        }
        Some(conditions)
    }

    /// Why a parent does not take a route.
    fn refused(&self, parent: &Name, port: Option<u16>) -> Option<(&'static str, String)> {
        let Some(service) = self.services.get(parent) else {
            return Some(("NoMatchingParent", format!("there is no Service {parent}")));
        };
        if service.external {
            return Some((
                "NoMatchingParent",
                format!("Service {parent} is of type ExternalName, which has no routes"),
            ));
        }
        let missing = port.filter(|port| service.port(*port).is_none());
        missing.map(|port| ("NoMatchingParent", format!("Service {parent} has no TCP port {port}")))
    }

    /// The first backend that there is not.
    fn unresolved(&self, route: &super::routes::Route) -> Option<(&'static str, String)> {
        let mut backends = route.rules.iter().flat_map(|rule| rule.backends.iter().flatten());
        backends.find_map(|backend| {
            let Some(name) = &backend.service else {
                return Some(("InvalidKind", format!("backend {:?} is not a Service", backend.name)));
            };
            let Some(service) = self.services.get(name) else {
                return Some(("BackendNotFound", format!("there is no Service {name}")));
            };
            match backend.port {
                _ if service.external => {
                    Some(("BackendNotFound", format!("Service {name} is of type ExternalName, which has no endpoints")))
                }
                None => Some(("BackendNotFound", format!("backend Service {name} needs a port"))),
                Some(port) if service.port(port).is_none() => {
                    Some(("BackendNotFound", format!("Service {name} has no TCP port {port}")))
                }
                Some(_) => None,
            }
        })
    }

    /// Policies that have no effect, or less than they say, because what they name is not there.
    pub fn dangling(&self) -> Vec<(Key, String)> {
        let mut found = Vec::new();
        for (name, policy) in &self.policies {
            let mut say = |text: String| {
                found.push((Key { kind: Kind::AuthorizationPolicy, name: name.clone() }, text));
            };
            if let Some(service) = &policy.spec.service
                && !self.services.contains_key(&Name::new(&name.namespace, service))
            {
                say(format!(
                    "spec.service: there is no Service {service:?} in {}, so it selects nothing",
                    name.namespace
                ));
                continue;
            }
            let workloads = super::in_namespace(&self.workloads, &name.namespace)
                .filter_map(|pod| Some((pod, self.workloads.get(pod)?)))
                .filter(|(pod, workload)| self.selects(policy, pod, workload));
            let workloads: Vec<_> = workloads.map(|(_, workload)| workload).collect();
            if workloads.is_empty() {
                say(format!("it selects none of the pods in {}", name.namespace));
                continue;
            }
            for port in &policy.spec.ports {
                // Any number may be listened on; a name has to be some container's.
                if let IntOrString::String(text) = port
                    && workloads.iter().all(|workload| workload.port(port).is_none())
                {
                    say(format!("spec.ports: none of the selected pods has a port {text:?}"));
                }
            }
            if workloads.iter().all(|workload| workload.identity.is_none()) {
                say("none of the selected pods has a proxy, so nothing enforces it".into());
            }
            for (at, to) in policy.spec.to.iter().enumerate() {
                let Some(reference) = &to.route else { continue };
                let (key, denies) = (reference.key(&name.namespace), policy.spec.action == Action::Deny);
                let effect = if denies { "it denies all requests" } else { "it lets nobody in" };
                match self.routes.get(&key) {
                    None => say(format!("spec.to[{at}].route: there is no {key}, so {effect}")),
                    Some(route) if denies && !route.whole => {
                        say(format!("spec.to[{at}].route: not all matches of {key} are understood, so {effect}"));
                    }
                    Some(route) if !denies && !route.hosts.is_empty() => {
                        let why = "has hostnames, which policy can't tell apart";
                        say(format!("spec.to[{at}].route: {key} {why}, so {effect}"));
                    }
                    Some(_) => {}
                }
            }
            for (at, client) in policy.spec.from.iter().enumerate() {
                for missing in client.namespaces.iter().filter(|ns| !self.namespaces.contains_key(*ns)) {
                    say(format!("spec.from[{at}].namespaces: there is no namespace {missing:?}"));
                }
            }
        }
        found
    }
}

/// Kubernetes allows 32 KiB in a condition, people read less.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

const MAX_MESSAGE: usize = 1000;
