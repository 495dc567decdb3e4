//! Names of stored models. A sound name is also a sound file name, so it can be joined to a path.

use hearth_engine::format::split_names;

use crate::limits::MODEL_NAME_BYTES_MAX;

/// A name that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a model's name has 1 to {MODEL_NAME_BYTES_MAX} of a-z, 0-9, `.`, `_`, `-`, and begins with a \
     letter or digit"
)]
pub struct NameError;

/// Checks a name against `^[a-z0-9][a-z0-9._-]{0,99}$`.
///
/// # Errors
/// It does not fit.
pub(crate) fn check(name: &str) -> Result<(), NameError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let sound = name.len() <= MODEL_NAME_BYTES_MAX
        && name.bytes().next().is_some_and(plain)
        && name
            .bytes()
            .all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'));
    if sound { Ok(()) } else { Err(NameError) }
}

/// Makes a name from that of a file or folder: `SmolLM2 135M.Q4_1.gguf` becomes `smollm2-135m.q4_1`.
/// The number of a part goes. Always sound.
pub(crate) fn from_file_name(file_name: &str) -> String {
    let stem = match file_name.rsplit_once('.') {
        Some((stem, end)) if end.eq_ignore_ascii_case("gguf") => stem,
        _ => file_name,
    };
    let stem = match split_names(file_name) {
        Some(_) => stem.get(..stem.len().saturating_sub("-00001-of-00002".len())),
        None => None,
    }
    .unwrap_or(stem);
    let name: String = stem
        .chars()
        .map(|letter| letter.to_ascii_lowercase())
        .map(|letter| {
            let keep = letter.is_ascii_lowercase()
                || letter.is_ascii_digit()
                || matches!(letter, '.' | '_' | '-');
            if keep { letter } else { '-' }
        })
        .skip_while(|letter| matches!(letter, '.' | '_' | '-'))
        .take(MODEL_NAME_BYTES_MAX)
        .collect();
    if name.is_empty() {
        "model".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_their_edges() {
        for sound in ["a", "0", "llama3.2-1b_q4", &"a".repeat(100)] {
            assert!(check(sound).is_ok(), "{sound}");
        }
        let long = "a".repeat(101);
        for unsound in [
            "", ".", "..", "-a", "_a", ".a", "A", "a/b", "a b", "ä", "a\0", &long,
        ] {
            assert!(check(unsound).is_err(), "{unsound:?}");
        }
    }

    #[test]
    fn every_file_name_gives_a_sound_name() {
        assert_eq!(
            from_file_name("SmolLM2-135M-Instruct.Q4_1.gguf"),
            "smollm2-135m-instruct.q4_1"
        );
        assert_eq!(from_file_name("M-00002-of-00003.gguf"), "m");
        assert_eq!(from_file_name("Llama-3.2-1B"), "llama-3.2-1b");
        for odd in [
            "",
            ".gguf",
            "..",
            "äöü",
            "Ü b.gguf",
            "---",
            "..a",
            "x.GGUF",
            &"é".repeat(300),
        ] {
            let name = from_file_name(odd);
            assert!(check(&name).is_ok(), "{odd:?} gave {name:?}");
        }
    }
}
