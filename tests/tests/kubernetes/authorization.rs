//! Who may reach what, by service account.

use gossamer_tests::cluster::{Cluster, Space, eventually, text};

fn policy(space: &Space<'_>, action: &str, who: &str) {
    space.apply(&format!(
        "apiVersion: policy.gossamer.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: web, namespace: NS}}\n\
         spec:\n  service: web\n  action: {action}\n  from:\n    - serviceAccounts: [{{name: {who}}}]\n"
    ));
}

/// Until the servers' proxies have heard of it.
fn becomes(space: &Space<'_>, client: &str, status: u16) {
    eventually("the policy is in force", || {
        let load = space.load(client, "new", ("web", "/"), 20.0, 0.5, &[]);
        (load.status(status) == load.total()).then_some(())
    });
}

pub(crate) fn service_accounts_are_allowed_denied_and_audited(cluster: &Cluster) {
    let space = cluster.namespace("authz", true);
    space.serve("web", 2);
    ["shop", "other"].iter().for_each(|name| space.client(name));
    space.ready(&["shop", "other"]);
    becomes(&space, "other", 200);

    policy(&space, "Allow", "shop");
    becomes(&space, "other", 403);
    space.load("shop", "new", ("web", "/"), 20.0, 1.0, &[]).assert_none_failed();
    // Probes of the kubelet still get in: the pods stay ready.
    space.ready(&["shop", "other"]);
    let servers = space.pods("app=web");
    let denied = servers.iter().map(|pod| {
        let metrics = space.metrics(pod["metadata"]["name"].as_str().unwrap());
        metrics.sum("inbound_http_authz_deny_total", &[])
    });
    assert!(denied.sum::<f64>() > 0.0, "the servers' proxies count whom they refuse");

    policy(&space, "Deny", "other");
    becomes(&space, "other", 403);
    becomes(&space, "shop", 200);

    policy(&space, "Audit", "shop");
    becomes(&space, "other", 200);
    becomes(&space, "shop", 200);
    // Whom the policy does not name is let in by it, and counted as such: one that is ignored lets in as well.
    eventually("who is let in by audit is counted", || {
        space.load("other", "new", ("web", "/"), 20.0, 0.5, &[]).assert_none_failed();
        let audited = space.pods("app=web").into_iter().map(|pod| {
            let metrics = space.metrics(pod["metadata"]["name"].as_str().unwrap());
            metrics.sum("inbound_http_authz_allow_total", &[("authz_name", "audit")])
        });
        (audited.sum::<f64>() > 0.0).then_some(())
    });

    // A policy that can't be right is refused with field and reason.
    let output = cluster.try_apply(
        "apiVersion: policy.gossamer.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: bad, namespace: authz}\n\
         spec:\n  service: web\n  from:\n    - networks: [{cidr: 10.0.0.0/33}]\n",
    );
    assert!(!output.status.success() && text(&output.stderr).contains("cidr"), "{}", text(&output.stderr));
}

/// A policy speaks of what a route matches, headers among it.
pub(crate) fn a_routes_requests_are_allowed_and_denied(cluster: &Cluster) {
    let space = cluster.namespace("authz-route", true);
    space.serve("web", 1);
    ["shop", "other"].iter().for_each(|name| space.client(name));
    space.ready(&["shop", "other"]);
    let policy = |name: &str, action: &str, who: &str, to: &str| {
        space.apply(&format!(
            "apiVersion: policy.gossamer.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: NS}}\n\
             spec:\n  service: web\n  action: {action}\n  from: [{{serviceAccounts: [{{name: {who}}}]}}]\n{to}"
        ));
    };
    let to = "  to: [{route: {name: items}}]\n";
    let gets = |client: &str, path: &str, headers: &[&str], status: u16| {
        eventually(&format!("{client} gets {status} for {path} {headers:?}"), || {
            let load = space.load(client, "new", ("web", path), 20.0, 0.3, headers);
            (load.status(status) == load.total()).then_some(())
        });
    };
    policy("all", "Allow", "shop", "");
    policy("part", "Allow", "other", to);
    let route = |name: &str, rules: &str| {
        space.apply(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: NS}}\n\
             spec:\n  parentRefs: [{{group: '', kind: Service, name: web}}]\n  rules: [{rules}]\n"
        ));
    };
    route("rest", "{}");
    // A route that is not there matches nothing.
    gets("other", "/items", &[], 403);
    gets("shop", "/items", &[], 200);
    route("items", "{matches: [{path: {value: /items}, headers: [{name: x-who, value: me}]}, {path: {value: /open}}]}");
    gets("other", "/items", &["x-who: me"], 200);
    gets("other", "/open", &[], 200);
    gets("other", "/items", &[], 403);
    space.kubectl(&["delete", "authorizationpolicy", "all"]);
    policy("part", "Deny", "other", to);
    gets("other", "/items", &[], 200);
    gets("other", "/items", &["x-who: me"], 403);
    gets("shop", "/items", &["x-who: me"], 200);
    let mixed = "apiVersion: policy.gossamer.io/v1alpha1\nkind: AuthorizationPolicy\n\
        metadata: {name: mixed, namespace: authz-route}\nspec: {from: [{}], to: [{route: {name: items}, methods: [GET]}]}\n";
    let output = cluster.try_apply(mixed);
    assert!(!output.status.success() && text(&output.stderr).contains("route"), "{}", text(&output.stderr));
}
