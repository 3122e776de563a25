//! Request timing without a parser: the turns of one connection, told from when its process
//! sends and reads and when payload arrives.
//!
//! Pure, like [`crate::unwind`]: it runs in the kernel and in host tests. The kernel calls it
//! under the socket's own lock (only [`Exchange::on_sent`] may come late), so that no event of one
//! connection overlaps another.
//!
//! ```text
//! client   send ─ send ─────────── arrival ──── read
//!          └─ send ──┘└── peer ───┘└read_delay┘
//! server   arrival ──── read ──────── send ─ send
//!          └read_delay┘└─ service ─┘└─ send ──┘
//! ```
//!
//! A send while payload waits unread is an overlap of request and answer: what is under way then
//! is no request, and it is counted in [`Exchange::overlaps`] instead.

/// What the connection is doing; values of [`Exchange::phase`].
pub mod phase {
    /// Nothing yet; for a client also: the answer is being read.
    pub const IDLE: u32 = 0;
    /// Client: the request is being sent, or the answer awaited.
    pub const REQUESTING: u32 = 1;
    /// Server: the request is being read, or the answer prepared.
    pub const SERVING: u32 = 2;
    /// Server: the answer's first send has begun.
    pub const ANSWERING: u32 = 3;
    /// Server: the answer was reported; more of it may follow.
    pub const ANSWERED: u32 = 4;
    /// Request and answer overlapped; waits for a turn that does not.
    pub const VOID: u32 = 5;
}

/// State of the turn under way. Times are nanoseconds of `CLOCK_MONOTONIC`, 0 for "not yet".
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// One of [`phase`].
    pub phase: u32,
    /// Server: not zero when more was sent after the answer was reported.
    pub amended: u32,
    /// First payload that is not read yet.
    pub arrived: u64,
    /// Begin of the first send of the turn.
    pub first_send: u64,
    /// Begin of the last send.
    pub last_send: u64,
    /// Return of the last send.
    pub send_end: u64,
    /// Server: arrival of the request.
    pub request_arrived: u64,
    /// Server: first read of the request.
    pub first_read: u64,
    /// Server: the send part that was reported.
    pub reported_send: u64,
    /// Requests reported.
    pub requests: u64,
    /// Turns in which request and answer overlapped.
    pub overlaps: u64,
}
const _: () = assert!(size_of::<Exchange>() == 80);

/// [`Timing::previous_send`] of a request that was not reported before.
pub const NOT_REPORTED: u64 = u64::MAX;

/// A finished request: its parts in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Client: first to last send. Server: first to last send of the answer.
    pub send: u64,
    /// Client: last send to first payload of the answer (`peer`). Server: first read to first
    /// send (`service`).
    pub wait: u64,
    /// First payload's arrival to its first read.
    pub read_delay: u64,
    /// The send part under which the same request was reported before; [`NOT_REPORTED`] if it
    /// was not. A long answer is reported at its first send, and once more when it is done.
    pub previous_send: u64,
}
const _: () = assert!(size_of::<Timing>() == 32);

impl Timing {
    /// The whole request, in nanoseconds.
    pub const fn total(&self) -> u64 {
        self.send.saturating_add(self.wait).saturating_add(self.read_delay)
    }
}

impl Exchange {
    /// Payload has arrived.
    #[inline(always)]
    pub fn on_arrival(&mut self, clock: impl Fn() -> u64) {
        if self.arrived == 0 {
            self.arrived = clock();
        }
    }

    /// The process begins to send.
    #[inline(always)]
    pub fn on_send(&mut self, client: bool, now: u64) {
        if self.arrived != 0 {
            self.overlap();
        } else if client {
            if self.phase == phase::IDLE {
                self.phase = phase::REQUESTING;
                self.first_send = now;
                self.send_end = 0;
            }
        } else if self.phase == phase::SERVING {
            self.phase = phase::ANSWERING;
            self.first_send = now;
            self.send_end = 0;
        }
        self.last_send = now;
    }

