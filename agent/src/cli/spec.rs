//! What the arguments that several subcommands share mean.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::args::TargetArgs;
use super::destination::Target;
use crate::calendar::Utc;
use crate::output::{Format, UnknownFormat, escape};
use crate::session::Follow;
use crate::syscalls::name::NameError;

/// Why a command line has no meaning. The exit code is 2.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// Nobody to look at.
    #[error(
        "no target: name a process with --pid PID, a container with --container ID, or a program to start after `--`"
    )]
    NoTarget,
    /// Two kinds of targets.
    #[error("{0} and {1} exclude each other: drop one of them")]
    TwoTargets(&'static str, &'static str),
    /// A container that is named by something else than its id.
    #[error(
        "--container {0}: not a container's id, which is 12 to 64 hexadecimal digits; `docker inspect -f {{{{.Id}}}} \
         NAME`, `podman ps`, `crictl ps` or `kubectl get pod NAME -o jsonpath={{..containerID}}` tells it"
    )]
    ContainerId(String),
    /// A duration that cannot be read.
    #[error("{flag} {text}: not a duration; write 10s, 500ms or 2m")]
    Duration {
        /// The flag.
        flag: &'static str,
        /// Its value.
        text: String,
    },
    /// A duration of nothing, or of more than [`MAX_DURATION`].
    #[error("{flag} {text}: must be more than 0 and at most 7 days (168h)")]
    DurationRange {
        /// The flag.
        flag: &'static str,
        /// Its value.
        text: String,
    },
    /// No samples at all.
    #[error("--frequency 0 takes no samples: use --frequency 1 or more")]
    FrequencyZero,
    /// A file whose format is unknown.
    #[error("-o {0}; or name the format with --format")]
    Extension(UnknownFormat),
    /// Standard output has no extension.
    #[error("-o - needs --format: one of {}", Format::names().join(", "))]
    StdoutFormat,
    /// A `--format` that there is not.
    #[error("--format {0}: unknown; the known ones are {known}", known = Format::names().join(", "))]
    Format(String),
    /// A `--format` that no output needs.
    #[error("--format {0} contradicts the extension of every -o: drop it or rename the file")]
    FormatUnused(&'static str),
    /// A value that its flag cannot have.
    #[error("{flag}: {reason}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// Why not, and what would do.
        reason: String,
    },
    /// Two outputs of one name.
    #[error("-o {0} is given twice: each output needs a name of its own")]
    DuplicateOutput(String),
    /// A name of an error or a system call that there is not.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A `--format` of reports that there is not.
    #[error("--format {0}: unknown; the known ones are table, json, csv")]
    Stream(String),
    /// A file of reports whose format is unknown.
    #[error(
        "-o {0}: the extension tells the format; the known ones are .svg, .folded, .html, .pb.gz, .speedscope.json, .json, .csv, .txt"
    )]
    File(String),
    /// The same for `agent tcp`.
    #[error(
        "-o {0}: the extension tells the format; the known ones are .json, .csv, .txt; or name the format with --format"
    )]
    TcpFile(String),
}

/// The longest run.
pub const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a running process is looked at unless `--duration` says otherwise.
pub const DEFAULT_DURATION: Duration = Duration::from_secs(30);

/// Whom to look at, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSpec {
    /// The processes.
    pub scope: Scope,
    /// Whether those that they start are in scope too.
    pub children: bool,
    /// How long; `None` is until the command exits.
    pub duration: Option<Duration>,
}

impl TargetSpec {
    /// What the session must follow.
    pub fn follow(&self) -> Follow {
        Follow {
            children: self.children,
            tolerant: matches!(self.scope, Scope::Group(_)),
            from_exec: matches!(self.scope, Scope::Command(_)),
        }
    }
}

/// Running processes, or a program to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Process ids, at least one, each once, in the order given.
    Processes(Vec<u32>),
    /// A program and its arguments, at least the program.
    Command(Vec<OsString>),
    /// Who is in a control group, whoever that is at any moment.
    Group(GroupSpec),
}

/// A control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupSpec {
    /// That of the container whose id begins with these 12 to 64 hexadecimal digits, in lower case.
    Container(String),
    /// The one at a path.
    Path(PathBuf),
}

impl GroupSpec {
    /// # Errors
    /// When the container's id cannot be one.
    fn container(text: &str) -> Result<Self, SpecError> {
        // Kubernetes writes containerd://ID.
        let id = text.rsplit_once("://").map_or(text, |(_, id)| id);
        let hexadecimal = id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !hexadecimal || !(12..=64).contains(&id.len()) {
            return Err(SpecError::ContainerId(escape::plain(text).into_owned()));
        }
        Ok(Self::Container(id.to_ascii_lowercase()))
    }
}

