//! The summary on the terminal after a run: the answer first, then how far to trust it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::escape;
use super::table::{Cell, Column, Style, Table, Tone};
use super::{guard, text};
use crate::profile::{Frame, Profile, Space, Stack, Unnamed};

/// Share of frames without a name, in percent, from which a hint is given.
const HINT_PERCENT: f64 = 20.0;
/// Complete stacks, in percent, below which the figure is coloured.
const COMPLETE_PERCENT: f64 = 99.5;

/// How to render.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Colours or none.
    pub style: Style,
    /// Width of the terminal, in columns.
    pub width: usize,
    /// Width to which the lines below the table are broken, in columns: without a terminal they
    /// are left whole, to be searched.
    pub notes: usize,
    /// Functions listed.
    pub functions: usize,
    /// Further lines, below the functions.
    pub findings: &'a [String],
    /// The files that were written.
    pub files: &'a [String],
}

impl Options<'_> {
    fn note(&self, text: &str, tone: Tone) -> Vec<String> {
        wrap(text, self.notes)
            .iter()
            .map(|line| self.style.paint(tone, line))
            .collect()
    }
}

/// The text in lines of at most `width` columns, those after the first set in; a longer word keeps
/// a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let room = width.saturating_sub(escape::width(&line));
        if !line.trim().is_empty() && escape::width(word) >= room {
            lines.push(std::mem::replace(&mut line, "  ".to_owned()));
        } else if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// A function among the hottest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hot {
    /// Its name, safe to show; `[module+0x…]` where only its start is known. All the code of a
    /// module of which not even that is known is one.
    pub name: String,
    /// Its module, safe to show.
    pub module: String,
    /// Samples in the function itself.
    pub self_samples: u64,
    /// Samples in it or in what it called; a recursive one counts once per stack.
    pub total_samples: u64,
}

/// The functions by their own samples, most first; ties by the total, then by name.
pub fn hottest(profile: &Profile) -> Vec<Hot> {
    let keys: Vec<(String, String)> = profile.frames.iter().map(key).collect();
    let mut functions: HashMap<(String, String), (u64, u64)> = HashMap::new();
    for stack in &profile.stacks {
        let key = |id: &u32| keys.get(*id as usize);
        let distinct: HashSet<&(String, String)> = stack.frames.iter().filter_map(key).collect();
        for key in distinct {
            functions.entry(key.clone()).or_default().1 += stack.count;
        }
        match stack.frames.last().and_then(key) {
            Some(leaf) => functions.entry(leaf.clone()).or_default().0 += stack.count,
            None => {
                let (own, total) = functions.entry(no_frames(stack)).or_default();
                *own += stack.count;
                *total += stack.count;
            }
        }
    }
    let mut hottest: Vec<Hot> = functions
        .into_iter()
        .map(|((name, module), (self_samples, total_samples))| Hot {
            name,
            module,
            self_samples,
            total_samples,
        })
        .collect();
    hottest.sort_by(|a, b| {
        (b.self_samples, b.total_samples, &a.name, &a.module).cmp(&(
            a.self_samples,
            a.total_samples,
            &b.name,
            &b.module,
        ))
    });
    hottest
}

/// Name and module under which a frame's samples are added up.
fn key(frame: &Frame) -> (String, String) {
    let module = match (&frame.module, frame.space) {
        (Some(module), _) => escape::plain(module).into_owned(),
        (None, Space::Kernel) => "[kernel]".to_owned(),
        (None, Space::User) => "[unknown]".to_owned(),
    };
    let name = match &frame.function {
        Some(function) => escape::plain(function).into_owned(),
        None if frame.function_start.is_some() => text::frame_name(frame),
        None => "[unnamed]".to_owned(),
    };
    (name, module)
}

fn no_frames(stack: &Stack) -> (String, String) {
    let name = text::truncated(stack.end).unwrap_or_else(|| "[no frames]".to_owned());
    (name, String::new())
}

