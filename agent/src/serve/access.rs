//! Who may see the page: the token, and the `Host` header against DNS rebinding. Pure.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};

use hyper::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap};

/// Random bytes in a token.
const TOKEN_BYTES: usize = 16;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The `Host` header names something else: a foreign name may resolve to this address.
    Host,
    /// No token, or a wrong one.
    Token,
}

impl Refused {
    /// What the client is told.
    pub const fn text(self) -> &'static str {
        match self {
            Refused::Host => {
                "403: agent answers only under the address that it listens on, or localhost\n"
            }
            Refused::Token => {
                "403: this needs the token that `agent serve` printed when it started: open that \
                 URL, or send `Authorization: Bearer TOKEN`\n"
            }
        }
    }
}

/// What a request must show.
#[derive(Clone, Debug)]
pub struct Access {
    token: String,
    listen: SocketAddr,
}

impl Access {
    /// With a new token of 128 random bits.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new(listen: SocketAddr) -> io::Result<Self> {
        let mut bytes = [0; TOKEN_BYTES];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let mut token = String::with_capacity(2 * TOKEN_BYTES);
        for byte in bytes {
            // Writing to a string cannot fail.
            let _ = write!(token, "{byte:02x}");
        }
        Ok(Self { token, listen })
    }

    /// The token: 32 hexadecimal digits.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The cookie that a browser keeps the token in, as `Set-Cookie` has it. Browsers share cookies
    /// between the ports of a host, so that each port has its own.
    pub fn cookie(&self) -> String {
        let Self { token, listen } = self;
        format!(
            "agent_{}={token}; HttpOnly; SameSite=Strict; Path=/",
            listen.port()
        )
    }

    /// Whether the request may be answered.
    ///
    /// # Errors
    /// When it may not, and why.
    pub fn check(&self, headers: &HeaderMap, query: Option<&str>) -> Result<(), Refused> {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        if !host.is_some_and(|host| self.is_own(host)) {
            return Err(Refused::Host);
        }
        if self.has_token(headers, query) {
            Ok(())
        } else {
            Err(Refused::Token)
        }
    }

    /// Whether a `Host` header (RFC 9110, 7.2) means this server: a loopback address or `localhost`,
    /// the address that it listens on, and any address where it listens on all.
    fn is_own(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        if name.eq_ignore_ascii_case("localhost") {
            return true;
        }
        let bare = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
            .unwrap_or(name);
        let Ok(address) = bare.parse::<IpAddr>() else {
            return false;
        };
        let own = self.listen.ip();
        let address = address.to_canonical();
        address.is_loopback() || address == own.to_canonical() || own.is_unspecified()
    }

    fn has_token(&self, headers: &HeaderMap, query: Option<&str>) -> bool {
        let bearer = headers
            .get_all(AUTHORIZATION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .filter_map(|value| {
                let (scheme, token) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
            });
        let name = format!("agent_{}", self.listen.port());
        let cookies = headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .filter(|(key, _)| *key == name)
            .map(|(_, token)| token);
        let given = bearer
            .chain(cookies)
            .chain(query.and_then(|query| parameter(query, "token")));
        given.fold(false, |found, token| self.is_token(token) | found)
    }

    /// Compares in a time that does not tell where the first difference is.
    fn is_token(&self, given: &str) -> bool {
        let (own, given) = (self.token.as_bytes(), given.as_bytes());
        let difference = own.iter().zip(given).fold(0, |difference, (a, b)| {
            std::hint::black_box(difference | (a ^ b))
        });
        own.len() == given.len() && difference == 0
    }
}

