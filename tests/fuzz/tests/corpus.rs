//! Every target on every toolchain: valid inputs, and thousands that are slightly wrong. `MESH_FUZZ_SECONDS` makes it longer
//! than a second for each, and another `MESH_FUZZ_SEED` makes it other inputs.

#![allow(clippy::unwrap_used)]

use fastrand::Rng;
use gossamer_api::wire::mesh;
use gossamer_fuzz as fuzz;
use gossamer_proxy::balance::transport::{Header, Session};
use linkerd2_proxy_api::{destination, inbound, meta, outbound};
use prost::Message;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// The longest input; longer ones find the same faults more slowly.
const BYTES: usize = 16 * 1024;

/// Gives the seeds to a target, then what becomes of them, for as long as it may.
fn drive(target: fn(&[u8]), seeds: &[Vec<u8>]) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let end = Instant::now() + Duration::from_secs(number("MESH_FUZZ_SECONDS").unwrap_or(1));
    let seed = number("MESH_FUZZ_SEED").unwrap_or(1);
    let mut random = Rng::with_seed(seed);
    seeds.iter().for_each(|input| try_one(target, input));
    let mut count = 0;
    while Instant::now() < end {
        let mut input = random.choice(seeds).unwrap().clone();
        for _ in 0..random.usize(1..=6) {
            mutate(&mut input, seeds, &mut random);
        }
        input.truncate(BYTES);
        try_one(target, &input);
        count += 1;
    }
    println!("{count} inputs");
    assert!(count > 20, "only {count} inputs: each takes far too long");
}

fn try_one(target: fn(&[u8]), input: &[u8]) {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(outcome.is_ok(), "input: {}", input.escape_ascii());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?} for {}", start.elapsed(), input.escape_ascii());
}

/// One small change: a bit, a byte, a number, a piece left out, doubled, moved or taken from elsewhere.
fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Rng) {
    const ODD: &[u8] = &[0, 1, 9, 10, 13, 32, 44, 48, 58, 0x7f, 0x80, 0xff];
    let at = random.usize(0..=input.len());
    let to = (at + random.usize(0..64)).min(input.len());
    match random.u8(0..9) {
        0 if at < input.len() => input[at] ^= 1 << random.u8(0..8),
        1 if at < input.len() => input[at] = random.u8(..),
        2 => input.insert(at, *random.choice(ODD).unwrap()),
        3 => drop(input.drain(at..to)),
        4 => {
            let piece = input[at..to].to_vec();
            input.splice(at..at, piece);
        }
        5 => {
            let other = random.choice(seeds).unwrap();
            let from = random.usize(0..=other.len());
            let piece = other[from..(from + random.usize(0..256)).min(other.len())].to_vec();
            input.splice(at..to, piece);
        }
        6 => input.truncate(at),
        7 => {
            let number = *random.choice(&[0u32, 1, 0x3fff, 0x4000, 0xffff, 0x7fff_ffff, u32::MAX]).unwrap();
            let bytes = number.to_be_bytes();
            let bytes = &bytes[random.usize(0..4)..];
            let to = (at + bytes.len()).min(input.len());
            input.splice(at..to, bytes.iter().copied());
        }
        _ => {
            let piece = input[at..to].repeat(random.usize(1..40));
            input.splice(at..at, piece);
        }
    }
}

/// The first byte says how the rest is cut into reads.
fn cut(text: &str) -> Vec<u8> {
    [&[3], text.as_bytes()].concat()
}

