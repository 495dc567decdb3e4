#!/bin/sh
# `make bench`: `hearth bench` on the default model with a release build. Arguments are passed on.
set -eu
. "$(dirname -- "$0")/common.sh"

"$root/tests/setup/setup.sh" all
cd "$root"
cargo build --quiet --release --locked -p hearthd -p hearth
dev_env
HEARTH_MODEL=$model_file
export HEARTH_MODEL
exec "$target/release/hearth" bench "$@"
