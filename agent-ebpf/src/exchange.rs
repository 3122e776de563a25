//! Request timing without a parser: the turns of one connection, told from when its process
//! sends and reads and when payload arrives.
//!
//! Pure, like [`crate::unwind`]: it runs in the kernel and in host tests. The kernel calls it
//! under the socket's own lock, so that no event of one connection overlaps another.
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
//!
//! Finished requests wait in the connection's own [`Batch`] and cross to userspace together.

/// What the connection is doing; values of [`Exchange::phase`].
pub mod phase {
    /// Nothing yet; for a client also: the answer is being read.
    pub const IDLE: u32 = 0;
    /// Client: the request is being sent, or the answer awaited.
    pub const REQUESTING: u32 = 1;
    /// Server: the request is being read, or the answer prepared.
    pub const SERVING: u32 = 2;
    /// Server: the answer's first send has begun; its [`super::Sample`] is the batch's last.
    pub const ANSWERING: u32 = 3;
    /// Request and answer overlapped; waits for a turn that does not.
    pub const VOID: u32 = 4;
}

/// Finished requests that are sent to userspace together.
pub const BATCH: usize = 16;

/// The parts of a finished request, each by [`pack`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Client: first to last send. Server: first to last send of the answer.
    pub send: u32,
    /// Client: last send to first payload of the answer (`peer`). Server: first read to first
    /// send (`service`).
    pub wait: u32,
    /// First payload's arrival to its first read.
    pub read_delay: u32,
}
const _: () = assert!(size_of::<Sample>() == 12);

/// Set in a packed time that counts 1024 ns instead of one.
const COARSE: u32 = 1 << 31;

/// Packs nanoseconds: exact below 2.1 s, to a microsecond up to 36 minutes, which is the most.
#[inline(always)]
pub const fn pack(nanoseconds: u64) -> u32 {
    if nanoseconds < COARSE as u64 {
        nanoseconds as u32
    } else if nanoseconds >> 10 < COARSE as u64 {
        (nanoseconds >> 10) as u32 | COARSE
    } else {
        u32::MAX
    }
}

/// The nanoseconds that were packed.
pub const fn unpack(packed: u32) -> u64 {
    if packed & COARSE == 0 {
        packed as u64
    } else {
        ((packed ^ COARSE) as u64) << 10
    }
}

/// The finished requests of a connection that userspace has not got yet. Whole, it is a record of
/// the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// [`crate::record::TCP_REQUESTS`].
    pub kind: u32,
    /// Samples that wait here, at most [`BATCH`].
    pub pending: u32,
    /// Address of the kernel's socket.
    pub sock: u64,
    /// When the connection was first seen.
    pub born: u64,
    /// Samples since then, with those that wait here, without those that were lost.
    pub written: u64,
    /// Requests whose sample was lost: the ring buffer was full.
    pub lost: u64,
    /// The samples that wait.
    pub samples: [Sample; BATCH],
}
const _: () = assert!(size_of::<Batch>() == 40 + 12 * BATCH);

impl Batch {
    /// Number of the first sample that waits here.
    pub const fn start(&self) -> u64 {
        self.written.wrapping_sub(self.pending as u64)
    }

    /// Requests, counted exactly.
    pub const fn requests(&self) -> u64 {
        self.written.wrapping_add(self.lost)
    }

    /// Adds a sample. A full batch is handed to `flush` first; the sample is lost where that
    /// fails. Says whether it was kept.
    #[inline(always)]
    fn push(&mut self, sample: Sample, flush: impl Fn(&Self) -> bool) -> bool {
        if self.pending >= BATCH as u32 {
            if !flush(self) {
                self.lost += 1;
                return false;
            }
            self.pending = 0;
        }
        let slot = self.slot(self.pending);
        // SAFETY: the slot is within the array.
        unsafe { *slot = sample };
        self.pending += 1;
        self.written += 1;
        true
    }

    #[inline(always)]
    fn slot(&mut self, index: u32) -> *mut Sample {
        // A mask, no check: a panic would make the program unloadable.
        let index = index as usize & (BATCH - 1);
        // SAFETY: the mask keeps it below the array's length.
        unsafe { self.samples.as_mut_ptr().add(index) }
    }
}

/// State of the turn under way. Times are nanoseconds of `CLOCK_MONOTONIC`, 0 for "not yet".
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// One of [`phase`].
    pub phase: u32,
    /// Turns in which request and answer overlapped.
    pub overlaps: u32,
    /// First payload that is not read yet.
    pub arrived: u64,
    /// Begin of the first send of the turn.
    pub first_send: u64,
    /// The last send.
    pub last_send: u64,
    /// Server: first read of the request.
    pub first_read: u64,
    /// Server: from the request's arrival to that read.
    pub read_delay: u64,
}
const _: () = assert!(size_of::<Exchange>() == 48);

