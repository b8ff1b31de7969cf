// The machine's limits for the Python benchmarks, which load this as a shared library (see common.py).
#include "simd/limits.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

// Seconds of fn(thread) on that many threads, the fastest of `runs`.
template <class F>
double best_time(int threads, int runs, F fn) {
  double best = 1e30;
  for (int run = 0; run < runs; run++) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (int i = 1; i < threads; i++) others.emplace_back([&fn, i] { fn(i); });
    fn(0);
    for (std::thread& t : others) t.join();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

bool has(const char* isa) {
#if RWKV_X86
  const rwkv::cpu::x86::Features f = rwkv::cpu::x86::features();
  if (std::strcmp(isa, "avx512bf16") == 0) return f.avx512bf16;
  if (std::strcmp(isa, "avx512vnni") == 0) return f.avx512 && __builtin_cpu_supports("avx512vnni");
  if (std::strncmp(isa, "avx512", 6) == 0) return f.avx512;
  if (std::strcmp(isa, "avxvnni") == 0) return f.avxvnni;
  if (std::strncmp(isa, "avx2", 4) == 0) return f.avx2;
#endif
  return true;
}

// What RWKV_ISA holds the engine to holds for the peaks as well.
bool allowed(const char* isa) {
  const char* wanted = std::getenv("RWKV_ISA");
  const auto wants = [wanted](const char* set) { return wanted && std::strcmp(wanted, set) == 0; };
  if (std::strcmp(isa, "avxvnni") == 0) return !wants("avx2") && !wants("avx512");
  if (std::strncmp(isa, "avx512", 6) != 0) return true;
  if (wants("avx512")) return std::strcmp(isa, wanted) == 0;
  return !wants("avx2") && !wants("avxvnni");
}

}  // namespace

// GB/s of the best reader over memory that no cache holds. The first call decides how many bytes.
extern "C" double rwkv_read_bandwidth(int threads, size_t wanted) {
  static const size_t bytes = (wanted >> 21) << 21;
  static std::byte* const data = [] {
    auto* p = static_cast<std::byte*>(std::aligned_alloc(size_t(2) << 20, bytes));
    madvise(p, bytes, MADV_HUGEPAGE);  // as the engine asks for its weights
    std::memset(p, 1, bytes);
    return p;
  }();
  static volatile uint64_t sink;
  const size_t share = bytes / size_t(threads) / 4096 * 4096;
  double best = 0;
  for (const limits::Reader& reader : limits::kReaders) {
    if (!has(reader.name)) continue;
    const double seconds =
        best_time(threads, 2, [&](int i) { sink = sink + reader.read(data + size_t(i) * share, share); });
    best = std::max(best, double(share) * threads / seconds / 1e9);
  }
  return best;
}

// Gop/s of the best way, a multiply-add counts two: in float32; of bf16, by dot products or widened; or of int8, which
// takes AVX2 three instructions of which two multiply.
extern "C" double rwkv_peak(int bits, int threads, long rounds) {
  double best = 0;
  const auto measure = [&](const auto& peaks) {
    for (const limits::Peak& peak : peaks)
      if (has(peak.name) && allowed(peak.name))
        best = std::max(best, peak.operations * double(rounds) * threads /
                                  best_time(threads, 2, [&](int) { peak.run(rounds); }) / 1e9);
  };
  if (bits == 8)
    measure(limits::kInt8Dots);
  else
    measure(limits::kPeaks);
  if (bits == 16) measure(limits::kBf16Dots);
  return best;
}
