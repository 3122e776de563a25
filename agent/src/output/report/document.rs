//! A report as a document: what is said, in order, whatever it is written in.
//!
//! [`super::content`] makes it, [`super::markdown`] and [`super::html`] write it; names of the
//! target are [`Inline::Code`] and nothing else, so that each of the two has one place to make
//! them safe.

use crate::output::table::Tone;
use crate::report::moments;

/// A piece of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Inline {
    /// Our own words.
    Text(String),
    /// Our own words, to be seen first.
    Strong(String),
    /// A name, a path, an address: anything that others chose.
    Code(String),
}

/// A line of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line(pub(super) Vec<Inline>);

impl Line {
    /// A line of our own words.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::default().say(text)
    }

    /// A line with a name only.
    pub(super) fn code(name: impl Into<String>) -> Self {
        Self::default().name(name)
    }

    /// Goes on with our own words.
    pub(super) fn say(mut self, text: impl Into<String>) -> Self {
        self.0.push(Inline::Text(text.into()));
        self
    }

    /// Goes on with words to be seen first.
    pub(super) fn stress(mut self, text: impl Into<String>) -> Self {
        self.0.push(Inline::Strong(text.into()));
        self
    }

    /// Goes on with a name.
    pub(super) fn name(mut self, name: impl Into<String>) -> Self {
        self.0.push(Inline::Code(name.into()));
        self
    }

    /// Goes on with another line.
    pub(super) fn then(mut self, line: Line) -> Self {
        self.0.extend(line.0);
        self
    }
}

/// A sentence of the summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remark {
    /// What it is about, in a word.
    pub(super) label: &'static str,
    /// Whether that is as it should be.
    pub(super) tone: Tone,
    /// What there is to say.
    pub(super) line: Line,
}

/// A cell of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cell {
    /// What it shows.
    pub(super) line: Line,
    /// What it is sorted by; its text where there is none.
    pub(super) value: Option<f64>,
    /// How it stands out.
    pub(super) tone: Tone,
}

impl Cell {
    /// A cell of our own words.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Line::text(text).into()
    }

    /// A cell with a name.
    pub(super) fn code(name: impl Into<String>) -> Self {
        Line::code(name).into()
    }

    /// A number: what it shows and what it is sorted by.
    pub(super) fn number(text: impl Into<String>, value: f64) -> Self {
        Self {
            value: Some(value),
            ..Self::text(text)
        }
    }

    /// The same in a tone.
    pub(super) fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }
}

impl From<Line> for Cell {
    fn from(line: Line) -> Self {
        Self {
            line,
            ..Self::default()
        }
    }
}

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// Its heading.
    pub(super) title: &'static str,
    /// What the heading means; may be empty.
    pub(super) meaning: &'static str,
    /// Whether numbers stand in it.
    pub(super) number: bool,
}

/// A column of names.
pub(super) const fn names(title: &'static str, meaning: &'static str) -> Column {
    Column {
        title,
        meaning,
        number: false,
    }
}

/// A column of numbers.
pub(super) const fn numbers(title: &'static str, meaning: &'static str) -> Column {
    Column {
        title,
        meaning,
        number: true,
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Table {
    /// Its columns.
    pub(super) columns: Vec<Column>,
    /// Its rows, each with a cell for every column; the most important first.
    pub(super) rows: Vec<Vec<Cell>>,
    /// Rows where there is little room.
    pub(super) short: usize,
    /// Rows that there are, in the table or not.
    pub(super) all: usize,
}

/// A figure of each second.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// What it is.
    pub(super) title: &'static str,
    /// For each second; `None` where there is no value.
    pub(super) values: Vec<Option<f64>>,
    /// A value for people.
    pub(super) show: fn(f64) -> String,
    /// The seconds that stand out.
    pub(super) marked: Vec<usize>,
}

impl Series {
    /// The median and the largest of the values, for people; `None` without values.
    pub(super) fn spread(&self) -> Option<(String, String)> {
        let values: Vec<f64> = self.values.iter().flatten().copied().collect();
        let max = values.iter().copied().reduce(f64::max)?;
        Some(((self.show)(moments::median(values)), (self.show)(max)))
    }

    /// The largest value, 0 without any.
    pub(super) fn max(&self) -> f64 {
        self.values.iter().flatten().copied().fold(0.0, f64::max)
    }
}

/// A part of a report.
#[derive(Clone, Debug)]
pub(super) enum Block {
    /// A section begins: its name in links, its heading.
    Section(&'static str, &'static str),
    /// A heading within a section.
    Heading(&'static str),
    /// A paragraph.
    Paragraph(Line),
    /// What the reader should know to trust the section, less important than the rest.
    Note(Line),
    /// A list.
    List(Vec<Line>),
    /// A table.
    Table(Table),
    /// Figures by second, all of the same seconds.
    Timeline(Vec<Series>),
    /// Lines with their depth, each before those below it.
    Tree(Vec<(usize, Line)>),
    /// The flame graph, where it can be shown.
    Flame,
    /// A picture in SVG, made safe, where it can be shown.
    Picture(String),
    /// Lines for a shell.
    Commands(Vec<String>),
}

/// A report.
#[derive(Clone, Debug)]
pub(super) struct Document {
    /// Its title.
    pub(super) title: Line,
    /// Where and when, below the title.
    pub(super) subtitle: Line,
    /// The answer, a few sentences.
    pub(super) summary: Vec<Remark>,
    /// All else.
    pub(super) blocks: Vec<Block>,
}
