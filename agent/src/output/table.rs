//! Tables: fitted to a terminal's width, redrawn in place, or as CSV.

use std::borrow::Cow;

use super::escape;

/// Columns of blanks between two columns of a table.
const GAP: usize = 2;

/// Whether escape sequences may be used. The caller decides: a terminal, and no `NO_COLOR`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Text only.
    #[default]
    Plain,
    /// With colours (ECMA-48 SGR).
    Color,
}

/// What a text says about itself by its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing.
    #[default]
    Normal,
    /// A heading.
    Strong,
    /// Less important than the rest.
    Dim,
    /// As it should be.
    Ok,
    /// To be looked at.
    Warn,
    /// Wrong.
    Bad,
}

impl Style {
    /// The text in this tone; the text itself must be safe (see [`escape::plain`]).
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match (self, tone) {
            (Style::Plain, _) | (_, Tone::Normal) => return text.to_owned(),
            (_, Tone::Strong) => 1,
            (_, Tone::Dim) => 2,
            (_, Tone::Ok) => 32,
            (_, Tone::Warn) => 33,
            (_, Tone::Bad) => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// On which side a column's texts stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Names.
    Left,
    /// Numbers.
    Right,
}

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading on the terminal.
    pub title: &'static str,
    /// Heading in CSV: a name for programs, with its unit (`p99_us`).
    pub name: &'static str,
    /// The side of its texts.
    pub align: Align,
    /// Width that it keeps as long as it is shown.
    pub min: usize,
    /// Width that it never exceeds.
    pub max: usize,
    /// 0: always shown; of the others the highest goes first where the terminal is narrow.
    pub priority: u8,
    /// Gives up width, down to `min`, before any column goes. At most one per table.
    pub stretch: bool,
}

impl Column {
    /// A column of numbers, always shown.
    pub const fn number(title: &'static str, name: &'static str) -> Self {
        Self {
            title,
            name,
            align: Align::Right,
            min: 1,
            max: 24,
            priority: 0,
            stretch: false,
        }
    }

    /// A column of names, always shown, up to 48 wide.
    pub const fn text(title: &'static str, name: &'static str) -> Self {
        Self {
            align: Align::Left,
            min: 4,
            max: 48,
            ..Self::number(title, name)
        }
    }

    /// The column with this priority.
    pub const fn priority(self, priority: u8) -> Self {
        Self { priority, ..self }
    }

    /// The column as the one that takes up what room there is, but at least `min`.
    pub const fn stretch(self, min: usize) -> Self {
        Self {
            min,
            max: usize::MAX,
            stretch: true,
            ..self
        }
    }
}

/// One field of a row. Its text is safe from the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    value: Option<String>,
    tone: Tone,
}

impl Cell {
    /// A cell that shows this text, made safe.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self {
            text: escape::plain(text.as_ref()).into_owned(),
            value: None,
            tone: Tone::Normal,
        }
    }

    /// The cell in this tone.
    pub fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    /// The cell with another value for CSV: `1.2 ms` on the terminal, `1200` there.
    pub fn value(self, value: impl ToString) -> Self {
        Self {
            value: Some(escape::plain(&value.to_string()).into_owned()),
            ..self
        }
    }
}

