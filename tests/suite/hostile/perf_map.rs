//! Perf maps: files in `/tmp`, where anybody may put anything.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::elf::make_node;
use super::{Case, Says};
use crate::harness::{LIFE, Target, program};

const NO_FILE: Says = Says::Note("the perf map is not a regular file, not used");
const NAMELESS: Says = Says::Unnamed("no_module");

pub(super) const CASES: &[Case] = &[
    Case::new(
        "a pipe",
        "the map is a FIFO, which nobody must open",
        |_| {
            let (target, map, _) = jit();
            make_node(Path::new("/"), map.to_str().unwrap(), &["p"]);
            target
        },
        &[NO_FILE, NAMELESS],
    ),
    Case::new(
        "a directory",
        "the map is one",
        |_| {
            let (target, map, _) = jit();
            fs::create_dir(map).unwrap();
            target
        },
        &[NO_FILE, NAMELESS],
    ),
    Case::new(
        "a link to a good map",
        "the map is a symbolic link",
        |directory| {
            let (target, map, code) = jit();
            fs::write(directory.join("good"), format!("{code:x} 100 good\n")).unwrap();
            symlink(directory.join("good"), map).unwrap();
            target
        },
        &[NO_FILE, NAMELESS],
    ),
    Case::new(
        "a link to a device",
        "the map leads to `/dev/zero`",
        |_| {
            let (target, map, _) = jit();
            symlink("/dev/zero", map).unwrap();
            target
        },
        &[NO_FILE, NAMELESS],
    ),
    Case::new(
        "links in a circle",
        "the map leads to itself",
        |_| {
            let (target, map, _) = jit();
            symlink(&map, &map).unwrap();
            target
        },
        &[NO_FILE, NAMELESS],
    ),
    Case::new(
        "another user's",
        "the map belongs to neither the process's user nor root",
        |_| {
            let (target, map, code) = jit();
            fs::write(&map, format!("{code:x} 100 theirs\n")).unwrap();
            chown(map, Some(65534), Some(65534)).unwrap();
            target
        },
        &[
            Says::Note("perf map belongs to user 65534, the process to user 0"),
            NAMELESS,
        ],
    ),
    Case::new(
        "a line of 8 TB",
        "the map is a hole",
        |_| {
            let (target, map, _) = jit();
            File::create(map).unwrap().set_len(8 << 40).unwrap();
            target
        },
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "12 million lines",
        "300 MB of them, and the code's at the end",
        |_| {
            let (target, map, code) = jit();
            many_lines(&map, "", &format!("{code:x} 100 the_last\n"));
            target
        },
        &[Says::Name("the_last")],
    ),
    Case::new(
        "12 million lines, the first of which counts",
        "300 MB of them, and the code's at the start",
        |_| {
            let (target, map, code) = jit();
            many_lines(&map, &format!("{code:x} 100 the_first\n"), "");
            target
        },
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "200,000 lines over everything",
        "each covers all addresses; the last one counts",
        |_| {
            let (target, map, _) = jit();
            let lines = "0 ffffffffffffffff first\n".repeat(200_000);
            fs::write(map, lines + "0 ffffffffffffffff last\n").unwrap();
            target
        },
        &[Says::Name("last")],
    ),
    Case::new(
        "names that move the cursor",
        "escapes, marks of direction, markup, bytes that are no text",
        |_| {
            let (target, map, code) = jit();
            let name = b"\x1b[2J</script>\xe2\x80\xae\xff\xc2\x9b;# 1 2\r\n";
            fs::write(map, [format!("{code:x} 100 ").as_bytes(), name].concat()).unwrap();
            target
        },
        &[Says::Words("\\u{1b}[2J</script>\\u{202e}")],
    ),
    Case::new(
        "a name of 10 MB",
        "on one line",
        |_| {
            let (target, map, code) = jit();
            let name = "n".repeat(10 << 20);
            fs::write(map, format!("{code:x} 100 {name}\n")).unwrap();
            target
        },
        &[Says::Name("nnnnnnnn")],
    ),
    Case::new(
        "numbers beyond 64 bits",
        "starts and sizes that overflow",
        |_| {
            let (target, map, code) = jit();
            let lines = "fffffffffffffffff 1 a\nffffffffffffffff ffffffffffffffff b\n-1 -1 c\n";
            fs::write(map, format!("{lines}{code:x} 100 fine\n")).unwrap();
            target
        },
        &[Says::Name("fine")],
    ),
];

/// A process at work in code without a file, where its map is looked for, and where the code is.
fn jit() -> (Target, PathBuf, u64) {
    let target = Target::run_unready(Command::new(program("jit")).arg(LIFE));
    let code = target.await_line(|line| {
        let digits = line.strip_prefix("code ")?;
        u64::from_str_radix(digits, 16).ok()
    });
    target.await_word("ready");
    let map = map_of(target.pid());
    // That of a process of this id that is gone.
    remove(&map);
    (target, map, code)
}

/// Writes a map of 12 million lines between these.
fn many_lines(map: &Path, first: &str, last: &str) {
    let lines = "1000 10 a_function_of_jit\n".repeat(1 << 16);
    let mut file = File::create(map).unwrap();
    file.write_all(first.as_bytes()).unwrap();
    for _ in 0..192 {
        file.write_all(lines.as_bytes()).unwrap();
    }
    file.write_all(last.as_bytes()).unwrap();
}

/// Where the perf map of a process is looked for.
pub(super) fn map_of(pid: u32) -> PathBuf {
    format!("/tmp/perf-{pid}.map").into()
}

/// Removes a file or an empty directory if it is there.
pub(super) fn remove(path: &Path) {
    let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
}
