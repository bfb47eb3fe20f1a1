//! The name of one request at one proxy: short, printable, and to be given to `meshctl why`.
//!
//! It is the tap API's `StreamId`: a base that is random for each process, and a number that no other request of that
//! process has.

use std::fmt;
use std::str::FromStr;

/// `3f9a01bc-42`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// Random, for the life of the proxy's process.
    pub base: u32,
    /// Unique in it.
    pub stream: u64,
}

/// Not the name of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request's name is eight hexadecimal digits, a hyphen and a number")]
pub struct NoRequestId;

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}", self.base, self.stream)
    }
}

impl FromStr for RequestId {
    type Err = NoRequestId;

    fn from_str(text: &str) -> Result<Self, NoRequestId> {
        let (base, stream) = text.split_once('-').ok_or(NoRequestId)?;
        let digits = stream.bytes().all(|byte| byte.is_ascii_digit());
        if base.len() != 8 || !base.bytes().all(|byte| byte.is_ascii_hexdigit()) || !digits {
            return Err(NoRequestId);
        }
        let base = u32::from_str_radix(base, 16).map_err(|_| NoRequestId)?;
        Ok(RequestId { base, stream: stream.parse().map_err(|_| NoRequestId)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_reason_code_is_no_request() {
        for text in ["no-route", "deadbeef-", "deadbee-1", "deadbeef-x", "+eadbeef-1", "deadbeef-99999999999999999999"]
        {
            assert_eq!(text.parse::<RequestId>(), Err(NoRequestId), "{text}");
        }
        assert_eq!("0000002A-7".parse(), Ok(RequestId { base: 42, stream: 7 }));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(base: u32, stream: u64) {
            let id = RequestId { base, stream };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = text.parse::<RequestId>();
        }
    }
}