/// The summary, each line with its line end and fitted to `width`, but for the names of the
/// files. Only the title and names of functions are cut; what is too long else goes on in the next
/// line.
pub fn render(profile: &Profile, options: Options<'_>) -> String {
    let style = options.style;
    let head = format!("{}: {}", text::targets(profile), text::sampled(profile));
    let head = escape::truncate_middle(&head, options.width);
    let mut lines = vec![style.paint(Tone::Strong, &head)];
    for step in guard::lines(profile.facts.guard.as_ref()) {
        lines.extend(options.note(&step, Tone::Warn));
    }
    if profile.samples() == 0 {
        let none = match profile.accounting.ticks {
            0 => "no samples: the clock never ticked; run longer or raise --frequency",
            _ => "no samples: the target was idle or gone",
        };
        lines.extend(options.note(none, Tone::Warn));
    } else {
        lines.push(String::new());
        lines.extend(functions(profile, options.functions).lines(options.width, style));
        lines.push(String::new());
        lines.extend(completeness(profile, options));
        lines.extend(unnamed(profile, options));
    }
    for finding in options.findings {
        lines.extend(options.note(finding, Tone::Normal));
    }
    let accounting = &profile.accounting;
    let tone = match accounting.lost_total() {
        0 if accounting.balances() => Tone::Normal,
        _ => Tone::Warn,
    };
    lines.extend(options.note(&text::accounting(accounting), tone));
    if let Some(line) = beyond_the_sum(profile) {
        lines.extend(options.note(&line, Tone::Normal));
    }
    lines.extend(options.note(&cost(profile), Tone::Dim));
    for file in options.files {
        lines.push(format!("wrote {}", escape::plain(file)));
    }
    lines.join("\n") + "\n"
}

fn functions(profile: &Profile, listed: usize) -> Table {
    let samples = profile.samples();
    let percent = |part| match text::percent(part, samples) {
        Some(percent) => Cell::new(format!("{percent:.1} %")),
        None => Cell::new(""),
    };
    let mut table = Table::new(vec![
        Column::number("self", "self_percent"),
        Column::number("total", "total_percent"),
        Column::text("function", "function").stretch(24),
        Column::text("module", "module").priority(1),
    ]);
    for hot in hottest(profile).iter().take(listed) {
        table.push(vec![
            percent(hot.self_samples),
            percent(hot.total_samples),
            Cell::new(&hot.name),
            Cell::new(&hot.module).tone(Tone::Dim),
        ]);
    }
    table
}

/// `complete stacks 95.0 %; cut: no row 4, read fault 1`
fn completeness(profile: &Profile, options: Options<'_>) -> Vec<String> {
    let complete = text::complete_percent(profile).unwrap_or(0.0);
    let tone = if complete < COMPLETE_PERCENT {
        Tone::Warn
    } else {
        Tone::Ok
    };
    let share = format!("complete stacks {} %", text::show_percent(complete));
    let mut cut: BTreeMap<&str, u64> = BTreeMap::new();
    for stack in profile
        .stacks
        .iter()
        .filter(|stack| !stack.end.is_complete())
    {
        *cut.entry(stack.end.name()).or_default() += stack.count;
    }
    let reasons = by_count(
        cut.into_iter()
            .map(|(name, count)| (text::words(name), count)),
    );
    if reasons.is_empty() {
        return options.note(&share, tone);
    }
    // The share stands at the start of the first line.
    let mut lines = wrap(&format!("{share}; cut: {reasons}"), options.notes);
    if let Some(first) = lines.first_mut() {
        *first = first.replacen(&share, &options.style.paint(tone, &share), 1);
    }
    lines
}

/// `no row 4, read fault 1`: most first.
fn by_count(items: impl Iterator<Item = (String, u64)>) -> String {
    let mut items: Vec<(String, u64)> = items.collect();
    items.sort_by(|a, b| (b.1, &a.0).cmp(&(a.1, &b.0)));
    let items: Vec<String> = items
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    items.join(", ")
}

