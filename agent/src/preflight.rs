//! What this kernel and these privileges allow, each "no" with a reason and what would help.

use std::ffi::OsString;
use std::fs;
use std::io;

use crate::process;
use crate::session::btf::{self, Offsets};

/// Where the kernel describes its own types.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Oldest kernel with all that is needed.
const OLDEST: (u32, u32) = (5, 10);
/// Bytes of a kernel stack (`THREAD_SIZE`, arch/x86/include/asm/page_64_types.h) and of the
/// registers saved at its top (`struct pt_regs`).
const THREAD_SIZE: u32 = 16384;
const PT_REGS_BYTES: u32 = 168;

/// Why nothing can be done here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel is too old.
    #[error("kernel {release} is too old: agent needs Linux 5.10 or later")]
    TooOld {
        /// `uname -r`.
        release: String,
    },
    /// The kernel does not describe its types.
    #[error(
        "the kernel has no BTF ({BTF}): it must be built with CONFIG_DEBUG_INFO_BTF=y, as the kernels of all big distributions are"
    )]
    NoBtf(#[source] io::Error),
    /// Its description is of no use.
    #[error("the kernel's BTF ({BTF}) cannot be used")]
    Btf(#[from] btf::Error),
    /// Not enough privileges.
    #[error(
        "no permission: agent needs {missing}; run it as root: `sudo {command}`, or in a container with `--cap-add {add}`"
    )]
    Privileges {
        /// The capabilities that are missing.
        missing: String,
        /// The same as arguments for a container.
        add: String,
        /// The command line to repeat.
        command: String,
    },
    /// The frequency is above what the kernel allows.
    #[error(
        "--frequency {wanted} is above this kernel's limit of {limit}; use --frequency {limit}, or raise it: `sysctl kernel.perf_event_max_sample_rate={wanted}`"
    )]
    Frequency {
        /// As asked for.
        wanted: u64,
        /// `kernel.perf_event_max_sample_rate`.
        limit: u64,
    },
}

/// What was found out about the kernel.
#[derive(Debug)]
pub struct Kernel {
    /// `uname -srm`.
    pub name: String,
    /// Its version.
    pub version: (u32, u32),
    /// CPUs that are online.
    pub cpus: Vec<u32>,
    /// Depth of the agent's PID namespace; 0 for the initial one.
    pub ns_level: u32,
    offsets: Offsets,
}

/// What the kernel programs are told before they are loaded.
pub struct Globals {
    /// Names and values of the `u32` ones.
    pub words: Vec<(&'static str, u32)>,
    /// Seed of the hash of stacks.
    pub hash_seed: u64,
}

/// Capabilities (linux/capability.h) that a run needs, each with its number.
const CAPABILITIES: [(&str, u32); 4] = [
    ("BPF", 39),
    ("PERFMON", 38),
    ("SYS_PTRACE", 19),
    ("DAC_READ_SEARCH", 2),
];
const CAP_SYS_ADMIN: u32 = 21;
const CAP_DAC_OVERRIDE: u32 = 1;

/// Fields whose offsets the kernel programs need.
const FIELDS: &[&str] = &[
    "task_struct.stack",
    "task_struct.mm",
    "task_struct.tgid",
    "task_struct.pid",
    "task_struct.group_leader",
    "task_struct.start_boottime",
    "task_struct.signal",
    "signal_struct.live",
    "task_struct.thread_pid",
    "signal_struct.pids",
    "pid.level",
    "pid.numbers",
];

impl Kernel {
    /// Looks at the running kernel and at the agent's own privileges.
    ///
    /// # Errors
    /// When the agent cannot work here at all.
    pub fn probe() -> Result<Self, Error> {
        Self::probe_with(&[])
    }

