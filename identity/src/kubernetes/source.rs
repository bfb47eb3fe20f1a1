//! Issuer and trust anchors as Kubernetes has them: a Secret (kubernetes.io/tls, as cert-manager writes it or
//! `meshctl install`) and a ConfigMap, watched; until the API server tells them, the mounted files.
//!
//! **Invariant:** what is in force was proved by a leaf that verifies. What can't be used is told (log, event) and changes
//! nothing; each of the two is judged by itself, so that a bad issuer doesn't hold up good anchors.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::Anchors;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Secret};
use kube::runtime::events::Recorder;
use kube::runtime::watcher::watch_object;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::StreamExt;

use super::{Config, events};
use crate::issuer::{Issuer, IssuerError, rfc3339};
use crate::state;

/// The Secret: `tls.crt` (issuer, perhaps those above it), `tls.key`, `ca.crt` (those above it).
pub const ISSUER_SECRET: &str = "gossamer-identity-issuer";
/// The ConfigMap with all roots that are trusted.
pub const ANCHORS_CONFIG_MAP: &str = "gossamer-trust-anchors";
/// Its key.
pub const ANCHORS_KEY: &str = "ca-bundle.crt";

/// Keeps issuer and trust anchors.
pub struct Source {
    config: Config,
    client: Client,
    recorder: Recorder,
    sender: watch::Sender<Option<Arc<Issuer>>>,
    waiting: watch::Sender<String>,
    told: Told,
    present: Option<InForce>,
    /// What is wrong, since when, and whether people know.
    problem: Option<(Problem, Instant, bool)>,
}

/// What objects (or files) say, unjudged.
#[derive(Clone, Default, PartialEq, Eq)]
struct Told {
    issuer: Option<Pair>,
    anchors: Option<String>,
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Pair {
    certificate: String,
    key: String,
    ca: String,
}

/// What was told and is good.
#[derive(Clone)]
struct InForce {
    issuer: Arc<Issuer>,
    pair: Pair,
    anchors: String,
}

/// What can't be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    kind: Kind,
    reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Secret,
    ConfigMap,
}

impl Source {
    /// `sender` gets each issuer that comes into force, `waiting` what is wrong or missing (empty: nothing).
    pub fn new(
        config: &Config,
        client: Client,
        recorder: Recorder,
        sender: watch::Sender<Option<Arc<Issuer>>>,
        waiting: watch::Sender<String>,
    ) -> Self {
        let (config, told) = (config.clone(), Told::default());
        Source { config, client, recorder, sender, waiting, told, present: None, problem: None }
    }

    /// Until the process stops.
    pub async fn run(mut self, stop: Stop) {
        let namespace = &self.config.control_namespace;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let mut secrets = pin!(watch_object(secrets, ISSUER_SECRET).default_backoff());
        let mut maps = pin!(watch_object(maps, ANCHORS_CONFIG_MAP).default_backoff());
        // Whether the API server told it; from then on the files, which are older, are of no interest.
        let (mut has_secret, mut has_map) = (false, false);
        let mut failed = [false; 2];
        let mut look = tokio::time::interval(POLL);
        let started = Instant::now();
        loop {
            tokio::select! {
                () = stop.stopping() => return,
                Some(news) = secrets.next() => match watched(news, ISSUER_SECRET, &mut failed[0]) {
                    Some(secret) => (self.told.issuer, has_secret) = (secret.map(Pair::from), true),
                    None => {}
                },
                Some(news) = maps.next() => match watched(news, ANCHORS_CONFIG_MAP, &mut failed[1]) {
                    Some(map) => (self.told.anchors, has_map) = (map.map(bundle), true),
                    None => {}
                },
                _ = look.tick() => {
                    let late = started.elapsed() > FILES_AFTER;
                    if !has_secret && (late || failed[0]) && let Some(pair) = self.read_pair() {
                        self.told.issuer = Some(pair);
                    }
                    if !has_map && (late || failed[1]) && let Some(anchors) = self.read_anchors() {
                        self.told.anchors = Some(anchors);
                    }
                }
            }
            self.judge();
            self.tell().await;
        }
    }

    fn judge(&mut self) {
        let (news, problem) = settle(&self.told, self.present.as_ref(), SystemTime::now());
        if let Some(news) = news {
            let (until, anchors) = (rfc3339(news.issuer.not_after()), news.issuer.anchors().certificates().len());
            tracing::info!(issuer = news.issuer.fingerprint(), until, anchors, "issuer and trust anchors are in force");
            self.sender.send_replace(Some(news.issuer.clone()));
            self.present = Some(news);
        }
        self.problem = match (problem, self.problem.take()) {
            (Some(problem), Some((known, since, told))) if problem == known => Some((known, since, told)),
            (Some(problem), _) => Some((problem, Instant::now(), false)),
            (None, known) => {
                if known.is_some_and(|(_, _, told)| told) {
                    tracing::info!("issuer and trust anchors are usable again");
                }
                None
            }
        };
        let text = self.problem.as_ref().map(|(problem, ..)| problem.to_string()).unwrap_or_default();
        self.waiting.send_if_modified(|known| {
            let news = *known != text;
            *known = text;
            news
        });
    }

