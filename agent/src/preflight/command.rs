//! The agent's own command line, to be pasted.

use std::ffi::OsString;

/// The words as one line for a shell.
pub(super) fn line(words: impl Iterator<Item = OsString>) -> String {
    let words: Vec<String> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    words.join(" ")
}

/// The word as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(harmless) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_repeat_can_be_pasted() {
        use std::os::unix::ffi::OsStringExt;
        let words = ["agent", "--pid=1", "a b", "it's", "", "$(x)"].map(OsString::from);
        assert_eq!(
            line(words.into_iter()),
            r"agent --pid=1 'a b' 'it'\''s' '' '$(x)'"
        );
        let broken = OsString::from_vec(vec![b'a', 0xff]);
        assert_eq!(line([broken].into_iter()), "'a\u{fffd}'");
    }
}
