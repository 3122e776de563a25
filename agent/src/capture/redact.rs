//! Takes secrets out of command lines, so that a capture can be attached to a ticket. It goes by the
//! names of flags and variables and by the look of values; where it is in doubt, it redacts.

/// What stands in a secret's place.
pub const REDACTED: &str = "[redacted]";

/// A flag or a variable with one of these in its name has a secret for its value.
const NAMES: [&str; 9] = [
    "pass",
    "pwd",
    "secret",
    "token",
    "key",
    "credential",
    "auth",
    "cookie",
    "dsn",
];
/// Words without a dash that announce a secret.
const WORDS: [&str; 8] = [
    "password",
    "passwd",
    "requirepass",
    "masterauth",
    "secret",
    "token",
    "bearer",
    "basic",
];
/// What tokens of well-known services begin with.
const PREFIXES: [&str; 16] = [
    "eyJ",
    "AKIA",
    "ASIA",
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "xoxa-",
    "xoxb-",
    "xoxp-",
    "sk-",
    "sk_live_",
    "rk_live_",
    "AIza",
];
/// Shortest run that is taken for a token by its prefix.
const MIN_PREFIXED: usize = 16;
/// Shortest run that is taken for a token by its look.
const MIN_TOKEN: usize = 32;
/// Bits per character from which on a run looks random: names reach 4.0, random base64 4.4 and more.
const RANDOM_BITS: f64 = 4.2;

/// The words with their secrets replaced by [`REDACTED`]. The first is the program.
pub fn command_line<S: AsRef<str>>(words: &[S]) -> Vec<String> {
    let Some((program, arguments)) = words.split_first() else {
        return Vec::new();
    };
    let mut redacted = vec![word(program.as_ref())];
    redacted.extend(line(arguments.iter().map(AsRef::as_ref)));
    redacted
}

/// Words of which each may announce that the next one is a secret.
fn line<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut redacted = Vec::new();
    let mut announced: Option<&str> = None;
    for text in words {
        match announced.take() {
            Some(by) if is_user(by) => redacted.push(user(text)),
            // A flag that takes no value after all; the next one is looked at as usual.
            Some(by) if !text.starts_with("--") || !by.starts_with('-') => {
                redacted.push(REDACTED.to_owned());
                // The scheme of an Authorization header comes before the secret.
                announced = WORDS[6..]
                    .contains(&bare(text).to_ascii_lowercase().as_str())
                    .then_some(text);
                continue;
            }
            _ => redacted.push(word(text)),
        }
        announced = announces(text).then_some(text);
    }
    redacted
}

/// Whether the next word is a secret.
fn announces(text: &str) -> bool {
    let name = bare(text);
    if let Some(header) = name.strip_suffix(':') {
        return is_secret(header);
    }
    if name.contains(['=', ' ']) {
        return false;
    }
    let flag = name.starts_with('-') && (is_secret(name) || is_user(name));
    flag || WORDS.contains(&name.to_ascii_lowercase().as_str())
}

fn bare(text: &str) -> &str {
    text.trim_matches(['"', '\''])
}

/// Flags whose value may be `name:password`.
fn is_user(flag: &str) -> bool {
    matches!(flag, "-u" | "-U" | "--user" | "--proxy-user")
}

