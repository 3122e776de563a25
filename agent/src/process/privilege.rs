//! What the agent itself may do (capabilities(7)), and how it gives that up.

use std::fmt;
use std::io;

/// A capability that some part of the agent can use; its number is that of linux/capability.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Cap {
    /// Give files to another user.
    Chown = 0,
    /// Read and write any file.
    DacOverride = 1,
    /// Read any file.
    DacReadSearch = 2,
    /// Act as the owner of any file.
    Fowner = 3,
    /// Send signals to another user's processes.
    Kill = 5,
    /// Change the bounding set.
    SetPcap = 8,
    /// Look at another user's processes.
    SysPtrace = 19,
    /// Much, and all that `Perfmon`, `Bpf` and `CheckpointRestore` allow.
    SysAdmin = 21,
    /// Real-time priority.
    SysNice = 23,
    /// Raise limits of resources.
    SysResource = 24,
    /// See the kernel's addresses.
    Syslog = 34,
    /// Trace the kernel and every CPU.
    Perfmon = 38,
    /// Load BPF maps and programs.
    Bpf = 39,
    /// Open what a process has mapped.
    CheckpointRestore = 40,
}

impl Cap {
    /// All that are known here.
    pub const ALL: [Cap; 14] = [
        Cap::Chown,
        Cap::DacOverride,
        Cap::DacReadSearch,
        Cap::Fowner,
        Cap::Kill,
        Cap::SetPcap,
        Cap::SysPtrace,
        Cap::SysAdmin,
        Cap::SysNice,
        Cap::SysResource,
        Cap::Syslog,
        Cap::Perfmon,
        Cap::Bpf,
        Cap::CheckpointRestore,
    ];

    /// Its name, without `CAP_`.
    pub const fn short(self) -> &'static str {
        match self {
            Cap::Chown => "CHOWN",
            Cap::DacOverride => "DAC_OVERRIDE",
            Cap::DacReadSearch => "DAC_READ_SEARCH",
            Cap::Fowner => "FOWNER",
            Cap::Kill => "KILL",
            Cap::SetPcap => "SETPCAP",
            Cap::SysPtrace => "SYS_PTRACE",
            Cap::SysAdmin => "SYS_ADMIN",
            Cap::SysNice => "SYS_NICE",
            Cap::SysResource => "SYS_RESOURCE",
            Cap::Syslog => "SYSLOG",
            Cap::Perfmon => "PERFMON",
            Cap::Bpf => "BPF",
            Cap::CheckpointRestore => "CHECKPOINT_RESTORE",
        }
    }

    /// The capability that the kernel takes in its place, too.
    const fn stronger(self) -> Option<Cap> {
        match self {
            Cap::Perfmon | Cap::Bpf | Cap::CheckpointRestore => Some(Cap::SysAdmin),
            Cap::DacReadSearch => Some(Cap::DacOverride),
            _ => None,
        }
    }
}

impl fmt::Display for Cap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "CAP_{}", self.short())
    }
}

/// A set of capabilities: a bit for each, by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps(pub u64);

impl Caps {
    /// These.
    pub fn of(caps: &[Cap]) -> Self {
        Self(caps.iter().fold(0, |set, &cap| set | 1 << cap as u8))
    }

    /// Whether the very capability is in the set.
    pub fn contains(self, cap: Cap) -> bool {
        self.0 >> cap as u8 & 1 != 0
    }

    /// Whether the set allows what the capability is for, by itself or by a stronger one.
    pub fn allows(self, cap: Cap) -> bool {
        self.granting(cap).is_some()
    }

    /// The member that allows what the capability is for.
    fn granting(self, cap: Cap) -> Option<Cap> {
        let candidates = [Some(cap), cap.stronger()];
        candidates
            .into_iter()
            .flatten()
            .find(|&cap| self.contains(cap))
    }

    /// The least of the set that allows what all of `wanted` are for, as far as the set does.
    pub fn least(self, wanted: &[Cap]) -> Self {
        let granting: Vec<Cap> = wanted
            .iter()
            .filter_map(|&cap| self.granting(cap))
            .collect();
        Self::of(&granting)
    }
}

/// `struct __user_cap_header_struct` and `__user_cap_data_struct` (linux/capability.h), version 3.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;
/// Bits of a capability set; the kernel refuses numbers that it does not know.
const LAST: u8 = 63;

