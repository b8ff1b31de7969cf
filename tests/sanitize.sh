#!/usr/bin/env bash
# The C++ tests and fuzz targets under the address and undefined-behaviour sanitizers, and threads under the thread
# sanitizer.  tests/sanitize.sh [short|long]: some minutes, or hours of mutations and threads.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-short} in
  short) mutations=100000 steps=300 ;;
  long) mutations=100000000 steps=20000 ;;
  *) echo "usage: $0 [short|long]" >&2; exit 2 ;;
esac

# Optimised a little, so that it ends today; with the library's own assertions.
build() {  # FOLDER SANITIZERS TARGET...
  cmake -S . -B "$1" -G Ninja -DCMAKE_MAKE_PROGRAM="$(command -v ninja)" \
    -DRWKV_SANITIZE="$2" -DRWKV_BUILD_TESTS=ON -DRWKV_BUILD_PYTHON=OFF -DCMAKE_BUILD_TYPE=Debug \
    -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1 -D_GLIBCXX_ASSERTIONS" >/dev/null
  cmake --build "$1" --parallel "$(nproc)" --target "${@:3}"
}
names() { for path in "$@"; do basename "$path" .cpp; done; }

mapfile -t tests < <(names tests/cpp/*_test.cpp)
mapfile -t targets < <(names tests/cpp/fuzz_*.cpp | grep -vx fuzz_main)
export ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1 RWKV_STRESS_STEPS=$steps

echo "== address and undefined behaviour"
build build/asan address,undefined "${tests[@]}" "${targets[@]}"
for test in "${tests[@]}"; do
  echo "-- $test"
  "build/asan/$test"
done

# Seeds: what this release reads, as small as it comes.
seeds=$(mktemp -d)
trap 'rm -rf "$seeds"' EXIT
python3 tests/fuzz_seeds.py "$seeds"
for target in "${targets[@]}"; do
  folder=$seeds/${target#fuzz_}
  echo "-- $target"
  "build/asan/$target" "$folder"
  "build/asan/$target" --mutate "$mutations" 1 "$folder"
done

echo "== threads"
build build/tsan thread stress_test
# Old thread sanitizers do not know the address layouts of new kernels.
setarch --addr-no-randomize build/tsan/stress_test
