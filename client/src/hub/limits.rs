//! Every limit of the hub's client, in one place.

use std::time::Duration;

/// Redirects that a request follows.
pub(super) const REDIRECTS_MAX: usize = 5;
/// Largest head of an answer, in bytes.
pub(super) const ANSWER_HEAD_BYTES_MAX: usize = 64 << 10;
/// Largest description of a repository, in bytes.
pub(super) const LISTING_BYTES_MAX: u64 = 16 << 20;
/// Most files of a repository.
pub(super) const SIBLINGS_MAX: usize = 50_000;
/// Most files of a model.
pub(super) const FILES_MAX: usize = 512;
/// Largest file of a model, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 44;
/// Longest name of a file, in bytes.
pub(super) const FILE_NAME_BYTES_MAX: usize = 200;
/// Longest licence that is shown, in characters.
pub(super) const LICENSE_CHARS_MAX: usize = 100;
/// Largest file with a token or with root certificates, in bytes.
pub(super) const TOKEN_BYTES_MAX: u64 = 4 << 10;
/// As above, of certificates.
pub(super) const ROOTS_BYTES_MAX: u64 = 16 << 20;
/// Times that a request is tried while the hub is at fault.
pub(super) const TRIES_MAX: u32 = 3;
/// Times that a file is gone on with, one after the other, without [`PROGRESS_BYTES_MIN`] of it coming.
pub(super) const RESUMES_MAX: u32 = 3;
/// Bytes that count as progress.
pub(super) const PROGRESS_BYTES_MIN: u64 = 1 << 20;
/// The first pause between two tries; each further one is twice as long.
pub(super) const PAUSE: Duration = Duration::from_millis(250);
/// The longest pause that a hub may ask for and get.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// How long a hub may be silent, unless the environment says otherwise.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
/// The longest silence that the environment may allow.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(3600);
/// Silences that an answer's head, or a whole small answer, may take.
pub(super) const SILENCES_OF_ANSWER: u32 = 3;
/// Bytes a second below which a file does not really come.
pub(super) const RATE_MIN: u64 = 1 << 10;
/// Disk space that a pull leaves, in bytes.
pub(super) const SPACE_LEFT_MIN: u64 = 64 << 20;
