//! Tells people what became of their objects: route statuses and events, written by the holder of the lease.
//!
//! **Invariant:** a status is written only when it says something new, to the version of the route that it is about, and
//! entries of other controllers stay as they are.

use super::lease::Held;
use crate::index::Index;
use crate::registry::{Change, Registry};
use gossamer_api::kubernetes::{Key, Kind, Object, ParentRef, RouteParentStatus, RouteStatus, StatusCondition};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// What is to be told, noted by the watches. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(super) struct Book(Arc<Noted>);

#[derive(Default)]
struct Noted {
    pages: Mutex<Pages>,
    news: Notify,
}

#[derive(Default)]
struct Pages {
    routes: BTreeMap<Key, Route>,
    events: BTreeMap<Key, (String, BTreeSet<String>)>,
}

/// A route as its status is concerned.
#[derive(Clone)]
struct Route {
    /// The API's version that it was read in.
    api: &'static str,
    resource_version: String,
    generation: Option<i64>,
    parents: Vec<ParentRef>,
    status: RouteStatus,
}

impl Book {
    /// Notes what is about to become known.
    pub(super) fn note(&self, changes: &mut [Change], api: &'static str) {
        let mut news = false;
        let mut pages = self.lock();
        for change in changes {
            match change {
                Change::Apply(object) => news |= pages.note(object, api),
                Change::Delete(key) => {
                    pages.events.remove(key);
                    news |= pages.routes.remove(key).is_some() || key.kind == Kind::Service;
                }
            }
        }
        drop(pages);
        if news {
            self.0.news.notify_one();
        }
    }

