#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU; it needs no network and less than ten minutes.
#
#   benchmarks/gpu_check.sh [--simulate] [build] [tests] [probes] [engine] [peers]
#
# Builds the package and the tests of the kernels for the GPU that is there, runs those and the tests marked `gpu`, these
# also with launch graphs and dependent launches, then the probes and the benchmarks of benchmarks/gpu/. Tables come
# last, also in gpu-tables.txt; everything is in ${OUT:-benchmarks/results}/gpu-*.json, and what the steps said in
# gpu-log.txt, both written while it runs. A part that fails or takes too long loses no other; the exit status is 0 if
# all went well. Only the parts that are named are run, all without names; what comes after `build` needs it in the same
# run. Models and what peers compile are made in the background of `tests`.
#
# In the environment: OUT; GPU_CHECK_SECONDS (570), in which all must end, and with which the limit of each step grows;
# GPU_CHECK_PYTHON (python3), an interpreter with numpy, pybind11, scikit-build-core, cmake, ninja and pytest, to which
# pytest-xdist, pytest-timeout and torch are of use; GPU_CHECK_ARCHITECTURE, in place of what nvidia-smi says;
# GPU_CHECK_BUILD, a folder that keeps what was compiled for another run.
#
# --simulate runs the same with a tiny model, the package that is installed and, in RWKV_CUDA_LIBRARY, the simulator: all
# but the build and the probes.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

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

work=$(mktemp -d) || exit 2
models=$work/models
background=()
finish() {
  for process in ${background[@]+"${background[@]}"}; do kill -- "-$process" 2>/dev/null; done
  rm -rf "$work" "$models"
}
trap finish EXIT
if $simulate; then
  [[ -f ${RWKV_CUDA_LIBRARY:-} ]] || { echo "RWKV_CUDA_LIBRARY: expected the simulator, librwkv_cusim.so" >&2; exit 2; }
  OUT=${OUT:-$work/out}
  $all && parts=(tests engine peers)
else
  unset RWKV_CUDA_LIBRARY
  OUT=${OUT:-benchmarks/results}
  $all && parts=(build tests probes engine peers)
fi
mkdir -p "$OUT" || exit 2
OUT=$(realpath "$OUT")
export OUT PYTHONUNBUFFERED=1 PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1
export TORCH_EXTENSIONS_DIR=$work/extensions TRITON_CACHE_DIR=$work/triton TRITON_CACHE_AUTOTUNING=1
unset RWKV_CUDA_FEATURES RWKV_GPU_TESTS
if $all; then rm -f "$OUT"/gpu-*.json; fi  # such as the limits of another device
: >"$OUT/gpu-log.txt"

python=$(command -v "${GPU_CHECK_PYTHON:-python3}") || { echo "expected python3, found none" >&2; exit 2; }
parent=$python
PATH=$(dirname "$python"):$PATH
command -v nvcc >/dev/null || PATH+=:/usr/local/cuda/bin
limit=${GPU_CHECK_SECONDS:-570} failed=0 steps=$work/steps.tsv
: >"$steps"

# A command with a limit of its own, whose output is kept; the end of it is shown if it fails.
step() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$(($2 * limit / 570)) begin=$SECONDS left=$((limit - SECONDS - 5)) log status=ok
  shift 2
  log=$work/$name.log
  printf '== %s (after %d s)\n' "$name" "$SECONDS" >&2
  if ((left < 5)); then
    status='no time was left'
    : >"$log"
  else
    timeout --kill-after=3 "$((seconds < left ? seconds : left))" "$@" >"$log" 2>&1 </dev/null || status="exit status $?"
  fi
  printf '%s\t%s\t%d\t%s\n' "$name" "$status" "$((SECONDS - begin))" "$(tail -n 1 "$log" | tr '\t\r' '  ' | cut -c 1-150)" >>"$steps"
  { printf '\n== %s: %s, %d s\n' "$name" "$status" "$((SECONDS - begin))"; tail -n 500 "$log" | cut -c 1-1000; } >>"$OUT/gpu-log.txt"
  [[ $status == ok ]] && return 0
  failed=1
  printf -- '-- %s: %s\n' "$name" "$status" >&2
  tail -n 40 "$log" >&2
  return 1
}
# Beside the steps that follow, until so many hundredths of the time have passed.
in_background() { # NAME HUNDREDTHS COMMAND...
  local name=$1 seconds=$((limit * $2 / 100 - SECONDS))
  shift 2
  ((seconds > 0)) || return 0
  setsid timeout --kill-after=3 "$seconds" nice "$@" >"$work/$name.log" 2>&1 </dev/null &
  background+=("$!")
}
wants() { [[ " ${parts[*]} " == *" $1 "* ]]; }

if ! $simulate; then
  architecture=${GPU_CHECK_ARCHITECTURE:-$(timeout 20 nvidia-smi --id=0 --query-gpu=compute_cap --format=csv,noheader | tr -d '. ' || true)}
  [[ $architecture =~ ^[0-9]+$ ]] || { echo "expected a GPU, found none: nvidia-smi says '$architecture'" >&2; exit 2; }
fi

