// The names that CUDA defines and those of cuda/kernels/gpu.h, for kernels that run on the host: see there what they
// mean. Threads of a block are fibers, and what all lanes of a warp do together is done once all have come.
#pragma once
#include <bit>
#include <cmath>
#include <type_traits>

#include "cusim/fibers.h"
#include "cusim/half.h"

struct uint4 {
  alignas(16) uint32_t x;
  uint32_t y, z, w;
};
struct float4 {
  alignas(16) float x;
  float y, z, w;
};

#define threadIdx (::cusim::now.thread)
#define blockIdx (::cusim::now.block)
#define blockDim (::cusim::now.threads)
#define gridDim (::cusim::now.blocks)

#define RWKV_KERNEL
#define RWKV_BOUNDS(...)
#define RWKV_DEVICE inline
#define PARAMS(type, name) const type& name
#define SHARED(type, name) type& name = *reinterpret_cast<type*>(::cusim::now.shared)

namespace rwkv::cuda {

template <class P>
Entry entry(void (*kernel)(const P&)) {
  return {reinterpret_cast<const void*>(kernel), [](const void* function, const void* params) {
            reinterpret_cast<void (*)(const P&)>(function)(*static_cast<const P*>(params));
          }};
}

inline int lane() { return int(threadIdx.x) % 32; }
inline int warp() { return int(threadIdx.x) / 32; }

inline void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { cusim::barrier({file, line}); }
inline void sync_warp(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  static const char operation = 0;
  cusim::collective(&operation, nullptr, nullptr, {file, line});
}

// Kernels come one after the other here.
inline void let_next_start() {}
inline void wait_for_previous() {}
inline void prefetch(const void*) {}

template <class T>
struct Shuffle {
  T in, out;
  int from;
};
template <class T>
T shuffle(T v, int from, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  static const char operation = 0;
  if (from < 0 || from > 31) cusim::fail("a shuffle from a lane below 0 or above 31", {file, line});
  Shuffle<T> s{v, v, from};
  const auto combine = [](void* const lanes[32]) {
    for (int i = 0; i < 32; i++) {
      auto* to = static_cast<Shuffle<T>*>(lanes[i]);
      to->out = static_cast<const Shuffle<T>*>(lanes[to->from])->in;
    }
  };
  cusim::collective(&operation, &s, combine, {file, line});
  return s.out;
}
template <class T>
T shuffle_xor(T v, int mask, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return shuffle(v, lane() ^ mask, file, line);
}
inline uint32_t ballot(bool v, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  static const char operation = 0;
  struct Vote {
    bool in;
    uint32_t out;
  } vote{v, 0};
  const auto combine = [](void* const lanes[32]) {
    uint32_t all = 0;
    for (int i = 0; i < 32; i++) all |= uint32_t(static_cast<const Vote*>(lanes[i])->in) << i;
    for (int i = 0; i < 32; i++) static_cast<Vote*>(lanes[i])->out = all;
  };
  cusim::collective(&operation, &vote, combine, {file, line});
  return vote.out;
}

// ---- tensor cores: products are exact in float32, sums are made in double and rounded once ----
struct Fragments {
  const uint32_t *a, *b;
  float* d;
};
template <float (*Convert)(uint16_t)>
void mma_lanes(void* const lanes[32]) {
  float a[16][16], b[16][8];
  double d[16][8];
  const auto number = [](const uint32_t* words, int i) { return Convert(uint16_t(words[i / 2] >> i % 2 * 16)); };
  for (int l = 0; l < 32; l++) {
    const auto* f = static_cast<const Fragments*>(lanes[l]);
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < 8; i++) a[g + i / 2 % 2 * 8][t * 2 + i % 2 + i / 4 * 8] = number(f->a, i);
    for (int i = 0; i < 4; i++) b[t * 2 + i % 2 + i / 2 * 8][g] = number(f->b, i);
    for (int i = 0; i < 4; i++) d[g + i / 2 * 8][t * 2 + i % 2] = double(f->d[i]);
  }
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 16; k++)
      for (int j = 0; j < 8; j++) d[i][j] += double(a[i][k] * b[k][j]);
  for (int l = 0; l < 32; l++) {
    const auto* f = static_cast<const Fragments*>(lanes[l]);
    for (int i = 0; i < 4; i++) f->d[i] = float(d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2]);
  }
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file = __builtin_FILE(),
                    int line = __builtin_LINE()) {
  static const char operation = 0;
  Fragments f{a, b, d};
  cusim::collective(&operation, &f, mma_lanes<cusim::half_to_float>, {file, line});
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file = __builtin_FILE(),
                     int line = __builtin_LINE()) {
  static const char operation = 0;
  Fragments f{a, b, d};
  cusim::collective(&operation, &f, mma_lanes<cusim::bf16_to_float>, {file, line});
}