    /// Notes what is wrong with an object.
    pub(super) fn wrong(&self, key: &Key, uid: &str, problems: impl IntoIterator<Item = String>) {
        let mut pages = self.lock();
        if pages.events.len() < MAX_EVENTS {
            pages.events.entry(key.clone()).or_insert_with(|| (uid.to_string(), BTreeSet::new())).1.extend(problems);
        }
        drop(pages);
        self.0.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.0.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    /// True when a status may have to be written.
    fn note(&mut self, object: &mut Object, api: &'static str) -> bool {
        let key = object.key();
        let (metadata, parents, status) = match object {
            Object::HttpRoute(route) => (&mut route.metadata, &route.spec.parent_refs, &mut route.status),
            Object::GrpcRoute(route) => (&mut route.metadata, &route.spec.parent_refs, &mut route.status),
            Object::TcpRoute(route) | Object::TlsRoute(route) => {
                (&mut route.metadata, &route.spec.parent_refs, &mut route.status)
            }
            _ => return key.kind == Kind::Service,
        };
        // Not needed in the index.
        let (status, resource_version) = (std::mem::take(status), std::mem::take(&mut metadata.resource_version));
        let generation = metadata.generation;
        self.routes.insert(key, Route { api, resource_version, generation, parents: parents.clone(), status });
        true
    }
}

/// Writes what the book says.
pub(super) struct Writer {
    client: Client,
    registry: Registry,
    book: Book,
    held: Held,
    recorder: Recorder,
    /// Policies that name what is not there, since when, and whether it was said.
    dangling: BTreeMap<(Key, String), (Instant, bool)>,
}

impl Writer {
    pub(super) fn new(client: Client, registry: Registry, book: Book, held: Held, me: &str) -> Self {
        let reporter = Reporter { controller: "gossamer.io/destination".into(), instance: Some(me.into()) };
        let recorder = Recorder::new(client.clone(), reporter);
        Writer { client, registry, book, held, recorder, dangling: BTreeMap::new() }
    }

    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                () = self.book.0.news.notified() => sleep(GATHER).await,
                // The sender may be gone when the process stops.
                Ok(()) = self.held.changed() => {}
                () = sleep(LOOK) => {}
            }
            self.look_for_dangling();
            if !*self.held.borrow_and_update() {
                continue;
            }
            // Statuses first: others wait for them.
            let written = self.write_statuses().await;
            if !(self.tell_events().await && written) {
                sleep(RETRY).await;
                self.book.0.news.notify_one();
            }
        }
    }

    /// False when something is left to be written.
    async fn write_statuses(&self) -> bool {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let due: Vec<_> = self.registry.read(|index| {
            let pages = self.book.lock();
            let due = |(key, route): (&Key, &Route)| {
                let status = status_of(index, key, route, &now);
                (status != route.status).then(|| (key.clone(), route.clone(), status))
            };
            pages.routes.iter().filter_map(due).collect()
        });
        let mut complete = true;
        for (key, route, status) in due {
            let failed = match timeout(TIMEOUT, self.patch(&key, &route, &status)).await {
                Ok(Ok(())) => continue,
                // It has changed in between, and is looked at again when that change comes; or it is gone.
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".into(),
            };
            tracing::warn!(object = %key, "its status could not be written, trying again: {failed}");
            complete = false;
        }
        complete
    }

    async fn patch(&self, key: &Key, route: &Route, status: &RouteStatus) -> kube::Result<()> {
        let (group, kind) = key.kind.group_kind();
        let resource = ApiResource {
            group: group.into(),
            version: route.api.into(),
            api_version: format!("{group}/{}", route.api),
            kind: kind.into(),
            plural: format!("{}s", kind.to_ascii_lowercase()),
        };
        let routes = Api::<DynamicObject>::namespaced_with(self.client.clone(), &key.name.namespace, &resource);
        let patch = serde_json::json!({
            "metadata": {"resourceVersion": route.resource_version},
            "status": status,
        });
        routes.patch_status(&key.name.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        tracing::debug!(object = %key, "status written");
        Ok(())
    }

    /// False when something is left to be told.
    async fn tell_events(&self) -> bool {
        let mut events = std::mem::take(&mut self.book.lock().events);
        while let Some((key, (uid, mut problems))) = events.pop_first() {
            while let Some(note) = problems.pop_first() {
                let event = Event {
                    type_: EventType::Warning,
                    reason: "NoEffect".into(),
                    note: Some(note.chars().take(MAX_NOTE).collect()),
                    action: "Read".into(),
                    secondary: None,
                };
                let about = reference(&key, &uid);
                let failed = match timeout(TIMEOUT, self.recorder.publish(&event, &about)).await {
                    Ok(Ok(())) => continue,
                    // Its namespace is ending, or we may not: never.
                    Ok(Err(kube::Error::Api(status))) if status.code < 500 => continue,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "no answer in time".into(),
                };
                tracing::debug!(object = %key, "no event: {failed}");
                // The API may be away for a moment.
                problems.insert(note);
                self.book.wrong(&key, &uid, problems);
                for (key, (uid, problems)) in events {
                    self.book.wrong(&key, &uid, problems);
                }
                return false;
            }
        }
        true
    }

    /// Policies are often applied before what they are for: said only when it stays so.
    fn look_for_dangling(&mut self) {
        let found: BTreeSet<_> = self.registry.read(Index::dangling).into_iter().collect();
        self.dangling.retain(|known, _| found.contains(known));
        let now = Instant::now();
        for (key, problem) in found {
            let (since, said) = self.dangling.entry((key.clone(), problem.clone())).or_insert((now, false));
            if !*said && now.duration_since(*since) >= DANGLING_FOR {
                *said = true;
                tracing::warn!(object = %key, "{problem}");
                let uid = self.registry.read(|index| index.uid(&key).unwrap_or_default().to_string());
                self.book.wrong(&key, &uid, [problem]);
            }
        }
    }
}

