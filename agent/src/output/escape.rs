//! Makes names of the target safe to show: on a terminal, in a flame graph, in JSON.
//!
//! Everything that a target can choose (function, file, thread and process names) passes through
//! here before it reaches an output. What would move a cursor, reorder text, hide, or is no
//! character of XML 1.0 is replaced by a visible `\u{…}`; XML's own characters are escaped by
//! whoever writes the XML.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;

use serde_json::ser::Formatter;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Whether the character must not reach a reader as it is.
///
/// Control characters (C0, DEL, C1), line and paragraph separators, bidirectional controls
/// (Unicode 16, `Bidi_Control`), invisible format characters, tags and the noncharacters that
/// XML 1.0 section 2.2 leaves out.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e007f}')
}

/// The text with every unsafe character written as `\u{hex}`.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_unsafe(c) {
            // Writing to a string cannot fail.
            let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// A message of several lines for the terminal: each line [`plain`], those after the first set in,
/// so that a name with a line end in it cannot pass for a message of its own.
pub fn message(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(plain).collect();
    lines.join("\n  ")
}

/// The text as one frame of a folded stack: [`plain`], and nothing that the readers of that
/// format take for syntax.
///
/// `;` separates frames, so it becomes `:`. A last word of digits would be read as a count, a
/// first `# ` as a comment and a last `_[k]` as a mark; each loses one character to `_` or to a
/// round bracket. Surrounding blanks would be trimmed by the readers, so they are trimmed here;
/// no name at all becomes `[unnamed]`.
pub fn frame(text: &str) -> String {
    let spaced: String = plain(text)
        .chars()
        .map(|c| match c {
            ';' => ':',
            c if c.is_whitespace() => ' ',
            c => c,
        })
        .collect();
    let mut name = spaced.trim().to_owned();
    if name.is_empty() {
        return "[unnamed]".to_owned();
    }
    if let Some(rest) = name.strip_prefix("# ") {
        name = format!("#_{rest}");
    }
    if let Some((head, last)) = name.rsplit_once(' ')
        && last.chars().all(|c| c.is_ascii_digit() || c == '.')
    {
        name = format!("{head}_{last}");
    }
    if let Some(head) = name.strip_suffix(']')
        && let Some((head, mark)) = head.rsplit_once("_[")
        && mark.len() == 1
    {
        name = format!("{head}_({mark})");
    }
    name
}

/// The text for XML 1.0 character data and attribute values: [`plain`], and the characters of
/// markup as entities.
pub fn xml(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in plain(text).chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&apos;"),
            c => safe.push(c),
        }
    }
    safe
}

/// The text as a Markdown code span (CommonMark 6.1), in which nothing of it acts: no markup, link,
/// mention or HTML. [`plain`], within as many backticks as it takes; no text at all is `""`.
///
/// A `|` is as it is: within a table take [`markdown_cell`].
pub fn markdown_code(text: &str) -> String {
    let text = plain(text);
    if text.is_empty() {
        return "`\"\"`".to_owned();
    }
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    // One blank on each side is taken off again, where not all is blank.
    let blank = text.trim_matches(' ').is_empty();
    let edge = |c: Option<char>| matches!(c, Some('`' | ' '));
    let pad = if !blank && (edge(text.chars().next()) || edge(text.chars().next_back())) {
        " "
    } else {
        ""
    };
    format!("{fence}{pad}{text}{pad}{fence}")
}

/// [`markdown_code`] within a cell of a table (GFM 4.10): there a `|` ends the cell in a code
/// span too, unless a backslash stands before it.
pub fn markdown_cell(text: &str) -> String {
    markdown_code(text).replace('|', "\\|")
}

/// The text as part of a file name: letters, digits, `.`, `_`, `+` and `-` stay, the rest becomes
/// `_`; at most 64 characters, never empty, no leading dot or dash.
pub fn file_name(text: &str) -> String {
    let safe: String = text
        .chars()
        .take(64)
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '+' | '-' => c,
            _ => '_',
        })
        .collect();
    let safe = safe.trim_start_matches(['.', '-']);
    if safe.is_empty() {
        "_".to_owned()
    } else {
        safe.to_owned()
    }
}

