//! Compiles the kernel programs into the object that the agent embeds.
//!
//! The object is committed beside a note of the sources and tools it was made with, so that
//! whoever only builds the agent needs neither. The build does not depend on where the
//! checkout is: every path of this machine is mapped to a fixed one.

use crate::command::{self, cargo_home, root, target};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const OBJECT: &str = "agent/bpf/agent.bpf.o";
const NOTE: &str = "agent/bpf/agent.bpf.toml";
const SOURCES: &str = "agent-ebpf";
const TARGET: &str = "bpfel-unknown-none";
/// Where Debian's llvm-22 keeps its programs.
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22/bin";

/// Arguments of `build-ebpf`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if the committed object is not what the sources give
    #[arg(long)]
    pub(crate) check: bool,
}

/// Builds the object, or checks the committed one.
///
/// # Errors
/// No usable toolchain, a compile error, or (with `--check`) a stale object.
pub(crate) fn run(args: &Args) -> Result<()> {
    let sources = hash_sources(&root())?;
    if args.check {
        return check(&sources);
    }
    let toolchain = Toolchain::find()?;
    let object = toolchain.build(Warnings::Shown)?;
    let note = Note::new(&toolchain, sources, &object);
    fs::create_dir_all(root().join(OBJECT).with_file_name(""))?;
    fs::write(root().join(OBJECT), &object).with_context(|| format!("cannot write {OBJECT}"))?;
    fs::write(root().join(NOTE), note.to_text()).with_context(|| format!("cannot write {NOTE}"))?;
    eprintln!("{OBJECT}: {} bytes, {}", object.len(), note.rustc);
    Ok(())
}

fn check(sources: &str) -> Result<()> {
    let text = fs::read_to_string(root().join(NOTE))
        .with_context(|| format!("cannot read {NOTE}; make it with `cargo xtask build-ebpf`"))?;
    let note = Note::parse(&text).with_context(|| format!("in {NOTE}"))?;
    let object = fs::read(root().join(OBJECT)).with_context(|| format!("cannot read {OBJECT}"))?;
    if note.sources != sources {
        bail!("{OBJECT} is older than its sources; rebuild it with `cargo xtask build-ebpf`");
    }
    if note.object != digest(&object) {
        bail!("{OBJECT} is not the file that {NOTE} describes; run `cargo xtask build-ebpf`");
    }
    let toolchain = Toolchain::find()?;
    if (&toolchain.rustc, &toolchain.linker) != (&note.rustc, &note.linker) {
        toolchain.build(Warnings::Denied)?;
        eprintln!(
            "{OBJECT}: sources unchanged and they compile, bytes not compared: recorded are {} and {}, here are {} and {}",
            note.rustc, note.linker, toolchain.rustc, toolchain.linker
        );
        return Ok(());
    }
    let rebuilt = toolchain.build(Warnings::Denied)?;
    if rebuilt != object {
        let copy = target().join("bpf/rebuilt.bpf.o");
        fs::write(&copy, &rebuilt)?;
        bail!(
            "{OBJECT} ({} bytes) is not what its sources give with the recorded toolchain ({} bytes, {}); run `cargo xtask build-ebpf`",
            object.len(),
            rebuilt.len(),
            copy.display()
        );
    }
    eprintln!(
        "{OBJECT}: up to date, a rebuild gives the same {} bytes",
        object.len()
    );
    Ok(())
}

/// What the compiler's warnings mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Warnings {
    Shown,
    Denied,
}

/// A compiler with the source of its `core`, and the programs that make an object of it.
struct Toolchain {
    cargo: PathBuf,
    compiler: PathBuf,
    /// First line of `rustc --version`.
    rustc: String,
    /// `bpf-linker --version`.
    linker: String,
    strip: PathBuf,
    core: PathBuf,
}

