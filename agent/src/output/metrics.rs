//! Prometheus metrics, in the text format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! Counters never fall within a run. Label sets are bounded by the models: at most
//! [`MAX_REMOTES`](crate::tcp::endless::MAX_REMOTES) remotes and
//! [`MAX_ROWS`](crate::syscalls::totals::MAX_ROWS) failing calls are told apart.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::escape;
use crate::profile::Accounting;
use crate::syscalls::totals::Total;
use crate::tcp::endless::BOUNDS;
use crate::tcp::view::RemoteTotal;

/// `Content-Type` of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What there is to tell, since the start of the run.
#[derive(Clone, Copy, Debug)]
pub struct Metrics<'a> {
    /// Version of the agent.
    pub version: &'a str,
    /// `uname -srm`.
    pub kernel: &'a str,
    /// Where every tick of the sampling clock went.
    pub accounting: &'a Accounting,
    /// Connections by remote.
    pub remotes: &'a [RemoteTotal],
    /// Failing calls.
    pub failures: &'a [Total],
    /// Losses by probe and cause.
    pub losses: &'a BTreeMap<String, BTreeMap<String, u64>>,
    /// CPU time that the agent has taken.
    pub cpu_seconds: f64,
    /// Resident memory of the agent, in bytes.
    pub resident_bytes: u64,
    /// Memory of its BPF maps, in bytes.
    pub bpf_map_bytes: u64,
}

/// The metrics as text.
pub fn render(metrics: &Metrics<'_>) -> String {
    let mut text = Text::default();
    text.about_agent(metrics);
    text.ticks(metrics.accounting);
    text.remotes(metrics.remotes);
    text.failures(metrics.failures);
    text.family(
        "agent_losses_total",
        "counter",
        "What could not be kept or was not seen, by probe and cause.",
    );
    for (probe, causes) in metrics.losses {
        for (cause, count) in causes {
            let labels = [("probe", &**probe), ("cause", cause)];
            text.sample("agent_losses_total", &labels, count);
        }
    }
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    /// `HELP` and `TYPE` of a metric. Our own help texts need no escaping.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.0.push_str(name);
        for (place, (label, value)) in labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"{}\"", label_value(value));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn about_agent(&mut self, metrics: &Metrics<'_>) {
        self.family(
            "agent_info",
            "gauge",
            "The agent and the kernel it runs on.",
        );
        let labels = [("version", metrics.version), ("kernel", metrics.kernel)];
        self.sample("agent_info", &labels, 1);
        for (name, kind, help, value) in [
            (
                "agent_cpu_seconds_total",
                "counter",
                "CPU time that the agent has taken; its kernel programs run on its targets' time.",
                (metrics.cpu_seconds * 1e6).round() / 1e6,
            ),
            (
                "agent_resident_memory_bytes",
                "gauge",
                "Resident memory of the agent.",
                metrics.resident_bytes as f64,
            ),
            (
                "agent_bpf_map_bytes",
                "gauge",
                "Memory of the agent's BPF maps.",
                metrics.bpf_map_bytes as f64,
            ),
        ] {
            self.family(name, kind, help);
            self.sample(name, &[], value);
        }
    }

    fn ticks(&mut self, accounting: &Accounting) {
        let name = "agent_samples_total";
        self.family(name, "counter", "Samples of the targets' stacks.");
        self.sample(name, &[], accounting.emitted);
        let name = "agent_ticks_total";
        self.family(
            name,
            "counter",
            "Ticks of the sampling clock on all CPUs, by what they met.",
        );
        for (kind, count) in [
            ("idle", accounting.idle),
            ("other_process", accounting.other),
            ("sample", accounting.emitted),
            ("lost", accounting.lost_total()),
        ] {
            self.sample(name, &[("kind", kind)], count);
        }
    }

    fn remotes(&mut self, remotes: &[RemoteTotal]) {
        let name = "agent_request_duration_seconds";
        self.family(
            name,
            "histogram",
            "Time of a request: at a client from its first byte sent until the answer is read, at a \
             server from its arrival until the answer is sent.",
        );
        for remote in remotes {
            self.histogram(name, remote);
        }
        type Value = fn(&RemoteTotal) -> u64;
        let counters: [(&str, &str, &str, Value); 3] = [
            (
                "agent_connections",
                "gauge",
                "TCP connections that live.",
                |remote| remote.living,
            ),
            (
                "agent_resets_total",
                "counter",
                "TCP resets, sent and received.",
                |remote| remote.resets,
            ),
            (
                "agent_retransmits_total",
                "counter",
                "TCP segments retransmitted.",
                |remote| remote.retransmits,
            ),
        ];
        for (name, kind, help, value) in counters {
            self.family(name, kind, help);
            for remote in remotes {
                self.sample(name, &labels(remote), value(remote));
            }
        }
        let name = "agent_connect_failures_total";
        self.family(name, "counter", "TCP connects that failed, by error.");
        for remote in remotes {
            for (errno, count) in &remote.failures {
                let labels = [("remote", &*remote.remote), ("errno", errno)];
                self.sample(name, &labels, count);
            }
        }
    }

    /// The buckets add up: each holds those before it.
    fn histogram(&mut self, name: &str, remote: &RemoteTotal) {
        let [role, label] = labels(remote);
        let requests = &remote.requests;
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (bound, count) in BOUNDS.iter().zip(requests.counts) {
            below += count;
            let bound = (*bound as f64 / 1e9).to_string();
            self.sample(&bucket, &[role, label, ("le", &bound)], below);
        }
        self.sample(&bucket, &[role, label, ("le", "+Inf")], requests.count);
        let sum = requests.sum as f64 / 1e9;
        self.sample(&format!("{name}_sum"), &[role, label], sum);
        self.sample(&format!("{name}_count"), &[role, label], requests.count);
    }

    fn failures(&mut self, failures: &[Total]) {
        let name = "agent_syscall_failures_total";
        self.family(
            name,
            "counter",
            "System calls that failed; benign ones are those to be expected.",
        );
        for row in failures {
            for (benign, count) in [("false", row.count), ("true", row.benign)] {
                if count > 0 {
                    let labels = [
                        ("syscall", &*row.syscall),
                        ("errno", &*row.errno),
                        ("benign", benign),
                    ];
                    self.sample(name, &labels, count);
                }
            }
        }
    }
}

