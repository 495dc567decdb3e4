//! Requests to the hub: certificates, proxies, redirects, silences, retries. The token goes to the hub
//! itself and to nobody it redirects to.

use std::sync::Arc;
use std::time::Duration;

use ureq::http::{HeaderMap, HeaderName, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::error::{HubError, failed};
use super::limits::{
    ANSWER_HEAD_BYTES_MAX, PAUSE, REDIRECTS_MAX, RETRY_AFTER_MAX, ROOTS_BYTES_MAX,
    SILENCES_OF_ANSWER, TRIES_MAX,
};
use super::names::shown;
use super::settings::{Settings, is_this_machine};

/// What the hub itself says of a file, wherever the file comes from in the end.
const OF_FILE: [&str; 4] = ["x-repo-commit", "x-linked-etag", "x-linked-size", "etag"];

/// Asks the hub.
pub(super) struct Http {
    agent: Agent,
    base: String,
    origin: Origin,
    token: Option<String>,
    silence: Duration,
}

impl std::fmt::Debug for Http {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// Who answers under an address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

/// An answer whose body is still to come.
pub(super) struct Answer {
    pub(super) status: u16,
    /// Of the one who answered last.
    pub(super) headers: HeaderMap,
    /// What the hub itself said, before it redirected.
    pub(super) of_hub: HeaderMap,
    pub(super) body: Body,
    pub(super) host: String,
}

impl Http {
    /// With these settings.
    ///
    /// # Errors
    /// The certificates cannot be read.
    pub(super) fn new(settings: &Settings) -> Result<Self, HubError> {
        let roots = match &settings.roots {
            Some(path) => RootCerts::Specific(Arc::new(certificates(path)?)),
            None => RootCerts::PlatformVerifier,
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(roots)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let head = settings.silence * SILENCES_OF_ANSWER;
        // Proxies are those of the environment: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY.
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(ANSWER_HEAD_BYTES_MAX)
            .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(head))
            .timeout_recv_response(Some(head))
            .timeout_per_read(Some(settings.silence))
            .timeout_per_write(Some(settings.silence))
            .build();
        let base = settings.endpoint.clone();
        let origin = Origin::of(&base).ok_or_else(|| HubError::Setting {
            name: "HF_ENDPOINT",
            problem: "is no address".to_owned(),
        })?;
        Ok(Self {
            agent: config.new_agent(),
            base,
            origin,
            token: settings.token.clone(),
            silence: settings.silence,
        })
    }

    /// How long the hub may be silent.
    pub(super) fn silence(&self) -> Duration {
        self.silence
    }

    /// Asks for what lies at `path` of the hub and tries again while the hub is at fault. `what` is
    /// for the error.
    ///
    /// # Errors
    /// No answer, or one that is not 200, 206 or 416.
    pub(super) fn get(
        &self,
        path: &str,
        headers: &[(HeaderName, String)],
        what: &str,
    ) -> Result<Answer, HubError> {
        self.ask(path, headers, what, false)
    }

    /// As [`Http::get`], for the head alone.
    ///
    /// # Errors
    /// As there.
    pub(super) fn head(&self, path: &str, what: &str) -> Result<Answer, HubError> {
        self.ask(path, &[], what, true)
    }

    fn ask(
        &self,
        path: &str,
        headers: &[(HeaderName, String)],
        what: &str,
        head: bool,
    ) -> Result<Answer, HubError> {
        let mut pause = PAUSE;
        for left in (0..TRIES_MAX).rev() {
            let answer = match self.follow(path, headers, head) {
                Err(error) if error.is_passing() && left > 0 => {
                    std::thread::sleep(pause);
                    pause *= 2;
                    continue;
                }
                answer => answer?,
            };
            let wait = match answer.status {
                429 | 503 => retry_after(&answer.headers).unwrap_or(pause),
                500..=599 => pause,
                _ => return self.accept(answer, what),
            };
            if left == 0 || wait > RETRY_AFTER_MAX {
                return self.accept(answer, what);
            }
            std::thread::sleep(wait);
            pause *= 2;
        }
        Err(HubError::Stalled {
            host: self.origin.host.clone(),
        })
    }

    /// Lets an answer through that has what was asked for.
    fn accept(&self, answer: Answer, what: &str) -> Result<Answer, HubError> {
        let what = what.to_owned();
        match answer.status {
            200 | 206 | 416 => {}
            401 | 403 => {
                let known = self.token.is_some();
                return Err(HubError::Denied { what, known });
            }
            404 | 410 => return Err(HubError::NotFound { what }),
            429 => {
                let retry_after = retry_after(&answer.headers);
                return Err(HubError::TooOften { retry_after });
            }
            status => {
                let host = answer.host;
                return Err(HubError::Status { host, status });
            }
        }
        let encoding = answer.headers.get(header::CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            let why = "it is compressed, which was not asked for";
            return Err(HubError::Answer(why.to_owned()));
        }
        Ok(answer)
    }

    /// One request and where it is redirected.
    fn follow(
        &self,
        path: &str,
        headers: &[(HeaderName, String)],
        head: bool,
    ) -> Result<Answer, HubError> {
        let mut url = format!("{}{path}", self.base);
        let mut of_hub = HeaderMap::new();
        let mut host = self.origin.host.clone();
        for _ in 0..=REDIRECTS_MAX {
            let origin = Origin::of(&url).ok_or_else(|| redirect(&host, "to no address"))?;
            let own = origin == self.origin;
            host.clone_from(&origin.host);
            let mut request = match head {
                true => self.agent.head(&url),
                false => self.agent.get(&url),
            };
            for (name, value) in headers {
                request = request.header(name, value);
            }
            if let (true, Some(token)) = (own, &self.token) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| of_ureq(error, &host))?;
            let (parts, body) = response.into_parts();
            if own {
                for name in OF_FILE {
                    if let (Some(value), false) =
                        (parts.headers.get(name), of_hub.contains_key(name))
                    {
                        of_hub.insert(HeaderName::from_static(name), value.clone());
                    }
                }
            }
            if !matches!(parts.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer {
                    status: parts.status.as_u16(),
                    headers: parts.headers,
                    of_hub,
                    body,
                    host,
                });
            }
            let to = parts
                .headers
                .get(header::LOCATION)
                .and_then(|to| to.to_str().ok());
            url = self.redirected(&url, to.unwrap_or_default(), &host)?;
        }
        Err(redirect(&host, "again and again"))
    }

    /// The address that a redirect leads to: over HTTPS, or where plain HTTP is in use already.
    fn redirected(&self, from: &str, to: &str, host: &str) -> Result<String, HubError> {
        if to.starts_with('/') && !to.starts_with("//") {
            let base = Origin::of(from).map(|origin| origin.base());
            return base
                .map(|base| format!("{base}{to}"))
                .ok_or_else(|| redirect(host, "to no address"));
        }
        if to.contains('@') && to.split('/').nth(2).is_some_and(|host| host.contains('@')) {
            return Err(redirect(host, "to an address with a password"));
        }
        match Origin::of(to) {
            Some(origin) if origin.secure => Ok(to.to_owned()),
            Some(origin) if !self.origin.secure && is_this_machine(&origin.host) => {
                Ok(to.to_owned())
            }
            Some(_) => Err(redirect(host, "to an address without encryption")),
            None => Err(redirect(host, "to what is no web address")),
        }
    }

    /// Reads a small answer whole.
    ///
    /// # Errors
    /// It is larger than `limit`, or does not come.
    pub(super) fn read(&self, answer: Answer, limit: u64) -> Result<Vec<u8>, HubError> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        let begun = std::time::Instant::now();
        let mut body = answer.body.into_reader();
        let mut buffer = [0; 16 << 10];
        loop {
            let n = body
                .read(&mut buffer)
                .map_err(|error| of_io(error, &answer.host))?;
            if n == 0 {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&buffer[..n]);
            if bytes.len() as u64 > limit {
                return Err(HubError::Answer(format!("it is over {limit} bytes long")));
            }
            if begun.elapsed() > self.silence * SILENCES_OF_ANSWER {
                let host = answer.host;
                return Err(HubError::Stalled { host });
            }
        }
    }
}

impl Origin {
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?;
        Some(Self {
            secure,
            host: host.to_ascii_lowercase(),
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
        })
    }

    fn base(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host, self.port)
    }
}

fn redirect(host: &str, why: &'static str) -> HubError {
    HubError::Redirect {
        host: shown(host),
        why,
    }
}

/// How long the hub wants to be left alone, in whole seconds; a date is not understood.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

fn of_ureq(error: ureq::Error, host: &str) -> HubError {
    let host = shown(host);
    match error {
        ureq::Error::Timeout(_) => HubError::Stalled { host },
        error => HubError::Unreachable {
            host,
            source: Box::new(error),
        },
    }
}

/// What reading a body fails with.
pub(super) fn of_io(error: std::io::Error, host: &str) -> HubError {
    of_ureq(ureq::Error::from(error), host)
}

fn certificates(path: &std::path::Path) -> Result<Vec<ureq::tls::Certificate<'static>>, HubError> {
    use std::io::Read as _;
    let mut pem = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(ROOTS_BYTES_MAX).read_to_end(&mut pem))
        .map_err(failed("read", path))?;
    let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(HubError::Setting {
            name: "SSL_CERT_FILE",
            problem: "holds no certificate".to_owned(),
        });
    }
    Ok(certificates)
}
