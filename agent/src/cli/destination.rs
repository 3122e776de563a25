//! Writes outputs: to a file created anew, 0600, through no symlink; or to standard output.
//!
//! [`Destination::prepare`] runs before the capture, so that a place that cannot be written is
//! known before 30 seconds have been spent; [`Destination::write`] comes after it. The file
//! appears under its name complete or not at all: until then it has none (`O_TMPFILE`, open(2)), and
//! whatever ends the agent ends it too. Where the file system has no such files (NFS, FUSE), it has
//! a hidden name until then.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use super::stdout::{self, Stdout};
use crate::output::escape;
use crate::process;

/// Where an output goes, as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Standard output: `-`.
    Stdout,
    /// A file.
    File(PathBuf),
}

impl Target {
    /// `-` is standard output, all else a file.
    pub fn parse(text: &str) -> Self {
        match text {
            "-" => Target::Stdout,
            path => Target::File(PathBuf::from(path)),
        }
    }
}

impl Target {
    /// The same for all ways to write one name: absolute, without `.` and `..`. Symbolic links are
    /// not followed.
    pub fn normalized(&self) -> Self {
        let Target::File(path) = self else {
            return Target::Stdout;
        };
        let mut normal = PathBuf::new();
        for part in std::path::absolute(path)
            .as_ref()
            .unwrap_or(path)
            .components()
        {
            match part {
                Component::ParentDir => drop(normal.pop()),
                part => normal.push(part),
            }
        }
        Target::File(normal)
    }
}

/// Why an output cannot be written.
#[derive(Debug, Error)]
pub enum OutputError {
    /// Something of another kind has the name.
    #[error("cannot write `{path}`: it is {kind}; {hint}")]
    NotRegular {
        /// The output.
        path: String,
        /// What is there.
        kind: &'static str,
        /// What helps.
        hint: &'static str,
    },
    /// The directory does not exist or cannot be written.
    #[error("cannot write `{path}`: cannot create a file in `{directory}`")]
    Directory {
        /// The output.
        path: String,
        /// Its directory.
        directory: String,
        /// What the system said.
        source: io::Error,
    },
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
    /// There is no standard output.
    #[error("cannot write to standard output: it is closed; name a file with -o FILE")]
    Closed,
    /// Writing failed.
    #[error("cannot write `{path}`")]
    Write {
        /// The output.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The finished file could not be given its name.
    #[error("cannot name the finished output `{path}`")]
    Name {
        /// The output.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The data is safe, but not under its name.
    #[error("cannot rename the finished output to `{path}`; it is in `{temporary}`")]
    Rename {
        /// The output.
        path: String,
        /// The file that has the data.
        temporary: String,
        /// What the system said.
        source: io::Error,
    },
}

/// An output that was writable when it was asked.
#[derive(Debug)]
pub struct Destination {
    target: Target,
}

impl Destination {
    /// Checks that the output can be written, leaving nothing behind. An existing regular file
    /// will be replaced.
    ///
    /// # Errors
    /// A directory, symlink, device or pipe has the name, or no file can be created beside it;
    /// standard output is closed.
    pub fn prepare(target: Target) -> Result<Self, OutputError> {
        if let Target::File(path) = &target {
            drop(Draft::create(path)?);
        } else if !stdout::is_open() {
            return Err(OutputError::Closed);
        }
        Ok(Self { target })
    }

    /// Writes the output. Under `sudo` the file belongs to the user who called it.
    ///
    /// # Errors
    /// See [`OutputError`]. A partly written file is removed.
    pub fn write(self, bytes: &[u8]) -> Result<(), OutputError> {
        match self.target {
            Target::Stdout => write_stdout(bytes),
            Target::File(path) => write_file(&path, bytes, invoking_user()),
        }
    }

    /// Begins to write the output piece by piece, for one that is not to be kept in memory.
    ///
    /// # Errors
    /// See [`OutputError`].
    pub fn begin(self) -> Result<Sink, OutputError> {
        Ok(match self.target {
            Target::Stdout => Sink::Stdout(Stdout::default()),
            Target::File(path) => Sink::File(Draft::create(&path)?),
        })
    }

    /// The file, unless it is standard output.
    pub fn path(&self) -> Option<&Path> {
        match &self.target {
            Target::Stdout => None,
            Target::File(path) => Some(path),
        }
    }
}

fn write_stdout(bytes: &[u8]) -> Result<(), OutputError> {
    let mut stdout = Stdout::default();
    stdout.put(bytes);
    stdout.finish()
}

/// An output under way.
#[derive(Debug)]
pub enum Sink {
    /// Standard output.
    Stdout(Stdout),
    /// A file.
    File(Draft),
}

impl Sink {
    /// Writes a piece with `write` and hands it on.
    ///
    /// # Errors
    /// See [`OutputError`].
    pub fn put(
        &mut self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), OutputError> {
        match self {
            Sink::Stdout(out) => {
                out.put_with(write);
                Ok(())
            }
            Sink::File(draft) => write(&mut draft.file).map_err(|source| draft.failed(source)),
        }
    }

    /// Whether nothing can be written any more; [`Sink::finish`] says why.
    pub fn has_ended(&self) -> bool {
        matches!(self, Sink::Stdout(out) if out.has_ended())
    }

    /// Completes the output. Under `sudo` a file belongs to the user who called it.
    ///
    /// # Errors
    /// See [`OutputError`].
    pub fn finish(self) -> Result<(), OutputError> {
        match self {
            Sink::Stdout(out) => out.finish(),
            Sink::File(draft) => draft.finish(invoking_user()),
        }
    }
}

/// A file that appears under its name once it is complete; dropped before, it goes.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    /// Its name for now, where it must have one.
    temporary: Option<PathBuf>,
    file: io::BufWriter<File>,
}

impl Draft {
    fn create(path: &Path) -> Result<Self, OutputError> {
        check_kind(path)?;
        let (temporary, file) = match create_unnamed(path) {
            Some(file) => (None, file),
            None => {
                let (temporary, file) = create_beside(path)?;
                (Some(temporary), file)
            }
        };
        Ok(Self {
            path: path.to_owned(),
            temporary,
            file: io::BufWriter::new(file),
        })
    }

