//! Debug information in all the forms and places in which it comes.

use super::*;

const OURS: &[&str] = &["area", "local_static", "plain_c", "locals", "main"];

#[test]
fn inlined_functions_and_lines_as_addr2line_tells_them() {
    for flags in [
        "-O2 -gdwarf-5",
        "-O2 -gdwarf-4",
        "-O0 -g",
        "-O2 -g -no-pie",
        "-O2 -g -gz",
        "-O2 -g -fuse-ld=lld",
    ] {
        let program = Program::cpp(&format!("g++ {flags} p.cc -o program"));
        let addresses = addresses(&program.path, OURS, 1);
        let named = program.name(&addresses);
        assert_as_oracle(&program.path, &named, &addresses);
        let deepest = named.iter().map(Vec::len).max().unwrap();
        assert!(flags.contains("O0") || deepest >= 3, "{flags}: {deepest}");
        for frames in &named {
            let (physical, inlined) = frames.split_last().unwrap();
            assert!(!physical.inlined && inlined.iter().all(|frame| frame.inlined));
        }
    }
}

#[test]
fn rust_without_hashes() {
    let program = build("p.rs", RUST, "rustc -O -g p.rs -o program");
    let addresses = addresses(&program.path, &["outer::work"], 1);
    let named = program.name(&addresses);
    assert!(
        named
            .iter()
            .all(|frames| names(frames).last() == Some(&"p::outer::work"))
    );
    assert!(
        named
            .iter()
            .any(|frames| names(frames).contains(&"p::outer::inner<u32>")
                || names(frames).contains(&"p::outer::inner"))
    );
    for (frames, expected) in named.iter().zip(oracle(&program.path, &addresses)) {
        let places: Vec<String> = frames.iter().map(place).collect();
        let expected: Vec<String> = expected.into_iter().map(|(_, place)| place).collect();
        assert_eq!(places, expected);
    }
}

#[test]
fn separate_files() {
    let split = "g++ -O2 -g -Wl,--build-id p.cc -o program; cp program full; objcopy --only-keep-debug program program.debug;";
    let strip = "strip program; objcopy --add-gnu-debuglink=program.debug program";
    for place in ["true", "mkdir .debug; mv program.debug .debug/"] {
        let program = Program::cpp(&format!("{split} {strip}; {place}"));
        let full = program.path("full");
        let addresses = addresses(&full, OURS, 1);
        assert_as_oracle(&full, &program.name(&addresses), &addresses);
    }
}

/// Lays out a root directory with the program in /bin and returns it with the debug file beside.
fn in_root(commands: &str) -> (Program, PathBuf) {
    let program = Program::cpp(&format!(
        "g++ -O2 -g {commands} p.cc -o full; objcopy --only-keep-debug full program.debug; cp full program; strip program; objcopy --add-gnu-debuglink=program.debug program; mkdir -p root/bin"
    ));
    let root = program.path("root");
    (program, root)
}

#[test]
fn separate_file_by_build_id() {
    let (program, root) = in_root("-Wl,--build-id=0x0123456789abcdef");
    program.run("mkdir -p root/usr/lib/debug/.build-id/01; mv program.debug root/usr/lib/debug/.build-id/01/23456789abcdef.debug");
    let addresses = addresses(&program.path("full"), OURS, 1);
    let roots = DebugRoots::open([root.as_path()]);
    let named = program.name_with(&roots.of_module(Path::new("/bin/program")), &addresses);
    assert_as_oracle(&program.path("full"), &named, &addresses);
    let id = build_id(&File::open(&program.path).unwrap());
    assert_eq!(
        id,
        Some(vec![0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef])
    );
}

#[test]
fn separate_file_by_link_in_the_global_directory_is_checked() {
    let (program, root) = in_root("-Wl,--build-id=none");
    program.run("mkdir -p root/usr/lib/debug/bin; cp program.debug root/usr/lib/debug/bin/");
    let addresses = addresses(&program.path("full"), OURS, 1);
    let roots = DebugRoots::open([root.as_path()]);
    let files = roots.of_module(Path::new("/bin/program"));
    let named = program.name_with(&files, &addresses);
    assert_as_oracle(&program.path("full"), &named, &addresses);

    program.run("printf x >> root/usr/lib/debug/bin/program.debug");
    let named = program.name_with(&files, &addresses);
    assert!(
        named.iter().flatten().all(|frame| frame.function.is_none()),
        "sum is wrong"
    );
}