/// How many frames have no name, why, and what helps when they are many.
fn unnamed(profile: &Profile, options: Options<'_>) -> Vec<String> {
    let mut all = 0;
    let mut reasons: BTreeMap<Unnamed, u64> = BTreeMap::new();
    let mut modules: BTreeMap<(Unnamed, &str), u64> = BTreeMap::new();
    for stack in &profile.stacks {
        for frame in stack
            .frames
            .iter()
            .filter_map(|&id| profile.frames.get(id as usize))
        {
            all += stack.count;
            if let Some(reason) = frame.unnamed {
                *reasons.entry(reason).or_default() += stack.count;
                let module = frame.module.as_deref().unwrap_or_default();
                *modules.entry((reason, module)).or_default() += stack.count;
            }
        }
    }
    let unnamed = reasons.values().sum();
    let percent = text::percent(unnamed, all).unwrap_or(0.0);
    let Some((&(reason, module), _)) = modules.iter().max_by_key(|(_, count)| **count) else {
        return Vec::new();
    };
    let counts = by_count(
        reasons
            .iter()
            .map(|(reason, count)| (text::unnamed_reason(*reason).to_owned(), *count)),
    );
    let line = format!("frames without a name {percent:.1} %: {counts}");
    let mut lines = options.note(&line, Tone::Normal);
    if percent > HINT_PERCENT {
        let hint = format!("hint: {}", hint(reason, &escape::plain(module), profile));
        lines.extend(options.note(&hint, Tone::Warn));
    }
    lines
}

fn hint(reason: Unnamed, module: &str, profile: &Profile) -> String {
    let runs = |name: &str| {
        profile.facts.targets.iter().any(|target| {
            let exe = target.exe.as_deref().unwrap_or(&target.comm);
            exe.rsplit('/')
                .next()
                .is_some_and(|file| file.starts_with(name))
        })
    };
    match reason {
        Unnamed::NoModule if runs("node") => "start node with --perf-basic-prof --interpreted-frames-native-stack".to_owned(),
        Unnamed::NoModule if runs("java") => {
            "start java with -XX:+PreserveFramePointer; `jcmd PID Compiler.perfmap` (JDK 17) writes the names"
                .to_owned()
        }
        Unnamed::NoModule => "let the program's runtime write /tmp/perf-PID.map".to_owned(),
        Unnamed::NoSymbols | Unnamed::NotCovered => {
            format!("install the debug symbols of {module}, or build it unstripped")
        }
        Unnamed::FileUnavailable => {
            format!("{module} was deleted or replaced: run as root or with CAP_CHECKPOINT_RESTORE")
        }
        Unnamed::Malformed => format!("{module} is no ELF file that can be read"),
        Unnamed::GaveUp => format!("to name {module} took too much time or memory"),
        Unnamed::ParserDied => {
            format!("the process that reads {module} died of it: the file may be crafted to do harm")
        }
        Unnamed::KernelHidden => {
            "run as root or with CAP_SYSLOG, and with kernel.kptr_restrict at most 1".to_owned()
        }
    }
}

/// What the sum cannot show: ticks that never came, and counts that are no lost samples.
fn beyond_the_sum(profile: &Profile) -> Option<String> {
    let accounting = &profile.accounting;
    let mut parts = Vec::new();
    let missing = accounting.expected_ticks.saturating_sub(accounting.ticks);
    // A clock that starts and stops is off by a few; a throttled one by far more.
    if missing * 50 > accounting.expected_ticks {
        let expected = accounting.expected_ticks;
        let halted = match profile.facts.event.as_str() {
            "cycles" => " (a halted CPU has no cycles)",
            // The kernel forwards its timer past what it missed; perf record loses the same ticks.
            _ => " (an idle virtual CPU may skip them)",
        };
        parts.push(format!(
            "{missing} of {expected} expected ticks never came{halted}"
        ));
    }
    if accounting.recursion_misses > 0 {
        parts.push(format!(
            "{} ticks skipped by the kernel",
            accounting.recursion_misses
        ));
    }
    for (cause, count) in accounting.notes.iter().filter(|(_, count)| **count > 0) {
        parts.push(format!("{} {count}", escape::plain(cause)));
    }
    (!parts.is_empty()).then(|| format!("also: {}", parts.join(", ")))
}

