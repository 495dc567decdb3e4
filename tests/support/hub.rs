//! A model hub on this machine, over HTTPS with a root certificate made on the spot: listings, files by
//! redirect to a second host, ranges, ETags. A twist makes it misbehave.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

pub const REPO: &str = "maker/tiny";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The token that a test gives; see [`Asked::authorized`].
pub const TOKEN: &str = "hf_secret";

/// How long it waits at a gate before it breaks the connection off.
const PATIENCE: Duration = Duration::from_secs(20);

/// A file that the hub has.
#[derive(Debug, Clone)]
pub struct HubFile {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Whether it is kept in large file storage: by SHA-256, and on the second host.
    pub large: bool,
}

/// What the hub has, and where.
#[derive(Debug)]
pub struct Facts {
    pub files: Vec<HubFile>,
    pub hub: String,
    pub storage: String,
    /// How long it pauses after each 8 KiB of a file.
    pub pause: Duration,
    /// Up to where it sends a file; it waits there until this is raised, or for [`PATIENCE`].
    pub gate: AtomicUsize,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Asked {
    pub at_storage: bool,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// How many requests of its kind came before it.
    pub turn: usize,
}

impl Asked {
    pub fn is_listing(&self) -> bool {
        self.path.starts_with("/api/models/")
    }

    /// Whether it is the hub's own answer about a file.
    pub fn is_resolve(&self) -> bool {
        self.path.contains("/resolve/")
    }

    pub fn authorized(&self) -> bool {
        self.headers.contains_key("authorization")
    }

    pub fn range_start(&self) -> Option<usize> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }

    fn kind(&self) -> u8 {
        u8::from(self.is_listing()) + 2 * u8::from(self.is_resolve())
    }
}

/// Answers a request in the place of the hub; false leaves it to the hub.
pub type Twist = Box<dyn Fn(&Asked, &Facts, &mut dyn Write) -> bool + Send + Sync>;

/// A running hub, gone when dropped.
pub struct FakeHub {
    pub facts: Arc<Facts>,
    /// The file with its root certificate.
    pub roots: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
    ends: Arc<AtomicBool>,
    ports: [u16; 2],
}

impl FakeHub {
    /// Starts one. Its root certificate is written into `dir`.
    pub fn start(dir: &Path, files: Vec<HubFile>, pause: Duration, twist: Twist) -> Self {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [0, 1].map(|n: usize| listeners[n].local_addr().unwrap().port());
        let (tls, root) = certified();
        let roots = dir.join("roots.pem");
        std::fs::write(&roots, root).unwrap();
        let hub = Self {
            facts: Arc::new(Facts {
                files,
                hub: format!("https://localhost:{}", ports[0]),
                storage: format!("https://127.0.0.1:{}", ports[1]),
                pause,
                gate: AtomicUsize::new(usize::MAX),
            }),
            roots,
            asked: Arc::default(),
            ends: Arc::default(),
            ports,
        };
        let twist = Arc::new(twist);
        for (listener, at_storage) in listeners.into_iter().zip([false, true]) {
            let (facts, asked) = (Arc::clone(&hub.facts), Arc::clone(&hub.asked));
            let (ends, tls, twist) = (Arc::clone(&hub.ends), Arc::clone(&tls), Arc::clone(&twist));
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if ends.load(Ordering::Relaxed) {
                        return;
                    }
                    let (facts, asked) = (Arc::clone(&facts), Arc::clone(&asked));
                    let (tls, twist) = (Arc::clone(&tls), Arc::clone(&twist));
                    std::thread::spawn(move || {
                        let _ = serve(stream, tls, at_storage, &facts, &asked, &twist);
                    });
                }
            });
        }
        hub
    }

    /// A hub that behaves.
    pub fn sound(dir: &Path, files: Vec<HubFile>) -> Self {
        Self::start(dir, files, Duration::ZERO, Box::new(|_, _, _| false))
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The environment that leads a command here and nowhere else.
    pub fn environment(&self, home: &Path) -> Vec<(&'static str, String)> {
        vec![
            ("HF_ENDPOINT", self.facts.hub.clone()),
            ("HF_HOME", home.display().to_string()),
            ("SSL_CERT_FILE", self.roots.display().to_string()),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "1".to_owned()),
        ]
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for port in self.ports {
            let _ = TcpStream::connect(("127.0.0.1", port));
        }
    }
}

impl HubFile {
    /// A file in large file storage.
    pub fn large(name: &str, bytes: Vec<u8>) -> Self {
        let name = name.to_owned();
        Self {
            name,
            bytes,
            large: true,
        }
    }

    /// A file in the repository itself.
    pub fn small(name: &str, bytes: Vec<u8>) -> Self {
        Self {
            large: false,
            ..Self::large(name, bytes)
        }
    }

    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(&self.bytes))
    }

    pub fn git(&self) -> String {
        let mut hash = Sha1::new();
        hash.update(format!("blob {}\0", self.bytes.len()));
        hash.update(&self.bytes);
        hex(&hash.finalize())
    }

    fn hash(&self) -> String {
        if self.large {
            self.sha256()
        } else {
            self.git()
        }
    }
}