/// The status that a route should have: ours for its parents that are Services, what others say as it is.
fn status_of(index: &Index, key: &Key, route: &Route, now: &str) -> RouteStatus {
    let (ours, mut parents): (Vec<_>, Vec<_>) =
        route.status.parents.iter().cloned().partition(|parent| parent.controller_name == CONTROLLER);
    for parent in &route.parents {
        let Some(conditions) = index.route_conditions(key, parent) else { continue };
        let before = ours.iter().find(|before| before.parent_ref == *parent);
        let known = |kind: &str| before.and_then(|before| before.conditions.iter().find(|c| c.kind == kind));
        let conditions = conditions.into_iter().map(|condition| {
            let status = if condition.holds { "True" } else { "False" };
            let before = known(condition.kind).filter(|before| before.status == status);
            StatusCondition {
                kind: condition.kind.into(),
                status: status.into(),
                reason: condition.reason.into(),
                message: condition.message,
                observed_generation: route.generation,
                last_transition_time: before.map_or_else(|| now.to_string(), |c| c.last_transition_time.clone()),
            }
        });
        parents.push(RouteParentStatus {
            parent_ref: parent.clone(),
            controller_name: CONTROLLER.into(),
            conditions: conditions.collect(),
        });
    }
    // Others may have written between ours: only what is said counts, not where.
    match same(&parents, &route.status.parents) {
        true => route.status.clone(),
        false => RouteStatus { parents },
    }
}

fn same(one: &[RouteParentStatus], other: &[RouteParentStatus]) -> bool {
    one.len() == other.len() && one.iter().all(|each| other.contains(each))
}

fn reference(key: &Key, uid: &str) -> ObjectReference {
    let (group, kind) = key.kind.group_kind();
    let version = match key.kind {
        Kind::AuthorizationPolicy => "v1alpha1",
        _ => "v1",
    };
    let text = |text: &str| (!text.is_empty()).then(|| text.to_string());
    ObjectReference {
        api_version: Some(if group == "core" { version.into() } else { format!("{group}/{version}") }),
        kind: Some(kind.into()),
        name: text(&key.name.name),
        namespace: text(&key.name.namespace),
        uid: text(uid),
        ..ObjectReference::default()
    }
}

