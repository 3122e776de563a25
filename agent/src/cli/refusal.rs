//! What to say when the kernel refuses something that the checks before the run let pass.

use crate::preflight::checks::Probe;
use crate::preflight::facts::Facts;
use crate::preflight::refusal::explain;
use crate::process;
use crate::session;

/// Why it may have been, and what helps, as lines to follow the error.
pub fn advice(error: &anyhow::Error) -> Option<String> {
    if let Some(process::Error::NotFound(_)) = process_error(error) {
        return (!process::in_initial_pid_namespace()).then(|| {
            "why: the agent is in a PID namespace of its own, and ids are those that `ps` shows \
             here\nfix: start it in the target's namespace (docker run --pid=container:NAME, \
             kubectl debug --target)"
                .to_owned()
        });
    }
    let refusal = error.downcast_ref::<session::Error>()?.refusal()?;
    // What is in the way of one that loads programs is in the way of all.
    let problems = explain(&Facts::gather(&[]), Probe::Record, refusal);
    let lines = problems.iter().flat_map(|problem| {
        let fix = problem.fix.iter().map(|fix| format!("fix: {fix}"));
        std::iter::once(format!("why: {}", problem.reason)).chain(fix)
    });
    Some(lines.collect::<Vec<_>>().join("\n"))
}

fn process_error(error: &anyhow::Error) -> Option<&process::Error> {
    error.downcast_ref().or_else(|| {
        let session::Error::Target(session::target::Error::Process(error)) =
            error.downcast_ref::<session::Error>()?
        else {
            return None;
        };
        Some(error)
    })
}
