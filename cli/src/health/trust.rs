//! Roots of trust and the issuer under them: there, of each other, and valid for long enough to be replaced at leisure.

use super::Findings;
use super::control_plane::INSTALL;
use crate::cluster::Cluster;
use crate::installation::present::{Present, is_anothers};
use gossamer_api::process::tls::{Anchors, not_after_of};
use gossamer_identity::issuer::{Issuer, rfc3339};
use k8s_openapi::api::core::v1::Secret;
use std::time::{Duration, SystemTime};

const ROTATE: &str = "meshctl identity rotate-root";
/// Time enough to plan a rotation.
const SOON: Duration = Duration::from_secs(60 * 24 * 3600);
/// A controller renews what it manages; with less than this left, it does not.
const RENEWED_BY_OTHERS: Duration = Duration::from_secs(3600);

/// Looks at what the cluster has.
pub(super) async fn check(cluster: &Cluster, present: &Present, findings: &mut Findings) {
    let now = SystemTime::now();
    let Some(anchors) = anchors(present.kept.anchors.as_deref(), now, findings) else { return };
    match cluster.get(&cluster.control_namespace, "gossamer-identity-issuer").await {
        Ok(secret) => issuer(secret.as_ref(), anchors, now, findings),
        Err(error) => findings.warn(SIGNS, Some((error.message, "ask for the right to read it"))),
    }
}

const SIGNS: &str = "the issuer signs for one of them";

fn anchors(pem: Option<&str>, now: SystemTime, findings: &mut Findings) -> Option<Anchors> {
    let what = format!("trust anchors are valid for at least {} days", SOON.as_secs() / 86_400);
    let Some(pem) = pem else {
        findings.add(what, Some(("there are none in the ConfigMap gossamer-trust-anchors".into(), INSTALL)));
        return None;
    };
    let anchors = match Anchors::from_pem(pem) {
        Ok(anchors) => anchors,
        Err(error) => {
            findings.add(what, Some((error.to_string(), ROTATE)));
            return None;
        }
    };
    let ends = anchors.certificates().iter().filter_map(|anchor| not_after_of(anchor).ok());
    // During a rotation the old one may be near its end: the last counts.
    let end = ends.max().unwrap_or(now);
    findings.add(what, (end < now + SOON).then(|| (format!("the last {}", ends_at(end, now)), ROTATE)));
    Some(anchors)
}

fn issuer(secret: Option<&Secret>, anchors: Anchors, now: SystemTime, findings: &mut Findings) {
    let data = secret.and_then(|secret| secret.data.clone()).unwrap_or_default();
    let text =
        |key: &str| data.get(key).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default();
    let others = secret.is_some_and(is_anothers);
    match Issuer::of_secret(&text("tls.crt"), &text("tls.key"), &text("ca.crt"), anchors, now) {
        Ok(issuer) => {
            findings.add(SIGNS, None::<(_, String)>);
            let (needed, hint) = match others {
                true => (RENEWED_BY_OTHERS, "look at the controller that renews it"),
                false => (SOON, ROTATE),
            };
            let end = issuer.not_after();
            let dying = (end < now + needed).then(|| (format!("it {}", ends_at(end, now)), hint));
            findings.add("the issuer's certificate is valid for long enough", dying);
        }
        Err(error) => {
            let hint = match others {
                true => "look at the controller that writes the secret gossamer-identity-issuer",
                false => {
                    "give another one: meshctl upgrade --issuer-certificate FILE --issuer-key FILE --trust-anchors FILE"
                }
            };
            findings.add(SIGNS, Some((error.to_string(), hint)));
        }
    }
}

