//! Header compression for HTTP/2 (RFC 7541): a strict decoder, and an encoder that indexes what repeats.

mod decoder;
mod encoder;
pub(crate) mod huffman;
mod table;

pub(crate) use decoder::{Decoder, Field, Undecodable};
pub(crate) use encoder::Encoder;
pub(crate) use table::Kind;

/// The size of the dynamic table on both sides until told otherwise (RFC 9113 section 6.5.2).
pub(crate) const DEFAULT_TABLE: usize = 4096;

/// What an entry costs beyond its text (RFC 7541 section 4.1).
pub(crate) const ENTRY_OVERHEAD: usize = 32;
