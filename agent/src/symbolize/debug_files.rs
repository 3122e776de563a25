//! Where separate debug information is looked for: the one part of naming that opens paths.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use crate::process::regular::{self, Last};

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
pub struct DebugRoots(Vec<File>);

impl DebugRoots {
    /// Holds these directories open. One that cannot be opened is left out.
    pub fn open<'p>(roots: impl IntoIterator<Item = &'p Path>) -> Self {
        let open = |root| regular::hold_directory(root).ok();
        DebugRoots(roots.into_iter().filter_map(open).collect())
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
            .filter_map(|(root, place)| {
                regular::open_beneath(root.as_fd(), place, Last::MayBeLink, |_| true).ok()
            })
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use crate::process::regular::tests::releases_a_writer;
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
    fn a_pipe_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let roots = DebugRoots::open([root.path()]);
        let files = roots.of_module(Path::new("/x"));
        let released = releases_a_writer(&root.path().join("p"), || {
            assert!(files.find(&Wanted::Link("p"), &mut |_| true).is_none());
        });
        assert!(!released);
    }
}
