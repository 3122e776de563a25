//! What the terminal is like.

use crate::output::table::Style;

/// Columns assumed where there is no terminal to ask.
const WIDTH: usize = 100;

/// Colours or none (`NO_COLOR`, no terminal), and the width in columns.
pub fn look(is_terminal: bool) -> (Style, usize) {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let style = if is_terminal && !plain {
        Style::Color
    } else {
        Style::Plain
    };
    (style, size().map_or(WIDTH, |(columns, _)| columns))
}

/// Columns and rows of the terminal on standard error or output.
pub fn size() -> Option<(usize, usize)> {
    [libc::STDERR_FILENO, libc::STDOUT_FILENO]
        .into_iter()
        .find_map(|fd| {
            // SAFETY: all-zero is a valid value of this plain structure.
            let mut size: libc::winsize = unsafe { std::mem::zeroed() };
            // SAFETY: the request fills in the structure, which is ours.
            let failed = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) } != 0;
            (!failed && size.ws_col > 0)
                .then_some((usize::from(size.ws_col), usize::from(size.ws_row)))
        })
}
