//! The mesh on a real Kubernetes: what the README promises, one file per promise. A cluster of its own is brought up for
//! it and is gone afterwards.
//!
//! A program of its own instead of the usual harness, because all tests share the cluster, some must have it for
//! themselves, and it has to be taken down at the end. `cargo test -p gossamer-tests --test kubernetes -- WORD...` runs
//! the tests with one of the words in their names; installation and removal run always.
//!
//! Without the scripts that make a cluster it says so and passes; under CI that is a failure.

#![allow(clippy::unwrap_used)]

mod annotations;
mod authorization;
mod check;
mod conformance;
mod control_plane_gone;
mod cost;
mod inject;
mod install;
mod jobs;
mod leader;
mod live;
mod many;
mod mtls;
mod probes;
mod resilience;
mod restarts;
mod rollout;
mod root_rotation;
mod routes;
mod unmeshed;
mod upgrade;
mod workloads;

use gossamer_tests::cluster::{self, Cluster};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

type Test = (&'static str, fn(&Cluster));

/// Each has namespaces of its own, so they run side by side.
const TOGETHER: &[Test] = &[
    ("a_namespace_with_one_annotation_has_mutual_tls", mtls::a_namespace_with_one_annotation_has_mutual_tls),
    ("nothing_readable_is_on_the_wire", mtls::nothing_readable_is_on_the_wire),
    ("unmeshed_clients_and_servers_keep_working", unmeshed::unmeshed_clients_and_servers_keep_working),
    ("every_kind_of_workload_gets_a_proxy", workloads::every_kind_of_workload_gets_a_proxy),
    ("a_pod_has_the_shape_that_it_asks_for", workloads::a_pod_has_the_shape_that_it_asks_for),
    ("the_proxy_gives_its_privileges_away", workloads::the_proxy_gives_its_privileges_away),
    ("yaml_is_injected_and_uninjected", inject::yaml_is_injected_and_uninjected),
    ("a_tcp_probe_fails_where_nobody_listens", probes::a_tcp_probe_fails_where_nobody_listens),
    ("a_canary_gets_its_share", routes::a_canary_gets_its_share),
    ("requests_are_routed_by_header", routes::requests_are_routed_by_header),
    ("a_consumers_route_is_for_its_namespace_alone", routes::a_consumers_route_is_for_its_namespace_alone),
    ("retries_hide_an_endpoint_that_fails", resilience::retries_hide_an_endpoint_that_fails),
    ("an_endpoint_that_fails_is_left_alone", resilience::an_endpoint_that_fails_is_left_alone),
    ("a_services_patience_is_kept_to", resilience::a_services_patience_is_kept_to),
    ("service_accounts_are_allowed_denied_and_audited", authorization::service_accounts_are_allowed_denied_and_audited),
    ("a_routes_requests_are_allowed_and_denied", authorization::a_routes_requests_are_allowed_and_denied),
    ("typos_are_told_where_people_look", annotations::typos_are_told_where_people_look),
    ("skipped_clients_and_ports_bypass_the_proxy", annotations::skipped_clients_and_ports_bypass_the_proxy),
    ("traffic_is_seen_as_it_is", live::traffic_is_seen_as_it_is),
    ("nobody_else_can_tap", live::nobody_else_can_tap),
    ("who_may_is_told_with_the_object_that_decides", live::who_may_is_told_with_the_object_that_decides),
    ("the_control_plane_says_what_it_tells_proxies", live::the_control_plane_says_what_it_tells_proxies),
    ("without_a_right_it_is_named", live::without_a_right_it_is_named),
    ("a_rolling_update_fails_nothing", rollout::a_rolling_update_fails_nothing),
    ("deleted_pods_fail_nothing", rollout::deleted_pods_fail_nothing),
];

/// One after the other: they disturb the cluster, or measure it.
const ALONE: &[Test] = &[
    ("a_job_completes", jobs::a_job_completes),
    ("a_server_that_speaks_first_is_heard_at_once", cost::a_server_that_speaks_first_is_heard_at_once),
    ("what_the_mesh_costs", cost::what_the_mesh_costs),
    ("check_finds_what_is_wrong", check::check_finds_what_is_wrong),
    ("another_replica_tells_when_the_leader_is_gone", leader::another_replica_tells_when_the_leader_is_gone),
    ("the_injector_makes_its_certificate_anew", check::the_injector_makes_its_certificate_anew),
    ("gateway_api_conformance", conformance::gateway_api_conformance),
    ("a_new_root_fails_nothing", root_rotation::a_new_root_fails_nothing),
    ("an_issuer_of_cert_manager_is_taken_over", root_rotation::an_issuer_of_cert_manager_is_taken_over),
    ("an_upgrade_keeps_what_was_set", upgrade::an_upgrade_keeps_what_was_set),
    ("without_a_control_plane_nothing_fails", control_plane_gone::without_a_control_plane_nothing_fails),
    ("restarted_daemons_fail_nothing", restarts::restarted_daemons_fail_nothing),
    ("a_node_comes_back_after_a_power_cut", restarts::a_node_comes_back_after_a_power_cut),
    // Last: what it leaves has to be cleared away.
    ("hundreds_of_pods_are_asked_in_seconds", many::hundreds_of_pods_are_asked_in_seconds),
];

/// At once; the machine has few cores, and deadlines are real.
const THREADS: usize = 3;

fn main() {
    let words: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let all = TOGETHER.iter().chain(ALONE);
    if std::env::args().any(|argument| argument == "--list") {
        all.for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let Some(tools) = cluster::tools() else {
        println!("SKIPPED: no ../shared/k8s, which makes a cluster (or MESH_K8S, which says where it is)");
        assert!(std::env::var_os("CI").is_none(), "under CI the Kubernetes tests are not skipped");
        return;
    };
    let wanted = |(name, _): &&Test| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let start = Instant::now();
    let name = std::env::var("MESH_K8S_NAME").unwrap_or_else(|_| format!("g{}", std::process::id() % 10_000_000));
    let cluster = Cluster::up(tools, &name);
    cluster.load_images();
    println!("cluster {name:?} with images after {:.1} s", start.elapsed().as_secs_f64());

    let report = Report::default();
    let before = cluster.objects();
    if report.run(&cluster, &("from_nothing_to_a_meshed_application", install::from_nothing_to_a_meshed_application)) {
        let together: Vec<_> = TOGETHER.iter().filter(wanted).collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Some(test) = together.get(next.fetch_add(1, Ordering::Relaxed)) {
                        report.run(&cluster, test);
                    }
                });
            }
        });
        // Minutes more; for those who change what they look at.
        let quick = words.is_empty() && std::env::var_os("MESH_K8S_QUICK").is_some();
        for test in ALONE.iter().filter(wanted).filter(|_| !quick) {
            report.run(&cluster, test);
        }
    }
    report.judge(&cluster, "uninstall_leaves_nothing", |cluster| install::uninstall_leaves_nothing(cluster, &before));
    let failed = report.failed.into_inner().unwrap();
    if !failed.is_empty() {
        eprintln!("{}", cluster.tell());
    }
    // Before the process ends with a code: `exit` would not.
    drop(cluster);
    failed.iter().for_each(|failure| println!("FAILED {failure}"));
    println!("{} failed, {:.0} s in all", failed.len(), start.elapsed().as_secs_f64());
    std::process::exit(i32::from(!failed.is_empty()));
}

#[derive(Default)]
struct Report {
    failed: Mutex<Vec<String>>,
}

impl Report {
    fn run(&self, cluster: &Cluster, (name, test): &Test) -> bool {
        self.judge(cluster, name, test)
    }

    fn judge(&self, cluster: &Cluster, name: &str, test: impl FnOnce(&Cluster)) -> bool {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| test(cluster)));
        let seconds = start.elapsed().as_secs_f64();
        println!("test {name} ... {} ({seconds:.1} s)", if result.is_ok() { "ok" } else { "FAILED" });
        if let Err(panic) = &result {
            // Told again at the end, behind all that is told about the cluster.
            let why = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let why: String = why.unwrap_or_default().chars().take(1000).collect();
            self.failed.lock().unwrap().push(format!("{name}: {why}"));
        }
        result.is_ok()
    }
}
