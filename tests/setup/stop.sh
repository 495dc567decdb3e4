#!/bin/sh
# `make stop`: ends the daemon that `make run` started, and no other.
set -eu
. "$(dirname -- "$0")/common.sh"

dev_env
pid=$(dev_pid)
[ -n "$pid" ] || exit 0
kill -TERM "$pid"
# It drains for at most 15 s.
tenths=0
while kill -0 "$pid" 2>/dev/null; do
    tenths=$((tenths + 1))
    [ $tenths -le 200 ] || fail "the daemon (pid $pid) does not stop" "kill -KILL $pid"
    sleep 0.1
done
say "stopped the daemon (pid $pid)"
