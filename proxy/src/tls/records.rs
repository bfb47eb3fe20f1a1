//! Records of TLS 1.3 (RFC 8446, section 5): bytes sealed and opened with the keys of one direction.
//!
//! **Invariant:** no nonce is used twice: each record takes the next number, and a key is replaced long before its
//! numbers or the safety of its cipher run out.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};
use std::io::IoSlice;

/// Most plaintext in a record. Source: RFC 8446, section 5.1.
pub(super) const PLAIN: usize = 16 * 1024;
/// What a record of ours has besides its plaintext: header, type, tag.
pub(super) const OVERHEAD: usize = HEADER + 1 + TAG;
/// A record with as much plaintext as there may be.
pub(super) const FULL: usize = PLAIN + OVERHEAD;

const HEADER: usize = 5;
const TAG: usize = 16;
/// Most bytes after the header. Source: RFC 8446, section 5.2.
const PAYLOAD: usize = PLAIN + 256;

/// Records sealed with one key before it is replaced: half of what RFC 8446, section 5.5, allows for AES-GCM (2^24.5
/// full records), as a round number.
pub(super) const REKEY_AFTER: u64 = 1 << 23;

/// The type of what is within a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Content {
    /// Orders about the connection.
    Alert = 21,
    /// Tickets and new keys.
    Handshake = 22,
    /// The application's bytes.
    Data = 23,
}

/// Why a connection has to end, as the peer is told. Source: RFC 8446, section 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Alert {
    /// The end of what we send.
    CloseNotify = 0,
    /// A record of a kind that has no place here.
    UnexpectedMessage = 10,
    /// Not sealed with the key that we share.
    BadRecordMac = 20,
    /// Longer than may be.
    RecordOverflow = 22,
    /// A field with a value that it can't have.
    IllegalParameter = 47,
    /// Not as it should be written.
    DecodeError = 50,
    /// Our own fault.
    InternalError = 80,
}

/// The key of one direction, and the number of its next record.
pub(super) struct Key {
    key: LessSafeKey,
    iv: [u8; aead::NONCE_LEN],
    next: u64,
}

impl Key {
    /// From what the handshake agreed on. `None`: a cipher that we do not have, and so never agree on.
    pub(super) fn new((next, secrets): (u64, ConnectionTrafficSecrets)) -> Option<Key> {
        let (algorithm, key, iv): (_, AeadKey, Iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return None,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?);
        Some(Key { key, iv: iv.as_ref().try_into().ok()?, next })
    }

    /// Records that went through it.
    pub(super) fn used(&self) -> u64 {
        self.next
    }

    /// The nonce of the next record: its number over the vector. Source: RFC 8446, section 5.3.
    fn nonce(&mut self) -> Result<Nonce, Alert> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.next.to_be_bytes()) {
            *byte ^= number;
        }
        self.next = self.next.checked_add(1).ok_or(Alert::InternalError)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Seals `plain` (at most [`PLAIN`] bytes) into the front of `out`, which has room for it and [`OVERHEAD`].
    /// Returns the length of the record.
    pub(super) fn seal(&mut self, content: Content, plain: &[u8], out: &mut [u8]) -> Result<usize, Alert> {
        let (header, total) = header(plain.len());
        let nonce = self.nonce()?;
        let (head, rest) = out[..total].split_at_mut(HEADER);
        head.copy_from_slice(&header);
        let (body, tail) = rest.split_at_mut(plain.len());
        self.key
            .seal_out_of_place_scatter(nonce, Aad::from(header), plain, body, &[content as u8], tail)
            .map_err(|_| Alert::InternalError)?;
        Ok(total)
    }

    /// As [`seal`](Self::seal), of the application's bytes that lie in pieces: the first `count` bytes of `pieces`.
    pub(super) fn seal_pieces(
        &mut self,
        pieces: &mut &mut [IoSlice<'_>],
        count: usize,
        out: &mut [u8],
    ) -> Result<usize, Alert> {
        if let Some(first) = pieces.first()
            && first.len() >= count
        {
            let total = self.seal(Content::Data, &first[..count], out)?;
            IoSlice::advance_slices(pieces, count);
            return Ok(total);
        }
        let (header, total) = header(count);
        let nonce = self.nonce()?;
        let (head, rest) = out[..total].split_at_mut(HEADER);
        head.copy_from_slice(&header);
        let (body, tail) = rest.split_at_mut(count);
        let mut at = 0;
        while at < count {
            let piece = pieces.first().ok_or(Alert::InternalError)?;
            let part = piece.len().min(count - at);
            body[at..at + part].copy_from_slice(&piece[..part]);
            IoSlice::advance_slices(pieces, part);
            at += part;
        }
        self.key
            .seal_in_place_scatter(nonce, Aad::from(header), body, &[Content::Data as u8], tail)
            .map_err(|_| Alert::InternalError)?;
        Ok(total)
    }

    /// Opens the record that `record` is, whole, in place. Returns what it holds, and how many bytes from
    /// [`BODY`] on.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(Content, usize), Alert> {
        let nonce = self.nonce()?;
        let (head, body) = record.split_at_mut(HEADER);
        let aad = Aad::from(<[u8; HEADER]>::try_from(&*head).map_err(|_| Alert::InternalError)?);
        let inner = self.key.open_in_place(nonce, aad, body).map_err(|_| Alert::BadRecordMac)?;
        // Whatever follows the type is padding. Source: RFC 8446, section 5.4.
        let at = inner.iter().rposition(|byte| *byte != 0).ok_or(Alert::UnexpectedMessage)?;
        if at > PLAIN {
            return Err(Alert::RecordOverflow);
        }
        let content = match inner[at] {
            21 => Content::Alert,
            22 => Content::Handshake,
            23 => Content::Data,
            _ => return Err(Alert::UnexpectedMessage),
        };
        Ok((content, at))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("Key").field("next", &self.next).finish_non_exhaustive()
    }
}

