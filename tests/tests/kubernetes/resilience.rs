//! What annotations on a Service say about retries, timeouts and failure accrual: next to services without them, and by
//! requests that differ in nothing else.

use gossamer_tests::cluster::{Cluster, Load, Space, eventually};
use std::time::{Duration, Instant};

/// A Service for pods with the label `app: web`, or those of `role` among them.
fn service(space: &Space<'_>, name: &str, role: &str, annotations: &[&str]) {
    let annotations = annotations.join(", ");
    let role = if role.is_empty() { String::new() } else { format!(", role: {role}") };
    space.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: NS, annotations: {{{annotations}}}}}\n\
         spec:\n  selector: {{app: web{role}}}\n  ports: [{{name: http, port: 80, targetPort: 8080}}]\n"
    ));
}

/// Two pods that answer, and one that fails every request.
fn good_and_bad<'a>(cluster: &'a Cluster, name: &str) -> Space<'a> {
    let space = cluster.namespace(name, true);
    let (good, bad) = (("good", "kubetool", "[echo]"), ("bad", "probe", "[fail, '500', '8080']"));
    for (name, (role, image, arguments)) in [("good", good), ("fine", good), ("bad", bad)] {
        space.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: NS, labels: {{app: web, role: {role}}}}}\n\
             spec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - {{name: main, image: 'mesh-test/{image}:1', args: {arguments}, ports: [{{containerPort: 8080}}]}}\n"
        ));
    }
    space.client("shop");
    space
}

/// How many requests a pod has had.
fn had(space: &Space<'_>, pod: &str) -> u64 {
    space.metrics(pod).sum("request_total", &[("direction", "inbound"), ("tls", "true")]) as u64
}

/// Those that answer take this long, so that the one that fails looks the best of the three: it is asked whenever it is one
/// of the two that are compared. On a busy machine its first answer may take longer, which is forgotten within seconds.
const PATH: &str = "/delay/100ms";

/// Without a word to the contrary, 500 is an answer like others.
fn most_fail(space: &Space<'_>) -> Load {
    eventually("most requests fail", || {
        let load = space.load("shop", "kept", ("web", PATH), 20.0, 1.5, &[]);
        (load.status(500) >= 10).then_some(load)
    })
}

/// By default endpoints that fail are left alone for a second.
const NO_BREAKER: &str = "balancer.gossamer.io/failure-accrual: none";

pub(crate) fn retries_hide_an_endpoint_that_fails(cluster: &Cluster) {
    let space = good_and_bad(cluster, "retries");
    service(&space, "web", "", &[NO_BREAKER]);
    service(&space, "again", "", &["retry.gossamer.io/http: 5xx", "retry.gossamer.io/limit: '8'", NO_BREAKER]);
    space.ready(&["good", "fine", "bad", "shop"]);

    let without = most_fail(&space);
    let (with, hidden) = eventually("the failing one is asked as well", || {
        let before = had(&space, "bad");
        let with = space.load("shop", "kept", ("again", PATH), 20.0, 1.5, &[]);
        with.assert_none_failed();
        let hidden = had(&space, "bad") - before;
        (hidden >= 10).then_some((with, hidden))
    });
    println!(
        "figure: retries: {} of {} failed without, 0 of {} with, {hidden} hidden",
        without.status(500),
        without.total(),
        with.total()
    );
}

pub(crate) fn an_endpoint_that_fails_is_left_alone(cluster: &Cluster) {
    let space = good_and_bad(cluster, "accrual");
    service(&space, "web", "", &[NO_BREAKER]);
    service(
        &space,
        "cut",
        "",
        &[
            "balancer.gossamer.io/failure-accrual: consecutive",
            "balancer.gossamer.io/failure-accrual-consecutive-max-failures: '3'",
            "balancer.gossamer.io/failure-accrual-consecutive-min-penalty: 60s",
            "balancer.gossamer.io/failure-accrual-consecutive-max-penalty: 120s",
        ],
    );
    space.ready(&["good", "fine", "bad", "shop"]);

    most_fail(&space);
    let mut failed = 0;
    eventually("as many have failed as it takes to know", || {
        let with = space.load("shop", "kept", ("cut", PATH), 40.0, 2.0, &[]);
        failed += with.status(500);
        assert!(failed <= 3 && with.ok() == with.total() - with.status(500), "{failed} {with:?}");
        (failed == 3).then_some(())
    });
    space.load("shop", "kept", ("cut", PATH), 40.0, 1.0, &[]).assert_none_failed();
}

pub(crate) fn a_services_patience_is_kept_to(cluster: &Cluster) {
    let space = good_and_bad(cluster, "patience");
    service(&space, "web", "good", &[]);
    service(&space, "late", "good", &["timeout.gossamer.io/request: 300ms"]);
    space.ready(&["good", "fine", "shop"]);
    let slow = "/delay/1s";
    space.load("shop", "new", ("web", slow), 2.0, 1.0, &[]).assert_none_failed();
    let late = space.load("shop", "new", ("late", slow), 2.0, 1.0, &[]);
    assert!(late.status(504) == late.total() && late.slowest() < Duration::from_millis(900), "{late:?}");
    space.load("shop", "new", ("late", "/"), 10.0, 1.0, &[]).assert_none_failed();
    // Said under Linkerd's name to a Service that is in use, it is in force soon.
    space.kubectl(&["annotate", "service/web", "timeout.linkerd.io/request=200ms"]);
    let start = Instant::now();
    eventually("the annotation is in force", || {
        let load = space.load("shop", "new", ("web", slow), 1.0, 1.0, &[]);
        (load.status(504) == load.total()).then_some(())
    });
    println!("figure: an annotation is in force after {:.1} s or less", start.elapsed().as_secs_f64());
    space.load("shop", "new", ("web", "/"), 10.0, 1.0, &[]).assert_none_failed();
}
