//! Fetches Debian's kernels: a state of apt of our own, so that the machine's stays as it is.

use crate::command::{self, target};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel(&'static (&'static str, &'static [&'static str]));

/// The versions, each with the releases of Debian that have it, the likeliest first.
static KERNELS: [(&str, &[&str]); 4] = [
    ("5.10", &["bullseye"]),
    ("6.1", &["bookworm"]),
    ("6.12", &["trixie", "bookworm-backports"]),
    ("7.2", &["sid", "forky", "trixie-backports"]),
];

impl Kernel {
    /// All of them, oldest first.
    pub(crate) const ALL: [Kernel; 4] = [
        Kernel(&KERNELS[0]),
        Kernel(&KERNELS[1]),
        Kernel(&KERNELS[2]),
        Kernel(&KERNELS[3]),
    ];

    /// The kernel of this version.
    ///
    /// # Errors
    /// It is none of the matrix.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::label).join(", ");
        Self::ALL
            .into_iter()
            .find(|kernel| kernel.label() == text)
            .ok_or_else(|| format!("no such kernel; known are {}", known()))
    }

    /// Its version, e.g. `6.1`.
    pub(crate) fn label(self) -> &'static str {
        self.0.0
    }
}

/// A kernel's files on this machine.
pub(super) struct Files {
    /// The bootable image.
    pub(super) image: PathBuf,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
}

/// The files of a kernel, downloaded once.
///
/// # Errors
/// No release of Debian on the configured mirror has it, or apt fails.
pub(super) fn fetch(kernel: Kernel) -> Result<Files> {
    let directory = target().join("vm").join(kernel.label());
    let unpacked = directory.join("root");
    if !directory.join("complete").is_file() {
        let (label, releases) = kernel.0;
        let mut reasons = Vec::new();
        for release in *releases {
            match download(label, release, &directory) {
                Ok(()) => break,
                Err(error) => reasons.push(format!("{release}: {error:#}")),
            }
        }
        if reasons.len() == releases.len() {
            bail!("cannot download kernel {label}\n  {}", reasons.join("\n  "));
        }
        fs::write(directory.join("complete"), "")?;
    }
    locate(&unpacked).with_context(|| {
        format!(
            "no kernel in {}; remove {} to fetch it anew",
            unpacked.display(),
            directory.display()
        )
    })
}

/// Finds image and modules: `/boot/vmlinuz-V` up to 6.12, `/usr/lib/modules/V/vmlinuz` later;
/// `/lib/modules/V` or `/usr/lib/modules/V`.
fn locate(unpacked: &Path) -> Option<Files> {
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .find_map(|place| fs::read_dir(unpacked.join(place)).ok()?.flatten().next())?
        .path();
    let version = modules.file_name()?.to_string_lossy().into_owned();
    let images = [
        unpacked.join(format!("boot/vmlinuz-{version}")),
        modules.join("vmlinuz"),
    ];
    let image = images.into_iter().find(|image| image.is_file())?;
    Some(Files { image, modules })
}

fn download(label: &str, release: &str, directory: &Path) -> Result<()> {
    eprintln!("[{label}] looking for the kernel in Debian {release}");
    let _ = fs::remove_dir_all(directory);
    let apt = Apt::new(&directory.join("apt"), release)?;
    let versions = apt.versions(label)?;
    let version = versions
        .iter()
        .max_by_key(|version| numbers(version))
        .with_context(|| {
            format!("{release} has no linux-image-{label}*-cloud-amd64 (its version has moved on?)")
        })?;
    let packages = directory.join("packages");
    fs::create_dir_all(&packages)?;
    // The image holds everything up to 6.12; later it only depends on the other two.
    for kind in ["image", "binary", "modules"] {
        let name = format!("linux-{kind}-{version}");
        if !apt.has(&name) {
            continue;
        }
        eprintln!("[{label}] downloading {name}");
        command::output(
            apt.command("apt-get")
                .current_dir(&packages)
                .args(["download", &name]),
        )?;
    }
    for package in fs::read_dir(&packages)? {
        let unpack = &mut Command::new("dpkg-deb");
        unpack
            .arg("--extract")
            .arg(package?.path())
            .arg(directory.join("root"));
        command::output(unpack)?;
    }
    Ok(())
}

/// The numbers of a version, for comparing: `6.1.0-50-cloud-amd64` is 6, 1, 0, 50, 64.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// An apt with lists of its own.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn new(directory: &Path, release: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let apt = Self {
            directory: directory.to_path_buf(),
        };
        let source = format!("deb {} {release} main\n", mirror()?);
        fs::write(directory.join("sources.list"), source)?;
        command::output(apt.command("apt-get").args(["update", "--error-on=any"]))
            .context("apt cannot read the mirror's list of packages")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: &str| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        let path = |name: &str| self.directory.join(name).display().to_string();
        option("Dir::Etc::sourcelist", &path("sources.list"));
        option("Dir::Etc::sourceparts", "-");
        option("Dir::State::Lists", &path("lists"));
        option("Dir::Cache", &path("cache"));
        option("APT::Architecture", "amd64");
        option("APT::Architectures", "amd64");
        option("APT::Sandbox::User", "root");
        option("Acquire::Languages", "none");
        option("Acquire::Retries", "3");
        // Nothing but the list of packages: no icons, no list of files.
        option(
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
            "false",
        );
        option(
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled",
            "false",
        );
        command
    }

    /// `VERSION-cloud-amd64` of each cloud kernel whose version starts with `label`.
    fn versions(&self, label: &str) -> Result<Vec<String>> {
        let names = command::output(
            self.command("apt-cache")
                .arg("pkgnames")
                .arg("linux-image-"),
        )?;
        let wanted = |version: &&str| {
            let rest = version.strip_prefix(label).unwrap_or_default();
            rest.starts_with(['.', '-', '+']) && version.ends_with("-cloud-amd64")
        };
        let versions = names
            .lines()
            .filter_map(|name| name.strip_prefix("linux-image-"));
        Ok(versions.filter(wanted).map(str::to_owned).collect())
    }

    fn has(&self, name: &str) -> bool {
        command::output(self.command("apt-cache").args(["show", name])).is_ok()
    }
}

/// The Debian archive that this machine's apt is set up with.
fn mirror() -> Result<String> {
    let text = command::output(Command::new("apt-get").args([
        "indextargets",
        // Without it, apt lists only what an `apt-get update` has fetched before.
        "--no-release-info",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    text.lines()
        .find(|uri| uri.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
        .context("this machine's apt has no Debian mirror (an address that ends in /debian)")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn versions_compare_by_their_numbers() {
        assert!(numbers("6.1.0-50-cloud-amd64") > numbers("6.1.0-9-cloud-amd64"));
        assert!(numbers("6.12.107+deb13-cloud-amd64") > numbers("6.12.94+deb13-cloud-amd64"));
    }

    #[test]
    fn an_unknown_kernel_names_the_known_ones() {
        let error = Kernel::parse("4.19").unwrap_err();
        assert!(error.contains("5.10, 6.1, 6.12, 7.2"), "{error}");
        assert_eq!(Kernel::parse("6.1").unwrap().label(), "6.1");
    }
}
