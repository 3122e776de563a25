//! Builds the programs that the end-to-end tests aim at.
//!
//! Each source in `tests/programs` says in its leading comment how it is built:
//! `build: COMMAND` makes the program named like the file, `build(NAME): COMMAND` one of another
//! name. `{src}` is the source, `{out}` the program, `{dir}` the directory of the programs. Scripts
//! (`.py`, `.js`) are copied.

use crate::command::{root, target};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// A program to be made.
#[derive(Debug, PartialEq, Eq)]
struct Recipe {
    name: String,
    source: PathBuf,
    /// A shell command with its placeholders.
    command: String,
}

/// Builds every program that is missing or older than its source; returns how many there are.
///
/// # Errors
/// A source says nothing of how it is built, or a compiler fails: the error names each program and holds
/// what its compiler said.
pub(crate) fn build() -> Result<usize> {
    let sources = root().join("tests/programs");
    let output = target().join("programs");
    let stamps = target().join("programs-built");
    fs::create_dir_all(&output)?;
    fs::create_dir_all(&stamps)?;
    let recipes = scan(&sources)?;
    let headers = headers(&sources)?;
    let queue = Mutex::new(recipes.iter());
    let failures = Mutex::new(Vec::new());
    let work = || {
        while let Some(recipe) = queue.lock().ok().and_then(|mut queue| queue.next()) {
            if let Err(error) = recipe.make(&output, &stamps, &headers)
                && let Ok(mut failures) = failures.lock()
            {
                failures.push(format!("{}: {error:#}", recipe.name));
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    let mut failures = failures
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    failures.sort();
    if !failures.is_empty() {
        bail!(
            "{} of {} programs failed\n{}",
            failures.len(),
            recipes.len(),
            failures.join("\n")
        );
    }
    Ok(recipes.len())
}

impl Recipe {
    /// Runs the command unless it, the source and the headers are those of the last time.
    fn make(&self, output: &Path, stamps: &Path, headers: &[u8]) -> Result<()> {
        let program = output.join(&self.name);
        let command = fill(&self.command, &self.source, &program, output);
        let mut hash = Sha256::new();
        hash.update(&command);
        hash.update(headers);
        hash.update(fs::read(&self.source)?);
        let stamp: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let stamp_file = stamps.join(&self.name);
        if program.is_file() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
            return Ok(());
        }
        eprintln!("building {}", self.name);
        let result = Command::new("sh")
            .args(["-c", &command])
            .stdin(Stdio::null())
            .output()
            .context("cannot start sh")?;
        if !result.status.success() {
            let said = String::from_utf8_lossy(&result.stderr).into_owned();
            bail!("{}: {command}\n{}", result.status, said.trim_end());
        }
        if !program.is_file() {
            bail!("`{command}` did not write {}", program.display());
        }
        fs::write(&stamp_file, stamp)?;
        Ok(())
    }
}

fn fill(command: &str, source: &Path, program: &Path, directory: &Path) -> String {
    command
        .replace("{src}", &source.display().to_string())
        .replace("{out}", &program.display().to_string())
        .replace("{dir}", &directory.display().to_string())
}

/// The recipes of all sources, in the order of their names.
fn scan(directory: &Path) -> Result<Vec<Recipe>> {
    let mut recipes = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let source = entry?.path();
        let name = source
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        match source.extension().and_then(|extension| extension.to_str()) {
            Some("c" | "cpp" | "rs" | "go" | "S") => {
                let text = fs::read_to_string(&source)
                    .with_context(|| format!("cannot read {}", source.display()))?;
                let found = parse(&source, &text);
                if found.is_empty() {
                    bail!(
                        "{}: no `build: COMMAND` in its leading comment",
                        source.display()
                    );
                }
                recipes.extend(found);
            }
            Some("py" | "js") => {
                recipes.push(Recipe {
                    name,
                    source,
                    command: "cp {src} {out}".into(),
                });
            }
            _ => {}
        }
    }
    recipes.sort_by(|one, other| one.name.cmp(&other.name));
    for (one, next) in recipes.iter().zip(recipes.iter().skip(1)) {
        if one.name == next.name {
            bail!("two programs are named {}", one.name);
        }
    }
    Ok(recipes)
}

/// The `build` lines of the leading comment: everything up to the first line that is neither blank nor
/// of a comment.
fn parse(source: &Path, text: &str) -> Vec<Recipe> {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let mut recipes = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if !(line.is_empty()
            || line.starts_with("//")
            || line.starts_with(['*', '#'])
            || line.starts_with("/*"))
        {
            break;
        }
        let line = line.trim_start_matches(['/', '*', '#', '!']).trim();
        let line = line.trim_end_matches("*/").trim_end();
        let Some((head, command)) = line.split_once(": ") else {
            continue;
        };
        let variant = head
            .strip_prefix("build(")
            .and_then(|rest| rest.strip_suffix(')'));
        let name = match (head, variant) {
            ("build", _) => &stem,
            (_, Some(variant)) => variant,
            _ => continue,
        };
        recipes.push(Recipe {
            name: name.to_owned(),
            source: source.to_path_buf(),
            command: command.trim().to_owned(),
        });
    }
    recipes
}

