//! Which rows are shown, and in what order: `--sort COLUMN` and `--filter EXPR`.

use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::Role;
use super::histogram::Quantiles;
use super::view::{Parts, RemoteRow, Row};

/// Why a sort column or a filter has no meaning.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    /// No such column.
    #[error("there is no column `{name}`; the columns are {}", names())]
    Column {
        /// As given.
        name: String,
    },
    /// A term that is neither an address nor a comparison.
    #[error(
        "`{0}` is neither an address (10.0.0.1, 10.0.0.1:80, [::1]:80, :80, 10.0.0.0/8) nor a comparison (p99>10ms, role=client, state=ESTABLISHED)"
    )]
    Term(String),
    /// A value that the column cannot have.
    #[error("`{value}` is no value of the column `{column}`: write {wanted}")]
    Value {
        /// The column.
        column: &'static str,
        /// As given.
        value: String,
        /// What would do.
        wanted: &'static str,
    },
}

macro_rules! columns {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// A column to sort or filter by.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each is described where it is shown")]
        pub enum Column { $($variant),* }

        impl Column {
            /// Every column.
            pub const ALL: &'static [Column] = &[$(Column::$variant),*];

            /// Its name on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Column::$variant => $name),* }
            }
        }
    };
}

columns! {
    Pid = "pid", Local = "local", Remote = "remote", Role = "role", State = "state", Age = "age",
    Requests = "requests", Rate = "rate", P50 = "p50", P90 = "p90", P99 = "p99", Max = "max",
    Mean = "mean", Send = "send", Peer = "peer", Service = "service", ReadDelay = "read_delay",
    Connect = "connect", AcceptWait = "accept_wait", Srtt = "srtt", MinRtt = "min_rtt", Rttvar = "rttvar",
    Retransmits = "retransmits", Resets = "resets", Sent = "sent", Received = "received",
    Connections = "connections", Errors = "errors",
}

fn names() -> String {
    Column::ALL
        .iter()
        .map(|column| column.name())
        .collect::<Vec<_>>()
        .join(", ")
}

/// What stands in a column: an address, a word, or a number (times in microseconds).
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Address(SocketAddr),
    Word(String),
    Number(f64),
    Missing,
}

impl Column {
    /// The column with this name.
    ///
    /// # Errors
    /// There is none; the error lists them.
    pub fn parse(name: &str) -> Result<Self, FilterError> {
        let found = Self::ALL
            .iter()
            .find(|column| column.name().eq_ignore_ascii_case(name));
        found.copied().ok_or_else(|| FilterError::Column {
            name: name.to_owned(),
        })
    }

    const fn is_time(self) -> bool {
        use Column::*;
        matches!(
            self,
            Age | P50
                | P90
                | P99
                | Max
                | Mean
                | Send
                | Peer
                | Service
                | ReadDelay
                | Connect
                | AcceptWait
                | Srtt
                | MinRtt
                | Rttvar
        )
    }

    fn of_times(self, latency: Option<Quantiles>, parts: &Parts) -> Option<f64> {
        match self {
            Column::P50 => latency.map(|times| times.p50),
            Column::P90 => latency.map(|times| times.p90),
            Column::P99 => latency.map(|times| times.p99),
            Column::Max => latency.map(|times| times.max),
            Column::Mean => latency.map(|times| times.mean),
            Column::Send => parts.send.map(|times| times.p50),
            Column::Peer => parts.peer.map(|times| times.p50),
            Column::Service => parts.service.map(|times| times.p50),
            Column::ReadDelay => parts.read_delay.map(|times| times.p50),
            _ => None,
        }
    }

    fn of_row(self, row: &Row) -> Value {
        let number = match self {
            Column::Local => return Value::Address(row.local),
            Column::Remote => return Value::Address(row.remote),
            Column::Role => return Value::Word(row.role.name().to_owned()),
            Column::State => return Value::Word(row.state.to_string()),
            Column::Pid => Some(f64::from(row.pid)),
            Column::Age => row.age_s.map(|age| age * 1e6),
            Column::Requests => Some(row.requests as f64),
            Column::Rate => Some(row.rate),
            Column::Connect => row.connect_us,
            Column::AcceptWait => row.accept_wait_us,
            Column::Srtt => row.srtt_us.map(f64::from),
            Column::MinRtt => row.min_rtt_us.map(f64::from),
            Column::Rttvar => row.rttvar_us.map(f64::from),
            Column::Retransmits => Some(f64::from(row.retransmits)),
            Column::Resets | Column::Errors => {
                Some(f64::from(row.resets_sent) + f64::from(row.resets_received))
            }
            Column::Sent => Some(row.bytes_sent as f64),
            Column::Received => Some(row.bytes_received as f64),
            Column::Connections => Some(1.0),
            times => times.of_times(row.latency_us, &row.parts_us),
        };
        number.map_or(Value::Missing, Value::Number)
    }