fn user(text: &str) -> String {
    match text.split_once(':') {
        Some((name, _)) => format!("{name}:{REDACTED}"),
        None => word(text),
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    NAMES.iter().any(|secret| name.contains(secret))
}

/// One word. It may be a whole command line, or a header, of its own.
fn word(text: &str) -> String {
    // The value may have blanks in it.
    if let Some((name, _)) = text.split_once('=')
        && !name.contains(char::is_whitespace)
        && is_secret(name)
    {
        return pairs(text);
    }
    if text.contains(char::is_whitespace) {
        return line(text.split(char::is_whitespace)).join(" ");
    }
    tokens(&pairs(&userinfo(text)))
}

/// `scheme://user:PASS@host`, and the `user:PASS@tcp(host)` of Go's MySQL driver.
fn userinfo(text: &str) -> String {
    let scheme = text.find("://").map(|at| at + 3);
    let driver = ["@tcp(", "@unix("].iter().find_map(|mark| text.find(mark));
    let (start, end) = match (scheme, driver) {
        (Some(start), _) => (start, text.rfind('@')),
        (None, Some(end)) => (0, Some(end)),
        (None, None) => return text.to_owned(),
    };
    // The name may end with it: `http://host/path@version`.
    let Some(info) = end.and_then(|end| text.get(start..end)) else {
        return text.to_owned();
    };
    let rest = text.get(start + info.len()..).unwrap_or_default();
    let head = text.get(..start).unwrap_or_default();
    match info.split_once(':') {
        Some((user, password)) if !password.is_empty() => {
            format!("{head}{user}:{REDACTED}{rest}")
        }
        _ => text.to_owned(),
    }
}

/// `name=value` and `name:value`, anywhere in the word; from a secret value on all is dropped.
fn pairs(text: &str) -> String {
    for (at, separator) in text.match_indices(['=', ':']) {
        let (before, after) = (
            text.get(..at).unwrap_or_default(),
            text.get(at + 1..).unwrap_or_default(),
        );
        let is_name = |c: char| c.is_alphanumeric() || "-_.[]".contains(c);
        let name = before.trim_end_matches(['"', '\'', '\\']);
        let start = name.rfind(|c| !is_name(c)).map_or(0, |last| last + 1);
        let name = name.get(start..).unwrap_or(name);
        let value = !after.is_empty() && !after.starts_with("//") && after != REDACTED;
        if value && is_secret(name) {
            return format!("{before}{separator}{REDACTED}");
        }
    }
    text.to_owned()
}

/// Replaces what looks like a token.
fn tokens(text: &str) -> String {
    let in_token = |c: char| c.is_ascii_alphanumeric() || "+_-".contains(c);
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let inside = in_token(first);
        let end = rest.find(|c| in_token(c) != inside).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        redacted.push_str(if inside && is_token(run) {
            REDACTED
        } else {
            run
        });
        rest = after;
    }
    redacted
}

fn is_token(run: &str) -> bool {
    let prefixed = PREFIXES.iter().any(|prefix| run.starts_with(prefix));
    if prefixed && run.len() >= MIN_PREFIXED {
        return true;
    }
    if run.len() < MIN_TOKEN {
        return false;
    }
    let has = |kind: fn(&u8) -> bool| run.bytes().filter(kind).count();
    if has(u8::is_ascii_hexdigit) == run.len() {
        return true;
    }
    has(u8::is_ascii_uppercase) > 0
        && has(u8::is_ascii_lowercase) > 0
        && has(u8::is_ascii_digit) > 1
        && bits(run) >= RANDOM_BITS
}

