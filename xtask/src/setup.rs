//! Installs what building the bytecode and all tests need on a Debian machine with Rust.

use crate::command::{self, cargo, cargo_home};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::env;
use std::process::{Command, Stdio};

/// Debian's packages, by what they are for.
static PACKAGES: [(&str, &[&str]); 4] = [
    (
        "the bytecode",
        &[
            "rustc-web",
            "cargo-web",
            "rust-web-src",
            "llvm-22",
            "llvm-22-dev",
            "libpolly-22-dev",
            "zlib1g-dev",
            "libzstd-dev",
        ],
    ),
    (
        "the kernel matrix",
        &[
            "qemu-system-x86",
            "busybox-static",
            "xz-utils",
            "zstd",
            "util-linux",
        ],
    ),
    (
        "building the target programs",
        &[
            "gcc",
            "g++",
            "libc6-dev",
            "lld",
            "musl-tools",
            "binutils",
            "golang-go",
        ],
    ),
    (
        "targets and tools of the tests",
        &[
            "redis-server",
            "redis-tools",
            "nginx-light",
            "postgresql",
            "python3",
            "strace",
            "linux-perf",
            "bpftool",
            "gdb",
            "wrk",
            "chromium",
            "elfutils",
            "iproute2",
            "nftables",
            "prometheus",
            "unzip",
            "crun",
            "skopeo",
            "python3-yaml",
        ],
    ),
];

/// Programs that may come from elsewhere: the package is installed only if the program is missing.
static PROGRAMS: [(&str, &str); 2] = [("node", "nodejs"), ("java", "default-jdk")];

/// The linker of the bytecode. Another version may write other bytes.
const LINKER_VERSION: &str = "0.13.0";
/// What checks the licences and sources of the dependencies.
const DENY_VERSION: &str = "0.20.2";

/// Installs what is missing; without anything missing it only looks.
///
/// # Errors
/// This is no Debian, the mirror does not have a package, or an installation fails.
pub(crate) fn run() -> Result<()> {
    rust_components()?;
    packages()?;
    linker()?;
    deny()?;
    eprintln!("everything that the tests need is installed");
    Ok(())
}

fn rust_components() -> Result<()> {
    for (program, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let works = cargo()
            .args([program, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !works {
            eprintln!("installing {component}");
            command::run(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

fn packages() -> Result<()> {
    let installed = installed()?;
    let mut missing: Vec<&str> = Vec::new();
    for (purpose, names) in &PACKAGES {
        let absent = names.iter().filter(|name| !installed.contains(**name));
        let before = missing.len();
        missing.extend(absent);
        if let Some(new) = missing.get(before..).filter(|new| !new.is_empty()) {
            eprintln!("missing for {purpose}: {}", new.join(" "));
        }
    }
    for (program, package) in PROGRAMS {
        if command::find(program).is_none() {
            eprintln!("missing: {program}, from {package}");
            missing.push(package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("updating the list of packages");
    command::run(privileged("apt-get")?.args(["update", "-qq"]))?;
    let unknown: Vec<&str> = missing
        .iter()
        .copied()
        .filter(|name| !is_available(name))
        .collect();
    if !unknown.is_empty() {
        bail!(
            "this system's mirror does not have {}; the tests are run on Debian 12 (bookworm) with its updates",
            unknown.join(" ")
        );
    }
    eprintln!("installing {} packages", missing.len());
    let names = missing.join(" ");
    command::run(privileged("sh")?.args(["-c", &INSTALL.replace("{names}", &names)]))
        .context("cannot install the packages")
}

/// Installs with a policy that lets no service start (invoke-rc.d(8)), and takes the policy away
/// whichever way the installation ends. A policy of the machine's own stays.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
mark='# of the agent'"'"'s cargo xtask setup'
if [ ! -e $policy ] || grep -qxF "$mark" $policy; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" > $policy
    chmod 755 $policy
fi
DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends {names}
"#;

/// Names of the installed packages.
fn installed() -> Result<BTreeSet<String>> {
    let format = "${Package} ${db:Status-Status}\n";
    let text = command::output(Command::new("dpkg-query").args(["-W", "-f", format]))
        .context("this needs Debian, or a system like it")?;
    Ok(parse_installed(&text))
}

fn parse_installed(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .map(str::to_owned)
        .collect()
}

fn is_available(package: &str) -> bool {
    // `show` also knows purely virtual packages, whose candidate is `(none)`.
    command::output(Command::new("apt-cache").args(["policy", package]))
        .is_ok_and(|text| text.contains("Candidate: ") && !text.contains("Candidate: (none)"))
}

/// A command that runs as root.
///
/// # Errors
/// We are not root and there is no sudo.
pub(crate) fn privileged(program: &str) -> Result<Command> {
    if is_root()? {
        return Ok(Command::new(program));
    }
    if command::find("sudo").is_none() {
        bail!("{program} needs root: run this as root, or install sudo");
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    Ok(sudo)
}

/// Whether this process runs as root.
///
/// # Errors
/// `id` cannot be run.
pub(crate) fn is_root() -> Result<bool> {
    Ok(command::output(Command::new("id").arg("-u"))?.trim() == "0")
}

fn linker() -> Result<()> {
    let llvm = "/usr/lib/llvm-22";
    let path = format!("{llvm}/bin:{}", env::var("PATH").unwrap_or_default());
    install_once("bpf-linker", LINKER_VERSION, |install| {
        install
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", llvm)
            .env("LLVM_SYS_221_PREFIX", llvm)
            .env("PATH", path);
    })
}

fn deny() -> Result<()> {
    install_once("cargo-deny", DENY_VERSION, |_| {})
}

/// Builds a program from its crate of the same name, unless it is there already.
fn install_once(name: &str, version: &str, configure: impl FnOnce(&mut Command)) -> Result<()> {
    if cargo_home().join("bin").join(name).is_file() || command::find(name).is_some() {
        return Ok(());
    }
    eprintln!("building {name} {version} (some minutes)");
    let mut install = cargo();
    install
        .args(["install", "--quiet", "--locked", name, "--version", version])
        // Outside the workspace, so that its target directory and configuration stay out of it.
        .current_dir("/")
        .env_remove("CARGO_TARGET_DIR");
    configure(&mut install);
    command::run(&mut install).with_context(|| format!("cannot build {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let set = parse_installed("gcc installed\nwrk config-files\ngdb not-installed\n");
        assert_eq!(set.into_iter().collect::<Vec<_>>(), ["gcc"]);
    }

    #[test]
    fn no_package_is_listed_twice() {
        let names: Vec<&str> = PACKAGES
            .iter()
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        let set: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(set.len(), names.len());
    }
}