    /// A send has returned: it took some bytes.
    #[inline(always)]
    pub fn on_sent(&mut self, clock: impl Fn() -> u64) -> Option<Timing> {
        match self.phase {
            phase::REQUESTING => {
                self.send_end = clock();
                None
            }
            phase::ANSWERING => {
                self.send_end = clock();
                self.phase = phase::ANSWERED;
                self.amended = 0;
                self.requests += 1;
                self.reported_send = self.send_end.saturating_sub(self.first_send);
                Some(self.answer(self.reported_send, NOT_REPORTED))
            }
            phase::ANSWERED => {
                self.send_end = clock();
                self.amended = 1;
                None
            }
            _ => None,
        }
    }

    /// The process has read some bytes.
    #[inline(always)]
    pub fn on_read(&mut self, client: bool, clock: impl Fn() -> u64) -> Option<Timing> {
        let timing = if client { self.client_read(clock) } else { self.server_read(clock) };
        self.arrived = 0;
        timing
    }

    #[inline(always)]
    fn client_read(&mut self, clock: impl Fn() -> u64) -> Option<Timing> {
        if self.phase != phase::REQUESTING {
            self.phase = phase::IDLE;
            return None;
        }
        if self.arrived == 0 {
            // The rest of the answer before, read after the next request was begun.
            self.overlap();
            return None;
        }
        // Over loopback the answer may be there before the send has returned: what was sent
        // had left when that send began.
        let returned = self.send_end >= self.last_send && self.send_end <= self.arrived;
        let done = if returned { self.send_end } else { self.last_send };
        self.phase = phase::IDLE;
        self.requests += 1;
        Some(Timing {
            send: done.saturating_sub(self.first_send),
            wait: self.arrived.saturating_sub(done),
            read_delay: clock().saturating_sub(self.arrived),
            previous_send: NOT_REPORTED,
        })
    }

    #[inline(always)]
    fn server_read(&mut self, clock: impl Fn() -> u64) -> Option<Timing> {
        if self.phase == phase::SERVING {
            return None;
        }
        let pending = self.finish();
        // Payload that came before our last send was begun is no answer to it: pipelined.
        if self.arrived > self.last_send {
            self.request_arrived = self.arrived;
            self.first_read = clock();
            self.phase = phase::SERVING;
        } else {
            self.overlap();
        }
        pending
    }

    /// Server: what is to be reported of the turn when it ends with the next one's begin or with
    /// the connection.
    #[inline(always)]
    pub fn finish(&mut self) -> Option<Timing> {
        let done = if self.send_end >= self.last_send { self.send_end } else { self.last_send };
        let send = done.saturating_sub(self.first_send);
        if self.phase == phase::ANSWERING {
            self.phase = phase::IDLE;
            self.requests += 1;
            return Some(self.answer(send, NOT_REPORTED));
        }
        if self.phase == phase::ANSWERED && self.amended != 0 {
            self.phase = phase::IDLE;
            return Some(self.answer(send, self.reported_send));
        }
        None
    }

    #[inline(always)]
    fn answer(&self, send: u64, previous_send: u64) -> Timing {
        Timing {
            send,
            wait: self.first_send.saturating_sub(self.first_read),
            read_delay: self.first_read.saturating_sub(self.request_arrived),
            previous_send,
        }
    }

