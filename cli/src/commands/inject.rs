//! `meshctl inject`.

use crate::cluster::Options;
use crate::error::{CommandError, Context, Result};
use crate::installation::values::Overrides;
use crate::manifest::{self, Node};
use crate::output::paint_err;
use gossamer_api::keys::{CONFIG_PREFIX, INJECT};
use gossamer_api::kubernetes::Map;
use gossamer_api::kubernetes::validate::nearest;
use gossamer_api::process::tls::Anchors;
use gossamer_injector::command::has_native_sidecars;
use gossamer_injector::inject::{Outcome, Skip, Values, inject, pod_path};
use gossamer_injector::settings;
use k8s_openapi::api::core::v1::ConfigMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Add the mesh to Kubernetes objects in YAML
///
/// Pod templates get the annotation `gossamer.io/inject: enabled`, and the cluster's injector does the rest when pods are
/// made. With --manual the proxy itself is written into them. What can't have a proxy stays as it is. The result goes to
/// standard output, a line about each object to standard error.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  meshctl inject deploy/ | kubectl apply -f -\n  kubectl get deploy -o yaml | meshctl inject - | kubectl apply -f -\n  meshctl inject --set skip-outbound-ports=5432 --manual web.yaml"
)]
pub struct Args {
    /// Files, folders, or - for standard input
    #[arg(required = true, value_name = "FILE|FOLDER|-")]
    paths: Vec<PathBuf>,
    /// Write the proxy itself, not just the annotation
    #[arg(long)]
    manual: bool,
    /// A setting of the proxy, by the name of its annotation config.gossamer.io/NAME; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// With --manual: the roots of trust as PEM, instead of asking the cluster for them and for what was installed
    #[arg(long, value_name = "FILE", requires = "manual")]
    trust_anchors: Option<PathBuf>,
    /// With --manual: the proxy's image
    #[arg(long, value_name = "IMAGE", requires = "manual")]
    proxy_image: Option<String>,
    #[command(flatten)]
    cluster: Options,
}

/// Prints it.
pub async fn run(args: Args) -> Result<ExitCode> {
    let set = assignments(&args.set)?;
    let values = if args.manual { Some(args.values().await?) } else { None };
    change(&args.paths, |kind, object| Ok(add(kind, object, &set, values.as_ref())))
}

impl Args {
    /// What the cluster's injector would use.
    async fn values(&self) -> Result<Values> {
        let mut values = Values { control_namespace: self.cluster.control_namespace.clone(), ..Values::default() };
        let pem = match &self.trust_anchors {
            Some(path) => std::fs::read_to_string(path).context(path.display())?,
            None => {
                let hint =
                    "give the roots of trust with --trust-anchors FILE, or leave --manual to the cluster's injector";
                let with_hint = |error: CommandError| error.hint(hint);
                let cluster = self.cluster.connect().await.map_err(with_hint)?;
                let read = async |name: &str, key: &str| -> Result<Option<String>> {
                    let map =
                        cluster.get::<ConfigMap>(&self.cluster.control_namespace, name).await.map_err(with_hint)?;
                    Ok(map.and_then(|map| map.data).and_then(|mut data| data.remove(key)))
                };
                if let Some(text) = read("gossamer-config", "values").await? {
                    let installed = Overrides::parse(&text, "ConfigMap gossamer-config")?;
                    let installed = installed.values(&self.cluster.control_namespace)?;
                    values.proxy_image = installed.proxy();
                    values.trust_domain = installed.trust_domain;
                    values.cluster_domain = installed.cluster_domain;
                    values.cluster_networks = installed.cluster_networks;
                    values.defaults = installed.proxy;
                }
                let version =
                    cluster.client.apiserver_version().await.context("the cluster's version").map_err(with_hint)?;
                values.native_sidecar = has_native_sidecars(&version);
                let anchors = read("gossamer-trust-anchors", "ca-bundle.crt").await?;
                anchors.ok_or_else(|| {
                    let message = format!("namespace {} has no trust anchors", self.cluster.control_namespace);
                    CommandError::failed(message).hint("install the mesh first: meshctl install | kubectl apply -f -")
                })?
            }
        };
        values.trust_anchors = Anchors::from_pem(&pem).map_err(CommandError::failed)?.pem().to_string();
        values.proxy_image = self.proxy_image.clone().unwrap_or(values.proxy_image);
        Ok(values)
    }
}

