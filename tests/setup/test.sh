#!/bin/sh
# `make test`: everything, in one build profile. Ends at the first part that fails.
set -eu
. "$(dirname -- "$0")/common.sh"

part() { printf '\n== %s (%s s)\n' "$1" "$(($(date +%s) - started))" >&2; }
started=$(date +%s)

"$root/tests/setup/setup.sh" all
"$root/tests/setup/setup.sh" python
"$root/tests/setup/setup.sh" dbus
"$root/tests/setup/setup.sh" tokenizers
cd "$root"
HEARTH_MODEL_FILE=$model_file
HEARTH_TOKENIZERS=$tokenizers_dir
HEARTHD=$target/debug/hearthd
HEARTH=$target/debug/hearth
export HEARTH_MODEL_FILE HEARTH_TOKENIZERS HEARTHD HEARTH
# Tests set what they need; nothing of the caller's own Hearth may leak in.
unset HEARTH_SOCKET HEARTH_CONFIG HEARTH_MODELS HEARTH_LOG HEARTH_AUTOSTART
unset HEARTH_MODEL HEARTH_ADAPTER HEARTH_ACTIVATIONS HEARTH_CONTEXT_LEN

part "format"
cargo fmt --all --check
part "lints"
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
part "build"
cargo build --quiet --locked --workspace --all-targets
part "tests"
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --workspace
else
    cargo test --locked --workspace --all-targets
fi
part "doc tests"
cargo test --locked --doc -p hearth
part "Python over the socket"
"$root/tests/python/run.sh"
if command -v cargo-deny >/dev/null 2>&1; then
    part "licences, bans, sources"
    cargo deny --log-level error --offline check licenses bans sources
fi
part "all passed"
