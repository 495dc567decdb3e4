//! Which names from the network are taken at their word. All others are as if they were not there.

use super::limits::{FILE_NAME_BYTES_MAX, LICENSE_CHARS_MAX};

/// The files that a model of safetensors may have beside its weights.
const SIDE_FILES: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "quantize_config.json",
    "quant_config.json",
];

/// The list of a sharded model's tensors.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Whether it is a commit: 40 lower-case hexadecimal digits.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// Whether it is a SHA-256.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a file of this name can be part of a model, and lies in no folder: letters, digits and
/// `._-+ ` of ASCII, beginning with a letter or digit.
pub(super) fn is_model_file(name: &str) -> bool {
    let known = SIDE_FILES.contains(&name)
        || name == INDEX
        || [".safetensors", ".gguf"]
            .iter()
            .any(|end| name.len() > end.len() && name.ends_with(end));
    known && is_plain(name)
}

fn is_plain(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric();
    name.len() <= FILE_NAME_BYTES_MAX
        && name.bytes().next().is_some_and(letter)
        && name
            .bytes()
            .all(|b| letter(b) || matches!(b, b'.' | b'_' | b'-' | b'+' | b' '))
}

/// Whether it is a side file of a model of safetensors.
pub(super) fn is_side_file(name: &str) -> bool {
    SIDE_FILES.contains(&name)
}

/// Whether a model that has all of `names` reads the one: `tokenizer.model` says nothing that
/// `tokenizer.json` does not.
pub(super) fn is_read<'a>(name: &str, mut names: impl Iterator<Item = &'a str>) -> bool {
    name != "tokenizer.model" || names.all(|name| name != "tokenizer.json")
}

/// Whether it names a repository: `ORG/NAME`, each as the hub allows them.
pub(super) fn is_repo(text: &str) -> bool {
    let part = |part: &str| {
        let letter = |b: u8| b.is_ascii_alphanumeric();
        (1..=96).contains(&part.len())
            && part.bytes().next().is_some_and(letter)
            && part
                .bytes()
                .all(|b| letter(b) || matches!(b, b'.' | b'_' | b'-'))
            && !part.contains("..")
            && !part.contains("--")
    };
    matches!(text.split_once('/'), Some((org, name)) if part(org) && part(name))
}

/// Whether it can be a revision: a branch, a tag or a commit.
pub(super) fn is_revision(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric();
    (1..=100).contains(&text.len())
        && text.bytes().next().is_some_and(letter)
        && text
            .bytes()
            .all(|b| letter(b) || matches!(b, b'.' | b'_' | b'-' | b'/'))
        && !text.contains("..")
        && !text.contains("//")
}

/// A text for the eyes of a person, short and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .filter(|letter| !letter.is_control())
        .take(LICENSE_CHARS_MAX)
        .collect()
}

/// A text as part of a URL's path.
pub(super) fn in_url(text: &str) -> String {
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => {
                url.push(char::from(byte));
            }
            byte => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_lead_elsewhere_are_none() {
        for good in ["model.safetensors", "config.json", "A b-Q4_K_M.gguf", INDEX] {
            assert!(is_model_file(good), "{good}");
        }
        for bad in [
            "../a.gguf",
            "/a.gguf",
            "a/b.gguf",
            "a\\b.gguf",
            "a\0.gguf",
            ".gguf",
            ".a.gguf",
            "a.bin",
            "pytorch_model.pt",
            "a.gguf\n",
            "ä.gguf",
            "C:a.gguf",
            "-a.gguf",
            "a\u{202e}.gguf",
            "a.gguf.exe",
            "x.json",
            &format!("{}.gguf", "a".repeat(200)),
        ] {
            assert!(!is_model_file(bad), "{bad:?}");
        }
        for (repo, good) in [
            ("a/b", true),
            ("HuggingFaceTB/SmolLM2-135M", true),
            ("a", false),
            ("a/b/c", false),
            ("../b", false),
            ("a/..", false),
            ("a--b/c", false),
            ("a/b?x", false),
            ("", false),
        ] {
            assert_eq!(is_repo(repo), good, "{repo}");
        }
        for (revision, good) in [
            ("main", true),
            ("refs/pr/1", true),
            ("v1.0", true),
            ("../x", false),
            ("a//b", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(is_revision(revision), good, "{revision}");
        }
        assert!(is_commit(&"0a".repeat(20)) && !is_commit(&"0A".repeat(20)));
        assert_eq!(in_url("refs/pr/1 ä"), "refs%2Fpr%2F1%20%C3%A4");
        assert_eq!(shown("a\u{1b}[31mb"), "a[31mb");
    }
}
