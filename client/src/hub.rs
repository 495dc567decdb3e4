//! A model hub over HTTPS, as `hearth pull` needs it: what a repository holds, which of its files make
//! up a model, and those files, fetched and checked. It knows neither daemon nor terminal.
//!
//! Nothing that comes from the network becomes part of a path or is shown before it was checked:
//! see [`names`].

mod cache;
mod catalogue;
mod choice;
mod error;
mod fetch;
mod http;
mod limits;
mod listing;
mod names;
mod published;
mod settings;
mod source;
mod staging;

use std::path::Path;

pub(crate) use error::HubError;
pub(crate) use published::{Fetched, Published};
pub(crate) use settings::Settings;
pub(crate) use source::{Source, store_name};
pub(crate) use staging::Staging;

use http::Http;
use listing::Listing;

/// What is to be fetched: the files of one model at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The repository, `ORG/NAME`.
    pub(crate) repo: String,
    /// The commit, 40 hexadecimal digits.
    pub(crate) commit: String,
    /// Its licence, as the hub tells it.
    pub(crate) license: Option<String>,
    /// The files, by name.
    pub(crate) files: Vec<Published>,
}

impl Plan {
    /// Size of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, file| sum.saturating_add(file.bytes))
    }
}

/// A hub, or what is left of one in the local cache when no network may be used.
#[derive(Debug)]
pub(crate) struct Hub {
    settings: Settings,
    http: Option<Http>,
}

impl Hub {
    /// The hub of these settings.
    ///
    /// # Errors
    /// A setting is unusable.
    pub(crate) fn new(settings: Settings) -> Result<Self, HubError> {
        let http = match settings.offline {
            true => None,
            false => Some(Http::new(&settings)?),
        };
        Ok(Self { settings, http })
    }

    /// Finds out what is to be fetched. Blocks.
    ///
    /// # Errors
    /// The hub does not answer or refuses, there is no such repository, revision or file, or there
    /// are several to choose from.
    pub(crate) fn plan(&self, source: &Source) -> Result<Plan, HubError> {
        let listing = match &self.http {
            Some(http) => Listing::fetch(http, source)?,
            None => cache::listing(&self.settings, source)?,
        };
        let mut files = choice::choose(listing.files, source)?;
        for file in &mut files {
            if let (Some(http), None) = (&self.http, &file.hash) {
                listing::ask_for_hash(http, &source.repo, &listing.commit, file)?;
            }
            source.hold(file)?;
        }
        Ok(Plan {
            repo: source.repo.clone(),
            commit: listing.commit,
            license: listing.license,
            files,
        })
    }

    /// Puts the files of a plan into the staging folder, each under its name and checked: those that
    /// are there from before, those of the local cache, and the others from the hub. Blocks.
    /// `progress` hears of a file and the bytes done of all.
    ///
    /// # Errors
    /// The hub fails, a file is not what was published, or the disk fails. What was fetched stays, to
    /// be gone on with.
    pub(crate) fn fetch(
        &self,
        plan: &Plan,
        staging: &Staging,
        progress: &mut dyn FnMut(&str, u64),
    ) -> Result<Vec<Fetched>, HubError> {
        let mut fetched = Vec::with_capacity(plan.files.len());
        let mut before = 0;
        let here = |file: &Published| {
            staging.has(file) || cache::blob(&self.settings, &plan.repo, file).is_some()
        };
        let missing = plan.files.iter().filter(|file| !here(file));
        staging.check_space(missing)?;
        for file in &plan.files {
            let mut on_bytes = |done: u64| progress(&file.name, before + done);
            let cached = cache::blob(&self.settings, &plan.repo, file);
            let one = match staging.take(file, cached.as_deref(), &mut on_bytes)? {
                Some(one) => one,
                None => {
                    let http = self.http.as_ref().ok_or_else(|| HubError::Offline {
                        what: file.name.clone(),
                    })?;
                    fetch::fetch(http, plan, file, staging, &mut on_bytes)?
                }
            };
            before += file.bytes;
            fetched.push(one);
        }
        Ok(fetched)
    }

    /// A folder for the files of a plan, below the store at `models`.
    ///
    /// # Errors
    /// It cannot be made, or another process fills it.
    pub(crate) fn staging(&self, models: &Path, plan: &Plan) -> Result<Staging, HubError> {
        Staging::open(models, &self.settings.endpoint, plan)
    }
}