/// A table: its rows stand in the order in which they were pushed.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: Vec<Column>) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row: a cell for each column; missing ones are empty, surplus ones are not shown.
    pub fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// The heading and the rows, none wider than `width`, without line ends.
    pub fn lines(&self, width: usize, style: Style) -> Vec<String> {
        let layout = self.layout(width);
        let heading: Vec<Cell> = self
            .columns
            .iter()
            .map(|column| Cell::new(column.title).tone(Tone::Strong))
            .collect();
        std::iter::once(&heading)
            .chain(&self.rows)
            .map(|row| self.line(row, &layout, width, style))
            .collect()
    }

    /// The columns to show, by index, each with its width.
    fn layout(&self, width: usize) -> Vec<(usize, usize)> {
        let mut shown: Vec<(usize, usize)> =
            self.natural_widths().into_iter().enumerate().collect();
        loop {
            let gaps = GAP * shown.len().saturating_sub(1);
            let total = shown.iter().map(|(_, width)| width).sum::<usize>() + gaps;
            let excess = total.saturating_sub(width);
            let stretch = shown
                .iter_mut()
                .find(|(index, _)| self.column(*index, |c| c.stretch));
            let slack = match &stretch {
                Some((index, width)) => width.saturating_sub(self.column(*index, |c| c.min)),
                None => 0,
            };
            let victim = shown
                .iter()
                .enumerate()
                .map(|(at, (index, _))| (self.column(*index, |c| c.priority), at))
                .filter(|(priority, _)| *priority > 0)
                .max();
            match victim {
                Some((_, at)) if excess > slack => {
                    shown.remove(at);
                }
                _ => {
                    let is_stretch = |index| self.column(index, |c| c.stretch);
                    if let Some((_, width)) = shown.iter_mut().find(|(index, _)| is_stretch(*index))
                    {
                        *width -= excess.min(slack);
                    }
                    return shown;
                }
            }
        }
    }

    /// A property of the column with this index.
    fn column<T: Default>(&self, index: usize, property: impl Fn(&Column) -> T) -> T {
        self.columns.get(index).map(property).unwrap_or_default()
    }

    /// What each column would take if there were room.
    fn natural_widths(&self) -> Vec<usize> {
        self.columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(index))
                    .map(|cell| escape::width(&cell.text))
                    .chain([escape::width(column.title), column.min])
                    .max()
                    .unwrap_or(0)
                    .min(column.max)
            })
            .collect()
    }

    fn line(&self, row: &[Cell], layout: &[(usize, usize)], width: usize, style: Style) -> String {
        let empty = Cell::default();
        let mut line = String::new();
        let mut pending = 0;
        let mut left = width;
        for &(index, columns) in layout {
            let cell = row.get(index).unwrap_or(&empty);
            let text = escape::truncate_middle(&cell.text, columns.min(left));
            let padding = columns.min(left) - escape::width(&text);
            let (before, after) = match self.columns.get(index).map(|column| column.align) {
                Some(Align::Right) => (padding, 0),
                _ => (0, padding),
            };
            if text.is_empty() {
                pending += before + after;
            } else {
                line.extend(std::iter::repeat_n(' ', pending + before));
                line += &style.paint(cell.tone, &text);
                pending = after;
            }
            pending += GAP;
            left = left.saturating_sub(columns + GAP);
        }
        line
    }

    /// All columns as CSV (RFC 4180), with a heading; of cells that have a value of their own for
    /// it, the value.
    pub fn csv(&self) -> String {
        let mut out = csv_line(self.columns.iter().map(|column| column.name));
        for row in &self.rows {
            let field = |index: usize| match row.get(index) {
                Some(cell) => cell.value.as_ref().unwrap_or(&cell.text).as_str(),
                None => "",
            };
            out += &csv_line((0..self.columns.len()).map(field));
        }
        out
    }
}

/// One line of CSV (RFC 4180).
pub(super) fn csv_line<'a>(fields: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = fields
        .map(no_formula)
        .map(|field| {
            if field.contains(['"', ',', '\r', '\n']) {
                format!("\"{}\"", field.replace('"', "\"\""))
            } else {
                field.into_owned()
            }
        })
        .collect();
    quoted.join(",") + "\r\n"
}

/// The field with `'` before it where a spreadsheet would take it for a formula: a target chooses
/// some of the texts. Numbers stay as they are, and `-` alone.
fn no_formula(field: &str) -> Cow<'_, str> {
    let formula = field.starts_with(['=', '+', '-', '@', '\t', '\r']);
    if formula && field != "-" && field.parse::<f64>().is_err() {
        Cow::Owned(format!("'{field}"))
    } else {
        Cow::Borrowed(field)
    }
}

/// Redraws lines in place on a terminal. Prints nothing itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Live {
    height: usize,
}

impl Live {
    /// What to send to the terminal, of `rows` rows, to replace the lines drawn before by these.
    /// What does not fit is counted in the last line.
    pub fn redraw(&mut self, lines: &[String], rows: usize) -> String {
        // The cursor ends below the last line, which takes a row too.
        let room = rows.saturating_sub(1).max(1);
        let mut out = String::from("\r");
        if self.height > 0 {
            // CUU; it stops at the top of the screen.
            out += &format!("\x1b[{}A", self.height);
        }
        let hidden = lines.len().saturating_sub(room);
        let kept = if hidden > 0 { room - 1 } else { lines.len() };
        let more = (hidden > 0).then(|| format!("… {} more", lines.len() - kept));
        for line in lines.iter().take(kept).chain(&more) {
            // EL: the rest of the old line goes.
            out += line;
            out += "\x1b[K\n";
        }
        // ED: what stood below goes.
        out += "\x1b[J";
        self.height = kept + usize::from(more.is_some());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(vec![
            Column::text("REMOTE", "remote").stretch(8),
            Column::number("REQS", "requests"),
            Column::number("P99", "p99_us").priority(1),
            Column::text("STATE", "state").priority(2),
        ]);
        table.push(vec![
            Cell::new("[2001:db8:1234:5678::1]:6379"),
            Cell::new("120"),
            Cell::new("1.2 ms").value(1200).tone(Tone::Warn),
            Cell::new("ESTABLISHED"),
        ]);
        table.push(vec![Cell::new("10.0.0.1:80"), Cell::new("7")]);
        table
    }

