#!/bin/sh
# `make run`: sets everything up, starts the daemon on demand and streams the answer to
# $HEARTH_PROMPT. A second run only asks.
set -eu
unset HEARTH_MODEL_FILE # it is for tests; the name below belongs to the default model
. "$(dirname -- "$0")/common.sh"

# Out of the environment: the daemon, started below, would keep it there.
prompt=$HEARTH_PROMPT
unset HEARTH_PROMPT

"$root/tests/setup/setup.sh" all
cd "$root"
[ -x "$target/release/hearth" ] || say "building (this takes minutes, once)"
cargo build --quiet --release --locked -p hearthd -p hearth
dev_env
hearth=$target/release/hearth

# A daemon of an older build would answer for the new one.
if [ "$target/release/hearthd" -nt "$HEARTH_SOCKET" ] && [ -n "$(dev_pid)" ]; then
    "$root/tests/setup/stop.sh"
fi
if [ ! -e "$HEARTH_MODELS/manifests/$model_name.json" ]; then
    "$hearth" import "$model_file" --name "$model_name" >&2
    # From its next start on the daemon loads it by itself. This one may still be opening the GPU,
    # and refuses until it has.
    grep -q '^model' "$HEARTH_CONFIG" || printf 'model = "%s"\n' "$model_name" >>"$HEARTH_CONFIG"
    tries=0
    until refusal=$("$hearth" load "$model_name" 2>&1); do
        tries=$((tries + 1))
        [ $tries -lt 60 ] || fail "the model cannot be loaded: $refusal"
        sleep 0.5
    done
fi

# The likeliest answer, the same each time. No stdin: what waits there belongs to whoever called make.
exec "$hearth" run --model "$model_name" --temperature 0 --max-tokens 512 -- "$prompt" </dev/null
