# Where the set-up scripts keep things; sourced, never run. Knows paths and names, does nothing.
# shellcheck shell=sh

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
cache=$root/.cache
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$root/$target ;; esac
model_name=smollm2-135m-instruct
model_file=${HEARTH_MODEL_FILE:-$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf}
tokenizers_dir=${HEARTH_TOKENIZERS:-$cache/tokenizers}

say() { printf '%s\n' "hearth: $*" >&2; }
fail() {
    say "$1"
    [ $# -lt 2 ] || printf '\nhint: %s\n' "$2" >&2
    exit 1
}

# A run from the source tree has its own socket, models, configuration and state, so that it never
# touches an installed daemon. A Unix socket's path holds about 104 bytes on some systems: a deep
# clone gets a directory of its own beneath the home directory instead.
dev_env() {
    run_dir=$cache/run
    if [ "$(printf '%s' "$run_dir/hearthd.sock" | wc -c)" -gt 100 ]; then
        id=$(printf '%s' "$root" | cksum | cut -d ' ' -f 1)
        run_dir=${XDG_RUNTIME_DIR:-$HOME}
        [ -n "${XDG_RUNTIME_DIR:-}" ] && run_dir=$run_dir/hearth-dev-$id || run_dir=$run_dir/.hearth-dev-$id
    fi
    mkdir -p "$cache"
    [ -d "$run_dir" ] || mkdir -m 700 "$run_dir"
    HEARTH_SOCKET=$run_dir/hearthd.sock
    HEARTH_CONFIG=$run_dir/config.toml
    HEARTH_MODELS=$cache/store
    XDG_STATE_HOME=$run_dir/state
    export HEARTH_SOCKET HEARTH_CONFIG HEARTH_MODELS XDG_STATE_HOME
    unset HEARTH_AUTOSTART HEARTH_MODEL
    [ -e "$HEARTH_CONFIG" ] || printf '# The configuration of make run.\n' >"$HEARTH_CONFIG"
}

# The pid of the running development daemon, or nothing. The lock file beside the socket names it.
dev_pid() {
    [ -r "$run_dir/hearthd.lock" ] || return 0
    pid=$(tr -cd '0-9\n' <"$run_dir/hearthd.lock" | head -n 1)
    [ -n "$pid" ] || return 0
    case $(ps -o comm= -p "$pid" 2>/dev/null) in *hearthd*) printf '%s\n' "$pid" ;; esac
}
