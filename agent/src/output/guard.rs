//! What the overhead guard did, for people.

use crate::guard::{Cause, Probe, Report, Step};

/// One line for each thing that it did.
pub fn lines(report: Option<&Report>) -> Vec<String> {
    let steps = report.into_iter().flat_map(|report| &report.steps);
    steps.map(line).collect()
}

/// `overhead guard: after 2.5 s …`: what was done, why, and what the user can do.
pub fn line(step: &Step) -> String {
    let share = percent(step.share);
    let cost = match step.cause {
        Cause::Target => {
            format!("agent's programs in the kernel took {share} of the target's CPU time")
        }
        Cause::Machine => format!("agent took {share} of all CPUs"),
        Cause::Waiting => format!("the target waited for a CPU while agent took {share} of one"),
    };
    let done = match step.hz {
        Some(hz) => format!("sampling was slowed to {} Hz", number(hz)),
        None => format!("agent {} was detached", step.probe.name()),
    };
    let help = match (step.probe, step.hz) {
        (Probe::Profile, Some(_)) => "each sample counts for more",
        (Probe::Profile, None) => "a lower --frequency costs less",
        (Probe::Tcp, _) => "what was seen until then is kept",
        (Probe::Syscalls, _) => "--syscall and --errno cost less",
    };
    let more = format!("--max-overhead {}", enough(step.share));
    format!(
        "overhead guard: after {:.1} s {cost} (limit {}): {done}; {help}, {more} allows more",
        step.at_s,
        percent(step.limit)
    )
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let decimals = match percent {
        _ if percent >= 10.0 => 0,
        _ if percent >= 0.1 => 1,
        _ => 4,
    };
    let text = format!("{percent:.decimals$}");
    let text = match text.trim_end_matches('0').trim_end_matches('.') {
        trimmed if text.contains('.') => trimmed,
        _ => &text,
    };
    format!("{text} %")
}

/// A limit that would have done, with room.
fn enough(share: f64) -> String {
    let percent = share * 150.0;
    let step = if percent > 5.0 { 5.0 } else { 1.0 };
    match (percent / step).ceil() * step {
        limit if limit > 100.0 => "off".to_owned(),
        limit => format!("{limit:.0}%"),
    }
}

fn number(hz: f64) -> String {
    let text = format!("{hz:.1}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(probe: Probe, hz: Option<f64>, cause: Cause, share: f64) -> Step {
        Step {
            at_s: 2.512,
            probe,
            hz,
            cause,
            share,
            limit: 0.01,
        }
    }

    #[test]
    fn a_line_says_what_why_and_what_to_do() {
        let slowed = step(Probe::Profile, Some(999.0 / 4.0), Cause::Target, 0.0312);
        assert_eq!(
            line(&slowed),
            "overhead guard: after 2.5 s agent's programs in the kernel took 3.1 % of the target's CPU time \
             (limit 1 %): sampling was slowed to 249.8 Hz; each sample counts for more, --max-overhead 5% \
             allows more"
        );
        let detached = step(Probe::Syscalls, None, Cause::Machine, 0.43);
        let said = line(&detached);
        assert!(said.contains("agent took 43 % of all CPUs"), "{said}");
        assert!(said.contains("agent syscalls was detached"), "{said}");
        assert!(said.contains("--max-overhead 65%"), "{said}");
        let all = line(&step(Probe::Tcp, None, Cause::Waiting, 0.9));
        assert!(all.contains("--max-overhead off"), "{all}");
    }

    #[test]
    fn nothing_done_is_nothing_said() {
        assert!(lines(None).is_empty());
        assert!(lines(Some(&Report::default())).is_empty());
    }
}