impl Toolchain {
    /// Debian's compiler if it has the source of `core`, else rustup's nightly.
    fn find() -> Result<Self> {
        let (cargo, compiler) = match Self::debian() {
            Some(pair) => pair,
            None => Self::nightly()?,
        };
        let rustc = command::output(Command::new(&compiler).arg("--version"))?;
        let sysroot = command::output(Command::new(&compiler).args(["--print", "sysroot"]))?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
        let linker = command::output(Command::new(linker_path()?).arg("--version"))?;
        let strip = Path::new(DEBIAN_LLVM).join("llvm-strip");
        let strip = if strip.is_file() {
            Some(strip)
        } else {
            command::find("llvm-strip")
        };
        Ok(Self {
            cargo,
            compiler,
            rustc: rustc.trim().to_owned(),
            linker: linker.trim().to_owned(),
            strip: strip.context("no llvm-strip; `cargo xtask setup` installs it")?,
            core,
        })
    }

    fn debian() -> Option<(PathBuf, PathBuf)> {
        let core = Path::new("/usr/lib/rustlib/src/rust/library/core/src/lib.rs");
        let pair = (
            PathBuf::from("/usr/bin/cargo"),
            PathBuf::from("/usr/bin/rustc"),
        );
        (core.is_file() && pair.0.is_file() && pair.1.is_file()).then_some(pair)
    }

    fn nightly() -> Result<(PathBuf, PathBuf)> {
        let path = |name: &str| -> Result<PathBuf> {
            let text = command::output(Command::new("rustup").args([
                "which",
                "--toolchain",
                "nightly",
                name,
            ]))?;
            Ok(PathBuf::from(text.trim()))
        };
        let pair = path("cargo").and_then(|cargo| Ok((cargo, path("rustc")?)));
        let pair = pair.context(HELP)?;
        let source = "lib/rustlib/src/rust/library/core/src/lib.rs";
        let prefix = pair.1.parent().and_then(Path::parent);
        if !prefix.is_some_and(|prefix| prefix.join(source).is_file()) {
            bail!("the nightly toolchain has no source of core; {HELP}");
        }
        Ok(pair)
    }

    /// Compiles the sources of this checkout and returns the object without its DWARF.
    fn build(&self, warnings: Warnings) -> Result<Vec<u8>> {
        let directory = target().join("bpf");
        let mut path = OsString::from(self.compiler.with_file_name(""));
        for part in [
            linker_path()?.with_file_name(""),
            PathBuf::from(DEBIAN_LLVM),
        ] {
            path.push(":");
            path.push(part);
        }
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut build = Command::new(&self.cargo);
        build
            .current_dir(root())
            .args([
                "build",
                "--quiet",
                "--locked",
                "--package",
                "agent-ebpf",
                "--profile",
                "bpf",
            ])
            .args([
                "--bin",
                "agent-ebpf",
                "--target",
                TARGET,
                "-Z",
                "build-std=core",
            ])
            .arg("--target-dir")
            .arg(&directory)
            .env("PATH", path)
            .env("RUSTC", &self.compiler)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags().join("\x1f"));
        for name in [
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
        ] {
            build.env_remove(name);
        }
        let said = build
            .stderr(Stdio::piped())
            .output()
            .context("cannot start cargo")?;
        let text = String::from_utf8_lossy(&said.stderr);
        eprint!("{text}");
        if !said.status.success() {
            bail!("the kernel programs do not build");
        }
        // Not by a compiler flag: it would be part of what the symbols' hashes are made of.
        if warnings == Warnings::Denied && text.contains("warning:") {
            bail!("the kernel programs build with warnings");
        }
        let built = directory.join(TARGET).join("bpf/agent-ebpf");
        let stripped = directory.join("agent.bpf.o");
        command::run(
            Command::new(&self.strip)
                .arg("--strip-debug")
                .arg("-o")
                .arg(&stripped)
                .arg(built),
        )?;
        fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
    }

    /// The compiler's flags. The checkout becomes `.`, so that LLVM still finds the lines of
    /// source that it puts into the BTF and that the verifier's log quotes.
    fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = vec![
            "-Clinker=bpf-linker".into(),
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
            format!("--remap-path-prefix={}=/core", self.core.display()),
            format!("--remap-path-prefix={}=/cargo", cargo_home().display()),
        ];
        // One directory per registry, named after the address it is reached by.
        for entry in fs::read_dir(cargo_home().join("registry/src"))
            .into_iter()
            .flatten()
            .flatten()
        {
            flags.push(format!(
                "--remap-path-prefix={}=/registry",
                entry.path().display()
            ));
        }
        flags.push(format!("--remap-path-prefix={}=.", root().display()));
        flags
    }
}

