#!/bin/sh
# Runs test_service.py and test_attacks.py, each against a daemon of its own: environment, stubs,
# daemon, tests, stop. `run.sh attacks [--measure]` runs the attacks only.
# HEARTHD names the daemon's program, HEARTH_MODEL_FILE the model of the first daemon and
# HEARTH_TINY_MODEL the program that writes the model of the second; all have defaults.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
HEARTHD=${HEARTHD:-$root/target/debug/hearthd}
HEARTH_TINY_MODEL=${HEARTH_TINY_MODEL:-$(dirname -- "$HEARTHD")/examples/tiny_model}
HEARTH_MODEL_FILE=${HEARTH_MODEL_FILE:-$root/.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf}
venv=$root/.cache/venv
stubs=$root/.cache/python-stubs

fail() {
    printf 'tests/python: %s\n' "$1" >&2
    exit 1
}
[ -x "$HEARTHD" ] || fail "no program at $HEARTHD (cargo build -p hearthd, or set HEARTHD)"
[ -x "$HEARTH_TINY_MODEL" ] || fail "no program at $HEARTH_TINY_MODEL (cargo build -p hearth-tests --example tiny_model)"
[ -f "$HEARTH_MODEL_FILE" ] || fail "no model at $HEARTH_MODEL_FILE (make setup, or set HEARTH_MODEL_FILE)"

# The environment is made once for each requirements.txt: the copy beside it is the last step.
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/requirements.txt"
fi

rm -rf "$stubs"
mkdir -p "$stubs"
"$venv/bin/python" -m grpc_tools.protoc -I "$root/proto" --python_out="$stubs" \
    --grpc_python_out="$stubs" "$root"/proto/hearth/v1/*.proto

# mktemp makes the directory 0700, as the daemon demands of the place of its socket. The name is
# kept short: a Unix socket's path holds about 104 bytes.
work=$(mktemp -d "${TMPDIR:-/tmp}/hearth.XXXXXX")
daemon=
# Stops the daemon, if one runs; false if it does not stop by itself.
stop() {
    [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null || return 0
    kill -TERM "$daemon" 2>/dev/null || true
    waited=0
    while kill -0 "$daemon" 2>/dev/null && [ "$waited" -lt 200 ]; do
        sleep 0.1
        waited=$((waited + 1))
    done
    if kill -0 "$daemon" 2>/dev/null; then
        printf 'tests/python: the daemon did not stop within 20 s\n' >&2
        kill -KILL "$daemon" 2>/dev/null || true
        return 1
    fi
    daemon=
}
finish() {
    code=$?
    trap - EXIT HUP INT TERM
    stop || code=1
    if [ "$code" != 0 ] && [ -f "$work/hearthd.log" ]; then
        printf 'tests/python: the end of the daemon'\''s log:\n' >&2
        tail -n 40 "$work/hearthd.log" >&2
    fi
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' HUP INT TERM

mkdir "$work/models"
: >"$work/config.toml"
HEARTH_SOCKET=$work/d.sock
export HEARTH_SOCKET HEARTH_MODEL_FILE

# Starts a daemon with the model in $1 and waits until it listens.
start() {
    HEARTH_CONFIG=$work/config.toml HEARTH_MODELS=$work/models HEARTH_MODEL=$1 \
        XDG_STATE_HOME=$work/state HEARTH_LOG=info "$HEARTHD" >"$work/hearthd.log" 2>&1 &
    daemon=$!
    # A daemon that dies at once (a bad setting, no adapter) is said here, not by a time limit.
    waited=0
    while [ ! -S "$HEARTH_SOCKET" ]; do
        kill -0 "$daemon" 2>/dev/null || fail "the daemon ended before it listened"
        [ "$waited" -lt 300 ] || fail "the daemon does not listen after 30 s"
        sleep 0.1
        waited=$((waited + 1))
    done
}

python() { PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$stubs "$venv/bin/python" "$@"; }

only=
[ "${1:-}" != attacks ] || { only=attacks && shift; }
if [ -z "$only" ]; then
    start "$HEARTH_MODEL_FILE"
    python "$here/test_service.py" "$@"
    stop
    set --
fi
"$HEARTH_TINY_MODEL" "$work/tiny.gguf"
start "$work/tiny.gguf"
python "$here/test_attacks.py" "$@"
