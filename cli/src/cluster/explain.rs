//! What a cluster refused, in words that say what to do next.

use super::Cluster;
use crate::error::{CommandError, causes};
use kube::config::KubeconfigError;
use std::error::Error;

/// What was asked of the API server, in RBAC's words.
#[derive(Clone, Copy, Debug)]
pub struct Doing<'a> {
    /// `list`, `get`, `create`...
    pub verb: &'a str,
    /// The resource: `pods`, `pods/portforward`...
    pub what: &'a str,
    /// `None`: of the whole cluster.
    pub namespace: Option<&'a str>,
}

impl Doing<'_> {
    fn place(&self) -> String {
        self.namespace.map_or_else(|| "in all namespaces".into(), |namespace| format!("in namespace {namespace:?}"))
    }

    /// The command that asks whether one may.
    fn can_i(&self) -> String {
        let scope = self.namespace.map_or_else(|| "-A".into(), |namespace| format!("-n {namespace}"));
        let what = match self.what.split_once('/') {
            Some((resource, sub)) => format!("{resource} --subresource={sub}"),
            None => self.what.to_string(),
        };
        format!("kubectl auth can-i {} {what} {scope}", self.verb)
    }
}

/// The kubeconfig can't be used.
pub(super) fn kubeconfig(error: &KubeconfigError) -> CommandError {
    let point = "point to one with --kubeconfig FILE or KUBECONFIG";
    match error {
        KubeconfigError::FindPath => CommandError::failed("there is no kubeconfig").hint(point),
        KubeconfigError::ReadConfig(cause, path) => {
            CommandError::failed(format!("the kubeconfig {}: {cause}", path.display())).hint(point)
        }
        other => CommandError::failed(format!("the kubeconfig: {}", causes(other)))
            .hint("`kubectl config view --minify` shows what is in use"),
    }
}

/// The kubeconfig has no such context, or none at all.
pub(super) fn context(name: &str, known: &[String]) -> CommandError {
    let error = match name {
        "" => CommandError::failed("the kubeconfig has no current context"),
        name => CommandError::failed(format!("the kubeconfig has no context {name:?}")),
    };
    match known {
        [] => error.hint("it has none at all; is it the right file? Choose another with --kubeconfig"),
        known => error.hint(format!("choose one with --context: {}", known.join(", "))),
    }
}

/// The client can't be made: credentials that can't be read, or a plugin that fails.
pub(super) fn connecting(error: &kube::Error, context: &str) -> CommandError {
    CommandError::failed(format!("context {context:?}: {}", causes(error)))
        .hint(format!("try `kubectl --context {context} version`: it uses the same credentials"))
}

/// The API server did not do it.
pub fn refused(cluster: &Cluster, error: &kube::Error, doing: Doing<'_>) -> CommandError {
    let Doing { verb, what, .. } = doing;
    let place = doing.place();
    match error {
        kube::Error::Api(status) => match status.code {
            401 => CommandError::failed(format!("the cluster {} does not accept your credentials", cluster.server))
                .hint(format!("log in again; context {:?} is in use", cluster.context)),
            403 => CommandError::failed(format!("you may not {verb} {what} {place}"))
                .hint(format!("check with `{}`, and ask who runs the cluster for a role", doing.can_i()))
                .hint(match doing.namespace {
                    None => "or look at one namespace only, with -n".to_string(),
                    Some(_) => format!("the API server says: {}", status.message),
                }),
            404 if doing.namespace.is_some() || verb == "list" => {
                CommandError::failed(format!("the cluster knows no {what} {place}"))
                    .hint(format!("the API server says: {}", status.message))
            }
            code => CommandError::failed(format!("can't {verb} {what} {place}: {} ({code})", status.message)),
        },
        kube::Error::Auth(cause) => {
            CommandError::failed(format!("no credentials for {}: {}", cluster.server, causes(cause)))
                .hint(format!("try `kubectl --context {} get pods`: it uses the same", cluster.context))
        }
        other => CommandError::failed(format!("the cluster {} can't be reached: {}", cluster.server, transport(other)))
            .hint(format!("context {:?} is in use; choose another with --context", cluster.context))
            .hint("`kubectl cluster-info` tries the same"),
    }
}

/// The cause behind the client's layers.
pub fn transport(error: &kube::Error) -> String {
    let mut last: &dyn Error = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::empty()))
        });
        Cluster {
            client: kube::Client::new(service, "default"),
            context: "blue".into(),
            server: "https://192.0.2.1:6443".into(),
            namespace: "default".into(),
            control_namespace: "gossamer".into(),
        }
    }

    fn api(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(kube::core::Status::failure(message, "").with_code(code)))
    }

    #[tokio::test]
    async fn who_is_forbidden_learns_what_to_ask_for() {
        let doing = Doing { verb: "create", what: "pods/portforward", namespace: Some("shop") };
        let error = refused(&cluster(), &api(403, "pods is forbidden"), doing);
        assert_eq!(error.message, "you may not create pods/portforward in namespace \"shop\"");
        assert!(
            error.hints[0].contains("kubectl auth can-i create pods --subresource=portforward -n shop"),
            "{error:?}"
        );
        let all = refused(&cluster(), &api(403, ""), Doing { verb: "list", what: "pods", namespace: None });
        assert_eq!(all.message, "you may not list pods in all namespaces");
        assert!(all.hints[1].contains("-n"));
    }

    #[tokio::test]
    async fn credentials_and_absence_are_told_apart() {
        let doing = Doing { verb: "list", what: "pods", namespace: None };
        assert!(refused(&cluster(), &api(401, "Unauthorized"), doing).message.contains("credentials"));
        let gone = refused(&cluster(), &api(404, "the server could not find the requested resource"), doing);
        assert!(gone.message.contains("knows no pods"), "{gone:?}");
        let down = kube::Error::Service("connection refused".into());
        let down = refused(&cluster(), &down, doing);
        assert!(down.message.contains("192.0.2.1") && down.message.ends_with("connection refused"), "{down:?}");
    }
}
