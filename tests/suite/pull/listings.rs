//! Tricks of a hub with its description of a repository.

use hearth_test_support::hub::{HubFile, answer};
use serde_json::{Value, json};

use super::tricks::{Case, case};

/// A listing that was tampered with.
fn listing(
    name: &'static str,
    code: i32,
    says: &'static str,
    change: impl Fn(&mut Value) + Send + Sync + 'static,
) -> Case {
    case(name, code, says, move |asked, facts, out| {
        if asked.is_listing() {
            let mut told = facts.listing();
            change(&mut told);
            answer(out, 200, &[], told.to_string().as_bytes());
        }
        asked.is_listing()
    })
}

/// A listing whose only file has another name.
fn renamed(name: &'static str, file: &'static str) -> Case {
    listing(name, 2, "has no GGUF", move |told| {
        told["siblings"][0]["rfilename"] = file.into();
    })
}

/// A listing that is no listing.
fn told(
    name: &'static str,
    code: i32,
    says: &'static str,
    status: u16,
    body: &'static [u8],
) -> Case {
    case(name, code, says, move |asked, _, out| {
        if asked.is_listing() {
            answer(out, status, &[], body);
        }
        asked.is_listing()
    })
}

/// All of them.
pub(super) fn listings() -> Vec<Case> {
    const DEEP: &[u8] = &[b'['; 100_000];
    let file = |key: &'static str, value: Value| {
        move |told: &mut Value| told["siblings"][0][key] = value.clone()
    };
    let lfs = |key: &'static str, value: Value| {
        move |told: &mut Value| told["siblings"][0]["lfs"][key] = value.clone()
    };
    vec![
        renamed("a name that leads up", "../../tiny.gguf"),
        renamed("a name from the root", "/tmp/tiny.gguf"),
        renamed("a name with a zero", "tiny\0.gguf"),
        renamed("a name with backslashes", "..\\tiny.gguf"),
        renamed("a hidden name", ".tiny.gguf"),
        renamed("a name that turns around", "tiny\u{202e}.gguf"),
        renamed("a program", "tiny.gguf.sh"),
        renamed("a pickle", "pytorch_model.bin"),
        told("no JSON", 1, "not sound", 200, b"<html>hello</html>"),
        told("JSON of another kind", 1, "not sound", 200, b"[1, 2]"),
        told("JSON that is too deep", 1, "not sound", 200, DEEP),
        told("an empty listing", 1, "not sound", 200, b""),
        told(
            "bytes that are no text",
            1,
            "not sound",
            200,
            b"{\"sha\": \"\xff\"}",
        ),
        listing("a commit that leads up", 1, "its commit", |told| {
            told["sha"] = "../x".into()
        }),
        listing("a commit in capitals", 1, "its commit", |told| {
            told["sha"] = "A".repeat(40).into();
        }),
        listing(
            "a hash that leads up",
            1,
            "is none",
            lfs("sha256", "../../x".into()),
        ),
        listing("the hash of another file", 1, "another hash", |told| {
            told["siblings"][0]["lfs"]["sha256"] = "0".repeat(64).into();
        }),
        listing("a size that is too small", 1, "", |told| {
            told["siblings"][0]["size"] = 10.into();
            told["siblings"][0]["lfs"]["size"] = 10.into();
        }),
        listing("two sizes", 1, "two sizes", file("size", 1.into())),
        listing("a size beyond all disks", 1, "too large", |told| {
            told["siblings"][0]["size"] = (1_u64 << 62).into();
            told["siblings"][0]["lfs"] = Value::Null;
        }),
        listing(
            "a size that no disk here has",
            1,
            "bytes are needed",
            |told| {
                told["siblings"][0]["size"] = (1_u64 << 43).into();
                told["siblings"][0]["lfs"]["size"] = (1_u64 << 43).into();
            },
        ),
        listing("a negative size", 1, "not sound", file("size", (-1).into())),
        listing("the same name twice", 1, "twice", |told| {
            let first = told["siblings"][0].clone();
            told["siblings"].as_array_mut().unwrap().push(first);
        }),
        listing("too many files", 1, "too many", |told| {
            told["siblings"] = (0..50_001)
                .map(|n| json!({ "rfilename": n.to_string() }))
                .collect();
        }),
        listing("no files", 2, "has no GGUF", |told| {
            told["siblings"] = json!([])
        }),
        listing("a licence that paints the screen", 0, "", |told| {
            told["cardData"]["license"] = "\u{1b}[2Jmit\u{7}".into();
        }),
        case("a listing without end", 1, "", |asked, _, out| {
            if asked.is_listing() {
                let _ = out.write_all(b"HTTP/1.1 200 -\r\nConnection: close\r\n\r\n");
                while out.write_all(&[b' '; 1 << 16]).is_ok() {}
            }
            asked.is_listing()
        }),
        // The hash is right, and that is all.
        case("no model at all", 5, "model", |asked, facts, out| {
            let file = HubFile::large(&facts.files[0].name, b"GGUF, or so they say".to_vec());
            if asked.is_listing() {
                let mut told = facts.listing();
                told["siblings"][0]["size"] = file.bytes.len().into();
                told["siblings"][0]["lfs"] =
                    json!({ "sha256": file.sha256(), "size": file.bytes.len() });
                answer(out, 200, &[], told.to_string().as_bytes());
            } else if asked.is_resolve() {
                let to = format!("{}/x", facts.storage);
                answer(out, 302, &[("Location", to)], b"");
            } else {
                answer(out, 200, &[], &file.bytes);
            }
            true
        }),
    ]
}
