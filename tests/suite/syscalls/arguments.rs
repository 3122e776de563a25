//! Every argument by itself: thousands of paths and addresses, and each kind of descriptor, signal
//! and operation.

use std::collections::BTreeMap;

use super::{Report, report};
use crate::harness::{Agent, Finished, LIFE, alone, host_only, in_vm, program};

/// What of the failures must have the right path or address.
const RIGHT: f64 = 0.999;

fn run(what: &str, many: u64) -> (Report, String, Finished) {
    let agent = Agent::syscalls()
        .args(["--args", "100000", "-o", "r.json", "--"])
        .args([program("sys_arguments")])
        .args([LIFE, what, &many.to_string()]);
    let directory = agent.directory().canonicalize().unwrap();
    let finished = agent.run();
    let report = report(&finished);
    report.assert_no_losses();
    (report, directory.to_str().unwrap().to_owned(), finished)
}

/// As the program makes them.
fn name(number: u64) -> String {
    let deep = number % 7 * if number.is_multiple_of(100) { 60 } else { 1 };
    let directories: String = (0..deep)
        .map(|i| format!("d{}-{i}/", number % 13))
        .collect();
    format!("{directories}{number}")
}

/// The share of the expected failures whose argument is told as it is.
fn assert_right(report: &Report, expected: &[(&str, &str, String)]) {
    let mut told: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
    for row in &report.errors {
        for arg in &row.args {
            let key = (row.syscall.as_str(), row.errno.as_str(), arg.value.as_str());
            *told.entry(key).or_default() += arg.count;
        }
    }
    let wrong: Vec<_> = expected
        .iter()
        .filter(|(syscall, errno, value)| told.get(&(*syscall, *errno, value)) != Some(&1))
        .collect();
    let right = 1.0 - wrong.len() as f64 / expected.len() as f64;
    assert!(right >= RIGHT, "{right}: {:?}", wrong.first());
    println!(
        "{} of {} arguments are right",
        expected.len() - wrong.len(),
        expected.len()
    );
}

#[test]
fn thousands_of_paths_are_right() {
    let _alone = alone();
    let many = if in_vm() { 300 } else { 3000 };
    let (report, here, _) = run("paths", many);
    let mut expected = Vec::new();
    for number in 0..many {
        let name = name(number);
        expected.extend([
            ("openat", "ENOENT", format!("/no/open/{name}")),
            ("newfstatat", "ENOENT", format!("{here}/no/stat/{name}")),
            ("unlinkat", "ENOENT", format!("/etc/no/unlink/{name}")),
            (
                "rename",
                "ENOENT",
                format!("/no/from/{name} -> {here}/no/to/{name}"),
            ),
            ("mkdir", "ENOTDIR", format!("/proc/version/{name}")),
            ("execve", "ENOENT", format!("/no/exec/{name}")),
        ]);
    }
    assert_right(&report, &expected);
}

#[test]
fn thousands_of_addresses_are_right() {
    let _alone = alone();
    let many = if in_vm() { 300 } else { 3000 };
    let (report, ..) = run("addresses", many);
    let mut expected = Vec::new();
    for number in 0..many {
        let four = std::net::Ipv4Addr::from(0x7f00_0001 + number as u32);
        let six = std::net::Ipv6Addr::from((0x2001_0db8 << 96) + u128::from(number));
        expected.extend([
            (
                "connect",
                "ECONNREFUSED",
                format!("{four}:{}", 1 + number % 9),
            ),
            ("bind", "EADDRNOTAVAIL", format!("[{six}]:{}", 1 + number)),
            ("sendto", "ENOENT", format!("unix:/no/socket/{number}")),
            (
                "connect",
                "ECONNREFUSED",
                format!("unix:@abstract-{number}"),
            ),
        ]);
    }
    assert_right(&report, &expected);
}

#[test]
fn an_address_is_one_argument_whatever_the_socket() {
    let _alone = alone();
    if host_only("it takes more failures than fit into the table of arguments") {
        return;
    }
    let rounds = 8000;
    let report = super::run(
        "sys_mix",
        &[LIFE, &rounds.to_string()],
        &["--syscall", "connect"],
    );
    report.assert_no_losses();
    let all = rounds * super::FAILING;
    let refused = report.row("connect", "ECONNREFUSED");
    assert_eq!((refused.arg("127.0.0.1:1"), refused.count), (all, all));
    let missing = report.row("connect", "ENOENT");
    assert_eq!(missing.arg("unix:/nonexistent/socket"), all);
}

#[test]
fn descriptors_signals_and_operations_are_named() {
    let _alone = alone();
    let many = 50;
    let (report, here, finished) = run("kinds", many);
    let said = finished.stdout();
    let port = said.split_once("port ").map_or("", |(_, port)| port);
    let port = port.lines().next().unwrap_or_default();
    for (syscall, errno, value) in [
        (
            "write",
            "EBADF",
            format!("{here}/deleted-file (deleted)").as_str(),
        ),
        ("write", "EBADF", "/dev/null"),
        ("write", "EBADF", "/memfd:memory (deleted)"),
        ("read", "EAGAIN", "eventfd"),
        ("kill", "ESRCH", "pid 4194303 SIGTERM"),
        ("tgkill", "ESRCH", "pid 4194302 SIGUSR1"),
        ("tkill", "ESRCH", "pid 4194301 SIGRT_5"),
        ("ioctl", "ENOTTY", "FIONREAD /dev/null"),
        ("ioctl", "ENOTTY", "0xdead /dev/null"),
        ("fcntl", "EBADF", "F_SETPIPE_SZ /dev/null"),
        ("fcntl", "EBADF", "F_GETFL fd 1234567 (not open)"),
        ("futex", "EAGAIN", "FUTEX_WAIT"),
        ("futex", "ETIMEDOUT", "FUTEX_WAIT"),
        ("futex", "EPERM", "FUTEX_UNLOCK_PI"),
        ("unlink", "ENOENT", "(empty path)"),
    ] {
        let row = report.row(syscall, errno);
        assert_eq!(
            row.arg(value),
            many,
            "{syscall} {errno} {value}: {:?}",
            row.arguments()
        );
    }
    // The other end has reset the connection: /proc/net/tcp does not know it any more.
    let row = report.row("sendto", "EPIPE");
    let peer = format!("socket 127.0.0.1:{port}");
    assert_eq!(
        (row.arg(&peer), row.count),
        (many - 1, many - 1),
        "{:?}",
        row.arguments()
    );
    for number in 70_000..70_003 {
        assert!(report.row(&format!("syscall_{number}"), "ENOSYS").count >= many / 3);
    }
    for (syscall, errno, benign) in [
        ("read", "EAGAIN", true),
        ("futex", "EAGAIN", true),
        ("futex", "ETIMEDOUT", true),
        ("futex", "EPERM", false),
        ("ioctl", "ENOTTY", false),
        ("sendto", "EPIPE", false),
    ] {
        assert_eq!(
            report.row(syscall, errno).benign.is_some(),
            benign,
            "{syscall} {errno}"
        );
    }
}
