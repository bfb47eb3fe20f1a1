//! What the size that we plan for costs: 10,000 pods, 2,000 services, 500 nodes, 200 endpoints that change in a second.
//! Work and memory are bounded here; times are only printed, as `figure:` lines:
//! `cargo test --release -p gossamer-destination --test scale -- --nocapture`

#![allow(clippy::unwrap_used)]

use gossamer_api::kubernetes::{EndpointSlice, Name, Object, ObjectReference, SliceEndpoint, parse_yaml};
use gossamer_api::policy::Target;
use gossamer_api::process::stop::Stop;
use gossamer_api::process::{grpc, memory};
use gossamer_destination::index::{Cluster, Source};
use gossamer_destination::registry::{Change, Origin, Query, Registry};
use gossamer_destination::serve::{State, services};
use linkerd2_proxy_api::destination::GetDestination;
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tonic::transport::Channel;

const SERVICES: usize = 2000;
const PODS: usize = 10_000;
const NODES: usize = 500;
const SECONDS: usize = 5;

/// That of the control plane's image.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Anonymous memory of this process in MiB: what a program's size has no part in.
fn anonymous() -> f64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = smaps.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// A counter of the registry's metrics.
fn counted(registry: &Registry, name: &str) -> u64 {
    let (metrics, start) = (registry.metrics(), format!("destination_{name} "));
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

/// Of this thread, user and system.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}

fn object(text: &str) -> Object {
    parse_yaml(text).unwrap().remove(0).1
}

/// Objects as a cluster has them, made from one of each.
struct Templates {
    pod: Object,
    service: Object,
    slice: EndpointSlice,
}

fn templates() -> Templates {
    let Object::EndpointSlice(slice) = object(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv4\n\
         ports: [{name: http, port: 8080, protocol: TCP}]\n",
    ) else {
        panic!()
    };
    Templates {
        pod: object(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {gossamer.io/control-plane-ns: gossamer, \
             pod-template-hash: 7d4b9c6f5, app.kubernetes.io/part-of: shop, tier: backend}, annotations: \
             {gossamer.io/proxy-version: 0.1.0}, ownerReferences: [{kind: ReplicaSet, name: s-7d4b9c6f5}]}\n\
             spec:\n  containers:\n  - {name: c, ports: [{name: http, containerPort: 8080}], livenessProbe: {httpGet: \
             {path: /live, port: http}}, readinessProbe: {httpGet: {path: /ready, port: http}}}\n  - {name: gossamer-proxy, \
             ports: [{name: admin, containerPort: 4191}], readinessProbe: {httpGet: {path: /ready, port: 4191}}}\n\
             status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}\n",
        ),
        service: object(
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{name: http, port: 80, targetPort: 8080}]}\n",
        ),
        slice,
    }
}

fn names(service: usize) -> (String, String) {
    (format!("ns{}", service % 50), format!("s{service}"))
}

fn ip(n: usize) -> String {
    format!("10.{}.{}.{}", 1 + n / 62_500, n / 250 % 250, n % 250 + 1)
}

impl Templates {
    fn service(&self, n: usize) -> Change {
        let Object::Service(mut service) = self.service.clone() else { panic!() };
        (service.metadata.namespace, service.metadata.name) = names(n);
        service.spec.cluster_ip = format!("10.96.{}.{}", n / 250, n % 250 + 1);
        service.spec.selector = [("app".to_string(), format!("s{n}"))].into();
        Change::Apply(Object::Service(service))
    }

    fn pod(&self, n: usize, address: usize) -> Change {
        let Object::Pod(mut pod) = self.pod.clone() else { panic!() };
        let (namespace, app) = names(n % SERVICES);
        pod.metadata.name = pod_name(n);
        pod.metadata.labels.insert("app".into(), app.clone());
        (pod.metadata.namespace, pod.spec.service_account_name) = (namespace, app);
        pod.spec.node_name = format!("node-{}", n % NODES);
        pod.status.pod_ip = ip(address);
        pod.status.pod_ips[0].ip = ip(address);
        Change::Apply(Object::Pod(pod))
    }

    /// The slice of a service, with all of its pods but `without`.
    fn slice(&self, service: usize, without: Option<usize>) -> Change {
        let mut slice = self.slice.clone();
        let (namespace, name) = names(service);
        slice.metadata.labels.insert("kubernetes.io/service-name".into(), name.clone());
        (slice.metadata.namespace, slice.metadata.name) = (namespace.clone(), format!("{name}-x7k2p"));
        for n in (service..PODS).step_by(SERVICES) {
            let mut endpoint = SliceEndpoint {
                addresses: vec![ip(n)],
                node_name: Some(format!("node-{}", n % NODES)),
                zone: Some(format!("zone-{}", n % NODES % 3)),
                target_ref: Some(ObjectReference {
                    kind: "Pod".into(),
                    namespace: namespace.clone(),
                    name: pod_name(n),
                }),
                ..SliceEndpoint::default()
            };
            endpoint.conditions.ready = Some(without != Some(n));
            slice.endpoints.push(endpoint);
        }
        Change::Apply(Object::EndpointSlice(slice))
    }
}

