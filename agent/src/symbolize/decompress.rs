//! Decompression with limits, for input that is not trusted.

use std::io::{BufReader, Read};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::Clock;
use super::source::Source;

/// Most bytes that one packed byte may stand for: debug information packs three to six to one,
/// DEFLATE can do 1,032 and Zstandard more.
const MAX_RATIO: u64 = 50;
/// Bytes that may be packed at any ratio: short sections can be all alike.
const SMALL: u64 = 1 << 20;
/// Largest symbol file inside `.gnu_debugdata`, in bytes.
const MAX_MINI: u64 = 32 << 20;
/// Largest LZMA2 dictionary that is accepted, as the property byte says it: 32 MiB. `xz` makes
/// 8 MiB ones unless told otherwise.
const MAX_DICTIONARY: u8 = 26;
/// The same in bytes.
const DICTIONARY: u64 = 32 << 20;
/// Bytes unpacked at a time.
const PIECE: usize = 1 << 20;

/// What is unpacked or read of debug information in this process takes from this.
pub(super) static MEMORY: Memory = Memory::new(128 << 20);

/// How a section is compressed (`ch_type`).
#[derive(Clone, Copy)]
pub(super) enum Method {
    Zlib,
    Zstd,
}

/// Why something was not unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Broken,
    /// It asks for more memory than it may have or than others leave it now, or for too much time.
    TooMuch,
}

/// Bytes that all threads together may hold unpacked at the same time.
pub(super) struct Memory {
    left: AtomicU64,
}

impl Memory {
    pub(super) const fn new(bytes: u64) -> Self {
        Memory {
            left: AtomicU64::new(bytes),
        }
    }

    /// Leaves so many bytes for all that is unpacked from now on.
    pub(super) fn limit(&self, bytes: u64) {
        self.left.store(bytes, Ordering::Relaxed);
    }

    /// Takes so many bytes, if they are left; [`Memory::give_back`] must follow.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let take = |left: u64| left.checked_sub(bytes);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }

    fn reserve(&'static self, bytes: u64) -> Result<Reservation, Failure> {
        if !self.take(bytes) {
            return Err(Failure::TooMuch);
        }
        Ok(Reservation {
            memory: self,
            bytes,
        })
    }
}

/// A part of the memory; given back when it is dropped.
struct Reservation {
    memory: &'static Memory,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes);
    }
}

/// Unpacked bytes.
pub(super) struct Unpacked {
    bytes: Vec<u8>,
    _reservation: Reservation,
}

impl Unpacked {
    /// Bytes that never were packed.
    #[cfg(test)]
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        static NONE: Memory = Memory::new(0);
        Unpacked {
            bytes,
            _reservation: Reservation {
                memory: &NONE,
                bytes: 0,
            },
        }
    }
}

impl Deref for Unpacked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Whether a section of `packed` bytes may hold `unpacked` ones.
pub(super) fn is_plausible(packed: u64, unpacked: u64) -> bool {
    unpacked <= packed.saturating_mul(MAX_RATIO).max(SMALL)
        && packed <= unpacked.saturating_add(unpacked / 8).max(SMALL)
}

/// A packed stream in an image.
pub(super) struct Packed<'s> {
    source: &'s Source<'s>,
    offset: u64,
    /// Bytes left.
    size: u64,
}

impl<'s> Packed<'s> {
    /// The stream of `size` bytes at `offset`.
    pub(super) fn new(source: &'s Source<'s>, offset: u64, size: u64) -> Self {
        Packed {
            source,
            offset,
            size,
        }
    }
}

impl Read for Packed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let count = buf.len().min(usize::try_from(self.size).unwrap_or(PIECE));
        let buf = buf.get_mut(..count).unwrap_or_default();
        self.source
            .read_exact(self.offset, buf)
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        self.offset += count as u64;
        self.size -= count as u64;
        Ok(count)
    }
}

/// Unpacks a section whose header says that it holds `size` bytes.
pub(super) fn section(
    method: Method,
    packed: Packed<'_>,
    size: u64,
    memory: &'static Memory,
    clock: &Clock,
) -> Result<Unpacked, Failure> {
    if !is_plausible(packed.size, size) {
        return Err(Failure::TooMuch);
    }
    let reservation = memory.reserve(size)?;
    // A decoder of Zstandard keeps its window beside: as much again at the most.
    let window = match method {
        Method::Zlib => 0,
        Method::Zstd => size,
    };
    let _window = memory.reserve(window)?;
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Failure::TooMuch)?];
    let packed = BufReader::with_capacity(1 << 16, packed);
    match method {
        Method::Zlib => fill(flate2::bufread::ZlibDecoder::new(packed), &mut bytes, clock)?,
        Method::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
            fill(decoder.map_err(|_| Failure::Broken)?, &mut bytes, clock)?;
        }
    }
    Ok(Unpacked {
        bytes,
        _reservation: reservation,
    })
}

