//! Turns what proxies counted in a window into rows by deployment, pod, namespace or service. Pure.
//!
//! A server is seen from inside, by its own proxy; a mere client by what it sends. Where a command asks about a pair
//! (`--from`, `--to`) or a service, the clients' proxies say it: only they know whom they addressed.

use crate::place::Workload;
use crate::resource::{self, Resource};
use crate::scrape::{Golden, Sample, difference};
use crate::view::Row;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// A proxy's scrape, and when it was made.
pub type Scrape = Option<(Instant, Vec<Sample>)>;

/// The same, or why there is none; `None` for who was not asked.
pub type Answer = Option<Result<(Instant, Vec<Sample>), String>>;

/// What one proxy counted.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Since the window began.
    during: Vec<Sample>,
    /// True when its inbound side was ever used.
    serves: bool,
    window: Duration,
}

impl Counted {
    /// Between two scrapes of a proxy; without a first one since its start.
    pub fn between(before: Option<&Scrape>, after: Scrape) -> Option<Counted> {
        let (end, after) = after?;
        let serves = golden(&after, |sample| sample.label("direction") == "inbound").is_used();
        let (during, window) = match before {
            // It did not answer then; what it has counted since is not known.
            Some(None) => (difference(&after, &after), Duration::ZERO),
            Some(Some((start, before))) => (difference(before, &after), end - *start),
            None => {
                let window = age(&after);
                (after, window)
            }
        };
        Some(Counted { during, serves, window })
    }
}

/// How long a proxy has been running.
fn age(samples: &[Sample]) -> Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let start = samples.iter().find(|s| s.name == "process_start_time_seconds").map_or(now, |s| s.value);
    Duration::from_secs_f64((now - start).max(0.0))
}

fn golden(samples: &[Sample], wanted: impl Fn(&Sample) -> bool) -> Golden {
    let mut golden = Golden::default();
    golden.add(samples, wanted);
    golden
}

/// What a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A Deployment, a StatefulSet...; a service on this machine.
    Owner,
    /// A pod, or a replica.
    Pod,
    /// A namespace.
    Namespace,
}

/// Namespace, kind, name.
type Key = (String, String, String);

fn key(workload: &Workload, by: By) -> Key {
    let (namespace, owner) = (workload.namespace.clone(), &workload.owner);
    match by {
        By::Owner => (namespace, owner.kind.clone(), owner.name.clone()),
        By::Pod if owner.kind.is_empty() => (namespace, String::new(), workload.pod.clone()),
        By::Pod => (namespace, "pod".into(), workload.pod.clone()),
        By::Namespace => (String::new(), "namespace".into(), namespace),
    }
}

/// A row under construction: its proxies' windows are averaged.
#[derive(Default)]
struct Sum {
    meshed: usize,
    replicas: usize,
    golden: Golden,
    windows: Vec<Duration>,
}

impl Sum {
    fn add(&mut self, counted: &Counted, wanted: impl Fn(&Sample) -> bool) {
        self.golden.add(&counted.during, wanted);
        if !counted.window.is_zero() {
            self.windows.push(counted.window);
        }
    }

    fn row(self, (namespace, kind, name): Key) -> Row {
        let window = self.windows.iter().sum::<Duration>() / self.windows.len().max(1) as u32;
        let shown = if kind.is_empty() { String::new() } else { format!("{}/{name}", resource::short(&kind)) };
        Row { namespace, kind, name, shown, meshed: self.meshed, replicas: self.replicas, golden: self.golden, window }
    }
}

fn rows(sums: BTreeMap<Key, Sum>) -> Vec<Row> {
    sums.into_iter().map(|(key, sum)| sum.row(key)).collect()
}

/// Each workload as it is: from inside if it serves, else by what it sends; with `to`, what it sends there.
pub fn of_workloads(workloads: &[Workload], counted: &[Option<Counted>], by: By, to: Option<&Target>) -> Vec<Row> {
    let mut serving: BTreeMap<Key, bool> = BTreeMap::new();
    for (workload, counted) in workloads.iter().zip(counted) {
        let serves = !workload.client_only && counted.as_ref().is_some_and(|counted| counted.serves);
        *serving.entry(key(workload, by)).or_default() |= serves;
    }
    let mut sums: BTreeMap<Key, Sum> = BTreeMap::new();
    for (workload, counted) in workloads.iter().zip(counted) {
        let key = key(workload, by);
        let direction = if serving[&key] && to.is_none() { "inbound" } else { "outbound" };
        let sum = sums.entry(key).or_default();
        sum.replicas += 1;
        // Also one that is silent: it has no figures, and who asked was told.
        sum.meshed += usize::from(workload.meshed);
        let Some(counted) = counted else { continue };
        sum.add(counted, |sample| {
            sample.label("direction") == direction && to.is_none_or(|to| to.is_destination(sample))
        });
    }
    rows(sums)
}

