//! Fetches one file into its partial file, going on where an earlier try ended, and checks it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Instant;

use ureq::http::header;

use super::Plan;
use super::error::{HubError, failed};
use super::http::{Answer, Http, of_io};
use super::limits::{PAUSE, PROGRESS_BYTES_MIN, RATE_MIN, RESUMES_MAX, SILENCES_OF_ANSWER};
use super::listing;
use super::names::in_url;
use super::published::{Fetched, Hashing, Published};
use super::staging::Staging;

/// Bytes written at once.
const BUFFER_BYTES: usize = 1 << 18;

/// A partial file and the hashes of what is in it.
struct Partial<'a> {
    wanted: &'a Published,
    file: File,
    path: &'a Path,
    hashing: Hashing,
    bytes: u64,
    /// The ETag that the bytes so far came under.
    etag: Option<String>,
}

/// Fetches a file of a plan. `on_bytes` hears how many bytes of it are there.
///
/// # Errors
/// The hub fails, the file is not what was published, or the disk fails. The partial file stays
/// unless it can be of no use.
pub(super) fn fetch(
    http: &Http,
    plan: &Plan,
    wanted: &Published,
    staging: &Staging,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<Fetched, HubError> {
    let path = staging.part(wanted);
    let mut partial = Partial {
        wanted,
        file: staging.open_part(wanted)?,
        path: &path,
        hashing: Hashing::new(wanted.bytes),
        bytes: 0,
        etag: staging.etag(wanted),
    };
    partial.take_up(on_bytes)?;
    let (mut tries, mut mark) = (0, partial.bytes);
    while partial.bytes < wanted.bytes {
        let result = partial.go_on(http, plan, staging, on_bytes);
        if partial.bytes >= mark.saturating_add(PROGRESS_BYTES_MIN) {
            (tries, mark) = (0, partial.bytes);
        }
        tries += 1;
        match result {
            Err(error @ HubError::Damaged { .. }) => {
                staging.forget(wanted);
                return Err(error);
            }
            Err(error) if !error.is_passing() || tries >= RESUMES_MAX => return Err(error),
            Ok(()) if partial.bytes < wanted.bytes && tries >= RESUMES_MAX => {
                return Err(HubError::Damaged {
                    file: wanted.name.clone(),
                    why: format!("it ends after {} of {} bytes", partial.bytes, wanted.bytes),
                });
            }
            _ if partial.bytes < wanted.bytes => std::thread::sleep(PAUSE * tries),
            _ => {}
        }
    }
    partial.file.sync_all().map_err(failed("write", &path))?;
    match partial.hashing.check(wanted) {
        Ok(fetched) => {
            staging.finish(wanted)?;
            Ok(fetched)
        }
        Err(error) => {
            staging.forget(wanted);
            Err(error)
        }
    }
}

impl Partial<'_> {
    /// Hashes what an earlier try has left.
    fn take_up(&mut self, on_bytes: &mut dyn FnMut(u64)) -> Result<(), HubError> {
        let length = self
            .file
            .metadata()
            .map_err(failed("look at", self.path))?
            .len();
        if length > self.wanted.bytes {
            return self.start_again();
        }
        let mut reader = (&self.file).take(length);
        self.hashing
            .read(&mut reader, self.wanted, on_bytes)
            .map_err(failed("read", self.path))?;
        self.bytes = length;
        Ok(())
    }

    fn start_again(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(failed("empty", self.path))?;
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(failed("empty", self.path))?;
        self.hashing = Hashing::new(self.wanted.bytes);
        self.bytes = 0;
        self.etag = None;
        Ok(())
    }

    /// Asks for what is missing, and takes what comes. `Ok` may still be less than all.
    fn go_on(
        &mut self,
        http: &Http,
        plan: &Plan,
        staging: &Staging,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let path = format!(
            "/{}/resolve/{}/{}",
            plan.repo,
            plan.commit,
            in_url(&self.wanted.name)
        );
        let mut headers = Vec::new();
        if self.bytes > 0 {
            headers.push((header::RANGE, format!("bytes={}-", self.bytes)));
            if let Some(etag) = &self.etag {
                headers.push((header::IF_RANGE, etag.clone()));
            }
        }
        let answer = http.get(&path, &headers, &self.wanted.name)?;
        listing::check(&answer, &plan.commit, self.wanted)?;
        self.check_range(&answer)?;
        if self.bytes == 0 {
            let etag = answer.headers.get(header::ETAG);
            let etag = etag.and_then(|etag| etag.to_str().ok());
            // A weak one says nothing about single bytes.
            self.etag = etag.filter(|etag| etag.starts_with('"')).map(str::to_owned);
            staging.keep_etag(self.wanted, self.etag.as_deref());
        }
        self.take(answer, http, on_bytes)
    }

    /// Checks that the answer begins where the partial file ends; a whole file begins anew.
    fn check_range(&mut self, answer: &Answer) -> Result<(), HubError> {
        let damaged = |why: &str| HubError::Damaged {
            file: self.wanted.name.clone(),
            why: why.to_owned(),
        };
        let number = |name| {
            let text = answer.headers.get(name)?;
            text.to_str().ok()?.parse::<u64>().ok()
        };
        let length = number(header::CONTENT_LENGTH);
        let expected = match answer.status {
            200 => self.wanted.bytes,
            206 => {
                let range = answer.headers.get(header::CONTENT_RANGE);
                let range = range.and_then(|range| range.to_str().ok());
                let last = self.wanted.bytes.saturating_sub(1);
                let right = format!("bytes {}-{last}/{}", self.bytes, self.wanted.bytes);
                if range != Some(right.as_str()) {
                    return Err(damaged("another part was sent than was asked for"));
                }
                self.wanted.bytes - self.bytes
            }
            _ => return Err(damaged("the part that is missing is not there")),
        };
        if length.is_some_and(|length| length != expected) {
            return Err(damaged("its length is not the one that was published"));
        }
        if answer.status == 200 && self.bytes > 0 {
            self.start_again()?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        answer: Answer,
        http: &Http,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let host = answer.host;
        let mut body = answer.body.into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        let window = http.silence() * SILENCES_OF_ANSWER;
        let (mut since, mut mark) = (Instant::now(), self.bytes);
        loop {
            let n = body
                .read(&mut buffer)
                .map_err(|error| of_io(error, &host))?;
            if n == 0 {
                return Ok(());
            }
            if self.bytes + n as u64 > self.wanted.bytes {
                return Err(HubError::Damaged {
                    file: self.wanted.name.clone(),
                    why: format!("it is longer than {} bytes", self.wanted.bytes),
                });
            }
            let piece = &buffer[..n];
            self.file
                .write_all(piece)
                .map_err(failed("write", self.path))?;
            self.hashing.update(piece, self.wanted);
            self.bytes += n as u64;
            on_bytes(self.bytes);
            if self.bytes == self.wanted.bytes
                && !answer.headers.contains_key(header::TRANSFER_ENCODING)
                && answer.headers.contains_key(header::CONTENT_LENGTH)
            {
                return Ok(());
            }
            if since.elapsed() >= window {
                if self.bytes - mark < RATE_MIN.saturating_mul(window.as_secs().max(1)) {
                    return Err(HubError::Stalled { host });
                }
                (since, mark) = (Instant::now(), self.bytes);
            }
        }
    }
}
