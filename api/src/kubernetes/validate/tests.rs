//! Objects in, what is said about them out.

use super::*;

/// Errors as text, then warnings after `warning: `.
fn said(yaml: &str) -> Vec<String> {
    let object: Value = serde_saphyr::from_str(yaml).unwrap();
    let Verdict { errors, warnings } = validate(&object);
    let warnings = warnings.into_iter().map(|text| format!("warning: {text}"));
    errors.iter().map(ToString::to_string).chain(warnings).collect()
}

fn policy_says(spec: &str) -> Vec<String> {
    said(&format!(
        "{{apiVersion: policy.gossamer.io/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: a}}, spec: {spec}}}"
    ))
}

fn route_says(kind: &str, rest: &str) -> Vec<String> {
    said(&format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{name: r}}, spec: {{parentRefs: [{{group: '', kind: Service, name: web, port: 80}}], {rest}}}}}"
    ))
}

fn check(said: Vec<String>, expect: &[&str]) {
    assert_eq!(said, expect);
}

#[test]
fn good_policies_pass() {
    for spec in [
        "{from: [{}]}",
        "{selector: {matchLabels: {app: web}}, ports: [80, http, '8080'], from: [{serviceAccounts: [{name: web, namespace: demo}]}]}",
        "{action: Deny, from: [{identities: ['*', '*.demo.serviceaccount.identity.gossamer.cluster.local']}]}",
        "{from: [{networks: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}], to: [{methods: [GET], paths: [/a, /b/*, /*]}]}",
    ] {
        check(policy_says(spec), &[]);
    }
}

#[test]
fn broken_policies_name_field_reason_and_hint() {
    check(
        policy_says("{from: [{serviceAccount: [{name: web}]}]}"),
        &[
            "spec.from[0].serviceAccount: unknown field `serviceAccount`, expected one of `serviceAccounts`, `namespaces`, \
           `identities`, `networks` (hint: did you mean \"serviceAccounts\"?)",
        ],
    );
    check(policy_says("{}"), &["warning: spec.from is empty: nobody is let in; [{}] is everybody"]);
    check(
        policy_says("{ports: [0], from: [{}]}"),
        &["spec.ports[0]: 0 is no port (hint: a number from 1 to 65535, or the name of a container's port)"],
    );
    check(
        policy_says("{from: [{identities: ['spiffe://cluster.local/ns/demo/sa/web']}]}"),
        &[
            "spec.from[0].identities[0]: \"spiffe://cluster.local/ns/demo/sa/web\" is no identity (hint: the other spelling: \
           web.demo.serviceaccount.identity.gossamer.cluster.local)",
        ],
    );
    check(
        policy_says("{from: [{networks: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}]}"),
        &[
            "spec.from[0].networks[0].except[0]: 11.0.0.0/16 is not in 10.0.0.0/8 (hint: it takes a part away from cidr)",
        ],
    );
    check(
        policy_says("{from: [{}], to: [{methods: [get], paths: [a, '/x*']}]}"),
        &[
            "spec.to[0].methods[0]: no request has the method \"get\" (hint: methods are compared letter by letter: GET)",
            "spec.to[0].paths[0]: \"a\" is no path that is understood (hint: a whole path, or /prefix/*)",
            "spec.to[0].paths[1]: \"/x*\" is no path that is understood (hint: a whole path, or /prefix/*)",
        ],
    );
    check(
        policy_says("{from: [{}], selector: {matchExpressions: [{key: app, operator: In}]}}"),
        &["spec.selector.matchExpressions[0].values: In compares with values, and there are none"],
    );
    let bad = policy_says("{from: [{networks: [{cidr: 10.0.0.0/99}]}]}");
    assert!(bad[0].starts_with("spec.from[0].networks[0].cidr: "), "{bad:?}");
    check(
        said("{apiVersion: policy.gossamer.io/v1alpha1, kind: AuthorizationPolicy, metadata: {name: a}}"),
        &["spec: is missing"],
    );
}

#[test]
fn routes_of_services_are_looked_at() {
    check(
        route_says(
            "HTTPRoute",
            "rules: [{matches: [{path: {value: /x}}], backendRefs: [{name: web, port: 80}], timeouts: {request: 10s, backendRequest: 1s}}]",
        ),
        &[],
    );
    check(
        route_says(
            "HTTPRoute",
            "rules: [{matches: [{path: {type: RegularExpression, value: '('}}], backendRefs: [{name: web}]}]",
        ),
        &[
            "spec.rules[0].matches[0].path.value: \"(\" is no regular expression: unclosed group (hint: the syntax is RE2's)",
            "spec.rules[0].backendRefs[0].port: is missing (hint: the port of the Service)",
        ],
    );
    check(
        route_says(
            "HTTPRoute",
            "rules: [{timeouts: {request: 1s, backendRequest: 2s}, retry: {codes: [200], backoff: soon}}]",
        ),
        &[
            "spec.rules[0].timeouts.backendRequest: one attempt (2s) may take longer than all together (1s) (hint: make it shorter than request)",
            "spec.rules[0].retry.codes[0]: 200 is no status of a failed request (hint: 400 to 599)",
            "spec.rules[0].retry.backoff: \"soon\" is no duration (hint: for example 100ms)",
        ],
    );
    check(
        route_says("HTTPRoute", "hostnames: [10.0.0.1], rules: [{filters: [{type: RequestRedirect}]}]"),
        &[
            "spec.hostnames[0]: \"10.0.0.1\" is no host name (hint: a host name, or *.suffix, without port)",
            "spec.rules[0].filters[0].requestRedirect: is missing, and the filter is of type RequestRedirect",
        ],
    );
    check(
        route_says("GRPCRoute", "rules: [{matches: [{method: {service: a/b}}]}]"),
        &["spec.rules[0].matches[0].method.service: \"a/b\" is no gRPC service (hint: without slashes)"],
    );
}