fn labels(remote: &RemoteTotal) -> [(&'static str, &str); 2] {
    [("remote", &remote.remote), ("role", remote.role.name())]
}

/// A label's value: nothing in it ends the quotes or the line, or is invisible.
fn label_value(text: &str) -> String {
    escape::plain(text)
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::tcp::Role;
    use crate::tcp::endless::Buckets;

    fn remote(name: &str) -> RemoteTotal {
        RemoteTotal {
            remote: name.to_owned(),
            role: Role::Client,
            living: 2,
            requests: Buckets {
                counts: [1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3],
                count: 7,
                sum: 31_000_700_000,
            },
            resets: 1,
            retransmits: 4,
            failures: vec![("ECONNREFUSED".into(), 5)],
        }
    }

    fn rendered(kernel: &str, remotes: &[RemoteTotal], syscall: &str) -> String {
        let accounting = Accounting {
            ticks: 100,
            idle: 60,
            other: 10,
            emitted: 28,
            lost: BTreeMap::from([("ring_full".into(), 2)]),
            ..Accounting::default()
        };
        let losses = BTreeMap::from([(
            "profile".to_owned(),
            BTreeMap::from([("ring_full".to_owned(), 2)]),
        )]);
        render(&Metrics {
            version: "0.1.0",
            kernel,
            accounting: &accounting,
            remotes,
            failures: &[Total {
                syscall: syscall.to_owned(),
                errno: "ENOENT".to_owned(),
                count: 3,
                benign: 8,
            }],
            losses: &losses,
            cpu_seconds: 1.25,
            resident_bytes: 4096,
            bpf_map_bytes: 8192,
        })
    }

    #[test]
    fn every_metric_has_its_help_and_type() {
        let text = rendered("Linux 6.1.0 x86_64", &[remote("10.0.0.1:80")], "openat");
        let golden = include_str!("../../tests/goldens/metrics.txt");
        if std::env::var_os("BLESS").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/metrics.txt");
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(text, golden);
    }

    #[test]
    fn buckets_add_up_to_the_count() {
        let text = rendered("k", &[remote("a")], "openat");
        let counts: Vec<u64> = text
            .lines()
            .filter(|line| line.starts_with("agent_request_duration_seconds_bucket"))
            .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
            .collect();
        assert_eq!(counts.len(), BOUNDS.len() + 1);
        assert!(counts.is_sorted());
        assert_eq!((counts[0], counts[15], counts[16]), (1, 6, 7));
    }

    #[test]
    fn hostile_values_stay_in_their_quotes() {
        let hostile = "a\"} 1\nagent_info{x=\"\\\u{1b}[2J\u{202e}\r";
        let text = rendered(hostile, &[remote(hostile)], hostile);
        let plain = rendered("k", &[remote("a")], "openat");
        assert_eq!(text.lines().count(), plain.lines().count());
        for line in text.lines() {
            assert!(!line.chars().any(escape::is_unsafe), "{line:?}");
            assert!(
                line.starts_with("# ") || line.starts_with("agent_"),
                "{line}"
            );
            // Quotes that are not escaped come in pairs, around the values.
            let bare = line.replace("\\\\", "").replace("\\\"", "");
            let inside = bare.split('"').skip(1).step_by(2);
            assert_eq!(bare.matches('"').count() % 2, 0, "{line}");
            assert!(line.starts_with('#') || inside.count() == bare.matches("=\"").count());
        }
    }
}