# That of pip beside torch, of which a venv's package knows nothing.
if [[ -z ${RWKV_CUBLASLT:-} ]]; then
  RWKV_CUBLASLT=$("$parent" -c 'import glob, site
found = [glob.glob(f"{folder}/nvidia/*/lib/libcublasLt.so.1[23]") for folder in site.getsitepackages()]
print(*sum(found, [])[:1])')
  if [[ -n $RWKV_CUBLASLT ]]; then export RWKV_CUBLASLT; else unset RWKV_CUBLASLT; fi
fi

build=$(realpath -m "${GPU_CHECK_BUILD:-$work/build}")
kernel_tests=(cuda_chunk_test cuda_pack_test cuda_products_test cuda_rows_test cuda_sample_test cuda_tile_test cuda_wkv_test)
if wants build; then
  if wants probes; then
    in_background compile-probes 50 "$python" benchmarks/gpu/probes.py --architecture "$architecture" --compile "$work/probes"
  fi
  # Without pip, which the parent has. A venv made from a venv sees nothing of that one, so its folders are named.
  python=$work/venv/bin/python
  step venv 30 "$parent" -m venv --without-pip --system-site-packages "$work/venv" &&
    "$parent" -c 'import site
for folder in site.getsitepackages():
    print(f"import site; site.addsitedir({folder!r})")' >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth" &&
    step package 240 "$python" -m pip install --no-deps --no-build-isolation -Cbuild-dir="$build" \
      -Ccmake.define.RWKV_CUDA=ON -Ccmake.define.RWKV_BUILD_TESTS=ON -Ccmake.define.RWKV_TESTS_SIMULATE=OFF \
      -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture-real" '-Cbuild.targets=_core;rwkv_cuda' .
  if wants tests; then step kernel-tests 90 cmake --build "$build" --parallel "$(nproc)" --target "${kernel_tests[@]}"; fi
fi

# Models are made in memory, if there is room.
mkdir -p "$models"
if [[ -w /dev/shm ]] && (($(df --output=avail -BG /dev/shm | tail -n 1 | tr -dc 0-9) >= 8)); then
  models=$(mktemp -d -p /dev/shm)
fi
if wants engine && ! $simulate; then in_background models 55 "$python" benchmarks/gpu/models.py "$models"; fi
if wants peers && ! $simulate; then in_background warm-peers 40 "$python" benchmarks/gpu/peers.py --warm; fi

if wants tests; then
  # Plugins and libraries of the machine are its own; several processes share the GPU where that is to be had.
  export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
  export RWKV_GPU_TESTS=${RWKV_CUDA_LIBRARY:-1}
  pytest=("$python" -m pytest -p no:cacheprovider -W default -q --maxfail 60 --tb short -m gpu
    tests/python/test_cuda.py tests/python/test_cuda_packed.py tests/python/test_cuda_tuning.py tests/python/test_cuda_cublaslt.py)
  if "$python" -c 'import pytest_timeout' 2>/dev/null; then pytest+=(-p pytest_timeout --timeout 40 --timeout-method thread); fi
  if $simulate; then
    pytest+=(-k 'skipping_changes_no_bit or auto_takes_the_device')
  else
    if "$python" -c 'import xdist' 2>/dev/null; then pytest+=(-p xdist.plugin -n 4); fi
    step kernels 60 bash -c 'failed=0
for test in "$@"; do "$test" >"$test.said" 2>&1 & running+=("$!"); done
for process in "${running[@]}"; do wait "$process" || failed=1; done
for test in "$@"; do echo "-- ${test##*/}"; cat "$test.said"; done
exit "$failed"' kernels "${kernel_tests[@]/#/$build/}"
  fi
  for features in '' graphs,pdl; do
    RWKV_CUDA_FEATURES=$features step "pytest${features:+-$features}" 75 "${pytest[@]}"
  done
  unset RWKV_GPU_TESTS
fi
# What is measured has the machine to itself.
wait
background=()
for log in "$work"/{compile-probes,models,warm-peers}.log; do
  [[ -f $log ]] && { printf '\n== %s\n' "$(basename "$log" .log)"; tail -n 40 "$log"; } >>"$OUT/gpu-log.txt"
done

if wants probes; then
  step probes 75 "$python" benchmarks/gpu/probes.py --architecture "$architecture" --program "$work/probes" --seconds 20
fi

if wants engine; then
  schedule=("$python" benchmarks/gpu/schedule.py --folder "$models")
  if $simulate; then
    step engine 80 "${schedule[@]}" --quick --seconds 75
  else
    left=$((limit - SECONDS - 10))
    wants peers && left=$((left - left / 5))
    step engine "$((left * 570 / limit))" "${schedule[@]}" --seconds "$((left - 5))"
  fi
fi

if wants peers; then
  if $simulate; then
    step peers 60 "$python" benchmarks/gpu/peers.py --shape tiny --peers fla --folder "$models"
  else
    step peers 180 "$python" benchmarks/gpu/peers.py --folder "$models"
  fi
fi

timeout 20 "$parent" benchmarks/gpu/report.py "$steps" | tee "$OUT/gpu-tables.txt"
exit "$failed"