/// Columns that the text takes on a terminal. Unsafe characters count as nothing: escape first.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text cut to at most `columns`, with `…` in its middle where something is missing: the
/// start and the end of a function's name both tell it apart.
pub fn truncate_middle(text: &str, columns: usize) -> Cow<'_, str> {
    if width(text) <= columns {
        return Cow::Borrowed(text);
    }
    let Some(room) = columns.checked_sub(1) else {
        return Cow::Borrowed("");
    };
    let tail_room = room / 2;
    let head = take_width(text.chars(), room - tail_room);
    let tail: String = take_width(text.chars().rev(), tail_room)
        .chars()
        .rev()
        .collect();
    Cow::Owned(format!("{head}…{tail}"))
}

fn take_width(chars: impl Iterator<Item = char>, columns: usize) -> String {
    let mut left = columns;
    chars
        .take_while(|c| match left.checked_sub(c.width().unwrap_or(0)) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        })
        .collect()
}

/// JSON that is safe to show and to embed: the strings keep their value, but every unsafe
/// character, and the `<` of `</` and `<!`, is written as `\uXXXX` (RFC 8259 section 7).
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonFormatter;

impl Formatter for JsonFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_fragment(writer, fragment, |c, next| {
            is_unsafe(c) || c == '<' && matches!(next, Some('/' | '!'))
        })
    }
}

/// JSON for the inside of an HTML `<script>` element: [`JsonFormatter`], and no `<`, `>` or `&` at
/// all, so that nothing in it can be taken for markup by whatever reads the page.
#[derive(Clone, Copy, Debug, Default)]
struct ScriptFormatter;

impl Formatter for ScriptFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_fragment(writer, fragment, |c, _| {
            is_unsafe(c) || matches!(c, '<' | '>' | '&')
        })
    }
}

/// Writes a part of a string, as `\uXXXX` those characters for which `escaped(it, the next)` holds.
fn write_fragment<W: ?Sized + io::Write>(
    writer: &mut W,
    fragment: &str,
    escaped: impl Fn(char, Option<char>) -> bool,
) -> io::Result<()> {
    let mut start = 0;
    let mut chars = fragment.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if !escaped(c, chars.peek().map(|&(_, next)| next)) {
            continue;
        }
        writer.write_all(fragment.get(start..at).unwrap_or_default().as_bytes())?;
        let mut units = [0; 2];
        for unit in c.encode_utf16(&mut units) {
            write!(writer, "\\u{unit:04x}")?;
        }
        start = at + c.len_utf8();
    }
    writer.write_all(fragment.get(start..).unwrap_or_default().as_bytes())
}

/// The value as one line of safe JSON (see [`JsonFormatter`]).
///
/// # Errors
/// Only what the value's own `Serialize` reports.
pub fn json<T: serde::Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = Vec::new();
    json_to(&mut bytes, value)?;
    Ok(bytes)
}

/// The value as one line of JSON that may stand inside an HTML `<script>` element.
///
/// # Errors
/// Only what the value's own `Serialize` reports.
pub fn json_in_script<T: serde::Serialize + ?Sized>(
    value: &T,
) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut bytes,
        ScriptFormatter,
    ))?;
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