    /// Tells what is wrong for longer than it takes to change both objects, once.
    async fn tell(&mut self) {
        let Some((problem, since, told)) = &mut self.problem else { return };
        if *told || since.elapsed() < PATIENCE {
            return;
        }
        *told = true;
        let goes_on = match &self.present {
            Some(_) => "; going on with the last good",
            None => "",
        };
        tracing::error!("{problem}{goes_on}");
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(format!("{:?}", problem.kind)),
            name: Some(problem.name().to_owned()),
            namespace: Some(self.config.control_namespace.clone()),
            ..ObjectReference::default()
        };
        let reason = match problem.kind {
            Kind::Secret => "IssuerRefused",
            Kind::ConfigMap => "TrustAnchorsRefused",
        };
        let event = events::warning(reason, "Load", format!("{problem}{goes_on}"));
        events::publish(&self.recorder, &event, &about).await;
    }

    fn read_pair(&self) -> Option<Pair> {
        let folder = self.config.issuer_dir.as_deref()?;
        let read = |name| std::fs::read_to_string(folder.join(name)).ok();
        Some(Pair { certificate: read("tls.crt")?, key: read("tls.key")?, ca: read("ca.crt").unwrap_or_default() })
    }

    fn read_anchors(&self) -> Option<String> {
        self.config.anchors.as_deref().and_then(|path: &Path| state::read_bundle(path).ok())
    }
}

/// `Some` if the API server has told the object or its absence; the first of several failures is logged.
fn watched<K>(news: watcher::Result<Option<K>>, name: &str, failed: &mut bool) -> Option<Option<K>> {
    match news {
        Ok(object) => {
            *failed = false;
            Some(object)
        }
        Err(error) => {
            if !*failed {
                tracing::warn!(error = super::review::causes(&error), "{name} can't be watched now; trying again");
            }
            *failed = true;
            None
        }
    }
}

impl From<Secret> for Pair {
    fn from(secret: Secret) -> Self {
        let data = secret.data.unwrap_or_default();
        // What is no text is no PEM; an empty one is told as missing.
        let text = |key| data.get(key).map(|value| String::from_utf8_lossy(&value.0).into_owned()).unwrap_or_default();
        Pair { certificate: text("tls.crt"), key: text("tls.key"), ca: text("ca.crt") }
    }
}

fn bundle(map: ConfigMap) -> String {
    map.data.unwrap_or_default().remove(ANCHORS_KEY).unwrap_or_default()
}

/// What comes into force (if anything does) and what is wrong with the rest.
fn settle(told: &Told, present: Option<&InForce>, now: SystemTime) -> (Option<InForce>, Option<Problem>) {
    let missing = |kind| Problem { kind, reason: "it is missing".to_owned() };
    let Some(pair) = told.issuer.as_ref().or(present.map(|present| &present.pair)) else {
        return (None, Some(missing(Kind::Secret)));
    };
    let Some(bundle) = told.anchors.as_ref().or(present.map(|present| &present.anchors)) else {
        return (None, Some(missing(Kind::ConfigMap)));
    };
    let absent = match told {
        Told { issuer: None, .. } => Some(missing(Kind::Secret)),
        Told { anchors: None, .. } => Some(missing(Kind::ConfigMap)),
        _ => None,
    };
    if present.is_some_and(|present| present.pair == *pair && present.anchors == *bundle) {
        return (None, absent);
    }
    let bad = match load(pair, bundle, now) {
        Ok(news) => return (Some(news), absent),
        Err(problem) => problem,
    };
    // One of both may be good together with what is in force.
    let Some(present) = present else { return (None, Some(bad)) };
    if present.anchors != *bundle
        && let Ok(news) = load(&present.pair, bundle, now)
    {
        return (Some(news), Some(Problem { kind: Kind::Secret, ..bad }));
    }
    if present.pair != *pair
        && let Ok(news) = load(pair, &present.anchors, now)
    {
        return (Some(news), Some(Problem { kind: Kind::ConfigMap, ..bad }));
    }
    let kind = if present.pair == *pair { Kind::ConfigMap } else { bad.kind };
    (None, Some(Problem { kind, ..bad }))
}

fn load(pair: &Pair, bundle: &str, now: SystemTime) -> Result<InForce, Problem> {
    let unusable = |kind, reason: &dyn ToString| Problem { kind, reason: reason.to_string() };
    let anchors = Anchors::from_pem(bundle).map_err(|error| unusable(Kind::ConfigMap, &error))?;
    let issuer = issuer(pair, anchors, now).map_err(|error| unusable(Kind::Secret, &error))?;
    Ok(InForce { issuer: Arc::new(issuer), pair: pair.clone(), anchors: bundle.to_owned() })
}

