//! The root file system of a machine.

use super::archive::Writer;
use super::kernel::Files;
use crate::command::{self, target};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Printed before the command starts.
pub(super) const START_MARK: &str = "=== command starts";
/// Printed before the exit status of the command.
pub(super) const EXIT_MARK: &str = "=== command ended with status ";

/// Modules that the tests use, beside those that these need.
const MODULES: [&str; 2] = ["veth", "sch_netem"];

/// Debian's statically linked busybox.
const BUSYBOX: &str = "/bin/busybox";

/// Files by their path in the machine, without the first slash.
pub(super) struct Tree {
    files: BTreeMap<String, Content>,
}

enum Content {
    Text(String, u32),
    Copy(PathBuf),
    Link(String),
}

impl Tree {
    /// Busybox under the names of its applets, and what a C library looks for in `/etc`.
    ///
    /// # Errors
    /// There is no static busybox on this machine.
    pub(super) fn base() -> Result<Self> {
        let applets = command::output(Command::new(BUSYBOX).arg("--list"))
            .context("no busybox; `cargo xtask setup` installs it")?;
        let mut tree = Self {
            files: BTreeMap::new(),
        };
        tree.add_program("bin/busybox", Path::new(BUSYBOX))?;
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            tree.files
                .insert(format!("bin/{applet}"), Content::Link("busybox".into()));
        }
        let text = |text: &str| Content::Text(text.into(), 0o644);
        let users = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
        tree.files.insert("etc/passwd".into(), text(users));
        tree.files
            .insert("etc/group".into(), text("root:x:0:\nnogroup:x:65534:\n"));
        tree.files.insert(
            "etc/hosts".into(),
            text("127.0.0.1 localhost\n::1 localhost\n"),
        );
        tree.files
            .insert("usr/bin/env".into(), Content::Link("/bin/env".into()));
        Ok(tree)
    }

    /// Adds a file, and the shared libraries that it needs.
    ///
    /// # Errors
    /// It cannot be read, or a library is missing.
    pub(super) fn add_program(&mut self, place: &str, file: &Path) -> Result<()> {
        for library in libraries(file)? {
            let name = library.display().to_string();
            let name = name.trim_start_matches('/').to_owned();
            self.files.insert(name, Content::Copy(library));
        }
        self.files
            .insert(place.to_owned(), Content::Copy(file.to_path_buf()));
        Ok(())
    }

    /// Adds all files of a directory; links stay links.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn add_directory(&mut self, place: &str, directory: &Path) -> Result<()> {
        let entries = fs::read_dir(directory)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let place = format!("{place}/{name}");
            if path.is_symlink() {
                let to = fs::read_link(&path)?.display().to_string();
                self.files.insert(place, Content::Link(to));
            } else if path.is_dir() {
                self.add_directory(&place, &path)?;
            } else {
                self.add_program(&place, &path)?;
            }
        }
        Ok(())
    }

    /// Adds the real programs that the end-to-end tests aim at, as far as they are installed and small,
    /// and what shapes the traffic between them: busybox's `tc` does not know netem.
    ///
    /// # Errors
    /// One cannot be read.
    pub(super) fn add_targets(&mut self) -> Result<()> {
        for (name, directory) in [
            ("redis-server", "usr/bin"),
            ("redis-cli", "usr/bin"),
            ("nginx", "usr/bin"),
            ("tc", "usr/sbin"),
        ] {
            if let Some(path) = command::find(name) {
                let path = fs::canonicalize(path)?;
                self.add_program(&format!("{directory}/{name}"), &path)?;
            }
        }
        Ok(())
    }
}

/// The shared libraries of a program of ours, as the dynamic linker names them; none for a static one
/// or for something else than a program.
fn libraries(file: &Path) -> Result<Vec<PathBuf>> {
    let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    // 64-bit executable or shared object; ldd fails on anything without a dynamic section.
    if !content.starts_with(b"\x7fELF\x02") || !matches!(content.get(16), Some(2 | 3)) {
        return Ok(Vec::new());
    }
    let Ok(text) = command::output(Command::new("ldd").arg(file)) else {
        return Ok(Vec::new());
    };
    parse_ldd(&text).with_context(|| format!("ldd of {}", file.display()))
}

/// Reads ldd's lines: `name => /path (address)`, `/path (address)`, `name (address)`, `name => not found`.
fn parse_ldd(text: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("{}", line.trim());
        }
        let path = line
            .rsplit_once("=> ")
            .map_or(line, |(_, path)| path)
            .trim();
        let path = path.split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

