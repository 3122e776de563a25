//! `--max-overhead`: as typed, and what it means.

use clap::Args as ClapArgs;

use super::spec::SpecError;
use crate::guard::Limit;
use crate::output::escape;

/// What the agent may cost, for every command that watches processes.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct GuardArgs {
    /// What the agent's programs in the kernel may take of the target's CPU time: 5%, 0.5%, or off.
    /// Above it the agent samples less often, then detaches, and says so [default: 1% for profile,
    /// 20% for what counts events]
    #[arg(
        long,
        value_name = "SHARE",
        allow_hyphen_values = true,
        overrides_with = "max_overhead"
    )]
    pub max_overhead: Option<String>,
}

impl GuardArgs {
    /// The limit, `default` where none is given; `None` for no limit.
    ///
    /// # Errors
    /// No share of anything.
    pub fn resolve(&self, default: Limit) -> Result<Option<Limit>, SpecError> {
        let Some(text) = &self.max_overhead else {
            return Ok(Some(default));
        };
        if text.trim().eq_ignore_ascii_case("off") {
            return Ok(None);
        }
        let wrong = |reason: &str| SpecError::Flag {
            flag: "--max-overhead",
            reason: format!("`{}` {reason}", escape::plain(text)),
        };
        let number = text.trim().strip_suffix('%').map(str::trim_end);
        let plain = |number: &&str| number.chars().all(|c| c.is_ascii_digit() || c == '.');
        let percent: f64 = number
            .filter(plain)
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| {
                wrong("is no share of the target's CPU time; write 1%, 0.5% or 20%, or off")
            })?;
        let limit = Limit::percent(percent);
        limit
            .map(Some)
            .ok_or_else(|| wrong("must be more than 0% and at most 100%; `off` sets no limit"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::guard::{EVENTS, SAMPLING};

    fn resolve(text: &str) -> Result<Option<Limit>, SpecError> {
        let args = GuardArgs {
            max_overhead: Some(text.to_owned()),
        };
        args.resolve(SAMPLING)
    }

    #[test]
    fn shares_are_percent() {
        assert_eq!(GuardArgs::default().resolve(EVENTS), Ok(Some(EVENTS)));
        assert_eq!(resolve("1%"), Ok(Some(SAMPLING)));
        assert_eq!(resolve(" 20 % "), Ok(Some(EVENTS)));
        assert_eq!(resolve("off"), Ok(None));
        let half = resolve("0.5%").unwrap().unwrap();
        assert!((half.target() - 0.005).abs() < 1e-9);
    }

    #[test]
    fn what_is_no_share_is_refused_with_what_would_do() {
        for bad in [
            "", "5", "0.05", "-1%", "1e0%", "%", "five", "1%%", "NaN%", "inf%", "on",
        ] {
            let error = resolve(bad).unwrap_err().to_string();
            assert!(
                error.starts_with("--max-overhead: ") && error.contains("write 1%"),
                "{error}"
            );
        }
        for bad in ["0%", "100.1%", "0.00000001%", "99999999999999999999%"] {
            let error = resolve(bad).unwrap_err().to_string();
            assert!(error.contains("more than 0% and at most 100%"), "{error}");
        }
        let error = resolve("\u{1b}[31m").unwrap_err().to_string();
        assert!(!error.contains('\u{1b}'), "{error}");
    }
}