    /// As [`Kernel::probe`], with offsets of more fields, `structure.field`.
    ///
    /// # Errors
    /// When the agent cannot work here at all.
    pub fn probe_with(fields: &[&'static str]) -> Result<Self, Error> {
        let (name, release) = uname();
        let version = parse_version(&release);
        if version < OLDEST {
            return Err(Error::TooOld { release });
        }
        check_privileges()?;
        let bytes = fs::read(BTF).map_err(Error::NoBtf)?;
        let wanted: Vec<&str> = FIELDS.iter().chain(fields).copied().collect();
        let offsets = Offsets::read(&bytes, &wanted)?;
        Ok(Self {
            name,
            version,
            cpus: online_cpus(),
            ns_level: namespace_level(),
            offsets,
        })
    }

    /// Offset in bytes of a kernel structure's field that was asked for.
    ///
    /// # Errors
    /// When this kernel has no such field.
    pub fn offset(&self, field: &str) -> Result<u32, Error> {
        Ok(self.offsets.of(field)?)
    }

    /// What the kernel programs are told.
    ///
    /// # Errors
    /// When the kernel lacks a field that every program needs.
    pub fn globals(&self) -> Result<Globals, Error> {
        let of = |field: &str| self.offsets.of(field);
        Ok(Globals {
            words: vec![
                ("HAS_TASK_PT_REGS", u32::from(self.version >= (5, 15))),
                ("PT_REGS_OFFSET", THREAD_SIZE - PT_REGS_BYTES),
                ("TASK_STACK", of("task_struct.stack")?),
                ("TASK_MM", of("task_struct.mm")?),
                ("TASK_TGID", of("task_struct.tgid")?),
                ("TASK_PID", of("task_struct.pid")?),
                ("TASK_LEADER", of("task_struct.group_leader")?),
                ("TASK_START", of("task_struct.start_boottime")?),
                ("TASK_SIGNAL", of("task_struct.signal")?),
                ("SIGNAL_LIVE", of("signal_struct.live")?),
                ("TASK_THREAD_PID", of("task_struct.thread_pid")?),
                // enum pid_type (linux/pid_types.h): PID, TGID, …; an array of pointers.
                ("SIGNAL_TGID", of("signal_struct.pids")? + 8),
                ("PID_LEVEL", of("pid.level")?),
                ("PID_NUMBERS", of("pid.numbers")?),
                ("NS_LEVEL", self.ns_level),
            ],
            hash_seed: random_seed(),
        })
    }
}

/// The highest sampling frequency that the kernel allows, in Hz.
pub fn max_sample_rate() -> u64 {
    fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(u64::MAX)
}

/// Checks a frequency against the kernel's limit.
///
/// # Errors
/// [`Error::Frequency`] when it is above.
pub fn check_frequency(wanted: u64) -> Result<(), Error> {
    let limit = max_sample_rate();
    if wanted > limit {
        Err(Error::Frequency { wanted, limit })
    } else {
        Ok(())
    }
}

fn uname() -> (String, String) {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours and large enough by its type.
    unsafe { libc::uname(&raw mut name) };
    let text = |field: &[libc::c_char]| {
        field
            .iter()
            .take_while(|&&c| c != 0)
            .map(|&c| c as u8 as char)
            .collect::<String>()
    };
    let release = text(&name.release);
    (
        format!(
            "{} {} {}",
            text(&name.sysname),
            release,
            text(&name.machine)
        ),
        release,
    )
}

fn parse_version(release: &str) -> (u32, u32) {
    let mut parts = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// CPUs that are online, from a list such as `0-3,8`.
fn online_cpus() -> Vec<u32> {
    let text =
        fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_else(|_| "0".to_owned());
    parse_cpu_list(&text)
}

fn parse_cpu_list(text: &str) -> Vec<u32> {
    text.trim()
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
        })
        .flatten()
        .collect()
}

/// Depth of the agent's PID namespace. Its `/proc` may show only its own and deeper ones, so any
/// other than the initial one counts as depth one at least.
fn namespace_level() -> u32 {
    if process::in_initial_pid_namespace() {
        return 0;
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ids = status
        .lines()
        .find(|line| line.starts_with("NSpid:"))
        .map_or(2, |line| line.split_whitespace().count() - 1);
    (ids as u32).saturating_sub(1).max(1)
}

fn check_privileges() -> Result<(), Error> {
    let held = process::privilege::effective_capabilities();
    let has = |number: u32| held >> number & 1 != 0;
    if has(CAP_SYS_ADMIN) && has(CAPABILITIES[2].1) {
        return Ok(());
    }
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|&&(name, number)| {
            !(has(number)
                || has(CAP_SYS_ADMIN) && number >= 38
                || name == "DAC_READ_SEARCH" && has(CAP_DAC_OVERRIDE))
        })
        .map(|&(name, _)| name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Privileges {
        missing: missing
            .iter()
            .map(|name| format!("CAP_{name}"))
            .collect::<Vec<_>>()
            .join(", "),
        add: missing.join(" --cap-add "),
        command: command_line(std::env::args_os()),
    })
}

/// The words as one line for a shell.
fn command_line(words: impl Iterator<Item = OsString>) -> String {
    let words: Vec<String> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    words.join(" ")
}

/// The word as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(harmless) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Any number that the target cannot guess: it keeps it from making stacks collide.
fn random_seed() -> u64 {
    let mut seed = [0u8; 8];
    // SAFETY: the buffer is as long as said. A failure leaves a fixed seed: worse, not wrong.
    unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    u64::from_ne_bytes(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_repeat_can_be_pasted() {
        use std::os::unix::ffi::OsStringExt;
        let words = ["agent", "--pid=1", "a b", "it's", "", "$(x)"].map(OsString::from);
        assert_eq!(
            command_line(words.into_iter()),
            r"agent --pid=1 'a b' 'it'\''s' '' '$(x)'"
        );
        let broken = OsString::from_vec(vec![b'a', 0xff]);
        assert_eq!(command_line([broken].into_iter()), "'a\u{fffd}'");
    }

    #[test]
    fn versions_and_cpu_lists_are_read() {
        assert_eq!(parse_version("5.10.0-35-cloud-amd64"), (5, 10));
        assert_eq!(parse_version("6.18.44-fc-v657"), (6, 18));
        assert_eq!(parse_version("7.2~rc1"), (7, 2));
        assert_eq!(parse_cpu_list("0-2,5\n"), [0, 1, 2, 5]);
    }
}