/// Whom clients address.
#[derive(Clone, Debug)]
pub struct Target {
    /// Kind and name.
    pub resource: Resource,
    /// Empty: in all.
    pub namespace: String,
}

impl Target {
    /// True when an outbound series is of requests to it.
    pub fn is_destination(&self, sample: &Sample) -> bool {
        let there = sample.label("dst_namespace");
        let Resource { kind, name } = &self.resource;
        let (name, namespace) = match name.split_once('.') {
            Some((name, namespace)) if *kind != "pod" => (name, namespace),
            _ => (name.as_str(), self.namespace.as_str()),
        };
        let named = |key: &str| {
            let found = sample.label(key);
            !found.is_empty() && (name.is_empty() || found == name)
        };
        match *kind {
            "namespace" => !there.is_empty() && (name.is_empty() || there == name),
            _ if !namespace.is_empty() && there != namespace => false,
            "" => {
                ["dst_service", "dst_deployment", "dst_statefulset", "dst_daemonset", "dst_pod"].into_iter().any(named)
            }
            "cronjob" => resource::cron_job(sample.label("dst_job")).is_some_and(|job| name.is_empty() || job == name),
            kind => named(&format!("dst_{kind}")),
        }
    }

    /// The row that a series to it belongs to.
    fn key(&self, sample: &Sample) -> Option<Key> {
        let namespace = sample.label("dst_namespace").to_string();
        let owners = ["deployment", "statefulset", "daemonset", "job", "replicaset", "service"];
        let kinds: &[&str] = match self.resource.kind {
            "namespace" => return Some((String::new(), "namespace".into(), namespace)),
            "" => &owners,
            kind => &[kind],
        };
        let found = kinds.iter().map(|kind| (*kind, sample.label(&format!("dst_{kind}"))));
        let (kind, name) = found.into_iter().find(|(_, name)| !name.is_empty())?;
        Some((namespace, kind.to_string(), name.to_string()))
    }
}

/// Whom these workloads call, as they see it: a row for each target that has been called. `replicas` knows how many of a
/// target's pods have a proxy, and how many there are.
pub fn as_clients_see(
    counted: &[Option<Counted>],
    targets: &[Target],
    replicas: impl Fn(&str, &str, &str) -> (usize, usize),
) -> Vec<Row> {
    let mut sums: BTreeMap<Key, Sum> = BTreeMap::new();
    for counted in counted.iter().flatten() {
        for target in targets {
            let mut keys: Vec<Key> = Vec::new();
            let outbound = |sample: &&Sample| sample.label("direction") == "outbound" && target.is_destination(sample);
            for sample in counted.during.iter().filter(outbound) {
                keys.extend(target.key(sample));
            }
            keys.sort();
            keys.dedup();
            for key in keys {
                let this = |sample: &Sample| {
                    sample.label("direction") == "outbound"
                        && target.is_destination(sample)
                        && target.key(sample).as_ref() == Some(&key)
                };
                sums.entry(key.clone()).or_default().add(counted, this);
            }
        }
    }
    for ((namespace, kind, name), sum) in &mut sums {
        (sum.meshed, sum.replicas) = replicas(namespace, kind, name);
    }
    rows(sums)
}

