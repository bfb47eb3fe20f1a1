//! What the API server asks: `POST /inject` when a pod is made, `POST /validate` when a policy, route, service, workload or
//! namespace is written. AdmissionReview v1 in and out, over TLS.
//!
//! **Invariant:** an answer comes within [`TIMEOUT`] and takes no question to the API server, but for a namespace that is
//! younger than our watch. What can't be decided is an error, and the webhook's failure policy says what that means.

use crate::cluster::Namespaces;
use crate::events::{Events, News};
use crate::inject::{self, Outcome, Place, Skip, Values, inject};
use crate::metrics::{Injected, Metrics};
use crate::written;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use gossamer_api::kubernetes::validate::{Verdict, validate};
use gossamer_api::process::listen;
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::ByteString;
use rustls::ServerConfig;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What the webhooks know.
#[derive(Clone)]
pub struct Webhooks {
    /// `None` until the trust anchors are known.
    pub values: watch::Receiver<Option<Arc<Values>>>,
    /// Annotations of namespaces.
    pub namespaces: Namespaces,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Told to whoever made a pod.
    pub events: Events,
}

/// Serves the webhooks on `listener` with the newest certificate until `stop`.
pub async fn serve(
    webhooks: Webhooks,
    listener: TcpListener,
    certificate: watch::Receiver<Arc<ServerConfig>>,
    stop: Stop,
) {
    let router = webhooks.router();
    listen::accept(listener, MAX_CONNECTIONS, &stop, |io, client| {
        let (router, config, stop) = (router.clone(), certificate.borrow().clone(), stop.clone());
        async move {
            let io = tokio::select! {
                io = tls::accept(config, io) => io,
                () = stop.stopping() => return,
            };
            let io = match io {
                Ok(io) => io,
                Err(error) => return tracing::debug!(%client, %error, "connection failed"),
            };
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(IDLE);
            let mut connection =
                std::pin::pin!(http.serve_connection(TokioIo::new(io), TowerToHyperService::new(router)));
            tokio::select! {
                _ = connection.as_mut() => return,
                () = stop.stopping() => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                _ = connection => {}
                () = stop.killed() => {}
            }
        }
    })
    .await;
}

impl Webhooks {
    /// The paths.
    pub fn router(self) -> Router {
        Router::new()
            .route("/inject", post(on_inject))
            .route("/validate", post(on_validate))
            .with_state(self)
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
    }
}

async fn on_inject(State(webhooks): State<Webhooks>, body: Bytes) -> Response {
    let start = Instant::now();
    let request = match Request::read(&body) {
        Ok(request) => request,
        Err(error) => return bad_request(&error),
    };
    let result = tokio::time::timeout(TIMEOUT, decide(&webhooks, &request)).await;
    let (answer, what) = match result {
        Ok(Ok(decided)) => decided,
        Ok(Err(error)) => return unavailable(&error),
        Err(_) => return unavailable("the annotations of the namespace could not be read in time"),
    };
    let (owner_kind, _) = inject::owner(request.object()).unwrap_or_default();
    let (annotation_at, skip_reason) = what;
    let namespace = request.namespace();
    webhooks
        .metrics
        .injected(&Injected { owner_kind: &owner_kind, namespace, annotation_at, skip_reason }, start.elapsed());
    answer.into_response(&request)
}