/// The only kind of target that is given, by its flag.
fn only_kind(args: &TargetArgs) -> Result<&'static str, SpecError> {
    let kinds = [
        ("--pid", !args.pid.is_empty()),
        ("--container", args.group.container.is_some()),
        ("--cgroup", args.group.cgroup.is_some()),
        ("a command after `--`", !args.command.is_empty()),
    ];
    let mut given = kinds
        .iter()
        .filter(|(_, given)| *given)
        .map(|(kind, _)| *kind);
    match (given.next(), given.next()) {
        (Some(one), Some(other)) => Err(SpecError::TwoTargets(one, other)),
        (one, _) => one.ok_or(SpecError::NoTarget),
    }
}

impl TargetSpec {
    /// Checks the arguments and fills in the defaults.
    ///
    /// # Errors
    /// No target, two kinds of target, or a duration that cannot be read.
    pub fn resolve(args: &TargetArgs) -> Result<Self, SpecError> {
        only_kind(args)?;
        let scope = if let Some(id) = &args.group.container {
            Scope::Group(GroupSpec::container(id)?)
        } else if let Some(path) = &args.group.cgroup {
            Scope::Group(GroupSpec::Path(path.clone()))
        } else if !args.command.is_empty() {
            Scope::Command(args.command.clone())
        } else {
            let mut seen = HashSet::new();
            let mut pids = args.pid.clone();
            pids.retain(|pid| seen.insert(*pid));
            Scope::Processes(pids)
        };
        let given = args.duration.as_deref();
        let duration = given
            .map(|text| parse_duration("--duration", text))
            .transpose()?;
        let default = (!matches!(scope, Scope::Command(_))).then_some(DEFAULT_DURATION);
        // What they start is in the group, too.
        let children = args.children || matches!(scope, Scope::Group(_));
        Ok(Self {
            scope,
            children,
            duration: duration.or(default),
        })
    }
}

/// Reads a duration: a decimal number with `ms`, `s`, `m` or `h`; a bare one is seconds.
///
/// # Errors
/// Not of that form, zero, or more than [`MAX_DURATION`]; `flag` is named.
pub fn parse_duration(flag: &'static str, text: &str) -> Result<Duration, SpecError> {
    let trimmed = text.trim();
    let unit_at = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(unit_at);
    let error = || SpecError::Duration {
        flag,
        text: escape::plain(text).into_owned(),
    };
    let seconds = match unit.trim_start() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(error()),
    };
    let number: f64 = number.parse().map_err(|_| error())?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if !duration.is_zero() && duration <= MAX_DURATION => Ok(duration),
        _ => Err(SpecError::DurationRange {
            flag,
            text: escape::plain(text).into_owned(),
        }),
    }
}

/// What to write where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputSpec {
    /// One file in the working directory, named by [`default_name`].
    Named(Format),
    /// These, each in its format.
    Given(Vec<(Target, Format)>),
}

impl OutputSpec {
    /// Finds the format of each output: by its extension, else `--format`.
    ///
    /// # Errors
    /// An output without a known format, an unknown or useless `--format`, a name given twice.
    pub fn resolve(outputs: &[String], format: Option<&str>) -> Result<Self, SpecError> {
        let format = match format {
            Some(name) => {
                let unknown = || SpecError::Format(escape::plain(name).into_owned());
                Some(Format::from_name(name).ok_or_else(unknown)?)
            }
            None => None,
        };
        if outputs.is_empty() {
            return Ok(Self::Named(format.unwrap_or(Format::Svg)));
        }
        let mut seen = HashSet::new();
        let mut given = Vec::new();
        let mut used = false;
        for text in outputs {
            let target = Target::parse(text);
            if !seen.insert(target.normalized()) {
                return Err(SpecError::DuplicateOutput(escape::plain(text).into_owned()));
            }
            let by_name = match &target {
                Target::Stdout => Err(SpecError::StdoutFormat),
                Target::File(path) => Format::from_extension(path).map_err(SpecError::Extension),
            };
            used |= by_name
                .as_ref()
                .map_or(true, |&found| Some(found) == format);
            given.push((target, by_name.or_else(|error| format.ok_or(error))?));
        }
        match format {
            Some(format) if !used => Err(SpecError::FormatUnused(format.name())),
            _ => Ok(Self::Given(given)),
        }
    }
}

