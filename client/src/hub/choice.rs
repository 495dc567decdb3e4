//! Which files of a repository make up the model that is wanted.

use super::error::HubError;
use super::limits::{FILE_BYTES_MAX, FILES_MAX};
use super::names::{INDEX, is_read, is_side_file};
use super::published::Published;
use super::source::Source;

/// Of several GGUF files the first of these, by the name of the weights' type.
const PREFERRED: [&str; 7] = ["q4_k_m", "q4_0", "q4_k_s", "q4_1", "q5_k_m", "q8_0", "f16"];

/// Chooses among the files of a repository; all have names that can be part of a model.
///
/// # Errors
/// There is no model, not this one, or there are several.
pub(super) fn choose(files: Vec<Published>, source: &Source) -> Result<Vec<Published>, HubError> {
    let has = |end: &str| files.iter().any(|file| file.name.ends_with(end));
    let chosen = match &source.file {
        Some(wanted) if !wanted.ends_with(".safetensors") => gguf(&files, source, Some(wanted))?,
        Some(wanted) => safetensors(&files, Some(wanted)),
        None if has(".safetensors") && files.iter().any(|file| file.name == "config.json") => {
            safetensors(&files, None)
        }
        None if has(".gguf") => gguf(&files, source, None)?,
        None => Vec::new(),
    };
    if chosen.is_empty() {
        let what = match &source.file {
            Some(file) => format!("file `{}`", super::names::shown(file)),
            None => "GGUF or safetensors files in its root".to_owned(),
        };
        return Err(HubError::Choice(format!("{} has no {what}", source.repo)));
    }
    if chosen.len() > FILES_MAX {
        let why = format!("the model has over {FILES_MAX} files");
        return Err(HubError::Answer(why));
    }
    if let Some(file) = chosen.iter().find(|file| file.bytes > FILE_BYTES_MAX) {
        return Err(HubError::Answer(format!("{} is too large", file.name)));
    }
    let mut chosen: Vec<Published> = chosen.into_iter().cloned().collect();
    chosen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(chosen)
}

/// The weights and what belongs to them: shards as they are numbered, else the usual file, else all.
fn safetensors<'a>(files: &'a [Published], wanted: Option<&str>) -> Vec<&'a Published> {
    let weights = || {
        files
            .iter()
            .filter(|file| file.name.ends_with(".safetensors"))
    };
    let sharded = wanted.is_none() && files.iter().any(|file| file.name == INDEX);
    let shard = |file: &&Published| file.name.starts_with("model-") && file.name.contains("-of-");
    let mut chosen: Vec<&Published> = match wanted {
        Some(wanted) => weights().filter(|file| file.name == wanted).collect(),
        None if sharded && weights().any(|file| shard(&file)) => weights().filter(shard).collect(),
        None if weights().any(|file| file.name == "model.safetensors") => weights()
            .filter(|file| file.name == "model.safetensors")
            .collect(),
        None => weights().collect(),
    };
    if !chosen.is_empty() {
        let names = || files.iter().map(|file| file.name.as_str());
        let beside = |file: &&Published| {
            is_side_file(&file.name) && is_read(&file.name, names())
                || sharded && file.name == INDEX
        };
        chosen.extend(files.iter().filter(beside));
    }
    chosen
}

/// One GGUF file, with the other parts if it is split.
fn gguf<'a>(
    files: &'a [Published],
    source: &Source,
    wanted: Option<&str>,
) -> Result<Vec<&'a Published>, HubError> {
    // A model is named by its file, or by its first part. Projectors of images are no models.
    let models: Vec<&Published> = files
        .iter()
        .filter(|file| file.name.ends_with(".gguf") && !lower(file).contains("mmproj"))
        .filter(|file| parts(&file.name).is_none_or(|(_, number, _)| number == 1))
        .collect();
    let found = match wanted {
        Some(wanted) => {
            let exact = models.iter().filter(|file| file.name == wanted);
            let exact: Vec<_> = exact.copied().collect();
            let wanted = wanted.to_ascii_lowercase();
            let tagged = models.iter().filter(|file| {
                lower(file) == wanted
                    || lower(file) == format!("{wanted}.gguf")
                    || is_tagged(&lower(file), &wanted)
            });
            if exact.is_empty() {
                tagged.copied().collect()
            } else {
                exact
            }
        }
        None if models.len() == 1 => models.clone(),
        None => PREFERRED
            .iter()
            .map(|tag| {
                let tagged = models.iter().filter(|file| is_tagged(&lower(file), tag));
                tagged.copied().collect::<Vec<_>>()
            })
            .find(|tagged| !tagged.is_empty())
            .unwrap_or_else(|| models.clone()),
    };
    match found.as_slice() {
        [] => Ok(Vec::new()),
        [only] => Ok(with_parts(files, only)),
        several => {
            let names: Vec<&str> = several.iter().map(|file| file.name.as_str()).collect();
            Err(HubError::Choice(format!(
                "{} has several models; name one as {}:FILE\n  {}",
                source.repo,
                source.repo,
                names.join("\n  ")
            )))
        }
    }
}

