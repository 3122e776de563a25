//! A Rust source as the checks see it: line by line, code apart from comments and literals, tests marked.

/// One line.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Code; comments are left out and each string literal is `""`, each character `' '`.
    pub(super) code: String,
    /// Contents of the string literals that start here.
    pub(super) texts: Vec<String>,
    /// Part of an item under `#[cfg(test)]`.
    pub(super) test: bool,
}

/// Splits a source into its lines.
pub(super) fn read(source: &str) -> Vec<Line> {
    let mut lines = vec![Line::default()];
    let mut rest = source;
    while !rest.is_empty() {
        let (kind, length) = token(rest);
        let (piece, next) = rest.split_at_checked(length).unwrap_or((rest, ""));
        rest = next;
        if let Some(line) = lines.last_mut() {
            match kind {
                Kind::Code => line.code.push_str(piece.trim_end_matches('\n')),
                Kind::Text => {
                    line.code.push_str("\"\"");
                    line.texts.push(content(piece).to_owned());
                }
                Kind::Character => line.code.push_str("' '"),
                Kind::Comment => {}
            }
        }
        lines.extend(piece.matches('\n').map(|_| Line::default()));
    }
    mark_tests(&mut lines);
    lines
}

#[derive(Clone, Copy)]
enum Kind {
    Code,
    Text,
    Character,
    Comment,
}

/// The kind and the length in bytes (at least 1) of the first token.
fn token(rest: &str) -> (Kind, usize) {
    if rest.starts_with("//") {
        return (Kind::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Kind::Comment, block_comment(rest));
    }
    if let Some(length) = string(rest) {
        return (Kind::Text, length);
    }
    let mut characters = rest.chars();
    let first = characters.next().unwrap_or_default();
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    if let Some(length) = character_literal(rest) {
        return (Kind::Character, length);
    }
    let length = if is_word(first) {
        rest.find(|character| !is_word(character))
            .unwrap_or(rest.len())
    } else {
        first.len_utf8()
    };
    (Kind::Code, length)
}

/// Length of a block comment; they nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_u32;
    for (at, pair) in rest.as_bytes().windows(2).enumerate() {
        match pair {
            b"/*" => depth += 1,
            b"*/" => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return at + 2;
        }
    }
    rest.len()
}

/// Length of a string literal with its prefix, if there is one here.
fn string(rest: &str) -> Option<usize> {
    let body = rest.trim_start_matches(['b', 'c', 'r']);
    let prefix = rest.len() - body.len();
    let raw = rest.get(..prefix)?.contains('r');
    let opened = body.trim_start_matches('#');
    let hashes = body.len() - opened.len();
    let inner = opened.strip_prefix('"')?;
    if prefix > 2 || (hashes > 0 && !raw) {
        return None;
    }
    let start = rest.len() - inner.len();
    if raw {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(
            inner
                .find(&end)
                .map_or(rest.len(), |at| start + at + end.len()),
        );
    }
    let mut escaped = false;
    for (at, character) in inner.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(start + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

/// Length of a character literal, if there is one here and not the mark of a lifetime.
fn character_literal(rest: &str) -> Option<usize> {
    // The longest is `'\u{10ffff}'`.
    let inner: Vec<(usize, char)> = rest.char_indices().take(12).collect();
    match inner.as_slice() {
        [(_, '\''), (_, '\\'), _, after @ ..] => after
            .iter()
            .find(|(_, character)| *character == '\'')
            .map(|(at, _)| at + 1),
        [(_, '\''), _, (at, '\''), ..] => Some(at + 1),
        _ => None,
    }
}

/// What stands between the quotes.
fn content(literal: &str) -> &str {
    let inner = literal.find('"').and_then(|at| literal.get(at + 1..));
    inner
        .and_then(|inner| inner.get(..inner.rfind('"')?))
        .unwrap_or_default()
}

/// Marks the items under `#[cfg(test)]`: up to the brace that closes the first one opened, or to the
/// semicolon of an item without any.
fn mark_tests(lines: &mut [Line]) {
    let mut depth = None;
    for line in lines {
        if depth.is_none() && line.code.trim_start().starts_with("#[cfg(test)]") {
            depth = Some(0_i32);
        }
        let Some(open) = &mut depth else { continue };
        line.test = true;
        let opened = line.code.matches('{').count() as i32;
        let closed = line.code.matches('}').count() as i32;
        let ends = line.code.contains(';') && *open == 0 && opened == 0;
        *open += opened - closed;
        if ends || (*open <= 0 && closed > 0) {
            depth = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(source: &str) -> Vec<String> {
        read(source).into_iter().map(|line| line.code).collect()
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        let source = "a // b\n/* c\n/* d */ e */ f\ng(\"// h\", r#\"i\"j\"#, b\"k\\\"l\");\n";
        assert_eq!(code(source), ["a ", "", " f", "g(\"\", \"\", \"\");", ""]);
        assert_eq!(read(source).remove(3).texts, ["// h", "i\"j", "k\\\"l"]);
    }

    #[test]
    fn quotes_as_characters_open_nothing() {
        assert_eq!(
            code("m('\"', '\\'', 'x'); fn f<'a>(b: &'a str) { \"y\" }").len(),
            1
        );
        assert!(code("m('\"', 1); // z").concat().ends_with("1); "));
        assert!(code("f::<'a>(); // z").concat().ends_with("(); "));
    }

    #[test]
    fn a_text_of_two_lines_keeps_the_count() {
        assert_eq!(
            code("a(\"x\ny\");\nb"),
            ["a(\"\"", ");", "b"].map(String::from)
        );
    }

    #[test]
    fn an_identifier_that_ends_like_a_prefix_is_code() {
        assert_eq!(code("bar(\"x\")"), ["bar(\"\")"]);
    }

    #[test]
    fn test_items_are_marked_to_their_end() {
        let source = "a();\n#[cfg(test)]\nmod tests {\n  fn b() { c('}'); }\n}\nd();\n#[cfg(test)]\nmod e;\nf();";
        let marked: Vec<bool> = read(source).iter().map(|line| line.test).collect();
        assert_eq!(
            marked,
            [false, true, true, true, true, false, true, true, false]
        );
    }
}
