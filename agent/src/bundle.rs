//! A capture as one file: a zip archive of ordinary formats (docs/record.md). Everything in it can
//! be made again from `profile.json`, `connections.json`, `syscalls.json` and `meta.json`; only
//! these are read back. A bundle that is read may come from anybody.

mod check;
pub mod zip;

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::capture::{self, Capture, Meta};
use crate::output::{self, Format, escape};
use zip::{Archive, Writer};

/// Most bytes that the entries of a bundle inflate to together.
const MAX_TOTAL: u64 = 512 << 20;

const META: &str = "meta.json";
const PROFILE: &str = "profile.json";
const CONNECTIONS: &str = "connections.json";
const SYSCALLS: &str = "syscalls.json";

/// All entries, in their order.
const ENTRIES: &[(&str, Form)] = &[
    ("report.md", Form::Markdown),
    ("report.html", Form::Page),
    ("flame.svg", Form::Profile(Format::Svg)),
    ("profile.pb.gz", Form::Profile(Format::Pprof)),
    (PROFILE, Form::Profile(Format::Json)),
    (CONNECTIONS, Form::Connections),
    (SYSCALLS, Form::Syscalls),
    (META, Form::Meta),
];

/// A form that a capture, or a part of it, is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The report as Markdown.
    Markdown,
    /// The report as a page.
    Page,
    /// The profile.
    Profile(Format),
    /// The connections: one document a line.
    Connections,
    /// The failing system calls: one report a line.
    Syscalls,
    /// The circumstances.
    Meta,
}

impl Form {
    /// The form of the bundle's entry of this name.
    pub fn of_entry(name: &str) -> Option<Self> {
        let found = ENTRIES.iter().find(|(entry, _)| *entry == name);
        found.map(|&(_, form)| form)
    }

    /// The capture in this form.
    ///
    /// # Errors
    /// A library refused it, which is a bug: every capture can be written in every form.
    pub fn render(self, capture: &Capture) -> Result<Vec<u8>, Error> {
        Ok(match self {
            Form::Markdown => output::report::markdown(capture).into_bytes(),
            Form::Page => output::report::html(capture)?.into_bytes(),
            Form::Profile(format) => output::render(format, &capture.profile)?,
            Form::Connections => lines(&capture.connections)?,
            Form::Syscalls => lines(&capture.syscalls)?,
            Form::Meta => pretty(&capture.meta)?,
        })
    }
}

