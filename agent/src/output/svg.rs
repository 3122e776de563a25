//! The flame graph: drawn by `inferno`, with the facts of the run, a legend and the account of
//! the ticks added so that the picture also says them where no script runs.
//!
//! Root at the bottom, the process first, siblings in the order of their names. Colours tell the
//! kinds of code apart ([`Kind`]); within a kind a function keeps its shade from run to run.

use std::fmt::Write as _;
use std::io;

use inferno::flamegraph::color::{BackgroundColor, Color, PaletteMap};
use inferno::flamegraph::{self, Options, TextTruncateDirection};

use super::escape;
use super::text::{self, Kind, Paths};
use crate::profile::Profile;

/// Width of the picture where no script fits it to the window, in pixels.
const WIDTH: usize = 1200;
/// Height added below inferno's picture, in pixels.
const FOOTER: usize = 44;
/// Frames narrower than this, in percent of the whole, are not drawn: about a pixel on a wide
/// screen, and megabytes of them in a long run. The other formats have them. The first width that
/// makes the picture small enough is taken, or the last.
const MIN_WIDTH_PERCENT: [f64; 7] = [0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0];
/// Most bytes of a picture: ticket systems show larger ones as files only.
const MOST_BYTES: usize = 1_000_000;
const BACKGROUND: &str = "#f8f8f8";

/// The profile as a flame graph.
pub(super) fn render(profile: &Profile) -> io::Result<Vec<u8>> {
    if profile.samples() == 0 {
        return Ok(empty(profile).into_bytes());
    }
    let mut palette = PaletteMap::default();
    palette.insert("", Color::new(224, 224, 224));
    let paths = Paths::new(profile);
    for (name, kind) in &paths.names {
        palette.insert(format!("{name}{}", mark(*kind)), color(*kind, name));
    }
    let mut lines = Vec::new();
    for (path, count) in paths.iter() {
        let mut line = String::new();
        for (name, kind) in path {
            line += name;
            line += mark(*kind);
            line.push(';');
        }
        line.pop();
        let _ = write!(line, " {count}");
        lines.push(line);
    }

    let mut svg = Vec::new();
    for min_width in MIN_WIDTH_PERCENT {
        svg = draw(profile, &lines, &mut palette, min_width)?;
        if svg.len() <= MOST_BYTES {
            break;
        }
    }
    Ok(svg)
}

/// The picture of these folded stacks without the frames narrower than `min_width` percent.
fn draw(
    profile: &Profile,
    lines: &[String],
    palette: &mut PaletteMap,
    min_width: f64,
) -> io::Result<Vec<u8>> {
    let mut options = Options::default();
    options.title = title(profile);
    options.subtitle = Some(subtitle(profile));
    if text::is_counted(profile) {
        options.count_name = "failures".to_owned();
    }
    options.palette_map = Some(palette);
    options.bgcolors = Some(BackgroundColor::Flat(Color::new(0xf8, 0xf8, 0xf8)));
    options.min_width = min_width;
    options.text_truncate_direction = TextTruncateDirection::Right;
    // The paths are sorted frame by frame, which keeps every frame in one piece; sorting whole
    // lines would not (` ` and `(` sort before `;`). In this mode inferno takes the lines as they
    // are, last one first.
    options.flame_chart = true;
    let mut svg = Vec::new();
    flamegraph::from_lines(
        &mut options,
        lines.iter().rev().map(String::as_str),
        &mut svg,
    )?;
    let svg = String::from_utf8(svg).map_err(|error| io::Error::other(error.utf8_error()))?;
    decorate(&svg, profile, min_width)
        .map(String::into_bytes)
        .ok_or_else(|| io::Error::other("the flame graph has an unexpected head"))
}

/// inferno does not show these marks; they make frames of different kinds different frames.
const fn mark(kind: Kind) -> &'static str {
    match kind {
        Kind::Process => "_[w]",
        Kind::Inlined => "_[i]",
        Kind::Jit => "_[j]",
        Kind::Kernel => "_[k]",
        Kind::User | Kind::Truncated => "",
    }
}

/// The colour of a kind, in a shade that the name decides.
fn color(kind: Kind, name: &str) -> Color {
    // FNV-1a, 32 bits: stable from run to run and from machine to machine.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let shade = |range: u32| u8::try_from(hash.rotate_left(range) % range).unwrap_or(0);
    match kind {
        Kind::Process => Color::new(198, 208, 220),
        Kind::User => Color::new(244, 136 + shade(46), 82 + shade(30)),
        Kind::Inlined => Color::new(250, 222 + shade(20), 140 + shade(40)),
        Kind::Jit => Color::new(120 + shade(40), 200 + shade(24), 120 + shade(30)),
        Kind::Kernel => Color::new(128 + shade(30), 170 + shade(30), 232 + shade(16)),
        Kind::Truncated => Color::new(172, 172, 172),
    }
}

