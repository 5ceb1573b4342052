#!/usr/bin/env bash
# Starts a job anew whenever it dies, from its last checkpoint (distlr.callbacks.Checkpoint):
#   launch/supervise.sh [--tries 10] [--pause 5] launch/horovodrun.sh -np 8 train.py [arguments]
# It ends with 0 when the job does; with the job's own status after so many tries; or, after SIGTERM, SIGINT, SIGQUIT or
# SIGHUP (the terminal was closed), with the job's status then: all processes of the job get the signal, SIGTERM for
# SIGHUP, so that they write a checkpoint. SIGUSR1, which asks for a checkpoint, goes to those processes that listen to it.
# The pause in seconds doubles from try to try, up to five minutes. A try that lasted an hour or longer begins the count
# anew: the job was well.
set -euo pipefail

tries=10 pause=5
while [[ $# -gt 1 ]]; do
    case $1 in
        --tries) tries=$2 ;;
        --pause) pause=$2 ;;
        *) break ;;
    esac
    shift 2
done
if [[ $# -eq 0 || $1 == -* || ! $tries =~ ^[1-9][0-9]{0,8}$ || ! $pause =~ ^[0-9]{1,6}$ ]]; then
    echo "usage: $0 [--tries N] [--pause SECONDS] command [arguments]" >&2
    exit 2
fi
pause=$((10#$pause)) # "08" is eight, and no octal number

job='' running='' stopping=''
end() {
    stopping=$1
    [[ -z $job ]] || kill -s "$1" -- "-$job" 2>/dev/null || true
}
trap 'end TERM' TERM HUP
trap 'end INT' INT
trap 'end QUIT' QUIT
trap '[[ -z $running ]] || kill -s USR1 -- "-$job" 2>/dev/null || true' USR1
# Whatever else ends this script ends the job with it.
trap '[[ -z $job ]] || kill -KILL -- "-$job" 2>/dev/null || true' EXIT

set -m # each job is a process group of its own
failed=0 wait_for=$pause
while true; do
    start=$SECONDS
    # A process that does not listen to SIGUSR1 (horovodrun) would be ended by it, unless it begins with it ignored.
    (trap '' USR1 && exec "$@") &
    job=$!
    running=1
    [[ -z $stopping ]] || end "$stopping" # it came before `job` was known
    # A signal ends `wait` before the job has ended, with a status of its own; bash keeps the job's.
    while kill -0 "$job" 2>/dev/null; do wait "$job" || true; done
    status=0
    wait "$job" || status=$?
    kill -KILL -- "-$job" 2>/dev/null || true # the rest of it
    job='' running=''
    [[ $status -ne 0 ]] || exit 0
    [[ -z $stopping ]] || exit "$status"
    ((SECONDS - start < 3600)) || failed=0 wait_for=$pause
    failed=$((failed + 1))
    if [[ $failed -ge $tries ]]; then
        echo "supervise: the job ended with $status; that was try $failed of $tries, and the last" >&2
        exit "$status"
    fi
    echo "supervise: the job ended with $status; try $((failed + 1)) of $tries in $wait_for s" >&2
    sleep "$wait_for" &
    job=$! # a signal ends it
    [[ -z $stopping ]] || end "$stopping"
    wait "$job" || true
    job=''
    [[ -z $stopping ]] || exit "$status"
    longer=$((wait_for * 2 < 300 ? wait_for * 2 : 300))
    wait_for=$((longer > pause ? longer : pause))
done
