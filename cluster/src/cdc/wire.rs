//! Reading a `ChangeDataEvent` in place.
//!
//! Decoding into messages would cost one allocation of about 200 bytes per row and keep the old
//! values, which nobody needs, alive. So the transport hands over the bytes of a message
//! ([`RawCodec`]), [`parse`] cuts them into events, and [`next_row`] walks the rows of one event
//! and returns offsets. Nothing is copied here. Fields that are not known are skipped, as protobuf
//! asks. Used by [`super::feed`].

use std::ops::Range;

use bytes::{Buf, Bytes};
use pitr_proto::cdcpb::{self, ChangeDataRequest};
use prost::Message as _;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Bytes of the store that are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store sent bytes that are no change event: {0}")]
pub struct WireError(pub(super) &'static str);

/// Requests as messages, answers as bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RawCodec;

impl Codec for RawCodec {
    type Encode = ChangeDataRequest;
    type Decode = Bytes;
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = ChangeDataRequest;
    type Error = Status;

    fn encode(&mut self, item: ChangeDataRequest, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let full = |error: prost::EncodeError| Status::internal(error.to_string());
        item.encode(dst).map_err(full)
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}

/// One message, cut into its parts.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub events: Vec<Event>,
    pub resolved: Option<cdcpb::ResolvedTs>,
}

/// One event of one region.
#[derive(Debug, Default)]
pub(super) struct Event {
    pub region_id: u64,
    pub request_id: u64,
    pub body: Body,
}

#[derive(Debug, Default)]
pub(super) enum Body {
    /// A message `Event.Entries`.
    Rows(Bytes),
    Error(Box<cdcpb::Error>),
    Resolved(u64),
    /// Declared, but not sent by any known store.
    #[default]
    Other,
}

/// Where a row lies inside its event, and its numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub start_ts: u64,
    pub commit_ts: u64,
    pub kind: i32,
    pub op: i32,
    pub key: Range<usize>,
    pub value: Range<usize>,
    pub txn_source: u64,
    pub generation: u64,
}

/// Field number and type of what is read, as they stand before a field: `number << 3 | type`,
/// type 0 = a number, type 2 = bytes. A known field of another type is skipped.
mod tag {
    pub const EVENTS: u64 = 1 << 3 | 2;
    pub const RESOLVED: u64 = 2 << 3 | 2;

    pub const REGION_ID: u64 = 1 << 3;
    pub const ENTRIES: u64 = 3 << 3 | 2;
    pub const ADMIN: u64 = 4 << 3 | 2;
    pub const ERROR: u64 = 5 << 3 | 2;
    pub const REGION_RESOLVED: u64 = 6 << 3;
    pub const REQUEST_ID: u64 = 7 << 3;
    pub const LONG_TXN: u64 = 8 << 3 | 2;

    pub const ROW: u64 = 1 << 3 | 2;

    pub const START_TS: u64 = 1 << 3;
    pub const COMMIT_TS: u64 = 2 << 3;
    pub const KIND: u64 = 3 << 3;
    pub const OP: u64 = 4 << 3;
    pub const KEY: u64 = 5 << 3 | 2;
    pub const VALUE: u64 = 6 << 3 | 2;
    pub const TXN_SOURCE: u64 = 9 << 3;
    pub const GENERATION: u64 = 10 << 3;
}

/// Cuts a message.
pub(super) fn parse(message: &Bytes) -> Result<Message, WireError> {
    let mut parsed = Message::default();
    let mut cursor = Cursor::new(message, 0);
    while !cursor.is_done() {
        match cursor.varint()? {
            tag::EVENTS => parsed.events.push(event(message, cursor.bytes()?)?),
            tag::RESOLVED => {
                let resolved = cdcpb::ResolvedTs::decode(message.slice(cursor.bytes()?));
                parsed.resolved = Some(resolved.map_err(|_| WireError("resolved ts"))?);
            }
            other => cursor.skip(other)?,
        }
    }
    Ok(parsed)
}

fn event(message: &Bytes, range: Range<usize>) -> Result<Event, WireError> {
    let mut event = Event::default();
    let mut cursor = Cursor::new(message.get(..range.end).unwrap_or_default(), range.start);
    while !cursor.is_done() {
        match cursor.varint()? {
            tag::REGION_ID => event.region_id = cursor.varint()?,
            tag::REQUEST_ID => event.request_id = cursor.varint()?,
            // A second one would have to be joined with the first; no store cuts it in two.
            tag::ENTRIES if matches!(event.body, Body::Rows(_)) => {
                return Err(WireError("rows twice in one event"));
            }
            tag::ENTRIES => event.body = Body::Rows(message.slice(cursor.bytes()?)),
            tag::ERROR => {
                let error = cdcpb::Error::decode(message.slice(cursor.bytes()?));
                let error = error.map_err(|_| WireError("error event"))?;
                event.body = Body::Error(Box::new(error));
            }
            tag::REGION_RESOLVED => event.body = Body::Resolved(cursor.varint()?),
            other => {
                cursor.skip(other)?;
                if matches!(other, tag::ADMIN | tag::LONG_TXN) {
                    event.body = Body::Other;
                }
            }
        }
    }
    Ok(event)
}

