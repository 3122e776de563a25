//! Names of system calls and errors, both ways, and the nearest ones to a misspelt name.

use ::syscalls::Errno;
use ::syscalls::x86_64::Sysno;
use thiserror::Error;

/// Highest error (`MAX_ERRNO`, linux/err.h).
const MAX_ERRNO: u16 = 4095;
/// Names that say the same as another (asm-generic/errno.h).
const ALIASES: [(&str, &str); 3] = [
    ("EWOULDBLOCK", "EAGAIN"),
    ("EDEADLOCK", "EDEADLK"),
    ("ENOTSUP", "EOPNOTSUPP"),
];

/// No such name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// Of an error.
    #[error("--errno {0}: no such error{1}")]
    Errno(String, Nearest),
    /// Of a system call.
    #[error("--syscall {0}: x86-64 has no such system call{1}")]
    Syscall(String, Nearest),
}

/// The names that are most like the one that was not found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nearest(Vec<&'static str>);

impl std::fmt::Display for Nearest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [] => Ok(()),
            names => write!(f, "; did you mean {}?", names.join(", ")),
        }
    }
}

/// Name of the system call with this number on x86-64, or `syscall_NNN`.
pub fn of_syscall(number: u32) -> String {
    match Sysno::new(number as usize) {
        Some(known) => known.name().to_owned(),
        None => format!("syscall_{}", number as i32),
    }
}

/// Name of an error, or `errno_NNN`.
pub fn of_errno(errno: u16) -> String {
    match errno {
        // EAGAIN and its alias have one number.
        11 => "EAGAIN".to_owned(),
        _ => Errno::new(i32::from(errno))
            .name()
            .map_or_else(|| format!("errno_{errno}"), str::to_owned),
    }
}

/// Whether the error never reaches the program: `ERESTARTSYS` 512, `ERESTARTNOINTR` 513,
/// `ERESTARTNOHAND` 514, `ERESTART_RESTARTBLOCK` 516 (linux/errno.h).
pub fn is_restart(errno: u16) -> bool {
    matches!(errno, 512 | 513 | 514 | 516)
}

/// The number of a system call given by name, or by number as `syscall_NNN` or `NNN`.
///
/// # Errors
/// [`NameError::Syscall`], with the nearest names.
pub fn syscall(text: &str) -> Result<u32, NameError> {
    let lower = text.to_ascii_lowercase();
    if let Some(known) = Sysno::iter().find(|known| known.name() == lower) {
        return Ok(known.id() as u32);
    }
    if let Ok(number) = lower.strip_prefix("syscall_").unwrap_or(&lower).parse() {
        return Ok(number);
    }
    let nearest = nearest(&lower, Sysno::iter().map(|known| known.name()));
    Err(NameError::Syscall(shown(text), nearest))
}

/// The number of an error given by name or number.
///
/// # Errors
/// [`NameError::Errno`], with the nearest names.
pub fn errno(text: &str) -> Result<u16, NameError> {
    let upper = text.to_ascii_uppercase();
    let alias = ALIASES.iter().find(|(alias, _)| *alias == upper);
    let name = alias.map_or(upper.as_str(), |(_, name)| name);
    if let Some((number, _)) = errnos().find(|(_, known)| *known == name) {
        return Ok(number);
    }
    match name.parse() {
        Ok(number) if (1..=MAX_ERRNO).contains(&number) => Ok(number),
        _ => Err(NameError::Errno(
            shown(text),
            nearest(name, errnos().map(|(_, known)| known)),
        )),
    }
}

fn errnos() -> impl Iterator<Item = (u16, &'static str)> {
    (1..=MAX_ERRNO).filter_map(|number| Some((number, Errno::new(i32::from(number)).name()?)))
}

fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

/// The three most alike, of those that are alike at all.
fn nearest(wanted: &str, names: impl Iterator<Item = &'static str>) -> Nearest {
    let limit = wanted.len().div_ceil(3).max(1);
    let mut alike: Vec<(usize, &str)> = names
        .map(|name| (strsim::damerau_levenshtein(wanted, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    alike.sort_unstable();
    Nearest(alike.into_iter().take(3).map(|(_, name)| name).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (number, name) in [
            (0, "read"),
            (257, "openat"),
            (262, "newfstatat"),
            (439, "faccessat2"),
        ] {
            assert_eq!(of_syscall(number), name);
            assert_eq!(syscall(name), Ok(number));
        }
        for (number, name) in [
            (2, "ENOENT"),
            (11, "EAGAIN"),
            (512, "ERESTARTSYS"),
            (516, "ERESTART_RESTARTBLOCK"),
        ] {
            assert_eq!(of_errno(number), name);
            assert_eq!(errno(name), Ok(number));
        }
        assert_eq!(of_syscall(1000), "syscall_1000");
        assert_eq!(syscall("syscall_1000"), Ok(1000));
        assert_eq!(of_errno(3999), "errno_3999");
        assert_eq!(errno("ewouldblock"), Ok(11));
        assert_eq!(errno("ENOTSUP"), errno("EOPNOTSUPP"));
    }

    #[test]
    fn the_numbers_are_those_of_the_system_headers() {
        assert_eq!(syscall("openat").unwrap(), libc::SYS_openat as u32);
        assert_eq!(syscall("statx").unwrap(), libc::SYS_statx as u32);
        assert_eq!(errno("EHWPOISON").unwrap(), libc::EHWPOISON as u16);
    }

    #[test]
    fn a_misspelt_name_is_answered_with_the_nearest() {
        let error = errno("ENOET").unwrap_err().to_string();
        assert!(error.contains("; did you mean ENOENT, "), "{error}");
        let error = syscall("opnat").unwrap_err().to_string();
        assert!(error.contains("did you mean openat"), "{error}");
        assert!(
            !syscall("zzzzzzzzzzzz")
                .unwrap_err()
                .to_string()
                .contains("did you mean")
        );
        assert!(errno("0").is_err() && errno("5000").is_err() && errno("").is_err());
    }
}
