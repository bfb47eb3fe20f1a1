//! A scripted API server: each request is answered by the next line of the script, what comes after it never.

use super::Progress;
use super::follow::Follow;
use super::report::Book;
use crate::index::{Cluster, Source};
use crate::registry::{Answer, Query, Registry};
use gossamer_api::kubernetes::{AuthorizationPolicy, HttpRoute, Kind, Name, Pod, Served, Service};
use gossamer_api::policy::Target;
use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

#[derive(Clone, Default)]
struct Script(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    answers: VecDeque<(u16, String)>,
    requests: Vec<String>,
    ended: bool,
}

impl Script {
    fn then(self, status: u16, body: Value) -> Self {
        self.0.lock().unwrap().answers.push_back((status, body.to_string()));
        self
    }

    /// A watch that ends after these events.
    fn events(self, events: &[Value]) -> Self {
        let lines: Vec<_> = events.iter().map(Value::to_string).collect();
        self.0.lock().unwrap().answers.push_back((200, lines.join("\n") + "\n"));
        self
    }

    fn client(&self) -> kube::Client {
        let script = self.0.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let script = script.clone();
            async move {
                let answer = {
                    let mut script = script.lock().unwrap();
                    script.requests.push(request.uri().to_string());
                    let answer = script.answers.pop_front();
                    script.ended |= answer.is_none();
                    answer
                };
                let Some((status, body)) = answer else { std::future::pending().await };
                Ok::<_, Infallible>(
                    Response::builder().status(status).body(Body::from(body.into_bytes())).expect("a response"),
                )
            }
        });
        kube::Client::new(service, "default")
    }

    /// Follows `T` until the script is played to its end.
    async fn play<T: Served>(&self, registry: &Registry, progress: &Progress) -> Vec<String> {
        progress.expect(T::KIND);
        let follow = Follow::<T>::new(self.client(), registry.clone(), progress.clone(), Book::default());
        let ended = async {
            while !self.0.lock().unwrap().ended {
                // The clock is paused: it runs ahead to the next thing that is due.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = follow.run() => unreachable!("it follows for ever"),
            () = ended => {}
        }
        self.0.lock().unwrap().requests.clone()
    }
}

fn registry() -> (Registry, Progress) {
    (Registry::new(Cluster::default(), None), Progress(watch::channel(BTreeSet::new()).0))
}

fn service(name: &str, ip: &str, version: u32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "demo", "resourceVersion": version.to_string()},
        "spec": {"clusterIP": ip, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

fn list(items: &[Value], version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version.to_string()}, "items": items})
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

fn failure(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "told so", "reason": "X", "code": code})
}