#[test]
fn a_debug_file_of_another_build_is_refused() {
    let (program, root) = in_root("-Wl,--build-id=0x0123456789abcdef");
    program.run("g++ -O1 -g -Wl,--build-id=0xfedcba p.cc -o other; mkdir -p root/usr/lib/debug/.build-id/01; cp other root/usr/lib/debug/.build-id/01/23456789abcdef.debug");
    let addresses = addresses(&program.path("full"), OURS, 1);
    let roots = DebugRoots::open([root.as_path()]);
    let named = program.name_with(&roots.of_module(Path::new("/bin/program")), &addresses);
    assert!(named.iter().flatten().all(|frame| frame.function.is_none()));
}

#[test]
fn mini_debug_info() {
    let program = Program::cpp(
        "g++ -O2 p.cc -o program; cp program full; nm program --format=posix --defined-only | awk '{print $1}' > keep;
         objcopy -S --remove-section .gdb_index --remove-section .comment --keep-symbols=keep full mini || true;
         objcopy --only-keep-debug full mini; xz -k mini; strip program;
         objcopy --add-section .gnu_debugdata=mini.xz program",
    );
    let full = program.path("full");
    let expected = functions(&full);
    let (start, _, name) = expected
        .iter()
        .find(|(_, _, name)| name.contains("local_static"))
        .unwrap();
    let named = program.name(&[*start, start + 1]);
    assert_eq!(names(&named[0]), [name]);
    assert_eq!(names(&named[1]), [name]);
}

#[test]
fn bare_names_of_functions_that_are_not_visible() {
    let source = "static int sink; namespace { inline __attribute__((always_inline)) void in() { sink++; } \
        __attribute__((noinline)) void hidden() { in(); } } int main() { hidden(); return sink; }";
    let program = build("p.cc", source, "g++ -O1 -g p.cc -o program");
    let addresses = addresses(&program.path, &["hidden"], 1);
    let named = program.name(&addresses);
    let all = named.iter().map(|frames| names(frames));
    assert!(
        all.clone()
            .all(|names| names.last() == Some(&"(anonymous namespace)::hidden()"))
    );
    assert!(
        all.clone()
            .any(|names| names[0] == "(anonymous namespace)::in")
    );
}

#[test]
fn inlined_functions_are_qualified() {
    let source = r#"
#define INLINE inline __attribute__((always_inline))
volatile long sink;
namespace one { inline namespace v2 {
template <typename T> struct Box {
  struct Lid { static INLINE void shut(T x) { sink += x; } };
  INLINE void fill(T x) { Lid::shut(x); sink -= x; }
};
static INLINE void loose(long x) { Box<unsigned long> box; box.fill(x); sink += 3; }
} }
static INLINE void top(long x) {
  struct Local { static INLINE void inner(long x) { sink *= x; one::loose(x); } };
  Local::inner(x);
}
int main(int argc, char **) { top(argc); return 0; }
"#;
    for flags in [
        "-gdwarf-5",
        "-gdwarf-4",
        "-g -fdebug-types-section",
        "-g -flto",
    ] {
        let program = build("p.cc", source, &format!("g++ -O1 {flags} p.cc -o program"));
        let addresses = addresses(&program.path, &["main"], 1);
        let named = program.name(&addresses);
        let all: Vec<&str> = named.iter().flat_map(|frames| names(frames)).collect();
        for name in [
            "one::v2::Box<unsigned long>::Lid::shut",
            "one::v2::Box<unsigned long>::fill",
            "one::v2::loose",
            "top::Local::inner",
            "top",
        ] {
            let last = name.rsplit("::").next().unwrap();
            // A linkage name brings the parameters.
            let found = all.iter().filter_map(|found| found.split('(').next());
            let found: Vec<&str> = found
                .filter(|found| found.rsplit("::").next() == Some(last))
                .collect();
            assert!(!found.is_empty(), "{flags}: no {name} in {all:?}");
            let bare = found.iter().find(|&&found| found != name);
            assert_eq!(bare, None, "{flags}: {name}");
        }
    }
}

