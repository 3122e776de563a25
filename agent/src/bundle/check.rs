//! Whether sums of what was read fit into 64 bits, so that nobody who adds up needs to ask.

use crate::capture::Meta;
use crate::syscalls::Report;
use crate::tcp::view::Document;

fn fits(mut counts: impl Iterator<Item = u64>) -> Option<()> {
    counts
        .try_fold(0u64, u64::checked_add)
        .filter(|&sum| sum <= i64::MAX as u64)
        .map(drop)
}

/// The losses.
pub(super) fn meta(meta: &Meta) -> Option<()> {
    fits(
        meta.losses
            .values()
            .flat_map(|causes| causes.values().copied()),
    )
}

/// All counts of all documents, column by column.
pub(super) fn connections(documents: &[Document]) -> Option<()> {
    let rows = || {
        documents
            .iter()
            .flat_map(|document| document.connections.iter().flatten())
    };
    fits(rows().map(|row| row.requests))?;
    fits(rows().map(|row| row.bytes_sent))?;
    fits(rows().map(|row| row.bytes_received))?;
    let remotes = || {
        documents
            .iter()
            .flat_map(|document| document.remotes.iter().flatten())
    };
    fits(remotes().map(|row| row.requests))?;
    fits(remotes().map(|row| row.connections))?;
    fits(remotes().map(|row| row.errors))?;
    fits(remotes().map(|row| row.resets))?;
    fits(remotes().map(|row| row.failed_connects))?;
    fits(documents.iter().map(|document| document.sums.requests))?;
    fits(documents.iter().map(|document| document.sums.failed))?;
    fits(
        documents
            .iter()
            .map(|document| document.sums.connections as u64),
    )?;
    fits(documents.iter().map(|document| document.not_shown as u64))?;
    let failed = documents
        .iter()
        .flat_map(|document| &document.failed_connects);
    fits(failed.map(|failed| failed.count))?;
    fits(
        documents
            .iter()
            .flat_map(|document| document.losses.values().copied()),
    )
}

/// All counts of all reports, column by column.
pub(super) fn syscalls(reports: &[Report]) -> Option<()> {
    let rows = || reports.iter().flat_map(|report| &report.errors);
    fits(rows().map(|row| row.count))?;
    fits(rows().map(|row| row.benign_count))?;
    fits(rows().filter_map(|row| row.calls))?;
    fits(rows().map(|row| row.other_args))?;
    fits(rows().flat_map(|row| row.args.iter().map(|arg| arg.count)))?;
    fits(rows().flat_map(|row| row.stacks.iter().map(|stack| stack.count)))?;
    fits(reports.iter().map(|report| report.processes as u64))?;
    fits(
        reports
            .iter()
            .flat_map(|report| report.losses.values().copied()),
    )
}
