//! Whole files named, against the binutils.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed test may panic"
)]

mod big;
mod hostile;
pub(super) mod image;
mod layouts;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use debug_files::DebugRoots;
use tempfile::TempDir;

/// C++ with everything that names can be: inlined functions, namespaces, templates, statics.
const CPP: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#define INLINE inline __attribute__((always_inline))
#define OUT __attribute__((noinline))
volatile long sink;
namespace deep { namespace er {
template <typename T> INLINE T twice(T x) {
  for (int i = 0; i < 3; i++) sink += x;
  return x + sink;
}
struct Shape { long n; OUT long area(long k) const; };
INLINE long mid(long x) {
  sink = x;
  return twice<long>(x) * 3;
}
long Shape::area(long k) const {
  long r = mid(k);
  r += twice<int>((int)k);
  return r + n;
}
} }
static OUT long local_static(long x) { sink += x; return deep::er::mid(x); }
extern "C" OUT long plain_c(long x) { sink -= x; return local_static(x) + 1; }
OUT long locals(long x) {
  struct Local { OUT long method(long y) { sink += y; return deep::er::mid(y); } } local;
  auto lambda = [&](long y) OUT { sink -= y; return y * sink + deep::er::twice<long>(x); };
  return local.method(x) + lambda(x + 1) + lambda(x * 2);
}
int main(int argc, char **argv) {
  deep::er::Shape shape = { locals(argc) };
  printf("%ld\n", shape.area(argc) + plain_c(argc) + (long)(size_t)malloc(10)
         + (long)(size_t)::operator new(argc));
  return 0;
}
"#;

const RUST: &str = r#"
use std::hint::black_box;
pub mod outer {
    use std::hint::black_box;
    #[inline(always)]
    pub fn inner<T: Copy + Into<u64>>(x: T) -> u64 { black_box(x.into()) * 3 }
    #[inline(never)]
    pub fn work(x: u32) -> u64 { let v = inner(x); black_box(v) + inner(x as u8) }
}
fn main() {
    let f = |x: u32| outer::work(black_box(x)) + 1;
    println!("{}", f(black_box(7)));
}
"#;

struct Program {
    directory: TempDir,
    path: PathBuf,
}

fn run(command: &str, directory: &Path) {
    let output = Command::new("sh")
        .args(["-ec", command])
        .current_dir(directory)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
}

/// Writes the source to `name` and runs the commands, which make `program` of it.
fn build(name: &str, source: &str, commands: &str) -> Program {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(name), source).unwrap();
    run(commands, directory.path());
    let path = directory.path().join("program");
    Program { directory, path }
}

impl Program {
    fn cpp(commands: &str) -> Self {
        build("p.cc", CPP, commands)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, command: &str) {
        run(command, self.directory.path());
    }

    /// Names the addresses with debug files looked for as the program at its place would.
    fn name(&self, addresses: &[u64]) -> Vec<Vec<Frame>> {
        let roots = DebugRoots::open([Path::new("/")]);
        self.name_with(&roots.of_module(&self.path), addresses)
    }

    fn name_with(&self, debug: &dyn DebugFiles, addresses: &[u64]) -> Vec<Vec<Frame>> {
        module(
            &File::open(&self.path).unwrap(),
            "program",
            debug,
            addresses,
            &Budget::start(),
        )
    }
}

/// Address, size and demangled name of the functions of a file.
fn functions(file: &Path) -> Vec<(u64, u64, String)> {
    let output = Command::new("nm")
        .args(["-S", "-C", "--defined-only"])
        .arg(file)
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let mut functions: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(4, ' ');
            let address = u64::from_str_radix(fields.next()?, 16).ok()?;
            let size = u64::from_str_radix(fields.next()?, 16).ok()?;
            "tTwW".contains(fields.next()?).then_some(())?;
            Some((address, size, fields.next()?.to_owned()))
        })
        .collect();
    functions.sort();
    functions
}

/// Every `step`th address of the functions whose name holds one of `parts`.
fn addresses(file: &Path, parts: &[&str], step: usize) -> Vec<u64> {
    let mut addresses: Vec<u64> = functions(file)
        .into_iter()
        .filter(|(_, _, name)| parts.iter().any(|part| name.contains(part)))
        .flat_map(|(start, size, _)| (start..start + size).step_by(step))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert!(!addresses.is_empty());
    addresses
}

/// Function, file and line, innermost first, as `addr2line -f -i -C` tells them.
fn oracle(file: &Path, addresses: &[u64]) -> Vec<Vec<(String, String)>> {
    let mut command = Command::new("addr2line");
    command.args(["-a", "-f", "-i", "-C", "-e"]).arg(file);
    command.args(addresses.iter().map(|address| format!("{address:#x}")));
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let mut all: Vec<Vec<(String, String)>> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("0x") && line.len() == 18 {
            all.push(Vec::new());
            continue;
        }
        let place = lines.next().unwrap();
        let place = place.split(" (discriminator").next().unwrap();
        all.last_mut()
            .unwrap()
            .push((line.to_owned(), place.to_owned()));
    }
    all
}

fn place(frame: &Frame) -> String {
    let file = frame.file.as_deref().unwrap_or("??");
    let line = frame.line.map_or("?".to_owned(), |line| line.to_string());
    format!("{file}:{line}")
}

/// Whether `ours`, a name made from the debug information's own, is the oracle's with its scope.
fn qualifies(ours: &str, bare: &str) -> bool {
    let bare = demangle::source_name(bare);
    let scope = ours.strip_suffix(&bare);
    scope.is_some_and(|scope| scope.is_empty() || scope.ends_with("::"))
}

fn assert_as_oracle(file: &Path, named: &[Vec<Frame>], addresses: &[u64]) {
    let expected = oracle(file, addresses);
    assert_eq!(expected.len(), named.len());
    for ((named, expected), address) in named.iter().zip(&expected).zip(addresses) {
        assert_eq!(named.len(), expected.len(), "at {address:#x}");
        for (frame, (function, line)) in named.iter().zip(expected) {
            let ours = frame.function.as_deref().unwrap_or("??");
            assert!(
                ours == function || frame.inlined && qualifies(ours, function),
                "{ours} is not {function} at {address:#x}"
            );
            assert_eq!(&place(frame), line, "at {address:#x}");
        }
    }
}

fn names(frames: &[Frame]) -> Vec<&str> {
    frames
        .iter()
        .map(|frame| frame.function.as_deref().unwrap_or("??"))
        .collect()
}