fn known(registry: &Registry, kind: Kind) -> Vec<String> {
    registry.read(|index| index.names(kind)).iter().map(Name::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_repeated_replaces_without_a_gap() {
    let (registry, progress) = registry();
    let script = Script::default()
        .then(200, list(&[service("kept", "10.96.0.1", 1), service("gone", "10.96.0.2", 2)], 9))
        .events(&[event("ADDED", service("added", "10.96.0.3", 10)), event("ERROR", failure(410))])
        .then(500, failure(500))
        .then(200, list(&[service("kept", "10.96.0.1", 1), service("added", "10.96.0.4", 12)], 12));
    // Asked before anything is known, as by a proxy that waits for its name.
    let query = Query::Outbound(Target::Authority("kept.demo.svc.cluster.local:80".into()), Source::default());
    let follow = {
        let (registry, script) = (registry.clone(), script.clone());
        async move { script.play::<Service>(&registry, &progress).await }
    };
    let watch = async {
        let mut subscription = registry.subscribe(query);
        let mut missing_after_known = 0;
        let mut seen = false;
        loop {
            match subscription.answer() {
                Answer::Missing if seen => missing_after_known += 1,
                Answer::Missing => {}
                _ => seen = true,
            }
            assert_eq!(missing_after_known, 0, "a known service was told to be gone");
            subscription.changed().await;
        }
    };
    let requests = tokio::select! {
        requests = follow => requests,
        () = watch => unreachable!(),
    };
    assert_eq!(known(&registry, Kind::Service), ["demo/added", "demo/kept"]);
    let address = registry.read(|index| index.address_of("added.demo", "demo"));
    assert_eq!(address, Some("10.96.0.4".parse().unwrap()));
    assert_eq!(requests.len(), 5, "{requests:#?}");
    assert!(requests[1].contains("watch=true") && requests[1].contains("resourceVersion=9"), "{requests:#?}");
    assert!(requests[4].contains("resourceVersion=12"), "{requests:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_watch_goes_on_from_where_it_was() {
    let (registry, progress) = registry();
    let script = Script::default()
        .then(200, list(&[service("a", "10.96.0.1", 1)], 9))
        .events(&[event("MODIFIED", service("a", "10.96.0.7", 11))])
        .then(503, failure(503))
        .events(&[event("DELETED", service("a", "10.96.0.7", 13))]);
    let requests = script.play::<Service>(&registry, &progress).await;
    assert_eq!(known(&registry, Kind::Service), Vec::<String>::new());
    assert!(requests[3].contains("resourceVersion=13") || requests[3].contains("resourceVersion=11"), "{requests:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_refused_leads_to_a_list() {
    let (registry, progress) = registry();
    let script = Script::default()
        .then(200, list(&[service("a", "10.96.0.1", 1)], 900))
        // As after a restored backup: "Too large resource version".
        .then(504, failure(504))
        .then(200, list(&[service("b", "10.96.0.2", 1)], 9));
    script.play::<Service>(&registry, &progress).await;
    assert_eq!(known(&registry, Kind::Service), ["demo/b"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_complete_before_the_list_is() {
    let (registry, progress) = registry();
    let script = Script::default().then(500, failure(500)).then(403, failure(403));
    script.play::<Service>(&registry, &progress).await;
    assert_eq!(progress.check().unwrap_err(), "the first list is not complete of Service");
    let script = Script::default().then(200, list(&[], 9));
    script.play::<Service>(&registry, &progress).await;
    progress.check().unwrap();
    progress.complete().await;
}

#[tokio::test(start_paused = true)]
async fn routes_may_be_absent_and_come_later_in_an_older_version() {
    let (registry, progress) = registry();
    let absent = |script: Script| script.then(404, failure(404)).then(404, failure(404));
    let script = absent(Script::default());
    script.play::<HttpRoute>(&registry, &progress).await;
    progress.check().unwrap();

    let route = json!({"metadata": {"name": "r", "namespace": "demo", "resourceVersion": "3"}, "spec": {}});
    let script = absent(Script::default()).then(404, failure(404)).then(200, list(&[route], 9));
    let requests = script.play::<HttpRoute>(&registry, &progress).await;
    assert!(requests[3].starts_with("/apis/gateway.networking.k8s.io/v1beta1/httproutes?"), "{requests:#?}");
    assert_eq!(known(&registry, Kind::HttpRoute), ["demo/r"]);

    // A CRD that is replaced keeps its routes in force for a while; one that stays away does not.
    let script = absent(Script::default());
    script.play::<HttpRoute>(&registry, &progress).await;
    assert_eq!(known(&registry, Kind::HttpRoute), ["demo/r"]);
    let script = (0..5).fold(Script::default(), |script, _| absent(script));
    script.play::<HttpRoute>(&registry, &progress).await;
    assert_eq!(known(&registry, Kind::HttpRoute), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_can_t_be_read_leaves_its_last_good_state() {
    let (registry, progress) = registry();
    let policy = |cidr: &str, version: u32| {
        json!({
            "metadata": {"name": "p", "namespace": "demo", "resourceVersion": version.to_string()},
            "spec": {"from": [{"networks": [{"cidr": cidr}]}]},
        })
    };
    let script = Script::default()
        .then(200, list(&[policy("10.0.0.0/8", 1)], 9))
        .events(&[event("MODIFIED", policy("everywhere", 10)), event("ERROR", failure(410))])
        .then(200, list(&[policy("everywhere", 10)], 12));
    script.play::<AuthorizationPolicy>(&registry, &progress).await;
    assert_eq!(known(&registry, Kind::AuthorizationPolicy), ["demo/p"]);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_was_never_readable_lets_nobody_in() {
    let (registry, progress) = registry();
    let policy = |service: &str, cidr: &str, version: u32| {
        json!({
            "metadata": {"name": "p", "namespace": "demo", "resourceVersion": version.to_string()},
            "spec": {"service": service, "from": [{"networks": [{"cidr": cidr}]}]},
        })
    };
    let pod = json!({
        "metadata": {"name": "web-1", "namespace": "demo", "labels": {"app": "web"}, "resourceVersion": "1"},
        "status": {"podIP": "10.1.0.1", "phase": "Running"},
    });
    let web = json!({
        "metadata": {"name": "web", "namespace": "demo", "resourceVersion": "1"},
        "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "web"}, "ports": [{"port": 80}]},
    });
    Script::default().then(200, list(&[pod], 9)).play::<Pod>(&registry, &progress).await;
    Script::default().then(200, list(&[web], 9)).play::<Service>(&registry, &progress).await;
    let permissions =
        || registry.read(|index| index.server(&Name::new("demo", "web-1"), 80).unwrap().authorizations.len());
    assert_eq!(permissions(), 1);
    let script = Script::default().then(200, list(&[policy("web", "everywhere", 1)], 9));
    script.play::<AuthorizationPolicy>(&registry, &progress).await;
    assert_eq!(permissions(), 0);
    // Another version that can't be read either is followed as far as it can be.
    let script = Script::default().then(200, list(&[], 9)).events(&[
        event("ADDED", policy("web", "everywhere", 10)),
        event("MODIFIED", policy("other", "everywhere", 11)),
    ]);
    script.play::<AuthorizationPolicy>(&registry, &progress).await;
    assert_eq!(permissions(), 1);
    let script = Script::default().then(200, list(&[policy("web", "0.0.0.0/0", 12)], 12));
    script.play::<AuthorizationPolicy>(&registry, &progress).await;
    assert_eq!(permissions(), 1);
}