/// Fills `bytes` in pieces: a decoder of Zstandard holds as much again as it is asked for.
fn fill(mut decoder: impl Read, bytes: &mut [u8], clock: &Clock) -> Result<(), Failure> {
    for piece in bytes.chunks_mut(PIECE) {
        if clock.is_over() {
            return Err(Failure::TooMuch);
        }
        decoder.read_exact(piece).map_err(|_| Failure::Broken)?;
    }
    Ok(())
}

/// Unpacks MiniDebugInfo (an xz stream that holds an ELF file) of at most 32 MiB.
pub(super) fn mini_debug_info(
    packed: &[u8],
    memory: &'static Memory,
    clock: &Clock,
) -> Result<Unpacked, Failure> {
    if dictionary(packed).ok_or(Failure::Broken)? > MAX_DICTIONARY {
        return Err(Failure::TooMuch);
    }
    let most = (packed.len() as u64)
        .saturating_mul(MAX_RATIO)
        .clamp(SMALL, MAX_MINI);
    let _dictionary = memory.reserve(DICTIONARY)?;
    // What grows is copied: both copies count.
    let mut reservation = memory.reserve(2 * most)?;
    let mut bytes = Vec::new();
    let mut stream = lzma_rust2::XzReader::new(packed, false);
    loop {
        let piece = stream.by_ref().take(PIECE as u64).read_to_end(&mut bytes);
        if piece.map_err(|_| Failure::Broken)? == 0 {
            break;
        }
        if bytes.len() as u64 > most || clock.is_over() {
            return Err(Failure::TooMuch);
        }
    }
    bytes.shrink_to_fit();
    let held = bytes.len() as u64;
    let spare = reservation.bytes.saturating_sub(held);
    memory.give_back(spare);
    reservation.bytes -= spare;
    Ok(Unpacked {
        bytes,
        _reservation: reservation,
    })
}

/// The dictionary size of the first block, as its filter's property byte. A stream whose first
/// block has other filters than LZMA2 alone is none that the tools make (xz file format, 3.1).
fn dictionary(packed: &[u8]) -> Option<u8> {
    let block = packed.get(12..)?;
    let flags = *block.get(1)?;
    let mut rest = block.get(2..)?;
    for bit in [0x40, 0x80] {
        if flags & bit != 0 {
            let size = rest.iter().position(|byte| byte & 0x80 == 0)?;
            rest = rest.get(size + 1..)?;
        }
    }
    match (flags & 0x03, rest) {
        (0, [0x21, 1, property, ..]) => Some(*property),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::super::clock::Budget;
    use super::*;
    use std::io::Write;

    fn zlib(bytes: &[u8]) -> Source<'static> {
        let mut encoder =
            flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        Source::Bytes(Unpacked::of(encoder.finish().unwrap()))
    }

    fn unpack(
        packed: &Source<'_>,
        size: usize,
        memory: &'static Memory,
    ) -> Result<Unpacked, Failure> {
        let packed = Packed::new(packed, 0, packed.len());
        let clock = Clock::for_details(&Budget::start());
        section(Method::Zlib, packed, size as u64, memory, &clock)
    }

    #[test]
    fn what_is_unpacked_at_once_is_limited() {
        static MEMORY: Memory = Memory::new(1000);
        let bytes: Vec<u8> = (0..600_u32).map(|i| (i * i) as u8).collect();
        let packed = zlib(&bytes);
        let held = unpack(&packed, 600, &MEMORY).unwrap();
        assert_eq!(*held, bytes);
        assert_eq!(unpack(&packed, 600, &MEMORY).err(), Some(Failure::TooMuch));
        drop(held);
        assert_eq!(unpack(&packed, 601, &MEMORY).err(), Some(Failure::Broken));
        assert!(unpack(&packed, 600, &MEMORY).is_ok());
        assert_eq!(MEMORY.left.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn what_no_honest_section_packs_to_is_refused() {
        static MEMORY: Memory = Memory::new(1 << 30);
        let zeros = vec![0; 4 << 20];
        let packed = zlib(&zeros);
        assert!(packed.len() < 10_000);
        let refused = unpack(&packed, zeros.len(), &MEMORY);
        assert_eq!(refused.err(), Some(Failure::TooMuch));
        assert!(unpack(&packed, 1000, &MEMORY).is_ok());
        assert!(is_plausible(100 << 20, 500 << 20));
        assert!(is_plausible(1010, 1000));
        assert!(!is_plausible(1 << 40, 1 << 20));
    }
}
