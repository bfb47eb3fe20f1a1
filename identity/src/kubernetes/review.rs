//! Whose a service account's token is: the API server says (TokenReview), for our audience alone.
//!
//! Nothing is kept: a deleted pod or service account gets no certificate from the moment that Kubernetes knows.
//!
//! **Invariant:** an answer that is not clearly yes, for our audience and about a service account, is no.

use std::sync::Arc;
use std::time::Duration;

use gossamer_api::workload::Identity;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;

use crate::refusal::Refusal;
use crate::token::{Caller, MAX_TOKEN_BYTES, Pod};

/// Asks the API server. Cheap to clone.
#[derive(Clone)]
pub struct TokenReviews(Arc<Inner>);

struct Inner {
    api: Api<TokenReview>,
    audience: String,
    control_namespace: String,
    trust_domain: String,
    /// Asked at once.
    asked: Semaphore,
    /// Asked or waiting.
    admitted: Semaphore,
}

impl TokenReviews {
    /// Accepts tokens for `audience`; their service accounts' identities are of this mesh.
    pub fn new(client: Client, audience: &str, control_namespace: &str, trust_domain: &str) -> Self {
        TokenReviews(Arc::new(Inner {
            api: Api::all(client),
            audience: audience.to_owned(),
            control_namespace: control_namespace.to_owned(),
            trust_domain: trust_domain.to_owned(),
            asked: Semaphore::new(AT_ONCE),
            admitted: Semaphore::new(AT_ONCE + WAITING),
        }))
    }

    /// Whose token it is.
    pub async fn check(&self, token: &[u8]) -> Result<Caller, Refusal> {
        let inner = &self.0;
        let token = match std::str::from_utf8(token.trim_ascii()) {
            Ok(token) if !token.is_empty() && token.len() <= MAX_TOKEN_BYTES => token,
            _ => return Err(Refusal::TokenRefused("it is no service account's token".to_owned())),
        };
        let Ok(_admitted) = inner.admitted.try_acquire() else {
            return Err(Refusal::ReviewUnavailable(format!("{} tokens are being checked already", AT_ONCE + WAITING)));
        };
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![inner.audience.clone()]) },
            ..TokenReview::default()
        };
        let ask = async {
            let _asked = inner.asked.acquire().await;
            inner.api.create(&PostParams::default(), &review).await
        };
        match tokio::time::timeout(PATIENCE, ask).await {
            Ok(Ok(answer)) => inner.judge(answer.status.unwrap_or_default()),
            Ok(Err(error)) => Err(Refusal::ReviewUnavailable(causes(&error))),
            Err(_) => Err(Refusal::ReviewUnavailable(format!("the API server did not answer within {PATIENCE:?}"))),
        }
    }
}

impl Inner {
    fn judge(&self, status: TokenReviewStatus) -> Result<Caller, Refusal> {
        let refused = |reason: String| Err(Refusal::TokenRefused(reason));
        if status.authenticated != Some(true) {
            // The API server's own words: expired, another audience, the pod is gone...
            return refused(match status.error {
                Some(error) => error.chars().take(MAX_REASON).collect(),
                None => "it is not authenticated".to_owned(),
            });
        }
        // An API server that knows nothing of audiences accepts any token, also one for itself.
        if !status.audiences.iter().flatten().any(|audience| *audience == self.audience) {
            return refused(format!("it is not for the audience {:?}", self.audience));
        }
        let user = status.user.unwrap_or_default();
        let name = user.username.unwrap_or_default();
        let account = name.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
        let Some((namespace, account)) = account else {
            return refused(format!("{name:?} is no service account"));
        };
        let identity = Identity::service_account(account, namespace, &self.control_namespace, &self.trust_domain)
            .map_err(|error| Refusal::TokenRefused(format!("no identity can be made of {name:?}: {error}")))?;
        let extra = |key: &str| {
            let values = user.extra.as_ref()?.get(&format!("authentication.kubernetes.io/{key}"))?;
            values.first().cloned()
        };
        let pod = extra("pod-name").zip(extra("pod-uid")).map(|(name, uid)| Pod { name, uid });
        Ok(Caller { identity, pod })
    }
}