impl Facts {
    /// The hub's description of the repository.
    pub fn listing(&self) -> Value {
        let sibling = |file: &HubFile| {
            let lfs = json!({ "sha256": file.sha256(), "size": file.bytes.len() });
            json!({
                "rfilename": file.name,
                "size": file.bytes.len(),
                "blobId": file.git(),
                "lfs": if file.large { lfs } else { Value::Null },
            })
        };
        json!({
            "id": REPO,
            "sha": COMMIT,
            "gated": false,
            "tags": ["license:mit"],
            "cardData": { "license": "mit" },
            "siblings": self.files.iter().map(sibling).collect::<Vec<_>>(),
        })
    }

    fn file(&self, path: &str) -> Option<&HubFile> {
        let name = path.split('?').next()?.rsplit('/').next()?;
        self.files.iter().find(|file| file.name == name)
    }
}

/// Writes an answer with a body, and its length unless the headers tell one.
pub fn answer(out: &mut dyn Write, status: u16, headers: &[(&str, String)], body: &[u8]) {
    let mut head = format!("HTTP/1.1 {status} -\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let lengths = ["Content-Length", "Transfer-Encoding"];
    if !headers.iter().any(|(name, _)| lengths.contains(name)) {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    // Who asked may be gone.
    let _ = out.write_all(head.as_bytes());
    let _ = out.write_all(b"\r\n");
    let _ = out.write_all(body);
    let _ = out.flush();
}

/// Answers as a hub does.
fn usual(asked: &Asked, facts: &Facts, out: &mut dyn Write) {
    if asked.is_listing() {
        return answer(out, 200, &[], facts.listing().to_string().as_bytes());
    }
    let Some(file) = facts.file(&asked.path) else {
        return answer(out, 404, &[], b"no such file");
    };
    if asked.is_resolve() {
        let to = match file.large {
            true => format!("{}/{}?signature=x", facts.storage, file.name),
            false => format!("/api/resolve-cache/{}", file.name),
        };
        let quoted = |text: String| format!("\"{text}\"");
        let mut headers = vec![
            ("Location", to),
            ("X-Repo-Commit", COMMIT.to_owned()),
            ("ETag", quoted(file.git())),
        ];
        if file.large {
            headers.push(("X-Linked-ETag", quoted(file.sha256())));
            headers.push(("X-Linked-Size", file.bytes.len().to_string()));
        }
        return answer(out, if file.large { 302 } else { 307 }, &headers, b"");
    }
    send(asked, facts, file, out);
}

/// Sends a file, or the part of it that was asked for.
fn send(asked: &Asked, facts: &Facts, file: &HubFile, out: &mut dyn Write) {
    let etag = format!("\"{}\"", file.hash());
    let same = asked.headers.get("if-range").is_none_or(|tag| *tag == etag);
    let total = file.bytes.len();
    let start = asked.range_start().filter(|_| same);
    let body = &file.bytes[start.unwrap_or(0).min(total)..];
    let mut headers = vec![("ETag", etag), ("Content-Length", body.len().to_string())];
    let status = match start {
        Some(start) => {
            let range = format!("bytes {start}-{}/{total}", total - 1);
            headers.push(("Content-Range", range));
            206
        }
        None => 200,
    };
    answer(out, status, &headers, b"");
    let (mut at, mut waiting) = (total - body.len(), Instant::now());
    while at < total && waiting.elapsed() < PATIENCE {
        let end = facts.gate.load(Ordering::Relaxed).min(total);
        if end <= at {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        }
        let piece = &file.bytes[at..end.min(at + (8 << 10))];
        if out.write_all(piece).and_then(|()| out.flush()).is_err() {
            return;
        }
        at += piece.len();
        if !facts.pause.is_zero() {
            std::thread::sleep(facts.pause);
        }
        waiting = Instant::now();
    }
}

fn serve(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    at_storage: bool,
    facts: &Facts,
    log: &Mutex<Vec<Asked>>,
    twist: &Twist,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    let connection = ServerConnection::new(tls).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let path = lines.next().and_then(|line| line.split(' ').nth(1));
    let headers = lines.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    let mut asked = Asked {
        at_storage,
        path: path.unwrap_or_default().to_owned(),
        headers: headers.collect(),
        turn: 0,
    };
    {
        let mut log = log.lock().unwrap();
        let same =
            |other: &&Asked| (other.at_storage, other.kind()) == (asked.at_storage, asked.kind());
        asked.turn = log.iter().filter(same).count();
        log.push(asked.clone());
    }
    if !twist(&asked, facts, &mut stream) {
        usual(&asked, facts, &mut stream);
    }
    stream.conn.send_close_notify();
    stream.flush()
}

/// A certificate for this machine, and the root that vouches for it.
fn certified() -> (Arc<ServerConfig>, String) {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let leaf = CertificateParams::new(names).unwrap();
    let leaf = leaf.signed_by(&key, &root).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    (Arc::new(config), root.pem())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
