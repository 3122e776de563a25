//! Writes a root file system as a `newc` archive (Documentation/driver-api/early-userspace/
//! buffer-format.rst of the kernel).

use std::io::{self, Write};

/// Types of files, in the upper bits of a mode (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes entries; [`Writer::finish`] ends the archive.
pub(super) struct Writer<W> {
    out: W,
    inode: u32,
    written: usize,
}

/// One entry's numbers.
struct Header {
    mode: u32,
    device: (u32, u32),
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            written: 0,
        }
    }

    /// Adds a directory. A directory comes before what it holds.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(
            path,
            &Header {
                mode: DIRECTORY | 0o755,
                device: (0, 0),
            },
            &[],
        )
    }

    /// Adds a file with its permission bits.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(
            path,
            &Header {
                mode: FILE | permissions,
                device: (0, 0),
            },
            content,
        )
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.entry(
            path,
            &Header {
                mode: LINK | 0o777,
                device: (0, 0),
            },
            to.as_bytes(),
        )
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let header = Header {
            mode: CHARACTER_DEVICE | 0o600,
            device: (major, minor),
        };
        self.entry(path, &header, &[])
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.entry(
            "TRAILER!!!",
            &Header {
                mode: 0,
                device: (0, 0),
            },
            &[],
        )?;
        self.out.flush()
    }

    fn entry(&mut self, path: &str, header: &Header, content: &[u8]) -> io::Result<()> {
        let too_big = |_| io::Error::other(format!("{path}: too big for the archive"));
        let size = u32::try_from(content.len()).map_err(too_big)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_big)?;
        self.inode += 1;
        let (major, minor) = header.device;
        // inode, mode, uid, gid, links, mtime, size, device of the file (2), device that it is (2),
        // name size, checksum (unused).
        let fields = [
            self.inode,
            header.mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        let mut text = String::from("070701");
        for field in fields {
            text.push_str(&format!("{field:08x}"));
        }
        text.push_str(path);
        text.push('\0');
        self.put(text.as_bytes())?;
        self.align()?;
        self.put(content)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let rest = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..rest])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn entries_are_aligned_and_ended() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.directory("bin").unwrap();
        writer.file("bin/a", 0o755, b"hello").unwrap();
        writer.link("b", "bin/a").unwrap();
        writer.finish().unwrap();
        // 110 bytes of header and the name, to 4: 116, 116 + 8, 112 + 8, 124.
        assert_eq!(bytes.len(), 116 + 116 + 8 + 112 + 8 + 124);
        assert!(bytes.starts_with(b"070701"));
        let second = &bytes[116..];
        assert_eq!(&second[54..62], b"00000005");
        assert_eq!(&second[116..121], b"hello");
    }
}