/// Why a bundle cannot be written or read.
#[derive(Debug, Error)]
pub enum Error {
    /// Not an archive that can be read.
    #[error(transparent)]
    Zip(#[from] zip::Error),
    /// An archive of something else.
    #[error(
        "it is no bundle: it has no `{missing}`{}", where_it_is(.elsewhere.as_deref())
    )]
    NoBundle {
        /// The entry that is missing.
        missing: &'static str,
        /// An entry of the same name in a directory of the archive.
        elsewhere: Option<String>,
    },
    /// An entry is of another form.
    #[error("`{entry}` of the bundle cannot be read")]
    Entry {
        /// The entry.
        entry: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A line of an entry is of another form.
    #[error("line {line} of `{entry}` of the bundle cannot be read")]
    Line {
        /// The entry.
        entry: &'static str,
        /// From 1.
        line: usize,
        /// Where in it and why.
        source: serde_json::Error,
    },
    /// The profile cannot be read.
    #[error("`{PROFILE}` of the bundle cannot be read")]
    Profile(#[from] capture::profile::Error),
    /// Another version.
    #[error(
        "the bundle's schema is `{}`, not `{}`: another version of agent wrote it",
        escape::plain(.0),
        capture::SCHEMA
    )]
    Schema(String),
    /// The sums do not fit into 64 bits.
    #[error("the counts in `{0}` of the bundle add up to more than 64 bits hold")]
    Overflow(&'static str),
    /// A format could not be made.
    #[error("cannot make an entry of the bundle")]
    Render(#[from] output::RenderError),
    /// JSON could not be made.
    #[error("cannot make an entry of the bundle")]
    Json(#[from] serde_json::Error),
    /// It could not be written.
    #[error("cannot write the bundle")]
    Write(#[source] io::Error),
}

fn where_it_is(elsewhere: Option<&str>) -> String {
    match elsewhere {
        Some(name) => format!(
            " but `{}`: pack the files themselves, not their directory",
            escape::plain(name)
        ),
        None => "; `agent record` writes bundles".to_owned(),
    }
}

/// The bytes of the bundle: the same ones for the same capture.
///
/// # Errors
/// An entry cannot be rendered.
pub fn write(capture: &Capture) -> Result<Vec<u8>, Error> {
    let mut writer = Writer::new(Vec::new(), capture.meta.started);
    for (name, form) in ENTRIES {
        writer
            .add(name, &form.render(capture)?)
            .map_err(Error::Write)?;
    }
    writer.finish().map_err(Error::Write)
}

/// Reads the capture from a bundle.
///
/// # Errors
/// Anything else than a bundle, or one that contradicts itself; see [`Error`].
pub fn read(bytes: &[u8]) -> Result<Capture, Error> {
    let mut archive = Archive::open(bytes, MAX_TOTAL)?;
    let meta: Meta = one(&mut archive, META)?;
    if meta.schema != capture::SCHEMA {
        return Err(Error::Schema(meta.schema));
    }
    let capture = Capture {
        meta,
        profile: capture::profile::read(&entry(&mut archive, PROFILE)?)?,
        connections: many(&mut archive, CONNECTIONS)?,
        syscalls: many(&mut archive, SYSCALLS)?,
    };
    check::meta(&capture.meta).ok_or(Error::Overflow(META))?;
    check::connections(&capture.connections).ok_or(Error::Overflow(CONNECTIONS))?;
    check::syscalls(&capture.syscalls).ok_or(Error::Overflow(SYSCALLS))?;
    Ok(capture)
}

/// One document a line.
fn lines(documents: &[impl Serialize]) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    for document in documents {
        escape::json_to(&mut bytes, document)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// One field a line, for people.
fn pretty(meta: &Meta) -> Result<Vec<u8>, serde_json::Error> {
    let compact = escape::json(meta)?;
    let mut bytes = Vec::with_capacity(compact.len() + 64);
    let (mut depth, mut in_string, mut escaped) = (0u32, false, false);
    for byte in compact {
        let opens = !in_string && matches!(byte, b'{' | b'[');
        let closes = !in_string && matches!(byte, b'}' | b']');
        depth -= u32::from(closes);
        if closes && depth == 0 {
            bytes.push(b'\n');
        }
        depth += u32::from(opens);
        bytes.push(byte);
        let splits = opens || !in_string && byte == b',';
        if splits && depth == 1 {
            bytes.push(b'\n');
        }
        in_string ^= byte == b'"' && !escaped;
        escaped = in_string && byte == b'\\' && !escaped;
    }
    bytes.push(b'\n');
    Ok(bytes)
}

fn entry(archive: &mut Archive<'_>, name: &'static str) -> Result<Vec<u8>, Error> {
    archive.read(name).map_err(|error| match error {
        zip::Error::NoEntry(missing) => Error::NoBundle {
            missing,
            elsewhere: archive
                .names()
                .find(|other| other.rsplit('/').next() == Some(missing))
                .map(str::to_owned),
        },
        error => error.into(),
    })
}

fn one<T: DeserializeOwned>(archive: &mut Archive<'_>, name: &'static str) -> Result<T, Error> {
    let bytes = entry(archive, name)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Entry {
        entry: name,
        source,
    })
}

fn many<T: DeserializeOwned>(
    archive: &mut Archive<'_>,
    name: &'static str,
) -> Result<Vec<T>, Error> {
    let bytes = entry(archive, name)?;
    let mut documents = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let document = serde_json::from_slice(line).map_err(|source| Error::Line {
            entry: name,
            line: index + 1,
            source,
        })?;
        documents.push(document);
    }
    Ok(documents)
}

#[cfg(test)]
mod tests;