    fn of_remote(self, row: &RemoteRow) -> Value {
        let number = match self {
            Column::Remote => return Value::Word(row.remote.clone()),
            Column::Role => return Value::Word(row.role.name().to_owned()),
            Column::Requests => Some(row.requests as f64),
            Column::Rate => Some(row.rate),
            Column::Connections => Some(row.connections as f64),
            Column::Errors => Some(row.errors as f64),
            Column::Resets => Some(row.resets as f64),
            times => times.of_times(row.latency_us, &row.parts_us),
        };
        number.map_or(Value::Missing, Value::Number)
    }
}

/// Numbers descending, words and addresses ascending, what is missing last.
fn order(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => right.total_cmp(left),
        (Value::Address(left), Value::Address(right)) => left.cmp(right),
        (Value::Word(left), Value::Word(right)) => left.cmp(right),
        (Value::Missing, Value::Missing) => Ordering::Equal,
        (Value::Missing, _) => Ordering::Greater,
        (_, Value::Missing) => Ordering::Less,
        _ => Ordering::Equal,
    }
}

/// Sorts connections by a column, then by request count and addresses.
pub fn sort(rows: &mut [Row], column: Column) {
    rows.sort_by_cached_key(|row| Sorted(column.of_row(row), row.requests, row.remote, row.local));
}

/// Sorts remotes by a column, then by request count and name.
pub fn sort_remotes(rows: &mut [RemoteRow], column: Column) {
    rows.sort_by(|left, right| {
        order(&column.of_remote(left), &column.of_remote(right))
            .then(right.requests.cmp(&left.requests))
            .then_with(|| left.remote.cmp(&right.remote))
    });
}

struct Sorted(Value, u64, SocketAddr, SocketAddr);

impl Ord for Sorted {
    fn cmp(&self, other: &Self) -> Ordering {
        order(&self.0, &other.0)
            .then(other.1.cmp(&self.1))
            .then(self.2.cmp(&other.2))
            .then(self.3.cmp(&other.3))
    }
}

impl PartialOrd for Sorted {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Sorted {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Sorted {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

/// The longer ones first: `>=` is no `>`.
const OPERATORS: [(&str, Operator); 6] = [
    ("!=", Operator::NotEqual),
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    ("=", Operator::Equal),
    (">", Operator::Greater),
    ("<", Operator::Less),
];

/// Addresses that are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Net {
    /// The first bits of the address, and how many.
    prefix: Option<(IpAddr, u32)>,
    port: Option<u16>,
}

impl Net {
    fn parse(text: &str) -> Option<Self> {
        if let Some(port) = text.strip_prefix(':')
            && !port.starts_with(':')
        {
            return Some(Self {
                prefix: None,
                port: Some(port.parse().ok()?),
            });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Self::of(address.ip(), None, Some(address.port()));
        }
        if let Some((address, bits)) = text.split_once('/') {
            return Self::of(address.parse().ok()?, Some(bits.parse().ok()?), None);
        }
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .unwrap_or(text);
        Self::of(bare.parse().ok()?, None, None)
    }

    /// `None` for more bits than the address has; without a number, all of them.
    fn of(address: IpAddr, bits: Option<u32>, port: Option<u16>) -> Option<Self> {
        let canonical = address.to_canonical();
        let width = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        // Of a mapped address (::ffff:10.0.0.1) the last 32 bits are meant.
        let mapped = width(address) - width(canonical);
        let bits = match bits {
            Some(bits) if bits > width(address) => return None,
            Some(bits) => bits.checked_sub(mapped)?,
            None => width(canonical),
        };
        Some(Self {
            prefix: Some((canonical, bits)),
            port,
        })
    }

