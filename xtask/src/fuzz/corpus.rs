//! The inputs that fuzzing starts from.

use crate::command::{self, cargo};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Longest input that is kept, in bytes.
const MAX_INPUT: u64 = 10 << 10;
/// Most bytes that are kept of a target: all together stay below 1 MiB.
const MAX_TOTAL: u64 = 48 << 10;

/// Makes inputs of real files: programs that are compiled, captures that are written, this kernel's BTF.
///
/// # Errors
/// The generator, a test of the agent, fails.
pub(super) fn seed(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let mut generator = cargo();
    generator
        .args(["test", "--quiet", "--package", "agent", "--lib"])
        .args(["fuzz_targets::seeds", "--", "--ignored"])
        .env("FUZZ_SEEDS", directory)
        .stdout(Stdio::null());
    command::run(&mut generator)
}

/// Replaces what is kept by the smallest of these inputs that reach everything that is reached.
///
/// # Errors
/// A directory cannot be written, or the program cannot be run.
pub(super) fn keep(program: &Path, sources: &[PathBuf], kept: &Path) -> Result<()> {
    let merged = kept.with_extension("merged");
    fs::create_dir_all(&merged).with_context(|| format!("cannot make {}", merged.display()))?;
    command::run(
        Command::new(program)
            .args(["-set_cover_merge=1", "-use_counters=0", "-timeout=25"])
            .arg(&merged)
            .arg(kept)
            .args(sources)
            .stderr(Stdio::null()),
    )?;
    let mut files = Vec::new();
    command::list_files(&merged, &mut files)?;
    let mut sized = Vec::new();
    for path in files {
        sized.push((fs::metadata(&path)?.len(), path));
    }
    sized.sort();
    let mut total = 0;
    for (size, path) in sized {
        total += size;
        if size > MAX_INPUT || total > MAX_TOTAL {
            fs::remove_file(&path)?;
        }
    }
    fs::remove_dir_all(kept)?;
    fs::rename(&merged, kept).with_context(|| format!("cannot replace {}", kept.display()))
}