#[test]
fn symbol_tables_as_nm_tells_them() {
    let program = Program::cpp("g++ -O2 p.cc -o program");
    for (start, size, name) in functions(&program.path) {
        if size == 0 || !OURS.iter().any(|part| name.contains(part)) {
            continue;
        }
        let found = program.name(&[start, start + size - 1, start + size]);
        assert_eq!(names(&found[0]), [name.as_str()]);
        assert_eq!(names(&found[1]), [name.as_str()]);
        assert_ne!(names(&found[2]), [name.as_str()]);
    }
}

#[test]
fn exported_names_only_and_none_at_all() {
    let program =
        Program::cpp("g++ -O2 -shared -fPIC p.cc -o full; cp full program; strip program");
    let full = functions(&program.path("full"));
    let find = |part: &str| {
        full.iter()
            .find(|(_, _, name)| name.contains(part))
            .unwrap()
            .0
    };
    let mut addresses = [find("plain_c"), find("local_static")];
    addresses.sort_unstable();
    let named = program.name(&addresses);
    let frame = |part| &named[addresses.iter().position(|&at| at == find(part)).unwrap()][0];
    assert_eq!(frame("plain_c").function.as_deref(), Some("plain_c"));
    assert_eq!(frame("local_static").unnamed, Some(Unnamed::NotCovered));

    let bare = Program::cpp("g++ -O2 -static p.cc -o full; cp full program; strip program");
    let full = functions(&bare.path("full"));
    let (start, size, _) = full
        .iter()
        .find(|(_, _, name)| name.contains("local_static"))
        .unwrap();
    for named in bare.name(&[*start, start + 1, start + size - 1]) {
        assert_eq!(named[0].function_start, Some(*start));
        assert_eq!(named[0].unnamed, Some(Unnamed::NoSymbols));
    }
    assert_eq!(
        bare.name(&[0x40_1000])[0][0].unnamed,
        Some(Unnamed::NoSymbols)
    );
}

#[test]
fn stubs_of_libraries() {
    for flags in [
        "-Wl,-z,lazy",
        "-Wl,-z,now",
        "-fcf-protection=none -no-pie",
        "-fuse-ld=lld",
    ] {
        let program = Program::cpp(&format!("g++ -O2 {flags} p.cc -o program"));
        let text = Command::new("objdump")
            .args(["-dC", "-j", ".plt", "-j", ".plt.sec", "-j", ".plt.got"])
            .arg(&program.path)
            .output()
            .unwrap();
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(
            text.contains("<operator new(unsigned long)@plt>:"),
            "{text}"
        );
        for line in text.lines().filter(|line| line.ends_with("@plt>:")) {
            let (address, name) = line.trim_end_matches(">:").split_once(" <").unwrap();
            let address = u64::from_str_radix(address, 16).unwrap();
            assert_eq!(names(&program.name(&[address + 4])[0]), [name], "{flags}");
        }
    }
}

#[test]
fn lines_without_functions_take_the_symbol() {
    let program = build(
        "p.s",
        ".globl start\n.type start,@function\nstart:\n nop\n nop\n ret\n.size start,.-start\n.globl main\nmain:\n call start\n ret\n",
        "gcc -g p.s -o program",
    );
    let start = addresses(&program.path, &["start"], 1)
        .into_iter()
        .collect::<Vec<_>>();
    let (at, _, _) = functions(&program.path)
        .into_iter()
        .find(|(_, _, name)| name == "start")
        .unwrap();
    assert!(start.contains(&at));
    let frame = &program.name(&[at])[0][0];
    assert_eq!(frame.function.as_deref(), Some("start"));
    assert_eq!(frame.line, Some(4));
    assert!(frame.file.as_deref().unwrap().ends_with("p.s"));
}

