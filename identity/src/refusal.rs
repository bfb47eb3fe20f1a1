//! Why a certificate is not issued: one text for the caller, one short reason for metrics and logs.

use gossamer_api::workload::{Identity, InvalidIdentity};
use tonic::Status;

/// Why a certificate is not issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name that is asked for is none.
    #[error("{0}")]
    BadIdentity(#[from] InvalidIdentity),
    /// It is a name of another mesh.
    #[error("{identity} is not of this mesh; its identities are SERVICEACCOUNT.NAMESPACE.{suffix}")]
    ForeignIdentity {
        /// The name.
        identity: Identity,
        /// What ours end with.
        suffix: String,
    },
    /// Never issued, or revoked.
    #[error("the token is unknown or was revoked")]
    UnknownToken,
    /// Issued, and too old by now.
    #[error("the token has expired")]
    ExpiredToken,
    /// Kubernetes knows it not, or it is for another audience, or it has ended; its own words.
    #[error("Kubernetes refused the token: {0}")]
    TokenRefused(String),
    /// Kubernetes could not be asked.
    #[error("Kubernetes can't check the token now: {0}")]
    ReviewUnavailable(String),
    /// A good token, for someone else. Whom is not told.
    #[error("the token is not {0}'s")]
    OthersToken(Identity),
    /// Empty, or larger than any honest one.
    #[error("the certificate signing request has {bytes} bytes; 1 to {limit} are read")]
    CsrSize {
        /// Bytes it has.
        bytes: usize,
        /// Bytes it may have.
        limit: usize,
    },
    /// Not to be parsed.
    #[error("the certificate signing request is malformed: {0}")]
    CsrMalformed(&'static str),
    /// The signature is not by its key.
    #[error("the certificate signing request's signature is wrong")]
    CsrSignature,
    /// A kind of key that is not signed.
    #[error("the certificate signing request's key is refused: {0}")]
    CsrKey(&'static str),
    /// Asks for a name that is not the caller's.
    #[error("the certificate signing request is refused: {0}")]
    CsrName(&'static str),
    /// Too many; try again later.
    #[error("too many certificates were asked for {0}")]
    RateLimited(&'static str),
    /// Nothing can be issued.
    #[error("the issuer can't sign: {0}")]
    Issuer(String),
}

impl Refusal {
    /// The short reason.
    pub fn reason(&self) -> &'static str {
        REASONS[self.index()]
    }

    /// The place of the reason in [`REASONS`].
    pub fn index(&self) -> usize {
        match self {
            Refusal::BadIdentity(_) => 0,
            Refusal::ForeignIdentity { .. } => 1,
            Refusal::UnknownToken => 2,
            Refusal::ExpiredToken => 3,
            Refusal::OthersToken(_) => 4,
            Refusal::CsrSize { .. } => 5,
            Refusal::CsrMalformed(_) => 6,
            Refusal::CsrSignature => 7,
            Refusal::CsrKey(_) => 8,
            Refusal::CsrName(_) => 9,
            Refusal::RateLimited(_) => 10,
            Refusal::Issuer(_) => 11,
            Refusal::TokenRefused(_) => 12,
            Refusal::ReviewUnavailable(_) => 13,
        }
    }

    /// The answer to the caller.
    pub fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            Refusal::UnknownToken
            | Refusal::ExpiredToken
            | Refusal::TokenRefused(_)
            | Refusal::OthersToken(_)
            | Refusal::CsrName(_) => Status::permission_denied(text),
            Refusal::RateLimited(_) => Status::resource_exhausted(text),
            Refusal::Issuer(_) | Refusal::ReviewUnavailable(_) => Status::unavailable(text),
            _ => Status::invalid_argument(text),
        }
    }
}

/// Every short reason.
pub const REASONS: [&str; 14] = [
    "bad_identity",
    "foreign_identity",
    "unknown_token",
    "expired_token",
    "others_token",
    "csr_size",
    "csr_malformed",
    "csr_signature",
    "csr_key",
    "csr_name",
    "rate_limited",
    "issuer",
    "token_refused",
    "review_unavailable",
];
