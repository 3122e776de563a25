//! One connection: one request, checked, and its answer.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName,
    HeaderValue, REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::access::Access;
use super::{Answer, Asked, Question};

/// Longest time that a client may take to send its request.
const REQUEST: Duration = Duration::from_secs(5);
/// Longest time that a connection may take, a bundle over a slow line included.
const WHOLE: Duration = Duration::from_secs(120);
/// Bytes of a request's head; what is longer is refused with 431.
const MAX_HEAD: usize = 16 << 10;
/// The policy of what is no page: nothing may run or load.
const STRICTEST: &str = "default-src 'none'; frame-ancestors 'none'";

/// Reads one request and answers it. What goes wrong ends the connection and concerns nobody else.
pub(super) async fn serve(stream: TcpStream, access: &Access, questions: &mpsc::Sender<Asked>) {
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(respond(&request, access, questions).await)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(WHOLE, connection).await;
}

async fn respond(
    request: &Request<Incoming>,
    access: &Access,
    questions: &mpsc::Sender<Asked>,
) -> Response<Full<Bytes>> {
    let query = request.uri().query();
    if let Err(refused) = access.check(request.headers(), query) {
        return response(Answer::text(StatusCode::FORBIDDEN, refused.text()));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let refusal = Answer::text(StatusCode::METHOD_NOT_ALLOWED, "405: only GET\n");
        let mut response = response(refusal);
        put(&mut response, ALLOW, "GET, HEAD");
        return response;
    }
    let Some(question) = Question::of(request.uri().path(), query) else {
        let text = "404: there are /, /live.json, /metrics and /bundle.zip\n";
        return response(Answer::text(StatusCode::NOT_FOUND, text));
    };
    let mut response = response(ask(question, questions).await);
    if question == Question::Page {
        put(&mut response, SET_COOKIE, &access.cookie());
    }
    response
}

/// Hands the question on and waits for its answer.
async fn ask(question: Question, questions: &mpsc::Sender<Asked>) -> Answer {
    let (answer, answered) = oneshot::channel();
    let asked = Asked { question, answer };
    let ends = || Answer::text(StatusCode::SERVICE_UNAVAILABLE, "503: the agent ends\n");
    if questions.send(asked).await.is_err() {
        return ends();
    }
    answered.await.unwrap_or_else(|_| ends())
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    put(&mut response, CONTENT_TYPE, answer.kind);
    put(&mut response, CACHE_CONTROL, "no-store");
    put(&mut response, X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(&mut response, REFERRER_POLICY, "no-referrer");
    let policy = answer.policy.as_deref().unwrap_or(STRICTEST);
    put(&mut response, CONTENT_SECURITY_POLICY, policy);
    if let Some(file) = answer.file {
        let disposition = format!("attachment; filename=\"{file}\"");
        put(&mut response, CONTENT_DISPOSITION, &disposition);
    }
    response
}

fn put(response: &mut Response<Full<Bytes>>, name: HeaderName, value: &str) {
    // Our own texts are all visible ASCII.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
