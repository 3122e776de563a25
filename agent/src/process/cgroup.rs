//! Control groups (cgroups(7)), versions 1 and 2: which processes are in one, and which one a
//! container has.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::{Process, container, in_initial_pid_namespace, proc_path};

/// Deepest nesting that is looked into.
const MAX_DEPTH: u32 = 32;
/// The file that lists a control group's processes.
const PROCESSES: &str = "cgroup.procs";
/// Containers that an error lists.
const LISTED: usize = 8;
/// Digits of a container's id that are shown, as docker and crictl do.
const SHORT_ID: usize = 12;

/// Why there is no such group of processes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process is in such a container.
    #[error("no container {wanted}… has a process here{known}{hint}", hint = namespace_hint())]
    NoContainer {
        /// The id as given.
        wanted: String,
        /// Those that there are.
        known: String,
    },
    /// More than one container.
    #[error("--container {wanted} is ambiguous: {found}; give more digits")]
    Ambiguous {
        /// The id as given.
        wanted: String,
        /// Those that it may be.
        found: String,
    },
    /// Nothing of the kind is at this path.
    #[error(
        "{} is no control group; `cat /proc/PID/cgroup` shows a process's, `systemd-cgls` all of them", path.display()
    )]
    NotAGroup {
        /// As given.
        path: PathBuf,
    },
    /// There is nobody in it.
    #[error(
        "the control group {path} has no process to look at: what ran in it has ended or not begun yet"
    )]
    Empty {
        /// Its path.
        path: String,
    },
    /// There are only processes that this PID namespace does not show.
    #[error("the processes of the control group {path} are in another PID namespace{hint}", hint = namespace_hint())]
    Hidden {
        /// Its path.
        path: String,
    },
}

/// What would show processes that this PID namespace hides.
fn namespace_hint() -> &'static str {
    if in_initial_pid_namespace() {
        ""
    } else {
        "; the agent runs in a PID namespace of its own, which shows only its own processes: start it with the \
         host's (`hostPID: true`, `docker run --pid=host`)"
    }
}

/// A control group whose processes are looked at, with those of the groups below it.
#[derive(Debug)]
pub struct Group {
    source: Source,
    path: String,
}

/// Where its processes are listed.
#[derive(Debug)]
enum Source {
    /// In its directory.
    Directory(PathBuf),
    /// Nowhere that the agent can read: each process tells whether it is in the container.
    Container(String),
}

/// The processes of a group.
#[derive(Debug, Default)]
struct Members {
    pids: Vec<u32>,
    /// Whether there are some that this PID namespace does not show.
    hidden: bool,
}

impl Group {
    /// That of a container: `prefix` is the beginning of its id.
    ///
    /// # Errors
    /// When no container, or more than one, has such an id and a process that the agent sees.
    pub fn of_container(prefix: &str) -> Result<Self, Error> {
        let mut found = BTreeMap::new();
        let mut others = BTreeMap::new();
        for pid in all_pids() {
            let Ok(groups) = fs::read_to_string(proc_path(pid, "cgroup")) else {
                continue;
            };
            for (id, path) in container::ids(&groups) {
                let list = if id.starts_with(prefix) {
                    &mut found
                } else {
                    &mut others
                };
                list.entry(id.to_owned())
                    .or_insert_with(|| (path.to_owned(), pid));
            }
        }
        let wanted = prefix.to_owned();
        if found.len() > 1 {
            // As many digits as tell them apart.
            let found = list(found.keys(), wanted.len() + 4);
            return Err(Error::Ambiguous { wanted, found });
        }
        let Some((id, (path, pid))) = found.pop_first() else {
            let known = match others.is_empty() {
                true => String::new(),
                false => format!("; there are {}", list(others.keys(), SHORT_ID)),
            };
            return Err(Error::NoContainer { wanted, known });
        };
        let source = match directory_of(&path, pid) {
            Some(directory) => Source::Directory(directory),
            None => Source::Container(id),
        };
        Ok(Self { source, path })
    }

    /// The one at a path: of its directory, or as `/proc/PID/cgroup` has it.
    ///
    /// # Errors
    /// When there is none.
    pub fn at(path: &Path) -> Result<Self, Error> {
        let mounts = mounts();
        let beneath = path.strip_prefix("/").unwrap_or(path);
        let is_named = !path.as_os_str().is_empty();
        let named = mounts.iter().filter(|_| is_named);
        let named = named.map(|mount| mount.join(beneath));
        let candidates = std::iter::once(path.to_owned()).chain(named);
        let mut groups = candidates.filter_map(|path| fs::canonicalize(path).ok());
        let found = groups.find_map(|directory| {
            let mount = mounts.iter().find(|mount| directory.starts_with(mount))?;
            let path = Path::new("/").join(directory.strip_prefix(mount).ok()?);
            let is_group = directory.join(PROCESSES).is_file();
            is_group.then(|| (path.to_string_lossy().into_owned(), directory))
        });
        match found {
            Some((path, directory)) => Ok(Self {
                source: Source::Directory(directory),
                path,
            }),
            None => Err(Error::NotAGroup {
                path: path.to_owned(),
            }),
        }
    }

