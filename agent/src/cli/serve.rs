//! `agent serve`: runs what the specification says.

use std::cell::RefCell;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

use super::args::Verbosity;
use super::record;
use super::run::{self, Ended, Subjects};
use super::serve_args::ServeSpec;
use super::signals::Signals;
use crate::capture::Capture;
use crate::output::{escape, live as page, metrics};
use crate::preflight::{self, Kernel};
use crate::recorder::live::{Live, MAX_WINDOW};
use crate::recorder::{Options, Recorder};
use crate::serve::{Answer, Asked, Question, Server};
use crate::session::{Attached, Loaded};
use crate::tcp::view::Target;
use crate::{bundle, calendar};

/// Lengths of windows that the page offers, in seconds, beside the one asked for.
const WINDOWS: [u32; 3] = [10, 30, MAX_WINDOW];

/// Serves the page until Ctrl-C; returns the exit code.
///
/// # Errors
/// Whatever keeps the run from starting, or from going on.
pub async fn run(spec: ServeSpec, verbosity: Verbosity) -> anyhow::Result<u8> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    preflight::check_frequency(spec.frequency.get())?;
    let server = Server::bind(spec.listen).await?;
    let kernel = Kernel::probe_with(&Recorder::fields())?;
    let started = calendar::now();
    let mut subjects = Subjects::take(&spec.target)?;
    run::check_bits(&subjects)?;
    let (comm, pid) = subjects.first(&spec.target);
    let options = Options::new(spec.frequency.get(), false).with_all_arguments();
    let needs = options.needs(&kernel)?;
    let known = record::target(&spec.target, &subjects);
    let processes = std::mem::take(&mut subjects.processes);
    let mut session = Loaded::load(kernel, &needs)?.follow(processes, spec.target.follow())?;
    run::make_ready(&mut session, &spec.target)?;
    let first = Target::new(pid, comm);
    let site = Site::new(&first, spec.window)?;
    let live = Live::attach(&mut session, &options, started, first, known).await?;
    subjects.release()?;
    say(&server, verbosity);
    let mut asked = server.start();
    let ended = watch(
        &mut session,
        &mut subjects,
        &mut signals,
        live,
        site,
        &mut asked,
    )
    .await;
    subjects.finish(Ended::Interrupted);
    ended.map(|()| super::Exit::Ok.code())
}

/// The URL goes to standard output, so that a script can take it.
fn say(server: &Server, verbosity: Verbosity) {
    let _ = writeln!(io::stdout(), "{}", server.url());
    let _ = io::stdout().flush();
    if server.is_exposed() {
        let _ = writeln!(
            io::stderr(),
            "agent: warning: other machines can reach this address: who has the token sees the target's function \
             names, its connections and the arguments of its failing calls, and nothing is encrypted; \
             `--listen 127.0.0.1:7070` with `kubectl port-forward` or `ssh -L` needs no open port"
        );
    }
    if !verbosity.quiet {
        let _ = writeln!(
            io::stderr(),
            "agent: the page is at the URL above, which has its token; Ctrl-C ends it"
        );
    }
}

/// Looks and answers until Ctrl-C, also when the targets have ended.
async fn watch(
    session: &mut Attached,
    subjects: &mut Subjects,
    signals: &mut Signals,
    live: Live,
    mut site: Site,
    asked: &mut Receiver<Asked>,
) -> anyhow::Result<()> {
    let shared = RefCell::new(live);
    let mut failure = None;
    let ended = run::watch(
        session,
        subjects,
        signals,
        None,
        &mut |bytes, targets| shared.borrow_mut().take(bytes, targets),
        |session, _| {
            let mut live = shared.borrow_mut();
            failure = live.tick(session).err();
            while let Ok(asked) = asked.try_recv() {
                site.answer(asked, &mut live, session);
            }
            match failure {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            }
        },
    )
    .await;
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    let mut live = shared.into_inner();
    live.end(session, ended.name()).await?;
    if ended == Ended::TargetExited {
        let text = "agent: the target has ended; the page stays until Ctrl-C";
        let _ = writeln!(io::stderr(), "{text}");
        loop {
            tokio::select! {
                () = signals.wait() => break,
                Some(asked) = asked.recv() => site.answer(asked, &mut live, session),
            }
        }
    }
    Ok(())
}