/// As [`json`], written as it comes.
///
/// # Errors
/// What the writer reports, too.
pub fn json_to<T: serde::Serialize + ?Sized>(
    writer: impl io::Write,
    value: &T,
) -> Result<(), serde_json::Error> {
    value.serialize(&mut serde_json::Serializer::with_formatter(
        writer,
        JsonFormatter,
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn plain_shows_what_would_act() {
        assert!(matches!(
            plain("std::vec<int>::push_back — ü"),
            Cow::Borrowed(_)
        ));
        assert_eq!(plain("a\x1b[31mb\n"), "a\\u{1b}[31mb\\u{a}");
        assert_eq!(plain("\u{202e}evil\u{2069}"), "\\u{202e}evil\\u{2069}");
        assert_eq!(plain("\u{9b}2J\u{7f}"), "\\u{9b}2J\\u{7f}");
        assert_eq!(plain("\u{ffff}\u{2028}"), "\\u{ffff}\\u{2028}");
    }

    #[test]
    fn messages_keep_their_lines_and_nothing_else() {
        assert_eq!(
            message("a \x1b[2Jb\u{202e}\nagent: c"),
            "a \\u{1b}[2Jb\\u{202e}\n  agent: c"
        );
    }

    #[test]
    fn frame_leaves_no_syntax() {
        assert_eq!(frame("[u8; 8]::f"), "[u8: 8]::f");
        assert_eq!(frame("operator 12"), "operator_12");
        assert_eq!(frame("x 1.5"), "x_1.5");
        assert_eq!(frame("version 12a"), "version 12a");
        assert_eq!(frame("# comment"), "#_comment");
        assert_eq!(frame("spoof_[k]"), "spoof_(k)");
        assert_eq!(frame(" \u{a0}x\u{3000} "), "x");
        assert_eq!(frame("  "), "[unnamed]");
        assert_eq!(frame("a\nb"), "a\\u{a}b");
    }

    #[test]
    fn code_spans_hold_everything() {
        assert_eq!(markdown_code("a<b>@c"), "`a<b>@c`");
        assert_eq!(markdown_code("a`b``c"), "```a`b``c```");
        assert_eq!(markdown_code("`x`"), "`` `x` ``");
        assert_eq!(markdown_code(" x"), "`  x `");
        assert_eq!(markdown_code("   "), "`   `");
        assert_eq!(markdown_code(""), "`\"\"`");
        assert_eq!(markdown_code("a\n\n# b\x1b"), "`a\\u{a}\\u{a}# b\\u{1b}`");
        assert_eq!(markdown_code("a|b"), "`a|b`");
        assert_eq!(markdown_cell("a|b\\|c"), "`a\\|b\\\\|c`");
    }

    #[test]
    fn truncation_keeps_both_ends() {
        assert_eq!(truncate_middle("abcdefghij", 10), "abcdefghij");
        assert_eq!(truncate_middle("abcdefghij", 5), "ab…ij");
        assert_eq!(truncate_middle("abcdefghij", 6), "abc…ij");
        assert_eq!(truncate_middle("abc", 1), "…");
        assert_eq!(truncate_middle("abc", 0), "");
        for columns in 0..12 {
            assert!(width(&truncate_middle("漢字漢字漢字", columns)) <= columns);
        }
    }

    #[test]
    fn json_keeps_the_value() {
        let text = "\u{202e}</script><!--\u{7f}\u{9b}\u{e0001}\x1b[0m<vector<int>>\"";
        let bytes = json(text).unwrap();
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            r#""\u202e\u003c/script>\u003c!--\u007f\u009b\udb40\udc01\u001b[0m<vector<int>>\"""#
        );
        assert_eq!(serde_json::from_slice::<String>(&bytes).unwrap(), text);
    }

    #[test]
    fn json_in_a_script_has_no_markup() {
        let text = "</script><!-- <script>\u{2028}\u{202e}\u{1b} a && b ]]>\"";
        let json = json_in_script(text).unwrap();
        assert!(!json.contains(['<', '>', '&']) && !json.chars().any(is_unsafe));
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn file_names_are_harmless() {
        assert_eq!(file_name("../../etc/passwd"), "_.._etc_passwd");
        assert_eq!(file_name("kworker/0:1"), "kworker_0_1");
        assert_eq!(file_name("-rf"), "rf");
        assert_eq!(file_name(""), "_");
        assert_eq!(file_name("(sd-pam)"), "_sd-pam_");
    }
}