/// The contents of all headers: a change of one rebuilds everything.
fn headers(directory: &Path) -> Result<Vec<u8>> {
    let mut paths: Vec<_> = fs::read_dir(directory)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "h"))
        .collect();
    paths.sort();
    let mut bytes = Vec::new();
    for path in paths {
        bytes.extend(fs::read(path)?);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn names_and_commands(file: &str, text: &str) -> Vec<(String, String)> {
        let recipes = parse(Path::new(file), text);
        recipes
            .into_iter()
            .map(|recipe| (recipe.name, recipe.command))
            .collect()
    }

    #[test]
    fn build_lines_are_read_from_each_kind_of_comment() {
        let pair = |name: &str, command: &str| (name.to_owned(), command.to_owned());
        let c = "/* A target.\n *\n * usage: deep [S]\n * build: gcc {src} -o {out}\n * build(deep-static): gcc -static {src} -o {out} */\nint x; // build: no\n";
        let wanted = [
            pair("deep", "gcc {src} -o {out}"),
            pair("deep-static", "gcc -static {src} -o {out}"),
        ];
        assert_eq!(names_and_commands("d/deep.c", c), wanted);
        let rust = "//! build: rustc {src} -o {out}\nfn main() {}\n";
        assert_eq!(
            names_and_commands("r.rs", rust),
            [pair("r", "rustc {src} -o {out}")]
        );
    }

    #[test]
    fn placeholders_are_filled() {
        let command = fill(
            "cc {src} -L{dir} -o {out}",
            Path::new("a.c"),
            Path::new("t/a"),
            Path::new("t"),
        );
        assert_eq!(command, "cc a.c -Lt -o t/a");
    }

    #[test]
    fn a_compiler_error_reaches_the_caller_and_a_made_program_is_not_made_again() {
        let directory = std::env::temp_dir().join(format!("xtask-programs-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let source = directory.join("x.c");
        fs::write(&source, "").unwrap();
        let stamps = directory.join("stamps");
        fs::create_dir_all(&stamps).unwrap();
        let recipe = |command: &str| Recipe {
            name: "x".into(),
            source: source.clone(),
            command: command.into(),
        };
        let error = recipe("echo no such type >&2; false")
            .make(&directory, &stamps, b"")
            .unwrap_err();
        assert!(error.to_string().contains("no such type"), "{error}");
        let count = recipe("echo >> {dir}/count; touch {out}");
        let made = || {
            fs::read_to_string(directory.join("count"))
                .unwrap()
                .lines()
                .count()
        };
        count.make(&directory, &stamps, b"").unwrap();
        count.make(&directory, &stamps, b"").unwrap();
        assert_eq!(made(), 1);
        count.make(&directory, &stamps, b"a new header").unwrap();
        assert_eq!(made(), 2);
        fs::remove_dir_all(&directory).unwrap();
    }
}