/// The row at `at` of an `Event.Entries`, and `at` behind it; `None` at the end.
pub(super) fn next_row(entries: &[u8], at: &mut usize) -> Result<Option<Row>, WireError> {
    let mut cursor = Cursor::new(entries, *at);
    while !cursor.is_done() {
        match cursor.varint()? {
            tag::ROW => {
                let range = cursor.bytes()?;
                *at = cursor.at;
                return row(entries, range).map(Some);
            }
            other => cursor.skip(other)?,
        }
        *at = cursor.at;
    }
    Ok(None)
}

#[inline]
fn row(entries: &[u8], range: Range<usize>) -> Result<Row, WireError> {
    let mut row = Row::default();
    let mut cursor = Cursor::new(entries.get(..range.end).unwrap_or_default(), range.start);
    while !cursor.is_done() {
        match cursor.varint()? {
            tag::START_TS => row.start_ts = cursor.varint()?,
            tag::COMMIT_TS => row.commit_ts = cursor.varint()?,
            // An enum is an int32: the low half of the varint.
            tag::KIND => row.kind = cursor.varint()? as i32,
            tag::OP => row.op = cursor.varint()? as i32,
            tag::KEY => row.key = cursor.bytes()?,
            tag::VALUE => row.value = cursor.bytes()?,
            tag::TXN_SOURCE => row.txn_source = cursor.varint()?,
            tag::GENERATION => row.generation = cursor.varint()?,
            other => cursor.skip(other)?,
        }
    }
    Ok(row)
}

/// Walks the fields of one message, from a place in some bytes to their end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8], at: usize) -> Self {
        Cursor { bytes, at }
    }

    #[inline(always)]
    fn is_done(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// A number; most tags and lengths are one byte.
    #[inline(always)]
    fn varint(&mut self) -> Result<u64, WireError> {
        match self.bytes.get(self.at) {
            Some(byte) if *byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    /// A number of any length; a timestamp has nine bytes, so eight are read at a time.
    fn long_varint(&mut self) -> Result<u64, WireError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some((eight, behind)) = rest.split_first_chunk::<8>() else {
            return self.short_of_eight();
        };
        let word = u64::from_le_bytes(*eight);
        let ends = !word & 0x8080_8080_8080_8080;
        if ends != 0 {
            let bits = ends.trailing_zeros() + 1;
            self.at += bits as usize / 8;
            return Ok(seven_bits_each(word & (u64::MAX >> (64 - bits))));
        }
        let low = seven_bits_each(word);
        match behind {
            [ninth, ..] if *ninth < 0x80 => {
                self.at += 9;
                Ok(low | u64::from(*ninth) << 56)
            }
            [ninth, tenth, ..] if *tenth < 0x80 => {
                self.at += 10;
                Ok(low | u64::from(ninth & 0x7F) << 56 | u64::from(*tenth) << 63)
            }
            [_, _, ..] => Err(WireError("a number above 64 bits")),
            _ => Err(WireError("it ends inside a number")),
        }
    }

    fn short_of_eight(&mut self) -> Result<u64, WireError> {
        let mut number = 0;
        for (place, byte) in self.bytes.iter().skip(self.at).enumerate() {
            number |= u64::from(byte & 0x7F) << (7 * place);
            if *byte < 0x80 {
                self.at += place + 1;
                return Ok(number);
            }
        }
        Err(WireError("it ends inside a number"))
    }

    /// Where the bytes behind their length lie.
    #[inline(always)]
    fn bytes(&mut self) -> Result<Range<usize>, WireError> {
        let len = self.varint()?;
        self.step_over(len)
    }

    #[inline(always)]
    fn step_over(&mut self, len: u64) -> Result<Range<usize>, WireError> {
        let rest = self.bytes.len() - self.at;
        match usize::try_from(len) {
            Ok(len) if len <= rest => {
                let range = self.at..self.at + len;
                self.at += len;
                Ok(range)
            }
            _ => Err(WireError("it ends inside a field")),
        }
    }

    /// Steps over a field that is not read.
    fn skip(&mut self, tag: u64) -> Result<(), WireError> {
        match tag & 7 {
            0 => self.varint().map(|_| ()),
            1 => self.step_over(8).map(|_| ()),
            2 => self.bytes().map(|_| ()),
            5 => self.step_over(4).map(|_| ()),
            _ => Err(WireError("a field of unknown type")),
        }
    }
}

/// Puts the low seven bits of each byte side by side.
#[inline(always)]
fn seven_bits_each(word: u64) -> u64 {
    let word = word & 0x7F7F_7F7F_7F7F_7F7F;
    let pairs = word & 0x007F_007F_007F_007F | (word & 0x7F00_7F00_7F00_7F00) >> 1;
    let fours = pairs & 0x0000_3FFF_0000_3FFF | (pairs & 0x3FFF_0000_3FFF_0000) >> 2;
    fours & 0x0FFF_FFFF | (fours & 0x0FFF_FFFF_0000_0000) >> 4
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "wire_damage_tests.rs"]
mod damage_tests;
