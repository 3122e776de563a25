//! Opens regular files where a target decides what lies at a path.
//!
//! To open a pipe or a device has effects: it lets a writer go on, or starts a watchdog. So what is
//! there is first held without being opened (`O_PATH`, open(2)), looked at, and only then opened,
//! through the descriptor and not through the path again.

use std::ffi::CString;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What a path may end in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// The file, or a symbolic link to it.
    MayBeLink,
    /// The file itself.
    NoLink,
}

/// Opens a regular file to read as if `root` were the root directory: also absolute links stay in
/// it, and those of `/proc` are not followed (openat2(2), Linux 5.6). `accept` sees what is there
/// before it is opened.
///
/// # Errors
/// When there is nothing, something else than a regular file, or `accept` declines.
pub fn open_beneath(
    root: BorrowedFd<'_>,
    path: &Path,
    last: Last,
    accept: impl FnOnce(&Metadata) -> bool,
) -> io::Result<File> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let no_link = if last == Last::NoLink {
        libc::O_NOFOLLOW
    } else {
        0
    };
    // SAFETY: open_how is a plain structure of integers, for which zero is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC | no_link) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the descriptor is open, the path ends in zero, `how` is valid and of the size
    // given, and all outlive the call.
    let held = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    if held < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor, and nobody else has it.
    open(&unsafe { File::from_raw_fd(held as i32) }, accept)
}

/// Opens a regular file to read at a path of the agent's own, following all links, those of
/// `/proc` included. `accept` sees what is there before it is opened.
///
/// # Errors
/// As for [`open_beneath`].
pub fn open_at(path: &Path, accept: impl FnOnce(&Metadata) -> bool) -> io::Result<File> {
    open(&hold(path, 0)?, accept)
}

/// Holds a directory, to look for files beneath it.
///
/// # Errors
/// When there is none.
pub fn hold_directory(path: &Path) -> io::Result<File> {
    hold(path, libc::O_DIRECTORY)
}

fn hold(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC | flags)
        .open(path)
}

/// Opens what is held.
fn open(held: &File, accept: impl FnOnce(&Metadata) -> bool) -> io::Result<File> {
    let meta = held.metadata()?;
    if !meta.is_file() || !accept(&meta) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", held.as_fd().as_raw_fd()))
}

/// Whether only the administrator of this system can have written the file: it belongs to root, nobody
/// else may write to it, and it lies on the file system of the root directory. A container's root has
/// another.
pub fn is_of_the_system(file: &File) -> bool {
    let (Ok(file), Ok(root)) = (file.metadata(), std::fs::metadata("/")) else {
        return false;
    };
    file.uid() == 0 && file.mode() & 0o022 == 0 && file.dev() == root.dev()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
pub(crate) mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::sync::mpsc;
    use std::time::Duration;

    /// Whether `action` lets a process go on that waits for a reader of the pipe at `path`, which
    /// is made.
    pub(crate) fn releases_a_writer(path: &Path, action: impl FnOnce()) -> bool {
        let name = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the path ends in zero and outlives the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let (sender, opened) = mpsc::channel();
        let pipe = path.to_owned();
        let writer = std::thread::spawn(move || {
            let writer = OpenOptions::new().write(true).open(pipe);
            sender.send(()).unwrap();
            drop(writer);
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(opened.try_recv().is_err());
        action();
        let released = opened.recv_timeout(Duration::from_millis(50)).is_ok();
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .unwrap();
        writer.join().unwrap();
        drop(reader);
        released
    }

    #[test]
    fn a_pipe_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let pipe = root.path().join("pipe");
        symlink("/pipe", root.path().join("link")).unwrap();
        let held = hold_directory(root.path()).unwrap();
        let released = releases_a_writer(&pipe, || {
            for name in ["pipe", "link"] {
                let opened = open_beneath(held.as_fd(), Path::new(name), Last::MayBeLink, |_| true);
                assert!(opened.is_err());
            }
            assert!(open_at(&pipe, |_| true).is_err());
        });
        assert!(!released);
    }

    #[test]
    fn absolute_links_stay_in_the_root() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("real")).unwrap();
        fs::write(root.path().join("real/file"), "inside").unwrap();
        symlink("/real", root.path().join("tmp")).unwrap();
        symlink("file", root.path().join("real/link")).unwrap();
        let held = hold_directory(root.path()).unwrap();
        let open = |path: &str, last| open_beneath(held.as_fd(), Path::new(path), last, |_| true);
        let mut text = String::new();
        let mut file = open("/tmp/file", Last::NoLink).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        assert!(open("/tmp/link", Last::MayBeLink).is_ok());
        assert!(open("/tmp/link", Last::NoLink).is_err());
        assert!(open("/tmp", Last::MayBeLink).is_err());
    }

    #[test]
    fn what_is_declined_is_not_opened() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(open_at(file.path(), |_| true).is_ok());
        assert!(open_at(file.path(), |_| false).is_err());
    }
}