/// `agent took 0.02 s CPU, 21 MB at its peak, 1830 ns per sample in the kernel`
fn cost(profile: &Profile) -> String {
    let cost = &profile.cost;
    let megabytes = cost.peak_rss_bytes as f64 / 1e6;
    let mut line = format!(
        "agent took {:.2} s CPU, {megabytes:.0} MB at its peak",
        cost.cpu_seconds
    );
    if let Some(nanoseconds) = cost.bpf_ns_per_sample {
        line += &format!(", {nanoseconds:.0} ns per sample in the kernel");
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;
    use crate::profile::Accounting;
    use agent_ebpf::End;

    fn options(style: Style, width: usize) -> Options<'static> {
        Options {
            style,
            width,
            notes: width,
            functions: 10,
            findings: &[],
            files: &[],
        }
    }

    #[test]
    fn golden() {
        let files = ["profile-server-4242-20261121-105820.svg".to_owned()];
        let options = Options {
            files: &files,
            ..options(Style::Plain, 80)
        };
        let text = render(&fixture::profile(), options);
        fixture::check_golden("summary.txt", text.as_bytes());
    }

    #[test]
    fn recursion_counts_once_per_stack() {
        let hottest = hottest(&fixture::profile());
        let walk = hottest.iter().find(|hot| hot.name == "walk").unwrap();
        assert_eq!((walk.self_samples, walk.total_samples), (25, 25));
        let main = hottest.iter().find(|hot| hot.name == "main").unwrap();
        assert_eq!((main.self_samples, main.total_samples), (0, 95));
        assert_eq!(hottest[0].name, "hash<std::vector<int>>");
        assert_eq!(hottest.iter().map(|hot| hot.self_samples).sum::<u64>(), 100);
    }

    #[test]
    fn fits_the_terminal() {
        let mut profile = fixture::profile();
        let long = fixture::user("lib.so", &"std::collections::".repeat(30), 9);
        fixture::push(&mut profile, &[long], End::Root, 500);
        for width in 40..=200 {
            for line in render(&profile, options(Style::Plain, width)).lines() {
                assert!(escape::width(line) <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn hostile_names_cannot_reach_the_terminal() {
        let text = render(&fixture::hostile(), options(Style::Plain, 120));
        assert!(!text.chars().any(|c| c != '\n' && escape::is_unsafe(c)));
    }

    #[test]
    fn many_unnamed_frames_get_a_hint() {
        let mut profile = fixture::empty();
        let jit = Frame {
            module: None,
            function: None,
            unnamed: Some(Unnamed::NoModule),
            ..fixture::user("", "", 1)
        };
        fixture::push(&mut profile, &[jit], End::NoRow, 10);
        let show = |profile: &Profile| render(profile, options(Style::Plain, 100));
        assert!(show(&profile).contains("perf-PID.map"));
        profile.facts.targets[0].exe = Some("/usr/bin/node".to_owned());
        assert!(show(&profile).contains("--perf-basic-prof"));
        fixture::push(&mut profile, &[fixture::user("m", "f", 2)], End::Root, 90);
        assert!(!show(&profile).contains("hint"));
    }

    #[test]
    fn notes_go_on_in_the_next_line() {
        assert_eq!(wrap("one two three", 7), ["one two", "  three"]);
        assert_eq!(wrap("one two three", 5), ["one", "  two", "  three"]);
        assert_eq!(wrap("muchtoolong x", 5), ["muchtoolong", "  x"]);
        assert_eq!(wrap("one two", usize::MAX), ["one two"]);
        let text = render(&fixture::profile(), options(Style::Plain, 40));
        let joined = text.replace("\n  ", " ");
        assert!(
            joined.contains("agent took 0.02 s CPU, 22 MB at its peak, 1830 ns"),
            "{text}"
        );
    }

    #[test]
    fn a_clock_that_never_ticked_is_no_idle_target() {
        let mut profile = fixture::empty();
        profile.accounting = Accounting::default();
        let text = render(&profile, options(Style::Plain, 80));
        assert!(
            text.contains("raise --frequency") && !text.contains("idle or gone"),
            "{text}"
        );
    }

    #[test]
    fn idle_target_is_said_first() {
        let text = render(&fixture::empty(), options(Style::Plain, 80));
        assert!(
            text.lines().nth(1).unwrap().starts_with("no samples"),
            "{text}"
        );
        assert!(text.contains("ticks 200 = 200 idle"));
    }
}