/// The answer about a pod; who asked for the proxy, and why it has none.
async fn decide(webhooks: &Webhooks, request: &Request) -> Result<(Answer, (&'static str, &'static str)), String> {
    if request.0["request"]["operation"] != "CREATE" || request.0["request"]["kind"]["kind"] != "Pod" {
        return Ok((Answer::allow(), ("", "unsupported_resource")));
    }
    let Some(values) = webhooks.values.borrow().clone() else {
        return Err("the trust anchors are not known yet".into());
    };
    let (pod, namespace) = (request.object(), request.namespace());
    let annotations = webhooks.namespaces.annotations(namespace).await?;
    let news = |warning: bool, reason: &'static str, note: String| {
        if !request.is_dry_run() {
            webhooks.events.tell(News::of(pod, namespace, warning, reason, note));
        }
    };
    let warn = |warnings: &[String]| {
        if !warnings.is_empty() {
            news(true, "InjectionWarning", warnings.join("; "));
        }
    };
    Ok(match inject(pod, &annotations, &values) {
        Ok(Outcome::Inject(injection)) => {
            news(false, "Injected", "pods get the proxy".into());
            warn(&injection.warnings);
            let place = match injection.asked_by {
                Place::Workload => "workload",
                Place::Namespace => "namespace",
            };
            let patch = injection.patch(&[]);
            (Answer { patch: Some(patch), warnings: injection.warnings, ..Answer::allow() }, (place, ""))
        }
        Ok(Outcome::Skip(skip)) => {
            let mut answer = Answer::allow();
            if skip == Skip::NotAsked {
                answer.warnings = inject::misspelt(pod, &annotations);
                warn(&answer.warnings);
            }
            if skip == Skip::Injected {
                // The same reason as of an injection: where we are asked again about a pod that we have just changed, its
                // owner knows already.
                news(false, "Injected", format!("pods stay as they are: {skip}"));
            }
            if skip.is_news() {
                let note = format!("pods stay without proxy: {skip}");
                answer.warnings.push(note.clone());
                news(true, "InjectionSkipped", note);
            }
            (answer, ("", skip.reason()))
        }
        Err(errors) => {
            let note = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            news(true, "InjectionRefused", note.clone());
            (Answer::refuse(note), ("", "invalid_annotation"))
        }
    })
}

async fn on_validate(State(webhooks): State<Webhooks>, body: Bytes) -> Response {
    let request = match Request::read(&body) {
        Ok(request) => request,
        Err(error) => return bad_request(&error),
    };
    let Verdict { errors, warnings } = match written::warnings(request.object()) {
        Some(warnings) => Verdict { warnings, ..Verdict::default() },
        None => validate(request.object()),
    };
    let kind = request.object()["kind"].as_str().unwrap_or("unknown").to_string();
    let answer = match errors.is_empty() {
        true => Answer { warnings, ..Answer::allow() },
        false => {
            Answer { warnings, ..Answer::refuse(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")) }
        }
    };
    webhooks.metrics.validated(&kind, if answer.allowed { "allowed" } else { "refused" });
    answer.into_response(&request)
}

/// An AdmissionReview with a request.
struct Request(Value);

impl Request {
    fn read(body: &[u8]) -> Result<Self, String> {
        let review: Value = serde_json::from_slice(body).map_err(|error| format!("no JSON: {error}"))?;
        if review["apiVersion"] != "admission.k8s.io/v1" || !review["request"]["uid"].is_string() {
            return Err("no AdmissionReview of admission.k8s.io/v1 with a request".into());
        }
        Ok(Request(review))
    }

    fn object(&self) -> &Value {
        &self.0["request"]["object"]
    }

    fn namespace(&self) -> &str {
        self.0["request"]["namespace"].as_str().unwrap_or_default()
    }

    fn is_dry_run(&self) -> bool {
        self.0["request"]["dryRun"] == true
    }
}

/// What the API server is told.
struct Answer {
    allowed: bool,
    patch: Option<Value>,
    warnings: Vec<String>,
    message: String,
}

impl Answer {
    fn allow() -> Self {
        Answer { allowed: true, patch: None, warnings: Vec::new(), message: String::new() }
    }

    fn refuse(message: String) -> Self {
        Answer { allowed: false, message, ..Self::allow() }
    }

    fn into_response(self, request: &Request) -> Response {
        let mut response = json!({ "uid": request.0["request"]["uid"], "allowed": self.allowed });
        if let Some(patch) = self.patch {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = json!(ByteString(patch.to_string().into_bytes()));
        }
        if !self.warnings.is_empty() {
            response["warnings"] = self.warnings.into();
        }
        if !self.allowed {
            response["status"] = json!({ "code": 422, "reason": "Invalid", "message": self.message });
        }
        let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response });
        ([("content-type", "application/json")], review.to_string()).into_response()
    }
}

fn bad_request(error: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response()
}

fn unavailable(error: &str) -> Response {
    tracing::warn!("a pod could not be decided about: {error}");
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
}

/// Less than the webhook configuration's own timeout, so that the API server hears why.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// A review carries an object twice at most; etcd's limit for one is 1.5 MiB.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// The API servers of a cluster, some connections each.
const MAX_CONNECTIONS: usize = 512;
/// For the head of a request, and between two: a new connection costs an admission 3 ms.
const IDLE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests;
