//! What the size that we plan for costs: 10,000 pods, 2,000 services, 200 changes a second.
//! `cargo test --release -p gossamer-destination --test scale -- --ignored --nocapture`

#![allow(clippy::unwrap_used)]

use gossamer_api::kubernetes::{Key, Kind, Name, Object, parse_yaml};
use gossamer_api::policy::Target;
use gossamer_destination::index::{Cluster, Source};
use gossamer_destination::registry::{Change, Origin, Registry};
use std::time::Instant;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn object(text: &str) -> Object {
    parse_yaml(text).unwrap().remove(0).1
}

fn pod(template: &Object, n: usize, ip: usize) -> Object {
    let Object::Pod(pod) = template else { panic!() };
    let (mut pod, service) = (pod.clone(), n % 2000);
    pod.metadata.name = format!("s{service}-7d4b9c6f5-{n}");
    pod.metadata.namespace = format!("ns{}", service % 50);
    pod.metadata.labels.insert("app".into(), format!("s{service}"));
    pod.spec.service_account_name = format!("s{service}");
    pod.status.pod_ip = format!("10.{}.{}.{}", 1 + ip / 62_500, ip / 250 % 250, ip % 250 + 1);
    Object::Pod(pod)
}

#[test]
#[ignore = "a measurement"]
fn ten_thousand_pods() {
    let service = object(
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{name: http, port: 80, targetPort: 8080}]}\n",
    );
    let template = object(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {gossamer.io/control-plane-ns: gossamer, pod-template-hash: 7d4b9c6f5}, \
         ownerReferences: [{kind: ReplicaSet, name: s-7d4b9c6f5}]}\nspec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}\n\
         status: {phase: Running, podIP: 10.0.0.1}\n",
    );
    let registry = Registry::new(Cluster::default(), None);
    let (start, memory) = (Instant::now(), resident_kib());
    for n in 0..2000 {
        let Object::Service(mut service) = service.clone() else { panic!() };
        service.metadata.name = format!("s{n}");
        service.metadata.namespace = format!("ns{}", n % 50);
        service.spec.cluster_ip = format!("10.96.{}.{}", n / 250, n % 250 + 1);
        service.spec.selector = [("app".to_string(), format!("s{n}"))].into();
        registry.change(&Origin::Kubernetes, [Change::Apply(Object::Service(service))]);
    }
    for n in 0..10_000 {
        registry.change(&Origin::Kubernetes, [Change::Apply(pod(&template, n, n))]);
    }
    println!("filled in {:?}, {} MiB", start.elapsed(), (resident_kib() - memory) / 1024);

    // Every service watched by clients of one namespace, every pod by its own proxy; ten streams for each question.
    let (start, memory) = (Instant::now(), resident_kib());
    let mut streams = Vec::new();
    for n in 0..2000 {
        let name = Name::new(&format!("ns{}", n % 50), &format!("s{n}"));
        let source = Source { namespace: "ns1".into(), ..Source::default() };
        let addr = format!("10.96.{}.{}:80", n / 250, n % 250 + 1).parse().unwrap();
        for _ in 0..10 {
            let query = gossamer_destination::registry::Query::Endpoints(name.clone(), 80, None, Source::default());
            streams.push(registry.subscribe(query));
            let query = gossamer_destination::registry::Query::Outbound(Target::Addr(addr), source.clone());
            streams.push(registry.subscribe(query));
        }
    }
    for n in 0..10_000 {
        let name = Name::new(&format!("ns{}", n % 2000 % 50), &format!("s{}-7d4b9c6f5-{n}", n % 2000));
        streams.push(registry.subscribe(gossamer_destination::registry::Query::Server(name, 8080)));
    }
    println!(
        "{} streams of {} questions in {:?}, {} MiB",
        streams.len(),
        registry.watched(),
        start.elapsed(),
        (resident_kib() - memory) / 1024
    );

    let (start, changes) = (Instant::now(), 10_000);
    for n in 0..changes {
        registry.change(&Origin::Kubernetes, [Change::Apply(pod(&template, n, 20_000 + n))]);
    }
    let each = start.elapsed() / u32::try_from(changes).unwrap();
    println!("a pod that moves: {each:?}; 200 a second take {:.2} % of a core", each.as_secs_f64() * 200.0 * 100.0);

    // The worst service: a thousand endpoints, one changes.
    let name = Name::new("big", "big");
    let Object::Service(mut service) = service else { panic!() };
    (service.metadata.name, service.metadata.namespace) = ("big".into(), "big".into());
    service.spec.selector = [("app".to_string(), "big".to_string())].into();
    registry.change(&Origin::Kubernetes, [Change::Apply(Object::Service(service))]);
    let big = |n: usize, ip: usize| {
        let Object::Pod(mut pod) = pod(&template, n, ip) else { panic!() };
        pod.metadata.namespace = "big".into();
        pod.metadata.labels.insert("app".into(), "big".into());
        Change::Apply(Object::Pod(pod))
    };
    registry.change(&Origin::Kubernetes, (0..1000).map(|n| big(n, 40_000 + n)));
    let query = gossamer_destination::registry::Query::Endpoints(name.clone(), 80, None, Source::default());
    let _stream = registry.subscribe(query);
    let start = Instant::now();
    for n in 0..200 {
        registry.change(&Origin::Kubernetes, [big(n, 50_000 + n)]);
    }
    println!("one of a thousand endpoints of a service moves: {:?}", start.elapsed() / 200);
    let start = Instant::now();
    registry.change(&Origin::Kubernetes, (0..200).map(|n| big(n, 60_000 + n)));
    println!("two hundred of them in one batch: {:?}", start.elapsed());
    registry.change(&Origin::Kubernetes, [Change::Delete(Key { kind: Kind::Service, name })]);
}