#[test]
fn what_the_mesh_does_not_know_is_a_warning() {
    check(
        route_says(
            "HTTPRoute",
            "rules: [{filters: [{type: CORS, cors: {}}], backendRefs: [{group: x.io, kind: Bucket, name: b}]}]",
        ),
        &[
            "warning: spec.rules[0].filters[0]: the mesh does not know the filter \"CORS\"; requests of this rule will fail",
            "warning: spec.rules[0].backendRefs[0]: the mesh sends nothing to a Bucket; its share of the requests fails",
        ],
    );
    check(
        route_says("TLSRoute", "rules: [{backendRefs: [{name: a, port: 1}]}, {}]"),
        &["warning: spec.rules: only the first rule is used"],
    );
}

#[test]
fn objects_that_are_not_for_us_pass() {
    for yaml in [
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r}, spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: x}]}]}}",
        "{apiVersion: apps/v1, kind: Deployment, spec: 7}",
        "{apiVersion: v1, kind: Pod}",
        "{apiVersion: v1, kind: Service, metadata: {annotations: {timeout.example.io/request: x, prometheus.io/port: '1'}}}",
        "{apiVersion: v1, kind: Service, metadata: {annotations: null}}",
        "{}",
    ] {
        check(said(yaml), &[]);
    }
}

#[test]
fn annotations_of_services_are_read() {
    let service = |key: &str, value: &str| {
        said(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, annotations: {{'{key}': '{value}'}}}}}}"
        ))
    };
    check(service("timeout.gossamer.io/request", "10s"), &[]);
    check(
        service("timeout.gossamer.io/request", "10"),
        &[
            "metadata.annotations[\"timeout.gossamer.io/request\"]: \"10\" is not valid (hint: expected a duration as 500ms, 1s, 5m)",
        ],
    );
    check(
        service("timeout.linkerd.io/request", "10"),
        &[
            "warning: metadata.annotations[\"timeout.linkerd.io/request\"]: \"10\" is not valid and is ignored; expected a duration as 500ms, 1s, 5m",
        ],
    );
    check(
        service("retry.gossamer.io/https", "5xx"),
        &[
            "warning: annotation \"retry.gossamer.io/https\" is not known here and has no effect; did you mean \"retry.gossamer.io/http\"?",
        ],
    );
    check(service("retry.gossamer.io/http", "5xx, 409-410, gateway-error"), &[]);
    assert_eq!(service("retry.gossamer.io/http", "509-500").len(), 1);
    assert_eq!(service("config.gossamer.io/opaque-ports", "80-x").len(), 1);
    assert_eq!(service("balancer.gossamer.io/failure-accrual-consecutive-jitter-ratio", "-1").len(), 1);
    assert_eq!(service("balancer.alpha.linkerd.io/failure-accrual-success-rate-threshold", "2").len(), 1);
}

#[test]
fn faults_of_routes_are_read_in_their_own_language() {
    let route = |kind: &str, key: &str, value: &str| {
        said(&format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{name: r, annotations: {{'{key}': '{value}'}}}}, \
             spec: {{parentRefs: [{{group: '', kind: Service, name: web}}]}}}}"
        ))
    };
    check(route("HTTPRoute", "fault.gossamer.io/abort", "503"), &[]);
    check(route("GRPCRoute", "fault.gossamer.io/abort", "14"), &[]);
    check(
        route("GRPCRoute", "fault.gossamer.io/abort", "503"),
        &[
            "metadata.annotations[\"fault.gossamer.io/abort\"]: \"503\" is not valid (hint: expected a gRPC code from 1 to 16)",
        ],
    );
    check(
        route("HTTPRoute", "fault.gossamer.io/delay-percents", "5"),
        &[
            "warning: annotation \"fault.gossamer.io/delay-percents\" is not known here and has no effect; did you mean \"fault.gossamer.io/delay-percent\"?",
        ],
    );
    assert_eq!(route("HTTPRoute", "fault.gossamer.io/delay", "soon").len(), 1);
    assert_eq!(route("HTTPRoute", "fault.gossamer.io/abort-percent", "101").len(), 1);
}

#[test]
fn a_route_stands_alone_where_a_policy_speaks_of_it() {
    check(policy_says("{from: [{}], to: [{route: {name: items}}, {route: {kind: GRPCRoute, name: prices}}]}"), &[]);
    check(
        policy_says("{from: [{}], to: [{route: {name: items}, methods: [GET]}]}"),
        &[
            "spec.to[0].route: methods or paths stand beside it (hint: a route says them itself; put them into an entry of their own)",
        ],
    );
    check(policy_says("{from: [{}], to: [{route: {}}]}"), &["spec.to[0].route.name: \"\" is no name of a route"]);
    assert_eq!(policy_says("{from: [{}], to: [{route: {kind: TCPRoute, name: a}}]}").len(), 1);
}

#[test]
fn distances() {
    for (a, b, far) in
        [("", "abc", 3), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "ab", 1), ("kitten", "sitting", 3)]
    {
        assert_eq!(distance(a, b), far, "{a} {b}");
    }
}

proptest::proptest! {
    #[test]
    fn never_panics(text in "[a-z{}\\[\\]\":,0-9/*.]{0,80}") {
        let Ok(value) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
        for (group, kind) in [("policy.gossamer.io/v1alpha1", "AuthorizationPolicy"), ("gateway.networking.k8s.io/v1", "HTTPRoute"), ("v1", "Service")] {
            let _ = validate(&serde_json::json!({ "apiVersion": group, "kind": kind, "spec": value, "metadata": value }));
        }
    }
}