    /// Its path in its hierarchy.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Takes hold of its processes, the oldest first; without the agent itself, and without those that
    /// cannot be looked at: kernel threads, and what has ended.
    ///
    /// # Errors
    /// When there is none.
    pub fn processes(&self) -> Result<Vec<Process>, Error> {
        let mut processes = self.new_processes(|_| false);
        if !processes.is_empty() {
            let age = |process: &Process| process.stat().map_or(u64::MAX, |stat| stat.start_time);
            processes.sort_by_cached_key(|process| (age(process), process.pid()));
            return Ok(processes);
        }
        let path = self.path.clone();
        match self.members() {
            Members { hidden: true, .. } => Err(Error::Hidden { path }),
            _ => Err(Error::Empty { path }),
        }
    }

    /// Takes hold of those that are not `known` yet.
    pub fn new_processes(&self, known: impl Fn(u32) -> bool) -> Vec<Process> {
        let own = std::process::id();
        let mut wanted = self.members().pids;
        wanted.retain(|&pid| pid != own && !known(pid));
        // Version 1 may list one twice (cgroups(7)).
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.is_empty() {
            return Vec::new();
        }
        let opened = wanted.into_iter().map(Process::open);
        let mut processes: Vec<Process> = opened.filter_map(Result::ok).collect();
        // Between the look and the hold a number may have become another process's.
        let still: HashSet<u32> = self.members().pids.into_iter().collect();
        processes.retain(|process| still.contains(&process.pid()) && !process.has_ended());
        processes
    }

    fn members(&self) -> Members {
        match &self.source {
            Source::Directory(directory) => {
                let mut members = Members::default();
                add_processes(directory, MAX_DEPTH, &mut members);
                members
            }
            Source::Container(id) => Members {
                pids: all_pids().filter(|&pid| is_in(pid, id)).collect(),
                hidden: false,
            },
        }
    }
}

fn is_in(pid: u32, id: &str) -> bool {
    fs::read_to_string(proc_path(pid, "cgroup")).is_ok_and(|groups| {
        container::ids(&groups)
            .iter()
            .any(|(found, _)| *found == id)
    })
}

/// Adds the processes of a control group and of those below. One that is gone has none.
fn add_processes(directory: &Path, depth: u32, members: &mut Members) {
    let text = fs::read_to_string(directory.join(PROCESSES)).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.parse().ok()) {
        // A process of another PID namespace has the number 0 (cgroups(7)).
        match pid {
            0 => members.hidden = true,
            pid => members.pids.push(pid),
        }
    }
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten().filter(|_| depth > 0) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add_processes(&entry.path(), depth - 1, members);
        }
    }
}

/// The ids of all processes that the agent sees.
fn all_pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The directory of a control group by its path in `/proc/PID/cgroup`, if it is that of this process.
fn directory_of(path: &str, pid: u32) -> Option<PathBuf> {
    let beneath = path.strip_prefix('/')?;
    let mut directories = mounts().into_iter().map(|mount| mount.join(beneath));
    directories.find(|directory| {
        let mut members = Members::default();
        add_processes(directory, MAX_DEPTH, &mut members);
        members.pids.contains(&pid)
    })
}

/// Where control groups are mounted.
fn mounts() -> Vec<PathBuf> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_mount)
        .collect()
}

/// The mount point in a line of `/proc/PID/mountinfo` (proc(5)) of a cgroup file system.
fn parse_mount(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.split(|&byte| byte == b' ');
    let point = fields.nth(4)?;
    // Optional fields end with a dash, then comes the type.
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    matches!(kind, b"cgroup" | b"cgroup2").then(|| unescape(point).into())
}

/// Undoes the `\040` of blanks in a path.
fn unescape(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = || u8::from_str_radix(std::str::from_utf8(after.get(..3)?).ok()?, 8).ok();
        match (byte == b'\\').then(octal).flatten() {
            Some(escaped) => {
                plain.push(escaped);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

/// The first few ids, each cut after so many digits.
fn list<'a>(ids: impl ExactSizeIterator<Item = &'a String>, digits: usize) -> String {
    let more = ids.len().saturating_sub(LISTED);
    let shown = ids.take(LISTED);
    let mut shown: Vec<&str> = shown.map(|id| id.get(..digits).unwrap_or(id)).collect();
    let rest = format!("{more} more");
    if more > 0 {
        shown.push(&rest);
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn mounts_of_control_groups_are_found() {
        let line = |text: &str| parse_mount(text.as_bytes());
        assert_eq!(
            line("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"),
            Some("/sys/fs/cgroup".into())
        );
        assert_eq!(
            line(r"41 31 0:38 / /mnt/a\040b rw - cgroup cgroup rw,cpu"),
            Some("/mnt/a b".into())
        );
        assert_eq!(
            line("31 23 0:28 / /sys/fs/cgroup rw - tmpfs cgroup rw"),
            None
        );
        for broken in [
            "",
            "1 2 3",
            "30 23 0:26 / /x rw",
            "30 23 0:26 / /x rw -",
            r"\",
        ] {
            assert_eq!(line(broken), None, "{broken}");
        }
        assert_eq!(unescape(br"a\04"), r"a\04");
    }

    #[test]
    fn ids_in_errors_are_short_and_few() {
        let ids: Vec<String> = (0..10).map(|n| format!("{n}").repeat(64)).collect();
        let text = list(ids.iter(), SHORT_ID);
        assert!(text.starts_with("000000000000, 111111111111"), "{text}");
        assert!(text.ends_with("777777777777, 2 more"), "{text}");
    }

    #[test]
    fn what_is_no_control_group_is_refused() {
        for path in ["/nonexistent", "/tmp/x", "/proc", ""] {
            let error = Group::at(Path::new(path)).unwrap_err();
            assert!(matches!(error, Error::NotAGroup { .. }), "{path}: {error}");
        }
    }
}