/// Where the plaintext of an opened record begins.
pub(super) const BODY: usize = HEADER;

/// The length of the record at the front of `bytes`, which may be there only in part. `None`: too little to tell.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, Alert> {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    // After the handshake everything is sealed, and what is sealed calls itself data.
    if header[0] != Content::Data as u8 {
        return Err(Alert::UnexpectedMessage);
    }
    let payload = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if payload > PAYLOAD {
        return Err(Alert::RecordOverflow);
    }
    if payload <= TAG {
        return Err(Alert::DecodeError);
    }
    Ok(Some(HEADER + payload))
}

fn header(plain: usize) -> ([u8; HEADER], usize) {
    let [high, low] = ((plain + 1 + TAG) as u16).to_be_bytes();
    ([Content::Data as u8, 3, 3, high, low], plain + OVERHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> (Key, Key) {
        let key = || {
            let secrets = ConnectionTrafficSecrets::Aes128Gcm {
                key: AeadKey::from([7; 32]),
                iv: Iv::copy(&[9; aead::NONCE_LEN]),
            };
            // A key of AES-256 in an AES-128 secret: only its first half would do.
            match secrets {
                ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
                    Key::new((0, ConnectionTrafficSecrets::Aes256Gcm { key, iv })).unwrap()
                }
                _ => unreachable!(),
            }
        };
        (key(), key())
    }

    #[test]
    fn what_may_stand_at_the_front() {
        assert_eq!(length(&[23, 3, 3, 0]), Ok(None));
        assert_eq!(length(&[23, 3, 3, 0x41, 0]), Ok(Some(5 + 16640)));
        assert_eq!(length(&[23, 3, 3, 0x41, 1]), Err(Alert::RecordOverflow));
        assert_eq!(length(&[22, 3, 3, 0, 100]), Err(Alert::UnexpectedMessage));
        assert_eq!(length(&[20, 3, 3, 0, 1]), Err(Alert::UnexpectedMessage));
        assert_eq!(length(&[23, 3, 3, 0, 16]), Err(Alert::DecodeError));
    }

    proptest! {
        #[test]
        fn pieces_come_back_as_one(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..6)) {
            let (mut seal, mut open) = pair();
            let all: Vec<u8> = pieces.concat();
            for _ in 0..2 {
                let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
                let mut left = &mut slices[..];
                let mut out = vec![0; all.len() + OVERHEAD];
                let total = seal.seal_pieces(&mut left, all.len(), &mut out).unwrap();
                prop_assert_eq!(length(&out), Ok(Some(total)));
                let (content, count) = open.open(&mut out[..total]).unwrap();
                prop_assert_eq!(content, Content::Data);
                prop_assert_eq!(&out[BODY..BODY + count], &all[..]);
            }
        }

        #[test]
        fn a_changed_record_is_not_opened(at in 0..60usize, flip in 1..=255u8) {
            let (mut seal, mut open) = pair();
            let mut out = [0; 60];
            let total = seal.seal(Content::Data, &[1; 60 - OVERHEAD], &mut out).unwrap();
            out[at] ^= flip;
            prop_assert_eq!(open.open(&mut out[..total]), Err(Alert::BadRecordMac));
        }

        #[test]
        fn any_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (_, mut open) = pair();
            if let Ok(Some(total)) = length(&bytes) && bytes.len() >= total {
                prop_assert_eq!(open.open(&mut bytes[..total]), Err(Alert::BadRecordMac));
            }
        }
    }

    #[test]
    fn a_record_of_another_number_is_not_opened() {
        let (mut seal, mut open) = pair();
        let mut first = [0; 30];
        let mut second = [0; 30];
        seal.seal(Content::Data, b"12345678", &mut first).unwrap();
        seal.seal(Content::Data, b"12345678", &mut second).unwrap();
        assert_ne!(first, second);
        assert_eq!(open.open(&mut second), Err(Alert::BadRecordMac));
    }

    #[test]
    fn padding_is_no_content() {
        let (mut seal, mut open) = pair();
        // Sealed as if the type were part of the data, and zeros after it.
        let mut out = [0; 64];
        let total = seal.seal_raw(b"data\x17\0\0\0", &mut out);
        assert_eq!(open.open(&mut out[..total]), Ok((Content::Data, 4)));
        let total = seal.seal_raw(&[0; 9], &mut out);
        assert_eq!(open.open(&mut out[..total]), Err(Alert::UnexpectedMessage));
    }

    impl Key {
        /// Seals exactly `inner`, type and padding within it.
        fn seal_raw(&mut self, inner: &[u8], out: &mut [u8]) -> usize {
            let (header, total) = header(inner.len() - 1);
            let nonce = self.nonce().unwrap();
            out[..HEADER].copy_from_slice(&header);
            let (body, tag) = out[HEADER..total].split_at_mut(inner.len());
            self.key.seal_out_of_place_scatter(nonce, Aad::from(header), inner, body, &[], tag).unwrap();
            total
        }
    }
}