fn pod_name(n: usize) -> String {
    format!("s{}-7d4b9c6f5-{n:05}", n % SERVICES)
}

fn filled(templates: &Templates) -> Registry {
    let registry = Registry::new(Cluster::default(), None);
    let change = |change| registry.change(&Origin::Kubernetes, [change]);
    for n in 0..NODES {
        let zone = n % 3;
        change(Change::Apply(object(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{n}, labels: {{topology.kubernetes.io/zone: zone-{zone}}}}}\n"
        ))));
    }
    (0..SERVICES).for_each(|n| change(templates.service(n)));
    (0..SERVICES).for_each(|n| change(templates.slice(n, None)));
    (0..PODS).for_each(|n| change(templates.pod(n, n)));
    registry
}

/// One after the other: memory is this process's.
#[test]
fn the_size_that_we_plan_for() {
    memory::without_huge_pages();
    ten_thousand_pods();
    from_a_change_to_the_stream();
}

fn ten_thousand_pods() {
    let templates = templates();
    let (start, empty) = (Instant::now(), anonymous());
    let registry = filled(&templates);
    let took = start.elapsed();
    let (all, index) = (anonymous(), anonymous() - empty);
    println!("figure: filled in {took:.1?}; anonymous memory: {all:.1} MiB, {index:.1} of it for this");
    // It was 33 when each of a pod's relations was a tree of its own, 17 when each held whole names.
    assert!(index < 13.0, "{index}");

    // Every service is asked for from all zones, every pod by its own proxy; ten streams for each question.
    let (start, before) = (Instant::now(), anonymous());
    let mut streams = Vec::new();
    for n in 0..SERVICES {
        let (namespace, name) = names(n);
        let name = Name::new(&namespace, &name);
        let addr = format!("10.96.{}.{}:80", n / 250, n % 250 + 1).parse().unwrap();
        for client in 0..10 {
            let zone = format!("zone-{}", client % 3);
            let source = Source { zone, ..Source::default() };
            streams.push(registry.subscribe(Query::Endpoints(name.clone(), 80, None, source)));
            let source = Source { namespace: "ns1".into(), ..Source::default() };
            streams.push(registry.subscribe(Query::Outbound(Target::Addr(addr), source)));
        }
    }
    for n in 0..PODS {
        let name = Name::new(&names(n % SERVICES).0, &pod_name(n));
        streams.push(registry.subscribe(Query::Server(name, 8080)));
    }
    let (took, answers) = (start.elapsed(), anonymous() - before);
    let (streams_held, questions) = (streams.len(), registry.watched());
    println!("figure: {streams_held} streams of {questions} questions in {took:.1?}; {answers:.1} MiB for these");
    // However many ask, a question is answered once.
    assert_eq!(questions, 4 * SERVICES + PODS);
    assert!(answers < 160.0, "{answers}");

    // What is repeated concerns nobody.
    let start = Instant::now();
    (0..PODS).for_each(|n| registry.change(&Origin::Kubernetes, [templates.pod(n, n)]));
    println!("figure: all pods listed again, unchanged: {:.0?}", start.elapsed());
    assert_eq!(counted(&registry, "answers_total"), 0);

    let (start, changes) = (Instant::now(), PODS);
    (0..changes).for_each(|n| registry.change(&Origin::Kubernetes, [templates.pod(n, 20_000 + n)]));
    let each = start.elapsed() / u32::try_from(changes).unwrap();
    let share = each.as_secs_f64() * 200.0 * 100.0;
    let (asked, told) = (counted(&registry, "answers_total"), counted(&registry, "updates_total"));
    println!(
        "figure: a pod that moves: {each:.0?}; 200 a second take {share:.2} % of a core; {:.1} answers worked out for \
         each, {:.1} told",
        asked as f64 / changes as f64,
        told as f64 / changes as f64
    );
    // Its service from three zones, that one's policy, and its own.
    assert!(asked <= 5 * changes as u64, "{asked}");
    // The slices name its old address: from each zone it is gone.
    assert!((3 * changes as u64..=asked).contains(&told), "{told}");

    // The worst service: a thousand endpoints, one changes.
    let name = Name::new("big", "big");
    let Change::Apply(Object::Service(mut service)) = templates.service(0) else { panic!() };
    (service.metadata.name, service.metadata.namespace) = ("big".into(), "big".into());
    service.spec.selector = [("app".to_string(), "big".to_string())].into();
    registry.change(&Origin::Kubernetes, [Change::Apply(Object::Service(service))]);
    let big = |n: usize, address: usize| {
        let Change::Apply(Object::Pod(mut pod)) = templates.pod(n, address) else { panic!() };
        pod.metadata.namespace = "big".into();
        pod.metadata.labels.insert("app".into(), "big".into());
        Change::Apply(Object::Pod(pod))
    };
    registry.change(&Origin::Kubernetes, (0..1000).map(|n| big(n, 40_000 + n)));
    let _stream = registry.subscribe(Query::Endpoints(name.clone(), 80, None, Source::default()));
    let start = Instant::now();
    (0..200).for_each(|n| registry.change(&Origin::Kubernetes, [big(n, 50_000 + n)]));
    println!("figure: one of a thousand endpoints of a service moves: {:.0?}", start.elapsed() / 200);
    let (start, before) = (Instant::now(), counted(&registry, "answers_total"));
    registry.change(&Origin::Kubernetes, (0..200).map(|n| big(n, 60_000 + n)));
    println!("figure: two hundred of them in one batch: {:.0?}", start.elapsed());
    assert_eq!(counted(&registry, "answers_total") - before, 1);

    drop(streams);
    assert_eq!(registry.watched(), 1);
}

