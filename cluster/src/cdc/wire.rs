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

/// Cuts a message.
pub(super) fn parse(message: &Bytes) -> Result<Message, WireError> {
    let mut parsed = Message::default();
    let mut cursor = Cursor::new(message, 0);
    while let Some(field) = cursor.field()? {
        match field {
            (1, Value::Bytes(at)) => parsed.events.push(event(&message.slice(at))?),
            (2, Value::Bytes(at)) => {
                let resolved = cdcpb::ResolvedTs::decode(message.slice(at));
                parsed.resolved = Some(resolved.map_err(|_| WireError("resolved ts"))?);
            }
            _ => {}
        }
    }
    Ok(parsed)
}

fn event(bytes: &Bytes) -> Result<Event, WireError> {
    let mut event = Event::default();
    let mut cursor = Cursor::new(bytes, 0);
    while let Some(field) = cursor.field()? {
        match field {
            (1, Value::Number(id)) => event.region_id = id,
            (7, Value::Number(id)) => event.request_id = id,
            // A second one would have to be joined with the first; no store cuts it in two.
            (3, Value::Bytes(_)) if matches!(event.body, Body::Rows(_)) => {
                return Err(WireError("rows twice in one event"));
            }
            (3, Value::Bytes(at)) => event.body = Body::Rows(bytes.slice(at)),
            (5, Value::Bytes(at)) => {
                let error = cdcpb::Error::decode(bytes.slice(at));
                let error = error.map_err(|_| WireError("error event"))?;
                event.body = Body::Error(Box::new(error));
            }
            (6, Value::Number(ts)) => event.body = Body::Resolved(ts),
            (4 | 8, _) => event.body = Body::Other,
            _ => {}
        }
    }
    Ok(event)
}

/// The row at `at` of an `Event.Entries`, and `at` behind it; `None` at the end.
pub(super) fn next_row(entries: &[u8], at: &mut usize) -> Result<Option<Row>, WireError> {
    let mut outer = Cursor::new(entries, *at);
    while let Some(field) = outer.field()? {
        *at = outer.at;
        if let (1, Value::Bytes(range)) = field {
            return row(entries, range).map(Some);
        }
    }
    *at = outer.at;
    Ok(None)
}

fn row(entries: &[u8], range: Range<usize>) -> Result<Row, WireError> {
    let mut row = Row::default();
    let inside = entries.get(..range.end).unwrap_or_default();
    let mut cursor = Cursor::new(inside, range.start);
    while let Some(field) = cursor.field()? {
        match field {
            (1, Value::Number(ts)) => row.start_ts = ts,
            (2, Value::Number(ts)) => row.commit_ts = ts,
            // An enum is an int32: the low half of the varint.
            (3, Value::Number(kind)) => row.kind = kind as i32,
            (4, Value::Number(op)) => row.op = op as i32,
            (5, Value::Bytes(at)) => row.key = at,
            (6, Value::Bytes(at)) => row.value = at,
            (9, Value::Number(source)) => row.txn_source = source,
            (10, Value::Number(generation)) => row.generation = generation,
            _ => {}
        }
    }
    Ok(row)
}

/// A field's content.
enum Value {
    Number(u64),
    /// Where in the bytes.
    Bytes(Range<usize>),
}

/// Walks the fields of one message.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8], at: usize) -> Self {
        Cursor { bytes, at }
    }

    #[inline]
    fn field(&mut self) -> Result<Option<(u64, Value)>, WireError> {
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.bytes(8)?),
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.bytes(len)?)
            }
            5 => Value::Bytes(self.bytes(4)?),
            _ => return Err(WireError("a field of unknown type")),
        };
        // Fixed-width fields exist in none of these messages; they must not pass for bytes.
        let number = match tag & 7 {
            1 | 5 => u64::MAX,
            _ => tag >> 3,
        };
        Ok(Some((number, value)))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        let mut number = 0;
        for shift in (0..70).step_by(7) {
            let Some(byte) = self.bytes.get(self.at) else {
                return Err(WireError("it ends inside a number"));
            };
            self.at += 1;
            number |= u64::from(byte & 0x7F).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(WireError("a number above 64 bits"))
    }

    #[inline]
    fn bytes(&mut self, len: u64) -> Result<Range<usize>, WireError> {
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
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
