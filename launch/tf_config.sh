#!/usr/bin/env bash
# Starts a script on the workers of a tf.distribute.MultiWorkerMirroredStrategy:
#   launch/tf_config.sh -n 2 script.py [arguments]              two workers on this machine
#   launch/tf_config.sh --workers host1:12345,host2:12345 --index 0 script.py [arguments]    one worker, on each host
# The workers of several hosts know each other by a secret: give all of them the same random text, DISTLR_SECRET=...
# PYTHON picks the interpreter. Under Slurm: DISTLR_ENGINE=multi-worker sbatch ... launch/slurm.sbatch script.py
set -euo pipefail

count='' workers='' index=''
while [[ $# -gt 1 && $1 != *.py ]]; do
    case $1 in
        -n) count=$2 ;;
        --workers) workers=$2 ;;
        --index) index=$2 ;;
        *) break ;;
    esac
    shift 2
done
if [[ ${1-} != *.py || -z $count$index ]]; then
    echo "usage: $0 (-n N | --workers HOST:PORT,HOST:PORT,... --index I) script.py [arguments]" >&2
    exit 2
fi

PATH=${VIRTUAL_ENV:-$(dirname "$0")/../.venv}/bin:$PATH
export PATH
if [[ -n $count ]]; then
    exec "${PYTHON:-python}" -m distlr.cli.main run -n "$count" --backend multi-worker "$@"
fi
export DISTLR_ENGINE=multi-worker
export TF_CONFIG="{\"cluster\": {\"worker\": [\"${workers//,/\", \"}\"]}, \"task\": {\"type\": \"worker\", \"index\": $index}}"
exec "${PYTHON:-python}" "$@"