fn get() -> io::Result<[Data; 2]> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: both structures are as the kernel's, and the second is written only.
    let failed = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    match failed {
        0 => Ok(data),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(effective: Caps, permitted: Caps, inheritable: Caps) -> io::Result<()> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| Data {
        effective: (effective.0 >> shift) as u32,
        permitted: (permitted.0 >> shift) as u32,
        inheritable: (inheritable.0 >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: both structures are as the kernel's, and the second is read only.
    let failed = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn joined(low: u32, high: u32) -> Caps {
    Caps(u64::from(high) << 32 | u64::from(low))
}

/// What this thread may do now; nothing where the kernel does not tell.
pub fn effective() -> Caps {
    get().map_or(Caps::default(), |[low, high]| {
        joined(low.effective, high.effective)
    })
}

/// Takes all but these from what programs that this thread executes can be given. Only with
/// `CAP_SETPCAP` has it an effect.
pub fn limit_bounding_set(kept: Caps) {
    for number in (0..=LAST).filter(|&number| kept.0 >> number & 1 == 0) {
        // The numbers end before the bits do: EINVAL from there on.
        // SAFETY: takes numbers only.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number)) };
        if done < 0 {
            break;
        }
    }
}

/// Gives up, for this thread and those that it starts, all privileges but what `wanted` needs: in
/// the permitted, effective, inheritable, ambient and (with `CAP_SETPCAP`) bounding set. Sets
/// `no_new_privs`, so that no program that it executes gets any back. What it does not have, it
/// does not get.
///
/// # Errors
/// When the kernel refuses, as a seccomp filter may: then nothing may have been given up.
pub fn drop_to(wanted: &[Cap]) -> io::Result<()> {
    let [low, high] = get()?;
    let permitted = joined(low.permitted, high.permitted);
    let kept = permitted.least(wanted);
    if joined(low.effective, high.effective).contains(Cap::SetPcap) {
        limit_bounding_set(kept);
    }
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes numbers only. Ambient capabilities end with the inheritable ones, too.
    unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    set(kept, kept, Caps::default())
}

/// Runs `work` with the capability out of force for this thread: would it do without?
///
/// # Errors
/// When the kernel refuses.
pub fn without<T>(cap: Cap, work: impl FnOnce() -> T) -> io::Result<T> {
    let [low, high] = get()?;
    let inheritable = joined(low.inheritable, high.inheritable);
    let effective = joined(low.effective, high.effective);
    let permitted = joined(low.permitted, high.permitted);
    let lowered = Caps(effective.0 & !Caps::of(&[cap]).0);
    set(lowered, permitted, inheritable)?;
    let result = work();
    set(effective, permitted, inheritable)?;
    Ok(result)
}

/// What to say where the kernel does not let the agent look at a process.
pub(super) fn refusal_hint() -> &'static str {
    hint(effective().allows(Cap::SysPtrace))
}

fn hint(privileged: bool) -> &'static str {
    if privileged {
        "the kernel refuses it even with CAP_SYS_PTRACE: the process is in another user namespace, or a security module (AppArmor, SELinux) forbids it"
    } else {
        "CAP_SYS_PTRACE is missing; run as root: `sudo agent …`"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    fn status(field: &str) -> String {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    }

    /// Capabilities belong to threads: what one gives up, the others keep.
    #[test]
    fn a_thread_gives_up_all_but_what_is_wanted() {
        let before = effective();
        assert_eq!(format!("{:016x}", before.0), status("CapEff:"));
        let wanted = [Cap::Bpf, Cap::DacReadSearch];
        let expected = format!("{:016x}", before.least(&wanted).0);
        std::thread::spawn(move || {
            drop_to(&wanted).unwrap();
            for field in ["CapEff:", "CapPrm:"] {
                assert_eq!(status(field), expected);
            }
            for field in ["CapInh:", "CapAmb:"] {
                assert_eq!(status(field), "0000000000000000");
            }
            if before.contains(Cap::SetPcap) {
                assert_eq!(status("CapBnd:"), expected);
            }
            assert_eq!(status("NoNewPrivs:"), "1");
            let child = std::thread::spawn(|| status("CapPrm:")).join().unwrap();
            assert_eq!(child, expected);
            drop_to(&[]).unwrap();
            assert_eq!(status("CapPrm:"), "0000000000000000");
            // Nothing comes back.
            drop_to(&Cap::ALL).unwrap();
            assert_eq!(effective(), Caps::default());
        })
        .join()
        .unwrap();
        assert_eq!(effective(), before);
    }

    #[test]
    fn a_capability_out_of_force_comes_back() {
        let before = effective();
        let inside = without(Cap::DacOverride, effective).unwrap();
        assert!(!inside.contains(Cap::DacOverride));
        assert_eq!(effective(), before);
    }

    #[test]
    fn a_stronger_capability_stands_for_a_weaker() {
        let admin = Caps::of(&[Cap::SysAdmin, Cap::Kill]);
        assert!(admin.allows(Cap::Bpf) && !admin.contains(Cap::Bpf));
        assert!(!admin.allows(Cap::SysPtrace) && !admin.allows(Cap::Syslog));
        let least = |set: Caps, wanted: &[Cap]| set.least(wanted);
        assert_eq!(least(admin, &[Cap::Bpf]), Caps::of(&[Cap::SysAdmin]));
        let both = Caps::of(&[Cap::SysAdmin, Cap::Bpf]);
        assert_eq!(least(both, &[Cap::Bpf]), Caps::of(&[Cap::Bpf]));
        assert_eq!(Cap::DacReadSearch.to_string(), "CAP_DAC_READ_SEARCH");
    }

    #[test]
    fn root_is_not_told_to_become_root() {
        assert!(hint(false).contains("sudo") && hint(false).contains("CAP_SYS_PTRACE"));
        assert!(!hint(true).contains("sudo") && hint(true).contains("even with"));
    }
}
