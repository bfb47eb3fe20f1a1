//! The newest requests that failed here or that somebody watched, by name, for `meshctl why`.
//!
//! **Invariant:** bounded in number and size, and only touched by requests that failed or are watched: what goes well
//! costs nothing.

use super::{TapService, may_tap};
use gossamer_api::defaults::REMEMBERED;
use gossamer_api::process::grpc::PeerIdentity;
use gossamer_api::request_id::RequestId;
use gossamer_api::wire::mesh::requests_server::Requests;
use gossamer_api::wire::mesh::{RequestName, RequestStory};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tonic::{Request, Response, Status};

/// Bytes of a text that a client chose; what is longer is cut.
pub const TEXT_BYTES: usize = 512;

/// What a proxy remembers.
#[derive(Debug)]
pub struct Journal {
    base: u32,
    next: AtomicU64,
    /// The oldest first. Held for a push or a look.
    stories: Mutex<VecDeque<(u64, Box<RequestStory>)>>,
}

impl Journal {
    /// Empty, with a base of its own.
    pub(super) fn new() -> Self {
        Journal { base: fastrand::u32(..), next: AtomicU64::new(1), stories: Mutex::default() }
    }

    /// A name that no other request of this process has.
    pub fn name(&self) -> RequestId {
        RequestId { base: self.base, stream: self.next.fetch_add(1, Ordering::Relaxed) }
    }

    /// Keeps a story until newer ones need its place.
    pub fn remember(&self, id: RequestId, story: Box<RequestStory>) {
        let forgotten = {
            let mut stories = self.stories.lock().unwrap_or_else(PoisonError::into_inner);
            let oldest = if stories.len() >= REMEMBERED { stories.pop_front() } else { None };
            stories.push_back((id.stream, story));
            oldest
        };
        // Freed without the lock.
        drop(forgotten);
    }

    /// The story of that name, if it is remembered.
    pub fn find(&self, id: RequestId) -> Option<RequestStory> {
        if id.base != self.base {
            return None;
        }
        let stories = self.stories.lock().unwrap_or_else(PoisonError::into_inner);
        stories.iter().rev().find(|(stream, _)| *stream == id.stream).map(|(_, story)| RequestStory::clone(story))
    }
}

/// At most [`TEXT_BYTES`] of it, whole characters.
pub fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_string()
}

#[tonic::async_trait]
impl Requests for TapService {
    async fn explain(&self, request: Request<RequestName>) -> Result<Response<RequestStory>, Status> {
        if !request.extensions().get::<PeerIdentity>().is_some_and(may_tap) {
            return Err(Status::permission_denied("requests are only explained to this host"));
        }
        let RequestName { base, stream } = request.into_inner();
        let found = self.0.journal().find(RequestId { base, stream });
        found.map(Response::new).ok_or_else(|| Status::not_found("this proxy does not remember that request"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story(path: &str) -> Box<RequestStory> {
        Box::new(RequestStory { path: path.into(), ..RequestStory::default() })
    }

    #[test]
    fn the_newest_are_remembered_and_no_more() {
        let journal = Journal::new();
        let names: Vec<RequestId> = (0..REMEMBERED + 3).map(|_| journal.name()).collect();
        for (index, name) in names.iter().enumerate() {
            journal.remember(*name, story(&format!("/{index}")));
        }
        let path = |id: RequestId| journal.find(id).map(|story| story.path);
        assert_eq!((path(names[2]), path(names[3])), (None, Some("/3".into())));
        assert_eq!(path(names[REMEMBERED + 2]), Some(format!("/{}", REMEMBERED + 2)));
        assert_eq!(path(RequestId { base: !names[3].base, ..names[3] }), None, "of another proxy");
        assert_eq!(journal.stories.lock().unwrap().len(), REMEMBERED);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = "ä".repeat(TEXT_BYTES);
        assert_eq!(cut(&long).len(), TEXT_BYTES);
        assert!(cut(&format!("x{long}")).len() < TEXT_BYTES);
    }
}
