//! What the mesh costs a cluster: printed, and bounded by what was promised.

use gossamer_tests::cluster::{Cluster, Space, eventually, ok, server, text};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

pub(crate) fn what_the_mesh_costs(cluster: &Cluster) {
    let (meshed, plain) = (cluster.namespace("cost", true), cluster.namespace("costplain", false));
    // Admission: a pod that is made only in the API server's mind.
    let dry = |space: &Space<'_>| {
        let pod = space.json(&["run", "x", "--image=mesh-test/probe:1", "--dry-run=server"]);
        pod.to_string().len()
    };
    let (with, without) = (dry(&meshed), dry(&plain));
    println!("figure: pod object: {without} -> {with} bytes");
    assert!(with - without <= 2500, "{without} -> {with}");
    admission(cluster);

    let started = |space: &Space<'_>, name: &str| {
        let start = Instant::now();
        space.client(name);
        space.ready(&[name]);
        start.elapsed().as_secs_f64()
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for name in ["a", "b", "c"] {
        with.push(started(&meshed, name));
        without.push(started(&plain, name));
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[1]
    };
    let (with, without) = (median(&mut with), median(&mut without));
    println!("figure: a pod's start: {:.1} s more ({without:.1} -> {with:.1})", with - without);
    // The kubelet goes round once a second: a third round would be seen.
    assert!(with - without < 2.5, "{without:.1} -> {with:.1}");

    meshed.apply(&server("web", 1, ""));
    meshed.ready(&[]);
    meshed.load("a", "new", ("web", "/"), 50.0, 1.0, &[]).assert_none_failed();
    let metrics = meshed.metrics("a");
    let lines = metrics.text.lines().count();
    println!("figure: /metrics of a client with one destination: {lines} lines, {} bytes", metrics.text.len());
    assert!(lines <= 150, "{lines}");

    memory(&meshed);
}

/// What the injector adds to the making of a pod: the same pod, made only in the API server's mind, in a namespace that has
/// the mesh and in one that has not, by turns over one connection.
fn admission(cluster: &Cluster) {
    const ROUNDS: usize = 300;
    const UNCOUNTED: usize = 50;
    let mut proxy = cluster.spawn("kubectl", &["proxy", "--port=0"]);
    let mut line = String::new();
    BufReader::new(proxy.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut io = BufReader::new(TcpStream::connect(line.trim().rsplit(' ').next().unwrap()).unwrap());
    io.get_ref().set_nodelay(true).unwrap();
    let mut make = |namespace: &str| {
        let pod = format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"x","namespace":"{namespace}"}},"spec":{{"containers":[{{"name":"main","image":"x:1"}}]}}}}"#
        );
        let head = format!(
            "POST /api/v1/namespaces/{namespace}/pods?dryRun=All HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            pod.len()
        );
        let start = Instant::now();
        io.get_mut().write_all((head + &pod).as_bytes()).unwrap();
        let (mut line, mut length, mut chunked) = (String::new(), 0, false);
        io.read_line(&mut line).unwrap();
        assert!(line.contains(" 201 "), "{line}");
        loop {
            line.clear();
            io.read_line(&mut line).unwrap();
            match line.trim().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(("transfer-encoding", _)) => chunked = true,
                Some(_) => {}
                None => break,
            }
        }
        while chunked {
            line.clear();
            io.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            // And the end of the line.
            io.read_exact(&mut vec![0; size + 2]).unwrap();
            chunked = size > 0;
        }
        io.read_exact(&mut vec![0; length]).unwrap();
        start.elapsed().as_secs_f64() * 1e3
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + UNCOUNTED {
        let times = (make("cost"), make("costplain"));
        if round >= UNCOUNTED {
            with.push(times.0);
            without.push(times.1);
        }
    }
    proxy.kill().unwrap();
    proxy.wait().unwrap();
    let quantiles = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        [50, 90, 99].map(|percent| times[times.len() * percent / 100])
    };
    let (with, without) = (quantiles(&mut with), quantiles(&mut without));
    let text = |of: [f64; 3]| format!("{:.1}/{:.1}/{:.1}", of[0], of[1], of[2]);
    println!(
        "figure: admission of a pod: {:.1} ms more ({} ms with the mesh, {} without: median/90 %/99 % of {ROUNDS})",
        with[0] - without[0],
        text(with),
        text(without)
    );
    // Twice what was promised: the machine may be busy.
    assert!(with[0] - without[0] < 10.0, "{with:?} {without:?}");
}