#[test]
fn http1() {
    let seeds = [
        "GET / HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET /a?b=c HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\nhello",
        "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nx: y\r\n\r\n",
        "GET http://web:80/x HTTP/1.1\r\nhost: other\r\nte: trailers\r\nupgrade: websocket\r\nconnection: upgrade, te\r\n\r\n",
        "CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n",
        "HTTP/1.0 404 Not Found\r\n\r\nuntil the end",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x01\x02",
    ];
    drive(fuzz::h1, &seeds.map(cut));
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn http2() {
    // RFC 9113 section 6, RFC 7541 appendix C.
    let head = b"\x82\x86\x84\x41\x0fwww.example.com";
    let huffman = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    let answer = b"\x88\x0f\x0d\x0213";
    let seeds = [
        frame(1, 5, 1, head),
        [frame(1, 4, 1, huffman), frame(0, 1, 1, b"body")].concat(),
        [frame(1, 1, 1, &head[..4]), frame(9, 0, 1, &head[4..9]), frame(9, 4, 1, &head[9..])].concat(),
        [frame(4, 0, 0, b"\0\x03\0\0\0\x64\0\x04\0\0\xff\xff\0\x05\0\0\x40\0"), frame(4, 1, 0, b"")].concat(),
        [frame(1, 5, 1, head), frame(3, 0, 1, &8u32.to_be_bytes()), frame(1, 5, 3, head)].concat(),
        [frame(6, 0, 0, b"01234567"), frame(8, 0, 0, &[0, 0, 1, 0]), frame(2, 0, 1, &[0, 0, 0, 0, 16])].concat(),
        [
            frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
            frame(1, 0x2c, 1, &[b"\x02\0\0\0\0\x10", &head[..], b"\0\0"].concat()),
        ]
        .concat(),
        [frame(1, 4, 1, answer), frame(0, 8, 1, b"\x02okxx"), frame(1, 5, 1, b"\x40\x01x\x01y")].concat(),
        [frame(1, 4, 1, b"\x08\x03100"), frame(1, 5, 1, answer), frame(0, 1, 3, b"13")].concat(),
        frame(1, 4, 1, b"\x3f\xe1\x1f\x20\x82\x40\x0acustom-key\x0dcustom-header\xbe"),
    ];
    drive(fuzz::h2, &seeds.map(|seed| [&[20][..], &seed].concat()));
}

#[test]
fn first_bytes() {
    let mut seeds: Vec<_> =
        ["GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\r\nPOST /x HTTP/1.0\r\n", "EHLO x\r\n"]
            .map(|text| text.as_bytes().to_vec())
            .into();
    for (name, protocols) in [("web.example", 1), ("a.b.c.serviceaccount.identity.gossamer.cluster.local", 300)] {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        config.alpn_protocols = (0..protocols).map(|n| format!("p{n}").into_bytes()).collect();
        let mut client = rustls::ClientConnection::new(config.into(), name.try_into().unwrap()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        // The same in records of 50 bytes.
        let records = hello[5..].chunks(50).map(|part| [b"\x16\x03\x01\0", &[part.len() as u8][..], part].concat());
        seeds.push(records.collect::<Vec<_>>().concat());
        seeds.push(hello);
    }
    drive(fuzz::hello, &seeds);
}

#[test]
fn transport_header() {
    let header =
        |port, name: Option<&str>, session| Header { port, name: name.map(Into::into), session }.encode().to_vec();
    let mut follows = header(65_535, None, Some(Session::Http1));
    follows.extend(b"GET / HTTP/1.1\r\n\r\n");
    let seeds = [header(8080, None, None), header(1, Some("web.demo.svc"), Some(Session::Http2)), follows];
    drive(fuzz::transport_header, &seeds);
}

#[test]
fn certificate_requests() {
    let request = |names: &[&str], algorithm| {
        let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        let mut request = rcgen::CertificateParams::new(names).unwrap();
        request.distinguished_name = rcgen::DistinguishedName::new();
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        request.serialize_request(&key).unwrap().der().to_vec()
    };
    let seeds = [
        request(&[NAME], &rcgen::PKCS_ECDSA_P256_SHA256),
        request(&[], &rcgen::PKCS_ED25519),
        request(&[NAME, "other.example"], &rcgen::PKCS_ECDSA_P384_SHA384),
    ];
    drive(fuzz::csr, &seeds);
}

#[test]
fn objects() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/examples");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let seeds: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "yaml")).collect();
    let mut seeds: Vec<_> = seeds.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(seeds.len() > 3, "{folder}");
    seeds.push(br#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}]}"#.into());
    seeds.push(b"a: &x [1, 2]\nb: *x\nc: !!str 1\n---\n? k\n: |\n  text\n".into());
    drive(fuzz::objects, &seeds);
}

#[test]
fn messages_of_the_control_plane() {
    let metadata = || Some(meta::Metadata { kind: Some(meta::metadata::Kind::Default("web".into())) });
    let route = outbound::HttpRoute {
        metadata: metadata(),
        hosts: Vec::new(),
        rules: vec![outbound::http_route::Rule { backends: Some(Default::default()), ..Default::default() }],
    };
    let http1 = outbound::proxy_protocol::Http1 { routes: vec![route], failure_accrual: None };
    let kind = outbound::proxy_protocol::Kind::Http1(http1);
    let policy =
        outbound::OutboundPolicy { protocol: Some(outbound::ProxyProtocol { kind: Some(kind) }), metadata: metadata() };
    let server = inbound::Server {
        authorizations: vec![inbound::Authz { metadata: metadata(), ..Default::default() }],
        ..Default::default()
    };
    let added = destination::WeightedAddrSet {
        addrs: vec![destination::WeightedAddr { weight: 1, ..Default::default() }],
        ..Default::default()
    };
    let update = destination::Update { update: Some(destination::update::Update::Add(added)) };
    let target = outbound::traffic_spec::Target::Authority("web.demo.svc.cluster.local:80".into());
    let asked = outbound::TrafficSpec { source_workload: r#"{"ns":"demo"}"#.into(), target: Some(target) };
    let port = inbound::PortSpec { workload: r#"{"ns":"demo","pod":"web-1"}"#.into(), port: 8080 };
    let target = "web.demo.svc.cluster.local:80".into();
    let watch = mesh::WatchExtensions { source_workload: "demo:web-1".into(), target };
    let header = mesh::Header { name: "x-a".into(), value: b"1".into() };
    let edit = mesh::HeaderEdit { set: vec![header], add: Vec::new(), remove: vec!["x-b".into()] };
    let delay = mesh::Delay { microseconds: 7, share: Some(mesh::Share { numerator: 1, denominator: 2 }) };
    let kinds = [mesh::extension::Kind::ResponseHeaders(edit), mesh::extension::Kind::Delay(delay)];
    let told = mesh::ExtensionSet { extensions: kinds.map(|kind| mesh::Extension { id: 7, kind: Some(kind) }).into() };
    let seeds = [
        [vec![0], policy.encode_to_vec()].concat(),
        [vec![1], server.encode_to_vec()].concat(),
        [vec![2], update.encode_to_vec()].concat(),
        [vec![3], asked.encode_to_vec()].concat(),
        [vec![4], port.encode_to_vec()].concat(),
        [vec![5], watch.encode_to_vec()].concat(),
        [vec![6], told.encode_to_vec()].concat(),
        [vec![7], NAME.into()].concat(),
        [vec![7], b"spiffe://cluster.local/ns/demo/sa/web".into()].concat(),
        [vec![7], br#"{"ns":"demo","pod":"web-1","nodeName":"n"}"#.into()].concat(),
        [vec![7], format!("{NAME} {}\n# more\n", "a".repeat(40)).into()].concat(),
        [vec![7], b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".into()].concat(),
    ];
    drive(fuzz::policy, &seeds);
}

#[test]
fn headers_of_the_mesh() {
    let seeds = [
        "l5d-orig-proto: HTTP/1.0; absolute-form\nl5d-client-id: forged\nconnection: close, l5d-client-id, x",
        "l5d-retry-http: 5xx,gateway-error,500-504\nl5d-retry-grpc: unavailable\nl5d-retry-limit: 3\nl5d-retry-timeout: 1m",
        "l5d-timeout: 10ms\nl5d-request-timeout: 3s\nl5d-response-timeout: 0\nupgrade: websocket\nconnection: upgrade",
        "retry-after: 7\ngrpc-retry-pushback-ms: 100\nl5d-proxy-connection: close\nte: trailers",
    ];
    drive(fuzz::mesh_headers, &seeds.map(|seed| seed.as_bytes().to_vec()));
}

const NAME: &str = "web.demo.serviceaccount.identity.gossamer.cluster.local";