fn ends_at(end: SystemTime, now: SystemTime) -> String {
    format!("{} at {}", if end < now { "ended" } else { "ends" }, rfc3339(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_identity::issuer::{Authority, new_issuer, new_root};
    use k8s_openapi::ByteString;
    use std::collections::BTreeMap;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn secret(issuer: &Authority, annotations: &[(&str, &str)]) -> Secret {
        let mut secret = Secret {
            data: Some(BTreeMap::from([
                ("tls.crt".into(), ByteString(issuer.certificate.clone().into_bytes())),
                ("tls.key".into(), ByteString(issuer.key.clone().into_bytes())),
            ])),
            ..Secret::default()
        };
        let annotations = annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        secret.metadata.annotations = Some(annotations);
        secret
    }

    /// What is wrong, with what to do.
    fn wrong(pem: Option<&str>, secret: Option<&Secret>, now: SystemTime) -> Vec<(String, String)> {
        let mut findings = Findings::of("x");
        if let Some(anchors) = anchors(pem, now, &mut findings) {
            issuer(secret, anchors, now, &mut findings);
        }
        findings.into_vec().into_iter().filter_map(|finding| finding.problem).collect()
    }

    fn check(pem: Option<&str>, secret: Option<&Secret>, expect: &[(&str, &str)]) {
        let wrong = wrong(pem, secret, SystemTime::now());
        assert_eq!(wrong.len(), expect.len(), "{wrong:?}");
        for ((problem, hint), (is, say)) in wrong.iter().zip(expect) {
            assert!(problem.contains(is) && hint.contains(say), "{problem}: {hint}");
        }
    }

    #[test]
    fn roots_and_issuers_end_and_must_belong_together() {
        let now = SystemTime::now();
        let root = new_root("cluster.local", now).unwrap();
        let other = new_root("cluster.local", now).unwrap();
        let root_of_past = new_root("cluster.local", now - 1000 * DAY).unwrap();
        let pem = root.certificate.as_str();
        let ours = secret(&new_issuer(&root.pem(), "cluster.local", now).unwrap(), &[]);
        let foreign = secret(&new_issuer(&other.pem(), "cluster.local", now).unwrap(), &[]);
        let managed = [("cert-manager.io/issuer-name", "x")];
        let theirs = secret(&new_issuer(&other.pem(), "cluster.local", now).unwrap(), &managed);
        check(Some(pem), Some(&ours), &[]);
        check(None, Some(&ours), &[("there are none in the ConfigMap", "meshctl install")]);
        check(Some("nothing"), Some(&ours), &[("", ROTATE)]);
        check(Some(pem), Some(&foreign), &[("issuer: ", "meshctl upgrade --issuer-certificate")]);
        check(Some(pem), Some(&theirs), &[("issuer: ", "look at the controller that writes")]);
        check(Some(pem), None, &[("issuer: ", "meshctl upgrade --issuer-certificate")]);
        // The bundle of a rotation: the issuer signs for one of both.
        let both = format!("{pem}{}", other.certificate);
        check(Some(&both), Some(&foreign), &[]);
        // Made long ago: what an issuer signs is verified by the real clock.
        let aged =
            |days: u32| secret(&new_issuer(&root_of_past.pem(), "cluster.local", now - days * DAY).unwrap(), &[]);
        let pem = root_of_past.certificate.as_str();
        check(Some(pem), Some(&aged(100)), &[]);
        check(Some(pem), Some(&aged(335)), &[("it ends at", ROTATE)]);
        check(Some(pem), Some(&aged(366)), &[("expired at", "meshctl upgrade --issuer-certificate")]);
        let dying = new_root("cluster.local", now - 3620 * DAY).unwrap();
        let young = secret(&new_issuer(&dying.pem(), "cluster.local", now - DAY).unwrap(), &managed);
        check(Some(&dying.certificate), Some(&young), &[("the last ends at", ROTATE)]);
        let dead = new_root("cluster.local", now - 3651 * DAY).unwrap();
        let late = secret(&new_issuer(&dead.pem(), "cluster.local", now - 3640 * DAY).unwrap(), &managed);
        check(
            Some(&dead.certificate),
            Some(&late),
            &[("the last ended at", ROTATE), ("expired", "look at the controller")],
        );
    }
}
