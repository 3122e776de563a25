//! Decompression with limits, for input that is not trusted.

use std::io::Read;

/// Largest section that is decompressed, in bytes.
const MAX_SECTION: u64 = 1 << 30;
/// Most bytes that one byte of Zstandard or DEFLATE may stand for here; DEFLATE cannot exceed
/// 1,032.
const MAX_RATIO: u64 = 1100;
/// Largest symbol file inside `.gnu_debugdata`, in bytes.
const MAX_MINI: u64 = 64 << 20;
/// Largest LZMA2 dictionary that is accepted, as the property byte says it: 64 MiB.
const MAX_DICTIONARY: u8 = 28;

/// How a section is compressed (`ch_type`).
#[derive(Clone, Copy)]
pub(super) enum Method {
    Zlib,
    Zstd,
}

/// Whether a section of `packed` bytes may hold `unpacked` ones.
pub(super) fn is_plausible(packed: u64, unpacked: u64) -> bool {
    unpacked <= MAX_SECTION && unpacked <= packed.saturating_mul(MAX_RATIO)
}

/// Unpacks a section whose header says that it holds `size` bytes; `None` if it does not.
pub(super) fn section(method: Method, packed: &[u8], size: u64) -> Option<Vec<u8>> {
    if !is_plausible(packed.len() as u64, size) {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    match method {
        Method::Zlib => flate2::read::ZlibDecoder::new(packed).read_exact(&mut bytes),
        Method::Zstd => ruzstd::decoding::StreamingDecoder::new(packed)
            .ok()?
            .read_exact(&mut bytes),
    }
    .ok()?;
    Some(bytes)
}

/// Unpacks MiniDebugInfo (an xz stream that holds an ELF file); `None` if it is broken or holds
/// more than 64 MiB.
pub(super) fn mini_debug_info(packed: &[u8]) -> Option<Vec<u8>> {
    if dictionary(packed)? > MAX_DICTIONARY {
        return None;
    }
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(packed, false)
        .take(MAX_MINI + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    (bytes.len() as u64 <= MAX_MINI).then_some(bytes)
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
