//! `agent diff`: its arguments as typed, and what they mean.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::destination::Target;
use super::spec::SpecError;
use crate::output::diff::Format;
use crate::output::escape;

/// Arguments of `agent diff`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  agent diff before.pb.gz after.pb.gz                 tables on the terminal
  agent diff before.folded after.folded -o diff.svg   a picture: red grew, blue shrank
  agent diff old.pb.gz new.pb.gz -o diff.md -o diff.json

Each side's total is 100 %, so captures of unequal length can be compared. A difference is marked
as noise unless a two-proportion z-test on the numbers of samples calls it significant at 5 %,
corrected for the number of functions (Holm), with twice the variance of independent samples and
2 % by which the same code's speed differs from run to run. It tells chance from change, not a
change of the program from one of its load.

Exit codes: 0 done, 1 failed, 2 usage.")]
pub struct DiffArgs {
    /// The capture of before: a bundle (.zip), .pb.gz or .folded (of any tool)
    #[arg(value_name = "BEFORE")]
    pub before: PathBuf,
    /// The capture of after
    #[arg(value_name = "AFTER")]
    pub after: PathBuf,
    /// File to write, `-` for standard output; may be repeated. The name tells the format: .svg,
    /// .html, .md, .json [default: tables on standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Vec<String>,
    /// Format of the outputs whose name does not tell it: svg, html, md or json
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// What `agent diff` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffSpec {
    /// The capture of before.
    pub before: PathBuf,
    /// The capture of after.
    pub after: PathBuf,
    /// What to write where; nothing for tables on standard output.
    pub outputs: Vec<(Target, Format)>,
}

impl DiffArgs {
    /// Checks the arguments.
    ///
    /// # Errors
    /// An output without a known format, an unknown `--format`, a name given twice or a capture's own.
    pub fn resolve(&self) -> Result<DiffSpec, SpecError> {
        let given = self.format.as_deref().map(format_named).transpose()?;
        let mut seen = HashSet::new();
        let mut outputs = Vec::new();
        for text in &self.output {
            let target = Target::parse(text);
            let shown = || escape::plain(text).into_owned();
            if !seen.insert(target.normalized()) {
                return Err(SpecError::DuplicateOutput(shown()));
            }
            let format = match &target {
                Target::Stdout => None,
                Target::File(path) => by_extension(path),
            };
            let format = format.or(given).ok_or_else(|| SpecError::Flag {
                flag: "-o",
                reason: format!(
                    "`{}` does not tell the format: end it in .{}, or add --format",
                    shown(),
                    names(", .")
                ),
            })?;
            outputs.push((target, format));
        }
        if let (Some(format), true) = (given, outputs.is_empty()) {
            outputs.push((Target::Stdout, format));
        }
        Ok(DiffSpec {
            before: self.before.clone(),
            after: self.after.clone(),
            outputs,
        })
    }
}

fn by_extension(path: &Path) -> Option<Format> {
    Format::from_name(&path.extension()?.to_string_lossy())
}

fn format_named(name: &str) -> Result<Format, SpecError> {
    Format::from_name(name).ok_or_else(|| SpecError::Flag {
        flag: "--format",
        reason: format!(
            "`{}` is unknown; the known ones are {}",
            escape::plain(name),
            names(", ")
        ),
    })
}

fn names(between: &str) -> String {
    Format::ALL.map(Format::name).join(between)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::args::{Args, Command};
    use super::*;
    use clap::Parser;

    fn resolve(words: &[&str]) -> Result<DiffSpec, SpecError> {
        let words = ["agent", "diff", "a.pb.gz", "b.folded"].iter().chain(words);
        let Command::Diff(args) = Args::try_parse_from(words).unwrap().command else {
            panic!("another subcommand");
        };
        args.resolve()
    }

    #[test]
    fn outputs_tell_their_format() {
        assert!(resolve(&[]).unwrap().outputs.is_empty());
        let spec = resolve(&["-o", "x.SVG", "-o", "-", "--format", "json"]).unwrap();
        let file = Target::File("x.SVG".into());
        assert_eq!(
            spec.outputs,
            [(file, Format::Svg), (Target::Stdout, Format::Json)]
        );
        let spec = resolve(&["--format", "md"]).unwrap();
        assert_eq!(spec.outputs, [(Target::Stdout, Format::Markdown)]);
    }

    #[test]
    fn outputs_without_a_format_are_refused() {
        for words in [
            &["-o", "x.pdf"][..],
            &["-o", "-"],
            &["--format", "pdf"],
            &["-o", "x"],
        ] {
            let error = resolve(words).unwrap_err().to_string();
            assert!(error.contains("json") && error.contains("svg"), "{error}");
        }
        let error = resolve(&["-o", "x.md", "-o", "./x.md"]).unwrap_err();
        assert!(error.to_string().contains("twice"));
    }

    #[test]
    fn both_captures_are_needed() {
        assert!(Args::try_parse_from(["agent", "diff", "a.pb.gz"]).is_err());
    }
}
