//! Imports a model of floats as one GGUF file of 4 or 8 bits.

use std::fs::File;
use std::path::Path;

use hearth_engine::format::Checkpoint;
use hearth_engine::model::ModelConfig;
use hearth_engine::{Quantization, QuantizeError, write_quantized};

use super::import::{
    Ready, check_space, check_together, create_part, hash_of, now_s, open_sources,
};
use super::{BadModel, Manifest, Store, StoreError, StoredFile, failed, name};

impl Store {
    /// As [`Store::import`], but what is kept is the model in fewer bits, under `name` (`None`: made from
    /// the path, with `-q4` or `-q8` behind it). `progress` hears of bytes of the source.
    ///
    /// # Errors
    /// See [`StoreError`]: in particular, a model that has few bits already is refused.
    pub fn import_quantized(
        &self,
        source: &Path,
        name: Option<&str>,
        to: Quantization,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Manifest, StoreError> {
        if !source.is_absolute() {
            return Err(StoreError::NotAbsolute);
        }
        if source.starts_with(self.incoming()) {
            return Err(StoreError::NotAPull);
        }
        let name = match name {
            Some(name) => name.to_owned(),
            None => default_name(source, to),
        };
        name::check(&name)?;
        let checkpoint = open(source)?;
        ModelConfig::of(&checkpoint).map_err(BadModel::Model)?;
        let blobs = self.blobs();
        // 8 bits of a source of 16 are the most that is written; one of 32 needs less still.
        check_space(&blobs, checkpoint.file_bytes() / 2)?;
        let mut part = create_part(&blobs)?;
        write_quantized(&checkpoint, to, &mut part.file, progress).map_err(
            |error| match error {
                QuantizeError::Cancelled => StoreError::Cancelled,
                QuantizeError::Format(error) => StoreError::BadModel(BadModel::Format(error)),
                QuantizeError::Write(source) => failed("write", &part.path)(source),
                error => StoreError::Quantize(error),
            },
        )?;
        part.file.sync_all().map_err(failed("write", &part.path))?;
        let file_name = format!("{name}.gguf");
        // What counts is what was written.
        let facts = check_together(&[(&file_name, &part.file)])?;
        let mut handle = part.file.try_clone().map_err(failed("open", &part.path))?;
        let (sha256, bytes) = hash_of(&mut handle, &mut 0, 0, &mut |_, _| true)?;
        let model = Manifest {
            name,
            files: vec![StoredFile {
                name: file_name,
                sha256: sha256.clone(),
                bytes,
            }],
            imported_at_s: now_s(),
            source: None,
            facts,
        };
        let ready = Ready {
            sha256,
            path: part.path.clone(),
            handle,
        };
        self.keep(vec![ready], model)
    }
}

fn default_name(source: &Path, to: Quantization) -> String {
    let file = source.file_name().map(|s| s.to_string_lossy());
    let bits = match to {
        Quantization::Q4 => "q4",
        Quantization::Q8 => "q8",
    };
    let base = name::from_file_name(&file.unwrap_or_default());
    let room: String = base.chars().take(90).collect();
    format!("{room}-{bits}")
}

fn open(source: &Path) -> Result<Checkpoint, StoreError> {
    let files: Vec<(String, File)> = open_sources(source)?
        .into_iter()
        .map(|(file, handle)| (file.name, handle))
        .collect();
    Ok(Checkpoint::from_files(files).map_err(BadModel::Format)?)
}