/// From a change of a slice to the message in the hands of a client, over gRPC, while 200 of them change in a second.
fn from_a_change_to_the_stream() {
    let changed = Arc::new(Mutex::new(vec![None::<Instant>; SERVICES]));
    let (address_to, address) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let marks = changed.clone();
    // The service, in a thread of its own, whose CPU time counts.
    let server = std::thread::spawn(move || {
        let templates = templates();
        let registry = filled(&templates);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let (listener, stop) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Stop::new());
            address_to.send(listener.local_addr().unwrap()).unwrap();
            let state = State { registry: registry.clone(), admit: None, stop: stop.clone() };
            tokio::spawn(grpc::serve(services(state), listener, None, stop));
            while may_go.try_recv().is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let (start, before) = (Instant::now(), cpu());
            let mut ticks = tokio::time::interval(Duration::from_millis(5));
            for n in 0..200 * SECONDS {
                ticks.tick().await;
                let service = n * 7 % SERVICES;
                let without = (n / SERVICES).is_multiple_of(2).then_some(service);
                let change = templates.slice(service, without);
                marks.lock().unwrap()[service] = Some(Instant::now());
                registry.change(&Origin::Kubernetes, [change]);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            let used = cpu() - before;
            println!(
                "figure: {:.0} changes a second: {:.2} % of a core",
                (200 * SECONDS) as f64 / start.elapsed().as_secs_f64(),
                used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0
            );
        });
    });
    let address = address.recv().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut times: Vec<Duration> = runtime.block_on(async {
        let times = Arc::new(Mutex::new(Vec::new()));
        let mut channels: Vec<Channel> = Vec::new();
        for _ in 0..8 {
            channels.push(Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap());
        }
        for n in 0..SERVICES {
            let (namespace, name) = names(n);
            let request = GetDestination {
                path: format!("{name}.{namespace}.svc.cluster.local:80"),
                context_token: r#"{"ns":"ns1","pod":"client"}"#.into(),
                ..GetDestination::default()
            };
            let mut client = DestinationClient::new(channels[n % channels.len()].clone());
            let mut stream = client.get(request).await.unwrap().into_inner();
            stream.message().await.unwrap();
            let (changed, times) = (changed.clone(), times.clone());
            tokio::spawn(async move {
                while let Ok(Some(_)) = stream.message().await {
                    let at = changed.lock().unwrap()[n].take();
                    times.lock().unwrap().extend(at.map(|at| at.elapsed()));
                }
            });
        }
        go.send(()).unwrap();
        let all = async {
            while times.lock().unwrap().len() < 200 * SECONDS {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // What is missing then is counted below.
        let _ = tokio::time::timeout(Duration::from_secs(60), all).await;
        times.lock().unwrap().clone()
    });
    server.join().unwrap();
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "figure: {} of {} changes came; from change to client: p50 {:?}, p99 {:?}, most {:?}",
        times.len(),
        200 * SECONDS,
        at(0.5),
        at(0.99),
        at(1.0)
    );
    assert_eq!(times.len(), 200 * SECONDS, "none was lost");
    // Hundreds of times what it takes; ten times more for the last hundredth, which is late where the machine stands still.
    assert!(at(0.5) < Duration::from_millis(500), "{:?}", at(0.5));
    assert!(at(0.99) < Duration::from_secs(5), "{:?}", at(0.99));
}
