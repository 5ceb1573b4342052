#!/usr/bin/env bash
# Starts a script on MPI's ranks: launch/mpirun.sh -np 8 [--host host1:4,host2:4] [...] script.py [arguments]
# Everything before the script is mpirun's; PYTHON picks the interpreter.
set -euo pipefail

options=() hosts=''
while [[ $# -gt 0 && $1 != *.py ]]; do
    case $1 in -H* | --host* | -host* | --machinefile | -machinefile | --default-hostfile) hosts=given ;; esac
    case $1 in
        # Their value may end in .py, and is not the script to start.
        --hostfile | -hostfile | --machinefile | -machinefile | --default-hostfile | --rankfile | -x | --wdir | --output)
            [[ $# -gt 1 ]] || break
            options+=("$1")
            shift
            ;;
    esac
    options+=("$1")
    shift
done
[[ $# -gt 0 ]] || { echo "usage: $0 -np N [options of mpirun] script.py [arguments]" >&2; exit 2; }

PATH=${VIRTUAL_ENV:-$(dirname "$0")/../.venv}/bin:$PATH
export PATH
if [[ -z $hosts ]]; then
    # One machine: nothing leaves it, and there may be more ranks than cores.
    export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe OMPI_MCA_rmaps_base_oversubscribe=1
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_pml=ob1 OMPI_MCA_btl=^tcp,ofi,uct
else
    options+=(-x PATH -x LD_LIBRARY_PATH)
fi
exec mpirun --bind-to none "${options[@]}" "${PYTHON:-python}" "$@"
