//! `agent report`: its arguments as typed, and what they mean.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::destination::Target;
use super::spec::SpecError;
use crate::bundle::Form;
use crate::output::{Format, escape};

/// Arguments of `agent report`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  agent report incident.zip                     the report as Markdown, on standard output
  agent report incident.zip -o report.html -o flame.svg
  agent report incident.zip -o cpu.pb.gz && go tool pprof cpu.pb.gz
  agent report incident.zip -o - --format syscalls | jq .

The name of a file decides what it gets: .md and .html the report; .svg, .pb.gz, .folded and
.speedscope.json the profile; profile.json, connections.json, syscalls.json and meta.json what the
bundle has under that name; profile.html the profile's own page. Nothing is written unless all is
well with the bundle.")]
pub struct ReportArgs {
    /// The bundle, as `agent record` wrote it
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// File to write, `-` for standard output; may be repeated [default: -]
    #[arg(short, long, value_name = "FILE")]
    pub output: Vec<String>,
    /// What the outputs get whose name does not tell it: md, html, svg, pprof, folded, speedscope,
    /// profile, connections, syscalls or meta [default: md]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// What `agent report` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportSpec {
    /// The bundle.
    pub bundle: PathBuf,
    /// What to write where.
    pub outputs: Vec<(Target, Form)>,
}

/// The names of `--format`.
const FORMATS: [(&str, Form); 10] = [
    ("md", Form::Markdown),
    ("html", Form::Page),
    ("svg", Form::Profile(Format::Svg)),
    ("pprof", Form::Profile(Format::Pprof)),
    ("folded", Form::Profile(Format::Folded)),
    ("speedscope", Form::Profile(Format::Speedscope)),
    ("profile", Form::Profile(Format::Json)),
    ("connections", Form::Connections),
    ("syscalls", Form::Syscalls),
    ("meta", Form::Meta),
];

fn known() -> String {
    FORMATS.map(|(name, _)| name).join(", ")
}

impl ReportArgs {
    /// Checks the arguments and fills in the defaults.
    ///
    /// # Errors
    /// An output whose form is not known, a `--format` that there is not or that nothing needs, a
    /// name given twice.
    pub fn resolve(&self) -> Result<ReportSpec, SpecError> {
        let format = self.format.as_deref().map(from_name).transpose()?;
        let mut seen = HashSet::new();
        let mut outputs = Vec::new();
        let mut used = format.is_none() || self.output.is_empty();
        for text in &self.output {
            let target = Target::parse(text);
            if !seen.insert(target.normalized()) {
                return Err(SpecError::DuplicateOutput(escape::plain(text).into_owned()));
            }
            let by_name = match &target {
                Target::Stdout => None,
                Target::File(path) => from_file(path),
            };
            used |= by_name.is_none() || by_name == format;
            let form = by_name.or(format).ok_or_else(|| no_form(text))?;
            outputs.push((target, form));
        }
        if !used {
            return Err(SpecError::Flag {
                flag: "--format",
                reason: "the name of every -o tells another: drop it or rename the file".to_owned(),
            });
        }
        if outputs.is_empty() {
            outputs.push((Target::Stdout, format.unwrap_or(Form::Markdown)));
        }
        Ok(ReportSpec {
            bundle: self.bundle.clone(),
            outputs,
        })
    }
}

fn from_name(name: &str) -> Result<Form, SpecError> {
    let found = FORMATS
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|&(_, form)| form).ok_or_else(|| SpecError::Flag {
        flag: "--format",
        reason: format!(
            "`{}` is unknown; there are {}",
            escape::plain(name),
            known()
        ),
    })
}

fn no_form(output: &str) -> SpecError {
    let reason = match output {
        "-" => format!("`-` needs --format: one of {}", known()),
        _ => format!(
            "`{}` does not tell what it is to get: name it as an entry of the bundle, or .md, \
             .html, .svg, .pb.gz, .folded or .speedscope.json, or say --format with one of {}",
            escape::plain(output),
            known()
        ),
    };
    SpecError::Flag { flag: "-o", reason }
}

/// What a file of this name gets: that of the bundle's entry of this name, else by its extension.
fn from_file(path: &Path) -> Option<Form> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    if name == "profile.html" {
        return Some(Form::Profile(Format::Html));
    }
    let by_extension = || match Format::from_extension(path) {
        // Of the parts of a bundle several are JSON: which one, the whole name must say.
        Ok(Format::Json) => None,
        Ok(Format::Html) => Some(Form::Page),
        Ok(format) => Some(Form::Profile(format)),
        Err(_) if name.ends_with(".md") => Some(Form::Markdown),
        Err(_) => None,
    };
    Form::of_entry(&name).or_else(by_extension)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::args::{Args, Command};
    use super::*;
    use clap::Parser;

    fn resolve(words: &[&str]) -> Result<Vec<Form>, SpecError> {
        let words = ["agent", "report", "x.zip"].iter().chain(words);
        let Command::Report(args) = Args::try_parse_from(words).unwrap().command else {
            panic!("another subcommand");
        };
        let spec = args.resolve()?;
        assert_eq!(spec.bundle, Path::new("x.zip"));
        Ok(spec.outputs.into_iter().map(|(_, form)| form).collect())
    }

    #[test]
    fn names_decide() {
        for (name, form) in [
            ("report.md", Form::Markdown),
            ("a/ticket.MD", Form::Markdown),
            ("x.html", Form::Page),
            ("profile.html", Form::Profile(Format::Html)),
            ("flame.svg", Form::Profile(Format::Svg)),
            ("cpu.pb.gz", Form::Profile(Format::Pprof)),
            ("x.folded", Form::Profile(Format::Folded)),
            ("x.speedscope.json", Form::Profile(Format::Speedscope)),
            ("dir/profile.json", Form::Profile(Format::Json)),
            ("connections.json", Form::Connections),
            ("syscalls.json", Form::Syscalls),
            ("meta.json", Form::Meta),
        ] {
            assert_eq!(resolve(&["-o", name]).unwrap(), [form], "{name}");
        }
    }

    #[test]
    fn what_no_name_tells_the_format_does() {
        assert_eq!(resolve(&[]).unwrap(), [Form::Markdown]);
        assert_eq!(resolve(&["--format", "html"]).unwrap(), [Form::Page]);
        let forms = resolve(&["-o", "-", "-o", "x.svg", "--format", "meta"]).unwrap();
        assert_eq!(forms, [Form::Meta, Form::Profile(Format::Svg)]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (words, expected) in [
            (&["-o", "-"][..], "-o: `-` needs --format"),
            (&["-o", "x.json"], "name it as an entry of the bundle"),
            (&["-o", "x.pdf"], "does not tell"),
            (&["--format", "pdf"], "`pdf` is unknown; there are md, html"),
            (&["-o", "x.md", "--format", "svg"], "drop it"),
            (&["-o", "x.md", "-o", "./x.md"], "given twice"),
        ] {
            let error = resolve(words).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