template <bool Turned>
void load_tiles(uint32_t (&to)[4], const void* row, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  static const char operation = 0;
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    cusim::fail("16 bytes are read from an address that is not a multiple of 16", {file, line});
  struct Pointers {
    const void *in, *all[32];
  } pointers{row, {}};
  const auto combine = [](void* const lanes[32]) {
    for (int i = 0; i < 32; i++)
      for (int j = 0; j < 32; j++)
        static_cast<Pointers*>(lanes[i])->all[j] = static_cast<const Pointers*>(lanes[j])->in;
  };
  cusim::collective(&operation, &pointers, combine, {file, line});
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; i++) {
    const void* const* rows = pointers.all + 8 * i;
    const auto half = [&](int r, int c) { return uint32_t(static_cast<const uint16_t*>(rows[r])[c]); };
    to[i] = Turned ? half(2 * t, g) | half(2 * t + 1, g) << 16 : half(g, 2 * t) | half(g, 2 * t + 1) << 16;
  }
}
inline uint32_t turn_tile(uint32_t v, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  static const char operation = 0;
  struct Word {
    uint32_t in, out;
  } word{v, 0};
  const auto combine = [](void* const lanes[32]) {
    const auto half = [&](int r, int c) {
      return static_cast<const Word*>(lanes[r * 4 + c / 2])->in >> c % 2 * 16 & 0xffff;
    };
    for (int l = 0; l < 32; l++)
      static_cast<Word*>(lanes[l])->out = half(l % 4 * 2, l / 4) | half(l % 4 * 2 + 1, l / 4) << 16;
  };
  cusim::collective(&operation, &word, combine, {file, line});
  return word.out;
}

// ---- numbers and bits ----
inline uint32_t bits(float v) { return std::bit_cast<uint32_t>(v); }
inline float from_bits(uint32_t v) { return std::bit_cast<float>(v); }
inline uint64_t double_bits(double v) { return std::bit_cast<uint64_t>(v); }
inline double from_double_bits(uint64_t v) { return std::bit_cast<double>(v); }
inline float half_to_float(uint16_t h) { return cusim::half_to_float(h); }
inline uint16_t float_to_half(float v) { return cusim::float_to_half(v); }
inline uint32_t floats_to_halves(float low, float high) {
  return float_to_half(low) | uint32_t(float_to_half(high)) << 16;
}
inline uint32_t subtract_halves(uint32_t a, uint32_t b) {
  const auto half = [](uint32_t w, int shift) { return cusim::half_to_float(uint16_t(w >> shift)); };
  return uint32_t(cusim::float_to_half(half(a, 0) - half(b, 0))) |
         uint32_t(cusim::float_to_half(half(a, 16) - half(b, 16))) << 16;
}
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t all = uint64_t(b) << 32 | a;
  uint32_t chosen = 0;
  for (int i = 0; i < 4; i++) chosen |= uint32_t(all >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return chosen;
}

// ---- memory ----
inline uint4 load_stream(const void* from, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0)
    cusim::fail("16 bytes are read from an address that is not a multiple of 16", {file, line});
  return *static_cast<const uint4*>(from);
}
inline void atomic_or(int32_t* to, int32_t v) { __atomic_fetch_or(to, v, __ATOMIC_RELAXED); }
inline void copy_async(void* to, const void* from, bool wanted, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  cusim::copy_async(to, from, wanted, {file, line});
}
inline void commit() { cusim::commit_copies(); }
template <int N>
void wait() {
  cusim::wait_for_copies(N);
}

}  // namespace rwkv::cuda
