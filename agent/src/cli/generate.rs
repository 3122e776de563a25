//! Completions and manual pages, made from the argument types.

use std::io;

use clap::CommandFactory;
use clap_complete::Shell;
use thiserror::Error;

use super::args::Args;
use crate::output::escape;

/// The completions of `agent` for this shell.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "agent", &mut bytes);
    bytes
}

/// Why there is no manual page.
#[derive(Debug, Error)]
pub enum ManError {
    /// No such subcommand.
    #[error("man {name}: no such subcommand; there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Rendering failed.
    #[error("cannot render the manual page")]
    Render(#[from] io::Error),
}

/// The manual page of `agent`, or of one of its subcommands, in troff.
///
/// # Errors
/// There is no such subcommand.
pub fn man(subcommand: Option<&str>) -> Result<Vec<u8>, ManError> {
    let mut command = Args::command();
    command.build();
    if let Some(name) = subcommand {
        let Some(found) = command.find_subcommand(name) else {
            let known: Vec<&str> = command
                .get_subcommands()
                .map(clap::Command::get_name)
                .collect();
            return Err(ManError::Unknown {
                name: escape::plain(name).into_owned(),
                known: known.join(", "),
            });
        };
        command = found.clone();
    }
    let mut bytes = Vec::new();
    clap_mangen::Man::new(command).render(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_shell_learns_the_flags() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(completions(*shell)).unwrap();
            assert!(script.contains("frequency"), "{shell}");
        }
    }

    #[test]
    fn manual_pages() {
        let page = String::from_utf8(man(Some("profile")).unwrap()).unwrap();
        assert!(page.contains(".TH agent-profile"), "{page}");
        assert!(page.contains("frequency"));
        assert!(
            String::from_utf8(man(None).unwrap())
                .unwrap()
                .contains("profile")
        );
        assert!(
            man(Some("nope"))
                .unwrap_err()
                .to_string()
                .contains("profile")
        );
    }
}
