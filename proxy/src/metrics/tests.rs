use super::*;
use crate::metrics::registry::{IDLE, MAX_SCOPES};
use gossamer_api::endpoint::Labels as EndpointLabels;
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

fn outbound() -> Labels {
    let mut labels = Labels::new("outbound");
    labels.tls(Direction::Outbound, TlsLabel::Disabled);
    labels
}

fn with(labels: Labels, key: &str, value: &str) -> Labels {
    let mut labels = labels;
    labels.add(key, value);
    labels
}

/// The families, labels and numbers that a client with one destination and a server have.
#[test]
fn a_scrape_looks_like_this() {
    let metrics = Metrics::new();
    let id: Identity = "web.demo.serviceaccount.identity.gossamer.cluster.local".parse().unwrap();
    let dst = [("pod", "web-1"), ("app.kubernetes.io/name", "a\"b\\c\n")];
    let dst = EndpointLabels::from(dst.map(|(key, value)| (key.to_string(), value.to_string())));
    let mut labels = with(Labels::new("outbound"), "authority", "web.demo.svc.cluster.local:80");
    labels.target("10.0.0.1:80".parse().unwrap());
    labels.tls(Direction::Outbound, TlsLabel::Mesh(Some(&id)));
    labels.dst(&dst);
    let requests = metrics.requests(&labels);
    (0..4).for_each(|_| requests.request());
    for latency in [ms(1), Duration::from_micros(1500), ms(60_000), Duration::ZERO] {
        requests.latency(latency);
    }
    requests.response(200, None, true, None);
    requests.response(200, None, true, None);
    requests.response(200, Some(13), false, None);
    requests.response(503, None, false, Some("no-endpoints"));

    let server = Meta::Resource {
        group: "policy.linkerd.io".into(),
        kind: "server".into(),
        namespace: "demo".into(),
        name: "web".into(),
        section: String::new(),
        port: 0,
    };
    let default = Meta::named("default");
    let mut inbound = Labels::new("inbound");
    inbound.tls(Direction::Inbound, TlsLabel::None("no_tls_from_remote"));
    inbound.object("srv", &server);
    inbound.object("route", &default);
    metrics.requests(&inbound).deny();
    let authz = metrics.authz(&inbound);
    authz.http_deny.inc();
    authz.http_limited_identity.inc();
    inbound.object("authz", &default);
    metrics.requests(&inbound).allow();

    let tcp = metrics.tcp("dst", &outbound());
    tcp.read(10);
    tcp.write(20);
    (0..3).for_each(|_| tcp.open());
    tcp.close(None);
    tcp.close(Some(io::ErrorKind::ConnectionReset));
    let parent = Meta::service("demo", "web", 80);
    let mut route = Labels::none();
    route.reference("parent", &parent);
    route.reference("route", &default);
    metrics.route(false, &route).retries.inc();
    metrics.route(true, &route).retry_overflow.add(2);
    let mut backend = Labels::none();
    backend.reference("backend", &parent);
    metrics.balancer(false, &backend).ready.set(3);
    metrics.http_error("outbound", "no-endpoints");
    metrics.tcp_error("inbound", "handshake");
    metrics.identity().issued(UNIX_EPOCH + ms(1_000), UNIX_EPOCH + ms(86_401_000));
    insta::assert_snapshot!(text(&metrics, Instant::now()));
}

#[test]
fn a_client_with_one_destination_is_short() {
    let metrics = Metrics::new();
    let (id, dst) = ("web.demo".parse().unwrap(), EndpointLabels::from([("pod".to_string(), "web-1".to_string())]));
    for target in ["10.0.0.1:80", "10.0.0.2:80"] {
        let mut labels = Labels::new("outbound");
        labels.target(target.parse().unwrap());
        labels.tls(Direction::Outbound, TlsLabel::Mesh(Some(&id)));
        labels.dst(&dst);
        metrics.requests(&labels).latency(ms(1));
        metrics.requests(&labels).response(200, None, true, None);
        metrics.tcp("dst", &labels).open();
        metrics.tcp("dst", &labels).close(None);
    }
    metrics.tcp("src", &outbound()).open();
    metrics.tcp("src", &outbound()).close(None);
    metrics.balancer(false, &Labels::none());
    metrics.identity().issued(UNIX_EPOCH, UNIX_EPOCH);
    let lines = metrics.render().lines().count();
    assert!(lines < 150, "{lines} lines");
}

#[test]
fn the_same_labels_give_the_same_handle() {
    let metrics = Metrics::new();
    let (one, two) = (metrics.requests(&outbound()), metrics.clone().requests(&outbound()));
    assert!(Arc::ptr_eq(&one, &two));
    assert!(!Arc::ptr_eq(&one, &metrics.requests(&with(outbound(), "authority", "a"))));
}

#[test]
fn many_kinds_of_responses_collapse_into_classes() {
    let metrics = Metrics::new();
    let handle = metrics.requests(&outbound());
    for status in 0..1000 {
        handle.response(status, None, status < 500, None);
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
    metrics.requests(&outbound()).request();
    assert!(text(&metrics, now).contains("request_total"));
    assert!(text(&metrics, now + IDLE - ms(1)).contains("request_total"));
    // Used again: goes on counting, and idles anew.
    assert_eq!(metrics.requests(&outbound()).requests(), 1);
    assert!(text(&metrics, now + IDLE).contains("request_total"));
    assert!(!text(&metrics, now + IDLE * 2).contains("request_total"));
}

#[test]
fn handles_are_bounded_and_unused_ones_make_room() {
    let metrics = Metrics::new();
    let handle = |n: usize| metrics.requests(&with(outbound(), "authority", &n.to_string()));
    let mut held: Vec<_> = (0..MAX_SCOPES).map(handle).collect();
    handle(MAX_SCOPES).request();
    assert!(text(&metrics, Instant::now()).contains("proxy_metrics_scopes_refused_total 1\n"));
    held.pop();
    handle(MAX_SCOPES).request();
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
    let dst = EndpointLabels::from(["a.b", "a/c", "a_b"].map(|key| (key.to_string(), key.to_string())));
    let mut labels = Labels::none();
    labels.dst(&dst);
    labels.add("1x", "");
    assert_eq!(labels.as_str(), "dst_a_b=\"a.b\",dst_a_c=\"a/c\",_1x=\"\"");
}

proptest::proptest! {
    #[test]
    fn any_label_is_escaped(key in "\\PC{0,8}", value in "(\\PC|\n|\\\\|\"){0,20}") {
        let metrics = Metrics::new();
        let mut labels = outbound();
        labels.dst(&EndpointLabels::from([(key, value.clone())]));
        metrics.requests(&labels);
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
    let handle = metrics.requests(&outbound());
    handle.response(404, None, true, None);
    let latencies: Vec<_> = (0..64).map(|n| Duration::from_micros(n * n * 15)).collect();
    // The best of many short runs: one that nobody interrupted.
    let best = (0..1000).map(|_| {
        let start = Instant::now();
        for n in 0..6400 {
            handle.latency(std::hint::black_box(latencies[n % 64]));
            handle.response(200, None, true, None);
        }
        start.elapsed().as_nanos() as f64 / 6400.0
    });
    println!("{:.1} ns per record", best.fold(f64::INFINITY, f64::min));
}