    /// `owner` is the user and the group that the file is given to.
    fn finish(mut self, owner: Option<(u32, u32)>) -> Result<(), OutputError> {
        let written = self.file.flush().and_then(|()| match owner {
            Some((uid, gid)) => fchown(self.file.get_ref(), Some(uid), Some(gid)),
            None => Ok(()),
        });
        written.map_err(|source| self.failed(source))?;
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None => match self.name() {
                Ok(None) => return Ok(()),
                Ok(Some(temporary)) => temporary,
                Err(source) => {
                    return Err(OutputError::Name {
                        path: shown(&self.path),
                        source,
                    });
                }
            },
        };
        fs::rename(&temporary, &self.path).map_err(|source| OutputError::Rename {
            path: shown(&self.path),
            temporary: shown(&temporary),
            source,
        })
    }

    /// Gives a file that has no name its own one, or, where that is taken, a hidden one: only a rename
    /// replaces a file.
    fn name(&self) -> io::Result<Option<PathBuf>> {
        let file = self.file.get_ref();
        let taken = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
        let mut last = match process::name_file(file, &self.path) {
            Err(error) if taken(&error) => error,
            named => return named.map(|()| None),
        };
        for temporary in hidden_names(&self.path) {
            match process::name_file(file, &temporary) {
                Err(error) if taken(&error) => last = error,
                named => return named.map(|()| Some(temporary)),
            }
        }
        Err(last)
    }

    fn failed(&self, source: io::Error) -> OutputError {
        OutputError::Write {
            path: shown(&self.path),
            source,
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // What went wrong before is the error to report.
            let _ = fs::remove_file(temporary);
        }
    }
}

fn write_file(path: &Path, bytes: &[u8], owner: Option<(u32, u32)>) -> Result<(), OutputError> {
    let mut draft = Draft::create(path)?;
    let written = draft.file.write_all(bytes);
    written.map_err(|source| draft.failed(source))?;
    draft.finish(owner)
}

/// Refuses a name that is taken by anything but a regular file.
fn check_kind(path: &Path) -> Result<(), OutputError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        // Not there, or not to be seen: creating a file beside it will tell.
        return Ok(());
    };
    let kind = metadata.file_type();
    let (kind, hint) = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        ("a directory", "name a file in it")
    } else if kind.is_symlink() {
        (
            "a symbolic link",
            "name the file itself, or `-` for standard output",
        )
    } else {
        ("no regular file", "use `-` and redirect standard output")
    };
    Err(OutputError::NotRegular {
        path: shown(path),
        kind,
        hint,
    })
}

/// A new file without a name in the directory of `path`, 0600; `None` where there are none.
fn create_unnamed(path: &Path) -> Option<File> {
    path.file_name()?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    OpenOptions::new()
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(directory)
        .ok()
}

/// Names for a file beside `path` that nobody else has in mind.
fn hidden_names(path: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    let name = path.file_name().unwrap_or_default();
    (0..16).map(move |attempt| {
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{attempt}.tmp", std::process::id()));
        path.with_file_name(hidden)
    })
}