fn lower(file: &Published) -> String {
    file.name.to_ascii_lowercase()
}

/// Whether a name has this tag, between separators: `q4_0` is not one of `q4_0_8`.
fn is_tagged(name: &str, tag: &str) -> bool {
    name.match_indices(tag).any(|(at, _)| {
        let edge = |letter: Option<char>| !letter.is_some_and(|c| c.is_alphanumeric() || c == '_');
        edge(name[..at].chars().next_back()) && edge(name[at + tag.len()..].chars().next())
    })
}

/// `BASE-00002-of-00003.gguf` as its base, 2 and 3.
fn parts(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (base, number) = rest.rsplit_once('-')?;
    let five = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok())?;
    Some((base, five(number)?, five(count)?))
}

fn with_parts<'a>(files: &'a [Published], model: &'a Published) -> Vec<&'a Published> {
    let Some((base, _, count)) = parts(&model.name) else {
        return vec![model];
    };
    let same = |file: &&Published| matches!(parts(&file.name), Some((other, _, parts)) if other == base && parts == count);
    files.iter().filter(same).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], file: Option<&str>) -> Result<Vec<String>, String> {
        let files = names.iter().map(|name| Published {
            name: (*name).to_owned(),
            bytes: 1,
            hash: None,
        });
        let source = Source {
            repo: "a/b".to_owned(),
            revision: "main".to_owned(),
            file: file.map(str::to_owned),
            sha256: None,
            name: None,
        };
        let chosen = choose(files.collect(), &source).map_err(|error| error.to_string())?;
        Ok(chosen.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn one_gguf_file_is_chosen_by_its_type() {
        let quants = [
            "m-Q8_0.gguf",
            "m-Q4_K_M.gguf",
            "m-Q4_0.gguf",
            "m-IQ4_XS.gguf",
            "mmproj-f16.gguf",
        ];
        assert_eq!(chosen(&quants, None).unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(chosen(&quants[2..], None).unwrap(), ["m-Q4_0.gguf"]);
        assert_eq!(chosen(&quants, Some("q8_0")).unwrap(), ["m-Q8_0.gguf"]);
        assert_eq!(
            chosen(&quants, Some("m-q4_0.gguf")).unwrap(),
            ["m-Q4_0.gguf"]
        );
        assert!(
            chosen(&quants, Some("Q5_0"))
                .unwrap_err()
                .contains("no file")
        );
        let twice = ["a.Q2_K.gguf", "b.Q2_K.gguf"];
        assert!(chosen(&twice, None).unwrap_err().contains("b.Q2_K.gguf"));
        assert!(chosen(&["x-q4_0_8_8.gguf", "y-q5_1.gguf"], Some("q4_0")).is_err());
        let split = [
            "m-Q4_0-00001-of-00002.gguf",
            "m-Q4_0-00002-of-00002.gguf",
            "m-Q2_K.gguf",
        ];
        assert_eq!(chosen(&split, None).unwrap(), split[..2]);
    }

    #[test]
    fn a_set_of_safetensors_is_chosen_whole() {
        let side = ["config.json", "tokenizer.json"];
        let with = |more: &[&'static str]| [&side[..], more].concat();
        let whole = with(&["model.safetensors", "consolidated.safetensors", "x.gguf"]);
        let want = ["config.json", "model.safetensors", "tokenizer.json"];
        assert_eq!(chosen(&whole, None).unwrap(), want);
        let pieces = ["tokenizer.model", "added_tokens.json", "model.safetensors"];
        let both = chosen(&with(&pieces), None).unwrap();
        assert_eq!(
            both,
            [
                "added_tokens.json",
                "config.json",
                "model.safetensors",
                "tokenizer.json"
            ]
        );
        let alone = [&side[..1], &pieces].concat();
        assert_eq!(chosen(&alone, None).unwrap().len(), alone.len());
        let sharded = with(&[
            INDEX,
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
        ]);
        assert_eq!(chosen(&sharded, None).unwrap().len(), 5);
        assert!(chosen(&["config.json"], None).is_err());
        assert!(chosen(&[], None).is_err());
        assert!(chosen(&["adapter_model.safetensors"], None).is_err());
    }
}