impl std::fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenReviews({})", self.0.audience)
    }
}

/// An error down to its cause: hyper's own text is "client error".
pub(super) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => return format!("{} ({})", status.message, status.code),
        _ => error.to_string(),
    };
    let mut source = error.source();
    while let Some(error) = source {
        let own = error.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        source = error.source();
    }
    text
}

/// The API server's share for one client is bounded as well; a review takes it a millisecond or two.
const AT_ONCE: usize = 64;
/// A cluster that starts at once; more than that could not be answered within [`PATIENCE`].
const WAITING: usize = 4096;
/// Below the 15 s that a client waits for its certificate, so that it hears the reason.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of the API server's words, which repeat parts of the token's claims.
const MAX_REASON: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn judge(status: serde_json::Value) -> Result<Caller, Refusal> {
        let service = tower_stub();
        TokenReviews::new(service, "identity.gossamer.io", "gossamer", "cluster.local")
            .0
            .judge(serde_json::from_value(status).unwrap())
    }

    /// Never asked.
    fn tower_stub() -> Client {
        Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap()
    }

    fn status(user: &str, audiences: &[&str]) -> serde_json::Value {
        serde_json::json!({ "authenticated": true, "audiences": audiences, "user": { "username": user } })
    }

    #[tokio::test]
    async fn only_a_clear_yes_is_one() {
        const OURS: &[&str] = &["identity.gossamer.io"];
        let web = judge(status("system:serviceaccount:demo:web", OURS)).unwrap();
        assert_eq!(web.identity.as_str(), "web.demo.serviceaccount.identity.gossamer.cluster.local");
        assert_eq!(web.pod, None);
        let cases = [
            (serde_json::json!({}), "it is not authenticated"),
            (serde_json::json!({ "authenticated": false, "error": "token expired" }), "token expired"),
            (serde_json::json!({ "error": "x", "user": { "username": "system:serviceaccount:demo:web" } }), "x"),
            (status("system:serviceaccount:demo:web", &[]), "not for the audience"),
            (status("system:serviceaccount:demo:web", &["kubernetes"]), "not for the audience"),
            (status("system:node:n1", OURS), "is no service account"),
            (status("system:serviceaccount:demo", OURS), "is no service account"),
            (status("", OURS), "is no service account"),
            (status("system:serviceaccount::web", OURS), "no identity"),
            (status("system:serviceaccount:demo:-", OURS), "no identity"),
        ];
        for (status, expected) in cases {
            match judge(status.clone()) {
                Err(Refusal::TokenRefused(reason)) => assert!(reason.contains(expected), "{status}: {reason}"),
                other => panic!("{status}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_bound_token_tells_its_pod() {
        let mut answer = status("system:serviceaccount:demo:web", &["identity.gossamer.io"]);
        answer["user"]["extra"] = serde_json::to_value(BTreeMap::from([
            ("authentication.kubernetes.io/pod-name", ["web-1"]),
            ("authentication.kubernetes.io/pod-uid", ["42"]),
        ]))
        .unwrap();
        assert_eq!(judge(answer).unwrap().pod, Some(Pod { name: "web-1".into(), uid: "42".into() }));
    }

    #[tokio::test]
    async fn no_api_server_is_not_the_callers_fault() {
        let reviews = TokenReviews::new(tower_stub(), "a", "gossamer", "cluster.local");
        let refusal = reviews.check(b"token").await.unwrap_err();
        assert_eq!(refusal.status().code(), tonic::Code::Unavailable, "{refusal}");
        for no_token in [&b""[..], b" \n", &[0xff], &[b'x'; MAX_TOKEN_BYTES + 1]] {
            let refusal = reviews.check(no_token).await.unwrap_err();
            assert_eq!(refusal.status().code(), tonic::Code::PermissionDenied);
        }
    }
}
