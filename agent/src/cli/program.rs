//! The file of a program to start, and why it cannot be started.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::elf::{self, ReadAt};

use super::launch::LaunchError;

/// `PT_INTERP` (System V gABI, chapter 5).
const PT_INTERP: u32 = 3;
/// Bytes of an ELF64 header and of a program header.
const HEADER: usize = 64;
const PROGRAM_HEADER: u64 = 56;
/// Longest path of an interpreter, in bytes (`PATH_MAX`, linux/limits.h).
const PATH_MAX: u64 = 4096;
/// Most program headers looked at.
const MAX_HEADERS: u16 = 256;

/// The program's file, searched for as execvp(3) does: the tries of a search in the new process
/// would count as its failures.
///
/// # Errors
/// There is none, or it is seen beforehand that it cannot be executed.
pub fn find(program: &OsStr) -> Result<PathBuf, LaunchError> {
    let shown = || program.to_string_lossy().into_owned();
    let path = if program.as_encoded_bytes().contains(&b'/') {
        PathBuf::from(program)
    } else {
        in_path(program).ok_or_else(|| LaunchError::NotInPath { program: shown() })?
    };
    let meta = path.metadata().map_err(|source| LaunchError::Exec {
        program: shown(),
        source,
    })?;
    if meta.is_dir() {
        return Err(LaunchError::Directory { program: shown() });
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(LaunchError::NotExecutable { program: shown() });
    }
    let missing = |path: &OsString| {
        let meta = Path::new(path).metadata();
        meta.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    // A pipe would hold us up: the kernel refuses it.
    let named = meta.is_file().then(|| interpreter(&path)).flatten();
    match named.filter(missing) {
        Some(interpreter) => Err(LaunchError::Interpreter {
            program: shown(),
            interpreter: interpreter.to_string_lossy().into_owned(),
        }),
        None => Ok(path),
    }
}

/// The first file of the name that can be executed, else the first.
fn in_path(program: &OsStr) -> Option<PathBuf> {
    if program.is_empty() {
        return None;
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let candidates: Vec<(PathBuf, u32)> = std::env::split_paths(&directories)
        .map(|directory| directory.join(program))
        .filter_map(|path| {
            let meta = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some((path, meta.permissions().mode()))
        })
        .collect();
    let runnable = candidates.iter().find(|(_, mode)| mode & 0o111 != 0);
    let (path, _) = runnable.or(candidates.first())?;
    Some(path.clone())
}

/// What runs the file: the word after `#!` (execve(2)), or the loader that an ELF file names.
fn interpreter(path: &Path) -> Option<OsString> {
    let file = File::open(path).ok()?;
    let mut head = Vec::new();
    (&file).take(PATH_MAX).read_to_end(&mut head).ok()?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next()?;
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let word = line.split(blank).find(|word| !word.is_empty())?;
        return Some(OsStr::from_bytes(word).to_owned());
    }
    let head = head
        .get(..HEADER)
        .filter(|head| head.starts_with(b"\x7fELF\x02\x01"))?;
    let (first, count) = (elf::xword(head, 32), elf::half(head, 56));
    (0..u64::from(count.min(MAX_HEADERS))).find_map(|index| {
        let mut header = [0; PROGRAM_HEADER as usize];
        let at = first.checked_add(index * PROGRAM_HEADER)?;
        ReadAt::read_exact_at(&file, &mut header, at).ok()?;
        if elf::word(&header, 0) != PT_INTERP {
            return None;
        }
        let mut path = vec![0; elf::xword(&header, 32).min(PATH_MAX) as usize];
        ReadAt::read_exact_at(&file, &mut path, elf::xword(&header, 8)).ok()?;
        path.truncate(path.iter().position(|&byte| byte == 0)?);
        Some(OsString::from_vec(path))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use std::fs;

    fn refusal(program: impl AsRef<OsStr>) -> (String, u8) {
        let error = find(program.as_ref()).unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(error));
        let code = find(program.as_ref()).unwrap_err().exit_code();
        (text, code)
    }

    #[test]
    fn programs_are_found_in_the_path() {
        assert!(find(OsStr::new("sh")).unwrap().ends_with("sh"));
        let (text, code) = refusal("no-such-program");
        assert!(
            text.contains("`no-such-program`: not found in PATH"),
            "{text}"
        );
        assert_eq!(code, 127);
        assert_eq!(refusal("").1, 127);
    }

    #[test]
    fn what_cannot_be_executed_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let (text, code) = refusal(directory.path());
        assert!(text.contains("is a directory"), "{text}");
        assert_eq!(code, 126);
        let script = directory.path().join("script");
        fs::write(&script, "#! /no/such/interpreter -x\n").unwrap();
        let (text, code) = refusal(&script);
        assert!(text.contains("not executable"), "{text}");
        assert_eq!(code, 126);
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let (text, code) = refusal(&script);
        assert!(text.contains("`/no/such/interpreter`"), "{text}");
        assert_eq!(code, 127);
        let (text, code) = refusal(directory.path().join("missing"));
        assert!(text.to_lowercase().contains("no such file"), "{text}");
        assert_eq!(code, 127);
    }

    #[test]
    fn the_loader_of_an_elf_file_is_found() {
        let shell = find(OsStr::new("sh")).unwrap();
        let loader = interpreter(&shell).unwrap();
        assert!(loader.to_string_lossy().contains("ld-"), "{loader:?}");
    }
}
