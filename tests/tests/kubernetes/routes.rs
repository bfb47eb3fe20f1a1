//! Gateway API's routes on services: weights, headers, and those of a consumer.

use gossamer_tests::cluster::{Cluster, Space, eventually};
use std::time::Duration;

/// Three services: `web` is what clients ask for, `v1` and `v2` are behind it.
fn versions<'a>(cluster: &'a Cluster, name: &str) -> Space<'a> {
    let space = cluster.namespace(name, true);
    for server in ["web", "v1", "v2"] {
        space.serve(server, 1);
    }
    space.client("shop");
    space.ready(&["shop"]);
    space
}

fn accepted(space: &Space<'_>) {
    eventually("the route is accepted", || {
        let conditions = space.field("httproute/web", "/status/parents/0/conditions");
        let accepted = conditions.as_array()?.iter().any(|c| c["type"] == "Accepted" && c["status"] == "True");
        accepted.then_some(())
    });
}

pub(crate) fn a_canary_gets_its_share(cluster: &Cluster) {
    let space = versions(cluster, "canary");
    space.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: NS}\n\
         spec:\n  parentRefs: [{group: '', kind: Service, name: web, port: 80}]\n  rules:\n  \
         - backendRefs: [{name: v1, port: 80, weight: 80}, {name: v2, port: 80, weight: 20}]\n",
    );
    accepted(&space);
    eventually("the route is in force", || {
        (space.load("shop", "new", ("web", "/"), 50.0, 0.2, &[]).by("web-") == 0).then_some(())
    });
    let load = space.load("shop", "kept", ("web", "/"), 250.0, 4.0, &[]);
    load.assert_none_failed();
    let share = load.by("v2-") as f64 / load.total() as f64;
    // Four standard deviations of a binomial share of 0.2 in 1000 requests: one run in 16,000 would miss by chance.
    let bound = 4.0 * (0.2 * 0.8 / load.total() as f64).sqrt();
    println!("figure: a canary of 20 % got {:.1} % of {} requests", share * 100.0, load.total());
    assert!((share - 0.2).abs() < bound, "{share} {bound}");
    assert_eq!(load.by("v1-") + load.by("v2-"), load.total());
}

pub(crate) fn requests_are_routed_by_header(cluster: &Cluster) {
    define_stream_routes(cluster);
    let space = versions(cluster, "headers");
    space.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: NS}\n\
         spec:\n  parentRefs: [{group: '', kind: Service, name: web, port: 80}]\n  rules:\n  \
         - matches: [{headers: [{name: x-version, value: two}]}]\n    backendRefs: [{name: v2, port: 80}]\n  \
         - matches: [{headers: [{name: x-version, value: both}]}]\n    backendRefs: [{name: v1, port: 80}]\n    \
           filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}]\n  \
         - matches: [{path: {type: PathPrefix, value: /delay}}]\n    backendRefs: [{name: v1, port: 80}]\n    \
           timeouts: {request: 300ms}\n  \
         - backendRefs: [{name: v1, port: 80}]\n",
    );
    accepted(&space);
    eventually("the route is in force", || {
        (space.load("shop", "new", ("web", "/"), 50.0, 0.2, &[]).by("web-") == 0).then_some(())
    });
    let two = space.load("shop", "new", ("web", "/"), 50.0, 1.0, &["x-version: two"]);
    let other = space.load("shop", "new", ("web", "/"), 50.0, 1.0, &["x-version: three"]);
    two.assert_none_failed();
    other.assert_none_failed();
    assert_eq!((two.by("v2-"), other.by("v1-")), (two.total(), other.total()));

    // A copy goes to the second; who asks hears the first alone.
    let pod = space.pods("app=v2")[0]["metadata"]["name"].as_str().unwrap().to_string();
    let copies = || space.metrics(&pod).sum("request_total", &[("direction", "inbound"), ("tls", "true")]);
    let before = copies();
    let both = space.load("shop", "new", ("web", "/"), 50.0, 1.0, &["x-version: both"]);
    both.assert_none_failed();
    assert_eq!(both.by("v1-"), both.total());
    eventually("the copies came", || (copies() - before >= both.total() as f64).then_some(()));

    // The route's patience is 300 ms, the answer would take 2 s.
    let late = space.load("shop", "new", ("web", "/delay/2s"), 5.0, 1.0, &[]);
    assert_eq!(late.status(504), late.total(), "{late:?}");
    assert!(late.slowest() < Duration::from_millis(1500), "{late:?}");
    stream_routes_say_what_became_of_them(&space);
}

