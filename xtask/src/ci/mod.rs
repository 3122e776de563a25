//! The invariants that the compiler does not know, checked by reading the sources.

mod source;

use crate::command::root;
use anyhow::{Context, Result, bail};
use source::Line;
use std::fmt;
use std::fs;
use std::path::Path;

/// Most lines of a file, its tests aside.
const MAX_LINES: usize = 600;

/// The crates that the rules hold for.
const CRATES: [&str; 3] = ["agent/src", "agent-ebpf/src", "xtask/src"];

/// A line that breaks a rule.
#[derive(Debug)]
struct Finding {
    path: String,
    line: usize,
    message: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// A rule about single lines of code outside tests.
struct Rule {
    /// Where the rule holds, and the parts of it where it does not: a module is named without `.rs`.
    within: &'static [&'static str],
    except: &'static [&'static str],
    broken: fn(&Line) -> bool,
    message: &'static str,
}

static RULES: [Rule; 5] = [
    Rule {
        within: &["agent/src"],
        except: &["agent/src/session", "agent/src/probe"],
        broken: |line| words(&line.code).any(|word| word == "aya" || word.starts_with("aya_")),
        message: "only `session` and `probe` may use aya",
    },
    Rule {
        within: &["agent/src"],
        except: &[
            "agent/src/process",
            "agent/src/preflight",
            "agent/src/session/preflight",
            "agent/src/symbolize/kernel",
        ],
        broken: |line| line.texts.iter().any(|text| is_kernel_path(text)),
        message: "only `process`, `preflight` and `symbolize::kernel` may name a path under /proc or /sys",
    },
    Rule {
        within: &[
            "agent/src/unwind",
            "agent/src/profile",
            "agent/src/guard",
            "agent-ebpf/src/unwind",
        ],
        except: &[],
        broken: does_io,
        message: "`unwind`, `profile` and `guard` do no I/O",
    },
    Rule {
        within: &["agent/src/output"],
        except: &[],
        broken: |line| words(&line.code).any(|word| word == "session"),
        message: "`output` sees the profile only, never `session`",
    },
    Rule {
        within: &["agent/src"],
        except: &["agent/src/main", "agent/src/cli"],
        broken: |line| {
            ["print!", "println!", "eprint!", "eprintln!"]
                .iter()
                .any(|name| has_word(&line.code, name))
        },
        message: "only `cli` and `main` may print",
    },
];

/// Checks every source.
///
/// # Errors
/// A rule is broken: the error lists each place. Or a source cannot be read.
pub(crate) fn run() -> Result<()> {
    let root = root();
    let mut files = Vec::new();
    for directory in CRATES {
        let mut paths = Vec::new();
        crate::command::list_files(&root.join(directory), &mut paths)?;
        paths.sort();
        for path in paths
            .iter()
            .filter(|path| path.extension().is_some_and(|end| end == "rs"))
        {
            let text = fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.strip_prefix(&root)?.to_string_lossy().into_owned();
            files.push((name, source::read(&text)));
        }
    }
    let tests: Vec<String> = files
        .iter()
        .flat_map(|(path, lines)| test_modules(path, lines))
        .collect();
    let mut findings = Vec::new();
    for (path, lines) in &files {
        if !tests.iter().any(|module| is_inside(path, module)) {
            findings.extend(check(path, lines));
        }
    }
    if !findings.is_empty() {
        let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
        bail!("{} broken invariants\n{}", lines.len(), lines.join("\n"));
    }
    eprintln!("the invariants hold in {} files", files.len());
    Ok(())
}

/// The findings in one source, whose path is relative to the root.
fn check(path: &str, lines: &[Line]) -> Vec<Finding> {
    let found = |line: usize, message| Finding {
        path: path.to_owned(),
        line,
        message,
    };
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.test) {
        for rule in RULES.iter().filter(|rule| rule.holds_in(path)) {
            if (rule.broken)(line) {
                findings.push(found(index + 1, rule.message));
            }
        }
        if may_panic(&line.code) && !has_reason(lines, index) {
            findings.push(found(
                index + 1,
                "unwrap and expect belong into tests; else the line above needs `#[expect(clippy::…, reason = \"…\")]`",
            ));
        }
    }
    let counted = lines.iter().filter(|line| !line.test).count();
    if counted > MAX_LINES {
        findings.push(found(
            MAX_LINES + 1,
            "more than 600 lines beside the tests: split the file",
        ));
    }
    findings
}

