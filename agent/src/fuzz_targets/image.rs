//! Small ELF files around the sections that a target is about.

/// Virtual address of the first byte of the file.
pub(super) const BASE: u64 = 0x1000;
/// Added to [`BASE`] for what is no code, which has a segment of its own.
const DATA: u64 = 1 << 20;
/// Bytes of a file's header, of a segment's and of a section's.
const HEADERS: (u64, u64, u64) = (64, 56, 64);

/// An ELF file of two segments: its first section, which is executable, and all others.
pub(super) struct Image<'a> {
    sections: Vec<(&'a str, &'a [u8])>,
    memory: u64,
}

impl<'a> Image<'a> {
    /// With these sections, in this order; the first is the code.
    pub(super) fn new(sections: &[(&'a str, &'a [u8])]) -> Self {
        Self {
            sections: sections.to_vec(),
            memory: 0,
        }
    }

    /// With so many bytes of code in memory, most of which are not in the file.
    pub(super) fn in_memory(self, memory: u64) -> Self {
        Self { memory, ..self }
    }

    /// The file. Its code begins at [`BASE`].
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut names = vec![0];
        let mut contents = Vec::new();
        let mut headers = vec![[0; 8]];
        let start = HEADERS.0 + 2 * HEADERS.1;
        for &(name, bytes) in &self.sections {
            let at = contents.len() as u64;
            let (kind, flags, address) = match headers.len() {
                1 => (1, 6, BASE),
                _ => (1, 2, BASE + DATA + at),
            };
            let name_at = names.len() as u64;
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            let size = bytes.len() as u64;
            headers.push([
                kind << 32 | name_at,
                flags,
                address,
                start + at,
                size,
                0,
                16,
                0,
            ]);
            contents.extend_from_slice(bytes);
        }
        let name_at = names.len() as u64;
        names.extend_from_slice(b".shstrtab\0");
        let (at, size) = (contents.len() as u64, names.len() as u64);
        headers.push([3 << 32 | name_at, 0, 0, start + at, size, 0, 1, 0]);
        contents.extend_from_slice(&names);
        let code = self
            .sections
            .first()
            .map_or(0, |(_, bytes)| bytes.len() as u64);
        let mut image = file_header(start + contents.len() as u64, headers.len() as u64);
        let data = contents.len() as u64 - code;
        let code_segment = [
            1 | 5 << 32,
            start,
            BASE,
            BASE,
            code,
            code.max(self.memory),
            1,
        ];
        let address = BASE + DATA + code;
        let data_segment = [1 | 4 << 32, start + code, address, address, data, data, 1];
        for word in code_segment.into_iter().chain(data_segment) {
            image.extend_from_slice(&word.to_le_bytes());
        }
        image.extend_from_slice(&contents);
        for word in headers.concat() {
            image.extend_from_slice(&word.to_le_bytes());
        }
        image
    }
}

/// The header of a shared object with two segments and its section headers at this offset.
fn file_header(sections_at: u64, sections: u64) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    let kind_and_machine = 3 | 62 << 16 | 1 << 32;
    let segments = 2;
    let counts = (sections << 32) | (sections - 1) << 48;
    let sizes = 0x40 << 32 | HEADERS.1 << 48;
    for word in [
        kind_and_machine,
        BASE,
        HEADERS.0,
        sections_at,
        sizes,
        segments | HEADERS.2 << 16 | counts,
    ] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    header
}
