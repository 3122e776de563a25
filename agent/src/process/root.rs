//! Root directories of processes, and the files below them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::identity::Entry;
use super::regular::Last;
use super::{Map, regular};

/// The root directory that a process sees, in its mount namespace. Two are equal if they are the
/// same directory of the same mount.
#[derive(Clone, Debug, Default)]
pub struct Root {
    pub(super) dir: Option<Arc<File>>,
    /// Device (major, minor), inode, and mount (`statx(2)`, 5.8).
    pub(super) id: Option<(u32, u32, u64, u64)>,
}

impl PartialEq for Root {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.dir.is_some() == other.dir.is_some()
    }
}

impl Root {
    /// That of a process.
    pub(super) fn of(process: &Entry) -> Self {
        let dir = regular::hold_directory(&process.path("root"));
        let dir = dir.ok().map(Arc::new);
        let id = dir.as_deref().and_then(place);
        Self { dir, id }
    }

    /// A path that leads there: the agent's own root directory where the process's could not be
    /// opened.
    pub fn path(&self) -> PathBuf {
        match &self.dir {
            Some(root) => PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())),
            None => PathBuf::from("/"),
        }
    }

    /// Opens the very file that is mapped: also a deleted one, one in another mount namespace, or
    /// one that was replaced since, as long as the process that maps it lives.
    ///
    /// `None` when it cannot be had, or what is found is not what is mapped.
    pub fn open_mapped(&self, process: Option<&Entry>, map: &Map) -> Option<File> {
        let range = format!("map_files/{:x}-{:x}", map.start, map.end);
        let mapped = |meta: &fs::Metadata| meta.ino() == map.file.inode;
        process
            .and_then(|process| regular::open_at(&process.path(&range), mapped).ok())
            .or_else(|| {
                self.open(Path::new(&map.path), Last::MayBeLink, mapped)
                    .ok()
            })
    }

    /// Opens a regular file as the process would find it.
    pub(super) fn open(
        &self,
        path: &Path,
        last: Last,
        accept: impl FnOnce(&fs::Metadata) -> bool,
    ) -> io::Result<File> {
        match &self.dir {
            Some(root) => regular::open_beneath(root.as_fd(), path, last, accept),
            None => {
                let root = regular::hold_directory(Path::new("/"))?;
                regular::open_beneath(root.as_fd(), path, last, accept)
            }
        }
    }
}

/// Which directory of which mount this is.
fn place(dir: &File) -> Option<(u32, u32, u64, u64)> {
    // SAFETY: all-zero is a valid value of the structure.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor, an empty path, and a structure for the result.
    let failed = unsafe {
        libc::statx(
            dir.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_INO | libc::STATX_MNT_ID,
            &raw mut found,
        )
    };
    let device = (found.stx_dev_major, found.stx_dev_minor);
    (failed == 0).then_some((device.0, device.1, found.stx_ino, found.stx_mnt_id))
}