/// TCPRoutes and TLSRoutes, which the mesh does not bring with it: their definitions come while it runs.
fn define_stream_routes(cluster: &Cluster) {
    for (plural, kind, version) in STREAM_ROUTES {
        let (singular, anything) = (kind.to_lowercase(), "{type: object, x-kubernetes-preserve-unknown-fields: true}");
        cluster.apply(&format!(
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  \
             name: {plural}.gateway.networking.k8s.io\n  annotations: {{api-approved.kubernetes.io: unapproved}}\n\
             spec:\n  group: gateway.networking.k8s.io\n  scope: Namespaced\n  \
             names: {{plural: {plural}, singular: {singular}, kind: {kind}, listKind: {kind}List}}\n  versions:\n  \
             - name: {version}\n    served: true\n    storage: true\n    subresources: {{status: {{}}}}\n    \
               schema: {{openAPIV3Schema: {{type: object, properties: {{spec: {anything}, status: {anything}}}}}}}\n"
        ));
    }
}

/// One of them in the version that it had before.
const STREAM_ROUTES: [(&str, &str, &str); 2] = [("tcproutes", "TCPRoute", "v1alpha2"), ("tlsroutes", "TLSRoute", "v1")];

fn stream_routes_say_what_became_of_them(space: &Space<'_>) {
    space.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: NS}\nspec: {ports: [{name: tcp, port: 5432}]}\n",
    );
    for (_, kind, version) in STREAM_ROUTES {
        for (name, parent, backend) in [("well", "db", "db"), ("astray", "db", "gone"), ("orphan", "gone", "db")] {
            space.apply(&format!(
                "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: NS}}\n\
                 spec:\n  parentRefs: [{{group: '', kind: Service, name: {parent}, port: 5432}}]\n  \
                 rules: [{{backendRefs: [{{name: {backend}, port: 5432}}]}}]\n"
            ));
        }
    }
    for (plural, _, _) in STREAM_ROUTES {
        for (name, kind, status, reason) in [
            ("well", "Accepted", "True", "Accepted"),
            ("well", "ResolvedRefs", "True", "ResolvedRefs"),
            ("astray", "Accepted", "True", "Accepted"),
            ("astray", "ResolvedRefs", "False", "BackendNotFound"),
            ("orphan", "Accepted", "False", "NoMatchingParent"),
        ] {
            eventually(&format!("{plural}/{name}: {kind} {status} {reason}"), || {
                let parent = space.field(&format!("{plural}/{name}"), "/status/parents/0");
                let conditions = parent["conditions"].as_array()?;
                let is = |c: &&serde_json::Value| {
                    (&c["type"], &c["status"], &c["reason"]) == (&kind.into(), &status.into(), &reason.into())
                };
                conditions.iter().find(is).map(|_| ())
            });
        }
        space.cluster.kubectl(&["delete", "crd", &format!("{plural}.gateway.networking.k8s.io")]);
    }
}

/// The route lies in the namespace of a client: it is for this one's requests, and others go as the service's owner has it.
pub(crate) fn a_consumers_route_is_for_its_namespace_alone(cluster: &Cluster) {
    let (producer, consumer) = (cluster.namespace("producer", true), cluster.namespace("consumer", true));
    producer.serve("web", 1);
    producer.client("shop");
    consumer.serve("mine", 1);
    consumer.client("shop");
    producer.ready(&["shop"]);
    consumer.ready(&["shop"]);
    let asked = |space: &Space<'_>| {
        let load = space.load("shop", "new", ("web.producer", "/"), 50.0, 0.5, &["x-of: consumer"]);
        load.assert_none_failed();
        load
    };
    assert_eq!(asked(&consumer).by("mine-"), 0);
    consumer.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: NS}\n\
         spec:\n  parentRefs: [{group: '', kind: Service, name: web, namespace: producer, port: 80}]\n  rules:\n  \
         - matches: [{headers: [{name: x-of, value: consumer}]}]\n    backendRefs: [{name: mine, port: 80}]\n  \
         - backendRefs: [{name: web, namespace: producer, port: 80}]\n",
    );
    accepted(&consumer);
    eventually("the route is in force", || {
        let load = asked(&consumer);
        (load.by("mine-") == load.total()).then_some(())
    });
    // Heard of by now: who is in the service's own namespace is not led away.
    let own = asked(&producer);
    assert_eq!((own.by("web-"), own.by("mine-")), (own.total(), 0), "{own:?}");
    // Its other rule, which goes where all go.
    let other = consumer.load("shop", "new", ("web.producer", "/"), 50.0, 0.5, &[]);
    other.assert_none_failed();
    assert_eq!(other.by("web-"), other.total(), "{other:?}");
    consumer.kubectl(&["delete", "httproute", "web"]);
    eventually("the route is gone", || (asked(&consumer).by("mine-") == 0).then_some(()));
}
