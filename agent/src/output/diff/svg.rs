//! Two flame graphs, one above the other: after, then before. Each has its own true widths, so that what is new is
//! seen in the first and what vanished in the second; both have the colours of the change.
//!
//! No script: the picture reads the same wherever it is shown, and may stand inside a page.

use std::fmt::Write as _;

use crate::diff::{Diff, Node};
use crate::output::escape;
use crate::output::report::diff::{points, sentence, share, size};

/// Width of the picture, in pixels.
const WIDTH: f64 = 1200.0;
/// Space at both sides.
const MARGIN: f64 = 10.0;
/// Height of a frame.
const ROW: usize = 17;
/// Height of the title and the legend.
const HEAD: usize = 84;
/// Height of a panel's heading.
const PANEL: usize = 30;
/// Frames narrower than this share are not drawn.
const MIN_SHARE: f64 = 0.001;
/// Width of a letter, in pixels.
const LETTER: f64 = 7.2;
/// Differences below this are none to the eye.
const SMALL: f64 = 0.0005;

/// One frame where it is drawn.
struct Frame<'a> {
    node: &'a Node,
    depth: usize,
    /// From 0 to 1, of the whole width.
    left: f64,
    width: f64,
}

/// Both captures in one picture, as a file.
pub(super) fn render(diff: &Diff) -> String {
    format!(
        "<?xml version=\"1.0\" standalone=\"no\"?>\n{}\n",
        element(diff)
    )
}

/// The same as an element of a page. It has no style of its own, which a page's policy may forbid.
pub(super) fn element(diff: &Diff) -> String {
    let totals = [diff.before.stacks.total(), diff.after.stacks.total()].map(|it| it as f64);
    let picture = Picture {
        diff,
        totals,
        largest: largest(diff, totals),
    };
    picture.draw()
}

/// The largest difference of a path, which has the full colour.
fn largest(diff: &Diff, totals: [f64; 2]) -> f64 {
    let differences = diff
        .tree
        .nodes
        .iter()
        .map(|node| difference(node, totals).abs());
    differences.fold(SMALL, f64::max)
}

fn shares(node: &Node, totals: [f64; 2]) -> [f64; 2] {
    let [before, after] = node.weights;
    [before as f64 / totals[0], after as f64 / totals[1]]
}

fn difference(node: &Node, totals: [f64; 2]) -> f64 {
    let [before, after] = shares(node, totals);
    after - before
}

struct Picture<'a> {
    diff: &'a Diff,
    totals: [f64; 2],
    largest: f64,
}

impl<'a> Picture<'a> {
    fn draw(&self) -> String {
        let panels = [1, 0].map(|which| self.frames(which));
        let heights = panels.each_ref().map(|frames| {
            let rows = frames.iter().map(|frame| frame.depth).max().unwrap_or(0) + 1;
            PANEL + rows * ROW
        });
        let height = HEAD + heights[0] + heights[1] + 10;
        let answer = escape::xml(&sentence(self.diff));
        let mut out = format!(
            "<svg version=\"1.1\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
             xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" font-family=\"monospace\" font-size=\"12\" fill=\"#000\">\
             <title>{answer}</title>\
             <rect width=\"100%\" height=\"100%\" fill=\"#f8f8f8\"/>"
        );
        self.head(&mut out);
        let mut top = HEAD;
        let names = [("after", &self.diff.after), ("before", &self.diff.before)];
        for ((frames, height), (name, side)) in panels.iter().zip(heights).zip(names) {
            let label = escape::truncate_middle(&escape::plain(&side.label), 80).into_owned();
            let _ = write!(
                out,
                "<text x=\"{MARGIN}\" y=\"{}\" font-size=\"16\">{name}: {} ({})</text>",
                top + 20,
                escape::xml(&label),
                escape::xml(&size(side)),
            );
            for frame in frames {
                self.frame(&mut out, frame, top + height - ROW * (frame.depth + 1));
            }
            top += height;
        }
        out += "</svg>";
        out
    }

