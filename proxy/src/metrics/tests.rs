//! What a scrape shows, and what handles share.

use super::*;
use crate::metrics::registry::{IDLE, MAX_SCOPES};
use gossamer_api::endpoint::Labels;
use gossamer_api::policy::Meta;
use gossamer_api::workload::Identity;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn text(metrics: &Metrics, now: Instant) -> String {
    metrics.collect(now).finish()
}

/// The families, labels and numbers that a client with one destination and a server have.
#[test]
fn a_scrape_looks_like_this() {
    let metrics = Metrics::new();
    let id: Identity = "web.demo.serviceaccount.identity.gossamer.cluster.local".parse().unwrap();
    let dst =
        Labels::from([("pod".to_string(), "web-1".to_string()), ("app.kubernetes.io/name".into(), "a\"b\\c\n".into())]);
    let outbound = metrics.request_scope(RequestLabels {
        target: Some("10.0.0.1:80".parse().unwrap()),
        authority: Some("web.demo.svc.cluster.local:80"),
        dst: Some(&dst),
        ..RequestLabels::new(Direction::Outbound, TlsLabel::Mesh(Some(&id)))
    });
    (0..4).for_each(|_| outbound.request());
    outbound.response(200, None, true, ms(1));
    outbound.response(200, None, true, Duration::from_micros(1500));
    outbound.response(200, Some(13), false, ms(60_000));
    outbound.answered(503, None, false, "no-endpoints", Duration::ZERO);

    let server = Meta::Resource {
        group: "policy.linkerd.io".into(),
        kind: "server".into(),
        namespace: "demo".into(),
        name: "web".into(),
        section: String::new(),
        port: 0,
    };
    let default = Meta::named("default");
    metrics.request_scope(RequestLabels {
        server: Some(&server),
        route: Some(&default),
        authz: Some(&default),
        ..RequestLabels::new(Direction::Inbound, TlsLabel::None("no_tls_from_remote"))
    });
    let tcp = metrics.tcp_scope(TcpLabels::new(Direction::Outbound, false, TlsLabel::Disabled));
    tcp.read(10);
    tcp.wrote(20);
    drop(tcp.open());
    let mut failing = tcp.open();
    failing.fail(&io::ErrorKind::ConnectionReset.into());
    drop(failing);
    let _open = tcp.open();
    let authz = metrics.authz_scope(AuthzLabels {
        server: &server,
        route: Some(&default),
        authz: None,
        tls: TlsLabel::Mesh(None),
        target: None,
    });
    authz.http_deny.inc();
    authz.http_limited_identity.inc();
    let parent = Meta::service("demo", "web", 80);
    metrics.route_scope(RouteLabels { parent: &parent, route: &default, grpc: false }).retries.inc();
    metrics.route_scope(RouteLabels { parent: &parent, route: &default, grpc: true }).retry_overflow.add(2);
    metrics.balancer_scope(BackendLabels { parent: None, backend: &parent, tcp: false }).ready.set(3);
    metrics.http_errors(Direction::Outbound).count("no-endpoints");
    metrics.identity().issued(UNIX_EPOCH + ms(1_000), UNIX_EPOCH + ms(86_401_000));
    metrics.identity().trusts(vec!["0a0b".into(), "0c0d".into()], Some("0e0f".into()));
    insta::assert_snapshot!(text(&metrics, Instant::now()));
}

#[test]
fn a_client_with_one_destination_is_short() {
    let metrics = Metrics::new();
    let (id, dst) = ("web.demo".parse().unwrap(), Labels::from([("pod".to_string(), "web-1".to_string())]));
    for target in ["10.0.0.1:80", "10.0.0.2:80"] {
        let target = Some(target.parse().unwrap());
        let tls = TlsLabel::Mesh(Some(&id));
        let labels = RequestLabels { target, dst: Some(&dst), ..RequestLabels::new(Direction::Outbound, tls) };
        metrics.request_scope(labels).response(200, None, true, ms(1));
        let labels = TcpLabels { target, dst: Some(&dst), ..TcpLabels::new(Direction::Outbound, false, tls) };
        drop(metrics.tcp_scope(labels).open());
    }
    let accepted = TcpLabels::new(Direction::Outbound, true, TlsLabel::None("loopback"));
    drop(metrics.tcp_scope(accepted).open());
    metrics.balancer_scope(BackendLabels { parent: None, backend: &Meta::service("demo", "web", 80), tcp: false });
    metrics.identity().issued(UNIX_EPOCH, UNIX_EPOCH);
    let lines = metrics.render().lines().count();
    assert!(lines < 150, "{lines} lines");
}

#[test]
fn the_same_labels_give_the_same_handle() {
    let metrics = Metrics::new();
    let labels = RequestLabels::new(Direction::Outbound, TlsLabel::Disabled);
    let (one, two) = (metrics.request_scope(labels), metrics.clone().request_scope(labels));
    assert!(Arc::ptr_eq(&one, &two));
    let other = metrics.request_scope(RequestLabels { authority: Some("a"), ..labels });
    assert!(!Arc::ptr_eq(&one, &other));
}