const HELP: &str = "install Debian's rustc-web, cargo-web and rust-web-src (`cargo xtask setup` does), or: rustup toolchain install nightly --component rust-src";

fn linker_path() -> Result<PathBuf> {
    let installed = cargo_home().join("bin/bpf-linker");
    if installed.is_file() {
        return Ok(installed);
    }
    command::find("bpf-linker").context("no bpf-linker; `cargo xtask setup` installs it")
}

/// What the committed object was made of.
#[derive(Debug, PartialEq, Eq)]
struct Note {
    rustc: String,
    linker: String,
    sources: String,
    object: String,
}

impl Note {
    fn new(toolchain: &Toolchain, sources: String, object: &[u8]) -> Self {
        Self {
            rustc: toolchain.rustc.clone(),
            linker: toolchain.linker.clone(),
            sources,
            object: digest(object),
        }
    }

    fn to_text(&self) -> String {
        format!(
            "# Written by `cargo xtask build-ebpf`.\nrustc = \"{}\"\nlinker = \"{}\"\nsources_sha256 = \"{}\"\nobject_sha256 = \"{}\"\n",
            self.rustc, self.linker, self.sources, self.object
        )
    }

    fn parse(text: &str) -> Result<Self> {
        let value = |name: &str| -> Result<String> {
            text.lines()
                .filter_map(|line| line.split_once(" = "))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.trim_matches('"').to_owned())
                .with_context(|| format!("no `{name}`"))
        };
        Ok(Self {
            rustc: value("rustc")?,
            linker: value("linker")?,
            sources: value("sources_sha256")?,
            object: value("object_sha256")?,
        })
    }
}

/// Hash of everything in the repository that decides the object's bytes.
fn hash_sources(root: &Path) -> Result<String> {
    let mut files = vec![root.join(SOURCES).join("Cargo.toml")];
    command::list_files(&root.join(SOURCES).join("src"), &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root)?.to_string_lossy().into_owned();
        add(&mut hash, &name, &content);
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
    add(&mut hash, "profile", profile_section(&manifest).as_bytes());
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    for package in lock
        .split("[[package]]")
        .filter(|text| text.contains("name = \"aya-ebpf"))
    {
        add(&mut hash, "package", package.trim().as_bytes());
    }
    Ok(hex(&hash.finalize()))
}

/// Adds a named piece, its length first, so that two pieces never read as one.
fn add(hash: &mut Sha256, name: &str, content: &[u8]) {
    hash.update(format!("{name} {}\n", content.len()));
    hash.update(content);
}

/// The text of `[profile.bpf]`.
fn profile_section(manifest: &str) -> String {
    manifest
        .lines()
        .skip_while(|line| line.trim() != "[profile.bpf]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n")
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_note_reads_back() {
        let note = Note {
            rustc: "rustc 1.96.0 (abc 2026-05-25)".into(),
            linker: "bpf-linker 0.13.0".into(),
            sources: "00ff".into(),
            object: "11".into(),
        };
        assert_eq!(Note::parse(&note.to_text()).unwrap(), note);
    }

    #[test]
    fn a_note_without_a_field_names_it() {
        let error = Note::parse("rustc = \"x\"\n").unwrap_err();
        assert_eq!(error.to_string(), "no `linker`");
    }

    #[test]
    fn only_the_bpf_profile_counts() {
        let manifest = "[profile.release]\ndebug = 1\n\n[profile.bpf]\ndebug = 2\n# why\nlto = false\n\n[x]\ny = 1\n";
        assert_eq!(profile_section(manifest), "debug = 2\nlto = false");
    }

    #[test]
    fn the_hash_follows_names_and_contents() {
        let hash = |pieces: &[(&str, &str)]| {
            let mut hash = Sha256::new();
            pieces
                .iter()
                .for_each(|(name, text)| add(&mut hash, name, text.as_bytes()));
            hex(&hash.finalize())
        };
        assert_ne!(hash(&[("a", "xy")]), hash(&[("a", "x"), ("", "y")]));
        assert_ne!(hash(&[("a", "x")]), hash(&[("b", "x")]));
        assert_eq!(hash(&[("a", "x")]), hash(&[("a", "x")]));
    }
}