fn title(profile: &Profile) -> String {
    let what = if text::is_counted(profile) {
        format!("Flame graph of {}", escape::plain(&profile.facts.event))
    } else {
        "CPU flame graph".to_owned()
    };
    let title = format!("{what}: {}", text::targets(profile));
    escape::truncate_middle(&title, 100).into_owned()
}

fn subtitle(profile: &Profile) -> String {
    let facts = &profile.facts;
    let kernel = escape::plain(&facts.kernel);
    let mut parts = vec![text::sampled(profile)];
    if let Some(complete) = text::complete_percent(profile) {
        parts.push(format!(
            "{} % complete stacks",
            text::show_percent(complete)
        ));
    }
    parts.push(format!("{} lost", profile.accounting.lost_total()));
    parts.push(format!("agent {}", escape::plain(&facts.agent_version)));
    parts.push(escape::truncate_middle(&kernel, 48).into_owned());
    parts.join(" · ")
}

/// What stands in the file for readers of its source and for assistive technology.
fn description(profile: &Profile, min_width: f64) -> String {
    let facts = &profile.facts;
    let mut lines = vec![
        text::sampled(profile),
        text::account(profile),
        match text::is_counted(profile) {
            true => format!("counted: {} on {} CPUs", facts.event, facts.cpus),
            false => format!("clock: {} on {} CPUs", facts.event, facts.cpus),
        },
        format!("command line: {}", facts.command_line.join(" ")),
        format!("ended: {}", facts.ended),
        format!("frames narrower than {min_width} % are not drawn"),
    ];
    if let Some(complete) = text::complete_percent(profile) {
        lines.push(format!(
            "complete stacks: {} %",
            text::show_percent(complete)
        ));
    }
    let notes = &profile.accounting.notes;
    lines.extend(
        notes
            .iter()
            .map(|(cause, count)| format!("{cause}: {count}")),
    );
    let lines: Vec<String> = lines.iter().map(|line| escape::xml(line)).collect();
    lines.join("\n")
}

fn head(profile: &Profile, min_width: f64) -> String {
    format!(
        "<title>{}</title><desc>{}</desc>",
        escape::xml(&title(profile)),
        description(profile, min_width)
    )
}

