//! Tells the owner of a pod, as an Event, what was done with the pod and why.
//!
//! **Invariant:** never in the way of an admission, and never a flood: news beyond the queue are dropped, the same news
//! about the same owner are told once in [`AGAIN`].

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde_json::Value;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Something to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    about: ObjectReference,
    warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) note: String,
}

/// Where news are handed in. Cheap to clone.
#[derive(Clone)]
pub struct Events(mpsc::Sender<News>);

impl News {
    /// About the owner of a pod; about the pod itself, where nothing made it.
    pub fn of(pod: &Value, namespace: &str, warning: bool, reason: &'static str, note: String) -> Self {
        let text = |of: &Value| of.as_str().map(str::to_string);
        let owners = pod["metadata"]["ownerReferences"].as_array();
        let owner = owners.and_then(|all| all.iter().find(|one| one["controller"] == true).or(all.first()));
        let about = match owner {
            Some(owner) => ObjectReference {
                api_version: text(&owner["apiVersion"]),
                kind: text(&owner["kind"]),
                name: text(&owner["name"]),
                uid: text(&owner["uid"]),
                namespace: Some(namespace.to_string()),
                ..ObjectReference::default()
            },
            None => ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: text(&pod["metadata"]["name"]).or_else(|| text(&pod["metadata"]["generateName"])),
                namespace: Some(namespace.to_string()),
                ..ObjectReference::default()
            },
        };
        // The API's bound is 1 KiB.
        let note = note.chars().take(1000).collect();
        News { about, warning, reason, note }
    }
}

impl Events {
    /// The queue, and where it ends.
    pub fn new() -> (Self, mpsc::Receiver<News>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Events(sender), receiver)
    }

    /// Hands in news; drops them when there are too many.
    pub fn tell(&self, news: News) {
        if self.0.try_send(news).is_err() {
            tracing::debug!("an event was dropped");
        }
    }
}

/// Publishes news until all [`Events`] are gone.
pub async fn publish(client: Client, instance: Option<String>, mut news: mpsc::Receiver<News>) {
    let recorder = Recorder::new(client.clone(), Reporter { controller: "gossamer.io/injector".into(), instance });
    let mut told = Told::default();
    while let Some(news) = news.recv().await {
        if !told.is_new(&news, Instant::now()) {
            continue;
        }
        let about = deployment(&client, &news.about).await.unwrap_or(news.about);
        let event = Event {
            type_: if news.warning { EventType::Warning } else { EventType::Normal },
            reason: news.reason.into(),
            note: Some(news.note),
            action: "Inject".into(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &about).await {
            tracing::debug!(%error, "an event could not be written");
        }
    }
}

/// The Deployment of a ReplicaSet: that is where people look.
async fn deployment(client: &Client, about: &ObjectReference) -> Option<ObjectReference> {
    if about.kind.as_deref() != Some("ReplicaSet") {
        return None;
    }
    let sets = Api::<ReplicaSet>::namespaced(client.clone(), about.namespace.as_deref()?);
    let set = sets.get_metadata(about.name.as_deref()?).await.ok()?;
    let owner = set.metadata.owner_references?.into_iter().find(|owner| owner.controller == Some(true))?;
    Some(ObjectReference {
        api_version: Some(owner.api_version),
        kind: Some(owner.kind),
        name: Some(owner.name),
        uid: Some(owner.uid),
        namespace: about.namespace.clone(),
        ..ObjectReference::default()
    })
}

/// What was told, and when.
#[derive(Default)]
struct Told(HashMap<String, Instant>);

impl Told {
    fn is_new(&mut self, news: &News, now: Instant) -> bool {
        let about = &news.about;
        let key = format!("{:?} {:?} {:?} {}", about.namespace, about.kind, about.name, news.reason);
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, at| now.duration_since(*at) < AGAIN);
        }
        if self.0.get(&key).is_some_and(|at| now.duration_since(*at) < AGAIN) || self.0.len() >= REMEMBERED {
            return false;
        }
        self.0.insert(key, now);
        true
    }
}

const QUEUE: usize = 64;
const REMEMBERED: usize = 4096;
/// An Event lives an hour.
const AGAIN: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_same_is_told_once_in_a_while() {
        let pod = json!({ "metadata": { "ownerReferences": [{ "kind": "Job", "name": "j", "uid": "1", "controller": true }] } });
        let news = |reason| News::of(&pod, "demo", true, reason, "x".repeat(3000));
        let (mut told, now) = (Told::default(), Instant::now());
        assert_eq!(news("A").note.len(), 1000);
        assert_eq!(news("A").about.kind.as_deref(), Some("Job"));
        assert!(told.is_new(&news("A"), now) && told.is_new(&news("B"), now));
        assert!(!told.is_new(&news("A"), now + AGAIN / 2) && told.is_new(&news("A"), now + AGAIN));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut told, now) = (Told::default(), Instant::now());
        let news =
            |n: usize| News::of(&json!({ "metadata": { "name": n.to_string() } }), "demo", true, "A", String::new());
        let new = (0..REMEMBERED + 10).filter(|n| told.is_new(&news(*n), now)).count();
        assert_eq!((new, told.0.len()), (REMEMBERED, REMEMBERED));
        assert!(told.is_new(&news(0), now + AGAIN));
    }
}
