#!/usr/bin/env bash
# Starts a script on Horovod's ranks: launch/horovodrun.sh -np 8 [-H host1:4,host2:4] [--mpi] [...] script.py [arguments]
# Everything before the script is horovodrun's; PYTHON picks the interpreter.
set -euo pipefail

options=() hosts=''
while [[ $# -gt 0 && $1 != *.py ]]; do
    case $1 in -H* | --host* | -hostfile*) hosts=given ;; esac
    case $1 in
        # Their value may be a Python script, which is not the one to start.
        --host-discovery-script | --hostfile | -hostfile | --config-file | --output-filename | --*-args)
            [[ $# -gt 1 ]] || break
            options+=("$1")
            shift
            ;;
    esac
    options+=("$1")
    shift
done
[[ $# -gt 0 ]] || { echo "usage: $0 -np N [options of horovodrun] script.py [arguments]" >&2; exit 2; }

PATH=${VIRTUAL_ENV:-$(dirname "$0")/../.venv}/bin:$PATH
controller=--gloo
[[ " ${options[*]-} " != *" --mpi "* ]] || controller=
if [[ -z $hosts ]]; then
    # One machine: nothing leaves it, and there may be more ranks than cores.
    options+=(--network-interface lo)
    export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe OMPI_MCA_rmaps_base_oversubscribe=1
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_pml=ob1 OMPI_MCA_btl=^tcp,ofi,uct
fi
exec horovodrun ${controller:+"$controller"} "${options[@]}" "${PYTHON:-python}" "$@"