impl Rule {
    fn holds_in(&self, path: &str) -> bool {
        let inside = |modules: &[&str]| modules.iter().any(|module| is_inside(path, module));
        inside(self.within) && !inside(self.except)
    }
}

/// Whether `path` is the module, as a file or a directory.
fn is_inside(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
}

/// The modules in files of their own that this file declares under `#[cfg(test)]`.
fn test_modules(path: &str, lines: &[Line]) -> Vec<String> {
    // `a/mod.rs`, `lib.rs` and `main.rs` have their modules beside them, `a/b.rs` in `a/b`.
    let path = Path::new(path);
    let directory = match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") => path.with_file_name(""),
        _ => path.with_extension(""),
    };
    let names = lines.iter().filter(|line| line.test).filter_map(|line| {
        let (_, after) = line.code.split_once("mod ")?;
        after.strip_suffix(';')
    });
    names
        .map(|name| directory.join(name).display().to_string())
        .collect()
}

/// Whether a literal is a path under /proc or /sys, and not a message that mentions one.
fn is_kernel_path(text: &str) -> bool {
    ["/proc", "/sys"].iter().any(|top| {
        let rest = text.strip_prefix(top);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) && !text.contains(' ')
    })
}

fn does_io(line: &Line) -> bool {
    let code = &line.code;
    let std_parts = ["fs", "io", "net", "process", "env", "os", "thread"];
    let names_std = std_parts
        .iter()
        .any(|part| has_word(code, &format!("std::{part}")));
    let grouped = code.contains("std::{") && words(code).any(|word| std_parts.contains(&word));
    let others = ["libc", "tokio", "File"];
    names_std || grouped || words(code).any(|word| others.contains(&word))
}

fn may_panic(code: &str) -> bool {
    [".unwrap()", ".expect("]
        .iter()
        .any(|call| code.contains(call))
}

/// Whether the attribute above the statement (at most five lines up) says why it may panic.
fn has_reason(lines: &[Line], index: usize) -> bool {
    let start = index.saturating_sub(5);
    let above = lines.get(start..index).unwrap_or_default();
    above.iter().any(|line| {
        line.code.contains("clippy::unwrap_used") || line.code.contains("clippy::expect_used")
    }) && above.iter().any(|line| line.code.contains("reason ="))
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|character: char| !(character.is_alphanumeric() || character == '_'))
}

