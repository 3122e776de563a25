//! The answer in a few sentences, each about one thing and each true by itself.

use std::collections::BTreeMap;

use super::document::{Line, Remark};
use super::words;
use crate::output::guard;
use crate::output::summary as functions;
use crate::output::table::Tone;
use crate::output::text;
use crate::profile::{Frame, Space};
use crate::report::moments::Moment;
use crate::report::timeline::Subject;
use crate::report::usage::{Entry, Thread};
use crate::report::{Report, shares};
use crate::tcp::view::RemoteRow;

/// Share of a CPU from which a thread is said to be at its limit.
const LIMIT: f64 = 0.9;
/// Share of the time that threads wanted a CPU and waited, from which it is said.
const WAITING: f64 = 0.1;
/// Failing calls per second from which the reader is warned.
const OFTEN: f64 = 1.0;
/// Complete stacks, in percent, below which the reader is warned.
const COMPLETE: f64 = 99.0;

/// The sentences, each with what it is about.
pub(super) fn remarks(report: &Report<'_>) -> Vec<Remark> {
    let parts = [
        Some(cpu(report)),
        hottest(report),
        served(report),
        upstream(report),
        Some(errors(report)),
        moments(report),
        Some(trust(report)),
    ];
    parts.into_iter().flatten().collect()
}

fn remark(label: &'static str, tone: Tone, line: Line) -> Remark {
    Remark { label, tone, line }
}

fn cpu(report: &Report<'_>) -> Remark {
    let usage = &report.usage;
    let line = Line::code(&report.capture.meta.target.comm);
    let Some(cpus) = usage.cpus else {
        let line = line.say(" was idle: no sample of it was taken");
        return remark("CPU", Tone::Normal, line.say("."));
    };
    let mut tone = Tone::Normal;
    let plural = if usage.of == 1 { "" } else { "s" };
    let mut line =
        line.say(" used ")
            .stress(format!("{} of {} CPU{plural}", words::cpus(cpus), usage.of));
    if let Some(kernel) = usage.in_kernel.filter(|share| *share >= 0.05) {
        line = line.say(format!("; {} of it in the kernel", words::share(kernel)));
        if let Some((entry, part)) = usage
            .kernel
            .first()
            .filter(|(entry, part)| *part >= 0.3 && *entry != Entry::Other)
        {
            let mostly = if *part >= 0.6 {
                "mostly"
            } else {
                "most of all"
            };
            line = line.say(format!(", {mostly} ")).then(entry_name(entry));
        }
    }
    line = line.say(".");
    if usage.of > 0 && cpus >= LIMIT * f64::from(usage.of) {
        tone = Tone::Warn;
        line = line.say(" That is all there is.");
    } else if let Some(thread) = usage.threads.first().filter(|thread| thread.cpus >= LIMIT) {
        tone = Tone::Warn;
        line = line.then(limit(thread, usage.threads.len()));
    }
    if let Some(waiting) = usage.waiting_share().filter(|share| *share >= WAITING) {
        tone = Tone::Warn;
        line = line.say(format!(
            " For {} of the time that its threads wanted to run they waited for a CPU.",
            words::share(waiting)
        ));
    }
    remark("CPU", tone, line)
}

fn limit(thread: &Thread, threads: usize) -> Line {
    let line = match threads {
        1 => Line::text(" Its one busy thread"),
        _ => Line::text(" Its thread ").name(&thread.name),
    };
    line.say(format!(
        " is at its limit: {} of one CPU.",
        words::share(thread.cpus)
    ))
}

/// What the kernel was doing.
pub(super) fn entry_name(entry: &Entry) -> Line {
    match entry {
        Entry::Syscall(name) => Line::text("in ").name(name),
        Entry::PageFault => Line::text("page faults"),
        Entry::Interrupt => Line::text("interrupts"),
        Entry::Other => Line::text("other work"),
    }
}