    #[test]
    fn wide_enough_shows_all() {
        assert_eq!(
            table().lines(80, Style::Plain),
            [
                "REMOTE                        REQS     P99  STATE",
                "[2001:db8:1234:5678::1]:6379   120  1.2 ms  ESTABLISHED",
                "10.0.0.1:80                      7",
            ]
        );
    }

    #[test]
    fn narrow_shrinks_then_drops() {
        let lines = table().lines(50, Style::Plain);
        assert!(lines[0].contains("STATE"));
        assert!(
            lines[1].starts_with("[2001:db8:1…78::1]:6379 "),
            "{lines:?}"
        );
        let lines = table().lines(30, Style::Plain);
        assert!(
            lines[0].contains("P99") && !lines[0].contains("STATE"),
            "{lines:?}"
        );
        let lines = table().lines(16, Style::Plain);
        assert_eq!(lines[0], "REMOTE      REQS");
        assert_eq!(lines[1], "[2001…6379   120");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in 0..100 {
            for line in table().lines(width, Style::Plain) {
                assert!(escape::width(&line) <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn tones_are_only_in_colour() {
        let plain = table().lines(80, Style::Plain).concat();
        assert!(!plain.contains('\x1b'));
        let color = table().lines(80, Style::Color).concat();
        assert!(color.contains("\x1b[33m1.2 ms\x1b[0m"), "{color}");
    }

    #[test]
    fn cells_cannot_move_the_cursor() {
        let mut table = table();
        table.push(vec![
            Cell::new("\x1b[2J\r\n\u{202e}x").value("\x1b]0;x\x07"),
        ]);
        let text = table.lines(80, Style::Plain).concat() + &table.csv().replace("\r\n", "");
        assert!(!text.chars().any(escape::is_unsafe));
    }

    #[test]
    fn csv_quotes_and_has_the_values() {
        let mut table = table();
        table.push(vec![Cell::new("a,\"b\""), Cell::new("1")]);
        assert_eq!(
            table.csv(),
            "remote,requests,p99_us,state\r\n\
             [2001:db8:1234:5678::1]:6379,120,1200,ESTABLISHED\r\n\
             10.0.0.1:80,7,,\r\n\
             \"a,\"\"b\"\"\",1,,\r\n"
        );
    }

    #[test]
    fn csv_holds_no_formulas() {
        let line = |field: &str| csv_line([field].into_iter());
        assert_eq!(line("=cmd|'/C x'!A0"), "'=cmd|'/C x'!A0\r\n");
        assert_eq!(line("@SUM(1,2)"), "\"'@SUM(1,2)\"\r\n");
        assert_eq!(line("\r=1"), "\"'\r=1\"\r\n");
        for formula in ["+1+x", "-1+x", "-x", "\t=1", "=1"] {
            assert_eq!(line(formula), format!("'{formula}\r\n"));
        }
        for plain in ["-", "-1", "-0.5", "+3", "", "a=b", "/-x"] {
            assert_eq!(line(plain), format!("{plain}\r\n"));
        }
        let mut table = table();
        table.push(vec![Cell::new("=1+1"), Cell::new("-7")]);
        assert!(table.csv().ends_with("\r\n'=1+1,-7,,\r\n"));
    }

    #[test]
    fn live_goes_back_over_what_it_drew() {
        let lines: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let mut live = Live::default();
        assert_eq!(
            live.redraw(&lines, 24),
            "\ra\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J"
        );
        assert_eq!(live.redraw(&lines[..1], 24), "\r\x1b[3Aa\x1b[K\n\x1b[J");
        assert_eq!(
            live.redraw(&lines, 3),
            "\r\x1b[1Aa\x1b[K\n… 2 more\x1b[K\n\x1b[J"
        );
        assert_eq!(live.redraw(&[], 24), "\r\x1b[2A\x1b[J");
    }
}
