#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU; it needs no network and less than ten minutes.
#
#   benchmarks/gpu_check.sh [--simulate] [build] [tests] [sanitize] [probes] [engine] [peers]
#
# Builds the package and the tests of the kernels for the GPU that is there, runs those and the tests marked `gpu`, these
# also with launch graphs and dependent launches, then the probes and the benchmarks of benchmarks/gpu/. Tables come
# last, also in gpu-tables.txt; everything is in ${OUT:-benchmarks/results}/gpu-*.json, and what the steps said in
# gpu-log.txt, both written while it runs. A part that fails or takes too long loses no other; the exit status is 0 if
# all went well. Only the parts that are named are run, without names all but `sanitize`, which runs tests of the kernels
# under compute-sanitizer; what comes after `build` needs it in the same run. Models and what peers compile are made in
# the background of what comes before them. Who has two runs measures more: `build tests probes`, then `build probes
# engine peers`.
#
# In the environment: OUT; GPU_CHECK_SECONDS (570), in which all must end, and with which the limit of each step grows;
# GPU_CHECK_PYTHON (python3), an interpreter with numpy, pybind11, scikit-build-core, cmake, ninja and pytest, to which
# pytest-xdist, pytest-timeout and torch are of use; GPU_CHECK_ARCHITECTURE, in place of what nvidia-smi says, or of 90;
# GPU_CHECK_BUILD, a folder that keeps what was compiled for another run.
#
# --simulate runs the same with a tiny model, the package that is installed and, in RWKV_CUDA_LIBRARY, the simulator: all
# but the build and the probes.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

usage() { echo "usage: $0 [--simulate] [build] [tests] [sanitize] [probes] [engine] [peers]" >&2; exit 2; }

simulate=false parts=()
for word in "$@"; do
  case $word in
    --simulate) simulate=true ;;
    build | tests | sanitize | probes | engine | peers) parts+=("$word") ;;
    *) usage ;;
  esac
done
all=false
((${#parts[@]})) || all=true

work=$(mktemp -d) || exit 2
models=$work/models
declare -A background=()
# shellcheck disable=SC2329  # called by the trap
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
PATH+=:/usr/local/cuda/bin
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
# shellcheck disable=SC2329  # called in a shell of its own
# Programs beside each other, each with a limit of its own, so that one that hangs takes no other's words with it.
side_by_side() { # SECONDS "COMMAND IN FRONT" PROGRAM...
  local seconds=$1 front running=() programs status failed=0
  read -ra front <<<"$2"
  programs=("${@:3}")
  for program in "${programs[@]}"; do
    timeout --kill-after=3 "$seconds" ${front[@]+"${front[@]}"} "$program" >"$program.said" 2>&1 &
    running+=("$!")
  done
  for i in "${!programs[@]}"; do
    wait "${running[i]}" && status=ok || status="exit status $?"
    [[ $status == ok ]] || failed=1
    echo "-- ${programs[i]##*/}: ${status/#exit status 124/no end after $seconds s}"
    cat "${programs[i]}.said"
  done
  return "$failed"
}
export -f side_by_side
# So many of 570 seconds, or those that are left.
within() {
  local seconds=$(($1 * limit / 570)) left=$((limit - SECONDS - 10))
  ((left > 0)) || left=1
  echo $((seconds < left ? seconds : left))
}
# Beside the steps that follow, until so many hundredths of the time have passed.
in_background() { # NAME HUNDREDTHS COMMAND...
  local name=$1 seconds=$((limit * $2 / 100 - SECONDS))
  shift 2
  ((seconds > 0)) || return 0
  setsid timeout --kill-after=3 "$seconds" nice "$@" >"$work/$name.log" 2>&1 </dev/null &
  background[$name]=$!
}
wait_for() { # NAME...
  local name
  for name in "$@"; do
    [[ -n ${background[$name]:-} ]] || continue
    wait "${background[$name]}"
    unset "background[$name]"
    { printf '\n== %s\n' "$name"; tail -n 40 "$work/$name.log"; } >>"$OUT/gpu-log.txt"
  done
}
wants() { [[ " ${parts[*]} " == *" $1 "* ]]; }

if ! $simulate; then
  architecture=${GPU_CHECK_ARCHITECTURE:-$(timeout 20 nvidia-smi --id=0 --query-gpu=compute_cap --format=csv,noheader | tr -d '. ')}
  if [[ -z $architecture ]]; then
    echo "nvidia-smi says nothing, so the GPU is taken for one of compute capability 9.0" >&2
    architecture=90
  fi
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
  options=(RWKV_CUDA=ON RWKV_BUILD_TESTS=ON RWKV_TESTS_SIMULATE=OFF "CMAKE_CUDA_ARCHITECTURES=$architecture-real")
  if wants sanitize; then options+=(CMAKE_CUDA_FLAGS=-lineinfo); fi
  if ! {
    step venv 30 "$parent" -m venv --without-pip --system-site-packages "$work/venv" &&
      "$parent" -c 'import site
for folder in site.getsitepackages():
    print(f"import site; site.addsitedir({folder!r})")' >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth" &&
      step package 150 "$python" -m pip install --no-deps --no-build-isolation -Cbuild-dir="$build" \
        "${options[@]/#/-Ccmake.define.}" '-Cbuild.targets=_core;rwkv_cuda' .
  }; then # the kernels and their tests need no package
    python=$parent
    step configure 30 cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DRWKV_BUILD_PYTHON=OFF "${options[@]/#/-D}"
  fi
  if wants tests || wants sanitize; then
    step kernel-tests 60 cmake --build "$build" --parallel "$(nproc)" --target rwkv_cuda "${kernel_tests[@]}"
  fi
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
  pytest=("$python" -m pytest -p no:cacheprovider -W default -v --maxfail 60 --tb short -m gpu
    tests/python/test_cuda{,_packed,_tuning,_cublaslt,_sampling}.py)
  if "$python" -c 'import pytest_timeout' 2>/dev/null; then pytest+=(-p pytest_timeout --timeout 40 --timeout-method thread); fi
  if $simulate; then
    pytest+=(-k 'skipping_changes_no_bit or auto_takes_the_device')
  else
    if "$python" -c 'import xdist' 2>/dev/null; then pytest+=(-p xdist.plugin -n 4); fi
    step kernels 60 bash -c 'side_by_side "$@"' kernels "$(within 45)" '' "${kernel_tests[@]/#/$build/}"
  fi
  for features in '' graphs,pdl; do
    RWKV_CUDA_FEATURES=$features step "pytest${features:+-$features}" 50 "${pytest[@]}"
  done
  unset RWKV_GPU_TESTS
fi

if wants sanitize && ! $simulate; then
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
      RWKV_GPU_TESTS=1 step "$tool" 110 bash -c 'side_by_side "$@"' "$tool" "$(within 95)" \
        "compute-sanitizer --tool $tool --print-limit 3 --error-exitcode 9" "$build"/cuda_{chunk,products,sample,tile,wkv}_test
    done
  else
    echo '-- sanitize: left out, as there is no compute-sanitizer' >&2
    printf 'sanitize\tleft out\t0\tthere is no compute-sanitizer\n' >>"$steps"
  fi
fi

# Nothing else is on the device while it is measured, and while engines are, nothing else on the machine.
wait_for compile-probes warm-peers
if wants probes; then
  step probes 75 "$python" benchmarks/gpu/probes.py --architecture "$architecture" --program "$work/probes" --seconds 20
fi

wait_for models
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