fn hottest(report: &Report<'_>) -> Option<Remark> {
    let profile = &report.capture.profile;
    let samples = profile.samples();
    let own = functions::hottest(profile).into_iter().next()?;
    let path = report.paths.hottest(samples)?;
    let frames: Vec<&Frame> = path
        .frames
        .iter()
        .filter_map(|&id| profile.frames.get(id as usize))
        .collect();
    // What tells a path is the program's own last function, and where it ends.
    let last = *frames.last()?;
    let own_last = frames
        .iter()
        .rfind(|frame| is_own(frame) && frame.function.is_some());
    let line = Line::text(format!(
        "{} of the samples are below ",
        words::share(words::part_of(path.samples, samples))
    ));
    let line = match own_last {
        Some(own) if *own != last => line
            .name(text::frame_name(own))
            .say(" › … › ")
            .name(text::frame_name(last)),
        _ => line.name(text::frame_name(last)),
    };
    let line = line
        .say("; the busiest function is ")
        .name(own.name)
        .say(format!(
            " with {}.",
            words::share(words::part_of(own.self_samples, samples))
        ));
    Some(remark("Hot path", Tone::Normal, line))
}

/// Whether it is code of the program itself, as far as the name of its file tells.
fn is_own(frame: &Frame) -> bool {
    let library = |module: &str| module.contains(".so") || module.starts_with('[');
    frame.space == Space::User && !frame.module.as_deref().is_some_and(library)
}

fn served(report: &Report<'_>) -> Option<Remark> {
    let requests = total(&report.clients);
    let slowest = report.clients.iter().find(|row| row.requests > 0)?;
    let times = slowest.latency_us?;
    let mut line = Line::text("answered ").stress(format!(
        "{} requests/s",
        words::rate(requests as f64 / report.capture.connection_seconds())
    ));
    line = match report.clients.len() {
        1 => line.say(" from ").name(&slowest.remote).say(": "),
        many => line
            .say(format!(" from {many} addresses; the slowest, "))
            .name(&slowest.remote)
            .say(": "),
    };
    line = line.say(format!(
        "median {}, p99 {}, longest {}",
        words::time(times.p50),
        words::time(times.p99),
        words::time(times.max)
    ));
    let line = line.then(mostly(slowest)).say(".");
    Some(remark("Service", words::latency_tone(times.p99), line))
}

fn upstream(report: &Report<'_>) -> Option<Remark> {
    let slowest = report.upstreams.iter().find(|row| row.requests > 0)?;
    let times = slowest.latency_us?;
    let line = Line::text("the slowest is ")
        .name(&slowest.remote)
        .say(format!(
            ": {}, ",
            words::counted(slowest.requests, "request")
        ))
        .stress(format!("p99 {}", words::time(times.p99)))
        .then(mostly(slowest))
        .say(".");
    Some(remark("Upstream", words::latency_tone(times.p99), line))
}

/// Where most of the time goes.
fn mostly(row: &RemoteRow) -> Line {
    let largest = shares(&row.parts_us)
        .into_iter()
        .max_by(|a, b| a.1.total_cmp(&b.1));
    match largest {
        Some((part, share)) if share >= 0.95 => {
            Line::text(format!(", almost all of it {}", words::part(part)))
        }
        Some((part, share)) if share >= 0.6 => Line::text(format!(
            ", {} of it {}",
            words::share(share),
            words::part(part)
        )),
        _ => Line::default(),
    }
}

fn total(rows: &[&RemoteRow]) -> u64 {
    rows.iter()
        .fold(0, |sum, row| sum.saturating_add(row.requests))
}