/// Requests by the routes of people, as clients' proxies count them: a row for each route of these names (none: all) and
/// each service that it is of. A route in a client's namespace is its own.
pub fn of_routes(counted: &[Option<Counted>], names: &[&str], namespace: Option<&str>) -> Vec<Row> {
    let mut sums: BTreeMap<(Key, String), Sum> = BTreeMap::new();
    for counted in counted.iter().flatten() {
        let mut seen: BTreeMap<(Key, String), Vec<Sample>> = BTreeMap::new();
        for sample in &counted.during {
            let Some(name) = sample.name.strip_prefix("outbound_route_") else { continue };
            let (route, of) = (sample.label("route_name"), sample.label("route_namespace"));
            let meant = names.is_empty() || names.contains(&route);
            if !meant || namespace.is_some_and(|namespace| namespace != of) {
                continue;
            }
            let parent = format!("{}:{}", sample.label("parent_name"), sample.label("parent_port"));
            let key = (of.to_string(), "route".to_string(), route.to_string());
            // As if they were requests to an endpoint; nothing is said of TLS.
            seen.entry((key, parent)).or_default().push(Sample { name: name.to_string(), ..sample.clone() });
        }
        for (key, samples) in seen {
            let sum = sums.entry(key).or_default();
            let here = Counted { during: samples, serves: false, window: counted.window };
            sum.add(&here, |_| true);
            sum.meshed += 1;
            sum.replicas += 1;
        }
    }
    let row = |((key, parent), sum): ((Key, String), Sum)| {
        let shown = format!("{} ({parent})", key.2);
        Row { shown, ..sum.row(key) }
    };
    sums.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Owner;
    use crate::scrape::parse;

    fn pod(owner: &str, pod: &str) -> Workload {
        Workload {
            namespace: "shop".into(),
            owner: Owner { kind: "deployment".into(), name: owner.into() },
            pod: pod.into(),
            meshed: true,
            ..Workload::default()
        }
    }

    fn series(direction: &str, labels: &str, value: u32) -> String {
        format!("response_total{{direction=\"{direction}\",classification=\"success\",tls=\"true\"{labels}}} {value}\n")
    }

    fn counted(before: &str, after: &str) -> Option<Counted> {
        let start = Instant::now();
        let end = start + Duration::from_secs(2);
        Counted::between(Some(&Some((start, parse(before)))), Some((end, parse(after))))
    }

    fn text(rows: &[Row]) -> Vec<String> {
        let one = |row: &Row| format!("{} {}/{} {}", row.shown, row.meshed, row.replicas, row.golden.responses());
        rows.iter().map(one).collect()
    }

    const API: &str = ",dst_namespace=\"shop\",dst_service=\"api\",dst_deployment=\"api\"";
    const DB: &str = ",dst_namespace=\"data\",dst_service=\"db\",dst_statefulset=\"db\"";

    #[test]
    fn a_server_is_seen_from_inside_and_a_mere_client_by_what_it_sends() {
        let workloads = [
            pod("web", "web-1"),
            pod("web", "web-2"),
            pod("load", "load-1"),
            Workload { meshed: false, ..pod("old", "old-1") },
        ];
        let web = counted(&series("inbound", "", 10), &(series("inbound", "", 30) + &series("outbound", API, 7)));
        // An idle second replica does not change the side from which the whole is seen.
        let idle = counted("", "");
        let load = counted("", &(series("outbound", API, 50) + &series("outbound", DB, 1)));
        let counts = [web, idle, load, None];
        let rows = of_workloads(&workloads, &counts, By::Owner, None);
        assert_eq!(text(&rows), ["deploy/load 1/1 51", "deploy/old 0/1 0", "deploy/web 2/2 20"]);
        assert_eq!(rows[2].window, Duration::from_secs(2));
        let spaces = of_workloads(&workloads, &counts, By::Namespace, None);
        assert_eq!(text(&spaces), ["ns/shop 3/4 20"]);
        let to = Target { resource: resource::one("deploy/api").unwrap(), namespace: "shop".into() };
        let rows = of_workloads(&workloads, &counts, By::Pod, Some(&to));
        assert_eq!(text(&rows)[..2], ["po/load-1 1/1 50", "po/old-1 0/1 0"]);
    }

    #[test]
    fn services_are_seen_by_their_clients() {
        let load = counted("", &(series("outbound", API, 50) + &series("outbound", DB, 4)));
        let web = counted("", &series("outbound", DB, 6));
        let target = |text: &str, namespace: &str| Target {
            resource: resource::one(text).unwrap(),
            namespace: namespace.into(),
        };
        let see = |targets: &[Target]| text(&as_clients_see(&[load.clone(), web.clone()], targets, |_, _, _| (1, 2)));
        assert_eq!(see(&[target("svc", "")]), ["svc/db 1/2 10", "svc/api 1/2 50"]);
        assert_eq!(see(&[target("svc", "shop")]), ["svc/api 1/2 50"]);
        assert_eq!(see(&[target("sts/db", "data")]), ["sts/db 1/2 10"]);
        assert_eq!(see(&[target("sts/db", "shop")]), [""; 0]);
        assert_eq!(see(&[target("svc/db.data", "shop")]), ["svc/db 1/2 10"]);
        assert_eq!(see(&[target("ns", "")]), ["ns/data 1/2 10", "ns/shop 1/2 50"]);
    }

    #[test]
    fn routes_are_counted_by_their_clients() {
        let series = |route: &str, classification: &str, value: u32| {
            format!(
                "outbound_route_response_total{{parent_name=\"api\",parent_port=\"80\",route_namespace=\"shop\",\
                 route_name=\"{route}\",classification=\"{classification}\"}} {value}\n"
            )
        };
        let one = counted(
            "",
            &(series("canary", "success", 9) + &series("canary", "failure", 1) + &series("old", "success", 5)),
        );
        let two = counted(&series("canary", "success", 4), &series("canary", "success", 14));
        let rows = of_routes(&[one, None, two], &["canary"], Some("shop"));
        assert_eq!(text(&rows), ["canary (api:80) 2/2 20"]);
        assert_eq!((rows[0].golden.success_rate(), rows[0].golden.secured_share()), (Some(0.95), None));
    }

    #[test]
    fn who_did_not_answer_at_first_counts_nothing_yet() {
        let end = Instant::now();
        let late = Counted::between(Some(&None), Some((end, parse(&series("inbound", "", 1000))))).unwrap();
        let rows = of_workloads(&[pod("web", "web-1")], &[Some(late)], By::Owner, None);
        assert_eq!(text(&rows), ["deploy/web 1/1 0"]);
    }
}
