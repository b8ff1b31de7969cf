// What the tests of the CPU's kernels share: the sets of this machine, random numbers, comparisons.
#pragma once
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "core/platform.h"
#include "cpu/kernels.h"
#include "cpu/simd/x86.h"

using namespace rwkv;
using namespace rwkv::cpu;

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
using Row = std::vector<float>;

// The sets that promise equal bits, as far as this machine has them. The first is the reference.
inline std::vector<const Kernels*> exact_sets() {
  std::vector<const Kernels*> sets;
#if RWKV_X86
  const x86::Features has = x86::features();
  if (has.avx2) sets.push_back(&kAvx2);
  if (has.avxvnni) sets.push_back(&kAvxVnni);
  if (has.avx512) sets.push_back(&kAvx512);
  if (has.avx512vnni) sets.push_back(&kAvx512Vnni);
  if (has.avx512amx && request_tiles()) sets.push_back(&kAvx512Amx);
  if (has.avx512bf16) sets.push_back(&kAvx512Bf16);
#endif
  return sets;
}
inline std::vector<const Kernels*> all_sets() {
  std::vector<const Kernels*> sets = exact_sets();
  sets.push_back(&kGeneric);
  return sets;
}

struct Random {
  uint64_t state = 88172645463325252u;
  uint32_t bits() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return uint32_t(state >> 32);
  }
  int below(int n) { return int(bits() % uint32_t(n)); }
  float unit() { return float(int32_t(bits())) * 0x1p-31f; }  // [-1, 1)
  float wide() { return std::ldexp(unit(), below(60) - 40); }
  Row row(size_t n, float scale = 1) {
    Row r(n);
    for (float& v : r) v = unit() * scale;
    return r;
  }
};

// Equal in every bit, except that one NaN is as good as another.
inline bool same(const float* a, const float* b, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (std::memcmp(a + i, b + i, 4) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  return true;
}
inline bool same(const Row& a, const Row& b) { return a.size() == b.size() && same(a.data(), b.data(), a.size()); }

inline bool near(double a, double b, double tolerance) { return std::fabs(a - b) <= tolerance * (1 + std::fabs(b)); }
inline bool near(const Row& a, const Row& b, double tolerance) {
  for (size_t i = 0; i < a.size(); i++)
    if (!near(double(a[i]), double(b[i]), tolerance)) return false;
  return a.size() == b.size();
}