#[test]
fn go_names_as_they_are() {
    let program = build(
        "p.go",
        "package main\ntype T struct{}\n//go:noinline\nfunc (t *T) Work(x int) int { return x * 3 }\nfunc main() { t := &T{}; println(t.Work(4)) }\n",
        "HOME=$PWD GOCACHE=$PWD/cache GO111MODULE=off go build -o program p.go",
    );
    let (at, _, _) = functions(&program.path)
        .into_iter()
        .find(|(_, _, name)| name == "main.(*T).Work")
        .unwrap();
    let frame = &program.name(&[at])[0][0];
    assert_eq!(frame.function.as_deref(), Some("main.(*T).Work"));
    assert_eq!(frame.line, Some(4));
}

const GO: &str = r#"package main

import "strings"

type T struct{ sum int }

func leaf(x int) int { return x * 3 }

func (t *T) middle(x int) int {
	t.sum += leaf(x)
	return leaf(t.sum + 1)
}

//go:noinline
func (t *T) Work(x int) int {
	y := t.middle(x) + 1
	return t.middle(y)
}

func main() {
	t := &T{}
	println(t.Work(4), strings.Repeat("a", t.sum))
}
"#;

/// What debug information says of the whole program, the table of the stripped one says too.
#[test]
fn stripped_go_from_its_function_table() {
    for flags in ["", "-buildmode=pie"] {
        let go = "HOME=$PWD GOCACHE=$PWD/cache GO111MODULE=off go build";
        let commands =
            format!("{go} {flags} -o full p.go; {go} {flags} -ldflags '-s -w' -o program p.go");
        let program = build("p.go", GO, &commands);
        let full = Program {
            path: program.path("full"),
            directory: tempfile::tempdir().unwrap(),
        };
        let parts = [
            "main.main",
            "main.(*T)",
            "strings.Repeat",
            "runtime.chansend",
        ];
        let addresses = addresses(&full.path, &parts, 1);
        let (mut same, mut deepest) = (0, 0);
        let named = program.name(&addresses);
        for (stripped, whole) in named.iter().zip(full.name(&addresses)) {
            let all = |frames: &[Frame]| -> Vec<(String, String, bool)> {
                let all = frames.iter();
                all.map(|frame| (frame.function.clone().unwrap(), place(frame), frame.inlined))
                    .collect()
            };
            same += usize::from(all(stripped) == all(&whole));
            deepest = deepest.max(stripped.len());
            let (ours, theirs) = (stripped.last().unwrap(), whole.last().unwrap());
            assert_eq!(ours.function, theirs.function, "{flags}");
        }
        // The two tell some instructions' lines apart.
        let share = same as f64 / named.len() as f64;
        assert!(share > 0.9, "{flags}: {share}");
        assert!(deepest >= 3, "{flags}: {deepest}");
    }
}

#[test]
fn mutated_go() {
    let go = "HOME=$PWD GOCACHE=$PWD/cache GO111MODULE=off go build";
    let program = build(
        "p.go",
        GO,
        &format!("{go} -o full p.go; {go} -ldflags '-s -w' -o program p.go"),
    );
    let addresses = addresses(&program.path("full"), &["main.main", "main.(*T)"], 3);
    let bytes = fs::read(&program.path).unwrap();
    let headers = crate::elf::Headers::read(bytes.as_slice()).unwrap();
    let table = headers.section(".gopclntab").unwrap();
    let mut broken = bytes.clone();
    for at in (table.offset..table.offset + 72).step_by(4) {
        for value in [0_u32, 1, u32::MAX, u32::MAX / 2] {
            let at = at as usize;
            broken[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let path = program.path("broken");
            fs::write(&path, &broken).unwrap();
            let named = module(
                &File::open(&path).unwrap(),
                "m",
                &NoDebugFiles,
                &addresses,
                &Budget::start(),
            );
            assert_eq!(named.len(), addresses.len());
            broken[at..at + 4].copy_from_slice(&bytes[at..at + 4]);
        }
    }
}
