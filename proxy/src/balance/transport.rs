//! The header that starts a hop to another proxy: which port it is for and what is spoken after it.
//!
//! Source: linkerd2-proxy transport-header: a preface, a big-endian u32 length, a protobuf message.

use bytes::{BufMut, BytesMut};
use gossamer_api::keys::TRANSPORT_PREFACE;
use prost::Message;

/// The longest header read. Source: linkerd2-proxy; a name has at most 253 bytes.
const MAX_BYTES: usize = 1024;

/// What is spoken after the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Session {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The port of the workload.
    pub port: u16,
    /// Another name than the peer's own: only gateways take it.
    pub name: Option<String>,
    /// `None`: bytes.
    pub session: Option<Session>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Proto {
    #[prost(int32, tag = "1")]
    port: i32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, optional, tag = "3")]
    protocol: Option<SessionProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionProto {
    #[prost(oneof = "Kind", tags = "1, 2")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Http1(Empty),
    #[prost(message, tag = "2")]
    Http2(Empty),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

impl Header {
    /// Preface, length and message.
    pub fn encode(&self) -> BytesMut {
        let protocol = self.session.map(|session| SessionProto {
            kind: Some(match session {
                Session::Http1 => Kind::Http1(Empty {}),
                Session::Http2 => Kind::Http2(Empty {}),
            }),
        });
        let message =
            Proto { port: i32::from(self.port), name: self.name.clone().unwrap_or_default(), protocol }.encode_to_vec();
        let mut bytes = BytesMut::with_capacity(TRANSPORT_PREFACE.len() + 4 + message.len());
        bytes.put_slice(TRANSPORT_PREFACE);
        bytes.put_u32(message.len() as u32);
        bytes.put_slice(&message);
        bytes
    }

    /// Takes a header off the front: `Ok(None)` when more bytes are needed.
    pub fn decode(bytes: &mut BytesMut) -> Result<Option<Header>, &'static str> {
        let start = TRANSPORT_PREFACE.len();
        let common = bytes.len().min(start);
        if bytes[..common] != TRANSPORT_PREFACE[..common] {
            return Err("no transport header");
        }
        if bytes.len() < start + 4 {
            return Ok(None);
        }
        let length = u32::from_be_bytes([bytes[start], bytes[start + 1], bytes[start + 2], bytes[start + 3]]) as usize;
        if length > MAX_BYTES {
            return Err("transport header too long");
        }
        if bytes.len() < start + 4 + length {
            return Ok(None);
        }
        let taken = bytes.split_to(start + 4 + length);
        let proto = Proto::decode(&taken[start + 4..]).map_err(|_| "malformed transport header")?;
        let port = u16::try_from(proto.port).ok().filter(|port| *port > 0).ok_or("transport header without a port")?;
        let session = match proto.protocol.and_then(|protocol| protocol.kind) {
            Some(Kind::Http1(_)) => Some(Session::Http1),
            Some(Kind::Http2(_)) => Some(Session::Http2),
            None => None,
        };
        Ok(Some(Header { port, name: (!proto.name.is_empty()).then_some(proto.name), session }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_survives_any_cut() {
        for session in [None, Some(Session::Http1), Some(Session::Http2)] {
            let header = Header { port: 8080, name: Some("a.b".into()), session };
            let whole = header.encode();
            for end in 0..whole.len() {
                assert_eq!(Header::decode(&mut BytesMut::from(&whole[..end])), Ok(None));
            }
            let mut bytes = whole.clone();
            bytes.extend_from_slice(b"rest");
            assert_eq!(Header::decode(&mut bytes), Ok(Some(header)));
            assert_eq!(&bytes[..], b"rest");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = BytesMut::from(TRANSPORT_PREFACE);
            bytes.extend_from_slice(&tail);
            let _ = Header::decode(&mut bytes);
            let _ = Header::decode(&mut BytesMut::from(&tail[..]));
        }
    }
}