/// Whether `word` stands in the code with nothing before or after it that belongs to a name.
fn has_word(code: &str, word: &str) -> bool {
    let joins = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code.get(..at).and_then(|text| text.chars().next_back());
        let after = code
            .get(at + word.len()..)
            .and_then(|text| text.chars().next());
        let ends = word.ends_with('!') || !after.is_some_and(joins);
        ends && !before.is_some_and(joins)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        check(path, &source::read(text))
            .iter()
            .map(Finding::to_string)
            .collect()
    }

    /// Whether the one line of code breaks exactly one rule in this file.
    fn breaks(path: &str, line: &str) -> bool {
        let found = messages(path, &format!("fn f() {{}}\n{line}\n"));
        assert!(found.len() <= 1, "{found:?}");
        assert!(
            found
                .iter()
                .all(|text| text.starts_with(&format!("{path}:2: "))),
            "{found:?}"
        );
        !found.is_empty()
    }

    #[test]
    fn aya_stays_in_session_and_probe() {
        assert!(breaks("agent/src/process.rs", "use aya::Ebpf;"));
        assert!(breaks(
            "agent/src/cli/run.rs",
            "let map = aya_obj::Map::new();"
        ));
        assert!(!breaks("agent/src/session/mod.rs", "use aya::Ebpf;"));
        assert!(!breaks("agent/src/probe.rs", "use aya::Ebpf;"));
        assert!(!breaks("agent/src/process.rs", "// like aya"));
        assert!(!breaks("agent/src/process.rs", "let layaway = 1;"));
    }

    #[test]
    fn kernel_files_are_read_by_few() {
        assert!(breaks(
            "agent/src/session/target.rs",
            "open(format!(\"/proc/{pid}/maps\"));"
        ));
        assert!(breaks("agent/src/symbolize/elf.rs", "Path::new(\"/sys\");"));
        assert!(!breaks("agent/src/process.rs", "Path::new(\"/proc\");"));
        assert!(!breaks(
            "agent/src/process/maps.rs",
            "Path::new(\"/proc\");"
        ));
        assert!(!breaks(
            "agent/src/session/preflight.rs",
            "Path::new(\"/sys/kernel\");"
        ));
        assert!(!breaks(
            "agent/src/symbolize/kernel.rs",
            "Path::new(\"/proc/kallsyms\");"
        ));
        assert!(!breaks(
            "agent/src/cli.rs",
            "bail!(\"no BTF in /sys/kernel/btf\");"
        ));
        assert!(!breaks("agent/src/cli.rs", "Path::new(\"/system\");"));
    }

    #[test]
    fn pure_modules_do_no_io() {
        assert!(breaks("agent/src/profile.rs", "use std::fs::File as _;"));
        assert!(breaks("agent/src/unwind/table.rs", "use std::{io, mem};"));
        assert!(breaks(
            "agent-ebpf/src/unwind.rs",
            "let n = unsafe { libc::getpid() };"
        ));
        assert!(!breaks(
            "agent/src/unwind.rs",
            "use std::collections::BTreeMap;"
        ));
        assert!(!breaks(
            "agent/src/unwind.rs",
            "use crate::process::Mapping;"
        ));
    }

    #[test]
    fn output_does_not_know_the_session() {
        assert!(breaks(
            "agent/src/output/svg.rs",
            "use crate::session::Finished;"
        ));
        assert!(!breaks(
            "agent/src/output/svg.rs",
            "use crate::profile::Profile;"
        ));
    }

    #[test]
    fn only_the_command_line_prints() {
        assert!(breaks("agent/src/session.rs", "eprintln!(\"x\");"));
        assert!(breaks("agent/src/session.rs", "print!(\"x\");"));
        assert!(!breaks("agent/src/cli/run.rs", "println!(\"x\");"));
        assert!(!breaks("agent/src/main.rs", "eprintln!(\"x\");"));
        assert!(!breaks("agent/src/session.rs", "let text = \"println!\";"));
    }

    #[test]
    fn panics_need_a_reason() {
        assert!(breaks("agent/src/profile.rs", "let x = y.unwrap();"));
        assert!(breaks("xtask/src/main.rs", "let x = y.expect(\"z\");"));
        assert!(!breaks("agent/src/profile.rs", "let x = y.unwrap_or(1);"));
        let excused =
            "#[expect(clippy::unwrap_used, reason = \"checked above\")]\nlet x = y.unwrap();\n";
        assert!(messages("agent/src/profile.rs", excused).is_empty());
        let unexplained = "#[allow(clippy::unwrap_used)]\nlet x = y.unwrap();\n";
        assert_eq!(messages("agent/src/profile.rs", unexplained).len(), 1);
    }

    #[test]
    fn tests_are_free() {
        let text = "#[cfg(test)]\nmod tests {\n    fn f() { g().unwrap(); println!(); }\n}\n";
        assert!(messages("agent/src/profile.rs", text).is_empty());
    }

    #[test]
    fn test_modules_may_have_files_of_their_own() {
        let lines =
            source::read("mod a;\n#[cfg(test)]\nmod fixture;\n#[cfg(test)]\npub(crate) mod b;\n");
        assert_eq!(
            test_modules("agent/src/output/mod.rs", &lines),
            ["agent/src/output/fixture", "agent/src/output/b"]
        );
        assert_eq!(
            test_modules("agent/src/output.rs", &lines),
            ["agent/src/output/fixture", "agent/src/output/b"]
        );
    }

    #[test]
    fn long_files_are_split() {
        assert_eq!(messages("agent/src/x.rs", &"f();\n".repeat(600)).len(), 1);
        assert!(messages("agent/src/x.rs", &"f();\n".repeat(599)).is_empty());
    }
}
