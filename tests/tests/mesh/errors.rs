//! Every answer that the proxy makes itself says why, in one word that is the same for HTTP, gRPC and metrics.

use crate::{WEB, tap};
use futures_util::future::join_all;
use gossamer_api::defaults::H2_CONNECTIONS;
use gossamer_proxy::error::REASONS;
use gossamer_tests::app::{self, empty};
use gossamer_tests::client::{Answer, H1, H2, Raw, grpc_request, post_request};
use gossamer_tests::expect::{becomes, eventually};
use gossamer_tests::mesh::{Mesh, Proxy};
use linkerd2_proxy_api::tap::TapEvent;
use tonic::Streaming;

const ROUTES: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: nobody, namespace: test }
spec: { selector: { app: nobody }, ports: [{ port: 8080 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
    - matches: [{ path: { value: /nobody } }]
      backendRefs: [{ name: nobody, port: 8080 }]
    - matches: [{ path: { value: /refused } }]
      backendRefs: [{ name: refused, port: 8080 }]
    - matches: [{ path: { value: /refused-grpc } }]
      backendRefs: [{ name: refused-grpc, port: 8080 }]
    - matches: [{ path: { value: /missing } }]
      backendRefs: [{ name: no-such-service, port: 8080 }]
    - matches: [{ path: { value: /hang } }]
      timeouts: { request: 100ms }
    - matches: [{ path: { value: /drop } }]
---
apiVersion: policy.gossamer.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: vault, namespace: test }
spec: { service: vault, from: [{ serviceAccounts: [{ name: nobody-we-know }] }] }
"#;

struct Broken {
    shop: Proxy,
    _services: [Proxy; 4],
    mesh: Mesh,
}

async fn broken() -> Broken {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let web = mesh.workload("web").serve(8080, app.handler()).set("access-log", "json").start().await;
    let vault = mesh.workload("vault").serve(8080, app.handler()).set("access-log", "json").start().await;
    let refused = mesh.workload("refused").port(8080).unmeshed().start().await;
    let refused_grpc = mesh.workload("refused-grpc").port(8080).unmeshed().start().await;
    mesh.apply_unchecked(ROUTES);
    let shop = mesh.workload("shop").calls(WEB).calls("vault:8080").calls("unheard-of:80").calls("web:9999");
    let shop = shop.set("access-log", "json");
    Broken { shop: shop.start().await, _services: [web, vault, refused, refused_grpc], mesh }
}

/// Target, path, reason, HTTP status, gRPC code.
const ANSWERS: &[(&str, &str, &str, u16, u16)] = &[
    (WEB, "/nobody", "no-endpoints", 503, 14),
    (WEB, "/refused", "connect", 502, 14),
    (WEB, "/hang", "timeout", 504, 4),
    (WEB, "/drop", "upstream", 502, 14),
    (WEB, "/elsewhere", "no-route", 404, 5),
    ("vault:8080", "/", "denied", 403, 7),
    ("web:9999", "/", "forbidden", 403, 7),
    ("unheard-of:80", "/", "discovery", 503, 14),
    (WEB, "/missing", "invalid-policy", 500, 13),
];

#[tokio::test]
async fn every_cause_has_its_word_its_status_and_its_grpc_code() {
    let mesh = broken().await;
    let mut wrong = Vec::new();
    for (target, path, reason, status, code) in ANSWERS {
        let entry = mesh.shop.to(target);
        let answer = H1::connect(entry).await.send(post_request("web", path, "x")).await.unwrap();
        if (answer.reason(), answer.status) != (*reason, *status) || !answer.text().starts_with(reason) {
            wrong.push(format!("{target}{path}: {answer:?}"));
        }
        // Once nobody could be reached for a while, requests fail at once, as `not-ready`; so another service.
        let path = path.replace("/refused", "/refused-grpc");
        let answer = H2::connect(entry).await.send(grpc_request("web", &path, empty())).await.unwrap();
        let got = (answer.reason(), answer.status, answer.grpc());
        if got != (*reason, 200, Some(*code)) || answer.header("grpc-message").is_empty() {
            wrong.push(format!("gRPC {target}{path}: {answer:?}"));
        }
        assert!(REASONS.iter().any(|(known, ..)| known == reason), "`meshctl why {reason}` explains it");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let metrics = mesh.shop.metrics().await;
    for reason in ["no-endpoints", "connect", "timeout", "no-route", "discovery"] {
        let counted = metrics.sum("outbound_http_errors_total", &[("error", reason)]);
        assert_eq!(counted, 2.0, "{reason}\n{}", metrics.text);
    }
}

/// Header, body, metric, access log, tap and what `meshctl why` is told: one word, for every answer by whichever proxy.
#[tokio::test]
async fn every_cause_has_the_same_word_everywhere() {
    let mesh = broken().await;
    let [web, vault, ..] = &mesh._services;
    let proxies = [&mesh.shop, web, vault];
    let mut taps = Vec::new();
    for proxy in proxies {
        taps.push(tap::observe(proxy.tap(), tap::everything(100)).await);
    }
    for (target, path, reason, ..) in ANSWERS {
        let answer = H1::connect(mesh.shop.to(target)).await.send(post_request("web", path, "x")).await.unwrap();
        same_word_everywhere(&proxies, &mut taps, &answer, reason, path).await;
    }
}

/// Asked of the proxy that gave the answer, whichever of them it is; the first is the client's.
async fn same_word_everywhere(
    proxies: &[&Proxy],
    taps: &mut [Streaming<TapEvent>],
    answer: &Answer,
    reason: &str,
    path: &str,
) {
    let id = answer.header("gossamer-request");
    assert_eq!((answer.reason(), answer.text().starts_with(reason)), (reason, true), "{path}: {answer:?}");
    let (mut found, mut counted) = (None, 0.0);
    for (at, proxy) in proxies.iter().enumerate() {
        if let Ok(story) = tap::explain(proxy.tap(), id).await {
            let metrics = proxy.metrics().await;
            let direction = if at == 0 { "outbound" } else { "inbound" };
            counted = metrics.sum(&format!("{direction}_http_errors_total"), &[("error", reason)]);
            found = Some((at, story));
        }
    }
    let (at, story) = found.unwrap_or_else(|| panic!("{path}: nobody remembers {id}"));
    assert!(counted >= 1.0, "{reason} is not counted");
    assert_eq!((story.reason.as_str(), story.path.as_str()), (reason, path));
    assert!(!story.message.is_empty() && answer.header("l5d-proxy-error").contains(&story.message), "{story:#?}");
    let told = tap::reason_of(&mut taps[at], id).await;
    assert_eq!(told.as_deref(), Some(reason), "{path}: tap");
    let line = eventually("its line of the access log", || async {
        let log = proxies[at].log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.find(|line| line["request"] == id)
    })
    .await;
    assert!(line["reason"] == reason && line["status"] == answer.status, "{line}");
    assert!(REASONS.iter().any(|(known, ..)| *known == reason), "`meshctl why {reason}` explains it");
}

/// The workload takes eight streams at once, and they hang.
#[tokio::test]
async fn overloaded_is_the_same_word_everywhere() {
    let mesh = Mesh::start().await;
    let app = app::http("web").streams(1);
    let web = mesh.workload("web").serve(8080, app.handler()).set("access-log", "json").start().await;
    let shop = mesh.workload("shop").calls(WEB).set("access-log", "json").start().await;
    let proxies = [&shop, &web];
    let mut taps = Vec::new();
    for proxy in proxies {
        taps.push(tap::observe(proxy.tap(), tap::everything(100)).await);
    }
    let client = H2::connect(shop.to(WEB)).await;
    let hanging = join_all((0..H2_CONNECTIONS).map(|_| client.start(post_request("web", "/hang", "x"))));
    let another = async {
        becomes(H2_CONNECTIONS, || async { app.count() }).await;
        client.send(post_request("web", "/echo", "x")).await.unwrap()
    };
    let answer = tokio::select! {
        _ = hanging => panic!("they hang"),
        answer = another => answer,
    };
    assert_eq!(answer.status, 503);
    same_word_everywhere(&proxies, &mut taps, &answer, "overloaded", "/echo").await;
}

/// A request that outlives the grace period is told so, by the proxy of its client. That proxy is about to end, so what
/// it says of the request is asked for at once.
#[tokio::test]
async fn shutting_down_is_the_same_word_everywhere() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let _greeter = mesh.workload("greeter").serve(7000, app::speaks_first(b"hello")).start().await;
    let shop = mesh.workload("shop").calls(WEB).calls("greeter:7000").set("access-log", "json");
    let mut shop = shop.set("shutdown-grace-period", "300ms").start().await;
    let mut taps = [tap::observe(shop.tap(), tap::everything(100)).await];
    // Somebody who does not go, so that the proxy has to wait for as long as it waits for anybody.
    let mut stays = Raw::connect(shop.to("greeter:7000")).await;
    assert_eq!(stays.exactly(5).await, "hello");
    let (mut h1, h2) = (H1::connect(shop.to(WEB)).await, H2::connect(shop.to(WEB)).await);
    let mut streamed = Raw::connect(shop.to(WEB)).await;
    streamed.send("POST /echo HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    assert_eq!(streamed.head().await.0, 200);
    let hang = || post_request("web", "/hang", "x");
    let terminate = async {
        becomes(4, || async { app.count() }).await;
        shop.terminate();
    };
    let (one, two, three, ()) =
        tokio::join!(h1.send(hang()), h2.send(hang()), h2.grpc("web", "/hang", b"x"), terminate);
    let (one, two) = (one.unwrap(), two.unwrap());
    same_word_everywhere(&[&shop], &mut taps, &one, "shutting-down", "/hang").await;
    same_word_everywhere(&[&shop], &mut taps, &two, "shutting-down", "/hang").await;
    assert_eq!((one.status, one.header("connection"), two.status), (503, "close", 503), "{one:?}");
    assert_eq!((three.reason(), three.grpc()), ("shutting-down", Some(14)), "{three:?}");
    // Half an answer is never passed off as a whole one, nor as its client's fault.
    assert!(streamed.rest().await.is_err(), "reset");
    assert_eq!(shop.ended().await.code(), Some(0));
    assert!(stays.ends().await);
    let log = shop.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let reasons: Vec<_> = lines.filter(|line| line["request"].is_string()).map(|line| line["reason"].clone()).collect();
    assert_eq!(reasons, ["shutting-down"; 4], "{log}");
}

/// The client may insist on who serves it.
#[tokio::test]
async fn a_required_identity_is_enforced() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let mut client = H1::connect(shop.to(WEB)).await;
    let mut ask = async |id: &str| {
        let mut request = post_request("web", "/", "x");
        request.headers_mut().insert("l5d-require-id", id.parse().unwrap());
        client.send(request).await.unwrap()
    };
    let right = "web.test.serviceaccount.identity.gossamer.cluster.local";
    assert_eq!(ask(right).await.status, 200);
    let served = app.count();
    let answer = ask(&right.replace("web", "bank")).await;
    assert_eq!((answer.reason(), app.count()), ("required-identity", served), "{answer:?}");
    assert!(answer.status >= 400, "{answer:?}");
}

/// Endpoints exist, and all have just refused: as `not-ready`, with the last refusal.
#[tokio::test]
async fn a_service_that_refuses_for_a_while_is_not_ready() {
    let mesh = Mesh::start().await;
    let _web = mesh.workload("web").port(8080).unmeshed().start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let answer = eventually("connect becomes not-ready", || async {
        let answer = H1::connect(shop.to(WEB)).await.send(post_request("web", "/", "x")).await.ok()?;
        assert!(["connect", "not-ready"].contains(&answer.reason()), "{answer:?}");
        (answer.reason() == "not-ready").then_some(answer)
    })
    .await;
    assert!(answer.header("l5d-proxy-error").contains("refused"), "{answer:?}");
}

/// A head that is too large; by the word as well.
#[tokio::test]
async fn a_head_that_is_too_large_has_its_word() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let mut request = post_request("web", "/", "x");
    request.headers_mut().insert("x-long", "l".repeat(100_000).parse().unwrap());
    let answer = H1::connect(shop.to(WEB)).await.send(request).await.unwrap();
    assert_eq!((answer.reason(), answer.status, app.count()), ("head-too-large", 431, 0), "{answer:?}");
    let metrics = shop.metrics().await;
    assert_eq!(metrics.sum("outbound_http_errors_total", &[("error", "head-too-large")]), 1.0, "{}", metrics.text);
}

/// A client that does not wait is counted and logged, though nobody is answered.
#[tokio::test]
async fn a_client_that_leaves_is_recorded() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let shop = mesh.workload("shop").calls(WEB).set("access-log", "json").start().await;
    let mut io = tokio::net::TcpStream::connect(shop.to(WEB)).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut io, b"GET /hang HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
    eventually("the request has arrived", || async { (app.count() == 1).then_some(()) }).await;
    drop(io);
    eventually("the line of the access log", || async {
        let log = shop.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.find(|line| line["path"] == "/hang" && line["reason"] == "client-gone" && line["status"] == 499)
    })
    .await;
}

/// An answer of the workload that looks like an error is not the mesh's.
#[tokio::test]
async fn errors_of_the_workload_are_its_own() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    for status in [400, 403, 404, 429, 500, 502, 503, 504] {
        let answer =
            H1::connect(shop.to(WEB)).await.send(post_request("web", &format!("/status/{status}"), "x")).await.unwrap();
        assert_eq!((answer.status, answer.header("x-app"), answer.reason()), (status, "web", ""));
    }
}

/// The Gateway API asks for 500 where a backend does not exist.
#[tokio::test]
async fn a_route_to_a_service_that_does_not_exist_says_so() {
    let mesh = broken().await;
    let answer = H1::connect(mesh.shop.to(WEB)).await.send(post_request("web", "/missing", "x")).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (500, "invalid-policy"), "{answer:?}");
    assert!(answer.header("l5d-proxy-error").contains("no-such-service"), "{answer:?}");
    drop(mesh.mesh);
}