/// Writes the archive of a machine and returns its path.
///
/// # Errors
/// A file cannot be read, or the archive not written.
pub(super) fn write_archive(
    label: &str,
    kernel: &Files,
    tree: &Tree,
    script: &str,
) -> Result<PathBuf> {
    let modules = modules(&kernel.modules)?;
    let names = modules
        .iter()
        .map(|(name, _)| name.as_str())
        .collect::<Vec<_>>();
    let path = target().join("vm").join(format!("{label}.cpio"));
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = Writer::new(BufWriter::new(file));
    let mut known = BTreeSet::new();
    for directory in [
        "dev", "proc", "sys", "tmp", "root", "run", "var/lib", "programs",
    ] {
        add_parents(&mut archive, &mut known, &format!("{directory}/x"))?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.file("init", 0o755, init(label, &names, script).as_bytes())?;
    add_parents(&mut archive, &mut known, "modules/x")?;
    for (name, content) in &modules {
        archive.file(&format!("modules/{name}.ko"), 0o644, content)?;
    }
    for (place, content) in &tree.files {
        add_parents(&mut archive, &mut known, place)?;
        match content {
            Content::Text(text, permissions) => {
                archive.file(place, *permissions, text.as_bytes())?
            }
            Content::Link(to) => archive.link(place, to)?,
            Content::Copy(from) => {
                let bytes =
                    fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
                let permissions = fs::metadata(from)?.permissions().mode() & 0o7777;
                archive.file(place, permissions, &bytes)?;
            }
        }
    }
    archive.finish()?;
    Ok(path)
}

/// Adds the directories above `place` that the archive does not have yet.
fn add_parents(
    archive: &mut Writer<BufWriter<File>>,
    known: &mut BTreeSet<String>,
    place: &str,
) -> Result<()> {
    for (at, _) in place.match_indices('/') {
        let directory = place.get(..at).unwrap_or_default();
        if known.insert(directory.to_owned()) {
            archive.directory(directory)?;
        }
    }
    Ok(())
}

/// The first process: sets the machine up, runs the command and switches off. Neither tracefs nor
/// debugfs is mounted: the agent must not need them.
fn init(label: &str, modules: &[&str], script: &str) -> String {
    let modules = modules
        .iter()
        .map(|name| format!("/modules/{name}.ko"))
        .collect::<Vec<_>>();
    format!(
        r#"#!/bin/sh
export PATH=/bin:/usr/bin HOME=/root TERM=dumb
export AGENT_KERNEL='{label}' AGENT_BIN=/bin/agent AGENT_PROGRAMS=/programs RUST_BACKTRACE=1
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts none /dev/pts
mount -t tmpfs -o mode=1777 none /dev/shm
mount -t tmpfs -o mode=1777 none /tmp
mount -t cgroup2 none /sys/fs/cgroup
ulimit -l unlimited
ip link set lo up
for module in {modules}; do insmod $module || echo "cannot load $module"; done
echo 1 > /proc/sys/kernel/printk
# Debian's own level, 3, lets only CAP_SYS_ADMIN sample: tests of less would have nothing to do.
echo 2 > /proc/sys/kernel/perf_event_paranoid
cd /root
echo '{START_MARK}'
(
{script}
)
status=$?
echo
echo "{EXIT_MARK}$status"
poweroff -f
"#,
        modules = modules.join(" ")
    )
}

/// The modules of [`MODULES`] and those they depend on, each after its own: name and content.
fn modules(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut paths = BTreeMap::new();
    list_modules(&directory.join("kernel"), &mut paths)?;
    let mut found = Vec::new();
    for name in MODULES {
        add_module(name, &paths, &mut found)?;
    }
    Ok(found)
}

fn add_module(
    name: &str,
    paths: &BTreeMap<String, PathBuf>,
    found: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if found.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let path = paths
        .get(name)
        .with_context(|| format!("the kernel has no module {name}"))?;
    let content = read_module(path)?;
    for needed in dependencies(&content) {
        add_module(&needed, paths, found)?;
    }
    found.push((name.to_owned(), content));
    Ok(())
}

/// Modules by name: a file `a-b.ko` or `a-b.ko.xz` holds `a_b`.
fn list_modules(directory: &Path, paths: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            list_modules(&path, paths)?;
        } else if let Some((name, _)) = name.split_once(".ko") {
            paths.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let unpack = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return Ok(fs::read(path)?),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{}: unknown compression", path.display()),
    };
    let output = Command::new(unpack).arg("-dc").arg(path).output()?;
    if !output.status.success() {
        bail!("{unpack} cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}

/// The names after `depends=` in a module's `.modinfo` section, which holds C strings.
fn dependencies(module: &[u8]) -> Vec<String> {
    let strings = module.split(|byte| *byte == 0);
    let names = strings
        .filter_map(|text| text.strip_prefix(b"depends="))
        .next();
    String::from_utf8_lossy(names.unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn ldd_lines_give_paths() {
        let text = "\tlinux-vdso.so.1 (0x7ffe)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let paths = parse_ldd(text).unwrap();
        let wanted = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(paths, wanted.map(PathBuf::from));
        assert!(parse_ldd("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn a_missing_library_is_an_error() {
        let error = parse_ldd("\tlibx.so.1 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "libx.so.1 => not found");
    }

    #[test]
    fn a_module_names_what_it_needs() {
        let module = b"\x7fELF\0license=GPL\0depends=sch-a,b\0name=x\0";
        assert_eq!(dependencies(module), ["sch_a", "b"]);
        assert!(dependencies(b"depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
