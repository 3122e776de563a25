//! The HTTP server of the live page: who may ask, what can be asked, and the limits. It knows nothing
//! of what it shows: each question is handed on, with where its answer goes.

pub mod access;
mod connection;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

use access::Access;

/// Connections at a time; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// Questions that wait for an answer.
const MAX_WAITING: usize = MAX_CONNECTIONS;
/// Pause after an `accept` that failed: there may be no descriptor left for a while.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("--listen {address}: cannot listen there{}", hint(.source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// No random bytes for the token.
    #[error("cannot read random bytes from /dev/urandom for the token")]
    Random(#[source] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            ": another program does; choose another port, or `--listen 127.0.0.1:0` for any free one"
        }
        io::ErrorKind::AddrNotAvailable => ": this machine does not have the address",
        _ => "",
    }
}

/// What a client can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The page.
    Page,
    /// What the page shows, of the last so many seconds; `None` for the usual length.
    Live(Option<u32>),
    /// Prometheus metrics.
    Metrics,
    /// The capture of the last so many seconds as a bundle.
    Bundle(Option<u32>),
}

impl Question {
    /// What a path and its query ask for.
    pub fn of(path: &str, query: Option<&str>) -> Option<Self> {
        let window = query.and_then(|query| access::parameter(query, "window"));
        let window = window.and_then(|seconds| seconds.parse().ok());
        Some(match path {
            "/" => Question::Page,
            "/live.json" => Question::Live(window),
            "/metrics" => Question::Metrics,
            "/bundle.zip" => Question::Bundle(window),
            _ => return None,
        })
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// 200, or what went wrong.
    pub status: StatusCode,
    /// `Content-Type`.
    pub kind: &'static str,
    /// The name that a browser saves it under.
    pub file: Option<String>,
    /// The `Content-Security-Policy` that a page has; others have the strictest.
    pub policy: Option<Arc<str>>,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// A plain text.
    pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Self {
        Self::of("text/plain; charset=utf-8", text).with(status)
    }

    /// What was asked for.
    pub fn of(kind: &'static str, body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            kind,
            file: None,
            policy: None,
            body: body.into(),
        }
    }

    fn with(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// Something went wrong here.
    pub fn failed(text: impl Into<Bytes>) -> Self {
        Self::text(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    /// Not now.
    pub fn busy(text: impl Into<Bytes>) -> Self {
        Self::text(StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

/// A question of a client that may ask, and where the answer goes.
#[derive(Debug)]
pub struct Asked {
    /// What it asks for.
    pub question: Question,
    /// Where to.
    pub answer: oneshot::Sender<Answer>,
}

/// A server that listens, but answers nothing yet.
pub struct Server {
    listener: TcpListener,
    access: Access,
    address: SocketAddr,
}

impl Server {
    /// Takes the address.
    ///
    /// # Errors
    /// When it cannot be listened on, or there are no random bytes.
    pub async fn bind(address: SocketAddr) -> Result<Self, Error> {
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        // The port may have been left to the system.
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            access: Access::new(address).map_err(Error::Random)?,
            address,
        })
    }

    /// Where the page is, with the token.
    pub fn url(&self) -> String {
        format!("http://{}/?token={}", self.address, self.access.token())
    }

    /// Whether other machines can reach it.
    pub fn is_exposed(&self) -> bool {
        !self.address.ip().to_canonical().is_loopback()
    }

    /// Begins to answer, in tasks of the current runtime; the questions come out of the receiver.
    /// Once that is dropped, clients are told that the agent ends.
    pub fn start(self) -> mpsc::Receiver<Asked> {
        let (questions, asked) = mpsc::channel(MAX_WAITING);
        let access = Arc::new(self.access);
        let listener = self.listener;
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        tokio::spawn(async move {
            // The semaphore is never closed.
            while let Ok(place) = Arc::clone(&places).acquire_owned().await {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                let (access, questions) = (Arc::clone(&access), questions.clone());
                tokio::spawn(async move {
                    connection::serve(stream, &access, &questions).await;
                    drop(place);
                });
            }
        });
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_questions() {
        let of = |path| Question::of(path, None);
        assert_eq!(of("/"), Some(Question::Page));
        assert_eq!(of("/metrics"), Some(Question::Metrics));
        assert_eq!(of("/bundle.zip"), Some(Question::Bundle(None)));
        assert_eq!(of("/live.json"), Some(Question::Live(None)));
        for other in ["", "//", "/metrics/", "/../etc/passwd", "/live.json/x", "*"] {
            assert_eq!(of(other), None, "{other}");
        }
        let window = |query| Question::of("/live.json", Some(query));
        assert_eq!(window("token=x&window=10"), Some(Question::Live(Some(10))));
        for bad in [
            "window=",
            "window=-1",
            "window=1e9",
            "window=99999999999",
            "w=1",
        ] {
            assert_eq!(window(bad), Some(Question::Live(None)), "{bad}");
        }
    }
}
