//! The wire format of Protocol Buffers, as far as a pprof profile needs it: varints and
//! length-delimited fields are written; what is read borrows from the input and allocates
//! nothing, so that a hostile file costs no more memory than it has bytes.
//!
//! Source: "Encoding" in the documentation of Protocol Buffers.

/// A message being written. Fields of the value 0 and empty strings are left out, as proto3 does.
#[derive(Debug, Default)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// An integer field (`int64`, `uint64`, `bool`).
    pub fn integer(&mut self, field: u32, value: u64) -> &mut Self {
        if value != 0 {
            self.tag(field, 0);
            varint(&mut self.bytes, value);
        }
        self
    }

    /// A repeated integer field, packed.
    pub fn integers(&mut self, field: u32, values: impl IntoIterator<Item = u64>) -> &mut Self {
        let mut packed = Vec::new();
        for value in values {
            varint(&mut packed, value);
        }
        match packed.is_empty() {
            true => self,
            false => self.bytes(field, &packed),
        }
    }

    /// A field of bytes or text, or one element of a repeated one, written even where empty.
    pub fn bytes(&mut self, field: u32, value: &[u8]) -> &mut Self {
        self.tag(field, 2);
        varint(&mut self.bytes, value.len() as u64);
        self.bytes.extend_from_slice(value);
        self
    }

    /// A field that is a message.
    pub fn message(&mut self, field: u32, value: &Message) -> &mut Self {
        self.bytes(field, &value.bytes)
    }

    /// The message as it stands on the wire.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn tag(&mut self, field: u32, wire_type: u64) {
        varint(&mut self.bytes, u64::from(field) << 3 | wire_type);
    }
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// The bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid Protocol Buffers message")]
pub struct Malformed;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A varint, or a fixed number of 4 or 8 bytes.
    Integer(u64),
    /// Bytes, text, a message or packed integers.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The integer.
    ///
    /// # Errors
    /// It is bytes.
    pub fn integer(self) -> Result<u64, Malformed> {
        match self {
            Value::Integer(value) => Ok(value),
            Value::Bytes(_) => Err(Malformed),
        }
    }

    /// The bytes.
    ///
    /// # Errors
    /// It is an integer.
    pub fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Integer(_) => Err(Malformed),
        }
    }

    /// Hands every integer of a repeated field on, packed or not.
    ///
    /// # Errors
    /// The packed ones are no varints.
    pub fn each_integer(self, mut take: impl FnMut(u64)) -> Result<(), Malformed> {
        match self {
            Value::Integer(value) => take(value),
            Value::Bytes(mut rest) => {
                while !rest.is_empty() {
                    take(read_varint(&mut rest)?);
                }
            }
        }
        Ok(())
    }
}

/// The fields of a message, in their order: number and value. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Of the message in these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Malformed> {
        let tag = read_varint(&mut self.rest)?;
        let value = match tag & 7 {
            0 => Value::Integer(read_varint(&mut self.rest)?),
            1 => Value::Integer(u64::from_le_bytes(self.fixed()?)),
            2 => {
                let length = read_varint(&mut self.rest)?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Integer(u64::from(u32::from_le_bytes(self.fixed()?))),
            _ => return Err(Malformed),
        };
        Ok((tag >> 3, value))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let (head, rest) = usize::try_from(length)
            .ok()
            .and_then(|length| self.rest.split_at_checked(length))
            .ok_or(Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N as u64)?.try_into().map_err(|_| Malformed)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// At most ten bytes; what does not fit 64 bits is dropped, as other readers do.
fn read_varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(Malformed)?;
        *rest = tail;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut inner = Message::default();
        inner.integer(1, 300).integer(2, 0);
        let mut message = Message::default();
        message
            .integer(1, u64::MAX)
            .message(2, &inner)
            .integers(3, [1, 128, 1 << 63])
            .integers(4, [])
            .bytes(16, b"");
        let bytes = message.into_bytes();
        let fields: Vec<_> = Fields::new(&bytes).map(Result::unwrap).collect();
        assert_eq!(fields[0], (1, Value::Integer(u64::MAX)));
        // The documentation's own example: 300 is ac 02.
        assert_eq!(fields[1], (2, Value::Bytes(&[0x08, 0xac, 0x02])));
        let mut packed = Vec::new();
        fields[2]
            .1
            .each_integer(|value| packed.push(value))
            .unwrap();
        assert_eq!(packed, [1, 128, 1 << 63]);
        assert_eq!(fields[3], (16, Value::Bytes(b"")));
        assert_eq!(fields.len(), 4);
    }

    #[test]
    fn fixed_numbers_are_integers() {
        let fields: Vec<_> = Fields::new(&[0x09, 1, 0, 0, 0, 0, 0, 0, 0, 0x15, 2, 0, 0, 0])
            .map(Result::unwrap)
            .collect();
        assert_eq!(fields, [(1, Value::Integer(1)), (2, Value::Integer(2))]);
    }

    #[test]
    fn broken_messages_end() {
        let broken: [&[u8]; 6] = [
            &[0x80],
            &[0x08],
            &[0x12, 5, 1],
            &[0x09, 1],
            &[0x0b],
            &[
                0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
        ];
        for bytes in broken {
            assert_eq!(Fields::new(bytes).collect::<Vec<_>>(), [Err(Malformed)]);
        }
        let huge = [
            0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
        ];
        assert_eq!(Fields::new(&huge).next(), Some(Err(Malformed)));
    }
}
