//! Names of code that a JIT compiler made, from the `/tmp/perf-PID.map` that it writes
//! (Linux, `tools/perf/Documentation/jit-interface.txt`).

use std::fs::{File, Metadata};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::clock::{Budget, Clock};
use super::demangle::{MAX_NAME, demangle, shorten};
use crate::profile::{Frame, JIT_MODULE, Space, Unnamed};

/// Most of the file that is read, in bytes.
const MAX_FILE: u64 = 256 << 20;
/// Longest line, in bytes; what is more of it is no line.
const MAX_LINE: usize = 2 * MAX_NAME;
/// Bytes read at once.
const BLOCK: u64 = 1 << 20;
/// Matches after which the file is taken for a hostile one (every line covering every address).
const MAX_MATCHES: u64 = 1 << 26;

/// Why a perf map is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTrusted {
    /// It is a directory, a pipe, a link (if opened with `O_NOFOLLOW`, as it must be)…
    #[error("the perf map is not a regular file")]
    NotRegular,
    /// Anybody may write to `/tmp`.
    #[error("the perf map belongs to user {owner}, the process to user {expected}")]
    Owner {
        /// User id of the file's owner.
        owner: u32,
        /// User id of the process.
        expected: u32,
    },
}

/// Checks that a perf map was written by the process that it describes: a regular file that
/// belongs to the process's user `uid` or to root. Open it with `O_NOFOLLOW | O_NONBLOCK` and
/// take the metadata from the open file.
pub fn check_perf_map_owner(metadata: &Metadata, uid: u32) -> Result<(), NotTrusted> {
    if !metadata.is_file() {
        return Err(NotTrusted::NotRegular);
    }
    match metadata.uid() {
        0 => Ok(()),
        owner if owner == uid => Ok(()),
        owner => Err(NotTrusted::Owner {
            owner,
            expected: uid,
        }),
    }
}

/// Names runtime addresses, which are in ascending order, from the lines `START SIZE NAME` of an
/// open perf map, numbers in hexadecimal. Where lines overlap, the last one counts, since a JIT
/// uses memory again. At most the last 256 MiB are read, and for two seconds, of the run's `budget`;
/// what has no name in them comes back with [`Unnamed::GaveUp`]. One frame per address, in the module
/// `[jit]`; names as V8 and CPython write them are taken apart into function, file and line.
pub fn perf_map(file: &File, addresses: &[u64], budget: &Budget) -> Vec<Vec<Frame>> {
    let clock = Clock::for_symbols(budget);
    let lines = find(file, addresses, &clock);
    let reason = match clock.has_cut() {
        true => Unnamed::GaveUp,
        false => Unnamed::NotCovered,
    };
    let name = |(&address, line): (&u64, Option<u64>)| {
        let code = line
            .and_then(|offset| read_line(file, offset))
            .and_then(|line| parse(&line).map(|(_, _, name)| Code::parse(name)));
        vec![frame(address, code, reason)]
    };
    addresses.iter().zip(lines).map(name).collect()
}

/// Per address, the offset of the last line that covers it. From the end to the start, so that what
/// is found holds even if not all is read.
fn find(file: &File, addresses: &[u64], clock: &Clock) -> Vec<Option<u64>> {
    let mut search = Search {
        addresses,
        clock,
        lines: vec![None; addresses.len()],
        open: addresses.len(),
        matches: 0,
    };
    let length = crate::elf::regular_length(file).unwrap_or(0);
    let least = length.saturating_sub(MAX_FILE);
    // What begins here or later was looked at.
    let mut end = length;
    while end > least && search.open > 0 && !clock.has_cut() && !clock.is_over() {
        let start = end.saturating_sub(BLOCK).max(least);
        let mut block = vec![0; (end - start) as usize];
        if file.read_exact_at(&mut block, start).is_err() {
            break;
        }
        end = search.block(start, &block);
    }
    if search.open > 0 && end > 0 {
        clock.cut();
    }
    search.lines
}

struct Search<'s> {
    addresses: &'s [u64],
    clock: &'s Clock,
    lines: Vec<Option<u64>>,
    /// Addresses that no line was found for.
    open: usize,
    matches: u64,
}

impl Search<'_> {
    /// Looks at the lines that begin in a block, from the last to the first; `start` is the block's
    /// offset. Gives the offset of the first of them.
    fn block(&mut self, start: u64, block: &[u8]) -> u64 {
        let mut rest = block;
        while self.open > 0 && !self.clock.has_cut() {
            let before = rest.strip_suffix(b"\n").unwrap_or(rest);
            let at = match before.iter().rposition(|&byte| byte == b'\n') {
                Some(end_of_last) => end_of_last + 1,
                None if start == 0 => 0,
                // It begins in another block; one that fills this block is no line.
                None if rest.len() == block.len() => return start,
                None => return start + rest.len() as u64,
            };
            let line = before.get(at..).unwrap_or_default();
            self.line(start + at as u64, line.get(..MAX_LINE).unwrap_or(line));
            rest = rest.get(..at).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
        }
        start + rest.len() as u64
    }

    fn line(&mut self, offset: u64, line: &[u8]) {
        self.clock.step();
        let Some((start, size, _)) = parse(line) else {
            return;
        };
        let first = self.addresses.partition_point(|&address| address < start);
        let inside = self.addresses.iter().zip(&mut self.lines).skip(first);
        for (_, slot) in inside.take_while(|&(address, _)| address - start < size) {
            if slot.is_none() {
                *slot = Some(offset);
                self.open -= 1;
            }
            self.matches += 1;
        }
        if self.matches > MAX_MATCHES {
            self.clock.cut();
        }
    }
}