    fn holds(&self, address: &SocketAddr) -> bool {
        let in_prefix = match (self.prefix, address.ip()) {
            (None, _) => true,
            (Some((IpAddr::V4(net), bits)), IpAddr::V4(ip)) => same(
                u128::from(net.to_bits()),
                u128::from(ip.to_bits()),
                32,
                bits,
            ),
            (Some((IpAddr::V6(net), bits)), IpAddr::V6(ip)) => {
                same(net.to_bits(), ip.to_bits(), 128, bits)
            }
            _ => false,
        };
        in_prefix && self.port.is_none_or(|port| port == address.port())
    }
}

/// Whether the first `bits` of two numbers of `width` bits are the same.
fn same(left: u128, right: u128, width: u32, bits: u32) -> bool {
    let rest = width.saturating_sub(bits);
    (left ^ right).checked_shr(rest).unwrap_or(0) == 0
}

#[derive(Clone, Debug, PartialEq)]
enum Term {
    Address(Net),
    Compare(Column, Operator, Wanted),
}

#[derive(Clone, Debug, PartialEq)]
enum Wanted {
    Number(f64),
    Word(String),
    Address(Net),
}

/// Terms that all must hold, separated by commas.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    terms: Vec<Term>,
}

impl Filter {
    /// Reads a filter: addresses and comparisons, separated by commas.
    ///
    /// # Errors
    /// A term that is neither, an unknown column, or a value it cannot have.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let terms = text
            .split(',')
            .map(|term| parse_term(term.trim()))
            .collect::<Result<_, _>>()?;
        Ok(Self { terms })
    }

    /// Whether a connection is to be shown.
    pub fn holds(&self, row: &Row) -> bool {
        self.terms.iter().all(|term| match term {
            Term::Address(net) => net.holds(&row.remote) || net.holds(&row.local),
            Term::Compare(column, operator, wanted) => operator.holds(&column.of_row(row), wanted),
        })
    }

    /// Whether a remote of which nothing but its role and its name (`address:port` of a server, the
    /// address of a client) is known is to be shown: a term about anything else does not hold.
    pub fn holds_remote(&self, role: Role, remote: &str) -> bool {
        let address = remote.parse().ok().or_else(|| {
            let bare = remote.trim_start_matches('[').trim_end_matches(']');
            Some(SocketAddr::new(bare.parse().ok()?, 0))
        });
        self.terms.iter().all(|term| match term {
            Term::Address(net) => address.is_some_and(|address| net.holds(&address)),
            Term::Compare(column, operator, wanted) => {
                let value = match column {
                    Column::Role => Value::Word(role.name().to_owned()),
                    Column::Remote => address.map_or(Value::Missing, Value::Address),
                    _ => Value::Missing,
                };
                operator.holds(&value, wanted)
            }
        })
    }
}

fn parse_term(term: &str) -> Result<Term, FilterError> {
    if let Some(net) = Net::parse(term) {
        return Ok(Term::Address(net));
    }
    let found = term.find(['!', '=', '<', '>']).and_then(|at| {
        let (name, rest) = term.split_at_checked(at)?;
        let (sign, operator) = OPERATORS.iter().find(|(sign, _)| rest.starts_with(sign))?;
        Some((name.trim(), *operator, rest.strip_prefix(sign)?.trim()))
    });
    let (name, operator, value) = found.ok_or_else(|| FilterError::Term(term.to_owned()))?;
    let column = Column::parse(name)?;
    let wrong = |wanted| FilterError::Value {
        column: column.name(),
        value: value.to_owned(),
        wanted,
    };
    let wanted = match column {
        Column::Local | Column::Remote => Net::parse(value)
            .map(Wanted::Address)
            .ok_or_else(|| wrong("an address, such as 10.0.0.1:80"))?,
        Column::Role | Column::State => Wanted::Word(value.to_owned()),
        column if column.is_time() => time(value)
            .map(Wanted::Number)
            .ok_or_else(|| wrong("a time, such as 10ms"))?,
        _ => value
            .parse()
            .map(Wanted::Number)
            .map_err(|_| wrong("a number"))?,
    };
    Ok(Term::Compare(column, operator, wanted))
}