    #[inline(always)]
    fn overlap(&mut self) {
        if self.phase != phase::VOID {
            self.overlaps += 1;
            self.phase = phase::VOID;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays events `(what, at)`: `S`end, `E`nd of send, `A`rrival, `R`ead.
    fn play(client: bool, events: &[(char, u64)]) -> (Exchange, Vec<Timing>) {
        let mut exchange = Exchange::default();
        let mut timings = Vec::new();
        for &(what, at) in events {
            match what {
                'S' => exchange.on_send(client, at),
                'A' => exchange.on_arrival(|| at),
                'E' => timings.extend(exchange.on_sent(|| at)),
                _ => timings.extend(exchange.on_read(client, || at)),
            }
        }
        timings.extend(exchange.finish());
        (exchange, timings)
    }

    fn timing(send: u64, wait: u64, read_delay: u64) -> Timing {
        Timing { send, wait, read_delay, previous_send: NOT_REPORTED }
    }

    #[test]
    fn a_clients_parts_add_up() {
        let events = [('S', 10), ('E', 12), ('S', 13), ('E', 20), ('A', 50), ('R', 57), ('R', 90)];
        let (exchange, timings) = play(true, &events);
        assert_eq!(timings, [timing(10, 30, 7)]);
        assert_eq!(timings[0].total(), 57 - 10);
        assert_eq!((exchange.requests, exchange.overlaps), (1, 0));
    }

    #[test]
    fn an_answer_may_overtake_the_return_of_the_send() {
        let (_, timings) = play(true, &[('S', 10), ('A', 15), ('E', 20), ('R', 22)]);
        assert_eq!(timings, [timing(0, 5, 7)]);
    }

    #[test]
    fn a_servers_parts_add_up() {
        let events = [('A', 10), ('R', 14), ('R', 16), ('S', 40), ('E', 45)];
        let (exchange, timings) = play(false, &events);
        assert_eq!(timings, [timing(5, 26, 4)]);
        assert_eq!(exchange.requests, 1);
    }

    #[test]
    fn a_long_answer_counts_once_and_is_amended() {
        let mut events = vec![('A', 10), ('R', 11), ('S', 20), ('E', 21), ('S', 30), ('E', 90)];
        let (exchange, timings) = play(false, &events);
        let amended = Timing { previous_send: 1, ..timing(70, 9, 1) };
        assert_eq!(timings, [timing(1, 9, 1), amended]);
        assert_eq!(exchange.requests, 1);
        events.extend([('A', 100), ('R', 101), ('S', 102), ('E', 103)]);
        let (exchange, timings) = play(false, &events);
        assert_eq!(timings, [timing(1, 9, 1), amended, timing(1, 1, 1)]);
        assert_eq!(exchange.requests, 2);
    }

    #[test]
    fn the_next_request_may_be_read_before_the_send_has_returned() {
        let events = [('A', 10), ('R', 11), ('S', 20), ('A', 22), ('R', 24), ('E', 25), ('S', 30), ('E', 31)];
        let (exchange, timings) = play(false, &events);
        assert_eq!(timings, [timing(0, 9, 1), timing(1, 6, 2)]);
        assert_eq!((exchange.requests, exchange.overlaps), (2, 0));
    }

    #[test]
    fn pipelined_requests_are_no_requests() {
        // The second request is there before the first is answered.
        let events = [('A', 1), ('R', 2), ('A', 3), ('S', 4), ('E', 5), ('R', 6), ('S', 7), ('E', 8)];
        let (exchange, timings) = play(false, &events);
        assert_eq!((timings.len(), exchange.overlaps), (0, 1));
        // The client sends on while an answer waits to be read.
        let (exchange, timings) = play(true, &[('S', 1), ('E', 2), ('A', 3), ('S', 4), ('E', 5), ('R', 6)]);
        assert_eq!((timings.len(), exchange.overlaps), (0, 1));
        // A clean turn after it counts again.
        let events = [('S', 1), ('A', 3), ('S', 4), ('R', 6), ('S', 10), ('E', 11), ('A', 12), ('R', 13)];
        let (exchange, timings) = play(true, &events);
        assert_eq!((timings, exchange.overlaps), (vec![timing(1, 1, 1)], 1));
    }

    #[test]
    fn what_was_under_way_at_the_attach_is_left_out() {
        assert_eq!(play(true, &[('A', 1), ('R', 2)]).1, []);
        assert_eq!(play(false, &[('S', 1), ('E', 2)]).1, []);
        assert_eq!(play(false, &[('R', 1), ('S', 2), ('E', 3)]).1, []);
    }
}