fn errors(report: &Report<'_>) -> Remark {
    let mut line = Line::default();
    let mut tone = Tone::Ok;
    let refused = report
        .capture
        .all_connections()
        .map_or(&[][..], |document| &document.failed_connects);
    if let Some(most) = refused.iter().max_by_key(|failed| failed.count) {
        tone = Tone::Bad;
        line = line
            .say("connects to ")
            .name(most.remote.to_string())
            .say(" fail with ")
            .name(most.error.clone())
            .say(format!(" ({}); ", times(most.count)));
    }
    let resets = report.resets();
    if resets > 0 {
        tone = if tone == Tone::Ok { Tone::Warn } else { tone };
        line = line.say(format!("{}; ", words::counted(resets, "connection reset")));
    }
    let Some(worst) = report.failing.first() else {
        line = line.say("no system call failed but in the way of ordinary work.");
        return remark("Errors", tone, line);
    };
    let often = report.failures_per_second() >= OFTEN;
    tone = match tone {
        Tone::Ok if often => Tone::Warn,
        Tone::Ok => Tone::Normal,
        tone => tone,
    };
    let kinds = match report.failing.len() {
        1 => "one kind of system call fails that is not benign: ".to_owned(),
        many => format!("{many} kinds of system call fail that are not benign: "),
    };
    line = line
        .say(kinds)
        .name(&worst.failure.syscall)
        .say(" ")
        .name(&worst.failure.errno);
    let argument = worst.failure.args.iter().find(|arg| arg.benign.is_none());
    line = match argument {
        Some(argument) if argument.count == worst.count => line
            .say(" on ")
            .name(&argument.value)
            .say(format!(" ({})", times(worst.count))),
        Some(argument) => line
            .say(format!(" ({}, ", times(worst.count)))
            .name(&argument.value)
            .say(" most of all)"),
        None => line.say(format!(" ({})", times(worst.count))),
    };
    let more = if report.failing.len() > 1 {
        ", …"
    } else {
        "."
    };
    remark("Errors", tone, line.say(more))
}

fn times(count: u64) -> String {
    words::counted(count, "time")
}

/// The second in which the most stands out, and what does.
fn moments(report: &Report<'_>) -> Option<Remark> {
    let mut seconds: BTreeMap<usize, Vec<(Subject, Moment)>> = BTreeMap::new();
    for subject in Subject::ALL {
        for moment in report.timeline.moments(subject) {
            seconds
                .entry(moment.second)
                .or_default()
                .push((subject, moment));
        }
    }
    let weight = |found: &[(Subject, Moment)]| {
        found
            .iter()
            .fold(0.0, |most: f64, (_, moment)| most.max(moment.weight()))
    };
    let (second, found) = seconds
        .iter()
        .max_by(|(_, a), (_, b)| (a.len().cmp(&b.len())).then(weight(a).total_cmp(&weight(b))))?;
    let line = match seconds.len() {
        1 => Line::text("one second stands out, "),
        many => Line::text(format!("{many} seconds stand out, most of all ")),
    };
    let line = line.stress(format!("{second} s after the start"));
    let shown = found.iter().take(3).map(|(subject, moment)| {
        let show = words::subject_value(*subject);
        format!(
            "{} {} (usually {})",
            words::subject(*subject),
            show(moment.value),
            show(moment.median)
        )
    });
    let shown: Vec<String> = shown.collect();
    let line = line.say(format!(": {}.", shown.join(", ")));
    Some(remark("When", Tone::Warn, line))
}

fn trust(report: &Report<'_>) -> Remark {
    let lost = report.losses();
    let profile = &report.capture.profile;
    let complete = text::complete_percent(profile);
    let stacks = complete.map(|percent| {
        format!(
            "{} % of {} samples have a complete stack",
            text::show_percent(percent),
            words::count(profile.samples())
        )
    });
    let mut line = match lost.first() {
        None => Line::text("nothing was lost"),
        Some(_) => {
            let sum = lost
                .iter()
                .fold(0u64, |sum, (_, _, count)| sum.saturating_add(*count));
            let mut line = Line::default().stress(format!("{} lost", words::count(sum)));
            for (at, (probe, cause, count)) in lost.iter().take(3).enumerate() {
                let before = if at == 0 { " (" } else { ", " };
                line = line
                    .say(format!("{before}{} ", words::count(*count)))
                    .name(format!("{}: {}", text::words(probe), text::words(cause)));
            }
            line.say(if lost.len() > 3 { ", …)" } else { ")" })
        }
    };
    if let Some(stacks) = stacks {
        line = line.say(format!("; {stacks}"));
    }
    let guarded = guard::lines(report.capture.meta.guard.as_ref());
    for step in &guarded {
        line = line.say(format!("; {step}"));
    }
    let doubtful = !guarded.is_empty()
        || !lost.is_empty()
        || complete.is_some_and(|percent| percent < COMPLETE);
    let tone = if doubtful { Tone::Warn } else { Tone::Ok };
    remark("Trust", tone, line.say("."))
}
