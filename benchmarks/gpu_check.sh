#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU; it needs no network and less than ten minutes.
#
#   benchmarks/gpu_check.sh [--simulate] [build] [tests] [probes] [engine] [peers]
#
# Builds the package and the tests of the kernels for the GPU that is there, runs those and the tests marked `gpu`, both
# also with launch graphs and dependent launches, then the probes and the benchmarks of benchmarks/gpu/. Tables come
# last; everything is in ${OUT:-benchmarks/results}/gpu-*.json. A part that fails or takes too long loses no other; the
# exit status is 0 if all went well. Only the parts that are named are run, all without names; what comes after `build`
# needs it in the same run.
#
# In the environment: OUT; GPU_CHECK_SECONDS (570), in which all must end, and with which the limit of each step grows;
# GPU_CHECK_PYTHON (python3), an interpreter with numpy, pybind11, scikit-build-core and pytest; GPU_CHECK_ARCHITECTURE,
# in place of what nvidia-smi says; GPU_CHECK_BUILD, a folder that keeps what was compiled for another run.
#
# --simulate runs the same with a tiny model, the package that is installed and, in RWKV_CUDA_LIBRARY, the simulator: all
# but the build and the probes.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { echo "usage: $0 [--simulate] [build] [tests] [probes] [engine] [peers]" >&2; exit 2; }

simulate=false parts=()
for word in "$@"; do
  case $word in
    --simulate) simulate=true ;;
    build | tests | probes | engine | peers) parts+=("$word") ;;
    *) usage ;;
  esac
done
all=false
((${#parts[@]})) || all=true

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if $simulate; then
  [[ -f ${RWKV_CUDA_LIBRARY:-} ]] || { echo "RWKV_CUDA_LIBRARY: expected the simulator, librwkv_cusim.so" >&2; exit 2; }
  OUT=${OUT:-$work/out}
  $all && parts=(tests engine peers)
else
  unset RWKV_CUDA_LIBRARY
  OUT=${OUT:-benchmarks/results}
  $all && parts=(build tests probes engine peers)
fi
export OUT PYTHONUNBUFFERED=1 PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1
mkdir -p "$OUT"
if $all; then rm -f "$OUT"/gpu-*.json; fi  # such as the limits of another device

python=$(command -v "${GPU_CHECK_PYTHON:-python3}") || { echo "expected python3, found none" >&2; exit 2; }
parent=$python
PATH=$(dirname "$python"):$PATH
command -v nvcc >/dev/null || PATH+=:/usr/local/cuda/bin
limit=${GPU_CHECK_SECONDS:-570} failed=0 steps=$work/steps.tsv
: >"$steps"

# A command with a limit of its own, whose output is kept; the end of it is shown if it fails.
step() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$(($2 * limit / 570)) begin=$SECONDS left=$((limit - SECONDS)) log status=ok
  shift 2
  log=$work/$name.log
  printf '== %s (after %d s)\n' "$name" "$SECONDS" >&2
  if ((left < 5)); then
    status='no time was left'
    : >"$log"
  else
    timeout --kill-after=5 "$((seconds < left ? seconds : left))" "$@" >"$log" 2>&1 || status="exit status $?"
  fi
  printf '%s\t%s\t%d\t%s\n' "$name" "$status" "$((SECONDS - begin))" "$(tail -n 1 "$log" | tr '\t' ' ' | cut -c 1-150)" >>"$steps"
  [[ $status == ok ]] && return 0
  failed=1
  printf -- '-- %s: %s\n' "$name" "$status" >&2
  tail -n 40 "$log" >&2
  return 1
}
wants() { [[ " ${parts[*]} " == *" $1 "* ]]; }

if ! $simulate; then
  architecture=${GPU_CHECK_ARCHITECTURE:-$(nvidia-smi --id=0 --query-gpu=compute_cap --format=csv,noheader | tr -d '. ' || true)}
  [[ $architecture =~ ^[0-9]+$ ]] || { echo "expected a GPU, found none: nvidia-smi says '$architecture'" >&2; exit 2; }
fi

build=$(realpath -m "${GPU_CHECK_BUILD:-$work/build}")
kernel_tests=(cuda_chunk_test cuda_pack_test cuda_products_test cuda_rows_test cuda_sample_test cuda_tile_test cuda_wkv_test)
if wants build; then
  # Without pip, which the parent has. A venv made from a venv sees nothing of that one, so its folders are named.
  python=$work/venv/bin/python
  step venv 30 "$parent" -m venv --without-pip --system-site-packages "$work/venv" &&
    "$parent" -c 'import site
for folder in site.getsitepackages():
    print(f"import site; site.addsitedir({folder!r})")' >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth" &&
    step package 240 "$python" -m pip install --no-deps --no-build-isolation -Cbuild-dir="$build" \
      -Ccmake.define.RWKV_CUDA=ON -Ccmake.define.RWKV_BUILD_TESTS=ON \
      -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture-real" '-Cbuild.targets=_core;rwkv_cuda' . &&
    if wants tests; then step kernel-tests 180 cmake --build "$build" --parallel "$(nproc)" --target "${kernel_tests[@]}"; fi || true
fi

if wants tests; then
  # Plugins and libraries of the machine are its own; several processes share the GPU where that is to be had.
  export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 RWKV_GPU_TESTS=1
  pytest=("$python" -m pytest -p no:cacheprovider -W default -q --maxfail 20 --tb line -m gpu
    tests/python/test_cuda.py tests/python/test_cuda_cublaslt.py)
  if ! $simulate && "$python" -c 'import xdist' 2>/dev/null; then pytest+=(-p xdist.plugin -n 4); fi
  for features in '' graphs,pdl; do
    export RWKV_CUDA_FEATURES=$features
    of=${features:+-$features}
    if $simulate; then
      step "pytest$of" 60 "${pytest[@]}" -k 'skipping_changes_no_bit or auto_takes_the_device' || true
      continue
    fi
    for test in "${kernel_tests[@]}"; do
      step "$test$of" 30 "$build/$test" || true
    done
    step "pytest$of" 75 "${pytest[@]}" || true
  done
  unset RWKV_CUDA_FEATURES RWKV_GPU_TESTS
fi

if wants probes; then
  step probes 120 "$python" benchmarks/gpu/probes.py --architecture "$architecture" --seconds 15 || true
fi

# Models are made in memory, if there is room.
models=$work/models
mkdir "$models"
if [[ -w /dev/shm ]] && (($(df --output=avail -BG /dev/shm | tail -n 1 | tr -dc 0-9) >= 20)); then
  models=$(mktemp -d -p /dev/shm)
  trap 'rm -rf "$work" "$models"' EXIT
fi

if wants engine; then
  if $simulate; then
    step engine 60 "$python" benchmarks/gpu/engine.py --quick --folder "$models" || true
  else
    for shape in 1.5B:120 7.2B:90 0.1B:30 2.9B:50 0.4B:30; do
      seconds=${shape#*:} shape=${shape%:*}
      step "engine-$shape" $((seconds + 25)) "$python" benchmarks/gpu/engine.py --shape "$shape" --seconds "$seconds" \
        --folder "$models" || true
      rm -rf "${models:?}"/*  # of one that was stopped
    done
  fi
fi

if wants peers; then
  if $simulate; then
    step peers 60 "$python" benchmarks/gpu/peers.py --shape tiny --peers fla --folder "$models" || true
  else
    step peers 180 "$python" benchmarks/gpu/peers.py --folder "$models" || true
  fi
fi

"$parent" benchmarks/gpu/report.py "$steps"
exit "$failed"
