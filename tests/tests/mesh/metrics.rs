//! `/metrics`: names and labels that dashboards rely on, in text that Prometheus reads.

use crate::http_pair;
use gossamer_tests::client::{self, H1, H2, Raw, post_request};
use gossamer_tests::expect::{Metrics, becomes, eventually};
use std::collections::{BTreeMap, BTreeSet};

#[tokio::test]
async fn requests_are_counted_on_both_sides_with_who_and_where() {
    let (pair, _) = http_pair().await;
    let mut client = H1::connect(pair.entry()).await;
    for path in ["/bytes/1", "/bytes/2", "/status/500"] {
        client.send(post_request("web", path, "x")).await.unwrap();
    }
    H2::connect(pair.entry()).await.grpc("web", "/echo", b"x").await;
    let outbound = pair.shop.metrics().await;
    let to_web = [
        ("direction", "outbound"),
        ("tls", "true"),
        ("server_id", "web.test.serviceaccount.identity.gossamer.cluster.local"),
        ("dst_service", "web"),
        ("dst_namespace", "test"),
    ];
    assert_eq!(outbound.sum("request_total", &to_web), 4.0, "{}", outbound.text);
    let status = |status| {
        let mut labels = to_web.to_vec();
        labels.push(("status_code", status));
        outbound.sum("response_total", &labels)
    };
    assert_eq!((status("200"), status("500")), (3.0, 1.0), "{}", outbound.text);
    assert_eq!(outbound.sum("response_total", &[("classification", "failure")]), 1.0);
    assert_eq!(outbound.sum("response_latency_ms_count", &to_web), 4.0);
    let inbound = pair.web.metrics().await;
    let from_shop = [
        ("direction", "inbound"),
        ("tls", "true"),
        ("client_id", "shop.test.serviceaccount.identity.gossamer.cluster.local"),
    ];
    assert_eq!(inbound.sum("request_total", &from_shop), 4.0, "{}", inbound.text);
    assert_eq!(inbound.sum("response_total", &[("grpc_status", "0")]), 1.0, "{}", inbound.text);
}

#[tokio::test]
async fn connections_and_bytes_are_counted() {
    let pair = crate::Pair::new(gossamer_tests::app::echo()).await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send(vec![1; 50_000]).await;
    assert_eq!(raw.exactly(50_000).await.len(), 50_000);
    let from_client = [("direction", "outbound"), ("peer", "src")];
    let open = || async { pair.shop.metrics().await.sum("tcp_open_connections", &from_client) };
    becomes(1.0, open).await;
    raw.finish().await;
    assert!(raw.ends().await);
    becomes(0.0, open).await;
    let metrics = pair.shop.metrics().await;
    assert_eq!(metrics.sum("tcp_read_bytes_total", &from_client), 50_000.0);
    assert_eq!(metrics.sum("tcp_write_bytes_total", &from_client), 50_000.0);
    assert_eq!(metrics.sum("tcp_close_total", &from_client), 1.0);
}

/// The rules of the text format (Prometheus docs, "Exposition formats").
#[tokio::test]
async fn the_text_is_what_prometheus_reads() {
    let (pair, _) = http_pair().await;
    assert_eq!(client::get(pair.entry(), "web", "/bytes/1").await.status, 200);
    assert_eq!(client::get(pair.entry(), "web", "/status/503").await.status, 503);
    for proxy in [&pair.shop, &pair.web] {
        let answer = client::get(proxy.admin(), "proxy", "/metrics").await;
        assert!(answer.header("content-type").starts_with("text/plain"), "{answer:?}");
        check(&answer.text());
    }
}

fn check(text: &str) {
    assert!(text.ends_with('\n'));
    let name_rule = regex::Regex::new("^[a-z_:][a-z0-9_:]*$").unwrap();
    let mut kinds = BTreeMap::new();
    let mut done = BTreeSet::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kinds.insert(name.to_string(), kind.to_string()).is_none(), "{name} is declared twice");
        } else if !line.starts_with('#') {
            let series = line.split(['{', ' ']).next().unwrap();
            assert!(name_rule.is_match(series), "{line}");
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
            let family = family.filter(|family| kinds.contains_key(*family)).unwrap_or(series).to_string();
            let kind = kinds.get(&family).unwrap_or_else(|| panic!("{series} has no type"));
            assert!(kind != "counter" || family.ends_with("_total"), "{family}");
            if family != current {
                assert!(done.insert(family.clone()), "the lines of {family} are not together");
                current = family;
            }
        }
    }
    let metrics = Metrics::parse(text);
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(seen.insert(line.rsplit_once(' ').unwrap().0), "twice: {line}");
    }
    // Buckets grow, and the last holds all.
    let mut histograms: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
    for (labels, count) in metrics.series("response_latency_ms_bucket", &[]) {
        let mut labels = labels.clone();
        let bound = match labels.remove("le").unwrap().as_str() {
            "+Inf" => f64::INFINITY,
            bound => bound.parse().unwrap(),
        };
        histograms.entry(labels).or_default().push((bound, count));
    }
    assert!(!histograms.is_empty());
    for (labels, buckets) in histograms {
        assert!(buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1), "{labels:?}");
        let labels: Vec<_> = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let count = metrics.sum("response_latency_ms_count", &labels);
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, count)));
    }
}

#[tokio::test]
async fn the_process_and_its_certificate_are_shown() {
    let (pair, _) = http_pair().await;
    let metrics = pair.web.metrics().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let expires = metrics.sum("control_identity_cert_expiration_timestamp_seconds", &[]);
    assert!((now + 3600.0..now + 2.0 * 86_400.0).contains(&expires), "{expires}");
    assert!(metrics.sum("process_resident_memory_bytes", &[]) > 1e6);
    assert_eq!(metrics.sum("proxy_build_info", &[]), 1.0);
    for path in ["/live", "/ready"] {
        assert_eq!(client::get(pair.web.admin(), "proxy", path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn the_log_level_changes_at_run_time() {
    let (pair, _) = http_pair().await;
    let refused = async || {
        let mut io = tokio::net::TcpStream::connect(pair.entry()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut io, b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut io, &mut answer).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("bad-request"), "{answer:?}");
    };
    refused().await;
    assert!(!pair.shop.log().contains("DEBUG"), "{}", pair.shop.log());
    let request = http::Request::put("/log-level").header("host", "proxy");
    let request = request.body(gossamer_tests::app::full("warn,gossamer=debug")).unwrap();
    let answer = H1::connect(pair.shop.admin()).await.send(request).await.unwrap();
    assert!(answer.status < 300, "{answer:?}");
    assert_eq!(client::get(pair.shop.admin(), "proxy", "/log-level").await.text().trim(), "warn,gossamer=debug");
    refused().await;
    eventually("a line of that level", || async {
        let log = pair.shop.log();
        log.lines().any(|line| line.contains("DEBUG") && line.contains("bad-request")).then_some(())
    })
    .await;
}