/// Reads a file from its start on.
struct At<'f>(&'f File, u64);

impl Read for At<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read_at(buf, self.1)?;
        self.1 += count as u64;
        Ok(count)
    }
}

fn read_line(file: &File, offset: u64) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let reader = At(file, offset).take(MAX_LINE as u64);
    BufReader::new(reader).read_until(b'\n', &mut line).ok()?;
    Some(line)
}

/// Start, size and name.
fn parse(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let line = line.trim_ascii();
    let mut fields = line.splitn(3, |&byte| byte == b' ');
    let mut number = || {
        let field = std::str::from_utf8(fields.next()?).ok()?;
        let digits = field.strip_prefix("0x").unwrap_or(field);
        u64::from_str_radix(digits, 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let name = fields.next()?.trim_ascii();
    (!name.is_empty()).then_some((start, size, name))
}

/// What a name says.
#[derive(Debug, PartialEq, Eq)]
struct Code {
    function: String,
    file: Option<String>,
    line: Option<u32>,
}

impl Code {
    fn parse(name: &[u8]) -> Self {
        let name = String::from_utf8_lossy(name);
        let code = javascript(&name).or_else(|| python(&name));
        let mut code = code.unwrap_or_else(|| Code {
            function: demangle(&name),
            file: None,
            line: None,
        });
        code.function = shorten(code.function);
        code.file = code.file.map(shorten);
        code
    }
}

/// `KIND:TIER FUNCTION FILE:LINE[:COLUMN]` of V8, whose tier is `~` (interpreted), `^`, `+` or
/// `*` (optimised).
fn javascript(name: &str) -> Option<Code> {
    let (kind, rest) = name.split_once(':')?;
    let kinds = [
        "LazyCompile",
        "Function",
        "JS",
        "Script",
        "Eval",
        "InterpretedFunction",
        "BaselineFunction",
    ];
    if !kinds.contains(&kind) {
        return None;
    }
    let rest = rest.trim_start_matches(['~', '^', '+', '*', '-']);
    let (rest, line) = position(rest);
    // The file's name may hold spaces, so look for where it can begin.
    let begin = [" /", " file://", " node:", " [", " evalmachine"]
        .iter()
        .filter_map(|begin| rest.find(begin))
        .min()
        .or_else(|| rest.rfind(' '));
    let (function, file) = match begin {
        Some(begin) => rest.split_at(begin),
        None => (rest, ""),
    };
    let file = file.trim();
    let file = file.strip_prefix("file://").unwrap_or(file);
    let function = match (function.trim(), kind) {
        ("", "Script") => "(script)",
        ("", "Eval") => "(eval)",
        ("", _) => "(anonymous)",
        (function, _) => function,
    };
    Some(Code {
        function: function.to_owned(),
        line: line.filter(|_| !file.is_empty()),
        file: (!file.is_empty()).then(|| file.to_owned()),
    })
}

/// Takes `:LINE` or `:LINE:COLUMN` off the end.
fn position(text: &str) -> (&str, Option<u32>) {
    let number = |text: &'_ str| -> Option<(usize, u32)> {
        let (rest, digits) = text.rsplit_once(':')?;
        Some((rest.len(), digits.parse().ok()?))
    };
    let Some((end, last)) = number(text) else {
        return (text, None);
    };
    let rest = &text[..end];
    match number(rest) {
        Some((end, line)) => (&text[..end], Some(line)),
        None => (rest, Some(last)),
    }
}

/// `py::FUNCTION:FILE` of CPython.
fn python(name: &str) -> Option<Code> {
    let (function, file) = name.strip_prefix("py::")?.split_once(':')?;
    Some(Code {
        function: function.to_owned(),
        file: (!file.is_empty()).then(|| file.to_owned()),
        line: None,
    })
}

fn frame(address: u64, code: Option<Code>, reason: Unnamed) -> Frame {
    let unnamed = code.is_none().then_some(reason);
    let (function, file, line) = match code {
        Some(code) => (Some(code.function), code.file, code.line),
        None => (None, None, None),
    };
    Frame {
        function,
        file,
        line: line.filter(|&line| line != 0),
        unnamed,
        ..Frame::at(Space::User, Some(JIT_MODULE.to_owned()), address)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use std::io::Write;

    fn map(text: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        file
    }

    fn functions(text: &[u8], addresses: &[u64]) -> Vec<Option<String>> {
        let frames = perf_map(&map(text), addresses, &Budget::start());
        let frames = frames.into_iter().flatten();
        frames.map(|frame| frame.function).collect()
    }

    #[test]
    fn lines_on_the_border_of_blocks_are_found() {
        let line = |i: usize| format!("{:x} 10 n{i}{}\n", 16 * i, "x".repeat(i % 50));
        let text: String = (0..60_000).map(line).collect();
        assert!(text.len() > 2 * BLOCK as usize);
        // Those around each border, and the first and the last.
        let borders = (1..=text.len() / BLOCK as usize).map(|n| text.len() - n * BLOCK as usize);
        let lines = borders.map(|at| text[..at].lines().count());
        let mut wanted: Vec<usize> = lines.flat_map(|at| at - 2..at + 2).collect();
        wanted.extend([0, 59_999]);
        wanted.sort_unstable();
        let addresses: Vec<u64> = wanted.iter().map(|&i| 16 * i as u64).collect();
        let found = functions(text.as_bytes(), &addresses);
        for (i, function) in wanted.into_iter().zip(found) {
            assert_eq!(function.unwrap(), format!("n{i}{}", "x".repeat(i % 50)));
        }
    }

    #[test]
    fn of_a_line_longer_than_a_block_the_start_counts() {
        let long = format!("1000 10 {}\n2000 10 short", "y".repeat(3 * BLOCK as usize));
        let found = functions(long.as_bytes(), &[0x1000, 0x2000]);
        assert!(found[0].as_ref().unwrap().starts_with("yyyy"));
        assert_eq!(found[1].as_deref(), Some("short"));
    }

    #[test]
    fn later_lines_win() {
        let text = b"1000 100 old\n2000 10 other\n0x1040 20 new\n";
        let found = functions(
            text,
            &[0xfff, 0x1000, 0x1040, 0x105f, 0x1060, 0x1100, 0x2000],
        );
        let found: Vec<_> = found.iter().map(Option::as_deref).collect();
        let expected = [
            None,
            Some("old"),
            Some("new"),
            Some("new"),
            Some("old"),
            None,
            Some("other"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn garbage_is_passed_over() {
        let mut text =
            b"\xff\xfe\n\nzz 10 a\n10\n10 10\nffffffffffffffff ffffffffffffffff end\n".to_vec();
        text.extend(vec![b'x'; 100_000]);
        text.extend(b"\n3000 10 good one\n4000 10 cut");
        let found = functions(&text, &[0x3005, 0x4001, u64::MAX]);
        let found: Vec<_> = found.iter().map(Option::as_deref).collect();
        assert_eq!(found, [Some("good one"), Some("cut"), Some("end")]);
    }

    #[test]
    fn names_are_taken_apart() {
        let check = |name: &str, function: &str, file: Option<&str>, line: Option<u32>| {
            let code = Code::parse(name.as_bytes());
            assert_eq!(
                (code.function.as_str(), code.file.as_deref(), code.line),
                (function, file, line),
                "{name}"
            );
        };
        check(
            "LazyCompile:*foo /path/file.js:12",
            "foo",
            Some("/path/file.js"),
            Some(12),
        );
        check("JS:~foo file.js:3:4", "foo", Some("file.js"), Some(3));
        check(
            "JS:*get x file:///a b/c.mjs:3:4",
            "get x",
            Some("/a b/c.mjs"),
            Some(3),
        );
        check(
            "Function:~ node:internal/main:1:1",
            "(anonymous)",
            Some("node:internal/main"),
            Some(1),
        );
        check("Script:~ /x/y.js:1:1", "(script)", Some("/x/y.js"), Some(1));
        check("JS:^bar", "bar", None, None);
        check("Builtin:ArrayMap", "Builtin:ArrayMap", None, None);
        check("py::Class.run:/a/b.py", "Class.run", Some("/a/b.py"), None);
        check("Lcom/foo/Bar;::baz", "Lcom/foo/Bar;::baz", None, None);
        check("JS:", "(anonymous)", None, None);
        check("JS:::::", "::::", None, None);
    }

    #[test]
    fn owners_are_checked() {
        let file = map(b"");
        let metadata = file.metadata().unwrap();
        assert_eq!(check_perf_map_owner(&metadata, metadata.uid()), Ok(()));
        let directory = tempfile::tempdir().unwrap();
        let directory = File::open(directory.path()).unwrap().metadata().unwrap();
        assert_eq!(
            check_perf_map_owner(&directory, 0),
            Err(NotTrusted::NotRegular)
        );
        if metadata.uid() == 0 {
            let path = tempfile::NamedTempFile::new().unwrap();
            std::os::unix::fs::chown(path.path(), Some(12345), None).unwrap();
            let metadata = path.as_file().metadata().unwrap();
            let wrong = NotTrusted::Owner {
                owner: 12345,
                expected: 999,
            };
            assert_eq!(check_perf_map_owner(&metadata, 999), Err(wrong));
            assert_eq!(check_perf_map_owner(&metadata, 12345), Ok(()));
        }
    }
}
