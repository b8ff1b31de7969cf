#!/usr/bin/env bash
# The C++ tests and fuzz targets under the address and undefined-behaviour sanitizers, and threads under the thread
# sanitizer.  tests/sanitize.sh [short|long]: some minutes, or hours of mutations and threads.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-short} in
  short) mutations=50000 steps=300 ;;
  long) mutations=100000000 steps=20000 ;;
  *) echo "usage: $0 [short|long]" >&2; exit 2 ;;
esac

# With the library's own assertions, and a warning is an error. -O1 and errors that can be continued from take 2.4 times as long to compile.
build() {  # FOLDER SANITIZERS TARGET...
  cmake -S . -B "$1" -G Ninja -DCMAKE_MAKE_PROGRAM="$(command -v ninja)" \
    -DRWKV_SANITIZE="$2" -DRWKV_BUILD_TESTS=ON -DRWKV_BUILD_PYTHON=OFF -DCMAKE_BUILD_TYPE=Debug \
    -DCMAKE_COMPILE_WARNING_AS_ERROR=ON \
    -DCMAKE_CXX_FLAGS_DEBUG="-Og -g1 -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS" >/dev/null
  cmake --build "$1" --parallel "$(nproc)" --target "${@:3}"
}
names() { for path in "$@"; do basename "$path" .cpp; done; }
# Runs each line of the input, one on each core; what a command says comes in one piece, with its status if not 0.
run_all() {
  xargs -P "$(nproc)" -d '\n' -n 1 bash -c '
    said=$($0 2>&1) && status=0 || status=$?
    printf -- "-- %s\n%s\n" "$0" "$said"
    ((status == 0)) || { echo "-- $0: exit status $status"; exit 1; }'
}

mapfile -t tests < <(names tests/cpp/*_test.cpp)
mapfile -t targets < <(names tests/cpp/fuzz_*.cpp | grep -vx fuzz_main)
export ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1 RWKV_STRESS_STEPS=$steps

echo "== address and undefined behaviour"
build build/asan address,undefined "${tests[@]}" "${targets[@]}"
printf 'build/asan/%s\n' "${tests[@]}" | run_all

# Seeds: what this release reads, as small as it comes.
seeds=build/asan/seeds
rm -rf "$seeds"
python3 tests/fuzz_seeds.py "$seeds"
for target in "${targets[@]}"; do  # in halves, as one target takes longer than all others
  for half in 1 2; do
    share=10
    if [[ $target == fuzz_checkpoint || $target == fuzz_gguf ]]; then share=2; fi  # models come from anywhere
    echo "build/asan/$target --mutate $((mutations / share)) $half $seeds/${target#fuzz_}"
  done
done | run_all

echo "== threads"
build build/tsan thread stress_test
# Old thread sanitizers do not know the address layouts of new kernels.
setarch --addr-no-randomize build/tsan/stress_test
