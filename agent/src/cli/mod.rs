//! The command line. Raw arguments ([`args`], [`profile_args`]: syntax) and what they mean
//! ([`spec`]: checked, defaults filled in) are two types; only what runs the spec touches the
//! system.
//!
//! A new subcommand takes a variant of [`args::Command`] and a file of its own.

pub mod args;
pub mod destination;
pub mod diff;
pub mod diff_args;
pub mod doctor;
pub mod doctor_args;
pub mod generate;
pub mod launch;
pub mod privileges;
pub mod profile;
pub mod profile_args;
pub mod program;
pub mod record;
pub mod record_args;
pub mod refusal;
pub mod report;
pub mod report_args;
pub mod run;
pub mod serve;
pub mod serve_args;
pub mod signals;
pub mod spec;
pub mod stdout;
pub mod syscalls;
pub mod syscalls_args;
pub mod tcp;
pub mod tcp_args;
pub mod terminal;

/// The exit codes, where no command was started that has one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok,
    /// Failed.
    Failed,
    /// The command line does not make sense.
    Usage,
    /// The target was idle or gone; the outputs are valid and empty.
    NothingSeen,
    /// `agent doctor`: something works, but shows less than it could.
    Degraded,
}

impl Exit {
    /// The number for the shell: 0, 1, 2, 3.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NothingSeen | Exit::Degraded => 3,
        }
    }
}
