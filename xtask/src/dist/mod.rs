//! The agent as one static file for any x86-64 Linux, its bill of materials and checksums.

mod elf;
mod sbom;

use crate::command::{self, cargo, cargo_home, root, target};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The profile that it is built with.
const PROFILE: &str = "packaged";
/// What the file is built for.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Most bytes of the file.
const MAX_BYTES: usize = 15_000_000;
/// The file, and what lies beside it in `target/dist`.
const BINARY: &str = "agent";
const SBOM: &str = "agent.cdx.json";
const SUMS: &str = "SHA256SUMS";

/// Arguments of `dist`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pack this file instead of building one
    #[arg(long, value_name = "FILE")]
    pub(crate) binary: Option<PathBuf>,
}

/// Where everything goes.
pub(crate) fn directory() -> PathBuf {
    target().join("dist")
}

/// Builds the file, checks it and writes it with all that belongs to it; gives its path.
///
/// # Errors
/// It does not build, is not static, holds symbols or paths of this machine, or is too large.
pub(crate) fn run(args: &Args) -> Result<PathBuf> {
    let built = match &args.binary {
        Some(path) => path.clone(),
        None => build()?,
    };
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    check(&bytes, &paths_of_this_machine())
        .with_context(|| format!("{} is not fit to be given away", built.display()))?;
    let sbom = sbom::make(&digest(&bytes))?;
    let directory = directory();
    write(&directory, &bytes, &sbom)?;
    eprintln!(
        "{}: {} bytes, static, stripped",
        directory.join(BINARY).display(),
        bytes.len()
    );
    Ok(directory.join(BINARY))
}

fn build() -> Result<PathBuf> {
    let flags = [
        OsString::from("-Ctarget-feature=+crt-static"),
        remap(&root(), "/agent"),
        remap(&target(), "/target"),
        remap(&cargo_home(), "/cargo"),
    ];
    let mut build = cargo();
    build
        .args([
            "build",
            "--locked",
            "--profile",
            PROFILE,
            "--package",
            "agent",
        ])
        .args(["--target", TRIPLE])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f".as_ref()))
        .env_remove("RUSTFLAGS");
    command::run(&mut build)?;
    Ok(target().join(TRIPLE).join(PROFILE).join(BINARY))
}

/// Has the compiler write another path instead of one of this machine.
fn remap(from: &Path, to: &str) -> OsString {
    let mut flag = OsString::from("--remap-path-prefix=");
    flag.push(from);
    flag.push("=");
    flag.push(to);
    flag
}

/// Paths that tell where the file was built.
fn paths_of_this_machine() -> Vec<String> {
    let paths = [root(), target(), cargo_home()];
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect()
}

/// # Errors
/// One that says all that is wrong.
fn check(bytes: &[u8], paths: &[String]) -> Result<()> {
    let mut wrong = elf::needs(bytes)?;
    if elf::has_symbols(bytes)? {
        wrong.push("it is not stripped".to_owned());
    }
    if bytes.len() > MAX_BYTES {
        wrong.push(format!(
            "it has {} bytes, more than {MAX_BYTES}",
            bytes.len()
        ));
    }
    for path in paths {
        let path = path.as_bytes();
        if path.len() > 1 && bytes.windows(path.len()).any(|window| window == path) {
            wrong.push(format!(
                "it holds the path {}",
                String::from_utf8_lossy(path)
            ));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(())
}

fn write(directory: &Path, binary: &[u8], sbom: &[u8]) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let sums = [(BINARY, binary), (SBOM, sbom)].map(|(name, bytes)| {
        // As sha256sum(1) reads it.
        format!("{}  {name}\n", digest(bytes))
    });
    for (name, bytes) in [
        (BINARY, binary),
        (SBOM, sbom),
        (SUMS, sums.concat().as_bytes()),
    ] {
        let path = directory.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    command::run(
        Command::new("chmod")
            .arg("0755")
            .arg(directory.join(BINARY)),
    )
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    /// A small program, compiled with these arguments.
    fn program(arguments: &[&str]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let (source, program) = (directory.path().join("x.c"), directory.path().join("x"));
        let text = r#"#include <stdio.h>
            int main(void) { return puts("/home/builder/agent"); }"#;
        fs::write(&source, text).unwrap();
        let mut gcc = Command::new("gcc");
        command::run(gcc.args(arguments).arg(&source).arg("-o").arg(&program)).unwrap();
        fs::read(program).unwrap()
    }

    fn refusal(bytes: &[u8], paths: &[&str]) -> String {
        let paths: Vec<String> = paths.iter().map(|&path| path.to_owned()).collect();
        check(bytes, &paths).unwrap_err().to_string()
    }

    #[test]
    fn a_static_file_without_symbols_is_fit() {
        for arguments in [&["-static", "-s"][..], &["-static-pie", "-s"]] {
            check(&program(arguments), &["/home/else".to_owned()]).unwrap();
        }
    }

    #[test]
    fn what_ties_a_file_to_a_machine_is_found() {
        let dynamic = refusal(&program(&["-s"]), &[]);
        assert!(
            dynamic.contains("the interpreter /lib64/ld-linux"),
            "{dynamic}"
        );
        assert!(dynamic.contains("the library libc.so.6"), "{dynamic}");
        assert!(!dynamic.contains("stripped"), "{dynamic}");
        let whole = refusal(&program(&["-static"]), &["/home/builder"]);
        assert!(
            whole.contains("not stripped") && whole.contains("/home/builder"),
            "{whole}"
        );
        let large = [program(&["-static", "-s"]), vec![0; MAX_BYTES]].concat();
        assert!(refusal(&large, &[]).contains("more than 15000000"));
        assert!(check(b"no program", &[]).is_err());
    }

    #[test]
    fn checksums_are_those_of_the_files() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), b"binary", b"{}").unwrap();
        let mut check = Command::new("sha256sum");
        let check = check
            .args(["--check", "--strict", SUMS])
            .current_dir(directory.path());
        assert_eq!(
            command::output(check).unwrap(),
            "agent: OK\nagent.cdx.json: OK\n"
        );
    }
}