/// A time in microseconds: `250us`, `10ms`, `1.5s`; a bare number is in microseconds.
fn time(text: &str) -> Option<f64> {
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(unit_at)?;
    let factor = match unit.trim() {
        "" | "us" | "µs" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

impl Operator {
    fn holds(self, value: &Value, wanted: &Wanted) -> bool {
        let ordering = match (value, wanted) {
            (Value::Number(value), Wanted::Number(wanted)) => value.partial_cmp(wanted),
            (Value::Word(value), Wanted::Word(wanted)) => {
                Some(value.to_ascii_lowercase().cmp(&wanted.to_ascii_lowercase()))
            }
            (Value::Address(value), Wanted::Address(net)) => Some(if net.holds(value) {
                Ordering::Equal
            } else {
                Ordering::Less
            }),
            _ => None,
        };
        let Some(ordering) = ordering else {
            return false;
        };
        match self {
            Operator::Equal => ordering.is_eq(),
            Operator::NotEqual => ordering.is_ne(),
            Operator::Less => ordering.is_lt(),
            Operator::AtMost => ordering.is_le(),
            Operator::Greater => ordering.is_gt(),
            Operator::AtLeast => ordering.is_ge(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn row(remote: &str, p99_us: Option<f64>) -> Row {
        Row {
            pid: 7,
            comm: "x".to_owned(),
            local: "10.0.0.9:4000".parse().unwrap(),
            remote: remote.parse().unwrap(),
            role: Role::Client,
            state: "ESTABLISHED".into(),
            age_s: None,
            pre_existing: true,
            shared: false,
            overlapped: false,
            requests: 3,
            rate: 1.0,
            latency_us: p99_us.map(|p99| Quantiles {
                p99,
                ..Quantiles::default()
            }),
            parts_us: Parts::default(),
            connect_us: None,
            accept_wait_us: None,
            srtt_us: Some(80),
            min_rtt_us: None,
            rttvar_us: None,
            retransmits: 0,
            resets_sent: 0,
            resets_received: 0,
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    fn holds(filter: &str, remote: &str) -> bool {
        Filter::parse(filter)
            .unwrap()
            .holds(&row(remote, Some(12_000.0)))
    }

    #[test]
    fn addresses() {
        for (filter, remote, wanted) in [
            ("10.1.2.3", "10.1.2.3:80", true),
            ("10.1.2.3:80", "10.1.2.3:81", false),
            (":80", "[::1]:80", true),
            ("10.1.0.0/16", "10.1.2.3:80", true),
            ("10.2.0.0/16", "10.1.2.3:80", false),
            ("0.0.0.0/0", "10.1.2.3:80", true),
            ("[2001:db8::1]:80", "[2001:db8::1]:80", true),
            ("2001:db8::/32", "[2001:db8:1::1]:80", true),
            ("2001:db8::/32", "10.1.2.3:80", false),
            ("::ffff:10.1.2.3", "10.1.2.3:80", true),
            ("10.0.0.9", "10.1.2.3:80", true),
        ] {
            assert_eq!(holds(filter, remote), wanted, "{filter} {remote}");
        }
    }

    #[test]
    fn comparisons() {
        for (filter, wanted) in [
            ("p99>10ms", true),
            ("p99 >= 12000", true),
            ("p99<0.012s", false),
            ("role=client,state!=CLOSED", true),
            ("role=server", false),
            ("srtt<=80us", true),
            ("min_rtt<1s", false),
            ("remote=10.1.2.3,requests=3", true),
            ("local!=10.1.2.3", true),
        ] {
            assert_eq!(holds(filter, "10.1.2.3:80"), wanted, "{filter}");
        }
    }

    #[test]
    fn remotes_by_what_is_known_of_them() {
        for (filter, role, remote, wanted) in [
            ("10.0.0.0/8", Role::Client, "10.1.2.3:443", true),
            (":443", Role::Client, "10.1.2.3:443", true),
            (":443", Role::Server, "10.1.2.3", false),
            ("10.1.2.3", Role::Server, "10.1.2.3", true),
            ("[fd00::1]:80", Role::Client, "[fd00::1]:80", true),
            ("fd00::1", Role::Server, "fd00::1", true),
            ("role=client", Role::Client, "10.1.2.3:443", true),
            ("role!=client", Role::Client, "10.1.2.3:443", false),
            (
                "remote=10.1.2.3,p99>1ms",
                Role::Client,
                "10.1.2.3:443",
                false,
            ),
            ("p99<1ms", Role::Client, "10.1.2.3:443", false),
        ] {
            let filter = Filter::parse(filter).unwrap();
            assert_eq!(filter.holds_remote(role, remote), wanted, "{filter:?}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "", "fast", "p99>", "p99>soon", "speed>1", "remote=x", "p99", "=1", ",",
        ] {
            assert!(Filter::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn slowest_first_and_unknown_last() {
        let mut rows = vec![
            row("10.0.0.1:1", None),
            row("10.0.0.2:1", Some(1.0)),
            row("10.0.0.3:1", Some(2.0)),
        ];
        sort(&mut rows, Column::P99);
        let order: Vec<_> = rows.iter().map(|row| row.remote.ip().to_string()).collect();
        assert_eq!(order, ["10.0.0.3", "10.0.0.2", "10.0.0.1"]);
        sort(&mut rows, Column::Remote);
        assert_eq!(rows[0].remote.ip().to_string(), "10.0.0.1");
    }
}