/// Settings as annotations, checked.
fn assignments(set: &[String]) -> Result<Map> {
    let mut found = Map::new();
    for pair in set {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(CommandError::usage(format!("--set {pair}: expected NAME=VALUE")));
        };
        let names = || settings::all().map(|setting| setting.name);
        if !names().any(|one| one == name) {
            let error = CommandError::usage(format!("--set {pair}: there is no setting {name:?}"));
            return Err(match nearest(name, names()) {
                Some(one) => error.hint(format!("did you mean {one}?")),
                None => error.hint("the names are those of the annotations config.gossamer.io/NAME"),
            });
        }
        found.insert(format!("{CONFIG_PREFIX}/{name}"), value.to_string());
    }
    match settings::Settings::read(&found, &Map::new(), &Map::new()) {
        Ok(_) => Ok(found),
        Err(errors) => Err(CommandError::usage(format!("--set: {}", errors[0]))),
    }
}

/// Reads, changes each object (those in lists as well), prints; says what became of each.
pub(super) fn change(paths: &[PathBuf], change: impl Fn(&str, &mut Node) -> Result<Became>) -> Result<ExitCode> {
    let (mut nodes, mut refused) = (Vec::new(), 0);
    for (source, text) in manifest::open(paths)? {
        nodes.extend(manifest::read(&text, &source)?);
    }
    for node in &mut nodes {
        for (kind, object) in items(node) {
            let name = object.get("metadata").map(|metadata| metadata.text("name")).unwrap_or_default().to_string();
            let became = change(&kind, object)?;
            refused += usize::from(matches!(became, Became::Refused(_)));
            report(&format!("{}/{name}", kind.to_ascii_lowercase()), &became);
        }
    }
    match std::io::stdout().lock().write_all(manifest::write(&nodes)?.as_bytes()) {
        // Who closes a pipe has seen enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(CommandError::failed(error)),
        _ => {}
    }
    match refused {
        0 => Ok(ExitCode::SUCCESS),
        n => Err(CommandError::problems(format!("{n} of the objects are not valid and were left as they are"))),
    }
}

/// What became of an object.
#[derive(Debug, PartialEq)]
pub(super) enum Became {
    /// It was changed; with warnings.
    Changed(&'static str, Vec<String>),
    /// There is nothing for us in it.
    Nothing,
    /// It could be, but was not, for this reason.
    Left(String),
    /// It has something that can't be read.
    Refused(String),
}

fn report(object: &str, became: &Became) {
    match became {
        Became::Changed(what, warnings) => {
            eprintln!("{} {object} {what}", paint_err("√", "32"));
            warnings.iter().for_each(|warning| eprintln!("  {} {warning}", paint_err("warning:", "1;33")));
        }
        Became::Nothing => eprintln!("- {object} has no pods"),
        Became::Left(why) => eprintln!("{} {object} left as it is: {why}", paint_err("‼", "33")),
        Became::Refused(why) => eprintln!("{} {object}: {why}", paint_err("×", "31")),
    }
}

/// The objects of a document, with their kinds; those in a list (`List`, `DeploymentList`) need not say their own.
pub(super) fn items(node: &mut Node) -> Vec<(String, &mut Node)> {
    let kind = node.text("kind").to_string();
    match kind.strip_suffix("List") {
        Some(of) if matches!(node.get("items"), Some(Node::List(_) | Node::Null)) => match node.get_mut("items") {
            Some(Node::List(items)) => {
                let kind = |item: &Node| match item.text("kind") {
                    "" => of.to_string(),
                    kind => kind.to_string(),
                };
                items.iter_mut().map(|item| (kind(item), item)).collect()
            }
            _ => Vec::new(),
        },
        _ => vec![(kind, node)],
    }
}

/// The pod of an object, or its template. Kinds that others define have one where a Deployment has it.
pub(super) fn pod_of<'a>(kind: &str, object: &'a mut Node) -> Option<&'a mut Node> {
    if let Some(path) = pod_path(kind) {
        return object.at_mut(path);
    }
    let template = object.at_mut(&["spec", "template"])?;
    matches!(template.get("spec")?.get("containers"), Some(Node::List(_))).then_some(template)
}