/// Resident, anonymous and proportional memory by program; bounded for images as they are shipped.
fn memory(space: &Space<'_>) {
    space.look();
    let shipped = std::env::var_os("MESH_K8S_RELEASE").is_some();
    for (program, bounds) in [("gossamer-control", CONTROL_MIB), ("gossamer-proxy", PROXY_MIB)] {
        let output = ok(space.probe("look", &["memory", program]));
        let said = text(&output.stdout);
        println!("figure: memory of {program}: {}", said.trim().replace('\n', "; "));
        // `identity RSS 9.1 anonymous 2.2 PSS 5.0 MiB`
        let of = |line: &str| -> Vec<f64> { line.split(' ').filter_map(|word| word.parse().ok()).collect() };
        let all: Vec<Vec<f64>> = said.lines().map(of).filter(|of| of.len() == 3).collect();
        assert!(!all.is_empty(), "{said}");
        let sum: Vec<f64> = (0..3).map(|n| all.iter().map(|of| of[n]).sum()).collect();
        let shown = match program {
            "gossamer-control" => sum,
            _ => sum.iter().map(|sum| sum / all.len() as f64).collect(),
        };
        println!(
            "figure: {program}: RSS {:.1} anonymous {:.1} PSS {:.1} MiB, {} of them",
            shown[0],
            shown[1],
            shown[2],
            all.len()
        );
        assert!(!shipped || shown.iter().zip(bounds).all(|(is, most)| *is <= most), "{shown:?} {bounds:?}");
    }
}

/// All three together.
const CONTROL_MIB: [f64; 3] = [45.0, 15.0, 30.0];
/// Each, on average: some of them have just started.
const PROXY_MIB: [f64; 3] = [10.0, 3.0, 6.0];

/// New clients, each of whose first connection is measured, and one without a proxy.
pub(crate) fn a_server_that_speaks_first_is_heard_at_once(cluster: &Cluster) {
    let (space, outside) = (cluster.namespace("first", true), cluster.namespace("firstplain", false));
    space.apply(
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: greeter, namespace: NS}\n\
         spec: {selector: {app: greeter}, ports: [{port: 7000}]}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {name: greeter, namespace: NS, labels: {app: greeter}}\n\
         spec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {name: main, image: 'mesh-test/probe:1', args: [greeter, '7000']}\n",
    );
    let shops = ["shop", "kiosk", "store"];
    shops.iter().for_each(|shop| space.client(shop));
    outside.client("stranger");
    space.ready(&["greeter", "shop", "kiosk", "store"]);
    outside.ready(&["stranger"]);
    let greet = |space: &Space<'_>, pod: &str| -> f64 {
        let took = eventually("a greeting", || {
            let output = space.probe(pod, &["greet", "greeter.first", "7000"]);
            output.status.success().then(|| text(&output.stdout).trim().parse::<f64>().unwrap())
        });
        took * 1e3
    };
    let mut first = shops.map(|shop| greet(&space, shop));
    first.sort_by(f64::total_cmp);
    let again = greet(&space, "shop");
    let (plain, plain_again) = (greet(&outside, "stranger"), greet(&outside, "stranger"));
    println!(
        "figure: a server that speaks first: first byte after {first:.0?} ms the first time, then {again:.0} ms; from \
         outside of the mesh {plain:.0}, then {plain_again:.0} ms"
    );
    // Twice what was promised: the machine may be busy.
    assert!([again, plain_again].iter().all(|ms| *ms < 100.0), "{again} {plain_again}");
    assert!(first[1] < 250.0 && plain < 250.0, "{first:?} {plain}");
}