/// `profile-COMM-PID-TIME.svg`, TIME in UTC as `20261121-104500`. The comm may be anything:
/// it is reduced to what is harmless in a file name.
///
/// `started` is in seconds since the epoch, `extension` without its first dot.
pub fn default_name(kind: &str, comm: &str, pid: u32, started: u64, extension: &str) -> PathBuf {
    let comm = escape::file_name(comm);
    let time = Utc::at(started).compact();
    Path::new(&format!("{kind}-{comm}-{pid}-{time}.{extension}")).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    fn outputs(outputs: &[&str], format: Option<&str>) -> Result<OutputSpec, SpecError> {
        let outputs: Vec<String> = outputs.iter().map(|&text| text.to_owned()).collect();
        OutputSpec::resolve(&outputs, format)
    }

    fn file(path: &str) -> Target {
        Target::File(path.into())
    }

    #[test]
    fn durations() {
        let read = |text| parse_duration("--duration", text);
        assert_eq!(read("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(read("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(read("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(read("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(read("30"), Ok(Duration::from_secs(30)));
        assert_eq!(read(" 3 s "), Ok(Duration::from_secs(3)));
        for bad in [
            "", "s", "10x", "-5s", "1e3", "1.2.3", "inf", "NaN", "10 s s", "١s",
        ] {
            let error = read(bad).unwrap_err();
            assert!(
                matches!(error, SpecError::Duration { .. }),
                "{bad}: {error}"
            );
            assert!(error.to_string().starts_with("--duration"));
        }
        for bad in ["0", "0ms", "169h", "99999999999999999999999999h"] {
            let error = read(bad).unwrap_err();
            assert!(
                matches!(error, SpecError::DurationRange { .. }),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn targets() {
        let mut args = TargetArgs::default();
        assert_eq!(TargetSpec::resolve(&args), Err(SpecError::NoTarget));
        args.pid = vec![3, 1, 3];
        let spec = TargetSpec::resolve(&args).unwrap();
        assert_eq!(spec.scope, Scope::Processes(vec![3, 1]));
        args.command = vec!["true".into()];
        let two = SpecError::TwoTargets("--pid", "a command after `--`");
        assert_eq!(TargetSpec::resolve(&args), Err(two));
        args.pid.clear();
        args.duration = Some("2s".to_owned());
        let spec = TargetSpec::resolve(&args).unwrap();
        assert_eq!(spec.duration, Some(Duration::from_secs(2)));
    }

    #[test]
    fn containers_are_named_by_their_id() {
        let resolve = |text: &str| {
            let mut args = TargetArgs::default();
            args.group.container = Some(text.to_owned());
            TargetSpec::resolve(&args)
        };
        let spec = resolve("containerd://0123456789ABcd").unwrap();
        let id = GroupSpec::Container("0123456789abcd".to_owned());
        assert_eq!(spec.scope, Scope::Group(id));
        assert!(spec.children && spec.duration == Some(DEFAULT_DURATION));
        for bad in ["", "shop", "0123456789a", &"0".repeat(65), "0123456789az"] {
            let error = resolve(bad).unwrap_err().to_string();
            assert!(error.contains("{{.Id}} NAME`"), "{error}");
        }
        let mut args = TargetArgs::default();
        args.group.container = Some("0123456789ab".to_owned());
        args.group.cgroup = Some("/x".into());
        let error = TargetSpec::resolve(&args).unwrap_err().to_string();
        assert!(
            error.starts_with("--container and --cgroup exclude"),
            "{error}"
        );
    }

    #[test]
    fn format_follows_the_extension_then_the_flag() {
        assert_eq!(outputs(&[], None), Ok(OutputSpec::Named(Format::Svg)));
        assert_eq!(
            outputs(&[], Some("json")),
            Ok(OutputSpec::Named(Format::Json))
        );
        assert_eq!(
            outputs(&["a.svg", "-", "plain"], Some("folded")),
            Ok(OutputSpec::Given(vec![
                (file("a.svg"), Format::Svg),
                (Target::Stdout, Format::Folded),
                (file("plain"), Format::Folded),
            ]))
        );
        assert!(outputs(&["a.json"], Some("json")).is_ok());
    }

    #[test]
    fn outputs_without_a_format_are_refused() {
        let message = |result: Result<OutputSpec, SpecError>| result.unwrap_err().to_string();
        let unknown = message(outputs(&["a.pdf"], None));
        assert!(
            unknown.contains("`.pdf`") && unknown.contains(".svg, .folded, .json"),
            "{unknown}"
        );
        assert!(message(outputs(&["-"], None)).contains("--format"));
        assert!(message(outputs(&["a.svg"], Some("pdf"))).contains("svg, folded, json"));
        assert!(message(outputs(&["a.svg"], Some("json"))).contains("contradicts"));
        for again in ["a.svg", "./a.svg", ".//./a.svg", "b/../a.svg"] {
            assert!(
                message(outputs(&["a.svg", again], None)).contains("twice"),
                "{again}"
            );
        }
        let here = std::env::current_dir().unwrap().join("a.svg");
        assert!(message(outputs(&["a.svg", here.to_str().unwrap()], None)).contains("twice"));
        assert!(message(outputs(&["-", "-"], Some("svg"))).contains("twice"));
        assert!(outputs(&["a.svg", "b/a.svg"], None).is_ok());
    }

    #[test]
    fn default_names_are_harmless() {
        let name = |comm, at| default_name("profile", comm, 42, at, "svg");
        let expected = |text: &str| PathBuf::from(text);
        assert_eq!(
            name("redis-server", 1_795_257_900),
            expected("profile-redis-server-42-20261121-104500.svg")
        );
        assert_eq!(
            name("../x y", 0),
            expected("profile-_x_y-42-19700101-000000.svg")
        );
    }
}
