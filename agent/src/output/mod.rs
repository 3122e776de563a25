//! The formats. Each sees the model only and returns bytes or text; nothing here writes a file
//! or prints (see [`crate::cli::destination`]).
//!
//! Adding a format takes its own file and one line in [`Format`].

pub mod diff;
pub mod doctor;
pub mod escape;
pub mod findings;
mod folded;
pub mod html;
mod intern;
mod json;
pub mod live;
pub mod metrics;
mod pprof;
pub mod report;
mod speedscope;
pub mod summary;
mod svg;
pub mod syscalls;
pub mod table;
pub mod tcp;
pub mod text;

#[cfg(test)]
pub(crate) mod fixture;

use std::path::Path;

use thiserror::Error;

use crate::profile::Profile;

/// A format that a profile can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// A flame graph.
    Svg,
    /// One line per distinct call path, as flame graph tools read it.
    Folded,
    /// The whole model.
    Json,
    /// An interactive page.
    Html,
    /// pprof's `profile.proto`, gzipped.
    Pprof,
    /// speedscope's own format.
    Speedscope,
}

/// Why a name is that of no format.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UnknownFormat {
    /// The file name has no extension.
    #[error(
        "`{path}` has no extension to tell its format; the known ones are {}",
        Format::extensions()
    )]
    NoExtension {
        /// The file.
        path: String,
    },
    /// Its extension is none of ours.
    #[error(
        "`{path}`: unknown extension `.{extension}`; the known ones are {}",
        Format::extensions()
    )]
    Extension {
        /// The file.
        path: String,
        /// Its extension, without the dot.
        extension: String,
    },
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 6] = [
        Format::Svg,
        Format::Folded,
        Format::Json,
        Format::Html,
        Format::Pprof,
        Format::Speedscope,
    ];

    /// The format's name.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Svg => "svg",
            Format::Folded => "folded",
            Format::Json => "json",
            Format::Html => "html",
            Format::Pprof => "pprof",
            Format::Speedscope => "speedscope",
        }
    }

    /// The extension of its files, without the first dot.
    pub const fn extension(self) -> &'static str {
        match self {
            Format::Pprof => "pb.gz",
            Format::Speedscope => "speedscope.json",
            format => format.name(),
        }
    }

    /// The names of all formats.
    pub fn names() -> [&'static str; Self::ALL.len()] {
        Self::ALL.map(Self::name)
    }

    /// The format with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|format| format.name().eq_ignore_ascii_case(name))
    }

    /// The format that the file's extension names, in whatever case.
    ///
    /// # Errors
    /// The file has no extension, or one of no format.
    pub fn from_extension(path: &Path) -> Result<Self, UnknownFormat> {
        let shown = escape::plain(&path.to_string_lossy()).into_owned();
        let Some(extension) = path.extension() else {
            return Err(UnknownFormat::NoExtension { path: shown });
        };
        let extension = extension.to_string_lossy();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_ascii_lowercase();
        // `.speedscope.json` is a `.json` too: the longest that fits.
        Self::ALL
            .into_iter()
            .filter(|format| name.ends_with(&format!(".{}", format.extension())))
            .max_by_key(|format| format.extension().len())
            .ok_or_else(|| UnknownFormat::Extension {
                path: shown,
                extension: escape::plain(&extension).into_owned(),
            })
    }

    fn extensions() -> String {
        Self::ALL
            .map(|format| format!(".{}", format.extension()))
            .join(", ")
    }
}

/// A profile could not be rendered.
#[derive(Debug, Error)]
#[error("cannot render the profile as {format}")]
pub struct RenderError {
    /// The format.
    format: &'static str,
    /// What its library said.
    source: std::io::Error,
}

/// The profile in this format.
///
/// # Errors
/// The format's library refused the profile, which is a bug: every profile has a rendering, the
/// empty one too.
pub fn render(format: Format, profile: &Profile) -> Result<Vec<u8>, RenderError> {
    match format {
        Format::Svg => svg::render(profile),
        Format::Folded => Ok(folded::render(profile).into_bytes()),
        Format::Json => json::render(profile),
        Format::Html => html::profile::render(profile),
        Format::Pprof => pprof::render(profile),
        Format::Speedscope => speedscope::render(profile),
    }
    .map_err(|source| RenderError {
        format: format.name(),
        source,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn extension_names_the_format() {
        for format in Format::ALL {
            let path = format!("dir.d/x.{}", format.extension());
            assert_eq!(Format::from_extension(Path::new(&path)), Ok(format));
        }
        let of = |name| Format::from_extension(Path::new(name));
        assert_eq!(of("X.SVG"), Ok(Format::Svg));
        assert_eq!(of("x.Speedscope.json"), Ok(Format::Speedscope));
        assert_eq!(of("speedscope.json"), Ok(Format::Json));
        assert!(of("x.gz").is_err());
    }

    #[test]
    fn unknown_extension_lists_the_known_ones() {
        let error = Format::from_extension(Path::new("a.pdf")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`a.pdf`: unknown extension `.pdf`; the known ones are .svg, .folded, .json, .html, .pb.gz, \
             .speedscope.json"
        );
        let error = Format::from_extension(Path::new("profile")).unwrap_err();
        assert!(error.to_string().contains(".svg, .folded, .json, .html"));
    }
}
