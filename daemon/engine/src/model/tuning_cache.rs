//! The file of chosen cuts: one JSON object, a record an adapter, an entry a product.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::choices::Cut;
use super::plan::GemvPlan;
use crate::engine::AdapterInfo;

const FILE_NAME: &str = "kernels.json";
/// Changes with what the file's fields mean.
const FORMAT: u32 = 1;
/// A file of more bytes is not ours.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most adapters remembered,
const ADAPTERS_MAX: usize = 8;
/// and products of each.
const PRODUCTS_MAX: usize = 512;

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    /// The one used last is the last.
    adapters: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    key: Key,
    products: BTreeMap<String, Entry>,
}

/// Whatever may change which cut is fastest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    adapter: String,
    vendor_id: u32,
    device_id: u32,
    driver: String,
    backend: String,
    subgroup_size: u32,
    engine: String,
}

impl Key {
    fn of(adapter: &AdapterInfo) -> Self {
        Self {
            adapter: adapter.name.clone(),
            vendor_id: adapter.vendor_id,
            device_id: adapter.device_id,
            driver: adapter.driver.clone(),
            backend: adapter.backend.clone(),
            subgroup_size: adapter.subgroup_size,
            engine: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    threads: u32,
    lanes: u32,
    passes: u32,
    own_norm: bool,
}

/// See the module.
pub(crate) struct TuningCache {
    path: PathBuf,
    file: File,
    key: Key,
}

impl TuningCache {
    /// Reads the file in `dir`. One that is missing is empty; one that is broken is too, with a
    /// warning.
    pub(crate) fn open(dir: &Path, adapter: &AdapterInfo) -> Self {
        let path = dir.join(FILE_NAME);
        let file = match read(&path) {
            Ok(Some(file)) => file,
            Ok(None) => File::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "ignoring the file of kernel choices");
                File::default()
            }
        };
        Self {
            path,
            file,
            key: Key::of(adapter),
        }
    }

    /// One that knows `chosen` and has no file.
    pub(crate) fn of(adapter: &AdapterInfo, chosen: &[(&str, Cut)]) -> Self {
        let key = Key::of(adapter);
        let products = chosen.iter().map(|(product, cut)| {
            let entry = Entry {
                threads: cut.plan.threads,
                lanes: cut.plan.lanes,
                passes: cut.plan.passes,
                own_norm: cut.own_norm,
            };
            ((*product).to_owned(), entry)
        });
        let record = Record {
            key: key.clone(),
            products: products.collect(),
        };
        Self {
            path: PathBuf::new(),
            file: File {
                format: FORMAT,
                adapters: vec![record],
            },
            key,
        }
    }

    /// What was chosen for `product` on this adapter with this engine.
    pub(crate) fn get(&self, product: &str) -> Option<Cut> {
        let record = self.file.adapters.iter().find(|r| r.key == self.key)?;
        let entry = record.products.get(product)?;
        Some(Cut {
            plan: GemvPlan {
                threads: entry.threads,
                lanes: entry.lanes,
                passes: entry.passes,
            },
            own_norm: entry.own_norm,
        })
    }

    /// Adds `chosen` to what is remembered of this adapter and writes the file. What was chosen by
    /// another engine or driver on it is dropped.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn store<'c>(
        &mut self,
        chosen: impl Iterator<Item = (&'c str, Cut)>,
    ) -> io::Result<()> {
        let same_device = |key: &Key| {
            (&key.adapter, key.vendor_id, key.device_id, &key.backend)
                == (
                    &self.key.adapter,
                    self.key.vendor_id,
                    self.key.device_id,
                    &self.key.backend,
                )
        };
        let records = std::mem::take(&mut self.file.adapters);
        let (mine, mut others): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|r| same_device(&r.key));
        let mut products = mine
            .into_iter()
            .find(|r| r.key == self.key)
            .map(|r| r.products)
            .filter(|products| products.len() < PRODUCTS_MAX)
            .unwrap_or_default();
        for (product, cut) in chosen {
            let entry = Entry {
                threads: cut.plan.threads,
                lanes: cut.plan.lanes,
                passes: cut.plan.passes,
                own_norm: cut.own_norm,
            };
            products.insert(product.to_owned(), entry);
        }
        others.drain(..(others.len() + 1).saturating_sub(ADAPTERS_MAX));
        others.push(Record {
            key: self.key.clone(),
            products,
        });
        self.file = File {
            format: FORMAT,
            adapters: others,
        };
        self.write()
    }

    /// Writes beside the file and renames, so that a reader sees the old one or the new one.
    fn write(&self) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        create_dir(dir)?;
        let text = serde_json::to_vec_pretty(&self.file)?;
        let fresh = dir.join(format!("{FILE_NAME}.{}", std::process::id()));
        let written = create(&fresh)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| std::fs::rename(&fresh, &self.path));
        if written.is_err() {
            // It may not even be there.
            let _ = std::fs::remove_file(&fresh);
        }
        written
    }
}

/// The file, if it is there.
fn read(path: &Path) -> io::Result<Option<File>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    let file: File = serde_json::from_slice(&text)?;
    if file.format != FORMAT {
        return Err(io::Error::other(format!(
            "format {}, not {FORMAT}",
            file.format
        )));
    }
    Ok(Some(file))
}

#[cfg(unix)]
fn create_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir)
}

#[cfg(not(unix))]
fn create_dir(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)
}

/// A file that only its owner can read; one of that name that is there already is replaced.
fn create(path: &Path) -> io::Result<std::fs::File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options.open(path)
}
