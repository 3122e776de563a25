//! What processes do while they are looked at.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::image::{Image, Part};
use super::{Call, Case, Says};
use crate::harness::{LIFE, Target, copy_executable, in_vm, program};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "a file cut while mapped",
        "only the page with the code is left",
        |directory| {
            let target = Image::named(b"work").carried(directory);
            let file = File::options().write(true).open(directory.join("carried"));
            file.unwrap().set_len(0x2000).unwrap();
            target
        },
        &[Says::Unnamed("malformed")],
    ),
    Case::new(
        "a file replaced while mapped",
        "at its path is another one now",
        |directory| {
            let target = Image::named(b"mapped").carried(directory);
            Image::named(b"another").write(&directory.join("new"));
            fs::rename(directory.join("new"), directory.join("carried")).unwrap();
            target
        },
        &[Says::Name("mapped")],
    ),
    Case::new(
        "a deleted program",
        "its file and its directory are gone",
        |directory| {
            let own = directory.join("own");
            fs::create_dir(&own).unwrap();
            copy_executable(&program("split"), &own.join("split"));
            let target = Target::run(Command::new(own.join("split")).arg(LIFE));
            fs::remove_dir_all(own).unwrap();
            target
        },
        &[Says::Name("one_round")],
    ),
    Case::new(
        "a file rewritten all the time",
        "its headers and sections change between truth and noise",
        rewritten,
        &[],
    ),
    Case::new(
        "a program named against terminals",
        "escapes, line breaks and markup in the path, the arguments and the environment",
        named_against_terminals,
        &[Says::Name("one_round")],
    ),
    Case::new(
        "a program named against terminals, recorded",
        "the same",
        named_against_terminals,
        &[],
    )
    .called(Call::Command("record")),
    Case::new(
        "a path of 4,095 bytes",
        "as long as a path can be",
        |directory| {
            let path = longest_path(directory, "split");
            Target::run(Command::new(path).arg(LIFE))
        },
        &[Says::Name("one_round")],
    ),
    Case::new(
        "threads that rename themselves",
        "all the time, to escapes, marks of direction, line breaks; and look for such files",
        |_| unruly(&["rename"]),
        &[Says::Name("rename_for_ever")],
    ),
    Case::new(
        "threads that rename themselves, recorded",
        "the same",
        |_| unruly(&["rename"]),
        &[],
    )
    .called(Call::Command("record")),
    Case::new(
        "threads that rename themselves, their connections",
        "the same",
        |_| unruly(&["rename"]),
        &[],
    )
    .called(Call::Command("tcp")),
    Case::new(
        "threads that rename themselves, their system calls",
        "the same",
        |_| unruly(&["rename"]),
        &[],
    )
    .called(Call::Command("syscalls")),
    Case::new(
        "a storm of execs",
        "the process executes itself again and again, under hostile names",
        |_| unruly(&["exec"]),
        &[Says::OneOf(&[
            Says::Name("toil"),
            Says::Unnamed("no_module"),
        ])],
    ),
    Case::new(
        "a storm of exits",
        "threads and children that end as soon as they have begun",
        |_| unruly(&["exit"]),
        &[Says::Name("main")],
    )
    .called(Call::Children),
    Case::new(
        "a storm of forks",
        "children of children of children",
        |_| unruly(&["fork"]),
        &[Says::Name("main")],
    )
    .called(Call::Children),
    Case::new(
        "60,000 mappings without a file",
        "executable ones, as a JIT compiler's",
        |_| unruly(&["maps", "60000"]),
        &[Says::Name("toil")],
    ),
    Case::new(
        "60,000 mappings of a file",
        "the program's own, page by page",
        |_| unruly(&["files", "60000"]),
        &[Says::Note("executable mappings beyond the table's limit")],
    ),
    Case::new(
        "60,000 mappings with long paths",
        "those of a file whose path has 4,095 bytes: a list of 240 MB",
        |directory| {
            let path = longest_path(directory, "unruly");
            Target::run(Command::new(path).args([LIFE, "files", "60000"]))
        },
        &[Says::OneOf(&[
            Says::Note("executable mappings beyond the table's limit"),
            Says::Note("mappings left out, since reading them took too long"),
        ])],
    ),
    Case::new(
        "modules without an end",
        "files that nobody has seen are mapped and unmapped all the time",
        |_| unruly(&["modules"]),
        &[
            Says::Note("modules without an unwind table"),
            Says::Name("main"),
        ],
    ),
    Case::new(
        "10,000 threads",
        "of which one works",
        |_| unruly(&["threads", if in_vm() { "1000" } else { "10000" }]),
        &[Says::Name("toil")],
    ),
    Case::new(
        "a frame pointer in a circle",
        "rbp points to itself",
        |_| unruly(&["rbp"]),
        &[Says::End("no_row")],
    ),
    Case::new(
        "a stack pointer into nothing",
        "rsp is 4096, where nothing is mapped",
        |_| unruly(&["rsp"]),
        &[Says::End("read_fault"), Says::Name("spin_with_stack_at")],
    ),
    Case::new(
        "a stack in a file that is cut",
        "the pages of the stack are no more",
        |directory| unruly(&["stack", directory.join("stack").to_str().unwrap()]),
        &[Says::End("read_fault"), Says::Name("spin_with_stack_at")],
    ),
];