/// In each entry of ours. Source of the form: Gateway API, `domain/path`.
const CONTROLLER: &str = "gossamer.io/policy-controller";
/// Changes come in groups: a route with its services, all routes after a start.
const GATHER: Duration = Duration::from_millis(200);
/// How often policies are looked through for what they miss.
const LOOK: Duration = Duration::from_secs(15);
const DANGLING_FOR: Duration = Duration::from_secs(30);
/// An API that does not answer may be one that is gone.
const TIMEOUT: Duration = Duration::from_secs(10);
/// After an API that did not take a status.
const RETRY: Duration = Duration::from_secs(5);
/// Objects with something to tell at once; more are told another time, and all are in the log.
const MAX_EVENTS: usize = 1000;
/// Kubernetes' limit.
const MAX_NOTE: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Cluster;
    use gossamer_api::kubernetes::parse_yaml;

    const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: demo}\n\
        spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\n\
        metadata: {name: alias, namespace: demo}\nspec: {type: ExternalName, externalName: a.example}\n";

    fn route(parent: &str, rule: &str) -> String {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: demo, \
             generation: 3}}\nspec: {{parentRefs: [{parent}], rules: [{rule}]}}\n"
        )
    }

    fn status(text: &str, before: RouteStatus, now: &str) -> RouteStatus {
        let mut index = Index::new(Cluster::default());
        let book = Book::default();
        let objects = parse_yaml(&(SERVICES.to_string() + text)).unwrap();
        let mut changes: Vec<_> = objects.into_iter().map(|(_, object)| Change::Apply(object)).collect();
        book.note(&mut changes, "v1");
        for change in changes {
            let Change::Apply(object) = change else { unreachable!() };
            index.apply(object);
        }
        let pages = book.lock();
        let (key, route) = pages.routes.first_key_value().unwrap();
        status_of(&index, key, &Route { status: before, ..route.clone() }, now)
    }

    /// `TYPE=STATUS/REASON` of each parent.
    fn said(parent: &str, rule: &str) -> Vec<String> {
        let line = |parent: &RouteParentStatus| {
            assert_eq!(
                (parent.controller_name.as_str(), parent.conditions[0].observed_generation),
                (CONTROLLER, Some(3))
            );
            let one = |c: &StatusCondition| format!("{}={}/{}", c.kind, c.status, c.reason);
            parent.conditions.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        status(&route(parent, rule), RouteStatus::default(), "now").parents.iter().map(line).collect()
    }

    const WEB: &str = "{group: '', kind: Service, name: web}";
    const FINE: &str = "Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs";

    #[test]
    fn routes_are_told_what_became_of_them() {
        assert_eq!(said(WEB, "{backendRefs: [{name: web, port: 80}]}"), [FINE]);
        assert_eq!(said(WEB, "{}"), [FINE]);
        assert_eq!(said("{name: gateway}", "{}"), Vec::<String>::new(), "not ours");
        let none = "Accepted=False/NoMatchingParent ResolvedRefs=True/ResolvedRefs";
        assert_eq!(said(&WEB.replace("web", "gone"), "{}"), [none]);
        assert_eq!(said(&WEB.replace("web", "alias"), "{}"), [none]);
        assert_eq!(said(&WEB.replace("web", "web, port: 81"), "{}"), [none]);
        assert_eq!(said(&WEB.replace("web", "web, port: 80"), "{}"), [FINE]);
        let unresolved = |reason: &str| [format!("Accepted=True/Accepted ResolvedRefs=False/{reason}")];
        assert_eq!(said(WEB, "{backendRefs: [{name: gone, port: 80}]}"), unresolved("BackendNotFound"));
        assert_eq!(said(WEB, "{backendRefs: [{name: web, port: 81}]}"), unresolved("BackendNotFound"));
        let bucket = said(WEB, "{backendRefs: [{kind: Bucket, name: b, group: x}]}");
        assert!(bucket[0].starts_with(&unresolved("InvalidKind")[0]), "{bucket:?}");
        assert_eq!(
            said(WEB, "{filters: [{type: Nonsense}]}"),
            [format!("{FINE} PartiallyInvalid=True/UnsupportedValue")]
        );
    }

    #[test]
    fn routes_of_bytes_are_told_as_well() {
        for (kind, more) in [("TCPRoute", ""), ("TLSRoute", "hostnames: [web.example.com], ")] {
            let told = |parent: &str, rule: &str| {
                let route =
                    route(parent, rule).replace("HTTPRoute", kind).replace("spec: {", &format!("spec: {{{more}"));
                let status = status(&route, RouteStatus::default(), "now");
                let one = |c: &StatusCondition| format!("{}={}/{}", c.kind, c.status, c.reason);
                let parents = status.parents.iter().map(|parent| parent.conditions.iter().map(one).collect::<Vec<_>>());
                parents.map(|conditions| conditions.join(" ")).collect::<Vec<_>>()
            };
            assert_eq!(told(WEB, "{backendRefs: [{name: web, port: 80}]}"), [FINE], "{kind}");
            assert_eq!(told("{name: gateway}", "{}"), Vec::<String>::new(), "{kind}: not ours");
            let none = "Accepted=False/NoMatchingParent ResolvedRefs=False/BackendNotFound";
            assert_eq!(told(&WEB.replace("web", "gone"), "{backendRefs: [{name: gone, port: 80}]}"), [none], "{kind}");
            let second = told(WEB, "{}, {}");
            assert_eq!(second, [format!("{FINE} PartiallyInvalid=True/UnsupportedValue")], "{kind}");
        }
    }

    #[test]
    fn what_is_said_already_is_not_said_again() {
        let text = route(WEB, "{}");
        let first = status(&text, RouteStatus::default(), "earlier");
        assert_eq!(status(&text, first.clone(), "later"), first);
        // Its time stays when only something else changes.
        let changed = status(&text.replace("generation: 3", "generation: 4"), first, "later");
        assert_eq!(changed.parents[0].conditions[0].last_transition_time, "earlier");
        assert_eq!(changed.parents[0].conditions[0].observed_generation, Some(4));
    }

    #[test]
    fn what_others_say_stays_and_what_we_said_of_a_former_parent_goes() {
        let other = RouteParentStatus { controller_name: "other".into(), ..RouteParentStatus::default() };
        let former = RouteParentStatus {
            controller_name: CONTROLLER.into(),
            parent_ref: ParentRef { name: "former".into(), ..ParentRef::default() },
            ..RouteParentStatus::default()
        };
        let before = RouteStatus { parents: vec![former, other.clone()] };
        let status = status(&route("{name: gateway}", "{}"), before, "now");
        assert_eq!(status.parents, [other]);
    }
}
