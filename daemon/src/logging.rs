//! The log: `tracing` to standard error, and what a panic may say.
//!
//! No caller of `tracing` in this crate passes it a prompt or a reply. The hook below keeps a
//! panic's own words out too: they can quote anything.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Crates that see users' text or bytes of it, and some that only talk too much. Whatever the
/// filter says, of these only warnings are written.
const HUSHED: [&str; 12] = [
    "h2=warn",
    "hyper=warn",
    "hyper_util=warn",
    "tonic=warn",
    "tonic_prost=warn",
    "tower=warn",
    "axum=warn",
    "minijinja=warn",
    "tokenizers=warn",
    "naga=warn",
    "wgpu_core=warn",
    "wgpu_hal=warn",
];

/// Starts the log. Later calls do nothing.
pub fn start(filter: &str, json: bool) {
    let mut filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    for directive in HUSHED {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second start, as in tests, finds the first one's log in place: that is fine.
    let _ = if json {
        builder.json().try_init()
    } else {
        let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        builder.with_ansi(ansi).try_init()
    };
}

/// Checks a filter's text.
///
/// # Errors
/// It is not one.
pub(crate) fn check_filter(filter: &str) -> Result<(), ()> {
    EnvFilter::try_new(filter).map(drop).map_err(drop)
}

/// Makes panics log their place and nothing else: the message may quote a user's text.
pub fn hide_panic_messages() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(
            || "unknown place".to_owned(),
            |place| format!("{}:{}", place.file(), place.line()),
        );
        tracing::error!(place, "a bug: panic");
    }));
}