fn add(kind: &str, object: &mut Node, set: &Map, values: Option<&Values>) -> Became {
    let forbids = |of: &Node| {
        let annotations = of.get("metadata").and_then(|metadata| metadata.get("annotations"));
        annotations.is_some_and(|annotations| annotations.text(INJECT) == "disabled")
    };
    if kind == "Namespace" {
        if forbids(object) {
            return Became::Left(format!("its annotation {INJECT}: disabled forbids it"));
        }
        if values.is_some() {
            return Became::Left("pods are written one by one with --manual".into());
        }
        return annotate(object, set, Vec::new());
    }
    let Some(pod) = pod_of(kind, object) else { return Became::Nothing };
    if forbids(pod) {
        return Became::Left(Skip::OptedOut("pod").to_string());
    }
    // As it would be decided with the annotation in place.
    let mut asking = pod.clone();
    annotate(&mut asking, set, Vec::new());
    let mut value = match serde_json::to_value(&asking) {
        Ok(value) => value,
        Err(error) => return Became::Refused(error.to_string()),
    };
    if matches!(kind, "Job" | "CronJob") {
        value["metadata"]["ownerReferences"] = serde_json::json!([{ "kind": "Job", "name": "" }]);
    }
    let with = values.cloned().unwrap_or_default();
    match inject(&value, &Map::new(), &with) {
        Ok(Outcome::Skip(skip)) => Became::Left(skip.to_string()),
        Err(errors) => Became::Refused(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
        Ok(Outcome::Inject(injection)) if values.is_some() => {
            *pod = asking;
            let named = |path: &[String]| path.last().is_some_and(|name| name == "gossamer.io/proxy-job");
            injection.additions.iter().filter(|one| !named(&one.path)).for_each(|addition| pod.add(addition));
            Became::Changed("has the proxy", injection.warnings)
        }
        Ok(Outcome::Inject(injection)) => annotate(pod, set, injection.warnings),
    }
}

fn annotate(of: &mut Node, set: &Map, warnings: Vec<String>) -> Became {
    let annotations = of.map("metadata").map("annotations");
    annotations.set(INJECT, Node::Text("enabled".into()));
    set.iter().for_each(|(key, value)| annotations.set(key, Node::Text(value.clone())));
    Became::Changed("asks for the proxy", warnings)
}

#[cfg(test)]
mod tests {
    use super::super::uninject;
    use super::*;

    const ALL: &str = "\
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: web}
  spec:
    replicas: 2
    template:
      metadata:
        labels: {app: web}
      spec:
        containers:
        - name: web
          image: web:1
          command: [sh, -c, \"echo yes\\nexit\"]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: '* * * * *'
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: tick, image: tick:1}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: node}
spec: {template: {spec: {hostNetwork: true, containers: [{name: node}]}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {a: 'yes'}
---
apiVersion: v1
kind: Namespace
metadata: {name: demo}
";

    fn each(text: &str, change: impl Fn(&str, &mut Node) -> Became) -> (String, Vec<String>) {
        let (mut nodes, mut became) = (manifest::read(text, "test").unwrap(), Vec::new());
        for node in &mut nodes {
            became.extend(items(node).into_iter().map(|(kind, object)| format!("{:?}", change(&kind, object))));
        }
        (manifest::write(&nodes).unwrap(), became)
    }

    #[test]
    fn the_annotation_goes_to_every_kind_of_workload() {
        let set = assignments(&["access-log=json".into()]).unwrap();
        let (text, became) = each(ALL, |kind, object| add(kind, object, &set, None));
        let asks = "Changed(\"asks for the proxy\", [])";
        assert_eq!((became[0].as_str(), became[1].as_str(), became[4].as_str()), (asks, asks, asks), "{became:?}");
        assert!(became[2].starts_with("Left(\"it uses its node's network"), "{became:?}");
        assert_eq!((became[3].as_str(), text.matches("gossamer.io/inject: enabled").count()), ("Nothing", 3), "{text}");
        let (back, _) = each(&text, uninject::remove);
        // Settings are the user's, and stay.
        let left: Vec<_> = back.lines().filter(|line| line.contains("gossamer.io")).map(str::trim).collect();
        assert_eq!(left, ["config.gossamer.io/access-log: json"; 3]);
    }

    #[test]
    fn what_was_written_by_hand_can_be_taken_away_again() {
        let values = Values {
            trust_anchors: "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n".into(),
            ..Values::default()
        };
        let (text, became) = each(ALL, |kind, object| add(kind, object, &Map::new(), Some(&values)));
        assert_eq!(became.iter().filter(|one| one.contains("has the proxy")).count(), 2, "{became:?}");
        assert!(text.contains("restartPolicy: Always") && text.contains("BEGIN CERTIFICATE"), "{text}");
        let (back, became) = each(&text, uninject::remove);
        let (plain, _) = each(ALL, |_, _| Became::Nothing);
        // A pod template without metadata has an empty one afterwards.
        let normal = |text: &str| {
            text.lines().filter(|line| line.trim() != "metadata: {}").map(|l| format!("{l}\n")).collect::<String>()
        };
        assert_eq!(normal(&back), normal(&plain), "{became:?}");
    }

    #[test]
    fn settings_are_checked() {
        let error = |set: &str| assignments(&[set.into()]).unwrap_err();
        assert_eq!(error("opaque-port=80").hints, ["did you mean opaque-ports?"]);
        assert!(error("opaque-ports=x").to_string().contains("is no port"));
        assert!(error("opaque-ports").to_string().contains("expected NAME=VALUE"));
    }

    #[test]
    fn who_has_opted_out_stays_out() {
        let text = "\
kind: Deployment
metadata: {name: web}
spec: {template: {metadata: {annotations: {gossamer.io/inject: disabled}}, spec: {containers: [{name: web}]}}}
---
kind: Namespace
metadata: {name: demo, annotations: {gossamer.io/inject: disabled}}
";
        for values in [None, Some(Values::default())] {
            let (after, became) = each(text, |kind, object| add(kind, object, &Map::new(), values.as_ref()));
            assert!(became.iter().all(|one| one.starts_with("Left") && one.contains("disabled")), "{became:?}");
            assert!(!after.contains("enabled") && !after.contains("gossamer-proxy"), "{after}");
            // Nor does taking the mesh away ask for it.
            let (after, _) = each(&after, uninject::remove);
            assert_eq!(after.matches("gossamer.io/inject: disabled").count(), 2, "{after}");
        }
    }

    #[test]
    fn kinds_of_others_and_lists_of_one_kind_have_pods_too() {
        let text = "\
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: web}
spec: {template: {spec: {containers: [{name: web}]}}}
---
kind: DeploymentList
items:
- metadata: {name: a}
  spec: {template: {spec: {containers: [{name: a}]}}}
---
kind: PodTemplateThing
metadata: {name: other}
spec: {template: {kind: Bucket}}
";
        let (after, became) = each(text, |kind, object| add(kind, object, &Map::new(), None));
        assert_eq!(after.matches("gossamer.io/inject: enabled").count(), 2, "{after}");
        assert_eq!((became.len(), became[2].as_str()), (3, "Nothing"));
    }

    #[test]
    fn a_value_that_cannot_be_read_is_a_problem() {
        let pod =
            "kind: Pod\nmetadata: {name: a, annotations: {config.gossamer.io/workers: many}}\nspec: {containers: []}\n";
        let (text, became) = each(pod, |kind, object| add(kind, object, &Map::new(), None));
        assert!(became[0].starts_with("Refused") && !text.contains("enabled"), "{became:?}");
    }
}