/// Shannon's entropy of the characters, in bits for each.
fn bits(run: &str) -> f64 {
    let mut counts = [0u32; 256];
    for byte in run.bytes() {
        counts[usize::from(byte)] += 1;
    }
    let length = run.len() as f64;
    counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| f64::from(count) / length)
        .map(|share| -share * share.log2())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(line: &[&str]) -> String {
        command_line(line).join("|")
    }

    #[test]
    fn values_go_by_the_name_of_their_flag() {
        for (line, expected) in [
            (
                &["db", "--password", "x1", "-v"][..],
                "db|--password|[redacted]|-v",
            ),
            (
                &["db", "--password=x1", "-v"],
                "db|--password=[redacted]|-v",
            ),
            (
                &["redis-server", "--requirepass", "p w"],
                "redis-server|--requirepass|[redacted]",
            ),
            (
                &["env", "FOO_TOKEN=x", "A=1"],
                "env|FOO_TOKEN=[redacted]|A=1",
            ),
            (&["x", "--env=API_KEY=abc"], "x|--env=API_KEY=[redacted]"),
            (
                &[
                    "java",
                    "-Djavax.net.ssl.keyStorePassword=changeit",
                    "-jar",
                    "a.jar",
                ],
                "java|-Djavax.net.ssl.keyStorePassword=[redacted]|-jar|a.jar",
            ),
            (&["x", "--no-auth", "--port", "80"], "x|--no-auth|--port|80"),
            (
                &["redis-cli", "config", "set", "requirepass", "x"],
                "redis-cli|config|set|requirepass|[redacted]",
            ),
            (
                &["curl", "-u", "me:hunter2", "http://h/"],
                "curl|-u|me:[redacted]|http://h/",
            ),
            (&["curl", "-u", "me"], "curl|-u|me"),
            (
                &["x", "{\"user\":\"a\",\"password\":\"b\"}"],
                "x|{\"user\":\"a\",\"password\":[redacted]",
            ),
            (
                &["x", "host=h password=p port=1"],
                "x|host=h password=[redacted] port=1",
            ),
            (
                &["x", "http://h/p?a=1&access_token=abc"],
                "x|http://h/p?a=1&access_token=[redacted]",
            ),
            (&["x", "--password=a b"], "x|--password=[redacted]"),
            (&["x", "--dsn", "whatever"], "x|--dsn|[redacted]"),
            (
                &["x", "--session-cookie", "-abc"],
                "x|--session-cookie|[redacted]",
            ),
        ] {
            assert_eq!(redacted(line), expected);
        }
    }

    #[test]
    fn headers_and_commands_within_a_word() {
        assert_eq!(
            redacted(&["curl", "-H", "Authorization: Bearer abc.def", "http://h"]),
            "curl|-H|Authorization: [redacted] [redacted]|http://h"
        );
        assert_eq!(
            redacted(&["curl", "-H", "X-Api-Key: abc"]),
            "curl|-H|X-Api-Key: [redacted]"
        );
        assert_eq!(
            redacted(&["sh", "-c", "exec db --password 'x' --port 1"]),
            "sh|-c|exec db --password [redacted] --port 1"
        );
    }

    #[test]
    fn passwords_in_addresses() {
        for (text, expected) in [
            (
                "postgres://u:p@h:5432/db",
                "postgres://u:[redacted]@h:5432/db",
            ),
            ("postgres://u:p/w?d@h/db", "postgres://u:[redacted]@h/db"),
            ("redis://:p@h", "redis://:[redacted]@h"),
            ("--url=amqp://u:p@h//", "--url=amqp://u:[redacted]@h//"),
            ("u:p@tcp(h:3306)/db", "u:[redacted]@tcp(h:3306)/db"),
            ("http://h:80/x", "http://h:80/x"),
            ("git@h:repo", "git@h:repo"),
        ] {
            assert_eq!(
                redacted(&["x", text]),
                format!("x|{text}").replace(text, expected)
            );
        }
    }

    #[test]
    fn tokens_go_by_their_look() {
        for secret in [
            "eyJhbGciOiJIUzI1NiJ9",
            "AKIAIOSFODNN7EXAMPLE",
            "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
            "d41d8cd98f00b204e9800998ecf8427e",
            "wJalrXUtnFEMI7K7MDENGbPxRfiCYEX4MPLE",
        ] {
            assert_eq!(redacted(&["x", secret]), "x|[redacted]");
            assert_eq!(redacted(&["x", &format!("-o={secret}")]), "x|-o=[redacted]");
        }
        let token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U";
        assert_eq!(
            redacted(&["x", token]),
            "x|[redacted].[redacted].[redacted]"
        );
    }

    #[test]
    fn what_is_no_secret_stays() {
        for plain in [
            "/usr/lib/jvm/java-17-openjdk-amd64/bin/java",
            "com.example.service.VeryLongApplicationNameForOrders2Impl",
            "--max-connections-per-upstream-host-and-port=1024",
            "123e4567-e89b-12d3-a456-426614174000",
            "nginx: master process /usr/sbin/nginx -g daemon off;",
            "postgres: writer process",
            "-XX:+UseG1GC",
            "--listen=127.0.0.1:7070",
            "",
        ] {
            assert_eq!(redacted(&[plain, plain]), format!("{plain}|{plain}"));
        }
        assert!(command_line::<&str>(&[]).is_empty());
    }
}
