//! Whether a shared library is installed (ld.so(8): the directories that the loader comes to last).

use std::path::{Path, PathBuf};

use super::Process;

/// Where Debian, Fedora, Alpine and Arch keep libraries.
const DIRECTORIES: [&str; 8] = [
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "lib64",
    "usr/lib64",
    "lib",
    "usr/lib",
    "usr/local/lib",
    "usr/lib/x86_64-linux-gnu/nss",
];

/// Whether `path` is that of a shared library that one of the system's directories has, as the
/// process sees them; as the agent does where the process could not be opened.
pub fn is_installed(process: Option<&Process>, path: &str) -> bool {
    let Some((directory, name)) = path.rsplit_once('/') else {
        return false;
    };
    if !(name.contains(".so.") || name.ends_with(".so")) {
        return false;
    }
    let root = process.map_or_else(|| PathBuf::from("/"), |process| process.root().path());
    DIRECTORIES
        .iter()
        .filter(|known| Path::new("/").join(known) != Path::new(directory))
        .any(|known| root.join(known).join(name).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_that_are_there_are_installed() {
        let me = Process::open(std::process::id()).ok();
        assert!(is_installed(me.as_ref(), "/opt/app/libc.so.6"));
        assert!(is_installed(None, "/opt/app/libc.so.6"));
        assert!(!is_installed(None, "/opt/app/libnothing.so.6"));
        assert!(!is_installed(None, "/opt/app/passwd"));
        assert!(!is_installed(None, "libc.so.6"));
    }
}
