//! Who asks: a token proves exactly one identity.
//!
//! On a plain machine that is a join token: 256 random bits, handed to one workload and kept here only as a hash, so
//! that neither a look-up's timing nor a dump of this process gives one away. In Kubernetes it is a service account's
//! token, which `kubernetes/review.rs` has checked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use gossamer_api::workload::Identity;

use crate::kubernetes::review::TokenReviews;
use crate::refusal::Refusal;

/// How tokens are checked.
#[derive(Clone, Debug)]
pub enum TokenCheck {
    /// Against those that this process issued.
    JoinTokens(JoinTokens),
    /// By Kubernetes.
    Review(TokenReviews),
}

/// Who presented a token, as far as it proves that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its identity.
    pub identity: Identity,
    /// The pod that the token is bound to.
    pub pod: Option<Pod>,
}

/// A pod of Kubernetes, in the namespace of its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl TokenCheck {
    /// Whose token it is.
    pub async fn check(&self, token: &[u8]) -> Result<Caller, Refusal> {
        match self {
            TokenCheck::JoinTokens(tokens) => tokens.check(token, SystemTime::now()),
            TokenCheck::Review(reviews) => reviews.check(token).await,
        }
    }
}

/// The join tokens that are good now. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct JoinTokens(Arc<Mutex<HashMap<Hash, Bound>>>);

type Hash = [u8; 32];

#[derive(Clone)]
struct Bound {
    identity: Identity,
    expires: Option<SystemTime>,
}

/// There are too many tokens already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_TOKENS} join tokens already")]
pub struct TooManyTokens;

impl JoinTokens {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A new token of `identity`, good until it is dropped, at most for `life`.
    pub fn issue(&self, identity: &Identity, life: Option<Duration>) -> Result<JoinToken, TooManyTokens> {
        let mut random = [0; 32];
        // Fails only where the system has no randomness, when no key can be made either.
        aws_lc_rs::rand::fill(&mut random).expect("the system has randomness");
        let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let hash = self.accept(&secret, identity, life)?;
        Ok(JoinToken { secret, revoke: Some((self.clone(), hash)) })
    }

    /// Makes a secret from elsewhere (a file) a token of `identity`. The caller vouches for its randomness.
    fn accept(&self, secret: &str, identity: &Identity, life: Option<Duration>) -> Result<Hash, TooManyTokens> {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        if tokens.len() >= MAX_TOKENS {
            tokens.retain(|_, bound| bound.expires.is_none_or(|end| now < end));
        }
        if tokens.len() >= MAX_TOKENS {
            return Err(TooManyTokens);
        }
        let hash = hash(secret.as_bytes());
        tokens.insert(hash, Bound { identity: identity.clone(), expires: life.map(|life| now + life) });
        Ok(hash)
    }

    /// Reads lines of `IDENTITY TOKEN`; `#` begins a comment. All are taken or none.
    pub fn read(&self, text: &str) -> Result<usize, anyhow::Error> {
        let mut read = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let nth = at + 1;
            let Some((identity, secret)) = line.split_once(char::is_whitespace) else {
                anyhow::bail!("line {nth}: an identity and a token are needed");
            };
            let (identity, secret): (Identity, _) = (identity.parse()?, secret.trim());
            anyhow::ensure!(secret.len() >= 32, "line {nth}: a token has at least 32 characters");
            read.push((identity, secret));
        }
        for (identity, secret) in &read {
            self.accept(secret, identity, None)?;
        }
        Ok(read.len())
    }

    /// How many there are, expired ones included.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self, token: &[u8], now: SystemTime) -> Result<Caller, Refusal> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refusal::UnknownToken);
        }
        // A file's last newline is no part of it.
        let hash = hash(token.trim_ascii());
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = tokens.get(&hash).ok_or(Refusal::UnknownToken)?;
        if bound.expires.is_some_and(|end| now >= end) {
            return Err(Refusal::ExpiredToken);
        }
        Ok(Caller { identity: bound.identity.clone(), pod: None })
    }
}

impl std::fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinTokens({})", self.len())
    }
}

/// A token that was issued; revoked on drop.
pub struct JoinToken {
    secret: String,
    revoke: Option<(JoinTokens, Hash)>,
}

impl JoinToken {
    /// What the workload presents.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Lets it live as long as the process (or its own life).
    pub fn keep(mut self) -> String {
        self.revoke = None;
        std::mem::take(&mut self.secret)
    }
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        if let Some((tokens, hash)) = &self.revoke {
            tokens.0.lock().unwrap_or_else(PoisonError::into_inner).remove(hash);
        }
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinToken")
    }
}

fn hash(secret: &[u8]) -> Hash {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// Far more workloads than one machine runs.
const MAX_TOKENS: usize = 100_000;
/// A service-account token has about 1 KiB.
pub(crate) const MAX_TOKEN_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Identity {
        Identity::service_account(name, "demo", "gossamer", "cluster.local").unwrap()
    }

    #[test]
    fn a_token_is_good_for_one_identity_until_dropped() {
        let tokens = JoinTokens::new();
        let now = SystemTime::now();
        let token = tokens.issue(&id("web"), None).unwrap();
        let secret = token.secret().to_owned();
        assert_eq!(secret.len(), 64);
        let web = Caller { identity: id("web"), pod: None };
        assert_eq!(tokens.check(format!("{secret}\n").as_bytes(), now), Ok(web));
        for wrong in ["", &secret[1..], &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            assert_eq!(tokens.check(wrong.as_bytes(), now), Err(Refusal::UnknownToken));
        }
        assert!(!format!("{tokens:?} {token:?}").contains(&secret));
        drop(token);
        assert_eq!(tokens.check(secret.as_bytes(), now), Err(Refusal::UnknownToken));
        assert!(tokens.is_empty());
    }

    #[test]
    fn a_token_may_end() {
        let tokens = JoinTokens::new();
        let secret = tokens.issue(&id("web"), Some(Duration::from_secs(60))).unwrap().keep();
        let now = SystemTime::now();
        assert!(tokens.check(secret.as_bytes(), now).is_ok());
        let later = now + Duration::from_secs(61);
        assert_eq!(tokens.check(secret.as_bytes(), later), Err(Refusal::ExpiredToken));
    }

    #[test]
    fn tokens_are_read_from_a_file() {
        let tokens = JoinTokens::new();
        let secret = "s".repeat(40);
        assert_eq!(tokens.read(&format!("# vms\n\n{} {secret}\n", id("web"))).unwrap(), 1);
        assert_eq!(tokens.check(secret.as_bytes(), SystemTime::now()).map(|caller| caller.identity), Ok(id("web")));
        assert!(tokens.read(&id("web").to_string()).unwrap_err().to_string().contains("line 1"));
        assert!(tokens.read(&format!("{} short", id("web"))).unwrap_err().to_string().contains("32 characters"));
    }
}
