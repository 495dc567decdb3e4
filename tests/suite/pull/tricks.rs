//! Tricks of a hub with files, ranges, redirects and statuses; those with listings are in `listings`.

use std::io::Write;
use std::time::Duration;

use hearth_test_support::hub::{Asked, Facts, Twist, answer};

use super::listings;

/// One trick.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) twist: Twist,
    /// The exit code; 0: the model comes all the same.
    pub(super) code: i32,
    /// What the command says on stderr.
    pub(super) says: &'static str,
}

impl Case {
    /// Whether the hub is too slow in it.
    pub(super) fn is_slow(&self) -> bool {
        ["silent", "next to nothing"].contains(&self.says)
    }
}

pub(super) type Out<'a> = &'a mut dyn Write;

pub(super) fn case(
    name: &'static str,
    code: i32,
    says: &'static str,
    twist: impl Fn(&Asked, &Facts, Out<'_>) -> bool + Send + Sync + 'static,
) -> Case {
    Case {
        name,
        twist: Box::new(twist),
        code,
        says,
    }
}

/// A file sent otherwise.
fn sent(
    name: &'static str,
    code: i32,
    says: &'static str,
    send: impl Fn(&Asked, &[u8], Out<'_>) -> bool + Send + Sync + 'static,
) -> Case {
    case(name, code, says, move |asked, facts, out| {
        asked.at_storage && send(asked, &facts.files[0].bytes, out)
    })
}

/// The hub's answer about the file, with one header changed.
fn resolved(
    name: &'static str,
    says: &'static str,
    header: &'static str,
    value: &'static str,
) -> Case {
    case(name, 1, says, move |asked, facts, out| {
        if asked.is_resolve() {
            let to = format!("{}/{}", facts.storage, facts.files[0].name);
            let mut headers = vec![("Location", to)];
            headers.retain(|(name, _)| *name != header);
            headers.push((header, value.to_owned()));
            answer(out, 302, &headers, b"");
        }
        asked.is_resolve()
    })
}

pub(super) fn length(bytes: usize) -> (&'static str, String) {
    ("Content-Length", bytes.to_string())
}

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    [
        bodies(),
        ranges(),
        redirects(),
        statuses(),
        listings::listings(),
        slow(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn bodies() -> Vec<Case> {
    vec![
        sent("wrong bytes", 1, "its hash is", |_, bytes, out| {
            let mut bytes = bytes.to_vec();
            bytes[4000] ^= 1;
            answer(out, 200, &[], &bytes);
            true
        }),
        sent("short, with the right length", 1, "", |_, bytes, out| {
            answer(out, 200, &[length(bytes.len())], &bytes[..1000]);
            true
        }),
        sent(
            "short, with its own length",
            1,
            "its length",
            |_, bytes, out| {
                answer(out, 200, &[], &bytes[..1000]);
                true
            },
        ),
        sent(
            "short, without a length",
            1,
            "ends after",
            |asked, bytes, out| {
                let start = asked.range_start().unwrap_or(0);
                let end = (start + 1000).min(bytes.len());
                let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
                let status = if start > 0 { 206 } else { 200 };
                let head = format!(
                    "HTTP/1.1 {status} -\r\nConnection: close\r\nContent-Range: {range}\r\n\r\n"
                );
                let _ = out.write_all(head.as_bytes());
                let _ = out.write_all(&bytes[start..end]);
                true
            },
        ),
        sent("long", 1, "its length", |_, bytes, out| {
            answer(out, 200, &[], &[bytes, b"more"].concat());
            true
        }),
        sent(
            "endless, without a length",
            1,
            "longer than",
            |_, bytes, out| {
                let _ = out.write_all(b"HTTP/1.1 200 -\r\nConnection: close\r\n\r\n");
                while out.write_all(bytes).is_ok() {}
                true
            },
        ),
        sent("endless, in chunks", 1, "longer than", |_, _, out| {
            let _ = out.write_all(b"HTTP/1.1 200 -\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = [&b"10000\r\n"[..], &vec![0; 0x10000], b"\r\n"].concat();
            while out.write_all(&chunk).is_ok() {}
            true
        }),
        sent("compressed", 1, "compressed", |_, bytes, out| {
            let headers = [("Content-Encoding", "gzip".to_owned())];
            answer(out, 200, &headers, bytes);
            true
        }),
        sent(
            "another file with a lie about its length",
            1,
            "its hash is",
            |_, bytes, out| {
                answer(out, 200, &[], &vec![0; bytes.len()]);
                true
            },
        ),
    ]
}

/// The first half of the file, so that the rest has to be asked for; then `rest`.
fn half_then(
    name: &'static str,
    code: i32,
    says: &'static str,
    rest: impl Fn(&Asked, &[u8], Out<'_>) + Send + Sync + 'static,
) -> Case {
    sent(name, code, says, move |asked, bytes, out| {
        if asked.turn == 0 {
            let headers = [length(bytes.len()), ("ETag", "\"first\"".to_owned())];
            answer(out, 200, &headers, &bytes[..bytes.len() / 2]);
        } else {
            rest(asked, bytes, out);
        }
        true
    })
}

fn part(out: Out<'_>, range: String, body: &[u8]) {
    answer(out, 206, &[("Content-Range", range)], body);
}

fn ranges() -> Vec<Case> {
    vec![
        half_then("a range is ignored", 0, "", |_, bytes, out| {
            answer(out, 200, &[], bytes);
        }),
        half_then(
            "the ETag changes midway",
            1,
            "its hash is",
            |asked, bytes, out| {
                assert_eq!(asked.headers["if-range"], "\"first\"");
                let mut other = bytes.to_vec();
                other.reverse();
                answer(out, 200, &[("ETag", "\"second\"".to_owned())], &other);
            },
        ),
        half_then("another part", 1, "another part", |asked, bytes, out| {
            let start = asked.range_start().unwrap() + 1;
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            part(out, range, &bytes[start..]);
        }),
        half_then(
            "another size in the range",
            1,
            "another part",
            |asked, bytes, out| {
                let start = asked.range_start().unwrap();
                part(
                    out,
                    format!("bytes {start}-{}/*", bytes.len() - 1),
                    &bytes[start..],
                );
            },
        ),
        half_then(
            "a range that is none",
            1,
            "another part",
            |_, bytes, out| {
                part(out, "bytes -1-99999999999999999999/x".to_owned(), bytes);
            },
        ),
        half_then(
            "a part without a range",
            1,
            "another part",
            |_, bytes, out| {
                answer(out, 206, &[], bytes);
            },
        ),
        half_then("the rest is not there", 1, "is not there", |_, _, out| {
            answer(out, 416, &[], b"");
        }),
        half_then(
            "the rest is of another file",
            1,
            "its hash is",
            |asked, bytes, out| {
                let start = asked.range_start().unwrap();
                let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
                part(out, range, &vec![7; bytes.len() - start]);
            },
        ),
        sent(
            "a part that nobody asked for",
            1,
            "another part",
            |_, bytes, out| {
                let range = format!("bytes 10-{}/{}", bytes.len() - 1, bytes.len());
                part(out, range, &bytes[10..]);
                true
            },
        ),
    ]
}

fn redirects() -> Vec<Case> {
    let to = |name, says, to| resolved(name, says, "Location", to);
    vec![
        case(
            "redirects in a circle",
            1,
            "again and again",
            |asked, facts, out| {
                let to = format!("{}{}", facts.hub, asked.path);
                answer(out, 302, &[("Location", to)], b"");
                true
            },
        ),
        to(
            "to plain HTTP",
            "without encryption",
            "http://127.0.0.1:9/x",
        ),
        to("to a file", "no web address", "file:///etc/passwd"),
        to(
            "to another kind of address",
            "no web address",
            "ftp://127.0.0.1/x",
        ),
        to("to nowhere", "no web address", ""),
        to(
            "to a name and password",
            "password",
            "https://a:b@127.0.0.1/x",
        ),
        to(
            "to another host without a scheme",
            "no web address",
            "//127.0.0.1:9/x",
        ),
        to("to a host that is none", "no web address", "https:///x"),
        resolved(
            "another hash than listed",
            "another hash",
            "X-Linked-ETag",
            "\"0000000000000000000000000000000000000000000000000000000000000000\"",
        ),
        resolved(
            "a hash that is none",
            "no hash",
            "X-Linked-ETag",
            "\"../../x\"",
        ),
        resolved(
            "another size than listed",
            "another size",
            "X-Linked-Size",
            "1",
        ),
        resolved("a size that is none", "no number", "X-Linked-Size", "-1"),
        resolved("another commit", "another commit", "X-Repo-Commit", "main"),
    ]
}

/// Every request is answered with a status.
fn status(
    name: &'static str,
    code: i32,
    says: &'static str,
    status: u16,
    retry: &'static str,
) -> Case {
    case(name, code, says, move |_, _, out| {
        let headers = [("Retry-After", retry.to_owned())];
        answer(
            out,
            status,
            &headers[..usize::from(!retry.is_empty())],
            b"no",
        );
        true
    })
}

fn statuses() -> Vec<Case> {
    vec![
        status("no such repository", 5, "the hub has no", 404, ""),
        status("an account that is refused", 3, "this account", 401, ""),
        status("a gated model", 3, "accept the model's licence", 403, ""),
        status("too often, for an hour", 6, "3600 s", 429, "3600"),
        status(
            "too often, for ever",
            6,
            "too often",
            429,
            "99999999999999999999",
        ),
        status("broken", 1, "status 500", 500, ""),
        status("a status that is none of a hub's", 1, "status 204", 204, ""),
        case("busy for a moment", 0, "", |asked, _, out| {
            let busy = asked.turn == 0 && !asked.at_storage;
            if busy {
                answer(out, 503, &[("Retry-After", "0".to_owned())], b"");
            }
            busy
        }),
        case("no HTTP at all", 1, "", |_, _, out| {
            let _ = out.write_all(b"SSH-2.0-hello\r\n\r\n");
            true
        }),
        case("a huge head", 1, "", |_, _, out| {
            let headers = [("X-Much", "a".repeat(1 << 20))];
            answer(out, 200, &headers, b"{}");
            true
        }),
        case("an endless head", 1, "", |_, _, out| {
            let _ = out.write_all(b"HTTP/1.1 200 -\r\n");
            while out.write_all(b"X-More: 1\r\n").is_ok() {}
            true
        }),
    ]
}

/// Writes a little from time to time until the reader has gone.
fn trickle(out: Out<'_>) {
    while out.write_all(b"a").and_then(|()| out.flush()).is_ok() {
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn slow() -> Vec<Case> {
    vec![
        sent(
            "a file that trickles",
            1,
            "next to nothing",
            |_, bytes, out| {
                answer(out, 200, &[length(bytes.len())], b"");
                trickle(out);
                true
            },
        ),
        case("a head that trickles", 1, "next to nothing", |_, _, out| {
            let _ = out.write_all(b"HTTP/1.1 200 ");
            trickle(out);
            true
        }),
        case(
            "a listing that trickles",
            1,
            "next to nothing",
            |asked, _, out| {
                if asked.is_listing() {
                    answer(out, 200, &[length(100_000)], b"");
                    trickle(out);
                }
                asked.is_listing()
            },
        ),
        case("silence", 1, "silent", |_, _, _| {
            std::thread::sleep(Duration::from_secs(5));
            true
        }),
    ]
}
