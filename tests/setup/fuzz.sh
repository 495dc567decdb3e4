#!/bin/sh
# `make fuzz`: every fuzz target, or those named as arguments, for FUZZ_RUNS inputs each or
# FUZZ_SECONDS, whichever comes first. Ends at the first input that panics, takes over 1 s or over
# 256 MB, and says where it is kept.
set -eu
. "$(dirname -- "$0")/common.sh"

runs=${FUZZ_RUNS:-5000000}
seconds=${FUZZ_SECONDS:-60}
# Any that cargo-fuzz knows; all but `none` need a nightly toolchain. The code is safe Rust and the
# targets count memory themselves, so `none` is the default: it is several times faster.
sanitizer=${FUZZ_SANITIZER:-none}
[ $# -gt 0 ] || set -- gguf folder groups tokenizer pieces template

"$root/tests/setup/setup.sh" fuzz
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
export PATH
cd "$root/tests/fuzz"
python3 make_seeds.py
for name in "$@"; do
    [ -d "seeds/$name" ] || fail "no fuzz target is called $name" "gguf, folder, groups, tokenizer, pieces or template"
    say "fuzzing $name: $runs inputs or $seconds s"
    mkdir -p "corpus/$name"
    cargo fuzz run --fuzz-dir . --sanitizer "$sanitizer" "$name" "corpus/$name" "seeds/$name" -- \
        -runs="$runs" -max_total_time="$seconds" -timeout=1 -rss_limit_mb=1024 -max_len=32768 \
        -verbosity=0 -print_final_stats=1 ||
        fail "$name failed on an input" "the input is in tests/fuzz/artifacts/$name"
done
say "all targets passed"