impl Exchange {
    /// Payload has arrived.
    #[inline(always)]
    pub fn on_arrival(&mut self, clock: impl Fn() -> u64) {
        if self.arrived == 0 {
            self.arrived = clock();
        }
    }

    /// The process begins to send, or goes on.
    #[inline(always)]
    pub fn on_send(
        &mut self,
        client: bool,
        now: u64,
        batch: &mut Batch,
        flush: impl Fn(&Batch) -> bool,
    ) {
        if self.arrived != 0 {
            self.overlap();
        } else if client {
            if self.phase == phase::IDLE {
                self.phase = phase::REQUESTING;
                self.first_send = now;
            }
        } else if self.phase == phase::SERVING {
            self.first_send = now;
            let sample = Sample {
                send: 0,
                wait: pack(now.saturating_sub(self.first_read)),
                read_delay: pack(self.read_delay),
            };
            self.phase = if batch.push(sample, flush) {
                phase::ANSWERING
            } else {
                phase::IDLE
            };
        } else if self.phase == phase::ANSWERING {
            self.answer_goes_on(now, batch);
        }
        self.last_send = now;
    }

    /// A send has returned that may have taken long: it went on until now.
    #[inline(always)]
    pub fn on_sent(&mut self, now: u64, batch: &mut Batch) {
        if self.phase == phase::ANSWERING {
            self.answer_goes_on(now, batch);
        }
        // A request is over when its answer arrives, also one that is still being sent.
        if self.phase != phase::REQUESTING || self.arrived == 0 {
            self.last_send = now;
        }
    }

    #[inline(always)]
    fn answer_goes_on(&mut self, now: u64, batch: &mut Batch) {
        let slot = batch.slot(batch.pending.wrapping_sub(1));
        // SAFETY: the slot is within the array.
        unsafe { (*slot).send = pack(now.saturating_sub(self.first_send)) };
    }

    /// The process has read some bytes.
    #[inline(always)]
    pub fn on_read(
        &mut self,
        client: bool,
        clock: impl Fn() -> u64,
        batch: &mut Batch,
        flush: impl Fn(&Batch) -> bool,
    ) {
        if client {
            self.client_read(clock, batch, flush);
        } else {
            self.server_read(clock);
        }
        self.arrived = 0;
    }

    #[inline(always)]
    fn client_read(
        &mut self,
        clock: impl Fn() -> u64,
        batch: &mut Batch,
        flush: impl Fn(&Batch) -> bool,
    ) {
        if self.phase != phase::REQUESTING {
            self.phase = phase::IDLE;
            return;
        }
        if self.arrived == 0 {
            // The rest of the answer before, read after the next request was begun.
            self.overlap();
            return;
        }
        self.phase = phase::IDLE;
        let sample = Sample {
            send: pack(self.last_send.saturating_sub(self.first_send)),
            wait: pack(self.arrived.saturating_sub(self.last_send)),
            read_delay: pack(clock().saturating_sub(self.arrived)),
        };
        batch.push(sample, flush);
    }

