//! Annotations of objects that pods are made from, looked at when somebody writes them. What is wrong is told here as well as
//! when the pods are made: a controller makes those, and shows its warnings to nobody. Pure.

use crate::inject::{asked, pod_path, strings};
use crate::settings;
use gossamer_api::keys::INJECT;
use gossamer_api::kubernetes::Map;
use serde_json::Value;

/// What is to be said about a workload or a namespace; `None` for other kinds.
pub fn warnings(object: &Value) -> Option<Vec<String>> {
    let own = strings(&object["metadata"]["annotations"]);
    match object["kind"].as_str()? {
        "Namespace" => Some(about(&own, "namespace")),
        kind => {
            let path = pod_path(kind).filter(|path| !path.is_empty())?;
            let template = path.iter().fold(object, |inner, name| &inner[*name]);
            let mut warnings = about(&strings(&template["metadata"]["annotations"]), "pod");
            let misplaced = own.keys().filter(|key| *key == INJECT || settings::is_known(key));
            let place = path.join(".");
            warnings.extend(misplaced.map(|key| {
                format!(
                    "annotation {key:?} of the {kind} itself has no effect: it belongs to {place}.metadata.annotations"
                )
            }));
            Some(warnings)
        }
    }
}

fn about(annotations: &Map, place: &'static str) -> Vec<String> {
    let (asks, errors) = match asked(annotations, &Map::new()) {
        Ok(asked) => (asked.is_ok(), Vec::new()),
        Err(errors) => (true, errors),
    };
    let mut warnings = match asks {
        true => settings::without_effect(annotations),
        // Linkerd's are for Linkerd.
        false => settings::unknown_keys(annotations),
    };
    let mut errors: Vec<_> = errors.into_iter().chain(settings::invalid(annotations)).collect();
    errors.iter_mut().for_each(|error| error.place = place);
    // A pod of a namespace that does not ask may still do so itself.
    warnings.extend(errors.iter().map(|error| format!("pods that ask for the proxy will be refused: {error}")));
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(kind: &str, own: Value, template: Value) -> Vec<String> {
        let template = json!({ "metadata": { "annotations": template } });
        let spec = match kind {
            "CronJob" => json!({ "jobTemplate": { "spec": { "template": template } } }),
            _ => json!({ "template": template }),
        };
        warnings(&json!({ "kind": kind, "metadata": { "annotations": own }, "spec": spec })).unwrap()
    }

    #[test]
    fn who_writes_a_workload_hears_of_its_typos() {
        for kind in ["Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"] {
            let warnings = said(kind, json!({}), json!({ "gossamer.io/injcet": "enabled" }));
            assert!(warnings[0].ends_with("did you mean \"gossamer.io/inject\"?"), "{kind}: {warnings:?}");
        }
        assert_eq!(said("Deployment", json!({}), json!({ "gossamer.io/inject": "enabled" })), [] as [String; 0]);
        assert_eq!(warnings(&json!({ "kind": "ConfigMap" })), None);
        assert_eq!(warnings(&json!({ "kind": "Namespace", "metadata": {} })), Some(Vec::new()));
    }

    #[test]
    fn a_value_that_pods_will_be_refused_for_is_told_at_once() {
        let warnings = said("Deployment", json!({}), json!({ "config.gossamer.io/opaque-ports": "http" }));
        assert!(
            warnings[0].starts_with("pods that ask for the proxy will be refused: metadata.annotations"),
            "{warnings:?}"
        );
        let namespace = json!({ "kind": "Namespace", "metadata": { "annotations": { "gossamer.io/inject": "true" } } });
        let warnings = super::warnings(&namespace).unwrap();
        assert!(
            warnings[0].ends_with("of the namespace: \"true\" is not valid: expected enabled or disabled"),
            "{warnings:?}"
        );
    }

    #[test]
    fn an_annotation_in_the_wrong_place_is_told() {
        let warnings = said("CronJob", json!({ "gossamer.io/inject": "enabled", "a/b": "c" }), json!({}));
        assert_eq!(
            warnings,
            ["annotation \"gossamer.io/inject\" of the CronJob itself has no effect: it belongs to \
              spec.jobTemplate.spec.template.metadata.annotations"]
        );
    }

    #[test]
    fn linkerds_are_for_linkerd_where_nobody_asks_us() {
        let theirs = json!({ "config.linkerd.io/proxy-image": "x" });
        assert_eq!(said("Deployment", json!({}), theirs.clone()), [] as [String; 0]);
        let mut ours = theirs;
        ours["gossamer.io/inject"] = "enabled".into();
        assert_eq!(said("Deployment", json!({}), ours).len(), 1);
    }
}