/// A new file of a new name in the directory of `path`, 0600.
fn create_beside(path: &Path) -> Result<(PathBuf, File), OutputError> {
    if path.file_name().is_none() {
        return Err(OutputError::NotRegular {
            path: shown(path),
            kind: "a directory",
            hint: "name a file in it",
        });
    }
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for temporary in hidden_names(path) {
        // create_new is O_CREAT|O_EXCL: an existing name, a symlink too, is refused.
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary);
        match created {
            Ok(file) => return Ok((temporary, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(directory_error(path, error)),
        }
    }
    Err(directory_error(path, last))
}

fn directory_error(path: &Path, source: io::Error) -> OutputError {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => shown(parent),
        _ => ".".to_owned(),
    };
    OutputError::Directory {
        path: shown(path),
        directory,
        source,
    }
}

/// The user and group that called us through sudo.
fn invoking_user() -> Option<(u32, u32)> {
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let id = |name| std::env::var(name).ok()?.parse().ok();
    Some((id("SUDO_UID")?, id("SUDO_GID")?))
}

fn shown(path: &Path) -> String {
    escape::plain(&path.to_string_lossy()).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn prepare(path: &Path) -> Result<Destination, OutputError> {
        Destination::prepare(Target::File(path.to_owned()))
    }

    fn names(directory: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn file_is_private_and_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.svg");
        let destination = prepare(&path).unwrap();
        assert!(
            names(directory.path()).is_empty(),
            "prepare left something behind"
        );
        destination.write(b"first").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(names(directory.path()), ["out.svg"]);
    }

    #[test]
    fn a_file_has_no_name_before_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.zip");
        let mut sink = prepare(&path).unwrap().begin().unwrap();
        sink.put(|out| out.write_all(&[7; 100_000])).unwrap();
        let Sink::File(draft) = &sink else {
            panic!("not a file");
        };
        if draft.temporary.is_some() {
            println!("{} has no files without names", directory.path().display());
            return;
        }
        assert!(names(directory.path()).is_empty());
        sink.finish().unwrap();
        assert_eq!(names(directory.path()), ["out.zip"]);
        assert_eq!(fs::metadata(&path).unwrap().len(), 100_000);
    }

    #[test]
    fn a_file_system_without_unnamed_files_will_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.svg");
        let named = || {
            let (temporary, file) = create_beside(&path).unwrap();
            Draft {
                path: path.clone(),
                temporary: Some(temporary),
                file: io::BufWriter::new(file),
            }
        };
        drop(named());
        assert!(names(directory.path()).is_empty(), "a draft was left");
        named().finish(None).unwrap();
        assert_eq!(names(directory.path()), ["out.svg"]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn existing_file_is_replaced_not_written_into() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.svg");
        let other = directory.path().join("hard-link");
        fs::write(&path, "old").unwrap();
        fs::hard_link(&path, &other).unwrap();
        prepare(&path).unwrap().write(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read(&other).unwrap(), b"old");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn symlinks_and_directories_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        let link = directory.path().join("link.svg");
        symlink(&victim, &link).unwrap();
        let error = prepare(&link).unwrap_err().to_string();
        assert!(error.contains("a symbolic link"), "{error}");
        assert!(!victim.exists());
        let error = prepare(directory.path()).unwrap_err().to_string();
        assert!(error.contains("a directory"), "{error}");
        let error = prepare(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }

    #[test]
    fn sudo_gives_the_file_to_its_caller() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.svg");
        let own = fs::metadata(directory.path()).unwrap();
        // Only root may give a file away; another user tries what always works.
        let owner = match own.uid() {
            0 => (65534, 65533),
            _ => (own.uid(), own.gid()),
        };
        write_file(&path, b"x", Some(owner)).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), owner);
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }

    #[test]
    fn symlink_that_appears_during_the_capture_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.svg");
        let victim = directory.path().join("victim");
        let destination = prepare(&path).unwrap();
        symlink(&victim, &path).unwrap();
        assert!(destination.write(b"x").is_err());
        assert!(!victim.exists());
    }

    #[test]
    fn missing_directory_is_known_before_the_capture() {
        let error = prepare(Path::new("/nonexistent/dir/out.svg")).unwrap_err();
        assert!(error.to_string().contains("`/nonexistent/dir`"), "{error}");
        let error = prepare(Path::new("/etc/passwd/out.svg")).unwrap_err();
        assert!(matches!(error, OutputError::Directory { .. }), "{error}");
    }
}
