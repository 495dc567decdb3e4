//! The metrics socket: `GET /metrics` over HTTP/1.1 on a local socket, under the same rules as the
//! daemon's own. One request a connection, and not for long.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use interprocess::local_socket::tokio::{Listener, Stream};
use interprocess::local_socket::traits::tokio::Listener as _;
use tokio::task::JoinSet;

use super::text::{self, Format};
use crate::limits::{
    METRICS_CONNECTION_TIME_MAX, METRICS_CONNECTIONS_MAX, METRICS_REQUEST_BYTES_MAX,
};
use crate::state::Shared;
use crate::{peer, status};

const PATH: &str = "/metrics";

/// Answers on `listener` until it is dropped, and with it every connection.
pub(super) async fn serve(listener: Listener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok(stream) => match peer::identify(&stream) {
                    Ok(_) if connections.len() < METRICS_CONNECTIONS_MAX => {
                        connections.spawn(answer_one(stream, Arc::clone(&shared)));
                    }
                    Ok(_) => tracing::debug!("too many connections to the metrics socket"),
                    Err(error) => tracing::warn!(%error, "a connection for metrics is refused"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for metrics");
                    // Out of descriptors or memory: others must end first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

/// Answers one request and closes the connection.
async fn answer_one(stream: Stream, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let response = answer(&request, || shared.describe());
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(METRICS_REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(METRICS_CONNECTION_TIME_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let error = status::chain(&error);
            tracing::debug!(error, "a connection for metrics broke");
        }
        Err(_) => tracing::debug!("a connection for metrics took too long"),
    }
}

/// The answer to a request; its body, if it has one, is not read.
fn answer<B>(
    request: &Request<B>,
    describe: impl FnOnce() -> hearth_proto::v1::DaemonStatus,
) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, "only /metrics is here\n");
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let allow = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allow);
        return response;
    }
    let format = format_for(request);
    match text::encode(&describe(), format) {
        Ok(text) => {
            let mut response = Response::new(Full::new(Bytes::from(text)));
            let kind = HeaderValue::from_static(format.content_type());
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(error) => {
            tracing::error!(%error, "a bug: metrics cannot be put into words");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "a bug of the daemon\n")
        }
    }
}

/// OpenMetrics for those who name it, as scrapers do that prefer it; else what everybody reads.
fn format_for<B>(request: &Request<B>) -> Format {
    let names_it = request
        .headers()
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"));
    if names_it {
        Format::OpenMetrics
    } else {
        Format::Prometheus
    }
}

fn plain(code: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = code;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, path: &str, accept: Option<&str>) -> Response<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        answer(&request.body(()).unwrap(), Default::default)
    }

    #[test]
    fn only_metrics_are_there_and_only_to_read() {
        assert_eq!(ask("GET", "/metrics", None).status(), StatusCode::OK);
        assert_eq!(ask("HEAD", "/metrics?x=1", None).status(), StatusCode::OK);
        for path in ["/", "/metrics/", "/metric"] {
            assert_eq!(ask("GET", path, None).status(), StatusCode::NOT_FOUND);
        }
        let refused = ask("POST", "/metrics", None);
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refused.headers()[ALLOW], "GET, HEAD");
    }

    #[test]
    fn the_format_is_the_readers_choice() {
        let kind = |accept| {
            let response = ask("GET", "/metrics", accept);
            response.headers()[CONTENT_TYPE]
                .to_str()
                .unwrap()
                .to_owned()
        };
        for accept in [None, Some("*/*"), Some("text/plain;version=0.0.4")] {
            assert!(kind(accept).starts_with("text/plain; version=0.0.4"));
        }
        let scraper = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        assert!(kind(Some(scraper)).starts_with("application/openmetrics-text"));
    }
}
