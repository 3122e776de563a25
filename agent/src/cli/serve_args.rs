//! `agent serve`: its arguments as typed, and what they mean.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;

use clap::Args as ClapArgs;

use super::args::{GroupArgs, TargetArgs, parse_pid};
use super::profile_args::ClockArgs;
use super::spec::{SpecError, TargetSpec, parse_duration};
use crate::output::escape;
use crate::recorder::live::MAX_WINDOW;

/// Arguments of `agent serve`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  agent serve --pid 4242                        prints the page's URL, with its token
  agent serve --pid 4242 --listen 127.0.0.1:0   on any free port
  agent serve --pid 4242 --window 10s -F 199
  agent serve -- ./server --port 8080
  curl -H \"Authorization: Bearer $TOKEN\" http://127.0.0.1:7070/metrics
  kubectl port-forward pod/agent 7070           then open the URL on your own machine

The page stays up when the target has ended; Ctrl-C ends it.
Exit codes: 0 ended by Ctrl-C, 1 failed, 2 usage. With a command: 127 not found, 126 not executable.")]
pub struct ServeArgs {
    /// Process to look at, with all its threads; may be repeated
    #[arg(short, long, value_name = "PID", value_parser = parse_pid)]
    pub pid: Vec<u32>,
    /// All processes of a container
    #[command(flatten)]
    pub group: GroupArgs,
    /// Its child processes too: those that it has and those that it starts later
    #[arg(short, long)]
    pub children: bool,
    /// Address to listen on; other machines can reach any but a loopback address
    #[arg(short, long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub listen: String,
    /// Length of the window that the page shows at first, up to 60s
    #[arg(short, long, value_name = "TIME", default_value = "30s")]
    pub window: String,
    /// How often to sample.
    #[command(flatten)]
    pub clock: ClockArgs,
    /// Start this program and look at it from its first instruction
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// What `agent serve` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeSpec {
    /// Whom to look at.
    pub target: TargetSpec,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Length of the first window, in seconds: 1 to [`MAX_WINDOW`].
    pub window: u32,
    /// Samples per second on each CPU.
    pub frequency: NonZeroU64,
}

impl ServeArgs {
    /// Checks the arguments and fills in the defaults.
    ///
    /// # Errors
    /// The arguments contradict each other or one has no meaning; the text names the flag to
    /// change.
    pub fn resolve(&self) -> Result<ServeSpec, SpecError> {
        let mut target = TargetSpec::resolve(&TargetArgs {
            pid: self.pid.clone(),
            group: self.group.clone(),
            children: self.children,
            duration: None,
            command: self.command.clone(),
        })?;
        target.duration = None;
        Ok(ServeSpec {
            target,
            listen: parse_listen(&self.listen)?,
            window: parse_window(&self.window)?,
            frequency: self.clock.resolve()?,
        })
    }
}

/// `ADDRESS:PORT`, `:PORT` on the loopback address, `localhost:PORT`.
fn parse_listen(text: &str) -> Result<SocketAddr, SpecError> {
    let wrong = || SpecError::Flag {
        flag: "--listen",
        reason: format!(
            "`{}` is no address; write 127.0.0.1:7070, [::1]:7070 or 0.0.0.0:7070",
            escape::plain(text)
        ),
    };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    match text.rsplit_once(':') {
        Some(("" | "localhost", port)) => {
            let port = port.parse().map_err(|_| wrong())?;
            Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        }
        _ => Err(wrong()),
    }
}

fn parse_window(text: &str) -> Result<u32, SpecError> {
    let seconds = parse_duration("--window", text)?.as_secs_f64();
    let whole = seconds.round();
    if whole == seconds && whole <= f64::from(MAX_WINDOW) {
        return Ok(whole as u32);
    }
    Err(SpecError::Flag {
        flag: "--window",
        reason: format!(
            "{} is not a whole number of seconds from 1s to {MAX_WINDOW}s",
            escape::plain(text)
        ),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::args::{Args, Command};
    use super::*;
    use clap::Parser;

    fn resolve(words: &[&str]) -> Result<ServeSpec, SpecError> {
        let words = ["agent", "serve", "--pid", "7"].iter().chain(words);
        let Command::Serve(args) = Args::try_parse_from(words).unwrap().command else {
            panic!("another subcommand");
        };
        args.resolve()
    }

    #[test]
    fn defaults() {
        let spec = resolve(&[]).unwrap();
        assert_eq!(spec.listen.to_string(), "127.0.0.1:7070");
        assert_eq!((spec.window, spec.frequency.get()), (30, 99));
        assert_eq!(spec.target.duration, None);
    }

    #[test]
    fn addresses() {
        let listen = |text| resolve(&["--listen", text]).map(|spec| spec.listen.to_string());
        assert_eq!(listen(":80").unwrap(), "127.0.0.1:80");
        assert_eq!(listen("localhost:0").unwrap(), "127.0.0.1:0");
        assert_eq!(listen("[::]:80").unwrap(), "[::]:80");
        for wrong in [
            "",
            "80",
            "127.0.0.1",
            "host:80",
            ":99999",
            "127.0.0.1:x",
            "\u{1b}:1",
        ] {
            let error = listen(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("--listen") && !error.contains('\u{1b}'),
                "{error}"
            );
        }
    }

    #[test]
    fn windows_are_whole_seconds_up_to_a_minute() {
        let window = |text| resolve(&["--window", text]).map(|spec| spec.window);
        assert_eq!((window("1s"), window("1m")), (Ok(1), Ok(60)));
        for wrong in ["0s", "61s", "500ms", "1.5s", "x"] {
            let error = window(wrong).unwrap_err().to_string();
            assert!(error.starts_with("--window"), "{error}");
        }
    }

    #[test]
    fn samples_are_taken() {
        assert_eq!(resolve(&["-F", "0"]), Err(SpecError::FrequencyZero));
    }
}
