//! What Kubernetes writes and people do not: slices with conditions, two address families, host names, hints.

use super::*;

fn slice(name: &str, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: demo, labels: \
         {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{name: '', port: 8080}}]\nendpoints:\n{endpoints}"
    )
}

fn web(ip: &str) -> String {
    service("web", ip, "{port: 80, targetPort: 8080}", "")
}

fn addrs(index: &Index) -> Vec<String> {
    addrs_of(index, None, &Source::default())
}

fn addrs_of(index: &Index, instance: Option<&str>, source: &Source) -> Vec<String> {
    let set = index.endpoints(&Name::new("demo", "web"), 80, instance, source);
    assert!(set.exists);
    set.endpoints.keys().map(|addr| addr.to_string()).collect()
}

#[test]
fn an_ending_endpoint_serves_only_for_want_of_another() {
    let ending = "- {addresses: [10.1.0.1], conditions: {ready: false, serving: true, terminating: true}}\n";
    let gone = "- {addresses: [10.1.0.2], conditions: {ready: false, serving: false, terminating: true}}\n";
    let unready = "- {addresses: [10.1.0.4], conditions: {ready: false, serving: false}}\n";
    let ready = "- {addresses: [10.1.0.3], conditions: {ready: true}}\n";
    let mut index = index(&(web("10.96.0.1") + &slice("a", &[ending, gone, unready, ready].concat())));
    assert_eq!(addrs(&index), ["10.1.0.3:8080"]);
    add(&mut index, &slice("a", &[ending, gone, unready].concat()));
    assert_eq!(addrs(&index), ["10.1.0.1:8080"]);
    add(&mut index, &slice("a", &[gone, unready].concat()));
    assert_eq!(addrs(&index), Vec::<String>::new());
}

/// Slices and pods come by different watches. A pod that we do not know yet may be meshed: no plain text to it.
#[test]
fn an_endpoint_is_used_once_its_pod_is_known() {
    let endpoint = "- {addresses: [10.1.0.5], targetRef: {kind: Pod, name: web-5, namespace: demo}}\n";
    let mut index = index(&(web("10.96.0.1") + &slice("a", endpoint)));
    assert_eq!(addrs(&index), Vec::<String>::new());
    // The one that had this name before, with another address.
    add(&mut index, &pod("web-5", "web", "10.1.0.4", false));
    assert_eq!(addrs(&index), Vec::<String>::new());
    let changed = add(&mut index, &pod("web-5", "web", "10.1.0.5", true));
    assert!(changed.contains(&Subject::Endpoints(Name::new("demo", "web"))));
    let set = index.endpoints(&Name::new("demo", "web"), 80, None, &Source::default());
    assert!(set.endpoints.values().all(|endpoint| endpoint.tls.is_some()));
    assert_eq!(set.endpoints.len(), 1);
}

#[test]
fn a_service_without_selector_has_the_endpoints_that_are_written_down() {
    let text = web("10.96.0.1").replace("selector: {app: web}", "selector: {}")
        + &slice("by-hand", "- {addresses: [192.0.2.1]}\n- {addresses: [not-an-ip]}\n");
    let index = index(&text);
    assert_eq!(addrs(&index), ["192.0.2.1:8080"]);
    let key = Key { kind: Kind::EndpointSlice, name: Name::new("demo", "by-hand") };
    assert_eq!(index.problems(&key), ["endpoints without an IP address are left out"]);
}

#[test]
fn a_pod_with_two_families_is_one_endpoint() {
    let both = |ip: &str| {
        let pod = "targetRef: {kind: Pod, name: web-0}";
        let pods = pod_with_both();
        let v4 = slice("v4", &format!("- {{addresses: [10.1.0.1], {pod}}}\n"));
        let v6 = slice("v6", &format!("- {{addresses: ['fd00::1'], {pod}}}\n")).replace("IPv4", "IPv6");
        index(&(web(ip) + &pods + &v4 + &v6))
    };
    assert_eq!(addrs(&both("10.96.0.1")), ["10.1.0.1:8080"]);
    assert_eq!(addrs(&both("'fd01::1'")), ["[fd00::1]:8080"]);
    // Both of its addresses are the pod's.
    for addr in ["10.1.0.1:8080", "[fd00::1]:8080"] {
        assert_eq!(targets(&http(&ask(&both("10.96.0.1"), addr)).routes[0].rules[0]), [addr]);
    }
}

fn pod_with_both() -> String {
    pod("web-0", "web", "10.1.0.1", true)
        .replace("podIP: 10.1.0.1", "podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]")
}