/// What questions are answered with.
struct Site {
    page: Answer,
    file: String,
    window: u32,
    /// The last answer to each length of window, until the next second.
    live: Vec<(u32, u64, Answer)>,
    metrics: Option<(u64, Answer)>,
    /// Whether a bundle is being written.
    writing: Arc<AtomicBool>,
}

impl Site {
    fn new(target: &Target, window: u32) -> anyhow::Result<Self> {
        let mut windows = WINDOWS.to_vec();
        windows.push(window);
        windows.sort_unstable();
        windows.dedup();
        let (page, policy) = page::page(&target.comm, target.pid, &windows, window)?;
        let policy: Arc<str> = policy.into();
        Ok(Self {
            page: Answer {
                policy: Some(policy),
                ..Answer::of("text/html; charset=utf-8", page)
            },
            file: format!(
                "incident-{}-{}",
                escape::file_name(&target.comm),
                target.pid
            ),
            window,
            live: Vec::new(),
            metrics: None,
            writing: Arc::default(),
        })
    }

    /// Answers, from what is known of this second already where it can.
    fn answer(&mut self, asked: Asked, live: &mut Live, session: &Attached) {
        let answer = match asked.question {
            Question::Page => self.page.clone(),
            Question::Live(window) => self.window(window.unwrap_or(self.window), live, session),
            Question::Metrics => self.metrics(live, session),
            Question::Bundle(window) => {
                let capture = live.capture(session, window.unwrap_or(self.window));
                return self.bundle(capture, asked.answer);
            }
        };
        // A client that has gone away wants no answer.
        let _ = asked.answer.send(answer);
    }

    fn window(&mut self, window: u32, live: &mut Live, session: &Attached) -> Answer {
        let window = window.clamp(1, MAX_WINDOW);
        let now = live.second();
        self.live.retain(|(_, second, _)| *second == now);
        if let Some((.., answer)) = self.live.iter().find(|(length, ..)| *length == window) {
            return answer.clone();
        }
        let view = live.view(session, window);
        let naming = view.pending_names > 0;
        let answer = match page::json(&view) {
            Ok(json) => Answer::of("application/json", json),
            Err(error) => Answer::failed(format!("500: {error}\n")),
        };
        // With the targets gone nothing changes but the names.
        if !naming || view.ended.is_none() {
            self.live.push((window, now, answer.clone()));
        }
        answer
    }

    fn metrics(&mut self, live: &mut Live, session: &Attached) -> Answer {
        let now = live.second();
        if let Some((second, answer)) = &self.metrics
            && *second == now
        {
            return answer.clone();
        }
        let answer = Answer::of(metrics::CONTENT_TYPE, live.metrics(session));
        self.metrics = Some((now, answer.clone()));
        answer
    }

    /// Writes a bundle beside the run, one at a time: it takes a while.
    fn bundle(&self, capture: Capture, answer: oneshot::Sender<Answer>) {
        if self.writing.swap(true, Ordering::AcqRel) {
            let text = "503: another bundle is being written; try again\n";
            let _ = answer.send(Answer::busy(text));
            return;
        }
        let now = calendar::now();
        let file = format!("{}-{}.zip", self.file, calendar::Utc::at(now).compact());
        let writing = Arc::clone(&self.writing);
        let body = move || {
            let written = match bundle::write(&capture) {
                Ok(bytes) => Answer {
                    file: Some(file),
                    ..Answer::of("application/zip", bytes)
                },
                Err(error) => Answer::failed(format!("500: {error}\n")),
            };
            writing.store(false, Ordering::Release);
            let _ = answer.send(written);
        };
        if thread::Builder::new()
            .name("bundle".to_owned())
            .spawn(body)
            .is_err()
        {
            self.writing.store(false, Ordering::Release);
        }
    }
}