    fn head(&self, out: &mut String) {
        let answer = sentence(self.diff);
        let answer = escape::truncate_middle(&escape::plain(&answer), 120).into_owned();
        let measure = escape::plain(&self.diff.measure.words()).into_owned();
        let _ = write!(
            out,
            "<text x=\"{MARGIN}\" y=\"24\" font-size=\"16\">{}</text>\
             <text x=\"{MARGIN}\" y=\"46\">Shares of {}; each side's total is 100 %. Hover for both shares.</text>",
            escape::xml(&answer),
            escape::xml(&measure),
        );
        let legend = [
            (self.largest, "red grew"),
            (-self.largest, "blue shrank"),
            (0.0, "grey stayed as it was"),
        ];
        let mut x = MARGIN;
        for (difference, text) in legend {
            let _ = write!(
                out,
                "<rect x=\"{x}\" y=\"57\" width=\"12\" height=\"12\" fill=\"{}\"/>\
                 <text x=\"{}\" y=\"67\">{text}</text>",
                self.color(difference),
                x + 17.0
            );
            x += 40.0 + LETTER * text.len() as f64;
        }
    }

    /// The frames of one side that are wide enough, the root's first.
    fn frames(&self, which: usize) -> Vec<Frame<'a>> {
        let nodes = &self.diff.tree.nodes;
        let width = |node: &Node| shares(node, self.totals).get(which).copied().unwrap_or(0.0);
        let mut frames = Vec::new();
        let mut pending: Vec<Frame<'a>> = nodes
            .first()
            .map(|node| Frame {
                node,
                depth: 0,
                left: 0.0,
                width: 1.0,
            })
            .into_iter()
            .collect();
        while let Some(frame) = pending.pop() {
            let mut left = frame.left;
            for child in frame.node.children.values() {
                let Some(node) = nodes.get(*child) else {
                    continue;
                };
                let width = width(node);
                if width >= MIN_SHARE {
                    pending.push(Frame {
                        node,
                        depth: frame.depth + 1,
                        left,
                        width,
                    });
                }
                left += width;
            }
            frames.push(frame);
        }
        frames
    }

    fn frame(&self, out: &mut String, frame: &Frame<'_>, y: usize) {
        let drawn = WIDTH - 2.0 * MARGIN;
        let [before, after] = shares(frame.node, self.totals);
        let name = match frame.depth {
            0 => "all",
            _ => self.diff.tree.name(frame.node),
        };
        let name = escape::plain(name);
        let change = points(after - before);
        let x = MARGIN + frame.left * drawn;
        let width = frame.width * drawn;
        let _ = write!(
            out,
            "<g><title>{}: {} before, {} after ({change})</title>\
             <rect x=\"{x:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>",
            escape::xml(&name),
            share(before),
            share(after),
            (width - 0.5).max(0.5),
            ROW - 1,
            self.color(after - before),
        );
        let room = ((width - 6.0) / LETTER) as usize;
        if room >= 3 {
            let label = match (after - before).abs() < SMALL {
                true => name.into_owned(),
                false => format!("{name} {change}"),
            };
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{}\">{}</text>",
                x + 3.0,
                y + 12,
                escape::xml(&escape::truncate_middle(&label, room))
            );
        }
        out.push_str("</g>");
    }

    /// Red where it grew, blue where it shrank, the more the stronger.
    fn color(&self, difference: f64) -> String {
        if difference.abs() < SMALL {
            return "rgb(224,224,224)".to_owned();
        }
        let strength = (difference.abs() / self.largest).min(1.0).sqrt();
        let (from, to) = match difference > 0.0 {
            true => ([250.0, 225.0, 215.0], [235.0, 80.0, 60.0]),
            false => ([215.0, 226.0, 245.0], [90.0, 140.0, 235.0]),
        };
        let mut mixed = from;
        for (channel, to) in mixed.iter_mut().zip(to) {
            *channel += (to - *channel) * strength;
        }
        let [r, g, b] = mixed;
        format!("rgb({r:.0},{g:.0},{b:.0})")
    }
}