/// cert-manager puts the issuer's chain into `tls.crt`; others put what is above the issuer into `ca.crt` alone.
fn issuer(pair: &Pair, anchors: Anchors, now: SystemTime) -> Result<Issuer, IssuerError> {
    let alone = Issuer::new(&pair.certificate, &pair.key, anchors.clone(), now);
    if alone.is_ok() || pair.ca.is_empty() {
        return alone;
    }
    let chain = format!("{}\n{}", pair.certificate, pair.ca);
    Issuer::new(&chain, &pair.key, anchors, now).or(alone)
}

impl Problem {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Secret => ISSUER_SECRET,
            Kind::ConfigMap => ANCHORS_CONFIG_MAP,
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} can't be used: {}", self.kind, self.name(), self.reason)
    }
}

/// How often files are looked at, and what is refused is judged again (it may only not be valid yet).
const POLL: Duration = Duration::from_secs(2);
/// The API server is asked first: files may be a minute old.
const FILES_AFTER: Duration = Duration::from_secs(3);
/// Issuer and anchors may change one after the other.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::{self, Authority};

    fn root(now: SystemTime) -> Authority {
        issuer::new_root("cluster.local", now).unwrap()
    }

    fn pair(root: &Authority, now: SystemTime) -> Pair {
        let made = issuer::new_issuer(&root.pem(), "cluster.local", now).unwrap();
        Pair { certificate: made.certificate, key: made.key, ca: root.certificate.clone() }
    }

    fn told(issuer: &Pair, anchors: &str) -> Told {
        Told { issuer: Some(issuer.clone()), anchors: Some(anchors.to_owned()) }
    }

    /// What is in force afterwards (issuer's pair, anchors), and which object is complained about.
    fn check(told: &Told, present: &InForce) -> (InForce, Option<Kind>) {
        let (news, problem) = settle(told, Some(present), SystemTime::now());
        (news.unwrap_or_else(|| present.clone()), problem.map(|problem| problem.kind))
    }

    #[test]
    fn each_is_taken_over_as_far_as_it_is_good() {
        let now = SystemTime::now();
        let (a, b) = (root(now), root(now));
        let (issuer_a, issuer_b) = (pair(&a, now), pair(&b, now));
        let both = format!("{}{}", a.certificate, b.certificate);
        let nothing = settle(&Told::default(), None, now);
        assert!(nothing.0.is_none() && nothing.1.unwrap().to_string().contains("gossamer-identity-issuer"));
        let (first, problem) = settle(&told(&issuer_a, &a.certificate), None, now);
        let (first, _) = (first.unwrap(), assert_eq!(problem, None));

        // The order of a rotation.
        let (second, problem) = check(&told(&issuer_a, &both), &first);
        assert!(second.anchors == both && problem.is_none());
        let (third, problem) = check(&told(&issuer_b, &both), &second);
        assert!(third.pair == issuer_b && problem.is_none());
        let (fourth, problem) = check(&told(&issuer_b, &b.certificate), &third);
        assert!(fourth.anchors == b.certificate && problem.is_none());

        // An issuer of a root that is not trusted is refused; so is a bundle without the issuer's root.
        let (kept, problem) = check(&told(&issuer_b, &a.certificate), &first);
        assert!(kept.pair == issuer_a && problem == Some(Kind::Secret));
        let (kept, problem) = check(&told(&issuer_a, &b.certificate), &first);
        assert!(kept.anchors == a.certificate && problem == Some(Kind::ConfigMap));

        // A bad one of both doesn't hold up the other.
        let broken = Pair { key: "no key".into(), ..issuer_b.clone() };
        let (half, problem) = check(&told(&broken, &both), &first);
        assert!(half.pair == issuer_a && half.anchors == both && problem == Some(Kind::Secret));
        let (half, problem) = check(&told(&issuer_b, "no bundle"), &second);
        assert!(half.pair == issuer_b && half.anchors == both && problem == Some(Kind::ConfigMap));

        // What is deleted stays in force, and is told.
        let (kept, problem) = check(&Told { issuer: None, anchors: Some(both.clone()) }, &third);
        assert!(kept.pair == issuer_b && problem == Some(Kind::Secret));
        let empty = told(&Pair::default(), "");
        let (kept, problem) = check(&empty, &third);
        assert!(kept.pair == issuer_b && problem.is_some());
    }

    #[test]
    fn the_chain_may_be_in_either_place() {
        let now = SystemTime::now();
        let a = root(now);
        let whole = pair(&a, now);
        for (certificate, ca) in [
            (whole.certificate.clone(), String::new()),
            (format!("{}{}", whole.certificate, a.certificate), a.certificate.clone()),
            (whole.certificate.clone(), a.certificate.clone()),
        ] {
            load(&Pair { certificate, ca, key: whole.key.clone() }, &a.certificate, now).map(|_| ()).unwrap();
        }
    }
}
