//! `meshctl uninstall`.

use crate::cluster::{Cluster, Options};
use crate::error::{Context, Result};
use crate::installation::{PART_OF, crd_names, outside};
use crate::output::paint_err;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams};
use std::io::Write;
use std::process::ExitCode;

/// Print everything of the control plane, to be deleted from a cluster
///
/// The webhooks come first, so that nothing waits for them. With the definitions go all objects of their kinds:
/// policies, and routes too if Gateway API came with the mesh. Proxies go on until their pods are replaced.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  meshctl uninstall | kubectl delete -f -\n  meshctl uninstall --keep-definitions | kubectl delete -f -"
)]
pub struct Args {
    #[command(flatten)]
    cluster: Options,
    /// Leave definitions, and with them policies and routes, in the cluster
    #[arg(long)]
    keep_definitions: bool,
}

/// An object to delete.
struct Gone {
    api_version: String,
    kind: String,
    name: String,
}

/// Prints it.
pub async fn run(args: Args) -> Result<ExitCode> {
    let cluster = args.cluster.connect().await?;
    let mut all = Vec::new();
    // Only what is there: `kubectl delete` complains about the rest.
    for object in outside(&cluster.control_namespace)? {
        let (api_version, kind) = (object.api_version(), object.kind());
        let name = object.metadata().name.clone().unwrap_or_default();
        if exists(&cluster, api_version, kind, &name).await? {
            all.push(Gone { api_version: api_version.into(), kind: kind.into(), name });
        }
    }
    all.sort_by_key(|gone| order(&gone.kind));
    if !args.keep_definitions {
        all.extend(definitions(&cluster).await?);
    }
    if all.is_empty() {
        eprintln!("{} there is no mesh in namespace {:?}", paint_err("hint:", "1;36"), cluster.control_namespace);
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for Gone { api_version, kind, name } in &all {
        text += &format!("---\napiVersion: {api_version}\nkind: {kind}\nmetadata:\n  name: {name}\n");
    }
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// Webhooks, then rights, then the namespace with all that is in it.
fn order(kind: &str) -> u8 {
    match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => 0,
        "Namespace" => 1,
        _ => 2,
    }
}

async fn exists(cluster: &Cluster, api_version: &str, kind: &str, name: &str) -> Result<bool> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let plural = format!("{}s", kind.to_lowercase());
    let resource = ApiResource {
        group: group.into(),
        version: version.into(),
        api_version: api_version.into(),
        kind: kind.into(),
        plural,
    };
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    Ok(api.get_metadata_opt(name).await.context(format_args!("{kind} {name}"))?.is_some())
}

/// Those that came with the mesh, with a word about what goes with them.
async fn definitions(cluster: &Cluster) -> Result<Vec<Gone>> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let selector = format!("{}={}", PART_OF.0, PART_OF.1);
    let list = api.list(&ListParams::default().labels(&selector)).await.context("definitions")?;
    let mut gone = Vec::new();
    for crd in list.items {
        let name = crd.metadata.name.clone().unwrap_or_default();
        if !crd_names().any(|known| known == name) {
            continue;
        }
        let version = crd.spec.versions.iter().find(|version| version.storage).map(|v| v.name.clone());
        let resource = ApiResource {
            group: crd.spec.group.clone(),
            version: version.clone().unwrap_or_default(),
            api_version: format!("{}/{}", crd.spec.group, version.unwrap_or_default()),
            kind: crd.spec.names.kind.clone(),
            plural: crd.spec.names.plural.clone(),
        };
        let objects: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let count = objects.list_metadata(&ListParams::default()).await.map_or(0, |list| list.items.len());
        if count > 0 {
            let hint = paint_err("hint:", "1;36");
            eprintln!("{hint} {count} {} go with their definition; --keep-definitions keeps them", resource.plural);
        }
        gone.push(Gone {
            api_version: "apiextensions.k8s.io/v1".into(),
            kind: "CustomResourceDefinition".into(),
            name,
        });
    }
    Ok(gone)
}
