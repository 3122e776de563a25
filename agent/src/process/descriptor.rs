//! What the descriptors of a process lead to, as `/proc/PID/fd` and `/proc/PID/net` show it (proc(5)).

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::Process;

/// An open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// A path, `socket`, `pipe`, …
    pub shown: String,
    /// Its inode number.
    pub inode: u64,
}

impl Process {
    /// The file behind one of its descriptors; `None` if it is closed or the process is gone.
    pub fn descriptor(&self, fd: i32) -> Option<Descriptor> {
        let path = self.path(&format!("fd/{fd}")).ok()?;
        let link = fs::read_link(&path).ok()?.to_string_lossy().into_owned();
        let inode = fs::metadata(&path).ok()?.ino();
        let shown = if link.starts_with("socket:[") {
            "socket".to_owned()
        } else if link.starts_with("pipe:[") {
            "pipe".to_owned()
        } else {
            let anonymous = link
                .strip_prefix("anon_inode:")
                .map(|name| name.trim_matches(['[', ']']).to_owned());
            anonymous.unwrap_or(link)
        };
        Some(Descriptor { shown, inode })
    }

    /// A unix socket of its network namespace with its path. Reads the table of all of them, which
    /// may be long.
    pub fn unix_socket(&self, inode: u64) -> Option<String> {
        let text = fs::read_to_string(self.path("net/unix").ok()?).ok()?;
        text.lines().find_map(|line| unix_socket(line, inode))
    }
}

/// `NUM REFCOUNT PROTOCOL FLAGS TYPE STATE INODE [PATH]`.
fn unix_socket(line: &str, inode: u64) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.get(6)?.parse::<u64>().ok()? != inode {
        return None;
    }
    Some(fields.get(7).map_or_else(
        || "socket unix:(unnamed)".to_owned(),
        |path| format!("socket unix:{path}"),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_lines_of_the_kernel_are_read() {
        let unix = "ffff888: 00000002 00000000 00010000 0001 01 777 /run/x.sock";
        assert_eq!(unix_socket(unix, 777).unwrap(), "socket unix:/run/x.sock");
        assert_eq!(unix_socket(unix, 1), None);
        let unnamed = "ffff888: 00000002 00000000 00010000 0001 01 777";
        assert_eq!(unix_socket(unnamed, 777).unwrap(), "socket unix:(unnamed)");
        assert_eq!(unix_socket("zz", 777), None);
    }

    #[test]
    fn own_descriptors_are_found() {
        let me = Process::open(std::process::id()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let found = me.descriptor(listener.as_raw_fd()).unwrap();
        assert_eq!(found.shown, "socket");
        assert_eq!(
            me.unix_socket(found.inode).unwrap(),
            format!("socket unix:{}", path.display())
        );
        assert_eq!(me.unix_socket(0), None);
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        assert!(
            me.descriptor(file.as_raw_fd())
                .unwrap()
                .shown
                .ends_with("/stat")
        );
        assert_eq!(me.descriptor(-1), None);
    }
}
