//! A moment in which this thread is not preempted by ordinary ones (sched(7)).

/// While it lives, this thread runs before ordinary threads; without the right to
/// (`CAP_SYS_NICE`) nothing changes. For milliseconds only.
#[derive(Debug)]
pub struct Undisturbed {
    before: Option<(i32, libc::sched_param)>,
}

impl Undisturbed {
    /// Begins it.
    pub fn begin() -> Self {
        let mut before = libc::sched_param { sched_priority: 0 };
        // SAFETY: about this thread; the structure is ours.
        let policy = unsafe { libc::sched_getscheduler(0) };
        // SAFETY: as above.
        let known = policy >= 0 && unsafe { libc::sched_getparam(0, &raw mut before) } == 0;
        let first = libc::sched_param { sched_priority: 1 };
        let raised = known
            && policy != libc::SCHED_FIFO
            // SAFETY: as above.
            && unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) } == 0;
        Self {
            before: raised.then_some((policy, before)),
        }
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        if let Some((policy, before)) = &self.before {
            // SAFETY: what the thread had before.
            unsafe { libc::sched_setscheduler(0, *policy, before) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_gets_back_what_it_had() {
        // SAFETY: about this thread only.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        let moment = Undisturbed::begin();
        assert!(policy() == libc::SCHED_FIFO || policy() == before);
        drop(moment);
        assert_eq!(policy(), before);
    }
}