/// The value of a parameter of a query (`a=1&b=2`), as it stands there.
pub fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    fn access(listen: &str) -> Access {
        Access::new(listen.parse().unwrap()).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<Vec<(hyper::header::HeaderName, hyper::header::HeaderValue)>>()
            .into_iter()
            .collect()
    }

    #[test]
    fn tokens_are_of_128_bits_and_never_the_same() {
        let (one, other) = (access("127.0.0.1:7070"), access("127.0.0.1:7070"));
        assert_eq!(one.token().len(), 32);
        assert!(one.token().bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(one.token(), other.token());
    }

    #[test]
    fn a_token_may_come_three_ways() {
        let access = access("127.0.0.1:7070");
        let token = access.token().to_owned();
        let host = ("host", "127.0.0.1:7070");
        let check = |pair: Option<(&'static str, String)>, query: Option<&str>| {
            let mut pairs = vec![host];
            if let Some((name, value)) = &pair {
                pairs.push((name, value));
            }
            access.check(&headers(&pairs), query)
        };
        assert_eq!(check(None, Some(&format!("token={token}"))), Ok(()));
        assert_eq!(
            check(None, Some(&format!("window=30&token={token}"))),
            Ok(())
        );
        for (name, value) in [
            ("authorization", format!("Bearer {token}")),
            ("authorization", format!("bearer {token}")),
            ("cookie", format!("agent_7070={token}")),
            (
                "cookie",
                format!("a=b; agent_7070=old; agent_7070={token}; c=d"),
            ),
        ] {
            assert_eq!(check(Some((name, value)), None), Ok(()));
        }
        let (short, long, zeros) = (&token[..31], format!("{token}0"), "0".repeat(32));
        for wrong in [
            "",
            short,
            &long,
            &zeros,
            "é",
            &token.to_uppercase().replace('0', "1"),
        ] {
            let query = format!("token={wrong}");
            assert_eq!(check(None, Some(&query)), Err(Refused::Token), "{wrong}");
        }
        for (name, value) in [
            ("authorization", format!("Basic {token}")),
            ("authorization", token.clone()),
            ("cookie", format!("agent_7071={token}")),
            ("cookie", token.clone()),
        ] {
            assert_eq!(check(Some((name, value)), None), Err(Refused::Token));
        }
        assert_eq!(check(None, None), Err(Refused::Token));
    }

    #[test]
    fn foreign_hosts_are_refused_even_with_the_token() {
        let check = |listen: &str, host: Option<&str>| {
            let access = access(listen);
            let query = format!("token={}", access.token());
            let pairs: Vec<(&'static str, &str)> =
                host.map(|host| ("host", host)).into_iter().collect();
            access.check(&headers(&pairs), Some(&query))
        };
        for own in [
            "localhost:7070",
            "LOCALHOST",
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]:7070",
            "127.9.9.9",
        ] {
            assert_eq!(check("127.0.0.1:7070", Some(own)), Ok(()), "{own}");
        }
        for foreign in [
            "evil.example",
            "evil.example:7070",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "",
            ":",
            "[::1",
            "localhost:7070:80",
            "0.0.0.0",
        ] {
            assert_eq!(
                check("127.0.0.1:7070", Some(foreign)),
                Err(Refused::Host),
                "{foreign}"
            );
        }
        assert_eq!(check("127.0.0.1:7070", None), Err(Refused::Host));
        assert_eq!(check("10.0.0.1:7070", Some("10.0.0.1:7070")), Ok(()));
        assert_eq!(
            check("10.0.0.1:7070", Some("10.0.0.2:7070")),
            Err(Refused::Host)
        );
        assert_eq!(check("0.0.0.0:7070", Some("10.0.0.2:7070")), Ok(()));
        assert_eq!(check("[::]:7070", Some("[fd00::1]:7070")), Ok(()));
        assert_eq!(
            check("0.0.0.0:7070", Some("pod.example")),
            Err(Refused::Host)
        );
    }

    #[test]
    fn the_cookie_is_for_this_port_and_no_script() {
        let cookie = access("127.0.0.1:81").cookie();
        assert!(cookie.starts_with("agent_81="), "{cookie}");
        assert!(
            cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
            "{cookie}"
        );
    }
}
