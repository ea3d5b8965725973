#!/usr/bin/env bash
# One night for a scheduler that knows neither retries nor dates: night.sh PROGRAM COMMAND ...
#
# Adds --run (the day, in this machine's time zone) and --json; tries again after exit 6 and after a death by signal,
# up to RETRIES times and PAUSE_S seconds apart; ends at once with every other code. RUN=2026-11-20 makes a night up.
# ENVIRONMENT names a file of NAME=value lines (credentials) that is read first. Two of one run do no harm, but a lock
# in LOCKS spares the work.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: [RUN=DATE] [RETRIES=3] [PAUSE_S=300] night.sh PROGRAM COMMAND ..." >&2
  exit 2
fi
RUN=${RUN:-$(date +%F)}
RETRIES=${RETRIES:-3}
PAUSE_S=${PAUSE_S:-300}
LOCKS=${LOCKS:-${TMPDIR:-/tmp}}
if [ -n "${ENVIRONMENT:-}" ]; then
  if [ ! -r "$ENVIRONMENT" ]; then
    echo "cannot read the environment of the night, $ENVIRONMENT" >&2
    exit 2
  fi
  set -a
  # shellcheck disable=SC1090
  . "$ENVIRONMENT"
  set +a
fi

exec 9> "$LOCKS/codebooks-$(id -u).lock"
if ! flock --nonblock 9; then
  echo "the night before is still at work; $RUN is left to the next try" >&2
  exit 6
fi

# A scheduler's SIGTERM is passed on, waited for (the program is gone within 30 seconds) and not tried again.
stopped=
child=
trap 'stopped=yes; [ -z "$child" ] || kill -TERM "$child" 2> /dev/null || true' TERM INT
for try in $(seq 0 "$RETRIES"); do
  code=0
  "$@" --run "$RUN" --json 9>&- &
  child=$!
  wait "$child" || code=$?
  # A signal ends `wait` before the program has ended.
  while kill -0 "$child" 2> /dev/null; do code=0; wait "$child" || code=$?; done
  if [ "$code" -ne 6 ] && [ "$code" -le 128 ]; then exit "$code"; fi
  if [ -n "$stopped" ]; then exit 6; fi
  echo "$RUN: exit $code, try $((try + 1)) of $((RETRIES + 1))" >&2
  if [ "$try" -lt "$RETRIES" ]; then
    sleep "$PAUSE_S" 9>&- &
    child=$!
    wait "$child" || true
    if [ -n "$stopped" ]; then exit 6; fi
  fi
done
exit 6