#[test]
fn replicas_of_a_headless_service_have_names() {
    let text = web("None")
        + &pod("web-0", "web", "10.1.0.1", true)
        + &pod("web-1", "web", "10.1.0.2", true)
        + &slice(
            "a",
            "- {addresses: [10.1.0.1], hostname: zero, targetRef: {kind: Pod, name: web-0}}\n\
             - {addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-1}}\n",
        );
    let index = index(&text);
    assert_eq!(addrs(&index).len(), 2);
    for (instance, addr) in [("zero", "10.1.0.1:8080"), ("web-0", "10.1.0.1:8080"), ("web-1", "10.1.0.2:8080")] {
        assert_eq!(addrs_of(&index, Some(instance), &Source::default()), [addr], "{instance}");
        let authority = Target::Authority(format!("{instance}.web.demo.svc.cluster.local:80"));
        let asked = index.resolve(&authority, "demo").unwrap();
        let policy = index.outbound(&asked, &Source::default()).unwrap();
        assert_eq!(targets(&http(&policy).routes[0].rules[0]), [addr], "{instance}");
        assert!(index.address_of(&format!("{instance}.web.demo"), "").is_some(), "{instance}");
    }
    let nobody = index.resolve(&Target::Authority("web-9.web.demo:80".into()), "demo").unwrap();
    assert_eq!(index.outbound(&nobody, &Source::default()), None);
}

/// Clients of a headless service connect to its pods' addresses.
#[test]
fn a_pod_speaks_what_its_services_declare() {
    let declared = |port: &str| {
        let text = service("web", "None", port, "") + &pod("web-0", "web", "10.1.0.1", true);
        format!("{:?}", ask(&index(&text), "10.1.0.1:8080").protocol)
    };
    assert!(declared("{port: 80, targetPort: http, appProtocol: grpc}").starts_with("Grpc"));
    assert!(declared("{port: 80, targetPort: http, appProtocol: http}").starts_with("Http1"));
    assert!(declared("{port: 80, targetPort: http, name: tcp-x}").starts_with("Opaque"));
    let both = "{port: 80, targetPort: http, appProtocol: grpc, name: a}, {port: 81, targetPort: http, name: b}";
    assert!(declared(both).starts_with("Detect"));
}

#[test]
fn an_external_name_is_no_service_of_the_mesh() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: demo}\n\
                spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}\n";
    let index = index(text);
    for name in ["web:80", "web.demo:80", "web.demo.svc.cluster.local:80"] {
        assert_eq!(index.resolve(&Target::Authority(name.into()), "demo"), None, "{name}");
    }
}

#[test]
fn local_traffic_stays_on_its_node() {
    let local = web("10.96.0.1").replace("ports:", "internalTrafficPolicy: Local, ports:");
    let on = |node: &str| format!("- {{addresses: [10.1.0.{node}], nodeName: n{node}}}\n");
    let index = index(&(local + &slice("a", &(on("1") + &on("2")))));
    let from = |node: &str| addrs_of(&index, None, &Source { node: node.into(), ..Source::default() });
    assert_eq!(from("n1"), ["10.1.0.1:8080"]);
    assert_eq!(from("n3"), Vec::<String>::new(), "nothing elsewhere either");
}

#[test]
fn what_does_not_matter_changes_nothing() {
    let mut index = demo();
    let same = pod("web-0", "web", "10.1.0.1", true);
    let heartbeat = same.replace("podIP:", "conditions: [{type: Ready, status: 'True'}], podIP:");
    assert_eq!(add(&mut index, &heartbeat), BTreeSet::new());
    assert_ne!(add(&mut index, &same.replace("phase: Running", "phase: Failed")), BTreeSet::new());
}

#[test]
fn health_checks_of_all_kinds_get_in() {
    let mut index = demo();
    let hooked = pod("web-0", "web", "10.1.0.1", true).replace(
        "    livenessProbe:",
        "    lifecycle: {preStop: {httpGet: {path: /bye, port: 8080}}}\n    readinessProbe: {grpc: {port: 8080}}\n    \
         livenessProbe:",
    );
    add(&mut index, &hooked);
    add(&mut index, &policy("nobody", "from: []"));
    let server = server(&index);
    let probe = |method, path| allowed(&server, None, "10.0.0.1", method, path);
    assert!(probe("GET", "/healthz").is_some());
    assert!(probe("GET", "/bye").is_some());
    assert!(probe("POST", "/grpc.health.v1.Health/Check").is_some());
    assert!(probe("POST", "/healthz").is_none());
    assert!(probe("GET", "/").is_none());
}