#[test]
fn many_kinds_of_responses_collapse_into_classes() {
    let metrics = Metrics::new();
    let handle = metrics.request_scope(RequestLabels::new(Direction::Inbound, TlsLabel::Disabled));
    for status in 0..1000 {
        handle.response(status, None, status < 500, ms(1));
    }
    let text = text(&metrics, Instant::now());
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("response_total")).collect();
    assert!(lines.len() <= 24 + 12, "{}", lines.len());
    let total: u64 = lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(total, 1000);
    assert!(text.contains("status_code=\"5xx\",classification=\"failure\"} 100"), "{text}");
}

#[test]
fn a_handle_that_nobody_holds_is_shown_for_a_while() {
    let metrics = Metrics::new();
    let now = Instant::now();
    let labels = RequestLabels::new(Direction::Outbound, TlsLabel::Disabled);
    let handle = metrics.request_scope(labels);
    handle.request();
    drop(handle);
    assert!(text(&metrics, now).contains("request_total"));
    assert!(text(&metrics, now + IDLE - ms(1)).contains("request_total"));
    // Used again: goes on counting, and idles anew.
    assert_eq!(metrics.request_scope(labels).requests(), 1);
    assert!(text(&metrics, now + IDLE).contains("request_total"));
    assert!(!text(&metrics, now + IDLE * 2).contains("request_total"));
}

#[test]
fn handles_are_bounded_and_unused_ones_make_room() {
    let metrics = Metrics::new();
    let scope = |n: usize| {
        let authority = n.to_string();
        metrics.request_scope(RequestLabels {
            authority: Some(&authority),
            ..RequestLabels::new(Direction::Outbound, TlsLabel::Disabled)
        })
    };
    let mut held: Vec<_> = (0..MAX_SCOPES).map(scope).collect();
    let refused = scope(MAX_SCOPES);
    refused.request();
    assert!(text(&metrics, Instant::now()).contains("proxy_metrics_scopes_refused_total 1\n"));
    held.pop();
    let taken = scope(MAX_SCOPES);
    taken.request();
    let text = text(&metrics, Instant::now());
    assert!(text.contains(&format!("authority=\"{MAX_SCOPES}\"")));
    assert!(!text.contains(&format!("authority=\"{}\"", MAX_SCOPES - 1)));
}

#[test]
fn every_family_is_well_named() {
    for Declared { name, kind, help } in FAMILIES {
        assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert!(help.ends_with('.') && !help.contains(['\n', '\\']), "{help}");
        assert_eq!(FAMILIES.iter().filter(|other| other.name == *name).count(), 1, "{name}");
    }
}

#[test]
fn keys_that_become_one_label_are_shown_once() {
    let metrics = Metrics::new();
    let dst = ["a.b", "a/c", "a_b"].map(|key| (key.to_string(), key.to_string()));
    let dst = Labels::from(dst);
    let labels = RequestLabels::new(Direction::Outbound, TlsLabel::Disabled);
    let _held = metrics.request_scope(RequestLabels { dst: Some(&dst), ..labels });
    let text = text(&metrics, Instant::now());
    assert!(text.contains("tls=\"disabled\",dst_a_b=\"a.b\",dst_a_c=\"a/c\"} 0"), "{text}");
}

proptest::proptest! {
    #[test]
    fn any_label_is_escaped(key in "\\PC{0,8}", value in "(\\PC|\n|\\\\|\"){0,20}") {
        let metrics = Metrics::new();
        let dst = Labels::from([(key, value.clone())]);
        let labels = RequestLabels::new(Direction::Outbound, TlsLabel::Disabled);
        metrics.request_scope(RequestLabels { dst: Some(&dst), ..labels });
        let text = text(&metrics, Instant::now());
        let line = text.lines().find(|line| line.starts_with("request_total")).unwrap();
        let quoted = line.rsplit_once("} 0").unwrap().0.split_once(",dst_").unwrap().1.split_once("=\"").unwrap().1;
        let read = quoted.strip_suffix('"').unwrap();
        let mut back = String::new();
        let mut chars = read.chars();
        while let Some(c) = chars.next() {
            proptest::prop_assert!(c != '"');
            back.push(match c { '\\' => match chars.next().unwrap() { 'n' => '\n', c => c }, c => c });
        }
        proptest::prop_assert_eq!(back, value);
    }
}

/// `cargo test -p gossamer-proxy --release -- --ignored --nocapture a_record_costs`
#[test]
#[ignore = "a measurement"]
fn a_record_costs() {
    let metrics = Metrics::new();
    let handle = metrics.request_scope(RequestLabels::new(Direction::Outbound, TlsLabel::Disabled));
    handle.response(404, None, true, ms(1));
    let latencies: Vec<_> = (0..64).map(|n| Duration::from_micros(n * n * 15)).collect();
    // The best of many short runs: one that nobody interrupted.
    let best = (0..1000).map(|_| {
        let start = Instant::now();
        for n in 0..6400 {
            handle.response(200, None, true, std::hint::black_box(latencies[n % 64]));
        }
        start.elapsed().as_nanos() as f64 / 6400.0
    });
    println!("{:.1} ns per record", best.fold(f64::INFINITY, f64::min));
}