    #[inline(always)]
    fn server_read(&mut self, clock: impl Fn() -> u64) {
        if self.phase == phase::SERVING {
            return;
        }
        // Payload that came before our last send is no answer to it: pipelined.
        if self.arrived > self.last_send {
            self.first_read = clock();
            self.read_delay = self.first_read.saturating_sub(self.arrived);
            self.phase = phase::SERVING;
        } else {
            self.overlap();
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
    use std::cell::RefCell;

    /// Plays events `(what, at)`: `S`end, `E`nd of a send, `A`rrival, `R`ead. Gives the parts of
    /// all requests and the overlaps.
    fn play(client: bool, events: &[(char, u64)]) -> (Vec<[u32; 3]>, u32) {
        let (mut exchange, mut batch) = (Exchange::default(), Batch::default());
        let flushed = RefCell::new(Vec::new());
        let flush = |batch: &Batch| {
            flushed.borrow_mut().extend(batch.samples);
            true
        };
        for &(what, at) in events {
            match what {
                'S' => exchange.on_send(client, at, &mut batch, flush),
                'A' => exchange.on_arrival(|| at),
                'E' => exchange.on_sent(at, &mut batch),
                _ => exchange.on_read(client, || at, &mut batch, flush),
            }
        }
        let mut samples = flushed.into_inner();
        samples.extend(&batch.samples[..batch.pending as usize]);
        assert_eq!(batch.requests(), samples.len() as u64);
        let parts = |sample: Sample| [sample.send, sample.wait, sample.read_delay];
        (samples.into_iter().map(parts).collect(), exchange.overlaps)
    }

    #[test]
    fn a_clients_parts_add_up() {
        let events = [
            ('S', 10),
            ('S', 20),
            ('A', 50),
            ('R', 57),
            ('R', 90),
            ('A', 95),
            ('R', 99),
        ];
        assert_eq!(play(true, &events), (vec![[10, 30, 7]], 0));
    }

    #[test]
    fn a_send_that_takes_long_counts_until_it_returns() {
        assert_eq!(
            play(true, &[('S', 10), ('E', 80), ('A', 85), ('R', 86)]).0,
            [[70, 5, 1]]
        );
        assert_eq!(
            play(false, &[('A', 10), ('R', 12), ('S', 20), ('E', 80)]).0,
            [[60, 8, 2]]
        );
    }

    #[test]
    fn an_answer_that_comes_before_the_send_returns_ends_the_request() {
        let events = [('S', 10), ('A', 50), ('E', 80), ('R', 90)];
        assert_eq!(play(true, &events), (vec![[0, 40, 40]], 0));
    }

    #[test]
    fn a_servers_parts_add_up() {
        let events = [('A', 10), ('R', 14), ('R', 16), ('S', 40), ('S', 45)];
        assert_eq!(play(false, &events), (vec![[5, 26, 4]], 0));
    }

    #[test]
    fn a_long_answer_counts_once() {
        let mut events = vec![('A', 10), ('R', 11)];
        events.extend((20..90).map(|at| ('S', at)));
        events.extend([('A', 100), ('R', 101), ('S', 103)]);
        assert_eq!(play(false, &events), (vec![[69, 9, 1], [0, 2, 1]], 0));
    }

    #[test]
    fn pipelined_requests_are_no_requests() {
        // The second request is there before the first is answered.
        let events = [('A', 1), ('R', 2), ('A', 3), ('S', 4), ('R', 6), ('S', 7)];
        assert_eq!(play(false, &events), (vec![], 1));
        // The client sends on while an answer waits to be read.
        assert_eq!(
            play(true, &[('S', 1), ('A', 3), ('S', 4), ('R', 6)]),
            (vec![], 1)
        );
        // A clean turn after it counts again.
        let events = [
            ('S', 1),
            ('A', 3),
            ('S', 4),
            ('R', 6),
            ('S', 10),
            ('A', 12),
            ('R', 13),
        ];
        assert_eq!(play(true, &events), (vec![[0, 2, 1]], 1));
    }

    #[test]
    fn what_was_under_way_at_the_attach_is_left_out() {
        assert_eq!(play(true, &[('A', 1), ('R', 2)]).0, [[0; 3]; 0]);
        assert_eq!(play(false, &[('S', 1)]).0, [[0; 3]; 0]);
        assert_eq!(play(false, &[('R', 1), ('S', 2)]).0, [[0; 3]; 0]);
    }

    #[test]
    fn batches_keep_every_request() {
        let turn = |n: u64| [('S', 10 * n), ('A', 10 * n + 3), ('R', 10 * n + 5)];
        let events: Vec<_> = (1..=50).flat_map(turn).collect();
        assert_eq!(play(true, &events), (vec![[0, 3, 2]; 50], 0));
    }

    #[test]
    fn a_refused_batch_is_kept_and_the_new_sample_is_lost() {
        let mut batch = Batch::default();
        for n in 0..BATCH as u32 {
            assert!(batch.push(
                Sample {
                    send: n,
                    ..Sample::default()
                },
                |_| false
            ));
        }
        assert!(!batch.push(Sample::default(), |_| false));
        assert_eq!((batch.requests(), batch.start(), batch.lost), (17, 0, 1));
        assert!(batch.push(Sample::default(), |full| full.samples[15].send == 15));
        assert_eq!(
            (batch.requests(), batch.start(), batch.pending),
            (18, 16, 1)
        );
    }

    #[test]
    fn times_are_packed_closely() {
        for time in [0, 1, 999, (1 << 31) - 1] {
            assert_eq!(unpack(pack(time)), time);
        }
        for time in [1 << 31, 3_000_000_000, 2_000_000_000_000] {
            assert!(unpack(pack(time)).abs_diff(time) < 1024);
        }
        assert!(unpack(pack(u64::MAX)) > 2_190_000_000_000);
    }
}
