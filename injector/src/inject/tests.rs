//! Pods in, pods or reasons out.

use super::*;

fn values() -> Values {
    Values { trust_anchors: "-----BEGIN CERTIFICATE-----\n…\n".into(), ..Values::default() }
}

fn asking() -> Map {
    Map::from([(INJECT.into(), "enabled".into())])
}

fn pod() -> Value {
    json!({
        "metadata": { "labels": { "app": "web" } },
        "spec": {
            "containers": [{ "name": "web", "image": "web:1", "unheardOf": { "kept": true } }],
            "initContainers": [{ "name": "migrate", "image": "web:1" }],
            "volumes": [{ "name": "data", "emptyDir": {} }],
        },
    })
}

fn with(changes: &[(&str, Value)]) -> Value {
    let mut pod = pod();
    for (pointer, value) in changes {
        let (outer, name) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(outer).unwrap()[name.replace("~1", "/")] = value.clone();
    }
    pod
}

fn injection(pod: &Value, values: &Values) -> Injection {
    match inject(pod, &asking(), values).unwrap() {
        Outcome::Inject(injection) => injection,
        Outcome::Skip(skip) => panic!("skipped: {skip}"),
    }
}

fn injected(pod: &Value, values: &Values) -> Value {
    let patch: json_patch::Patch = serde_json::from_value(injection(pod, values).patch(&[])).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

#[test]
fn a_pod_gets_the_proxy_before_everything_else() {
    let pod = injected(&pod(), &values());
    insta::assert_snapshot!(serde_json::to_string_pretty(&pod).unwrap());
}

#[test]
fn the_proxy_is_small_in_the_object() {
    // As the API server shows it: the account is written into it.
    let pod = json!({
        "metadata": { "generateName": "web-" },
        "spec": { "serviceAccountName": "default", "containers": [{ "name": "web", "image": "w" }] },
    });
    let values = Values { trust_anchors: "x".repeat(650), ..Values::default() };
    let (before, after) = (pod.to_string().len(), injected(&pod, &values).to_string().len());
    // The API server's defaults and the status come on top.
    assert!(after - before <= 2190, "{} bytes", after - before);
}

#[test]
fn twice_is_as_once() {
    for values in [values(), Values { native_sidecar: false, ..values() }] {
        for pod in [pod(), with(&[("/metadata/annotations", json!({ "config.gossamer.io/redirect": "init" }))])] {
            let once = injected(&pod, &values);
            assert_eq!(inject(&once, &asking(), &values).unwrap(), Outcome::Skip(Skip::Injected));
        }
    }
}

#[test]
fn a_pod_without_any_lists_gets_them() {
    let pod = injected(&json!({ "spec": { "containers": [{ "name": "web" }] } }), &values());
    assert_eq!(pod["metadata"]["labels"][CONTROL_NAMESPACE_LABEL], "gossamer");
    assert_eq!(pod["metadata"]["annotations"][PROXY_VERSION], env!("CARGO_PKG_VERSION"));
    assert_eq!(pod["spec"]["initContainers"][0]["name"], CONTAINER);
    assert_eq!(pod["spec"]["volumes"][0]["name"], container::VOLUME);
}

#[test]
fn the_volume_on_disk_holds_no_pod_on_its_node() {
    let of = |annotations: Value| {
        injected(&with(&[("/metadata/annotations", annotations)]), &values())["metadata"]["annotations"][SAFE_TO_EVICT]
            .clone()
    };
    assert_eq!(of(json!({})), container::STATE_VOLUME);
    assert_eq!(of(json!({ SAFE_TO_EVICT: "scratch,cache" })), "scratch,cache,gossamer");
}

#[test]
fn the_service_account_is_named_where_it_is_known() {
    let account = |pod: &Value| {
        let pod = injected(pod, &values());
        let env = pod["spec"]["initContainers"][0]["env"].as_array().unwrap().clone();
        env.into_iter().find(|one| one["name"] == "MESH_SERVICE_ACCOUNT").unwrap()
    };
    assert_eq!(account(&with(&[("/spec/serviceAccountName", json!("shop"))]))["value"], "shop");
    assert_eq!(account(&pod())["valueFrom"]["fieldRef"]["fieldPath"], "spec.serviceAccountName");
}

#[test]
fn without_native_sidecars_the_proxy_is_the_first_container() {
    let pod = injected(&pod(), &Values { native_sidecar: false, ..values() });
    let proxy = &pod["spec"]["containers"][0];
    assert_eq!((&proxy["name"], &proxy["restartPolicy"]), (&json!(CONTAINER), &Value::Null));
    assert_eq!(proxy["lifecycle"]["preStop"]["exec"]["command"], json!(["/gossamer-proxy", "wait", "5s"]));
    assert_eq!(pod["spec"]["initContainers"].as_array().unwrap().len(), 1);
    let annotated = with(&[("/metadata/annotations", json!({ "config.gossamer.io/native-sidecar": "disabled" }))]);
    assert_eq!(injected(&annotated, &values())["spec"]["containers"][0]["name"], CONTAINER);
}

#[test]
fn a_separate_container_may_set_the_redirection() {
    let annotations = json!({
        "config.gossamer.io/redirect": "init",
        "config.gossamer.io/skip-outbound-ports": "5432",
        "config.gossamer.io/uid": "3000",
        "config.gossamer.io/log-level": "debug",
    });
    let pod = injected(&with(&[("/metadata/annotations", annotations)]), &values());
    let (init, proxy) = (&pod["spec"]["initContainers"][0], &pod["spec"]["initContainers"][1]);
    assert_eq!((&init["name"], &init["args"]), (&json!(INIT_CONTAINER), &json!(["init"])));
    let set: Vec<_> = init["env"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(set, ["MESH_UID", "MESH_SKIP_OUTBOUND_PORTS"]);
    assert_eq!(proxy["securityContext"]["runAsUser"], 3000);
    assert_eq!(proxy["securityContext"]["capabilities"], json!({ "drop": ["ALL"] }));
    assert!(!proxy["env"].to_string().contains("MESH_REDIRECT"));
}

#[test]
fn where_all_containers_are_root_the_token_stays_readable() {
    let root = with(&[("/spec/securityContext", json!({ "runAsUser": 0 }))]);
    assert_eq!(injected(&root, &values())["spec"]["initContainers"][0]["name"], INIT_CONTAINER);
    let group = with(&[("/spec/securityContext", json!({ "runAsUser": 0, "fsGroup": 7 }))]);
    assert_eq!(injected(&group, &values())["spec"]["initContainers"][0]["name"], CONTAINER);
}

#[test]
fn resources_and_settings_come_from_annotations() {
    let annotations = json!({
        "config.gossamer.io/cpu-request": "10m",
        "config.gossamer.io/cpu-limit": "2",
        "config.gossamer.io/memory-limit": "64Mi",
        "config.gossamer.io/image": "registry.local/proxy:2",
        "config.gossamer.io/image-pull-policy": "Always",
        "config.gossamer.io/access-log": "json",
        "config.gossamer.io/opaque-ports": "25,587,3306,4444,5432,6379,9300,11211",
    });
    let pod = injected(&with(&[("/metadata/annotations", annotations)]), &values());
    let proxy = &pod["spec"]["initContainers"][0];
    let limits = json!({ "requests": { "cpu": "10m" }, "limits": { "cpu": "2", "memory": "64Mi" } });
    assert_eq!(proxy["resources"], limits);
    assert_eq!((&proxy["image"], &proxy["imagePullPolicy"]), (&json!("registry.local/proxy:2"), &json!("Always")));
    let env = proxy["env"].as_array().unwrap();
    assert!(env.contains(&json!({ "name": "MESH_ACCESS_LOG", "value": "json" })));
    assert!(env.contains(&json!({ "name": "MESH_WORKERS", "value": "2" })));
    assert!(!proxy["env"].to_string().contains("MESH_OPAQUE_PORTS"), "a default is not written");
}

#[test]
fn who_is_asked_and_who_is_left_alone() {
    let annotated = |value: &str| with(&[("/metadata/annotations", json!({ INJECT: value }))]);
    let (asks, silent) = (asking(), Map::new());
    let forbids = Map::from([(INJECT.into(), "disabled".into())]);
    let place = |pod: &Value, namespace: &Map| match inject(pod, namespace, &values()).unwrap() {
        Outcome::Inject(injection) => Ok(injection.asked_by),
        Outcome::Skip(skip) => Err(skip.reason()),
    };
    assert_eq!(place(&annotated("enabled"), &silent), Ok(Place::Workload));
    assert_eq!(place(&annotated("enabled"), &forbids), Ok(Place::Workload));
    assert_eq!(place(&pod(), &asks), Ok(Place::Namespace));
    assert_eq!(place(&pod(), &silent), Err("injection_enable_annotation_absent"));
    assert_eq!(place(&pod(), &forbids), Err("injection_disable_annotation_present"));
    assert_eq!(place(&annotated("disabled"), &asks), Err("injection_disable_annotation_present"));
    let error = inject(&annotated("enable"), &asks, &values()).unwrap_err();
    assert_eq!(
        error[0].to_string(),
        "metadata.annotations[\"gossamer.io/inject\"] of the pod: \"enable\" is not valid: expected enabled or disabled"
    );
}

#[test]
fn what_linkerds_annotations_say_reaches_the_proxy() {
    let annotations = json!({
        "config.linkerd.io/skip-inbound-ports": "9090",
        "config.linkerd.io/proxy-cpu-request": "10m",
        "config.linkerd.io/proxy-image": "cr.l5d.io/linkerd/proxy",
        "viz.linkerd.io/disable-tap": "true",
    });
    let pod = with(&[("/metadata/annotations", annotations)]);
    let proxy = &injected(&pod, &values())["spec"]["initContainers"][0];
    let env = proxy["env"].as_array().unwrap();
    assert!(env.contains(&json!({ "name": "MESH_SKIP_INBOUND_PORTS", "value": "9090" })), "{env:?}");
    assert!(env.contains(&json!({ "name": "MESH_TAP_LISTEN", "value": "" })), "{env:?}");
    assert_eq!(
        (&proxy["resources"]["requests"]["cpu"], &proxy["image"]),
        (&json!("10m"), &json!(values().proxy_image))
    );
    let warnings = injection(&pod, &values()).warnings;
    assert!(warnings[0].contains("proxy-image") && warnings.len() == 1, "{warnings:?}");
}

#[test]
fn what_cannot_have_a_proxy_says_why() {
    let skip = |changes: &[(&str, Value)]| match inject(&with(changes), &asking(), &values()).unwrap() {
        Outcome::Inject(_) => panic!("injected"),
        Outcome::Skip(skip) => (skip.reason(), skip.is_news()),
    };
    assert_eq!(skip(&[("/spec/hostNetwork", json!(true))]), ("host_network_enabled", true));
    assert_eq!(skip(&[("/spec/os", json!({ "name": "windows" }))]), ("unsupported_system", true));
    let other = json!([{ "name": "web" }, { "name": "istio-proxy" }]);
    assert_eq!(skip(&[("/spec/containers", other)]), ("other_sidecar_exists", true));
    let mirror = json!({ "kubernetes.io/config.mirror": "x" });
    assert_eq!(skip(&[("/metadata/annotations", mirror)]), ("no_service_account_token", true));
    let ours = json!({ CONTROL_PLANE_COMPONENT: "identity" });
    assert_eq!(skip(&[("/metadata/labels", ours)]), ("control_plane", false));
}

#[test]
fn a_pod_is_labelled_with_what_made_it() {
    let owned = |kind: &str, name: &str| {
        let labels = json!({ "pod-template-hash": "5d4f8" });
        let owners = json!([{ "kind": kind, "name": name, "controller": true }]);
        let pod = injected(&with(&[("/metadata/labels", labels), ("/metadata/ownerReferences", owners)]), &values());
        pod["metadata"]["labels"]
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| key.starts_with("gossamer.io/proxy-"))
            .cloned()
            .collect::<String>()
            + "="
            + pod["metadata"]["labels"]
                .as_object()
                .unwrap()
                .iter()
                .find(|(key, _)| key.starts_with("gossamer.io/proxy-"))
                .unwrap()
                .1
                .as_str()
                .unwrap()
    };
    assert_eq!(owned("ReplicaSet", "web-5d4f8"), "gossamer.io/proxy-deployment=web");
    assert_eq!(owned("ReplicaSet", "bare"), "gossamer.io/proxy-replicaset=bare");
    assert_eq!(owned("StatefulSet", "db"), "gossamer.io/proxy-statefulset=db");
}

#[test]
fn patches_escape_names_and_apply_beneath_a_prefix() {
    let patch = injection(&pod(), &values()).patch(&["spec", "template"]);
    assert_eq!(patch[0]["path"], "/spec/template/metadata/annotations");
    assert!(
        patch[1]["path"].as_str().unwrap().contains("/annotations/cluster-autoscaler.kubernetes.io~1safe-to-evict")
    );
    assert_eq!(patch[2]["path"], "/spec/template/metadata/labels/gossamer.io~1control-plane-ns");
}

proptest::proptest! {
    #[test]
    fn never_panics(text in "[a-z{}\\[\\]\":,0-9]{0,80}") {
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            for pod in [value.clone(), json!({ "metadata": value }), json!({ "spec": value }), json!({ "spec": { "containers": value } })] {
                let _ = inject(&pod, &asking(), &values());
            }
        }
    }
}