fn unruly(arguments: &[&str]) -> Target {
    Target::spawn("unruly", arguments)
}

/// A shell writes over the file, from its second page on, as long as the target lives.
fn rewritten(directory: &Path) -> Target {
    let carried = directory.join("carried");
    let image = Image::named(b"work").part(Part::new(".eh_frame", vec![7; 1 << 20]));
    image.write(&carried);
    let truth = fs::read(&carried).unwrap();
    fs::write(directory.join("truth"), &truth[0x2000..]).unwrap();
    let noise = truth[0x2000..].iter().enumerate();
    let noise: Vec<u8> = noise
        .map(|(at, byte)| byte ^ ((at * at) >> 3) as u8)
        .collect();
    fs::write(directory.join("noise"), noise).unwrap();
    let script = "while :; do for of in noise truth; do dd if=$of of=carried bs=8192 seek=1 \
                  conv=notrunc 2>/dev/null; done; done & exec \"$0\" \"$1\" carried";
    let mut command = Command::new("sh");
    command
        .current_dir(directory)
        .args(["-c", script])
        .arg(program("carrier"));
    Target::run(command.arg(LIFE))
}

const HOSTILE: &str = "\u{1b}[31m<\u{202e}script>\n\"&\r'";

fn named_against_terminals(directory: &Path) -> Target {
    let own = directory.join(HOSTILE);
    fs::create_dir(&own).unwrap();
    let path = own.join(OsStr::from_bytes(b"<x>\x1b]0;y\x07\xff\n"));
    copy_executable(&program("split"), &path);
    let mut command = Command::new(&path);
    command
        .arg0(HOSTILE)
        .arg(LIFE)
        .arg(HOSTILE)
        .env(HOSTILE, HOSTILE);
    Target::run(&mut command)
}

/// A copy of a program at a path as long as it can be.
fn longest_path(directory: &Path, name: &str) -> OsString {
    const LONGEST: usize = 4095;
    let mut path = directory.as_os_str().as_bytes().to_vec();
    while path.len() < LONGEST {
        let left = LONGEST - path.len() - 1;
        // No component of zero bytes, and none of more than 255.
        let length = if left <= 255 { left } else { left.min(250) };
        path.push(b'/');
        path.extend(vec![b'd'; length.min(LONGEST - path.len())]);
        if path.len() < LONGEST {
            fs::create_dir(OsString::from_vec(path.clone())).unwrap();
        }
    }
    let path = OsString::from_vec(path);
    copy_executable(&program(name), path.as_ref());
    path
}
