//! Where separate debug information is looked for: the one part of naming that opens paths.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

/// A file that belongs to a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// The debug file of this build id.
    BuildId(&'a [u8]),
    /// The file that `.gnu_debuglink` names, without its directory.
    Link(&'a str),
    /// The file that `.gnu_debugaltlink` names, relative to the module's directory.
    Path(&'a str),
}

/// Finds files of debug information.
pub trait DebugFiles {
    /// The first regular file at the places where such a file may be that `accept` takes for the
    /// right one.
    fn find(&self, wanted: &Wanted<'_>, accept: &mut dyn FnMut(&File) -> bool) -> Option<File>;
}

/// Finds none: for the vDSO and other images without a file.
#[derive(Clone, Copy, Debug)]
pub struct NoDebugFiles;

impl DebugFiles for NoDebugFiles {
    fn find(&self, _: &Wanted<'_>, _: &mut dyn FnMut(&File) -> bool) -> Option<File> {
        None
    }
}

/// Where all systems put debug files.
const GLOBAL: &str = "/usr/lib/debug";

/// File systems in which debug files are looked for, in this order: the target's
/// (`/proc/PID/root`) and the agent's (`/`).
#[derive(Debug)]
pub struct DebugRoots(Vec<OwnedFd>);

impl DebugRoots {
    /// Holds these directories open. One that cannot be opened is left out.
    pub fn open<'p>(roots: impl IntoIterator<Item = &'p Path>) -> Self {
        let open = |root: &Path| {
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
                .open(root)
        };
        let roots = roots.into_iter().filter_map(|root| open(root).ok());
        DebugRoots(roots.map(OwnedFd::from).collect())
    }

    /// The debug files of the module at this path, as its process sees it.
    pub fn of_module(&self, path: &Path) -> ModuleDebugFiles<'_> {
        ModuleDebugFiles {
            roots: self,
            directory: path.parent().unwrap_or(Path::new("/")).to_owned(),
        }
    }
}

/// The debug files of one module.
#[derive(Debug)]
pub struct ModuleDebugFiles<'r> {
    roots: &'r DebugRoots,
    directory: PathBuf,
}

impl DebugFiles for ModuleDebugFiles<'_> {
    fn find(&self, wanted: &Wanted<'_>, accept: &mut dyn FnMut(&File) -> bool) -> Option<File> {
        let places = self.places(wanted);
        let places = |root| places.iter().map(move |place| (root, place));
        self.roots
            .0
            .iter()
            .flat_map(places)
            .filter_map(|(root, place)| open_beneath(root, place).ok())
            .find(|file| accept(file))
    }
}

impl ModuleDebugFiles<'_> {
    /// Paths within a root, most likely first (GDB manual, "Separate Debug Files").
    fn places(&self, wanted: &Wanted<'_>) -> Vec<PathBuf> {
        match wanted {
            Wanted::BuildId(id) => build_id_path(id).into_iter().collect(),
            Wanted::Link(name) if is_file_name(name) => {
                let beneath = self.directory.strip_prefix("/").unwrap_or(&self.directory);
                vec![
                    self.directory.join(name),
                    self.directory.join(".debug").join(name),
                    Path::new(GLOBAL).join(beneath).join(name),
                ]
            }
            Wanted::Link(_) => Vec::new(),
            Wanted::Path(path) => vec![self.directory.join(path)],
        }
    }
}

fn build_id_path(id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = id.split_first()?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = format!("{GLOBAL}/.build-id/{first:02x}/{rest}.debug");
    (id.len() >= 2 && id.len() <= 64).then(|| path.into())
}

fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none()
}

/// Opens a regular file as if `root` were the root directory: no link in a file system that the
/// target controls leads out of it, and nothing but a regular file is waited for.
fn open_beneath(root: &OwnedFd, path: &Path) -> io::Result<File> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: open_how is a plain structure of integers, for which zero is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the descriptor is open, the path ends in zero, `how` is valid and of the size
    // given, and all outlive the call.
    let opened = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor, and nobody else has it.
    let file = unsafe { File::from_raw_fd(opened as i32) };
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "outside").unwrap();
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("lib")).unwrap();
        let link = root.path().join("lib/x.debug");
        std::os::unix::fs::symlink(outside.path().join("secret"), &link).unwrap();
        let roots = DebugRoots::open([root.path()]);
        let files = roots.of_module(Path::new("/lib/x.so"));
        assert!(
            files
                .find(&Wanted::Link("x.debug"), &mut |_| true)
                .is_none()
        );

        fs::remove_file(&link).unwrap();
        fs::write(&link, "inside").unwrap();
        assert!(
            files
                .find(&Wanted::Link("x.debug"), &mut |_| true)
                .is_some()
        );
        assert!(
            files
                .find(&Wanted::Link("../lib/x.debug"), &mut |_| true)
                .is_none()
        );
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let pipe = CString::new(root.path().join("p").as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the path ends in zero and outlives the call.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        let roots = DebugRoots::open([root.path()]);
        let files = roots.of_module(Path::new("/x"));
        assert!(files.find(&Wanted::Link("p"), &mut |_| true).is_none());
    }
}