/// The legend and the account of the ticks, from the line `top` down.
fn footer(profile: &Profile, top: usize) -> String {
    let mut out =
        format!(r#"<rect x="0" y="{top}" width="100%" height="{FOOTER}" fill="{BACKGROUND}"/>"#);
    let legend = [
        (Kind::User, "user"),
        (Kind::Inlined, "inlined"),
        (Kind::Jit, "JIT"),
        (Kind::Kernel, "kernel"),
        (Kind::Truncated, "cut stack"),
    ];
    let mut x = 10;
    for (kind, label) in legend {
        let c = color(kind, label);
        let _ = write!(
            out,
            r#"<rect x="{x}" y="{}" width="12" height="12" fill="rgb({},{},{})"/><text x="{}" y="{}">{label}</text>"#,
            top + 4,
            c.r,
            c.g,
            c.b,
            x + 17,
            top + 14,
        );
        x += 17 + 8 * label.len() + 16;
    }
    let _ = write!(
        out,
        r#"<text id="accounting" x="10" y="{}">{}</text>"#,
        top + 34,
        escape::xml(&text::account(profile)),
    );
    out
}

/// Adds title, description and footer to inferno's picture; `None` if it does not look like one.
fn decorate(svg: &str, profile: &Profile, min_width: f64) -> Option<String> {
    let open = svg.find("<svg ")?;
    let close = open + svg.get(open..)?.find('>')? + 1;
    let end = svg.rfind("</svg>")?;
    let tag = svg.get(open..close)?;
    let (_, height) = tag.split_once(" height=\"")?;
    let height: usize = height.split_once('"')?.0.parse().ok()?;
    let taller = height + FOOTER;
    let tag = tag
        .replacen(
            &format!(" height=\"{height}\""),
            &format!(" height=\"{taller}\""),
            1,
        )
        .replacen(&format!(" {height}\""), &format!(" {taller}\""), 1);
    Some(format!(
        "{}{tag}{}{}{}{}\n",
        svg.get(..open)?,
        head(profile, min_width),
        svg.get(close..end)?,
        footer(profile, height),
        svg.get(end..)?,
    ))
}

/// inferno draws nothing from nothing; neither do we, but say so.
fn empty(profile: &Profile) -> String {
    let height = 100;
    let total = height + FOOTER;
    let message = match profile.accounting.lost_total() {
        0 if text::is_counted(profile) => "nothing to count",
        0 => "no samples: the target was idle",
        _ => "no samples: all were lost",
    };
    format!(
        r#"<?xml version="1.0" standalone="no"?>
<svg version="1.1" width="{WIDTH}" height="{total}" viewBox="0 0 {WIDTH} {total}" xmlns="http://www.w3.org/2000/svg">{}<style type="text/css">text {{ font-family:monospace; font-size:12px }}</style><rect width="100%" height="100%" fill="{BACKGROUND}"/><text x="50%" y="24" text-anchor="middle" style="font-size:17px">{}</text><text x="50%" y="48" text-anchor="middle">{}</text><text x="50%" y="80" text-anchor="middle" style="font-size:15px">{message}</text>{}</svg>
"#,
        head(profile, MIN_WIDTH_PERCENT[0]),
        escape::xml(&title(profile)),
        escape::xml(&subtitle(profile)),
        footer(profile, height),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;
    use quick_xml::Reader;
    use quick_xml::events::Event;

    fn text_of(profile: &Profile) -> String {
        String::from_utf8(render(profile).unwrap()).unwrap()
    }

    /// The names of all elements; panics on what is not well formed.
    fn elements(svg: &str) -> Vec<String> {
        let mut reader = Reader::from_str(svg);
        let config = reader.config_mut();
        config.check_end_names = true;
        config.check_comments = true;
        let mut names = Vec::new();
        loop {
            match reader.read_event().unwrap() {
                Event::Start(tag) | Event::Empty(tag) => {
                    assert!(tag.attributes().all(|attribute| attribute.is_ok()));
                    names.push(String::from_utf8(tag.name().as_ref().to_vec()).unwrap());
                }
                Event::Text(text) => drop(text.xml_content().unwrap()),
                Event::Eof => return names,
                _ => {}
            }
        }
    }

    #[test]
    fn golden() {
        fixture::check_golden("profile.svg", text_of(&fixture::profile()).as_bytes());
        fixture::check_golden("empty.svg", text_of(&fixture::empty()).as_bytes());
    }

    #[test]
    fn hostile_names_are_text() {
        let mut profile = fixture::hostile();
        profile.facts.kernel = fixture::HOSTILE.join(" ");
        profile.facts.command_line = fixture::HOSTILE
            .iter()
            .map(|&name| name.to_owned())
            .collect();
        profile.facts.targets[0].comm = fixture::HOSTILE.concat();
        let svg = text_of(&profile);
        fixture::check_golden("hostile.svg", svg.as_bytes());
        let names = elements(&svg);
        assert_eq!(names.iter().filter(|name| *name == "script").count(), 1);
        assert!(names.iter().all(|name| name != "img"));
        assert!(!svg.chars().any(|c| c != '\n' && escape::is_unsafe(c)));
        for hostile in [
            "]]&gt;&lt;/script&gt;&lt;script&gt;document",
            "\\u{202e}nimda",
        ] {
            assert!(svg.contains(hostile), "{hostile}");
        }
    }

    #[test]
    fn every_sample_is_drawn_once() {
        // `f(int)` sorts between `f` and its callees in a sort of whole lines.
        let mut profile = fixture::empty();
        let named = |name: &str| fixture::user("m", name, 1);
        let root = agent_ebpf::End::Root;
        fixture::push(&mut profile, &[named("f")], root, 1);
        fixture::push(&mut profile, &[named("f(int)")], root, 1);
        fixture::push(&mut profile, &[named("f"), named("g")], root, 1);
        let svg = text_of(&profile);
        assert_eq!(
            svg.matches("<title>f (2 samples, 66.67%)</title>").count(),
            1,
            "{svg}"
        );
    }

    #[test]
    fn a_picture_stays_small() {
        // Eight thousand stacks that share little.
        let mut profile = fixture::empty();
        for stack in 0..8_000_u64 {
            let frames: Vec<_> = (0..24)
                .map(|depth| {
                    let name = format!(
                        "handler_{}_of_a_large_program",
                        (stack >> (depth / 2)) % 977
                    );
                    fixture::user("server", &name, depth)
                })
                .collect();
            fixture::push(&mut profile, &frames, agent_ebpf::End::Root, 1);
        }
        let svg = text_of(&profile);
        assert!(svg.len() <= MOST_BYTES, "{}", svg.len());
        assert!(svg.contains("are not drawn") && !svg.contains("narrower than 0.05 %"));
        elements(&svg);
    }

    #[test]
    fn empty_profile_says_so() {
        let svg = text_of(&fixture::empty());
        elements(&svg);
        assert!(svg.contains("no samples: the target was idle"));
        assert!(svg.contains("ticks 200 = 200 idle"));
    }
}
